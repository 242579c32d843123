"""The router mends what the controller found, and its memory follows."""

from __future__ import annotations

from typing import Any

import pytest
from unit.bench import Bench, finish, item, load, states
from unit.world import CONFIG

from exesys.bus import messages as m
from exesys.bus.mender import MOST_FINDS
from exesys.states import State

LEASE_S = CONFIG.lease_s
STEP = m.Find("step", "", "a:j", "")


@pytest.fixture
def bench() -> Bench:
    return Bench()


def mend(bench: Bench, *finds: m.Find, tag: int = 1, controller: bytes = b"") -> m.Mended:
    """Send MEND and return its answer."""
    controller = controller or bench.client("controller")
    bench.said(controller)
    bench.tell(controller, m.Mend(tag, finds))
    bench.turns()
    [answer] = [message for message in bench.said(controller) if isinstance(message, m.Mended)]
    assert answer.tag == tag
    return answer


def figure(bench: Bench, name: str) -> Any:
    return bench.snapshot("figures")[name]


def beat(bench: Bench, wait_s: float, *sessions: str) -> None:
    for _ in range(round(wait_s)):
        for session in sessions:
            bench.beat(session)
        bench.wait(1)


def test_only_the_controller_may_have_something_mended(bench: Bench) -> None:
    client = bench.client()
    bench.said(client)
    bench.tell(client, m.Mend(1, (STEP,)))
    [refused] = bench.said(client)
    assert isinstance(refused, m.Error)
    assert (refused.code, refused.message) == ("not_allowed", "only the controller sends MEND")
    assert bench.turn() is None


def test_what_fits_is_only_counted(bench: Bench) -> None:
    bench.submit(bench.client(), item())
    bench.turns()
    before = bench.store.dump()
    assert mend(bench, STEP) == m.Mended(1, 1, (), ())
    assert bench.store.dump() == before
    assert (figure(bench, "looked"), figure(bench, "mended")) == (1, 0)


def test_a_step_that_was_in_no_queue_goes_to_a_worker_that_had_found_its_queue_empty(bench: Bench) -> None:
    worker = bench.worker()
    bench.turns()
    client = bench.client()
    bench.submit(client, item(job="k"))
    bench.turns()
    [running] = bench.dealt(worker)
    bench.submit(client, item(2, "j"))
    bench.turns()
    bench.store.db.delete("exesys:ready:default")
    finish(bench, worker, running)
    assert bench.dealt(worker) == []
    answer = mend(bench, STEP)
    assert answer.repairs == (m.Repair("unqueued", "a:j"),)
    [job] = bench.dealt(worker)
    finish(bench, worker, job)
    assert states(bench.said(client))[2] == State.data_available
    assert figure(bench, "mended") == 1


def test_a_step_that_fails_by_it_is_told_to_who_waits(bench: Bench) -> None:
    client = bench.client()
    data = b"\x81\xa1n\x15"
    bench.submit(
        client,
        m.Item(1, "a", "b", "double", data, "j", {}, True, 1),
        m.Item(2, "b", "end_job", "double", data, "j", {}, True, 1),
    )
    bench.turns()
    bench.store.db.delete("a:j:start")
    mend(bench, m.Find("job", "", "j", ""))
    assert states(bench.said(client))[2] == State.error


def test_one_mend_at_a_time_and_not_while_the_store_is_late(bench: Bench) -> None:
    controller = bench.client("controller")
    bench.said(controller)
    bench.tell(controller, m.Mend(1, (STEP,)), m.Mend(2, (STEP,)), m.Mend(3, ()))
    assert bench.said(controller) == [m.Mended(2, 0, (), ()), m.Mended(3, 0, (), ())]
    bench.turns()
    assert bench.said(controller) == [m.Mended(1, 1, (), ())]
    bench.broker.store_slow(bench.now - 2)
    bench.tell(controller, m.Mend(4, (STEP,)))
    assert bench.said(controller) == [m.Mended(4, 0, (), ())]


def test_no_more_than_so_many_are_looked_at_in_a_turn(bench: Bench) -> None:
    assert mend(bench, *[STEP] * (MOST_FINDS + 50)).done == MOST_FINDS


def test_an_answer_to_a_controller_that_went_is_dropped(bench: Bench) -> None:
    controller = bench.client("controller")
    bench.tell(controller, m.Mend(1, (STEP,)), m.Bye(controller.decode(), "ending"))
    bench.turns()
    assert [type(message) for message in bench.said(controller)] == [m.Welcome]


def test_a_job_of_a_session_that_nobody_knows_is_given_to_another_after_a_lease(bench: Bench) -> None:
    bench.submit(bench.client(), item(job="j"))
    bench.turns()
    # As if a worker had it of which this router has never heard.
    stranger = "f" * 16
    bench.store.db.rename("a:j:start", "a:j:processing")
    bench.store.db.hset("a:j:processing", worker=stranger, attempt=1)
    bench.store.db.delete("exesys:ready:default")
    worker = bench.worker()
    assert mend(bench, STEP).repairs == (m.Repair("unheld", "a:j"),)
    beat(bench, LEASE_S - 1, worker)
    assert bench.dealt(worker) == []
    beat(bench, 3, worker)
    assert bench.closed == [stranger]
    [again] = bench.dealt(worker)
    assert (again.ref, again.attempt) == ("a:j", 2)
    assert bench.store.dump()["a:j:processing"][0]["losses"] == b"1"


def test_a_session_entered_by_hand_is_released_and_one_that_is_here_is_not(bench: Bench) -> None:
    worker = bench.worker()
    bench.store.db.sadd("exesys:sessions", "e" * 16)
    finds = [m.Find("session", "", session, "") for session in (worker, "e" * 16)]
    for _ in range(3):
        mend(bench, *finds)
    assert figure(bench, "mended") == 1, "it is told once, and then expected"
    beat(bench, LEASE_S + 2, worker)
    assert bench.closed == ["e" * 16]
    assert bench.store.dump()["exesys:sessions"][0] == {worker}


@pytest.mark.parametrize("role", ["client", "runner"])
def test_a_session_of_another_role_among_those_of_workers_is_taken_out_and_its_peer_stays(
    bench: Bench, role: str
) -> None:
    peer = bench.client(role)
    bench.store.db.sadd("exesys:sessions", peer.decode())
    mend(bench, m.Find("session", "", peer.decode(), ""))
    assert "exesys:sessions" not in bench.store.dump()
    for _ in range(round(LEASE_S) + 2):
        bench.tell(peer, m.Heartbeat(peer.decode(), bench.broker.epoch, 0, 0, (), ()))
        bench.wait(1)
    bench.said(peer)
    bench.tell(peer, m.Hello(m.VERSION, role, peer.decode(), "", {}))
    assert [type(message) for message in bench.said(peer)] == [m.Welcome]


def test_a_worker_whose_session_is_expected_after_a_restart_keeps_its_jobs(bench: Bench) -> None:
    worker = bench.worker()
    load(bench, 1)
    bench.turns()
    [job] = bench.dealt(worker)
    bench.restart()
    answer = mend(bench, m.Find("session", "", worker, ""), m.Find("step", "", job.ref, ""))
    assert answer.repairs == ()
    assert bench.store.held(worker) == [job.ref]


def test_a_worker_that_was_given_back_what_it_holds_is_asked_before_it_gets_more(bench: Bench) -> None:
    worker = bench.worker(2)
    load(bench, 3)
    bench.turns()
    first, second = bench.dealt(worker)
    bench.store.db.delete(f"exesys:held:{worker}")
    controller = bench.client("controller")
    mend(bench, *(m.Find("step", "", job.ref, "") for job in (first, second)), controller=controller)
    assert sorted(bench.store.held(worker)) == sorted([first.ref, second.ref])
    assert bench.dealt(worker) == [], "it has no slot for a third"
    finish(bench, worker, first)
    assert len(bench.dealt(worker)) == 1


def test_a_step_that_is_watched_again_is_given_up_in_its_time(bench: Bench) -> None:
    client = bench.client()
    waiting = m.Item(1, "b", "end_job", "double", b"\x81\xa1n\x15", "j", {}, True, -1)
    bench.submit(client, waiting)
    bench.turns()
    bench.store.db.delete("exesys:standby")
    bench.restart()
    answer = mend(bench, m.Find("step", "", "b:j", ""))
    assert answer.repairs == (m.Repair("unwatched", "b:j"),)
    bench.now += CONFIG.limits.standby_s + 1
    bench.turns()
    assert "b:j:error" in bench.store.dump()
