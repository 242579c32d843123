"""The worker's side of the conversation: what it holds, tells, repeats and gives back."""

from __future__ import annotations

from typing import Any

import pytest

from exesys.bus import messages as m
from exesys.bus.session import WorkerSession

SELF = "1" * 16
WELCOME = m.Welcome(m.VERSION, SELF, 7, 1.0, 5, {}, {}, "", {})
INFO: dict[str, Any] = {"queues": ["default"]}


def job(name: str = "j", attempt: int = 1) -> m.Job:
    return m.Job(f"a:{name}", attempt, "end_job", "f", b"\xc0", 60.0)


def ended(given: m.Job, log: str = "", outcome: m.Outcome = m.Outcome.done) -> m.Report:
    return m.Report(given.ref, given.attempt, outcome, b"\xc0", log, 1, 2)


def ack(*given: m.Job) -> m.ResultAck:
    return m.ResultAck(tuple(m.Held(each.ref, each.attempt) for each in given))


def beat(session: WorkerSession, now: float) -> m.Heartbeat:
    """Let the next heartbeat come due and return it."""
    [message] = session.beats(now)
    assert isinstance(message, m.Heartbeat)
    return message


def held(session: WorkerSession, now: float) -> set[str]:
    return {each.ref for each in beat(session, now).held}


@pytest.fixture
def session() -> WorkerSession:
    """A session that was welcomed at 0 s and has sent its first heartbeat."""
    session = WorkerSession(SELF, INFO, slots=2, prefetch=3)
    session.beats(0.0)
    session.greeted(WELCOME, 0.0)
    session.beats(0.0)
    return session


# --- greeting and liveness ----------------------------------------------------


def test_it_greets_until_it_is_welcomed() -> None:
    session = WorkerSession(SELF, INFO, 2, 3)
    assert session.beats(5.0) == [m.Hello(m.VERSION, "worker", SELF, "", INFO)]
    assert session.beats(5.9) == []
    assert 0 < session.wake_in_s(5.9) <= 0.11
    assert session.beats(6.0) == [m.Hello(m.VERSION, "worker", SELF, "", INFO)]
    session.greeted(WELCOME, 6.1)
    assert beat(session, 6.1) == m.Heartbeat(SELF, 7, 2, 2, (), ())


def test_it_sends_a_heartbeat_each_time_one_is_due(session: WorkerSession) -> None:
    assert session.beats(0.9) == []
    assert session.wake_in_s(0.9) == pytest.approx(0.1)
    assert beat(session, 1.0) == m.Heartbeat(SELF, 7, 2, 2, (), ())
    assert session.beats(1.5) == []


def test_silence_for_a_lease_is_noticed_and_answered_by_a_new_greeting(session: WorkerSession) -> None:
    session.heard(m.HeartbeatAck(SELF, 7, 0, ()), 2.0)
    assert not session.silent(7.0)
    assert session.silent(7.1)
    session.rebuilt(7.1)
    assert not session.silent(7.2)
    assert isinstance(session.beats(7.1)[0], m.Hello)


def test_a_router_that_does_not_know_it_is_greeted_at_once(session: WorkerSession) -> None:
    session.refused(m.Error("unknown_session", "", "", ""))
    assert isinstance(session.beats(0.1)[0], m.Hello)
    assert not session.lost


def test_a_session_that_was_given_up_is_lost(session: WorkerSession) -> None:
    session.refused(m.Error("bad_message", "", "", ""))
    assert not session.lost
    session.refused(m.Error("session_lost", "", "", ""))
    assert session.lost


# --- jobs and results ---------------------------------------------------------


def test_jobs_are_begun_in_their_order(session: WorkerSession) -> None:
    session.given([job("j"), job("k")])
    session.given([job("l")])
    assert [session.begin().ref for _ in range(3)] == ["a:j", "a:k", "a:l"]
    assert session.started == 3
    with pytest.raises(IndexError):
        session.begin()


def test_a_heartbeat_tells_all_that_is_held(session: WorkerSession) -> None:
    session.given([job(name) for name in "jklm"])
    for _ in range(3):
        session.begin()
    session.ended(ended(job("j")), 1.0)
    assert held(session, 1.0) == {"a:j", "a:k", "a:l", "a:m"}
    session.reports(1.0)
    assert held(session, 2.0) == {"a:j", "a:k", "a:l", "a:m"}
    session.acked(ack(job("j")))
    assert held(session, 3.0) == {"a:k", "a:l", "a:m"}


def test_a_job_that_comes_twice_is_run_once(session: WorkerSession) -> None:
    session.given([job(), job()])
    session.given([job()])
    assert session.begin() == job()
    session.given([job()])
    assert not session.queue
    session.ended(ended(job()), 1.0)
    session.given([job()])
    assert not session.queue, "its result is there and not yet sent"
    session.reports(1.0)
    session.given([job()])
    assert not session.queue, "its result is sent and not yet acknowledged"


def test_another_attempt_of_a_job_is_another_job(session: WorkerSession) -> None:
    session.given([job()])
    session.begin()
    session.given([job(attempt=2)])
    assert session.begin().attempt == 2


def test_what_a_slot_did_not_begin_goes_back_to_the_front(session: WorkerSession) -> None:
    session.given([job(name) for name in "jklm"])
    begun = [session.begin() for _ in range(3)]
    session.unbegin(begun[1:])
    assert [each.ref for each in session.queue] == ["a:k", "a:l", "a:m"]
    session.given([job("l")])
    assert [session.begin().ref for _ in range(3)] == ["a:k", "a:l", "a:m"]


def test_a_result_is_repeated_until_it_is_acknowledged(session: WorkerSession) -> None:
    session.given([job("j"), job("k")])
    for _ in range(2):
        session.begin()
    session.ended(ended(job("j")), 1.0)
    assert session.reports(1.0) == m.Result(SELF, (ended(job("j")),))
    assert session.reports(1.5) is None
    assert session.reports(2.1) == m.Result(SELF, (ended(job("j")),))
    session.ended(ended(job("k")), 1.0)
    assert session.reports(2.2) == m.Result(SELF, (ended(job("k")),))
    session.acked(ack(job("j")))
    assert session.reports(3.3) == m.Result(SELF, (ended(job("k")),))
    session.acked(ack(job("k"), job("never", 9)))
    assert session.reports(9.0) is None
    assert session.idle


def test_results_wait_for_a_welcome_and_all_go_out_after_it(session: WorkerSession) -> None:
    session.given([job("j"), job("k")])
    for _ in range(2):
        session.begin()
    session.ended(ended(job("j")), 1.0)
    session.reports(1.0)
    session.rebuilt(1.1)
    session.ended(ended(job("k")), 1.0)
    assert session.reports(5.0) is None
    session.greeted(WELCOME._replace(epoch=8), 5.1)
    result = session.reports(5.1)
    assert result is not None
    assert {report.ref for report in result.reports} == {"a:j", "a:k"}
    assert beat(session, 5.1).epoch == 8


def test_it_is_idle_when_nothing_is_held(session: WorkerSession) -> None:
    assert session.idle
    session.given([job()])
    assert not session.idle
    session.begin()
    assert not session.idle
    session.ended(ended(job()), 1.0)
    assert not session.idle
    session.reports(1.0)
    assert not session.idle
    session.acked(ack(job()))
    assert session.idle


def cancel(*given: m.Job) -> m.Cancel:
    return m.Cancel(tuple(m.Held(each.ref, each.attempt) for each in given))


# --- cancelled ----------------------------------------------------------------


def test_a_cancelled_job_that_waits_is_dropped_without_a_word(session: WorkerSession) -> None:
    session.given([job(name) for name in "jkl"])
    assert session.cancelled(cancel(job("k"))) == set()
    assert held(session, 1.0) == {"a:j", "a:l"}
    assert [session.begin().ref for _ in range(2)] == ["a:j", "a:l"]
    assert session.reports(1.0) is None


def test_a_cancelled_job_that_a_slot_has_is_to_be_ended_and_told_no_more(session: WorkerSession) -> None:
    session.given([job("j"), job("k")])
    session.begin()
    session.begin()
    session.noted(m.Note("a:j", 1, 0.5, "", "half"))
    assert session.cancelled(cancel(job("j"))) == {("a:j", 1)}
    told = beat(session, 0.1)
    assert (told.held, told.notes) == ((m.Held("a:k", 1),), ())
    session.noted(m.Note("a:j", 1, 0.6, "", "more"))
    assert beat(session, 1.1).notes == ()
    assert not session.ended(ended(job("j"), outcome=m.Outcome.failed), 1.0)
    assert session.reports(1.2) is None


def test_a_cancelled_job_takes_its_slots_credit_until_the_slot_is_rid_of_it(session: WorkerSession) -> None:
    run_jobs(session, 100, 0.5)
    session.reports(0.0)
    session.acked(ack(*(job(f"run{number}") for number in range(100))))
    session.given([job("j")])
    session.begin()
    assert (beat(session, 0.1).slots, session.depth) == (2, 4)
    session.cancelled(cancel(job("j")))
    told = beat(session, 0.2)
    assert (told.slots, told.capacity, told.held) == (1, 4, ()), "told at once"
    assert not session.idle, "an ending worker waits for the clean-up"
    session.ended(ended(job("j"), outcome=m.Outcome.failed), 1.0)
    told = beat(session, 0.3)
    assert (told.slots, told.capacity) == (2, 8)
    assert session.idle


def test_a_cancelled_job_taken_back_from_a_slots_line_is_dropped(session: WorkerSession) -> None:
    session.given([job(name) for name in "jkl"])
    begun = [session.begin() for _ in range(3)]
    assert session.cancelled(cancel(job("k"))) == {("a:k", 1)}
    session.unbegin(begun[1:])
    assert [each.ref for each in session.queue] == ["a:l"]
    assert session.capacity == 2
    assert held(session, 1.0) == {"a:j", "a:l"}


def test_a_cancelled_job_that_ends_well_all_the_same_is_not_reported(session: WorkerSession) -> None:
    session.given([job()])
    session.begin()
    session.cancelled(cancel(job()))
    assert not session.ended(ended(job()), 1.0)
    assert session.reports(0.1) is None
    assert session.idle


def test_a_result_that_is_cancelled_is_left_to_the_router(session: WorkerSession) -> None:
    session.given([job("j"), job("k")])
    session.begin()
    session.begin()
    assert session.ended(ended(job("j")), 1.0)
    assert session.cancelled(cancel(job("j"))) == set(), "it waits to be sent"
    assert session.reports(0.1) == m.Result(SELF, (ended(job("j")),))
    assert session.cancelled(cancel(job("j"))) == set(), "it waits for its acknowledgement"
    session.acked(ack(job("j")))
    assert held(session, 1.0) == {"a:k"}


def test_cancelling_what_is_not_here_or_twice_changes_nothing(session: WorkerSession) -> None:
    session.given([job("j", attempt=2), job("k")])
    session.begin()
    session.begin()
    assert session.cancelled(cancel(job("j", attempt=1), job("never", 9))) == set()
    assert held(session, 1.0) == {"a:j", "a:k"}
    assert session.cancelled(cancel(job("k"), job("k"))) == {("a:k", 1)}
    assert session.cancelled(cancel(job("k"))) == set()
    assert session.capacity == 1, "one slot is being freed, not two"


def test_a_cancelled_job_that_comes_again_while_it_is_ended_is_not_taken(session: WorkerSession) -> None:
    session.given([job()])
    session.begin()
    session.cancelled(cancel(job()))
    session.given([job()])
    assert not session.queue
    session.given([job(attempt=2)])
    assert [each.attempt for each in session.queue] == [2], "sent to be tried again: another attempt"


def test_cancelled_while_draining_nothing_goes_back(session: WorkerSession) -> None:
    session.given([job("j"), job("k")])
    begun = [session.begin(), session.begin()]
    session.drain()
    assert session.cancelled(cancel(job("j"), job("k"))) == {("a:j", 1), ("a:k", 1)}
    session.unbegin(begun[1:])
    assert session.reports(0.1) is None
    assert not session.idle
    session.ended(ended(job("j")), 1.0)
    assert session.idle


# --- large results ------------------------------------------------------------


def sizes(session: WorkerSession, now: float) -> list[int]:
    """Send all that is due; return how many reports each message has."""
    counts = []
    while (result := session.reports(now)) is not None:
        counts.append(len(result.reports))
    return counts


def large(name: str) -> m.Report:
    return m.Report(f"a:{name}", 1, m.Outcome.done, b"x" * (3 << 20), "", 1, 2)


def test_large_results_go_out_in_several_messages(session: WorkerSession) -> None:
    """All in one would be more than a frame may have, and never arrive."""
    for name in "jklmnop":
        session.given([job(name)])
        session.begin()
        session.ended(large(name), 1.0)
    assert session.wake_in_s(0.1) == 0
    assert sizes(session, 0.1) == [3, 3, 1]
    assert session.wake_in_s(0.1) > 0
    assert sizes(session, 0.5) == []
    session.acked(ack(job("k")))
    assert sizes(session, 1.2) == [3, 3], "and so they are repeated"
    session.greeted(WELCOME._replace(epoch=8), 1.3)
    result = session.reports(1.3)
    assert result is not None
    assert len(result.reports) == 3
    session.acked(ack(*(job(name) for name in "jlmnop")))
    assert session.reports(1.3) is None, "what is acknowledged before its turn is not sent"
    assert session.idle


def test_added_steps_count_as_part_of_a_result(session: WorkerSession) -> None:
    step = m.Added("a.1", "end_job", "f", b"x" * (1 << 20), {})
    listed = m.Added("a.2", ["b" * 100] * 10_000, "f", b"", {})
    for name, added in (("j", (step,) * 9), ("k", (listed,) * 9), ("l", ()), ("m", ())):
        session.given([job(name)])
        session.begin()
        session.ended(ended(job(name))._replace(added=added), 1.0)
    assert sizes(session, 0.1) == [1, 1, 2]


# --- credit -------------------------------------------------------------------


def run_jobs(session: WorkerSession, count: int, run_ms: float, data: bytes = b"\xc0") -> None:
    first = session._measured
    for number in range(first, first + count):
        given = job(f"run{number}")._replace(data=data)
        session.given([given])
        session.begin()
        session.ended(ended(given), run_ms)


def test_prefetch_is_asked_for_once_jobs_are_known_to_be_short(session: WorkerSession) -> None:
    run_jobs(session, 5, 0.5)
    assert session.capacity == 2
    run_jobs(session, 100, 0.5)
    assert session.capacity == 8


def test_long_jobs_are_never_prefetched(session: WorkerSession) -> None:
    run_jobs(session, 200, 50.0)
    assert session.capacity == 2


def test_as_much_is_fetched_ahead_as_is_work_for_a_moment() -> None:
    session = WorkerSession(SELF, INFO, slots=1, prefetch=100)
    run_jobs(session, 300, 1.0)
    assert 10 <= session.capacity - 1 <= 20
    run_jobs(session, 300, 9.0)
    assert 1 <= session.capacity - 1 <= 3
    run_jobs(session, 300, 0.1)
    assert session.capacity == 1 + 100


def test_no_more_data_is_fetched_ahead_than_has_room() -> None:
    session = WorkerSession(SELF, INFO, slots=1, prefetch=100)
    run_jobs(session, 100, 0.1)
    assert session.capacity == 1 + 100
    run_jobs(session, 1, 0.1, bytes(1 << 20))
    assert session.capacity <= 1 + 2
    run_jobs(session, 300, 0.1)
    assert session.capacity == 1 + 100


def test_what_is_fetched_ahead_changes_only_when_jobs_do() -> None:
    session = WorkerSession(SELF, INFO, slots=1, prefetch=100)
    run_jobs(session, 300, 1.0)
    seen = set()
    for number in range(300):
        run_jobs(session, 1, 0.7 if number % 2 else 1.3)
        seen.add(session.capacity)
    assert len(seen) == 1


def test_one_long_job_ends_the_prefetch_at_once(session: WorkerSession) -> None:
    run_jobs(session, 100, 0.5)
    run_jobs(session, 1, 5000.0)
    assert session.capacity == 2
    run_jobs(session, 300, 0.5)
    assert session.capacity == 8


def test_a_change_of_credit_is_told_at_once(session: WorkerSession) -> None:
    run_jobs(session, 100, 0.5)
    assert beat(session, 0.1).capacity == 8
    assert session.beats(0.2) == []
    run_jobs(session, 1, 5000.0)
    assert beat(session, 0.3).capacity == 2


def test_between_two_changes_of_credit_there_is_time_for_an_acknowledgement(session: WorkerSession) -> None:
    run_jobs(session, 100, 0.5)
    assert beat(session, 0.1).capacity == 8
    run_jobs(session, 1, 5000.0)
    assert session.beats(0.12) == []
    session.reports(0.12)
    assert session.wake_in_s(0.12) == pytest.approx(0.03)
    assert beat(session, 0.16).capacity == 2


def test_what_waits_behind_long_jobs_goes_back_once_the_router_knows_that_no_more_is_wanted(
    session: WorkerSession,
) -> None:
    run_jobs(session, 100, 0.5)
    assert beat(session, 0.1).capacity == 8
    session.reports(0.1)
    session.acked(ack(*(job(f"run{number}") for number in range(100))))
    session.given([job("j"), job("k"), job("l"), job("o")])
    session.begin(), session.begin()
    session.stuck()
    assert session.reports(0.12) is None, "told first: else it would come back"
    assert beat(session, 0.2).capacity == 2
    session.stuck()
    result = session.reports(0.21)
    assert result is not None
    returned = [(report.ref, report.outcome) for report in result.reports]
    assert returned == [("a:l", m.Outcome.returned), ("a:o", m.Outcome.returned)]
    assert session.started == 2
    run_jobs(session, 300, 0.5)
    assert session.capacity == 8, "and short ones are fetched ahead again"


# --- the end ------------------------------------------------------------------


def test_draining_gives_back_what_is_not_begun_and_finishes_the_rest(session: WorkerSession) -> None:
    session.given([job("j"), job("k"), job("l")])
    session.begin()
    assert session.drain() == [m.Drain(SELF)]
    result = session.reports(0.1)
    assert result is not None
    assert [(report.ref, report.outcome) for report in result.reports] == [
        ("a:k", m.Outcome.returned),
        ("a:l", m.Outcome.returned),
    ]
    assert beat(session, 0.1).capacity == 0
    session.acked(ack(job("k"), job("l")))
    assert not session.idle
    session.ended(ended(job("j")), 1.0)
    assert session.reports(0.2) is not None
    session.acked(ack(job("j")))
    assert session.idle


def test_a_job_that_comes_while_draining_goes_back_at_once(session: WorkerSession) -> None:
    """It was dealt before the router heard of it; nobody here would begin it."""
    session.drain()
    session.given([job()])
    result = session.reports(0.1)
    assert result is not None
    assert [(report.ref, report.outcome) for report in result.reports] == [("a:j", m.Outcome.returned)]
    session.acked(ack(job()))
    assert session.idle


def test_a_job_a_slot_gives_back_while_draining_goes_back_too(session: WorkerSession) -> None:
    session.given([job("j"), job("k")])
    begun = [session.begin(), session.begin()]
    session.drain()
    session.unbegin(begun[1:])
    result = session.reports(0.1)
    assert result is not None
    assert [(report.ref, report.outcome) for report in result.reports] == [("a:k", m.Outcome.returned)]


# --- progress -----------------------------------------------------------------


def test_a_heartbeat_carries_each_note_once_and_only_the_newest(session: WorkerSession) -> None:
    session.given([job()])
    session.begin()
    session.noted(m.Note("a:j", 1, 0.1, "", "one"))
    session.noted(m.Note("a:j", 1, 0.2, "", "one two"))
    assert beat(session, 1.0).notes == (m.Note("a:j", 1, 0.2, "", "one two"),)
    assert beat(session, 2.0).notes == ()


def test_the_log_of_a_job_that_killed_its_slot_is_the_last_that_was_heard(session: WorkerSession) -> None:
    session.given([job()])
    session.begin()
    session.noted(m.Note("a:j", 1, -1.0, "", "last words"))
    session.ended(ended(job(), outcome=m.Outcome.crashed), 1.0)
    result = session.reports(0.1)
    assert result is not None
    assert result.reports[0].log == "last words"
    assert beat(session, 1.0).notes == ()


def test_a_jobs_own_log_is_the_whole_of_it(session: WorkerSession) -> None:
    session.given([job()])
    session.begin()
    session.noted(m.Note("a:j", 1, -1.0, "", "first"))
    session.ended(ended(job(), log="first and last"), 1.0)
    result = session.reports(0.1)
    assert result is not None
    assert result.reports[0].log == "first and last"


def test_a_note_that_comes_after_the_end_is_dropped(session: WorkerSession) -> None:
    session.given([job()])
    session.begin()
    session.ended(ended(job()), 1.0)
    session.noted(m.Note("a:j", 1, 0.5, "", "late"))
    assert beat(session, 1.0).notes == ()
