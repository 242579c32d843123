"""The client's side of the conversation: what is under way, repeated, asked for and answered."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from exesys import codec
from exesys.bus import messages as m
from exesys.bus.handle import Handle
from exesys.bus.inflight import MOST_RECHECKED, RECHECK_EVERY_S, Desk
from exesys.errors import (
    BadCommand,
    Conflict,
    ExesysError,
    JobError,
    NotFound,
    QueueFull,
    ResultTimeout,
    Unavailable,
    UnknownFunction,
)
from exesys.states import State

SELF = "c" * 16
WELCOME = m.Welcome(m.VERSION, SELF, 7, 1.0, 5, {}, {}, "", {})
RESULT = codec.pack({"EOJ": [1, 2]})
FAILURE = codec.pack({"type": "ValueError", "message": "no", "traceback": "Traceback …"})


class Client:
    """A desk and the time, with the lock taken around every call as its owner does."""

    def __init__(self, window: int = 1000) -> None:
        self.desk = Desk(SELF, window)
        self.now = 100.0

    def put(self, job: str = "j", notify: bool = True, patient: bool = True, data: bytes = b"\xc0") -> Handle:
        handle = Handle(job, "a", "end_job", "f", self.desk.lock)
        item = m.Item(0, "a", "end_job", "f", data, job, {}, notify)
        with self.desk.lock:
            self.desk.put(handle, item, notify, patient)
        return handle

    def ask(self, job: str = "j", notify: bool = True) -> Handle:
        handle = Handle(job, "a", "end_job", "", self.desk.lock)
        with self.desk.lock:
            self.desk.put(handle, None, notify, patient=True)
        return handle

    def hear(self, *messages: m.Message) -> list[Any]:
        """Take messages, call the callbacks without the lock; returns what they gave."""
        with self.desk.lock:
            calls = [call for message in messages for call in self.desk.receive(message, self.now)]
        return [call(handle) for handle, call in calls]

    def say(self) -> list[m.Message]:
        """Return what goes out now, without heartbeats."""
        with self.desk.lock:
            return [each for each in self.desk.outgoing(self.now) if not isinstance(each, m.Heartbeat)]

    def pass_time(self, wait_s: float, answer: bool = True) -> list[m.Message]:
        """Let time pass as the client's loop does; the router is heard, if it answers."""
        end, said = self.now + wait_s, []
        for _ in range(10_000):
            said += self.say()
            with self.desk.lock:
                wait = self.desk.wake_in_s(self.now)
            assert wait >= 0
            self.now = min(end, self.now + max(wait, 0.001))
            if answer:
                self.hear(m.HeartbeatAck(SELF, 7, 0, ()))
            if self.now >= end:
                return said + self.say()
        raise AssertionError("the client does not sleep")


def items(messages: list[m.Message]) -> list[str]:
    return [item.job_id for message in messages if isinstance(message, m.Submit) for item in message.items]


def queries(messages: list[m.Message]) -> list[str]:
    return [query.job_id for message in messages if isinstance(message, m.Status) for query in message.queries]


def tags(messages: list[m.Message]) -> list[int]:
    return [item.tag for message in messages if isinstance(message, m.Submit) for item in message.items]


def ack(tag: int, state: int = State.start, body: Any = None) -> m.SubmitAck:
    return m.SubmitAck((m.Answer(tag, state, body),))


def done(tag: int, body: bytes = RESULT) -> m.Done:
    return m.Done((m.Answer(tag, State.data_available, body),))


@pytest.fixture
def client() -> Client:
    """A client that was welcomed."""
    client = Client()
    client.say()
    client.hear(WELCOME)
    return client


# --- connecting ---------------------------------------------------------------


def test_nothing_but_hello_is_said_before_the_welcome() -> None:
    client = Client()
    client.put()
    assert client.say() == [m.Hello(m.VERSION, "client", SELF, "", {})]
    said = client.pass_time(2.5)
    assert {type(message) for message in said} == {m.Hello}
    assert len(said) == 2
    client.hear(WELCOME)
    assert items(client.say()) == ["j"]


def test_heartbeats_go_out_when_they_are_due(client: Client) -> None:
    beats = []
    for tenth in range(31):
        client.now = 100 + tenth / 10
        with client.desk.lock:
            beats += [(client.now, each) for each in client.desk.outgoing(client.now) if isinstance(each, m.Heartbeat)]
    assert [at for at, _ in beats] == [100.0, 101.0, 102.0, 103.0]
    assert beats[0][1] == m.Heartbeat(SELF, 7, 0, 0, (), ())


def test_a_silent_router_is_noticed_after_a_lease(client: Client) -> None:
    assert not client.desk.silent(105.0)
    assert client.desk.silent(105.1)
    client.desk.rebuilt()
    assert not client.desk.silent(109.0)
    client.now = 105.2
    assert isinstance(client.say()[0], m.Hello)


@pytest.mark.parametrize("message", [m.Error("unknown_session", "", "", ""), m.Bye(SELF, "silent for too long")])
def test_a_router_that_does_not_know_it_is_greeted_at_once(client: Client, message: m.Message) -> None:
    client.hear(message)
    assert client.say() == [m.Hello(m.VERSION, "client", SELF, "", {})]


def test_a_new_router_gets_what_the_old_one_did_not_acknowledge_and_is_asked_for_the_rest(client: Client) -> None:
    taken, under_way, asked = client.put("taken"), client.put("under-way"), client.ask("asked")
    ended, later = client.put("ended"), client.put("later", notify=False)
    first = tags(client.say())
    client.hear(ack(first[0]), done(first[2]), ack(first[3]))
    client.hear(m.Error("unknown_session", "", "", ""))
    client.say()
    client.hear(WELCOME._replace(epoch=8))
    said = client.say()
    assert sorted(items(said)) == ["under-way"]
    assert sorted(queries(said)) == ["asked", "taken"]
    assert (ended.done(), later.state) == (True, State.start)
    assert not taken.done()
    assert not under_way.done()
    assert not asked.done()


# --- answers ------------------------------------------------------------------


def test_a_result_ends_the_wait(client: Client) -> None:
    handle = client.put()
    assert handle.state is None
    [tag] = tags(client.say())
    client.hear(ack(tag))
    assert [handle.state, handle.done(), handle.exception()] == [State.start, False, None]
    assert handle.accepted(0) is State.start
    client.hear(done(tag))
    assert [handle.state, handle.done(), handle.exception()] == [State.data_available, True, None]
    assert (handle.result(0), handle.outcome(0)) == ([1, 2], {"EOJ": [1, 2]})


def test_a_result_may_come_before_the_acknowledgement(client: Client) -> None:
    handle = client.put()
    [tag] = tags(client.say())
    client.hear(done(tag), ack(tag), done(tag, codec.pack({"EOJ": "another"})))
    assert handle.result(0) == [1, 2]


def test_a_failure_raises_what_the_function_raised(client: Client) -> None:
    handle = client.put()
    [tag] = tags(client.say())
    client.hear(m.Done((m.Answer(tag, State.error, [FAILURE, 3]),)))
    with pytest.raises(JobError) as caught:
        handle.result(0)
    error = caught.value
    assert (error.type, error.text, error.attempts, error.traceback) == ("ValueError", "no", 3, "Traceback …")
    assert isinstance(handle.exception(), JobError)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        ("bad_field", BadCommand),
        ("conflict", Conflict),
        ("unknown_cmd", UnknownFunction),
        ("queue_full", QueueFull),
        ("unavailable", Unavailable),
        ("not_found", NotFound),
        ("never heard of", ExesysError),
    ],
)
def test_a_refusal_raises_its_own_error(client: Client, code: str, kind: type[ExesysError]) -> None:
    handle = client.put()
    [tag] = tags(client.say())
    client.hear(ack(tag, -1, [code, "It is so.", "field", "Do this."]))
    assert handle.done()
    for ask in (handle.accepted, handle.result):
        with pytest.raises(kind) as caught:
            ask(0)
        assert (caught.value.message, caught.value.field, caught.value.fix) == ("It is so.", "field", "Do this.")


@pytest.mark.parametrize("answer", [(State.start, None), (-1, ["queue_full", "It is so.", "field", "Do this."])])
def test_who_wants_to_know_of_the_first_answer_is_told_once(client: Client, answer: tuple[int, Any]) -> None:
    handle = client.put()
    handle.on_answer(lambda told: ("first", told))
    handle.add_done_callback(lambda told: ("end", told))
    [tag] = tags(client.say())
    first = client.hear(ack(tag, *answer))
    assert first == [("first", handle), ("end", handle)][: 1 + handle.done()]
    assert client.hear(done(tag)) == ([] if handle.done() and answer[0] == -1 else [("end", handle)])


def test_without_notice_the_acknowledgement_is_the_end_of_it(client: Client) -> None:
    handle = client.put(notify=False)
    [tag] = tags(client.say())
    client.hear(ack(tag))
    assert handle.state is State.start
    assert client.pass_time(60) == []


def test_a_question_is_answered_by_the_state(client: Client) -> None:
    once, waiting = client.ask("j", notify=False), client.ask("k")
    [status] = client.say()
    assert isinstance(status, m.Status)
    assert [(query.job_id, query.from_, query.to, query.notify) for query in status.queries] == [
        ("j", "a", "end_job", False),
        ("k", "a", "end_job", True),
    ]
    client.hear(m.StatusReply(tuple(m.Answer(query.tag, State.processing, None) for query in status.queries)))
    assert (once.state, waiting.state) == (State.processing, State.processing)
    client.hear(done(status.queries[1].tag))
    assert waiting.result(0) == [1, 2]


def test_answers_to_nobody_are_ignored(client: Client) -> None:
    client.hear(ack(99), done(98), m.Busy((97,), "store", 0.1), m.Snapshot(96, 1, 1, {}))
    assert client.pass_time(1) == []


# --- losses -------------------------------------------------------------------


def test_a_command_without_any_answer_is_sent_again(client: Client) -> None:
    client.put()
    first = client.say()
    assert items(client.pass_time(9.9)) == []
    assert client.pass_time(4) == first
    assert items(client.pass_time(30)).count("j") in (2, 3)


def test_an_acknowledged_command_is_asked_for_now_and_then(client: Client) -> None:
    client.put()
    [tag] = tags(client.say())
    client.hear(ack(tag))
    assert client.pass_time(4.9) == []
    assert queries(client.pass_time(0.2)) == ["j"]
    client.hear(m.StatusReply((m.Answer(tag, State.processing, None),)))
    assert queries(client.pass_time(5.1)) == ["j"]


def test_a_question_that_was_lost_is_asked_again(client: Client) -> None:
    handle = client.put()
    [tag] = tags(client.say())
    client.hear(ack(tag))
    assert queries(client.pass_time(5.5)) == ["j"]
    assert queries(client.pass_time(20)), "neither the question nor its answer arrived"
    client.hear(m.StatusReply((m.Answer(tag, State.data_available, RESULT),)))
    assert handle.result(0) == [1, 2]


def test_a_question_to_a_new_router_that_was_lost_is_asked_again(client: Client) -> None:
    handle = client.put()
    [tag] = tags(client.say())
    client.hear(ack(tag))
    client.hear(m.Bye(SELF, "ending"))
    client.say()
    client.hear(WELCOME._replace(epoch=8))
    assert queries(client.say()) == ["j"]
    assert queries(client.pass_time(20)), "neither the question nor its answer arrived"
    client.hear(m.StatusReply((m.Answer(tag, State.data_available, RESULT),)))
    assert handle.result(0) == [1, 2]


def test_repeated_answers_do_not_multiply_the_questions(client: Client) -> None:
    client.put()
    [tag] = tags(client.say())
    asked = 0
    client.hear(*[ack(tag)] * 5)
    for _ in range(12):
        said = queries(client.pass_time(5))
        asked += len(said)
        client.hear(*[m.StatusReply((m.Answer(tag, State.processing, None),))] * 3)
    assert asked <= 14


def test_many_commands_under_way_are_not_all_asked_for_at_once(client: Client) -> None:
    for number in range(1000):
        client.put(f"j{number}")
    client.hear(*(ack(tag) for tag in tags(client.say())))
    client.now += 5.1
    assert len(queries(client.say())) == MOST_RECHECKED
    assert client.say() == [], "the others wait, however often it looks"
    asked = queries(client.pass_time(5 * RECHECK_EVERY_S, answer=False))
    assert len(asked) == 5 * MOST_RECHECKED
    assert len(set(asked)) == len(asked)


# --- busy ---------------------------------------------------------------------


def test_a_patient_client_sends_again_what_was_busy(client: Client) -> None:
    handle = client.put()
    [tag] = tags(client.say())
    client.hear(m.Busy((tag,), "store", 0.5))
    assert not handle.done()
    assert items(client.pass_time(0.4)) == []
    assert items(client.pass_time(0.2)) == ["j"]
    client.hear(ack(tag))
    assert handle.state is State.start


def test_who_has_waited_long_enough_is_told_why_it_was_not_taken(client: Client) -> None:
    handle = client.put()
    [tag] = tags(client.say())
    with pytest.raises(ResultTimeout, match="within 0 s") as unknown:
        handle.accepted(0)
    assert "is the system up" in unknown.value.fix
    client.hear(m.Busy((tag,), "store_full", 0.5))
    with pytest.raises(ResultTimeout, match="not acknowledged within 0 s: Redis has reached its maxmemory") as told:
        handle.accepted(0)
    assert "Raise maxmemory" in told.value.fix


@pytest.mark.parametrize(
    ("reason", "says"),
    [
        ("store", "the store is away"),
        ("store_full", "reached its maxmemory"),
        ("store_moonlight", "the store is away"),
        ("pending", "too much under way"),
        ("of another version", "too much under way"),
    ],
)
def test_an_impatient_client_is_told_at_once(client: Client, reason: str, says: str) -> None:
    handle = client.put(patient=False)
    [tag] = tags(client.say())
    client.hear(m.Busy((tag,), reason, 0.5))
    with pytest.raises(Unavailable, match=says):
        handle.accepted(0)
    assert client.pass_time(30) == []


def test_a_busy_answer_about_a_command_that_was_taken_is_no_refusal(client: Client) -> None:
    handle = client.put(patient=False)
    [tag] = tags(client.say())
    client.hear(ack(tag))
    assert queries(client.pass_time(5.5)) == ["j"]
    client.hear(m.Busy((tag,), "pending", 0.2))
    assert not handle.done(), "it runs, whatever the router has to do"
    assert queries(client.pass_time(20)), "it is asked for again"
    client.hear(done(tag))
    assert handle.result(0) == [1, 2]


def test_a_busy_answer_to_what_ended_meanwhile_is_ignored(client: Client) -> None:
    handle = client.put()
    [tag] = tags(client.say())
    client.hear(done(tag), m.Busy((tag,), "pending", 0.1))
    assert client.pass_time(5) == []
    assert handle.result(0) == [1, 2]


# --- sending ------------------------------------------------------------------


def test_commands_go_together_but_not_too_many(client: Client) -> None:
    for number in range(2500):
        client.put(f"j{number}")
    messages = [message for _ in range(3) for message in client.say()]
    assert [len(message.items) for message in messages if isinstance(message, m.Submit)] == [1000, 1000, 500]
    assert items(messages) == [f"j{number}" for number in range(2500)]


def test_large_commands_go_in_messages_of_their_own(client: Client) -> None:
    for number in range(6):
        client.put(f"j{number}", data=bytes(3 << 20))
    assert [len(items(client.say())) for _ in range(3)] == [2, 2, 2]
    assert not client.desk.pressing


def test_the_window_is_full_until_commands_are_acknowledged() -> None:
    client = Client(window=2)
    client.hear(WELCOME)
    for name in "jk":
        assert not client.desk.full
        client.put(name)
    assert client.desk.full
    client.hear(ack(tags(client.say())[0]))
    assert not client.desk.full


def test_a_message_without_an_answer_waits_for_the_router() -> None:
    client = Client()
    client.desk.tell(m.Stop("cam", "7"))
    assert client.pass_time(2)[-1] == m.Hello(m.VERSION, "client", SELF, "", {})
    client.hear(WELCOME)
    assert client.say() == [m.Stop("cam", "7")]
    assert client.say() == []


def test_a_snapshot_comes_back_to_who_asked(client: Client) -> None:
    got: list[m.Snapshot] = []
    tag = client.desk.ask(lambda tag: m.Sync(tag, ("stops",)), got.append)
    forgotten = client.desk.ask(lambda tag: m.Sync(tag, ("figures",)), got.append)
    client.desk.forget(forgotten)
    assert client.say() == [m.Sync(tag, ("stops",)), m.Sync(forgotten, ("figures",))]
    client.hear(m.Snapshot(tag, 7, 1, {"stops": []}), m.Snapshot(forgotten, 7, 1, {}), m.Snapshot(tag, 7, 2, {}))
    assert got == [m.Snapshot(tag, 7, 1, {"stops": []})]


# --- the handle ---------------------------------------------------------------


def test_who_waits_in_another_thread_is_woken(client: Client) -> None:
    handle = client.put()
    got: list[Any] = []
    waiters = [threading.Thread(target=lambda: got.append(handle.result(20))) for _ in range(3)]
    for waiter in waiters:
        waiter.start()
    [tag] = tags(client.say())
    client.hear(ack(tag))
    client.hear(done(tag))
    for waiter in waiters:
        waiter.join(20)
    assert got == [[1, 2]] * 3


def test_a_wait_that_is_over_says_so(client: Client) -> None:
    handle = client.put()
    with pytest.raises(ResultTimeout, match=r"job j was not acknowledged within 0\.01 s"):
        handle.accepted(0.01)
    with pytest.raises(ResultTimeout, match=r"job j has not ended within 0 s"):
        handle.result(0)
    with pytest.raises(TimeoutError):
        handle.result(0)
    assert handle.wait(0.01) is False


def test_callbacks_are_called_once_at_the_end(client: Client) -> None:
    handle = client.put()
    calls: list[str] = []
    handle.add_done_callback(lambda ended: calls.append(f"first {ended.result(0)}"))
    handle.add_done_callback(lambda ended: calls.append("second"))
    [tag] = tags(client.say())
    client.hear(ack(tag))
    assert calls == []
    client.hear(done(tag), done(tag))
    assert calls == ["first [1, 2]", "second"]
    handle.add_done_callback(lambda ended: calls.append("late"))
    assert calls[-1] == "late"


def test_a_result_that_is_no_map_is_given_as_it_is(client: Client) -> None:
    handle = client.put()
    client.hear(done(tags(client.say())[0], codec.pack([1])))
    assert handle.result(0) == [1]


# --- workflows ----------------------------------------------------------------


@pytest.mark.parametrize("steps", [3, 1000, 3500])
def test_a_workflow_goes_out_whole_and_once(steps: int) -> None:
    client = Client(window=10_000)
    client.hear(WELCOME)
    before, after = client.put("before"), client.put("after")
    with client.desk.lock:
        handles = [Handle("w", f"s{n}", "end_job", "f", client.desk.lock) for n in range(steps)]
        sent = [m.Item(0, f"s{n}", "end_job", "f", b"\xc0", "w", {}, n == 0) for n in range(steps)]
        client.desk.put_workflow(handles, sent, patient=True)
    later = client.put("later")
    said = [message for message in client.pass_time(0.5) if isinstance(message, m.Submit)]
    whole = [item for message in said for item in message.items if item.flow > 0]
    assert [item.from_ for item in whole] == [f"s{n}" for n in range(steps)]
    assert len({item.flow for item in whole}) == 1
    assert sum(any(item.flow > 0 for item in message.items) for message in said) == 1
    assert [item.job_id for message in said for item in message.items if item.flow == 0] == ["before", "after", "later"]
    assert all(handle.state is None for handle in (before, after, later, *handles))
    # Unheard of, it goes out once more, and after a reconnect too.
    again = [item for message in client.pass_time(12) if isinstance(message, m.Submit) for item in message.items]
    assert sum(item.flow > 0 for item in again) == steps
    client.hear(WELCOME)
    again = [item for message in client.pass_time(0.5) if isinstance(message, m.Submit) for item in message.items]
    assert sum(item.flow > 0 for item in again) == steps
