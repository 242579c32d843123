"""What people are shown of jobs: plain dicts, the same over REST and on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exesys import codec, command
from exesys.states import State
from exesys.store.reader import Step

_UNFINISHED = (State.processing, State.start, State.standby)


def to_of(joined: str) -> str | list[str]:
    """Show a step's `to` as it was sent."""
    return joined.split(",") if "," in joined else joined


def job(job_id: str, steps: Sequence[Step], whole: bool = False) -> dict[str, Any]:
    """Describe a job: its state is that of its least finished step, and error when one failed.

    `whole` adds results, tracebacks and, once all is well, the job's `EOJ`.
    """
    states = {step.state for step in steps}
    state = next((state for state in _UNFINISHED if state in states), None)
    if state is None:
        state = State.error if State.error in states else State.data_available
    told: dict[str, Any] = {"job_id": job_id, "status": int(state), "state": state.name}
    told["steps"] = [_step(step, whole) for step in steps]
    if whole and state is State.data_available:
        ends = {step.from_: _value(step) for step in steps if step.text("to") == command.END or len(steps) == 1}
        told["EOJ"] = next(iter(ends.values())) if len(ends) == 1 else ends
    return told


def _value(step: Step) -> Any:
    return codec.unpack(step.fields["result"]).get("EOJ") if "result" in step.fields else None


def _step(step: Step, whole: bool) -> dict[str, Any]:
    told: dict[str, Any] = {
        "from": step.from_,
        "to": to_of(step.text("to")),
        "cmd": step.text("cmd"),
        "status": int(step.state),
        "state": step.state.name,
        "attempt": int(step.number("attempt") or 0),
    }
    for name, field in (("accepted_ms", "born"), ("began_ms", "began"), ("ended_ms", "ended")):
        if field in step.fields:
            told[name] = int(step.number(field) or 0)
    if "progress" in step.fields:
        told["progress"] = {"fraction": step.number("progress"), "text": step.text("note")}
    if step.state is State.processing:
        told["worker"] = step.text("worker")
    if whole and "result" in step.fields:
        told["result"] = codec.unpack(step.fields["result"])
    if "error" in step.fields and step.state is State.error:
        told["error"] = {**codec.unpack(step.fields["error"]), "attempts": told["attempt"]}
        if not whole:
            told["error"].pop("traceback", None)
    return told


def logs(steps: Sequence[Step], texts: Sequence[dict[int, str]]) -> list[dict[str, Any]]:
    """Describe what the steps of a job printed and logged."""
    return [
        {
            "from": step.from_,
            "to": to_of(step.text("to")),
            "attempts": [{"attempt": attempt, "log": log} for attempt, log in attempts.items()],
        }
        for step, attempts in zip(steps, texts, strict=True)
    ]
