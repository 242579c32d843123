"""`exesys`: the command line. Parses, calls once, prints; the work is done elsewhere.

Exit codes: 0 well, 1 the job or the action failed, 2 wrong usage or a refused
command, 3 the system is not there, 4 the time was over.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exesys import __version__, command, environment
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

if TYPE_CHECKING:
    from exesys.bus.client import Client

CONNECT_S = 3.0
RELOAD_S = 10.0
Run = Callable[[Config, argparse.Namespace], int]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    parser = _parser()
    given, options = parser.parse_known_args(arguments)
    if options and given.run is not _bench:
        parser.error(f"unrecognized arguments: {' '.join(options)}")
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
    if isinstance(error, JobError) and error.traceback:
        print(error.traceback, file=sys.stderr)


# --- output ---------------------------------------------------------------


def _show(value: Any) -> None:
    from exesys.http import to_json

    sys.stdout.write(to_json(value).decode())


def _table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows, in columns on a terminal and with tabs between elsewhere."""
    if not sys.stdout.isatty():
        for row in rows:
            print("\t".join(str(cell) for cell in row))
        return
    from rich.console import Console
    from rich.table import Column, Table

    # An identifier is there to be copied: it is never cut.
    heads = [Column(name, no_wrap=name == "job_id", overflow="fold") for name in columns]
    table = Table(*heads, box=None, header_style="bold", pad_edge=False)
    for row in rows:
        table.add_row(*(str(cell) for cell in row))
    Console().print(table, markup=False)


def _when(ms: int | None) -> str:
    return datetime.fromtimestamp(ms / 1000).strftime("%Y-%m-%d %H:%M:%S") if ms else ""


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
        _show(status)
    else:
        print(f"home   {status['home']}")
        for name, address in (("rest", "url"), ("web", "url"), ("redis", "url"), ("mongo", "uri"), ("bus", "endpoint")):
            print(f"{name:6} {status[name][address] or 'none'}")
        if not status["running"]:
            print("Nothing runs here. Start it with `exesys up`.")
        _table(("program", "state", "pid"), [[each["name"], each["state"], each["pid"]] for each in status["programs"]])
    states = {each["state"] for each in status["programs"]}
    return 0 if status["running"] and states <= {"RUNNING"} else 1


def _reload(config: Config, given: argparse.Namespace) -> int:
    import signal

    from exesys import bootstrap
    from exesys.process import wait_until

    workers = [each["pid"] for each in bootstrap.status(config)["programs"] if each["name"] == "worker" and each["pid"]]
    if not workers:
        raise Unavailable("no worker runs here.", fix="Start the system with `exesys up`.")
    with _connect(config) as client:
        before = _loads(client)
        for pid in workers:
            os.kill(pid, signal.SIGHUP)
        loaded = wait_until(
            lambda: all(_loads(client).get(session, 0) > loads for session, loads in before.items()), RELOAD_S, 0.05
        )
        broken = client.snapshot("functions")["functions"]["broken"]
    if given.json:
        _show({"workers": len(workers), "loaded": loaded, "broken": broken})
    elif loaded:
        print("The changed modules are loaded. Jobs that run go on with the old ones.")
        for name, text in broken.items():
            print(f"broken: {name}: {text.strip().splitlines()[-1]}", file=sys.stderr)
    else:
        print("The modules are loaded anew as running jobs end. See `exesys functions`.")
    return 0


def _loads(client: Client) -> dict[str, int]:
    """Return how often each worker has loaded its modules, by session."""
    return {worker["session"]: worker["loads"] for worker in client.snapshot("workers")["workers"]}


def _logs(config: Config, given: argparse.Namespace) -> int:
    if given.job:
        return _job_log(config, given)
    from exesys import bootstrap

    if given.program:
        return bootstrap.logs(config, given.program, given.lines, given.follow)
    if given.follow:
        raise BadCommand("--follow needs the name of one program.", fix="For example: exesys logs worker --follow")
    for each in bootstrap.status(config)["programs"]:
        print(f"==> {each['name']} <==")
        bootstrap.logs(config, each["name"], given.lines)
    return 0


def _doctor(config: Config, given: argparse.Namespace) -> int:
    from exesys.doctor import doctor

    checks = doctor(config)
    if given.json:
        _show([check._asdict() for check in checks])
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
        return demo.run(config, client, given.path, given.query, _show if given.json else None)


# --- jobs -----------------------------------------------------------------


def _connect(config: Config) -> Client:
    from exesys.bus.client import Client

    client = Client(config)
    if not client.wait_connected(CONNECT_S):
        client.close()
        raise Unavailable(
            f"no router answers at {config.bus_endpoint}.", fix="Is the system up? See `exesys status`, or `exesys up`."
        )
    return client


def _data(text: str | None) -> Any:
    """Read DATA: JSON, else the text itself; `@file` and `-` (standard input) must hold JSON."""
    if text is None:
        return None
    try:
        if text == "-":
            return json.load(sys.stdin)
        if text.startswith("@"):
            return json.loads(Path(text[1:]).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise BadCommand(f"DATA from {text} cannot be read: {error}.", field="data") from error
    try:
        return json.loads(text)
    except ValueError:
        return text


def _submit(config: Config, given: argparse.Namespace) -> int:
    from exesys.bus.client import ANSWER_S, describe

    options = {name: getattr(given, name) for name in command.OPTIONS if getattr(given, name) is not None}
    to = given.to.split(",") if "," in given.to else given.to
    with _connect(config) as client:
        data = _data(given.data)
        handle = client.submit(given.cmd, data, job_id=given.job_id, from_=given.from_, to=to, **options)
        handle.accepted(ANSWER_S)
        if given.wait is not None and not handle.wait(given.wait):
            raise ResultTimeout(
                f"job {handle.job_id} has not ended within {given.wait:g} s.", fix=f"Ask: exesys result {handle.job_id}"
            )
        if given.json:
            _show({"job_id": handle.job_id, "from": handle.from_, "to": to, "cmd": handle.cmd, **describe(handle)})
            return 1 if handle.state is State.error else 0
        if given.wait is None:
            print(handle.job_id)
        else:
            _show(handle.result(0))
    return 0


def _result(config: Config, given: argparse.Namespace) -> int:
    from exesys.bus.client import ANSWER_S, describe

    with _connect(config) as client:
        handle = client.follow(given.job_id, given.from_, given.to)
        handle.accepted(ANSWER_S)
        ended = handle.wait(given.wait)
        if given.json:
            _show({"job_id": given.job_id, "from": given.from_, "to": given.to, **describe(handle)})
            return 4 if not ended else 1 if handle.state is State.error else 0
        _show(handle.result(0))
    return 0


def _jobs(config: Config, given: argparse.Namespace) -> int:
    from exesys import views
    from exesys.store.reader import Reader

    reader = Reader(config.redis_url, config.redis.prefix)
    if given.job_id:
        [steps] = reader.steps([command.check_name(given.job_id, "job_id")])
        if not steps:
            raise NotFound(f"there is no job {given.job_id}.", fix="It was never sent, or its results have expired.")
        _show(views.job(given.job_id, steps, whole=True))
        return 0
    found, _ = reader.jobs(given.limit, state=State[given.state] if given.state else None)
    jobs = [views.job(job_id, steps) for job_id, steps in found]
    if given.json:
        _show(jobs)
        return 0
    rows = [
        [
            job["job_id"],
            step["from"],
            step["to"],
            step["cmd"],
            step["state"],
            step["attempt"],
            _when(step.get("accepted_ms")),
            step.get("error", {}).get("message", ""),
        ]
        for job in jobs
        for step in job["steps"]
    ]
    _table(("job_id", "from", "to", "cmd", "state", "attempt", "accepted", "error"), rows)
    return 0


def _job_log(config: Config, given: argparse.Namespace) -> int:
    from exesys import views
    from exesys.store.reader import Reader

    reader = Reader(config.redis_url, config.redis.prefix)
    [steps] = reader.steps([command.check_name(given.job, "job_id")])
    if not steps:
        raise NotFound(f"there is no job {given.job}.", fix="It was never sent, or its results have expired.")
    told = views.logs(steps, reader.logs(steps))
    if given.json:
        _show(told)
    else:
        for step in told:
            for attempt in step["attempts"]:
                print(attempt["log"], end="")
    return 0


def _functions(config: Config, given: argparse.Namespace) -> int:
    with _connect(config) as client:
        functions = client.snapshot("functions")["functions"]
    if given.json:
        _show(functions)
        return 0
    rows = [[each["name"], each["module"], each["signature"], each["doc"]] for each in functions["functions"]]
    _table(("name", "module", "takes", "does"), rows)
    for name, text in functions["broken"].items():
        print(f"broken: {name}: {text.strip().splitlines()[-1]}", file=sys.stderr)
    return 0


# --- the parser -----------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="exesys",
        description="Run and ask an ExeSys job server.",
        epilog="Exit codes: 0 well, 1 failed, 2 wrong usage or refused, 3 system not there, 4 time over.",
    )
    parser.add_argument("--version", action="version", version=f"exesys {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, run: Run, text: str, example: str) -> argparse.ArgumentParser:
        child = commands.add_parser(
            name,
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        child.add_argument("--json", action="store_true", help="print JSON, for programs")
        child.set_defaults(run=run)
        return child

    up = add("up", _up, "start what is not running, and prove it with one job", "exesys up")
    up.add_argument("--foreground", action="store_true", help="stay attached; end the system with Ctrl-C")
    add("down", _down, "stop the system; running jobs get their grace period", "exesys down")
    add("restart", _restart, "stop and start the system", "exesys restart")
    add("status", _status, "show addresses and programs", "exesys status --json")
    add("reload", _reload, "load changed modules as running jobs end", "exesys reload")
    logs = add("logs", _logs, "show a program's log, or a job's", "exesys logs worker --follow")
    logs.add_argument("program", nargs="?", help="router, worker, rest, … (default: all)")
    logs.add_argument("--job", metavar="JOB_ID", help="what this job printed and logged")
    logs.add_argument("-n", "--lines", type=int, default=50)
    logs.add_argument("-f", "--follow", action="store_true")
    add("doctor", _doctor, "check this machine and this system", "exesys doctor")
    bench = "measure throughput and latency; takes the options of benchmarks/run.py"
    add("bench", _bench, bench, "exesys bench --peers huey,celery,dramatiq")
    demo = add("demo", _demo, "index a directory of texts and search it", 'exesys demo --query "free software"')
    demo.add_argument("path", nargs="?", help="a directory of text files (default: licence texts, or our docs)")
    demo.add_argument("--query", default="free software")

    submit = add("submit", _submit, "send a command", "exesys submit add '[1, 2, 3]' --wait 5")
    submit.add_argument("cmd", help="the function to run")
    submit.add_argument("data", nargs="?", help="JSON, or plain text; @FILE or - for JSON from a file or stdin")
    submit.add_argument("--wait", type=float, metavar="S", help="wait so long and print the value")
    submit.add_argument("--job-id", dest="job_id")
    submit.add_argument("--from", dest="from_", default=command.DEFAULT_FROM)
    submit.add_argument("--to", default=command.END)
    kinds: dict[str, Any] = {"queue": str, "at": str, "priority": int, "retries": int}
    for name in command.OPTIONS:
        submit.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kinds.get(name, float))
    result = add("result", _result, "print the value of a job sent earlier", "exesys result JOB_ID --wait 10")
    result.add_argument("job_id")
    result.add_argument("--wait", type=float, default=5.0, metavar="S")
    result.add_argument("--from", dest="from_", default=command.DEFAULT_FROM)
    result.add_argument("--to", default=command.END)
    jobs = add("jobs", _jobs, "list jobs, or show one", "exesys jobs --state error")
    jobs.add_argument("job_id", nargs="?")
    jobs.add_argument("--state", choices=list(State.__members__))
    jobs.add_argument("--limit", type=int, default=50)
    add("functions", _functions, "list what can be called, and what is broken", "exesys functions")
    return parser


if __name__ == "__main__":
    sys.exit(main())
