-- Deal ready jobs to workers.
--
-- KEYS   delayed
-- ARGV   now_ms, number of claims, the claims (see deal.lua)
-- Finds  record, ready queue, held, events
-- Gives  when to claim again, as a millisecond (0: not for a time's sake), then what each claim got
--
-- Claiming is the one request that is not repeated after a lost connection:
-- what a lost answer claimed stands in the sessions' held sets and is sent
-- from there.

local function claim(KEYS, ARGV)
  call = redis.call
  local now_ms = ARGV[1]
  local due = move_due(KEYS[1], now_ms)
  local claims = read_claims(ARGV, 2)
  local dealt, wake = deal(claims, {}, {}, now_ms)
  return { sooner(due, wake), unpack(dealt) }
end

register('claim', claim)
