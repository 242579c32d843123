-- Read all steps of jobs, for people.
--
-- KEYS   the jobs' index keys
-- ARGV   the job_ids, in the same order
-- Finds  record
-- Gives  per job a list of {ref, state, {field, value, …}}

local function job(KEYS, ARGV)
  call = redis.call
  local answers = {}
  for i, index in ipairs(KEYS) do
    local steps = {}
    for _, first in ipairs(call('HKEYS', index)) do
      local ref = first .. ':' .. ARGV[i]
      local number, name = state_of(ref)
      if name then
        steps[#steps + 1] = { ref, number, call('HGETALL', key.record(ref, name)) }
      end
    end
    answers[i] = steps
  end
  return answers
end

redis.register_function({ function_name = name('job'), callback = job, flags = { 'no-writes' } })
