"""Reading the store for people: look-ups, lists in pages, logs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from store.fake import RealStore, steady
from store.turns import BODY, FAILURE, NOW_MS, ONE, TWO, claim, close, place, report, run, submit

from exesys import runnerviews
from exesys.bus.messages import Job, Note, Outcome
from exesys.config import Limits
from exesys.runner import Name
from exesys.states import State
from exesys.store import reader as module
from exesys.store.dial import StoreAway
from exesys.store.reader import Reader, Sought, Waiting
from exesys.turn import Tuning


@pytest.fixture(params=["", "{s07}"])
def store(request: pytest.FixtureRequest, redis_server: Any) -> Iterator[RealStore]:
    store = RealStore(redis_server.url, redis_server.client, Limits(), request.param)
    yield store
    store.close()


@pytest.fixture
def reader(store: RealStore, redis_server: Any) -> Iterator[Reader]:
    reader = Reader(redis_server.url, store.keys.prefix)
    yield reader
    reader.close()


def names(found: list[tuple[str, list[Any]]]) -> list[str]:
    return [job_id for job_id, _ in found]


def pages(reader: Reader, limit: int, state: State | None = None) -> list[list[str]]:
    """Read all pages, each from where the one before it ended."""
    found, before = [], ""
    for _ in range(1000):
        page, before = reader.jobs(limit, before, Sought(state))
        found.append(names(page))
        if not before:
            return found
    raise AssertionError("there is always one more page")


def test_a_server_that_answers_is_well(reader: Reader) -> None:
    reader.ping()


def test_the_steps_of_jobs_are_found_in_any_state(store: RealStore, reader: Reader) -> None:
    submit(store, place("j"), place("j", to="x"), place("j", from_="b"), place("k"))
    first, second, third = claim(store, 3)
    report(store, close(first), close(second, Outcome.failed))
    assert third.ref == "b:j"
    j, nothing, k = reader.steps(["j", "nothing", "k"])
    found = {(step.ref, step.from_, step.job_id): (step.state, step.text("to"), step.number("attempt")) for step in j}
    assert found == {
        ("a:j", "a", "j"): (State.data_available, "end_job", 1),
        ("a>x:j", "a", "j"): (State.error, "x", 1),
        ("b:j", "b", "j"): (State.processing, "end_job", 1),
    }
    assert nothing == []
    [step] = k
    assert (step.state, step.fields["data"], step.number("attempt"), step.text("note")) == (
        State.start,
        b"\xc0",
        None,
        "",
    )
    assert reader.steps([]) == []


def test_results_and_errors_are_there_as_they_were_packed(store: RealStore, reader: Reader) -> None:
    submit(store, place("j"), place("k"))
    first, second = claim(store, 2)
    report(store, close(first), close(second, Outcome.failed))
    assert reader.steps(["j"])[0][0].fields["result"] == BODY
    assert reader.steps(["k"])[0][0].fields["error"] == FAILURE


def test_jobs_are_listed_the_newest_first_in_pages(store: RealStore, reader: Reader) -> None:
    submit(store, *(place(f"j{number}") for number in range(7)))
    newest = [f"j{number}" for number in reversed(range(7))]
    assert pages(reader, 100) == [newest, []] or pages(reader, 100) == [newest]
    assert [page for page in pages(reader, 3) if page] == [newest[:3], newest[3:6], newest[6:]]
    assert sum(pages(reader, 7), []) == newest  # noqa: RUF017  # a handful


def test_a_list_goes_on_where_it_was_when_jobs_come_in_between(store: RealStore, reader: Reader) -> None:
    submit(store, *(place(f"j{number}") for number in range(4)))
    page, before = reader.jobs(2)
    submit(store, place("new"))
    following, _ = reader.jobs(2, before)
    assert (names(page), names(following)) == (["j3", "j2"], ["j1", "j0"])
    assert names(reader.jobs(1)[0]) == ["new"]


def test_jobs_whose_records_have_expired_are_left_out(store: RealStore, reader: Reader) -> None:
    submit(store, *(place(f"j{number}") for number in range(5)))
    for number in (0, 2, 4):
        store.drop(store.keys("record", f"a:j{number}", "start"))
    assert [job for page in pages(reader, 2) for job in page] == ["j3", "j1"]


STATES = [State.start, State.processing, State.data_available, State.error]


@pytest.mark.parametrize("state", STATES)
def test_jobs_can_be_listed_by_state(store: RealStore, reader: Reader, state: State) -> None:
    for number in range(3):
        submit(store, *(place(f"{each.name}{number}", queue=each.name) for each in STATES))
        for session, each in ((ONE, State.processing), (TWO, State.data_available), (TWO, State.error)):
            [job] = claim(store, 1, session, (each.name,))
            if each.final:
                outcome = Outcome.done if each is State.data_available else Outcome.failed
                report(store, close(job, outcome, session), now_ms=NOW_MS + number)
    found = names(reader.jobs(50, sought=Sought(state))[0])
    assert sorted(found) == [f"{state.name}{number}" for number in range(3)]
    if state is not State.processing:
        assert found == [f"{state.name}{number}" for number in (2, 1, 0)], "the newest first"
    assert len(reader.jobs(2, sought=Sought(state))[0]) == 2


@pytest.mark.parametrize("state", [State.start, State.data_available])
def test_a_list_by_state_has_pages_too(store: RealStore, reader: Reader, state: State) -> None:
    for number in range(7):
        submit(store, place(f"w{number}", queue="waits"), place(f"d{number}"))
        report(store, close(claim(store)[0]))
    letter = "w" if state is State.start else "d"
    found = [page for page in pages(reader, 3, state) if page]
    assert [len(page) for page in found] == [3, 3, 1]
    assert [job for page in found for job in page] == [f"{letter}{number}" for number in reversed(range(7))]


def test_the_newest_failures_come_first(store: RealStore, reader: Reader) -> None:
    submit(store, *(place(job) for job in "jkl"))
    jobs = claim(store, 3)
    for late, job in enumerate((jobs[1], jobs[0], jobs[2])):
        report(store, close(job, Outcome.failed), now_ms=NOW_MS + late)
    assert names(reader.jobs(2, sought=Sought(State.error))[0]) == ["l", "j"]


def test_failures_have_pages_too_also_those_of_one_moment(store: RealStore, reader: Reader) -> None:
    submit(store, *(place(f"j{number}") for number in range(7)))
    for number, job in enumerate(claim(store, 7)):
        report(store, close(job, Outcome.failed), now_ms=NOW_MS + number // 4)  # four at once, then three
    found = [page for page in pages(reader, 2, State.error) if page]
    assert [len(page) for page in found] == [2, 2, 2, 1]
    assert sorted(job for page in found for job in page) == [f"j{number}" for number in range(7)]
    assert sorted(found[0] + found[1][:1]) == ["j4", "j5", "j6"], "the newest first"
    _, before = reader.jobs(2, sought=Sought(State.error))
    report(store, close(claim_new(store, "new"), Outcome.failed), now_ms=NOW_MS + 9)
    assert names(reader.jobs(2, before, Sought(State.error))[0]) == found[1], "what fails in between shifts nothing"


def claim_new(store: RealStore, name: str) -> Job:
    submit(store, place(name))
    [job] = claim(store)
    return job


@pytest.mark.parametrize("state", [None, *STATES])
def test_jobs_are_found_by_their_cmd_in_any_state(store: RealStore, reader: Reader, state: State | None) -> None:
    """Page by page, also where most are others."""
    for number in range(12):
        cmd = "rare" if number % 4 == 1 else "usual"
        submit(store, *(place(f"{each.name}{number}", cmd=cmd, queue=each.name) for each in STATES))
        for session, each in ((ONE, State.processing), (TWO, State.data_available), (TWO, State.error)):
            [job] = claim(store, 1, session, (each.name,))
            if each.final:
                outcome = Outcome.done if each is State.data_available else Outcome.failed
                report(store, close(job, outcome, session), now_ms=NOW_MS + number)
    found, before = [], ""
    for _ in range(50):
        page, before = reader.jobs(2, before, Sought(state, "rare"))
        found += names(page)
        if not before:
            break
    wanted = STATES if state is None else [state]
    most = 2 if state is State.processing else 100  # what runs has no pages
    assert len(found) == min(3 * len(wanted), most)
    assert set(found) <= {f"{each.name}{number}" for each in wanted for number in (1, 5, 9)}


@pytest.mark.parametrize("state", [None, State.error])
def test_jobs_are_found_by_when_they_were_accepted(store: RealStore, reader: Reader, state: State | None) -> None:
    times = []
    for number in range(3):
        now_ms = time.time_ns() // 1_000_000
        run(store, now_ms=now_ms, placed=[place(f"j{number}")])
        report(store, close(claim(store)[0], Outcome.failed), now_ms=now_ms)
        over_ms = time.time_ns() // 1_000_000
        while (next_ms := time.time_ns() // 1_000_000) == over_ms:
            pass
        times.append(next_ms)

    def found(**when: int) -> list[str]:
        return names(reader.jobs(9, sought=Sought(state, **when))[0])

    assert found(since_ms=times[0]) == ["j2", "j1"]
    assert found(until_ms=times[1] - 1) == ["j1", "j0"]
    assert found(since_ms=times[0], until_ms=times[1] - 1) == ["j1"]
    assert found(since_ms=times[2] + 1000) == []


def test_a_search_by_state_ends_after_a_bounded_number_of_jobs(
    store: RealStore, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAGE", 10)
    monkeypatch.setattr(module, "MOST_SCANNED", 30)
    submit(store, *(place(f"j{number}") for number in range(100)))
    report(store, close(claim(store)[0]))
    page, before = reader.jobs(5, sought=Sought(State.data_available))
    assert page == []
    assert before, "it says where to go on"
    assert [job for each in pages(reader, 5, State.data_available) for job in each] == ["j0"]


def test_logs_are_read_by_attempt(store: RealStore, reader: Reader) -> None:
    submit(store, place("j", retries=1, backoff_s=0), place("k"))
    [job] = claim(store)
    report(store, close(job, Outcome.failed, log="first, with half a \udcff".encode("utf-8", "replace").decode()))
    run(store, notes=[Note("a:k", 1, -1.0, "", "not running")])
    claim(store, 2)
    run(store, notes=[Note("a:j", 2, 0.5, "half", "so far")])
    steps = [step for found in reader.steps(["j", "k"]) for step in found]
    assert reader.logs(steps) == [{1: "first, with half a ?", 2: "so far"}, {}]
    assert steps[0].number("progress") == 0.5
    assert steps[0].text("note") == "half"


def test_depths_are_what_waits_in_each_queue(store: RealStore, reader: Reader) -> None:
    submit(store, place("j"), place("k"), place("l", queue="fast"), place("m", due_ms=NOW_MS + 10**6))
    claim(store)
    assert reader.depths(["default", "fast", "none"]) == {"default": 1, "fast": 1, "none": 0}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("state", b"bogus"),
        ("epoch", b"abc"),
        ("began", b"soon"),
        ("host", b"\xff"),
        ("error", b"\xc1"),
        ("error", b"\x01"),
        ("target", b""),
        ("", b""),
    ],
)
def test_a_spoilt_record_of_a_runner_hides_no_other(
    reader: Reader, redis_server: Any, caplog: pytest.LogCaptureFixture, field: str, value: bytes
) -> None:
    client, key = redis_server.client, reader.keys
    for name in ("t:l1", "t:l2"):
        client.hset(key("runner", name), mapping={"state": "running", "target": "m.f", "epoch": 1})
        client.sadd(key("runners"), name)
    if field:
        client.hset(key("runner", "t:l1"), field, value)
    else:
        client.delete(key("runner", "t:l1"))
        client.set(key("runner", "t:l1"), "of another kind")
    for _ in range(2):
        shown = runnerviews.runners(reader.runners(), {}, NOW_MS)
        assert [each["name"] for each in shown] == ["t:l2"]
    assert reader.runner(Name("t", "l1")) is None
    [text] = caplog.messages
    assert "the record of the runner t:l1 cannot be read" in text


def test_odd_names_of_runners_hide_no_other(reader: Reader, redis_server: Any) -> None:
    client, key = redis_server.client, reader.keys
    client.sadd(key("runners"), b"\xff", "t", "t:l2")
    client.zadd(key("ended"), {b"\xfe": 1, "a:b:c": 2, "t:l3": 3})
    for name in ("t:l2", "t:l3"):
        client.hset(key("runner", name), mapping={"state": "stopped", "target": "m.f"})
    for type_ in ("t", None):
        assert [str(each.name) for each in reader.runners(type_)] == ["t:l2", "t:l3"]


def test_a_log_whose_length_was_spoilt_is_shown(reader: Reader, redis_server: Any) -> None:
    redis_server.client.hset(reader.keys("runner", "t:l"), "log_total", "many")
    redis_server.client.set(reader.keys("runner_log", "t:l"), "hi")
    assert reader.runner_log(Name("t", "l")) == (2, b"hi")


def test_it_reads_also_before_any_router_has_been_there(redis_server: Any) -> None:
    reader = Reader(redis_server.url)
    assert reader.steps(["j"]) == [[]]
    assert reader.jobs(5) == ([], "")
    reader.close()


def test_it_writes_nothing(store: RealStore, reader: Reader, redis_server: Any) -> None:
    submit(store, *(place(job) for job in "jkl"))
    report(store, close(claim(store, 2)[0]))
    before = steady(store.dump())
    pages(reader, 1)
    for state in State:
        pages(reader, 1, state)
    reader.logs(reader.steps(["j"])[0])
    assert steady(store.dump()) == before


def test_a_server_that_is_away_is_one_error(tmp_path: Path) -> None:
    reader = Reader(f"unix://{tmp_path}/nothing")
    calls = (reader.ping, lambda: reader.steps(["j"]), lambda: reader.jobs(5), lambda: reader.depths(["default"]))
    for call in calls:
        with pytest.raises(StoreAway, match="does not answer"):
            call()
    for state in (State.error, State.processing, State.start):
        with pytest.raises(StoreAway):
            reader.jobs(5, sought=Sought(state))


# --- queues ---------------------------------------------------------------------


def born(store: RealStore, job_id: str, at_ms: int, **options: Any) -> None:
    run(store, now_ms=at_ms, placed=[place(job_id, **options)])


def oldest(reader: Reader, *queues: str) -> dict[str, int | None]:
    return {each.name: each.oldest_ms for each in reader.waiting(queues)}


def test_the_oldest_of_a_queue_is_found_at_any_priority_with_a_key_or_without(store: RealStore, reader: Reader) -> None:
    assert reader.waiting([]) == []
    assert reader.waiting(["default"]) == [Waiting("default", 0, None, False)]
    born(store, "high", NOW_MS + 50, priority=9)
    assert oldest(reader, "default") == {"default": NOW_MS + 50}
    born(store, "low", NOW_MS + 40, priority=0)
    assert oldest(reader, "default") == {"default": NOW_MS + 40}
    born(store, "keyed", NOW_MS + 30, key="a")
    born(store, "again", NOW_MS + 20, key="a")
    born(store, "urgent", NOW_MS + 60, key="a", priority=9)
    born(store, "mail", NOW_MS + 70, queue="mail", key="a")
    told = reader.waiting(["default", "empty", "mail"])
    assert told[0] == Waiting("default", 5, NOW_MS + 20, False)
    assert told[1:] == [Waiting("empty", 0, None, False), Waiting("mail", 1, NOW_MS + 70, False)]


def test_no_more_than_a_bounded_number_with_a_key_is_looked_at(
    store: RealStore, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_KEYED", 3)
    for number in range(9):
        born(store, f"j{number}", NOW_MS + number, key="a")
    [told] = reader.waiting(["default"])
    assert told.depth == 9
    assert told.oldest_ms in range(NOW_MS, NOW_MS + 7)


def test_a_paused_queue_is_told_and_a_foreign_key_counts_as_nothing(store: RealStore, reader: Reader) -> None:
    born(store, "a", NOW_MS, queue="mail")
    run(store, tunings=[Tuning("queue", "merge", "mail", {"paused": 1})])
    for kind in ("ready", "keyed", "queue"):
        store.client.set(store.keys(kind, "spoilt"), "x")
    names = [f"q{number}" for number in range(2 * module.QUEUES_AT_ONCE)]
    told = reader.waiting(["mail", *names, "spoilt"])
    assert told[0] == Waiting("mail", 1, NOW_MS, True)
    assert told[-1] == Waiting("spoilt", 0, None, False)
    assert [each.name for each in told] == ["mail", *names, "spoilt"]


def test_the_totals_are_those_of_what_waits_and_what_has_failed(store: RealStore, reader: Reader) -> None:
    assert set(reader.totals().values()) == {0}
    run(store, placed=[place("late", due_ms=NOW_MS + 60_000), place("unfed", waits=True)])
    told = reader.totals()
    assert (told["delayed"], told["unfed"], told["dead"]) == (1, 1, 0)
