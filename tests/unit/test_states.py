"""The table of moves, against the list in the design."""

from __future__ import annotations

import itertools

import pytest

from exesys.errors import StateError
from exesys.states import State, check_move

ALLOWED = {
    (None, "start"),
    (None, "standby"),
    ("standby", "start"),
    ("start", "processing"),
    ("processing", "data_available"),
    ("processing", "error"),
    ("processing", "start"),
    ("standby", "error"),
    ("start", "error"),
    ("error", "start"),
}


@pytest.mark.parametrize(("old", "new"), list(itertools.product([None, *State], State)))
def test_each_move(old: State | None, new: State) -> None:
    if (old.name if old is not None else None, new.name) in ALLOWED:
        assert check_move(old, new) is new
    else:
        with pytest.raises(StateError) as caught:
            check_move(old, new)
        assert (old.name if old is not None else "new") in str(caught.value)
        assert caught.value.code == "bad_state"


def test_numbers_and_names_are_those_of_the_document() -> None:
    assert [(state.value, state.name) for state in State] == [
        (0, "start"),
        (1, "standby"),
        (2, "processing"),
        (3, "data_available"),
        (4, "error"),
    ]
    assert [state for state in State if state.final] == [State.data_available, State.error]


def test_a_refusal_says_what_is_allowed() -> None:
    with pytest.raises(StateError, match="from processing to standby; from there it can go to start, data_avail"):
        check_move(State.processing, State.standby)
    with pytest.raises(StateError, match="it can go to nothing"):
        check_move(State.data_available, State.start)
