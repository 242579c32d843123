"""What one turn of the router asks of the store, and what the store answers.

The router's core fills a `Turn`; the store runs it as one pipeline of a few
scripts that take many jobs each (group commit) and fills the answers. Every
request is idempotent, so that a turn whose answers were lost with the
connection is simply run again. The order inside a turn is fixed: reports,
releases, mending, tunings, submits, changes, runners, claims, then reads. So who sends a job and cancels
it at once finds it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from exesys.bus.messages import Find, Held, Job, Note, Repair, Report
from exesys.command import Command
from exesys.news import Entry
from exesys.runner import Name
from exesys.states import State
from exesys.workflow import Graph


class Placed(NamedTuple):
    """A checked command on its way into the store.

    `options` already hold the function's own defaults; `peer` is
    `session.tag` of the client to tell about the end, or "".
    """

    command: Command
    options: dict[str, Any]
    peer: str
    due_ms: int  # 0: at once
    waits: bool = False  # to be fed, in standby; a negative `due_ms` counts from then


class Taken(NamedTuple):
    """The store's answer to a placed command."""

    verdict: str  # new, same, conflict, full, circle, long; refused: the store could not write it
    ref: str
    state: State
    body: Any  # as in messages.Answer; of a circle, its names
    also: tuple[Ended, ...] = ()  # steps that failed with it


class Flow(NamedTuple):
    """A checked workflow, to be stored as a whole or not at all."""

    job_id: str
    steps: tuple[Placed, ...]
    graph: Graph


class Closed(NamedTuple):
    """A report to commit; `jitter` in [0, 1) spreads the back-off, `added` are steps for the same job."""

    session: str
    report: Report
    jitter: float
    added: tuple[Placed, ...] = ()


class Ended(NamedTuple):
    """The store's answer to a report, or a step that ended in a release."""

    ref: str
    attempt: int
    stale: bool
    state: State
    peer: str
    body: Any
    started: int = 0  # steps of its job that start now
    also: tuple[Ended, ...] = ()  # steps that failed with it
    cmd: str = ""  # of a step that failed otherwise than by a report


class Stored(NamedTuple):
    """The store's answer to a workflow: its steps in their order, none if it was not taken."""

    verdict: str  # new, same, conflict, full, refused
    ref: str  # the step that is in the way
    steps: tuple[tuple[str, State, Any], ...]  # ref, state, body


class Change(NamedTuple):
    """Cancel a job, retry what failed of it, or remove one that failed."""

    what: str  # cancel, retry, purge
    job_id: str


class Changed(NamedTuple):
    """The store's answer to a change."""

    steps: int  # how many were changed; -1: no such job, -2: it is under way, -3: it has not failed
    ended: tuple[Ended, ...]
    sessions: tuple[str, ...]  # of the workers that run them, "" where none does


class Tuning(NamedTuple):
    """Change what is kept beside jobs; `fields` as Redis keeps them, "" takes one away."""

    kind: str  # timer, queue
    what: str  # add, put, merge, remove
    name: str
    fields: Mapping[str, str | int | float | bytes]


class Enlist(NamedTuple):
    """Store a new runner. `digest` tells whether a second one of this name is the same."""

    name: Name
    target: str
    data: bytes
    digest: bytes
    grace_s: float
    job: str


class Assign(NamedTuple):
    """Give a runner's next life to a daemon, unless its stop is loaded."""

    name: Name
    epoch: int
    session: str
    host: str


class Noted(NamedTuple):
    """Change a runner's record, if this is still its epoch; `final`: nothing of it goes on."""

    name: Name
    epoch: int
    final: bool
    fields: Mapping[str, Any]


class Halt(NamedTuple):
    """Load a runner's stop, or heed it if it is `loaded`. Without a uuid: forget that of all of a type."""

    name: Name
    loaded: bool = False


class Revive(NamedTuple):
    """Let a runner that has ended run again."""

    name: Name


class Loglines(NamedTuple):
    """What a life has printed and logged since the chunk before."""

    name: Name
    epoch: int
    chunk: int
    text: str


RunnerOp = Enlist | Assign | Noted | Halt | Revive | Loglines


class RunnerDone(NamedTuple):
    """The store's answer to a RunnerOp: a verdict (see runner.lua), and the record where it is asked for.

    For a record that somebody spoilt, so that it cannot be read, the verdict is `spoilt`.
    """

    verdict: str
    fields: Mapping[bytes, bytes]


class Looked(NamedTuple):
    """The store's answer to the finds of a turn: what was mended, and what follows for those it concerns."""

    done: int  # how many finds were looked at, from the first on
    again: tuple[Find, ...] = ()  # those to go on with
    repairs: tuple[Repair, ...] = ()
    strays: tuple[str, ...] = ()  # sessions that hold jobs, or may, and that the router does not know
    rejoined: tuple[str, ...] = ()  # sessions that were given back what they hold
    ended: tuple[Ended, ...] = ()  # steps that failed


class Claim(NamedTuple):
    """Up to `most` jobs from `queues` for one worker's session."""

    session: str
    most: int
    queues: tuple[str, ...]


class Claimed(NamedTuple):
    session: str
    jobs: tuple[Job, ...]
    ready_ms: tuple[int, ...]  # per job since when it could have been handed out


NEWEST = "$"
MOST_FOLLOWED = 200  # entries of news that one turn reads; the rest comes with the next


class Lookup(NamedTuple):
    job_id: str
    from_: str
    to: str


class Found(NamedTuple):
    ref: str
    state: State | None  # None: no such step
    body: Any


@dataclass
class Turn:
    """One group commit: the requests of a turn."""

    now_ms: int = 0  # wall clock, only ever stored
    reports: list[Closed] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)  # sessions whose jobs go back
    placed: list[Placed] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    runners: list[RunnerOp] = field(default_factory=list)
    tunings: list[Tuning] = field(default_factory=list)
    sweep: bool = False  # give up steps that nothing feeds
    finds: list[Find] = field(default_factory=list)  # to be looked at, and mended
    known: list[str] = field(default_factory=list)  # with finds: worker sessions that are here or expected
    claims: list[Claim] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)  # worker sessions to remember
    recalls: list[str] = field(default_factory=list)  # sessions: what do they hold?
    reloads: list[Held] = field(default_factory=list)  # jobs to send once more
    catalogue: bytes = b""  # what the workers can do, to remember
    follow: str = ""  # what was told behind this place is to be given; NEWEST: only the place itself

    @property
    def _writes_more(self) -> bool:
        """Whether it changes the store other than by commands, reports and claims."""
        return bool(
            self.changes
            or self.runners
            or self.tunings
            or self.sweep
            or self.finds
            or self.notes
            or self.lost
            or self.opened
            or self.catalogue
        )

    @property
    def writes(self) -> bool:
        """Whether it changes the store other than by its claims."""
        return bool(self.reports or self.placed or self.flows or self._writes_more)

    @property
    def plain(self) -> bool:
        """Whether it has nothing but commands, reports, claims and what clients ask."""
        return not (self._writes_more or self.recalls or self.reloads or self.follow)

    @property
    def steps(self) -> int:
        """How many steps it is about, without those of workflows."""
        return len(self.placed) + len(self.reports)

    def __bool__(self) -> bool:
        return bool(self.writes or self.claims or self.lookups or self.recalls or self.reloads or self.follow)


@dataclass
class Answers:
    """The answers to a turn, each list in the order of its requests."""

    ended: list[Ended] = field(default_factory=list)
    lost: list[tuple[int, list[Ended]]] = field(default_factory=list)  # still held, steps that failed for good
    taken: list[Taken] = field(default_factory=list)
    stored: list[Stored] = field(default_factory=list)
    changed: list[Changed] = field(default_factory=list)
    runners: list[RunnerDone] = field(default_factory=list)
    tuned: list[str] = field(default_factory=list)  # verdicts: changed, same, exists, none, full, foreign; refused
    swept: list[Ended] = field(default_factory=list)
    looked: Looked | None = None
    next_unfed_ms: int = 0  # when the next step is to be given up that nothing feeds; 0: none is
    claimed: list[Claimed] = field(default_factory=list)
    claims_lost: bool = False  # the claims were sent, but not their answers
    next_due_ms: int = 0  # when the next delayed step is due; 0: none waits
    found: list[Found] = field(default_factory=list)
    recalled: list[tuple[Held, ...]] = field(default_factory=list)
    reloaded: list[Job] = field(default_factory=list)
    followed: list[Entry] | None = None  # what was told behind `Turn.follow`; None: it could not be read
