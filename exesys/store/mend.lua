-- Look whether what was found in the store fits together, and mend what does not.
--
-- KEYS   mended
-- ARGV   the settings (see graph.lua), most calls, most fields of index and
--        flow of a job that is mended as a whole (see recount.lua), number of
--        sessions that the router knows, those; then per find: kind, place,
--        name, where to go on
-- Finds  all
-- Gives  {how many finds were looked at, those to go on with, {kind, name} of
--        what was mended, sessions of nobody, sessions that hold more than they
--        did, the steps that failed (see graph.lua)}
--
-- What was found may have moved since: only what is so in this moment counts.
-- Where all fits nothing is written, and run again nothing is left to mend.
--
-- A look at one find is cheap. Of long lists it sees FEW at a time and says
-- where to go on; that only serves to find jobs that do not fit. Of these the
-- small ones are counted anew at once (whole.lua), the others in pieces
-- (recount.lua). What a single step needs is in stand.lua.

-- --- what can be found ------------------------------------------------------------
--
-- Each looks at one find. Those that are not through return where to go on.

local LOOK = {}

-- A record, by its step's ref.
function LOOK.step(_, ref, at)
  local number, state, there = one_state(ref)
  if not number then
    return
  end
  local record, index = key.record(ref, state), key.job(job_of(ref))
  local to, many, queue, called, priority, due_ms, worker, ttl_s, marked = unpack(call('HMGET', record, 'to', 'many',
    'queue', 'key', 'priority', 'due_ms', 'worker', 'result_ttl_s', 'counted'))
  if not to then
    return  -- spoilt by hand: nobody can tell what it was
  end
  if there > 1 then
    note('doubled', ref)
  end
  local listed, open, anew = unpack(call('HMGET', index, first_of(ref), ':open', ':anew'))
  local fits, go_on = listed == to and there == 1, nil
  anew = anew or is_anew(open)
  if open and not anew and lasts(index) then
    fits = fits and listed_in_flow(ref, to)
  end
  if number == 0 then
    queued(ref, queue, called, priority, due_ms)
  elseif number == 1 and not anew then
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
  local living = open and tonumber(open) > 0
  if anew then
    if not fits then
      begin(job_of(ref))
    end
  elseif fits and not open and not many and number ~= 1 then
    alone(ref, number, state, ttl_s)
  elseif not fits or not open or (number < 3 and not (living and lasts(index))) then
    mend_job(job_of(ref))
  elseif lasts(record) ~= living then
    if not is_large(job_of(ref)) or lasts(index) ~= living then
      mend_job(job_of(ref))
    else
      live_as_its_job(ref, state)
    end
  else
    return go_on
  end
end

-- An index, some of its entries at a time.
function LOOK.job(_, job_id, at)
  local index = key.job(job_id)
  local open, anew = unpack(call('HMGET', index, ':open', ':anew'))
  if anew or is_anew(open) then
    return recount_on(job_id) and 'on'
  elseif at == 'on' then
    return
  elseif not lasts(index) then
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
  open = tonumber(open)
  -- In pieces the steps move on while they are counted: then only whether any is under way is sure.
  local agreed = open == under_way or (at ~= '' and open and (open > 0) == (under_way > 0))
  if count == 0 or (not open and count > 1) or (open and not agreed) or under_way == 0 then
    if mend_job(job_id) and under_way == 0 then
      note('lasting', job_id)
    end
  end
end

function LOOK.flow(_, job_id)
  local index, flow = key.job(job_id), key.flow(job_id)
  local lives = call('TTL', index)
  if call('HEXISTS', index, ':anew') == 1 then
    return
  elseif lives == -2 or (lives == -1 and not is_large(job_id)) then
    mend_job(job_id)  -- a small one is looked at as a whole
  elseif lives >= 0 and lasts(flow) then
    call('EXPIRE', flow, lives)
    note('lasting', job_id)
  elseif lives == -1 and call('PERSIST', flow) == 1 then
    note('passing', job_id)
  end
end

-- What a job left that was counted anew, and whose index is gone meanwhile.
function LOOK.recount(_, job_id)
  if call('HEXISTS', key.job(job_id), ':anew') == 0
      and call('UNLINK', key.recount(job_id), key.tallied(job_id), key.recount_left(job_id)) > 0 then
    note('leftover', job_id)
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
  local at = SETTINGS + 4
  call = function(...)
    tale.spent = tale.spent + 1
    return redis.call(...)
  end
  tale = {
    env = settings(ARGV), totals = KEYS[1], known = {}, mended = {}, strays = {}, rejoined = {}, ended = {},
    again = {}, begun = {}, spent = 0, most = tonumber(ARGV[SETTINGS + 1]), whole = tonumber(ARGV[SETTINGS + 2]),
  }
  tale.few = math.max(math.floor(tale.most / CALLS_OF_A_STEP), 1)
  for i = at, at + tonumber(ARGV[SETTINGS + 3]) - 1 do
    tale.known[ARGV[i]], at = true, i + 1
  end
  local done = 0
  while at <= #ARGV and tale.spent < tale.most do
    local kind, place, name, from = unpack(ARGV, at, at + 3)
    -- One key of another kind in a place of ours must not keep us from the rest.
    local fine, go_on = pcall(LOOK[kind] or function() end, place, name, from)
    if not fine then
      note('refused', name)
    elseif go_on then
      table.insert(tale.again, { kind, place, name, tostring(go_on) })
    end
    done, at = done + 1, at + 4
  end
  return { done, tale.again, tale.mended, tale.strays, tale.rejoined, tale.ended }
end

register('mend', mend)
