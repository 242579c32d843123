"""What Redis answered and then lost is given back to it after the reconnect."""

from __future__ import annotations

import select
from typing import Any

import pytest
from store.turns import BODY, NOW_MS, ONE, close, place

from exesys.config import Limits
from exesys.states import State
from exesys.store.journal import ASK_S, KEEP_S, Journal
from exesys.store.lineage import MOST_LIVES
from exesys.store.redis import Store
from exesys.turn import Answers, Claim, Lookup, Turn


@pytest.fixture
def store(redis_server: Any) -> Any:
    store = Store(redis_server.url, "", Limits())
    store.reconnect()
    store.boot()
    yield store
    store.close()


def run(store: Store, **requests: Any) -> Answers:
    store.begin(Turn(now_ms=NOW_MS, **requests))
    while (done := store.collect()) is None:
        assert select.select([store.fileno()], [], [], 5)[0], "Redis is silent"
    return done[1]


def copy_of(client: Any) -> dict[bytes, bytes]:
    return {key: client.dump(key) for key in client.scan_iter()}


def roll_back(client: Any, before: dict[bytes, bytes]) -> None:
    """Put Redis back to what it held, as if it had been killed before it wrote its file."""
    client.flushdb()
    for key, dumped in before.items():
        client.restore(key, 0, dumped)


def test_commands_that_redis_forgot_are_stored_again(store: Store, redis_server: Any) -> None:
    run(store, placed=[place("kept")])
    before = copy_of(redis_server.client)
    for number in range(5):
        assert run(store, placed=[place(f"lost-{number}")]).taken[0].verdict == "new"
    roll_back(redis_server.client, before)
    assert run(store, lookups=[Lookup("lost-0", "a", "end_job")]).found[0].state is None

    store.reconnect()

    found = run(store, lookups=[Lookup(f"lost-{number}", "a", "end_job") for number in range(5)]).found
    assert [step.state for step in found] == [State.start] * 5
    claimed = run(store, claims=[Claim(ONE, 10, ("default",))]).claimed[0].jobs
    assert [job.ref for job in claimed] == ["a:kept", *(f"a:lost-{number}" for number in range(5))]


def test_an_end_that_redis_forgot_with_its_claim_counts_and_the_step_runs_no_second_time(
    store: Store, redis_server: Any
) -> None:
    run(store, placed=[place("j")])
    before = copy_of(redis_server.client)
    [job] = run(store, claims=[Claim(ONE, 1, ("default",))]).claimed[0].jobs
    assert run(store, reports=[close(job, body=BODY)]).ended[0].state is State.data_available
    roll_back(redis_server.client, before)

    store.reconnect()

    found = run(store, lookups=[Lookup("j", "a", "end_job")]).found[0]
    assert (found.state, found.body) == (State.data_available, BODY)
    assert run(store, claims=[Claim(ONE, 1, ("default",))]).claimed[0].jobs == ()


def test_a_report_counts_when_only_its_claim_was_forgotten(store: Store, redis_server: Any) -> None:
    run(store, placed=[place("j")])
    before = copy_of(redis_server.client)
    [job] = run(store, claims=[Claim(ONE, 1, ("default",))]).claimed[0].jobs
    roll_back(redis_server.client, before)

    ended = run(store, reports=[close(job, body=BODY)]).ended[0]

    assert (ended.stale, ended.state) == (False, State.data_available)
    assert run(store, claims=[Claim(ONE, 1, ("default",))]).claimed[0].jobs == ()


def test_nothing_is_sent_again_when_nothing_was_forgotten(store: Store, redis_server: Any) -> None:
    run(store, placed=[place("j")])
    redis_server.client.config_resetstat()

    store.reconnect()

    assert redis_server.client.info("commandstats")["cmdstat_fcall"]["calls"] == 1  # that the router goes on


def test_one_spoilt_job_is_refused_and_its_neighbours_are_taken(store: Store, redis_server: Any) -> None:
    redis_server.client.set("a:bad:start", "somebody else's key of another kind")

    taken = run(store, placed=[place("good-1"), place("bad"), place("good-2")]).taken

    assert [took.verdict for took in taken] == ["new", "refused", "new"]


def test_a_turn_is_kept_until_redis_has_written_it() -> None:
    journal = Journal()
    journal.keep(journal.next(), Turn(placed=[place("j")]), now=0.0)
    assert journal.wants_to_know(now=0.0)
    journal.told(b"aof_enabled:1\r\naof_buffer_length:80\r\n")
    assert [entry.number for entry in journal.after(0)] == [1]
    assert not journal.wants_to_know(now=ASK_S / 2)

    assert journal.wants_to_know(now=2 * ASK_S)
    journal.keep(journal.next(), Turn(placed=[place("k")]), now=2 * ASK_S)
    journal.told(b"aof_enabled:1\r\naof_buffer_length:0\r\n")
    assert [entry.number for entry in journal.after(0)] == [2], "only what was there when it was asked"

    journal.keep(journal.next(), Turn(), now=3 * KEEP_S)
    assert journal.after(0) == [], "and no turn for longer than Redis can put a write off"


def lives(client: Any) -> list[bytes]:
    found: list[bytes] = client.lrange("exesys:lineage", 0, -1)
    return found


def test_each_router_begins_a_life_at_the_turn_it_finds(store: Store, redis_server: Any) -> None:
    assert [life.partition(b" ")[2] for life in lives(redis_server.client)] == [b""]
    run(store, placed=[place("j")])
    store.boot()
    ids, marks = zip(*(life.split(b" ") for life in lives(redis_server.client)), strict=True)
    assert marks == (b"", b"1.1")
    assert len(set(ids)) == 2
    for _ in range(MOST_LIVES):
        store.boot()
    assert len(lives(redis_server.client)) == MOST_LIVES


def test_turns_that_were_forgotten_and_are_stored_again_are_no_new_life(store: Store, redis_server: Any) -> None:
    run(store, placed=[place("kept")])
    before = copy_of(redis_server.client)
    run(store, placed=[place("lost")])
    roll_back(redis_server.client, before)

    store.reconnect()

    assert redis_server.client.get("exesys:turn") == b"1.2"
    assert len(lives(redis_server.client)) == 1


def test_turns_that_are_lost_for_good_begin_a_new_life_once(store: Store, redis_server: Any, caplog: Any) -> None:
    run(store, placed=[place("kept")])
    before = copy_of(redis_server.client)
    for number in range(3):
        run(store, placed=[place(f"lost-{number}")])
    store._journal.told(b"aof_enabled:1\r\naof_buffer_length:0\r\n")  # Redis says that it has written them
    store._journal.wants_to_know(float("inf"))
    store._journal.told(b"aof_enabled:1\r\naof_buffer_length:0\r\n")
    roll_back(redis_server.client, before)

    store.reconnect()
    store.reconnect()

    assert [life.partition(b" ")[2] for life in lives(redis_server.client)] == [b"", b"1.1"]
    assert redis_server.client.get("exesys:turn") == b"1.4"
    assert "Redis has lost turns that it had written: it is at 1 of 4" in caplog.text


def test_a_store_that_was_emptied_is_another_life(store: Store, redis_server: Any) -> None:
    run(store, placed=[place("j")])
    store._journal.wants_to_know(float("inf"))
    store._journal.told(b"aof_enabled:1\r\naof_buffer_length:0\r\n")
    redis_server.client.flushall()
    store.reconnect()
    assert [life.partition(b" ")[2] for life in lives(redis_server.client)] == [b""]
