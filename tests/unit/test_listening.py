"""The connections of an HTTP server, over loopback: who waits costs nobody anything, and who lingers makes room."""

from __future__ import annotations

import contextlib
import http.client
import logging
import queue
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from exesys.http import _channel, _JsonErrorTask
from exesys.listening import LATER, Answer, Channel, Floor, Later

MOST = 8
BODY_BYTES = 16 << 20
WITHIN_S = 10.0
HALF = b"GET / HTTP/1.1\r\nHost: here\r\n"


class Site:
    """A floor that is served by a thread, and an application that can be held up."""

    def __init__(
        self,
        channel_class: type[Channel] = Channel,
        is_quick: Callable[[Any], bool] = lambda request: False,
        served: Callable[[], None] = lambda: None,
    ) -> None:
        self.going_on = threading.Event()
        self.going_on.set()
        self.floor = Floor(self._app, "127.0.0.1", 0, MOST, MOST, BODY_BYTES, channel_class, is_quick, served)
        [server] = (each for each in self.floor.map.values() if each.accepting)
        self.port = server.effective_port
        self._halt = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        assert self.going_on.wait(WITHIN_S)
        body = environ["wsgi.input"].read() or environ["PATH_INFO"].encode()
        start_response("200 OK", [("Content-Length", str(len(body)))])
        return [body]

    def _serve(self) -> None:
        while not self._halt.is_set():
            self.floor.turn(0.02)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), WITHIN_S)

    def client(self) -> http.client.HTTPConnection:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=WITHIN_S)
        client.connect()
        return client

    def end(self) -> None:
        self.going_on.set()
        self._halt.set()
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive()
        self.floor.close()


@pytest.fixture
def site() -> Iterator[Site]:
    site = Site()
    yield site
    site.end()


def get(client: http.client.HTTPConnection, path: str = "/well") -> bytes:
    client.request("GET", path)
    return client.getresponse().read()


def is_closed(connection: socket.socket) -> bool:
    """Tell whether the other side has closed, without waiting for it; it says why."""
    connection.setblocking(False)
    try:
        while told := connection.recv(1000):
            assert told.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
        return True
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def count_closed(connections: list[socket.socket], wanted: int) -> int:
    deadline = time.monotonic() + WITHIN_S
    while (found := sum(map(is_closed, connections))) < wanted and time.monotonic() < deadline:
        time.sleep(0.005)
    return found


def test_one_connection_serves_many_requests_of_any_size(site: Site) -> None:
    client = site.client()
    for size in (0, 1, 100_000, 1_000_000):
        client.request("POST", "/empty", b"x" * size)
        assert client.getresponse().read() == (b"x" * size or b"/empty")
    client.close()


def test_who_sends_byte_by_byte_is_served(site: Site) -> None:
    with site.connect() as slow:
        for byte in HALF + b"\r\n":
            slow.sendall(bytes([byte]))
        assert slow.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_half_requests_make_room_for_whole_ones(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        lazy = [stack.enter_context(site.connect()) for _ in range(MOST)]
        for each in lazy:
            each.sendall(HALF)
        for _ in range(3 * MOST):
            client = site.client()
            assert get(client) == b"/well"
            client.close()
        assert count_closed(lazy, 1) < MOST, "those that left again made room, too"
        assert is_closed(lazy[0]), "it was there longest"


def test_connections_that_break_lift_no_limit(site: Site) -> None:
    """epoll tells of an end and of what there is to read at once, so waitress closes twice."""
    for _ in range(3 * MOST):
        with site.connect() as broken:
            broken.sendall(HALF)
            broken.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(site.connect()) for _ in range(2 * MOST)]
        assert count_closed(idle, MOST) == MOST


def test_an_address_that_is_none_is_answered() -> None:
    site = Site(_channel(lambda headers: None))
    with site.connect() as odd:
        odd.sendall(b"GET http://[/x HTTP/1.1\r\n\r\n")
        said = odd.recv(1000)
    site.end()
    assert said.startswith(b"HTTP/1.1 400 ")


def test_who_sends_a_byte_now_and_then_keeps_no_place(site: Site) -> None:
    with contextlib.ExitStack() as stack:
        dripping = [stack.enter_context(site.connect()) for _ in range(MOST)]
        honest = [site.client() for _ in range(MOST)]
        for _ in range(3):
            for each in dripping:
                with contextlib.suppress(OSError):
                    each.sendall(b"\r\n")
            assert [get(client) for client in honest] == [b"/well"] * MOST
        assert count_closed(dripping, MOST) == MOST
        for client in honest:
            client.close()


def test_who_asks_again_and_again_stays(site: Site) -> None:
    client = site.client()
    with contextlib.ExitStack() as stack:
        for _ in range(5 * MOST):
            stack.enter_context(site.connect()).sendall(HALF)
            assert get(client) == b"/well"
    client.close()


def test_a_request_under_way_is_never_closed_for_another(site: Site) -> None:
    site.going_on.clear()
    with contextlib.ExitStack() as stack:
        waiting = [stack.enter_context(site.connect()) for _ in range(MOST)]
        for each in waiting:
            each.sendall(HALF + b"\r\n")
        late = stack.enter_context(site.connect())
        late.sendall(HALF + b"\r\n")
        told = late.recv(1000)
        assert told.startswith(b"HTTP/1.1 503 "), "there is no place for it"
        assert b"\r\nRetry-After: 1\r\n" in told
        assert b'"code":"unavailable"' in told
        site.going_on.set()
        for each in waiting:
            each.settimeout(WITHIN_S)
            assert each.recv(1000).startswith(b"HTTP/1.1 200 OK")


def test_a_large_answer_waits_for_who_reads_slowly(site: Site) -> None:
    body = bytes(8_000_000)
    with site.connect() as slow, contextlib.closing(site.client()) as other:
        slow.sendall(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        assert get(other) == b"/well"
        got = 0
        while got < len(body):
            got += len(slow.recv(200_000))


def test_what_waits_is_not_looked_at(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[object] = []
    real = Channel.readable
    with contextlib.ExitStack() as stack:
        for _ in range(MOST - 1):
            stack.enter_context(site.connect()).sendall(HALF)
        client = site.client()
        get(client)
        monkeypatch.setattr(Channel, "readable", lambda each: looked.append(each) or real(each))
        for _ in range(50):
            get(client)
        client.close()
    assert len(set(looked)) <= 1 + MOST, "and at the end those that left"


@pytest.mark.parametrize(
    "framing",
    [
        b"HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1\r\nTransfer-Encoding: chunked\r\nContent-Length: 5",
        b"HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity",
        b"HTTP/1.0\r\nConnection: keep-alive\r\nTransfer-Encoding: chunked",
    ],
)
def test_of_two_ways_to_end_a_body_none_is_taken(framing: bytes) -> None:
    """A proxy that takes the other one would hand over what follows as a request of somebody else."""
    site = Site(_channel(lambda headers: None))
    with site.connect() as smuggler:
        smuggler.sendall(b"POST /one " + framing + b"\r\n\r\n0\r\n\r\nGET /two HTTP/1.1\r\n\r\n")
        said = b""
        while part := smuggler.recv(1000):
            said += part
    assert said.split()[1] in (b"400", b"501"), said
    assert said.count(b"Content-Length:") == 1, "it is closed then"
    site.end()


def test_who_sends_nonsense_and_hangs_up_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The answer finds nobody, and it was never known what was asked for."""
    answer = _JsonErrorTask.execute
    hung_up: list[Channel] = []

    def execute(task: _JsonErrorTask) -> None:
        hung_up.append(task.channel)
        task.channel.connected = False  # as when it hangs up in this moment
        answer(task)

    monkeypatch.setattr(_JsonErrorTask, "execute", execute)
    site = Site(_channel(lambda headers: None))
    with site.connect() as stranger:
        stranger.sendall(b"nonsense\r\n\r\n")
        deadline = time.monotonic() + WITHIN_S
        while not hung_up or hung_up[0].requests:
            assert time.monotonic() < deadline, "its request stays for ever"
            time.sleep(0.005)
    site.end()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


class Quick(Site):
    """A site whose application promises answers, and keeps the promises it is told to."""

    def __init__(self, patience_s: float = WITHIN_S) -> None:
        self.promised: queue.Queue[Later] = queue.Queue()
        self.patience_s = patience_s
        self.said = Answer("202 Accepted", b"taken", (("X-Said", "yes"),))
        self.batches = 0
        super().__init__(is_quick=lambda request: request.path != "/well", served=self._count)

    def _count(self) -> None:
        self.batches += 1

    def _app(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        later = environ.get(LATER)
        if later is None:
            return super()._app(environ, start_response)
        if environ["PATH_INFO"] == "/breaks":
            raise LookupError("as it may")
        start_response("200 OK", [("X-Kept", "yes"), ("Content-Length", "0")])
        if environ["PATH_INFO"] == "/at-once":
            return []
        later.promise(self._answer, time.monotonic() + self.patience_s)
        self.promised.put(later)
        return []

    def _answer(self) -> Answer:
        assert threading.current_thread() is self._thread
        return self.said


@pytest.fixture
def quick() -> Iterator[Quick]:
    site = Quick()
    yield site
    site.end()


def test_an_answer_may_come_later(quick: Quick) -> None:
    client, other = quick.client(), quick.client()
    for _ in range(3):
        client.request("POST", "/", b"body")
        later = quick.promised.get(timeout=WITHIN_S)
        assert get(other) == b"/well", "meanwhile others are served"
        later.ready()
        answer = client.getresponse()
        assert (answer.status, answer.read()) == (202, b"taken")
        assert (answer.headers["X-Kept"], answer.headers["X-Said"]) == ("yes", "yes")
        assert answer.headers.get_all("Content-Length") == ["5"]
    client.close()
    other.close()


def test_what_is_quick_may_be_answered_at_once(quick: Quick) -> None:
    client = quick.client()
    for _ in range(3):
        client.request("POST", "/at-once", b"body")
        answer = client.getresponse()
        assert (answer.status, answer.read(), answer.headers["X-Kept"]) == (200, b"", "yes")
    client.close()


def test_what_breaks_in_a_quick_request_is_answered_and_harms_nobody(
    quick: Quick, caplog: pytest.LogCaptureFixture
) -> None:
    client = quick.client()
    client.request("POST", "/breaks", b"body")
    assert client.getresponse().status == 500
    assert get(quick.client()) == b"/well"
    assert "LookupError: as it may" in caplog.text
    assert quick.batches == 1, "it is told of quick requests, and of no others"


def test_what_was_promised_is_answered_in_time() -> None:
    quick = Quick(patience_s=0.05)
    client = quick.client()
    client.request("POST", "/", b"body")
    assert client.getresponse().read() == b"taken"
    quick.promised.get().ready()
    assert get(client) == b"/well", "what comes too late is not sent a second time"
    quick.end()


def test_requests_that_were_sent_together_are_answered_one_after_the_other(quick: Quick) -> None:
    with quick.connect() as eager:
        eager.sendall(b"POST /%d HTTP/1.1\r\nContent-Length: 1\r\n\r\nx" % 1 * 3)
        for _ in range(3):
            quick.promised.get(timeout=WITHIN_S).ready()
            told = b""
            while not told.endswith(b"taken"):
                told += eager.recv(1000)
            assert told.count(b"HTTP/1.1 202 Accepted") == 1
        eager.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\nConnection: close\r\n\r\nx")
        later = quick.promised.get(timeout=WITHIN_S)
        eager.sendall(b"what is sent meanwhile waits")
        later.ready()
        assert b"Connection: close" in eager.recv(1000)
        with contextlib.suppress(ConnectionResetError):
            assert eager.recv(1000) == b""


@pytest.mark.parametrize("size", [100_000, 20_000_000])
def test_who_does_not_read_the_answers_of_quick_requests_harms_nobody(quick: Quick, size: int) -> None:
    """Nobody else flushes what the floor's thread would wait for."""
    quick.said = Answer("202 Accepted", bytes(size))
    with quick.connect() as slow, contextlib.closing(quick.client()) as other:
        slow.sendall(b"POST /late HTTP/1.1\r\nContent-Length: 1\r\n\r\nx" * 200)
        with contextlib.suppress(queue.Empty):
            while True:
                quick.promised.get(timeout=0.5).ready()
        assert get(other) == b"/well"
        told = b""
        slow.settimeout(0.01)
        until = time.monotonic() + WITHIN_S
        while told.count(b"HTTP/1.1 2") < 200 and time.monotonic() < until:
            with contextlib.suppress(queue.Empty):
                quick.promised.get_nowait().ready()
            with contextlib.suppress(TimeoutError):
                told += slow.recv(1 << 20).replace(b"\0", b"")
        late = told.count(b"HTTP/1.1 202 Accepted")
        assert 0 < late < 200, "what came behind unread answers was given to a worker"
        assert told.count(b"HTTP/1.1 200 OK") == 200 - late
        assert get(other) == b"/well"


def test_who_leaves_before_the_promised_answer_harms_nobody(quick: Quick, caplog: pytest.LogCaptureFixture) -> None:
    left = []
    for _ in range(MOST - 2):
        with quick.connect() as hasty:
            hasty.sendall(b"POST / HTTP/1.1\r\nContent-Length: 1\r\n\r\nx")
            left.append(quick.promised.get(timeout=WITHIN_S))
            hasty.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    for later in left[:2]:
        later.ready()
        later.ready()
    client = quick.client()
    assert get(client) == b"/well"
    for later in left[2:]:
        later.ready()
    assert get(client) == b"/well"
    client.close()
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_who_waits_for_a_promised_answer_keeps_the_place(quick: Quick) -> None:
    client = quick.client()
    client.request("POST", "/", b"body")
    later = quick.promised.get(timeout=WITHIN_S)
    with contextlib.ExitStack() as stack:
        for _ in range(3 * MOST):
            stack.enter_context(quick.connect()).sendall(HALF)
        assert get(stack.enter_context(contextlib.closing(quick.client()))) == b"/well"
        later.ready()
        assert client.getresponse().read() == b"taken"
    client.close()


def test_at_the_end_promised_answers_get_a_moment() -> None:
    quick = Quick()
    client = quick.client()
    client.request("POST", "/", b"body")
    later = quick.promised.get(timeout=WITHIN_S)
    threading.Timer(0.1, later.ready).start()
    quick._halt.set()
    quick._thread.join()
    quick._thread = threading.current_thread()
    quick.floor.close()
    assert client.getresponse().read() == b"taken"
