"""Server-sent events to many: connections that take no thread, fed from the stream in Redis.

A request that asks for events is answered by the usual way, up to its first
bytes; then its connection is given to the hub (see `listening`), whose one
thread looks ten times a second what is new, puts it into words once for all
who want the same, and sends it. Whoever reads too slowly is left out of some,
and told so.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

from exesys import news
from exesys.errors import Unavailable
from exesys.news import Entry, Mark, Wanted

FRAME_S = 0.1
AWAY_S = 1.0  # so long the store is left alone when it is away
STATS_S = 1.0
CHECK_S = 5.0  # so often it is looked whether listeners may stay
SIGN_S = 15.0  # after so long without news a comment shows both ends that the other is there
MOST_ENTRIES = 1000  # read at once
MOST_PENDING = 1 << 20  # bytes for one listener that it does not read
STUCK_S = 30.0  # whoever reads nothing for so long is let go
_SIGN = b": still here\n\n"

log = logging.getLogger("http")


class Source(Protocol):
    """Where news come from; see `store/tail.py`."""

    def newest(self) -> str: ...

    def since(self, place: str, most: int, whole: bool = False) -> tuple[list[Entry], bool]: ...


class Jobs(Protocol):
    """What the hub asks about jobs that are followed."""

    def under_way(self, job_id: str) -> bool:
        """Tell whether a job has steps that have not ended."""

    def shown(self, job_id: str) -> bytes:
        """Return a job as `GET /jobs/<job_id>` does; b"" when it is gone."""


class Seat(NamedTuple):
    """What somebody listens to: from which place on, and whether it still may."""

    wanted: Wanted
    since: Mark
    may_stay: Callable[[], bool]


class _Listener:
    """A connection. Its socket does not block."""

    def __init__(self, seat: Seat, line: socket.socket, chunked: bool, now: float) -> None:
        self.seat = seat
        self.wanted = seat.wanted
        self.line = line
        self.chunked = chunked
        self.pending = b""
        self.behind = False  # some was left out since it did not read
        self.leaves = False  # when all is sent
        self.moved_at = self.told_at = now  # when it last took something, and was last given something
        line.setblocking(False)


class Hub:
    """All who listen. One thread, which begins with the first of them."""

    def __init__(self, source: Source, jobs: Jobs, figures: Callable[[], dict[str, Any] | None], most: int) -> None:
        """Serve up to `most` listeners; `figures` gives what the kind `stats` tells, None while it is not known."""
        self._source = source
        self._jobs = jobs
        self._figures = figures
        self._most = most
        self._lock = threading.Lock()
        self._arriving: list[_Listener] = []
        self._count = 0
        self._listeners: dict[int, _Listener] = {}
        self._place = ""
        self._epoll = select.epoll()
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._epoll.register(self._wake_read, select.EPOLLIN)
        self._frame_at = self._stats_at = self._check_at = 0.0
        self._closing = False
        self._last_chunk = b"", b""
        self._thread: threading.Thread | None = None

    # --- any thread -----------------------------------------------------------

    def check_room(self) -> None:
        """Raise Unavailable when as many listen as may."""
        if self._count >= self._most:
            fix = "Try again later, or raise [rest] streams."
            raise Unavailable(f"{self._most} streams are open, as many as may be.", fix=fix)

    def seat(self, seat: Seat) -> Callable[[socket.socket, bool], None]:
        """Return what takes a connection over, once its first bytes are sent; `chunked` tells how it is spelt."""

        def take(line: socket.socket, chunked: bool) -> None:
            with self._lock:
                if self._closing or self._count >= self._most:
                    line.close()
                    return
                self._count += 1
                self._arriving.append(_Listener(seat, line, chunked, time.monotonic()))
                if self._thread is None or not self._thread.is_alive():
                    self._thread = threading.Thread(target=self._serve, daemon=True, name="exesys-streams")
                    self._thread.start()
            self._wake()

        return take

    def close(self) -> None:
        """End all streams, and the thread."""
        with self._lock:
            self._closing = True
        self._wake()
        if self._thread is not None:
            self._thread.join(2 * AWAY_S)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake_write, b"\0")

    # --- the hub's own thread ---------------------------------------------------

    def _serve(self) -> None:
        while not self._closing:
            wait_s = max(self._frame_at - time.monotonic(), 0.0) if self._listeners else -1
            for descriptor, flags in self._epoll.poll(wait_s):
                if descriptor == self._wake_read:
                    os.read(self._wake_read, 4096)
                elif descriptor in self._listeners:
                    self._heed(self._listeners[descriptor], flags)
            now = time.monotonic()
            self._frame(now)
            self._welcome(now)
        for listener in (*self._listeners.values(), *self._arriving):
            listener.line.close()

    def _heed(self, listener: _Listener, flags: int) -> None:
        if flags & (select.EPOLLHUP | select.EPOLLERR):
            self._drop(listener)
            return
        if flags & (select.EPOLLIN | select.EPOLLRDHUP):
            try:
                if not listener.line.recv(4096):  # what a listener says is not heard
                    self._drop(listener)
                    return
            except BlockingIOError:
                pass
            except OSError:
                self._drop(listener)
                return
        if flags & select.EPOLLOUT:
            self._send(listener, b"", time.monotonic())

    def _welcome(self, now: float) -> None:
        """Take in who has come: what was told since the place that each knows, and then what all are told."""
        with self._lock:
            arriving, self._arriving = self._arriving, []
        if arriving:
            self._frame_at = now  # so that the hub knows at least as much as who comes
            self._frame(now)
        for listener in arriving:
            self._epoll.register(listener.line, select.EPOLLIN | select.EPOLLRDHUP)
            self._listeners[listener.line.fileno()] = listener
            try:
                if len(self._listeners) == 1:
                    self._place = self._source.newest()
                self._tell_missed(listener, now)
            except Unavailable:
                self._tell(listener, self._gap(listener, None), now)

    def _tell_missed(self, listener: _Listener, now: float) -> None:
        since, wanted = listener.seat.since, listener.wanted
        if news.later(since.entry, self._place):  # of another history of Redis
            self._tell(listener, self._gap(listener, None), now)
            return
        entries, gone = self._source.since(since.entry, MOST_ENTRIES, whole=True)
        missed = list(entries)
        while len(entries) == MOST_ENTRIES and not news.later(entries[-1].id, self._place):
            entries, _ = self._source.since(entries[-1].id, MOST_ENTRIES)
            missed += entries
        missed = [entry for entry in missed if not news.later(entry.id, self._place)]
        frame = news.gathered(missed, wanted, since)
        pieces = [self._gap(listener, None)] if gone else []
        pieces.append(news.spelt(frame))
        if data := b"".join(pieces):
            self._tell(listener, data, now)
        if wanted.job_id:
            self._end_of_job(wanted.job_id, [listener], now)

    def _frame(self, now: float) -> None:
        """Tell all what is new, if it is time."""
        if now < self._frame_at or not self._listeners:
            return
        self._frame_at = now + FRAME_S
        try:
            entries, gone = self._source.since(self._place, MOST_ENTRIES)
        except Unavailable:
            self._frame_at = now + AWAY_S
            entries, gone = [], False
        if entries:
            self._place = entries[-1].id
        if len(entries) == MOST_ENTRIES:
            self._frame_at = now
        self._spread(entries, gone, now)
        self._look_after(now)

    def _spread(self, entries: list[Entry], gone: bool, now: float) -> None:
        stats = self._stats(now)
        groups: dict[Wanted, list[_Listener]] = {}
        for listener in self._listeners.values():
            groups.setdefault(listener.wanted, []).append(listener)
        for wanted, listeners in groups.items():
            frame = news.gathered(entries, wanted)
            data = news.spelt(frame) + (stats if "stats" in wanted.kinds else b"")
            if gone:
                data = self._gap(listeners[0], None) + data
            if data:
                for listener in listeners:
                    self._tell(listener, data, now)
            ended = any(isinstance(each, news.Moved) and each.state.final for each in frame.news)
            if wanted.job_id and (gone or ended):
                self._end_of_job(wanted.job_id, listeners, now)

    def _stats(self, now: float) -> bytes:
        if now < self._stats_at or not any("stats" in each.wanted.kinds for each in self._listeners.values()):
            return b""
        self._stats_at = now + STATS_S
        figures = self._figures()
        return b"" if figures is None else news.event("stats", figures)

    def _gap(self, listener: _Listener, left_out: int | None) -> bytes:
        """Say that some was left out; who follows one job is shown it anew."""
        if not listener.wanted.job_id:
            return news.gap(left_out)
        try:
            shown = self._jobs.shown(listener.wanted.job_id)
        except Unavailable:
            shown = b""
        return news.gap(left_out) + (news.event("job", shown) if shown else b"")

    def _end_of_job(self, job_id: str, listeners: list[_Listener], now: float) -> None:
        """Show who follows a job its end, if it has ended, and let them go."""
        try:
            if self._jobs.under_way(job_id):
                return
            shown = self._jobs.shown(job_id)
        except Unavailable:
            return
        data = news.event("end", shown or b"null")
        for listener in listeners:
            listener.leaves = True
            self._tell(listener, data, now)

    def _look_after(self, now: float) -> None:
        """Let those go that may not stay, or read nothing; show the others that somebody is here."""
        check = now >= self._check_at
        if check:
            self._check_at = now + CHECK_S
        for listener in tuple(self._listeners.values()):
            stuck = bool(listener.pending) and now - listener.moved_at > STUCK_S
            if stuck or (check and not listener.seat.may_stay()):
                self._drop(listener)
            elif now - listener.told_at > SIGN_S:
                self._tell(listener, _SIGN, now)

    def _tell(self, listener: _Listener, data: bytes, now: float) -> None:
        listener.told_at = now
        if len(listener.pending) > MOST_PENDING:
            listener.behind = True
            if listener.leaves:
                self._drop(listener)  # it asks again, and is told the end
            return
        if listener.behind:
            listener.behind = False
            data = self._gap(listener, None) + data
        self._send(listener, self._chunk(data) if listener.chunked else data, now)

    def _chunk(self, data: bytes) -> bytes:
        """Spell a chunk of HTTP/1.1. Many get the same one after the other: it is made, and kept in memory, once."""
        if self._last_chunk[0] is not data:
            self._last_chunk = data, b"%x\r\n%s\r\n" % (len(data), data)
        return self._last_chunk[1]

    def _send(self, listener: _Listener, data: bytes, now: float) -> None:
        before = len(listener.pending)
        data = listener.pending + data if before else data
        try:
            sent = listener.line.send(data) if data else 0
        except BlockingIOError:
            sent = 0
        except OSError:
            self._drop(listener)
            return
        listener.pending = data[sent:]
        if sent or not before:
            listener.moved_at = now
        if bool(before) != bool(listener.pending):
            more = select.EPOLLOUT if listener.pending else 0
            self._epoll.modify(listener.line, select.EPOLLIN | select.EPOLLRDHUP | more)
        if listener.leaves and not listener.pending:
            self._drop(listener)

    def _drop(self, listener: _Listener) -> None:
        if self._listeners.pop(listener.line.fileno(), None) is None:
            return
        self._epoll.unregister(listener.line)
        if listener.leaves and listener.chunked and not listener.pending:
            with contextlib.suppress(OSError):
                listener.line.send(b"0\r\n\r\n")
        listener.line.close()
        with self._lock:
            self._count -= 1
