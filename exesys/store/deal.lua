-- Shared by submit and claim: dealing ready jobs to workers with credit,
-- start → processing, the attempt rises. It stands behind common.lua.

local MOST_DUE = 1000

-- Move what is due to its queue. Returns the next due millisecond, 0 for none.
local function move_due(delayed, now_ms)
  local first = call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if not first[2] or tonumber(first[2]) > tonumber(now_ms) then
    return tonumber(first[2] or 0)
  end
  local due = call('ZRANGEBYSCORE', delayed, '-inf', now_ms, 'LIMIT', 0, MOST_DUE)
  for _, ref in ipairs(due) do
    call('ZREM', delayed, ref)
    if call('EXISTS', key.record(ref, 'start')) == 1 then
      make_ready(ref)
    end
  end
  first = call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  return tonumber(first[2] or 0)
end

-- Read claims from ARGV[at] on: how many, then per claim session, count,
-- number of queues, the queues. Returns them and where the next argument is.
local function read_claims(ARGV, at)
  local claims = {}
  local last = tonumber(ARGV[at])
  at = at + 1
  for i = 1, last do
    local queues = tonumber(ARGV[at + 2])
    claims[i] = {
      session = ARGV[at], left = tonumber(ARGV[at + 1]), queues = { unpack(ARGV, at + 3, at + 2 + queues) },
      jobs = {}, held = {},
    }
    at = at + 3 + queues
  end
  return claims, at
end

local function hand_out(claim, job, place)
  table.insert(claim.jobs, job)
  table.insert(claim.held, place)
  table.insert(claim.held, job[1])
  claim.left = claim.left - 1
end

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

-- Fill the claims from their queues, but for those known to be `empty`.
-- Returns per claim a list of {ref, attempt, to, cmd, data, timeout_s}.
local function deal(claims, empty, now_ms)
  local dealt = {}
  for i, claim in ipairs(claims) do
    for _, queue in ipairs(claim.queues) do
      -- Orphans leave a claim short: pop until it is full or the queue is empty.
      while claim.left > 0 and not empty[queue] do
        local wanted = claim.left
        local popped = call('ZPOPMIN', key.ready(queue), wanted)
        empty[queue] = #popped < 2 * wanted
        for j = 1, #popped, 2 do
          local job = take(claim.session, popped[j], now_ms)
          if job then
            hand_out(claim, job, popped[j + 1])
          end
        end
      end
    end
    if #claim.held > 0 then
      call('ZADD', key.held(claim.session), unpack(claim.held))
    end
    dealt[i] = claim.jobs
  end
  return dealt
end
