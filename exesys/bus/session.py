"""The worker's side of the conversation. Pure: events and `now` in, messages out.

A session lives from HELLO to BYE. It keeps each job it was given until the
router has acknowledged its result, resends what was not, answers a repeated
JOB by ignoring it, and tells in every heartbeat what it holds and how much
more it could. Liveness is a round trip: without HB_ACK for a lease the
sockets are built anew, and the router, perhaps a new one, is greeted again.

What is cancelled is forgotten at once, unless a slot has it: then it is
unwanted, is told no more, and takes a slot's credit until the slot is rid of
it; whatever the slot still reports of it is dropped.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from exesys.bus import messages as m

RESEND_S = 1.0
HELLO_AGAIN_S = 1.0
SHORT_MS = 10.0
AHEAD_MS = 20.0  # so much work a slot may have at hand behind the job that runs
MOST_PRECISE_MS = 0.001
AHEAD_BYTES = 2 << 20  # so much data and results a slot may have at hand, about
# Between heartbeats that tell of another credit. What is in two of them and not with the router counts there as held
# in error; so the acknowledgement of a result must have the time to come between the two.
TELL_AGAIN_S = 0.05
ENOUGH_MEASURED = 20
FORGET = 0.05  # weight of the newest run time in the mean
MOST_RESULT_BYTES = 8 << 20  # in one message, or one report alone: a frame has its limit
STEP_BYTES = 300  # the names and options of an added step, roughly
Attempt = tuple[str, int]


@dataclass
class Unacked:
    report: m.Report
    sent_at: float


@dataclass
class WorkerSession:
    """One worker daemon's conversation with the router.

    `info` goes into HELLO; `slots` run at once and `prefetch` more are asked
    for while jobs are measured to be short.
    """

    session: str
    info: dict[str, Any]
    slots: int
    prefetch: int
    epoch: int = 0
    welcome: m.Welcome | None = None
    lost: bool = False  # the router gave this session up
    draining: bool = False
    queue: deque[m.Job] = field(default_factory=deque)  # not yet with a slot
    _queued: set[Attempt] = field(default_factory=set)
    _running: dict[Attempt, m.Job] = field(default_factory=dict)
    _unwanted: set[Attempt] = field(default_factory=set)  # cancelled, and still with slots
    _unacked: dict[Attempt, Unacked] = field(default_factory=dict)
    _unsent: dict[Attempt, m.Report] = field(default_factory=dict)  # ended, to be sent, or sent again
    _notes: dict[Attempt, m.Note] = field(default_factory=dict)
    _untold: set[Attempt] = field(default_factory=set)  # notes no heartbeat carried yet
    _hello_at: float = float("-inf")
    _beat_at: float = float("-inf")
    _heard_at: float = float("-inf")
    _resend_at: float = float("-inf")
    _told: int = -1  # the capacity in the last heartbeat
    _mean_ms: float = SHORT_MS
    _measured: int = 0
    _mean_bytes: float = 1.0  # of a job's data and result
    _ahead: int = 0  # jobs that a slot may have behind the one that runs

    @property
    def heartbeat_s(self) -> float:
        return self.welcome.heartbeat_s if self.welcome else HELLO_AGAIN_S

    @property
    def depth(self) -> int:
        """How many jobs one slot may have at hand."""
        return 1 + self._ahead

    @property
    def capacity(self) -> int:
        """How many jobs this worker may hold in all."""
        return 0 if self.draining else self._useful_slots * self.depth

    @property
    def _useful_slots(self) -> int:
        return self.slots - len(self._unwanted)

    @property
    def held(self) -> tuple[m.Held, ...]:
        """The attempts that the router may count on: they will run, or be reported."""
        waiting = [m.Held(job.ref, job.attempt) for job in self.queue]
        return (*waiting, *(m.Held(*attempt) for attempt in (*self._running, *self._unacked, *self._unsent)))

    @property
    def idle(self) -> bool:
        """Whether nothing is held: no job, no result that waits for its ack, nothing a slot has to be rid of."""
        return not (self.queue or self._running or self._unwanted or self._unacked or self._unsent)

    @property
    def started(self) -> int:
        """How many jobs are with slots."""
        return len(self._running)

    # --- in ---------------------------------------------------------------

    def greeted(self, welcome: m.Welcome, now: float) -> None:
        """WELCOME came: results that the router may not have go out again."""
        self.welcome = welcome
        self.epoch = welcome.epoch
        self._heard_at = now
        self._beat_at = float("-inf")
        for unacked in self._unacked.values():
            unacked.sent_at = float("-inf")
        self._resend_at = float("-inf")

    def heard(self, ack: m.HeartbeatAck, now: float) -> None:
        self._heard_at = now

    def refused(self, error: m.Error) -> None:
        """ERROR came: greet again, or end when this session was given up."""
        if error.code == "session_lost":
            self.lost = True
        elif error.code == "unknown_session":
            self._hello_at = float("-inf")
            self.welcome = None

    def given(self, jobs: Iterable[m.Job]) -> None:
        """JOB came. What is held already is not taken twice."""
        for job in jobs:
            attempt = (job.ref, job.attempt)
            if self._has(attempt):
                continue
            if self.draining:
                self._give_back(job)
            else:
                self._queued.add(attempt)
                self.queue.append(job)

    def _has(self, attempt: Attempt) -> bool:
        here = attempt in self._queued or attempt in self._running or attempt in self._unwanted
        return here or attempt in self._unsent or attempt in self._unacked

    def begin(self) -> m.Job:
        """Hand the next job to a slot. Raises IndexError when none waits."""
        job = self.queue.popleft()
        self._queued.discard((job.ref, job.attempt))
        self._running[job.ref, job.attempt] = job
        return job

    def unbegin(self, jobs: Iterable[m.Job]) -> None:
        """Take jobs back from a slot that has not started them, oldest first."""
        for job in reversed(list(jobs)):
            attempt = (job.ref, job.attempt)
            if attempt in self._unwanted:
                self._unwanted.discard(attempt)
                continue
            del self._running[attempt]
            if self.draining:
                self._give_back(job)
            else:
                self._queued.add(attempt)
                self.queue.appendleft(job)

    def stuck(self) -> None:
        """All slots run something that takes long: give back what waits here, for others may be idle.

        Nothing more is asked for ahead, and that is told first: else it would come back.
        """
        self._mean_ms = max(self._mean_ms, 2 * AHEAD_MS)
        self._ahead = 0
        if self._told == self.capacity:
            self._give_back_all()

    def cancelled(self, message: m.Cancel) -> set[Attempt]:
        """CANCEL came: drop what has not begun. Returns what is with slots, to be ended there.

        What is not here, or has ended, is left alone: a result on its way is
        stale to the router, and acknowledged as any other.
        """
        named = {(held.ref, held.attempt) for held in message.attempts}
        waiting = named & self._queued
        if waiting:
            self._queued -= waiting
            self.queue = deque(job for job in self.queue if (job.ref, job.attempt) not in waiting)
        with_slots = named & self._running.keys()
        for attempt in with_slots:
            del self._running[attempt]
            self._notes.pop(attempt, None)
            self._untold.discard(attempt)
        self._unwanted |= with_slots
        return with_slots

    def ended(self, report: m.Report, run_ms: float) -> bool:
        """A slot finished a job, or died over it. Returns whether that is to be reported."""
        attempt = (report.ref, report.attempt)
        if attempt in self._unwanted:
            self._unwanted.discard(attempt)
            return False
        job = self._running.pop(attempt, None)
        note = self._notes.pop(attempt, None)
        self._untold.discard(attempt)
        if note is not None and not report.log:
            report = report._replace(log=note.log)
        self._unsent[attempt] = report
        self._measured += 1
        # A long job ends the prefetch at once, a short one brings it back slowly.
        weight = 1.0 if run_ms > 10 * SHORT_MS else FORGET
        self._mean_ms += weight * (run_ms - self._mean_ms)
        size = len(report.body) + (len(job.data) if job is not None else 0)
        weight = 1.0 if size > 10 * self._mean_bytes else FORGET
        self._mean_bytes += weight * (size - self._mean_bytes)
        self._look_ahead()
        return True

    def _look_ahead(self) -> None:
        """Ask for as many jobs ahead as are work for `AHEAD_MS`, and have no more data than `AHEAD_BYTES`.

        As each change is told to the router, only when that is quite another number.
        """
        if self._measured < ENOUGH_MEASURED:
            return
        by_time, by_size = AHEAD_MS / max(self._mean_ms, MOST_PRECISE_MS), AHEAD_BYTES / max(self._mean_bytes, 1.0)
        ahead = min(self.prefetch, int(min(by_time, by_size)))
        if ahead >= 2 * self._ahead or ahead < self._ahead / 2 or ahead == self.prefetch:
            self._ahead = ahead

    def noted(self, note: m.Note) -> None:
        """A running job told its progress or its log so far."""
        attempt = (note.ref, note.attempt)
        if attempt in self._running:
            self._notes[attempt] = note
            self._untold.add(attempt)

    def acked(self, ack: m.ResultAck) -> None:
        for held in ack.acks:
            self._unacked.pop((held.ref, held.attempt), None)
            self._unsent.pop((held.ref, held.attempt), None)

    def drain(self) -> list[m.Message]:
        """Take no more: give back what was not started."""
        self.draining = True
        self._give_back_all()
        self._beat_at = float("-inf")
        return [m.Drain(self.session)]

    def _give_back_all(self) -> None:
        self._queued.clear()
        while self.queue:
            self._give_back(self.queue.popleft())

    def _give_back(self, job: m.Job) -> None:
        """Report a job as not started."""
        self._unsent[job.ref, job.attempt] = m.Report(job.ref, job.attempt, m.Outcome.returned, b"", "", 0, 0)

    # --- out --------------------------------------------------------------

    def reports(self, now: float) -> m.Result | None:
        """Return the results to push now, new ones and those unanswered for long; the rest comes with the next call."""
        if self.welcome is None:
            return None
        if now >= self._resend_at:
            self._resend_at = now + RESEND_S / 2
            late = [attempt for attempt, unacked in self._unacked.items() if now - unacked.sent_at >= RESEND_S]
            for attempt in late:
                self._unsent[attempt] = self._unacked.pop(attempt).report
        due: list[m.Report] = []
        room = MOST_RESULT_BYTES
        while self._unsent and room > 0:
            attempt = next(iter(self._unsent))
            report = self._unsent.pop(attempt)
            room -= _size(report)
            due.append(report)
            self._unacked[attempt] = Unacked(report, now)
        return m.Result(self.session, tuple(due)) if due else None

    def beats(self, now: float) -> list[m.Message]:
        """Return the HELLO or heartbeat that is due."""
        if self.welcome is None:
            if now - self._hello_at < HELLO_AGAIN_S:
                return []
            self._hello_at = now
            return [m.Hello(m.VERSION, "worker", self.session, "", self.info)]
        if now < self._beat_due:
            return []
        self._beat_at = now
        self._told = self.capacity
        notes = tuple(self._notes[attempt] for attempt in self._untold)
        self._untold.clear()
        return [m.Heartbeat(self.session, self.epoch, self._useful_slots, self.capacity, self.held, notes)]

    def silent(self, now: float) -> bool:
        """Whether the router was not heard for a lease: time to build the sockets anew."""
        return self.welcome is not None and now - self._heard_at > self.heartbeat_s * self.welcome.misses

    def rebuilt(self, now: float) -> None:
        """The sockets are new: greet again."""
        self.welcome = None
        self._hello_at = float("-inf")
        self._heard_at = now

    def wake_in_s(self, now: float) -> float:
        """Return how long the loop may sleep if nothing comes in."""
        if self.welcome is None:
            return max(0.0, self._hello_at + HELLO_AGAIN_S - now)
        if self._unsent:
            return 0.0
        return max(0.0, self._beat_due - now)

    @property
    def _beat_due(self) -> float:
        return self._beat_at + (self.heartbeat_s if self.capacity == self._told else TELL_AGAIN_S)


def _size(report: m.Report) -> int:
    """Return about how many bytes a report takes in a message."""
    return len(report.body) + len(report.log) + sum(map(_size_of_step, report.added))


def _size_of_step(step: m.Added) -> int:
    targets = [step.to] if isinstance(step.to, str) else step.to
    return len(step.data) + sum(map(len, targets)) + STEP_BYTES
