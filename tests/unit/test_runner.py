"""A runner's name, its states, and when it is started again."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from exesys import runner
from exesys.errors import BadCommand, StateError
from exesys.runner import HOW, MOVES, Ending, Life, Name, Patience, RunnerState

S = RunnerState
RULES = Patience(max_failures=4, max_losses=6, backoff_s=0.5, max_backoff_s=3.0, healthy_s=10.0)
NONE = Life(0, 0)


@pytest.mark.parametrize(
    ("type_", "uuid"), [("a", "b"), ("A_b-9", "x.y_z-1"), ("t" * 64, "u" * 128), ("0", "16fd2706-8baf-433b")]
)
def test_a_name_is_written_and_read(type_: str, uuid: str) -> None:
    name = runner.check_name(type_, uuid)
    assert name == Name(type_, uuid)
    assert runner.parse_name(str(name)) == name
    assert runner.written(type_, uuid) == runner.written(str(name)) == f"{type_}:{uuid}"
    assert runner.written(type_) == type_


@pytest.mark.parametrize("type_", ["", "a.b", "a b", "a:b", "é", "t" * 65, "a\n", "*", None, 7, b"a"])
def test_a_bad_type_is_refused(type_: Any) -> None:
    with pytest.raises(BadCommand) as caught:
        runner.check_name(type_, "u")
    assert caught.value.problem[2] == "type"


@pytest.mark.parametrize("uuid", ["", "a b", "a:b", "é", "u" * 129, "a\n", "*", None, 7, b"a"])
def test_a_bad_uuid_is_refused(uuid: Any) -> None:
    with pytest.raises(BadCommand) as caught:
        runner.check_name("t", uuid)
    assert caught.value.problem[2] == "uuid"


@pytest.mark.parametrize("text", ["", "t", "t:", ":u", "t:u:v", ":", "t.x:u", None, 7, ["t", "u"]])
def test_what_is_no_name_is_refused(text: Any) -> None:
    with pytest.raises(BadCommand):
        runner.parse_name(text)


@pytest.mark.parametrize("parts", [("",), (None,), ("a.b",), ("t:u", "v"), ("t", ""), (7, "u")])
def test_what_names_neither_a_runner_nor_a_type_is_refused(parts: tuple[Any, ...]) -> None:
    with pytest.raises(BadCommand):
        runner.written(*parts)


@pytest.mark.parametrize("grace_s", [-1, 0, 0.5, 3600, 3600.0])
def test_a_grace_period_may_be_none_or_up_to_an_hour(grace_s: float) -> None:
    assert runner.check_options(grace_s) == grace_s


@pytest.mark.parametrize("grace_s", [-0.5, -2, 3600.1, float("inf"), float("nan"), True, "1", None])
def test_a_bad_grace_period_is_refused(grace_s: Any) -> None:
    with pytest.raises(BadCommand):
        runner.check_options(grace_s)


@pytest.mark.parametrize(
    ("target", "type_"), [("m.f", "f"), ("f", "f"), ("m.a_b", "a_b"), ("m.é", "-"), ("m." + "x" * 80, "x" * 64)]
)
def test_the_type_of_one_that_was_given_none_is_its_function(target: str, type_: str) -> None:
    assert runner.default_type(target) == type_
    assert runner.check_type(runner.default_type(target)) == type_


def test_the_moves() -> None:
    allowed = {(old, new) for old, new in itertools.product([None, *S], S) if new in MOVES[old]}
    for old, new in itertools.product([None, *S], S):
        if (old, new) in allowed:
            assert runner.check_move(old, new) is new
        else:
            with pytest.raises(StateError, match=f"from {old or 'new'} to {new}"):
                runner.check_move(old, new)
    assert {new for old, new in allowed if old in (S.stopped, S.failed)} == {S.starting}
    assert {new for old, new in allowed if old is None} == {S.starting, S.stopped}
    assert not {(S.stopping, S.running), (S.stopping, S.failed), (None, S.running)} & allowed
    assert {state for state in S if state.final} == {S.stopped, S.failed}


def test_every_way_to_end_has_its_sentence() -> None:
    assert HOW.keys() == set(Ending)
    assert len(set(HOW.values())) == len(Ending)


def test_failures_wait_ever_longer_until_they_are_too_many() -> None:
    life, waits = NONE, list[float | None]()
    for _ in range(4):
        life, wait_s = RULES.after(life, Ending.failed, 0.1)
        waits.append(wait_s)
    assert waits == [0.5, 1.0, 2.0, None]
    assert life == Life(4, 0)


def test_a_wait_is_never_longer_than_the_longest() -> None:
    rules = RULES._replace(max_failures=10**6)
    assert rules.after(Life(3, 0), Ending.failed, 0.0)[1] == 3.0
    assert rules.after(Life(99_999, 0), Ending.failed, 0.0)[1] == 3.0


def test_losses_wait_shortly_and_may_be_many() -> None:
    life, waits = NONE, list[float | None]()
    for _ in range(6):
        life, wait_s = RULES.after(life, Ending.killed, 0.1)
        waits.append(wait_s)
    assert waits == [0.5, 1.0, 2.0, 2.0, 2.0, None]
    assert life == Life(0, 6)


def test_failures_and_losses_are_counted_apart() -> None:
    life = NONE
    for ending in (Ending.failed, Ending.killed, Ending.failed, Ending.killed, Ending.failed):
        life, wait_s = RULES.after(life, ending, 0.1)
        assert wait_s is not None
    assert life == Life(3, 2)


@pytest.mark.parametrize("ending", [Ending.failed, Ending.killed])
def test_a_healthy_life_begins_the_counting_anew(ending: Ending) -> None:
    for counted in (Life(3, 5), NONE):
        life, wait_s = RULES.after(counted, ending, 10.0)
        assert (sum(life), wait_s) == (1, 0.5)
    life, wait_s = RULES.after(Life(3, 5), ending, 9.9)
    assert wait_s is None
    assert sum(life) == 9


@pytest.mark.parametrize(("ending", "wait_s"), [(Ending.handed_back, 0.0), (Ending.stopped, 0.5)])
def test_one_that_was_told_to_end_starts_again_soon_and_counts_nothing(ending: Ending, wait_s: float) -> None:
    for lived_s in (0.0, 100.0):
        assert RULES.after(Life(3, 5), ending, lived_s) == (Life(3, 5), wait_s)


@pytest.mark.parametrize("ending", [Ending.terminated, Ending.forced])
def test_one_that_had_to_be_ended_counts_as_failed(ending: Ending) -> None:
    assert RULES.after(NONE, ending, 1.0) == (Life(1, 0), 0.5)


def test_those_of_a_type_are_found() -> None:
    names = [Name("a", "1"), Name("ab", "1"), Name("a", "2")]
    assert runner.of_type(names, "a") == [Name("a", "1"), Name("a", "2")]
    assert runner.of_type(names, "b") == []
