"""The connections of an HTTP server: which are looked at, and which one goes when there are too many.

waitress asks every connection before each sleep what it waits for; with a
thousand that say nothing that is most of what a request costs. Here epoll
remembers it, and only those are asked to which something happened.

And waitress accepts nobody while all places are taken, so that whoever opens
connections and sends half a request keeps everybody out. Here somebody new
takes the place of the one that has been longest without a whole request.
"""

from __future__ import annotations

import contextlib
import logging
import select
import socket
import time
from collections.abc import Callable
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher, WSGITask
from waitress.wasyncore import readwrite

CHANNEL_TIMEOUT_S = 60
CLEANUP_S = 5
HEADER_BYTES = 64 << 10
STREAM = "exesys.stream"  # in the environ: called with the socket, and whether it is spelt in chunks
TOLD_S = 60.0  # so often at most the log is told that all places are taken
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


class Task(WSGITask):  # type: ignore[misc]  # untyped library
    """An answer, or the beginning of one: what an application put at `STREAM` takes its connection over."""

    def finish(self) -> None:
        take = (self.environ or {}).get(STREAM)
        if take is None:
            super().finish()
            return
        self.channel.heir = lambda line: take(line, self.chunked_response)
        self.set_close_on_finish()


class Channel(HTTPChannel):  # type: ignore[misc]  # untyped library
    """A connection. Its floor knows when it comes and goes."""

    task_class = Task
    connected = False  # waitress sets it
    inherited = False  # the socket is that of the heir now
    asked = False  # whether a whole request came since it was last settled
    served = False  # whether any came
    heir: Callable[[socket.socket], None] | None = None  # who gets the socket when all is sent

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
        super().add_task(channel)

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
    ) -> None:
        """Listen at `host`, with at most `most` connections; bodies of more than `body_bytes` are refused.

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

    def turn(self, timeout_s: float) -> None:
        """Sleep until something happens, at most `timeout_s`, and deal with it."""
        for server in self._servers:
            server.readable()  # now and then it looks for those that were silent for too long
        for channel in tuple(self._restless):
            settled = channel.settled  # before it is asked: a request may end between the two
            self._ask(channel)
            if settled:
                self._settle(channel)
        while len(self._open) > self._most and self._settled:
            self._make_room()
        for descriptor, flags in self._epoll.poll(timeout_s):
            each = self.map.get(descriptor)
            if each is None:
                continue
            readwrite(each, flags)
            if isinstance(each, Channel) and each in self._settled and (each.asked or not each.settled):
                del self._settled[each]
                self._restless.add(each)

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
        self._tasks.shutdown(timeout=1)
        for server in self._servers:
            server.close()
        self._epoll.close()
