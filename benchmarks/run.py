"""Measure ExeSys, and its peers beside it, on a private system. See benchmarks/README.md.

Every result is compared with what was sent. Exit codes: 0; 1 a result was
wrong or lost; 2 it could not be measured; 3 with --strict, a target was not
reached.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
try:
    from benchmarks import http_load, load, others, report, targets
    from benchmarks.bench import LIMIT, measure_all, tell
    from exesys.errors import BootError, ConfigError, ExesysError
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"{missing.name} is not installed here. Run bin/start_exe_sys.sh or bin/test.sh once, which makes .venv, "
        "and then: .venv/bin/python benchmarks/run.py"
    ) from None

DELAYED_JOBS = QUEUED_JOBS = 1_000_000
MEMORY_JOBS = 100_000


def arguments_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bin/exesys bench",
        description=__doc__,
        epilog="example:\n  bin/exesys bench --peers huey,celery,dramatiq --rest --workflows --memory",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )

    def number(name: str, default: int, text: str) -> None:
        parser.add_argument(name, type=_count, default=default, metavar="N", help=f"{text} (default: %(default)s)")

    number("--jobs", 20_000, "jobs for throughput")
    number("--in-flight", 100, "of these under way")
    number("--latency", 2_000, "jobs one at a time")
    number("--rounds", 3, "measure each so often")
    parser.add_argument("--rest", action="store_true", help="measure REST: single commands, and arrays of 100")
    parser.add_argument("--workflows", action="store_true", help="measure workflows: diamonds of five steps")
    number("--calls", 10_000, "calls of an application server")
    parser.add_argument("--apps", action="store_true", help="measure calls of an application server, and no jobs")
    parser.add_argument(
        "--memory", type=_count, nargs="?", const=MEMORY_JOBS, metavar="N", help="measure memory (100,000 jobs)"
    )
    parser.add_argument(
        "--delayed",
        type=_count,
        nargs="?",
        const=DELAYED_JOBS,
        metavar="N",
        help="measure 50,000 delayed jobs sent beside N others (1,000,000) and into an empty store; no other jobs",
    )
    parser.add_argument("--timers", action="store_true", help="measure how late ticks and delayed jobs begin, no more")
    parser.add_argument("--curve", action="store_true", help="measure what keys cost on a bus over TCP, no more")
    parser.add_argument("--streams", action="store_true", help="measure what 100 streams of events cost, no more")
    parser.add_argument("--limit", action="store_true", help="measure the floor beside it, by turns; see limit.py")
    parser.add_argument("--sizes", action="store_true", help="measure 1, 10 and 100 kB of data beside the floor")
    parser.add_argument("--accepted", action="store_true", help="measure how fast jobs are accepted, no more")
    parser.add_argument(
        "--queued",
        type=_count,
        nargs="?",
        const=QUEUED_JOBS,
        metavar="N",
        help="measure jobs while N others (1,000,000) wait, and while 1,000 do; no other jobs",
    )
    parser.add_argument("--sleeps", action="store_true", help="measure jobs that sleep for 10 ms in 64 slots, no more")
    parser.add_argument(
        "--mixed", action="store_true", help="measure how long short jobs wait among long ones, no more"
    )
    parser.add_argument(
        "--idle", action="store_true", help="measure what a system takes that has nothing to do, no more"
    )
    parser.add_argument("--shards", action="store_true", help="measure two shards beside one, by turns; no more")
    parser.add_argument("--beats", action="store_true", help="measure 490 workers that only beat, no more")
    known = ",".join(others.PEERS)
    parser.add_argument("--peers", type=_peers, default=[], metavar="NAMES", help=f"measure these too, of {known}")
    parser.add_argument("--peers-venv", type=Path, metavar="DIR", help="where they are installed, to keep them")
    parser.add_argument("--home", type=Path, metavar="DIR", help="where the private system is made and removed again")
    parser.add_argument(
        "--seed", type=int, default=1, metavar="N", help="of the data that is sent (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--strict", action="store_true", help="exit with 3 when a target is not reached")
    return parser


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    return arguments_parser().parse_args(given)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number above 0")
    return int(text)


def _peers(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in others.PEERS]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is no peer. Known: {', '.join(others.PEERS)}.")
    return list(dict.fromkeys(names))


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    home = Path(tempfile.mkdtemp(prefix="exb-", dir=options.home))
    try:
        runs, about = measure_all(options, home)
    except (BootError, ConfigError, others.NotInstalled) as error:
        tell(f"It cannot be measured: {error}")
        return _keep(home, 2)
    except (load.WrongResult, TimeoutError, http_load.Refused, others.PeerFailed, ExesysError) as error:
        tell(f"A result is wrong or lost: {error}")
        return _keep(home, 1)
    except KeyboardInterrupt:
        shutil.rmtree(home)
        tell("Interrupted.")
        return 130
    shutil.rmtree(home)
    beside = [*options.peers, LIMIT] if options.limit else options.peers
    if options.json:
        print(json.dumps(report.as_json(runs, beside, about), indent=1))
    else:
        print(_heading(about) + report.table(runs, beside))
    missed = [target for target in targets.targets(runs, beside) if not target.reached]
    return 3 if missed and options.strict else 0


def _keep(home: Path, code: int) -> int:
    """Leave the logs, if there are any."""
    if any(home.rglob("*.log")):
        tell(f"Its logs are in {home}.")
    else:
        shutil.rmtree(home)
    return code


def _heading(about: dict[str, Any]) -> str:
    machine, versions, settings = about["machine"], about["versions"], about["settings"]
    return (
        f"{machine['processors']} processors, Python {machine['python']}, {about['redis']};"
        f" {', '.join(f'{name} {version}' for name, version in versions.items())};"
        f" no-op function, {settings['slots']} slots, {settings['in_flight']} in flight, every result checked\n\n"
    )


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # the system is ended, and the home removed
    sys.exit(main())
