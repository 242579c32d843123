"""Lines from a caller to the instances of application servers, and the pool that keeps them.

A line is one DEALER to one instance with its monitor, and never reconnects.
A call has a line to itself until its answer came; then the line waits for the
next call. A line whose call got no answer is closed: what came late would be
taken for another's.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable

import zmq

from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.bus.curve import Identity
from exesys.errors import AppLost, Unavailable, from_problem

OPEN_S = 1.0  # how long an instance may take to greet a new line
SLICE_S = 1.0  # so often a waiting call looks whether its client was closed
MOST_SOCKETS = 8192


class Unreached(Exception):
    """The call did not begin: it may go to another instance."""


class Line:
    """One connection to one instance. Used by one thread at a time."""

    def __init__(self, context: sockets.Context, endpoint: str, identity: Identity | None) -> None:
        self._socket, self._monitor = sockets.line(context, endpoint, identity)
        self._poller = zmq.Poller()
        self._poller.register(self._socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)
        self._left = False  # the instance said farewell

    def open(self, until: float) -> bool:
        """Wait until the other end greets."""
        left = until - time.monotonic()
        return bool(self._monitor.poll(max(0, int(left * 1000)))) and sockets.ups(self._monitor) == [True]

    @property
    def up(self) -> bool:
        return not (self._left or sockets.readable(self._monitor))

    def exchange(self, call: m.Call, until: float, closed: Callable[[], bool]) -> m.Return | None:
        """Send a call and wait for its answer; None when the time is over. Raises Unreached, AppLost."""
        if not sockets.send(self._socket, wire.encode(call)):
            raise Unreached
        while True:
            left = until - time.monotonic()
            ready = dict(self._poller.poll(max(0, int(min(left, SLICE_S) * 1000 + 0.999))))
            down = self._monitor in ready or closed()
            if self._socket in ready or down:
                answer = self._read(call.tag)
                if answer is not None:
                    return answer
                if self._left:
                    raise Unreached
            if down:
                raise AppLost("")
            if left <= 0:
                return None

    def _read(self, tag: int) -> m.Return | None:
        found = None
        for frames in sockets.drain(self._socket):
            answer = wire.decode_at_caller(frames[-1])
            if isinstance(answer, m.Error):
                raise from_problem(answer)
            if isinstance(answer, m.Return):
                if answer.tag == tag:
                    found = answer
                self._left |= answer.tag == m.FAREWELL
        return found

    def close(self) -> None:
        sockets.end_line(self._socket, self._monitor)


class Lines:
    """All lines of one client of the bus at `front`; `identity` is shown where keys are needed."""

    def __init__(self, front: str = "", identity: Identity | None = None) -> None:
        self.closed = False
        self._front = front
        self._identity = identity
        self._lock = threading.Lock()
        self._context: sockets.Context | None = None
        self._idle: defaultdict[str, list[Line]] = defaultdict(list)
        self._busy: Counter[str] = Counter()  # by endpoint: calls under way
        self._used: dict[str, int] = {}  # by endpoint: which call was its last
        self._count = itertools.count(1)

    def choose(self, endpoints: list[str]) -> str:
        """Take the one with the fewest calls under way from here, of equals the one that waited longest."""
        with self._lock:
            chosen = min(endpoints, key=lambda endpoint: (self._busy[endpoint], self._used.get(endpoint, 0)))
            self._used[chosen] = next(self._count)
            self._busy[chosen] += 1
            return chosen

    def exchange(self, endpoint: str, call: m.Call, until: float) -> m.Return | None:
        """Send a call to the endpoint that was chosen for it. Raises as `Line.exchange`."""
        line = None
        try:
            line = self._take(endpoint, until)
            answer = line.exchange(call, until, lambda: self.closed)
            if answer is not None:
                line = self._put_back(endpoint, line)
            return answer
        finally:
            with self._lock:
                self._busy[endpoint] -= 1
                if line is not None:
                    line.close()
                self._tidy()

    def _take(self, endpoint: str, until: float) -> Line:
        with self._lock:
            if self.closed:
                raise Unavailable("this client is closed.")
            while idle := self._idle[endpoint]:
                line = idle.pop()
                if line.up:
                    return line
                line.close()
            if self._context is None:
                self._context = zmq.Context[sockets.Socket]()
                self._context.set(zmq.MAX_SOCKETS, MOST_SOCKETS)
            try:
                line = Line(self._context, sockets.towards(self._front, endpoint), self._identity)
            except ValueError as error:  # the endpoint that the instance told is none
                raise Unreached from error
        try:
            if line.open(min(until, time.monotonic() + OPEN_S)):
                return line
        except BaseException:
            line.close()
            raise
        line.close()
        raise Unreached

    def _put_back(self, endpoint: str, line: Line) -> Line | None:
        """Keep a line for the next call; return it when it is not to be kept."""
        with self._lock:
            if self.closed:
                return line
            self._idle[endpoint].append(line)
            return None

    def keep(self, endpoints: set[str]) -> None:
        """Close the idle lines to all other endpoints."""
        with self._lock:
            for endpoint in [endpoint for endpoint in self._idle if endpoint not in endpoints]:
                self._drop(endpoint)
            self._busy = +self._busy

    def drop(self, endpoint: str) -> None:
        """Close the idle lines to one endpoint: who is there takes no more calls."""
        with self._lock:
            self._drop(endpoint)

    def _drop(self, endpoint: str) -> None:
        for line in self._idle.pop(endpoint, []):
            line.close()
        self._used.pop(endpoint, None)

    def close(self) -> None:
        """Close what is idle; calls under way fail, and the last of them closes the rest."""
        with self._lock:
            self.closed = True
            for lines in self._idle.values():
                for line in lines:
                    line.close()
            self._idle.clear()
            self._tidy()

    def _tidy(self) -> None:
        if self.closed and self._context is not None and not any(self._busy.values()):
            self._context.term()
            self._context = None
