-- Shared by submit, workflow and report: a step as it is sent to them, and the
-- record that is made of it. It stands behind queue.lua.

local NONE = {}

-- Read a step from ARGV[at] on, which is two arguments. The first is MessagePack: from, to, cmd, digest, peer, due_ms,
-- whether it waits to be fed, and where they are not the usual ones its queue, priority and options {name, value, …};
-- the second its data, which may be large. Returns the step and where the next argument is.
local function read_step(ARGV, at)
  local from, to, cmd, digest, peer, due_ms, waits, queue, priority, options = cmsgpack.unpack(ARGV[at])
  return {
    from = from, to = to, cmd = cmd, data = ARGV[at + 1], digest = digest, peer = peer, due_ms = due_ms, waits = waits,
    queue = queue or QUEUE, priority = priority or PRIORITY, options = options or NONE,
  }, at + 2
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
