"""What Redis may still forget: the turns it answered and has not yet written, or its replicas not yet got.

With `appendfsync everysec` Redis writes its file before it answers, except
while an fsync is under way: then it may put the write off for two seconds. If
it is killed in that time, answered commands are gone; and so they are when a
replica is made master that had not got them. So each turn leaves its number in
the store, the writes of recent turns are kept here, and after a reconnect those
beyond the number found are sent once more. They are idempotent.

A turn is dropped from here when Redis says that its buffer is empty and that
all its replicas have got what it was sent, and at the latest after `KEEP_S`.
If then an older history comes, `settled` tells that some of it cannot be sent again.
"""

from __future__ import annotations

import re
from collections import deque
from typing import NamedTuple

from exesys.turn import Turn

KEEP_S = 4.0
ASK_S = 0.1
_OFFSET = re.compile(rb"^master_repl_offset:(\d+)", re.MULTILINE)
_REPLICA = re.compile(rb"^slave\d+:.*state=online,offset=(\d+)", re.MULTILINE)


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
        self._written = 0  # the last turn known to be in the file
        self._replicated = 0  # the last turn that all replicas have
        self._offsets: deque[tuple[int, int]] = deque()  # a turn, and how far Redis' history was after it

    def next(self) -> int:
        """Return the number of the turn that begins."""
        self.number += 1
        return self.number

    def keep(self, number: int, turn: Turn, now: float) -> None:
        """Keep the turn of this number, just answered."""
        if turn.writes:
            self._entries.append(Entry(number, turn, now))
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
        """Take the answer to INFO persistence replication, which was asked before anything else of its turn."""
        if b"aof_buffer_length:0\r" in info or b"aof_enabled:0" in info:
            self._written = self._asked_after
        offset, replicas = _OFFSET.search(info), [int(each) for each in _REPLICA.findall(info)]
        if offset is None or not replicas:
            self._replicated = self._asked_after
        else:
            self._offsets.append((self._asked_after, int(offset[1])))
            while self._offsets and self._offsets[0][1] <= min(replicas):
                self._replicated, _ = self._offsets.popleft()
        while self._entries and self._entries[0].number <= min(self._written, self._replicated):
            self._drop()

    def _drop(self) -> None:
        self.settled = self._entries.popleft().number

    def after(self, number: int) -> list[Entry]:
        """Return the turns that Redis has forgotten: those beyond `number`."""
        return [entry for entry in self._entries if entry.number > number]

    def reconnected(self) -> None:
        """Another server may answer from now on: what was known of the last one does not hold for it."""
        self._offsets.clear()
        self._written = self._replicated = 0
