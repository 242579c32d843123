"""What Redis may still forget: the turns it answered and has not yet written.

With `appendfsync everysec` Redis writes its file before it answers, except
while an fsync is under way: then it may put the write off for two seconds. If
it is killed in that time, answered commands are gone, and a replica that is
made master may lag in the same way. So each turn leaves its number in the
store, the writes of recent turns are kept here, and after a reconnect those
beyond the number found are sent once more. They are idempotent.

A turn is dropped from here when Redis says that its buffer is empty, and at
the latest after `KEEP_S`.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

from exesys.turn import Turn

KEEP_S = 4.0
ASK_S = 0.1


class Entry(NamedTuple):
    """One turn that wrote something, and when it was answered."""

    number: int
    turn: Turn
    at: float


class Journal:
    """The recent turns of one router. Times are monotonic seconds."""

    def __init__(self) -> None:
        self.number = 0
        self.settled = 0  # the last turn that wrote something and is kept no more
        self._entries: deque[Entry] = deque()
        self._ask_at = float("-inf")
        self._asked_after = 0

    def next(self) -> int:
        """Return the number of the turn that begins."""
        self.number += 1
        return self.number

    def keep(self, turn: Turn, now: float) -> None:
        """Keep the turn just answered."""
        if turn.writes:
            self._entries.append(Entry(self.number, turn, now))
        while self._entries and now - self._entries[0].at > KEEP_S:
            self._drop()

    def wants_to_know(self, now: float) -> bool:
        """Tell whether to ask Redis now how much it has not written."""
        if not self._entries or now < self._ask_at:
            return False
        self._ask_at = now + ASK_S
        self._asked_after = self._entries[-1].number
        return True

    def told(self, info: bytes) -> None:
        """Take the answer to INFO persistence, which was asked before anything else of its turn."""
        if b"aof_buffer_length:0\r" in info or b"aof_enabled:0" in info:
            while self._entries and self._entries[0].number <= self._asked_after:
                self._drop()

    def _drop(self) -> None:
        self.settled = self._entries.popleft().number

    def after(self, number: int) -> list[Entry]:
        """Return the turns that Redis has forgotten: those beyond `number`."""
        return [entry for entry in self._entries if entry.number > number]
