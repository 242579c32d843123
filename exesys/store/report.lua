-- Commit how attempts ended: processing → data_available, error or start.
--
-- KEYS   the steps' records in processing, one per report
-- ARGV   the settings (see graph.lua), most crashes, then per report its body behind
--        all else as MessagePack: ref, attempt, session, outcome (0 done, 1 failed, 2
--        crashed, 3 returned), jitter, began_ms, ended_ms, log, number of steps it adds;
--        and those (see step.lua). What a record keeps comes as text: a number of Lua
--        would be spelt anew, and a large one otherwise
-- Finds  held, ready queue (see queue.lua), delayed, dead, job, flow, log, callbacks, events
-- Gives  per report the peer ('' if none) when the only step of its job is done
--        for good, 0 when it was stale, else {state, peer, body, how many steps
--        may start now, the steps that failed with it (see graph.lua)}
--
-- What follows from an end (a workflow's next steps, the steps it adds) is done
-- in the same call: no crash can fall between.
--
-- Compare-and-set on the attempt: who finishes late finds another attempt, or
-- no record in processing, is told `stale`, and changes nothing. So a report
-- may come twice.
--
-- One exception: a step that waits and has seen fewer attempts than the report
-- says. Only a claim raises the attempt, so Redis has lost that claim (killed
-- before it wrote its file, or failed over to a replica that lagged). The
-- attempt was made, and its end counts.

local LONGEST_BACKOFF_S = 3600
local AGAIN = { 0, false, false, 0, {} }

-- processing → data_available. Few of the record's fields live on, so that
-- writing these anew costs half of pruning the rest and a RENAME.
local function finish(env, ref, record, fields, body, began_ms, ended_ms)
  call('DEL', record)
  call('HSET', key.record(ref, 'data_available'), 'to', fields[4], 'cmd', fields[5], 'result', body, 'sum', fields[6],
    'attempt', fields[1], 'born', fields[7], 'began', began_ms, 'ended', ended_ms)
  happened(ref, '3', fields[1], fields[5], fields[4])
  if fields[14] then
    call('HSET', key.record(ref, 'data_available'), 'traceparent', fields[14])
  end
  if fields[13] then
    call('HSET', key.record(ref, 'data_available'), 'notify', fields[13])
    announce(env, ref, 'data_available', fields[13], fields[4], fields[5], fields[1], body, fields[14])
  end
  local limited = vacate(ref, fields[10] or QUEUE, fields[11], fields[12])
  if not fields[8] then
    if fields[3] then
      call('HSET', key.record(ref, 'data_available'), 'result_ttl_s', fields[3])  -- more steps may come
    end
    retire(ref, 'data_available', fields[3] or env.result_ttl_s, fields[9])
    return limited and { 3, fields[2], false, 1, {} } or fields[2] or ''
  end
  local started, failed = advance(env, ref, fields[4], body)
  close(env, job_of(ref), NONE, ref)
  return { 3, fields[2], false, started + (limited and 1 or 0), failed }
end

local function read_added(ARGV, at, count)
  if count == 0 then
    return NONE, at
  end
  local added = {}
  for i = 1, count do
    added[i], at = read_step(ARGV, at)
  end
  return added, at
end

local function one_waits(job_id, name)
  for _, first in ipairs(named(job_id, name)) do
    if call('EXISTS', key.record(first .. ':' .. job_id, 'standby')) == 1 then
      return true
    end
  end
end

-- Why steps cannot be added to a job, nil if they can.
local function misfit(env, job_id, added)
  local index, flow, coming = key.job(job_id), key.flow(job_id), {}
  local marks = 0
  for _, mark in ipairs(call('HMGET', index, ':open', ':failed', ':ttl', ':lost', ':anew')) do
    marks = marks + (mark and 1 or 0)
  end
  if call('HLEN', index) - marks + #added > env.most_steps then
    return string.format('the job would have more than %d steps', env.most_steps)
  end
  for _, step in ipairs(added) do
    coming[step.from] = coming[step.from] or {}
    for _, name in ipairs(split(step.to, ',')) do
      table.insert(coming[step.from], name)
    end
  end
  for _, step in ipairs(added) do
    if #step.to > LONGEST_TO and call('HEXISTS', index, step.from) == 1 then
      return 'there is a step from ' .. step.from .. ' already; a further one may not list so many names'
    end
    if call('HGET', index, step.from) == step.to or call('HEXISTS', index, step.from .. '>' .. step.to) == 1 then
      return 'there is a step from ' .. step.from .. ' to ' .. step.to .. ' already'
    end
    for _, name in ipairs(split(step.to, ',')) do
      if name ~= END and not coming[name] and not one_waits(job_id, name) then
        return 'no step waits at ' .. name .. ' to be fed by ' .. step.from
      end
    end
    -- Only what is there can lead back to a step that comes.
    local names = call('HEXISTS', flow, '<' .. step.from) == 1 and circle(job_id, step.from, step.to, coming)
    if names then
      return 'the steps go in a circle: ' .. table.concat(names, ' → ') .. ' → ' .. names[1]
    end
  end
end

-- Store the steps that a function added to its own job. Returns how many start,
-- and those that fail at once, as `spread` does.
local function add(env, job_id, added)
  local index = key.job(job_id)
  make_many(job_id)
  for _, step in ipairs(added) do
    step.first = step.from
    if call('HSETNX', index, step.first, step.to) == 0 then
      step.first = step.from .. '>' .. step.to
      call('HSET', index, step.first, step.to)
    end
  end
  enlist(job_id, added)
  local started, failed, fed_names, firsts = 0, {}, {}, {}
  for _, step in ipairs(added) do
    local ref = step.first .. ':' .. job_id
    firsts[#firsts + 1] = step.first
    local fed = call('HEXISTS', key.flow(job_id), '<' .. step.from) == 1
    local state = fed and 'standby' or 'start'
    lengthen(index, option(step, 'result_ttl_s'))
    if not write(env.now_ms, ref, state, step, { 'many', 1 }) then
      error(ref .. ' cannot be written')
    end
    happened(ref, fed and 1 or 0, 0, step.cmd, step.to)
    if fed then
      if not fed_names[step.from] then
        fed_names[#fed_names + 1], fed_names[step.from] = step.from, true
      end
    else
      enter(env, ref, step.queue, option(step, 'key'), step.priority, step.due_ms)
      started = started + 1
    end
  end
  open(job_id, firsts)
  for _, name in ipairs(fed_names) do
    local more, ended = settle(env, job_id, name)
    started = started + more
    for _, one in ipairs(ended) do
      failed[#failed + 1] = one
    end
  end
  return started, failed
end

-- processing → start, on the ready queue now or after a delay.
local function again(ref, record, now_ms, delay_ms)
  leave(ref, record)
  call('HDEL', record, 'worker', 'sent', 'progress', 'note')
  call('RENAME', record, key.record(ref, 'start'))
  moved(ref, key.record(ref, 'start'), 0)
  if delay_ms > 0 then
    call('ZADD', key.delayed(), now_ms + delay_ms, ref)
  else
    make_ready(ref, now_ms)
  end
end

-- Exponential back-off with equal jitter (half fixed, half random), after
-- "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
local function backoff_ms(base_s, fails, jitter)
  local longest = math.min(base_s * 2 ^ (fails - 1), LONGEST_BACKOFF_S) * 1000
  return math.floor(longest / 2 * (1 + jitter))
end

local function failed(env, ref, peer, body, attempt)
  local also, limited = fail(env, ref, body)
  return { 4, peer, { body, attempt }, limited and 1 or 0, also }
end

local FIELDS = { 'attempt', 'peer', 'result_ttl_s', 'to', 'cmd', 'sum', 'born', 'many', 'logged', 'queue', 'key',
  'counted', 'notify', 'traceparent' }

-- Redo a claim that Redis has lost.
local function reclaim(ref, record, attempt)
  local waiting = key.record(ref, 'start')
  local fields = call('HMGET', waiting, unpack(FIELDS))
  if not fields[6] or tonumber(fields[1] or 0) >= tonumber(attempt) then
    return {}
  end
  step_out(ref, fields[10] or QUEUE, fields[11])
  call('ZREM', key.delayed(), ref)
  call('HSET', waiting, 'attempt', attempt)
  call('RENAME', waiting, record)
  fields[1] = attempt
  return fields
end

local function report(KEYS, ARGV)
  call = redis.call
  local env = settings(ARGV)
  local now_ms, most_crashes = env.now_ms, tonumber(ARGV[SETTINGS + 1])
  local at = SETTINGS + 2
  local answers = {}
  local let_go = {}

  for i, record in ipairs(KEYS) do
    local ref, attempt, session, outcome, jitter, began_ms, ended_ms, log, adds = cmsgpack.unpack(ARGV[at])
    local body = ARGV[at + 1]
    local added
    added, at = read_added(ARGV, at + 2, adds)
    local fields = call('HMGET', record, unpack(FIELDS))
    if not fields[1] then
      fields = reclaim(ref, record, attempt)
    end
    local answer = 0
    if fields[1] == attempt then
      local refs = let_go[session] or {}
      let_go[session] = refs
      refs[#refs + 1] = ref
      if log ~= '' then
        keep_log(ref, record, attempt, log)
        fields[9] = '1'
      end
      local more, ended = 0, NONE
      if #added > 0 and outcome == 0 then
        local why = misfit(env, job_of(ref), added)
        if why then
          outcome, body = 1, error_body('BadStep', why)
        else
          more, ended = add(env, job_of(ref), added)
          fields[8] = '1'
        end
      end
      if outcome == 0 then
        answer = finish(env, ref, record, fields, body, began_ms, ended_ms)
        if fields[8] then
          answer[4] = answer[4] + more
          for _, one in ipairs(ended) do
            table.insert(answer[5], one)
          end
        end
      elseif outcome == 3 then
        local place = call('ZSCORE', key.held(session), ref)
        leave(ref, record)
        call('HDEL', record, 'worker', 'sent', 'progress', 'note')
        call('RENAME', record, key.record(ref, 'start'))
        moved(ref, key.record(ref, 'start'), 0)
        if place then put_back(ref, place, now_ms) else make_ready(ref, now_ms) end
        answer = AGAIN
      elseif outcome == 2 then
        local crashes = call('HINCRBY', record, 'crashes', 1)
        if crashes >= most_crashes then
          answer = failed(env, ref, fields[2], body, attempt)
        else
          again(ref, record, now_ms, 0)
          answer = AGAIN
        end
      else
        local fails = call('HINCRBY', record, 'fails', 1)
        local options = call('HMGET', record, 'retries', 'backoff_s')
        if fails > tonumber(options[1] or 0) then
          answer = failed(env, ref, fields[2], body, attempt)
        else
          again(ref, record, now_ms, backoff_ms(tonumber(options[2] or 1), fails, jitter))
          answer = AGAIN
        end
      end
    end
    answers[i] = answer
  end

  for session, refs in pairs(let_go) do
    call('ZREM', key.held(session), unpack(refs))
  end
  return answers
end

register('report', report)
