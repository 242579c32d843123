-- What a call has changed, for those who follow: told in the same call, so that
-- nobody hears of what is not so, and nothing that is so stays untold. It
-- stands behind common.lua.
--
-- An entry of the stream `events` has the field `e`, a line for each step that
-- stands in another state now: its ref, the state's number, the attempt, the
-- command, and where it goes (* where that is long). Or it has the fields of a
-- step's progress: `p` its ref, `a` the attempt, `f` the fraction (-1: none),
-- `t` the text, `l` if there is more of its log. See news.py, which reads both.

local ENTRY_BYTES = 8192  -- of one entry, about; so the stream has at most some 20 MB
local MOST_ENTRIES = 2000
local LONG_TO = 512

local fresh, fresh_bytes = {}, 0  -- the lines of the entry to be

local function publish()
  if fresh[1] then
    -- A foreign key in the stream's place costs those who follow, and nobody else.
    redis.pcall('XADD', key.events(), 'MAXLEN', '~', MOST_ENTRIES, '*', 'e', table.concat(fresh, '\n'))
    fresh, fresh_bytes = {}, 0
  end
end

-- A step stands in another state, by its number.
local function happened(ref, number, attempt, cmd, to)
  local line = ref .. ' ' .. number .. ' ' .. attempt .. ' ' .. cmd .. ' ' .. (#to > LONG_TO and '*' or to)
  fresh[#fresh + 1] = line
  fresh_bytes = fresh_bytes + #line
  if fresh_bytes > ENTRY_BYTES then
    publish()
  end
end

-- The same of a step whose record says the rest.
local function moved(ref, record, number)
  local fields = call('HMGET', record, 'attempt', 'cmd', 'to')
  if fields[2] then
    happened(ref, number, fields[1] or 0, fields[2], fields[3] or '')
  end
end

-- What a running step tells of itself.
local function progressed(ref, attempt, fraction, text, logged)
  redis.pcall('XADD', key.events(), 'MAXLEN', '~', MOST_ENTRIES, '*', 'p', ref, 'a', attempt, 'f', fraction, 't', text,
    unpack(logged and { 'l', 1 } or {}))
end

-- Make a function that writes one of the library's: for that router alone whose epoch, the last argument, is the
-- store's. Where a later router has begun, what this one remembers is old, and it changes nothing.
local function register(short, callback)
  redis.register_function(name(short), function(KEYS, ARGV)
    local epoch = table.remove(ARGV)
    local holds = redis.call('GET', key.epoch()) or '0'
    if holds ~= epoch then
      return redis.error_reply('FENCED the epoch of this router is ' .. epoch .. ', that of the store ' .. holds)
    end
    fresh, fresh_bytes = {}, 0  -- a call that broke off may have left some
    local answer = callback(KEYS, ARGV)
    publish()
    return answer
  end)
end
