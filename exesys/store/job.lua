-- Read steps, for people.
--
-- KEYS   none
-- ARGV   the steps' refs
-- Finds  record
-- Gives  per step {ref, state, {field, value, …}}, but for those that are gone

local function job(_, ARGV)
  call = redis.call
  local steps = {}
  for _, ref in ipairs(ARGV) do
    local number, name = state_of(ref)
    if name then
      steps[#steps + 1] = { ref, number, call('HGETALL', key.record(ref, name)) }
    end
  end
  return steps
end

redis.register_function({ function_name = name('job'), callback = job, flags = { 'no-writes' } })
