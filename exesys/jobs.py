"""What the command line does with jobs: send, ask, draw, cancel, retry."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exesys import command, output, reach
from exesys.config import Config
from exesys.errors import BadCommand, ExesysError, NotFound, ResultTimeout
from exesys.states import State
from exesys.usage import PROGRAM

if TYPE_CHECKING:
    from exesys.bus.client import Client
    from exesys.bus.handle import Handle
    from exesys.bus.jobhandle import JobHandle
    from exesys.store.reader import Step

REASON_S = 1.0


def submit(config: Config, given: argparse.Namespace) -> int:
    from exesys.bus.client import ANSWER_S, describe

    options = {name: getattr(given, name) for name in command.OPTIONS if getattr(given, name) is not None}
    to = given.to.split(",") if "," in given.to else given.to
    with reach.connect(config) as client:
        data = reach.data(given.data)
        handle = client.submit(given.cmd, data, job_id=given.job_id, from_=given.from_, to=to, **options)
        handle.accepted(ANSWER_S)
        try:
            late = given.wait is not None and not handle.wait(given.wait)
        except KeyboardInterrupt:
            output.note(f"job {handle.job_id} goes on. Ask: {PROGRAM} result {handle.job_id}")
            raise
        if late:
            raise _late(config, client, handle, given.wait)
        if given.json:
            output.show(
                {"job_id": handle.job_id, "from": handle.from_, "to": to, "cmd": handle.cmd, **describe(handle)}
            )
            return 1 if handle.state is State.error else 0
        if given.wait is None:
            print(handle.job_id)
        else:
            output.show(handle.result(0))
    return 0


def _late(config: Config, client: Client, handle: Handle, wait_s: float) -> ResultTimeout:
    """Say that the time is over, and that no worker will ever take the job, if that is so."""
    from exesys import views

    why = ""
    with contextlib.suppress(ExesysError):  # it is only a help
        workers = client.snapshot("workers", timeout=REASON_S)["workers"]
        reader = reach.reader(config)
        [steps] = reader.steps([handle.job_id])
        served = views.served_by(workers, reader.paused())
        why = next(filter(None, (views.waits(step, served) for step in steps if step.from_ == handle.from_)), "")
    fix = f"Ask: {PROGRAM} result {handle.job_id}"
    if why:
        restart = f"Add it to [worker] queues and `{PROGRAM} restart`."
        fix = f"`{PROGRAM} queue list` shows more." if why.endswith("paused") else restart
    late = f"job {handle.job_id} has not ended within {wait_s:g} s"
    return ResultTimeout(f"{late}: {why}." if why else f"{late}.", fix=fix)


def result(config: Config, given: argparse.Namespace) -> int:
    from exesys.bus.client import ANSWER_S, describe

    with reach.connect(config) as client:
        if not (given.from_ or given.to):
            [steps] = reach.reader(config, given.job_id).steps([command.check_name(given.job_id, "job_id")])
            ends = any(command.END in step.text("to").split(",") for step in steps)
            if len(steps) > 1 and ends:
                return _whole_result(client, given, steps)
        handle = client.follow(given.job_id, given.from_ or command.DEFAULT_FROM, given.to or command.END)
        try:
            handle.accepted(ANSWER_S)
        except NotFound:
            steps = reach.steps_of(reach.reader(config, given.job_id), given.job_id)
            step = _only_step(given, steps)
            handle = client.follow(given.job_id, step.from_, step.text("to"))
            handle.accepted(ANSWER_S)
        ended = handle.wait(given.wait)
        if given.json:
            output.show({"job_id": given.job_id, "from": handle.from_, "to": handle.to, **describe(handle)})
            return 4 if not ended else 1 if handle.state is State.error else 0
        if not ended:
            raise _late(config, client, handle, given.wait)
        output.show(handle.result(0))
    return 0


def _whole_result(client: Client, given: argparse.Namespace, steps: list[Step]) -> int:
    """Wait for a workflow's end, and print its value."""
    from exesys.bus.client import ANSWER_S
    from exesys.bus.jobhandle import JobHandle
    from exesys.workflow import Graph

    graph = Graph((step.from_, step.text("to")) for step in steps)
    handles = [client.follow(given.job_id, step.from_, step.text("to")) for step in steps]
    handle = JobHandle(given.job_id, graph, handles, client.follow)
    handle.accepted(ANSWER_S)
    return _show_value(handle, given)


def _show_value(handle: JobHandle, given: argparse.Namespace) -> int:
    """Wait `--wait` seconds for a workflow's value, and print it. Raises JobError, ResultTimeout."""
    if not handle.wait(given.wait):
        fix = f"Ask: {PROGRAM} why {handle.job_id}"
        raise ResultTimeout(f"job {handle.job_id} has not ended within {given.wait:g} s.", fix=fix)
    value = handle.result(0)
    output.show({"job_id": handle.job_id, "EOJ": value} if given.json else value)
    return 0


def _only_step(given: argparse.Namespace, steps: list[Step]) -> Step:
    """Return the step of a job that is meant, when only one can be. Raises NotFound."""
    fitting = [step for step in steps if given.from_ in (None, step.from_) and given.to in (None, step.text("to"))]
    if len(fitting) != 1:
        listed = "; ".join(f"--from {step.from_} --to {step.text('to')}" for step in steps[:5])
        text = (
            f"job {given.job_id} has {len(fitting)} such steps." if fitting else f"job {given.job_id} has no such step."
        )
        raise NotFound(text, fix=f"Name one of its steps: {listed}.")
    return fitting[0]


def jobs(config: Config, given: argparse.Namespace) -> int:
    from exesys import views, watching
    from exesys.store.reader import Sought

    if given.follow:
        return watching.follow(config, given)
    reader = reach.reader(config, given.job_id)
    if given.job_id:
        steps = reach.steps_of(reader, given.job_id)
        told = views.job(given.job_id, steps, whole=True, callbacks=reader.callbacks(steps))
        output.show(told) if given.json else output.show_whole(told)
        return 0
    sought = Sought(State[given.state] if given.state else None, given.cmd or "")
    found, _ = reader.jobs(given.limit, sought=sought)
    jobs = [views.job(job_id, steps) for job_id, steps in found]
    if given.json:
        output.show(jobs)
        return 0
    rows = [
        [
            job["job_id"],
            step["from"],
            output.names(step["to"]),
            step["cmd"],
            step["state"],
            step["attempt"],
            output.when(step.get("accepted_ms")),
            step.get("error", {}).get("message", ""),
        ]
        for job in jobs
        for step in job["steps"]
    ]
    output.table(("job_id", "from", "to", "cmd", "state", "attempt", "accepted", "error"), rows)
    if not rows:
        asked_for = [f"in state {given.state}"] * bool(given.state) + [f"of {given.cmd}"] * bool(given.cmd)
        output.note(f"there is no job {' '.join(asked_for)}".rstrip() + ".")
    return 0


def job_log(config: Config, given: argparse.Namespace) -> int:
    from exesys import views, watching

    reader = reach.reader(config, given.job)
    steps = reach.steps_of(reader, given.job)
    if given.follow:
        return watching.follow_log(config, reader, given.job)
    told = views.logs(steps, reader.logs(steps))
    if given.json:
        output.show(told)
        return 0
    for step in told:
        if len(told) > 1:
            print(f"--- from {step['from']} to {output.names(step['to'])} ---")
        _print_attempts({each["attempt"]: each["log"] for each in step["attempts"]})
    if not any(step["attempts"] for step in told):
        so_far = "" if all(step.state.final for step in steps) else " so far"
        output.note(f"job {given.job} has printed and logged nothing{so_far}.")
    return 0


def has_log(config: Config, job_id: str) -> bool:
    """Tell whether a job has printed or logged anything; not when the store cannot be asked."""
    if not job_id:
        return False
    with contextlib.suppress(ExesysError):
        reader = reach.reader(config, job_id)
        [steps] = reader.steps([job_id])
        return any(text for attempts in reader.logs(steps) for text in attempts.values())
    return False


def _print_attempts(logs: dict[int, str]) -> None:
    """Print what each attempt left, each but the first below a line with its number."""
    for attempt, log in sorted(logs.items()):
        if attempt > 1:
            print(f"--- attempt {attempt} ---")
        print(log, end="" if log.endswith("\n") or not log else "\n")


def workflow_submit(config: Config, given: argparse.Namespace) -> int:
    from exesys.bus.client import ANSWER_S

    steps, job_id = _workflow_file(given.file)
    with reach.connect(config) as client:
        handle = client.workflow(steps, given.job_id or job_id)
        handle.accepted(ANSWER_S)
        if given.wait is None:
            output.show({"job_id": handle.job_id}) if given.json else print(handle.job_id)
            return 0
        return _show_value(handle, given)


def _workflow_file(name: str) -> tuple[list[dict[str, Any]], str | None]:
    """Read a workflow: an array of commands, or an object with `steps` and perhaps a `job_id`. JSON or YAML."""
    fix = "Write an array of commands, as POST /sys_cmd takes it."
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text("utf-8")
        told = _yaml(name, text) if name.endswith((".yaml", ".yml")) else json.loads(text)
    except OSError as error:
        raise BadCommand(f"{name} cannot be read: {error.strerror}.", fix="Give a file of JSON or YAML.") from error
    except (ValueError, RecursionError) as error:
        raise BadCommand(f"{name} is no JSON: {error}.", fix=fix) from error
    if isinstance(told, dict) and isinstance(told.get("steps"), list) and not told.keys() - {"steps", "job_id"}:
        return told["steps"], told.get("job_id")
    if not isinstance(told, list):
        raise BadCommand(f"{name} holds no array of commands.", fix=fix)
    return told, None


def _yaml(name: str, text: str) -> Any:
    import importlib

    try:
        yaml = importlib.import_module("yaml")
    except ImportError:
        raise BadCommand(f"{name} is YAML, and pyyaml is not installed.", fix="Install it, or write JSON.") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise BadCommand(f"{name} is no YAML: {' '.join(str(error).split())}.") from error


def workflow_show(config: Config, given: argparse.Namespace) -> int:
    from exesys import drawing, views

    nodes = views.nodes(reach.steps_of(reach.reader(config, given.job_id), given.job_id))
    if given.json:
        told = [{**node._asdict(), "state": node.state.name} for node in nodes]
        output.show([{name.rstrip("_"): value for name, value in each.items()} for each in told])
    else:
        draw = drawing.dot if given.dot else drawing.mermaid if given.mermaid else drawing.text
        print(draw(nodes).rstrip())
    return 0


def change(config: Config, given: argparse.Namespace) -> int:
    """Cancel a job, or retry it."""
    what = {
        "cancel": ("cancelled", "cancelled", "had ended already"),
        "retry": ("retried", "started again", "had not failed"),
    }
    name, done, nothing = what[given.what]
    with reach.connect(config) as client:
        changed = client.cancel(given.job_id) if given.what == "cancel" else client.retry(given.job_id)
    if given.json:
        output.show({"job_id": given.job_id, name: changed})
    elif changed:
        print(f"{changed} step{'s' if changed > 1 else ''} of job {given.job_id} {done}.")
    else:
        print(f"Nothing to do: job {given.job_id} {nothing}.")
    return 0


def functions(config: Config, given: argparse.Namespace) -> int:
    with reach.connect(config) as client:
        functions = client.snapshot("functions")["functions"]
    if given.json:
        output.show(functions)
        return 0
    rows = [[each["name"], each["module"], each["signature"], each["doc"]] for each in functions["functions"]]
    output.table(("name", "module", "takes", "does"), rows)
    output.note_broken(functions["broken"])
    return 0
