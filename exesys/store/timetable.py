"""Timers in the store: their definitions to read, and how far each is, to read and to write.

Definitions are written by the router alone (tune.lua). How far a timer is, is
written by the active controller: only while the lease is its own, which the
same script looks at.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from exesys.command import parts_of
from exesys.states import State
from exesys.store.connection import Connection
from exesys.store.oddities import texts

CHUNK = 500
# Write how far timers are, if the lease is ours.
_NOTE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
local at = 2
for i = 2, #KEYS do
  local count = tonumber(ARGV[at])
  redis.pcall('HSET', KEYS[i], unpack(ARGV, at + 1, at + 2 * count))  -- a foreign key is that timer's trouble alone
  at = at + 1 + 2 * count
end
return 1
"""

# Drop what is left of timers, unless they have been added again.
_FORGET = """
for i = 2, #KEYS do
  local changed = redis.call('ZSCORE', KEYS[1], ARGV[i])
  if not changed or tonumber(changed) <= tonumber(ARGV[1]) then
    redis.call('ZREM', KEYS[1], ARGV[i])
    redis.call('DEL', KEYS[i])
  end
end
"""

Kept = dict[str, bytes]


class TimerRecord(NamedTuple):
    """A timer as the store has it: what was declared, and how far it is. Empty: not there."""

    name: str
    kept: Kept
    progress: Kept
    trouble: str = ""  # why it cannot be read

    @property
    def there(self) -> bool:
        """Whether there is such a timer, readable or not."""
        return bool(self.kept or self.trouble)


class Timetable(Connection):
    """The controller's connection to the timers. Every call raises StoreAway when Redis is away."""

    def changes(self) -> int:
        """Return how often timers and settings of queues were changed."""
        return int(self._do(self._redis.get, self.keys("tuned")) or 0)

    def changed(self, since: int) -> list[str]:
        """Return the timers that were changed after a number of changes, those that are gone among them."""
        found = self._do(self._redis.zrangebyscore, self.keys("timer_changes"), f"({since}", "+inf")
        return texts(found)

    def controlled(self) -> bool:
        """Tell whether a controller is the active one, and has said so within its lease."""
        return bool(self._do(self._redis.exists, self.keys("controller")))

    def names(self) -> list[str]:
        """Return the names of all timers."""
        return sorted(texts(self._do(self._redis.smembers, self.keys("timers"))))

    def read(self, names: Sequence[str], progress: bool = True) -> list[TimerRecord]:
        """Return what there is of each."""
        found = []
        for start in range(0, len(names), CHUNK):
            some = names[start : start + CHUNK]
            pipeline = self._redis.pipeline(transaction=False)
            for name in some:
                pipeline.hgetall(self.keys("timer", name))
                if progress:
                    pipeline.hgetall(self.keys("timer_state", name))
            replies = self._each(pipeline)
            step = 2 if progress else 1
            for number, name in enumerate(some):
                keys = [self.keys(kind, name) for kind in ("timer", "timer_state")[:step]]
                found.append(_record(name, dict(zip(keys, replies[step * number : step * (number + 1)], strict=True))))
        return found

    def note(self, session: str, progress: Iterable[tuple[str, Mapping[str, str | int]]]) -> bool:
        """Store how far timers are; False when the lease of the active controller is not `session`'s."""
        told = list(progress)
        for start in range(0, len(told), CHUNK):
            keys, arguments = [self.keys("controller")], list[Any]([session])
            for name, fields in told[start : start + CHUNK]:
                keys.append(self.keys("timer_state", name))
                arguments += [len(fields), *(part for pair in fields.items() for part in pair)]
            if not self._do(self._redis.eval, _NOTE, len(keys), *keys, *arguments):
                return False
        return True

    def forget(self, names: Iterable[str], until: int) -> None:
        """Drop what is left of timers that are no more, by what was known after `until` changes."""
        gone = list(names)
        for start in range(0, len(gone), CHUNK):
            some = gone[start : start + CHUNK]
            keys = [self.keys("timer_changes"), *(self.keys("timer_state", name) for name in some)]
            self._do(self._redis.eval, _FORGET, len(keys), *keys, until, *some)

    def open(self, refs: Sequence[str]) -> list[bool]:
        """Tell of each step's job whether something of it has not ended."""
        waiting = (State.start, State.standby, State.processing)
        pipeline = self._redis.pipeline(transaction=False)
        for ref in refs:
            pipeline.exists(*(self.keys("record", ref, state.name) for state in waiting))
            pipeline.hget(self.keys("job", parts_of(ref)[1]), ":open")
        replies = self._do(pipeline.execute)
        return [bool(there) or int(count or 0) > 0 for there, count in zip(replies[::2], replies[1::2], strict=True)]


def _record(name: str, replies: Mapping[str, dict[bytes, bytes] | None]) -> TimerRecord:
    """Make a record of what was declared and, if asked for, how far it is. What is no hash is that timer's trouble."""
    parts: list[Kept] = []
    for key, reply in replies.items():
        if reply is None:
            return TimerRecord(name, {}, {}, f"{key} is a key of another kind.")
        try:
            parts.append({field.decode(): value for field, value in reply.items()})
        except UnicodeDecodeError:
            return TimerRecord(name, {}, {}, f"{key} has fields whose names are no text.")
    return TimerRecord(name, parts[0], parts[1] if len(parts) > 1 else {})
