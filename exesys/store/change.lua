-- End a job before its time, run again what failed of it, or remove it when it has failed.
--
-- KEYS   the job's index
-- ARGV   the settings (see graph.lua), cancel, retry or purge, job_id, error body
-- Finds  record, ready queue, delayed, standby, held, dead, job, flow, log, callbacks, events
-- Gives  {-1: there is no such job, -2: it is under way, -3: it has not failed,
--        else how many steps were changed,
--        {ref, attempt, peer, body, cmd, the session that runs it or ''} of each step that ended}

local function cancel(env, job_id, firsts, body)
  local ended = {}
  for _, first in ipairs(firsts) do
    local ref = first .. ':' .. job_id
    local number, name = state_of(ref)
    if number == 0 then
      local queue, called = place_of(key.record(ref, name))
      step_out(ref, queue, called)
      call('ZREM', key.delayed(), ref)
    end
    local session = ''
    if number == 2 then
      session = call('HGET', key.record(ref, name), 'worker') or ''
      call('ZREM', key.held(session), ref)
      leave(ref, key.record(ref, name))
      call('HDEL', key.record(ref, name), 'worker', 'sent', 'progress', 'note')
    end
    if number and number < 3 then
      local fields = give_up(env, ref, name, body)
      ended[#ended + 1] = { ref, tonumber(fields[3] or 0), fields[2] or '', body, fields[6], session }
    end
  end
  return ended
end

-- error → start for what failed by itself, → standby for what waited. Returns both lists.
local function reopen(env, job_id, firsts)
  local started, waiting = {}, {}
  for _, first in ipairs(firsts) do
    local ref = first .. ':' .. job_id
    local failed = key.record(ref, 'error')
    local fields = call('HMGET', failed, 'sum', 'was')
    if fields[1] then
      local state = fields[2] == 'standby' and 'standby' or 'start'
      call('HDEL', failed, 'error', 'ended', 'was', 'fails', 'crashes', 'losses')
      call('RENAME', failed, key.record(ref, state))
      moved(ref, key.record(ref, state), state == 'standby' and 1 or 0)
      call('ZREM', key.dead(), ref)
      call('PERSIST', key.record(ref, state))
      call('PERSIST', key.log(ref))
      table.insert(state == 'standby' and waiting or started, ref)
    end
  end
  return started, waiting
end

local function retry(env, job_id, index, firsts)
  local started, waiting = reopen(env, job_id, firsts)
  if #started + #waiting == 0 then
    return 0, {}
  end
  if call('HEXISTS', index, ':open') == 1 then
    call('HDEL', index, ':failed')
    local opened = {}
    for _, ref in ipairs(started) do
      opened[#opened + 1] = first_of(ref)
    end
    for _, ref in ipairs(waiting) do
      opened[#opened + 1] = first_of(ref)
    end
    open(job_id, opened)
  else
    call('PERSIST', index)
  end
  for _, ref in ipairs(started) do
    make_ready(ref, env.now_ms)
  end
  local failed, settled = {}, {}
  for _, ref in ipairs(waiting) do
    local name = from_of(ref)
    if settled[name] == nil then
      -- Most wait for what starts now; one that failed by what it was fed tries that again.
      local _, ended = settle(env, job_id, name)
      settled[name] = ended ~= nil
      for _, one in ipairs(ended or {}) do
        one[6] = ''
        failed[#failed + 1] = one
      end
    end
    if not settled[name] then
      watch(env, ref)
    end
  end
  return #started + #waiting, failed
end

-- Remove all there is of a job that has ended and failed. Its entry in the jobs stream stays, and names nothing.
local function purge(job_id, index, firsts)
  local failed = false
  for _, first in ipairs(firsts) do
    local number = state_of(first .. ':' .. job_id)
    if number and number < 3 then
      return -2
    end
    failed = failed or number == 4
  end
  if not failed then
    return -3
  end
  for _, first in ipairs(firsts) do
    local ref = first .. ':' .. job_id
    call('DEL', key.record(ref, 'data_available'), key.record(ref, 'error'), key.log(ref), key.callback(ref))
    call('ZREM', key.dead(), ref)
    call('ZREM', key.callbacks(), ref)
  end
  call('DEL', index, key.flow(job_id), key.recount(job_id), key.tallied(job_id), key.recount_left(job_id))
  return #firsts
end

local function change(KEYS, ARGV)
  call = redis.call
  local env = settings(ARGV)
  local what, job_id, body = unpack(ARGV, SETTINGS + 1, SETTINGS + 3)
  local index = KEYS[1]
  local firsts = firsts_of(job_id)
  if #firsts == 0 then
    return { -1, {} }
  end
  if what == 'retry' then
    return { retry(env, job_id, index, firsts) }
  elseif what == 'purge' then
    return { purge(job_id, index, firsts), {} }
  end
  local ended = cancel(env, job_id, firsts, body)
  if #ended > 0 then
    call('ZADD', key.dead(), env.now_ms, ended[1][1])  -- one of them finds the job
    if call('HEXISTS', index, ':open') == 1 then
      call('HSET', index, ':failed', 1)
      close(env, job_id, ended)
    else
      retire(ended[1][1], 'error', env.error_ttl_s, call('EXISTS', key.log(ended[1][1])) == 1)
    end
  end
  return { #ended, ended }
end

register('change', change)
