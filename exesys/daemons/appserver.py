"""`python -m exesys.daemons.appserver NAME NUMBER`: one instance of an application server.

The main thread has the socket that callers connect to, and never runs the
user's code; the crew does (`appcrew.py`). A client of the bus, with a thread
of its own, tells the router who and where we are.

TERM: no more calls are taken, those that run get a grace period, `stop()` is
called, and each line is told that no more will be run: who sends a call at
that very moment knows that it can go elsewhere. HUP does the same and then puts a new program into this process: new
code, the same pid. A class that cannot be started is told to the router, and
the exit code is 1; so it is when a thread of the crew is lost.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from typing import Any

import zmq

from exesys import keyring
from exesys.appconfig import AppServer
from exesys.appcrew import Crew
from exesys.appservice import AppContext, Service
from exesys.bus import messages as m
from exesys.bus import sockets, wire, zap
from exesys.bus.client import Client
from exesys.bus.curve import Guard
from exesys.config import Config
from exesys.context import Resources
from exesys.daemons.loop import Loop, run, settings
from exesys.errors import ConfigError, ProtocolError, Unavailable
from exesys.keyring import Keyring
from exesys.process import die_with_parent, hold_lock

LOCK_S = 2.0
TOLD_S = 0.5  # how long a failed one waits for the router to take note; within supervisord's startsecs
QUIET_S = 0.05  # at the end: nobody called or came for so long
LAST_S = 0.5
MOST_LINES = 10_000  # that are known; one more, and the one that was silent for the longest is not told of the end
IDLE_S = 1.0
log = logging.getLogger("appserver")


class Instance:
    """Wires the socket, the crew and the router's registry together."""

    def __init__(self, config: Config, server: AppServer, number: int, loop: Loop) -> None:
        self.config = config
        self.server = server
        self.loop = loop
        self.context = zmq.Context[sockets.Socket]()
        at = sockets.beside(config.bus_endpoint, f"a-{server.name}-{number}")
        pair = keyring.guard(config)
        self.keyring = Keyring(config)
        self.doorman = sockets.doorman(self.context) if pair else None
        guard = Guard(pair, zap.APP) if pair else None
        self.front, self.endpoint = sockets.bind(self.context, zmq.ROUTER, at, guard)
        if self.doorman is not None:
            loop.watch(self.doorman)
        self.wakes = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        loop.watch(self.front)
        loop.watch(self.wakes)
        self.info: dict[str, Any] = {
            "app": server.name,
            "number": number,
            "state": "starting",
            "endpoint": self.endpoint,
            "threads": server.threads,
            "methods": [],
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since_ms": time.time_ns() // 1_000_000,
            "reason": "",
            "traceback": "",
        }
        self.client = Client(config, role="app", info=self.info)
        self.resources = Resources(config, lambda: self.client)
        self.service = Service(server, config.limits, config.module_dirs)
        self.crew = Crew(self.service, self._context, lambda: os.eventfd_write(self.wakes, 1))
        self.lines: dict[bytes, None] = {}  # addresses, the one heard last at the end

    def _context(self) -> AppContext:
        return AppContext(self.resources, logging.getLogger(self.server.name))

    def serve(self) -> bool:
        """Run until told to stop or to begin anew. False when the class cannot be started, or a thread is lost."""
        self.crew.begin()
        while not self.crew.ready:
            self._pass(IDLE_S)
            if self.crew.broken:
                return False
            if self.crew.failure is not None:
                self._tell_failure(*self.crew.failure)
                return False
            if self.loop.stopping:
                return True
        self.client.introduce({**self.info, "state": "ready", "methods": self.service.describe()})
        log.info("%s is ready at %s", self.server.class_, self.endpoint)
        while not (self.loop.stopping or self.loop.reloading or self.crew.broken):
            self._pass(IDLE_S)
        self._leave()
        return not self.crew.broken

    def _pass(self, wait_s: float) -> bool:
        """Take calls and send answers, once. Tells whether a call came."""
        ready = self.loop.poll(wait_s)
        if self.doorman is not None and self.doorman in ready:
            self._let_in(self.doorman)
        called = self.front in ready and self._read()
        if self.wakes in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self.wakes)
        self._answer()
        return called

    def _let_in(self, doorman: sockets.Socket) -> None:
        for question in self.loop.read(doorman):
            frames, why = zap.answer(question, self.keyring.known(), sockets.spelled)
            self.loop.send(doorman, *frames)
            if why:
                log.debug("not let in: %s", why)

    def _answer(self) -> None:
        while self.crew.answers:
            self.loop.send(self.front, *self.crew.answers.popleft())

    def _read(self) -> bool:
        now = time.monotonic()
        came = self.loop.read(self.front)
        for address, *frames in came:
            if self._know(address) and frames == [b""]:
                continue  # a new line says that it is there
            try:
                if len(frames) != 1:
                    raise ProtocolError(f"a message has one frame, not {len(frames)}")
                call = wire.decode_at_app(frames[0])
                assert isinstance(call, m.Call), "nothing else is decoded"
                self.crew.take(address, call, now)
            except ProtocolError as error:
                self.loop.send(self.front, address, wire.encode(m.Error(*error.problem)))
        return bool(came)

    def _know(self, address: bytes) -> bool:
        """Remember a line; tells whether it is new."""
        new = address not in self.lines
        self.lines.pop(address, None)
        self.lines[address] = None
        if len(self.lines) > MOST_LINES:
            del self.lines[next(iter(self.lines))]
        return new

    def _tell_failure(self, kind: str, text: str, traceback: str) -> None:
        log.error("%s cannot be started:\n%s", self.server.class_, traceback.rstrip())
        reason = text if kind == ConfigError.__name__ else f"{kind}: {text}" if text else kind
        self.client.introduce({**self.info, "state": "failed", "reason": reason, "traceback": traceback})
        with contextlib.suppress(Unavailable):
            self.client.snapshot("apps", timeout=TOLD_S)  # an answer comes after what was said before

    def _leave(self) -> None:
        """Finish what runs, within the grace period; then tell whoever called, or just may be, that we are gone."""
        until = time.monotonic() + self.config.worker.grace_s
        # Who is not connected yet is not let in: a call that was never sent can go elsewhere.
        # (zmq_unbind would also cut off those that are connected.)
        sockets.unlink(self.endpoint)
        self.client.tell(m.Drain(self.client.session))
        log.info("leaving: %d calls run", self.crew.running)
        self.crew.leave()
        while not self.crew.done and time.monotonic() < until:
            self._pass(0.05)
        if not self.crew.done:
            log.warning("leaving, and %d calls did not end in time", self.crew.running)
        quiet = last = time.monotonic()
        while (now := time.monotonic()) - quiet < QUIET_S and now - last < LAST_S:
            if self._pass(QUIET_S):
                quiet = now
        if not self.crew.broken:  # else it is not known what ran
            self._bid_farewell()

    def _bid_farewell(self) -> None:
        cut_off, farewell = set(self.crew.callers), self.crew.farewell()
        self._answer()
        for address in self.lines:
            if address not in cut_off:
                self.loop.send(self.front, address, farewell)

    def close(self) -> None:
        """Close all; the socket of calls first, for nobody reads it any more."""
        self.front.close()
        if self.doorman is not None:
            self.doorman.close()
        with contextlib.suppress(Unavailable):
            self.client.close(LAST_S)
        self.resources.close()
        self.context.term()


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("number", type=int)
    given = parser.parse_args()
    environ = dict(os.environ)  # with the pid of supervisord, by which our kind is known
    die_with_parent()
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # what the class prints is seen at once
    config = settings("appserver")
    server = config.appserver(given.name)
    if server is None:
        raise ConfigError(f"there is no application server {given.name}.", fix=f"Declare [appserver:{given.name}].")
    os.umask(0o077)
    config.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    hold_lock(config.run / f"app-{server.name}-{given.number}.lock", LOCK_S)
    loop = Loop()
    instance = Instance(config, server, given.number, loop)
    well = instance.serve()
    instance.close()
    if well and loop.reloading and not loop.stopping:
        log.info("beginning anew, with the code as it is now")
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until the new program has its own handler, HUP would end it
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environ)
    return 0 if well else 1


if __name__ == "__main__":
    run("appserver", main)
