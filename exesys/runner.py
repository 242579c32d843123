"""What a runner is: its name, its states and the moves between them. Pure.

    new ──► starting ──► running ──► stopping ──► stopped
     │        ▲ │  ▲        │            │           │
     │        │ │  └────────┴── again ───┘           │
     │        │ └──► failed ──┐                      │
     └────────┼───────────────┴── by hand ◄──────────┘
              └─ (a stop that was loaded before: new ──► stopped)

A runner is a function that runs until it is told to stop. It is started again
after a crash of its process, of its daemon or of the machine, each life with
a higher *epoch*, until it is stopped, returns by itself, or has failed too
often. A runner that is starting may have no daemon yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import Any, NamedTuple

from exesys.errors import BadCommand, StateError

# No dot in a type: a topic is `stop.<type>.<uuid>`.
TYPE = re.compile(r"[A-Za-z0-9_-]{1,64}")
UUID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,127}")
MAX_GRACE_S = 3600.0
# Of a runner's record: what is a whole number, and what is text.
_NUMBERS = (b"epoch", b"size", b"failures", b"losses", b"restarts", b"born", b"began", b"ended", b"log_total")
_TEXTS = (b"target", b"session", b"host", b"job", b"how")
_MOST_DIGITS = 15  # Lua counts no further


class RunnerState(StrEnum):
    """Where a runner is."""

    starting = "starting"
    running = "running"
    stopping = "stopping"
    stopped = "stopped"
    failed = "failed"

    @property
    def final(self) -> bool:
        """Whether nothing of it runs, or will."""
        return self in (RunnerState.stopped, RunnerState.failed)


_S = RunnerState
MOVES: Mapping[RunnerState | None, frozenset[RunnerState]] = {
    None: frozenset({_S.starting, _S.stopped}),
    _S.starting: frozenset({_S.running, _S.stopping, _S.stopped, _S.failed, _S.starting}),
    _S.running: frozenset({_S.stopping, _S.starting, _S.stopped, _S.failed}),
    _S.stopping: frozenset({_S.stopped, _S.starting}),
    _S.stopped: frozenset({_S.starting}),
    _S.failed: frozenset({_S.starting}),
}


def check_move(old: RunnerState | None, new: RunnerState) -> RunnerState:
    """Return `new` if a runner may go there from `old`. Raises StateError."""
    if new in MOVES[old]:
        return new
    raise StateError(f"a runner cannot move from {old or 'new'} to {new}")


class Ending(IntEnum):
    """How one life of a runner ended, as its daemon saw it."""

    returned = 0  # the function returned by itself
    failed = 1  # it raised, or its process ended in another way
    killed = 2  # its process was killed from outside, or its daemon was lost
    handed_back = 3  # its daemon ends: another one, or the same later, is to go on
    stopped = 4  # it was told to stop and returned in time
    terminated = 5  # it did not, and ended at TERM
    forced = 6  # nor then: it was ended with KILL


HOW: Mapping[int, str] = {
    Ending.returned: "it returned by itself",
    Ending.failed: "it failed while it stopped",
    Ending.killed: "it was killed while it stopped",
    Ending.handed_back: "it stopped with its daemon",
    Ending.stopped: "it stopped when it was told to",
    Ending.terminated: "it did not stop within its grace period and was ended with TERM",
    Ending.forced: "it did not stop within its grace period, nor at TERM, and was killed",
}
EARLY = "a stop was loaded before it ran"


class Name(NamedTuple):
    """The name of a runner; written `type:uuid`."""

    type: str
    uuid: str

    def __str__(self) -> str:
        return f"{self.type}:{self.uuid}"


def check_type(value: Any) -> str:
    """Return the type of a runner. Raises BadCommand."""
    return _checked(value, TYPE, "type", "1 to 64 letters, digits, _ and -")


def check_name(type_: Any, uuid: Any) -> Name:
    """Return a runner's name from its two parts. Raises BadCommand."""
    return Name(check_type(type_), _checked(uuid, UUID, "uuid", "1 to 128 letters, digits, _, - and . (not first)"))


def parse_name(text: Any) -> Name:
    """Read `type:uuid`. Raises BadCommand."""
    if not isinstance(text, str) or text.count(":") != 1:
        raise BadCommand(f"{text!r:.100} is no name of a runner.", field="name", fix="It is written type:uuid.")
    return check_name(*text.split(":"))


def written(type_: Any, uuid: Any = None) -> str:
    """Return `type:uuid`, or a type alone, of what may be given in one part or in two. Raises BadCommand."""
    if uuid is not None:
        return str(check_name(type_, uuid))
    return str(parse_name(type_)) if isinstance(type_, str) and ":" in type_ else check_type(type_)


def check_options(grace_s: Any) -> float:
    """Return how long a runner may take to stop, in seconds; -1: what its daemon says. Raises BadCommand."""
    number = isinstance(grace_s, (int, float)) and not isinstance(grace_s, bool)
    if number and (grace_s == -1 or 0 <= grace_s <= MAX_GRACE_S):
        return float(grace_s)
    raise BadCommand(
        f"`grace_s` is {grace_s!r:.40}.", field="grace_s", fix=f"Give seconds, 0 to {MAX_GRACE_S:g}, or leave it out."
    )


def _checked(value: Any, pattern: re.Pattern[str], field: str, allowed: str) -> str:
    if isinstance(value, str) and pattern.fullmatch(value):
        return value
    raise BadCommand(f"`{field}` of a runner is {value!r:.60}.", field=field, fix=f"Use {allowed}.")


def default_type(target: str) -> str:
    """Return the type of a runner that was given none: the function's name without its module."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", target.rpartition(".")[2])[:64]


class Life(NamedTuple):
    """What decides whether a runner that ended is started again: how often it did lately, in a row."""

    failures: int
    losses: int


class Patience(NamedTuple):
    """The rules of starting again: so many ends in a row are too many, and the waits between, in seconds.

    A life of `healthy_s` or more begins the counting anew. Failures are the
    function's own fault; a process killed from outside or lost with its
    daemon seldom is, but one that takes all memory is killed in the same way.
    """

    max_failures: int
    max_losses: int
    backoff_s: float
    max_backoff_s: float
    healthy_s: float

    def after(self, life: Life, ending: Ending, lived_s: float) -> tuple[Life, float | None]:
        """Return the new counts, and after how many seconds it may start again (None: never)."""
        if ending is Ending.handed_back:
            return life, 0.0
        if ending is Ending.stopped:
            return life, self.backoff_s  # by a stop that was old: nobody's fault, but not to go round fast
        failures, losses = (0, 0) if lived_s >= self.healthy_s else life
        if ending is Ending.killed:
            counted = Life(failures, losses + 1)
            return counted, None if counted.losses >= self.max_losses else self._wait_s(min(counted.losses, 3))
        counted = Life(failures + 1, losses)
        return counted, None if counted.failures >= self.max_failures else self._wait_s(counted.failures)

    def _wait_s(self, number: int) -> float:
        return float(min(self.backoff_s * 2 ** (min(number, 30) - 1), self.max_backoff_s))


def misread(fields: Mapping[bytes, bytes]) -> str:
    """Say what makes no sense in a runner's record, which anyone may write to; "" when it can be read."""
    for key in (b"state", b"target"):
        if not fields.get(key):
            return f"its `{key.decode()}` is missing"
    if fields[b"state"] not in {state.encode() for state in RunnerState}:
        return f"its `state` is {fields[b'state']!r:.60}"
    for key in _NUMBERS:
        if not (number := fields.get(key, b"0")).isdigit() or len(number) > _MOST_DIGITS:
            return f"its `{key.decode()}` is {number!r:.60}"
    try:
        for key in _TEXTS:
            fields.get(key, b"").decode()
        key = b"grace_s"
        check_options(float(fields.get(key, b"-1")))
    except (ValueError, BadCommand):
        return f"its `{key.decode()}` is {fields[key]!r:.60}"
    return ""


def of_type(names: Sequence[Name], type_: str) -> list[Name]:
    """Return those of a type."""
    return [name for name in names if name.type == type_]
