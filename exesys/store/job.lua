-- Read steps, for people.
--
-- KEYS   none
-- ARGV   1 to leave out data and results, else 0; the steps' refs
-- Finds  record
-- Gives  per step {ref, state, {field, value, …}}, but for those that are gone; instead of data and result
--        `bytes`, how long they are

local LONG = { data = true, result = true }

local function light(record)
  local names, bytes = {}, 0
  for _, field in ipairs(call('HKEYS', record)) do
    if LONG[field] then
      bytes = bytes + call('HSTRLEN', record, field)
    else
      names[#names + 1] = field
    end
  end
  local flat = { 'bytes', tostring(bytes) }
  for i, value in ipairs(call('HMGET', record, unpack(names))) do
    flat[#flat + 1], flat[#flat + 2] = names[i], value
  end
  return flat
end

local function job(_, ARGV)
  call = redis.call
  local steps = {}
  for at = 2, #ARGV do
    local ref = ARGV[at]
    local number, name = state_of(ref)
    if name then
      local record = key.record(ref, name)
      steps[#steps + 1] = { ref, number, ARGV[1] == '1' and light(record) or call('HGETALL', record) }
    end
  end
  return steps
end

redis.register_function({ function_name = name('job'), callback = job, flags = { 'no-writes' } })
