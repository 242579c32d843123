-- Tell what waits in queues, for people.
--
-- KEYS   none
-- ARGV   how many of a queue's steps with a key are looked at, then the queues' names
-- Finds  record, ready queue
-- Gives  per queue {how many wait, when the oldest of them was accepted in ms or false, 1 when it is paused}
--
-- Looked at are the first of each priority, and of those with a key some at
-- random: they take turns, so the first in line need not be the oldest. A
-- foreign key in the place of one of ours counts as nothing.

local function of_ours(...)
  local reply = redis.pcall(...)
  return not (type(reply) == 'table' and reply.err) and reply or nil
end

local function older(one, ref)
  local born = tonumber(of_ours('HGET', key.record(ref, 'start'), 'born') or nil)
  return born and (not one or born < one) and born or one  -- without a record it runs by now
end

local function oldest_of(queue, most_keyed)
  local oldest
  local first = of_ours('ZRANGE', key.ready(queue), 0, 0, 'WITHSCORES') or {}
  while first[1] do
    oldest = older(oldest, first[1])
    local next_rank = (math.floor(tonumber(first[2]) / PRIORITY_STEP) + 1) * PRIORITY_STEP
    first = call('ZRANGEBYSCORE', key.ready(queue), string.format('%.0f', next_rank), '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  end
  for _, ref in ipairs(of_ours('SRANDMEMBER', key.keyed(queue), most_keyed) or {}) do
    oldest = older(oldest, ref)
  end
  return oldest
end

local function waiting(_, ARGV)
  call = redis.call
  local told = {}
  for i = 2, #ARGV do
    local queue = ARGV[i]
    local depth = (of_ours('ZCARD', key.ready(queue)) or 0) + (of_ours('SCARD', key.keyed(queue)) or 0)
    local oldest = depth > 0 and oldest_of(queue, ARGV[1])
    local paused = of_ours('HEXISTS', key.queue(queue), 'paused') or 0
    told[#told + 1] = { depth, oldest and string.format('%.0f', oldest) or false, paused }
  end
  return told
end

redis.register_function({ function_name = name('waiting'), callback = waiting, flags = { 'no-writes' } })
