"""`bin/exesys`: the command line. Calls once what was asked for, and prints; the work is done elsewhere.

Exit codes: 0 well, 1 the job or the action failed, 2 wrong usage or a refused
command, 3 the system is not there, 4 the time was over.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exesys import command, environment, output, usage
from exesys.config import Config
from exesys.errors import (
    BadCommand,
    BootError,
    ConfigError,
    ExesysError,
    JobError,
    NotFound,
    ResultTimeout,
    Unavailable,
)
from exesys.states import State
from exesys.usage import PROGRAM

if TYPE_CHECKING:
    from exesys.bus.client import Client
    from exesys.bus.handle import Handle
    from exesys.store.reader import Reader, Step

CONNECT_S = 3.0
RELOAD_S = 10.0
REASON_S = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = _parser()
    given, options = parser.parse_known_args(arguments)
    if given.run is None and not options:
        parser.print_help(sys.stderr)
        return 2
    if options and given.run is not _bench:
        (given.parser or parser).error(f"unrecognized arguments: {' '.join(options)}")
    given.options = options
    try:
        config = environment.load()
        code: int = given.run(config, given)
    except ExesysError as error:
        _complain(error, given.json)
        return _exit_code(error)
    except BrokenPipeError:
        # The reader of our output went away; nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _exit_code(error: ExesysError) -> int:
    if isinstance(error, ResultTimeout):
        return 4
    if isinstance(error, Unavailable):
        return 3
    if isinstance(error, (JobError, BootError, ConfigError, NotFound)):
        return 1
    return 2


def _complain(error: ExesysError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.problem._asdict()}))
        return
    print(f"exesys: {error}", file=sys.stderr)
    if isinstance(error, JobError):
        if error.traceback:
            print(error.traceback.rstrip(), file=sys.stderr)
        if error.job_id:
            print(f"What it printed: {PROGRAM} logs --job {error.job_id}", file=sys.stderr)


# --- the system -----------------------------------------------------------


def _up(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap

    return bootstrap.up(config, foreground=given.foreground, as_json=given.json)


def _down(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap

    return bootstrap.down(config, as_json=given.json)


def _restart(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap

    return bootstrap.restart(config, as_json=given.json)


def _status(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap

    status = bootstrap.status(config)
    if given.json:
        output.show(status)
    else:
        print(f"home   {status['home']}")
        for name, address in (("rest", "url"), ("web", "url"), ("redis", "url"), ("mongo", "uri"), ("bus", "endpoint")):
            print(f"{name:6} {status[name][address] or 'none'}")
        rows = [[each["name"], each["state"], each["pid"] or ""] for each in status["programs"]]
        if status["running"]:
            output.table(("program", "state", "pid"), rows)
        else:
            print(f"Nothing runs here. Start it with `{PROGRAM} up`.")
    states = {each["state"] for each in status["programs"]}
    return 0 if status["running"] and states <= {"RUNNING"} else 1


def _reload(config: Config, given: argparse.Namespace) -> int:
    import signal

    from exesys import bootstrap
    from exesys.process import wait_until

    workers = [each["pid"] for each in bootstrap.status(config)["programs"] if each["name"] == "worker" and each["pid"]]
    if not workers:
        raise Unavailable("no worker runs here.", fix=f"Start the system with `{PROGRAM} up`.")
    with _connect(config) as client:
        before = _loads(client)
        for pid in workers:
            os.kill(pid, signal.SIGHUP)
        loaded = wait_until(
            lambda: all(_loads(client).get(session, 0) > loads for session, loads in before.items()), RELOAD_S, 0.05
        )
        broken = client.snapshot("functions")["functions"]["broken"]
    if given.json:
        output.show({"workers": len(workers), "loaded": loaded, "broken": broken})
    elif loaded:
        print("The changed modules are loaded. Jobs that run go on with the old ones.")
        output.note_broken(broken)
    else:
        print(f"The modules are loaded anew as running jobs end. See `{PROGRAM} functions`.")
    return 0


def _loads(client: Client) -> dict[str, int]:
    """Return how often each worker has loaded its modules, by session."""
    return {worker["session"]: worker["loads"] for worker in client.snapshot("workers")["workers"]}


def _logs(config: Config, given: argparse.Namespace) -> int:
    if given.job:
        return _job_log(config, given)
    from exesys import bootstrap, home

    if given.follow and (given.json or not given.program):
        text = "--follow needs the name of one program, and gives no JSON."
        raise BadCommand(text, fix=f"For example: {PROGRAM} logs worker --follow")
    names = [given.program] if given.program else bootstrap.logged(config)
    if given.json:
        output.show({name: home.tail(bootstrap.log_of(config, name), given.lines) for name in names})
        return 0
    if given.program:
        return bootstrap.logs(config, given.program, given.lines, given.follow)
    for name in names:
        print(f"==> {name} <==")
        bootstrap.logs(config, name, given.lines)
    if not names:
        output.note(f"there is no log in {config.log} yet. Start the system with `{PROGRAM} up`.")
    return 0


def _doctor(config: Config, given: argparse.Namespace) -> int:
    from exesys.doctor import doctor

    checks = doctor(config)
    if given.json:
        output.show([check._asdict() for check in checks])
    else:
        for check in checks:
            mark = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}[check.state]
            print(f"{mark} {check.name}: {check.message}" + (f"\n     → {check.fix}" if check.fix else ""))
    return 1 if any(check.state == "fail" for check in checks) else 0


def _bench(config: Config, given: argparse.Namespace) -> int:
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "run.py"
    if not script.is_file():
        raise BootError(f"There is no {script}.", fix="The benchmark runs from a checkout of ExeSys.")
    os.execv(sys.executable, [sys.executable, "-P", str(script), *(["--json"] if given.json else []), *given.options])


def _demo(config: Config, given: argparse.Namespace) -> int:
    from exesys import demo

    with _connect(config) as client:
        return demo.run(config, client, given.path, given.query, output.show if given.json else None)


# --- jobs -----------------------------------------------------------------


def _connect(config: Config) -> Client:
    from exesys.bus.client import Client

    client = Client(config)
    if not client.wait_connected(CONNECT_S):
        client.close()
        raise Unavailable(
            f"no router answers at {config.bus_endpoint}.",
            fix=f"Is the system up? See `{PROGRAM} status`, or start it with `{PROGRAM} up`.",
        )
    return client


def _data(text: str | None) -> Any:
    """Read DATA: JSON, else the text itself; `@file` and `-` (standard input) must hold JSON."""
    if text is None:
        return None
    source = "standard input" if text == "-" else text[1:] if text.startswith("@") else ""
    try:
        if text == "-":
            return json.load(sys.stdin)
        if source:
            return json.loads(Path(source).read_text("utf-8"))
        return json.loads(text)
    except RecursionError:
        raise BadCommand("DATA is nested too deep to be read.", field="data", fix="Flatten it.") from None
    except OSError as error:
        fix = f"A text that begins with @ is written as JSON: '\"{text}\"'."
        raise BadCommand(f"DATA cannot be read from {source}: {error.strerror}.", field="data", fix=fix) from error
    except ValueError as error:
        if source:
            raise BadCommand(f"DATA from {source} is no JSON: {error}.", field="data") from error
        if text.lstrip()[:1] in ("{", "[", '"'):
            output.note(f"DATA looks like JSON and is none, so it is sent as text: {error}.")
        return text


def _submit(config: Config, given: argparse.Namespace) -> int:
    from exesys.bus.client import ANSWER_S, describe

    options = {name: getattr(given, name) for name in command.OPTIONS if getattr(given, name) is not None}
    to = given.to.split(",") if "," in given.to else given.to
    with _connect(config) as client:
        data = _data(given.data)
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
        [steps] = _reader(config).steps([handle.job_id])
        served = views.served_by(workers)
        why = next(filter(None, (views.waits(step, served) for step in steps if step.from_ == handle.from_)), "")
    fix = f"Add it to [worker] queues and `{PROGRAM} restart`." if why else f"Ask: {PROGRAM} result {handle.job_id}"
    late = f"job {handle.job_id} has not ended within {wait_s:g} s"
    return ResultTimeout(f"{late}: {why}." if why else f"{late}.", fix=fix)


def _result(config: Config, given: argparse.Namespace) -> int:
    from exesys.bus.client import ANSWER_S, describe

    with _connect(config) as client:
        handle = client.follow(given.job_id, given.from_ or command.DEFAULT_FROM, given.to or command.END)
        try:
            handle.accepted(ANSWER_S)
        except NotFound:
            step = _only_step(config, given)
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


def _only_step(config: Config, given: argparse.Namespace) -> Step:
    """Return the step of a job that is meant, when only one can be. Raises NotFound."""
    steps = _steps(_reader(config), given.job_id)
    fitting = [step for step in steps if given.from_ in (None, step.from_) and given.to in (None, step.text("to"))]
    if len(fitting) != 1:
        listed = "; ".join(f"--from {step.from_} --to {step.text('to')}" for step in steps[:5])
        text = (
            f"job {given.job_id} has {len(fitting)} such steps." if fitting else f"job {given.job_id} has no such step."
        )
        raise NotFound(text, fix=f"Name one of its steps: {listed}.")
    return fitting[0]


def _reader(config: Config) -> Reader:
    from exesys.store.reader import Reader

    return Reader(config.redis_url, config.redis.prefix)


def _steps(reader: Reader, job_id: str) -> list[Step]:
    """Return all steps of a job. Raises NotFound."""
    [steps] = reader.steps([command.check_name(job_id, "job_id")])
    if not steps:
        raise NotFound(f"there is no job {job_id}.", fix="It was never sent, or its results have expired.")
    return steps


def _jobs(config: Config, given: argparse.Namespace) -> int:
    from exesys import views

    reader = _reader(config)
    if given.job_id:
        told = views.job(given.job_id, _steps(reader, given.job_id), whole=True)
        output.show(told) if given.json else output.show_whole(told)
        return 0
    found, _ = reader.jobs(given.limit, state=State[given.state] if given.state else None)
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
        output.note(f"there is no job in state {given.state}." if given.state else "there is no job.")
    return 0


def _job_log(config: Config, given: argparse.Namespace) -> int:
    from exesys import views

    reader = _reader(config)
    steps = _steps(reader, given.job)
    told = views.logs(steps, reader.logs(steps))
    if given.json:
        output.show(told)
        return 0
    for step in told:
        if len(told) > 1:
            print(f"--- from {step['from']} to {output.names(step['to'])} ---")
        _print_attempts({each["attempt"]: each["log"] for each in step["attempts"]})
    if not any(step["attempts"] for step in told):
        output.note(f"job {given.job} has printed and logged nothing so far.")
    return 0


def _print_attempts(logs: dict[int, str]) -> None:
    """Print what each attempt left, each but the first below a line with its number."""
    for attempt, log in sorted(logs.items()):
        if attempt > 1:
            print(f"--- attempt {attempt} ---")
        print(log, end="" if log.endswith("\n") or not log else "\n")


def _functions(config: Config, given: argparse.Namespace) -> int:
    with _connect(config) as client:
        functions = client.snapshot("functions")["functions"]
    if given.json:
        output.show(functions)
        return 0
    rows = [[each["name"], each["module"], each["signature"], each["doc"]] for each in functions["functions"]]
    output.table(("name", "module", "takes", "does"), rows)
    output.note_broken(functions["broken"])
    return 0


def _parser() -> argparse.ArgumentParser:
    return usage.parser(
        {
            "up": _up,
            "down": _down,
            "restart": _restart,
            "status": _status,
            "reload": _reload,
            "logs": _logs,
            "doctor": _doctor,
            "bench": _bench,
            "demo": _demo,
            "submit": _submit,
            "result": _result,
            "jobs": _jobs,
            "functions": _functions,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
