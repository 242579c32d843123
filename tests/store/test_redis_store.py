"""The router's connection to a real server: repeats, refusals, names and memory."""

from __future__ import annotations

import random
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from store.fake import RealStore
from store.turns import BODY, NOW_MS, ONE, TWO, claim, close, flow, place, refs, report, run, send, submit

from exesys.bus.messages import Held, Outcome
from exesys.config import Limits
from exesys.errors import Unavailable
from exesys.store.dial import StoreAway
from exesys.store.keys import PATTERNS, Keys
from exesys.store.redis import Store, Wait
from exesys.turn import Answers, Claim, Turn

BYTES_PER_JOB = 700
JOBS = 20_000


@pytest.fixture
def real(redis_server: Any) -> Iterator[RealStore]:
    store = RealStore(redis_server.url, redis_server.client, Limits())
    yield store
    store.close()


@pytest.fixture
def store(real: RealStore) -> Store:
    return real.store


def collect(store: Store, within_s: float = 10.0) -> tuple[Turn, Answers]:
    while True:
        assert store.answered or select.select([store.fileno()], [], [], within_s)[0], "the server is silent"
        if (done := store.collect()) is not None:
            return done


# --- the connection ---------------------------------------------------------


def test_a_turn_does_not_wait_for_its_answers(store: Store) -> None:
    assert not store.busy
    turn = Turn(NOW_MS, placed=[place()], claims=[Claim(ONE, 1, ("default",))])
    store.begin(turn)
    assert store.busy
    done, answers = collect(store)
    assert done is turn
    assert not store.busy
    assert [job.ref for job in answers.claimed[0].jobs] == ["a:j"]
    assert not answers.claims_lost


def test_nothing_is_collected_without_a_turn(store: Store) -> None:
    assert store.collect() is None
    store.again()
    assert not store.busy


def test_a_large_turn_comes_back_in_order(store: Store) -> None:
    body = bytes(10_000)
    store.begin(Turn(NOW_MS, placed=[place(f"j{number}", data=b"\xc5\x27\x10" + body) for number in range(600)]))
    assert [taken.verdict for taken in collect(store)[1].taken] == ["new"] * 600
    store.begin(Turn(NOW_MS, claims=[Claim(ONE, 600, ("default",))]))
    jobs = collect(store)[1].claimed[0].jobs
    assert [job.ref for job in jobs] == [f"a:j{number}" for number in range(600)]
    assert {len(job.data) for job in jobs} == {10_003}


def cut(store: Store, read: bool) -> None:
    """Break the connection, before or after the server has answered (`read`)."""
    with socket.socket(fileno=socket.dup(store.fileno())) as line:
        if read:
            assert select.select([line], [], [], 10)[0]
            line.recv(1 << 20)
        line.shutdown(socket.SHUT_RDWR)


def lose_answers(store: Store) -> None:
    """Break the connection once the server has answered, and send anew."""
    cut(store, read=True)
    with pytest.raises(StoreAway):
        collect(store)
    assert store.busy
    store.reconnect()
    store.again()


def test_a_turn_whose_answers_are_lost_is_sent_again_without_its_claims(store: Store) -> None:
    turn = Turn(NOW_MS, placed=[place("j"), place("k")], claims=[Claim(ONE, 1, ("default",))])
    store.begin(turn)
    lose_answers(store)
    done, answers = collect(store)
    assert done is turn
    assert (answers.claims_lost, answers.claimed) == (True, [])
    assert [taken.verdict for taken in answers.taken] == ["same", "same"]
    store.begin(Turn(NOW_MS, recalls=[ONE]))
    assert collect(store)[1].recalled == [(Held("a:j", 1),)]


def test_a_turn_that_never_left_is_sent_when_the_connection_is_back(store: Store) -> None:
    cut(store, read=False)
    turn = Turn(NOW_MS, placed=[place("j")], claims=[Claim(ONE, 1, ("default",))])
    with pytest.raises(StoreAway):
        store.begin(turn)
    store.reconnect()
    store.again()
    done, answers = collect(store)
    assert done is turn
    assert [taken.verdict for taken in answers.taken] == ["new"]
    store.begin(Turn(NOW_MS, claims=[Claim(ONE, 1, ("default",))]))
    done, answers = collect(store)
    assert not answers.claims_lost
    assert len(answers.claimed[0].jobs) == 1


def test_a_turn_of_claims_alone_whose_answers_are_lost_says_so(store: Store) -> None:
    store.begin(Turn(NOW_MS, placed=[place()]))
    collect(store)
    store.begin(Turn(NOW_MS, claims=[Claim(ONE, 1, ("default",))]))
    for _ in range(2):
        lose_answers(store)
    answers = collect(store)[1]
    assert (answers.claims_lost, answers.claimed) == (True, [])


# --- two turns under way ------------------------------------------------------


@pytest.fixture
def two(store: Store) -> list[Turn]:
    """Two turns that are under way: each places a job and claims one."""
    claims = [Claim(ONE, 1, ("default",))]
    turns = [Turn(NOW_MS, placed=[place(job_id)], claims=list(claims)) for job_id in "jk"]
    for turn in turns:
        assert store.has_room
        store.begin(turn)
    assert not store.has_room
    return turns


def test_two_turns_are_answered_in_their_order(store: Store, two: list[Turn]) -> None:
    done = [collect(store) for _ in two]
    assert [turn is wanted for (turn, _), wanted in zip(done, two, strict=True)] == [True, True]
    assert [[job.ref for job in answers.claimed[0].jobs] for _, answers in done] == [["a:j"], ["a:k"]]
    assert (store.busy, store.has_room, store.answered) == (False, True, False)


def test_two_turns_whose_answers_are_lost_are_both_sent_again(store: Store, two: list[Turn]) -> None:
    for _ in range(2):
        lose_answers(store)
    for turn in two:
        done, answers = collect(store)
        assert done is turn
        assert (answers.claims_lost, answers.claimed) == (True, [])
        assert [taken.verdict for taken in answers.taken] in (["new"], ["same"])
    store.begin(Turn(NOW_MS, claims=[Claim(ONE, 2, ("default",))]))
    given = [Held(job.ref, job.attempt) for job in collect(store)[1].claimed[0].jobs]
    store.begin(Turn(NOW_MS, recalls=[ONE]))
    assert collect(store)[1].recalled == [(Held("a:j", 1), Held("a:k", 1))]
    assert given == [], "both were claimed when they came"


def test_the_answers_of_the_first_that_came_are_not_lost_with_the_second(store: Store) -> None:
    first, second = (Turn(NOW_MS, placed=[place(job_id)], claims=[Claim(ONE, 1, ("default",))]) for job_id in "jk")
    store.begin(first)
    assert select.select([store.fileno()], [], [], 10)[0]
    done, answers = store.collect() or (None, Answers())
    assert done is first
    assert [job.ref for job in answers.claimed[0].jobs] == ["a:j"]
    store.begin(second)
    lose_answers(store)
    done, answers = collect(store)
    assert done is second
    assert (answers.claims_lost, [taken.verdict for taken in answers.taken]) == (True, ["same"])


def test_a_turn_that_is_sent_once_more_in_pieces_still_ends_before_the_one_behind_it(
    store: Store, redis_server: Any
) -> None:
    """One job of the first spoils its chunk; meanwhile the second has been done."""
    redis_server.client.hset("exesys:job:k", "a", "end_job")
    redis_server.client.set("a:k:start", "not ours")
    first = Turn(NOW_MS, placed=[place(job_id) for job_id in "jkl"], claims=[Claim(ONE, 1, ("default",))])
    second = Turn(NOW_MS, placed=[place("m")], claims=[Claim(TWO, 9, ("default",))])
    for turn in (first, second):
        store.begin(turn)
    done, answers = collect(store)
    assert done is first
    assert _verdicts(answers)[1] == "refused"
    assert {_verdicts(answers)[at] for at in (0, 2)} <= {"new", "same"}
    assert answers.claims_lost
    done, answers = collect(store)
    assert done is second
    assert _verdicts(answers) == ["new"]
    assert not store.busy
    store.begin(Turn(NOW_MS, recalls=[ONE]))
    assert Held("a:j", 1) in collect(store)[1].recalled[0], "it was handed out by the call that broke off"
    mark = redis_server.client.get("exesys:turn")
    assert mark.endswith(b".2"), "the mark is that of the newest turn, though the first was sent again behind it"


def test_what_was_answered_before_the_store_could_not_write_is_taken_first(store: Store, redis_server: Any) -> None:
    """It belongs into the journal: the server that comes back may have lost it."""
    first, second = (Turn(NOW_MS, placed=[place(job_id)]) for job_id in "jk")
    store.begin(first)
    with socket.socket(fileno=socket.dup(store.fileno())) as line:
        assert select.select([line], [], [], 10)[0]
        redis_server.client.config_set("maxmemory", "1")
        try:
            store.begin(second)
            for _ in range(1000):
                if b"OOM" in line.recv(1 << 16, socket.MSG_PEEK):
                    break
                select.select([], [], [], 0.01)
            done, answers = store.collect() or (None, Answers())
            assert (done, _verdicts(answers)) == (first, ["new"])
            assert store.answered
            with pytest.raises(StoreAway):
                store.collect()
        finally:
            redis_server.client.config_set("maxmemory", "0")
    redis_server.client.flushdb()
    store.reconnect()
    store.again()
    assert _verdicts(collect(store)[1]) == ["new"]
    assert redis_server.client.exists("a:j:start", "a:k:start") == 2, "the first was given back"


def _verdicts(answers: Answers) -> list[str]:
    return [taken.verdict for taken in answers.taken]


def test_what_replicas_confirm_goes_one_by_one(redis_server: Any) -> None:
    store = Store(redis_server.url, "", Limits(), Wait(1, 10))
    store.reconnect()
    store.begin(Turn(NOW_MS, placed=[place()]))
    assert not store.has_room
    store.close()


# --- servers that are away ----------------------------------------------------


def test_a_server_that_is_not_there_is_one_error(tmp_path: Path) -> None:
    store = Store(f"unix://{tmp_path}/nothing", "", Limits())
    for call in (store.reconnect, store.boot, lambda: store.begin(Turn(NOW_MS, lost=[ONE]))):
        with pytest.raises(StoreAway) as caught:
            call()
        assert isinstance(caught.value, Unavailable)
    assert store.busy
    with pytest.raises(StoreAway):
        store.fileno()


def test_a_server_that_never_answers_holds_nobody_up_for_long(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "s"))
        silent.listen(5)
        store = Store(f"unix://{tmp_path}/s", "", Limits())
        tried: list[BaseException] = []

        def connect() -> None:
            try:
                store.reconnect()
            except StoreAway as error:
                tried.append(error)

        thread = threading.Thread(target=connect, daemon=True)
        thread.start()
        thread.join(5)
        assert len(tried) == 1


def test_garbage_instead_of_an_answer_is_one_error(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(str(tmp_path / "s"))
        odd.listen(5)

        def serve() -> None:
            peer, _ = odd.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\r\n\r\n" * 5)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(StoreAway):
            Store(f"unix://{tmp_path}/s", "", Limits()).reconnect()
        thread.join(5)


@pytest.mark.parametrize("setting", [("maxmemory", "1"), ("min-replicas-to-write", "1")])
def test_a_server_that_cannot_write_just_now_is_away_and_the_turn_is_kept(
    real: RealStore, redis_server: Any, setting: tuple[str, str]
) -> None:
    name, value = setting
    redis_server.client.config_set(name, value)
    try:
        with pytest.raises(StoreAway):
            submit(real, place())
    finally:
        redis_server.client.config_set(name, "0")
    assert real.store.busy
    real.store.reconnect()
    real.store.again()
    assert [taken.verdict for taken in collect(real.store)[1].taken] == ["new"]
    assert refs(claim(real, 9)) == ["a:j"]


def test_two_routers_do_not_disturb_each_other_by_their_scripts(redis_server: Any) -> None:
    """One is being replaced by another, perhaps of a newer version."""
    stores = [RealStore(redis_server.url, redis_server.client, Limits(), prefix) for prefix in ("", "{a}", "{b}", "")]
    for number, store in enumerate(stores):
        submit(store, place(f"j{number}"))
    assert refs(claim(stores[0], 9)) == ["a:j0", "a:j3"]
    assert refs(claim(stores[1], 9)) == ["a:j1"]
    assert refs(claim(stores[2], 9)) == ["a:j2"]
    for store in stores:
        store.close()


def test_a_foreign_key_in_the_place_of_one_of_ours_spoils_no_other_job(real: RealStore, redis_server: Any) -> None:
    redis_server.client.set("exesys:job:k", "not ours")
    redis_server.client.rpush("a:l:start", "not ours")
    taken = submit(real, *(place(job) for job in "jklm"))
    assert [each.verdict for each in taken][1:3] == ["refused", "refused"]
    assert {taken[0].verdict, taken[3].verdict} <= {"new", "same"}
    assert refs(claim(real, 9)) == ["a:j", "a:m"]
    jobs = [Held("a:j", 1), Held("a:m", 1)]
    redis_server.client.set("a:j:data_available", "not ours")
    ended = report(real, *(close(job) for job in jobs))
    assert not ended[1].stale


def test_a_foreign_key_in_the_way_of_a_workflow_refuses_it_whole(real: RealStore, redis_server: Any) -> None:
    redis_server.client.rpush("c:k:standby", "not ours")
    redis_server.client.set("exesys:job:l", "not ours")
    before = set(redis_server.client.scan_iter())
    stored = send(real, *(flow(["a>b", "b>c", "c>end_job"], job) for job in "jklm"))
    assert [each.verdict for each in stored][1:3] == ["refused", "refused"]
    assert {stored[0].verdict, stored[3].verdict} <= {"new", "same"}
    left = set(redis_server.client.scan_iter()) - before
    assert not [key for key in left if b":k:" in key or b":l:" in key or key.endswith((b":k", b":l"))]
    assert refs(claim(real, 9)) == ["a:j", "a:m"]


# --- names ------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "{s07}"])
def test_the_lua_spells_every_key_as_python_does(redis_server: Any, prefix: str) -> None:
    keys = Keys(prefix)
    for name, (pattern, _) in PATTERNS.items():
        parts = [f"p{number}.x" for number in range(pattern.count("%s"))]
        arguments = ", ".join(f"'{part}'" for part in parts)
        spelled = redis_server.client.eval(f"{keys.prelude()} return key.{name}({arguments})", 0)
        assert spelled.decode() == keys(name, *parts)


def test_the_lua_has_the_states_in_their_order(redis_server: Any) -> None:
    states = redis_server.client.eval(f"{Keys().prelude()} return STATES", 0)
    assert [state.decode() for state in states] == ["start", "standby", "processing", "data_available", "error"]


@pytest.mark.parametrize("prefix", ["", "{s07}"])
def test_every_key_is_one_of_the_table(redis_server: Any, prefix: str) -> None:
    store = RealStore(redis_server.url, redis_server.client, Limits(max_losses=1), prefix)
    store.boot()
    submit(store, place("j", queue="fast"), place("k"), place("l", due_ms=NOW_MS + 10**6), place("m"), place("k", "b"))
    jobs = claim(store, 3, queues=("fast", "default"))
    claim(store, 1, TWO)
    run(store, lost=[TWO], catalogue=b"\x80")
    report(store, close(jobs[0], log="log"), close(jobs[1], Outcome.failed))
    names = [name.decode() for name in redis_server.client.scan_iter()]
    known = [(prefix + pattern).replace("%s", "\0").split("\0") for pattern, _ in PATTERNS.values()]
    for name in names:
        assert any(_fits(name, parts) for parts in known), f"{name} is no key of the table"
    assert len(names) > 12
    store.close()


def _fits(name: str, parts: list[str]) -> bool:
    if not name.startswith(parts[0]) or not name.endswith(parts[-1]):
        return False
    return len(parts) > 1 or name == parts[0]


# --- memory and speed ----------------------------------------------------------


def used_bytes(client: redis.Redis) -> int:
    client.memory_purge()
    info: Any = client.info("memory")
    return int(info["used_memory"])


def test_a_finished_job_costs_at_most_seven_hundred_bytes(real: RealStore, redis_server: Any) -> None:
    rng = random.Random(7)
    before = used_bytes(redis_server.client)
    for _ in range(0, JOBS, 1000):
        jobs = [f"{rng.getrandbits(128):032x}" for _ in range(1000)]
        data = b"\xadsenatoremonti"
        submit(real, *(place(job, "testclient", cmd="test_cmd", data=data, peer=f"{TWO}.123456") for job in jobs))
        given = [job for _ in range(2) for job in claim(real, 500)]
        assert len(given) == 1000
        report(real, *(close(job, body=BODY) for job in given))
    each = (used_bytes(redis_server.client) - before) / JOBS
    assert each <= BYTES_PER_JOB, f"{each:.0f} bytes"


def test_a_session_that_holds_nothing_costs_nothing(real: RealStore, redis_server: Any) -> None:
    before = set(redis_server.client.scan_iter())
    submit(real, *(place(f"j{number}") for number in range(50)))
    report(real, *(close(job) for job in claim(real, 50)))
    after = {name.decode() for name in set(redis_server.client.scan_iter()) - before}
    assert not [name for name in after if ":held:" in name or ":ready:" in name]


def test_a_job_that_stands_nowhere_is_put_where_it_belongs_when_it_comes_again(
    real: RealStore, redis_server: Any
) -> None:
    submit(real, place("late", due_ms=NOW_MS + 500), place("now"), place("keyed", key="k"))
    for name in (
        "exesys:delayed",
        "exesys:ready:default",
        "exesys:lane:default=k",
        "exesys:keyed:default",
        "exesys:turns:default",
    ):
        assert redis_server.client.delete(name), name
    taken = submit(real, place("late", due_ms=NOW_MS + 500), place("now"), place("keyed", key="k"))
    assert [each.verdict for each in taken] == ["same"] * 3
    assert refs(claim(real, 9)) == ["a:now", "a:keyed"]
    assert refs(claim(real, 9, now_ms=NOW_MS + 500)) == ["a:late"]


@pytest.mark.parametrize("queued", [0, 30_000])
def test_a_claim_costs_the_same_at_any_backlog(real: RealStore, redis_server: Any, queued: int) -> None:
    for first in range(0, queued, 1000):
        submit(real, *(place(f"q{number}") for number in range(first, first + 1000)))
    submit(real, place("one"))
    redis_server.client.config_resetstat()
    claim(real, 1)
    calls: Any = redis_server.client.info("commandstats")
    touched = sum(each["calls"] for name, each in calls.items() if not name.startswith("cmdstat_config"))
    assert touched < 30, "no command for each job that waits"
    assert not {name for name in calls if name in ("cmdstat_keys", "cmdstat_scan")}
