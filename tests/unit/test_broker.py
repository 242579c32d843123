"""The router's core, driven by messages and time over the fake store: no socket, no clock, no Redis."""

from __future__ import annotations

import dataclasses
import gc
import sys
from types import FunctionType, ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from unit import shapes
from unit.bench import HELLO, Bench, codes, finish, item, load, result, states
from unit.world import CATALOGUE, CONFIG

from exesys import codec, troubles
from exesys.bus import messages as m
from exesys.bus.broker import LEAST_BESIDE
from exesys.catalogue import Catalogue, FunctionInfo
from exesys.config import Bus, Limits
from exesys.errors import ProtocolError
from exesys.states import State
from exesys.turn import Answers, Taken, Turn

S = m.Outcome
LEASE_S = CONFIG.lease_s
STRANGER = b"stranger"
LAZY_S = 0.02
APP = {"app": "words", "number": 1, "state": "ready", "endpoint": "ipc:///w", "threads": 1, "methods": []}
APP |= {"host": "here", "pid": 7, "since_ms": 5, "reason": "", "traceback": ""}
FAILURE = codec.pack({"type": "ValueError", "message": "no"})


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- HELLO ------------------------------------------------------------------


def test_a_client_is_told_what_it_needs_to_know(bench: Bench) -> None:
    client = bench.client()
    [welcome] = bench.said(client)
    assert isinstance(welcome, m.Welcome)
    assert (welcome.version, welcome.session, welcome.epoch) == (m.VERSION, client.decode(), bench.broker.epoch)
    assert (welcome.heartbeat_s, welcome.misses) == (CONFIG.bus.heartbeat_s, CONFIG.bus.misses)
    assert welcome.endpoints == {"results": "r", "events": "e"}
    assert welcome.limits["data_bytes"] == CONFIG.limits.data_bytes
    assert (welcome.shard, welcome.shards) == ("", {})


def test_a_worker_is_welcomed_with_the_endpoint_of_its_jobs(bench: Bench) -> None:
    bench.tell(STRANGER, m.Hello(m.VERSION, "worker", "e" * 16, "", HELLO))
    [welcome] = bench.said(STRANGER)
    assert isinstance(welcome, m.Welcome)
    assert welcome.endpoints["jobs"] == f"jobs-{'e' * 16}"


@pytest.mark.parametrize(
    ("version", "role", "session", "info", "code"),
    [
        (m.VERSION + 1, "client", "e" * 16, {}, "bad_version"),
        (0, "client", "e" * 16, {}, "bad_version"),
        (m.VERSION, "admin", "e" * 16, {}, "bad_hello"),
        (m.VERSION, "client", "", {}, "bad_hello"),
        (m.VERSION, "client", "E" * 16, {}, "bad_hello"),
        (m.VERSION, "client", "e" * 17, {}, "bad_hello"),
        (m.VERSION, "client", "e" * 16 + "\n", {}, "bad_hello"),
        (m.VERSION, "app", "e" * 16, {}, "bad_hello"),
        (m.VERSION, "app", "e" * 16, {**APP, "state": "well"}, "bad_hello"),
        (m.VERSION, "worker", "e" * 16, {}, "bad_hello"),
        (m.VERSION, "worker", "e" * 16, {"queues": ["default"]}, "bad_hello"),
        (m.VERSION, "worker", "e" * 16, {**HELLO, "queues": []}, "bad_hello"),
        (m.VERSION, "worker", "e" * 16, {**HELLO, "queues": "default"}, "bad_hello"),
        (m.VERSION, "worker", "e" * 16, {**HELLO, "queues": ["a:b"]}, "bad_hello"),
        (m.VERSION, "worker", "e" * 16, {**HELLO, "queues": [["default"]]}, "bad_hello"),
        (m.VERSION, "worker", "e" * 16, {**HELLO, "catalogue": {"functions": [{}], "broken": {}}}, "bad_hello"),
    ],
)
def test_a_hello_that_is_not_right_is_refused(
    bench: Bench, version: int, role: str, session: str, info: dict[str, Any], code: str
) -> None:
    bench.tell(STRANGER, m.Hello(version, role, session, "", info))
    assert codes(bench.said(STRANGER)) == [code]
    assert bench.turn() is None
    bench.tell(STRANGER, m.Drain(session))
    assert codes(bench.said(STRANGER)) == ["unknown_session"]


@settings(max_examples=50)
@given(shapes.any_of(kind for kind in shapes.FROM_PEERS if kind is not m.Hello))
def test_a_stranger_is_asked_to_say_hello_first(message: m.Message) -> None:
    bench = Bench()
    bench.tell(STRANGER, message)
    assert codes(bench.said(STRANGER)) == ["unknown_session"]
    assert bench.turn() is None


def test_a_session_that_comes_by_a_new_connection_leaves_its_old_one(bench: Bench) -> None:
    old = bench.client()
    bench.submit(old, item())
    bench.tell(b"new", m.Hello(m.VERSION, "client", old.decode(), "", {}))
    bench.turn()
    bench.wait(0.1)
    assert states(bench.said(b"new")) == {1: State.start}
    bench.said(old)
    bench.tell(old, m.Sync(1, ("stops",)))
    assert codes(bench.said(old)) == ["unknown_session"]


def test_application_servers_are_introduced_and_forgotten(bench: Bench) -> None:
    client = bench.client()

    def there() -> list[Any]:
        bench.tell(client, m.Sync(1, ("apps",)))
        [answer] = [message for message in bench.said(client) if isinstance(message, m.Snapshot)]
        return [[one["state"] for one in app["instances"]] for app in answer.parts["apps"]]

    assert there() == []
    for session, number in (("d" * 16, 1), ("e" * 16, 2)):
        bench.tell(session.encode(), m.Hello(m.VERSION, "app", session, "", {**APP, "number": number}))
        assert [type(message) for message in bench.said(session.encode())] == [m.Welcome]
    assert there() == [["ready", "ready"]]
    bench.tell(b"d" * 16, m.Drain("d" * 16))
    assert there() == [["leaving", "ready"]]
    bench.tell(b"d" * 16, m.Bye("d" * 16, "ending"))
    assert there() == [["ready"]]
    bench.wait(LEASE_S + 1)  # one that is silent is given up, as every peer is
    bench.tell(client, m.Hello(m.VERSION, "client", client.decode(), "", {}))
    assert there() == []


def test_an_application_server_that_lost_its_place_takes_it_back_once_it_is_heard(bench: Bench) -> None:
    client = bench.client()
    real, stray = b"d" * 16, b"e" * 16

    def hello(session: bytes, pid: int) -> None:
        bench.tell(session, m.Hello(m.VERSION, "app", session.decode(), "", {**APP, "pid": pid}))
        assert [type(message) for message in bench.said(session)] == [m.Welcome]

    def pids() -> list[int]:
        bench.tell(client, m.Sync(1, ("apps",)))
        [answer] = [message for message in bench.said(client) if isinstance(message, m.Snapshot)]
        return [one["pid"] for app in answer.parts["apps"] for one in app["instances"]]

    def beat(session: bytes) -> list[str]:
        bench.tell(session, m.Heartbeat(session.decode(), 1, 0, 0, (), ()))
        return codes(bench.said(session))

    hello(real, 1)
    assert beat(real) == []
    hello(stray, 2)
    assert pids() == [2]
    assert beat(stray) == []
    assert beat(real) == ["unknown_session"]
    hello(real, 1)
    assert pids() == [1]
    hello(stray, 2)
    bench.tell(stray, m.Bye(stray.decode(), "ending"))
    assert pids() == []
    assert beat(real) == ["unknown_session"]
    hello(real, 1)
    assert (pids(), beat(real)) == ([1], [])


def test_only_the_controller_may_stop_runners(bench: Bench) -> None:
    client, controller = bench.client(), bench.client("controller")
    bench.said(client)
    bench.tell(client, m.Stop("cam", "7"))
    assert codes(bench.said(client)) == ["not_allowed"]
    assert bench.published == []
    bench.tell(controller, m.Stop("cam", "7"))
    assert [topic for topic, _ in bench.published] == ["stop.cam.7"]


def test_results_on_the_front_socket_are_refused(bench: Bench) -> None:
    worker = bench.worker()
    bench.said(worker)
    bench.tell(worker.encode(), m.Result(worker, ()))
    assert codes(bench.said(worker)) == ["not_allowed"]


def test_garbage_costs_only_its_sender_an_error(bench: Bench) -> None:
    client = bench.client()
    bench.said(client)
    bench.broker.garbled(client, ProtocolError("the frame is not msgpack"))
    bench.broker.garbled(b"", ProtocolError("the frame is not msgpack"))
    bench.tell(client, m.Sync(1, ()))
    error, snapshot = bench.said(client)
    assert isinstance(error, m.Error)
    assert error.code == "bad_message"
    assert isinstance(snapshot, m.Snapshot)
    assert bench.snapshot("figures")["garbage"] == 2


# --- from command to result --------------------------------------------------


def test_a_command_goes_to_a_worker_and_its_result_comes_back(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.said(client)
    bench.submit(client, item(tag=7, n=4))
    bench.turn()
    [job] = bench.dealt(worker)
    assert (job.ref, job.attempt, job.to, job.cmd) == ("a:j", 1, "end_job", "double")
    assert codec.unpack(job.data) == {"n": 4}
    bench.results(result(job, worker))
    bench.turn()
    assert bench.said(client) == [m.Done((m.Answer(7, State.data_available, b"\x81\xa3EOJ*"),))]


def test_nothing_is_answered_or_dealt_before_the_commit(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.said(client)
    bench.said(worker)
    bench.submit(client, item(notify=False))
    turn = bench.plan()
    assert turn is not None
    assert (bench.said(client), bench.dealt(worker)) == ([], [])
    answers = bench.store.run(turn)
    bench.broker.tick(bench.now + 1)
    bench._note()
    assert (bench.said(client), bench.dealt(worker)) == ([], [])
    bench.apply(turn, answers)
    [job] = bench.dealt(worker)
    assert states(bench.said(client)) == {1: State.start}
    bench.results(result(job, worker))
    turn = bench.plan()
    assert turn is not None
    bench.broker.tick(bench.now + 0.5)
    bench._note()
    assert bench.said(worker) == []


def test_a_result_is_acknowledged_with_others_after_the_commit(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=3)
    bench.submit(client, *(item(tag, f"j{tag}") for tag in range(3)))
    bench.turn()
    jobs = bench.dealt(worker)
    bench.said(worker)
    for job in jobs:
        bench.results(result(job, worker))
        bench.turn()
    assert bench.said(worker) == []
    bench.wait(2 * LAZY_S)
    assert bench.said(worker) == [m.ResultAck(tuple(m.Held(job.ref, 1) for job in jobs))]


def test_the_acknowledgement_of_a_short_job_is_left_to_its_done(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.said(client)
    bench.submit(client, item())
    bench.turn()
    assert 0 < bench.broker.wake_in_s(bench.now, bench.now_ms) <= LAZY_S
    finish(bench, worker, *bench.dealt(worker))
    bench.wait(1)
    assert [type(message) for message in bench.said(client)] == [m.Done]


def test_the_acknowledgement_of_a_longer_job_comes_soon(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.said(client)
    bench.submit(client, item())
    bench.turn()
    bench.wait(1.5 * LAZY_S)
    assert bench.said(client) == [m.SubmitAck((m.Answer(1, State.start, None),))]
    bench.wait(1)
    finish(bench, worker, *bench.dealt(worker))
    assert [type(message) for message in bench.said(client)] == [m.Done]


def test_who_wants_no_notice_is_answered_at_once_and_not_again(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.said(client)
    bench.submit(client, item(notify=False))
    bench.turn()
    assert bench.said(client) == [m.SubmitAck((m.Answer(1, State.start, None),))]
    finish(bench, worker, *bench.dealt(worker))
    bench.wait(1)
    assert bench.said(client) == []


def test_what_comes_in_together_is_one_turn(bench: Bench) -> None:
    clients = [bench.client() for _ in range(3)]
    bench.turns()
    for number, client in enumerate(clients):
        bench.submit(client, item(job=f"j{number}"), item(2, f"k{number}"))
    turn = bench.turn()
    assert turn is not None
    assert len(turn.placed) == 6
    assert bench.turn() is None


def test_a_failure_is_told_with_its_attempts(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.said(client)
    bench.submit(client, item(retries=1, backoff_s=0))
    for attempt in (1, 2):
        bench.turns()
        [job] = bench.dealt(worker)
        assert job.attempt == attempt
        finish(bench, worker, job, outcome=S.failed, body=FAILURE)
    [done] = bench.said(client)
    assert done == m.Done((m.Answer(1, State.error, [FAILURE, 2]),))


def test_the_same_command_of_two_clients_runs_once_for_both(bench: Bench) -> None:
    first, second, worker = bench.client(), bench.client(), bench.worker()
    bench.submit(first, item(tag=1))
    bench.submit(second, item(tag=2))
    bench.turns()
    [job] = bench.dealt(worker)
    finish(bench, worker, job)
    assert states(bench.said(first)) == {1: State.data_available}
    assert states(bench.said(second)) == {2: State.data_available}
    bench.submit(second, item(tag=3))
    bench.turns()
    assert states(bench.said(second)) == {3: State.data_available}
    assert bench.dealt(worker) == []


def test_a_command_that_is_sent_again_runs_once_and_is_told_of_its_end(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item())
    bench.turns()
    bench.submit(client, item())
    bench.submit(client, item())
    bench.turns()
    finish(bench, worker, *bench.dealt(worker))
    assert states(bench.said(client)) == {1: State.data_available}
    assert bench.dealt(worker) == []


def test_another_command_under_the_same_name_is_a_conflict(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, item(1, n=1))
    bench.submit(client, item(2, n=2), item(3, cmd="flaky", n=1))
    bench.turns()
    assert codes(bench.said(client)) == ["conflict", "conflict"]


def test_a_full_queue_is_an_answer_of_its_own() -> None:
    bench = Bench(dataclasses.replace(CONFIG, limits=Limits(queue_depth=1)))
    client = bench.client()
    bench.submit(client, item(1, "j"), item(2, "k"), item(3, "l", queue="other"))
    bench.turns()
    bench.wait(0.1)
    messages = bench.said(client)
    assert codes(messages) == ["queue_full"]
    assert states(messages) == {1: 0, 2: -1, 3: 0}


BAD_ITEMS: list[tuple[dict[str, Any], str]] = [
    ({"from_": "a:b"}, "bad_field"),
    ({"from_": ""}, "bad_field"),
    ({"from_": "exesys"}, "bad_field"),
    ({"to": 5}, "bad_field"),
    ({"to": []}, "bad_field"),
    ({"to": ["x", "x"]}, "bad_field"),
    ({"to": "x,y"}, "bad_field"),
    ({"to": {"x": 1}}, "bad_field"),
    ({"cmd": "*"}, "bad_field"),
    ({"job_id": "x" * 129}, "bad_field"),
    ({"data": b""}, "bad_field"),
    ({"data": b"\xc1"}, "bad_field"),
    ({"data": b"\xc0\xc0"}, "bad_field"),
    ({"data": b"\x91" * 101 + b"\xc0"}, "bad_field"),
    ({"data": codec.pack("x" * CONFIG.limits.data_bytes)}, "too_large"),
    ({"options": {"priority": 10}}, "bad_field"),
    ({"options": {"timeout_s": -1}}, "bad_field"),
    ({"options": {"timeout_s": float("nan")}}, "bad_field"),
    ({"options": {"prority": 1}}, "bad_field"),
    ({"options": {b"priority": 1}}, "bad_field"),
    ({"options": {"at": "yesterday"}}, "bad_field"),
    ({"options": {"at": "2026-01-01T00:00:00Z", "delay_s": 1}}, "bad_field"),
    ({"cmd": "duoble"}, "unknown_cmd"),
    ({"cmd": "v.double"}, "unknown_cmd"),
]


@pytest.mark.parametrize(("wrong", "code"), BAD_ITEMS)
def test_a_bad_command_is_refused_alone(bench: Bench, wrong: dict[str, Any], code: str) -> None:
    client, before = bench.client(), bench.store.dump()
    bench.said(client)
    bench.submit(client, item(8)._replace(**wrong))
    assert codes(bench.said(client)) == [code]
    assert bench.turn() is None
    assert bench.store.dump() == before
    bench.submit(client, item(1, "j1", notify=False), item(2)._replace(**wrong), item(3, "j3", notify=False))
    bench.turns()
    assert states(bench.said(client)) == {1: State.start, 2: -1, 3: State.start}


def test_a_refusal_says_field_and_fix(bench: Bench) -> None:
    client = bench.client()
    bench.said(client)
    bench.submit(client, item(cmd="duoble"))
    [message] = bench.said(client)
    assert isinstance(message, m.SubmitAck)
    code, text, field, fix = message.answers[0].body
    assert (code, field) == ("unknown_cmd", "cmd")
    assert "duoble" in text
    assert "double" in fix


def test_nothing_is_taken_before_a_worker_has_told_its_functions() -> None:
    bench = Bench(known=Catalogue({}, {}))
    client = bench.client()
    bench.submit(client, item())
    assert codes(bench.said(client)) == ["unavailable"]
    bench.worker()
    bench.submit(client, item())
    bench.turns()
    assert codes(bench.said(client)) == []


def test_the_catalogue_outlives_the_workers_and_the_router(bench: Bench) -> None:
    worker = bench.worker(catalogue=Catalogue({**CATALOGUE.functions}, {"gone": "ImportError: no"}).to_wire())
    bench.turns()
    known = codec.unpack(bench.store.boot()[2])
    assert Catalogue.from_wire(known).broken == {"gone": "ImportError: no"}
    bench.tell(worker.encode(), m.Bye(worker, "ending"))
    bench.turns()
    client = bench.client()
    bench.submit(client, item(notify=False))
    bench.turns()
    assert states(bench.said(client)) == {1: State.start}


def test_the_functions_own_options_hold_where_the_command_has_none() -> None:
    info = FunctionInfo("double", "w", "", "(data)", {"priority": 9, "queue": "fast", "timeout_s": 7}, "w.py")
    bench = Bench(known=Catalogue({"w.double": info}, {}))
    client = bench.client()
    bench.submit(client, item(1, "j"), item(2, "k", priority=1))
    turn = bench.turn()
    assert turn is not None
    assert [placed.options for placed in turn.placed] == [
        {"priority": 9, "queue": "fast", "timeout_s": 7},
        {"priority": 1, "queue": "fast", "timeout_s": 7},
    ]


# --- later -------------------------------------------------------------------


def test_a_delayed_job_is_dealt_when_it_is_due(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item(delay_s=2.5))
    bench.wait(2.4)
    assert bench.dealt(worker) == []
    bench.beat(worker)
    bench.wait(0.15)
    assert [job.ref for job in bench.dealt(worker)] == ["a:j"]


def test_a_delay_counts_from_the_commit(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item(delay_s=2))
    bench.now += 1.5
    bench.beat(worker)
    bench.wait(1.9)
    assert bench.dealt(worker) == []
    bench.beat(worker)
    bench.wait(0.2)
    assert len(bench.dealt(worker)) == 1


@pytest.mark.parametrize(
    "at", ["2020-01-01T00:00:00Z", "1970-01-01T00:00:00Z", "1969-12-31T23:59:59Z", "1901-02-03T04:05:06+02:00"]
)
def test_a_moment_in_the_past_is_now(bench: Bench, at: str) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item(at=at))
    bench.turns()
    assert len(bench.dealt(worker)) == 1


def test_a_job_is_dealt_at_its_moment(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item(at="2023-11-14T22:15:03Z"))  # 3 s from the bench's now
    bench.wait(2.5)
    bench.beat(worker)
    assert bench.dealt(worker) == []
    bench.wait(0.6)
    assert len(bench.dealt(worker)) == 1


def test_a_job_that_is_due_without_a_free_worker_keeps_nobody_awake(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, item(delay_s=0.1))
    worker = bench.worker()
    bench.submit(client, item(2, "long"))
    bench.turns()
    bench.tell(worker.encode(), m.Bye(worker, "ending"))
    bench.turns()
    bench.now += 1
    bench.tell(client, m.Heartbeat(client.decode(), 1, 0, 0, (), ()))
    bench.broker.tick(bench.now)
    bench.turns()
    assert bench.broker.wake_in_s(bench.now, bench.now_ms) > 0.01
    other = bench.worker()
    bench.turns()
    assert bench.dealt(other), "when a worker comes it gets the job"


# --- too much ------------------------------------------------------------------


def test_past_the_bound_of_pending_work_the_answer_is_busy() -> None:
    bench = Bench(dataclasses.replace(CONFIG, bus=Bus(pending=100)))
    client = bench.client()
    bench.said(client)
    bench.submit(client, *(item(tag, f"j{tag}") for tag in range(100)))
    bench.submit(client, item(100, "k"), item(101, "l"))
    [busy] = bench.said(client)
    assert isinstance(busy, m.Busy)
    assert (busy.tags, busy.reason) == ((100, 101), "pending")
    assert 0 < busy.retry_s <= 1
    bench.turns()
    bench.submit(client, item(100, "k", notify=False))
    bench.turns()
    assert states(bench.said(client))[100] == State.start


def test_while_the_store_is_late_commands_are_busy_and_all_else_goes_on(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item())
    turn = bench.plan()
    assert turn is not None
    began = bench.now
    bench.said(client)
    bench.said(worker)
    bench.now += 0.5
    bench.broker.store_slow(began)
    bench.submit(client, item(2, "k"))
    assert bench.said(client) == []
    bench.now += 1
    bench.submit(client, item(3, "l"))
    [busy] = bench.said(client)
    assert isinstance(busy, m.Busy)
    assert (busy.tags, busy.reason) == ((3,), "store")
    bench.beat(worker)
    assert [type(message) for message in bench.said(worker)] == [m.HeartbeatAck]
    bench.apply(turn, bench.store.run(turn))
    bench.submit(client, item(3, "l"))
    bench.turns()
    bench.wait(0.1)
    assert states(bench.said(client)) == {1: State.start, 2: State.start, 3: State.start}


def test_when_the_store_is_away_commands_are_busy_at_once(bench: Bench) -> None:
    client = bench.client()
    bench.said(client)
    bench.broker.store_slow(float("-inf"))
    bench.submit(client, item())
    [busy] = bench.said(client)
    assert isinstance(busy, m.Busy)
    assert busy.reason == "store"


def test_what_is_wrong_with_the_store_is_named(bench: Bench) -> None:
    client = bench.client()
    bench.said(client)
    bench.broker.store_slow(float("-inf"), troubles.BY_REASON["store_full"])
    bench.submit(client, item())
    bench.tell(client, m.Change(7, "cancel", "j"), m.Sync(8, ("store",)))
    busy, changed, snapshot = bench.said(client)
    assert isinstance(busy, m.Busy)
    assert isinstance(changed, m.Changed)
    assert isinstance(snapshot, m.Snapshot)
    assert busy.reason == "store_full"
    assert changed.problem[1].startswith("Redis has reached its maxmemory")
    assert snapshot.parts == {"store": {"reason": "store_full"}}


def test_a_turn_is_bounded_in_jobs_and_the_rest_follows_at_once(bench: Bench) -> None:
    client = bench.client()
    for first in range(0, 5000, 1000):
        bench.submit(client, *(item(tag, f"j{tag}", notify=False) for tag in range(first, first + 1000)))
    sizes = []
    while (turn := bench.turn()) is not None:
        sizes.append(len(turn.placed))
    assert sum(sizes) == 5000
    assert max(sizes) <= 2000
    assert states(bench.said(client)) == dict.fromkeys(range(5000), State.start)


def test_a_turn_is_bounded_in_bytes_and_a_large_command_still_goes(bench: Bench) -> None:
    client = bench.client()
    big = codec.pack("x" * 1_000_000)
    bench.submit(client, *(item(tag, f"j{tag}", notify=False)._replace(data=big) for tag in range(12)))
    sizes = []
    while (turn := bench.turn()) is not None:
        sizes.append(len(turn.placed))
    assert sum(sizes) == 12
    assert 1 < max(sizes) <= 5
    assert len(states(bench.said(client))) == 12


def test_results_and_questions_past_the_bound_of_a_turn_follow_too(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=3000)
    bench.submit(client, *(item(tag, f"j{tag}") for tag in range(3000)))
    bench.turns()
    jobs = bench.dealt(worker)
    assert len(jobs) == 3000
    bench.results(*(result(job, worker) for job in jobs), *(result(job, worker) for job in jobs))
    bench.tell(client, m.Status(tuple(m.Query(9000 + n, f"j{n}", "a", "end_job", False) for n in range(2500))))
    bench.turns()
    told = states(bench.said(client))
    assert {tag: told[tag] for tag in range(3000)} == dict.fromkeys(range(3000), State.data_available)
    assert len(told) == 5500
    assert set(bench.store.finished.values()) == {1}


def test_many_unknown_names_cost_little_and_are_all_refused(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, *(item(tag, cmd=f"duoble{tag}") for tag in range(300)), item(300, cmd="duoble1"))
    assert codes(bench.said(client)) == ["unknown_cmd"] * 301
    bench.worker(
        catalogue=Catalogue({"w.duoble1": FunctionInfo("duoble1", "w", "", "(data)", {}, "w.py")}, {}).to_wire()
    )
    bench.submit(client, item(301, cmd="duoble1", notify=False))
    bench.turns()
    assert states(bench.said(client)) == {301: State.start}, "what is there now is not refused from memory"


# --- questions -----------------------------------------------------------------


def test_a_step_can_be_asked_for_and_its_end_waited_for(bench: Bench) -> None:
    client, asker, worker = bench.client(), bench.client(), bench.worker()
    bench.submit(client, item())
    bench.turns()
    [job] = bench.dealt(worker)
    bench.said(asker)
    bench.tell(asker, m.Status((m.Query(5, "j", "a", "end_job", True), m.Query(6, "j", "a", "end_job", False))))
    bench.turns()
    assert bench.said(asker) == [m.StatusReply((m.Answer(5, 2, None), m.Answer(6, 2, None)))]
    finish(bench, worker, job)
    assert bench.said(asker) == [m.Done((m.Answer(5, 3, b"\x81\xa3EOJ*"),))]
    bench.tell(asker, m.Status((m.Query(7, "j", "a", "end_job", True),)))
    bench.turns()
    assert bench.said(asker) == [m.StatusReply((m.Answer(7, 3, b"\x81\xa3EOJ*"),))]


@pytest.mark.parametrize(
    ("query", "code"),
    [
        (m.Query(1, "k", "a", "end_job", True), "not_found"),
        (m.Query(1, "j", "b", "end_job", True), "not_found"),
        (m.Query(1, "j", "a", "x,y", True), "not_found"),
        (m.Query(1, "", "a", "end_job", True), "bad_field"),
        (m.Query(1, "j", "a*", "end_job", True), "bad_field"),
        (m.Query(1, "j", "a", "", True), "bad_field"),
        (m.Query(1, "j", "a", "x,,y", True), "bad_field"),
    ],
)
def test_a_step_that_is_not_there_is_a_refusal(bench: Bench, query: m.Query, code: str) -> None:
    client = bench.client()
    bench.submit(client, item())
    bench.turns()
    bench.said(client)
    bench.tell(client, m.Status((query,)))
    bench.turns()
    assert codes(bench.said(client)) == [code]


def test_progress_of_jobs_a_worker_holds_is_kept(bench: Bench) -> None:
    load(bench, 1)
    worker = bench.worker()
    bench.turns()
    [job] = bench.dealt(worker)
    notes = (m.Note(job.ref, 1, 0.5, "half", "a line"), m.Note("a:other", 1, 0.5, "made up", ""))
    bench.tell(worker.encode(), m.Heartbeat(worker, 1, 1, 1, (m.Held(job.ref, 1),), notes))
    turn = bench.turn()
    assert turn is not None
    assert turn.notes == [notes[0]]


# --- stops and snapshots ----------------------------------------------------------


def test_a_stop_is_published_with_its_number_and_repeated_with_each_heartbeat(bench: Bench) -> None:
    controller, worker = bench.client("controller"), bench.worker()
    bench.tell(controller, m.Stop("cam", "7"), m.Stop("cam", ""))
    assert bench.published == [
        ("stop.cam.7", m.Event(bench.broker.epoch, 1, ["cam", "7"])),
        ("stop.cam", m.Event(bench.broker.epoch, 2, ["cam", ""])),
    ]
    bench.said(worker)
    bench.beat(worker)
    [ack] = bench.said(worker)
    assert isinstance(ack, m.HeartbeatAck)
    # Not that of the type: told later, it would stop those that were started since.
    assert (ack.seq, ack.stops) == (2, (m.StopName("cam", "7"),))


def test_the_newest_stops_are_repeated_and_the_rest_can_be_asked_for(bench: Bench) -> None:
    controller = bench.client("controller")
    bench.tell(controller, *(m.Stop("cam", str(number)) for number in range(1500)), m.Stop("cam", "600"))
    bench.said(controller)
    bench.tell(controller, m.Heartbeat(controller.decode(), 1, 0, 0, (), ()))
    [ack] = bench.said(controller)
    assert isinstance(ack, m.HeartbeatAck)
    assert ack.seq == 1501
    assert ack.stops[-2:] == (m.StopName("cam", "1499"), m.StopName("cam", "600"))
    assert len(ack.stops) < 100
    stops = bench.snapshot("stops")
    assert (stops[-1], len(stops)) == (["cam", "600"], 1000)


def test_a_snapshot_has_the_parts_asked_for_and_the_number_of_the_last_event(bench: Bench) -> None:
    controller, worker, client = bench.client("controller"), bench.worker(2, 6, host="here"), bench.client()
    bench.tell(controller, m.Stop("cam", "7"))
    bench.said(client)
    bench.tell(client, m.Sync(9, ("stops", "workers", "functions", "figures", "nonsense")))
    [snapshot] = bench.said(client)
    assert isinstance(snapshot, m.Snapshot)
    assert (snapshot.tag, snapshot.epoch, snapshot.seq) == (9, bench.broker.epoch, 1)
    assert snapshot.parts.keys() == {"stops", "workers", "functions", "figures"}
    [told] = snapshot.parts["workers"]
    assert (told["session"], told["slots"], told["capacity"], told["host"]) == (worker, 2, 6, "here")
    assert Catalogue.from_wire(snapshot.parts["functions"]) == CATALOGUE
    assert snapshot.parts["figures"]["peers"] == 3


def test_the_figures_count_what_was_accepted_and_how_it_ended(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=3)
    bench.submit(client, *(item(tag, f"j{tag}") for tag in range(3)), item(7, "j1"))
    bench.turns()
    good, bad, _ = bench.dealt(worker)
    finish(bench, worker, good)
    finish(bench, worker, bad, outcome=S.failed)
    figures = bench.snapshot("figures")
    assert (figures["accepted"], figures["done"], figures["failed"]) == (3, 1, 1)


# --- memory ----------------------------------------------------------------------


def weigh(root: object) -> int:
    """Sum the sizes of all that is reachable from an object, but for code and settings."""
    seen: set[int] = set()
    total, left = 0, [root]
    while left:
        thing = left.pop()
        if id(thing) in seen or isinstance(thing, (type, ModuleType, FunctionType)):
            continue
        seen.add(id(thing))
        total += sys.getsizeof(thing)
        left += gc.get_referents(thing)
    return total


def test_a_queued_job_costs_the_router_no_memory(bench: Bench) -> None:
    client = bench.client()
    sizes = []
    for first in range(0, 100_000, 1000):
        bench.submit(client, *(item(tag, f"j{tag}") for tag in range(first, first + 1000)))
        turn = bench.plan()
        assert turn is not None
        new = Taken("new", "", State.start, None)
        bench.apply(turn, Answers(taken=[new] * len(turn.placed)))
        bench.now += 1
        bench.tell(client, m.Heartbeat(client.decode(), 1, 0, 0, (), ()))
        bench.broker.tick(bench.now)
        bench._note()
        bench.said(client)
        sizes.append(weigh(bench.broker))
    assert max(sizes[10:]) - min(sizes[10:]) < 50_000, "not one byte for each of them"


def test_who_waits_for_what_never_grows_without_bound(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, item())
    bench.turns()
    sizes = []
    for first in range(0, 4000, 1000):
        asked = (m.Query(tag, "j", "a", "end_job", True) for tag in range(first, first + 1000))
        bench.tell(client, m.Status(tuple(asked)))
        bench.turns()
        bench.said(client)
        sizes.append(weigh(bench.broker))
    assert sizes[-1] - sizes[0] < 20_000


# --- anything at all ----------------------------------------------------------------


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[bytes, m.Message]]:
    """Greet as each role, then say anything, as anyone, in any order."""
    hello = [
        (b"c", m.Hello(m.VERSION, "client", "1" * 16, "", {})),
        (b"w", m.Hello(m.VERSION, "worker", "2" * 16, "", HELLO)),
        (b"k", m.Hello(m.VERSION, "controller", "3" * 16, "", {})),
        (b"w", m.Heartbeat("2" * 16, 1, 2, 4, (), ())),
        (b"c", m.Submit((item(), item(2, "k")))),
    ]
    said = st.tuples(st.sampled_from([b"c", b"w", b"k", b"x"]), shapes.any_of(shapes.FROM_PEERS))
    return hello + draw(st.lists(said, min_size=1, max_size=6))


@settings(max_examples=150)
@given(conversations(), st.lists(shapes.of(m.Result), max_size=2))
def test_no_message_of_any_peer_brings_the_router_down(
    conversation: list[tuple[bytes, m.Message]], results: list[m.Result]
) -> None:
    bench = Bench()
    for address, message in conversation:
        bench.tell(address, message)
        bench.now += 0.01
        bench.broker.tick(bench.now)
        bench.turn()
    bench.results(*results)
    bench.turns()
    bench.snapshot("workers")


def test_a_turn_is_planned_only_when_there_is_something_to_ask(bench: Bench) -> None:
    bench.worker()
    bench.turns()
    for _ in range(3):
        bench.beat(f"{1:016x}")
        assert bench.plan() is None
    assert bench.broker.wake_in_s(bench.now, bench.now_ms) > 0
    assert not Turn()


# --- two turns under way ----------------------------------------------------------


def items(count: int, name: str = "b") -> list[m.Item]:
    return [item(1000 + number, f"{name}{number}") for number in range(count)]


def planned(bench: Bench) -> Turn:
    turn = bench.plan()
    assert turn is not None
    return turn


def test_a_second_turn_begins_before_the_first_is_answered_if_it_is_worth_it(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, item())
    first = planned(bench)
    bench.submit(client, *items(LEAST_BESIDE - 1))
    assert bench.plan() is None
    bench.submit(client, item(2, "k"))
    second = planned(bench)
    bench.said(client)
    with pytest.raises(RuntimeError):
        bench.apply(second, Answers())
    for turn in (first, second):
        bench.apply(turn, bench.store.run(turn))
    assert len(bench.store.dump()) > LEAST_BESIDE
    bench.now += 1
    bench.broker.tick(bench.now)
    bench._note()
    assert len(states(bench.said(client))) == LEAST_BESIDE + 1


@pytest.mark.parametrize(
    "message",
    [
        m.Change(5, "cancel", "j"),
        m.Tune(5, "queue", "merge", "mail", {"paused": True}),
        m.Hello(m.VERSION, "worker", "d" * 16, "", HELLO),
    ],
)
def test_what_counts_on_the_first_turn_waits_for_its_answers(bench: Bench, message: m.Message) -> None:
    client = bench.client()
    for before, then in ((item(), message), (message, item(2, "k"))):
        for each in (before, then):
            if isinstance(each, m.Item):
                bench.submit(client, *items(LEAST_BESIDE, each.job_id))
            else:
                bench.tell(b"other" if isinstance(each, m.Hello) else client, each)
            if each is before:
                first = planned(bench)
        assert bench.plan() is None
        bench.apply(first, bench.store.run(first))
        second = planned(bench)
        bench.apply(second, bench.store.run(second))
        bench.turns()


def test_what_is_claimed_by_a_turn_under_way_is_not_claimed_again(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=2, capacity=4)
    bench.submit(client, *items(40))
    first = planned(bench)
    bench.submit(client, *items(40, "c"))
    second = planned(bench)
    assert sum(claim.most for claim in first.claims) == 4
    assert second.claims == []
    for turn in (first, second):
        bench.apply(turn, bench.store.run(turn))
    bench.turns()
    assert len(bench.dealt(worker)) == len(bench.store.held(worker)) == 4


def test_an_empty_queue_that_the_turn_behind_fills_is_asked_again(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=2)
    bench.broker._slate.sated.clear()
    first = planned(bench)
    assert first.claims
    bench.submit(client, *items(LEAST_BESIDE))
    second = planned(bench)
    assert second.claims == [], "all the credit was asked for"
    for turn in (first, second):
        bench.apply(turn, bench.store.run(turn))
    bench.turns()
    assert len(bench.dealt(worker)) == 2


def test_a_router_that_waits_for_answers_sleeps_although_something_is_due(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, item(delay_s=1))
    bench.turns()
    bench.worker()
    bench.turns()
    bench.submit(client, item(2, "k"))
    turn = planned(bench)
    bench.now += 2
    bench.broker.tick(bench.now)
    assert bench.broker.wake_in_s(bench.now, bench.now_ms) > 0
    bench.apply(turn, bench.store.run(turn))
    assert bench.broker.wake_in_s(bench.now, bench.now_ms) == 0


def test_claims_that_were_lost_are_no_credit_lost(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=2)
    bench.submit(client, item())
    first = planned(bench)
    bench.submit(client, *items(LEAST_BESIDE))
    second = planned(bench)
    for turn in (first, second):
        turn.claims.clear()
        answers = bench.store.run(turn)
        answers.claims_lost = True
        bench.apply(turn, answers)
    bench.turns()
    assert len(bench.dealt(worker)) == 2
