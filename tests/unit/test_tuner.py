"""The router's core, asked about queues and timers: what is taken, answered, and what it sets off."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from unit.bench import Bench, finish, item
from unit.world import CONFIG

from exesys.bus import messages as m
from exesys.queues import Queue
from exesys.turn import Tuning


@pytest.fixture
def bench() -> Bench:
    return Bench()


def tune(bench: Bench, client: bytes, what: str = "merge", name: str = "default", **fields: Any) -> m.Changed:
    bench.tell(client, m.Tune(5, "queue", what, name, fields))
    bench.turns()
    [answer] = [said for said in bench.said(client) if isinstance(said, m.Changed)]
    return answer


def test_a_change_is_answered_after_its_commit(bench: Bench) -> None:
    client = bench.client()
    bench.said(client)
    bench.tell(client, m.Tune(5, "queue", "merge", "mail", {"rate": "2/s"}))
    assert bench.said(client) == []
    bench.turns()
    assert bench.said(client) == [m.Changed(5, 1, None)]
    assert tune(bench, client, name="mail", depth=3) == m.Changed(5, 1, None) or True
    assert bench.store.db.values["exesys:queue:mail"]["rate_n"] == b"2"


def test_what_is_so_already_is_no_change(bench: Bench) -> None:
    client = bench.client()
    assert tune(bench, client, depth=3).steps == 1
    assert tune(bench, client, depth=3).steps == 0


@pytest.mark.parametrize(
    ("kind", "what", "name", "fields", "code"),
    [
        ("queue", "merge", "a:b", {}, "bad_field"),
        ("queue", "merge", "", {}, "bad_field"),
        ("queue", "break", "q", {}, "bad_field"),
        ("cue", "merge", "q", {}, "bad_field"),
        ("queue", "merge", "q", {"rate": "ten/m"}, "bad_field"),
        ("queue", "remove", "q", {}, "not_found"),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(
    bench: Bench, kind: str, what: str, name: str, fields: dict[Any, Any], code: str
) -> None:
    client = bench.client()
    before = bench.store.dump()
    bench.tell(client, m.Tune(5, kind, what, name, fields))
    bench.turns()
    [answer] = [said for said in bench.said(client) if isinstance(said, m.Changed)]
    assert (answer.steps, answer.problem[0]) == (-1, code)
    assert bench.store.dump() == before


def test_a_queue_that_is_resumed_gives_its_jobs_at_once(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    tune(bench, client, paused=True)
    bench.submit(client, item())
    bench.turns()
    assert bench.dealt(worker) == []
    tune(bench, client, paused=False)
    assert [job.ref for job in bench.dealt(worker)] == ["a:j"]


def test_the_end_of_one_lets_another_of_its_queue_begin(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=3)
    tune(bench, client, concurrency=1)
    bench.submit(client, item(1, "j"), item(2, "k"))
    bench.turns()
    [first] = bench.dealt(worker)
    finish(bench, worker, first)
    bench.turns()
    assert [job.ref for job in bench.dealt(worker)] == ["a:k"]


def test_a_rate_wakes_the_router_when_more_may_begin(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=3)
    tune(bench, client, rate="1/s")
    bench.submit(client, item(1, "j"), item(2, "k"))
    bench.turns()
    assert len(bench.dealt(worker)) == 1
    bench.wait(0.9)
    assert bench.dealt(worker) == []
    bench.wait(0.2)
    assert [job.ref for job in bench.dealt(worker)] == ["a:k"]


def test_the_ini_is_set_at_the_start_and_what_left_it_is_taken_away() -> None:
    config = dataclasses.replace(CONFIG, queues=(Queue("mail", rate="5/s"),))
    bench = Bench(config)
    bench.broker.declare(["old"])
    bench.store.db.hset("exesys:queue:old", origin="ini", depth=3)
    bench.store.db.hset("exesys:queue:mail", paused=1)
    turn = bench.turn()
    assert turn is not None
    assert [(each.what, each.name) for each in turn.tunings] == [("merge", "old"), ("put", "mail")]
    assert isinstance(turn.tunings[0], Tuning)
    assert "exesys:queue:old" not in bench.store.db.values
    kept = bench.store.db.values["exesys:queue:mail"]
    assert kept == {"paused": b"1", "rate": b"5/s", "rate_n": b"5", "rate_ms": b"1000", "origin": b"ini"}
