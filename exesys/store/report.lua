-- Commit how attempts ended: processing → data_available, error or start.
--
-- KEYS   the steps' records in processing, one per report
-- ARGV   now_ms, result ttl_s, error ttl_s, most crashes, then per report:
--        ref, attempt, session, outcome (0 done, 1 failed, 2 crashed,
--        3 returned), body, jitter, began_ms, ended_ms, log
-- Finds  held, ready queue, delayed, dead, job, log
-- Gives  per report the peer ('' if none) when it is done for good, 0 when it
--        was stale, else {state, peer, body}
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
local AGAIN = { 0, false, false }

-- processing → data_available. Few of the record's fields live on, so that
-- writing these anew costs half of pruning the rest and a RENAME.
local function finish(ref, record, fields, body, began_ms, ended_ms, ttl_s)
  call('DEL', record)
  call('HSET', key.record(ref, 'data_available'), 'to', fields[4], 'cmd', fields[5], 'result', body, 'sum', fields[6],
    'attempt', fields[1], 'born', fields[7], 'began', began_ms, 'ended', ended_ms)
  retire(ref, 'data_available', ttl_s, fields[8], fields[9])
end

-- processing → start, on the ready queue now or after a delay.
local function again(ref, record, now_ms, delay_ms)
  call('HDEL', record, 'worker', 'sent', 'progress', 'note')
  call('RENAME', record, key.record(ref, 'start'))
  if delay_ms > 0 then
    call('ZADD', key.delayed(), now_ms + delay_ms, ref)
  else
    make_ready(ref)
  end
end

-- Exponential back-off with equal jitter (half fixed, half random), after
-- "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.
local function backoff_ms(base_s, fails, jitter)
  local longest = math.min(base_s * 2 ^ (fails - 1), LONGEST_BACKOFF_S) * 1000
  return math.floor(longest / 2 * (1 + jitter))
end

local FIELDS = { 'attempt', 'peer', 'result_ttl_s', 'to', 'cmd', 'sum', 'born', 'many', 'logged', 'queue' }

-- Redo a claim that Redis has lost.
local function reclaim(ref, record, attempt)
  local waiting = key.record(ref, 'start')
  local fields = call('HMGET', waiting, unpack(FIELDS))
  if not fields[6] or tonumber(fields[1] or 0) >= tonumber(attempt) then
    return {}
  end
  call('ZREM', key.ready(fields[10] or QUEUE), ref)
  call('ZREM', key.delayed(), ref)
  call('HSET', waiting, 'attempt', attempt)
  call('RENAME', waiting, record)
  fields[1] = attempt
  return fields
end

local function report(KEYS, ARGV)
  call = redis.call
  local now_ms, ttl_s, error_ttl_s, most_crashes = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
  local answers = {}
  local let_go = {}

  for i, record in ipairs(KEYS) do
    local ref, attempt, session, outcome, body, jitter, began_ms, ended_ms, log = unpack(ARGV, 9 * i - 4, 9 * i + 4)
    local fields = call('HMGET', record, unpack(FIELDS))
    if not fields[1] then
      fields = reclaim(ref, record, attempt)
    end
    local answer = 0
    if fields[1] == attempt then
      let_go[session] = let_go[session] or {}
      table.insert(let_go[session], ref)
      if log ~= '' then
        keep_log(ref, record, attempt, log)
        fields[9] = '1'
      end
      if outcome == '0' then
        finish(ref, record, fields, body, began_ms, ended_ms, fields[3] or ttl_s)
        answer = fields[2] or ''
      elseif outcome == '3' then
        local place = call('ZSCORE', key.held(session), ref)
        call('HDEL', record, 'worker', 'sent', 'progress', 'note')
        call('RENAME', record, key.record(ref, 'start'))
        if place then put_back(ref, place) else make_ready(ref) end
        answer = AGAIN
      elseif outcome == '2' then
        local crashes = call('HINCRBY', record, 'crashes', 1)
        if crashes >= most_crashes then
          fail(ref, body, now_ms, error_ttl_s)
          answer = { 4, fields[2], { body, attempt } }
        else
          again(ref, record, now_ms, 0)
          answer = AGAIN
        end
      else
        local fails = call('HINCRBY', record, 'fails', 1)
        local options = call('HMGET', record, 'retries', 'backoff_s')
        if fails > tonumber(options[1] or 0) then
          fail(ref, body, now_ms, error_ttl_s)
          answer = { 4, fields[2], { body, attempt } }
        else
          again(ref, record, now_ms, backoff_ms(tonumber(options[2] or 1), fails, tonumber(jitter)))
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

redis.register_function(name('report'), report)
