"""What `run.py` measures: on which private systems, in which order, how often."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import exesys
from benchmarks import (
    accept,
    apps,
    beats,
    crowd,
    curve,
    delayed,
    idle,
    limit,
    others,
    ours,
    shards,
    sizes,
    streams,
    system,
    timers,
)
from benchmarks.targets import OURS, Measurement
from exesys.config import Config

MANY_IN_FLIGHT = 10
WORKFLOWS_IN_FLIGHT = 100
LIMIT = "limit"
Figures = dict[str, float]


class Mode(NamedTuple):
    """Measurements of which each is made alone, on a system of its own with so many slots."""

    goals: tuple[str, ...]
    slots: int = system.SLOTS


MODES = {
    "apps": Mode(("app latency", "app rate")),
    "timers": Mode(("timers",)),
    "streams": Mode(("streams",)),
    "accepted": Mode(("accepted",)),
    "sleeps": Mode(("sleeps",), crowd.SLOTS),
    "mixed": Mode(("mixed",), crowd.MIXED_SLOTS),
    "idle": Mode(("idle",)),
    "beats": Mode(("beats",)),
}


@dataclass
class Bench:
    """One private system, and the measurements made on it, in their order."""

    options: argparse.Namespace
    config: Config
    store: system.Store
    runs: list[Measurement]
    beside: tuple[Path, ...] = ()  # the homes of others that are measured

    def rounds(self, venv: Path) -> None:
        """Measure each peer right beside ExeSys, then what only ExeSys has, and all that again."""
        for number in range(self.options.rounds):
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
        jobs = _share(options.jobs, others.PEERS[beside].share if beside in others.PEERS else 1)
        calls: dict[str, Callable[[], Figures]] = {
            "throughput": lambda: ours.throughput(config, jobs, options.in_flight, seed),
            "latency": lambda: ours.latency(config, options.latency, seed),
            "many": lambda: ours.many(config, jobs, MANY_IN_FLIGHT, seed),
            "workflows": lambda: _rate(ours.workflows(config, jobs, WORKFLOWS_IN_FLIGHT, seed)),
            "rest": lambda: _rate(ours.rest(config, _share(jobs, 0.25), seed, array=1)),
            "rest arrays": lambda: _rate(ours.rest(config, jobs, seed, array=ours.HUNDRED)),
            "memory": lambda: ours.memory(config, options.memory, seed),
            "timers": lambda: timers.lateness(config),
            "fill": lambda: delayed.fill(config, options.delayed),
            "fill queue": lambda: accept.fill(config, options.queued),
            "app latency": lambda: apps.latency(config, options.calls),
            "app rate": lambda: apps.rate(config, options.calls),
            "streams": lambda: streams.beside(config, jobs, options.in_flight, seed),
            "accepted": lambda: accept.accepted(config, jobs, seed),
            "sleeps": lambda: crowd.sleeps(config, jobs),
            "mixed": lambda: crowd.mixed(config, seed),
            "idle": lambda: idle.idle(config),
            "beats": lambda: beats.beats(config),
        }
        self.measure(OURS, goal, beside, number, calls[goal])

    def floor(self, goal: str, number: int, floor: limit.Floor) -> None:
        """Measure the floor as ours was measured right before."""
        options, seed = self.options, self._seed()
        calls: dict[str, Callable[[], Figures]] = {
            "throughput": lambda: floor.throughput(options.jobs, options.in_flight, seed),
            "latency": lambda: floor.latency(options.latency, seed),
            "many": lambda: floor.many(options.jobs, MANY_IN_FLIGHT, seed),
            "parts": lambda: limit.parts(floor.home, options.jobs),
        }
        self.measure(LIMIT, goal, LIMIT, number, calls[goal])

    def peer(self, goal: str, number: int, name: str, venv: Path) -> None:
        options, peer = self.options, others.PEERS[name]
        jobs = options.latency if goal == "latency" else _share(options.jobs, peer.share)
        load = others.Load(goal, jobs, options.in_flight, self._seed())
        log = self.config.home / f"{name}.log"
        self.measure(name, goal, name, number, lambda: others.measure(name, load, venv, self.store.socket, log))
        self.store.flush(peer.database)

    def pair(self, goal: str, number: int, call: Callable[[int], Figures]) -> None:
        """Measure this system and another by turns; `call` takes a seed."""
        self.measure(OURS, goal, "", number, partial(call, self._seed()))

    def _seed(self) -> int:
        """Return one that no other measurement of this run has: no job may be another's."""
        return int(self.options.seed) + 1000 * len(self.runs)

    def measure(self, side: str, goal: str, beside: str, number: int, call: Callable[[], Figures]) -> None:
        self.store.wait_quiet()
        processors = system.Processors(self.config.home, *self.beside)
        figures = call()
        load_1min, taken = os.getloadavg()[0], processors.others()
        shown = ", ".join(f"{name} {value:,.6g}" for name, value in figures.items())
        tell(f"{side} {goal}: {shown} (load {load_1min:.2f}, others {taken:.0%})")
        self.runs.append(Measurement(side, goal, beside, number, figures, load_1min, taken))


def measure_all(options: argparse.Namespace, home: Path) -> tuple[list[Measurement], dict[str, Any]]:
    """Return the measurements, and what there is to know about machine and versions."""
    runs: list[Measurement] = []
    venv = options.peers_venv.absolute() if options.peers_venv else home / "peers-venv"
    versions = {"exesys": exesys.__version__}
    if options.peers:
        tell("Installing the peers.")
        versions |= others.install(venv)
    if options.memory:
        with system.running(home / "m") as config, system.Store(config) as store:
            Bench(options, config, store, runs).ours("memory", 0)
    redis = [
        measure(options, home, runs)
        for name, measure in (_PAIRED | {name: partial(_alone, mode) for name, mode in MODES.items()}).items()
        if getattr(options, name)
    ]
    if not redis:
        with system.running(home / "s") as config, system.Store(config) as store:
            Bench(options, config, store, runs).rounds(venv)
            redis.append(store.version())
    return runs, about(options, versions, redis[0])


def _alone(mode: Mode, options: argparse.Namespace, home: Path, runs: list[Measurement]) -> str:
    name = f"{mode.goals[0][:2]}{len(runs)}"
    with (
        system.running(home / name, apps="app rate" in mode.goals, slots=mode.slots) as config,
        system.Store(config) as store,
    ):
        bench = Bench(options, config, store, runs)
        for number in range(options.rounds):
            for goal in mode.goals:
                bench.ours(goal, number)
        return store.version()


def _curve(options: argparse.Namespace, home: Path, runs: list[Measurement]) -> str:
    with curve.both(home) as (keyed, plain), system.Store(keyed) as store:
        bench = Bench(options, keyed, store, runs, (plain.home,))
        for number in range(options.rounds):
            bench.pair("curve", number, partial(curve.beside, keyed, plain, options.jobs, options.in_flight))
        return store.version()


def _beside(full: Config, empty: Config, seed: int) -> Figures:
    return delayed.beside(full, empty)  # its jobs have names of their own, and need no seed


def _delayed(options: argparse.Namespace, home: Path, runs: list[Measurement]) -> str:
    with system.running(home / "d") as config, system.Store(config) as store:
        bench = Bench(options, config, store, runs)
        bench.ours("fill", 0)
        for number in range(options.rounds):
            with system.running(home / f"e{number}") as empty:
                bench.beside = (empty.home,)
                bench.pair("delayed", number, partial(_beside, config, empty))
        return store.version()


def _queued(options: argparse.Namespace, home: Path, runs: list[Measurement]) -> str:
    with ExitStack() as stack:
        full, few = (stack.enter_context(system.running(home / name)) for name in ("qf", "q1"))
        store = stack.enter_context(system.Store(full))
        bench = Bench(options, full, store, runs, (few.home,))
        bench.ours("fill queue", 0)
        for number in range(options.rounds):
            bench.pair("queued", number, lambda _: accept.beside(full, few))
        return store.version()


def _limit(options: argparse.Namespace, home: Path, runs: list[Measurement]) -> str:
    with limit.running(home / "f") as floor, system.running(home / "b") as config, system.Store(config) as store:
        bench = Bench(options, config, store, runs, (floor.home,))
        for number in range(options.rounds):
            for goal in ("throughput", "latency", "many"):
                bench.ours(goal, number, LIMIT)
                bench.floor(goal, number, floor)
            bench.floor("parts", number, floor)
        return store.version()


def _sizes(options: argparse.Namespace, home: Path, runs: list[Measurement]) -> str:
    with limit.running(home / "g") as floor, system.running(home / "z") as config, system.Store(config) as store:
        bench = Bench(options, config, store, runs, (floor.home,))
        for number in range(options.rounds):
            bench.pair("sizes", number, partial(sizes.beside, config, floor, options.in_flight))
        return store.version()


def _shards(options: argparse.Namespace, home: Path, runs: list[Measurement]) -> str:
    with shards.three(home) as (alone, both), system.Store(alone) as store:
        bench = Bench(options, alone, store, runs, tuple(config.home for config in both))
        for number in range(options.rounds):
            bench.pair("shards", number, partial(shards.beside, alone, both, options.jobs, MANY_IN_FLIGHT))
        return store.version()


# Those for which another system stands beside.
_PAIRED = {"curve": _curve, "delayed": _delayed, "queued": _queued, "limit": _limit, "sizes": _sizes, "shards": _shards}


def _share(jobs: int, share: float) -> int:
    return max(1, round(jobs * share))


def _rate(jobs_per_s: float) -> Figures:
    return {"jobs_per_s": jobs_per_s}


def about(options: argparse.Namespace, versions: dict[str, str], redis: str) -> dict[str, Any]:
    """Return what there is to know of the machine, the versions and the settings."""
    return {
        "machine": {"processors": os.cpu_count(), "system": platform.platform(), "python": platform.python_version()},
        "redis": f"{redis}, append-only file every second",
        "versions": versions,
        "settings": {"slots": system.SLOTS, "in_flight": options.in_flight, "jobs": options.jobs, "seed": options.seed},
    }


def tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
