"""What people are shown of jobs: plain dicts, the same over REST and on the command line."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from exesys import codec, command, workflow
from exesys.drawing import Node
from exesys.states import State
from exesys.store.reader import Callback, Reader, Step

HOLDING = ("rate", "concurrency")  # settings of a queue that hold up jobs
_UNFINISHED = (State.processing, State.start, State.standby)
# `sent` is no `began`: a job that was fetched ahead still waits at its worker.
_TIMES = (("accepted_ms", "born"), ("sent_ms", "sent"), ("began_ms", "began"), ("ended_ms", "ended"))


def to_of(joined: str) -> str | list[str]:
    """Show a step's `to` as it was sent."""
    return joined.split(",") if "," in joined else joined


def waits(step: Step, served: Mapping[str, bool]) -> str:
    """Say why a step waits in vain, or "". `served` tells of the queues that workers serve now which are paused."""
    queue = queue_of(step)
    if step.state is not State.start:
        return ""
    if queue not in served:
        return f"no worker serves the queue {queue}"
    return f"the queue {queue} is paused" if served[queue] else ""


def held_up(steps: Sequence[Step], served: Mapping[str, bool], reader: Reader) -> dict[int, str]:
    """Say of steps in start, by their place, what they wait for besides a free worker."""
    waiting = {place: step for place, step in enumerate(steps) if step.state is State.start}
    due = reader.due([step.ref for step in waiting.values()])
    limits = {queue.name: queue for queue in reader.queues(sorted({queue_of(step) for step in waiting.values()}))}
    found = {}
    for (place, step), due_ms in zip(waiting.items(), due, strict=True):
        queue = queue_of(step)
        limited = [f"{name} {limits[queue].settings[name]}" for name in HOLDING if limits[queue].settings.get(name)]
        if due_ms is not None:
            moment = dt.datetime.fromtimestamp(due_ms / 1000, dt.UTC)
            found[place] = f"its time, {moment:%Y-%m-%dT%H:%M:%SZ}"
        elif why := waits(step, served):
            found[place] = f"a free worker in the queue {queue}: {why}"
        elif step.text("key"):
            found[place] = f"the turn of its key {step.text('key')}, or a free worker, in the queue {queue}"
        elif limited:
            found[place] = f"the limits of the queue {queue} ({', '.join(limited)}), or a free worker"
    return found


def queue_of(step: Step) -> str:
    """Return the queue a step waits in, or would."""
    return step.text("queue") or command.DEFAULT_QUEUE


def served_by(workers: Iterable[Mapping[str, Any]], paused: Collection[str] = ()) -> dict[str, bool]:
    """Return the queues that these workers, as the router tells them, serve now, and whether each is paused."""
    return {queue: queue in paused for worker in workers if not worker["draining"] for queue in worker["queues"]}


def job(
    job_id: str,
    steps: Sequence[Step],
    whole: bool = False,
    served: Mapping[str, bool] | None = None,
    callbacks: Mapping[str, Callback] | None = None,
) -> dict[str, Any]:
    """Describe a job: its state is that of its least finished step, and error when one failed.

    `whole` adds data, results, tracebacks and, once all is well, the job's `EOJ`;
    `served`, the queues that workers serve now, adds what waits in vain;
    `callbacks`, by ref, how the telling of ends goes.
    """
    states = {step.state for step in steps}
    state = next((state for state in _UNFINISHED if state in states), None)
    if state is None:
        state = State.error if State.error in states else State.data_available
    told: dict[str, Any] = {"job_id": job_id, "status": int(state), "state": state.name}
    told["steps"] = [_step(step, whole) for step in steps]
    for step, shown in zip(steps, told["steps"], strict=True):
        if served is not None and (why := waits(step, served)):
            shown["waits"] = why
        if callbacks is not None and "notify" in step.fields:
            shown["notify"] = notify(step, callbacks.get(step.ref))
    if whole and state is State.data_available:
        ends = [step for step in steps if len(steps) == 1 or command.END in step.text("to").split(",")]
        values = [_value(step) for step in ends]
        names = workflow.call_feeders([workflow.Step(step.from_, tuple(step.text("to").split(","))) for step in ends])
        told["EOJ"] = values[0] if len(values) == 1 else dict(zip(names, values, strict=True))
    return told


def notify(step: Step, callback: Callback | None) -> dict[str, Any]:
    """Describe who is told of a step's end, and how that goes. After its note has expired, only the URL is known."""
    told: dict[str, Any] = {"url": step.text("notify")}
    if callback is None:
        return told if step.state.final else {**told, "state": "waiting", "tries": 0}
    told |= {"state": callback.outcome, "tries": callback.tries}
    if callback.error:
        told["error"] = callback.error
    if callback.next_ms is not None:
        told["next_ms"] = callback.next_ms
    return told


def untold(steps: Sequence[Step], callbacks: Mapping[str, Callback]) -> list[str]:
    """Say in a sentence of each step that has ended and was not told yet, or in vain, how that goes."""
    said = []
    for step in steps:
        callback = callbacks.get(step.ref)
        if callback is None or not step.state.final or callback.outcome == "sent":
            continue
        again = f"tries {callback.tries}" + (f", the last: {callback.error.rstrip('.')}" if callback.error else "")
        given_up = callback.outcome == "failed"
        how = "could not be told of its end" if given_up else "has still to be told of its end"
        said.append(f"{step.text('notify')} {how}, that of {step.from_} ({again})")
    return said


def dead(failed_ms: int, step: Step) -> dict[str, Any]:
    """Describe a step that failed by itself."""
    told = codec.unpack(step.fields["error"])
    return {
        "failed_ms": failed_ms,
        "job_id": step.job_id,
        "from": step.from_,
        "to": to_of(step.text("to")),
        "cmd": step.text("cmd"),
        "attempts": int(step.number("attempt") or 0),
        "error": {name: told.get(name, "") for name in ("type", "message")},
    }


def nodes(steps: Sequence[Step]) -> list[Node]:
    """Return the steps of a job as they are drawn."""
    return [
        Node(
            step.from_,
            tuple(step.text("to").split(",")),
            step.text("cmd"),
            step.state,
            int(step.number("attempt") or 0),
            queue_of(step),
        )
        for step in steps
    ]


def error_of(step: Step) -> str:
    """Say in a line why a step failed, and after how many attempts."""
    told = codec.unpack(step.fields["error"])
    attempts = int(step.number("attempt") or 0)
    often = f" (after {attempts} attempts)" if attempts > 1 else ""
    return f"{told['type']}: {told['message']}{often}"


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
    if step.state is not State.data_available:  # a finished record does not keep it
        told["queue"] = queue_of(step)
    for name, field in _TIMES:
        if field in step.fields:
            told[name] = int(step.number(field) or 0)
    if "progress" in step.fields:
        told["progress"] = {"fraction": step.number("progress"), "text": step.text("note")}
    for name in ("worker", "traceparent"):
        if name in step.fields:
            told[name] = step.text(name)
    if whole and "data" in step.fields:  # a record of what ended well does not keep it
        told["data"] = codec.unpack(step.fields["data"])
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
