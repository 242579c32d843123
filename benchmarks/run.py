"""Measure ExeSys, and its peers beside it, on a private system. See benchmarks/README.md.

Every result is compared with what was sent. Exit codes: 0; 1 a result was
wrong or lost; 2 it could not be measured; 3 with --strict, a target was not
reached.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
try:
    import exesys
    from benchmarks import apps, curve, delayed, http_load, load, others, ours, report, streams, system, timers
    from exesys.config import Config
    from exesys.errors import BootError, ConfigError, ExesysError
except ModuleNotFoundError as missing:
    raise SystemExit(
        f"{missing.name} is not installed here. Run bin/start_exe_sys.sh or bin/test.sh once, which makes .venv, "
        "and then: .venv/bin/python benchmarks/run.py"
    ) from None

MANY_IN_FLIGHT = 10
WORKFLOWS_IN_FLIGHT = 100
DELAYED_JOBS = 1_000_000
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


@dataclass
class Bench:
    """One private system, and the measurements made on it, in their order."""

    options: argparse.Namespace
    config: Config
    store: system.Store
    runs: list[report.Measurement]

    def rounds(self, venv: Path) -> None:
        """Measure each peer right beside ExeSys, then what only ExeSys has, and all that again."""
        for number in range(self.options.rounds):
            if self.options.apps:
                self.ours("app latency", number)
                self.ours("app rate", number)
                continue
            for peer in self.options.peers or [""]:
                for goal in ("throughput", "latency"):
                    self.ours(goal, number, peer)
                    if peer:
                        self.peer(goal, number, peer, venv)
            rest = ("rest", "rest arrays") if self.options.rest else ()
            workflows = ("workflows",) if self.options.workflows else ()
            for goal in ("many", *workflows, *rest):
                self.ours(goal, number)

    def ours(self, goal: str, number: int, beside: str = "") -> None:
        options, config, seed = self.options, self.config, self._seed()
        jobs = _share(options.jobs, others.PEERS[beside].share if beside else 1)
        calls: dict[str, Callable[[], dict[str, float]]] = {
            "throughput": lambda: _rate(ours.throughput(config, jobs, options.in_flight, seed)),
            "latency": lambda: ours.latency(config, options.latency, seed),
            "many": lambda: _rate(ours.many(config, jobs, MANY_IN_FLIGHT, seed)),
            "workflows": lambda: _rate(ours.workflows(config, jobs, WORKFLOWS_IN_FLIGHT, seed)),
            "rest": lambda: _rate(ours.rest(config, _share(jobs, 0.25), seed, array=1)),
            "rest arrays": lambda: _rate(ours.rest(config, jobs, seed, array=ours.HUNDRED)),
            "memory": lambda: ours.memory(config, options.memory, seed),
            "timers": lambda: timers.lateness(config),
            "fill": lambda: delayed.fill(config, options.delayed),
            "app latency": lambda: apps.latency(config, options.calls),
            "app rate": lambda: apps.rate(config, options.calls),
        }
        self._measure(report.OURS, goal, beside, number, calls[goal])

    def beside(self, empty: Config, number: int) -> None:
        """Measure this system, which is full of delayed jobs, beside an empty one."""
        self._measure(report.OURS, "delayed", "", number, lambda: delayed.beside(self.config, empty))

    def keyed(self, plain: Config, number: int) -> None:
        """Measure this system, whose bus has keys, beside one without."""
        jobs, in_flight, seed = self.options.jobs, self.options.in_flight, self._seed()
        call = partial(curve.beside, self.config, plain, jobs, in_flight, seed)
        self._measure(report.OURS, "curve", "", number, call)

    def listened(self, number: int) -> None:
        """Measure it while a hundred listen to all that happens, and while nobody does."""
        jobs, in_flight, seed = self.options.jobs, self.options.in_flight, self._seed()
        self._measure(report.OURS, "streams", "", number, lambda: streams.beside(self.config, jobs, in_flight, seed))

    def peer(self, goal: str, number: int, name: str, venv: Path) -> None:
        options, peer = self.options, others.PEERS[name]
        jobs = options.latency if goal == "latency" else _share(options.jobs, peer.share)
        load = others.Load(goal, jobs, options.in_flight, self._seed())
        log = self.config.home / f"{name}.log"
        self._measure(name, goal, name, number, lambda: others.measure(name, load, venv, self.store.socket, log))
        self.store.flush(peer.database)

    def _seed(self) -> int:
        """Return one that no other measurement of this run has: no job may be another's."""
        return int(self.options.seed) + 1000 * len(self.runs)

    def _measure(self, side: str, goal: str, beside: str, number: int, call: Callable[[], dict[str, float]]) -> None:
        self.store.wait_quiet()
        processors = system.Processors(self.config)
        figures = call()
        load_1min, taken = os.getloadavg()[0], processors.others()
        shown = ", ".join(f"{name} {value:,.6g}" for name, value in figures.items())
        tell(f"{side} {goal}: {shown} (load {load_1min:.2f}, others {taken:.0%})")
        self.runs.append(report.Measurement(side, goal, beside, number, figures, load_1min, taken))


def measure_all(options: argparse.Namespace, home: Path) -> tuple[list[report.Measurement], dict[str, Any]]:
    """Return the measurements, and what there is to know about machine and versions."""
    runs: list[report.Measurement] = []
    venv = options.peers_venv.absolute() if options.peers_venv else home / "peers-venv"
    versions = {"exesys": exesys.__version__}
    if options.peers:
        tell("Installing the peers.")
        versions |= others.install(venv)
    if options.memory:
        with system.running(home / "m") as config, system.Store(config) as store:
            Bench(options, config, store, runs).ours("memory", 0)
    if options.timers:
        with system.running(home / "t") as config, system.Store(config) as store:
            bench = Bench(options, config, store, runs)
            for number in range(options.rounds):
                bench.ours("timers", number)
            return runs, _about(options, versions, store.version())
    if options.curve:
        with curve.both(home) as (keyed, plain), system.Store(keyed) as store:
            bench = Bench(options, keyed, store, runs)
            for number in range(options.rounds):
                bench.keyed(plain, number)
            return runs, _about(options, versions, store.version())
    if options.streams:
        with system.running(home / "l") as config, system.Store(config) as store:
            bench = Bench(options, config, store, runs)
            for number in range(options.rounds):
                bench.listened(number)
            return runs, _about(options, versions, store.version())
    if options.delayed:
        with system.running(home / "d") as config, system.Store(config) as store:
            bench = Bench(options, config, store, runs)
            bench.ours("fill", 0)
            for number in range(options.rounds):
                with system.running(home / f"e{number}") as empty:
                    bench.beside(empty, number)
            return runs, _about(options, versions, store.version())
    with system.running(home / "s", options.apps) as config, system.Store(config) as store:
        Bench(options, config, store, runs).rounds(venv)
        return runs, _about(options, versions, store.version())


def _share(jobs: int, share: float) -> int:
    return max(1, round(jobs * share))


def _rate(jobs_per_s: float) -> dict[str, float]:
    return {"jobs_per_s": jobs_per_s}


def _about(options: argparse.Namespace, versions: dict[str, str], redis: str) -> dict[str, Any]:
    return {
        "machine": {"processors": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "redis": f"{redis}, append-only file every second",
        "versions": versions,
        "settings": {"slots": system.SLOTS, "in_flight": options.in_flight, "jobs": options.jobs, "seed": options.seed},
    }


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(given: list[str] | None = None) -> int:
    options = arguments(given)
    home = Path(tempfile.mkdtemp(prefix="exb-", dir=options.home))
    try:
        runs, about = measure_all(options, home)
    except (BootError, ConfigError, others.NotInstalled) as error:
        tell(f"It cannot be measured: {error}")
        return _keep(home, 2)
    except (load.WrongResult, http_load.Refused, others.PeerFailed, ExesysError) as error:
        tell(f"A result is wrong or lost: {error}")
        return _keep(home, 1)
    except KeyboardInterrupt:
        shutil.rmtree(home)
        tell("Interrupted.")
        return 130
    shutil.rmtree(home)
    if options.json:
        print(json.dumps(report.as_json(runs, options.peers, about), indent=1))
    else:
        print(_heading(about) + report.table(runs, options.peers))
    missed = [target for target in report.targets(runs, options.peers) if not target.reached]
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
