"""The router's core and workflows: taken whole or not, cancelled, tried again, grown, given up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from unit.bench import Bench, codes, finish, item, states
from unit.world import CONFIG

from exesys import codec
from exesys.bus import messages as m
from exesys.bus.pending import MOST_CHANGES_IN_TURN, MOST_IN_TURN
from exesys.config import Bus, Limits
from exesys.states import State
from exesys.turn import Turn

STANDBY_S = 100.0
SHORT = dataclasses.replace(CONFIG, limits=Limits(standby_s=STANDBY_S))
TOLD = (m.SubmitAck, m.Done)


@pytest.fixture
def bench() -> Bench:
    return Bench(SHORT)


def step(tag: int, from_: str, to: Any, flow: int = 5, job: str = "j", **parts: Any) -> m.Item:
    return item(tag, job, **parts)._replace(from_=from_, to=to, flow=flow)


def chain(job: str = "j", flow: int = 5, notify: bool = True) -> tuple[m.Item, ...]:
    """a → b → end_job, with the tags 1 and 2."""
    first, last = step(1, "a", "b", flow, job, notify=notify), step(2, "b", "end_job", flow, job, notify=notify)
    return first, last


def message_of(body: Any) -> tuple[str, str]:
    told = codec.unpack(body[0])
    return told["type"], told["message"]


def refusals(messages: list[m.Message]) -> dict[int, str]:
    acks = [message for message in messages if isinstance(message, m.SubmitAck)]
    return {answer.tag: answer.body[1] for ack in acks for answer in ack.answers if answer.state < 0}


def changed(bench: Bench, client: bytes, what: str, job: str = "j") -> m.Changed:
    bench.said(client)
    bench.tell(client, m.Change(9, what, job))
    bench.turns()
    [answer] = [message for message in bench.said(client) if isinstance(message, m.Changed)]
    return answer


# --- whole or not at all -----------------------------------------------------


def test_a_workflow_runs_step_by_step_and_each_end_is_told(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, *chain())
    bench.turns()
    [first] = bench.dealt(worker)
    assert first.ref == "a:j"
    finish(bench, worker, first, body=codec.pack({"EOJ": "given"}))
    assert states(bench.said(client)) == {1: 3}
    [second] = bench.dealt(worker)
    assert (second.ref, codec.unpack(second.data)) == ("b:j", "given")
    finish(bench, worker, second)
    assert states(bench.said(client))[2] == 3


def test_the_acknowledgement_says_which_steps_wait(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, *chain())
    bench.turns()
    assert not [message for message in bench.said(client) if isinstance(message, TOLD)]
    bench.wait(0.1)
    assert states(bench.said(client)) == {1: State.start, 2: State.standby}


def test_who_wants_no_notice_is_answered_at_once(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, *chain(notify=False))
    bench.turns()
    assert states(bench.said(client)) == {1: State.start, 2: State.standby}


@pytest.mark.parametrize(
    ("wrong", "code", "said"),
    [
        ([step(1, "a", "b"), step(2, "b", "a")], "bad_field", "the steps go in a circle: a → b → a"),
        ([step(1, "a", "b"), step(2, "b", "c")], "bad_field", "leads nowhere"),
        ([step(1, "a", "b"), step(2, "b", "end_job", job="k")], "bad_field", "a workflow has one job_id"),
        ([step(1, "a", "b"), step(2, "b", "end_job", cmd="no_such")], "unknown_cmd", "no_such"),
        ([step(1, "a", "b"), step(2, "b", "end_job", priority=17)], "bad_field", "priority"),
        ([step(1, "a", "b"), step(2, "a", "b")], "bad_field", "two steps go a → b"),
        ([step(1, "a", "a b"), step(2, "b", "end_job")], "bad_field", "`to` holds the character"),
    ],
)
def test_a_workflow_with_one_wrong_step_is_refused_whole(
    bench: Bench, wrong: list[m.Item], code: str, said: str
) -> None:
    client, _ = bench.client(), bench.worker()
    before = bench.store.dump()
    bench.submit(client, *wrong)
    bench.turns()
    messages = bench.said(client)
    assert codes(messages) == [code, code]
    assert set(refusals(messages)) == {1, 2}
    assert said in refusals(messages)[1]
    assert bench.store.dump() == before


def test_workflows_and_commands_in_one_message_are_taken_apart(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=9)
    other = [each._replace(tag=each.tag + 10) for each in chain("k", flow=6)]
    bad = [step(21, "a", "b", 7, "l"), step(22, "b", "a", 7, "l")]
    bench.submit(client, *chain(), other[0], bad[0], item(31, "m"), other[1], bad[1])
    bench.turns()
    assert set(refusals(bench.said(client))) == {21, 22}
    assert {job.ref for job in bench.dealt(worker)} == {"a:j", "a:k", "a:m"}


def test_a_workflow_sent_again_is_told_its_states_and_its_end(bench: Bench) -> None:
    client, other, worker = bench.client(), bench.client(), bench.worker()
    bench.submit(client, *chain())
    bench.turns()
    finish(bench, worker, *bench.dealt(worker))
    bench.submit(other, *chain())
    bench.turns()
    assert states(bench.said(other)) == {1: State.data_available, 2: State.processing}
    finish(bench, worker, *bench.dealt(worker))
    assert states(bench.said(other)) == {2: State.data_available}


@pytest.mark.parametrize("twist", [{"n": 1}, {"cmd": "flaky"}])
def test_another_workflow_under_the_same_job_is_a_conflict(bench: Bench, twist: dict[str, Any]) -> None:
    client = bench.client()
    bench.submit(client, *chain())
    bench.turns()
    bench.said(client)
    bench.submit(client, step(1, "a", "b"), step(2, "b", "end_job", **twist))
    bench.turns()
    messages = bench.said(client)
    assert codes(messages) == ["conflict"] * 2
    assert "its step from b is another or none" in refusals(messages)[1]


def test_a_workflow_whose_roots_have_no_room_is_refused_whole() -> None:
    bench = Bench(dataclasses.replace(CONFIG, limits=Limits(queue_depth=1)))
    client = bench.client()
    bench.submit(client, step(1, "a", "c"), step(2, "b", "c"), step(3, "c", "end_job"))
    bench.turns()
    assert codes(bench.said(client)) == ["queue_full"] * 3


def test_a_failure_is_told_to_all_that_depended_on_it(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, *chain())
    bench.turns()
    failure = codec.pack({"type": "ValueError", "message": "no", "traceback": ""})
    finish(bench, worker, *bench.dealt(worker), outcome=m.Outcome.failed, body=failure)
    done = {a.tag: a.body for each in bench.said(client) if isinstance(each, m.Done) for a in each.answers}
    assert done[1] == [failure, 1]
    assert message_of(done[2]) == ("PredecessorFailed", "predecessor a failed")
    assert bench.snapshot("figures")["failed"] == 2


@pytest.mark.parametrize(
    "body", [b"", b"\x05", b"\x81\xd9\x03EOJ\x05", b"\x82\xa3EOJ\x05\xa1a\x05", b"\x81\xa3EO", b"\x81\xa3EOJ"]
)
def test_a_result_that_is_none_fails_its_attempt(bench: Bench, body: bytes) -> None:
    """What follows is given to the next steps unopened: so it must be a value."""
    client, worker = bench.client(), bench.worker()
    bench.submit(client, *chain())
    bench.turns()
    finish(bench, worker, *bench.dealt(worker), body=body)
    [done] = [message for message in bench.said(client) if isinstance(message, m.Done)]
    assert message_of(done.answers[0].body)[0] == "BadResult"


# --- one by one ---------------------------------------------------------------


def test_a_step_may_wait_for_what_is_sent_later(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, step(1, "b", "end_job", -1))
    bench.wait(0.1)
    assert states(bench.said(client)) == {1: State.standby}
    bench.submit(client, step(2, "a", "b", 0))
    bench.turns()
    finish(bench, worker, *bench.dealt(worker))
    finish(bench, worker, *bench.dealt(worker))
    assert states(bench.said(client)) == {1: 3, 2: 3}


def test_a_circle_sent_step_by_step_is_refused_with_its_names(bench: Bench) -> None:
    client, _ = bench.client(), bench.worker()
    bench.submit(client, step(1, "b", "c", -1), step(2, "c", "b", -1), step(3, "d", "d", -1))
    bench.turns()
    told = refusals(bench.said(client))
    assert told == {2: "the steps go in a circle: c → b → c.", 3: "the step d → d feeds itself."}


def test_a_step_that_comes_too_late_is_told_its_end_at_once(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, step(1, "a", "b", 0))
    bench.turns()
    finish(bench, worker, *bench.dealt(worker), outcome=m.Outcome.failed, body=b"\x80")
    bench.said(client)
    bench.submit(client, step(2, "b", "end_job", -1))
    bench.turns()
    assert states(bench.said(client)) == {2: State.error}
    bench.wait(1)
    assert states(bench.said(client)) == {}


def test_a_late_step_with_a_delay_wakes_the_router_when_it_is_due(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=2)
    bench.submit(client, step(1, "a", "b", 0))
    bench.turns()
    finish(bench, worker, *bench.dealt(worker))
    bench.submit(client, step(2, "b", "end_job", -1, delay_s=0.4))
    bench.wait(0.35)
    assert bench.dealt(worker) == []
    bench.wait(0.1)
    assert [job.ref for job in bench.dealt(worker)] == ["b:j"]


# --- never fed ------------------------------------------------------------------


def never_fed(bench: Bench, client: bytes) -> dict[int, tuple[str, str]]:
    messages = [message for message in bench.said(client) if isinstance(message, m.Done)]
    return {answer.tag: message_of(answer.body) for message in messages for answer in message.answers}


def keep(bench: Bench, wait_s: float, *peers: bytes) -> None:
    for _ in range(round(wait_s)):
        for peer in peers:
            bench.tell(peer, m.Heartbeat(peer.decode(), 1, 0, 0, (), ()))
        bench.wait(1)


def test_a_step_that_nothing_feeds_ends_after_its_time(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, step(1, "b", "c", -1), step(2, "c", "end_job", -1))
    keep(bench, STANDBY_S - 1, client)
    assert never_fed(bench, client) == {}
    keep(bench, 2, client)
    assert never_fed(bench, client) == {
        1: ("NeverFed", "no step was sent that goes to b, for 100 s"),
        2: ("PredecessorFailed", "predecessor b failed"),
    }


def test_each_such_step_has_its_own_time(bench: Bench) -> None:
    client = bench.client()
    for number in range(3):
        bench.submit(client, step(number, "b", "end_job", -1, f"j{number}"))
        keep(bench, 10, client)
    keep(bench, STANDBY_S - 29, client)
    assert set(never_fed(bench, client)) == {0}
    keep(bench, 10, client)
    assert set(never_fed(bench, client)) == {1}
    keep(bench, 10, client)
    assert set(never_fed(bench, client)) == {2}


def test_a_new_router_gives_up_what_its_predecessor_left(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, step(1, "b", "end_job", -1))
    bench.turns()
    bench.now += STANDBY_S - 5
    bench.restart()
    client = bench.client()
    bench.submit(client, step(2, "b", "end_job", -1, "k"))  # its own time is later
    keep(bench, 7, client)
    bench.tell(client, m.Status((m.Query(3, "j", "b", "end_job", False),)))
    bench.turns()
    assert states(bench.said(client))[3] == State.error


def test_a_new_router_with_such_a_step_in_its_first_turn_looks_again(bench: Bench) -> None:
    """Its first look is before that step is stored."""
    bench.restart(look=False)
    client = bench.client()
    bench.submit(client, step(1, "b", "end_job", -1))
    keep(bench, STANDBY_S + 1, client)
    assert set(never_fed(bench, client)) == {1}


def test_a_first_turn_with_such_a_step_hides_no_older_one(bench: Bench) -> None:
    bench.submit(bench.client(), step(1, "b", "end_job", -1))
    bench.turns()
    bench.now += STANDBY_S - 5
    bench.restart(look=False)
    client = bench.client()
    bench.submit(client, step(2, "b", "end_job", -1, "k"))
    keep(bench, 7, client)
    assert bench.store.state_of("b:j") is State.error


def test_what_was_given_up_and_tried_again_is_given_up_again(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, step(1, "b", "end_job", -1))
    keep(bench, STANDBY_S + 1, client)
    assert changed(bench, client, "retry").steps == 1
    bench.tell(client, m.Status((m.Query(3, "j", "b", "end_job", True),)))
    bench.turns()
    assert states(bench.said(client)) == {3: State.standby}
    keep(bench, STANDBY_S + 1, client)
    assert set(never_fed(bench, client)) == {3}


def test_without_such_steps_the_router_sleeps(bench: Bench) -> None:
    client, _ = bench.client(), bench.worker()
    bench.submit(client, item())
    bench.wait(1)
    turns = bench.broker.figures["turns"]
    keep(bench, STANDBY_S * 2, client)
    assert bench.broker.figures["turns"] <= turns + 2


# --- cancel and retry ---------------------------------------------------------------


def test_a_cancel_ends_a_job_and_tells_everybody(bench: Bench) -> None:
    client, other, worker = bench.client(), bench.client(), bench.worker()
    bench.submit(client, *chain())
    bench.turns()
    [job] = bench.dealt(worker)
    bench.said(worker)
    assert changed(bench, other, "cancel") == m.Changed(9, 2, None)
    [done] = [message for message in bench.said(client) if isinstance(message, m.Done)]
    assert {answer.tag: message_of(answer.body)[0] for answer in done.answers} == {1: "Cancelled", 2: "Cancelled"}
    assert [each for each in bench.said(worker) if isinstance(each, m.Cancel)] == [m.Cancel((m.Held("a:j", 1),))]
    finish(bench, worker, job)
    bench.wait(0.1)
    acks = [message for message in bench.said(worker) if isinstance(message, m.ResultAck)]
    assert acks == [m.ResultAck((m.Held("a:j", 1),))], "what comes too late is acknowledged and dropped"
    assert bench.store.state_of("b:j") is State.error


def test_a_job_can_be_cancelled_in_the_turn_it_comes_in(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, *chain())
    bench.submit(client, item(7, "k"))
    bench.tell(client, m.Change(8, "cancel", "j"), m.Change(9, "cancel", "k"))
    bench.turns()
    messages = bench.said(client)
    assert [each for each in messages if isinstance(each, m.Changed)] == [m.Changed(8, 2, None), m.Changed(9, 1, None)]
    assert states(messages) == {1: 4, 2: 4, 7: 4}
    assert bench.dealt(worker) == []


def test_a_retry_deals_what_failed_again(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, *chain())
    bench.turns()
    finish(bench, worker, *bench.dealt(worker), outcome=m.Outcome.failed, body=b"\x80")
    assert changed(bench, client, "retry") == m.Changed(9, 2, None)
    [job] = bench.dealt(worker)
    assert (job.ref, job.attempt) == ("a:j", 2)
    finish(bench, worker, job)
    finish(bench, worker, *bench.dealt(worker))
    assert changed(bench, client, "retry") == m.Changed(9, 0, None)
    assert bench.store.state_of("b:j") is State.data_available


def test_a_purge_removes_a_job_that_failed_and_no_other(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, *chain())
    bench.turns()
    under_way = changed(bench, client, "purge")
    assert under_way.problem[0] == "bad_state"
    assert "under way" in under_way.problem[1]
    finish(bench, worker, *bench.dealt(worker))
    finish(bench, worker, *bench.dealt(worker))
    well = changed(bench, client, "purge")
    assert well.problem[0] == "bad_state"
    assert "ended well" in well.problem[1]
    bench.submit(client, item(5, "k"))
    bench.turns()
    finish(bench, worker, *bench.dealt(worker), outcome=m.Outcome.failed, body=b"\x80")
    assert changed(bench, client, "purge", "k") == m.Changed(9, 1, None)
    assert bench.store.state_of("a:k") is None
    assert changed(bench, client, "purge", "k").problem[0] == "not_found"


@pytest.mark.parametrize(
    ("what", "job", "code"),
    [
        *[("cancel", "nobody", "not_found"), ("kill", "j", "bad_field"), ("cancel", "a:b", "bad_field")],
        ("purge", "nobody", "not_found"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(bench: Bench, what: str, job: str, code: str) -> None:
    answer = changed(bench, bench.client(), what, job)
    assert (answer.steps, answer.problem[0]) == (-1, code)


def test_a_change_is_refused_while_there_is_too_much_to_do() -> None:
    bench = Bench(dataclasses.replace(CONFIG, bus=Bus(pending=1)))
    client = bench.client()
    bench.submit(client, item())
    bench.tell(client, m.Change(9, "cancel", "j"))
    [answer] = [message for message in bench.said(client) if isinstance(message, m.Changed)]
    assert answer.problem[0] == "unavailable"


def test_many_changes_are_made_over_several_turns(bench: Bench) -> None:
    client = bench.client()
    bench.tell(client, *(m.Change(tag, "cancel", "nobody") for tag in range(120)))
    sizes = []
    while turn := bench.turn():
        sizes.append(len(turn.changes))
    assert sizes == [MOST_CHANGES_IN_TURN, MOST_CHANGES_IN_TURN, 20]
    assert [each.tag for each in bench.said(client) if isinstance(each, m.Changed)] == list(range(120))


def test_a_change_waits_for_the_steps_that_came_before_it(bench: Bench) -> None:
    client = bench.client()
    bench.submit(client, *(item(tag, f"j{tag}", notify=False) for tag in range(MOST_IN_TURN + 5)))
    bench.tell(client, m.Change(1, "cancel", "j0"), m.Change(2, "cancel", f"j{MOST_IN_TURN + 1}"))
    turns = [turn for _ in range(2) if (turn := bench.turn())]
    assert [[change.job_id for change in turn.changes] for turn in turns] == [["j0"], [f"j{MOST_IN_TURN + 1}"]]
    assert [each.steps for each in bench.said(client) if isinstance(each, m.Changed)] == [1, 1]


# --- added steps -----------------------------------------------------------------------


def grow(bench: Bench, worker: str, job: m.Job, *added: m.Added) -> None:
    report = m.Report(job.ref, job.attempt, m.Outcome.done, b"\x81\xa3EOJ\x01", "", 1, 2, added)
    bench.results(m.Result(worker, (report,)))
    bench.turns()


def part(from_: str, to: Any = "end_job", cmd: str = "double", **options: Any) -> m.Added:
    return m.Added(from_, to, cmd, codec.pack({"n": 1}), options)


def test_added_steps_are_dealt_and_told_by_nobody(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=3)
    bench.submit(client, *chain())
    bench.turns()
    [job] = bench.dealt(worker)
    grow(bench, worker, job, part("p", "b"), part("q", "b", delay_s=0.5), part("r", ["b", "s"]), part("s"))
    jobs = bench.dealt(worker)
    assert [(job.ref, job.to) for job in jobs] == [("p:j", "b"), ("r:j", "b,s")]
    finish(bench, worker, *jobs)
    more = bench.dealt(worker)
    assert [job.ref for job in more] == ["s:j"]
    bench.wait(0.6)
    more += bench.dealt(worker)
    finish(bench, worker, *more)
    [last] = bench.dealt(worker)
    assert set(codec.unpack(last.data)) == {"a", "p", "q", "r"}


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ([part("p", "nowhere")], "no step waits at nowhere"),
        ([part("p", "q"), part("q", "p")], "the steps go in a circle: p → q → p"),
        ([part("p", cmd="no_such")], "no_such"),
        ([part("p q")], "`from` holds the character"),
        ([part("p", priority=17)], "priority"),
        ([part("exesys")], "a name of the system's own"),
        ([part("b", "end_job")], "there is a step from b to end_job already"),
    ],
)
def test_steps_that_cannot_be_added_fail_the_attempt(bench: Bench, added: list[m.Added], said: str) -> None:
    client, worker = bench.client(), bench.worker()
    bench.submit(client, *chain())
    bench.turns()
    grow(bench, worker, bench.dealt(worker)[0], *added)
    done = [answer for each in bench.said(client) if isinstance(each, m.Done) for answer in each.answers]
    assert [answer.state for answer in done] == [State.error, State.error]
    type_, text = message_of(done[0].body)
    assert type_ == "BadStep"
    assert said in text
    assert not [key for key in bench.store.dump() if key.startswith(("p:", "q:"))]


def test_reports_that_add_much_are_spread_over_turns(bench: Bench) -> None:
    client, worker = bench.client(), bench.worker(slots=3)
    bench.submit(client, *(item(tag, f"j{tag}") for tag in range(3)))
    bench.turns()
    jobs = bench.dealt(worker)
    added = tuple(part(f"p{number}") for number in range(1200))
    reports = [m.Report(job.ref, 1, m.Outcome.done, b"\x81\xa3EOJ\x01", "", 1, 2, added) for job in jobs]
    bench.results(m.Result(worker, tuple(reports)))
    turns: list[Turn] = []
    while turn := bench.turn():
        turns.append(turn)
    assert [len(turn.reports) for turn in turns if turn.reports] == [1, 1, 1]
