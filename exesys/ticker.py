"""Which ticks of which timers are due, and what is to become of them. Pure: the clock is given.

Ticks are planned by the wall clock. Whoever owns a Ticker compares that with
the monotonic clock and tells of a jump: what was skipped by one set forward is
not made up for, and after one set back timers that go by real time go on at
their pace, with another `fold` in the names of their jobs; those at fixed
times do not run again what they ran, as Debian's cron has it.

A tick that is late by no more than the timer's grace is run as if on time.
What is later is a misfire, and the timer says what becomes of it.
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice, takewhile
from typing import Any, NamedTuple

from exesys.schedule import MOMENTS_MS, MOST_MISFIRED, Timer, load, spoilt
from exesys.store.timetable import TimerRecord

MOST_AT_ONCE = 1000  # ticks of one timer within its grace
RECENT = 5
SET_BACK_MS = 1000  # a last tick that lies further ahead than this is one of before the clock was set back
_COUNTS = {"run": "ran", "skipped": "skipped", "missed": "missed", "refused": "refused"}  # what became -> where counted
MOST_SET_BACK_MS = 3 * 3_600_000  # by more, and fixed times come again: the clock was wrong before (Debian's cron)


class Tick(NamedTuple):
    """A moment of a timer; `due_ms` is later by the jitter."""

    timer: Timer
    tick_ms: int
    due_ms: int
    fold: int

    @property
    def job_id(self) -> str:
        return self.timer.job_id(self.tick_ms, self.fold)


class Done(NamedTuple):
    """What became of a tick: run, skipped (its predecessor ran still), missed, refused."""

    tick_ms: int
    due_ms: int
    late_ms: int
    job_id: str
    what: str

    @classmethod
    def load(cls, given: Any) -> Done:
        """Read what is stored of one. Raises ValueError or TypeError when it was spoilt."""
        done = cls(*given)
        moments = (done.tick_ms, done.due_ms, done.late_ms)
        if done.what not in _COUNTS or not all(isinstance(each, int) and each in MOMENTS_MS for each in moments):
            raise ValueError(f"its last ticks have {given!r:.80}.")
        return done


@dataclass
class Progress:
    """How far a timer is. What is stored of it, in text."""

    last_ms: int | None = None  # the tick it came to last
    fold: int = 0
    ran: int = 0
    skipped: int = 0
    missed: int = 0
    refused: int = 0
    job: str = ""  # of the tick that was run last
    reason: str = ""  # why the last was refused
    times: str = ""  # of the definition that this is the progress of
    recent: list[Done] = field(default_factory=list)

    @classmethod
    def load(cls, name: str, kept: Mapping[str, bytes]) -> Progress:
        """Read what is stored of a timer. Raises StateError when it was spoilt."""
        try:
            text = {key: value.decode() for key, value in kept.items()}
            counts: dict[str, Any] = {key: int(text.get(key, 0)) for key in ("fold", *_COUNTS.values())}
            last_ms = int(text["last_ms"]) if "last_ms" in text else None
            recent = [Done.load(each) for each in json.loads(text.get("recent", "[]"))]
        except (ValueError, TypeError, RecursionError) as error:
            raise spoilt(name, error) from error
        if min(counts.values()) < 0 or (last_ms is not None and last_ms not in MOMENTS_MS):
            raise spoilt(name, f"it has counts {counts}, and its last tick is {last_ms}.")
        words: dict[str, Any] = {key: text.get(key, "") for key in ("job", "reason", "times")}
        return cls(last_ms, **counts, **words, recent=recent)

    def kept(self) -> dict[str, str | int]:
        """Spell what is to be stored."""
        fields: dict[str, str | int] = {key: getattr(self, key) for key in ("fold", *_COUNTS.values())}
        if self.last_ms is not None:
            fields["last_ms"] = self.last_ms
        return fields | {
            **{"job": self.job, "reason": self.reason, "times": self.times},
            "recent": json.dumps(self.recent),
        }

    def ahead(self, timer: Timer, now_ms: int) -> bool:
        """Tell whether its last tick is one of before the clock was set back: the timer goes on from now."""
        return (self.last_ms or 0) > now_ms + (SET_BACK_MS if timer.wild else MOST_SET_BACK_MS)

    def note(self, done: Done, fold: int, reason: str = "") -> None:
        """Take note of what became of a tick; of those of one timer in their order."""
        if fold == self.fold:  # else the clock was set back since it was given out
            self.last_ms = max(self.last_ms or 0, done.tick_ms)
        count = _COUNTS[done.what]
        setattr(self, count, getattr(self, count) + 1)
        if done.what == "run":
            self.job = done.job_id
        self.reason = reason or ("" if done.what == "run" else self.reason)
        self.recent = [done, *self.recent][:RECENT]


def read(record: TimerRecord) -> tuple[Timer, Progress]:
    """Read what the store has of a timer. Raises StateError when somebody spoilt it."""
    if record.trouble:
        raise spoilt(record.name, record.trouble)
    return load(record.name, record.kept), Progress.load(record.name, record.progress)


@dataclass
class _Entry:
    timer: Timer
    progress: Progress
    planned_ms: int  # ticks up to here were given out, or are past
    fold: int
    given_ms: int  # the last that was given out
    number: int = 0  # of its place in the heap that counts


class Ticker:
    """All timers, the next tick of each in a heap."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._heap: list[tuple[int, str, int]] = []  # due, name, number
        self._number = 0

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> Iterable[str]:
        return self._entries.keys()

    def progress(self, name: str) -> Progress | None:
        """Return how far a timer is."""
        entry = self._entries.get(name)
        return entry.progress if entry else None

    def put(self, timer: Timer, progress: Progress | None, now_ms: int) -> bool:
        """Take in a timer that is new or was changed; `progress` is that of an earlier life of the controller.

        Tells whether its progress is to be stored: then the next controller knows since when it ticks.
        """
        old, new = self._entries.get(timer.name), False
        if old is not None and old.timer == timer:
            return False
        if old is not None:
            progress, planned, fold = old.progress, old.planned_ms, old.fold
        else:
            progress = progress or Progress()
            new = progress.last_ms is None
            progress.last_ms = planned = now_ms if progress.last_ms is None else progress.last_ms
            if progress.ahead(timer, now_ms):
                planned = now_ms  # the clock was set back while no controller looked
                progress.fold += 1
            fold = progress.fold
        if progress.times not in ("", timer.times):
            progress.last_ms = planned = max(planned, now_ms)  # nothing is made up for from before the change
            new = True
        progress.times = timer.times
        given = old.given_ms if old is not None else progress.recent[0].tick_ms if progress.recent else 0
        self._entries[timer.name] = entry = _Entry(timer, progress, planned, fold, given)
        self._plan(entry)
        return new

    def drop(self, name: str) -> None:
        """Forget a timer."""
        self._entries.pop(name, None)

    def wake_ms(self) -> int | None:
        """Return when the next tick is due; None when none is."""
        while self._heap:
            due_ms, name, number = self._heap[0]
            entry = self._entries.get(name)
            if entry is not None and entry.number == number:
                return due_ms
            heapq.heappop(self._heap)
        return None

    def due(self, now_ms: int) -> list[tuple[Tick, bool]]:
        """Give out the ticks that are due, and whether each is to be run; one that is not was missed."""
        found: list[tuple[Tick, bool]] = []
        while (wake_ms := self.wake_ms()) is not None and wake_ms <= now_ms:
            entry = self._entries[heapq.heappop(self._heap)[1]]
            found += self._due(entry, now_ms)
            self._plan(entry)
        return found

    def _due(self, entry: _Entry, now_ms: int) -> list[tuple[Tick, bool]]:
        timer, after_ms = entry.timer, entry.planned_ms
        in_time_ms = max(now_ms - timer.grace_ms - timer.jitter_ms, after_ms)
        late = timer.between(after_ms, in_time_ms - 1, MOST_MISFIRED) if in_time_ms > after_ms + 1 else []
        ticks = [(tick, timer.misfire == "all" or (timer.misfire == "once" and tick == late[-1])) for tick in late]
        # More than these come with the next look.
        coming = islice(timer.after(max(in_time_ms - 1, after_ms)), MOST_AT_ONCE)
        ticks += [(tick, True) for tick in takewhile(lambda tick: tick <= now_ms, coming)]
        given = []
        for tick_ms, run in ticks:
            due_ms = tick_ms + timer.delay_ms(tick_ms)
            if due_ms > now_ms:
                break  # the jitter puts it off
            given.append((Tick(timer, tick_ms, due_ms, entry.fold), run))
            entry.planned_ms = entry.given_ms = tick_ms
        return given

    def _plan(self, entry: _Entry) -> None:
        """Put a timer's next tick into the heap."""
        tick = None if entry.timer.paused else entry.timer.next(entry.planned_ms)
        self._number += 1
        entry.number = self._number
        if tick is not None:
            heapq.heappush(self._heap, (tick + entry.timer.delay_ms(tick), entry.timer.name, self._number))

    def jumped(self, by_ms: int, now_ms: int) -> None:
        """The wall clock was set forward, or back if negative, by so much; it shows `now_ms`.

        What was due before that is to be asked for first.
        """
        for entry in self._entries.values():
            timer = entry.timer
            if by_ms < 0 and not timer.wild and by_ms >= -MOST_SET_BACK_MS:
                # A fixed time that came does not come again; one that was skipped before does.
                entry.planned_ms = max(now_ms, entry.given_ms)
                entry.progress.last_ms = entry.planned_ms
                self._plan(entry)
                continue
            if by_ms < 0:
                entry.fold += 1
                entry.progress.fold = entry.fold
            entry.planned_ms = self._on_pace(timer, now_ms - by_ms, by_ms, now_ms) if timer.every_ms else now_ms
            entry.progress.last_ms = entry.planned_ms
            self._plan(entry)

    def _on_pace(self, timer: Timer, before_ms: int, by_ms: int, now_ms: int) -> int:
        """Return the moment behind which the next tick is the nearest to what was next before the jump."""
        upcoming = timer.next(before_ms)
        nearest = timer.nearest(upcoming + by_ms) if upcoming is not None else None
        return now_ms if nearest is None else max(nearest - 1, now_ms)
