"""What the controller does in the store: its lease, stop keys and retention."""

from __future__ import annotations

import select
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from store.fake import RealStore, steady
from store.turns import NOW_MS, claim, close, place, report, submit

from exesys.bus.messages import Outcome
from exesys.config import Limits
from exesys.store import oddities
from exesys.store import upkeep as module
from exesys.store.dial import StoreAway
from exesys.store.upkeep import Upkeep

LIMITS = Limits(result_ttl_s=60, error_ttl_s=600)
Eventually = Callable[..., Any]


@pytest.fixture(params=["", "{s07}"])
def prefix(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def upkeep(redis_server: Any, prefix: str) -> Iterator[Upkeep]:
    upkeep = Upkeep(redis_server.url, prefix, LIMITS)
    yield upkeep
    upkeep.close()


# --- the lease ---------------------------------------------------------------


def test_one_controller_leads_and_renews_its_lease(upkeep: Upkeep, redis_server: Any, prefix: str) -> None:
    assert upkeep.lead("one")
    assert not upkeep.lead("two")
    redis_server.client.pexpire(f"{prefix}exesys:controller", 100)
    assert upkeep.lead("one")
    assert 2000 < redis_server.client.pttl(f"{prefix}exesys:controller") <= module.LEASE_MS


def test_a_lease_that_is_not_renewed_goes_to_another(
    upkeep: Upkeep, monkeypatch: pytest.MonkeyPatch, eventually: Eventually
) -> None:
    monkeypatch.setattr(module, "LEASE_MS", 30)
    assert upkeep.lead("one")
    assert not upkeep.lead("two")
    eventually(lambda: upkeep.lead("two"), 5)
    monkeypatch.setattr(module, "LEASE_MS", 3000)
    assert upkeep.lead("two")
    assert not upkeep.lead("one")


def test_a_controller_that_resigns_makes_room_at_once_and_only_for_its_own(upkeep: Upkeep) -> None:
    upkeep.lead("one")
    upkeep.resign("two")
    assert not upkeep.lead("two")
    upkeep.resign("one")
    assert upkeep.lead("two")


# --- stops -------------------------------------------------------------------


def heard(upkeep: Upkeep, descriptor: int, count: int, eventually: Eventually) -> list[tuple[str, str]]:
    """Wait on the descriptor, as the controller's poll does, until so many changes came."""
    found: list[tuple[str, str]] = []

    def enough() -> bool:
        if select.select([descriptor], [], [], 0)[0]:
            found.extend(upkeep.changed())
        return len(found) >= count

    eventually(enough, 5)
    return found


def test_a_stop_key_that_is_written_is_noticed_at_once(
    upkeep: Upkeep, redis_server: Any, prefix: str, eventually: Eventually
) -> None:
    descriptor = upkeep.listen()
    redis_server.client.set(f"{prefix}run:cam:7", "1")
    redis_server.client.set(f"{prefix}run:cam:7", "0")
    redis_server.client.set(f"{prefix}run:mail:a.b", "0")
    redis_server.client.delete(f"{prefix}run:cam:7")
    noticed = heard(upkeep, descriptor, 4, eventually)
    assert noticed == [("cam", "7"), ("cam", "7"), ("mail", "a.b"), ("cam", "7")]
    assert upkeep.changed() == []


def test_other_keys_are_not_noticed(upkeep: Upkeep, redis_server: Any, prefix: str, eventually: Eventually) -> None:
    descriptor = upkeep.listen()
    others = ["exesys:order", "run", "run:cam", "arun:cam:7", "a:j:start", "{s08}run:cam:7"]
    for name in (*others, f"{prefix}run:cam:7"):
        redis_server.client.set(name, "0")
    assert heard(upkeep, descriptor, 1, eventually) == [("cam", "7")]


def test_only_a_zero_is_a_stop(upkeep: Upkeep, redis_server: Any, prefix: str) -> None:
    for uuid, value in (("one", "1"), ("zero", "0"), ("odd", "stop"), ("empty", "")):
        redis_server.client.set(f"{prefix}run:cam:{uuid}", value)
    runners = [("cam", uuid) for uuid in ("one", "zero", "odd", "empty", "absent", "zero")]
    assert upkeep.stopped(runners) == [("cam", "zero")]
    assert upkeep.stopped([]) == []


def test_known_are_the_runners_of_the_set_and_their_types(upkeep: Upkeep, redis_server: Any, prefix: str) -> None:
    assert upkeep.known() == []
    redis_server.client.sadd(f"{prefix}exesys:runners", "cam:7", "mail:a.b")
    assert sorted(upkeep.known()) == [("cam", ""), ("cam", "7"), ("mail", ""), ("mail", "a.b")]


def test_odd_names_among_the_runners_are_passed_over_and_told_of_once(
    upkeep: Upkeep, redis_server: Any, prefix: str, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.client.sadd(f"{prefix}exesys:runners", b"\xff", "cam", "a:b:c", "cam:7")
    for _ in range(3):
        assert sorted(upkeep.known()) == [("cam", ""), ("cam", "7")]
    assert len(caplog.messages) == 3
    assert all(f"Delete it: SREM {prefix}exesys:runners" in text for text in caplog.messages)


def test_odd_stop_keys_are_passed_over_and_told_of_once(
    upkeep: Upkeep, redis_server: Any, prefix: str, eventually: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    descriptor = upkeep.listen()
    odd = (b"run:\xff:x", b"run:cam:\xff", b"run::", b"run::x", b"run:a:b:c", b"run:a b:c", b"run:cam:" + b"x" * 200)
    for _ in range(2):
        for name in odd:
            redis_server.client.set(prefix.encode() + name, "0")
    redis_server.client.set(f"{prefix}run:cam:", "0")
    redis_server.client.set(f"{prefix}run:cam:7", "0")
    assert heard(upkeep, descriptor, 2, eventually) == [("cam", ""), ("cam", "7")]
    assert len(caplog.messages) == len(odd)
    assert all("is no stop of a runner" in text for text in caplog.messages)


def test_what_is_told_of_odd_keys_has_an_end(
    upkeep: Upkeep, redis_server: Any, prefix: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(oddities, "MOST_TOLD", 5)
    redis_server.client.sadd(f"{prefix}exesys:runners", *(f"odd{number}" for number in range(9)))
    assert upkeep.known() == []
    assert len(caplog.messages) == 5


# --- retention ---------------------------------------------------------------


def test_indexes_are_trimmed_when_no_record_they_name_can_live(upkeep: Upkeep, redis_server: Any, prefix: str) -> None:
    client = redis_server.client
    stream, dead = f"{prefix}exesys:jobs", f"{prefix}exesys:dead"
    old, fresh = NOW_MS - 601_000, NOW_MS - 599_000
    for number in range(1000):
        client.xadd(stream, {"j": f"old{number}"}, id=f"{old}-{number + 1}")
    for number in range(10):
        client.xadd(stream, {"j": f"new{number}"}, id=f"{fresh}-{number + 1}")
    client.zadd(dead, {"a:old": old, "a:new": fresh})
    assert upkeep.lead("one")
    upkeep.trim("one", NOW_MS)
    left = [fields[b"j"].decode() for _, fields in client.xrange(stream)]
    assert left[-10:] == [f"new{number}" for number in range(10)]
    assert len(left) < 300, "whole blocks of the stream are dropped"
    assert client.zrange(dead, 0, -1) == [b"a:new"]


def test_trimming_leaves_live_jobs_alone(upkeep: Upkeep, redis_server: Any, prefix: str) -> None:
    store = RealStore(redis_server.url, redis_server.client, LIMITS, prefix)
    submit(store, *(place(job) for job in "jkl"))
    first, second, _ = claim(store, 3)
    report(store, close(first), close(second, Outcome.failed))
    assert upkeep.lead("one")
    before = steady(store.dump())
    upkeep.trim("one", NOW_MS)
    assert steady(store.dump()) == before
    store.close()


# --- away --------------------------------------------------------------------


def test_a_server_that_is_away_is_one_error(tmp_path: Path) -> None:
    upkeep = Upkeep(f"unix://{tmp_path}/nothing", "", LIMITS)
    calls: list[Callable[[], object]] = [
        lambda: upkeep.lead("one"),
        lambda: upkeep.resign("one"),
        upkeep.listen,
        upkeep.known,
        lambda: upkeep.stopped([("cam", "7")]),
        lambda: upkeep.trim("one", NOW_MS),
    ]
    for call in calls:
        with pytest.raises(StoreAway, match="does not answer"):
            call()
    upkeep.close()


def test_a_broken_subscription_is_an_error_and_can_be_made_anew(
    upkeep: Upkeep, redis_server: Any, prefix: str, eventually: Eventually
) -> None:
    descriptor = upkeep.listen()
    redis_server.client.client_kill_filter(_type="pubsub")
    select.select([descriptor], [], [], 5)
    with pytest.raises(StoreAway):
        upkeep.changed()
    descriptor = upkeep.listen()
    redis_server.client.set(f"{prefix}run:cam:7", "0")
    assert heard(upkeep, descriptor, 1, eventually) == [("cam", "7")]
