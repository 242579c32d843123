"""A runner daemon's side of the conversation: what it hosts, tells, repeats and gives back."""

from __future__ import annotations

from typing import Any

import pytest

from exesys.bus import messages as m
from exesys.bus.hosting import MOST_TOLD, RESEND_S, RETELL_S, HostSession
from exesys.runner import Ending

SELF = "1" * 16
WELCOME = m.Welcome(m.VERSION, SELF, 7, 1.0, 5, {}, {}, "", {})
FOREVER = float("inf")


def launch(name: str = "t:x", epoch: int = 1) -> m.Launch:
    return m.Launch(name, epoch, "m.f", b"\xc0", -1.0)


def told(name: str = "t:x", epoch: int = 1, chunk: int = 0, log: str = "", fraction: float = -1.0) -> m.Told:
    return m.Told(name, epoch, 77, 5, fraction, "", 0.0, 0, chunk, log)


def over(name: str = "t:x", epoch: int = 1, ending: Ending = Ending.returned) -> m.Exit:
    return m.Exit(name, epoch, ending, b"", 10)


def ack(name: str = "t:x", epoch: int = 1) -> m.ResultAck:
    return m.ResultAck((m.Held(name, epoch),))


def sent(session: HostSession, now: float, kind: type[Any]) -> Any:
    """Return the one message of a kind that is due, or None."""
    found = [message for message in session.outgoing(now) if isinstance(message, kind)]
    assert len(found) <= 1
    return found[0] if found else None


@pytest.fixture
def session() -> HostSession:
    """A session that was welcomed at 0 s and has sent its first heartbeat."""
    session = HostSession("runner", SELF, {"host": "here"}, capacity=3)
    assert session.outgoing(0.0) == [m.Hello(m.VERSION, "runner", SELF, "", {"host": "here"})]
    session.greeted(WELCOME, 0.0)
    assert session.outgoing(0.0) == [m.Heartbeat(SELF, 7, 0, 3, (), ())]
    return session


# --- lives ------------------------------------------------------------------------


def test_a_life_begins_once_however_often_it_is_launched(session: HostSession) -> None:
    assert session.launched([launch(), launch("t:y", 4)]) == [launch(), launch("t:y", 4)]
    assert session.launched([launch(), launch("t:y", 4), launch("t:y", 3)]) == []
    assert session.held == (m.Held("t:x", 1), m.Held("t:y", 4))
    assert session.living("t:x", 1)
    assert not session.living("t:x", 2)
    session.ended(over())
    assert session.launched([launch()]) == [], "it has ended, and the router does not know"
    session.acked(ack())
    assert session.held == (m.Held("t:y", 4),)


def test_no_second_life_begins_beside_the_first(session: HostSession) -> None:
    session.launched([launch()])
    assert session.launched([launch(epoch=2)]) == []
    session.ended(over())
    assert session.launched([launch(epoch=2)]) == [launch(epoch=2)]
    session.acked(ack())
    assert session.held == (m.Held("t:x", 2),), "the acknowledgement was of the first"


def test_a_heartbeat_tells_of_lives_and_of_ends_that_are_not_acknowledged(session: HostSession) -> None:
    session.launched([launch(), launch("t:y")])
    session.ended(over("t:y"))
    assert sent(session, 1.0, m.Heartbeat) == m.Heartbeat(SELF, 7, 0, 3, (m.Held("t:x", 1), m.Held("t:y", 1)), ())
    session.acked(ack("t:y"))
    assert sent(session, 2.0, m.Heartbeat).held == (m.Held("t:x", 1),)
    assert not session.idle
    session.ended(over())
    session.acked(ack())
    assert session.idle


def test_an_end_is_told_until_it_is_acknowledged(session: HostSession) -> None:
    session.launched([launch(), launch("t:y")])
    session.ended(over())
    assert sent(session, 1.0, m.Exits) == m.Exits(SELF, (over(),))
    session.ended(over("t:y"))
    assert sent(session, 1.1, m.Exits) == m.Exits(SELF, (over("t:y"),))
    assert sent(session, 1.0 + RESEND_S - 0.01, m.Exits) is None
    assert sent(session, 1.2 + RESEND_S, m.Exits) == m.Exits(SELF, (over(), over("t:y")))
    session.acked(ack())
    session.acked(ack("t:y", 2))
    session.acked(ack("t:z"))
    assert sent(session, 9.0, m.Exits) == m.Exits(SELF, (over("t:y"),))
    session.acked(ack("t:y"))
    assert sent(session, 20.0, m.Exits) is None


def test_no_life_is_acknowledged_away(session: HostSession) -> None:
    session.launched([launch()])
    session.acked(ack())
    assert session.living("t:x", 1)


def test_the_end_of_another_life_ends_nothing(session: HostSession) -> None:
    session.launched([launch(epoch=2)])
    session.ended(over(epoch=1))
    session.ended(over("t:y"))
    assert session.living("t:x", 2)
    assert session.held == (m.Held("t:x", 2),)


# --- what is not wanted ---------------------------------------------------------------


def test_what_is_cancelled_and_lives_is_to_be_ended_and_its_end_is_told(session: HostSession) -> None:
    session.launched([launch()])
    cancel = m.Cancel((m.Held("t:x", 1),))
    assert session.cancelled(cancel) == [("t:x", 1)]
    session.ended(over(ending=Ending.forced))
    assert session.cancelled(cancel) == []
    assert sent(session, 1.0, m.Exits).exits == (over(ending=Ending.forced),)


def test_what_is_cancelled_and_never_came_is_over(session: HostSession) -> None:
    assert session.cancelled(m.Cancel((m.Held("t:x", 5),))) == []
    assert sent(session, 1.0, m.Exits) == m.Exits(SELF, (m.Exit("t:x", 5, Ending.handed_back, b"", 0),))
    assert session.launched([launch(epoch=5)]) == []
    session.acked(ack(epoch=5))
    assert session.idle


def test_a_cancel_of_one_life_is_none_of_another(session: HostSession) -> None:
    session.launched([launch(epoch=2)])
    assert session.cancelled(m.Cancel((m.Held("t:x", 1), m.Held("t:x", 3)))) == []
    assert session.living("t:x", 2)


# --- draining -------------------------------------------------------------------------


def test_a_daemon_that_ends_takes_no_more_and_hands_back_what_comes(session: HostSession) -> None:
    session.launched([launch()])
    assert session.drain() == [m.Drain(SELF)]
    assert sent(session, 0.1, m.Heartbeat).capacity == 0
    assert session.launched([launch("t:y")]) == []
    assert session.held == (m.Held("t:x", 1), m.Held("t:y", 1))
    assert sent(session, 0.2, m.Exits).exits == (over("t:y", ending=Ending.handed_back)._replace(lived_ms=0),)


def test_a_change_of_capacity_is_told_at_once(session: HostSession) -> None:
    assert sent(session, 0.5, m.Heartbeat) is None
    session.capacity = 5
    assert sent(session, 0.5, m.Heartbeat).capacity == 5
    assert sent(session, 0.6, m.Heartbeat) is None


# --- what lives tell ------------------------------------------------------------------


def test_what_a_life_tells_goes_out_at_once_and_once(session: HostSession) -> None:
    session.launched([launch()])
    session.told(told(chunk=1, log="hello"), 0.1)
    assert session.wake_in_s(0.1) == 0.0
    assert sent(session, 0.1, m.Telling) == m.Telling(SELF, (told(chunk=1, log="hello"),))
    assert sent(session, 0.2, m.Telling) is None
    assert session.wake_in_s(0.2) > 0


def test_one_that_does_not_live_here_tells_nothing(session: HostSession) -> None:
    session.launched([launch(), launch("t:y")])
    session.ended(over("t:y"))
    for strange in (told(epoch=2), told("t:y"), told("t:z")):
        session.told(strange, 0.1)
    assert sent(session, 0.1, m.Telling) is None


def test_much_is_told_in_parts_and_in_order(session: HostSession) -> None:
    session.launched([launch()])
    for number in range(MOST_TOLD + 7):
        session.told(told(chunk=number, log="x"), 0.1)
    first, second = (sent(session, 0.1, m.Telling) for _ in range(2))
    assert [each.chunk for each in (*first.told, *second.told)] == list(range(MOST_TOLD + 7))
    assert len(first.told) == MOST_TOLD


@pytest.mark.parametrize("epoch", [7, 8])
def test_what_may_have_been_lost_with_a_connection_is_told_again(session: HostSession, epoch: int) -> None:
    """Also to the same router: else it might never know that a quiet runner runs."""
    session.launched([launch(), launch("t:y")])
    session.told(told(chunk=1, log="old"), 1.0)
    sent(session, 1.0, m.Telling)
    now = 1.0 + RETELL_S
    session.told(told(chunk=2, log="new", fraction=0.5), now)
    session.told(told("t:y"), now)
    sent(session, now, m.Telling)
    session.ended(over("t:y"))
    assert sent(session, now, m.Exits) is not None
    session.rebuilt(now + 0.1)
    session.told(told(chunk=3, log="unsent", fraction=0.6), now + 0.1)
    session.greeted(WELCOME._replace(epoch=epoch), now + 0.2)
    messages = session.outgoing(now + 0.2)
    [telling] = [message for message in messages if isinstance(message, m.Telling)]
    assert [(each.name, each.log) for each in telling.told] == [
        ("t:x", "new"),
        ("t:x", ""),
        ("t:y", ""),
        ("t:x", "unsent"),
    ]
    assert telling.told[1].fraction == 0.6
    assert [message for message in messages if isinstance(message, m.Exits)] == [m.Exits(SELF, (over("t:y"),))]


def test_many_greetings_repeat_a_log_once_each(session: HostSession) -> None:
    session.launched([launch()])
    session.told(told(chunk=1, log="hello"), 0.0)
    sent(session, 0.0, m.Telling)
    for number in range(10):
        session.rebuilt(0.1)
        session.greeted(WELCOME._replace(epoch=8 + number), 0.1)
        session.greeted(WELCOME._replace(epoch=8 + number), 0.1)
        logs = [each.log for each in sent(session, 0.1, m.Telling).told if each.log]
        assert logs == ["hello"]


# --- the fence ------------------------------------------------------------------------


def test_without_lives_there_is_nothing_to_give_up(session: HostSession) -> None:
    assert (session.give_up_at, session.dead_by) == (FOREVER, FOREVER)


def test_lives_end_within_the_lease_unless_the_router_is_heard(session: HostSession) -> None:
    session.launched([launch()])
    assert (session.give_up_at, session.dead_by) == (pytest.approx(4.0), pytest.approx(4.5))
    session.heard(m.HeartbeatAck(SELF, 7, 0, ()), 0.5)
    sent(session, 1.0, m.Heartbeat)
    assert session.dead_by == pytest.approx(4.5)
    session.heard(m.HeartbeatAck(SELF, 7, 0, ()), 3.0)
    assert session.dead_by == pytest.approx(5.5), "it counts from the sending"
    session.ended(over())
    assert session.dead_by == pytest.approx(5.5)
    session.acked(ack())
    assert session.dead_by == FOREVER


def test_a_life_that_comes_after_a_long_sleep_is_dead_already(session: HostSession) -> None:
    """What the router answered before the sleep says nothing of now."""
    sent(session, 1.0, m.Heartbeat)
    for _ in range(2):
        session.heard(m.HeartbeatAck(SELF, 7, 0, ()), 60.0)
    session.launched([launch()])
    assert session.dead_by < 60.0


def test_a_lease_is_that_of_the_router(session: HostSession) -> None:
    session.launched([launch()])
    session.rebuilt(1.0)
    session.outgoing(1.0)
    assert session.dead_by == pytest.approx(4.5), "not of the time in which there is none"
    session.greeted(WELCOME._replace(heartbeat_s=2.0, misses=10), 1.1)
    assert session.dead_by == pytest.approx(1.0 + 18.0)


def test_it_wakes_for_heartbeats(session: HostSession) -> None:
    assert session.wake_in_s(0.4) == pytest.approx(0.6)
    session.refused(m.Error("unknown_session", "", "", ""))
    assert session.wake_in_s(0.4) == 0.0
