-- Give up steps that wait and that nothing was sent to feed.
--
-- KEYS   standby
-- ARGV   the settings (see graph.lua), most refs
-- Finds  record, job, flow, callbacks, events
-- Gives  {next such millisecond (0: none), the steps that failed (see graph.lua)}

local function unfed(KEYS, ARGV)
  call = redis.call
  local env = settings(ARGV)
  local failed = {}
  local due = call('ZRANGEBYSCORE', KEYS[1], '-inf', env.now_ms, 'LIMIT', 0, ARGV[SETTINGS + 1])
  for _, ref in ipairs(due) do
    call('ZREM', KEYS[1], ref)
    -- One that is fed by now ends when those that feed it do.
    noticed(ref, key.record(ref, 'standby'), call('HGET', key.record(ref, 'standby'), 'unfed'))
    if call('HEXISTS', key.flow(job_of(ref)), '<' .. from_of(ref)) == 0 then
      local why = string.format('no step was sent that goes to %s, for %d s', from_of(ref), env.standby_ms / 1000)
      for _, ended in ipairs(give_up_all(env, ref, 'standby', error_body('NeverFed', why))) do
        failed[#failed + 1] = ended
      end
    end
  end
  local first = call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  return { tonumber(first[2] or 0), failed }
end

register('unfed', unfed)
