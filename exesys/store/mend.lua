-- Look whether what was found in the store fits together, and mend what does not.
--
-- KEYS   mended
-- ARGV   the settings (see graph.lua), most calls, number of sessions that the
--        router knows, those; then per find: kind, place, name, where to go on
-- Finds  all
-- Gives  {how many finds were looked at, those to go on with, {kind, name} of
--        what was mended, sessions of nobody, sessions that hold more than they
--        did, the steps that failed (see graph.lua)}
--
-- What was found may have moved since: only what is so in this moment counts.
-- Where all fits nothing is written, and run again nothing is left to mend.
--
-- A look at one find is cheap. Of long lists it sees FEW at a time and says
-- where to go on; that only serves to find jobs that do not fit. These are
-- counted anew as a whole, which costs about what it cost to store them.

local FEW = 200
local MOST_TARGETS = 20
local LONG = 4096  -- of a list with more bytes it is enough that it is there: to read it for each of its steps costs much
local NOBODY = '0000000000000000'  -- a session that never comes back
local FIRST_COUNTS = { 4, 5, 3, 1, 2 }  -- of several records of one step the one that went furthest

local tale  -- what this call has found

local function note(kind, name)
  table.insert(tale.mended, { kind, name })
  call('HINCRBY', tale.totals, kind, 1)
  call('HSET', tale.totals, kind .. ':at', tale.env.now_ms)
end

local function tell(ended)
  for _, one in ipairs(ended) do
    table.insert(tale.ended, one)
  end
end

local function lasts(at)
  return call('TTL', at) == -1
end

local function fields_of(at)
  local flat, fields = call('HGETALL', at), {}
  for i = 1, #flat, 2 do
    fields[flat[i]] = flat[i + 1]
  end
  return fields
end

-- --- where a step stands ------------------------------------------------------

-- A step in start is in its queue (with a key: in its lane), or waits for its time. A time that was not its record's is
-- lost with the entry.
local function queued(ref, queue, called, priority, due_ms)
  queue = queue or QUEUE
  local lane = called and lane_of(queue, called)
  local there = call('ZSCORE', lane and key.lane(lane) or key.ready(queue), ref)
  local delayed = call('ZSCORE', key.delayed(), ref)
  if not there and not delayed then
    enter(tale.env, ref, queue, called, priority, math.max(tonumber(due_ms) or 0, 0))
    note('unqueued', ref)
  elseif there and delayed then
    call('ZREM', key.delayed(), ref)
    note('doubled', ref)
  elseif there and lane then
    local entered = call('SADD', key.keyed(queue), ref)
    local silent = not call('ZSCORE', key.turns(queue), called) and call('EXISTS', key.running(lane)) == 0
    if silent then
      give_turn(queue, called)
    end
    if silent or entered == 1 then
      note('unqueued', ref)
    end
  end
end

-- A step in processing counts where that is limited.
local function counted(ref, queue, called, marked)
  queue = queue or QUEUE
  local more = called and call('SADD', key.running(lane_of(queue, called)), ref) or 0
  if marked then
    more = more + call('SADD', key.running(queue), ref)
  end
  if more > 0 then
    note('uncounted', ref)
  end
end

-- A step in processing is held by its worker's session. If that never comes back, the usual way takes it from there.
local function held(ref, worker, priority)
  local session = worker or NOBODY
  local at = key.held(session)
  if not worker then
    call('HSET', key.record(ref, 'processing'), 'worker', session)
  end
  call('HSETNX', key.record(ref, 'processing'), 'attempt', 1)
  local known = call('SISMEMBER', key.sessions(), session) == 1
  if not call('ZSCORE', at, ref) then
    call('ZADD', at, score(tonumber(priority or PRIORITY), call('INCR', key.order())), ref)
    table.insert(tale.rejoined, session)
    note('unheld', ref)
  elseif not known then
    note('unlisted', session)
  end
  if not known then
    call('SADD', key.sessions(), session)
    if not tale.known[session] then
      table.insert(tale.strays, session)
    end
  end
end

-- A step in standby that nothing feeds is watched; one that something feeds need not be.
local function watched(ref, fed)
  local record = key.record(ref, 'standby')
  local fields = call('HMGET', record, 'to', 'unfed')
  if not fields[1] then
    return
  end
  local unfed, there = fields[2] and true, call('ZSCORE', key.standby(), ref) and true
  if fed and unfed ~= there then
    call('HDEL', record, 'unfed')
    call('ZREM', key.standby(), ref)
    note('unwatched', ref)
  elseif not fed and not (unfed and there) then
    if there then
      call('HSET', record, 'unfed', 1)
    else
      watch(tale.env, ref)
    end
    note('unwatched', ref)
  end
end

-- Whether a step in standby waits for what is still to come; nil and where to go on if that is not known yet.
local function waits(ref, at)
  local job_id, name = job_of(ref), from_of(ref)
  local told = call('HMGET', key.flow(job_id), '<' .. name, '#' .. name)
  watched(ref, told[1])
  if not told[1] then
    return true
  end
  local count, list = tonumber(told[2]) or 0, told[1]
  if count <= 0 then
    return false
  end
  local from, seen, unended = tonumber(at) or 1, 0, 0
  while from <= #list and seen < FEW do
    local stop = string.find(list, '\n', from, true) or #list + 1
    local feeder = string.sub(list, from, stop - 1) .. ':' .. job_id
    from, seen = stop + 1, seen + 1
    if call('EXISTS', key.record(feeder, 'data_available')) == 0 then
      if call('EXISTS', key.record(feeder, 'error')) == 1 then
        return false
      end
      unended = unended + 1
    end
  end
  if at == '' and from > #list then
    return unended == count
  elseif unended > 0 then
    return true
  elseif from > #list then
    return false
  end
  return nil, from
end

local function has_line(list, line)
  local size = #line + 1
  return list == line or string.sub(list, 1, size) == line .. '\n' or string.sub(list, -size) == '\n' .. line
    or string.find(list, '\n' .. line .. '\n', 1, true) ~= nil
end

-- Whether the flow of its job has a step where it belongs. Of many targets the first ones tell enough.
local function listed_in_flow(ref, to)
  local first, from = first_of(ref), from_of(ref)
  local fields = { first ~= from and '>' .. from or nil }
  for name in string.gmatch(to, '[^,]+') do
    if name ~= END then
      fields[#fields + 1] = '<' .. name
    end
    if #fields > MOST_TARGETS then
      break
    end
  end
  if #fields == 0 then
    return true
  end
  local flow = key.flow(job_of(ref))
  for _, field in ipairs(fields) do
    local size = call('HSTRLEN', flow, field)
    if size == 0 or (size <= LONG and not has_line(call('HGET', flow, field), first)) then
      return false
    end
  end
  return true
end

-- The only step of its job lives as long as it should, and its job's index with it.
local function alone(ref, number, state, ttl_s)
  local record, index = key.record(ref, state), key.job(job_of(ref))
  if number >= 3 then
    if lasts(record) or lasts(index) then
      retire(ref, state, number == 4 and tale.env.error_ttl_s or ttl_s or tale.env.result_ttl_s, true)
      note('lasting', ref)
    end
  elseif call('PERSIST', record) + call('PERSIST', index) > 0 then
    note('passing', ref)
  end
end

-- --- a job of several steps -----------------------------------------------------

-- Whether a flow is that of these steps.
local function agrees(graph, steps)
  local lists, left, counts = {}, {}, {}
  local function put(field, first)
    lists[field] = lists[field] or {}
    lists[field][first] = true
    left[field] = (left[field] or 0) + 1
  end
  for _, step in ipairs(steps) do
    local from = from_of(step.first)
    if step.first ~= from then
      put('>' .. from, step.first)
    end
    for _, name in ipairs(split(step.to, ',')) do
      if name ~= END then
        put('<' .. name, step.first)
        counts['#' .. name] = (counts['#' .. name] or 0) + (step.ended and 0 or 1)
      end
    end
  end
  for field, value in pairs(graph) do
    if lists[field] then
      for _, first in ipairs(split(value, '\n')) do
        if not lists[field][first] then
          return false
        end
        lists[field][first] = nil
        left[field] = left[field] - 1
      end
    elseif not counts[field] or tonumber(value) ~= counts[field] then
      return false
    end
    counts[field] = nil
  end
  for _, count in pairs(left) do
    if count ~= 0 then
      return false
    end
  end
  return next(counts) == nil
end

-- All steps a job is known to have, by its index and its flow, in order; and those of the index that are gone.
local function steps_of(job_id, known, graph)
  local firsts, seen, steps, gone = {}, {}, {}, {}
  local function consider(first)
    if not seen[first] then
      seen[first] = true
      firsts[#firsts + 1] = first
    end
  end
  for field in pairs(known) do
    if string.sub(field, 1, 1) ~= ':' then
      consider(field)
    end
  end
  for field, value in pairs(graph) do
    consider(string.sub(field, 2))
    for _, first in ipairs(string.sub(field, 1, 1) ~= '#' and split(value, '\n') or {}) do
      consider(first)
    end
  end
  table.sort(firsts)
  for _, first in ipairs(firsts) do
    local ref = first .. ':' .. job_id
    local number, state = state_of(ref)
    local fields = number and call('HMGET', key.record(ref, state), 'to', 'many', 'result_ttl_s')
    if fields and fields[1] then
      steps[#steps + 1] = {
        first = first, ref = ref, number = number, state = state, ended = number == 3,
        to = fields[1], many = fields[2], ttl_s = fields[3],
      }
    elseif not number and known[first] then
      gone[#gone + 1] = first
    end
  end
  return steps, gone
end

-- Bring index and flow into line with the records. Returns how many steps have not ended.
local function recount(job_id, known, graph, steps)
  local index, under_way, wrong = key.job(job_id), 0, false
  for _, step in ipairs(steps) do
    if step.number < 3 then
      under_way = under_way + 1
    elseif step.number == 4 and not known[':failed'] then
      call('HSET', index, ':failed', 1)
    end
    if not step.ended and not step.many then
      call('HSET', key.record(step.ref, step.state), 'many', 1)
      wrong = true
    end
  end
  if not agrees(graph, steps) then
    call('DEL', key.flow(job_id))
    enlist(job_id, steps)
    wrong = true
  end
  if tonumber(known[':open']) ~= under_way then
    call('HSET', index, ':open', under_way)
    wrong = true
  end
  if wrong then
    note('miscounted', job_id)
  end
  return under_way
end

-- What waits for something that is gone can never be fed.
local function give_up_waiting(job_id, firsts, message)
  for _, first in ipairs(firsts) do
    local ref = first .. ':' .. job_id
    local ended = give_up_all(tale.env, ref, 'standby', error_body('ResultGone', message))
    if #ended > 0 then
      note('stuck', ref)
      tell(ended)
    end
  end
end

local function settle_all(job_id, steps)
  local settled = {}
  for _, step in ipairs(steps) do
    local name = from_of(step.first)
    if step.number == 1 and settled[name] == nil then
      local started, failed = settle(tale.env, job_id, name)
      settled[name] = started ~= nil
      if started and started + #failed > 0 then
        note('stuck', step.ref)
        tell(failed)
      end
    end
    if step.number == 1 then
      watched(step.ref, settled[name])
    end
  end
end

-- A job under way keeps all it has; of one that has ended all expires together.
local function set_lives(job_id, steps, under_way)
  local index, flow = key.job(job_id), key.flow(job_id)
  if under_way > 0 then
    local kept = call('PERSIST', index) + call('PERSIST', flow)
    for _, step in ipairs(steps) do
      kept = kept + call('PERSIST', key.record(step.ref, step.state)) + call('PERSIST', key.log(step.ref))
    end
    if kept > 0 then
      note('passing', job_id)
    end
    return
  end
  local forever = lasts(index) or lasts(flow)
  for _, step in ipairs(steps) do
    forever = forever or lasts(key.record(step.ref, step.state)) or lasts(key.log(step.ref))
  end
  if forever then
    expire_job(tale.env, job_id)
    note('lasting', job_id)
  end
end

local function mend_job(job_id)
  local index, flow = key.job(job_id), key.flow(job_id)
  local known, graph = fields_of(index), fields_of(flow)
  local steps, gone = steps_of(job_id, known, graph)
  local several = known[':open'] or next(graph) or #steps > 1
  for _, step in ipairs(steps) do
    if known[step.first] ~= step.to then
      call('HSET', index, step.first, step.to)
      note('unindexed', step.ref)
    end
    several = several or step.many or step.number == 1
  end
  for _, first in ipairs(gone) do
    call('HDEL', index, first)
    note('hollow', first .. ':' .. job_id)
  end
  if #steps == 0 then
    if call('DEL', index, flow) > 0 then
      note('leftover', job_id)
    end
    return
  elseif not several then
    alone(steps[1].ref, steps[1].number, steps[1].state, steps[1].ttl_s)
    return
  end
  -- Neither index nor flow: nobody can tell any more what a step waits for.
  local lost = known[':lost'] or not (known[':open'] or next(graph))
  if lost and not known[':lost'] then
    call('HSET', index, ':lost', 1)
  end
  set_lives(job_id, steps, recount(job_id, known, graph, steps))
  for _, first in ipairs(gone) do
    for _, fed in ipairs(split(known[first], ',')) do
      give_up_waiting(job_id, named(job_id, fed), 'the result of ' .. first .. ' is gone')
    end
  end
  if lost then
    local firsts = {}
    for _, step in ipairs(steps) do
      firsts[#firsts + 1] = step.first
    end
    give_up_waiting(job_id, firsts, 'what fed it is not known any more')
  end
  settle_all(job_id, steps)
end

-- --- what can be found ------------------------------------------------------------
--
-- Each looks at one find. Those that are not through return where to go on.

local LOOK = {}

-- A record, by its step's ref.
function LOOK.step(_, ref, at)
  local number
  local there = 0
  for _, place in ipairs(FIRST_COUNTS) do
    local record = key.record(ref, STATES[place])
    if call('EXISTS', record) == 1 then
      if number then
        call('DEL', record)
      end
      number, there = number or place - 1, there + 1
    end
  end
  if not number then
    return
  end
  local state = STATES[number + 1]
  local record, index = key.record(ref, state), key.job(job_of(ref))
  local to, many, queue, called, priority, due_ms, worker, ttl_s, marked = unpack(call('HMGET', record, 'to', 'many',
    'queue', 'key', 'priority', 'due_ms', 'worker', 'result_ttl_s', 'counted'))
  if not to then
    return  -- spoilt by hand: nobody can tell what it was
  end
  if there > 1 then
    note('doubled', ref)
  end
  local listed, open = unpack(call('HMGET', index, first_of(ref), ':open'))
  local fits, go_on = listed == to and there == 1, nil
  if open and lasts(index) then
    fits = fits and listed_in_flow(ref, to)
  end
  if number == 0 then
    queued(ref, queue, called, priority, due_ms)
  elseif number == 1 then
    local well
    well, go_on = waits(ref, at)
    fits = fits and (well or go_on)
  elseif number == 2 then
    held(ref, worker, priority)
    counted(ref, queue, called, marked)
  end
  if listed ~= to then
    call('HSET', index, first_of(ref), to)
    note('unindexed', ref)
  end
  if fits and not open and not many and number ~= 1 then
    alone(ref, number, state, ttl_s)
  elseif not fits or not open or lasts(record) ~= (tonumber(open) > 0)
      or (number < 3 and not (tonumber(open) > 0 and lasts(index))) then
    mend_job(job_of(ref))
    return
  end
  return go_on
end

-- An index, some of its entries at a time.
function LOOK.job(_, job_id, at)
  local index = key.job(job_id)
  if not lasts(index) then
    return  -- it has ended, or is gone; its records say if that is not so
  end
  local cursor, under_way, count = string.match(at, '^(%d+) (%d+) (%d+)$')
  local page = call('HSCAN', index, cursor or 0, 'COUNT', FEW)
  under_way, count = tonumber(under_way) or 0, tonumber(count) or 0
  for i = 1, #page[2], 2 do
    local first = page[2][i]
    if string.sub(first, 1, 1) ~= ':' then
      local ref = first .. ':' .. job_id
      local moving = call('EXISTS', key.record(ref, 'start'), key.record(ref, 'standby'), key.record(ref, 'processing'))
      if moving == 0 and call('EXISTS', key.record(ref, 'data_available'), key.record(ref, 'error')) == 0 then
        mend_job(job_id)
        return
      end
      under_way, count = under_way + moving, count + 1
    end
  end
  if page[1] ~= '0' then
    return string.format('%s %d %d', page[1], under_way, count)
  end
  local open = tonumber(call('HGET', index, ':open'))
  -- In pieces the steps move on while they are counted: then only whether any is under way is sure.
  local agreed = open == under_way or (at ~= '' and open and (open > 0) == (under_way > 0))
  if count == 0 or (not open and count > 1) or (open and not agreed) or under_way == 0 then
    mend_job(job_id)
  end
end

function LOOK.flow(_, job_id)
  local index, flow = key.job(job_id), key.flow(job_id)
  local lives = call('TTL', index)
  if lives == -2 or (lives == -1 and call('HLEN', flow) + call('HLEN', index) <= FEW) then
    mend_job(job_id)  -- a small one is looked at as a whole
  elseif lives >= 0 and lasts(flow) then
    call('EXPIRE', flow, lives)
    note('lasting', job_id)
  elseif lives == -1 and call('PERSIST', flow) == 1 then
    note('passing', job_id)
  end
end

function LOOK.log(_, ref)
  local log = key.log(ref)
  local number, state = state_of(ref)
  if not number then
    if lasts(log) then
      call('EXPIRE', log, tale.env.result_ttl_s)
      note('leftover', ref)
    end
    return
  end
  local lives = call('TTL', key.record(ref, state))
  if lives >= 0 and lasts(log) then
    call('EXPIRE', log, lives)
    note('lasting', ref)
  elseif lives == -1 and call('PERSIST', log) == 1 then
    note('passing', ref)
  end
end

-- Entries, each with the place it was found in.

function LOOK.ready(queue, ref)
  local fields = call('HMGET', key.record(ref, 'start'), 'to', 'queue', 'key')
  if fields[1] and (fields[2] or QUEUE) == queue and not fields[3] then
    return
  end
  if call('ZREM', key.ready(queue), ref) == 1 then
    note(fields[1] and 'misplaced' or 'orphan', ref)
  end
  return fields[1] and LOOK.step('', ref, '')
end

function LOOK.lane(place, ref)
  local fields = call('HMGET', key.record(ref, 'start'), 'to', 'queue', 'key')
  if fields[1] and fields[3] and lane_of(fields[2] or QUEUE, fields[3]) == place then
    return
  end
  if call('ZREM', key.lane(place), ref) == 1 then
    call('SREM', key.keyed(string.match(place, '^[^=]*')), ref)
    note(fields[1] and 'misplaced' or 'orphan', ref)
  end
  return fields[1] and LOOK.step('', ref, '')
end

function LOOK.keyed(queue, ref)
  local called = call('HGET', key.record(ref, 'start'), 'key')
  local there = called and call('ZSCORE', key.lane(lane_of(queue, called)), ref)
  if not there and call('SREM', key.keyed(queue), ref) == 1 then
    note('orphan', ref)
  end
end

-- What counts as running and does not run holds up others.
function LOOK.running(place, ref)
  local to, queue, called, marked =
    unpack(call('HMGET', key.record(ref, 'processing'), 'to', 'queue', 'key', 'counted'))
  queue = queue or QUEUE
  if to and ((marked and place == queue) or (called and place == lane_of(queue, called))) then
    return
  end
  if call('SREM', key.running(place), ref) == 1 then
    local held_up, waiting = string.match(place, '^([^=]*)=(.*)$')
    if waiting then
      give_turn(held_up, waiting)
    end
    note('orphan', ref)
  end
end

local function drop(at, member, kind)
  if call('ZREM', at, member) == 1 and kind then
    note(kind, member)
  end
end

function LOOK.delayed(_, ref)
  if call('EXISTS', key.record(ref, 'start')) == 0 then
    drop(key.delayed(), ref, 'orphan')
  end
end

function LOOK.standby(_, ref)
  if call('EXISTS', key.record(ref, 'standby')) == 0 then
    drop(key.standby(), ref, 'orphan')
  end
end

-- Records expire before these lists are trimmed: that is no fault of anybody.
function LOOK.dead(_, ref)
  if call('EXISTS', key.record(ref, 'error')) == 0 then
    drop(key.dead(), ref, state_of(ref) and 'misplaced')
  end
end

function LOOK.held(session, ref)
  local worker = call('HGET', key.record(ref, 'processing'), 'worker')
  if worker ~= session then
    drop(key.held(session), ref, worker and 'misplaced' or 'orphan')
  end
end

-- A session, found in the list of them or by what it holds. One that the router does not know is nobody's.
function LOOK.session(_, session)
  if call('SISMEMBER', key.sessions(), session) == 0 then
    if call('EXISTS', key.held(session)) == 0 then
      return
    end
    call('SADD', key.sessions(), session)
    note('unlisted', session)
  end
  if not tale.known[session] then
    table.insert(tale.strays, session)
    note('stray', session)
  end
end

-- Runners.

local STILL = { starting = true, running = true, stopping = true }
local OVER = { stopped = true, failed = true }

function LOOK.runner(_, name)
  local record = key.runner(name)
  local state, ended = unpack(call('HMGET', record, 'state', 'ended'))
  if STILL[state] then
    if call('SADD', key.runners(), name) == 1 then
      note('unlisted', name)
    end
    if call('PERSIST', record) == 1 then
      note('passing', name)
    end
  elseif OVER[state] then
    if call('SREM', key.runners(), name) == 1 then
      note('misplaced', name)
    end
    if lasts(record) then
      local ttl_s = state == 'failed' and tale.env.error_ttl_s or tale.env.result_ttl_s
      call('EXPIRE', record, ttl_s)
      call('EXPIRE', key.runner_log(name), ttl_s)
      call('ZADD', key.ended(), 'NX', tonumber(ended) or tale.env.now_ms, name)
      note('lasting', name)
    end
  end
end

function LOOK.runners(_, name)
  if call('EXISTS', key.runner(name)) == 0 and call('SREM', key.runners(), name) == 1 then
    note('orphan', name)
  end
end

function LOOK.ended(_, name)
  local state = call('HGET', key.runner(name), 'state')
  if not OVER[state] then
    drop(key.ended(), name, state and 'misplaced')
  end
end

local function leave(at, name)
  local state = call('HGET', key.runner(name), 'state')
  if lasts(at) and (not state or OVER[state]) then
    call('EXPIRE', at, tale.env.result_ttl_s)
    note('leftover', name)
  end
end

-- A stop key. One that is neither 0 nor 1 is not ours.
function LOOK.run(type, uuid)
  local run = key.run(type, uuid)
  local value = redis.pcall('GET', run)
  if value == '0' or value == '1' then
    leave(run, type .. ':' .. uuid)
  end
end

function LOOK.runner_log(_, name)
  leave(key.runner_log(name), name)
end

local function mend(KEYS, ARGV)
  local most, at = tonumber(ARGV[SETTINGS + 1]), SETTINGS + 3
  call = function(...)
    tale.spent = tale.spent + 1
    return redis.call(...)
  end
  tale = {
    env = settings(ARGV), totals = KEYS[1], known = {}, mended = {}, strays = {}, rejoined = {}, ended = {},
    spent = 0,
  }
  for i = at, at + tonumber(ARGV[SETTINGS + 2]) - 1 do
    tale.known[ARGV[i]], at = true, i + 1
  end
  local done, again = 0, {}
  while at <= #ARGV and tale.spent < most do
    local kind, place, name, from = unpack(ARGV, at, at + 3)
    -- One key of another kind in a place of ours must not keep us from the rest.
    local fine, go_on = pcall(LOOK[kind] or function() end, place, name, from)
    if not fine then
      note('refused', name)
    elseif go_on then
      again[#again + 1] = { kind, place, name, tostring(go_on) }
    end
    done, at = done + 1, at + 4
  end
  return { done, again, tale.mended, tale.strays, tale.rejoined, tale.ended }
end

redis.register_function(name('mend'), mend)
