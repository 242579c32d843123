"""What to do next about a job that waits or has failed, in sentences for a person. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from exesys import codec, views
from exesys.states import State
from exesys.store.reader import Step

MOST_TOLD = 6
_PROGRAM = "bin/exesys"
_FOLLOWED = "PredecessorFailed"  # what failed because another step did needs nothing of its own
_LOG = "`bin/exesys logs --job {job}` shows what it printed"
# By the `type` of an error that no function has raised.
_BY_TYPE = {
    "Timeout": "{cmd} needs more time: send it with a larger `timeout_s`, or write @exesys.function(timeout_s=…)"
    f" before the function and `bin/exesys reload`. {_LOG}.",
    "MemoryLimit": "{cmd} needs more memory than [worker] memory_bytes allows: raise it and `bin/exesys restart`, or"
    " give the function less at a time.",
    "Crashed": f"{{cmd}} ended its process. {_LOG}, `bin/exesys logs worker` what C code wrote. SIGKILL is mostly the"
    " kernel's, for want of memory; SIGSEGV is a fault in a package with C code.",
    "WorkerLost": "The workers that had {name} were lost: see `bin/exesys logs worker` and `bin/exesys doctor`.",
    "NoMongo": "Install mongod, or set [mongo] uri in etc/exesys.ini; then `bin/exesys restart`.",
    "NeverFed": "Send it again, and with it the step whose result it is to get, which goes `to` {name}.",
    "ResultGone": "What it needs has expired: send the workflow again under another job_id.",
    "UnknownFunction": "`bin/exesys functions` lists what can be called: correct the module, and `bin/exesys reload`.",
    "BadStep": f"The function adds a step that does not fit its job: docs/functions.md has the rules. {_LOG}.",
    "TooLarge": "Store it elsewhere and return where it is, or raise [limits] data_bytes and `bin/exesys restart`.",
    "Cancelled": "Somebody has cancelled {name}.",
}
_RAISED = f"Mend what {{cmd}} raised, and `bin/exesys reload`. {_LOG}, `bin/exesys jobs {{job}}` has the traceback."


class Surroundings(NamedTuple):
    """What stands around the steps of a job.

    `workers` are those that the router tells, None when it does not answer;
    `paused` are names of queues; `limits` has the settings of queues by name;
    `due` says by ref when a step may begin, in ms, if it waits for a time.
    """

    workers: Sequence[Mapping[str, Any]] | None = ()
    paused: Collection[str] = ()
    limits: Mapping[str, Mapping[str, str]] = {}
    due: Mapping[str, int | None] = {}


def advice(job_id: str, steps: Sequence[Step], around: Surroundings) -> list[str]:
    """Say what to do about the steps of a job: each sentence once, and the first few of many."""
    feeding = {name for step in steps for name in step.text("to").split(",")}
    told: dict[str, None] = {}
    for step in steps:
        if step.state is State.error:
            told.update(dict.fromkeys(_failed(job_id, step)))
        elif step.state is State.start and around.due.get(step.ref) is None:
            told.update(dict.fromkeys(_waits(step, around)))
        elif step.state is State.standby and step.from_ not in feeding:
            missing = f'{{"from": "…", "to": "{step.from_}", "cmd": "…", "job_id": "{job_id}"}}'
            told[f"Send the step whose result {step.from_} is to get: {missing}."] = None
    shown = list(told)[:MOST_TOLD]
    if any(step.state is State.error for step in steps):
        shown.append(f"`{_PROGRAM} retry {job_id}` then runs again what failed.")
    return shown


def _failed(job_id: str, step: Step) -> Iterator[str]:
    kind = str(codec.unpack(step.fields["error"])["type"])
    if kind != _FOLLOWED:
        yield _BY_TYPE.get(kind, _RAISED).format(name=step.from_, cmd=step.text("cmd"), job=job_id)


def _waits(step: Step, around: Surroundings) -> Iterator[str]:
    queue = views.queue_of(step)
    if around.workers is None:
        yield f"The router does not answer: see `{_PROGRAM} status` and `{_PROGRAM} logs router`."
        return
    there = [worker for worker in around.workers if not worker["draining"]]
    serving = [worker for worker in there if queue in worker["queues"]]
    settings = around.limits.get(queue, {})
    limits = [name for name in views.HOLDING if settings.get(name)]
    if not there:
        yield f"No worker is there: see `{_PROGRAM} status` and `{_PROGRAM} logs worker`."
    elif not serving:
        yield f"Add {queue} to [worker] queues in etc/exesys.ini, and `{_PROGRAM} restart`: see docs/queues.md."
    elif queue in around.paused:
        yield f"`{_PROGRAM} queue resume {queue}` lets it go on."
    elif limits:
        options = " ".join(f"--{name} none" for name in limits)
        yield f"`{_PROGRAM} queue list` shows the limits; `{_PROGRAM} queue set {queue} {options}` takes them away."
    elif step.text("key"):
        yield "Jobs of one key take turns; `key_limit` says how many of them run at once: see docs/queues.md."
    else:
        yield _busy(serving)


def _busy(serving: Iterable[Mapping[str, Any]]) -> str:
    counts = [(worker["slots"], worker["held"]) for worker in serving]
    slots, held = (sum(column) for column in zip(*counts, strict=True))
    return (
        f"{held} jobs are with {slots} slots: `{_PROGRAM} jobs --state processing` lists them."
        " [worker] slots says how many run at once."
    )
