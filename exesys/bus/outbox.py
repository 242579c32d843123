"""What the router has to tell its peers, and when. Pure.

Answers of a turn are gathered per session and kind, so that each peer gets
one message of a kind. Two kinds may wait a moment (`LAZY_S`): the SUBMIT_ACK
of a command whose DONE will say the same and more, which then need not be
sent at all, and RESULT_ACKs, which go together.

Who waits for a step's end stands in the step's record, so that memory here
does not grow with the backlog; kept here is only who asked for it later.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from exesys.bus import messages as m
from exesys.states import State

LAZY_S = 0.02
MOST_WAITED_FOR = 100_000
MOST_WAITERS = 64
NEVER = float("inf")


class Outbox:
    """Answers by session, until `messages` takes them out."""

    def __init__(self) -> None:
        self._now: defaultdict[str, defaultdict[type[Any], list[Any]]] = defaultdict(lambda: defaultdict(list))
        self._unsaid: dict[
            tuple[str, int], tuple[float, State]
        ] = {}  # session, tag of commands taken -> when to say so
        self._acks: defaultdict[str, list[m.Held]] = defaultdict(list)
        self._acks_at = NEVER
        self._waiters: dict[str, list[tuple[str, int]]] = {}  # ref -> session, tag

    def answer(self, session: str, kind: type[Any], answer: m.Answer) -> None:
        """Give an answer with the next messages."""
        self._now[session][kind].append(answer)

    def taken(self, session: str, tag: int, now: float, state: State = State.start) -> None:
        """A command was stored whose DONE is wanted: say so if that does not come first."""
        self._unsaid[session, tag] = (now + LAZY_S, state)

    def ack(self, session: str, held: m.Held, now: float) -> None:
        """A worker's report was committed, or was stale."""
        self._acks[session].append(held)
        self._acks_at = min(self._acks_at, now + LAZY_S)

    def wait(self, ref: str, session: str, tag: int) -> None:
        """Someone asked to be told of a step's end after it was sent."""
        if len(self._waiters) >= MOST_WAITED_FOR:
            return  # who is not told asks again: a client's recheck
        waiters = self._waiters.setdefault(ref, [])
        if (session, tag) not in waiters:
            waiters.append((session, tag))
            del waiters[:-MOST_WAITERS]

    def ended(self, ref: str, peer: str, state: State, body: Any) -> None:
        """A step ended: tell whoever its record names (`session.tag`, or ""), and who asked later."""
        waiters = self._waiters.pop(ref, []) if self._waiters else []
        if peer:
            session, _, tag = peer.rpartition(".")
            waiters = [(session, int(tag)), *waiters]
        for session, number in waiters:
            self._unsaid.pop((session, number), None)
            self._now[session][m.Done].append(m.Answer(number, state, body))

    @property
    def next_at(self) -> float:
        """When the next lazy answer is due."""
        return min(self._acks_at, next(iter(self._unsaid.values()))[0] if self._unsaid else NEVER)

    def messages(self, now: float) -> Iterator[tuple[str, m.Message]]:
        """Take out what is to be sent now, with the session it is for."""
        while self._unsaid:
            session, tag = first = next(iter(self._unsaid))
            at, state = self._unsaid[first]
            if at > now:
                break
            del self._unsaid[first]
            self._now[session][m.SubmitAck].append(m.Answer(tag, state, None))
        if self._now:
            gathered = dict(self._now)
            self._now.clear()
            for session, kinds in gathered.items():
                for kind, answers in kinds.items():
                    yield session, kind(tuple(answers))
        if now >= self._acks_at:
            acks = dict(self._acks)
            self._acks.clear()
            self._acks_at = NEVER
            for session, helds in acks.items():
                yield session, m.ResultAck(tuple(helds))
