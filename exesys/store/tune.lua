-- Keep, change or take away what stands beside jobs: timers, and settings of queues.
--
-- KEYS   tuned, timer-changes, then per tuning: its hash, the set of all of its kind
-- ARGV   per tuning: what, name, most of its kind, number of fields, and each
--        field's name and value
-- Gives  per tuning: changed, same, exists (another one for `add`, one of another
--        origin for `put` of a timer), none (to remove, or to merge into), full,
--        or foreign (a key of another kind stands there)
--
-- `merge` with a most of 0 makes a hash that is not there yet: a queue needs no
-- adding, and stays listed when nothing is set of it any more. `put` leaves the field `paused` as it is: that is set by hand.

local PAUSED, ORIGIN = 'paused', 'origin'

local function same(hash, fields, only)
  local there = call('HGETALL', hash)
  local kept = {}
  for i = 1, #there, 2 do
    kept[there[i]] = there[i + 1]
  end
  for name, value in pairs(fields) do
    if (kept[name] or '') ~= value then
      return false
    end
    kept[name] = nil
  end
  kept[PAUSED] = nil
  return not only or next(kept) == nil
end

local function write(hash, set, name, most, fields, only)
  if only then
    local paused = call('HGET', hash, PAUSED)
    call('DEL', hash)
    if paused then
      call('HSET', hash, PAUSED, paused)
    end
  end
  for field, value in pairs(fields) do
    if value == '' then
      call('HDEL', hash, field)
    else
      call('HSET', hash, field, value)
    end
  end
  if call('EXISTS', hash) == 1 then
    call('SADD', set, name)
  elseif most > 0 then
    call('SREM', set, name)
  end
  return 'changed'
end

local function tune_one(hash, set, what, name, most, fields)
  local there = call('EXISTS', hash) == 1
  if what == 'remove' then
    call('DEL', hash)
    if most > 0 then
      call('SREM', set, name)
      call('DEL', key.timer_state(name))
    end
    return there and 'changed' or 'none'
  elseif what == 'merge' and not there and most > 0 then
    return 'none'
  elseif (there or what == 'merge') and same(hash, fields, what ~= 'merge') then
    -- The list may have lost it: what is declared again is listed again.
    return most > 0 and call('SADD', set, name) == 1 and 'changed' or 'same'
  elseif there and (what == 'add' or (what == 'put' and most > 0 and call('HGET', hash, ORIGIN) ~= (fields[ORIGIN] or false))) then
    return 'exists'
  elseif not there and most > 0 and call('SCARD', set) >= most then
    return 'full'
  end
  return write(hash, set, name, most, fields, what ~= 'merge')
end

local function tune(KEYS, ARGV)
  call = redis.call
  local answers, at = {}, 1
  for i = 3, #KEYS, 2 do
    local what, name, most, count = unpack(ARGV, at, at + 3)
    local fields = {}
    for j = at + 4, at + 3 + 2 * tonumber(count), 2 do
      fields[ARGV[j]] = ARGV[j + 1]
    end
    at = at + 4 + 2 * tonumber(count)
    local fine, verdict = pcall(tune_one, KEYS[i], KEYS[i + 1], what, name, tonumber(most), fields)
    verdict = fine and verdict or 'foreign'
    if verdict == 'changed' then
      local number = call('INCR', KEYS[1])
      if tonumber(most) > 0 then
        call('ZADD', KEYS[2], number, name)
      elseif fields.key_limit then
        wake_keys(name)
      end
    end
    answers[#answers + 1] = verdict
  end
  return answers
end

register('tune', tune)
