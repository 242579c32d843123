-- Take many commands: new → start, or say what stands there already.
--
-- KEYS   the jobs' index keys, one per command
-- ARGV   now_ms, depth limit, then per command:
--        from, to, cmd, data, job_id, digest, peer, queue, priority, due_ms,
--        number of options, and each option's name and value
-- Finds  record, ready queue, delayed, jobs, order
-- Gives  per command {verdict, ref, state, body}
--
-- Run twice it changes nothing: the second time every command is `same`.

local now_ms, limit = tonumber(ARGV[1]), tonumber(ARGV[2])
local answers, at = {}, 3
local ready, depth = {}, {}
local order = call('INCRBY', key.order(), #KEYS) - #KEYS

local function existing(ref, digest)
  local number, name = state_of(ref)
  if not name then
    return nil
  end
  if call('HGET', key.record(ref, name), 'sum') ~= digest then
    return { 'conflict', ref, number, false }
  end
  return { 'same', ref, number, body_of(ref, name) }
end

local function create(ref, index, to, cmd, data, digest, peer, queue, priority, due_ms, first_option, options)
  local fields = { 'to', to, 'cmd', cmd, 'data', data, 'sum', digest, 'born', now_ms }
  local function add(name, value)
    fields[#fields + 1] = name
    fields[#fields + 1] = value
  end
  if peer ~= '' then add('peer', peer) end
  if queue ~= QUEUE then add('queue', queue) end
  if priority ~= PRIORITY then add('priority', priority) end
  for i = first_option, first_option + 2 * options - 1 do
    fields[#fields + 1] = ARGV[i]
  end
  call('HSET', key.record(ref, 'start'), unpack(fields))
  local steps = call('HLEN', index)
  if steps == 1 then
    call('XADD', key.jobs(), '*', 'j', job_of(ref))
  else
    -- A job of several steps lives until the last of them ended.
    if call('HEXISTS', index, ':open') == 1 then
      call('HINCRBY', index, ':open', 1)
    else
      local running = call('TTL', index) == -1 and 1 or 0
      call('HSET', index, ':open', running + 1)
    end
    call('PERSIST', index)
  end
  if due_ms > now_ms then
    call('ZADD', key.delayed(), due_ms, ref)
  else
    local list = ready[queue]
    list[#list + 1] = score(priority, order)
    list[#list + 1] = ref
    depth[queue] = depth[queue] + 1
  end
end

for i, index in ipairs(KEYS) do
  local from, to, cmd, data, job_id, digest, peer, queue = unpack(ARGV, at, at + 7)
  local priority, due_ms, options = tonumber(ARGV[at + 8]), tonumber(ARGV[at + 9]), tonumber(ARGV[at + 10])
  local first_option = at + 11
  at = first_option + 2 * options
  order = order + 1
  if not depth[queue] then
    depth[queue], ready[queue] = call('ZCARD', key.ready(queue)), {}
  end

  local first = from
  local fresh = call('HSETNX', index, first, to) == 1
  if not fresh and call('HGET', index, first) ~= to then
    first = from .. '>' .. to
    fresh = call('HSETNX', index, first, to) == 1
  end
  local ref = first .. ':' .. job_id
  local answer = nil
  if not fresh then
    -- nil when the record expired before its job's index did: then it is new.
    answer = existing(ref, digest)
  elseif depth[queue] >= limit then
    call('HDEL', index, first)
    answer = { 'full', ref, 0, false }
  end
  if not answer then
    create(ref, index, to, cmd, data, digest, peer, queue, priority, due_ms, first_option, options)
    answer = { 'new', ref, 0, false }
  end
  answers[i] = answer
end

for queue, list in pairs(ready) do
  if #list > 0 then
    call('ZADD', key.ready(queue), unpack(list))
  end
end
return answers
