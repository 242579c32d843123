"""What every store promises of queues: the fake and the real one, on the same turns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from store.fake import Turns
from store.invariants import check_places
from store.turns import NOW_MS, ONE, TWO, change, claim, close, flow, place, refs, report, run, send, submit, wait

from exesys import queues
from exesys.bus.messages import Held, Outcome
from exesys.config import Limits
from exesys.turn import Tuning

Make = Callable[..., Turns]
MINUTE_MS = 60_000


def tune(store: Turns, name: str = "default", **settings: Any) -> None:
    run(store, tunings=[Tuning("queue", "merge", name, queues.check("merge", name, settings))])


def jobs(store: Turns, count: int, prefix: str = "j", **options: Any) -> None:
    submit(store, *(place(f"{prefix}{number}", **options) for number in range(count)))


# --- pause, depth ---------------------------------------------------------------


def test_a_paused_queue_takes_jobs_and_hands_out_none(store: Turns) -> None:
    tune(store, paused=True)
    jobs(store, 2)
    assert claim(store, 9) == []
    [alone] = run(store, placed=[place("k")], claims=[]).taken
    assert alone.verdict == "new"
    tune(store, paused=False)
    assert refs(claim(store, 9)) == ["a:j0", "a:j1", "a:k"]
    check_places(store.dump())
    store.check_news()


def test_a_pause_holds_back_one_queue_alone(store: Turns) -> None:
    tune(store, "slow", paused=True)
    jobs(store, 1, queue="slow")
    jobs(store, 1, "k")
    assert refs(claim(store, 9, queues=("slow", "default"))) == ["a:k0"]


def test_a_queue_of_one_depth_is_full_past_it(store: Turns) -> None:
    tune(store, depth=3)
    jobs(store, 2)
    jobs(store, 1, "k", key="a")
    full = submit(store, place("l"), place("m", key="b"), place("n", queue="other"))
    assert [taken.verdict for taken in full] == ["full", "full", "new"]
    assert [taken.verdict for taken in submit(store, place("j0"))] == ["same"]
    assert send(store, flow(["a>b", "b>end_job"], "w"))[0].verdict == "full"
    assert "exesys:job:l" not in store.dump()
    claim(store, 1)
    assert [taken.verdict for taken in submit(store, place("l"), place("m"))] == ["new", "full"]
    tune(store, depth=None)
    assert [taken.verdict for taken in submit(store, place("m"))] == ["new"]


# --- how many run -----------------------------------------------------------------


def test_no_more_run_at_once_than_a_queue_says(store: Turns) -> None:
    tune(store, concurrency=2)
    jobs(store, 5)
    first = claim(store, 9)
    assert refs(first) == ["a:j0", "a:j1"]
    assert claim(store, 9, TWO) == []
    [ended] = report(store, close(first[0]))
    assert ended.started, "the router is told that another may begin"
    assert refs(claim(store, 9, TWO)) == ["a:j2"]
    tune(store, concurrency=None)
    assert refs(claim(store, 9)) == ["a:j3", "a:j4"]
    check_places(store.dump())
    store.check_news()


@pytest.mark.parametrize("outcome", [Outcome.failed, Outcome.crashed, Outcome.returned])
def test_whatever_the_end_another_may_run(make_store: Make, outcome: Outcome) -> None:
    store = make_store(Limits(max_crashes=1))
    tune(store, concurrency=1)
    jobs(store, 1, priority=9)
    jobs(store, 1, "k")
    [job] = claim(store, 9)
    assert claim(store, 9) == []
    report(store, close(job, outcome))
    [other] = claim(store, 9)
    assert other.ref == ("a:j0" if outcome is Outcome.returned else "a:k0")
    check_places(store.dump())
    store.check_news()


def test_a_lost_worker_and_a_cancel_make_room(store: Turns) -> None:
    tune(store, concurrency=1)
    jobs(store, 3)
    claim(store, 9)
    run(store, lost=[ONE])
    assert refs(claim(store, 9, TWO)) == ["a:j0"]
    change(store, "cancel", "j0")
    assert refs(claim(store, 9, TWO)) == ["a:j1"]
    check_places(store.dump())
    store.check_news()


def test_a_place_that_redis_lost_the_end_of_is_found(store: Turns) -> None:
    tune(store, concurrency=1)
    jobs(store, 2)
    [job] = claim(store, 9)
    store.drop(f"{job.ref}:processing")
    if type(store).__name__ == "RealStore":  # the fake loses nothing
        assert refs(claim(store, 9)) == ["a:j1"]


# --- how many begin in a time -------------------------------------------------------


def test_no_more_begin_in_any_minute_than_the_rate_says(store: Turns) -> None:
    tune(store, rate="3/m")
    jobs(store, 9)
    began = []
    for second in range(0, 150):
        for job in claim(store, 9, now_ms=NOW_MS + second * 1000):
            began.append(second)
            report(store, close(job))
    assert began == [0, 0, 0, 60, 60, 60, 120, 120, 120]
    for start in began:
        assert sum(start <= other < start + 60 for other in began) <= 3


def test_the_router_is_told_when_a_rate_lets_more_begin(store: Turns) -> None:
    tune(store, rate="2/m")
    jobs(store, 3)
    answers = run(store, opened=[ONE], claims=[claim_of(ONE, 9)])
    assert (len(answers.claimed[0].jobs), answers.next_due_ms) == (2, NOW_MS + MINUTE_MS)
    submit(store, place("later", due_ms=NOW_MS + 10))
    answers = run(store, claims=[claim_of(ONE, 9)])
    assert answers.next_due_ms == NOW_MS + 10


def test_a_clock_that_was_set_back_stops_no_queue(store: Turns) -> None:
    tune(store, rate="1/m")
    jobs(store, 2)
    assert len(claim(store, 9)) == 1
    back = NOW_MS - 3_600_000
    assert claim(store, 9, now_ms=back) == []
    assert claim(store, 9, now_ms=back + MINUTE_MS - 1) == []
    assert refs(claim(store, 9, now_ms=back + MINUTE_MS)) == ["a:j1"]


# --- keys ---------------------------------------------------------------------------


def test_of_one_key_one_runs_at_a_time(store: Turns) -> None:
    jobs(store, 3, key="a")
    [job] = claim(store, 9)
    assert claim(store, 9, TWO) == []
    report(store, close(job))
    [job] = claim(store, 9)
    assert job.ref == "a:j1"
    change(store, "cancel", "j1")
    assert refs(claim(store, 9)) == ["a:j2"]
    check_places(store.dump())
    store.check_news()


def test_as_many_of_a_key_run_as_the_job_or_its_queue_says(store: Turns) -> None:
    jobs(store, 5, key="a", key_limit=2)
    assert len(claim(store, 9)) == 2
    tune(store, "other", key_limit=3)
    jobs(store, 5, "k", key="a", queue="other")
    assert len(claim(store, 9, queues=("other",))) == 3
    check_places(store.dump())
    store.check_news()


def test_keys_take_turns_however_many_jobs_one_has(store: Turns) -> None:
    jobs(store, 50, "flood", key="a")
    jobs(store, 4, "few", key="b")
    order = []
    while handed := claim(store, 1):
        order.append(handed[0].ref)
        report(store, close(handed[0]))
    assert len(order) == 54
    assert [order.index(f"a:few{number}") for number in range(4)] == [1, 3, 5, 7]


def test_one_key_with_room_still_takes_turns(store: Turns) -> None:
    jobs(store, 50, "flood", key="a", key_limit=50)
    jobs(store, 4, "few", key="b", key_limit=50)
    order = refs(claim(store, 20))
    assert [order.index(f"a:few{number}") for number in range(4)] == [1, 3, 5, 7]


def test_a_higher_priority_comes_first_within_a_key_and_between_them(store: Turns) -> None:
    jobs(store, 2, "low", key="a", priority=1)
    jobs(store, 1, "mid", key="b")
    jobs(store, 1, "top", key="a", priority=9)
    order = []
    while handed := claim(store, 1):
        order.append(handed[0].ref)
        report(store, close(handed[0]))
    assert order == ["a:top0", "a:mid0", "a:low0", "a:low1"]


def test_jobs_without_a_key_keep_their_place_among_keys(store: Turns) -> None:
    submit(store, place("j0"), place("k0", key="a"), place("j1"), place("k1", key="a", key_limit=9), place("j2"))
    assert refs(claim(store, 9)) == ["a:j0", "a:k0", "a:j1", "a:j2"]


def test_a_delayed_and_a_retried_job_keep_their_key(store: Turns) -> None:
    submit(store, place("d", key="a", due_ms=NOW_MS + 5), place("r", key="a", retries=1, backoff_s=0))
    [job] = claim(store, 9)
    assert claim(store, 9, now_ms=NOW_MS + 10) == []
    report(store, close(job, Outcome.failed))
    handed = refs(claim(store, 9, now_ms=NOW_MS + 10))
    assert handed == ["a:d"]
    report(store, close(Held("a:d", 1)))
    assert refs(claim(store, 9, now_ms=NOW_MS + 10)) == ["a:r"]
    check_places(store.dump())
    store.check_news()


def test_the_steps_of_a_workflow_keep_their_key(store: Turns) -> None:
    send(store, flow([place("w", "a", "b", key="k"), wait("b", job="w", key="k")], "w"))
    submit(store, place("j", key="k"))
    order = []
    while handed := claim(store, 9):
        assert len(handed) == 1
        order += refs(handed)
        report(store, close(handed[0]))
    assert Counter(order) == Counter(["a:w", "b:w", "a:j"])
    left = {key for key in store.dump() if key.split(":")[1] in ("lane", "turns", "keyed", "running", "ready")}
    assert left == set()


def test_a_cancelled_job_leaves_its_lane(store: Turns) -> None:
    before = set(store.dump())
    jobs(store, 2, key="a")
    for job in ("j0", "j1"):
        change(store, "cancel", job)
    left = {key for key in set(store.dump()) - before if key.split(":")[1] in ("lane", "turns", "keyed", "running")}
    assert left == set()


def test_a_higher_limit_of_keys_holds_at_once(store: Turns) -> None:
    jobs(store, 4, key="a")
    assert len(claim(store, 9)) == 1
    assert claim(store, 9) == []
    tune(store, key_limit=3)
    assert len(claim(store, 9)) == 2
    check_places(store.dump())
    store.check_news()


def test_the_job_behind_a_cancelled_one_has_its_turn(store: Turns) -> None:
    submit(store, place("j1", key="a", key_limit=2), place("j2", key="a"), place("j3", key="a", key_limit=2))
    assert refs(claim(store, 9)) == ["a:j1"]
    change(store, "cancel", "j2")
    assert refs(claim(store, 9)) == ["a:j3"]
    check_places(store.dump())
    store.check_news()


def test_a_cancelled_job_leaves_no_priority_behind(store: Turns) -> None:
    submit(store, place("top", key="a", priority=9), place("low", key="a", priority=0), place("mid", key="b"))
    change(store, "cancel", "top")
    assert refs(claim(store, 1)) == ["a:mid"]


def claim_of(session: str, most: int) -> Any:
    from exesys.turn import Claim

    return Claim(session, most, ("default",))
