"""The timers' part of the controller: ticks become commands, and what became of them is stored.

A tick is a command whose job_id is made of the timer's name and the tick, so
that sent twice it runs once, whoever sends it. How far a timer is, is stored
after the router took the command, tick by tick in their order: whatever is
killed in between, the next controller goes on from there.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from exesys import schedule
from exesys.bus.client import Client
from exesys.bus.handle import Handle
from exesys.config import Config
from exesys.errors import BadCommand, ExesysError, NotFound, QueueFull, ResultTimeout, StateError, Unavailable
from exesys.shards import pinned
from exesys.store.timetable import Timetable
from exesys.ticker import Done, Tick, Ticker, read
from exesys.timerconfig import TimerOf

MOST_AGAIN = 10  # timers of the ini that were refused are put again at a time
JUMP_MS = 1000  # wall clock and monotonic clock may differ by so much between two looks
TUNE_S = 2.0
AGAIN_MS = 500  # a tick that found its queue full is sent again after so long
ACK_S = 0.005  # how soon it is looked again whether the router took what was sent
FROM = "timer"
log = logging.getLogger("controller")


@dataclass
class _Sent:
    """A tick that was given out, and what is known of its end."""

    tick: Tick
    at_ms: int
    handle: Handle | None = None
    what: str = ""  # known: run, skipped, missed, refused
    reason: str = ""
    again_ms: int = 0


@dataclass
class _Clock:
    """The wall clock beside the monotonic one, in ms: they part when the wall clock is set."""

    wall_ms: int
    steady_ms: int

    def jump(self, wall_ms: int, steady_ms: int) -> int:
        """Return by how much the wall clock was set since the last look, 0 if it was not."""
        by = (wall_ms - self.wall_ms) - (steady_ms - self.steady_ms)
        self.wall_ms, self.steady_ms = wall_ms, steady_ms
        return by if abs(by) > JUMP_MS else 0


@dataclass
class _State:
    """What is kept while this controller is the active one."""

    ticker: Ticker = field(default_factory=Ticker)
    clock: _Clock | None = None
    changes: int = -1
    refused: dict[str, str] | None = None  # the ini's timers that were not taken, and why; None: not put yet
    sent: dict[str, deque[_Sent]] = field(default_factory=dict)  # by timer, in the order of its ticks


class Timing:
    """Runs the timers, for the controller that is active."""

    def __init__(self, config: Config, client: Client, table: Timetable, session: str) -> None:
        self._config = config
        self._client = client
        self._table = table
        self._session = session
        self._state: _State | None = None

    def retire(self) -> None:
        """This controller is not the active one any more: forget everything."""
        self._state = None

    def wait_s(self, wall_ms: int) -> float:
        """Return how long may pass until the next step."""
        state = self._state
        if state is None:
            return 3600.0
        if state.sent:
            return ACK_S
        wake_ms = state.ticker.wake_ms()
        return 3600.0 if wake_ms is None else max(0.0, (wake_ms - wall_ms) / 1000)

    def step(self, wall_ms: int, steady_ms: int, swept: bool) -> None:
        """Do what is due; `swept` also looks whether timers were changed. Raises Unavailable."""
        state = self._state
        if state is None:
            state = self._state = _State()
        if state.refused is None and self._client.connected:
            state.refused = self._declare()
        elif state.refused and swept:
            self._declare_again(state.refused)
        if swept or state.changes < 0:
            self._look(state, wall_ms)
        jump = state.clock.jump(wall_ms, steady_ms) if state.clock else 0
        state.clock = state.clock or _Clock(wall_ms, steady_ms)
        if jump:
            log.warning("the clock was set %s by %.1f s", "forward" if jump > 0 else "back", abs(jump) / 1000)
            self._send(state, state.ticker.due(wall_ms - jump), wall_ms - jump)
            state.ticker.jumped(jump, wall_ms)
            self._store(state, state.ticker.names())
        self._send(state, state.ticker.due(wall_ms), wall_ms)
        self._settle(state, wall_ms)

    # --- which there are --------------------------------------------------------

    def _declare(self) -> dict[str, str]:
        """Put the timers of the ini, and take away those that left it. Returns those that were refused, and why."""
        for record in self._table.read(self._table.names(), progress=False):
            if record.kept.get("origin") == schedule.INI.encode() and record.name not in self._of_ini():
                self._tune("remove", record.name, {})
        refused: dict[str, str] = {}
        for timer in self._of_ini().values():
            self._put(timer, refused)
        return refused

    def _declare_again(self, refused: dict[str, str]) -> None:
        """Put some of those that were refused: a worker may have brought their function meanwhile."""
        for name in list(refused)[:MOST_AGAIN]:
            told = refused.pop(name)
            self._put(self._of_ini()[name], refused, told)

    def _of_ini(self) -> dict[str, TimerOf]:
        return {timer.name: timer for timer in self._config.timers}

    def _put(self, timer: TimerOf, refused: dict[str, str], told: str = "") -> None:
        reason = self._tune("put", timer.name, timer.fields())
        if reason:
            refused[timer.name] = reason
        if reason and reason != told:
            log.error("the timer %s of the ini: %s", timer.name, reason)
        elif told and not reason:
            log.info("the timer %s of the ini is taken now", timer.name)

    def _tune(self, what: str, name: str, fields: dict[str, Any]) -> str:
        """Return why it was refused, "" if it was not."""
        try:
            self._client.tune("timer", what, name, fields, timeout=TUNE_S)
        except Unavailable:
            raise
        except NotFound:
            return ""  # removed already
        except ExesysError as error:
            return error.message  # its hint may change with each worker that comes
        return ""

    def _look(self, state: _State, wall_ms: int) -> None:
        changes = self._table.changes()
        if changes == state.changes:
            return
        # All of them once, and after Redis has lost some; else those alone that were changed. They may be gone.
        ticker, whole = state.ticker, not 0 <= state.changes <= changes
        names = self._table.changed(0 if whole else state.changes)
        if whole:
            names = sorted({*names, *self._table.names(), *ticker.names()})
        known = [name for name in names if ticker.progress(name) is not None]
        fresh = [name for name in names if ticker.progress(name) is None]
        gone = []
        began = []
        for record in (*self._table.read(known, progress=False), *self._table.read(fresh)):
            if not record.there:
                gone.append(record.name)
                continue
            try:
                timer, progress = read(record)
            except StateError as error:
                log.error("%s", error)
                ticker.drop(record.name)
                continue
            if ticker.put(timer, progress, wall_ms):
                began.append(record.name)
        for name in gone:
            ticker.drop(name)
            state.sent.pop(name, None)
        self._table.forget(gone, changes)
        self._store(state, began)
        state.changes = changes

    # --- ticks ------------------------------------------------------------------

    def _send(self, state: _State, due: list[tuple[Tick, bool]], wall_ms: int) -> None:
        """Send the commands of ticks that are due, but for those that were missed or are to be skipped."""
        busy = self._busy(state, [tick for tick, run in due if run])
        for tick, run in due:
            name = tick.timer.name
            sent = _Sent(tick, wall_ms, what="" if run else "missed")
            if run and tick.timer.overlap == "skip":
                if busy.get(name):
                    sent.what = "skipped"
                busy[name] = True  # and so is the next of this pass
            if not sent.what:
                self._submit(sent, wall_ms)
            state.sent.setdefault(name, deque()).append(sent)

    def _busy(self, state: _State, ticks: list[Tick]) -> dict[str, bool]:
        """Tell of the timers whose ticks must not overlap whether the job before has not ended."""
        names = list(dict.fromkeys(tick.timer.name for tick in ticks if tick.timer.overlap == "skip"))
        busy = {name: bool(state.sent.get(name)) for name in names}
        jobs = {name: progress.job for name in names if (progress := state.ticker.progress(name)) and progress.job}
        asked = [name for name in jobs if not busy[name]]
        if asked:
            still = self._table.open([f"{FROM}:{jobs[name]}" for name in asked])
            busy |= dict(zip(asked, still, strict=True))
        return busy

    def _submit(self, sent: _Sent, wall_ms: int) -> None:
        if self._client.full:  # to wait for room would hold up stops and the lease
            sent.again_ms = wall_ms + AGAIN_MS
            return
        try:
            command = sent.tick.timer.command(self._job_id(sent.tick))
            [sent.handle] = self._client.send(command, notify=False)
        except BadCommand as error:
            sent.what, sent.reason = "refused", error.message

    def _job_id(self, tick: Tick) -> str:
        """Name the job of a tick so that it belongs to our own shard, where its timer is."""
        return pinned(tick.job_id, self._config.bus.shard)

    def _settle(self, state: _State, wall_ms: int) -> None:
        """Store what became of ticks, of each timer in their order."""
        changed = []
        for name, ticks in list(state.sent.items()):
            progress, before, known = state.ticker.progress(name), len(ticks), ""
            while ticks and self._known(ticks[0], wall_ms):
                sent = ticks.popleft()
                tick = sent.tick
                late_ms = max(0, sent.at_ms - tick.due_ms)
                if progress is not None:
                    done = Done(tick.tick_ms, tick.due_ms, late_ms, self._job_id(tick), sent.what)
                    known = progress.reason
                    progress.note(done, tick.fold, sent.reason)
                if sent.reason not in ("", known):  # once, not for each tick
                    job_id = self._job_id(tick)
                    log.warning("the tick %s was not taken: %s", job_id, sent.reason, extra={"job_id": job_id})
            if len(ticks) < before:
                changed.append(name)
            if not ticks:
                del state.sent[name]
        self._store(state, changed)

    def _known(self, sent: _Sent, wall_ms: int) -> bool:
        """Tell whether it is known what became of a tick; one that found its queue full is sent again in its grace."""
        if sent.what:
            return True
        if sent.again_ms:
            if wall_ms >= sent.again_ms:
                sent.again_ms = 0
                self._submit(sent, wall_ms)
            return bool(sent.what)
        assert sent.handle is not None
        try:
            sent.handle.accepted(0)
        except ResultTimeout:
            return False
        except QueueFull as error:
            if wall_ms - sent.tick.due_ms > sent.tick.timer.grace_ms:
                sent.what, sent.reason = "refused", error.message
            else:
                sent.again_ms = wall_ms + AGAIN_MS
            return bool(sent.what)
        except ExesysError as error:
            sent.what, sent.reason = "refused", error.message
            return True
        sent.what = "run"
        return True

    def _store(self, state: _State, names: Any) -> None:
        told = [(name, progress.kept()) for name in names if (progress := state.ticker.progress(name)) is not None]
        if told and not self._table.note(self._session, told):
            raise Unavailable("the lease of the active controller is another's.")
