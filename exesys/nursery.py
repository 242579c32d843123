"""The instances of a runner daemon, as the daemon sees them: begun, told to stop, ended by force.

A fork server, started before anything else, makes the processes; the line to
each goes through it and then belongs to the two ends alone. When the fork
server is lost, so are all instances: they die with it, and are reported as
killed.

A stop goes in steps: the instance is told, after its grace period its process
group gets TERM, and after another time KILL.

Hundreds that begin or end in the same moment would take all processors from
the daemons, whose heartbeats then stay away. So only a few begin at a time,
and those that are told to stop are told in quick succession, not at once.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from exesys import codec
from exesys.bus.messages import Exit, Launch, Told
from exesys.channel import Channel, pair
from exesys.config import Config
from exesys.environment import open_part, secret_part
from exesys.process import hosting_mark, how_it_ended, resident_bytes
from exesys.runner import Ending

MOST_BEGINNING = 4
FORK_AGAIN_S = 0.25
BEGINNING_S = 2.0  # one that takes longer (a slow import) does not hold up others
MOST_STOPPED, STOPPED_EACH_S = 8, 0.01  # so many are told to stop in so many seconds
SAMPLE_S, FIRST_SAMPLE_S = 5.0, 0.5
ORPHANS_S = 5.0
NEVER = float("inf")
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Child:
    """One instance. Times are monotonic seconds."""

    number: int
    launch: Launch
    channel: Channel
    far: socket.socket | None  # the instance's end of its line, until it is forked
    launched_at: float
    pid: int = 0  # 0: it is not forked yet
    told: Told | None = None
    chunk: int = 0
    ended: tuple[int, bytes] | None = None  # what it said of its end: `Ending`, error
    asked: bool = False  # it was told to stop
    unwanted: bool = False  # nobody wants to know how it ends
    term_at: float = NEVER
    kill_at: float = NEVER
    signalled: int = 0  # the last signal it was sent

    @property
    def grace_s(self) -> float:
        return self.launch.grace_s


class Ended(NamedTuple):
    exit: Exit
    why: str  # for the log; "" when there is nothing to wonder at


Happening = Told | Ended


class Nursery:
    """All instances of a daemon."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._number = 0
        self._children: dict[int, Child] = {}  # by number
        self._by_name: dict[str, Child] = {}
        self._by_pid: dict[int, Child] = {}
        self._by_line: dict[int, Child] = {}
        self._queue: deque[Child] = deque()  # to be forked
        self._beginning: dict[int, float] = {}  # forked, and not heard yet: number -> until when they count
        self._to_stop: deque[str] = deque()  # names; to be told
        self._stop_at = float("-inf")
        self._unbegun: list[Ended] = []  # stopped before they were forked; to be told
        self._sample_at = float("-inf")
        self._line: Channel
        self._server: subprocess.Popen[bytes]
        self._start()

    def _start(self) -> None:
        near, far = pair()
        with far:
            words = ["--fd", str(far.fileno()), "--parent", str(os.getpid())]
            self._server = subprocess.Popen(
                [sys.executable, "-m", "exesys.daemons.forkserver", *words],
                pass_fds=[far.fileno()],
                env={**open_part(), **hosting_mark(self._config.home)},
                stdin=subprocess.DEVNULL,
            )
        self._line = Channel(near)
        self._line.send(["settings", secret_part(self._config)], wait=False)

    def fileno(self) -> int:
        """Return the descriptor of the line to the fork server."""
        return self._line.fileno()

    @property
    def lines(self) -> set[int]:
        """The descriptors of the lines to the instances."""
        return set(self._by_line)

    @property
    def empty(self) -> bool:
        return not self._children

    # --- in ---------------------------------------------------------------

    def begin(self, launch: Launch, now: float) -> int:
        """Have an instance forked. Returns the descriptor of its line."""
        near, far = pair()
        self._number += 1
        channel = Channel(near)
        child = Child(self._number, launch, channel, far, now)
        self._children[child.number] = self._by_name[launch.name] = self._by_line[channel.fileno()] = child
        channel.send(["run", launch.name, launch.epoch, launch.target, launch.data], wait=False)
        self._queue.append(child)
        self._fork(now)
        return channel.fileno()

    def _fork(self, now: float) -> None:
        """Have the next ones forked, as many as may begin at a time."""
        self._beginning = {number: until for number, until in self._beginning.items() if until > now}
        while self._queue and len(self._beginning) < MOST_BEGINNING:
            child = self._queue[0]
            # Without a far end it was stopped before.
            if child.far is not None:
                # When its line is full it is tried again; a server that is lost is noticed by its line.
                if not self._line.send_with(["fork", child.number], child.far.fileno()):
                    return
                child.far.close()
                child.far = None
                self._beginning[child.number] = now + BEGINNING_S
            self._queue.popleft()

    def stop(self, name: str, now: float, most_s: float = NEVER) -> None:
        """Have an instance told to stop, within its grace period or `most_s` seconds."""
        child = self._by_name.get(name)
        if child is None:
            return
        if child.far is not None:  # it need not begin at all
            child.ended = (Ending.stopped, b"")
            self._unbegun.append(self._forget(child, 0, now))
            return
        if not child.asked:
            child.asked = True
            self._to_stop.append(name)
            self._tell_to_stop(now)
        if child.signalled == 0:
            grace_s = self._config.runner.grace_s if child.grace_s < 0 else child.grace_s
            child.term_at = min(child.term_at, now + min(grace_s, most_s))

    def _tell_to_stop(self, now: float) -> None:
        """Tell those whose turn it is."""
        if now < self._stop_at:
            return
        for _ in range(min(MOST_STOPPED, len(self._to_stop))):
            self._stop_at = now + STOPPED_EACH_S
            child = self._by_name.get(self._to_stop.popleft())
            if child is not None and child.asked:
                child.channel.send(["stop"], wait=False)

    def kill(self, name: str, epoch: int) -> None:
        """End an instance at once: it should not be."""
        child = self._by_name.get(name)
        if child is not None and child.launch.epoch == epoch:
            child.unwanted = True
            self._signal(child, signal.SIGKILL)

    def stop_all(self, now: float, most_s: float = NEVER) -> None:
        """Tell all instances to stop."""
        for name in list(self._by_name):
            self.stop(name, now, most_s)

    def kill_all(self) -> None:
        for child in self._children.values():
            self._signal(child, signal.SIGKILL)

    # --- out --------------------------------------------------------------

    def read(self, descriptor: int, now: float) -> Iterator[Happening]:
        """Read the line to an instance."""
        child = self._by_line.get(descriptor)
        if child is not None:
            yield from self._hear(child, now)

    def at_end(self, descriptor: int) -> bool:
        """Tell whether an instance can say nothing more on its line."""
        child = self._by_line.get(descriptor)
        return child is not None and child.channel.at_end()

    def _hear(self, child: Child, now: float) -> Iterator[Told]:
        while (message := child.channel.receive(wait=False)) is not None:
            kind, *fields = message
            if self._beginning.pop(child.number, None) is not None:
                self._fork(now)
            if kind == "began":
                began_ms = time.time_ns() // 1_000_000
                at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(began_ms / 1000))
                name, epoch, *_ = child.launch
                self._sample_at = min(self._sample_at, now + FIRST_SAMPLE_S)
                child.told = Told(name, epoch, child.pid, began_ms, -1.0, "", 0.0, 0, 0, "")
                yield self._tell(child, log=f"--- life {epoch}, {at} ---\n")
            elif kind == "note":
                fraction, text, log = fields
                yield self._tell(child, log=log, fraction=fraction, text=text)
            elif kind == "ended":
                child.ended = (fields[0], fields[1])
                if child.term_at == NEVER:  # its process may yet wait for its threads
                    self.stop(child.launch.name, now)

    def _tell(self, child: Child, log: str = "", **changes: Any) -> Told:
        launch = child.launch
        told = child.told or Told(launch.name, launch.epoch, child.pid, 0, -1.0, "", 0.0, 0, 0, "")
        child.told = told._replace(pid=child.pid, **changes)
        if log:
            child.chunk += 1
        return child.told._replace(chunk=child.chunk, log=log)

    def serve(self, now: float) -> Iterator[Happening]:
        """Read what the fork server says."""
        while (message := self._line.receive(wait=False)) is not None:
            kind, *fields = message
            if kind == "forked":
                self._forked(*fields)
            elif kind == "unborn":
                yield self._unborn(fields[0], fields[1], now)
            else:
                yield from self._over(fields[0], fields[1], now)
        if self._line.at_end():
            yield from self._lost(now)

    def _forked(self, number: int, pid: int) -> None:
        child = self._children[number]
        child.pid = pid
        self._by_pid[pid] = child
        if child.signalled:
            self._signal(child, child.signalled)

    def _unborn(self, number: int, errno: int, now: float) -> Ended:
        """There are no processes to be had: the life is lost, and may be tried again later."""
        why = f"its process could not be made: {os.strerror(errno)}"
        ended = self._forget(self._children[number], -signal.SIGKILL, now)
        body = codec.pack({"type": "Crashed", "message": why, "traceback": ""})
        return Ended(ended.exit._replace(ending=int(Ending.killed), body=body), why)

    def _over(self, pid: int, status: int, now: float) -> Iterator[Happening]:
        """A process ended: end what is left of its group, and let it be reaped."""
        child = self._by_pid.pop(pid)
        yield from self._hear(child, now)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
        self._line.send(["reap", pid])
        yield self._forget(child, status, now)

    def _lost(self, now: float) -> Iterator[Happening]:
        """The fork server is gone: so are all instances, in a moment. Start another."""
        self._server.wait()
        until = time.monotonic() + ORPHANS_S
        for pid in self._by_pid:
            _await_end(pid, until - time.monotonic())
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)  # what they have started
        for child in list(self._children.values()):
            yield from self._hear(child, now)
            yield self._forget(child, -signal.SIGKILL, now)
        self._by_pid.clear()
        lost = self._line
        self._start()
        lost.close()  # only now: a new line with the same number would not be noticed as one

    def _forget(self, child: Child, status: int, now: float) -> Ended:
        if child.far is not None:
            child.far.close()
            child.far = None
        self._beginning.pop(child.number, None)
        del self._children[child.number], self._by_line[child.channel.fileno()]
        if self._by_name.get(child.launch.name) is child:
            del self._by_name[child.launch.name]
        child.channel.close()
        ending, body, why = _judge(child, status)
        name, epoch, *_ = child.launch
        lived_ms = int((now - child.launched_at) * 1000)
        return Ended(Exit(name, epoch, int(ending), body, lived_ms), "" if child.unwanted else why)

    # --- time -------------------------------------------------------------

    def tick(self, now: float) -> Iterator[Happening]:
        """Do what is due: forks, stops, signals; now and then look at memory and time used."""
        yield from self._unbegun
        self._unbegun.clear()
        self._fork(now)
        self._tell_to_stop(now)
        for child in self._children.values():
            if now >= child.kill_at:
                child.kill_at = now + self._config.runner.kill_grace_s
                self._signal(child, signal.SIGKILL)
            elif now >= child.term_at:
                child.term_at, child.kill_at = NEVER, now + self._config.runner.kill_grace_s
                self._signal(child, signal.SIGTERM)
        if now >= self._sample_at:
            self._sample_at = now + SAMPLE_S
            for child in self._children.values():
                yield from self._sample(child)

    def _sample(self, child: Child) -> Iterator[Told]:
        if child.pid and child.told is not None:
            cpu_s, memory_bytes = _cpu_s(child.pid), resident_bytes(child.pid)
            # The kernel's counters of memory move a little by themselves.
            if cpu_s != child.told.cpu_s or abs(memory_bytes - child.told.memory_bytes) > memory_bytes / 50:
                yield self._tell(child, cpu_s=cpu_s, memory_bytes=memory_bytes)

    def wake_in_s(self, now: float) -> float:
        """Return how long the loop may sleep."""
        due = min((min(child.term_at, child.kill_at) for child in self._children.values()), default=NEVER)
        if self._unbegun:
            return 0.0
        if self._to_stop:
            due = min(due, self._stop_at)
        if self._queue:
            due = min(due, *self._beginning.values(), now + FORK_AGAIN_S)
        return max(min(due, self._sample_at if self._children else NEVER) - now, 0.0)

    def _signal(self, child: Child, number: int) -> None:
        child.signalled = number
        if child.pid:
            try:
                os.killpg(child.pid, number)
            except ProcessLookupError:  # it has no group of its own yet
                os.kill(child.pid, number)

    def close(self) -> None:
        """End the fork server, and with it whatever is left."""
        self._line.close()
        self._server.wait()


def _judge(child: Child, status: int) -> tuple[Ending, bytes, str]:
    """Say how a life ended, with the error, and a sentence for the log."""
    if child.ended is not None:
        ending, body = Ending(child.ended[0]), child.ended[1]
        if ending is Ending.failed:
            told = codec.unpack(body)
            return ending, body, f"it failed: {told['type']}: {told['message']}"
        return ending, b"", "it returned" if ending is Ending.returned else ""
    if child.signalled == signal.SIGTERM:
        return Ending.terminated, b"", "it did not stop within its grace period and was ended with TERM"
    if child.signalled == signal.SIGKILL:
        return Ending.forced, b"", "it did not stop within its grace period, nor at TERM, and was killed"
    how = how_it_ended(status)
    body = codec.pack({"type": "Crashed", "message": f"its process was {how}", "traceback": ""})
    return Ending.killed if status == -signal.SIGKILL else Ending.failed, body, f"its process was {how}"


def _await_end(pid: int, within_s: float) -> None:
    """Wait for the end of a process that is no child of ours."""
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with open(pidfd, closefd=True):
        poll = select.poll()  # not select: it takes no descriptor above 1023
        poll.register(pidfd, select.POLLIN)
        poll.poll(max(within_s, 0.0) * 1000)


def _cpu_s(pid: int) -> float:
    """Return the processor time a process has used."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS
