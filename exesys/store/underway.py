"""The turns that were sent to Redis and are not answered yet, oldest first. No connection here.

Redis runs what it is sent in order, and so its replies come in order. One
thing breaks it: a turn of which Redis refused a part is sent once more in
single pieces, behind whatever was sent meanwhile. Turns end in their own order
all the same: one that is answered waits for those before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from exesys.store.scripts import CHUNK, Request
from exesys.turn import Answers, Turn

MOST_UNDERWAY = 2  # turns: while the answers of one are dealt with, Redis has the next


@dataclass(eq=False)
class Flight:
    """A turn on its way: what was asked, and what has come back so far."""

    turn: Turn
    number: int  # as the journal counts
    chunk: int = CHUNK  # so many jobs in one request
    claims_lost: bool = False  # they were sent, and are not to be sent again
    spoilt: bool = False  # a part of it was refused
    requests: list[Request] = field(default_factory=list)
    replies: list[Any] = field(default_factory=list)
    answers: Answers = field(default_factory=Answers)

    @property
    def answered(self) -> bool:
        """Whether all replies are here."""
        return len(self.replies) >= len(self.requests) > 0

    def lose_claims(self) -> None:
        """What is sent from now on is without claims: what the first ones got is found by asking."""
        self.claims_lost = self.claims_lost or bool(self.turn.claims)
        self.turn.claims.clear()


class Underway:
    """The flights, and whose replies come next."""

    def __init__(self) -> None:
        self.flights: deque[Flight] = deque()  # in the order in which they end
        self._awaited: deque[Flight] = deque()  # in the order in which their replies come

    @property
    def answered(self) -> bool:
        """Whether all replies to the oldest turn are here."""
        return bool(self.flights) and self.flights[0].answered

    def begin(self, turn: Turn, number: int) -> Flight:
        """Take in the next turn."""
        flight = Flight(turn, number)
        self.flights.append(flight)
        return flight

    def sent(self, flight: Flight) -> None:
        """Something was asked for a flight: its replies come behind all others."""
        self._awaited.append(flight)

    def reached(self, flight: Flight) -> int:
        """Return the number of the last turn that Redis has when it has this flight: they were all sent before it."""
        sent = (each for each in self.flights if each.answered or each in self._awaited)
        return max(flight.number, *(each.number for each in sent), 0)

    def take(self, reply: Any, refused: bool) -> Flight | None:
        """Take the next reply. Returns a flight that is to be sent once more, in single pieces.

        One job spoils its chunk: sent by itself, it alone is refused.
        """
        flight = self._awaited[0]
        flight.replies.append(reply)
        flight.spoilt = flight.spoilt or refused
        if not flight.answered:
            return None
        self._awaited.popleft()
        if flight.chunk == 1 or not flight.spoilt:
            return None
        flight.chunk = 1
        flight.lose_claims()
        return flight

    def restart(self) -> Iterator[Flight]:
        """Forget what is on its way on a connection that broke, and yield what is to be sent once more."""
        self._awaited.clear()
        for flight in self.flights:
            if not flight.answered:
                flight.lose_claims()
                yield flight

    def end(self) -> Flight:
        """Take out the oldest turn."""
        return self.flights.popleft()
