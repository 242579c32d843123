"""Liveness as a round trip, and the fence: a daemon is dead before the router gives it up."""

from __future__ import annotations

import random
from collections import deque
from typing import Any

import pytest
from unit.world import CATALOGUE, CONFIG

from exesys.bus import effects
from exesys.bus import messages as m
from exesys.bus.broker import Broker
from exesys.bus.conversation import Conversation
from exesys.bus.hosting import HostSession

SELF = "1" * 16
NEVER = float("-inf")
LEASE_S = CONFIG.lease_s


def welcome(epoch: int = 7) -> m.Welcome:
    return m.Welcome(m.VERSION, SELF, epoch, 1.0, 5, {}, {}, "", {})


def ack(epoch: int = 7) -> m.HeartbeatAck:
    return m.HeartbeatAck(SELF, epoch, 0, ())


class Talk(Conversation):
    """A conversation that only lives."""

    def talk(self, now: float) -> list[m.Message]:
        if self.welcome is None:
            return self._hello(now)
        if not self._beat_due(now):
            return []
        self._beats(now)
        return [m.Heartbeat(self.session, self.epoch, 0, 0, (), ())]


@pytest.fixture
def talk() -> Talk:
    return Talk("runner", SELF, {"host": "here"})


def lost(code: str) -> m.Error:
    return m.Error(code, "", "", "")


# --- greeting ---------------------------------------------------------------------


def test_it_greets_each_second_until_it_is_welcomed_and_then_beats(talk: Talk) -> None:
    hello = m.Hello(m.VERSION, "runner", SELF, "", {"host": "here"})
    assert [talk.talk(now) for now in (5.0, 5.9, 6.0)] == [[hello], [], [hello]]
    assert talk.wake_in_s(6.4) == pytest.approx(0.6)
    talk.greeted(welcome(), 6.5)
    beat = m.Heartbeat(SELF, 7, 0, 0, (), ())
    assert [talk.talk(now) for now in (6.5, 7.4, 7.5)] == [[beat], [], [beat]]
    assert talk.wake_in_s(7.7) == pytest.approx(0.8)


def test_a_router_that_does_not_know_it_is_greeted_at_once(talk: Talk) -> None:
    talk.talk(0.0)
    talk.greeted(welcome(), 0.1)
    talk.refused(lost("unknown_session"))
    assert isinstance(talk.talk(0.2)[0], m.Hello)
    assert not talk.lost


def test_a_session_that_was_given_up_is_lost_and_other_errors_are_not_that(talk: Talk) -> None:
    talk.refused(lost("bad_message"))
    assert not talk.lost
    talk.refused(lost("session_lost"))
    assert talk.lost


def test_silence_for_a_lease_is_noticed_until_the_sockets_are_new(talk: Talk) -> None:
    talk.talk(0.0)
    assert not talk.silent(100.0), "who was never welcomed goes on greeting"
    talk.greeted(welcome(), 100.0)
    talk.heard(ack(), 102.0)
    assert not talk.silent(107.0)
    assert talk.silent(107.1)
    talk.rebuilt(107.1)
    assert not talk.silent(200.0)
    assert isinstance(talk.talk(107.1)[0], m.Hello)


# --- when the router surely heard ----------------------------------------------------


def test_nothing_is_sure_before_the_first_answer(talk: Talk) -> None:
    talk.talk(1.0)
    assert talk.sure_at == NEVER
    talk.greeted(welcome(), 1.5)
    assert talk.sure_at == 1.0


def test_a_welcome_answers_the_oldest_greeting(talk: Talk) -> None:
    talk.talk(1.0)
    talk.talk(2.0)
    talk.greeted(welcome(), 2.5)
    talk.greeted(welcome(), 2.6)
    assert talk.sure_at == 1.0


def test_each_answer_is_of_the_oldest_heartbeat_not_yet_answered(talk: Talk) -> None:
    talk.talk(0.0)
    talk.greeted(welcome(), 0.1)
    for now in (1.0, 2.0, 3.0):
        talk.talk(now)
    sure = []
    for _ in range(4):
        talk.heard(ack(), 3.5)
        sure.append(talk.sure_at)
    assert sure == [1.0, 2.0, 3.0, 3.0]


def test_a_second_welcome_forgets_no_heartbeat(talk: Talk) -> None:
    """Or the answer to one would be taken for the answer to the next, which may be lost."""
    talk.talk(0.0)
    talk.talk(1.0)
    talk.greeted(welcome(), 1.1)
    talk.talk(1.2)
    talk.greeted(welcome(), 1.3)
    talk.talk(1.4)
    talk.heard(ack(), 1.5)
    assert talk.sure_at == 1.2


@pytest.mark.parametrize("how", ["rebuilt", "unknown_session"])
def test_with_a_connection_all_that_waits_for_an_answer_is_forgotten(talk: Talk, how: str) -> None:
    talk.talk(0.0)
    talk.greeted(welcome(), 0.1)
    talk.talk(1.0)
    if how == "rebuilt":
        talk.rebuilt(1.5)
    else:
        talk.refused(lost(how))
    talk.talk(2.0)
    talk.greeted(welcome(), 2.1)
    assert talk.sure_at == 2.0
    talk.talk(3.0)
    talk.heard(ack(), 3.1)
    assert talk.sure_at == 3.0


def test_a_greeting_by_an_old_socket_is_not_answered_by_the_new_one(talk: Talk) -> None:
    talk.talk(0.0)
    talk.rebuilt(5.0)
    talk.talk(5.0)
    talk.greeted(welcome(), 5.1)
    assert talk.sure_at == 5.0


# --- the fence ------------------------------------------------------------------------


class Duel:
    """A router that stands still or starts anew, a daemon that stands still, and a line that is slow and breaks."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 100.0
        self.router_at = self.host_at = self.now  # until when they stand still
        self.up: deque[tuple[float, bytes, Any]] = deque()
        self.down: deque[tuple[float, bytes, Any]] = deque()
        self.address = b"0"
        self.host = HostSession("runner", SELF, {}, capacity=1)
        self.host.lives["t:u"] = None  # type: ignore[assignment]  # there is one, that is all
        self.epoch = 0
        self.gave_up_at: float | None = None
        self.boot()

    def boot(self) -> None:
        self.epoch += 1
        self.broker = Broker(CONFIG, self.epoch, [SELF] if self.epoch > 1 else [], CATALOGUE, self.now, lambda: 0.0)

    def reconnect(self) -> None:
        self.address = str(self.rng.random()).encode()
        self.up.clear()
        self.down.clear()

    def put(self, line: deque[tuple[float, bytes, Any]], message: Any) -> None:
        """Send a message: it overtakes none before it, and may be lost."""
        if self.rng.random() < 0.03:
            return
        late_s = self.rng.choice((0.0, 0.0, 0.001, 0.3, self.rng.uniform(0, 3)))
        at = max(self.now + late_s, line[-1][0] if line else 0.0)
        line.append((at, self.address, message))

    def step(self) -> None:
        rng = self.rng
        self.now += rng.choice((0.001, 0.05, 0.2, 0.5))
        chance = rng.random()
        if chance < 0.01:
            self.boot()
        elif chance < 0.02:
            self.reconnect()
        elif chance < 0.03:
            self.router_at = self.now + rng.uniform(0, 6)
        elif chance < 0.04:
            self.host_at = self.now + rng.uniform(0, 6)
        if self.now >= self.router_at:
            self._route()
        if self.now >= self.host_at:
            self._serve()

    def _route(self) -> None:
        while self.up and self.up[0][0] <= self.now:
            _, address, message = self.up.popleft()
            self.broker.receive(address, message, self.now)
        self.broker.tick(self.now)
        if self.broker.roster.was_lost(SELF):
            self.gave_up_at = self.now
        for effect in self.broker.effects():
            if isinstance(effect, effects.Send) and effect.address == self.address:
                self.put(self.down, effect.message)

    def _serve(self) -> None:
        host = self.host
        while self.down and self.down[0][0] <= self.now:
            message = self.down.popleft()[2]
            match message:
                case m.Welcome():
                    Conversation.greeted(host, message, self.now)
                    host._lease_s = message.heartbeat_s * message.misses
                case m.HeartbeatAck():
                    host.heard(message, self.now)
                case m.Error():
                    host.refused(message)
                case m.Bye():
                    host.rebuilt(self.now)
        if host.silent(self.now):
            self.reconnect()
            host.rebuilt(self.now)
        for sent in Talk.talk(host, self.now):  # type: ignore[arg-type]  # what it says of its lives is not needed here
            self.put(self.up, sent)


@pytest.mark.parametrize("seed", range(150))
def test_a_daemon_is_dead_before_the_router_gives_its_session_up(seed: int) -> None:
    duel = Duel(seed)
    for _ in range(2000):
        before = duel.host.dead_by
        duel.step()
        if duel.gave_up_at is not None:
            # What it hears in the same moment comes too late: the kernel has ended it.
            assert before <= duel.gave_up_at
            break


def test_the_seeds_see_sessions_that_are_given_up_and_such_that_live_long() -> None:
    given_up, longest_s = 0, 0.0
    for seed in range(30):
        duel = Duel(seed)
        for _ in range(2000):
            duel.step()
            longest_s = max(longest_s, duel.host.dead_by - duel.now)
            if duel.gave_up_at is not None:
                given_up += 1
                break
    assert given_up > 5
    assert longest_s > 0.8 * LEASE_S
