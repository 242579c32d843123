-- Part of mend.lua: a job of many steps is counted anew in pieces, while its steps move on.
--
-- Parts that are counted at different moments add up only if whoever moves a
-- step meanwhile counts it, too. So a second flow is made beside the one in
-- use: `tally` (tally.lua) enters a step into it, and corrects what it has of
-- a step that was entered before. Upkeep tallies all steps, one after the
-- other; and while `:open` has ANEW more than it counts, those who end, open or
-- add steps tally these. When upkeep is through, the second flow is that of the
-- steps in this very moment, and takes the place of the first. Until then steps
-- start by the old flow, right or wrong, as they did before it was looked at.
--
-- There are four phases. Each goes through a hash with HSCAN and puts what it
-- finds into a list, from which it is taken and worked off:
--   named    fields of the flow: the steps that it names and the index lacks are entered there
--   tallied  steps of the index: they are tallied; then the second flow is the flow
--   settled  steps of the index: what waited for something that ended, failed or is gone starts or fails
--   expired  steps of the index: they expire, if none is under way
--
-- A step whose record is gone has its entry in the index renamed to `:gone:…`,
-- and is tallied as one that never ends, so that what it fed does not start.
-- When that has been given up, the entry is taken out. The step may be sent
-- again meanwhile; then that is another one.
--
-- All that is known of the progress stands in Redis: in `:anew` of the index the
-- phase, in which life of the server it scans, and how far it is; the rest in
-- the keys `recount`, `tallied` and `recount_left`. So it may be broken off
-- between any two calls, and goes on when the index of the job is met again.
-- What is worked off twice does no harm. With the second flow in use, `tallied`
-- has the names at which all was given up.

local START = 'named - 0'
local GONE = ':gone:'

-- When this server began to mend: to a later one a cursor of HSCAN means nothing.
local life

-- Put what is to be worked off next before all the rest; the last one comes first.
local function push(job_id, ...)
  call('LPUSH', key.recount_left(job_id), ...)
end

local function is_gone(first)
  return string.sub(first, 1, #GONE) == GONE
end

-- Have a job counted anew, from the beginning if that is under way already.
local function begin(job_id)
  local index, flow = key.job(job_id), key.flow(job_id)
  local open, state = unpack(call('HMGET', index, ':open', ':anew'))
  local begun = state == START and is_anew(open) and call('EXISTS', key.recount(job_id)) == 1
  if not begun then
    if not open and call('EXISTS', flow) == 0 then
      call('HSET', index, ':lost', 1)
    end
    call('UNLINK', key.recount(job_id), key.tallied(job_id), key.recount_left(job_id))
    call('HSET', key.recount(job_id), ':open', 0)
    call('HSET', index, ':open', ANEW, ':anew', START)
    call('PERSIST', index)
    call('PERSIST', flow)
    note('miscounted', job_id)
  end
  go_on_with('job', job_id)
end

-- How many steps are under way of a job whose second flow is in use.
local function open_of(job_id)
  return tonumber(call('HGET', key.job(job_id), ':open')) - ANEW
end

-- --- named --------------------------------------------------------------------

-- Go through a field of the flow: "<from where on> <field>".
local function enter_named(job_id, items)
  local at, field = string.match(items[1], '^(%d+) (.*)$')
  local index, list = key.job(job_id), string.sub(field, 1, 1) ~= '#' and call('HGET', key.flow(job_id), field) or ''
  local firsts = { string.sub(field, 2) }
  at = tonumber(at)
  while at <= #list and #firsts <= 4 * tale.few do
    local stop = string.find(list, '\n', at, true) or #list + 1
    firsts[#firsts + 1] = string.sub(list, at, stop - 1)
    at = stop + 1
  end
  for i, to in ipairs(call('HMGET', index, unpack(firsts))) do
    local ref = firsts[i] .. ':' .. job_id
    local number, state = state_of(ref)
    to = not to and number and call('HGET', key.record(ref, state), 'to')
    if to then
      call('HSET', index, firsts[i], to)
      note('unindexed', ref)
    end
  end
  if at <= #list then
    push(job_id, at .. ' ' .. field)
  end
end

-- --- tallied ------------------------------------------------------------------

-- See to it that a step has one record, that this has what one of several needs, and that the index has it as it is.
-- Returns what the index calls it.
local function fit(job_id, first)
  if is_gone(first) then
    return first
  end
  local ref, index = first .. ':' .. job_id, key.job(job_id)
  local number, state, there = one_state(ref)
  if not number then
    call('HSET', index, GONE .. first, call('HGET', index, first) or '')
    call('HDEL', index, first)
    note('hollow', ref)
    return GONE .. first
  end
  local to, many = unpack(call('HMGET', key.record(ref, state), 'to', 'many'))
  if not to then
    return first  -- spoilt by hand: nobody can tell what it was
  end
  if there > 1 then
    note('doubled', ref)
  end
  if call('HGET', index, first) ~= to then
    call('HSET', index, first, to)
    note('unindexed', ref)
  end
  if number ~= 3 and not many then
    call('HSET', key.record(ref, state), 'many', 1)
  end
  if number == 4 then
    call('HSETNX', index, ':failed', 1)
  end
  return first
end

local function count(job_id, firsts)
  for i, first in ipairs(firsts) do
    firsts[i] = fit(job_id, first)
  end
  for i = #firsts, tally(job_id, firsts, 2 * tale.few) + 1, -1 do
    push(job_id, firsts[i])
  end
end

-- Now the second flow is that of the steps. Gives the next phase.
local function use_second_flow(job_id)
  local flow, second = key.flow(job_id), key.recount(job_id)
  call('HSET', key.job(job_id), ':open', ANEW + call('HGET', second, ':open'))
  call('HDEL', second, ':open')
  call('UNLINK', flow, key.tallied(job_id))
  if call('EXISTS', second) == 1 then
    call('RENAME', second, flow)
  end
  return 'settled'
end

-- --- settled ------------------------------------------------------------------
--
-- What is left to do is spelled "<kind> <from where on> <1: it failed with
-- another> <step> <name>". A failure goes from a step to the names it feeds, and
-- from a name to the steps that wait there; depth first, so that a step of which
-- the record is gone comes up again when all that it feeds was given up.

local SETTLE = {}

local function spelled(kind, at, also, first, name)
  return string.format('%s %d %d %s %s', kind, at, also and 1 or 0, first, name or '')
end

-- A step that waits fails. What waits for it does so later.
local function give_up_one(job_id, first, body, also)
  local ref = first .. ':' .. job_id
  local fields = give_up(tale.env, ref, 'standby', body)
  if not fields then
    return
  end
  if not also then
    call('ZADD', key.dead(), tale.env.now_ms, ref)
    note('stuck', ref)
  end
  call('HSET', key.job(job_id), ':failed', 1)
  close(tale.env, job_id, {}, ref)
  tell({ { ref, tonumber(fields[3] or 0), fields[2] or '', body, fields[6] } })
  push(job_id, spelled('from', 1, true, first))
end

function SETTLE.step(job_id, first)
  local ref, name = first .. ':' .. job_id, from_of(first)
  local number, state = state_of(ref)
  if is_gone(first) or number == 4 then
    push(job_id, spelled('from', 1, false, first))
  end
  if number and call('PERSIST', key.record(ref, state)) + call('PERSIST', key.log(ref)) > 0 and open_of(job_id) > 0 then
    note('passing', ref)
  end
  if number ~= 1 then
    return
  end
  if call('HEXISTS', key.job(job_id), ':lost') == 1 then
    give_up_one(job_id, first, error_body('ResultGone', 'what fed it is not known any more'))
    return
  end
  local unended = call('HGET', key.flow(job_id), '#' .. name)
  watched(ref, unended)
  if tonumber(unended or 1) == 0 then
    local data, body = gather(tale.env, job_id, split(call('HGET', key.flow(job_id), '<' .. name), '\n'), {})
    if not data then
      give_up_one(job_id, first, body)
    elseif start_one(tale.env, ref, data) then
      note('stuck', ref)
    end
  end
end

-- A step that failed or is gone: nothing that it feeds can start.
SETTLE['from'] = function(job_id, first, at, also)
  local index, failed = key.job(job_id), key.record(first .. ':' .. job_id, 'error')
  local to = is_gone(first) and call('HGET', index, first) or call('HGET', failed, 'to') or ''  -- or it is retried
  if at > #to then
    if is_gone(first) then
      call('HDEL', index, first)
    end
    return
  end
  local items = {}
  while at <= #to and #items < 2 * tale.few do
    local stop = string.find(to, ',', at, true) or #to + 1
    local name = string.sub(to, at, stop - 1)
    if name ~= END then
      items[#items + 1] = spelled('name', 0, also, first, name)
    end
    at = stop + 1
  end
  push(job_id, spelled('from', at, also, first), unpack(items))
end

-- A name that is fed by a step that failed or is gone.
function SETTLE.name(job_id, first, at, also, name)
  local flow, given_up = key.flow(job_id), key.tallied(job_id)
  local body
  if is_gone(first) then
    body = error_body('ResultGone', 'the result of ' .. string.sub(first, #GONE + 1) .. ' is gone')
  elseif call('HEXISTS', given_up, name) == 1 or call('EXISTS', key.record(first .. ':' .. job_id, 'error')) == 0 then
    return
  else
    body = error_body('PredecessorFailed', 'predecessor ' .. from_of(first) .. ' failed')
  end
  local list = call('HGET', flow, '>' .. name) or ''
  if at == 0 then
    give_up_one(job_id, name, body, also)
    at = 1
  end
  local waiting = {}
  while at <= #list and #waiting < tale.few do
    local stop = string.find(list, '\n', at, true) or #list + 1
    waiting[#waiting + 1] = string.sub(list, at, stop - 1)
    at = stop + 1
  end
  if at <= #list then
    push(job_id, spelled('name', at, also, first, name))
  end
  for _, other in ipairs(waiting) do
    give_up_one(job_id, other, body, also)
  end
  if at <= #list then
    return
  end
  call('HSET', given_up, name, 1)
  -- What is gone was counted, so that nothing started before this.
  if is_gone(first) and call('HINCRBY', flow, '#' .. name, -1) == 0 and call('HEXISTS', flow, '<' .. name) == 0 then
    call('HDEL', flow, '#' .. name)
  end
end

local function settle_one(job_id, items)
  local kind, at, also, first, name = string.match(items[1], '^(%a+) (%d+) (%d) (%S+) (%S*)$')
  SETTLE[kind](job_id, first, tonumber(at), also == '1', name)
end

-- --- expired ------------------------------------------------------------------

local function expire_one(job_id, items)
  if call('HEXISTS', key.tallied(job_id), ENDED) == 1 then
    expire_step(items[1] .. ':' .. job_id, ttl_of(tale.env, job_id))
  end
end

-- All is done, but that a job may have ended, or been retried, meanwhile. Gives the next phase, nil at the end.
local function finish(job_id, expired)
  local index, flow, open = key.job(job_id), key.flow(job_id), open_of(job_id)
  if expired and call('HEXISTS', key.tallied(job_id), ENDED) == 0 then
    return 'settled'
  elseif not expired and open <= 0 then
    call('HSET', key.tallied(job_id), ENDED, 1)
    return 'expired'
  end
  call('UNLINK', key.tallied(job_id), key.recount_left(job_id))
  call('HDEL', index, ':anew')
  call('HSET', index, ':open', open)
  local marks = 0
  for _, mark in ipairs(call('HMGET', index, ':open', ':failed', ':ttl', ':lost')) do
    marks = marks + (mark and 1 or 0)
  end
  if call('HLEN', index) == marks then
    call('UNLINK', index, flow)
    note('leftover', job_id)
  elseif open <= 0 then
    call('EXPIRE', index, ttl_of(tale.env, job_id))
    call('EXPIRE', flow, ttl_of(tale.env, job_id))
  end
end

-- --- the phases -----------------------------------------------------------------

local PHASES = {
  named = {
    scans = key.flow, work = enter_named,
    spell = function(field) return '1 ' .. field end,
    through = function() return 'tallied' end,
  },
  tallied = {
    scans = key.job, work = count, together = true,
    spell = function(first) return first end,
    through = use_second_flow,
  },
  settled = {
    scans = key.job, work = settle_one,
    spell = function(first) return spelled('step', 0, false, first) end,
    through = function(job_id) return finish(job_id, false) end,
  },
  expired = {
    scans = key.job, work = expire_one,
    spell = function(first) return first end,
    through = function(job_id) return finish(job_id, true) end,
  },
}

-- Read one more page of what a phase goes through. Returns where it goes on.
local function read_page(job_id, phase, cursor)
  local page = call('HSCAN', phase.scans(job_id), cursor, 'COUNT', tale.few)
  local items = {}
  for i = 1, #page[2], 2 do
    local field = page[2][i]
    if string.sub(field, 1, 1) ~= ':' or is_gone(field) then
      items[#items + 1] = phase.spell(field)
    end
  end
  call_in_pieces('RPUSH', key.recount_left(job_id), items)
  return page[1] == '0' and 'end' or page[1]
end

-- Go on with a job that is counted anew, as far as this call may. Tells whether that was not all.
local function recount_on(job_id)
  local index, left = key.job(job_id), key.recount_left(job_id)
  local open, state = unpack(call('HMGET', index, ':open', ':anew'))
  local name, since, cursor = string.match(state or '', '^(%a+) (%S+) (%S+)$')
  local second = name == 'named' or name == 'tallied'
  if not PHASES[name] or not is_anew(open) or (second and call('EXISTS', key.recount(job_id)) == 0) then
    begin(job_id)
    return
  end
  life = life or table.concat(call('TIME'), '.')
  cursor = since == life and cursor or '0'
  call('HSET', index, ':anew', name .. ' - 0')  -- if this breaks off, the phase begins anew
  repeat
    local phase = PHASES[name]
    local items = call('LPOP', left, phase.together and tale.few or 1)
    if items then
      phase.work(job_id, items)
    elseif cursor ~= 'end' then
      cursor = read_page(job_id, phase, cursor)
    else
      name, cursor = phase.through(job_id), '0'
    end
  until not name or tale.spent >= tale.most
  if name then
    call('HSET', index, ':anew', string.format('%s %s %s', name, life, cursor))
  end
  return name ~= nil
end

-- How many parts there are in all that a hash has, if these are set apart by `separator`.
local function parts_in(at, separator)
  local parts = 0
  for _, list in ipairs(call('HVALS', at)) do
    local _, breaks = string.gsub(list, separator, separator)
    parts = parts + 1 + breaks
  end
  return parts
end

-- Whether to count a job anew at once would take long: by its steps, its names, and its edges. One of index and flow
-- may be lost, so each is asked.
local function is_large(job_id)
  local index, flow = key.job(job_id), key.flow(job_id)
  local steps = call('HLEN', index)
  return steps > tale.whole / 2 or steps + call('HLEN', flow) > tale.whole
    or parts_in(index, ',') > 2 * tale.whole or parts_in(flow, '\n') > 2 * tale.whole
end

-- A job does not fit. Tells whether it is large, so that this only begins to mend it.
local function mend_job(job_id)
  if is_large(job_id) then
    begin(job_id)
    return true
  end
  mend_whole(job_id)
  return false
end
