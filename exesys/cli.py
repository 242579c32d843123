"""`bin/exesys`: the command line. Calls once what was asked for, and prints; the work is done elsewhere.

Exit codes: 0 well, 1 the job or the action failed, 2 wrong usage or a refused
command, 3 the system is not there, 4 the time was over.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from exesys import apps, deadjobs, environment, jobs, keys, output, queuing, reach, runners, timers, usage
from exesys.config import Config
from exesys.errors import (
    AppError,
    AppLost,
    AppTimeout,
    BackupError,
    BadCommand,
    BootError,
    ConfigError,
    ExesysError,
    JobError,
    NotFound,
    ResultTimeout,
    Unavailable,
)
from exesys.usage import PROGRAM


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not a test's stand-in
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a sign shows its number
    parser = _parser()
    given, options = parser.parse_known_args(arguments)
    if given.run is None and not options:
        parser.print_help(sys.stderr)
        return 2
    if options and given.run is not _bench:
        (given.parser or parser).error(f"unrecognized arguments: {' '.join(options)}")
    given.options = options
    config: Config | None = None
    try:
        config, given.broken = _settings(given)
        code: int = given.run(config, given)
    except ExesysError as error:
        _complain(error, given.json)
        if isinstance(error, JobError) and not given.json and config is not None and jobs.has_log(config, error.job_id):
            print(f"What it printed: {PROGRAM} logs --job {error.job_id}", file=sys.stderr)
        return _exit_code(error)
    except BrokenPipeError:
        # The reader of our output went away; nobody is left to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 130
    return code


def _settings(given: argparse.Namespace) -> tuple[Config, ConfigError | None]:
    """Read the settings. What looks after a system that runs does so also when they are broken: then with the error."""
    try:
        return environment.load(), None
    except ConfigError as error:
        if given.run not in (_down, _status, _doctor):
            raise
        with contextlib.suppress(ConfigError):
            return environment.without_ini(), error
        raise


def _note_broken(error: ConfigError | None) -> None:
    if error is not None:
        output.note(f"{error} Until then the settings count with which the running system was started.")


def _exit_code(error: ExesysError) -> int:
    if isinstance(error, (ResultTimeout, AppTimeout)):
        return 4
    if isinstance(error, Unavailable):
        return 3
    if isinstance(error, (JobError, AppError, AppLost, BackupError, BootError, ConfigError, NotFound)):
        return 1
    return 2


def _complain(error: ExesysError, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"error": error.problem._asdict()}))
        return
    print(f"exesys: {error}", file=sys.stderr)
    if isinstance(error, AppError):
        print(error.traceback.rstrip(), file=sys.stderr)
    if isinstance(error, JobError) and error.traceback:
        print(error.traceback.rstrip(), file=sys.stderr)


# --- the system -----------------------------------------------------------


def _up(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap

    return bootstrap.up(config, foreground=given.foreground, as_json=given.json)


def _join(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap

    wanted = {"EXESYS_BUS_ENDPOINT": given.endpoint, "EXESYS_BUS_KEY": os.path.abspath(given.key)}
    wanted |= {"EXESYS_WORKER_SLOTS": given.slots} if given.slots is not None else {}
    wanted |= {"EXESYS_WORKER_QUEUES": given.queues} if given.queues is not None else {}
    try:
        config = environment.load({**os.environ, **wanted})
    except ConfigError as error:
        for argument, variable in (
            ("ENDPOINT", "BUS_ENDPOINT"),
            ("--slots", "WORKER_SLOTS"),
            ("--queues", "WORKER_QUEUES"),
        ):
            error.message = error.message.replace(f"the environment variable EXESYS_{variable}", argument)
        raise
    return bootstrap.up(config, foreground=given.foreground, as_json=given.json)


def _down(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap

    _note_broken(given.broken)
    return bootstrap.down(config, as_json=given.json)


def _restart(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap

    return bootstrap.restart(config, as_json=given.json)


_ADDRESSES = (("rest", "url"), ("web", "url"), ("redis", "url"), ("mongo", "uri"), ("bus", "endpoint"))


def _address(config: Config, status: dict[str, Any], name: str, address: str) -> str:
    told = status[name][address]
    if told is None:
        return "not known: the settings are broken"
    if name == "mongo" and not told and not status["running"] and config.mongo.server != "none":
        return f"a private one, if it can be; `{PROGRAM} doctor` looks"
    return told or "none"


def _status(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap, home
    from exesys.following import Following

    _note_broken(given.broken)
    status = bootstrap.status(config)
    if given.broken and not status["running"]:
        status |= {name: dict.fromkeys(status[name]) for name, _ in _ADDRESSES}  # the defaults would be a guess
    if given.json:
        output.show(status)
    else:
        print(f"home   {status['home']}")
        for name, address in _ADDRESSES:
            print(f"{name:6} {_address(config, status, name, address)}")
        if "shard" in status:
            print(f"shard  {status['shard']['name']} of {', '.join(status['shard']['of'])}")
        if "backup" in status["redis"]:
            print(f"backup {Following(**status['redis']['backup'])}")
        rows = [[each["name"], each["state"], each["pid"] or ""] for each in status["programs"]]
        if status["running"]:
            output.table(("program", "state", "pid"), rows)
            if any(apps.is_app(each["name"]) and each["state"] != "RUNNING" for each in status["programs"]):
                apps.tell_failed(apps.ask_rest(home.started(config)))
        else:
            print(f"Nothing runs here. Start it with `{PROGRAM} up`.")
    states = {each["state"] for each in status["programs"]}
    return 0 if status["running"] and states <= {"RUNNING"} else 1


def _reload(config: Config, given: argparse.Namespace) -> int:
    from exesys import bootstrap, home, reloading

    told = reloading.reload(config)
    if given.json:
        listed = {each["name"]: {"state": each["state"], "reason": each["reason"]} for each in told.apps}
        output.show({"workers": told.workers, "loaded": told.loaded, "broken": told.broken, "apps": listed})
        return 0
    if told.loaded:
        print("The changed modules are loaded. Jobs and runners that run go on with the old ones.")
    else:
        print(f"The modules are loaded anew as running jobs and calls end. See `{PROGRAM} functions`.")
    if told.apps:
        print(f"Application servers: {apps.in_words(told.apps)}.")
    output.note_broken(told.broken)
    if not home.started(config).joins and bootstrap.changed(config):
        output.note(f"the settings have changed since the start; `{PROGRAM} restart` takes them over.")
    return 0


def _dev(config: Config, given: argparse.Namespace) -> int:
    from exesys import dev

    return dev.dev(config, given)


def _new_module(config: Config, given: argparse.Namespace) -> int:
    from exesys import newmodule

    return newmodule.new_module(config, given)


def _logs(config: Config, given: argparse.Namespace) -> int:
    if given.job:
        return jobs.job_log(config, given)
    from exesys import bootstrap, home, watching

    if given.follow and given.program and given.json:
        fix = f"Without a name it does: {PROGRAM} logs --follow --json"
        raise BadCommand("--follow of one program gives no JSON.", fix=fix)
    if given.follow and not given.program:
        return watching.follow_logs(config, given)
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

    checks = doctor(config, given.broken)
    if given.json:
        output.show([check._asdict() for check in checks])
    else:
        for check in checks:
            mark = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}[check.state]
            print(f"{mark} {check.name}: {check.message}" + (f"\n     → {check.fix}" if check.fix else ""))
    return 1 if any(check.state == "fail" for check in checks) else 0


def _why(config: Config, given: argparse.Namespace) -> int:
    from exesys import why

    return why.why(config, given)


def _backup(config: Config, given: argparse.Namespace) -> int:
    from exesys import backups

    return backups.backup(config, given)


def _restore(config: Config, given: argparse.Namespace) -> int:
    from exesys import backups

    return backups.restore(config, given)


def _bench(config: Config, given: argparse.Namespace) -> int:
    script = Path(__file__).resolve().parent.parent / "benchmarks" / "run.py"
    if not script.is_file():
        raise BootError(f"There is no {script}.", fix="The benchmark runs from a checkout of ExeSys.")
    os.execv(sys.executable, [sys.executable, "-P", str(script), *(["--json"] if given.json else []), *given.options])


def _chaos(config: Config, given: argparse.Namespace) -> int:
    from exesys.chaos import show

    return show.chaos(config, given)


def _help(config: Config, given: argparse.Namespace) -> int:
    given.parser.print_help(sys.stderr)
    return 2


def _demo(config: Config, given: argparse.Namespace) -> int:
    from exesys import demo

    with reach.connect(config) as client:
        return demo.run(config, client, given.path, given.query, output.show if given.json else None)


def _parser() -> argparse.ArgumentParser:
    return usage.parser(
        {
            "up": _up,
            "join": _join,
            "down": _down,
            "restart": _restart,
            "status": _status,
            "reload": _reload,
            "dev": _dev,
            "new-module": _new_module,
            "logs": _logs,
            "doctor": _doctor,
            "chaos": _chaos,
            "backup": _backup,
            "restore": _restore,
            "bench": _bench,
            "demo": _demo,
            "submit": jobs.submit,
            "result": jobs.result,
            "jobs": jobs.jobs,
            "workflow": _help,
            "workflow submit": jobs.workflow_submit,
            "workflow show": jobs.workflow_show,
            "why": _why,
            "cancel": jobs.change,
            "retry": jobs.change,
            "dead": _help,
            "dead list": deadjobs.list_,
            "dead show": deadjobs.show,
            "dead retry": deadjobs.change,
            "dead purge": deadjobs.change,
            "functions": jobs.functions,
            "runner": _help,
            "runner start": runners.start,
            "runner list": runners.list_,
            "runner show": runners.show,
            "runner stop": runners.stop,
            "runner restart": runners.restart,
            "runner logs": runners.logs,
            "queue": _help,
            "queue list": queuing.list_,
            "queue set": queuing.set_,
            "queue pause": queuing.pause,
            "queue resume": queuing.pause,
            "timer": _help,
            "timer add": timers.add,
            "timer list": timers.list_,
            "timer show": timers.show,
            "timer remove": timers.change,
            "timer pause": timers.change,
            "timer resume": timers.change,
            "timer run": timers.run,
            "keys": _help,
            "keys new": keys.new,
            "keys list": keys.list_,
            "keys revoke": keys.revoke,
            "app": _help,
            "app list": apps.list_apps,
            "app show": apps.show_app,
            "app call": apps.call_app,
        }
    )


if __name__ == "__main__":
    sys.exit(main())
