-- Take many commands: new → start (or standby), or say what stands there
-- already. Then deal to workers, as claim.lua does, when claims come along.
--
-- KEYS   delayed, then the jobs' index keys, one per command
-- ARGV   the settings (see graph.lua), depth limit, number of claims, the
--        claims (see deal.lua), then per command its job_id and the step (see
--        step.lua)
-- Finds  record, ready queue, jobs, order, held, flow, standby, callbacks, events
-- Gives  {answers, when to claim again (0: not for a time's sake), what each claim got, where
--        a number is the place of a command that came with this call}; the answer to a command is 1 when it was new and is in start, else
--        {verdict, ref, state, body, steps that failed (see graph.lua)}, where
--        body is the names of the circle if the verdict is `circle`
--
-- Run twice, without claims, it changes nothing: the second time every command
-- is `same`.
--
-- Commands that find their queue empty and a worker with credit are written as
-- processing at once. The outcome is that of the long way, which is to write
-- them as ready, pop them, read them and move them, for half the price.

-- What stands at a ref that is not new, nil if nothing does; and whether it is a step in start that stands nowhere,
-- because a call broke off half-way. What was handed out by such a call is held from now on: a recall finds it.
local function existing(ref, digest)
  local number, name = state_of(ref)
  if not name then
    return nil
  end
  local record = key.record(ref, name)
  if call('HGET', record, 'sum') ~= digest then
    return { 'conflict', ref, number, false, {} }
  end
  local astray = false
  if number == 0 and not call('ZSCORE', key.delayed(), ref) then
    local queue, called = place_of(record)
    astray = not call('ZSCORE', called and key.lane(lane_of(queue, called)) or key.ready(queue), ref)
  elseif number == 2 then
    local worker, priority = unpack(call('HMGET', record, 'worker', 'priority'))
    if worker and not call('ZSCORE', key.held(worker), ref) then
      call('ZADD', key.held(worker), score(tonumber(priority or PRIORITY), call('INCR', key.order())), ref)
    end
  end
  return { 'same', ref, number, body_of(ref, name), {} }, astray
end

-- Write the record. False when a foreign key of another kind stands in its place.
local function create(now_ms, job_id, ref, state, index, step, fields)
  local alone = call('HLEN', index) == 1
  local many = not alone or state == 'standby'
  if not write(now_ms, ref, state, step, many and { 'many', 1, unpack(fields) } or fields) then
    return false
  end
  if alone then
    call('XADD', key.jobs(), '*', 'j', job_id)
  end
  if many then
    if call('HEXISTS', index, ':open') == 1 then
      enlist(job_id, { { first = first_of(ref), to = step.to } })
      open(job_id, { first_of(ref) })
    else
      make_many(job_id)
    end
    lengthen(index, option(step, 'result_ttl_s'))
  end
  return true
end

-- The claim that would get the next job of a queue in which none waits, if it looks there first; and its place. Those
-- before `from` are full.
local function free_hand(claims, queue, from)
  for i = from, #claims do
    local claim = claims[i]
    if claim.left > 0 then
      for place, served in ipairs(claim.queues) do
        if served == queue then
          return place == 1 and claim or nil, i
        end
      end
    end
  end
  return nil, #claims + 1
end

-- A step that is handed out, as deal.lua tells of it.
local function as_handed_out(ref, step, now_ms)
  local timeout_s, traceparent = option(step, 'timeout_s') or false, option(step, 'traceparent') or false
  return { ref, 1, step.to, step.cmd, step.data, timeout_s, now_ms, traceparent }
end

-- Whether all steps have the priority of the first: only then those that come first are handed out first.
local function of_one_priority(steps)
  for _, step in ipairs(steps) do
    if step.priority ~= steps[1].priority then
      return false
    end
  end
  return true
end

local function submit(KEYS, ARGV)
  call = redis.call
  local env = settings(ARGV)
  local now_ms, limit = env.now_ms, tonumber(ARGV[SETTINGS + 1])
  local now = tonumber(now_ms)
  local claims, at = read_claims(ARGV, SETTINGS + 2)
  local due = #claims > 0 and move_due(KEYS[1], now_ms) or 0
  local answers = {}
  local ready, depth, limits, empty = {}, {}, {}, {}
  local straight = {}  -- queues in which nothing waits, so that what comes may be handed out: to this claim or a later
  local later, placed = {}, {}  -- what is put into delayed at the end; refs that are put there or into a queue
  local count = #KEYS - 1
  local order = call('INCRBY', key.order(), count) - count
  local steps, job_ids = {}, {}
  for i = 1, count do
    job_ids[i] = ARGV[at]
    steps[i], at = read_step(ARGV, at + 1)
  end
  local in_turn = #claims > 0 and of_one_priority(steps)

  for i, step in ipairs(steps) do
    local index, job_id = KEYS[i + 1], job_ids[i]
    local from, to, queue, due_ms, waits = step.from, step.to, step.queue, step.due_ms, step.waits
    local called = option(step, 'key')
    order = order + 1
    if not depth[queue] then
      depth[queue], ready[queue], limits[queue] = depth_of(queue), {}, limits_of(queue)
      straight[queue] = in_turn and depth[queue] == 0 and limits[queue].free and 1 or nil
    end

    local first = from
    local entered = redis.pcall('HSETNX', index, first, to)
    local foreign, fresh = type(entered) == 'table', entered == 1  -- a key of another kind stands in the index' place
    local long = false
    if not fresh and not foreign and call('HGET', index, first) ~= to then
      long = #to > LONGEST_TO
      if not long then
        first = from .. '>' .. to
        fresh = call('HSETNX', index, first, to) == 1
      end
    end
    local ref = first .. ':' .. job_id
    local answer
    if foreign then
      answer = { 'refused', ref, 0, false, {} }
    elseif long then
      answer = { 'long', ref, 0, false, {} }
    elseif not fresh then
      -- nil when the record expired before its job's index did: then it is new.
      local astray
      answer, astray = existing(ref, step.digest)
      if astray and not placed[ref] then
        placed[ref] = true
        if due_ms > now then
          later[#later + 1], later[#later + 2] = due_ms, ref
          due = sooner(due, due_ms)
        else
          make_ready(ref)
          straight, empty, in_turn = {}, {}, false
        end
      end
    elseif depth[queue] >= (limits[queue].depth or limit) then
      call('HDEL', index, first)
      answer = { 'full', ref, 0, false, {} }
    elseif waits then
      local names = circle(job_id, from, to)
      if names then
        call('HDEL', index, first)
        answer = { 'circle', ref, 0, table.concat(names, ','), {} }
      end
    end
    if not answer then
      local hand
      if straight[queue] and due_ms <= now and not waits and not called then
        hand, straight[queue] = free_hand(claims, queue, straight[queue])
      end
      local state, fields = waits and 'standby' or 'start', NONE
      if hand then
        empty[queue] = true
        state, fields = 'processing', { 'attempt', '1', 'worker', hand.session, 'sent', now_ms }
      end
      if not create(now_ms, job_id, ref, state, index, step, fields) then
        call('HDEL', index, first)
        answer = { 'refused', ref, 0, false, {} }
      elseif waits then
        happened(ref, 1, 0, step.cmd, to)
        local _, failed = settle(env, job_id, from)
        if not failed then
          watch(env, ref)
        end
        local number, name = state_of(ref)
        answer = { 'new', ref, number, body_of(ref, name), failed or {} }
        -- It may have started.
        straight, empty, in_turn = {}, {}, false
        local first_due = call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')
        due = sooner(due, tonumber(first_due[2] or 0))
      elseif hand then
        hand_out(hand, first == from and i or as_handed_out(ref, step, now_ms), ref, score(step.priority, order))
        happened(ref, '2', '1', step.cmd, to)
      elseif due_ms > now then
        happened(ref, '0', '0', step.cmd, to)
        placed[ref] = true
        later[#later + 1], later[#later + 2] = due_ms, ref
        due = sooner(due, due_ms)
      else
        happened(ref, '0', '0', step.cmd, to)
        placed[ref] = true
        empty[queue], straight[queue] = nil, nil
        if called then
          line_up(ref, queue, called, score(step.priority, order))
        else
          local list = ready[queue]
          list[#list + 1] = score(step.priority, order)
          list[#list + 1] = ref
        end
        depth[queue] = depth[queue] + 1
      end
    end
    answers[i] = answer or 1
  end

  if #later > 0 then
    call('ZADD', KEYS[1], unpack(later))
  end
  for queue, list in pairs(ready) do
    if #list > 0 then
      call('ZADD', key.ready(queue), unpack(list))
    end
  end
  local dealt, wake = deal(claims, empty, limits, now_ms)
  return { answers, sooner(due, wake), unpack(dealt) }
end

register('submit', submit)
