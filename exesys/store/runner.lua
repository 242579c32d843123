-- Runners: store, give to a daemon, note, stop, let run again, and their logs.
--
-- KEYS   per operation: the runner's record, its stop key
-- ARGV   now_ms, seconds that the record of a stopped one is kept, the same of
--        a failed one, most runners, bytes of log that are kept (up to twice that);
--        then per operation what it is, type:uuid, the number of its arguments, and them
-- Finds  runners, ended, runner_log
-- Gives  per operation {verdict, fields of the record, flat, or none}
--
-- The operations, their arguments, and their verdicts:
--   enlist  digest, then fields and values     new, same, conflict, stopped, full
--   assign  epoch, session, host               launched, stopping, stopped, stale, gone
--   note    epoch, 1 if it has ended, then fields and values    noted, ended, stale
--   halt    (none)                             stopping, stopped, ended, none
--   heed    (none)                             the same, or unloaded
--   forget  (none)                             noted
--   revive  (none)                             started, active, full, none
--   log     epoch, chunk, text                 noted, stale, gone
--
-- All are idempotent. The stop key belongs to whoever wants a stop: it is read
-- in the moment in which a life is given away, so that none begins after it. A
-- life that was given away before may have begun: it is only told to stop.

local EARLY, STOPPED = 'a stop was loaded before it ran', 'a stop was loaded before it ran again'

-- Whether a stop is loaded. A key of another kind in that place is none.
local function loaded(run)
  return redis.pcall('GET', run) == '0'
end

local function final(state)
  return state == 'stopped' or state == 'failed'
end

-- The runner has ended: it is listed with those, and expires.
local function close(env, record, run, name, state)
  local ttl = state == 'failed' and env.failed_ttl_s or env.ttl_s
  call('HSET', record, 'ended', env.now_ms, 'session', '')
  call('SREM', key.runners(), name)
  call('ZADD', key.ended(), env.now_ms, name)
  call('EXPIRE', record, ttl)
  call('EXPIRE', key.runner_log(name), ttl)
  call('SET', run, '0', 'EX', ttl)
end

local function room(env, name)
  return call('SISMEMBER', key.runners(), name) == 1 or call('SCARD', key.runners()) < env.most
end

local DO = {}

function DO.enlist(env, record, run, name, digest, ...)
  local sum = call('HGET', record, 'sum')
  if sum then
    return sum == digest and 'same' or 'conflict', true
  elseif loaded(run) then
    return 'stopped'
  elseif not room(env, name) then
    return 'full'
  end
  call('HSET', record, 'sum', digest, 'born', env.now_ms, 'state', 'starting', 'epoch', 0, ...)
  call('SADD', key.runners(), name)
  call('SET', run, '1')
  return 'new', true
end

function DO.assign(env, record, run, name, epoch, session, host)
  local state, now_epoch, now_session = unpack(call('HMGET', record, 'state', 'epoch', 'session'))
  if not state or final(state) then
    return 'gone'
  end
  local given = now_epoch == epoch and now_session == session
  if not given and not tonumber(now_epoch) then
    return 'stale', true -- somebody spoilt it: whoever reads the record sees that
  elseif not given and tonumber(now_epoch) >= tonumber(epoch) then
    return 'stale', true
  elseif loaded(run) then
    if given then
      call('HSET', record, 'state', 'stopping')
      return 'stopping'
    end
    call('HSET', record, 'state', 'stopped', 'how', tonumber(now_epoch) == 0 and EARLY or STOPPED)
    close(env, record, run, name, 'stopped')
    return 'stopped'
  elseif not given then
    call('HSET', record, 'state', 'starting', 'epoch', epoch, 'session', session, 'host', host)
    call('HDEL', record, 'began')
  end
  call('SET', run, '1', 'NX')
  return 'launched', true
end

function DO.note(env, record, run, name, epoch, ended, ...)
  local state, now_epoch = unpack(call('HMGET', record, 'state', 'epoch'))
  if not state or final(state) then
    return 'ended'
  elseif now_epoch ~= epoch then
    return 'stale', true
  end
  local fields = { ... }
  for i = 1, #fields, 2 do
    -- It began to run before its stop was known, and that is told only now.
    if not (fields[i] == 'state' and fields[i + 1] == 'running' and state ~= 'starting') then
      call('HSET', record, fields[i], fields[i + 1])
    end
  end
  if ended == '1' then
    close(env, record, run, name, call('HGET', record, 'state'))
  end
  return 'noted'
end

function DO.halt(env, record, run, name)
  local state, session, epoch = unpack(call('HMGET', record, 'state', 'session', 'epoch'))
  if not state then
    return 'none'
  elseif final(state) then
    return 'ended'
  end
  call('SET', run, '0')
  if session and session ~= '' then
    call('HSET', record, 'state', 'stopping')
    return 'stopping'
  end
  call('HSET', record, 'state', 'stopped', 'how', tonumber(epoch) == 0 and EARLY or STOPPED)
  close(env, record, run, name, 'stopped')
  return 'stopped'
end

function DO.heed(env, record, run, name)
  if not loaded(run) then
    return 'unloaded'
  end
  local verdict = DO.halt(env, record, run, name)
  if (verdict == 'none' or verdict == 'ended') and call('TTL', run) == -1 then
    call('EXPIRE', run, env.ttl_s) -- there is nothing to stop: it is not in the way for ever
  end
  return verdict
end

function DO.forget(env, record, run)
  call('DEL', run)
  return 'noted'
end

function DO.revive(env, record, run, name)
  local state = call('HGET', record, 'state')
  if not state then
    return 'none'
  elseif not final(state) then
    return 'active', true
  elseif not room(env, name) then
    return 'full'
  end
  call('HSET', record, 'state', 'starting', 'failures', 0, 'losses', 0)
  call('HDEL', record, 'ended', 'how', 'error', 'began')
  call('PERSIST', record)
  call('PERSIST', key.runner_log(name))
  call('ZREM', key.ended(), name)
  call('SADD', key.runners(), name)
  call('SET', run, '1')
  return 'started', true
end

function DO.log(env, record, run, name, epoch, chunk, text)
  local state, last, number = unpack(call('HMGET', record, 'state', 'log_epoch', 'log_chunk'))
  last, number = tonumber(last) or 0, tonumber(number) or 0
  if not state then
    return 'gone'
  elseif last > tonumber(epoch) or (last == tonumber(epoch) and number >= tonumber(chunk)) then
    return 'stale'
  end
  call('HSET', record, 'log_epoch', epoch, 'log_chunk', chunk)
  call('HINCRBY', record, 'log_total', #text)
  local log = key.runner_log(name)
  if call('APPEND', log, text) > 2 * env.log_bytes then
    call('SET', log, call('GETRANGE', log, -env.log_bytes, -1))
  end
  if final(state) then  -- told late: it expires with its record all the same
    call('EXPIRE', log, call('TTL', record))
  end
  return 'noted'
end

local function runner(KEYS, ARGV)
  call = redis.call
  local env = {
    now_ms = ARGV[1], ttl_s = ARGV[2], failed_ttl_s = ARGV[3], most = tonumber(ARGV[4]), log_bytes = tonumber(ARGV[5]),
  }
  local answers, at = {}, 6
  for i = 1, #KEYS, 2 do
    local count = tonumber(ARGV[at + 2])
    local verdict, told = DO[ARGV[at]](env, KEYS[i], KEYS[i + 1], ARGV[at + 1], unpack(ARGV, at + 3, at + 2 + count))
    answers[#answers + 1] = { verdict, told and call('HGETALL', KEYS[i]) or {} }
    at = at + 3 + count
  end
  return answers
end

register('runner', runner)
