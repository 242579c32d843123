-- Begin a router's life, or go on with it at a server that has been connected to anew.
--
-- KEYS   epoch, server, lineage
-- ARGV   the server's replication id (its `master_replid`), the router's epoch, 0 for a new life;
--        of a new life what lineage gets, and how many lives it keeps
-- Gives  the epoch that holds: another one than the router's if a later router has begun
--
-- A server has another id after it was started and after it was made master:
-- then it may have lost the last epochs, and a new one goes far beyond any that
-- was given in the meantime. So none is given twice. A router that goes on
-- where its own epoch was lost puts it back.

local BEYOND = 1000000 -- starts of the router that one history may be ahead of the other

local function begin(KEYS, ARGV)
  call = redis.call
  local stored, known = tonumber(call('GET', KEYS[1]) or 0), call('GET', KEYS[2])
  local server, epoch = ARGV[1], tonumber(ARGV[2])
  if epoch > 0 and stored > epoch then
    return stored
  end
  if epoch == 0 then
    epoch = stored + (known and known ~= server and BEYOND or 1)
    call('RPUSH', KEYS[3], ARGV[3])
    call('LTRIM', KEYS[3], -ARGV[4], -1)
  end
  call('SET', KEYS[1], string.format('%.0f', epoch))
  call('SET', KEYS[2], server)
  return epoch
end

redis.register_function(name('begin'), begin)
