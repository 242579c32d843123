-- Part of mend.lua: a job of several steps is counted anew as a whole. This costs about what it cost to store it, so
-- it is for jobs of up to a hundred steps or so; recount.lua has the others.

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

local function mend_whole(job_id)
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
