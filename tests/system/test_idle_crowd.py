"""A thousand clients that only are there, and a thousand half requests: those who work do not wait longer for them."""

import contextlib
import http.client
import json
import secrets
import socket
import statistics
import time

import pytest
import zmq
from harness import until

from exesys.bus import messages as m
from exesys.bus import wire

pytestmark = pytest.mark.alone

CROWD = 1000
STRANGERS = 200  # of the bus: connected, and never say HELLO
ROUNDS = 7
JOBS = {"bus": 300, "rest": 150}  # of each round
MOST_TIMES = 2.0
PLACES = 100
HALF = b"POST /sys_cmd HT"


@pytest.fixture(scope="module")
def system(make_module):
    return make_module()


@contextlib.contextmanager
def nobody(system):
    yield


@contextlib.contextmanager
def idle_clients(system):
    """Connect clients that say HELLO and then nothing, and some that do not even say that."""
    with zmq.Context() as context:
        context.set(zmq.MAX_SOCKETS, 4 * CROWD)
        peers = []
        for number in range(CROWD + STRANGERS):
            peer = context.socket(zmq.DEALER)
            peer.linger = 0
            peer.connect(system.config.bus_endpoint)
            if number < CROWD:
                peer.send(wire.encode(m.Hello(m.VERSION, "client", secrets.token_hex(8), "", {})))
            peers.append(peer)
        for peer in peers[:CROWD]:
            assert peer.poll(10_000)
            assert isinstance(wire.decode_at_peer(peer.recv()), m.Welcome)
        yield
        for peer in peers:
            peer.close()


@contextlib.contextmanager
def half_requests(system):
    """Connect to REST, and send half of a request's first line."""
    with contextlib.ExitStack() as stack:
        for _ in range(CROWD):
            stack.enter_context(half_request(system))
        yield


def half_request(system):
    peer = socket.create_connection(("127.0.0.1", system.rest_port), 10)
    peer.sendall(HALF)
    return peer


CROWDS = {"nobody": nobody, "idle clients": idle_clients, "half requests": half_requests}


def by_bus(client, _):
    for number in range(JOBS["bus"]):
        since = time.perf_counter()
        assert client.run("echo", number, timeout=30) == number
        yield time.perf_counter() - since


def by_rest(_, rest):
    """Half of the jobs by the connection that there is, half by one of their own."""
    for number in range(JOBS["rest"]):
        since = time.perf_counter()
        if number % 2:
            rest.close()
        body = json.dumps({"cmd": "echo", "data": number})
        rest.request("POST", "/sys_cmd?wait=30", body, {"Content-Type": "application/json"})
        assert json.loads(rest.getresponse().read())["result"] == {"EOJ": number}
        yield time.perf_counter() - since


WAYS = {"bus": by_bus, "rest": by_rest}


def quantile(took, part):
    """Return p50 (`part` 50) or p99 of some times, in milliseconds."""
    return statistics.quantiles(took, n=100)[part - 1] * 1000


def test_a_crowd_that_says_nothing_holds_up_nobody(system, tell):
    pids = system.pids()
    found = {(way, crowd): [] for way in WAYS for crowd in CROWDS}
    rest = http.client.HTTPConnection("127.0.0.1", system.rest_port, timeout=30)
    with system.client() as client:
        for number in range(ROUNDS + 1):
            for crowd, gather in CROWDS.items():
                with gather(system):
                    for way, jobs in WAYS.items():
                        took = list(jobs(client, rest))
                        if number:  # the first round warms up
                            found[way, crowd].append(took)
    rest.close()
    times = {}
    for (way, crowd), rounds in found.items():
        p50, p99 = (statistics.median(quantile(took, part) for took in rounds) for part in (50, 99))
        beside = zip(rounds, found[way, "nobody"], strict=True)
        times[way, crowd] = statistics.median(quantile(took, 99) / quantile(alone, 99) for took, alone in beside)
        said = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, {times[way, crowd]:.2f} times"
        tell(f"honest jobs by {way:4} beside {crowd:13}: {said}")
    assert all(each < MOST_TIMES for each in times.values()), times
    assert system.pids() == pids


@pytest.mark.parametrize("drips", [False, True], ids=["silent", "a byte now and then"])
def test_half_requests_do_not_keep_others_out(make, drips):
    """Three times as many as may be there: whoever sends a whole request is served at once."""
    system = make(rest_connections=PLACES)
    with contextlib.ExitStack() as stack:
        lazy = [stack.enter_context(half_request(system)) for _ in range(3 * PLACES)]
        took = []
        for number in range(30):
            if drips:
                for peer in lazy[-PLACES:]:
                    with contextlib.suppress(OSError):
                        peer.sendall(b"T")
            since = time.monotonic()
            answer = system.post({"cmd": "echo", "data": number}, wait=10)
            took.append(time.monotonic() - since)
            assert answer.body["result"] == {"EOJ": number}
        assert statistics.median(took) < 1
        until(lambda: sum(map(is_closed, lazy)) >= 2 * PLACES, "those that were there longest are closed")
        told = system.log_of("rest").count("connections are taken")
        assert told == 1, "once, not for each"


def is_closed(peer):
    peer.setblocking(False)
    try:
        return peer.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True
