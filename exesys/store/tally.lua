-- Shared by the functions that move steps: how steps are entered into a flow (see
-- graph.lua), and what these functions owe to a job that is counted anew. It
-- stands behind common.lua.
--
-- A large job that does not fit is counted anew while it goes on (recount.lua):
-- a second flow, `recount`, is made beside the one in use, a few steps at a
-- time. Meanwhile `:open` has ANEW more than it counts. So the job does not
-- expire; and who ends or opens steps sees it by the number that he gets
-- anyway, and tallies them. What the second flow has of a step stands in
-- `tallied`:
--   <1 if it is open> <1 if it has not ended well> <from where on in `to` nothing of it is entered yet>
-- When such a job has ended it is made to expire a few steps at a time, as long
-- as ENDED stands there.

local ANEW = 1000000000
local ENDED = ':ended'

local function is_anew(open)
  return open and tonumber(open) >= ANEW / 2
end

-- What is to be entered into a flow: each field is written once, however many steps come together.
local function new_sheet()
  return { lists = {}, fields = {}, counts = {} }
end

local function put_line(sheet, field, first)
  if not sheet.lists[field] then
    sheet.lists[field] = {}
    table.insert(sheet.fields, field)
  end
  table.insert(sheet.lists[field], first)
end

local function put_count(sheet, field, count)
  sheet.counts[field] = (sheet.counts[field] or 0) + count
end

local function enter_sheet(flow, sheet)
  for _, field in ipairs(sheet.fields) do
    local list = call('HGET', flow, field)
    if list then
      table.insert(sheet.lists[field], 1, list)
    end
    call('HSET', flow, field, table.concat(sheet.lists[field], '\n'))
  end
  for field, count in pairs(sheet.counts) do
    call('HINCRBY', flow, field, count)
  end
end

-- Bring what the second flow has of a step into line with what the step is now, and enter up to `left` edges more of
-- it. Returns its mark, how many edges are left, and whether all of it is entered; nil if there is nothing to count.
local function tally_step(job_id, first, sheet, left)
  local ref = first .. ':' .. job_id
  local number, state = state_of(ref)
  local to
  if number then
    to = call('HGET', key.record(ref, state), 'to')
  else
    to = call('HGET', key.job(job_id), first)  -- its record is gone: what it fed must not start
  end
  if not to then
    return nil
  end
  local was_open, was_unended, from =
    string.match(call('HGET', key.tallied(job_id), first) or '0 0 1', '^(%d) (%d) (%d+)$')
  local open, unended = number and number < 3 and 1 or 0, number == 3 and 0 or 1
  local at = unended == tonumber(was_unended) and tonumber(from) or 1
  from = tonumber(from)
  put_count(sheet, ':open', open - was_open)
  if number and from == 1 and first ~= from_of(first) then
    put_line(sheet, '>' .. from_of(first), first)
  end
  while at <= #to and (at < from or left > 0) do
    local stop = string.find(to, ',', at, true) or #to + 1
    local name = string.sub(to, at, stop - 1)
    if name ~= END then
      put_count(sheet, '#' .. name, at < from and unended - was_unended or unended)
      if number and at >= from then
        put_line(sheet, '<' .. name, first)
      end
    end
    at, left = stop + 1, left - 1
  end
  return string.format('%d %d %d', open, unended, at), left, at > #to
end

-- The same for several steps. Returns how many of them, from the first on, it is through with.
local function tally(job_id, firsts, most)
  local flow, tallied = key.recount(job_id), key.tallied(job_id)
  if call('EXISTS', flow) == 0 then
    return #firsts  -- the second flow is in use already
  end
  local sheet, marks, left, through = new_sheet(), {}, most or math.huge, 0
  for _, first in ipairs(firsts) do
    if left <= 0 then
      break
    end
    local whole = true
    if not marks[first] then
      local mark, less, all = tally_step(job_id, first, sheet, left)
      if mark then
        marks[first], left, whole = mark, less, all
      end
    end
    through = through + (whole and 1 or 0)
  end
  enter_sheet(flow, sheet)
  for first, mark in pairs(marks) do
    call('HSET', tallied, first, mark)
  end
  return through
end
