"""The rules of workflows, one by one, in either store."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
from store.fake import Turns
from store.invariants import check_places, records
from store.turns import (
    BODY,
    FAILURE,
    NOW_MS,
    ONE,
    TWO,
    change,
    claim,
    close,
    flow,
    give,
    place,
    refs,
    report,
    run,
    send,
    submit,
    wait,
)

from exesys import codec
from exesys.bus.messages import Held, Job, Note, Outcome
from exesys.config import Limits
from exesys.states import State
from exesys.turn import Change, Claim, Lookup

Make = Callable[..., Turns]
DAY_S = 86_400
HOUR_MS = 3_600_000
# The picture: A's result goes to B, B's to C, and C's command is run twice, for D and for E.
PICTURE = ["A>B", "B>C", "C>D", "C>E", "D>end_job", "E>end_job"]
DIAMOND = ["a>b,c", "b>d", "c>d", "d>end_job"]


def stand(store: Turns, job: str = "j") -> dict[str, str]:
    """Return where the steps of a job stand, by the first parts of their refs."""
    found = records(store.dump())
    return {ref.partition(":")[0]: each.state.name for ref, each in found.items() if ref.endswith(f":{job}")}


def fields_of(store: Turns, ref: str) -> dict[str, bytes]:
    return records(store.dump())[ref].fields


def error_of(store: Turns, ref: str) -> tuple[str, str]:
    told = codec.unpack(fields_of(store, ref)["error"])
    return told["type"], told["message"]


def result_of(store: Turns, ref: str) -> Any:
    return codec.unpack(fields_of(store, ref)["result"])["EOJ"]


def lives_s(store: Turns, *, job: str = "j") -> set[int | None]:
    """Return how long what belongs to a job lives, to ten seconds."""
    mine = [ttl_s for key, (_, ttl_s) in store.dump().items() if key.endswith(f":{job}") or f":{job}:" in key]
    return {ttl_s and round(ttl_s, -1) for ttl_s in mine}


def kept(store: Turns) -> set[str]:
    """Return the keys there are, but for counters."""
    return set(store.dump()) - {store.keys("order")}


def work(job: Job) -> Any:
    return [job.ref.partition(":")[0], codec.unpack(job.data)]


def run_on(store: Turns, now_ms: int = NOW_MS) -> list[str]:
    """Let everything end well, a claim at a time; return the refs in the order they ran."""
    ran: list[str] = []
    while jobs := claim(store, 100, now_ms=now_ms):
        ran += refs(jobs)
        report(store, *(give(job, work(job)) for job in jobs), now_ms=now_ms)
    return ran


def fail(store: Turns, *jobs: Job) -> list[str]:
    """Let attempts fail; return the steps that failed with them."""
    return [each.ref for ended in report(store, *(close(job, Outcome.failed) for job in jobs)) for each in ended.also]


def pick(jobs: list[Job], first: str) -> Job:
    return next(job for job in jobs if job.ref == f"{first}:j")


# --- the picture ------------------------------------------------------------


def test_the_picture(store: Turns) -> None:
    [stored] = send(store, flow(PICTURE))
    assert stored.verdict == "new"
    assert [state.name for _, state, _ in stored.steps] == ["start"] + ["standby"] * 5
    assert {key for key in store.dump() if not key.startswith("exesys:")} == {
        *("A:j:start", "B:j:standby", "C:j:standby", "C>E:j:standby", "D:j:standby", "E:j:standby")
    }
    [job] = claim(store, 9)
    assert job.ref == "A:j"
    assert "A:j:processing" in store.dump()
    [ended] = report(store, give(job, "from A"))
    assert (ended.started, ended.also) == (1, ())
    assert stand(store) == {"A": "data_available", "B": "start", **dict.fromkeys(("C", "C>E", "D", "E"), "standby")}
    assert codec.unpack(store.dump()["A:j:data_available"][0]["result"]) == {"EOJ": "from A"}
    assert codec.unpack(store.dump()["B:j:start"][0]["data"]) == "from A"
    [job] = claim(store, 9)
    report(store, give(job, "from B"))
    assert store.dump()["C:j:start"][0]["to"] == b"D"
    assert store.dump()["C>E:j:start"][0]["to"] == b"E"
    left, right = claim(store, 9)
    assert [codec.unpack(job.data) for job in (left, right)] == ["from B", "from B"]
    report(store, give(right, "right"))
    assert stand(store)["D"] == "standby"
    report(store, give(left, "left"))
    last = claim(store, 9)
    assert {job.ref: codec.unpack(job.data) for job in last} == {"D:j": "left", "E:j": "right"}
    report(store, *(give(job, None) for job in last))
    assert set(stand(store).values()) == {"data_available"}
    assert {key for key in store.dump() if key.startswith("exesys:")} == {
        *("exesys:job:j", "exesys:flow:j", "exesys:jobs", "exesys:order", "exesys:sessions")
    }


def test_the_picture_one_by_one_as_the_root_comes_last(store: Turns) -> None:
    steps = [edge.split(">") for edge in PICTURE]
    taken = submit(store, *(wait(*step) for step in steps[1:]), place("j", "A", "B"))
    assert [(each.verdict, each.state.name) for each in taken] == [("new", "standby")] * 5 + [("new", "start")]
    assert [ref.partition(":")[0] for ref in run_on(store)] == ["A", "B", "C", "C>E", "D", "E"]
    assert result_of(store, "E:j") == ["E", ["C>E", ["B", ["A", None]]]]


# --- what a step is given -----------------------------------------------------


def given(store: Turns, first: str) -> Any:
    """Run on until a step has its data; return that."""
    while f"{first}:j" not in (ran := {job.ref: job for job in claim(store, 100)}):
        assert ran
        report(store, *(give(job, work(job)) for job in ran.values()))
    return codec.unpack(ran[f"{first}:j"].data)


def test_one_feeder_gives_its_value_and_not_its_own_data(store: Turns) -> None:
    send(store, flow([place(from_="a", to="b", data=codec.pack(1)), place(from_="b", data=codec.pack("left out"))]))
    assert given(store, "b") == ["a", 1]


def test_several_feeders_give_a_map_by_their_names(store: Turns) -> None:
    send(store, flow(DIAMOND))
    assert given(store, "d") == {"b": ["b", ["a", None]], "c": ["c", ["a", None]]}


def test_feeders_that_share_a_name_are_called_by_their_edges(store: Turns) -> None:
    send(store, flow(["a>m", "a>m,end_job", "b>m", "m>end_job"]))
    assert given(store, "m") == {"a>m": ["a", None], "a>m,end_job": ["a>m,end_job", None], "b": ["b", None]}


def test_the_map_is_the_same_in_whatever_order_the_feeders_end(store: Turns) -> None:
    edges = ["a>m", "b>m", "c>m", "m>end_job"]
    for job in ("j", "k"):
        send(store, flow(edges, job))
    jobs = claim(store, 9)
    for job in [*jobs[:3], *reversed(jobs[3:])]:
        report(store, give(job, job.ref[0]))
    first, second = claim(store, 9)
    assert first.data == second.data == codec.pack({"a": "a", "b": "b", "c": "c"})


@pytest.mark.parametrize("count", [2, 15, 16, 300])
def test_a_map_of_any_size_is_msgpack(store: Turns, count: int) -> None:
    send(store, flow([*(f"n{number}>m" for number in range(count)), "m>end_job"]))
    jobs = claim(store, 500)
    report(store, *(give(job, number) for number, job in enumerate(jobs)))
    assert codec.unpack(claim(store)[0].data) == {f"n{number}": number for number in range(count)}


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -1, 2**60, 1.5, "", "è" * 40, b"x" * 300, [], {}, [{"a": [None]}], {"EOJ": 1}, "y" * 70_000],
)
def test_a_value_is_handed_on_as_it_is(store: Turns, value: Any) -> None:
    send(store, flow(["a>b,c", "b>d", "c>d", "d>end_job"]))
    report(store, give(claim(store)[0], value))
    left, right = claim(store, 9)
    assert left.data == right.data == codec.pack(value)
    report(store, give(left, value), give(right, value))
    assert codec.unpack(claim(store)[0].data) == {"b": value, "c": value}


def test_what_feeders_give_must_not_be_too_large(make_store: Make) -> None:
    store = make_store(Limits(data_bytes=100))
    send(store, flow(["a>m", "b>m", "m>z", "z>end_job", "c>end_job"]))
    jobs = claim(store, 9)
    ended = report(store, *(give(job, "x" * 60, session=ONE) for job in jobs))
    assert [each.state.name for each in ended] == ["data_available"] * 3
    assert [each.ref for each in ended[1].also] == ["z:j", "m:j"]
    assert error_of(store, "m:j") == (
        "TooLarge",
        "what its predecessors gave has more than the 100 bytes that are allowed",
    )
    assert error_of(store, "z:j") == ("PredecessorFailed", "predecessor m failed")
    assert "m:j" in store.dump()["exesys:dead"][0]
    check_places(store.dump())
    store.check_news()
    assert change(store, "retry").steps == 2
    assert error_of(store, "m:j")[0] == "TooLarge", "it is as large as before"
    check_places(store.dump())
    store.check_news()


def test_one_result_that_is_too_large_for_the_next_step(make_store: Make) -> None:
    store = make_store(Limits(data_bytes=100))
    send(store, flow(["a>b", "b>end_job"]))
    [ended] = report(store, give(claim(store)[0], "x" * 101))
    assert (ended.state, [each.ref for each in ended.also]) == (State.data_available, ["b:j"])
    assert error_of(store, "b:j")[0] == "TooLarge"


def test_a_result_that_is_gone_fails_what_needs_it(store: Turns) -> None:
    send(store, flow(["a>m", "b>m", "m>end_job"]))
    first, second = claim(store, 9)
    report(store, give(first, 1))
    store.drop(store.keys("record", "a:j", "data_available"))
    report(store, give(second, 2))
    assert error_of(store, "m:j") == ("ResultGone", "the result of a is gone")


# --- order of arrival ----------------------------------------------------------


def test_a_step_that_comes_after_its_feeder_ended_starts_at_once(store: Turns) -> None:
    submit(store, place("j", "a", "b"))
    report(store, give(claim(store)[0], 7))
    [taken] = submit(store, wait("b"))
    assert (taken.verdict, taken.state, taken.also) == ("new", State.start, ())
    assert [codec.unpack(job.data) for job in claim(store)] == [7]


def test_it_can_be_claimed_in_the_turn_it_comes_in(store: Turns) -> None:
    submit(store, place("j", "a", "b"))
    report(store, close(claim(store)[0]))
    answers = run(store, placed=[wait("b")], claims=[Claim(ONE, 1, ("default",))])
    assert refs(list(answers.claimed[0].jobs)) == ["b:j"]


def test_a_step_that_comes_after_its_feeder_failed_fails_at_once(store: Turns) -> None:
    submit(store, place("j", "a", "b"), wait("c", peer=f"{TWO}.3"))
    fail(store, claim(store)[0])
    [taken] = submit(store, wait("b", "c", peer=f"{TWO}.4"))
    assert (taken.verdict, taken.state) == ("new", State.error)
    assert codec.unpack(taken.body[0])["message"] == "predecessor a failed"
    assert {each.ref: each.peer for each in taken.also} == {"b:j": f"{TWO}.4", "c:j": f"{TWO}.3"}
    assert error_of(store, "c:j") == ("PredecessorFailed", "predecessor b failed")
    check_places(store.dump())
    store.check_news()


def test_a_step_may_come_while_its_feeder_runs(store: Turns) -> None:
    submit(store, place("j", "a", "b"))
    [job] = claim(store)
    assert submit(store, wait("b"))[0].state is State.standby
    assert report(store, give(job, 1))[0].started == 1
    assert refs(claim(store, 9)) == ["b:j"]


def test_a_feeder_that_is_tried_again_still_feeds(store: Turns) -> None:
    send(store, flow([place(from_="a", to="b", retries=1, backoff_s=0), place(from_="b")]))
    assert fail(store, claim(store)[0]) == []
    assert stand(store) == {"a": "start", "b": "standby"}
    assert run_on(store) == ["a:j", "b:j"]


def test_a_failed_step_that_is_tried_again_later_feeds_what_came_in_between(store: Turns) -> None:
    """When it failed, its job had no other step."""
    submit(store, place("j", "a", "b"))
    fail(store, claim(store)[0])
    submit(store, wait("b"))
    assert change(store, "retry").steps == 2
    assert run_on(store) == ["a:j", "b:j"]
    check_places(store.dump())
    store.check_news()


def test_two_roots_feed_one_step_that_was_sent_first(store: Turns) -> None:
    submit(store, wait("m"), place("j", "a", "m"), place("j", "b", "m"))
    first, second = claim(store, 9)
    assert report(store, give(first, 1))[0].started == 0
    assert report(store, give(second, 2))[0].started == 1
    assert codec.unpack(claim(store)[0].data) == {"a": 1, "b": 2}


def test_one_more_feeder_for_a_step_that_ended_changes_nothing_there(store: Turns) -> None:
    submit(store, wait("m"), place("j", "a", "m"))
    run_on(store)
    submit(store, place("j", "b", "m"))
    assert run_on(store) == ["b:j"]
    assert result_of(store, "m:j") == ["m", ["a", None]]


def test_a_circle_sent_step_by_step_is_refused_where_it_closes(store: Turns) -> None:
    submit(store, wait("b", "c"), wait("c", "d,e"), wait("e"))
    before = kept(store)
    taken = submit(store, wait("d", "x,b"), wait("d", "d"))
    assert [(each.verdict, each.body) for each in taken] == [("circle", b"d,b,c"), ("circle", b"d")]
    assert kept(store) == before
    assert "d" not in store.dump()["exesys:job:j"][0]
    submit(store, wait("d"), place("j", "a", "b"))
    assert set(run_on(store)) == {"a:j", "b:j", "c:j", "d:j", "e:j"}


def test_a_circle_is_found_from_either_end(store: Turns) -> None:
    """The walk takes turns: here the way back from the new step is the shorter one."""
    chain = [f"n{number}" for number in range(12)]
    submit(store, *(wait(one, other) for one, other in itertools.pairwise(chain)))
    submit(store, wait("z", "n0"), wait("y", "z"))
    [taken] = submit(store, wait("n11", "y"))
    assert (taken.verdict, taken.body.decode().split(",")) == ("circle", ["n11", "y", "z", *chain[:11]])


def test_a_step_that_runs_cuts_a_circle(store: Turns) -> None:
    """One that was sent without waiting starts in any case."""
    submit(store, wait("b", "a"), place("j", "a", "b"))
    assert run_on(store) == ["a:j", "b:j"]


# --- a step that nothing feeds ---------------------------------------------------


def test_a_step_that_nothing_feeds_is_given_up_after_its_time(make_store: Make) -> None:
    store = make_store(Limits(standby_s=3600))
    submit(store, wait("b", "c", peer=f"{TWO}.1"), wait("c"))
    submit(store, wait("d", job="k"), now_ms=NOW_MS + 5)
    answers = run(store, NOW_MS + HOUR_MS - 1, sweep=True)
    assert (answers.swept, answers.next_unfed_ms) == ([], NOW_MS + HOUR_MS)
    answers = run(store, NOW_MS + HOUR_MS, sweep=True)
    assert [(each.ref, each.peer) for each in answers.swept] == [("c:j", ""), ("b:j", f"{TWO}.1")]
    assert answers.next_unfed_ms == NOW_MS + HOUR_MS + 5
    assert error_of(store, "b:j") == ("NeverFed", "no step was sent that goes to b, for 3600 s")
    assert error_of(store, "c:j") == ("PredecessorFailed", "predecessor b failed")
    assert "b:j" in store.dump()["exesys:dead"][0]
    assert lives_s(store) == {14 * DAY_S}
    assert run(store, NOW_MS + 2 * HOUR_MS, sweep=True).next_unfed_ms == 0
    assert run(store, NOW_MS + 2 * HOUR_MS, sweep=True).swept == []


def test_a_step_whose_feeder_came_in_time_is_not_given_up(make_store: Make) -> None:
    store = make_store(Limits(standby_s=3600))
    submit(store, wait("b"))
    submit(store, place("j", "a", "b"))
    answers = run(store, NOW_MS + 2 * HOUR_MS, sweep=True)
    assert (answers.swept, answers.next_unfed_ms) == ([], 0)
    assert run_on(store, NOW_MS + 3 * HOUR_MS) == ["a:j", "b:j"]


def test_a_step_that_was_given_up_can_be_tried_again_and_has_its_time_again(make_store: Make) -> None:
    store = make_store(Limits(standby_s=3600))
    submit(store, wait("b", "c"), wait("c"))
    run(store, NOW_MS + HOUR_MS, sweep=True)
    assert change(store, "retry", now_ms=NOW_MS + HOUR_MS).steps == 2
    assert stand(store) == {"b": "standby", "c": "standby"}
    answers = run(store, NOW_MS + HOUR_MS + 1, sweep=True)
    assert (answers.swept, answers.next_unfed_ms) == ([], NOW_MS + 2 * HOUR_MS)
    submit(store, place("j", "a", "b"))
    assert run_on(store) == ["a:j", "b:j", "c:j"]


def test_many_are_given_up_in_bounded_chunks(make_store: Make) -> None:
    store = make_store(Limits(standby_s=1))
    submit(store, *(wait("b", job=f"j{number}") for number in range(130)))
    answers = run(store, NOW_MS + 1000, sweep=True)
    assert (len(answers.swept), answers.next_unfed_ms) == (100, NOW_MS + 1000)
    answers = run(store, NOW_MS + 1000, sweep=True)
    assert (len(answers.swept), answers.next_unfed_ms) == (30, 0)


# --- failing and trying again ---------------------------------------------------


def test_a_failure_fails_what_depends_on_it_and_nothing_else(store: Turns) -> None:
    edges = ["a>b,c", "b>d", "b>e", "d>m", "e>m", "c>m", "c>z", "m>end_job", "z>end_job"]
    send(store, flow([place("j", *edge.split(">"), peer=f"{TWO}.{n}") for n, edge in enumerate(edges)]))
    report(store, give(claim(store)[0], 1))
    jobs = claim(store, 9)
    bad = pick(jobs, "b")
    [ended] = report(store, close(bad, Outcome.failed))
    assert (ended.state, ended.peer, ended.body) == (State.error, f"{TWO}.1", [FAILURE, 1])
    assert [(each.ref, each.peer, each.attempt) for each in ended.also] == [
        ("d:j", f"{TWO}.3", 0),
        ("m:j", f"{TWO}.7", 0),
    ]
    assert {codec.unpack(each.body[0])["type"] for each in ended.also} == {"PredecessorFailed"}
    assert error_of(store, "d:j")[1] == "predecessor b failed"
    assert error_of(store, "m:j")[1] == "predecessor d failed"
    assert run(store, lookups=[Lookup("j", "d", "m")]).found[0].body[1] == 0, "it has had no attempt"
    report(store, *(give(job, 2) for job in jobs if job is not bad))
    run_on(store)
    assert stand(store) == {
        **dict.fromkeys(("a", "c", "c>z", "b>e", "e", "z"), "data_available"),
        **dict.fromkeys(("b", "d", "m"), "error"),
    }
    assert store.dump()["exesys:dead"][0].keys() == {"b:j"}, "the one that failed by itself"
    check_places(store.dump())
    store.check_news()


def test_a_worker_that_is_lost_too_often_fails_what_depends_on_its_step(make_store: Make) -> None:
    store = make_store(Limits(max_losses=1))
    send(store, flow(DIAMOND))
    claim(store)
    [(left, ended)] = run(store, lost=[ONE]).lost
    assert (left, [each.ref for each in ended]) == (0, ["a:j", "b:j", "c:j", "d:j"])
    assert lives_s(store) == {14 * DAY_S}


def test_a_retry_runs_only_what_failed_and_what_depended_on_it(store: Turns) -> None:
    send(store, flow(["a>b,c", "b>d", "c>d", "d>end_job"]))
    report(store, give(claim(store)[0], "a1"))
    jobs = claim(store, 9)
    report(store, give(pick(jobs, "c"), "c1"))
    fail(store, pick(jobs, "b"))
    assert stand(store) == {"a": "data_available", "b": "error", "c": "data_available", "d": "error"}
    changed = change(store, "retry")
    assert (changed.steps, changed.ended) == (2, ())
    assert stand(store) == {"a": "data_available", "b": "start", "c": "data_available", "d": "standby"}
    assert lives_s(store) == {None}
    fields = fields_of(store, "b:j")
    assert not {"error", "ended", "was", "fails", "crashes", "losses"} & fields.keys()
    [job] = claim(store, 9)
    assert (job.ref, job.attempt, codec.unpack(job.data)) == ("b:j", 2, "a1")
    report(store, give(job, "b2"))
    [job] = claim(store, 9)
    assert (job.attempt, codec.unpack(job.data)) == (1, {"b": "b2", "c": "c1"})
    report(store, give(job, "d1"))
    assert result_of(store, "a:j") == "a1"
    assert lives_s(store) == {DAY_S}, "nothing of it is in error any more"
    assert "exesys:dead" not in store.dump()
    check_places(store.dump())
    store.check_news()


def test_a_retry_has_all_its_tries_again(store: Turns) -> None:
    send(store, flow([place(from_="a", to="b", retries=1, backoff_s=0), place(from_="b")]))
    for expected in (1, 2):
        [job] = claim(store)
        assert job.attempt == expected
        fail(store, job)
    change(store, "retry")
    assert fail(store, claim(store)[0]) == []
    assert stand(store)["a"] == "start"
    assert claim(store)[0].attempt == 4


def test_a_retry_while_other_branches_run(store: Turns) -> None:
    send(store, flow(["a>m", "b>m", "m>end_job"]))
    first, second = claim(store, 9)
    fail(store, first)
    change(store, "retry")
    assert stand(store) == {"a": "start", "b": "processing", "m": "standby"}
    report(store, give(second, 2))
    report(store, give(claim(store)[0], 1))
    assert codec.unpack(claim(store)[0].data) == {"a": 1, "b": 2}


def test_a_retry_of_what_has_not_failed_changes_nothing(store: Turns) -> None:
    send(store, flow(["a>b", "b>end_job"]))
    assert change(store, "retry") == (0, (), ())
    run_on(store)
    before = store.dump()
    assert change(store, "retry") == (0, (), ())
    assert kept(store) == set(before) - {"exesys:order"}
    assert change(store, "retry", "nobody").steps == -1


def test_a_single_step_can_be_tried_again(store: Turns) -> None:
    submit(store, place(retries=0))
    report(store, close(claim(store)[0], Outcome.failed, log="no"))
    assert change(store, "retry").steps == 1
    assert lives_s(store) == {None}
    [job] = claim(store)
    assert job.attempt == 2
    report(store, give(job, 1, log="yes"))
    assert lives_s(store) == {DAY_S}


# --- cancelling ---------------------------------------------------------------


def test_a_cancel_ends_what_has_not_ended_in_whatever_state(store: Turns) -> None:
    edges = ["done>run,wait", "run>last", "wait>last", "late>last", "fast>last", "last>end_job"]
    late = place("j", "late", "last", due_ms=NOW_MS + 10**6, peer=f"{TWO}.3")
    fast = place("j", "fast", "last", queue="fast", peer=f"{TWO}.4")
    send(store, flow([*(place("j", *edge.split(">"), peer=f"{TWO}.{n}") for n, edge in enumerate(edges[:3])),
                      late, fast, place("j", "last", peer=f"{TWO}.5")]))  # fmt: skip
    report(store, give(claim(store)[0], "kept"))
    [job] = claim(store)
    assert job.ref == "run:j"
    states = {"late": "start", "fast": "start", "wait": "start", "last": "standby"}
    assert stand(store) == {"done": "data_available", "run": "processing", **states}
    changed = change(store, "cancel")
    assert changed.steps == 5
    assert {each.ref: (each.peer, session) for each, session in zip(changed.ended, changed.sessions, strict=True)} == {
        "run:j": (f"{TWO}.1", ONE),
        "wait:j": (f"{TWO}.2", ""),
        "late:j": (f"{TWO}.3", ""),
        "fast:j": (f"{TWO}.4", ""),
        "last:j": (f"{TWO}.5", ""),
    }
    assert stand(store) == {"done": "data_available", **dict.fromkeys(("run", *states), "error")}
    assert {error_of(store, f"{first}:j") for first in ("run", *states)} == {("Cancelled", "it was cancelled")}
    places = [key for key in store.dump() if key.startswith(("exesys:ready", "exesys:held", "exesys:delayed"))]
    assert places == []
    assert lives_s(store) == {14 * DAY_S}
    assert len(store.dump()["exesys:dead"][0]) == 1, "one of them finds the job"
    check_places(store.dump())
    store.check_news()


def test_what_ends_after_a_cancel_is_stale(store: Turns) -> None:
    send(store, flow(["a>b", "b>end_job"]))
    [job] = claim(store)
    change(store, "cancel")
    before = store.dump()
    for outcome in Outcome:
        assert report(store, close(job, outcome, added=[place(from_="x")]))[0].stale
    run(store, notes=[Note(*job[:2], 0.5, "half", "log")])
    assert store.dump() == before
    assert change(store, "cancel") == (0, (), ())


def test_a_step_never_fed_can_be_cancelled(store: Turns) -> None:
    submit(store, wait("b"))
    assert change(store, "cancel").steps == 1
    assert "exesys:standby" not in store.dump()
    assert lives_s(store) == {14 * DAY_S}


def test_a_single_step_can_be_cancelled(store: Turns) -> None:
    submit(store, place(), place("k"), place("l", due_ms=NOW_MS + 10**6))
    claim(store)
    assert [change(store, "cancel", job).steps for job in "jklm"] == [1, 1, 1, -1]
    for job in "jkl":
        assert stand(store, job) == {"a": "error"}
        assert lives_s(store, job=job) == {14 * DAY_S}
    assert claim(store, 9, now_ms=NOW_MS + 10**7) == []


def test_a_cancelled_job_can_be_tried_again_and_goes_on_where_it_was(store: Turns) -> None:
    send(store, flow(["a>b,c", "b>d", "c>d", "d>end_job"]))
    report(store, give(claim(store)[0], "a1"))
    [late] = claim(store)
    change(store, "cancel")
    assert change(store, "retry").steps == 3
    assert stand(store) == {"a": "data_available", "b": "start", "c": "start", "d": "standby"}
    assert report(store, give(late, "late"))[0].stale
    assert {job.ref: job.attempt for job in claim(store, 9)} == {"b:j": 2, "c:j": 1}
    report(store, give(Held("b:j", 2), "b2"), give(Held("c:j", 1), "c1"))
    assert codec.unpack(claim(store)[0].data) == {"b": "b2", "c": "c1"}


def test_the_same_sent_again_after_a_cancel_is_told_so(store: Turns) -> None:
    send(store, flow(["a>b", "b>end_job"]))
    change(store, "cancel")
    [stored] = send(store, flow(["a>b", "b>end_job"]))
    assert (stored.verdict, [state for _, state, _ in stored.steps]) == ("same", [State.error] * 2)
    assert codec.unpack(stored.steps[0][2][0])["type"] == "Cancelled"


def test_who_sends_a_job_and_cancels_it_in_one_turn_finds_it(store: Turns) -> None:
    answers = run(
        store,
        flows=[flow(["a>b", "b>end_job"])],
        placed=[place("k")],
        changes=[Change("cancel", "j"), Change("cancel", "k")],
        claims=[Claim(ONE, 9, ("default",))],
    )
    assert [each.steps for each in answers.changed] == [2, 1]
    assert answers.claimed[0].jobs == ()


# --- steps added while running ------------------------------------------------


def test_a_function_adds_steps_that_come_together_again(store: Turns) -> None:
    send(store, flow(["split>merge", "merge>end_job"]))
    [job] = claim(store)
    added = [place(from_=f"part{number}", to="merge", data=codec.pack(number)) for number in range(3)]
    [ended] = report(store, give(job, "split", added=added))
    assert (ended.state, ended.started, ended.also) == (State.data_available, 3, ())
    assert stand(store)["merge"] == "standby", "they were there before the step that added them had ended"
    parts = claim(store, 9)
    assert [(job.ref, codec.unpack(job.data)) for job in parts] == [(f"part{n}:j", n) for n in range(3)]
    report(store, *(give(job, codec.unpack(job.data) * 10) for job in parts))
    assert codec.unpack(claim(store)[0].data) == {"split": "split", "part0": 0, "part1": 10, "part2": 20}


def test_a_job_of_one_step_may_grow(store: Turns) -> None:
    submit(store, place(from_="a", peer=f"{TWO}.5"))
    [job] = claim(store)
    [ended] = report(store, give(job, 1, added=[place(from_="p", to="q"), place(from_="q", to="end_job")]))
    assert (ended.peer, ended.started) == (f"{TWO}.5", 1)
    assert lives_s(store) == {None}
    assert run_on(store) == ["p:j", "q:j"]
    assert result_of(store, "q:j") == ["q", ["p", None]]
    assert lives_s(store) == {DAY_S}


def test_added_steps_feed_each_other_and_what_adds_them_may_feed_them(store: Turns) -> None:
    submit(store, place(from_="a", to="next"))
    [ended] = report(store, give(claim(store)[0], "a1", added=[place(from_="next", to="n,m"), place(from_="n", to="m"),
                                                              place(from_="m")]))  # fmt: skip
    assert ended.started == 1
    assert run_on(store) == ["next:j", "n:j", "m:j"]
    assert result_of(store, "next:j") == ["next", "a1"]


def test_a_step_added_where_all_feeders_have_ended_starts_with_what_they_gave(store: Turns) -> None:
    send(store, flow(["a>b", "b>end_job"]))
    report(store, give(claim(store)[0], "a1"))
    [ended] = report(store, give(claim(store)[0], "b1", added=[place(from_="b", to="end_job,x"), place(from_="x")]))
    assert ended.started == 1
    assert run_on(store) == ["b>end_job,x:j", "x:j"]
    assert result_of(store, "b>end_job,x:j") == ["b>end_job,x", "a1"]


def test_a_step_added_where_a_feeder_failed_fails(store: Turns) -> None:
    send(store, flow(["a>b", "b>end_job", "c>end_job"]))
    jobs = claim(store, 9)
    fail(store, pick(jobs, "a"))
    [ended] = report(store, give(pick(jobs, "c"), 1, added=[place(from_="b", to="x"), place(from_="x")]))
    assert {each.ref for each in ended.also} == {"b>x:j", "x:j"}
    assert error_of(store, "b>x:j") == ("PredecessorFailed", "predecessor a failed")
    check_places(store.dump())
    store.check_news()


def test_added_steps_keep_their_options(store: Turns) -> None:
    submit(store, place(from_="a"))
    options = {"queue": "fast", "priority": 9, "retries": 2, "timeout_s": 7, "result_ttl_s": 90.5}
    added = [place(from_="p", to="q", **options), place(from_="q", due_ms=-500), place(from_="r", due_ms=-500)]
    report(store, give(claim(store)[0], 1, added=added))
    fields = fields_of(store, "p:j")
    assert (fields["queue"], fields["priority"], fields["retries"], fields["many"]) == (b"fast", b"9", b"2", b"1")
    [job] = claim(store, 9, queues=("fast", "default"))
    assert (job.ref, job.timeout_s) == ("p:j", 7)
    report(store, give(job, 1))
    assert claim(store, 9, now_ms=NOW_MS + 499) == []
    assert set(refs(claim(store, 9, now_ms=NOW_MS + 500))) == {"q:j", "r:j"}
    report(store, give(Held("q:j", 1), 1), give(Held("r:j", 1), 1))
    assert lives_s(store) == {90}


@pytest.mark.parametrize(
    ("edges", "why"),
    [
        (["p>nowhere"], "no step waits at nowhere to be fed by p"),
        (["p>a"], "no step waits at a to be fed by p"),
        (["p>q", "q>nowhere"], "no step waits at nowhere to be fed by q"),
        (["a>b"], "there is a step from a to b already"),
        (["c>d"], "there is a step from c to d already"),
        (["c>e"], "there is a step from c to e already"),
        (["e>b"], "the steps go in a circle: e → b → c → e"),
        (["e>x", "x>b"], "the steps go in a circle: e → x → b → c → e"),
        ([f"p{number}>b" for number in range(5)], "the job would have more than 10 steps"),
    ],
)
def test_steps_that_do_not_fit_fail_the_attempt_and_leave_nothing(make_store: Make, edges: list[str], why: str) -> None:
    store = make_store(Limits(workflow_steps=10))
    send(store, flow(["a>b", "b>c", "c>d", "c>e", "d>end_job", "e>end_job"]))
    [job] = claim(store)
    [ended] = report(store, give(job, 1, added=[place("j", *edge.split(">")) for edge in edges]))
    assert (ended.state, len(ended.also)) == (State.error, 5)
    assert error_of(store, "a:j") == ("BadStep", why)
    assert stand(store).keys() == {"a", "b", "c", "c>e", "d", "e"}
    check_places(store.dump())
    store.check_news()


def test_a_job_may_grow_to_its_last_step(make_store: Make) -> None:
    store = make_store(Limits(workflow_steps=10))
    send(store, flow(["a>b", "b>c", "c>d", "c>e", "d>end_job", "e>end_job"]))
    [ended] = report(store, give(claim(store)[0], 1, added=[place(from_=f"p{n}", to="b") for n in range(4)]))
    assert (ended.state, ended.started) == (State.data_available, 4)


def test_steps_that_do_not_fit_are_an_attempt_that_may_be_tried_again(store: Turns) -> None:
    submit(store, place(retries=1, backoff_s=0))
    [ended] = report(store, give(claim(store)[0], 1, added=[place(from_="p", to="nowhere")]))
    assert ended.state is State.start
    assert report(store, give(claim(store)[0], 1, added=[place(from_="p")]))[0].started == 1


def test_a_failed_attempt_adds_nothing(store: Turns) -> None:
    submit(store, place())
    [ended] = report(store, close(claim(store)[0], Outcome.failed, added=[place(from_="p")]))
    assert (ended.state, stand(store)) == (State.error, {"a": "error"})


def test_steps_are_added_once(store: Turns) -> None:
    submit(store, place())
    [job] = claim(store)
    closed = give(job, 1, added=[place(from_="p")])
    assert [each.stale for each in report(store, closed, closed)] == [False, True]
    assert report(store, closed)[0].stale
    assert run_on(store) == ["p:j"]


# --- whole or not at all ----------------------------------------------------------


def test_a_workflow_sent_again_is_told_where_it_stands(store: Turns) -> None:
    sent = flow(["a>b,c", "b>d", "c>d", "d>end_job"])
    assert send(store, sent)[0].verdict == "new"
    assert [(ref, state.name, body) for ref, state, body in send(store, sent)[0].steps] == [
        ("a:j", "start", None), ("b:j", "standby", None), ("c:j", "standby", None), ("d:j", "standby", None),
    ]  # fmt: skip
    report(store, close(claim(store)[0]))
    first, second = claim(store, 9)
    fail(store, second)
    [stored] = send(store, sent)
    assert (stored.verdict, stored.ref) == ("same", "")
    bodies = [body for _, _, body in stored.steps]
    assert [state.name for _, state, _ in stored.steps] == ["data_available", "processing", "error", "error"]
    assert bodies[:3] == [BODY, None, [FAILURE, 1]]
    turned = flow(["d>end_job", "c>d", "b>d", "a>b,c"])
    assert [ref for ref, _, _ in send(store, turned)[0].steps] == ["d:j", "c:j", "b:j", "a:j"]
    assert refs([first]) == ["b:j"]
    assert len(claim(store, 9)) == 0
    assert store.dump()["exesys:jobs"][0] == ["j"]


@pytest.mark.parametrize(
    ("edges", "way"),
    [
        (["a>b", "b>c", "c>end_job"], "b"),
        (["a>b", "b>end_job", "x>end_job"], "x"),
        (["a>b,x", "b>end_job", "x>end_job"], "a"),
        (["x>b", "b>end_job"], "x"),
    ],
)
def test_another_workflow_of_the_same_job_is_a_conflict_and_changes_nothing(
    store: Turns, edges: list[str], way: str
) -> None:
    send(store, flow(["a>b", "b>end_job"]))
    before = store.dump()
    [stored] = send(store, flow(edges))
    assert (stored.verdict, stored.ref, stored.steps) == ("conflict", f"{way}:j", ())
    assert store.dump() == before


def test_another_cmd_or_data_is_a_conflict(store: Turns) -> None:
    send(store, flow(["a>b", "b>end_job"]))
    for other in ({"cmd": "g"}, {"data": b"\x01"}):
        [stored] = send(store, flow([place("j", "a", "b"), place("j", "b", **other)]))
        assert (stored.verdict, stored.ref, stored.steps) == ("conflict", "b:j", ())


def test_a_workflow_for_a_job_that_has_a_step_is_a_conflict(store: Turns) -> None:
    submit(store, place(from_="a", to="b"))
    before = store.dump()
    [stored] = send(store, flow(["a>b", "b>end_job"]))
    assert (stored.verdict, stored.ref) == ("conflict", "b:j")
    assert store.dump() == before


def test_a_workflow_that_has_grown_is_still_the_same(store: Turns) -> None:
    send(store, flow(["a>b", "b>end_job"]))
    report(store, give(claim(store)[0], 1, added=[place(from_="p", to="b")]))
    assert send(store, flow(["a>b", "b>end_job"]))[0].verdict == "same"


def test_a_workflow_whose_roots_find_their_queue_full_leaves_nothing(make_store: Make) -> None:
    store = make_store(Limits(queue_depth=2))
    submit(store, place("k"))
    before = store.dump()
    edges = ["a>m", "b>m", "m>end_job"]
    [stored] = send(store, flow(edges))
    assert (stored.verdict, stored.ref, stored.steps) == ("full", "b:j", ())
    assert store.dump() == before
    assert send(store, flow([place("j", *edge.split(">"), queue="fast") for edge in edges]))[0].verdict == "new"


def test_steps_that_start_later_need_no_room(make_store: Make) -> None:
    store = make_store(Limits(queue_depth=1))
    send(store, flow(["a>b,c,d", "b>end_job", "c>end_job", "d>end_job"]))
    assert len(run_on(store)) == 4


def test_of_two_workflows_in_a_turn_one_may_be_refused(make_store: Make) -> None:
    store = make_store(Limits(queue_depth=2))
    sent = [flow(["a>b", "b>end_job"], job) for job in "jkl"]
    other = flow(["a>c", "c>end_job"], "j")
    assert [each.verdict for each in send(store, sent[0], other, sent[1], sent[2], sent[0])] == [
        *("new", "conflict", "new", "full", "same")
    ]
    assert stand(store, "l") == {}
    assert "exesys:job:l" not in store.dump()
    assert set(run_on(store)) == {"a:j", "b:j", "a:k", "b:k"}


def test_each_verdict_is_of_its_own_workflow_also_past_a_chunk(store: Turns) -> None:
    sent = [flow([f"a{n}>b" for n in range(100)] + ["b>end_job"], f"j{number}") for number in range(6)]
    stored = send(store, *sent[:3], flow(["a0>b", "b>end_job"], "j1"), *sent[3:])
    assert [each.verdict for each in stored] == ["new", "new", "new", "same", "new", "new", "new"]
    assert len(run_on(store)) == 606


# --- options of steps ---------------------------------------------------------------


def test_a_delay_counts_from_when_a_step_is_fed(store: Turns) -> None:
    send(store, flow([place("j", "a", "b", due_ms=-1000), place("j", "b", due_ms=-2000)]))
    answers = run(store, claims=[Claim(ONE, 9, ("default",))])
    assert (answers.claimed[0].jobs, answers.next_due_ms) == ((), NOW_MS + 1000)
    now_ms = NOW_MS + 5000
    report(store, give(claim(store, now_ms=now_ms)[0], 1), now_ms=now_ms)
    answers = run(store, now_ms, claims=[Claim(ONE, 9, ("default",))])
    assert (answers.claimed[0].jobs, answers.next_due_ms) == ((), now_ms + 2000)
    assert refs(claim(store, now_ms=now_ms + 2000)) == ["b:j"]


def test_a_moment_is_waited_for_if_it_has_not_come(store: Turns) -> None:
    for job, at in (("j", NOW_MS + 3000), ("k", NOW_MS - 3000)):
        send(store, flow([place(job, "a", "b"), place(job, "b", due_ms=at)], job))
    report(store, *(give(job, 1) for job in claim(store, 9)))
    assert refs(claim(store, 9)) == ["b:k"]
    assert refs(claim(store, 9, now_ms=NOW_MS + 3000)) == ["b:j"]


def test_a_step_that_comes_late_and_is_to_wait_says_when_it_is_due(store: Turns) -> None:
    """The router sleeps until then."""
    submit(store, place("j", "a", "b"))
    report(store, give(claim(store)[0], 1))
    answers = run(store, placed=[wait("b", due_ms=-700)], claims=[Claim(ONE, 9, ("default",))])
    assert (answers.taken[0].state, answers.next_due_ms) == (State.start, NOW_MS + 700)


def test_steps_go_to_their_queues_by_their_priority(store: Turns) -> None:
    send(store, flow(["a>b,c,d", place("j", "b", priority=0), place("j", "c", priority=9), place("j", "d", queue="q")]))
    report(store, give(claim(store)[0], 1))
    submit(store, place("k"))
    assert refs(claim(store, 9)) == ["c:j", "a:k", "b:j"]
    assert refs(claim(store, 9, queues=("q",))) == ["d:j"]


def test_the_longest_time_asked_for_counts_for_all(store: Turns) -> None:
    send(
        store, flow([place("j", "a", "b", result_ttl_s=100), place("j", "b", "c", result_ttl_s=300.5), place("j", "c")])
    )
    claim(store)
    report(store, give(Held("a:j", 1), 1, log="printed"))
    assert lives_s(store) == {None}
    run_on(store)
    assert lives_s(store) == {300}


def test_nothing_expires_until_the_last_step_ended(store: Turns) -> None:
    send(store, flow(["a>end_job", "b>c", "c>end_job"]))
    first, second = claim(store, 9)
    report(store, close(first, log="printed"))
    assert lives_s(store) == {None}
    fail(store, second)
    assert lives_s(store) == {14 * DAY_S}
    assert store.dump()["exesys:log:a:j"][1] is not None


def test_one_more_step_keeps_what_was_about_to_expire(store: Turns) -> None:
    submit(store, place(from_="a", to="b", result_ttl_s=1000))
    report(store, close(claim(store)[0], log="printed"))
    assert lives_s(store) == {1000}
    submit(store, wait("b", "c"))
    assert lives_s(store) == {None}
    run_on(store)
    assert lives_s(store) == {1000}, "what the first asked for still holds"
    submit(store, wait("c"))
    assert lives_s(store) == {None}
    run_on(store)
    assert lives_s(store) == {1000}
    check_places(store.dump())
    store.check_news()


def test_a_large_workflow_is_stored_and_runs_whole(store: Turns) -> None:
    """More steps than Lua unpacks at once, and more reports than one script takes."""
    count = 2_300
    names = [f"n{number}" for number in range(count)]
    edges = [f"root>{','.join(names)}", *(f"{name}>m" for name in names), *(f"m>e{n}" for n in range(900))]
    sent = flow([*edges, *(f"e{n}>end_job" for n in range(900))])
    assert len(send(store, sent)[0].steps) == 2 * 900 + count + 1
    assert len(send(store, sent)[0].steps) == 2 * 900 + count + 1
    ran: list[str] = []
    while jobs := claim(store, 1000):
        ran += refs(jobs)
        report(store, *(give(job, None) for job in jobs))
    assert (len(ran), len(set(ran))) == (2 * 900 + count + 1,) * 2
    check_places(store.dump())
    store.check_news()
    assert all(DAY_S - 60 <= life_s <= DAY_S for life_s in lives_s(store)), "to read so many takes a while"


def test_everything_stands_under_the_prefix(make_store: Make) -> None:
    store = make_store(Limits(standby_s=1), prefix="{s07}")
    send(store, flow(DIAMOND))
    submit(store, wait("never", job="k"))
    report(store, give(claim(store)[0], 1, added=[place(from_="p", to="d")]))
    fail(store, claim(store)[0])
    run(store, NOW_MS + 5000, sweep=True)
    change(store, "retry")
    change(store, "cancel")
    assert {key.startswith("{s07}") for key in store.dump()} == {True}


# --- what would grow or wait without end ---------------------------------------


def test_a_circle_through_what_a_retry_would_let_wait_again_is_refused(store: Turns) -> None:
    submit(store, wait("A", "B"))
    change(store, "cancel")
    [taken] = run(store, placed=[wait("B", "A")]).taken
    assert (taken.verdict, taken.body) == ("circle", b"B,A")
    assert change(store, "retry").steps == 1
    assert stand(store) == {"A": "standby"}


def test_a_further_step_of_one_name_may_not_carry_a_long_list(store: Turns) -> None:
    many = ",".join(f"name-{number:03}" for number in range(100))
    submit(store, wait("a", "b"))
    before = store.dump()
    assert run(store, placed=[wait("a", many)]).taken[0].verdict == "long"
    assert {key: value for key, value in store.dump().items() if not key.endswith(":order")} == {
        key: value for key, value in before.items() if not key.endswith(":order")
    }
    assert run(store, placed=[wait("c", many)]).taken[0].verdict == "new"
