"""What `exesys why` advises, for each way in which a job waits or has failed."""

from __future__ import annotations

from typing import Any

import pytest

from exesys import codec
from exesys.advice import MOST_TOLD, Surroundings, advice
from exesys.states import State
from exesys.store.reader import Step

WORKER = {"queues": ["default", "mail"], "slots": 2, "held": 2, "draining": False}


def step(state: State, from_: str = "client", to: str = "end_job", error: str = "", **fields: str) -> Step:
    kept = {name: text.encode() for name, text in {"to": to, "cmd": "add", **fields}.items()}
    if error:
        kept["error"] = codec.pack({"type": error, "message": "why", "traceback": ""})
    return Step(f"{from_}:job-1", state, kept)


def failed(kind: str) -> str:
    """Return what is advised for a step that has failed with this type."""
    told, retry = advice("job-1", [step(State.error, error=kind)], Surroundings())
    assert retry == "`bin/exesys retry job-1` then runs again what failed."
    return told


@pytest.mark.parametrize(
    ("kind", "named"),
    [
        ("Timeout", "timeout_s"),
        ("MemoryLimit", "[worker] memory_bytes"),
        ("Crashed", "bin/exesys logs worker"),
        ("WorkerLost", "bin/exesys doctor"),
        ("NoMongo", "[mongo] uri"),
        ("NeverFed", "`to` client"),
        ("ResultGone", "another job_id"),
        ("UnknownFunction", "bin/exesys functions"),
        ("BadStep", "docs/functions.md"),
        ("TooLarge", "[limits] data_bytes"),
        ("Cancelled", "cancelled client"),
        ("ValueError", "Mend what add raised, and `bin/exesys reload`. `bin/exesys logs --job job-1`"),
    ],
)
def test_each_failure_has_a_next_step(kind: str, named: str) -> None:
    assert named in failed(kind)
    assert "{" not in failed(kind)


def test_what_failed_with_another_needs_nothing_of_its_own() -> None:
    steps = [step(State.error, "A", "B", "ValueError"), step(State.error, "B", error="PredecessorFailed")]
    assert len(advice("job-1", steps, Surroundings())) == 2


def waiting(named: str, around: dict[str, Any], **fields: str) -> None:
    [told] = advice("job-1", [step(State.start, **fields)], Surroundings(**around))
    assert named in told


def test_each_reason_to_wait_has_a_next_step() -> None:
    waiting("bin/exesys logs router", {"workers": None})
    waiting("bin/exesys logs worker", {"workers": []})
    waiting("bin/exesys logs worker", {"workers": [{**WORKER, "draining": True}]})
    waiting("Add away to [worker] queues", {"workers": [WORKER]}, queue="away")
    waiting("`bin/exesys queue resume mail`", {"workers": [WORKER], "paused": {"mail"}}, queue="mail")
    limits = {"mail": {"rate": "1/m", "concurrency": "", "depth": "5"}}
    waiting("queue set mail --rate none`", {"workers": [WORKER], "limits": limits}, queue="mail")
    waiting("key_limit", {"workers": [WORKER]}, key="customer-7")
    waiting("4 jobs are with 4 slots", {"workers": [WORKER, WORKER]})


def test_who_waits_for_a_time_needs_nothing() -> None:
    waits = step(State.start)
    assert advice("job-1", [waits], Surroundings(workers=[], due={waits.ref: 1})) == []


def test_only_the_missing_step_is_asked_for() -> None:
    steps = [step(State.standby, "B", "C"), step(State.standby, "C")]
    [told] = advice("job-1", steps, Surroundings())
    assert told == ('Send the step whose result B is to get: {"from": "…", "to": "B", "cmd": "…", "job_id": "job-1"}.')


def test_what_runs_and_what_ended_well_needs_nothing() -> None:
    assert advice("job-1", [step(State.processing), step(State.data_available)], Surroundings()) == []


def test_of_many_the_first_few_are_told() -> None:
    steps = [step(State.error, f"step-{number}", error="Timeout", cmd=f"f{number}") for number in range(100)]
    told = advice("job-1", steps, Surroundings())
    assert len(told) == MOST_TOLD + 1
    assert told[0].startswith("f0 needs more time")
    assert told[-1].startswith("`bin/exesys retry")
