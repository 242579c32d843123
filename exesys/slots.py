"""Slots: the processes that run functions, as their daemon sees them.

Each slot is a fresh interpreter in a process group of its own; it dies with
the daemon (PR_SET_PDEATHSIG). Jobs go to it in order and the first one not
yet reported is the one that runs, so its start, its time limit and its crash
are known without asking. The daemon learns of a death at once (a pidfd in its
poll), then reads what the slot still said, takes back what it had not begun,
and reports the rest as crashed.
"""

from __future__ import annotations

import contextlib
import heapq
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, NamedTuple

from exesys import codec
from exesys.bus.messages import Added, Job, Note, Outcome, Report
from exesys.catalogue import Catalogue
from exesys.channel import Channel, pair
from exesys.config import Config
from exesys.environment import open_part, secret_part
from exesys.process import how_it_ended, resident_bytes

# So long may a job run before those behind it are taken back, when another slot is idle and when none is. So often is
# looked after it, too.
HOARD_S, PATIENCE_S = 0.005, 0.020
STUCK_S = 0.25  # all slots run for so long already: what waits for them is for another worker
MEMORY_CHECK_S = 0.5


class Phase(Enum):
    importing = auto()
    serving = auto()
    leaving = auto()  # told to go once its jobs are done


class Finished(NamedTuple):
    report: Report
    run_ms: float
    cut_short: str = ""  # why its slot died over it
    job: Job | None = None  # that was


class Ready(NamedTuple):
    catalogue: Catalogue


class Broken(NamedTuple):
    """A module killed or hung its slot at import: it is left out from now on."""

    module: str
    reason: str


Happening = Finished | Ready | Broken | Note


@dataclass
class Slot:
    """One process. `jobs[0]` runs, the others wait in its line."""

    number: int
    process: subprocess.Popen[bytes]
    channel: Channel
    far_end: Channel
    pidfd: int
    phase: Phase = Phase.importing
    module: str = ""  # being imported
    outdated: bool = False  # to be renewed as soon as it has imported
    jobs: deque[Job] = field(default_factory=deque)
    since: float = 0.0  # when the running job (or the import) began
    done: int = 0
    verdict: tuple[str, str] | None = None  # why it is being killed: type, message
    doomed: Job | None = None  # the job the verdict is about
    kill_at: float = float("inf")
    told_to_quit: bool = False  # by a message that is on its line, or was read


class SlotPool:
    """All slots of a worker daemon."""

    def __init__(self, config: Config, now: float) -> None:
        self.config = config
        self.slots: list[Slot] = []
        self.skip: dict[str, str] = {}  # module -> why it is not imported
        self._memory_at = now
        self._failed_starts = 0
        self._start_at = now

    # --- starting and ending ---------------------------------------------

    def fill(self, now: float) -> list[Slot]:
        """Start the slots that are missing. Returns the new ones, to be polled."""
        if len(self.slots) == self.config.worker.slots:
            return []
        started = []
        taken = {slot.number for slot in self.slots}
        for number in range(self.config.worker.slots):
            if number not in taken and now >= self._start_at:
                started.append(self._start(number, now))
        self.slots += started
        return started

    def _start(self, number: int, now: float) -> Slot:
        near, far = pair()
        arguments = ["--fd", str(far.fileno()), "--parent", str(os.getpid())]
        for module, reason in self.skip.items():
            arguments += ["--skip", module, reason]
        process = subprocess.Popen(
            [sys.executable, "-m", "exesys.daemons.slot", *arguments],
            pass_fds=[far.fileno()],
            env=open_part(),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        Channel(near).send(["settings", secret_part(self.config)], wait=False)
        return Slot(number, process, Channel(near), Channel(far), os.pidfd_open(process.pid), since=now)

    def reap(self, slot: Slot, now: float) -> tuple[list[Happening], list[Job]]:
        """A slot died. Returns what happened, and the jobs it had not begun."""
        happenings = self.read(slot, now)
        unbegun = self.take_back(slot)
        status = slot.process.wait()
        how = how_it_ended(status)
        # At most one job was begun and not reported.
        for job in slot.jobs:
            outcome, type_, text = _judged(slot, job, how)
            body = codec.pack({"type": type_, "message": text, "traceback": ""})
            run_ms = (now - slot.since) * 1000
            ended_ms = time.time_ns() // 1_000_000
            report = Report(job.ref, job.attempt, outcome, body, "", ended_ms - int(run_ms), ended_ms)
            happenings.append(Finished(report, run_ms, text, job))
        if slot.phase is Phase.importing:
            happenings += self._died_importing(slot, how, now)
        slot.channel.close()
        slot.far_end.close()
        os.close(slot.pidfd)
        self.slots.remove(slot)
        return happenings, unbegun

    def _died_importing(self, slot: Slot, how: str, now: float) -> list[Happening]:
        reason = slot.verdict[1] if slot.verdict else f"the process that imported it was {how}"
        if slot.module:
            self.skip[slot.module] = reason
            return [Broken(slot.module, reason)]
        self._failed_starts += 1
        self._start_at = now + min(0.1 * 2**self._failed_starts, 10.0)
        return []

    def retire(self, slot: Slot) -> None:
        """Let a slot end when its jobs are done; `fill` replaces it."""
        if slot.phase is Phase.importing:
            slot.outdated = True
        elif slot.phase is Phase.serving:
            slot.phase = Phase.leaving
            self._tell_to_quit(slot)

    def _tell_to_quit(self, slot: Slot) -> None:
        """Put it behind the jobs on the slot's line; when that is full it is tried again after the next job."""
        slot.told_to_quit = slot.channel.send(["quit"], wait=False)

    def kill(self, slot: Slot, verdict: tuple[str, str], now: float) -> None:
        """TERM the slot's process group; KILL comes after the grace period."""
        if slot.verdict is None:
            slot.verdict = verdict
            slot.doomed = slot.jobs[0] if slot.jobs else None
            slot.kill_at = now + self.config.worker.kill_grace_s
            _signal(slot, signal.SIGTERM)

    # --- work -------------------------------------------------------------

    def _patience_s(self) -> float:
        """Tell how long a job may run before those behind it go elsewhere, which is no sooner while all are busy."""
        idle = any(not slot.jobs and slot.phase is Phase.serving for slot in self.slots)
        return HOARD_S if idle else PATIENCE_S

    def stuck(self, now: float) -> bool:
        """Tell whether each slot that serves runs something that takes long."""
        serving = [slot for slot in self.slots if slot.phase is Phase.serving and slot.verdict is None]
        return bool(serving) and all(slot.jobs and now - slot.since > STUCK_S for slot in serving)

    def in_turn(self, depth: int, now: float) -> Iterator[Slot]:
        """Say to whom the next job is to be given, and the one after it: always to the slot that has the fewest.

        So idle ones come first. A slot may have `depth` jobs, and nothing behind
        one that runs for long.
        """
        patience_s = self._patience_s()
        rooms = [(slot, self._room(slot, depth, patience_s, now)) for slot in self.slots]
        turns = [(len(slot.jobs), slot.number, room, slot) for slot, room in rooms if len(slot.jobs) < room]
        heapq.heapify(turns)
        while turns:
            has, number, room, slot = turns[0]
            yield slot
            if has + 1 < room:
                heapq.heapreplace(turns, (has + 1, number, room, slot))
            else:
                heapq.heappop(turns)

    def _room(self, slot: Slot, depth: int, patience_s: float, now: float) -> int:
        if slot.phase is not Phase.serving or slot.verdict is not None:
            return 0
        long = bool(slot.jobs) and now - slot.since > patience_s
        return min(1 if long else depth, self.config.worker.max_jobs - slot.done)

    def give(self, slot: Slot, job: Job, now: float) -> bool:
        """Put a job on a slot's line. False when the line is full."""
        if not slot.channel.send(["job", job.ref, job.attempt, job.to, job.cmd, job.data, job.traceparent], wait=False):
            return False
        if not slot.jobs:
            slot.since = now
        slot.jobs.append(job)
        return True

    def take_back(self, slot: Slot) -> list[Job]:
        """Return the jobs on the line that the slot has not begun, oldest first."""
        refs = []
        while (message := slot.far_end.receive(wait=False)) is not None:
            if message[0] == "job":
                refs.append((message[1], message[2]))
        waiting = set(refs)
        unbegun = [job for job in slot.jobs if (job.ref, job.attempt) in waiting]
        slot.jobs = deque(job for job in slot.jobs if (job.ref, job.attempt) not in waiting)
        if slot.phase is Phase.leaving:
            self._tell_to_quit(slot)
        return unbegun

    def cancel(self, attempts: Collection[tuple[str, int]], now: float) -> tuple[list[Happening], list[Job]]:
        """Rid the slots of these jobs. Returns what happened meanwhile, and the jobs taken back from their lines."""
        happenings: list[Happening] = []
        unbegun: list[Job] = []
        for slot in self.slots:
            if not _has_one_of(attempts, slot):
                continue
            # In this order: with an empty line the slot begins nothing more, so after
            # it is read it has at most the one job that TERM is meant for.
            unbegun += self.take_back(slot)
            happenings += self.read(slot, now)
            if _has_one_of(attempts, slot):
                self.kill(slot, CANCELLED, now)
        return happenings, unbegun

    def read(self, slot: Slot, now: float) -> list[Happening]:
        """Read what a slot has to say."""
        happenings: list[Happening] = []
        while (message := slot.channel.receive(wait=False)) is not None:
            kind, *fields = message
            if kind == "done":
                happenings += self._done(slot, fields, now)
            elif kind == "note":
                happenings.append(Note(*fields))
            elif kind == "import":
                slot.module, slot.since = fields[0], now
            elif kind == "ready":
                slot.phase = Phase.serving
                self._failed_starts = 0
                if slot.outdated:
                    self.retire(slot)
                    continue
                happenings.append(Ready(Catalogue.from_wire(codec.unpack(fields[0]))))
        return happenings

    def _done(self, slot: Slot, fields: Sequence[Any], now: float) -> list[Happening]:
        *plain, added, run_ms = fields
        report = Report._make([*plain, tuple([Added._make(step) for step in added])])
        slot.since = now
        slot.done += 1
        if slot.jobs and (slot.jobs[0].ref, slot.jobs[0].attempt) == (report.ref, report.attempt):
            slot.jobs.popleft()
        if slot.done >= self.config.worker.max_jobs:
            self.retire(slot)
        if slot.phase is Phase.leaving and not slot.told_to_quit:
            self._tell_to_quit(slot)
        return [Finished(report, run_ms)]

    # --- time -------------------------------------------------------------

    def tick(self, now: float) -> list[tuple[Slot, list[Job]]]:
        """Keep the limits of time and memory. Returns jobs taken back from behind long ones."""
        freed = []
        patience_s = self._patience_s()
        for slot in self.slots:
            if slot.verdict is not None:
                if now >= slot.kill_at:
                    _signal(slot, signal.SIGKILL)
                    slot.kill_at = now + self.config.worker.kill_grace_s
            elif slot.phase is Phase.importing:
                limit_s = self.config.worker.import_timeout_s
                if now - slot.since > limit_s:
                    self.kill(slot, ("Timeout", f"its import took longer than {limit_s:g} s"), now)
            elif slot.jobs:
                limit_s = slot.jobs[0].timeout_s
                if now - slot.since > limit_s:
                    self.kill(slot, ("Timeout", f"it ran longer than its limit of {limit_s:g} s"), now)
                if len(slot.jobs) > 1 and now - slot.since > patience_s:
                    freed.append((slot, self.take_back(slot)))
        if now - self._memory_at > MEMORY_CHECK_S:
            self._memory_at = now
            self._check_memory(now)
        return freed

    def _check_memory(self, now: float) -> None:
        limit = self.config.worker.memory_bytes
        for slot in self.slots:
            if slot.phase is Phase.serving and resident_bytes(slot.process.pid) > limit:
                if slot.jobs:
                    self.kill(slot, ("MemoryLimit", f"it used more than {limit >> 20} MB of memory"), now)
                else:
                    self.retire(slot)

    def wake_in_s(self, now: float) -> float:
        """Return how long the loop may sleep."""
        wait = MEMORY_CHECK_S if any(slot.jobs for slot in self.slots) else 5.0
        for slot in self.slots:
            if slot.verdict is not None:
                wait = min(wait, slot.kill_at - now)
            elif slot.jobs:
                wait = min(wait, slot.since + slot.jobs[0].timeout_s - now)
                if len(slot.jobs) > 1:
                    wait = min(wait, HOARD_S)
        if len(self.slots) < self.config.worker.slots:
            wait = min(wait, self._start_at - now)
        return max(wait, 0.0)


GIVEN_BACK = ("Returned", "the worker is ending")
CANCELLED = ("Cancelled", "it was cancelled")


def _has_one_of(attempts: Collection[tuple[str, int]], slot: Slot) -> bool:
    return any((job.ref, job.attempt) in attempts for job in slot.jobs)


def _judged(slot: Slot, job: Job, how: str) -> tuple[Outcome, str, str]:
    """Say of a job that its slot died over: the outcome, the type of the error, and its message."""
    if slot.verdict is None:
        return Outcome.crashed, "Crashed", f"the function's process was {how}"
    if slot.verdict == GIVEN_BACK:
        return Outcome.returned, *GIVEN_BACK
    if job is slot.doomed:
        return Outcome.failed, *slot.verdict
    # It began just before the signal for another, and is not to blame.
    return Outcome.returned, "Returned", "its slot was ended for the job before it"


def _signal(slot: Slot, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(slot.process.pid, number)
