-- Keep what running steps tell of themselves: progress and log so far.
--
-- KEYS   the steps' records in processing
-- ARGV   per step: ref, attempt, fraction (-1: none), text, log ('': none)
-- Finds  log, events
--
-- Whole values, never appended ones: a note that comes twice changes nothing.

local function note(KEYS, ARGV)
  call = redis.call
  for i, record in ipairs(KEYS) do
    local ref, attempt, fraction, text, log = unpack(ARGV, 5 * i - 4, 5 * i)
    if call('HGET', record, 'attempt') == attempt then
      if tonumber(fraction) >= 0 then
        call('HSET', record, 'progress', fraction, 'note', text)
      end
      keep_log(ref, record, attempt, log)
      progressed(ref, attempt, fraction, text, log ~= '')
    end
  end
  return 0
end

register('note', note)
