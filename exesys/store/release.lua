-- A worker was lost: what it held goes back to where it stood in its queue.
--
-- KEYS   the session's held set, sessions
-- ARGV   the settings (see graph.lua), session, most losses, error body, most refs
-- Finds  record, ready queue, dead, job, flow, callbacks, events
-- Gives  {refs still held, {ref, attempt, peer, body, cmd} of each step lost too
--        often, and of those that fail with it}
--
-- Takes a bounded number of refs, so that a large worker's end does not hold
-- up the others; it is called until none is held. Run again it goes on.

local function release(KEYS, ARGV)
  call = redis.call
  local env = settings(ARGV)
  local session, most_losses, body, most = unpack(ARGV, SETTINGS + 1, SETTINGS + 4)
  most_losses, most = tonumber(most_losses), tonumber(most)
  local failed = {}

  local held = call('ZRANGE', KEYS[1], 0, most - 1, 'WITHSCORES')
  for i = 1, #held, 2 do
    local ref = held[i]
    local record = key.record(ref, 'processing')
    local fields = call('HMGET', record, 'worker', 'attempt', 'peer', 'cmd')
    if fields[1] == session then
      if call('HINCRBY', record, 'losses', 1) >= most_losses then
        failed[#failed + 1] = { ref, fields[2], fields[3] or '', body, fields[4] }
        for _, ended in ipairs(fail(env, ref, body)) do
          failed[#failed + 1] = ended
        end
      else
        leave(ref, record)
        call('HDEL', record, 'worker', 'sent', 'progress', 'note')
        call('RENAME', record, key.record(ref, 'start'))
        moved(ref, key.record(ref, 'start'), 0)
        put_back(ref, held[i + 1], env.now_ms)
      end
    end
    call('ZREM', KEYS[1], ref)
  end
  local left = call('ZCARD', KEYS[1])
  if left == 0 then
    call('SREM', KEYS[2], session)
  end
  return { left, failed }
end

register('release', release)
