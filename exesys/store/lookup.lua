-- Tell where steps stand.
--
-- KEYS   the jobs' index keys, one per step
-- ARGV   per step: from, to, job_id
-- Finds  record
-- Gives  per step {ref, state or -1, body}

local function lookup(KEYS, ARGV)
  call = redis.call
  local answers = {}
  for i, index in ipairs(KEYS) do
    local from, to, job_id = unpack(ARGV, 3 * i - 2, 3 * i)
    local first = from
    if call('HGET', index, first) ~= to then
      first = from .. '>' .. to
    end
    local ref = first .. ':' .. job_id
    local number, name = state_of(ref)
    if name and call('HGET', index, first) == to then
      answers[i] = { ref, number, body_of(ref, name) }
    else
      answers[i] = { ref, -1, false }
    end
  end
  return answers
end

redis.register_function({ function_name = name('lookup'), callback = lookup, flags = { 'no-writes' } })
