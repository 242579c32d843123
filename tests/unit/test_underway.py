"""Turns under way: which is answered, which is sent once more, and what the mark in the store may say."""

from __future__ import annotations

import pytest

from exesys.store.redis import PING
from exesys.store.scripts import CHUNK
from exesys.store.underway import Flight, Underway
from exesys.turn import Claim, Turn


@pytest.fixture
def underway() -> Underway:
    return Underway()


def send(underway: Underway, flight: Flight, requests: int = 2) -> None:
    flight.requests, flight.replies, flight.spoilt = [PING] * requests, [], False
    underway.sent(flight)


def begin(underway: Underway, number: int) -> Flight:
    flight = underway.begin(Turn(claims=[Claim("s", 1, ("default",))]), number)
    send(underway, flight)
    return flight


def answer(underway: Underway, *refused: bool) -> list[Flight]:
    """Give as many replies; return what is to be sent once more."""
    taken = [underway.take(b"", each) for each in refused]
    return [flight for flight in taken if flight is not None]


def test_replies_go_to_the_turns_in_the_order_of_their_requests(underway: Underway) -> None:
    first, second = begin(underway, 1), begin(underway, 2)
    assert not underway.answered
    assert answer(underway, False) == []
    assert not underway.answered
    answer(underway, False, False)
    assert (first.answered, second.answered, underway.answered) == (True, False, True)
    assert underway.end() is first
    assert not underway.answered
    answer(underway, False)
    assert underway.end() is second
    assert not underway.answered


def test_one_that_was_refused_is_sent_once_more_behind_the_other_and_ends_before_it(underway: Underway) -> None:
    first, second = begin(underway, 1), begin(underway, 2)
    [again] = answer(underway, True, False)
    assert (again, again.chunk, again.claims_lost, again.turn.claims) == (first, 1, True, [])
    assert underway.reached(again) == 2, "the second was sent before it"
    send(underway, again, 3)
    answer(underway, False, False)
    assert (second.answered, underway.answered) == (True, False)
    assert answer(underway, True, False, False) == [], "in single pieces it is refused for good"
    assert [underway.end(), underway.end()] == [first, second]
    assert (second.chunk, second.claims_lost) == (CHUNK, False)


def test_after_a_break_all_that_is_not_answered_is_sent_again_in_order(underway: Underway) -> None:
    first, second = begin(underway, 4), begin(underway, 5)
    answer(underway, False)
    reached = []
    for flight in underway.restart():
        reached.append(underway.reached(flight))
        send(underway, flight)
    assert reached == [4, 5], "the mark does not say more than was sent"
    assert all(flight.claims_lost and not flight.turn.claims for flight in (first, second))
    answer(underway, False, False, False, False)
    assert [underway.end(), underway.end()] == [first, second]


def test_what_was_answered_before_a_break_is_not_sent_again(underway: Underway) -> None:
    first, second = begin(underway, 4), begin(underway, 5)
    [again] = answer(underway, False, True)
    send(underway, again)
    answer(underway, False, False)
    [left] = underway.restart()
    assert left is first
    assert underway.reached(left) == 5, "or Redis would seem to have lost the other"
    assert not second.claims_lost
