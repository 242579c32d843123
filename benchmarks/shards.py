"""Two shards beside one: jobs a second, what a job costs each program, and each shard on a core of its own.

One shard fills two processors already: its router, its Redis, its worker and
the clients run beside each other. So what two can do more is measured in two
ways. *us*: the processor time that a job costs each program is the same with
two shards as with one, and so on more cores two do twice as much. *core*: one
shard, its client included, on one processor, beside two shards with two
clients on two processors.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks import load, system
from benchmarks.costs import Meter, of_system
from exesys import Client, codec, environment, programs
from exesys.bus import messages as m
from exesys.bus import wire
from exesys.config import Config
from exesys.errors import BootError

NAMES = ("s00", "s01")
CLIENTS = 2
PIECES = 2
HUNDRED = 100
_ROOT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def three(home: Path) -> Iterator[tuple[Config, list[Config]]]:
    """Run a system that is alone, and two that are the shards of one."""
    homes = [home / name for name in NAMES]
    told: dict[str, str] = {}
    for name, place in zip(NAMES, homes, strict=True):
        told[f"EXESYS_SHARD_{name}_ENDPOINT"] = f"ipc://{place}/run/bus"
        told[f"EXESYS_SHARD_{name}_REDIS"] = f"unix://{place}/run/redis?db=0"
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(system.running(home / "o"))
        yield (
            alone,
            [
                stack.enter_context(system.running(place, settings={**told, "EXESYS_BUS_SHARD": name}))
                for name, place in zip(NAMES, homes, strict=True)
            ],
        )


class Sum(NamedTuple):
    """What several runs took: jobs, seconds, and seconds of processor time of each program."""

    jobs: int = 0
    took_s: float = 0.0
    used_s: Mapping[str, float] = MappingProxyType({})
    disk_bytes: int = 0

    def with_run(self, other: Sum) -> Sum:
        names = {**self.used_s, **other.used_s}
        used = {name: self.used_s.get(name, 0.0) + other.used_s.get(name, 0.0) for name in names}
        return Sum(self.jobs + other.jobs, self.took_s + other.took_s, used, self.disk_bytes + other.disk_bytes)

    def figures(self) -> dict[str, float]:
        """Return jobs a second, and microseconds for a job of each program and of all."""
        us = {f"{name}_us": used / self.jobs * 1e6 for name, used in self.used_s.items()}
        disk = self.disk_bytes / self.jobs
        return {"shards_per_s": self.jobs / self.took_s, **us, "all_us": sum(us.values()), "disk_bytes_per_job": disk}


def beside(alone: Config, both: list[Config], jobs: int, in_flight: int, seed: int) -> dict[str, float]:
    """Measure one and two by turns; every result is checked.

    Each client has `in_flight` hundreds under way for each shard: so two shards have the same to do as one has.

    `cores_by_time` is how often the rate of one on one processor two have on two, `cores_by_cpu` the same as the
    processor time for a job says it: what it would be if nobody else used those processors.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    sums = dict.fromkeys(("one", "two", "one_core", "two_cores"), Sum())
    for number in range(PIECES):
        wanted = list(sums) if len(cores) > 1 else ["one", "two"]
        for name in wanted if number % 2 else reversed(wanted):
            systems = both if name.startswith("two") else [alone]
            pinned = cores[: len(systems)] if name.endswith(("core", "cores")) else []
            clients = len(pinned) or CLIENTS
            with contextlib.ExitStack() as stack:
                for config, core in zip(systems, pinned, strict=False):
                    stack.enter_context(_pinned(config, core))
                if pinned and len(pinned) < len(cores):
                    stack.enter_context(_busy(cores[-1]))
                chance = seed * PIECES + number
                run = _run(systems, clients, jobs // PIECES * len(systems) // 2, in_flight, chance, pinned)
            sums[name] = sums[name].with_run(run)
    figures = {
        f"{name}_{key}": value for name, each in sums.items() if each.jobs for key, value in each.figures().items()
    }
    for part in ("router", "redis", "worker", "slots", "client", "all"):
        figures[f"{part}_two_by_one"] = figures[f"two_{part}_us"] / figures[f"one_{part}_us"]
    figures["bus_bytes_per_job"] = bus_bytes()
    with system.Store(alone) as store:
        figures["index_bytes_per_job"] = store.index_bytes() / len(store.jobs())
    if len(cores) > 1:
        figures["cores_by_time"] = figures["two_cores_shards_per_s"] / figures["one_core_shards_per_s"]
        figures["cores_by_cpu"] = 2 * figures["one_core_all_us"] / figures["two_cores_all_us"]
        figures["router_per_core"] = figures["two_cores_router_us"] / figures["one_core_router_us"]
        figures["redis_per_core"] = figures["two_cores_redis_us"] / figures["one_core_redis_us"]
    return figures


def _run(systems: list[Config], clients: int, jobs: int, in_flight: int, seed: int, cores: Sequence[int] = ()) -> Sum:
    """Have so many clients send jobs, each a process, connected to the systems in turn."""
    share = jobs // clients
    groups = [of_system(config) for config in systems]
    with contextlib.ExitStack() as stack:
        senders = [
            stack.enter_context(
                _sender(systems[number % len(systems)], share, in_flight, HUNDRED * len(systems), seed * 100 + number)
            )
            for number in range(clients)
        ]
        for sender, core in zip(senders, cores, strict=False):
            _pin(sender.pid, {core})
        for sender in senders:
            _heard(sender)
        meters = [Meter(group) for group in groups]
        since = time.perf_counter()
        for sender in senders:
            assert sender.stdin is not None
            sender.stdin.write("go\n")
            sender.stdin.flush()
        before = [_written_bytes(group["redis"][0]) for group in groups]
        own_s = sum(json.loads(_heard(sender)) for sender in senders)
        took_s = time.perf_counter() - since
        written = sum(_written_bytes(group["redis"][0]) for group in groups) - sum(before)
        costs = [meter.us_per_job(1_000_000) for meter in meters]  # in seconds
    used = {part: sum(cost[f"{part}_us"] for cost in costs) for part in ("router", "redis", "worker", "slots")}
    return Sum(share * clients, took_s, {**used, "client": own_s}, written)


def _written_bytes(pid: int) -> int:
    """Return how much a process has written to disks."""
    told = dict(line.split(": ") for line in Path(f"/proc/{pid}/io").read_text().splitlines())
    return int(told["write_bytes"])


def bus_bytes(data_bytes: int = 100) -> float:
    """Return how many bytes a job takes on the bus, to the router and from it, when a hundred go together."""
    data, job_id = codec.pack("x" * data_bytes), str(uuid.UUID(int=1 << 100))
    items = tuple([m.Item(number, "client", "end_job", "noop", data, job_id, {}, True) for number in range(HUNDRED)])
    ref, body = f"client:{job_id}", codec.pack({"EOJ": "x" * data_bytes})
    jobs = tuple([m.Job(ref, 1, "end_job", "noop", data, 3600.0)] * HUNDRED)
    reports = tuple([m.Report(ref, 1, 0, body, "", 1_764_000_000_000, 1_764_000_000_001)] * HUNDRED)
    acks, ends = tuple([m.Held(ref, 1)] * HUNDRED), tuple([m.Answer(HUNDRED, 3, body)] * HUNDRED)
    said: tuple[m.Message, ...] = (
        *(m.Submit(items), m.Jobs(1, jobs), m.Result("0" * 16, reports)),
        *(m.ResultAck(acks), m.Done(ends)),
    )
    return sum(len(wire.encode(each)) for each in said) / HUNDRED


@contextlib.contextmanager
def _sender(config: Config, jobs: int, in_flight: int, piece: int, seed: int) -> Iterator[subprocess.Popen[str]]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")}
    environ = {**own, "EXESYS_HOME": str(config.home), **programs.settings(config)}
    command = [sys.executable, "-m", "benchmarks.shards", *map(str, (jobs, in_flight, piece, seed))]
    with subprocess.Popen(
        command, cwd=_ROOT, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as sender:
        try:
            yield sender
        finally:
            sender.kill()


def _heard(sender: subprocess.Popen[str]) -> str:
    assert sender.stdout is not None
    line = sender.stdout.readline()
    if not line:
        raise BootError(f"a client has ended with {sender.wait()}; what it said stands above.")
    return line


@contextlib.contextmanager
def _pinned(config: Config, core: int) -> Iterator[None]:
    """Let all programs of a system run on one processor alone."""
    everywhere = os.sched_getaffinity(0)
    pids = [int(pid) for pid in system.pids_of(config.home)]
    for pid in pids:
        _pin(pid, {core})
    try:
        yield
    finally:
        for pid in pids:
            _pin(pid, everywhere)


@contextlib.contextmanager
def _busy(core: int) -> Iterator[None]:
    """Keep a processor busy, as the second shard does: else what others run would leave the first one for it."""
    with subprocess.Popen([sys.executable, "-c", "while True: pass"]) as spinner:
        _pin(spinner.pid, {core})
        try:
            yield
        finally:
            spinner.kill()


def _pin(pid: int, cores: Collection[int]) -> None:
    """Let all threads of a process run on these processors alone; it is no error when one has ended."""
    with contextlib.suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with contextlib.suppress(ProcessLookupError):
                os.sched_setaffinity(int(thread), cores)


def main(jobs: int, in_flight: int, piece: int, seed: int) -> None:
    """Be one client: say that it is connected, wait for a line, send, and print the processor time it took.

    `in_flight` pieces are under way, of so many jobs each.
    """
    with Client(environment.load()) as client:

        def send(count: int, number: int) -> None:
            data = load.payloads(count, number)
            load.sliding(
                lambda items: client.submit_many("noop", items),
                lambda handles: [handle.result(load.LOST_S) for handle in handles],
                [data[start : start + piece] for start in range(0, count, piece)],
                in_flight,
            )

        send(1000, seed + 50)
        print("ready", flush=True)
        sys.stdin.readline()
        before = _own_s()
        send(jobs, seed)
        print(json.dumps(_own_s() - before), flush=True)


def _own_s() -> float:
    own: Any = resource.getrusage(resource.RUSAGE_SELF)
    return float(own.ru_utime + own.ru_stime)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
