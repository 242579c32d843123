"""The worker daemon: sockets to the router on one side, slots on the other.

Its one thread owns the sockets and never runs user code. SIGTERM: credit is
withdrawn, unstarted jobs go back, running ones get a grace period, and it
leaves when every result is acknowledged. SIGHUP renews the slots, one by one
as their jobs end, so that changed modules are loaded.

`Worker` joins three parts: the session (`bus/session.py`) knows what is held
and what to say, the pool (`slots.py`) has the processes, `Bus` the sockets.
"""

from __future__ import annotations

import argparse
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterable, Iterator
from typing import Any

import zmq

from exesys import keyring, logs
from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.bus.curve import Identity
from exesys.bus.session import WorkerSession
from exesys.config import Config
from exesys.daemons.loop import Complaint, Loop, run, settings
from exesys.errors import ProtocolError
from exesys.process import die_with_parent
from exesys.slots import GIVEN_BACK, STUCK_S, Broken, Finished, Happening, Ready, Slot, SlotPool

LAST_ACKS_S = 3.0
MOST_SILENCES = 3
MOST_NAMED = 10  # jobs in a line of the log
# What becomes of a job whose slot died over it.
FATES = {
    m.Outcome.failed: "it failed",
    m.Outcome.crashed: "it crashed",
    m.Outcome.returned: "it goes back to its queue",
}
log = logging.getLogger("worker")


class Bus:
    """The three sockets to the router: front to talk, one to pull jobs from, one to push results to."""

    def __init__(self, loop: Loop, endpoint: str, identity: Identity | None) -> None:
        self._loop = loop
        self._endpoint = endpoint
        self._identity = identity
        self._context = zmq.Context[sockets.Socket]()
        self._front: sockets.Socket | None = None
        self._jobs: sockets.Socket | None = None
        self._results: sockets.Socket | None = None
        self._welcomed: tuple[int, dict[str, Any]] = (0, {})

    def connect(self) -> None:
        """Connect the front anew; the others follow when the router has said where."""
        self._drop(self._front, self._jobs, self._results)
        self._jobs = self._results = None
        self._front = self._connected(zmq.DEALER, self._endpoint)
        self._loop.watch(self._front)

    def open(self, welcome: m.Welcome) -> None:
        """Connect to the endpoints that WELCOME names, unless that is done and jobs may be on their way."""
        here = (welcome.epoch, welcome.endpoints)
        if self._jobs is not None and here == self._welcomed:
            return
        self._welcomed = here
        self._drop(self._jobs, self._results)
        self._jobs = self._connected(zmq.PULL, welcome.endpoints["jobs"])
        self._results = self._connected(zmq.PUSH, welcome.endpoints["results"])
        self._loop.watch(self._jobs)
        log.info("joined epoch %d, session %s", welcome.epoch, welcome.session)

    def _connected(self, kind: int, endpoint: str) -> sockets.Socket:
        return sockets.connect(self._context, kind, sockets.towards(self._endpoint, endpoint), self._identity)

    def _drop(self, *opened: sockets.Socket | None) -> None:
        for each in opened:
            if each is not None:
                self._loop.forget(each)
                each.close(linger=0)

    def read(self, ready: set[Any]) -> Iterator[m.Message]:
        """Give what the router sent. Jobs first: what comes by the front may be about them."""
        for source in (self._jobs, self._front):
            if source is None or source not in ready:
                continue
            for frames in self._loop.read(source):
                try:
                    yield wire.decode_at_peer(frames[-1])
                except ProtocolError as error:
                    log.error("the router sent no valid message: %s", error)

    def say(self, message: m.Message) -> None:
        """Send by the front."""
        if self._front is not None:
            self._loop.send(self._front, wire.encode(message))

    def push(self, result: m.Result) -> None:
        """Send results. A refused send is made good by the resend."""
        if self._results is not None:
            sockets.send(self._results, wire.encode(result))

    def close(self) -> None:
        """Close all, with time for the last message."""
        for opened in (self._front, self._results, self._jobs):
            if opened is not None:
                opened.close()
        self._context.term()


class Worker:
    """Wires the session, the bus and the slots together."""

    def __init__(self, config: Config, loop: Loop) -> None:
        self.config = config
        self.loop = loop
        self.bus = Bus(loop, config.bus_endpoint, keyring.identity(config))
        self.pool = SlotPool(config, time.monotonic())
        self.session: WorkerSession | None = None  # made when the first slot tells what it can do
        self.silences = 0
        self.loads = 1  # how often the modules were loaded
        self.ending_at: float | None = None
        self._complaint = Complaint(log)

    def serve(self) -> int:
        """Run until told to stop. Returns the exit code."""
        self._fill(time.monotonic())
        while True:
            ready = self.loop.poll(self._wait_s())
            now = time.monotonic()
            self._read_slots(ready, now)
            if self.session is not None:
                self._read_router(self.session, ready, now)
                if self.session.lost:
                    log.error("the router gave this session up: ending, to start anew")
                    return 1
                self._take_back(self.session, now)
                self._deal(self.session, now)
                if not self._talk(self.session, now):
                    return 1
            self._renew()
            self._fill(now)
            if self.loop.stopping and self._ended(now):
                return 0

    def _wait_s(self) -> float:
        now = time.monotonic()
        wait = self.pool.wake_in_s(now)
        if self.session is not None:
            wait = min(wait, self.session.wake_in_s(now))
            if self.session.queue:
                wait = min(wait, STUCK_S / 5)  # what waits may have to go elsewhere
        if self.ending_at is not None:
            wait = min(wait, 0.05)
        return wait

    # --- slots ------------------------------------------------------------

    def _read_slots(self, ready: set[Any], now: float) -> None:
        for slot in list(self.pool.slots):
            if slot.pidfd in ready:
                self._reap(slot, now)
            elif slot.channel.fileno() in ready:
                self._heed(self.pool.read(slot, now))

    def _reap(self, slot: Slot, now: float) -> None:
        self.loop.forget(slot.pidfd)
        self.loop.forget(slot.channel.fileno())
        happenings, unbegun = self.pool.reap(slot, now)
        if self.session is not None:
            self.session.unbegin(unbegun)
        self._heed(happenings)

    def _heed(self, happenings: Iterable[Happening]) -> None:
        for happening in happenings:
            match happening:
                case Finished() if self.session is not None:
                    self._finished(self.session, happening)
                case m.Note() if self.session is not None:
                    self.session.noted(happening)
                case Broken(module, reason):
                    log.warning("module %s is left out: %s", module, reason)
                case Ready(catalogue):
                    self._announce(catalogue.to_wire())

    def _finished(self, session: WorkerSession, finished: Finished) -> None:
        report, run_ms, cut_short, job = finished
        wanted = session.ended(report, run_ms)
        if cut_short:
            fate = FATES[m.Outcome(report.outcome)] if wanted else "it is dropped"
            known = logs.about(report.ref, job.cmd, report.attempt, job.traceparent) if job else {}
            log.warning(
                "%s, attempt %d, was cut short: %s; %s", report.ref, report.attempt, cut_short, fate, extra=known
            )

    def _announce(self, catalogue: Any) -> None:
        """The slots are ready (or new): greet the router with what they can do."""
        worker = self.config.worker
        info = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "queues": list(worker.queues),
            "loads": self.loads,
            "catalogue": catalogue,
        }
        if self.session is None:
            self.session = WorkerSession(secrets.token_hex(8), info, worker.slots, worker.prefetch)
            self.bus.connect()
        elif self.session.info != info:
            self.session.info = info
            self.session.rebuilt(time.monotonic())

    def _take_back(self, session: WorkerSession, now: float) -> None:
        """Keep the limits, and take back what waits behind long jobs: for another slot, or another worker."""
        for slot, unbegun in self.pool.tick(now):
            session.unbegin(unbegun)
            log.debug("took %d jobs back from slot %d", len(unbegun), slot.number)
        if session.queue and self.pool.stuck(now):
            session.stuck()

    def _deal(self, session: WorkerSession, now: float) -> None:
        """Give queued jobs to slots, each to the one that has the fewest: so idle ones come first."""
        if not session.queue or self.loop.stopping:
            return
        for slot in self.pool.in_turn(session.depth, now):
            job = session.begin()
            if not self.pool.give(slot, job, now):
                session.unbegin([job])
                return
            if not session.queue:
                return

    def _renew(self) -> None:
        if self.loop.reloading:
            self.loop.reloading = False
            self.loads += 1
            self.pool.skip.clear()
            log.info("reloading: slots are renewed as their jobs end")
            for slot in self.pool.slots:
                self.pool.retire(slot)

    def _fill(self, now: float) -> None:
        """Start the slots that are missing."""
        if not self.loop.stopping:
            for slot in self.pool.fill(now):
                self.loop.watch(slot.channel.fileno())
                self.loop.watch(slot.pidfd)

    # --- the router -------------------------------------------------------

    def _read_router(self, session: WorkerSession, ready: set[Any], now: float) -> None:
        for message in self.bus.read(ready):
            match message:
                case m.Jobs(_, jobs):
                    session.given(jobs)
                case m.ResultAck():
                    session.acked(message)
                case m.HeartbeatAck():
                    session.heard(message, now)
                case m.Cancel():
                    self._cancel(session, message, now)
                case m.Welcome():
                    self.silences = 0
                    session.greeted(message, now)
                    self.bus.open(message)
                case m.Error():
                    self._complaint.hear(message.message)
                    session.refused(message)
                case m.Bye():
                    session.rebuilt(now)

    def _cancel(self, session: WorkerSession, message: m.Cancel, now: float) -> None:
        """Rid the slots of what nobody wants; what stood behind it goes to others."""
        with_slots = session.cancelled(message)
        if with_slots:
            happenings, unbegun = self.pool.cancel(with_slots, now)
            session.unbegin(unbegun)
            self._heed(happenings)

    def _talk(self, session: WorkerSession, now: float) -> bool:
        """Send what is due. False when the router stays silent and nothing is lost by starting anew."""
        if session.silent(now):
            self.silences += 1
            log.warning("the router is silent: sockets are built anew")
            if self.silences > MOST_SILENCES and session.idle:
                return False
            self.bus.connect()
            session.rebuilt(now)
        for message in session.beats(now):
            self.bus.say(message)
        result = session.reports(now)
        if result is not None:
            self.bus.push(result)
        return True

    # --- the end ----------------------------------------------------------

    def _ended(self, now: float) -> bool:
        """Go on ending. True when nothing is left to do."""
        session = self.session
        if session is None:
            return True
        if self.ending_at is None:
            self.ending_at = now + self.config.worker.grace_s
            self._drain(session)
        if session.idle or now > self.ending_at + self.config.worker.kill_grace_s + LAST_ACKS_S:
            if session.held:
                log.warning("leaving, and the router has not acknowledged %s", _listed(session.held))
            self.bus.say(m.Bye(session.session, "ending"))
            return True
        if now > self.ending_at:
            for slot in self.pool.slots:
                if slot.jobs:
                    self.pool.kill(slot, GIVEN_BACK, now)
        return False

    def _drain(self, session: WorkerSession) -> None:
        """Give back what has not begun."""
        for slot in self.pool.slots:
            session.unbegin(self.pool.take_back(slot))
        log.info("ending: %d jobs run, %d go back", session.started, len(session.queue))
        for message in session.drain():
            self.bus.say(message)

    def close(self) -> None:
        """End the slots, and close the line to the router."""
        for slot in self.pool.slots:
            self.pool.retire(slot)
        self.bus.close()


def _listed(held: tuple[m.Held, ...]) -> str:
    named = ", ".join(f"{ref}, attempt {attempt}" for ref, attempt in held[:MOST_NAMED])
    return f"{named} and {len(held) - MOST_NAMED} more" if len(held) > MOST_NAMED else named


def main() -> int:
    # At once: without supervisord nobody would end us, and the router gives our jobs to others.
    die_with_parent(signal.SIGKILL)
    parser = argparse.ArgumentParser()
    parser.add_argument("name", nargs="?")
    name = parser.parse_args().name
    config = settings("worker")
    worker = Worker(config.for_worker(name) if name else config, Loop())
    code = worker.serve()
    worker.close()
    return code


if __name__ == "__main__":
    run("worker", main)
