-- Shared by the functions that move steps. All Lua of this directory is one
-- library (FUNCTION LOAD), so that what stands here is made once and not at
-- each call. It stands behind the key functions and before the other files.

local call  -- redis.call, which is there only while a function runs: each begins by setting it
local QUEUE, PRIORITY, END = 'default', 4, 'end_job'

local function job_of(ref)
  return string.match(ref, ':(.*)$')
end

local function split(text, separator)
  local parts = {}
  for part in string.gmatch(text or '', '[^' .. separator .. ']+') do
    parts[#parts + 1] = part
  end
  return parts
end

local function first_of(ref)
  return string.match(ref, '^[^:]*')
end

local function from_of(ref)
  return string.match(ref, '^[^>:]*')
end

-- The state a step stands in: its name is the end of the one key that exists.
local function state_of(ref)
  for number, name in ipairs(STATES) do
    if call('EXISTS', key.record(ref, name)) == 1 then
      return number - 1, name
    end
  end
end

-- What a client gets to see of a finished step, as in messages.Answer.
local function body_of(ref, name)
  if name == 'data_available' then
    return call('HGET', key.record(ref, name), 'result')
  elseif name == 'error' then
    return call('HMGET', key.record(ref, name), 'error', 'attempt')
  end
  return false
end

-- Keep what an attempt has printed and logged so far.
local function keep_log(ref, record, attempt, log)
  if log ~= '' then
    call('HSET', key.log(ref), attempt, log)
    call('HSET', record, 'logged', 1)
  end
end

-- Fields that only a step under way needs.
local function shed(record)
  call('HDEL', record, 'peer', 'worker', 'sent', 'progress', 'note', 'ready')
end
