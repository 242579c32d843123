"""The runner daemon: hosts runners, each in a process of its own.

Its one thread owns the sockets and never runs user code. One subscription
serves all runners: stops come as events, and again with the answers to
heartbeats and by the router's own word, so none is missed for long. SIGTERM:
no more runners are taken, those that are here are told to stop, and go on
elsewhere or when the daemon is back.

`RunnerDaemon` joins three parts: the session (`bus/hosting.py`) knows what is
hosted and what to say, the nursery (`nursery.py`) has the processes, and the
kernel ends this process, and with it all of them, when the router may have
given them to another (`process.DeadMan`).
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Iterable
from typing import Any

import zmq

from exesys import keyring
from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.bus.hosting import HostSession
from exesys.bus.subscription import Subscription
from exesys.config import Config
from exesys.daemons.loop import Complaint, Loop, run, settings
from exesys.errors import ProtocolError
from exesys.nursery import Ended, Happening, Nursery
from exesys.process import DeadMan, die_with_parent, end_left_behind
from exesys.runner import Ending

LAST_ACKS_S = 3.0
STOPPED = (Ending.stopped, Ending.terminated, Ending.forced)
log = logging.getLogger("runner")


class RunnerDaemon:
    """Wires the session, the sockets and the processes together."""

    def __init__(self, config: Config, loop: Loop, nursery: Nursery) -> None:
        self.config = config
        self.loop = loop
        self.nursery = nursery
        self.dead_man = DeadMan()
        info = {"host": socket.gethostname(), "pid": os.getpid()}
        self.session = HostSession("runner", secrets.token_hex(8), info, capacity=config.runner.capacity)
        self.subscription = Subscription()
        self.ending_at: float | None = None
        self._complaint = Complaint(log)
        self._context = zmq.Context[sockets.Socket]()
        self._identity = keyring.identity(config)
        self._front = self._connect()
        self._events: sockets.Socket | None = None
        self._events_at = ""
        self._watched = nursery.fileno()
        loop.watch(self._watched)

    def serve(self) -> int:
        """Run until told to stop. Returns the exit code."""
        while True:
            ready = self.loop.poll(self._wait_s())
            now = time.monotonic()
            self._read_nursery(ready, now)
            self._read_router(ready, now)
            if self.session.lost:
                log.error("the router gave this session up: ending, to start anew")
                return 1
            if now >= self.session.give_up_at:
                log.error("the router is not heard: all runners end here, for others may start them")
                return 1
            self.dead_man.put_off(self.session.dead_by)
            self._heed(self.nursery.tick(now), now)
            self._talk(now)
            if self.loop.stopping and self._ended(now):
                return 0

    def _wait_s(self) -> float:
        now = time.monotonic()
        wait = min(self.nursery.wake_in_s(now), self.session.wake_in_s(now), self.session.give_up_at - now)
        return min(wait, 0.05) if self.ending_at is not None else wait

    # --- the processes ------------------------------------------------------

    def _read_nursery(self, ready: set[Any], now: float) -> None:
        if self._watched in ready:
            self._heed(self.nursery.serve(now), now)
            if self.nursery.fileno() != self._watched:
                log.error("the fork server was lost, and with it all runners: they are started again")
                self.loop.forget(self._watched)
                self._watched = self.nursery.fileno()
                self.loop.watch(self._watched)
        for descriptor in self.nursery.lines & ready:
            said = list(self.nursery.read(descriptor, now))
            self._heed(said, now)
            if not said and self.nursery.at_end(descriptor):
                self.loop.forget(descriptor)  # it has closed its end, and is still to end itself

    def _heed(self, happenings: Iterable[Happening], now: float) -> None:
        for happening in happenings:
            if isinstance(happening, Ended):
                exit_, why = happening
                if why:
                    level = logging.INFO if exit_.ending == Ending.returned else logging.WARNING
                    log.log(level, "%s, life %d: %s", exit_.name, exit_.epoch, why)
                if self.ending_at is not None and exit_.ending in STOPPED:
                    exit_ = exit_._replace(ending=int(Ending.handed_back))
                self.session.ended(exit_)
            else:
                self.session.told(happening, now)

    # --- the router ---------------------------------------------------------

    def _connect(self) -> sockets.Socket:
        front = self._connected(zmq.DEALER, self.config.bus_endpoint)
        self.loop.watch(front)
        return front

    def _connected(self, kind: int, endpoint: str) -> sockets.Socket:
        towards = sockets.towards(self.config.bus_endpoint, endpoint)
        return sockets.connect(self._context, kind, towards, self._identity)

    def _read_router(self, ready: set[Any], now: float) -> None:
        if self._front in ready:
            for frames in self.loop.read(self._front):
                try:
                    self._receive(wire.decode_at_peer(frames[-1]), now)
                except ProtocolError as error:
                    log.error("the router sent no valid message: %s", error)
        if self._events is not None and self._events in ready:
            for frames in self.loop.read(self._events):
                try:
                    event = wire.decode_at_peer(frames[-1])
                except ProtocolError as error:
                    log.error("the router published no valid event: %s", error)
                    continue
                if isinstance(event, m.Event):
                    self._stop(self.subscription.event(event), now)

    def _receive(self, message: m.Message, now: float) -> None:
        session = self.session
        match message:
            case m.Launches(launches):
                begun = session.launched(launches)
                # Before the first process: we may have been asleep for longer than our lease.
                self.dead_man.put_off(session.dead_by)
                for launch in begun:
                    self.loop.watch(self.nursery.begin(launch, now))
            case m.Stop():
                self._stop([message], now)
            case m.Cancel():
                for name, epoch in session.cancelled(message):
                    log.warning("%s, life %d, is not to be here: it is killed", name, epoch)
                    self.nursery.kill(name, epoch)
            case m.ResultAck():
                session.acked(message)
            case m.HeartbeatAck():
                session.heard(message, now)
                self._stop(self.subscription.acknowledged(message), now)
            case m.Snapshot():
                self._stop(self.subscription.snapshot(message), now)
            case m.Welcome():
                session.greeted(message, now)
                self._subscribe(message)
            case m.Error():
                self._complaint.hear(message.message)
                session.refused(message)
            case m.Bye():
                session.rebuilt(now)

    def _subscribe(self, welcome: m.Welcome) -> None:
        at = welcome.endpoints["events"]
        if at != self._events_at or self._events is None:
            self._drop(self._events)
            self._events, self._events_at = self._connected(zmq.SUB, at), at
            self.loop.watch(self._events)
        log.info("joined epoch %d, session %s", welcome.epoch, welcome.session)
        self.subscription.welcomed(welcome)

    def _stop(self, stops: Iterable[m.Stop], now: float) -> None:
        for type_, uuid in stops:
            names = (
                [f"{type_}:{uuid}"] if uuid else [name for name in self.session.lives if name.startswith(f"{type_}:")]
            )
            for name in names:
                self.nursery.stop(name, now)

    def _talk(self, now: float) -> None:
        if self.session.silent(now):
            log.warning("the router is silent: sockets are built anew")
            self._drop(self._front)
            self._front = self._connect()
            self.session.rebuilt(now)
        for message in [*self.session.outgoing(now), *self.subscription.outgoing(now)]:
            self.loop.send(self._front, wire.encode(message))

    def _drop(self, opened: sockets.Socket | None) -> None:
        if opened is not None:
            self.loop.forget(opened)
            opened.close(linger=0)

    # --- the end --------------------------------------------------------------

    def _ended(self, now: float) -> bool:
        """Go on ending. True when nothing is left to do."""
        rules = self.config.runner
        if self.ending_at is None:
            self.ending_at = now + rules.grace_s + rules.kill_grace_s + LAST_ACKS_S
            log.info("ending: %d runners are told to stop", len(self.session.lives))
            self.nursery.stop_all(now, rules.grace_s)
            for message in self.session.drain():
                self.loop.send(self._front, wire.encode(message))
        if not (self.session.idle and self.nursery.empty) and now < self.ending_at:
            return False
        self.nursery.close()  # before BYE: after it, others may start what was here
        self.loop.send(self._front, wire.encode(m.Bye(self.session.session, "ending")))
        return True

    def close(self) -> None:
        """End what is left, and close the line to the router."""
        self.nursery.close()
        for opened in (self._front, self._events):
            if opened is not None:
                opened.close()
        self._context.term()


def main() -> int:
    # At once, as a worker: without supervisord nobody would end us, and the router gives our runners to others.
    die_with_parent(signal.SIGKILL)
    config = settings("runner")
    if left := end_left_behind(config.home):
        log.warning("killed %d processes of runners, left by a daemon that is gone", left)
    nursery = Nursery(config)  # first of all: nothing forks once there is a ZeroMQ context
    daemon = RunnerDaemon(config, Loop(), nursery)
    code = daemon.serve()
    daemon.close()
    return code


if __name__ == "__main__":
    run("runner", main)
