"""The drill's plan is the same for a seed, and its account finds each kind of fault."""

from __future__ import annotations

from itertools import islice
from typing import Any

import pytest

from exesys.chaos import drill, plan
from exesys.chaos.account import Account, Life, Record, Run, read_lives, read_runs
from exesys.chaos.plan import Step
from exesys.command import Limits, from_json, workflow_from_json
from exesys.store.keys import PATTERNS
from exesys.workflow import Graph

LIMITS = Limits(1 << 20, 100)
STEP = Step("plain", "bus:j", "bus", "end_job", 8)
VALUE = {"number": 8, "token": "t2"}
RUNS = {STEP.mark: [Run(1, "t1"), Run(2, "t2", 5.0)]}


def test_the_same_seed_gives_the_same_orders_and_blows() -> None:
    def first(seed: int) -> tuple[list[plan.Order], list[plan.Blow]]:
        return list(islice(plan.orders(seed, "bus"), 200)), list(islice(plan.blows(seed, plan.deck(), (0, 1)), 60))

    assert first(1) == first(1)
    assert first(1) != first(2)


def test_all_blows_of_a_deck_fall_before_one_comes_again() -> None:
    deck = plan.deck()
    fallen = [(blow.kind, blow.victims) for blow in islice(plan.blows(3, deck, (0, 1)), 2 * len(deck))]
    assert sorted(fallen[: len(deck)]) == sorted(fallen[len(deck) :]) == sorted(deck)


def test_blows_are_chosen_by_kind_and_by_name() -> None:
    assert plan.deck(["kill-router", "full-disk"]) == [("kill", ("router",)), ("full disk", ())]
    assert {kind for kind, _ in plan.deck(["freeze"])} == {"freeze"}
    assert plan.deck(["nothing"]) == []


def test_orders_are_commands_that_the_system_takes() -> None:
    kinds = set()
    for order in islice(plan.orders(7, "rest"), 1000):
        kinds |= {step.kind for step in order.steps}
        if order.workflow:
            commands = workflow_from_json(order.commands, LIMITS, lambda: "")
            Graph((each.from_, each.to) for each in commands).check(100)
        else:
            [given] = order.commands
            assert from_json(given, LIMITS, lambda: "").job_id == order.job_id
    assert kinds == {*plan.KINDS, "workflow"}


def test_what_a_workflow_shall_give() -> None:
    parts = {step.ref: (step.number, step.feeders) for step in plan._steps("parts", "j", 10)}
    assert parts["a:j"] == (11, ())
    assert parts["a.2:j"] == (3, ())
    assert parts["m:j"] == (11 + 2 + 3 + 4 + 1, ("a:j", "a.1:j", "a.2:j", "a.3:j"))
    diamond = {step.ref: step.number for step in plan._steps("diamond", "j", 10)}
    assert diamond == {"a:j": 11, "b:j": 12, "c:j": 12, "d:j": 12, "e:j": 37}
    document = [step.ref for step in plan._steps("document", "j", 0)]
    assert document == ["a:j", "b:j", "c:j", "c>e:j", "d:j", "e:j"]


def account_of(records: list[Record], runs: dict[str, list[Run]] = RUNS, step: Step = STEP, **more: Any) -> list[str]:
    account = Account()
    account.costly = more.get("costly", [])
    account.steps([step], {step.ref: records}, runs, more.get("heard", {}))
    assert account.exact is not account.faults
    assert account.rows[step.kind]["wrong"] == len(account.faults)
    return account.faults


def test_what_is_right_is_exact() -> None:
    assert account_of([Record("data_available", 2, VALUE)], heard={STEP.ref: VALUE}) == []


FAULTS: list[tuple[str, list[Record], dict[str, Any]]] = [
    ("is nowhere", [], {}),
    ("stands in start and error", [Record("start", 0, None), Record("error", 1, {})], {}),
    ("has not ended", [Record("processing", 2, None)], {}),
    ("never expires", [Record("data_available", 2, VALUE, expires=False)], {}),
    ("ended in error", [Record("error", 2, {"message": "no"})], {}),
    ("7, and 8 is right", [Record("data_available", 2, {**VALUE, "number": 7})], {}),
    ("of no run", [Record("data_available", 2, {**VALUE, "token": "late"})], {}),
    ("that of attempt 2, and 3", [Record("data_available", 3, VALUE)], {}),
    ("2 times in 1", [Record("data_available", 1, VALUE)], {}),
    ("a client was told", [Record("data_available", 2, VALUE)], {"heard": {STEP.ref: {"number": 9}}}),
    (
        "an attempt ran twice",
        [Record("data_available", 2, VALUE)],
        {"runs": {STEP.mark: [Run(2, "t1"), Run(2, "t2")]}},
    ),
    (
        "came to its end, its worker lived on",
        [Record("data_available", 2, VALUE)],
        {"runs": {STEP.mark: [Run(1, "t1", 4.0), Run(2, "t2", 5.0)]}, "costly": [(1.0, 3.9)]},
    ),
    ("should have failed", [Record("data_available", 2, VALUE)], {"step": STEP._replace(number=None)}),
]


@pytest.mark.parametrize(("told", "records", "more"), FAULTS, ids=[told for told, *_ in FAULTS])
def test_each_fault_is_found(told: str, records: list[Record], more: dict[str, Any]) -> None:
    [fault] = account_of(records, **more)
    assert fault.startswith("plain bus:j: ")
    assert told in fault


def test_a_result_may_be_lost_with_its_worker() -> None:
    runs = {STEP.mark: [Run(1, "t1", 4.0), Run(2, "t2", 5.0)]}
    assert account_of([Record("data_available", 2, VALUE)], runs, costly=[(3.0, 6.0)]) == []


def test_a_step_was_fed_by_what_its_feeders_hold() -> None:
    fed = Step("workflow", "b:j", "b", "end_job", 8, ("a:j",))
    runs = {fed.mark: [Run(1, "t2", 1.0)]}
    records = {"b:j": [Record("data_available", 1, {**VALUE, "given": ["x"]})]}
    for token, faults in (("x", 0), ("y", 1)):
        account = Account()
        account.steps([fed], {**records, "a:j": [Record("data_available", 1, {"token": token})]}, runs, {})
        assert len(account.faults) == faults


@pytest.mark.parametrize(
    ("lives", "stopped_s", "told"),
    [
        ([Life(1, 7, 0, 1), Life(2, 8, 1.5, 3)], 3.0, ""),
        ([], None, "never lived"),
        ([Life(1, 7, 0, 2), Life(2, 8, 1.5, 3)], None, "two lives at once"),
        ([Life(1, 7, 0, 1), Life(1, 8, 1.5, 3)], None, "an epoch lived twice"),
        ([Life(1, 7, 0, 4)], 3.0, "after its stop"),
    ],
)
def test_lives_of_a_runner(lives: list[Life], stopped_s: float | None, told: str) -> None:
    account = Account()
    account.lives("r1", lives, stopped_s)
    assert account.exact is (told == "")
    assert all(told in fault for fault in account.faults)


def test_two_steps_of_a_key_do_not_run_at_once() -> None:
    steps = [STEP._replace(ref=f"bus:{n}", kind="keyed", key="k") for n in (1, 2)]
    for began_s, costly, faults in ((2.5, [], 0), (1.5, [], 1), (1.5, [(1.0, 2.0)], 0)):
        account = Account()
        account.costly = costly
        runs = {
            steps[0].mark: [Run(1, "7.1000000000", 2.0)],
            steps[1].mark: [Run(1, f"8.{int(began_s * 1e9)}", 3.0)],
        }
        account.keys(steps, runs)
        assert len(account.faults) == faults, (began_s, costly)


@pytest.mark.parametrize(("count", "slack", "faults"), [(100, 0, 0), (93, 0, 0), (60, 0, 1), (60, 40, 0), (180, 0, 1)])
def test_timers_tick_as_often_as_is_due(count: int, slack: float, faults: int) -> None:
    account = Account()
    account.ticked("fast", count, 100.0, slack)
    assert len(account.faults) == faults


def test_what_is_left_is_told() -> None:
    account = Account()
    account.left("keys", [])
    assert account.exact
    account.left("keys", list("abcdefg"))
    assert account.faults == ["7 keys left: a, b, c, d, e …."]


def test_the_files_of_marks_are_read() -> None:
    assert read_runs(["m 1 t1", "m 1 t1 5.5", "m 2 t2"]) == {"m": [Run(1, "t1", 5.5), Run(2, "t2")]}
    assert read_lives(["1 7 0.5", "1 7 2.5", "2 8 3.0", "2 8"]) == [Life(1, 7, 0.5, 2.5), Life(2, 8, 3.0, 3.0)]


def test_every_key_is_looked_for() -> None:
    kinds = [drill.OF_A_JOB, drill.STANDING, drill.GONE]
    assert sorted(name for kind in kinds for name in kind) == sorted(PATTERNS)
