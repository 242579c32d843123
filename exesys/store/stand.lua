-- Part of mend.lua: what a call has found, and whether a single step stands where it should.

local FEW = 200
local CALLS_OF_A_STEP = 20  -- about as many take part in counting it anew
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

-- What is not through yet, and is looked at again.
local function go_on_with(kind, name)
  if not tale.begun[name] then
    tale.begun[name] = true
    table.insert(tale.again, { kind, '', name, 'on' })
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

-- Of several records of a step one is kept. Returns its number and state, and how many there were.
local function one_state(ref)
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
  if there > 1 then
    moved(ref, key.record(ref, STATES[number + 1]), number)
  end
  return number, number and STATES[number + 1], there
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

-- A step of several lives as long as its job's index.
local function live_as_its_job(ref, state)
  local record, lives = key.record(ref, state), call('TTL', key.job(job_of(ref)))
  if lives == -1 then
    call('PERSIST', record)
    note('passing', ref)
  else
    call('EXPIRE', record, lives)
    note('lasting', ref)
  end
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
