"""The blows: each strikes the private system in one way, and heals what does not heal by itself."""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import zmq

from exesys import codec
from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.chaos.plan import Blow
from exesys.chaos.rig import Rig
from exesys.process import alive, wait_until
from exesys.states import State
from exesys.store.keys import Keys

HOUR_S = 3600.0
THERE_S = 60.0  # so long it may take until there is something to strike
SLOW_S, BREATH_S = 0.08, 0.03  # a slow Redis stands still and goes on in turn
MOST_RESET = 4
MOST_LATE_TICKS = 2  # those that a controller may still note when it is active no more
NOBODY = "0" * 16  # a session that is not here any more
LATE = codec.pack({"EOJ": {"number": -1, "token": "late"}})
LATE_EVERY_S = 0.01
_PIDFD_GETFD = 438  # the same number on all machines; see pidfd_getfd(2)


class Striker:
    """Carries out blows at one system, one after the other."""

    def __init__(self, rig: Rig) -> None:
        self._rig = rig
        self._do: dict[str, Callable[[Blow], str]] = {
            "kill": self._kill,
            "freeze": self._freeze,
            "slow redis": self._slow_redis,
            "restart redis": self._restart_redis,
            "full disk": self._full_disk,
            "reset connections": self._reset,
            "late results": self._late_results,
            "clock forward": lambda blow: self._set_clock(blow, HOUR_S),
            "clock back": lambda blow: self._set_clock(blow, -HOUR_S),
        }

    def strike(self, blow: Blow) -> str:
        """Carry out a blow; return what was struck, "" when there was nothing to strike. Raises OSError."""
        return self._do[blow.kind](blow)

    def _targets(self, blow: Blow) -> list[int]:
        """Choose one process for each victim."""
        chosen = []
        for name in blow.victims:
            found: list[int] = []

            def is_there(name: str = name, found: list[int] = found) -> bool:
                found[:] = self._rig.victims(name)
                return bool(found)

            if wait_until(is_there, THERE_S):
                chosen.append(found[blow.pick % len(found)])
        return chosen

    def _kill(self, blow: Blow) -> str:
        pids = self._targets(blow)
        _signal(pids, signal.SIGKILL)
        wait_until(lambda: not any(alive(pid) for pid in pids), THERE_S)
        if "supervisord" in blow.victims:
            self._rig.up()  # what a person does then
        return f"pids {pids}" if pids else ""

    def _freeze(self, blow: Blow) -> str:
        pids = self._targets(blow)
        with _frozen(pids):
            time.sleep(blow.lasts_s)  # the blow itself: so long they stand still
        return f"pids {pids} for {blow.lasts_s:g} s" if pids else ""

    def _slow_redis(self, blow: Blow) -> str:
        pids = self._rig.victims("redis")
        deadline = time.monotonic() + blow.lasts_s
        while time.monotonic() < deadline:
            with _frozen(pids):
                time.sleep(SLOW_S)  # it stands still
            time.sleep(BREATH_S)  # and goes on
        return f"pids {pids} for {blow.lasts_s:g} s"

    def _restart_redis(self, blow: Blow) -> str:
        pids = self._rig.victims("redis")
        _signal(pids, signal.SIGTERM)
        wait_until(lambda: not any(alive(pid) for pid in pids), THERE_S)
        return f"pids {pids}"

    def _full_disk(self, blow: Blow) -> str:
        """Let Redis' file grow no more: the kernel refuses its writes, as it does when a disk is full."""
        pids = self._rig.victims("redis")
        file = self._rig.redis_file()
        if not pids or file is None:
            return ""
        soft, hard = resource.prlimit(pids[0], resource.RLIMIT_FSIZE)
        full_bytes = file.stat().st_size
        resource.prlimit(pids[0], resource.RLIMIT_FSIZE, (full_bytes, hard))
        try:
            time.sleep(blow.lasts_s)  # the blow itself: so long the disk is full
        finally:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pids[0], resource.RLIMIT_FSIZE, (soft, hard))
        return f"{file.name} at {full_bytes} bytes for {blow.lasts_s:g} s"

    def _reset(self, blow: Blow) -> str:
        """Shut down connections of a daemon from outside: both ends see them break."""
        [pid] = self._targets(blow) or [0]
        count = 0
        for fd in _connections(pid, self._rig.config.run) if pid else ():
            with contextlib.suppress(OSError), _copied(pid, fd) as held:  # it may have been closed meanwhile
                held.shutdown(socket.SHUT_RDWR)
                count += 1
            if count == MOST_RESET:
                break
        return f"{count} of pid {pid}" if count else ""

    def _late_results(self, blow: Blow) -> str:
        """Send results of attempts that are over, as a network does that held them back for longer than a lease."""
        deadline = time.monotonic() + blow.lasts_s
        sent: set[tuple[str, int]] = set()
        results = sockets.beside(self._rig.config.bus_endpoint, "results")
        with (
            self._rig.redis() as connection,
            sockets.Context() as context,
            sockets.connect(context, zmq.PUSH, results) as push,
        ):
            while time.monotonic() < deadline:
                for ref, attempt in _again(connection, self._rig.keys):
                    late = m.Report(ref, attempt - 1, m.Outcome.done, LATE, "", 0, 0)
                    sockets.send(push, wire.encode(m.Result(NOBODY, (late,))))
                    sent.add((ref, attempt))
                time.sleep(LATE_EVERY_S)  # a pace; the loop is bounded by the blow
        return f"{len(sent)} for {blow.lasts_s:g} s" if sent else ""

    def _set_clock(self, blow: Blow, off_s: float) -> str:
        # While no controller is active, nobody can tell a clock set forward from an hour without one.
        before = self._rig.ticks()
        if not wait_until(lambda: self._rig.ticks() > before + MOST_LATE_TICKS, THERE_S):
            return ""
        self._rig.clock.set(off_s)
        try:
            time.sleep(blow.lasts_s)  # the blow itself: so long the clock is wrong
        finally:
            self._rig.clock.set(0)
        return f"by {off_s:+g} s for {blow.lasts_s:g} s"


def _again(connection: Any, keys: Keys) -> list[tuple[str, int]]:
    """List what runs and is not in its first attempt: ref and attempt."""
    sessions = [raw.decode() for raw in connection.smembers(keys("sessions"))]
    refs = [ref.decode() for each in sessions for ref in connection.zrange(keys("held", each), 0, -1)]
    pipeline = connection.pipeline(transaction=False)
    for ref in refs:
        pipeline.hget(keys("record", ref, State.processing.name), "attempt")
    found = zip(refs, pipeline.execute(), strict=True)
    return [(ref, int(attempt)) for ref, attempt in found if attempt and int(attempt) > 1]


def _signal(pids: list[int], signum: int) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)


@contextlib.contextmanager
def _frozen(pids: list[int]) -> Iterator[None]:
    _signal(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        _signal(pids, signal.SIGCONT)


def may_reset() -> bool:
    """Tell whether the kernel lets us take the connections of our own processes."""
    with contextlib.suppress(OSError), socket.socket() as own, _copied(os.getpid(), own.fileno()):
        return True
    return False


def _connections(pid: int, run: Path) -> Iterator[int]:
    """Give the descriptors of a process that are connections to other daemons, or to Redis."""
    for name in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(OSError):
            if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
                continue
            with _copied(pid, int(name)) as held:
                ends = (held.getsockname(), held.getpeername())
                # Sockets without a name are lines to slots: they are no connections between daemons.
                if any(isinstance(end, tuple) or str(end).startswith(str(run)) for end in ends):
                    yield int(name)


@contextlib.contextmanager
def _copied(pid: int, fd: int) -> Iterator[socket.socket]:
    """Have a copy of another process' socket. Raises OSError when the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.pidfd_open(pid)
    try:
        copy = libc.syscall(_PIDFD_GETFD, handle, fd, 0)
    finally:
        os.close(handle)
    if copy < 0:
        raise OSError(ctypes.get_errno(), "the kernel does not give the connection of another process")
    with socket.socket(fileno=copy) as held:
        yield held
