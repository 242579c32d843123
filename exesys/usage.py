"""What the command line understands, and the help that says so."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from exesys import __version__, command
from exesys.chaos import plan
from exesys.errors import nearest
from exesys.runner import RunnerState
from exesys.states import State

PROGRAM = "bin/exesys"
MOST_DAYS = 36_500
_EPILOG = f"""\
examples:
  {PROGRAM} up
  {PROGRAM} submit add '[1, 2, 3]' --wait 5
  {PROGRAM} jobs --state error

Each command takes --json and --help.
Exit codes: 0 well, 1 failed, 2 wrong usage or refused, 3 system not there, 4 time over.
"""


def _time(text: str) -> float:
    """Read seconds; how many there may be is checked where all commands and timers are."""
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give seconds, such as 86400") from None


_CHOICE = re.compile(r"invalid choice: '?([^' ]+)'? \(choose from (.*)\)")
# The options of a command: type, what stands for the value, help.
_OPTIONS: dict[str, tuple[Callable[[str], Any], str, str]] = {
    "queue": (str, "NAME", "the queue to wait in (default: the function's own, else default)"),
    "priority": (int, "0-9", "0 to 9, higher ones first (default: 4)"),
    "delay_s": (_time, "S", "begin no sooner than in so many seconds"),
    "at": (str, "TIME", "begin no sooner than then, such as 2026-01-31T12:00:00Z"),
    "timeout_s": (_time, "S", "how long one attempt may run (default: 3600)"),
    "retries": (int, "N", "how often to try again after a failure (default: 0)"),
    "backoff_s": (_time, "S", "the wait before the first retry; it doubles each time (default: 1)"),
    "key": (str, "NAME", "whose job it is: those of one key take turns with others, and run one at a time"),
    "key_limit": (int, "N", "so many of its key may run at once (default: 1)"),
    "result_ttl_s": (_time, "S", "how long the result is kept (default: 86400)"),
    "notify": (str, "URL", "tell this URL of the end; its host stands in [callbacks] hosts"),
    "traceparent": (str, "TEXT", "the trace that it belongs to (W3C Trace Context)"),
}


class Parser(argparse.ArgumentParser):
    """Names the nearest word when a command or a choice is misspelt; argparse would list them all."""

    def error(self, message: str) -> NoReturn:
        found = _CHOICE.search(message)
        close = nearest(found[1], re.findall(r"[\w-]+", found[2])) if found else ""
        super().error(f"there is no {found[1]!r} here. Did you mean {close}?" if found and close else message)


def parser(runs: Mapping[str, Callable[..., int]]) -> argparse.ArgumentParser:
    """Make the parser. `runs` has for each command what carries it out, left in `run` of what was parsed."""
    top = Parser(
        prog=PROGRAM,
        description="Run and ask an ExeSys job server.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("-V", "--version", action="version", version=f"exesys {__version__}", help="print the version")
    commands = top.add_subparsers(metavar="COMMAND", title="commands")
    top.set_defaults(run=None, parser=None)

    def add(name: str, text: str, example: str, own_help: bool = True, under: Any = None) -> argparse.ArgumentParser:
        child: argparse.ArgumentParser = (under or commands).add_parser(
            name.split()[-1],
            help=text,
            description=text[0].upper() + text[1:] + ".",
            epilog=f"example:\n  {PROGRAM} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            add_help=own_help,
        )
        child.add_argument("--json", action="store_true", help="print JSON, for programs")
        child.set_defaults(run=runs[name], parser=child)
        return child

    up = add("up", "start what is not running, and prove it with one job", "up")
    up.add_argument("--foreground", action="store_true", help="stay attached; end the system with Ctrl-C")
    _join(add)
    add("down", "stop the system; running jobs get their grace period", "down")
    add("restart", "stop and start the system, with the settings that hold now", "restart")
    add("status", "show addresses and programs", "status --json")
    add("reload", "load changed modules as running jobs and calls end", "reload")
    _dev(add)
    _logs(add("logs", "show a program's log, or a job's", "logs worker --follow"))
    add("doctor", "check this machine and this system, and say what to do", "doctor")
    _chaos(add("chaos", "prove that nothing is lost: strike a private system, and account", "chaos --minutes 2"))
    _backup(add)
    # Its options, and their help, are those of benchmarks/run.py.
    add("bench", "measure throughput and latency", "bench --peers huey,celery,dramatiq", own_help=False)
    demo = add("demo", "index a directory of texts and search it", 'demo --query "free software"')
    demo.add_argument("path", nargs="?", help="a directory of text files (default: licence texts, or our docs)")
    demo.add_argument("--query", default="free software", help="what to search for (default: %(default)s)")
    _submit(
        add("submit", "send a command, and print its job_id or wait for its value", "submit add '[1, 2, 3]' --wait 5")
    )
    _result(add("result", "wait for a job sent earlier, and print its value", "result JOB_ID --wait 10"))
    jobs = add("jobs", "list jobs, the newest first, or show one", "jobs --state error")
    jobs.add_argument("job_id", nargs="?", metavar="JOB_ID", help="show all there is of this job, as JSON")
    jobs.add_argument("--state", choices=list(State.__members__), help="only jobs in this state")
    jobs.add_argument("--cmd", metavar="CMD", help="only jobs of this function")
    jobs.add_argument("-f", "--follow", action="store_true", help="tell what happens from now on, until Ctrl-C")
    jobs.add_argument("--limit", type=_whole(1), default=50, metavar="N", help="so many at most (default: %(default)s)")
    workflow = add("workflow", "send workflows, and draw them", "workflow submit FILE --wait 10")
    of_workflow = workflow.add_subparsers(metavar="COMMAND", title="commands")
    send = add(
        "workflow submit", "send a workflow, all or nothing", "workflow submit flow.json --wait 10", under=of_workflow
    )
    send.add_argument("file", metavar="FILE", help="JSON or YAML: an array of commands; - for standard input")
    send.add_argument(
        "--wait", type=_seconds, metavar="S", help="wait so many seconds for the job's value, and print it"
    )
    send.add_argument(
        "--job-id", metavar="JOB_ID", help="the job's name; sent twice, it runs once (default: a new one)"
    )
    draw = add("workflow show", "draw a job's graph with its states", "workflow show JOB_ID", under=of_workflow)
    draw.add_argument("job_id", metavar="JOB_ID", help="as it was printed, or as it was sent")
    form = draw.add_mutually_exclusive_group()
    form.add_argument("--dot", action="store_true", help="for Graphviz")
    form.add_argument("--mermaid", action="store_true", help="for Mermaid")
    for name, text in (
        ("why", "say what each unfinished step of a job waits for, and what failed"),
        ("cancel", "end a job: nothing more of it starts, and what runs is killed"),
        ("retry", "run again what failed of a job, and what depended on it"),
    ):
        child = add(name, text, f"{name} JOB_ID")
        child.add_argument("job_id", metavar="JOB_ID", help="as it was printed, or as it was sent")
        child.set_defaults(what=name)
    _dead(add)
    add("functions", "list what can be called, and what is broken", "functions")
    _runner(add)
    _queue(add)
    _timer(add)
    _keys(add)
    app = add("app", "list application servers, and call their methods", "app list")
    of_app = app.add_subparsers(metavar="COMMAND", title="commands")
    add("app list", "list application servers, and which do not start", "app list", under=of_app)
    _app(
        add("app show", "show one: instances, methods, why it does not start", "app show words", under=of_app),
        add("app call", "call a method, and print its value", "app call words size '[\"demo\"]'", under=of_app),
    )
    return top


def _dev(add: Callable[..., argparse.ArgumentParser]) -> None:
    dev = add("dev", "run in the foreground: logs, and a reload at each change of a module", "dev")
    dev.add_argument("--jobs", action="store_true", help="also tell the end of each job")
    new = add("new-module", "write a commented example of a module, which works at once", "new-module hello")
    new.add_argument("name", metavar="NAME", help="of the module, and of its function")
    kind = new.add_mutually_exclusive_group()
    kind.add_argument("--runner", action="store_true", help="a function that runs until it is stopped")
    kind.add_argument("--app", action="store_true", help="an application server: a class in a process of its own")


def _chaos(chaos: argparse.ArgumentParser) -> None:
    chaos.add_argument(
        "--minutes", type=_minutes, default=10.0, metavar="N", help="so long blows fall (default: %(default)g)"
    )
    chaos.add_argument("--seed", type=_whole(0), metavar="N", help="the same load and blows again (default: any)")
    chaos.add_argument(
        "--rate", type=_rate, default=300.0, metavar="N", help="so many commands a second (default: %(default)g)"
    )
    only = "only these blows, such as kill or kill-router; may be given several times"
    chaos.add_argument("--only", action="append", type=_blow, metavar="BLOW", help=only)
    chaos.add_argument("--keep", action="store_true", help="keep the system's directory if the account is not exact")


def _join(add: Callable[..., argparse.ArgumentParser]) -> None:
    join = add("join", "work for a system on another host", "join tcp://10.0.0.1:5555 --key host7.key")
    join.add_argument("endpoint", metavar="ENDPOINT", help="the router's, as its [bus] endpoint says: tcp://HOST:PORT")
    join.add_argument("--key", required=True, metavar="FILE", help="what `keys new bus-worker NAME` made there")
    join.add_argument("--slots", metavar="N", help="so many jobs at once (default: as [worker] slots says here)")
    join.add_argument("--queues", metavar="NAMES", help="work on these queues, with ',' between (default: as the ini)")
    join.add_argument("--foreground", action="store_true", help="stay attached; end with Ctrl-C")


def _backup(add: Callable[..., argparse.ArgumentParser]) -> None:
    backup = add("backup", "write all that Redis holds to a file, while the system runs", "backup exesys.backup")
    backup.add_argument("file", metavar="FILE", help="written whole or not at all; one that is there is replaced")
    restore = add("restore", "put a backup in the place of the private Redis's data", "restore exesys.backup")
    source = restore.add_mutually_exclusive_group(required=True)
    source.add_argument("file", nargs="?", metavar="FILE", help="what `backup` wrote; the system must be down")
    source.add_argument("--from-backup", action="store_true", help="take what the replica has, and start the system")
    restore.add_argument("--replace", action="store_true", help="also when there is data; it is kept aside")


def _dead(add: Callable[..., argparse.ArgumentParser]) -> None:
    dead = add("dead", "list, retry and remove jobs that failed", "dead list")
    below = dead.add_subparsers(metavar="COMMAND", title="commands")
    listing = add("dead list", "list what failed, the newest first", "dead list --cmd add", under=below)
    listing.add_argument(
        "--limit", type=_whole(1), default=50, metavar="N", help="so many at most (default: %(default)s)"
    )
    showing = add("dead show", "show all there is of a job that failed, as JSON", "dead show JOB_ID", under=below)
    showing.add_argument("job_id", metavar="JOB_ID", help="as `dead list` shows it")
    children = [listing]
    for name, text in (
        ("retry", "run again what failed of a job, or of all"),
        ("purge", "remove a job that failed, or all: records, results, logs"),
    ):
        child = add(f"dead {name}", text, f"dead {name} --all --older-s 86400", under=below)
        child.add_argument("job_id", nargs="?", metavar="JOB_ID", help="as `dead list` shows it")
        child.add_argument("--all", action="store_true", help="all that failed, or those that --cmd and --older-s name")
        child.set_defaults(what=name)
        children.append(child)
    for child in children:
        child.add_argument("--cmd", metavar="CMD", help="only what failed in this function, as it was called")
        child.add_argument(
            "--older-s", type=_seconds, metavar="S", help="only what failed so many seconds ago, or more"
        )


def _runner(add: Callable[..., argparse.ArgumentParser]) -> None:
    runner = add("runner", "start, list, stop and restart functions that run until they are stopped", "runner list")
    below = runner.add_subparsers(metavar="COMMAND", title="commands")
    start = add("runner start", "start a function as a runner", "runner start exesys_test.ticks --uuid t1", under=below)
    start.add_argument("target", metavar="TARGET", help=f"the function; `{PROGRAM} functions` lists them")
    start.add_argument("data", nargs="?", metavar="DATA", help="what it gets, as for `submit` (default: null)")
    start.add_argument("--type", metavar="NAME", help="the first part of its name (default: the function's)")
    start.add_argument(
        "--uuid", metavar="NAME", help="the second part; the same twice starts it once (default: a new one)"
    )
    start.add_argument("--grace-s", type=_seconds, metavar="S", help="how long it may take to stop (default: 10)")
    listing = add("runner list", "list runners, also those that ended", "runner list --state running", under=below)
    listing.add_argument("type", nargs="?", metavar="TYPE", help="only those of this type")
    listing.add_argument("--state", choices=list(RunnerState.__members__), help="only those in this state")
    listing.add_argument(
        "--ended", type=_whole(0), default=20, metavar="N", help="so many that have ended (default: %(default)s)"
    )
    for name, text in (
        ("show", "show all there is of a runner"),
        ("stop", "stop a runner, or all of a type, and wait for the end"),
        ("restart", "let a runner begin anew, also one that has ended"),
        ("logs", "show what a runner printed and logged"),
    ):
        child = add(f"runner {name}", text, f"runner {name} ticks:t1", under=below)
        alone = ", or alone for all of it" if name == "stop" else ""
        child.add_argument("name", metavar="NAME", help=f"its name, type:uuid; or its type, with UUID behind it{alone}")
        child.add_argument("uuid", nargs="?", metavar="UUID", help="its uuid, when NAME is its type")
        if name == "stop":
            wait = "so many seconds at most (default: %(default)g)"
            child.add_argument("--wait", type=_seconds, default=30.0, metavar="S", help=wait)
        if name == "logs":
            _tail(child)


def _queue(add: Callable[..., argparse.ArgumentParser]) -> None:
    queue = add("queue", "list queues, set their limits, pause and resume them", "queue list")
    below = queue.add_subparsers(metavar="COMMAND", title="commands")
    add("queue list", "list queues: what waits, who serves them, what is set", "queue list", under=below)
    setting = add("queue set", "set limits of a queue; none takes one away", "queue set mail --rate 100/m", under=below)
    for name, metavar, text in (
        ("depth", "N", "so many may wait; past it 429"),
        ("rate", "N/UNIT", "so many may begin per s, m, h or d, such as 100/m"),
        ("concurrency", "N", "so many may run at once"),
        ("key_limit", "N", "so many of the same key may run at once, if a job does not say (default: 1)"),
    ):
        setting.add_argument(f"--{name.replace('_', '-')}", dest=name, metavar=metavar, help=text)
    for what, text in (("pause", "hand out no more of a queue; what runs goes on"), ("resume", "hand out again")):
        add(f"queue {what}", text, f"queue {what} mail", under=below).set_defaults(what=what)
    for child in below.choices.values():
        if not child.prog.endswith(" list"):
            child.add_argument("name", metavar="QUEUE", help="its name")


def _timer(add: Callable[..., argparse.ArgumentParser]) -> None:
    timer = add("timer", "run commands every so often, or by cron", "timer list")
    below = timer.add_subparsers(metavar="COMMAND", title="commands")
    adding = add("timer add", "add a timer", "timer add night tidy --cron '30 2 * * *' --zone Europe/Rome", under=below)
    adding.add_argument("name", metavar="NAME", help="its name; added twice, it is there once")
    adding.add_argument("cmd", metavar="CMD", help=f"the function to run; `{PROGRAM} functions` lists them")
    adding.add_argument("data", nargs="?", metavar="DATA", help="what it gets, as for `submit` (default: null)")
    when = adding.add_mutually_exclusive_group(required=True)
    when.add_argument("--every-s", type=_time, metavar="S", help="tick every so many seconds")
    when.add_argument("--cron", metavar="LINE", help="tick by five fields: minute hour day month weekday")
    for name, kind, metavar, text in (
        ("zone", str, "NAME", "the time zone of --cron (default: UTC)"),
        ("misfire", str, "WHAT", "what becomes of missed ticks: skip, once, all (default: skip)"),
        ("overlap", str, "WHAT", "allow, or skip a tick while the job before has not ended (default: allow)"),
        ("grace_s", _time, "S", "so late a tick still counts as in time (default: 30)"),
        ("jitter_s", _time, "S", "put each tick off by up to so much"),
        ("start", str, "TIME", "no tick before, such as 2026-01-31T12:00:00Z"),
        ("end", str, "TIME", "no tick after"),
    ):
        adding.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, metavar=metavar, help=text)
    for option, (parse, shown, says) in _OPTIONS.items():
        if option not in ("delay_s", "at", "traceparent"):
            adding.add_argument(f"--{option.replace('_', '-')}", dest=option, type=parse, metavar=shown, help=says)
    add("timer list", "list timers: when they tick, the next and the last tick", "timer list", under=below)
    for what, text in (
        ("show", "show one: its last and next five ticks, how late they were"),
        ("remove", "remove a timer; what its ticks have started goes on"),
        ("pause", "let a timer tick no more, until it is resumed"),
        ("resume", "let it tick again; what passed meanwhile is not made up for"),
        ("run", "run its command now, beside its ticks"),
    ):
        child = add(f"timer {what}", text, f"timer {what} night", under=below)
        child.add_argument("name", metavar="NAME", help="its name")
        child.set_defaults(what=what)


_KEY_ROLES = (
    "tokens of REST: read; submit, which may read, too; admin, which may do all."
    " Keys of the bus: bus-client; bus-worker, for other hosts that work; bus-admin"
)


def _keys(add: Callable[..., argparse.ArgumentParser]) -> None:
    keys = add("keys", "make, list and revoke the keys with which others come in", "keys list")
    below = keys.add_subparsers(metavar="COMMAND", title="commands")
    new = add(
        "keys new", "make a key: print the token, or write the file", "keys new submit shop --days 90", under=below
    )
    new.add_argument("role", metavar="ROLE", help=_KEY_ROLES)
    new.add_argument("name", metavar="NAME", help="whose it is")
    new.add_argument("--days", type=_days, metavar="N", help="it holds so many days (default: until it is revoked)")
    new.add_argument("--out", metavar="FILE", help="of a key of the bus: the file to make (default: NAME.key)")
    new.add_argument("--rotate", action="store_true", help="one more of this name; both hold until the old is revoked")
    add("keys list", "list keys: whose they are, their roles, until when they hold", "keys list", under=below)
    revoke = add("keys revoke", "take the keys of a name away", "keys revoke shop --old", under=below)
    revoke.add_argument("name", metavar="NAME", help="as `keys list` shows it")
    revoke.add_argument("--role", metavar="ROLE", help="only those with this role, when the name has several")
    revoke.add_argument("--old", action="store_true", help="all of this name but the newest")


def _app(show: argparse.ArgumentParser, call: argparse.ArgumentParser) -> None:
    for child in (show, call):
        child.add_argument("name", metavar="NAME", help="as in [appserver:NAME]")
    call.add_argument("method", metavar="METHOD", help="a public method of its class")
    args = "JSON: an array of arguments, an object of named ones, or the one argument; @FILE or - as in submit"
    call.add_argument("args", nargs="?", metavar="ARGS", help=f"{args} (default: none)")
    call.add_argument("--timeout", type=_seconds, metavar="S", help="wait so many seconds (default: its timeout_s)")


def _logs(logs: argparse.ArgumentParser) -> None:
    logs.add_argument("program", nargs="?", metavar="PROGRAM", help="router, worker, rest, … (default: all)")
    logs.add_argument("--job", metavar="JOB_ID", help="show what this job printed and logged")
    _tail(logs)


def _tail(logs: argparse.ArgumentParser) -> None:
    logs.add_argument(
        "-n", "--lines", type=_whole(0), default=50, metavar="N", help="so many lines (default: %(default)s)"
    )
    logs.add_argument("-f", "--follow", action="store_true", help="go on with what is added, until Ctrl-C")


def _submit(submit: argparse.ArgumentParser) -> None:
    submit.add_argument("cmd", metavar="CMD", help=f"the function to run; `{PROGRAM} functions` lists them")
    data = "JSON, or plain text; @FILE or - for JSON from a file or stdin (default: null)"
    submit.add_argument("data", nargs="?", metavar="DATA", help=data)
    submit.add_argument("--wait", type=_seconds, metavar="S", help="wait so many seconds for the value, and print it")
    submit.add_argument(
        "--job-id", metavar="JOB_ID", help="the job's name; sent twice, it runs once (default: a new one)"
    )
    submit.add_argument(
        "--from", dest="from_", default=command.DEFAULT_FROM, metavar="NAME", help="who sends it (default: %(default)s)"
    )
    submit.add_argument(
        "--to",
        default=command.END,
        metavar="NAME",
        help="whom the result is for; several with , (default: %(default)s)",
    )
    for name, (kind, metavar, text) in _OPTIONS.items():
        submit.add_argument(f"--{name.replace('_', '-')}", dest=name, type=kind, metavar=metavar, help=text)


def _result(result: argparse.ArgumentParser) -> None:
    result.add_argument("job_id", metavar="JOB_ID", help="as `submit` printed it, or as it was sent")
    result.add_argument(
        "--wait", type=_seconds, default=5.0, metavar="S", help="wait so many seconds at most (default: %(default)g)"
    )
    result.add_argument("--from", dest="from_", metavar="NAME", help="who sent it: the result of one step")
    result.add_argument("--to", metavar="NAME", help="whom it is for: the result of one step")


def _whole(low: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not text.isdecimal() or int(text) < low:
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {low} on")
        return int(text)

    return parse


def _minutes(text: str) -> float:
    return _between(text, 0.05, 7 * 24 * 60)


def _blow(text: str) -> str:
    if not plan.deck([text]):
        names = ", ".join([*(kind.replace(" ", "-") for kind in plan.BLOWS), plan.name(*plan.deck()[0])])
        raise argparse.ArgumentTypeError(f"{text!r} is no blow; there are {names}, …")
    return text


def _rate(text: str) -> float:
    return _between(text, 1, 5000)


def _between(text: str, low: float, high: float) -> float:
    number = _time(text)
    if low <= number <= high:  # so is NaN refused
        return number
    raise argparse.ArgumentTypeError(f"{text!r} is not from {low:g} to {high:g}")


def _days(text: str) -> int:
    days = _whole(1)(text)
    if days > MOST_DAYS:
        raise argparse.ArgumentTypeError(f"{text} are too many days; {MOST_DAYS:,} is the most")
    return days


def _seconds(text: str) -> float:
    number = _time(text)
    if 0 <= number <= command.MAX_SECONDS:  # so is NaN refused
        return number
    raise argparse.ArgumentTypeError(f"{text!r} are no seconds, 0 to {command.MAX_SECONDS:,}")
