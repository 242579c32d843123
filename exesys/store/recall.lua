-- Tell what a worker session holds, or give held jobs once more.
--
-- KEYS   the session's held set (none when jobs are asked for)
-- ARGV   per job asked for: ref, attempt
-- Finds  record
-- Gives  with KEYS {ref, attempt} of each step held; else of each job that is
--        still in processing at that attempt {ref, attempt, to, cmd, data, timeout_s, sent, traceparent}

local function recall(KEYS, ARGV)
  call = redis.call
  local answers = {}
  if #KEYS == 1 then
    for _, ref in ipairs(call('ZRANGE', KEYS[1], 0, -1)) do
      local attempt = call('HGET', key.record(ref, 'processing'), 'attempt')
      if attempt then
        answers[#answers + 1] = { ref, attempt }
      else
        call('ZREM', KEYS[1], ref)
      end
    end
    return answers
  end
  for i = 1, #ARGV, 2 do
    local job = call('HMGET', key.record(ARGV[i], 'processing'), 'attempt', 'to', 'cmd', 'data', 'timeout_s', 'sent',
      'traceparent')
    if job[1] == ARGV[i + 1] then
      answers[#answers + 1] = { ARGV[i], unpack(job, 1, 7) }
    end
  end
  return answers
end

register('recall', recall)
