-- Shared by the functions that end steps: what that means for the rest of the
-- job. The rules are those of exesys/workflow.py. It stands behind common.lua.
--
-- A job of one step needs nothing of this. Of a job with several, each record
-- has the field `many`, the index counts the unfinished ones (`:open`), and
-- the flow, a hash, knows of each name in the graph:
--   <name   the steps that go there, by the first parts of their refs
--   >name   the steps that come from there, but for the one whose first part is the name
--   #name   how many of those that go there have not ended well yet
-- A step in error has the field `was`, unless it failed by running: the state it stood in.
-- What a move costs depends on the edges of its step, not on the size of the job.

local PIECE = 4000  -- most arguments unpacked at once
-- Of a further step with the same `from`: it is part of the step's ref, which the flow names once per target.
local LONGEST_TO = 512

-- The settings that every function of this kind gets first.
local SETTINGS = 6
local function settings(ARGV)
  return {
    now_ms = ARGV[1], result_ttl_s = ARGV[2], error_ttl_s = ARGV[3], data_bytes = tonumber(ARGV[4]),
    standby_ms = tonumber(ARGV[5]), most_steps = tonumber(ARGV[6]),
  }
end

local function call_in_pieces(command, at, list)
  for i = 1, #list, PIECE do
    call(command, at, unpack(list, i, math.min(i + PIECE - 1, #list)))
  end
end

-- The body of an error, as codec.pack makes it of type, message and traceback.
local function error_body(kind, message)
  local body = { '\131' }
  for _, text in ipairs({ 'type', kind, 'message', message, 'traceback', '' }) do
    body[#body + 1] = cmsgpack.pack(text)
  end
  return table.concat(body)
end

-- The steps that come from a name, by the first parts of their refs.
local function named(job_id, name)
  local firsts = split(call('HGET', key.flow(job_id), '>' .. name), '\n')
  table.insert(firsts, 1, name)
  return firsts
end

-- --- the end of a job -------------------------------------------------------

-- The steps of a job, by the first parts of their refs.
local function firsts_of(job_id)
  local firsts = {}
  for _, field in ipairs(call('HKEYS', key.job(job_id))) do
    if string.sub(field, 1, 1) ~= ':' then
      firsts[#firsts + 1] = field
    end
  end
  return firsts
end

-- For how long a job that has ended is kept: later if one failed.
local function ttl_of(env, job_id)
  local marks = call('HMGET', key.job(job_id), ':failed', ':ttl')
  return marks[1] and env.error_ttl_s or marks[2] or env.result_ttl_s
end

local function expire_step(ref, ttl_s)
  if call('EXPIRE', key.record(ref, 'data_available'), ttl_s) == 0 then
    call('EXPIRE', key.record(ref, 'error'), ttl_s)
  end
  call('EXPIRE', key.log(ref), ttl_s)
end

-- All steps of a job have ended: what it left expires together.
local function expire_job(env, job_id)
  local ttl_s = ttl_of(env, job_id)
  for _, first in ipairs(firsts_of(job_id)) do
    expire_step(first .. ':' .. job_id, ttl_s)
  end
  call('EXPIRE', key.job(job_id), ttl_s)
  call('EXPIRE', key.flow(job_id), ttl_s)
end

-- What a step that ended has left stays, as long as its job is under way.
local function keep(ref)
  if call('PERSIST', key.record(ref, 'data_available')) == 0 then
    call('PERSIST', key.record(ref, 'error'))
  end
  call('PERSIST', key.log(ref))
end

-- These steps of a job are under way that were not: nothing of it expires.
local function open(job_id, firsts)
  local index = key.job(job_id)
  local count = call('HINCRBY', index, ':open', #firsts)
  if count == #firsts then
    for _, first in ipairs(firsts_of(job_id)) do
      keep(first .. ':' .. job_id)
    end
    call('PERSIST', index)
    call('PERSIST', key.flow(job_id))
  elseif is_anew(count) then
    call('HDEL', key.tallied(job_id), ENDED)
    tally(job_id, firsts)
  end
end

-- These steps of a job have ended, as `spread` gives them, and `ref`, if it is given.
local function close(env, job_id, ended, ref)
  local count = call('HINCRBY', key.job(job_id), ':open', -#ended - (ref and 1 or 0))
  if count <= 0 then
    expire_job(env, job_id)
  elseif is_anew(count) then
    local firsts = { ref and first_of(ref) }
    for _, one in ipairs(ended) do
      firsts[#firsts + 1] = first_of(one[1])
    end
    tally(job_id, firsts)
  end
end

-- The only step of its job ended: its record expires, and the job's index with it.
local function retire(ref, name, ttl_s, logged)
  call('EXPIRE', key.record(ref, name), ttl_s)
  call('EXPIRE', key.job(job_of(ref)), ttl_s)
  if logged then
    call('EXPIRE', key.log(ref), ttl_s)
  end
end

-- A step that has `notify` ended: what the controller is to tell, and that it is due. In the same script as
-- the end, so that none is lost. An end after a retry takes the place of the one before.
local function announce(env, ref, state, url, to, cmd, attempt, body, traceparent)
  local told = key.callback(ref)
  call('DEL', told)
  call('HSET', told, 'url', url, 'delivery', redis.sha1hex(ref .. ' ' .. attempt .. ' ' .. env.now_ms), 'outcome', 'waiting',
    'tries', 0, 'state', state, 'to', to, 'cmd', cmd, 'attempt', attempt, 'body', body,
    'traceparent', traceparent or '')
  call('ZADD', key.callbacks(), env.now_ms, ref)
end

-- --- failing ----------------------------------------------------------------

-- A step that nothing fed until now needs no more watching.
local function noticed(ref, record, unfed)
  if unfed then
    call('HDEL', record, 'unfed')
    call('ZREM', key.standby(), ref)
  end
end

-- standby or start → error, without having run. Returns {to, peer, attempt}, nil if it does not stand there.
local function give_up(env, ref, state, body)
  local record = key.record(ref, state)
  local fields = call('HMGET', record, 'to', 'peer', 'attempt', 'unfed', 'notify', 'cmd', 'traceparent')
  if not fields[1] then
    return nil
  end
  call('HDEL', record, 'peer')
  noticed(ref, record, fields[4])
  call('HSET', record, 'error', body, 'ended', env.now_ms, 'was', state)
  call('RENAME', record, key.record(ref, 'error'))
  happened(ref, 4, fields[3] or 0, fields[6] or '', fields[1])
  if fields[5] then
    announce(env, ref, 'error', fields[5], fields[1], fields[6], fields[3] or 0, body, fields[7])
  end
  return fields
end

-- A step failed: what waits for it can never be fed, nor what waits for that.
-- Returns {ref, attempt, peer, body, cmd} of each step that failed with it.
local function spread(env, ref, to)
  local job_id = job_of(ref)
  local also, spreading, at = {}, { { from_of(ref), to } }, 1
  while spreading[at] do
    local from, targets = unpack(spreading[at])
    local body = error_body('PredecessorFailed', 'predecessor ' .. from .. ' failed')
    for _, name in ipairs(split(targets, ',')) do
      for _, first in ipairs(name ~= END and named(job_id, name) or {}) do
        local fed = first .. ':' .. job_id
        local fields = give_up(env, fed, 'standby', body)
        if fields then
          also[#also + 1] = { fed, 0, fields[2] or '', body, fields[6] }
          spreading[#spreading + 1] = { name, fields[1] }
        end
      end
    end
    at = at + 1
  end
  return also
end

-- A step of several failed without having run: so does what waits for it. Returns both, as `spread` does.
local function give_up_all(env, ref, state, body)
  local fields = give_up(env, ref, state, body)
  if not fields then
    return {}
  end
  call('HSET', key.job(job_of(ref)), ':failed', 1)
  call('ZADD', key.dead(), env.now_ms, ref)
  local also = spread(env, ref, fields[1])
  also[#also + 1] = { ref, tonumber(fields[3] or 0), fields[2] or '', body, fields[6] }
  close(env, job_of(ref), also)
  return also
end

-- processing → error. `body` is msgpack of the error's type and message.
-- Returns what failed with it, and whether another step may run now.
local function fail(env, ref, body)
  local record = key.record(ref, 'processing')
  local limited = leave(ref, record)
  local marks = call('HMGET', record, 'many', 'logged', 'to', 'notify', 'cmd', 'attempt', 'traceparent')
  shed(record)
  call('HSET', record, 'error', body, 'ended', env.now_ms)
  call('RENAME', record, key.record(ref, 'error'))
  call('ZADD', key.dead(), env.now_ms, ref)
  happened(ref, 4, marks[6] or 0, marks[5] or '', marks[3])
  if marks[4] then
    announce(env, ref, 'error', marks[4], marks[3], marks[5], marks[6], body, marks[7])
  end
  if not marks[1] then
    retire(ref, 'error', env.error_ttl_s, marks[2])
    return {}, limited
  end
  call('HSET', key.job(job_of(ref)), ':failed', 1)
  local also = spread(env, ref, marks[3])
  close(env, job_of(ref), also, ref)
  return also, limited
end

-- --- going on ---------------------------------------------------------------

-- What a name's feeders gave, as msgpack: the value of the only one, or a map
-- from their names. nil and the error when that cannot be.
local function gather(env, job_id, feeders, fresh)
  local values, often, bytes = {}, {}, 0
  for i, first in ipairs(feeders) do
    local result = fresh[first] or call('HGET', key.record(first .. ':' .. job_id, 'data_available'), 'result')
    if not result then
      return nil, error_body('ResultGone', 'the result of ' .. first .. ' is gone')
    end
    values[i] = string.sub(result, 6)  -- behind msgpack's spelling of {"EOJ":
    bytes = bytes + #values[i]
    if bytes > env.data_bytes then
      break  -- no more in memory than is allowed
    end
    local from = from_of(first)
    often[from] = (often[from] or 0) + 1
  end
  local data = values[1]
  if #feeders > 1 and bytes <= env.data_bytes then
    local count = #feeders
    local pieces = { count < 16 and string.char(128 + count) or '\223' .. struct.pack('>I4', count) }
    for i, first in ipairs(feeders) do
      local called = from_of(first)
      if often[called] > 1 then
        called = called .. '>' .. call('HGET', key.job(job_id), first)
      end
      pieces[#pieces + 1] = cmsgpack.pack(called)
      pieces[#pieces + 1] = values[i]
    end
    data = table.concat(pieces)
  end
  if math.max(bytes, #data) > env.data_bytes then
    return nil, error_body('TooLarge',
      string.format('what its predecessors gave has more than the %d bytes that are allowed', env.data_bytes))
  end
  return data
end

-- start, in its queue now or when it is due: `due_ms` is a moment, or, if negative, a time from now.
local function enter(env, ref, queue, called, priority, due_ms)
  local now = tonumber(env.now_ms)
  local at = tonumber(due_ms or 0)
  at = at < 0 and now - at or at
  if at > now then
    call('ZADD', key.delayed(), at, ref)
  else
    line_up(ref, queue or QUEUE, called, score(tonumber(priority or PRIORITY), call('INCR', key.order())))
  end
end

-- standby → start, on what its feeders gave. Tells whether it stood there.
local function start_one(env, ref, data)
  local waiting = key.record(ref, 'standby')
  local fields = call('HMGET', waiting, 'to', 'queue', 'key', 'priority', 'due_ms', 'unfed', 'cmd')
  if not fields[1] then
    return false
  end
  noticed(ref, waiting, fields[6])
  call('HSET', waiting, 'data', data, 'ready', env.now_ms)
  call('RENAME', waiting, key.record(ref, 'start'))
  happened(ref, 0, 0, fields[7] or '', fields[1])
  enter(env, ref, unpack(fields, 2, 5))
  return true
end

-- All that go to a name have ended well: the steps that wait there start.
-- Returns how many, and those that failed instead, as `spread` does.
local function start_fed(env, job_id, name, fresh)
  local told = call('HMGET', key.flow(job_id), '<' .. name, '>' .. name)
  local data, body = gather(env, job_id, split(told[1], '\n'), fresh)
  local firsts = split(told[2], '\n')
  table.insert(firsts, 1, name)
  local started, failed = 0, {}
  for _, first in ipairs(firsts) do
    local ref = first .. ':' .. job_id
    if not data then
      for _, ended in ipairs(give_up_all(env, ref, 'standby', body)) do
        failed[#failed + 1] = ended
      end
    elseif start_one(env, ref, data) then
      started = started + 1
    end
  end
  return started, failed
end

-- A step ended well: each name it goes to waits for one less.
-- Returns how many steps start, and those that failed, as `spread` does.
local function advance(env, ref, to, body)
  local job_id = job_of(ref)
  local started, failed = 0, {}
  for _, name in ipairs(split(to, ',')) do
    if name ~= END and call('HINCRBY', key.flow(job_id), '#' .. name, -1) == 0 then
      local more, ended = start_fed(env, job_id, name, { [first_of(ref)] = body })
      started = started + more
      for _, one in ipairs(ended) do
        failed[#failed + 1] = one
      end
    end
  end
  return started, failed
end

-- --- growing ----------------------------------------------------------------

-- Enter steps into their job's graph. Each has `first`, `to`, and `ended` when
-- it has ended well already.
local function enlist(job_id, steps)
  local sheet = new_sheet()
  for _, step in ipairs(steps) do
    local from = from_of(step.first)
    if step.first ~= from then
      put_line(sheet, '>' .. from, step.first)
    end
    for _, name in ipairs(split(step.to, ',')) do
      if name ~= END then
        put_line(sheet, '<' .. name, step.first)
        put_count(sheet, '#' .. name, step.ended and 0 or 1)
      end
    end
  end
  enter_sheet(key.flow(job_id), sheet)
end

-- Keep the longest time that one of a job's steps asks for its result.
local function lengthen(index, ttl_s)
  if ttl_s and tonumber(ttl_s) > tonumber(call('HGET', index, ':ttl') or 0) then
    call('HSET', index, ':ttl', ttl_s)
  end
end

-- A job with one step gets more: from now on its steps are counted, and its graph is kept.
local function make_many(job_id)
  local index = key.job(job_id)
  if call('HEXISTS', index, ':open') == 1 then
    return
  end
  local under_way, steps, entered = {}, call('HGETALL', index), {}
  for i = 1, #steps, 2 do
    local ref = steps[i] .. ':' .. job_id
    local number, name = state_of(ref)
    if number then
      if number ~= 3 then
        call('HSET', key.record(ref, name), 'many', 1)
      end
      if number < 3 then
        under_way[#under_way + 1] = steps[i]
      elseif number == 4 then
        call('HSET', index, ':failed', 1)
      end
      lengthen(index, call('HGET', key.record(ref, name), 'result_ttl_s'))
      entered[#entered + 1] = { first = steps[i], to = steps[i + 1], ended = number == 3 }
    end
  end
  enlist(job_id, entered)
  open(job_id, under_way)
end

-- Steps wait at a name that came after what feeds it: they start, or fail, at
-- once. Returns how many start, and those that failed, as `spread` does; nil
-- when nothing feeds them.
local function settle(env, job_id, name)
  local told = call('HMGET', key.flow(job_id), '<' .. name, '#' .. name)
  if not told[1] then
    return nil
  elseif tonumber(told[2]) == 0 then
    return start_fed(env, job_id, name, {})
  end
  local failed = {}
  for _, first in ipairs(split(told[1], '\n')) do
    if call('EXISTS', key.record(first .. ':' .. job_id, 'error')) == 1 then
      local body = error_body('PredecessorFailed', 'predecessor ' .. from_of(first) .. ' failed')
      for _, fed in ipairs(named(job_id, name)) do
        for _, ended in ipairs(give_up_all(env, fed .. ':' .. job_id, 'standby', body)) do
          failed[#failed + 1] = ended
        end
      end
      break
    end
  end
  return 0, failed
end

-- Nothing feeds a step that waits: it is given up when that stays so.
local function watch(env, ref)
  call('HSET', key.record(ref, 'standby'), 'unfed', 1)
  call('ZADD', key.standby(), tonumber(env.now_ms) + env.standby_ms, ref)
end

-- --- circles ----------------------------------------------------------------

-- Go one name further: the names that `neighbours` gives and that were not seen
-- yet. Tells whether one of `goals` is among them: then it is the last seen.
local function walk(side, goals, neighbours)
  side.at = side.at + 1
  local name = side.list[side.at]
  for _, other in ipairs(neighbours(name)) do
    if not side.seen[other] then
      side.seen[other] = name
      side.list[#side.list + 1] = other
      if goals[other] then
        return true
      end
    end
  end
end

-- The names seen on the way to the last one, the last first.
local function way(side)
  local names, name = {}, side.list[#side.list]
  while name do
    names[#names + 1] = name
    name = side.seen[name] ~= '' and side.seen[name] or nil
  end
  return names
end

local function side_of(names)
  local side = { list = names, seen = {}, at = 0 }
  for _, name in ipairs(names) do
    side.seen[name] = ''
  end
  return side
end

-- The circle that one more step would close among those that wait, as names; nil
-- if there is none. It looks from both ends at once, so that the shorter way
-- counts. `coming` are steps to be added with it: from name to list of names.
local function circle(job_id, from, to, coming)
  -- Where a step that waits goes to, also one that a retry would let wait again.
  local function waits_for(first)
    local ref = first .. ':' .. job_id
    local there = call('HGET', key.record(ref, 'standby'), 'to')
    if there then
      return there
    end
    local failed = call('HMGET', key.record(ref, 'error'), 'to', 'was')
    return failed[2] == 'standby' and failed[1] or nil
  end
  local targets = split(to, ',')
  local ahead, behind = side_of(targets), side_of({ from })
  local goals = {}
  for _, name in ipairs(targets) do
    if name == from then
      return { from }
    end
    goals[name] = true
  end
  local function followers(name)
    local names = {}
    for _, first in ipairs(name ~= END and named(job_id, name) or {}) do
      for _, other in ipairs(split(waits_for(first), ',')) do
        names[#names + 1] = other
      end
    end
    for _, other in ipairs(coming and coming[name] or {}) do
      names[#names + 1] = other
    end
    return names
  end
  local function feeders(name)
    local names = {}
    for _, first in ipairs(split(call('HGET', key.flow(job_id), '<' .. name), '\n')) do
      if waits_for(first) then
        names[#names + 1] = from_of(first)
      end
    end
    return names
  end
  while ahead.list[ahead.at + 1] do
    if walk(ahead, { [from] = true }, followers) then
      local names, turned = way(ahead), {}
      for i = #names, 1, -1 do
        turned[#turned + 1] = names[i]
      end
      table.insert(turned, 1, table.remove(turned))  -- begin with `from`
      return turned
    end
    if not coming then
      if not behind.list[behind.at + 1] then
        return nil
      elseif walk(behind, goals, feeders) then
        local names = way(behind)
        table.insert(names, 1, table.remove(names))
        return names
      end
    end
  end
end
