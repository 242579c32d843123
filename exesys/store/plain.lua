-- Run one plain command of a turn, if the turn is that of the router that holds the store.
--
-- KEYS   the command's key
-- ARGV   the command, its further arguments
-- Gives  what the command does

local function plain(KEYS, ARGV)
  return redis.call(ARGV[1], KEYS[1], unpack(ARGV, 2))
end

register('plain', plain)
