"""Peers that ask for more than anybody needs: the router's core keeps and does no more for them."""

from __future__ import annotations

import dataclasses

import pytest
from unit.bench import HELLO, Bench, codes, item
from unit.world import CONFIG

from exesys.bus import crew
from exesys.bus import messages as m
from exesys.bus.topics import MOST, MOST_BYTES, Topics
from exesys.config import Bus

STRANGER = b"stranger"


def session(number: int) -> str:
    return f"{number:016x}"


@pytest.mark.parametrize("role", ["client", "worker", "runner", "controller"])
def test_a_connection_that_begins_a_new_session_leaves_the_one_before(role: str) -> None:
    bench = Bench()
    for number in range(100, 200):
        bench.tell(STRANGER, m.Hello(m.VERSION, role, session(number), "", HELLO if role == "worker" else {}))
        assert isinstance(bench.said(STRANGER)[-1], m.Welcome)
    roster = bench.broker.roster
    assert (len(roster.peers), list(roster.sessions)) == (1, [session(199)])
    assert list(roster.workers) == ([session(199)] if role == "worker" else [])
    assert bench.closed == ([session(number) for number in range(100, 199)] if role == "worker" else [])
    bench.tell(STRANGER, m.Sync(1, ()))
    assert isinstance(bench.said(STRANGER)[-1], m.Snapshot)


def test_a_new_session_that_is_refused_changes_nothing() -> None:
    bench = Bench()
    client = bench.client()
    bench.tell(client, m.Hello(m.VERSION, "worker", session(500), "", {}))
    assert codes(bench.said(client)) == ["bad_hello"]
    bench.submit(client, item())
    bench.turn()
    bench.wait(0.1)
    assert isinstance(bench.said(client)[-1], m.SubmitAck)


def test_there_are_no_more_workers_than_sockets_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crew, "MOST_WORKERS", 3)
    bench = Bench()
    workers = [bench.worker() for _ in range(3)]
    bench.tell(STRANGER, m.Hello(m.VERSION, "worker", session(500), "", HELLO))
    assert codes(bench.said(STRANGER)) == ["bad_hello"]
    assert list(bench.broker.roster.workers) == workers
    bench.tell(workers[0].encode(), m.Hello(m.VERSION, "worker", workers[0], "", HELLO))
    assert isinstance(bench.said(workers[0])[-1], m.Welcome), "one that is there may say it again"


def test_a_part_is_told_once_however_often_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    bench = Bench()
    told: list[float] = []
    monkeypatch.setattr(bench.broker._crew, "describe", lambda now: told.append(now) or [])
    client = bench.client()
    bench.tell(client, m.Sync(7, ("workers", "no such") * 10_000))
    [snapshot] = [message for message in bench.said(client) if isinstance(message, m.Snapshot)]
    assert (snapshot.tag, snapshot.parts, len(told)) == (7, {"workers": []}, 1)


def test_reports_of_nobody_wait_up_to_a_bound_and_those_of_workers_always() -> None:
    bench = Bench(dataclasses.replace(CONFIG, bus=Bus(pending=100)))
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item())
    bench.turns()
    [job] = bench.dealt(worker)
    body = b"\x81\xa3EOJ*"
    bench.results(*(m.Result(session(500), (m.Report(f"a:{n}", 1, 0, body, "", 1, 2),)) for n in range(1000)))
    bench.results(m.Result(worker, (m.Report(job.ref, job.attempt, 0, body, "", 1, 2),)))
    turn = bench.plan()
    assert turn is not None
    assert len(turn.reports) == 101
    assert turn.reports[-1].report.ref == job.ref


def test_who_subscribes_to_too_much_is_let_go() -> None:
    topics = Topics()
    assert not any(topics.heard(b"\1%d" % number, 7) for number in range(MOST))
    assert not any(topics.heard(b"\1stop.%d" % connection, connection) for connection in range(8, 100))
    assert topics.heard(b"\1one more", 7)
    assert len(topics) == 92
    for topic in (*(b"%d" % number for number in range(MOST)), b"one more"):
        topics.heard(b"\0" + topic, -1)  # as libzmq tells of a connection that ended
    assert not any(topics.heard(b"\1again%d" % number, 7) for number in range(MOST)), "that number is another's now"
    assert topics.heard(b"\1again and again", 7)


def test_topics_that_come_and_go_are_no_harm() -> None:
    topics = Topics()
    for number in range(3 * MOST):
        assert not topics.heard(b"\1stop.%d" % number, 7)
        assert not topics.heard(b"\0stop.%d" % number, -1)
    assert len(topics) == 0


def test_a_topic_that_is_too_long_and_garbage_are_none() -> None:
    topics = Topics()
    assert not topics.heard(b"\1" + b"x" * MOST_BYTES, 7)
    assert topics.heard(b"\1" + b"x" * (MOST_BYTES + 1), 8)
    for garbage in (b"", b"\2", b"x" * 5000, b"\0never"):
        assert not topics.heard(garbage, 9)
    assert len(topics) == 1
