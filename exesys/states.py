"""The life of a step: five states and the table of moves between them.

    new ──► start ──► processing ──► data_available
     │        ▲ │         │
     ▼        │ │         ▼
    standby ──┘ └──────► error ──► start (by hand)

A step stands in exactly one state. The state is the last part of its Redis
key, so moving on is a RENAME and two states at once cannot be written down.
`processing → start` is a retry or a lost worker; `standby → error` and
`start → error` are a cancel or a failed predecessor.
"""

from __future__ import annotations

from enum import IntEnum

from exesys.errors import StateError


class State(IntEnum):
    """Numbers as in the user's document; the names are part of Redis keys."""

    start = 0
    standby = 1
    processing = 2
    data_available = 3
    error = 4

    @property
    def final(self) -> bool:
        return self is State.data_available or self is State.error


MOVES: dict[State | None, frozenset[State]] = {
    None: frozenset({State.start, State.standby}),
    State.standby: frozenset({State.start, State.error}),
    State.start: frozenset({State.processing, State.error}),
    State.processing: frozenset({State.data_available, State.error, State.start}),
    State.data_available: frozenset(),
    State.error: frozenset({State.start}),
}


def check_move(old: State | None, new: State) -> State:
    """Return `new` if the step may go there from `old` (None: it is new).

    Raises StateError otherwise, and changes nothing.
    """
    if new in MOVES[old]:
        return new
    here = "new" if old is None else old.name
    allowed = ", ".join(state.name for state in sorted(MOVES[old])) or "nothing"
    raise StateError(f"a step cannot move from {here} to {new.name}; from there it can go to {allowed}")
