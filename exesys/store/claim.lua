-- Deal ready jobs to workers: start → processing, the attempt rises.
--
-- KEYS   delayed
-- ARGV   now_ms, then per claim: session, count, number of queues, the queues
-- Finds  record, ready queue, held
-- Gives  next due millisecond (0: none), then per claim a list of
--        {ref, attempt, to, cmd, data, timeout_s}
--
-- Claiming is the one request that is not repeated after a lost connection:
-- what a lost answer claimed stands in the sessions' held sets and is sent
-- from there.

local MOST_DUE = 1000

local function take(session, ref, now_ms)
  local record = key.record(ref, 'processing')
  -- A ready ref without its record is an orphan: popped, it is gone.
  if redis.pcall('RENAME', key.record(ref, 'start'), record).err then
    return nil
  end
  local job = call('HMGET', record, 'attempt', 'to', 'cmd', 'data', 'timeout_s')
  local attempt = tonumber(job[1] or 0) + 1
  call('HSET', record, 'attempt', attempt, 'worker', session, 'sent', now_ms)
  return { ref, attempt, job[2], job[3], job[4], job[5] }
end

local function claim(KEYS, ARGV)
  call = redis.call
  local now_ms = ARGV[1]

  local due = call('ZRANGEBYSCORE', KEYS[1], '-inf', now_ms, 'LIMIT', 0, MOST_DUE)
  for _, ref in ipairs(due) do
    call('ZREM', KEYS[1], ref)
    if call('EXISTS', key.record(ref, 'start')) == 1 then
      make_ready(ref)
    end
  end
  local next_due = call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
  local answers = { tonumber(next_due[2] or 0) }

  local at = 2
  while at <= #ARGV do
    local session, count, queues = ARGV[at], tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2])
    local jobs, held = {}, {}
    for i = at + 3, at + 2 + queues do
      -- Orphans leave a claim short: pop until it is full or the queue is empty.
      local popped
      repeat
        popped = #jobs < count and call('ZPOPMIN', key.ready(ARGV[i]), count - #jobs) or {}
        for j = 1, #popped, 2 do
          local job = take(session, popped[j], now_ms)
          if job then
            jobs[#jobs + 1] = job
            held[#held + 1] = popped[j + 1]
            held[#held + 1] = popped[j]
          end
        end
      until #popped == 0 or #jobs == count
    end
    if #held > 0 then
      call('ZADD', key.held(session), unpack(held))
    end
    answers[#answers + 1] = jobs
    at = at + 3 + queues
  end
  return answers
end

redis.register_function(name('claim'), claim)
