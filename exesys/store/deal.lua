-- Shared by submit and claim: dealing ready jobs to workers with credit,
-- start → processing, the attempt rises. It stands behind queue.lua.

local MOST_DUE = 1000
local MOST_POPPED = 16  -- at once
local MOST_DEALT_BYTES = 8388608  -- of data in one call, about: what is more comes with the next

local dealt_bytes = 0

-- Move what is due to its queue. Returns the next due millisecond, 0 for none.
local function move_due(delayed, now_ms)
  local first = call('ZRANGE', delayed, 0, 0, 'WITHSCORES')
  if not first[2] or tonumber(first[2]) > tonumber(now_ms) then
    return tonumber(first[2] or 0)
  end
  local due = call('ZRANGEBYSCORE', delayed, '-inf', now_ms, 'WITHSCORES', 'LIMIT', 0, MOST_DUE)
  for i = 1, #due, 2 do
    local ref = due[i]
    call('ZREM', delayed, ref)
    if call('EXISTS', key.record(ref, 'start')) == 1 then
      make_ready(ref, due[i + 1])
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

local function hand_out(claim, job, ref, place)
  local jobs, held = claim.jobs, claim.held
  jobs[#jobs + 1] = job
  held[#held + 1] = place
  held[#held + 1] = ref
  claim.left = claim.left - 1
end

local function take(session, ref, queue, limits, now_ms)
  local record = key.record(ref, 'processing')
  -- A ready ref without its record is an orphan: popped, it is gone.
  if redis.pcall('RENAME', key.record(ref, 'start'), record).err then
    return nil
  end
  local job = call('HMGET', record, 'attempt', 'to', 'cmd', 'data', 'timeout_s', 'key', 'ready', 'born',
    'traceparent')
  local attempt = tonumber(job[1] or 0) + 1
  dealt_bytes = dealt_bytes + #job[4]
  call('HSET', record, 'attempt', attempt, 'worker', session, 'sent', now_ms)
  happened(ref, 2, attempt, job[3], job[2])
  if job[6] or not limits.free then
    occupy(ref, record, attempt, queue, job[6], limits, now_ms)
  end
  return { ref, attempt, job[2], job[3], job[4], job[5], job[7] or job[8], job[9] }
end

-- A key's turn: its first step is handed out, if another of it may run.
local function take_turn(claim, queue, called, limits, now_ms)
  local lane, running = key.lane(lane_of(queue, called)), key.running(lane_of(queue, called))
  call('ZREM', key.turns(queue), called)
  while true do
    local first = call('ZRANGE', lane, 0, 0, 'WITHSCORES')
    if not first[1] then
      return 0
    end
    local ref = first[1]
    local most = tonumber(call('HGET', key.record(ref, 'start'), 'key_limit') or limits.key_limit)
    if call('SCARD', running) >= most then
      forget_lost(running)
      if call('SCARD', running) >= most then
        return 0
      end
    end
    call('ZREM', lane, ref)
    call('SREM', key.keyed(queue), ref)
    local job = take(claim.session, ref, queue, limits, now_ms)
    if job then
      hand_out(claim, job, ref, first[2])
      if call('SCARD', running) < most then
        give_turn(queue, called)
      end
      return 1
    end
  end
end

-- Hand out the next of a queue with keys, a step or a key's turn, whichever
-- comes first. Returns how many that were, nil when nothing waits.
local function take_next(claim, queue, limits, now_ms)
  local head = call('ZRANGE', key.ready(queue), 0, 0, 'WITHSCORES')
  local turn = call('ZRANGE', key.turns(queue), 0, 0, 'WITHSCORES')
  if turn[1] and not (head[1] and tonumber(head[2]) < tonumber(turn[2])) then
    return take_turn(claim, queue, turn[1], limits, now_ms)
  elseif not head[1] then
    return nil
  end
  call('ZREM', key.ready(queue), head[1])
  local job = take(claim.session, head[1], queue, limits, now_ms)
  if job then
    hand_out(claim, job, head[1], head[2])
  end
  return job and 1 or 0
end

-- The earlier of two moments, where 0 is none.
local function sooner(one, other)
  if not other or other == 0 then return one end
  return one == 0 and other or math.min(one, other)
end

-- Fill the claims from their queues, but for those known to be `empty`; `known`
-- are the limits of queues that were read already. Returns per claim a list of
-- {ref, attempt, to, cmd, data, timeout_s, since when it could be handed out, traceparent}, and when to deal again
-- because a rate lets more begin, or because it was enough for one call (0: none waits for that).
local function deal(claims, empty, known, now_ms)
  local dealt, room, keyed, wake = {}, {}, {}, 0
  dealt_bytes = 0
  for i, claim in ipairs(claims) do
    for _, queue in ipairs(claim.queues) do
      if not empty[queue] and not room[queue] then
        known[queue] = known[queue] or limits_of(queue)
        local at
        room[queue], at = room_of(queue, known[queue], now_ms)
        wake = sooner(wake, at)
        keyed[queue] = call('EXISTS', key.turns(queue)) == 1
      end
      -- Orphans leave a claim short: pop until it is full or the queue is empty.
      while claim.left > 0 and not empty[queue] and room[queue] > 0 and dealt_bytes < MOST_DEALT_BYTES do
        local before = claim.left
        if keyed[queue] then
          empty[queue] = not take_next(claim, queue, known[queue], now_ms)
        else
          local wanted = math.min(claim.left, room[queue], MOST_POPPED)
          local popped = call('ZPOPMIN', key.ready(queue), wanted)
          empty[queue] = #popped < 2 * wanted
          for j = 1, #popped, 2 do
            local job = take(claim.session, popped[j], queue, known[queue], now_ms)
            if job then
              hand_out(claim, job, popped[j], popped[j + 1])
            end
          end
        end
        room[queue] = room[queue] - (before - claim.left)
        if room[queue] <= 0 and known[queue].rate_n then
          local _, at = room_of(queue, known[queue], now_ms)
          wake = sooner(wake, at)
        end
      end
    end
    if #claim.held > 0 then
      call('ZADD', key.held(claim.session), unpack(claim.held))
    end
    dealt[i] = claim.jobs
  end
  if dealt_bytes >= MOST_DEALT_BYTES then
    wake = sooner(wake, tonumber(now_ms))
  end
  return dealt, wake
end
