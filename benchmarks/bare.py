"""The floor's daemons: DESIGN 5 with nothing around it, as fast as plain Python of that shape goes.

A router, a worker daemon and its slots, over the sockets that ExeSys has and a
Redis that is set as its own. Kept are the rules that cost something each time:
answers after the commit, the attempt that rises at dispatch, compare-and-set
on it, results kept until they are acknowledged, one pipeline a turn, scripts
that may run twice, and the queue in Redis. Left out is all else: checks of
what comes, leases, priorities, time limits, events, metrics, logs.

    python -m benchmarks.bare router|worker|echo DIR

Messages are msgpack arrays, as are the lines to the slots:

    client → router   [[tag, job_id, cmd, data], …]
    router → client   [tags that were taken], [[tag, result], …]
    router → worker   [[job_id, attempt, cmd, data], …]
    worker → router   [[job_id, attempt, result], …]
    router → worker   [[job_id, attempt], …] that were committed
"""

from __future__ import annotations

import gc
import select
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import hiredis
import msgpack
import zmq

SLOTS = 2
DEPTH = 33  # jobs a slot has at hand: one runs, the others are prefetched
RESEND_S = 1.0
DRAIN = 256
LINE_BYTES = 1 << 20
READ_BYTES = 1 << 16
READY = "ready"
DAEMONS = ("router", "worker", "echo")
FUNCTIONS: dict[bytes, Callable[[Any], Any]] = {b"noop": lambda data: data}
# KEYS the queue, the jobs; ARGV cmd and data of each. A job that is there already is not queued again.
SUBMIT = """
local call, fresh = redis.call, {}
for i = 2, #KEYS do
  if call('HSETNX', KEYS[i], 'cmd', ARGV[2 * i - 3]) == 1 then
    call('HSET', KEYS[i], 'data', ARGV[2 * i - 2])
    fresh[#fresh + 1] = KEYS[i]
  end
end
if #fresh > 0 then call('RPUSH', KEYS[1], unpack(fresh)) end
return #fresh
"""
# KEYS the queue; ARGV how many. Gives job_id, attempt, cmd and data of each.
CLAIM = """
local call, jobs = redis.call, {}
for i, job in ipairs(call('LPOP', KEYS[1], ARGV[1]) or {}) do
  local attempt = call('HINCRBY', job, 'attempt', 1)
  local found = call('HMGET', job, 'cmd', 'data')
  jobs[i] = { job, attempt, found[1], found[2] }
end
return jobs
"""
# KEYS the jobs; ARGV attempt and result of each. Gives 1 for each that was committed, 0 for what came too late.
REPORT = """
local call, done = redis.call, {}
for i, job in ipairs(KEYS) do
  local found = call('HMGET', job, 'attempt', 'data')
  if found[1] == ARGV[2 * i - 1] and found[2] then
    call('HSET', job, 'result', ARGV[2 * i])
    call('HDEL', job, 'data')
    done[i] = 1
  else
    done[i] = 0
  end
end
return done
"""
_EVENTS, _POLLIN, _RCVMORE = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.RCVMORE)
_AT_ONCE, _MORE = int(zmq.DONTWAIT), int(zmq.SNDMORE)
Socket = zmq.Socket[bytes]
Placed = tuple[bytes, int, bytes, bytes, bytes]  # the client's address and tag, job_id, cmd, data
Ended = tuple[bytes, int, bytes]  # job_id, attempt, result


def endpoint(home: Path, name: str) -> str:
    return f"ipc://{home}/{name}"


class Sockets:
    """The sockets of a process, and its poll."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._context = zmq.Context[Socket]()
        self._epoll = select.epoll()
        self._made: dict[int, Socket] = {}

    def bind(self, kind: int, name: str) -> Socket:
        made = self._make(kind)
        made.bind(endpoint(self._home, name))
        return made

    def connect(self, kind: int, name: str) -> Socket:
        made = self._make(kind)
        made.connect(endpoint(self._home, name))
        return made

    def _make(self, kind: int) -> Socket:
        made = self._context.socket(kind)
        made.linger = 0
        made.set_hwm(0)
        if kind != zmq.PUSH:
            self._made[int(made.getsockopt(zmq.FD))] = made
            self._epoll.register(int(made.getsockopt(zmq.FD)), select.EPOLLIN)
        return made

    def watch(self, descriptor: int) -> None:
        self._epoll.register(descriptor, select.EPOLLIN)

    def poll(self, wait_s: float) -> set[Any]:
        """Sleep until something can be read; return what: sockets and descriptors."""
        # A socket's descriptor tells of a change once, so the socket is asked before each sleep.
        ready: set[Any] = set(filter(has_message, self._made.values()))
        for descriptor, _ in self._epoll.poll(0 if ready else wait_s):
            if descriptor not in self._made:
                ready.add(descriptor)
        return ready


def has_message(source: Socket) -> bool:
    return bool(int(source.getsockopt(_EVENTS)) & _POLLIN)


def drain(source: Socket) -> list[list[bytes]]:
    """Read what is there, each message as its frames."""
    messages: list[list[bytes]] = []
    while len(messages) < DRAIN and has_message(source):
        frames = [source.recv(_AT_ONCE)]
        while source.getsockopt(_RCVMORE):
            frames.append(source.recv(_AT_ONCE))
        messages.append(frames)
    return messages


def spelt(*words: Any) -> bytes:
    """Spell a command as Redis reads it."""
    command: bytes = hiredis.pack_command(words)
    return command


class Redis:
    """A line to Redis with the three scripts. One pipeline is under way at most."""

    def __init__(self, home: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(home / "redis"))
        self._reader = hiredis.Reader()
        self._names = [self.ask("SCRIPT", "LOAD", script) for script in (SUBMIT, CLAIM, REPORT)]

    def submit(self, placed: list[Placed]) -> bytes:
        words = [word for job in placed for word in job[3:]]
        return self._spelt(0, len(placed) + 1, READY, *[job[2] for job in placed], *words)

    def claim(self, most: int) -> bytes:
        return self._spelt(1, 1, READY, most)

    def report(self, ended: list[Ended]) -> bytes:
        words = [word for _, attempt, result in ended for word in (attempt, result)]
        return self._spelt(2, len(ended), *[job_id for job_id, _, _ in ended], *words)

    def _spelt(self, script: int, *words: Any) -> bytes:
        return spelt("EVALSHA", self._names[script], *words)

    def send(self, pipeline: bytes) -> None:
        self.socket.sendall(pipeline)

    def replies(self) -> list[Any]:
        """Read what has come. Raises the errors of Redis."""
        self._reader.feed(self.socket.recv(READ_BYTES))
        found = []
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                raise reply
            found.append(reply)
        return found

    def ask(self, *words: Any) -> Any:
        return self.ask_all(spelt(*words))[0]

    def ask_all(self, *commands: bytes) -> list[Any]:
        """Send a pipeline and wait for its replies."""
        self.send(b"".join(commands))
        found: list[Any] = []
        while len(found) < len(commands):
            found += self.replies()
        return found


class Router:
    """One turn after the other; what comes meanwhile waits for the next."""

    def __init__(self, home: Path) -> None:
        self.sockets = Sockets(home)
        self.front = self.sockets.bind(zmq.ROUTER, "front")
        self.results = self.sockets.bind(zmq.PULL, "results")
        self.jobs = self.sockets.bind(zmq.PUSH, "jobs")
        self.redis = Redis(home)
        self.sockets.watch(self.redis.socket.fileno())
        self.worker = b""  # its address
        self.credit = 0
        self.ready = True  # there may be jobs in the queue
        self.waiting: dict[bytes, tuple[bytes, int]] = {}  # job_id -> the client's address and tag
        self.placed: list[Placed] = []
        self.ended: list[Ended] = []
        # Of the turn under way:
        self.taken: list[Placed] = []
        self.reported: list[Ended] = []
        self.claimed = 0
        self.replies: list[Any] = []
        self.due = 0  # replies that the turn has still to get

    def serve(self) -> NoReturn:
        redis = self.redis.socket.fileno()
        while True:
            ready = self.sockets.poll(60.0)
            if self.front in ready:
                self._read_front()
            if self.results in ready:
                for (frame,) in drain(self.results):
                    self.ended += msgpack.unpackb(frame)
            if redis in ready:
                self.replies += self.redis.replies()
                if len(self.replies) == self.due:
                    self._apply()
            if not self.due:
                self._plan()

    def _read_front(self) -> None:
        for address, frame in drain(self.front):
            if not frame:
                self.worker, self.credit = address, SLOTS * DEPTH
                continue
            for tag, job_id, cmd, data in msgpack.unpackb(frame):
                self.placed.append((address, tag, job_id, cmd, data))

    def _plan(self) -> None:
        pipeline = []
        self.taken, self.placed = self.placed, []
        self.reported, self.ended = self.ended, []
        if self.reported:
            self.credit += len(self.reported)
            pipeline.append(self.redis.report(self.reported))
        if self.taken:
            self.ready = True
            for address, tag, job_id, _, _ in self.taken:
                self.waiting[job_id] = address, tag
            pipeline.append(self.redis.submit(self.taken))
        self.claimed = self.credit if self.ready else 0
        if self.claimed:
            pipeline.append(self.redis.claim(self.claimed))
        self.due, self.replies = len(pipeline), []
        if pipeline:
            self.redis.send(b"".join(pipeline))

    def _apply(self) -> None:
        """The turn is committed: answer."""
        self.due = 0
        if self.claimed:
            jobs = self.replies[-1]
            self.ready = len(jobs) == self.claimed
            self.credit -= len(jobs)
            if jobs:
                self.jobs.send(msgpack.packb(jobs))
        told: dict[bytes, tuple[list[int], list[tuple[int, bytes]]]] = {}
        for address, tag, _, _, _ in self.taken:
            told.setdefault(address, ([], []))[0].append(tag)
        if self.reported:
            for (job_id, _, result), done in zip(self.reported, self.replies[0], strict=True):
                found = self.waiting.pop(job_id, None) if done else None
                if found is not None:
                    told.setdefault(found[0], ([], []))[1].append((found[1], result))
            self._say(self.worker, [(job_id, attempt) for job_id, attempt, _ in self.reported])
        for address, message in told.items():
            self._say(address, message)

    def _say(self, address: bytes, message: Any) -> None:
        self.front.send(address, _MORE)
        self.front.send(msgpack.packb(message))


class Worker:
    """Hands jobs to its slots, keeps results until they are committed, and never runs a function."""

    def __init__(self, home: Path) -> None:
        self.lines = [_slot() for _ in range(SLOTS)]
        self.sockets = Sockets(home)
        self.front = self.sockets.connect(zmq.DEALER, "front")
        self.jobs = self.sockets.connect(zmq.PULL, "jobs")
        self.results = self.sockets.connect(zmq.PUSH, "results")
        self.queue: deque[list[Any]] = deque()
        self.held = [0] * SLOTS
        self.unacked: dict[tuple[bytes, int], tuple[float, list[Any]]] = {}
        for line in self.lines:
            self.sockets.watch(line.fileno())

    def serve(self) -> NoReturn:
        self.front.send(b"")
        buffer = bytearray(LINE_BYTES)
        view = memoryview(buffer)
        again_at = 0.0
        while True:
            ready = self.sockets.poll(RESEND_S)
            now = time.monotonic()
            ended = []
            for number, line in enumerate(self.lines):
                if line.fileno() in ready:
                    ended += self._read(number, line, view)
            if self.jobs in ready:
                for (frame,) in drain(self.jobs):
                    self.queue += msgpack.unpackb(frame)
            if self.front in ready:
                for (frame,) in drain(self.front):
                    for job_id, attempt in msgpack.unpackb(frame):
                        self.unacked.pop((job_id, attempt), None)
            if self.queue:
                self._deal()
            for report in ended:
                self.unacked[report[0], report[1]] = now, report
            if now >= again_at:
                again_at = now + RESEND_S
                ended += [report for since, report in self.unacked.values() if now - since > RESEND_S]
            if ended:
                self.results.send(msgpack.packb(ended))

    def _read(self, number: int, line: socket.socket, view: memoryview) -> list[list[Any]]:
        found = []
        try:
            while True:
                size = line.recv_into(view, 0, socket.MSG_DONTWAIT)
                if not size:
                    raise SystemExit("a slot has ended")
                found.append(msgpack.unpackb(view[:size]))
        except BlockingIOError:
            self.held[number] -= len(found)
            return found

    def _deal(self) -> None:
        """Give jobs to the slot that has the fewest, as deep as they may be."""
        while self.queue:
            number = min(range(SLOTS), key=self.held.__getitem__)
            if self.held[number] == DEPTH:
                return
            try:
                self.lines[number].send(msgpack.packb(self.queue[0]), socket.MSG_DONTWAIT)
            except BlockingIOError:
                return  # the line is full: it goes on when the slot has read
            self.queue.popleft()
            self.held[number] += 1


def _slot() -> socket.socket:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in (near, far):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LINE_BYTES)
    command = [sys.executable, "-m", "benchmarks.bare", "slot", str(far.fileno())]
    subprocess.Popen(command, pass_fds=[far.fileno()])
    far.close()
    return near


def serve_slot(line: socket.socket) -> None:
    """Run one job after the other, until the worker is gone."""
    view = memoryview(bytearray(LINE_BYTES))
    while size := line.recv_into(view):
        job_id, attempt, cmd, data = msgpack.unpackb(view[:size])
        result = FUNCTIONS[cmd](msgpack.unpackb(data))
        line.send(msgpack.packb((job_id, attempt, msgpack.packb(result))))


def serve_echo(home: Path) -> NoReturn:
    """Send back whatever comes: what ZeroMQ and pyzmq cost by themselves."""
    echo = zmq.Context[Socket]().socket(zmq.ROUTER)
    echo.set_hwm(0)
    echo.bind(endpoint(home, "echo"))
    while True:
        address, frame = echo.recv(), echo.recv()
        echo.send(address, _MORE)
        echo.send(frame)


def main(part: str, where: str) -> None:
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    match part:
        case "router":
            Router(Path(where)).serve()
        case "worker":
            Worker(Path(where)).serve()
        case "slot":
            serve_slot(socket.socket(fileno=int(where)))
        case "echo":
            serve_echo(Path(where))


if __name__ == "__main__":
    main(*sys.argv[1:])
