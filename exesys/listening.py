"""The connections of an HTTP server: which are looked at, and which one goes when there are too many.

waitress asks every connection before each sleep what it waits for; with a
thousand that say nothing that is most of what a request costs. Here epoll
remembers it, and only those are asked to which something happened.

A request that the application calls quick is served in the thread that looks
after the connections: handing it to a worker and back costs more than it does
itself. What it waits for comes later (`Later`), and holds no thread.

And waitress accepts nobody while all places are taken, so that whoever opens
connections and sends half a request keeps everybody out. Here somebody new
takes the place of the one that has been longest without a whole request.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.wasyncore import readwrite

CHANNEL_TIMEOUT_S = 60
CLEANUP_S = 5
HEADER_BYTES = 64 << 10
LATER = "exesys.later"  # in the environ of a quick request: a `Later`
STREAM = "exesys.stream"  # in the environ: called with the socket, and whether it is spelt in chunks
TOLD_S = 60.0  # so often at most the log is told that all places are taken
CLOSING_S = 1.0  # so long at most answers that were promised are waited for at the end
_MOST_HEADS = 100
_MOST_UNREAD_BYTES = 64 << 10
_JOINED_BYTES = 64 << 10  # an answer up to this goes out in one piece with its headers
_READ, _WRITE = select.EPOLLIN | select.EPOLLPRI, select.EPOLLOUT
_ANY_NUMBER = 1 << 30  # for waitress, which is not to count connections
log = logging.getLogger("http")


_FULL = b'{"error":{"code":"unavailable","message":"all connections are taken.","field":"","fix":"Try again soon."}}\n'
_BUSY = (
    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nContent-Type: application/json\r\nRetry-After: 1\r\n"
    b"Content-Length: %d\r\n\r\n%s" % (len(_FULL), _FULL)
)


def _refuse(channel: Channel) -> None:
    """Tell one that was never served why it has to go."""
    with contextlib.suppress(OSError):  # it may be gone, or not read
        channel.socket.recv(HEADER_BYTES)  # what is not read when a socket is closed takes the answer with it
    with contextlib.suppress(OSError):
        channel.socket.send(_BUSY)


class Answer(NamedTuple):
    """What comes later: the status line, the body, and headers beside those the application gave before."""

    status: str
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()


class Later:
    """The answer of a quick request, whose application must not wait.

    It calls `promise`, and returns an empty answer of which the headers count.
    """

    __slots__ = ("_floor", "answer", "channel", "until")

    def __init__(self, floor: Floor, channel: Channel) -> None:
        self._floor = floor
        self.channel = channel
        self.answer: Callable[[], Answer] | None = None
        self.until = 0.0

    def promise(self, answer: Callable[[], Answer], until: float) -> None:
        """Have `answer` called, in the floor's thread, once it is `ready`; at `until` (monotonic seconds) if it is not.

        Those promised later have a later `until`.
        """
        self.answer, self.until = answer, until

    def ready(self) -> None:
        """Say that there is an answer now. In any thread."""
        self._floor.answer_soon(self)


class Task(WSGITask):  # type: ignore[misc]  # untyped library
    """An answer, or the beginning of one: what an application put at `STREAM` takes its connection over."""

    response_headers: list[tuple[str, str]]  # waitress sets it, and the next
    wrote_header: bool
    start_time: float
    later: Later | None = None  # of a quick request that its application has served
    failure: Exception | None = None  # of that

    def begin(self, later: Later) -> bool:
        """Have the application serve a quick request; tell whether its answer comes later."""
        self.start()
        try:
            self.get_environment()[LATER] = later
            super().execute()
        except Exception as error:  # noqa: BLE001  it is raised again where waitress answers it
            self.failure = error
        self.later = later
        assert later.answer is None or not self.wrote_header, "what comes later is all there is to be written"
        return self.failure is None and later.answer is not None

    def execute(self) -> None:
        if self.failure is not None:
            raise self.failure
        if self.later is None:
            super().execute()
        elif self.later.answer is not None:
            self._fulfil(self.later.answer())

    def _fulfil(self, answer: Answer) -> None:
        alike = (answer.status, answer.headers, *self.response_headers)
        given = [each for each in self.response_headers if each[0].lower() != "content-length"]
        self.status, self.response_headers = answer.status, [*given, *answer.headers]
        self.content_length = len(answer.body)
        if self.version != "1.1" or "CONNECTION" in self.request.headers or not answer.body:
            self.write(answer.body)
            return
        self.channel.write_soon(self.channel.server.floor.heads.of(self, alike) + answer.body)
        self.wrote_header, self.content_bytes_written = True, len(answer.body)

    def write(self, data: bytes) -> None:
        joined = self.complete and not self.wrote_header and 0 < len(data) <= _JOINED_BYTES
        if joined and self.content_length == len(data) and self.has_body:
            self.channel.write_soon(self.build_response_header() + data)
            self.wrote_header, self.content_bytes_written = True, len(data)
        else:
            super().write(data)

    def finish(self) -> None:
        take = (self.environ or {}).get(STREAM)
        if take is None:
            super().finish()
            return
        self.channel.heir = lambda line: take(line, self.chunked_response)
        self.set_close_on_finish()


class Heads:
    """The headers of answers that are alike but for their length, as long as the second lasts that is in them."""

    def __init__(self) -> None:
        self._second = 0
        self._kept: dict[Hashable, tuple[bytes, bytes]] = {}

    def of(self, task: Task, alike: Hashable) -> bytes:
        """Return those of an answer of HTTP 1.1, after which the connection stays."""
        second = int(task.start_time)
        if second != self._second or len(self._kept) > _MOST_HEADS:
            self._second = second
            self._kept.clear()
        kept = self._kept.get(alike)
        if kept is None:
            before, named, after = task.build_response_header().partition(b"\r\nContent-Length: ")
            kept = self._kept[alike] = (before + named, after[after.index(b"\r\n") :])
        return b"%b%d%b" % (kept[0], task.content_length, kept[1])


class Channel(HTTPChannel):  # type: ignore[misc]  # untyped library
    """A connection. Its floor knows when it comes and goes."""

    task_class = Task
    connected = False  # waitress sets it
    inherited = False  # the socket is that of the heir now
    asked = False  # whether a whole request came since it was last settled
    served = False  # whether any came
    heir: Callable[[socket.socket], None] | None = None  # who gets the socket when all is sent
    begun: Task | None = None  # what was served in the floor's thread, and is not answered yet

    def add_channel(self, map: Any = None) -> None:
        super().add_channel(map)
        self.server.floor.came(self)

    def del_channel(self, map: Any = None) -> None:
        self.server.floor.left(self)
        super().del_channel(map)

    def handle_close(self) -> None:
        if self.inherited:
            return
        heir, self.heir = self.heir, None
        if heir is None or self.total_outbufs_len or not self.connected:
            super().handle_close()
            return
        self.connected, self.inherited = False, True
        self.del_channel()
        heir(self.socket)

    def begin(self) -> Later | None:
        """Serve the first request, a quick one, in this thread; return its answer if that comes later."""
        later = Later(self.server.floor, self)
        self.begun = self.task_class(self, self.requests[0])
        return later if self.begun.begin(later) else None

    def end(self) -> None:
        """Answer what was begun."""
        task, self.begun = self.begun, None
        # Where waitress makes one it deals with all that goes wrong, too.
        self.task_class = lambda *_: task  # type: ignore[assignment]  # it is only called
        try:
            self.service()
        finally:
            del self.task_class

    def _flush_outbufs_below_high_watermark(self) -> None:
        # waitress has a worker wait here for who reads slowly. The floor's thread is the one that flushes: it goes on.
        if not self.server.floor.is_here:
            super()._flush_outbufs_below_high_watermark()

    @property
    def settled(self) -> bool:
        """Whether nothing is under way: it waits for a request, or for the rest of one."""
        return not (self.requests or self.writable())


class Server(TcpWSGIServer):  # type: ignore[misc]  # untyped library
    """A socket that listens."""

    def __init__(self, floor: Floor, channel_class: type[Channel], *parts: Any, **named: Any) -> None:
        self.floor = floor
        self.channel_class = channel_class
        super().__init__(*parts, map=floor.map, **named)

    def add_task(self, channel: Channel) -> None:
        channel.asked = channel.served = True
        if not self.floor.serve_soon(channel):
            super().add_task(channel)

    def pull_trigger(self) -> None:
        self.floor.wake()

    def maintenance(self, now: float) -> None:
        super().maintenance(now)
        self.floor.look_at(each for each in self.active_channels.values() if each.will_close)


class Floor:
    """All connections of an HTTP server. One thread calls `turn`, again and again."""

    def __init__(
        self,
        app: Callable[..., Any],
        host: str,
        port: int,
        threads: int,
        most: int,
        body_bytes: int,
        channel_class: type[Channel] = Channel,
        is_quick: Callable[[Any], bool] = lambda request: False,
        served: Callable[[], None] = lambda: None,
    ) -> None:
        """Listen at `host`, with at most `most` connections; bodies of more than `body_bytes` are refused.

        `is_quick` tells which of waitress's requests the application serves without waiting for anything;
        `served` is called when it has served some.
        Raises OSError when the address cannot be had.
        """
        self.map: dict[int, Any] = {}  # waitress's: descriptor -> what is to be read or written
        self._most = most
        self._open: set[Channel] = set()
        self._told_at = float("-inf")
        self._epoll = select.epoll()
        self._waits: dict[int, int] = {}  # descriptor -> what epoll was told
        self._restless: set[Channel] = set()  # what they wait for may be another
        self._settled: dict[Channel, None] = {}  # the one longest without a whole request first
        self._is_quick = is_quick
        self._served = served
        self._quick: list[Channel] = []  # to be served in this thread
        self._promised: dict[Later, None] = {}  # the one to be answered first, first
        self._ready: deque[Later] = deque()
        self.heads = Heads()
        self._thread = 0  # which calls `turn`
        self._asleep = False
        adjustments = Adjustments(
            host=host,
            port=port,
            threads=threads,
            connection_limit=_ANY_NUMBER,
            channel_timeout=CHANNEL_TIMEOUT_S,
            cleanup_interval=CLEANUP_S,
            max_request_header_size=HEADER_BYTES,
            max_request_body_size=body_bytes,
            inbuf_overflow=body_bytes,
            ident="exesys",
            clear_untrusted_proxy_headers=True,
        )
        self._tasks = ThreadedTaskDispatcher()
        self._tasks.set_thread_count(threads)
        self._servers = [
            Server(self, channel_class, app, dispatcher=self._tasks, adj=adjustments, sockinfo=address)
            for address in adjustments.listen
        ]
        for each in self.map.values():
            self._ask(each)

    def came(self, channel: Channel) -> None:
        """Take in a connection that was just accepted."""
        self._open.add(channel)
        self._restless.add(channel)

    def left(self, channel: Channel) -> None:
        """Forget a connection whose descriptor is about to be closed."""
        self._open.discard(channel)  # an end may be told twice
        self._restless.discard(channel)
        self._settled.pop(channel, None)
        self._wait_for(channel._fileno, 0)

    def look_at(self, channels: Any) -> None:
        """Ask these connections anew what they wait for."""
        self._restless.update(channels)

    @property
    def is_here(self) -> bool:
        """Whether this is the floor's thread."""
        return threading.get_ident() == self._thread

    def serve_soon(self, channel: Channel) -> bool:
        """In the floor's thread, have the first request of a connection served in it if it is quick; tell whether.

        Not when much was answered on it that nobody has read: a worker may wait for that, this thread may not.
        """
        if (
            not self.is_here
            or channel.total_outbufs_len > _MOST_UNREAD_BYTES
            or not self._is_quick(channel.requests[0])
        ):
            return False
        self._quick.append(channel)
        return True

    def answer_soon(self, later: Later) -> None:
        """Have the floor's thread answer what is ready. In any thread."""
        self._ready.append(later)
        self.wake()

    def wake(self) -> None:
        """Have the floor look again at what is to be done. In any thread, after that was changed."""
        if self._asleep:
            self._asleep = False
            self._servers[0].trigger.pull_trigger()

    def turn(self, timeout_s: float) -> None:
        """Sleep until something happens, at most `timeout_s`, and deal with it."""
        self._thread = threading.get_ident()
        self._asleep = True  # what changes from here on wakes it
        for server in self._servers:
            server.readable()  # now and then it looks for those that were silent for too long
        for channel in tuple(self._restless):
            settled = channel.settled  # before it is asked: a request may end between the two
            self._ask(channel)
            if settled:
                self._settle(channel)
        while len(self._open) > self._most and self._settled:
            self._make_room()
        happened = self._epoll.poll(self._sleep_s(timeout_s))
        self._asleep = False
        for descriptor, flags in happened:
            each = self.map.get(descriptor)
            if each is None:
                continue
            if isinstance(each, Channel) and each.begun is not None:
                self._wait_for(descriptor, 0)  # until it is answered
                continue
            readwrite(each, flags)
            if isinstance(each, Channel) and each in self._settled and (each.asked or not each.settled):
                del self._settled[each]
                self._restless.add(each)

        self._serve_quick()
        self._answer()

    def _sleep_s(self, most_s: float) -> float:
        if self._quick or self._ready:
            return 0.0
        first = next(iter(self._promised), None)
        return most_s if first is None else min(most_s, max(0.0, first.until - time.monotonic()))

    def _serve_quick(self) -> None:
        channels, self._quick = self._quick, []
        for channel in channels:
            later = channel.begin()
            if later is None:
                self._end(channel)
            else:
                self._promised[later] = None
                self._restless.discard(channel)
        if channels:
            self._served()

    def _answer(self) -> None:
        """Answer what is ready, and what was to be by now."""
        while self._ready:
            self._keep(self._ready.popleft())
        now = time.monotonic() if self._promised else 0.0
        while (first := next(iter(self._promised), None)) is not None and first.until <= now:
            self._keep(first)

    def _keep(self, later: Later) -> None:
        if later in self._promised:  # it may have been too late
            del self._promised[later]
            self._end(later.channel)

    def _end(self, channel: Channel) -> None:
        try:
            channel.end()
        except Exception:  # which must not end them all
            log.exception("a connection is closed")
            channel.handle_close()
        if channel in self._open:
            self._restless.add(channel)
            if channel.settled:
                self._ask(channel)
                self._settle(channel)

    def _settle(self, channel: Channel) -> None:
        self._restless.discard(channel)
        channel.asked = False
        self._settled[channel] = None

    def _make_room(self) -> None:
        channel = next(iter(self._settled))
        if not channel.served:
            _refuse(channel)
        channel.handle_close()
        now = time.monotonic()
        if now >= self._told_at + TOLD_S:
            self._told_at = now
            log.warning("all %d connections are taken: those longest without a whole request are closed", self._most)

    def _ask(self, each: Any) -> None:
        """Have epoll wait for what this one waits for."""
        reads, writes = each.readable(), each.writable() and not each.accepting
        self._wait_for(each._fileno, (_READ if reads else 0) | (_WRITE if writes else 0))

    def _wait_for(self, descriptor: int, flags: int) -> None:
        before = self._waits.pop(descriptor, 0)
        if flags:
            self._waits[descriptor] = flags
        if flags == before:
            return
        if not before:
            self._epoll.register(descriptor, flags)
        elif flags:
            self._epoll.modify(descriptor, flags)
        else:
            # Not only without flags: epoll tells of an end whether it is waited for or not.
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        """Give requests under way a moment to end, and listen no more."""
        until = time.monotonic() + CLOSING_S
        while self._promised and time.monotonic() < until:
            self.turn(until - time.monotonic())
        self._thread, self._asleep = 0, False  # nobody writes to the trigger from here on
        self._tasks.shutdown(timeout=1)
        for server in self._servers:
            server.close()
        self._epoll.close()
