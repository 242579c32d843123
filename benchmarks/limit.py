"""The floor: what plain Python of ExeSys's shape does, without all that makes it ExeSys. See `bare.py`.

    python benchmarks/limit.py [--jobs N] [--rounds N]

A client, a router, a worker with two slots and a Redis of its own, the same
traffic as ours, every result compared with what was sent. Below that the bare
parts: an echo by pyzmq, and the scripts of the floor in Redis by themselves.
`run.py --limit` measures it beside ExeSys, in turns.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import zmq

_CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_CHECKOUT))

from benchmarks import bare, load  # noqa: E402  # found by the line above, when this is the program
from benchmarks.costs import Groups, Meter  # noqa: E402  # as above
from exesys import config as configuration  # noqa: E402  # as above
from exesys import process, servers  # noqa: E402  # as above
from exesys.errors import BootError  # noqa: E402  # as above

STARTS_S = 10.0
HUNDRED = 100
_AT_ONCE = int(zmq.DONTWAIT)


class Client:
    """The floor's client: one thread, one socket, a message for each call."""

    def __init__(self, home: Path) -> None:
        self._context = zmq.Context[bare.Socket]()
        self._front = self._context.socket(zmq.DEALER)
        self._front.linger = 0
        self._front.set_hwm(0)
        self._front.connect(bare.endpoint(home, "front"))
        self._tag = 0
        self._name = secrets.token_hex(8)
        self._untaken: set[int] = set()
        self._results: dict[int, bytes] = {}

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._front.close()
        self._context.term()

    def submit(self, data: object) -> int:
        return self.submit_many([data])[0]

    def submit_many(self, data: list[Any]) -> list[int]:
        """Send jobs in one message; return their tags."""
        first = self._tag + 1
        self._tag += len(data)
        tags = list(range(first, self._tag + 1))
        self._untaken.update(tags)
        jobs = [
            (tag, f"{self._name}{tag:016x}".encode(), b"noop", msgpack.packb(item))
            for tag, item in zip(tags, data, strict=True)
        ]
        self._front.send(msgpack.packb(jobs))
        return tags

    def wait(self, tag: int) -> object:
        """Wait for the result of one. Raises TimeoutError."""
        while tag not in self._results:
            self._hear()
        return msgpack.unpackb(self._results.pop(tag))

    def wait_all(self, tags: list[int]) -> list[object]:
        return [self.wait(tag) for tag in tags]

    def accepted(self, tags: list[int]) -> None:
        """Wait until all of these were taken. Raises TimeoutError."""
        while not self._untaken.isdisjoint(tags):
            self._hear()

    def _hear(self) -> None:
        # Asked first: a poll costs more than the look whether something is there.
        if not bare.has_message(self._front) and not self._front.poll(load.LOST_S * 1000):
            raise TimeoutError(f"The floor has been silent for {load.LOST_S} s.")
        for (frame,) in bare.drain(self._front):
            taken, ended = msgpack.unpackb(frame)
            self._untaken.difference_update(taken)
            self._results.update(ended)


class Floor:
    """A running floor, and what is measured on it."""

    def __init__(self, home: Path, groups: Groups) -> None:
        self.home = home
        self._groups = groups

    def throughput(self, jobs: int, in_flight: int, seed: int) -> dict[str, float]:
        """One message for each job, `in_flight` under way. Returns jobs per second, and what they cost whom."""
        with Client(self.home) as client:
            _warm_up(client)
            data, meter = load.payloads(jobs, seed), Meter(self._groups)
            took_s = load.sliding(client.submit, client.wait, data, in_flight)
            return {"jobs_per_s": jobs / took_s, **meter.us_per_job(jobs)}

    def latency(self, jobs: int, seed: int) -> dict[str, float]:
        """One job after the other."""
        with Client(self.home) as client:
            _warm_up(client)
            return load.one_by_one(lambda text: client.wait(client.submit(text)), load.payloads(jobs, seed))

    def many(self, jobs: int, in_flight: int, seed: int) -> dict[str, float]:
        """Jobs in hundreds, `in_flight` hundreds under way. Returns jobs per second, and what they cost whom."""
        with Client(self.home) as client:
            _warm_up(client)
            hundreds = list(load.hundreds(load.payloads(jobs, seed)))
            meter = Meter(self._groups)
            took_s = load.sliding(client.submit_many, client.wait_all, hundreds, in_flight)
            return {"jobs_per_s": jobs / took_s, **meter.us_per_job(jobs)}


def _warm_up(client: Client) -> None:
    for text in load.payloads(200, 0):
        load.check(text, client.wait(client.submit(text)))


@contextlib.contextmanager
def running(home: Path) -> Iterator[Floor]:
    """Run the floor's processes in `home`, which must be short. Raises BootError."""
    home.mkdir(parents=True)
    config = configuration.parse("", None, {"EXESYS_HOME": str(home)}, _CHECKOUT, home)
    server = servers.redis_server(config)
    (home / "data").mkdir()
    command = servers.redis_command(config, server, unixsocket=str(home / "redis"), dir=str(home / "data"), port="0")
    # By the home in its environment a process is known as one of ours.
    environ = {**os.environ, **dict([servers.REDIS_MALLOC]), "EXESYS_HOME": str(home)}
    with contextlib.ExitStack() as stack, (home / "floor.log").open("wb") as log:

        def start(*words: str) -> int:
            started = subprocess.Popen(words, cwd=_CHECKOUT, env=environ, stdout=log, stderr=log)
            stack.callback(_end, started)
            return started.pid

        redis = start(*command)
        if not process.wait_until((home / "redis").exists, STARTS_S, 0.01):
            raise BootError(f"The Redis of the floor has not started within {STARTS_S:g} s.")
        router, worker, _ = (start(sys.executable, "-m", "benchmarks.bare", part, str(home)) for part in bare.DAEMONS)
        with Client(home) as client:
            _warm_up(client)
        yield Floor(home, {"router": [router], "redis": [redis], "worker": [worker], "slots": process.children(worker)})


def _end(started: subprocess.Popen[bytes]) -> None:
    started.terminate()
    started.wait()


# -- the bare parts ---------------------------------------------------------------


def parts(home: Path, messages: int) -> dict[str, float]:
    """Measure on a running floor what pyzmq and Redis do by themselves."""
    return {**_echo(home, messages), **_scripts(home, messages)}


def _echo(home: Path, messages: int) -> dict[str, float]:
    """Messages a second to a ROUTER and back, one at a time and a hundred in flight."""
    context = zmq.Context[bare.Socket]()
    line = context.socket(zmq.DEALER)
    line.linger = 0
    line.set_hwm(0)
    line.connect(bare.endpoint(home, "echo"))

    def wait(sent: bytes) -> bytes:
        return line.recv()

    def send(item: bytes) -> bytes:
        line.send(item)
        return item

    try:
        load.sliding(send, wait, [b"warm"] * HUNDRED, 1)
        items = [b"%d" % number for number in range(messages)]
        alone_s = load.sliding(send, wait, items, 1)
        crowd_s = load.sliding(send, wait, items, HUNDRED)
    finally:
        line.close()
        context.term()
    return {"echo_one_per_s": messages / alone_s, "echo_hundred_per_s": messages / crowd_s}


def _scripts(home: Path, jobs: int) -> dict[str, float]:
    """Jobs a second that are submitted, claimed and reported in one pipeline: of one job each, and of a hundred."""
    redis = bare.Redis(home)
    figures = {}
    for size, name in ((1, "one"), (HUNDRED, "hundred")):
        rounds = range(max(1, jobs // size))
        before_us, since = _scripts_us(redis), time.perf_counter()
        for _ in rounds:
            placed = [(b"", 0, os.urandom(16).hex().encode(), b"noop", b"\xa4data") for _ in range(size)]
            redis.ask_all(
                redis.submit(placed), redis.claim(size), redis.report([(job[2], 1, job[4]) for job in placed])
            )
        done = len(rounds) * size
        figures[f"scripts_{name}_per_s"] = done / (time.perf_counter() - since)
        figures[f"scripts_{name}_redis_us"] = (_scripts_us(redis) - before_us) / done
    return figures


def _scripts_us(redis: bare.Redis) -> float:
    """Return the microseconds that Redis has spent in scripts."""
    lines = redis.ask("INFO", "commandstats").decode().splitlines()
    return sum(float(line.partition("usec=")[2].partition(",")[0]) for line in lines if "evalsha" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=20_000, metavar="N")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="exl-") as home, running(Path(home) / "f") as floor:
        for number in range(options.rounds):
            for name, figures in (
                ("throughput", floor.throughput(options.jobs, HUNDRED, number)),
                ("latency", floor.latency(2_000, 1000 + number)),
                ("hundreds", floor.many(options.jobs, 10, 2000 + number)),
                ("parts", parts(floor.home, options.jobs)),
            ):
                print(f"{name}: {', '.join(f'{figure} {value:,.6g}' for figure, value in figures.items())}", flush=True)


if __name__ == "__main__":
    main()
