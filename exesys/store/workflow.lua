-- Take whole workflows, each all or nothing: its graph was checked before
-- (workflow.py), so its roots start and the others wait.
--
-- KEYS   per workflow: the job's index, its flow
-- ARGV   the settings (see graph.lua), depth limit, then per workflow: job_id,
--        number of steps, number of the flow's fields; per step the first part
--        of its ref and the step (see step.lua); then each field of the flow
--        and its value
-- Finds  record, ready queue, delayed, jobs, order, events
-- Gives  per workflow {verdict, ref it is about, per step {ref, state, body}};
--        no steps when it was not taken. `refused`: a foreign key of another
--        kind stands in a record's place
--
-- Run twice it changes nothing: the second time every step is there.

local function read_steps(ARGV, at, count)
  local steps = {}
  for i = 1, count do
    local first = ARGV[at]
    steps[i], at = read_step(ARGV, at + 1)
    steps[i].first = first
  end
  return steps, at
end

-- What stands there of a workflow that was sent before.
local function standing(index, job_id, steps)
  local answers = {}
  for i, step in ipairs(steps) do
    local first = step.from
    if call('HGET', index, first) ~= step.to then
      first = step.from .. '>' .. step.to
    end
    local ref = first .. ':' .. job_id
    local number, name = state_of(ref)
    if not number or call('HGET', index, first) ~= step.to
        or call('HGET', key.record(ref, name), 'sum') ~= step.digest then
      return { 'conflict', step.from .. ':' .. job_id, {} }
    end
    answers[i] = { ref, number, body_of(ref, name) }
  end
  return { 'same', '', answers }
end

local function full(steps, limit)
  local depth = {}
  for _, step in ipairs(steps) do
    if not step.waits then
      depth[step.queue] = (depth[step.queue] or depth_of(step.queue)) + 1
      if depth[step.queue] > (limits_of(step.queue).depth or limit) then
        return step
      end
    end
  end
end

local function store(env, index, flow, job_id, steps, ARGV, fields_at, fields)
  local firsts, answers = {}, {}
  for i, step in ipairs(steps) do
    local ref = step.first .. ':' .. job_id
    lengthen(index, option(step, 'result_ttl_s'))
    if not write(env.now_ms, ref, step.waits and 'standby' or 'start', step, { 'many', 1 }) then
      for done = 1, i - 1 do
        call('DEL', key.record(answers[done][1], answers[done][2] == 1 and 'standby' or 'start'))
      end
      call('DEL', index)
      return { 'refused', ref, {} }
    end
    firsts[#firsts + 1], firsts[#firsts + 2] = step.first, step.to
    answers[i] = { ref, step.waits and 1 or 0, false }
  end
  call_in_pieces('HSET', index, firsts)
  call('HSET', index, ':open', #steps)
  for at = fields_at, fields_at + 2 * fields - 1, PIECE do
    call('HSET', flow, unpack(ARGV, at, math.min(at + PIECE, fields_at + 2 * fields) - 1))
  end
  for _, step in ipairs(steps) do
    happened(step.first .. ':' .. job_id, step.waits and 1 or 0, 0, step.cmd, step.to)
    if not step.waits then
      enter(env, step.first .. ':' .. job_id, step.queue, option(step, 'key'), step.priority, step.due_ms)
    end
  end
  call('XADD', key.jobs(), '*', 'j', job_id)
  return { 'new', '', answers }
end

local function workflow(KEYS, ARGV)
  call = redis.call
  local env = settings(ARGV)
  local limit, at = tonumber(ARGV[SETTINGS + 1]), SETTINGS + 2
  local answers = {}
  for i = 1, #KEYS, 2 do
    local index, job_id = KEYS[i], ARGV[at]
    local fields = tonumber(ARGV[at + 2])
    local steps
    steps, at = read_steps(ARGV, at + 3, tonumber(ARGV[at + 1]))
    local answer
    if call('EXISTS', index) == 1 then
      answer = standing(index, job_id, steps)
    else
      local too_much = full(steps, limit)
      if too_much then
        answer = { 'full', too_much.from .. ':' .. job_id, {} }
      else
        answer = store(env, index, KEYS[i + 1], job_id, steps, ARGV, at, fields)
      end
    end
    answers[#answers + 1] = answer
    at = at + 2 * fields
  end
  return answers
end

register('workflow', workflow)
