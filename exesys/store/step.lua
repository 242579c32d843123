-- Shared by submit, workflow and report: a step as it is sent to them, and the
-- record that is made of it. It stands behind queue.lua.

local STEP = 11  -- arguments before the options
local NONE = {}

-- Read a step from ARGV[at] on: from, to, cmd, data, digest, peer, queue,
-- priority, due_ms, 1 if it waits to be fed, number of options, and each
-- option's name and value. Returns it and where the next argument is.
local function read_step(ARGV, at)
  local options_at, options = at + STEP, NONE
  local next_at = options_at + 2 * tonumber(ARGV[options_at - 1])
  if next_at > options_at then
    options = { unpack(ARGV, options_at, next_at - 1) }
  end
  return {
    from = ARGV[at], to = ARGV[at + 1], cmd = ARGV[at + 2], data = ARGV[at + 3], digest = ARGV[at + 4],
    peer = ARGV[at + 5], queue = ARGV[at + 6], priority = tonumber(ARGV[at + 7]), due_ms = tonumber(ARGV[at + 8]),
    waits = ARGV[at + 9] == '1', options = options,
  }, next_at
end

local function option(step, name)
  for i = 1, #step.options, 2 do
    if step.options[i] == name then
      return step.options[i + 1]
    end
  end
end

-- Write a new step's record, with `more` fields. False when a foreign key of
-- another kind stands in its place.
local function write(now_ms, ref, state, step, more)
  local fields
  if step.peer ~= '' then
    fields = { 'to', step.to, 'cmd', step.cmd, 'data', step.data, 'sum', step.digest, 'born', now_ms, 'peer', step.peer,
      unpack(more) }
  else
    fields = { 'to', step.to, 'cmd', step.cmd, 'data', step.data, 'sum', step.digest, 'born', now_ms, unpack(more) }
  end
  local function put(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if step.queue ~= QUEUE then
    put('queue', step.queue)
    list_queue(step.queue)
  end
  if step.priority ~= PRIORITY then put('priority', step.priority) end
  if state == 'standby' and step.due_ms ~= 0 then put('due_ms', step.due_ms) end
  for i = 1, #step.options, 2 do
    put(step.options[i], step.options[i + 1])
  end
  local written = redis.pcall('HSET', key.record(ref, state), unpack(fields))
  return not (type(written) == 'table' and written.err)
end
