"""What a Redis tells of itself, and the snapshot it hands out, however it sends that."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from exesys.errors import BackupError
from exesys.store import snapshot
from exesys.store.connection import StoreRefused
from exesys.store.redis import FORMAT, StoreAway
from exesys.store.snapshot import Source


@pytest.fixture
def source(redis_server: Any) -> Iterator[Source]:
    redis_server.client.set("exesys:format", FORMAT)
    with contextlib.closing(Source(redis_server.url, "")) as source:
        yield source


@pytest.mark.parametrize("diskless", ["yes", "no"])
def test_a_snapshot_is_an_rdb_file_of_all_databases(source: Source, redis_server: Any, diskless: str) -> None:
    marks = [os.urandom(16).hex() for _ in range(2)]
    before = redis_server.client.config_get("repl-diskless-sync")
    redis_server.client.config_set("repl-diskless-sync", diskless)
    try:
        for number, mark in enumerate(marks):
            with redis.Redis.from_url(redis_server.url.replace("db=0", f"db={number}")) as database:
                database.set("mark", mark)
                database.set("much", os.urandom(1 << 20))
        found = b"".join(source.snapshot())
    finally:
        redis_server.client.config_set("repl-diskless-sync", before["repl-diskless-sync"])
    assert found[:6] in (b"REDIS0", b"VALKEY")
    assert all(mark.encode() in found for mark in marks)
    assert found[-9] == 0xFF, "an RDB file ends with this and eight bytes of its own sum"
    assert redis_server.client.info("replication")["connected_slaves"] == 0


def test_what_is_there_is_told(source: Source, redis_server: Any) -> None:
    redis_server.client.xadd("exesys:jobs", {"j": "1"})
    redis_server.client.sadd("exesys:timers", "a", "b")
    found = source.contents()
    assert found.format == FORMAT
    assert found.keys == {"0": 3}
    assert found.counts == {"jobs": 1, "failed": 0, "runners": 0, "timers": 2}
    assert found.server.split()[0] in ("Redis", "Valkey")


@pytest.mark.parametrize(
    ("value", "told"), [(None, "no store of ExeSys"), (str(FORMAT + 1), "another ExeSys"), ("x", "another ExeSys")]
)
def test_a_store_that_is_not_ours_or_newer_is_refused(
    source: Source, redis_server: Any, value: str | None, told: str
) -> None:
    redis_server.client.delete("exesys:format")
    if value:
        redis_server.client.set("exesys:format", value)
    with pytest.raises(BackupError, match=told):
        source.contents()


def test_a_server_that_is_away_is_told() -> None:
    with contextlib.closing(Source("unix:///nonexistent/socket?db=0", "")) as source:
        for ask in (source.contents, source.lineage, source.replication, lambda: list(source.snapshot())):
            with pytest.raises(StoreAway):
                ask()


def answered(sent: bytes) -> list[bytes]:
    """Read a payload that comes in small pieces."""
    ours, theirs = socket.socketpair()

    def send() -> None:
        with theirs:
            for start in range(0, len(sent), 7):
                theirs.sendall(sent[start : start + 7])

    sender = threading.Thread(target=send)
    sender.start()
    try:
        with ours:
            return list(snapshot._payload(ours))
    finally:
        sender.join()


MARK = b"0123456789abcdef0123456789abcdef01234567"


@pytest.mark.parametrize("body", [b"", b"x", b"REDIS" * 100, MARK[:39], MARK[1:] + b"\r\n", b"\n\n"])
def test_both_forms_of_the_answer_are_read(body: bytes) -> None:
    assert b"".join(answered(b"\n\n\n$EOF:%s\r\n%s%s" % (MARK, body, MARK))) == body
    assert b"".join(answered(b"\n$%d\r\n%s" % (len(body), body))) == body


@pytest.mark.parametrize("sent", [b"", b"\n\n", b"$EOF:%s\r\nREDIS" % MARK, b"$100\r\nREDIS", b"$1"])
def test_an_answer_that_breaks_off_is_none(sent: bytes) -> None:
    with pytest.raises(ConnectionError):
        answered(sent)


@pytest.mark.parametrize("sent", [b"-NOPERM no\r\n", b"+CONTINUE\r\n", b"$EOF:short\r\n", b"$-1\r\n"])
def test_another_answer_is_told(sent: bytes) -> None:
    with pytest.raises(redis.ResponseError):
        answered(sent)


def test_a_server_that_does_not_allow_it_is_told(redis_server: Any) -> None:
    redis_server.client.acl_setuser("plain", enabled=True, passwords=["+pw"], keys=["*"], commands=["+@all", "-sync"])
    try:
        url = redis_server.url.replace("unix://", "unix://plain:pw@")
        with contextlib.closing(Source(url, "")) as source, pytest.raises(StoreRefused, match=r"no snapshot \(SYNC\)"):
            list(source.snapshot())
    finally:
        redis_server.client.acl_deluser("plain")


def test_a_line_leads_to_the_server_that_told_its_lineage(source: Source, redis_server: Any) -> None:
    redis_server.client.rpush("exesys:lineage", "a 1.2")
    redis_server.client.set("exesys:turn", "2.7")
    with source.line() as line:
        assert line.lineage.mark == (2, 7)
        assert [life.id for life in line.lineage.lives] == ["a"]
        line.socket.sendall(b"PING\r\n")
        assert line.socket.recv(100) == b"+PONG\r\n"
