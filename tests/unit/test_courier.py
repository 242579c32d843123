"""The courier over an outbox in memory: what is tried when, how it is noted, and whom it keeps waiting."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exesys import codec, courier
from exesys.config import Callbacks, Config
from exesys.courier import Courier, told
from exesys.errors import BadCommand
from exesys.lease import Lease
from exesys.posting import NotPosted, Post, Withheld
from exesys.store.callbacks import Outbox, Taken
from exesys.store.dial import StoreAway

Eventually = Callable[..., Any]
RESULT = codec.pack({"EOJ": 42})
FAILURE = codec.pack({"type": "ValueError", "message": "no", "traceback": "secret path"})


class Box(Outbox):
    """An outbox in memory. `entries`: ref -> [URL, due at, tries, body, state]."""

    def __init__(self) -> None:
        self.entries: dict[str, list[Any]] = {}
        self.notes: list[tuple[str, str, str]] = []
        self.again_ms: list[int] = []
        self.away = False
        self.leader = "one"

    def put(self, ref: str = "a:j", url: str = "http://a.example/x", body: bytes = RESULT, **parts: Any) -> None:
        self.entries[ref] = [url, 0, 0, body, parts.get("state", "data_available")]

    def _reach(self) -> None:
        if self.away:
            raise StoreAway("Redis does not answer.")

    def due(self, now_ms: int, most: int) -> list[tuple[str, str]]:
        self._reach()
        return [(ref, entry[0]) for ref, entry in list(self.entries.items()) if entry[1] <= now_ms][:most]

    def take(self, session: str, ref: str, now_ms: int, again_ms: int) -> Taken | None:
        self._reach()
        entry = self.entries.get(ref)
        if session != self.leader or entry is None or entry[1] > now_ms:
            return None
        entry[1], entry[2] = again_ms, entry[2] + 1
        self.again_ms.append(again_ms - now_ms)
        return Taken(ref, entry[0], f"d-{ref}", entry[2], entry[4], "end_job", "f", 1, entry[3])

    def sent(self, taken: Taken) -> bool:
        return self._noted(taken, "sent", "")

    def failed(self, taken: Taken, error: str) -> bool:
        return self._noted(taken, "failed", error)

    def later(self, taken: Taken, error: str, at_ms: int) -> bool:
        self._reach()
        self.entries[taken.ref][1] = at_ms
        self.notes.append((taken.ref, "later", error))
        return True

    def _noted(self, taken: Taken, outcome: str, error: str) -> bool:
        self._reach()
        self.entries.pop(taken.ref, None)
        self.notes.append((taken.ref, outcome, error))
        return True


class World:
    """A courier, its outbox, and what is said to receivers; `act` is what a POST does."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.box = Box()
        self.lease = Lease("one")
        self.lease.renewed(True, time.monotonic() + 60)
        self.act: Callable[[Post], None] = lambda post: None
        self.posts: list[tuple[str, dict[str, str], bytes]] = []
        listed = Callbacks(**{"hosts": ("*.example",), "backoff_s": 0.01, **settings})
        self.config = dataclasses.replace(Config(home, home), callbacks=listed)
        self.courier = Courier(self.config, self.box, self.lease)
        world = self

        def send(post: Post, headers: Any, body: bytes, may_send: Callable[[], bool], tls: Any) -> None:
            if not may_send():
                raise Withheld("no.")
            world.posts.append((post.target.host, dict(headers), body))
            world.act(post)

        monkeypatch.setattr(Post, "send", send)


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., World]]:
    worlds: list[World] = []

    def made(**settings: Any) -> World:
        worlds.append(World(tmp_path, monkeypatch, **settings))
        return worlds[-1]

    yield made
    for world in worlds:
        world.courier.stop()


def fails(text: str) -> Callable[[Post], None]:
    def act(post: Post) -> None:
        raise NotPosted(text)

    return act


# --- what is said ----------------------------------------------------------------


def test_what_is_said_of_an_end() -> None:
    taken = Taken("a>x,y:j", "http://a.example/", "d", 1, "data_available", "x,y", "f", 3, RESULT)
    assert told(taken) == {
        "job_id": "j",
        "from": "a",
        "to": ["x", "y"],
        "cmd": "f",
        "status": 3,
        "state": "data_available",
        "result": {"EOJ": 42},
        "attempts": 3,
    }
    failed = told(taken._replace(state="error", body=FAILURE))
    assert failed["error"] == {"type": "ValueError", "message": "no", "attempts": 3}
    assert (failed["status"], failed["state"]) == (4, "error")
    assert "result" not in failed
    for spoilt in (taken._replace(state="done"), taken._replace(body=b"\xc1"), taken._replace(body=b"\x01")):
        with pytest.raises(BadCommand):
            told(spoilt)


def test_a_callback_is_signed_so_that_a_receiver_can_check_it(
    make: Callable[..., World], eventually: Eventually
) -> None:
    world = make()
    world.courier.start()
    world.box.put()
    eventually(lambda: world.box.notes == [("a:j", "sent", "")])
    [(host, headers, body)] = world.posts
    key = (world.config.data / "callback-key").read_text().strip()
    expected = hmac.new(key.encode(), headers["X-ExeSys-Timestamp"].encode() + b"." + body, hashlib.sha256)
    assert host == "a.example"
    assert headers["X-ExeSys-Signature"] == f"sha256={expected.hexdigest()}"
    assert headers["X-ExeSys-Delivery"] == "d-a:j"
    assert headers["Content-Type"] == "application/json"
    assert json.loads(body)["result"] == {"EOJ": 42}
    assert world.box.again_ms == [15_000]


# --- tries -----------------------------------------------------------------------


def test_a_failure_is_tried_again_until_it_is_given_up(
    make: Callable[..., World], eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    world = make(tries=3)
    world.act = fails("the answer was 500.")
    world.box.put(url="http://a.example/x?token=hidden")
    with caplog.at_level(logging.INFO):
        world.courier.start()
        eventually(lambda: world.box.entries == {})
    assert [note[1] for note in world.box.notes] == ["later", "later", "failed"]
    assert len({headers["X-ExeSys-Delivery"] for _, headers, _ in world.posts}) == 1
    assert "is given up after 3 tries: the answer was 500." in caplog.text
    assert "http://a.example" in caplog.text
    assert "hidden" not in caplog.text
    assert (world.config.data / "callback-key").read_text().strip() not in caplog.text


def test_a_host_that_is_no_longer_allowed_is_not_told(make: Callable[..., World], eventually: Eventually) -> None:
    world = make(tries=1)
    world.box.put(url="http://other.test/")
    world.courier.start()
    eventually(lambda: world.box.notes)
    assert world.posts == []
    assert "may not reach" in world.box.notes[0][2]


def test_a_spoilt_entry_is_given_up_like_others(make: Callable[..., World], eventually: Eventually) -> None:
    world = make(tries=2)
    world.box.put(body=b"\xc1")
    world.courier.start()
    eventually(lambda: [note[1] for note in world.box.notes] == ["later", "failed"])


def test_what_was_sent_is_noted_although_redis_is_away_for_a_moment(
    make: Callable[..., World], eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "AWAY_S", 0.02)
    world = make()
    sent = threading.Event()

    def act(post: Post) -> None:
        world.box.away = True
        sent.set()

    world.act = act
    world.box.put()
    world.courier.start()
    assert sent.wait(5)
    world.box.away = False
    eventually(lambda: world.box.notes == [("a:j", "sent", "")])
    assert len(world.posts) == 1


def test_it_goes_on_when_redis_was_away(
    make: Callable[..., World], eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(courier, "AWAY_S", 0.02)
    world = make()
    world.box.away = True
    world.box.put()
    world.courier.start()
    world.box.away = False
    eventually(lambda: world.box.notes)
    assert world.courier.alive


# --- the lease --------------------------------------------------------------------


def test_nothing_is_taken_without_the_lease(make: Callable[..., World], eventually: Eventually) -> None:
    world = make()
    world.lease.renewed(False, 0.0)
    world.box.put()
    world.courier.start()
    looked = threading.Event()
    real = world.courier._round

    def round_(now: float) -> None:
        real(now)
        looked.set()

    world.courier._round = round_  # type: ignore[method-assign]  # to know that it looked
    assert looked.wait(5)
    assert (world.posts, world.box.again_ms) == ([], [])
    world.lease.renewed(True, time.monotonic() + 60)
    eventually(lambda: world.box.notes == [("a:j", "sent", "")])


def test_what_was_taken_is_not_sent_when_the_lease_is_lost_meanwhile(
    make: Callable[..., World], eventually: Eventually
) -> None:
    """It was stopped in between: another controller is active, and finds it due again."""
    world = make()
    real = world.box.take

    def take(*arguments: Any) -> Taken | None:
        taken = real(*arguments)
        world.lease.renewed(False, 0.0)
        return taken

    world.box.take = take  # type: ignore[method-assign]  # as if it were stopped right behind it
    world.box.put()
    world.courier.start()
    eventually(lambda: world.box.again_ms and not world.courier._underway)
    assert (world.posts, world.box.notes) == ([], [])


# --- whom it keeps waiting -----------------------------------------------------------


def test_a_receiver_that_hangs_holds_up_no_other(make: Callable[..., World], eventually: Eventually) -> None:
    world = make()
    over, at_once = threading.Event(), Counter[str]()
    most = Counter[str]()
    lock = threading.Lock()

    def act(post: Post) -> None:
        host = post.target.host
        with lock:
            at_once[host] += 1
            most[host] = max(most[host], at_once[host])
        if host == "slow.example":
            over.wait(10)
        with lock:
            at_once[host] -= 1

    world.act = act
    for number in range(50):
        world.box.put(f"s{number}:j", "http://slow.example/")
    for number in range(50):
        world.box.put(f"f{number}:j", "http://fast.example/")
    world.courier.start()
    eventually(lambda: sum(note[0].startswith("f") for note in world.box.notes) == 50, 20)
    assert most["slow.example"] == courier.PER_RECEIVER
    assert len(world.courier._underway) <= courier.THREADS
    over.set()
    eventually(lambda: world.box.entries == {}, 20)
    assert Counter(note[1] for note in world.box.notes) == {"sent": 100}
    assert most["fast.example"] <= courier.PER_RECEIVER


def test_a_post_that_is_over_its_time_is_cut(
    make: Callable[..., World], eventually: Eventually, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(timeout_s=0.1, tries=1)
    cut = threading.Event()
    monkeypatch.setattr(Post, "cut", lambda post: cut.set())

    def act(post: Post) -> None:
        if not cut.wait(10):
            return
        raise NotPosted("no answer within 0.1 s.")

    world.act = act
    world.box.put()
    world.courier.start()
    eventually(lambda: [note[1] for note in world.box.notes] == ["failed"])


def test_a_stop_takes_no_more_and_waits_a_moment_for_what_is_under_way(
    make: Callable[..., World], eventually: Eventually
) -> None:
    world = make()
    begun, over = threading.Event(), threading.Event()

    def act(post: Post) -> None:
        begun.set()
        over.wait(10)

    world.act = act
    world.box.put()
    world.courier.start()
    assert begun.wait(5)
    threading.Timer(0.1, over.set).start()
    world.courier.stop()
    assert world.box.notes == [("a:j", "sent", "")]
    world.box.put("b:j")
    assert not world.courier.alive
    assert len(world.posts) == 1
