"""Who is on the bus: peers, workers, their credit and their leases. Pure.

Credit is counted in absolute numbers. A worker says in every heartbeat how
many jobs it may hold (`capacity`) and how many run at once (`slots`); the
roster knows what it was sent and not yet reported, and deals only into the
difference: first to idle slots all round, then to prefetch, so that no worker
hoards while another is idle.

A worker is silent for a lease (heartbeat x misses) and is lost: its session
never comes back, and what it held goes to others. Time is monotonic.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Set
from dataclasses import dataclass, field
from typing import Any

from exesys.bus.messages import Heartbeat, Held
from exesys.catalogue import Catalogue
from exesys.meters import Tally
from exesys.turn import Claim

MOST_LOST_REMEMBERED = 10_000
SURE_S = 0.5  # so long a worker has to hold what it should not before we believe it
MOST_CLAIMED = 500
MOST_WORKERS = 500  # each has a socket of its own, and of these libzmq has some 1,000


@dataclass
class Peer:
    """One connection that said HELLO."""

    address: bytes  # the ROUTER's routing id
    session: str
    role: str
    seen: float
    key: str = ""  # what it proved to hold, as `roles.named` spells it; "" where none is needed


@dataclass(slots=True)
class Sent:
    """A job a worker holds: the attempt, and when it was last sent."""

    attempt: int
    at: float
    feeds: bool = False  # whether steps may start when it ends
    tally: Tally | None = None  # None when it was handed out by the router's life before


@dataclass
class Worker:
    peer: Peer
    queues: tuple[str, ...]
    catalogue: Catalogue
    info: dict[str, Any]
    slots: int = 0
    capacity: int = 0
    strangers: dict[str, float] = field(default_factory=dict)  # what it has and should not, and since when we know
    foreign: frozenset[str] = frozenset()  # of these, still there after a while: jobs given to others, or cancelled
    draining: bool = False
    recalled: bool = False  # whether `held` agrees with the store
    held: dict[str, Sent] = field(default_factory=dict)
    leaving: set[tuple[str, int]] = field(default_factory=set)  # of these, the attempts whose reports are here
    asked: int = 0  # what turns under way claim for it

    @property
    def busy(self) -> int:
        return len(self.held) + len(self.foreign) - len(self.leaving)

    @property
    def spoken_for(self) -> int:
        """How much of its credit is used, or may be by the turns under way."""
        return self.busy + self.asked

    @property
    def ready(self) -> bool:
        return self.recalled and not self.draining and self.capacity > 0

    def missing(self, beat: Heartbeat, now: float, patience_s: float) -> list[Held]:
        """Return the jobs sent long enough ago that the worker does not have."""
        has = {held.ref: held.attempt for held in beat.held}
        # A heartbeat tells of results whose acknowledgement is on its way: only what is there for a while counts.
        self.strangers = {ref: self.strangers.get(ref, now) for ref in has if ref not in self.held}
        self.foreign = frozenset(ref for ref, since in self.strangers.items() if now - since >= SURE_S)
        absent = [
            Held(ref, sent.attempt)
            for ref, sent in self.held.items()
            if has.get(ref) != sent.attempt and now - sent.at >= patience_s
        ]
        for held in absent:
            self.held[held.ref].at = now
        return absent


class Roster:
    """The peers and workers present, and the sessions still expected or lost."""

    def __init__(self, lease_s: float) -> None:
        self.lease_s = lease_s
        self.peers: dict[bytes, Peer] = {}
        self.sessions: dict[str, Peer] = {}
        self.workers: dict[str, Worker] = {}
        self._expected: dict[str, float] = {}  # session -> when it is given up
        self._lost: OrderedDict[str, None] = OrderedDict()
        self._turns = 0

    def expect(self, sessions: list[str], now: float) -> None:
        """Give sessions that the store knows a lease to come back after a restart."""
        for session in sessions:
            self._expected[session] = now + self.lease_s

    def awaited(self) -> list[str]:
        """Return the sessions of workers that are here, and those that may come back."""
        return [*self.workers, *self._expected]

    def admit(self, peer: Peer) -> None:
        """Take in a peer; a session that comes by a new connection leaves its old one."""
        old = self.sessions.get(peer.session)
        if old is not None:
            self.peers.pop(old.address, None)
        self.peers[peer.address] = peer
        self.sessions[peer.session] = peer
        self._expected.pop(peer.session, None)

    def was_lost(self, session: str) -> bool:
        return session in self._lost

    def dismiss(self, peer: Peer) -> Worker | None:
        """Forget a peer. Returns the worker it was."""
        if self.peers.get(peer.address) is peer:
            del self.peers[peer.address]
        if self.sessions.get(peer.session) is peer:
            del self.sessions[peer.session]
        return self.workers.pop(peer.session, None)

    def excuse(self, seconds: float) -> None:
        """Forgive everybody a time in which the router itself did not listen."""
        for peer in self.peers.values():
            peer.seen += seconds
        for session in self._expected:
            self._expected[session] += seconds

    def overdue(self, now: float) -> tuple[list[Peer], list[str]]:
        """Dismiss whoever was silent for a lease.

        Returns the peers, and the sessions of workers and runner daemons (also
        those that never came back) whose jobs and runners go to others.
        """
        silent = [peer for peer in self.peers.values() if now - peer.seen > self.lease_s]
        lost = [session for session, until in self._expected.items() if now >= until]
        for session in lost:
            del self._expected[session]
        for peer in silent:
            if self.dismiss(peer) or peer.role == "runner":
                lost.append(peer.session)
        for session in lost:
            self._lost[session] = None
        while len(self._lost) > MOST_LOST_REMEMBERED:
            self._lost.popitem(last=False)
        return silent, lost

    def claims(self, sated: Set[str]) -> list[Claim]:
        """Turn the free credit into claims: idle slots of all first, then prefetch. `sated` get none.

        What is claimed is spoken for until it is `answered`.
        """
        if self.workers.keys() <= sated:
            return []
        self._turns += 1
        workers = [
            worker
            for session, worker in self.workers.items()
            if session not in sated and worker.ready and worker.spoken_for < worker.capacity
        ]
        start = self._turns % len(workers) if workers else 0
        claims = list(self._deal(workers[start:] + workers[:start]))
        for claim in claims:
            self.workers[claim.session].asked += claim.most
        return claims

    def answered(self, claims: Iterable[Claim]) -> None:
        """The store has answered these claims: they take up no more credit."""
        for claim in claims:
            if (worker := self.workers.get(claim.session)) is not None:
                worker.asked -= claim.most

    def _deal(self, workers: list[Worker]) -> Iterator[Claim]:
        left = MOST_CLAIMED
        for worker in workers:
            used = worker.spoken_for
            idle = min(worker.slots - used, worker.capacity - used, left)
            if idle > 0:
                left -= idle
                yield Claim(worker.peer.session, idle, worker.queues)
        for place, worker in enumerate(workers):
            share = math.ceil(left / (len(workers) - place))
            ahead = min(worker.capacity - max(worker.spoken_for, worker.slots), share)
            if ahead > 0:
                left -= ahead
                yield Claim(worker.peer.session, ahead, worker.queues)
