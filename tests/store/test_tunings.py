"""What every store promises of what stands beside jobs: the fake and the real one, on the same turns."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from store.fake import FakeStore, RealStore, Turns
from store.turns import NOW_MS

from exesys.config import Limits
from exesys.turn import Tuning, Turn

Make = Callable[..., Turns]


def verdicts(store: Turns, *tunings: Tuning) -> list[str]:
    return store.run(Turn(NOW_MS, tunings=list(tunings))).tuned


def timer(what: str, name: str = "t", **fields: str | int) -> Tuning:
    return Tuning("timer", what, name, fields)


def kept(store: Turns, kind: str = "timer", name: str = "t") -> dict[str, bytes]:
    found: dict[str, bytes] = store.dump().get(store.keys(kind, name), ({}, None))[0]
    return found


def test_a_timer_is_added_once(store: Turns) -> None:
    assert verdicts(store, timer("add", cmd="f", every_s=5)) == ["changed"]
    assert verdicts(store, timer("add", cmd="f", every_s=5), timer("add", cmd="g")) == ["same", "exists"]
    assert kept(store) == {"cmd": b"f", "every_s": b"5"}
    assert store.dump()[store.keys("timers")][0] == {"t"}
    assert store.dump()[store.keys("tuned")][0] == b"1"
    assert store.dump()[store.keys("timer_changes")][0] == {"t": 1}


def test_a_pause_is_merged_and_outlives_what_is_put(store: Turns) -> None:
    assert verdicts(store, timer("merge", paused=1)) == ["none"]
    verdicts(store, timer("put", cmd="f", cron="* * * * *"), timer("merge", paused=1))
    assert verdicts(store, timer("put", cmd="f", cron="* * * * *"), timer("put", cmd="f", every_s=1)) == [
        "same",
        "changed",
    ]
    assert kept(store) == {"cmd": b"f", "every_s": b"1", "paused": b"1"}
    assert verdicts(store, timer("merge", paused=""), timer("merge", paused="")) == ["changed", "same"]
    assert kept(store) == {"cmd": b"f", "every_s": b"1"}


def test_what_is_put_takes_no_name_of_another_origin(store: Turns) -> None:
    verdicts(store, timer("add", cmd="f"), timer("put", "u", cmd="f", origin="ini"))
    assert verdicts(store, timer("put", cmd="f", origin="ini"), timer("put", "u", cmd="g")) == ["exists", "exists"]
    assert verdicts(store, timer("remove"), timer("put", cmd="f", origin="ini")) == ["changed", "changed"]
    assert kept(store) == {"cmd": b"f", "origin": b"ini"}


def test_a_key_of_another_kind_spoils_one_tuning_and_no_other(redis_server: Any) -> None:
    real = RealStore(redis_server.url, redis_server.client, Limits())
    redis_server.client.set(real.keys("timer", "t"), "somebody else's")
    told = verdicts(real, timer("add", cmd="f"), timer("add", "u", cmd="f"), timer("merge", paused=1))
    assert told == ["foreign", "changed", "foreign"]
    assert verdicts(real, timer("remove"), timer("add", cmd="f")) == ["changed", "changed"]
    real.close()


def test_what_is_removed_leaves_nothing(store: Turns) -> None:
    before = store.dump()
    verdicts(store, timer("add", cmd="f"))
    assert verdicts(store, timer("remove"), timer("remove")) == ["changed", "none"]
    counted = (store.keys("tuned"), store.keys("timer_changes"))
    assert {key: value for key, value in store.dump().items() if key not in counted} == before


def test_a_queue_needs_no_adding_and_without_settings_it_is_none(store: Turns) -> None:
    assert verdicts(store, Tuning("queue", "merge", "slow", {"paused": 1})) == ["changed"]
    assert store.dump()[store.keys("queues")][0]
    assert verdicts(store, Tuning("queue", "merge", "slow", {"paused": ""})) == ["changed"]
    assert store.keys("queue", "slow") not in store.dump()
    assert store.dump()[store.keys("queues")][0] == {"slow"}, "it stays listed"


def test_there_are_only_so_many_timers(make_store: Make) -> None:
    store = make_store(Limits(timers=1))
    assert verdicts(store, timer("add", cmd="f"), timer("add", "u", cmd="f")) == ["changed", "full"]
    assert verdicts(store, timer("put", cmd="g"), timer("remove"), timer("put", "u", cmd="f")) == ["changed"] * 3


@pytest.mark.parametrize("seed", range(10))
def test_random_tunings_make_the_same_of_both(store: Turns, seed: int) -> None:
    rng, fake = random.Random(seed), FakeStore(Limits())
    for _ in range(60):
        what = rng.choice(("add", "put", "merge", "remove"))
        values = {name: rng.choice(("", 1, "x")) for name in ("a", "b", "paused", "origin") if rng.random() < 0.5}
        tuning = Tuning(rng.choice(("timer", "queue")), what, rng.choice("tu"), values if what != "remove" else {})
        assert verdicts(fake, tuning) == verdicts(store, tuning)
        assert fake.dump() == store.dump()
