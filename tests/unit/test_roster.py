"""Who is on the bus, seen from outside: credit, lost messages and lost workers, over the fake store."""

from __future__ import annotations

import pytest
from unit.bench import HELLO, Bench, codes, finish, item, keep_alive, load, result, states
from unit.world import CONFIG

from exesys.bus import messages as m
from exesys.bus.roster import MOST_CLAIMED
from exesys.states import State

S = m.Outcome
LEASE_S = CONFIG.lease_s


@pytest.fixture
def bench() -> Bench:
    return Bench()


# --- credit ------------------------------------------------------------------


def test_a_worker_is_dealt_no_more_than_its_credit(bench: Bench) -> None:
    load(bench, 100)
    worker = bench.worker(slots=2, capacity=5)
    bench.turns()
    jobs = bench.dealt(worker)
    assert len(jobs) == 5
    bench.beat(worker, 2, 5, *(m.Held(job.ref, 1) for job in jobs))
    bench.turns()
    assert bench.dealt(worker) == []
    finish(bench, worker, *jobs[:3])
    assert len(bench.dealt(worker)) == 3
    bench.beat(worker, 2, 8, *(m.Held(job.ref, 1) for job in jobs[3:]))
    bench.turns()
    assert len(bench.dealt(worker)) == 3


def test_a_worker_without_credit_gets_nothing(bench: Bench) -> None:
    load(bench, 5)
    for slots, capacity in ((0, 0), (2, 0), (-5, -5)):
        worker = bench.worker(slots, capacity)
        bench.turns()
        assert bench.dealt(worker) == []


def test_a_worker_whose_credit_shrinks_gets_nothing_until_it_has_room(bench: Bench) -> None:
    load(bench, 20)
    worker = bench.worker(2, 6)
    bench.turns()
    jobs = bench.dealt(worker)
    bench.beat(worker, 2, 2, *(m.Held(job.ref, 1) for job in jobs))
    finish(bench, worker, *jobs[:4])
    assert bench.dealt(worker) == []
    finish(bench, worker, jobs[4])
    assert len(bench.dealt(worker)) == 1


def test_idle_slots_of_all_workers_come_before_anyones_prefetch(bench: Bench) -> None:
    workers = [bench.worker(slots=2, capacity=10) for _ in range(3)]
    bench.turns()
    load(bench, 7)
    bench.turns()
    assert sorted(len(bench.dealt(worker)) for worker in workers) == [2, 2, 3]


def test_no_worker_takes_all_that_is_dealt_in_a_turn(bench: Bench) -> None:
    workers = [bench.worker(slots=2, capacity=1000) for _ in range(3)]
    bench.turns()
    load(bench, 600)
    bench.turns()
    assert min(len(bench.dealt(worker)) for worker in workers) >= MOST_CLAIMED // 3


def test_single_jobs_are_spread_over_idle_workers(bench: Bench) -> None:
    workers = [bench.worker(slots=4) for _ in range(3)]
    done = dict.fromkeys(workers, 0)
    for _ in range(60):
        load(bench, 1)
        bench.turns()
        for worker in workers:
            for job in bench.dealt(worker):
                done[worker] += 1
                finish(bench, worker, job)
    assert sum(done.values()) == 60
    assert min(done.values()) >= 15


def test_a_worker_with_other_queues_does_not_hide_the_jobs_of_a_busy_one(bench: Bench) -> None:
    slow, other = bench.worker(queues=["slow"]), bench.worker(slots=2)
    load(bench, 2, queue="slow")
    bench.turns()
    [first] = bench.dealt(slow)
    load(bench, 1)
    bench.turns()
    [job] = bench.dealt(other)
    finish(bench, other, job)
    finish(bench, slow, first)
    assert len(bench.dealt(slow)) == 1


def test_a_worker_that_comes_finds_the_jobs_that_others_left(bench: Bench) -> None:
    bench.worker()
    load(bench, 3, queue="slow")
    bench.turns()
    slow = bench.worker(slots=2, queues=["slow"])
    bench.turns()
    assert len(bench.dealt(slow)) == 2


def test_a_worker_takes_from_its_queues_in_their_order(bench: Bench) -> None:
    load(bench, 1)
    load(bench, 1, queue="fast")
    bench.turns()
    worker = bench.worker(slots=2, queues=["fast", "default"])
    bench.turns()
    assert [job.ref.partition(":")[2][:16] for job in bench.dealt(worker)] == [f"{2:016x}", f"{1:016x}"]


def test_jobs_a_worker_has_and_should_not_count_against_its_credit(bench: Bench) -> None:
    """They were given to others while it was away, and it runs them all the same."""
    worker = bench.worker(slots=2)
    strange = [m.Held("a:x", 1), m.Held("a:y", 1)]
    bench.beat(worker, 2, 2, *strange)
    bench.wait(1.0)
    bench.beat(worker, 2, 2, *strange)
    load(bench, 3)
    bench.turns()
    assert bench.dealt(worker) == []
    bench.beat(worker, 2, 2, strange[0])
    bench.turns()
    assert len(bench.dealt(worker)) == 1


def test_results_whose_acknowledgement_is_on_its_way_cost_a_worker_no_credit(bench: Bench) -> None:
    """It tells of them in each heartbeat until then, and two of these may come right behind each other."""
    worker = bench.worker(slots=2)
    for _ in range(5):
        bench.beat(worker, 2, 2, m.Held("a:x", 1), m.Held("a:y", 1))
        bench.wait(0.05)
    load(bench, 3)
    bench.turns()
    assert len(bench.dealt(worker)) == 2


def test_a_draining_worker_is_dealt_nothing_and_its_jobs_go_to_others(bench: Bench) -> None:
    load(bench, 4)
    worker = bench.worker(slots=2)
    bench.turns()
    running, waiting = bench.dealt(worker)
    bench.tell(worker.encode(), m.Drain(worker))
    finish(bench, worker, waiting, outcome=S.returned, body=b"")
    other = bench.worker(slots=4)
    bench.turns()
    assert bench.dealt(worker) == []
    assert sorted(job.attempt for job in bench.dealt(other)) == [1, 1, 2]
    finish(bench, worker, running)
    bench.tell(worker.encode(), m.Bye(worker, "ending"))
    bench.turns()
    assert bench.closed == [worker]
    assert [each["session"] for each in bench.snapshot("workers")] == [other]


# --- messages lost and repeated --------------------------------------------------


def test_a_result_that_comes_twice_counts_once_and_is_acknowledged_again(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item())
    bench.turns()
    [job] = bench.dealt(worker)
    bench.results(result(job, worker), result(job, worker))
    turn = bench.turn()
    assert turn is not None
    assert len(turn.reports) == 1
    bench.wait(0.1)
    bench.said(worker)
    bench.said(client)
    bench.results(result(job, worker, body=b"\x81\xa3EOJ\x07"))
    bench.turn()
    bench.wait(0.1)
    assert bench.said(worker) == [m.ResultAck((m.Held("a:j", 1),))]
    assert bench.said(client) == []
    assert bench.store.finished["a:j"] == 1


def test_a_result_that_is_none_is_garbage(bench: Bench) -> None:
    worker = bench.worker()
    bench.turns()
    for ref, outcome in (("nonsense", 0), ("a:j:start", 0), ("a*:j", 1), ("a:j", 4), ("a:j", -1), ("", 0)):
        bench.results(m.Result(worker, (m.Report(ref, 1, outcome, b"", "", 0, 0),)))
    assert bench.turn() is None
    assert bench.snapshot("figures")["garbage"] == 6


def test_a_job_that_did_not_arrive_is_sent_again(bench: Bench) -> None:
    load(bench, 1)
    worker = bench.worker()
    bench.turns()
    sent = bench.dealt(worker)
    bench.now += 1
    bench.beat(worker)
    bench.turns()
    assert bench.dealt(worker) == [], "it may still be under way"
    bench.now += 1.5
    bench.beat(worker)
    bench.turns()
    assert bench.dealt(worker) == sent
    bench.now += 1
    bench.beat(worker)
    bench.turns()
    assert bench.dealt(worker) == [], "and now again"


def test_a_job_that_arrived_is_not_sent_again(bench: Bench) -> None:
    load(bench, 1)
    worker = bench.worker()
    bench.turns()
    [job] = bench.dealt(worker)
    for _ in range(8):
        bench.now += 1
        bench.beat(worker, 1, 1, m.Held(job.ref, job.attempt))
        bench.turns()
    assert bench.dealt(worker) == []


def test_a_claim_whose_answer_was_lost_is_found_by_asking(bench: Bench) -> None:
    load(bench, 5)
    worker = bench.worker(slots=2)
    turn = bench.plan()
    assert turn is not None
    assert turn.claims
    bench.store.run(turn)  # the connection breaks before the answers come
    turn.claims.clear()
    bench.broker.store_back()
    answers = bench.store.run(turn)
    answers.claims_lost = True
    bench.apply(turn, answers)
    bench.turns()
    assert len(bench.store.held(worker)) == 2, "a worker is not given more than it can hold"
    bench.beat(worker, 2)
    bench.turns()
    assert sorted(job.ref for job in bench.dealt(worker)) == sorted(bench.store.held(worker))


def test_a_worker_that_greets_again_keeps_what_it_holds(bench: Bench) -> None:
    load(bench, 5)
    worker = bench.worker(slots=2)
    bench.turns()
    jobs = bench.dealt(worker)
    bench.tell(b"new", m.Hello(m.VERSION, "worker", worker, "", HELLO))
    bench.turns()
    bench.tell(b"new", m.Heartbeat(worker, 1, 2, 2, tuple(m.Held(job.ref, 1) for job in jobs), ()))
    bench.turns()
    assert bench.dealt(worker) == []
    finish(bench, worker, *jobs)
    assert len(bench.dealt(worker)) == 2


# --- deaths --------------------------------------------------------------------


def test_a_silent_workers_jobs_go_to_another_with_a_higher_attempt(bench: Bench) -> None:
    client, lost = bench.client(), bench.worker()
    bench.submit(client, item())
    bench.turns()
    [first] = bench.dealt(lost)
    other = bench.worker()
    keep_alive(bench, LEASE_S + 2, other, client.decode())
    [second] = bench.dealt(other)
    assert (second.ref, second.attempt) == (first.ref, 2)
    assert bench.closed == [lost]
    assert ("ev.worker", ["lost", lost]) in [(topic, event.body) for topic, event in bench.published]
    bench.results(result(first, lost, body=b"\x81\xa3EOJ\x01"))
    bench.turns()
    finish(bench, other, second)
    dones = [message for message in bench.said(client) if isinstance(message, m.Done)]
    assert dones == [m.Done((m.Answer(1, State.data_available, b"\x81\xa3EOJ*"),))]


def test_a_lost_session_does_not_come_back(bench: Bench) -> None:
    worker = bench.worker()
    bench.wait(LEASE_S + 1)
    assert any(isinstance(message, m.Bye) for message in bench.said(worker))
    bench.beat(worker)
    assert codes(bench.said(worker)) == ["unknown_session"]
    bench.tell(b"again", m.Hello(m.VERSION, "worker", worker, "", HELLO))
    assert codes(bench.said(b"again")) == ["session_lost"]
    bench.submit(bench.client(), item())
    bench.turns()
    assert bench.dealt(worker) == []


def test_a_silent_client_is_dismissed_and_may_come_again(bench: Bench) -> None:
    client = bench.client()
    bench.wait(LEASE_S + 1)
    assert isinstance(bench.said(client)[-1], m.Bye)
    bench.tell(client, m.Hello(m.VERSION, "client", client.decode(), "", {}))
    assert isinstance(bench.said(client)[-1], m.Welcome)


def test_a_worker_that_is_heard_is_not_lost(bench: Bench) -> None:
    worker = bench.worker()
    keep_alive(bench, 3 * LEASE_S, worker)
    assert bench.closed == []


def test_a_router_that_stood_still_does_not_blame_the_others(bench: Bench) -> None:
    worker, client = bench.worker(), bench.client()
    bench.now += 10 * LEASE_S
    bench.broker.tick(bench.now)
    bench._note()
    assert bench.closed == []
    bench.beat(worker)
    keep_alive(bench, LEASE_S - 1, worker)
    bench.said(client)
    bench.tell(client, m.Sync(1, ("stops",)))
    assert isinstance(bench.said(client)[-1], m.Snapshot)
    keep_alive(bench, 2 * LEASE_S, client.decode())
    assert bench.closed == [worker], "but a real silence counts from then on"


def test_a_worker_that_says_goodbye_gives_back_at_once(bench: Bench) -> None:
    load(bench, 1)
    worker = bench.worker()
    bench.turns()
    bench.dealt(worker)
    other = bench.worker()
    bench.tell(worker.encode(), m.Bye(worker, "ending"))
    bench.turns()
    assert [job.attempt for job in bench.dealt(other)] == [2]


@pytest.mark.parametrize("how", ["bye", "silence"])
def test_a_worker_that_goes_while_its_claim_is_under_way_loses_it(bench: Bench, how: str) -> None:
    load(bench, 1)
    worker = bench.worker()
    turn = bench.plan()
    assert turn is not None
    assert turn.claims
    if how == "bye":
        bench.tell(worker.encode(), m.Bye(worker, "ending"))
    else:
        for _ in range(round(LEASE_S) + 2):
            bench.now += 1
            bench.broker.tick(bench.now)
        bench._note()
    assert bench.closed == [worker]
    bench.apply(turn, bench.store.run(turn))
    bench.turns()
    other = bench.worker()
    bench.turns()
    assert [job.attempt for job in bench.dealt(other)] == [2]


def test_a_large_workers_jobs_all_go_back(bench: Bench) -> None:
    load(bench, 700)
    worker = bench.worker(slots=700)
    bench.turns()
    assert len(bench.dealt(worker)) == 700
    bench.tell(worker.encode(), m.Bye(worker, "ending"))
    other = bench.worker(slots=1000)
    bench.turns()
    assert len(bench.dealt(other)) == 700
    assert bench.store.boot()[1] == [other]


def test_after_a_restart_a_worker_that_comes_back_keeps_its_jobs(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item())
    bench.turns()
    [job] = bench.dealt(worker)
    bench.restart()
    bench.tell(client, m.Hello(m.VERSION, "client", client.decode(), "", {}))
    bench.tell(worker.encode(), m.Hello(m.VERSION, "worker", worker, "", HELLO))
    bench.turns()
    keep_alive(bench, 2 * LEASE_S, worker, client.decode(), held=(m.Held(job.ref, 1),))
    assert bench.dealt(worker) == []
    finish(bench, worker, job)
    assert states(bench.said(client)) == {1: State.data_available}


def test_after_a_restart_a_worker_that_stays_away_loses_its_jobs(bench: Bench) -> None:
    load(bench, 1)
    worker = bench.worker()
    bench.turns()
    bench.dealt(worker)
    bench.restart()
    other = bench.worker()
    keep_alive(bench, LEASE_S - 1, other)
    assert bench.dealt(other) == []
    keep_alive(bench, 2, other)
    assert [job.attempt for job in bench.dealt(other)] == [2]


def test_a_result_may_come_before_its_worker_has_greeted_the_new_router(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, item())
    bench.turns()
    [job] = bench.dealt(worker)
    bench.restart()
    bench.tell(client, m.Hello(m.VERSION, "client", client.decode(), "", {}))
    finish(bench, worker, job)
    assert states(bench.said(client)) == {1: State.data_available}
    bench.tell(worker.encode(), m.Hello(m.VERSION, "worker", worker, "", HELLO))
    bench.turns()
    bench.beat(worker)
    finish(bench, worker, job)
    bench.wait(0.1)
    assert m.ResultAck((m.Held("a:j", 1),)) in bench.said(worker)
    assert bench.store.finished["a:j"] == 1
