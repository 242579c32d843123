"""What happens to steps, over the bus: `client.events()`.

    with client.events(cmd="add") as events:
        for event in events:
            print(event["job_id"], event["state"])

The router publishes on `ev.step` as long as somebody listens. PUB/SUB may
lose: each piece names the place where it begins, and one that does not begin
where the last ended is told as a gap.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import zmq

from exesys import news
from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.bus.curve import Identity
from exesys.errors import ProtocolError, ResultTimeout, Unavailable
from exesys.news import Wanted

TOPIC = b"ev.step"
ASK_S = 0.2  # so often is asked for a sign of life until there is one
LOOK_S = 0.5  # so often at the latest it is looked whether it was closed


class Hearing:
    """Turns what was published into news. Pure."""

    def __init__(self, wanted: Wanted) -> None:
        self._wanted = wanted
        self._place = ""  # up to which all was heard; "": nothing was heard so far

    @property
    def begun(self) -> bool:
        return bool(self._place)

    def heard(self, body: Any) -> list[dict[str, Any]]:
        """Take a piece, `[before, last, [[id, fields] …]]`; return its events, before them a gap if there is one."""
        before, last, entries = _checked(body)
        place, self._place = self._place, last
        told: list[dict[str, Any]] = []
        if place and place != before:
            told.append({"event": "gap", "left_out": None})
        for entry in entries:
            found = (each for each in news.read(entry) if self._wanted.fits(each))
            told += ({"event": each.kind, **each.told()} for each in found)
        return told


def _checked(body: Any) -> tuple[str, str, list[news.Entry]]:
    try:
        before, last, entries = body
        if not news.MARK.fullmatch(before) or not news.MARK.fullmatch(last):
            raise ValueError
        return before, last, [news.Entry(id_, dict(fields)) for id_, fields in entries if news.MARK.fullmatch(id_)]
    except (ValueError, TypeError):
        raise ProtocolError("a piece of ev.step is no [before, last, entries]") from None


class Events:
    """What happens from now on, as maps; iterate over it, in one thread. `close` ends it, from any thread.

    A map has `event`: "step" with job_id, from, to, cmd, status, state, at_ms and attempt;
    "progress" with job_id, from, attempt, fraction, text, log and at_ms; or "gap" when some were lost.
    """

    def __init__(
        self,
        wanted: Wanted,
        endpoint: Callable[[], str],
        beat: Callable[[], None],
        identity: Identity | None,
        timeout: float,
    ) -> None:
        """Listen from now on.

        `endpoint` tells where the router publishes, "" while it is away; `beat` has it send a sign
        of life. Raises Unavailable when none came within `timeout` seconds.
        """
        until = time.monotonic() + timeout
        self._hearing = Hearing(wanted)
        self._ready: deque[dict[str, Any]] = deque()
        self._closed = threading.Event()
        self._using = threading.Lock()  # by the one thread that waits
        self._identity = identity
        self._endpoint = endpoint
        self._at = ""
        self._context = zmq.Context[sockets.Socket]()
        self._socket: sockets.Socket | None = None
        while not self._hearing.begun:
            if time.monotonic() >= until or self._closed.is_set():
                self.end()
                raise Unavailable("the router publishes nothing.", fix="See `bin/exesys status`.")
            with contextlib.suppress(Unavailable):
                beat()
            self._take(ASK_S)

    def get(self, timeout: float | None = None) -> dict[str, Any]:
        """Return the next event; wait up to `timeout` seconds. Raises ResultTimeout, Unavailable once it is closed."""
        event = self._next(timeout)
        if event is None:
            raise Unavailable("these events are closed.")
        return event

    def _next(self, timeout: float | None) -> dict[str, Any] | None:
        if not self._using.acquire(blocking=False):
            raise RuntimeError("another thread waits for these events: make one client.events() for each.")
        try:
            return self._awaited(timeout)
        finally:
            self._using.release()

    def _awaited(self, timeout: float | None) -> dict[str, Any] | None:
        until = None if timeout is None else time.monotonic() + timeout
        while not self._ready:
            if self._closed.is_set():
                self._let_go()
                return None
            left_s = LOOK_S if until is None else until - time.monotonic()
            if left_s <= 0:
                raise ResultTimeout(f"nothing has happened within {timeout:g} s.")
            self._take(min(left_s, LOOK_S))
        return self._ready.popleft()

    def _take(self, most_s: float) -> None:
        """Wait up to so long for something to come, and take it."""
        socket = self._connected()
        if socket is None:
            self._closed.wait(most_s)
            return
        if not socket.poll(int(most_s * 1000)):
            return
        for frames in sockets.drain(socket):
            # What makes no sense was not for us.
            with contextlib.suppress(ProtocolError):
                message = wire.decode_at_peer(frames[-1])
                if isinstance(message, m.Event):
                    self._ready.extend(self._hearing.heard(message.body))

    def _connected(self) -> sockets.Socket | None:
        """Return the socket, connected to where the router publishes now: one that was started anew may have moved."""
        at = self._endpoint()
        if at and at != self._at:
            if self._socket is not None:
                self._socket.close(linger=0)
            self._at = at
            self._socket = sockets.connect(self._context, zmq.SUB, at, self._identity, (TOPIC,))
        return self._socket

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        event = self._next(None)
        if event is None:
            raise StopIteration
        return event

    def __enter__(self) -> Events:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.end()

    def close(self) -> None:
        """Listen no more: whoever waits is told that nothing comes."""
        self._closed.set()

    def end(self) -> None:
        """Listen no more, and let go of the connection; a thread that waits lets go of it itself."""
        self.close()
        if self._using.acquire(blocking=False):
            try:
                self._let_go()
            finally:
                self._using.release()

    def _let_go(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
            self._socket = None
        self._context.term()
