"""The worker daemon: sockets to the router on one side, slots on the other.

Its one thread owns the sockets and never runs user code. SIGTERM: credit is
withdrawn, unstarted jobs go back, running ones get a grace period, and it
leaves when every result is acknowledged. SIGHUP renews the slots, one by one
as their jobs end, so that changed modules are loaded.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import time
from typing import Any

import zmq

from exesys import environment
from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.bus.session import WorkerSession
from exesys.config import Config
from exesys.daemons.loop import Loop, run
from exesys.errors import ProtocolError
from exesys.process import die_with_parent
from exesys.slots import GIVEN_BACK, Broken, Finished, Phase, Ready, SlotPool

LAST_ACKS_S = 3.0
MOST_SILENCES = 3
log = logging.getLogger("worker")


class Worker:
    """Wires the session, the sockets and the slots together."""

    def __init__(self, config: Config, loop: Loop) -> None:
        self.config = config
        self.loop = loop
        self.context = zmq.Context[sockets.Socket]()
        self.pool = SlotPool(config, time.monotonic())
        self.front: sockets.Socket | None = None
        self.jobs: sockets.Socket | None = None
        self.results: sockets.Socket | None = None
        self.session: WorkerSession | None = None  # made when the first slot tells what it can do
        self.silences = 0
        self.welcomed: tuple[int, dict[str, Any]] = (0, {})
        self.loads = 1  # how often the modules were loaded
        self.ending_at: float | None = None

    def serve(self) -> int:
        """Run until told to stop. Returns the exit code."""
        while True:
            ready = self.loop.poll(self._wait_s())
            now = time.monotonic()
            self._read_slots(ready, now)
            if self.session is not None:
                self._read_router(self.session, ready, now)
                if self.session.lost:
                    log.error("the router gave this session up: ending, to start anew")
                    return 1
                self._deal(self.session, now)
                if not self._talk(self.session, now):
                    return 1
            self._renew(now)
            if self.loop.stopping and self._ended(now):
                return 0

    def _wait_s(self) -> float:
        now = time.monotonic()
        wait = self.pool.wake_in_s(now)
        if self.session is not None:
            wait = min(wait, self.session.wake_in_s(now))
        if self.ending_at is not None:
            wait = min(wait, 0.05)
        return wait

    # --- slots ------------------------------------------------------------

    def _read_slots(self, ready: set[Any], now: float) -> None:
        for slot in list(self.pool.slots):
            if slot.pidfd in ready:
                self.loop.forget(slot.pidfd)
                self.loop.forget(slot.channel.fileno())
                happenings, unbegun = self.pool.reap(slot, now)
                if self.session is not None:
                    self.session.unbegin(unbegun)
            elif slot.channel.fileno() in ready:
                happenings = self.pool.read(slot, now)
            else:
                continue
            for happening in happenings:
                self._heed(happening)

    def _heed(self, happening: Any) -> None:
        match happening:
            case Finished(report, run_ms):
                if self.session is not None:
                    self.session.ended(report, run_ms)
            case m.Note():
                if self.session is not None:
                    self.session.noted(happening)
            case Broken(module, reason):
                log.warning("module %s is left out: %s", module, reason)
            case Ready(catalogue):
                self._announce(catalogue.to_wire())

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
            self._connect_front()
        elif self.session.info != info:
            self.session.info = info
            self.session.rebuilt(time.monotonic())

    def _deal(self, session: WorkerSession, now: float) -> None:
        """Give queued jobs to slots: idle ones first, then in turn, each as deep as jobs are short."""
        for slot, unbegun in self.pool.tick(now):
            session.unbegin(unbegun)
            log.debug("took %d jobs back from slot %d", len(unbegun), slot.number)
        if not session.queue or self.loop.stopping:
            return
        serving = [slot for slot in self.pool.slots if slot.phase is Phase.serving and slot.verdict is None]
        depth = session.capacity // max(1, session.slots)
        for slot in sorted(serving, key=lambda slot: len(slot.jobs)):
            long = bool(slot.jobs) and now - slot.since > 0.005
            room = min(1 if long else depth, self.config.worker.max_jobs - slot.done)
            while session.queue and len(slot.jobs) < room:
                job = session.begin()
                if not self.pool.give(slot, job, now):
                    session.unbegin([job])
                    break

    def _renew(self, now: float) -> None:
        if self.loop.reloading:
            self.loop.reloading = False
            self.loads += 1
            self.pool.skip.clear()
            log.info("reloading: slots are renewed as their jobs end")
            for slot in self.pool.slots:
                self.pool.retire(slot)
        if not self.loop.stopping:
            for slot in self.pool.fill(now):
                self.loop.watch(slot.channel.fileno())
                self.loop.watch(slot.pidfd)

    # --- the router -------------------------------------------------------

    def _connect_front(self) -> None:
        self.front = sockets.connect(self.context, zmq.DEALER, self.config.bus_endpoint)
        self.loop.watch(self.front)

    def _disconnect(self) -> None:
        for opened in (self.front, self.jobs, self.results):
            if opened is not None:
                self.loop.forget(opened)
                opened.close(linger=0)
        self.front = self.jobs = self.results = None

    def _read_router(self, session: WorkerSession, ready: set[Any], now: float) -> None:
        for source in (self.front, self.jobs):
            if source is None or source not in ready:
                continue
            for frames in self.loop.read(source):
                try:
                    self._heed_router(session, wire.decode_at_peer(frames[-1]), now)
                except ProtocolError as error:
                    log.error("the router sent no valid message: %s", error)

    def _heed_router(self, session: WorkerSession, message: m.Message, now: float) -> None:
        match message:
            case m.Jobs(_, jobs):
                session.given(jobs)
            case m.ResultAck():
                session.acked(message)
            case m.HeartbeatAck():
                session.heard(message, now)
            case m.Welcome():
                session.greeted(message, now)
                self._open(message)
            case m.Error():
                log.info("the router says: %s", message.message)
                session.refused(message)
            case m.Bye():
                session.rebuilt(now)

    def _open(self, welcome: m.Welcome) -> None:
        """Connect to the endpoints that WELCOME names, unless that is done and jobs may be on their way."""
        self.silences = 0
        here = (welcome.epoch, welcome.endpoints)
        if self.jobs is not None and here == self.welcomed:
            return
        self.welcomed = here
        for opened in (self.jobs, self.results):
            if opened is not None:
                self.loop.forget(opened)
                opened.close(linger=0)
        self.jobs = sockets.connect(self.context, zmq.PULL, welcome.endpoints["jobs"])
        self.results = sockets.connect(self.context, zmq.PUSH, welcome.endpoints["results"])
        self.loop.watch(self.jobs)
        log.info("joined epoch %d with %d slots", welcome.epoch, self.config.worker.slots)

    def _talk(self, session: WorkerSession, now: float) -> bool:
        """Send what is due. False when the router stays silent and nothing is lost by starting anew."""
        if session.silent(now):
            self.silences += 1
            log.warning("the router is silent: sockets are built anew")
            if self.silences > MOST_SILENCES and session.idle:
                return False
            self._disconnect()
            self._connect_front()
            session.rebuilt(now)
        for message in session.beats(now):
            self._send_front(message)
        result = session.reports(now)
        if result is not None and self.results is not None:
            # A refused send is made good by the resend.
            sockets.send(self.results, wire.encode(result))
        return True

    def _send_front(self, message: m.Message) -> None:
        if self.front is not None:
            self.loop.send(self.front, wire.encode(message))

    # --- the end ----------------------------------------------------------

    def _ended(self, now: float) -> bool:
        """Go on ending. True when nothing is left to do."""
        session = self.session
        if session is None:
            return True
        if self.ending_at is None:
            log.info("ending: %d jobs run, %d go back", session.started, len(session.queue))
            self.ending_at = now + self.config.worker.grace_s
            for slot in self.pool.slots:
                session.unbegin(self.pool.take_back(slot))
            for message in session.drain():
                self._send_front(message)
        if session.idle or now > self.ending_at + self.config.worker.kill_grace_s + LAST_ACKS_S:
            self._send_front(m.Bye(session.session, "ending"))
            return True
        if now > self.ending_at:
            for slot in self.pool.slots:
                if slot.jobs:
                    self.pool.kill(slot, GIVEN_BACK, now)
        return False

    def close(self) -> None:
        """Close the line to the router, with time for the last message, and end the slots."""
        for slot in self.pool.slots:
            self.pool.retire(slot)
        for opened in (self.front, self.results, self.jobs):
            if opened is not None:
                opened.close()
        self.context.term()


def main() -> int:
    # At once: without supervisord nobody would end us, and the router gives our jobs to others.
    die_with_parent(signal.SIGKILL)
    config = environment.load()
    loop = Loop()
    worker = Worker(config, loop)
    for slot in worker.pool.fill(time.monotonic()):
        loop.watch(slot.channel.fileno())
        loop.watch(slot.pidfd)
    code = worker.serve()
    worker.close()
    return code


if __name__ == "__main__":
    run("worker", main)
