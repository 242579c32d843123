-- Queues: where steps wait to be handed out, and what holds them back. It
-- stands behind common.lua.
--
-- A step without a key waits in its queue's ready set, by score. Those with one
-- wait in the lane of their key; the key itself waits among the queue's turns,
-- by the score of its first step. When one of its steps is handed out, the key
-- goes behind its equals: so keys take turns, however many steps one has. A key
-- of which as many run as may gets no turn until one of them ends.
--
-- What is set of a queue (its hash) is read at each hand-out, so that it holds
-- at once and for all workers. What runs is kept as sets of refs, not counted:
-- done twice, it is the same.

local PRIORITY_STEP = 35184372088832
local MOST_LISTED = 10000  -- queues
local MOST_WOKEN = 1000  -- steps that are looked at when a limit of keys changes; the keys of others go on as theirs end

-- The score in a ready queue: higher priorities first, then order of arrival.
local function score(priority, order)
  return (9 - priority) * PRIORITY_STEP + order
end

local function lane_of(queue, called)
  return queue .. '=' .. called
end

-- Note that there is a queue of this name.
local function list_queue(queue)
  if queue ~= QUEUE and call('SCARD', key.queues()) < MOST_LISTED then
    call('SADD', key.queues(), queue)
  end
end

local function limits_of(queue)
  local set = call('HMGET', key.queue(queue), 'paused', 'depth', 'concurrency', 'key_limit', 'rate_n', 'rate_ms')
  return {
    paused = set[1], depth = tonumber(set[2] or nil), concurrency = tonumber(set[3] or nil),
    key_limit = tonumber(set[4] or 1), rate_n = tonumber(set[5] or nil), rate_ms = tonumber(set[6] or nil),
    free = not (set[1] or set[3] or set[5]),
  }
end

local function depth_of(queue)
  return call('ZCARD', key.ready(queue)) + call('SCARD', key.keyed(queue))
end

-- --- waiting ----------------------------------------------------------------

-- Put a step where it waits; `called` is its key, if it has one.
local function line_up(ref, queue, called, place)
  if not called then
    call('ZADD', key.ready(queue), place, ref)
    return
  end
  call('ZADD', key.lane(lane_of(queue, called)), place, ref)
  call('SADD', key.keyed(queue), ref)
  call('ZADD', key.turns(queue), 'LT', place, called)
end

-- Give a key its next turn, behind its equals, if a step of it waits.
local function give_turn(queue, called)
  local first = call('ZRANGE', key.lane(lane_of(queue, called)), 0, 0, 'WITHSCORES')
  if first[1] then
    local rank = math.floor(tonumber(first[2]) / PRIORITY_STEP) * PRIORITY_STEP
    call('ZADD', key.turns(queue), 'LT', rank + call('INCR', key.order()), called)
  end
end

-- Take a step away from where it waits.
local function step_out(ref, queue, called)
  if not called then
    call('ZREM', key.ready(queue), ref)
    return
  end
  local lane = key.lane(lane_of(queue, called))
  local first = call('ZRANGE', lane, 0, 0)[1] == ref
  call('ZREM', lane, ref)
  call('SREM', key.keyed(queue), ref)
  if first then
    -- The turn was its own: of its priority, and held up by its limit.
    call('ZREM', key.turns(queue), called)
    give_turn(queue, called)
  end
end

-- Where a step in state start belongs: queue, key, priority.
local function place_of(record)
  local fields = call('HMGET', record, 'queue', 'key', 'priority')
  return fields[1] or QUEUE, fields[2], tonumber(fields[3] or PRIORITY)
end

-- Put a step in state start on its queue, behind its equals. `since` is when it could be handed out, if that is not
-- when it was accepted.
local function make_ready(ref, since)
  if since then
    call('HSET', key.record(ref, 'start'), 'ready', since)
  end
  local queue, called, priority = place_of(key.record(ref, 'start'))
  line_up(ref, queue, called, score(priority, call('INCR', key.order())))
end

-- Put a step that a worker held back where it stood in its queue.
local function put_back(ref, old_score, now_ms)
  call('HSET', key.record(ref, 'start'), 'ready', now_ms)
  local queue, called = place_of(key.record(ref, 'start'))
  line_up(ref, queue, called, old_score)
end

-- --- running ----------------------------------------------------------------

-- A step begins to run: it counts where that is limited.
local function occupy(ref, record, attempt, queue, called, limits, now_ms)
  if called then
    call('SADD', key.running(lane_of(queue, called)), ref)
  end
  if limits.concurrency then
    call('SADD', key.running(queue), ref)
    call('HSET', record, 'counted', 1)
  end
  if limits.rate_n then
    call('ZADD', key.starts(queue), now_ms, ref .. '.' .. attempt)
    call('PEXPIRE', key.starts(queue), limits.rate_ms)
  end
end

-- A step runs no more: another may. Tells whether that was limited.
local function vacate(ref, queue, called, counted)
  if counted then
    call('SREM', key.running(queue), ref)
  end
  if called then
    call('SREM', key.running(lane_of(queue, called)), ref)
    give_turn(queue, called)
  end
  return counted or called
end

-- The same for a step whose record still is in processing.
local function leave(ref, record)
  local fields = call('HMGET', record, 'queue', 'key', 'counted')
  if fields[3] then
    call('HDEL', record, 'counted')
  end
  return vacate(ref, fields[1] or QUEUE, fields[2], fields[3])
end

-- What is counted as running and is not (Redis has lost its end) counts no more.
local function forget_lost(running)
  for _, ref in ipairs(call('SRANDMEMBER', running, 5)) do
    if call('EXISTS', key.record(ref, 'processing')) == 0 then
      call('SREM', running, ref)
    end
  end
end

-- More of each key may run than before: give those a turn that have none.
local function wake_keys(queue)
  local keyed, seen = key.keyed(queue), {}
  local few = call('SCARD', keyed) <= MOST_WOKEN
  local refs = few and call('SMEMBERS', keyed) or call('SRANDMEMBER', keyed, MOST_WOKEN)
  table.sort(refs)
  for _, ref in ipairs(refs) do
    local called = call('HGET', key.record(ref, 'start'), 'key')
    if called and not seen[called] then
      seen[called] = true
      if not call('ZSCORE', key.turns(queue), called) then
        give_turn(queue, called)
      end
    end
  end
end

-- --- how many may run ---------------------------------------------------------

-- How many more may begin by the rate, and if none, when.
local function room_by_rate(queue, limits, now_ms)
  local starts, now = key.starts(queue), tonumber(now_ms)
  local newest = call('ZRANGE', starts, -1, -1, 'WITHSCORES')
  if newest[2] and tonumber(newest[2]) > now then
    -- The clock was set back: those began now at the latest.
    for _, each in ipairs(call('ZRANGEBYSCORE', starts, '(' .. now_ms, '+inf')) do
      call('ZADD', starts, now_ms, each)
    end
  end
  call('ZREMRANGEBYSCORE', starts, '-inf', now - limits.rate_ms)
  local begun = call('ZCARD', starts)
  if begun < limits.rate_n then
    return limits.rate_n - begun
  end
  local leaves = call('ZRANGE', starts, begun - limits.rate_n, begun - limits.rate_n, 'WITHSCORES')
  return 0, tonumber(leaves[2]) + limits.rate_ms
end

-- How many of a queue's steps may begin now; if it is for the rate that none may, also when.
local function room_of(queue, limits, now_ms)
  if limits.free then
    return math.huge
  elseif limits.paused then
    return 0
  end
  local room, at = math.huge, nil
  if limits.concurrency then
    room = limits.concurrency - call('SCARD', key.running(queue))
    if room <= 0 then
      forget_lost(key.running(queue))
      return math.max(limits.concurrency - call('SCARD', key.running(queue)), 0)
    end
  end
  if limits.rate_n then
    local by_rate
    by_rate, at = room_by_rate(queue, limits, now_ms)
    room = math.min(room, by_rate)
  end
  return room, at
end
