"""A private ExeSys to measure: real programs, free ports, a home of its own."""

from __future__ import annotations

import contextlib
import io
import os
import resource
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import redis

from exesys import bootstrap, process
from exesys import config as configuration
from exesys.config import Config
from exesys.errors import BootError

SLOTS = 2
QUIET_S = 60.0
MODULE = '''"""What the benchmark calls."""


import time


def noop(data):
    """Return the data."""
    return data


def nap(data):
    """Sleep for so many seconds, and return when that began, and what was sent besides."""
    began_at = time.time()
    time.sleep(data[0])
    return [began_at, data[1]]
'''
APPS = Path(__file__).resolve().parent / "modules" / "bench_apps.py"
_CHECKOUT = Path(__file__).resolve().parent.parent


@contextlib.contextmanager
def running(
    home: Path,
    apps: bool = False,
    bus: str = "",
    before: Callable[[Config], None] = lambda config: None,
    slots: int = SLOTS,
    settings: Mapping[str, str] | None = None,
) -> Iterator[Config]:
    """Run a system in `home`, which must be short (unix sockets lie in it), and end it again.

    With `apps`, an application server runs in it too. `bus` is its [bus]
    endpoint; `before` is called before the start; `settings` are further variables.
    """
    modules = home / "modules"
    modules.mkdir(parents=True)
    (modules / "bench.py").write_text(MODULE)
    shutil.copy(APPS, modules)
    environ = {**_environment(home, modules, slots), **(settings or {})}
    if apps:
        environ["EXESYS_APPSERVER_bench_CLASS"] = "bench_apps:Bench"
    environ["EXESYS_BUS_ENDPOINT"] = bus
    config = configuration.parse("", None, environ, _CHECKOUT, home)
    before(config)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            bootstrap.up(config, as_json=True)
        yield config
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            bootstrap.down(config, as_json=True)


def _environment(home: Path, modules: Path, slots: int) -> dict[str, str]:
    """All settings that differ from the defaults. What the caller's environment says does not count."""
    rest = process.free_port("127.0.0.1")
    web = rest
    while web == rest:
        web = process.free_port("127.0.0.1")
    return {
        "EXESYS_HOME": str(home),
        "EXESYS_FUNCTIONS_PATH": str(modules),
        "EXESYS_REST_PORT": str(rest),
        "EXESYS_WEB_PORT": str(web),
        "EXESYS_MONGO_SERVER": "none",
        "EXESYS_WORKER_SLOTS": str(slots),
    }


class Store:
    """The system's Redis, seen from outside: what it holds, and whether it is busy by itself."""

    def __init__(self, config: Config) -> None:
        self.socket = config.run / "redis"
        self._redis = redis.Redis(unix_socket_path=str(self.socket))

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    def version(self) -> str:
        told = self._redis.info("server")
        return f"Valkey {told['valkey_version']}" if "valkey_version" in told else f"Redis {told['redis_version']}"

    def used_bytes(self) -> int:
        return int(self._redis.info("memory")["used_memory"])

    def wait_quiet(self) -> None:
        """Wait until no rewrite of the append-only file is under way. Raises BootError."""

        def quiet() -> bool:
            told = self._redis.info("persistence")
            return not (told["aof_rewrite_in_progress"] or told["aof_rewrite_scheduled"])

        if not process.wait_until(quiet, QUIET_S):
            raise BootError(f"Redis still rewrites its append-only file after {QUIET_S:g} s.")

    def jobs(self) -> list[str]:
        """List all jobs, in the order in which they came."""
        entries: Any = self._redis.xrange("exesys:jobs")
        return [fields[b"j"].decode() for _, fields in entries]

    def index_bytes(self) -> int:
        """Return what the index of jobs takes: it is kept longer than most of their records."""
        return int(self._redis.memory_usage("exesys:jobs", samples=0) or 0)

    def waiting(self, queue: str) -> int:
        """Return how many jobs are ready in a queue."""
        return int(self._redis.zcard(f"exesys:ready:{queue}"))

    def took_in(self, timer: str) -> bool:
        """Tell whether the controller has taken in a timer."""
        return bool(self._redis.exists(f"exesys:timer-state:{timer}"))

    def began(self, refs: list[str]) -> list[int | None]:
        """Return when each of these steps began to run, in ms; None for one that has not ended well."""
        pipeline = self._redis.pipeline(transaction=False)
        for ref in refs:
            pipeline.hget(f"{ref}:data_available", "began")
        return [int(began) if began else None for began in pipeline.execute()]

    def flush(self, database: int) -> None:
        """Empty one of the databases that the peers use."""
        with redis.Redis(unix_socket_path=str(self.socket), db=database) as connection:
            connection.flushdb()


def router_rss_bytes(config: Config) -> int:
    """Return the memory of the router's process."""
    [pid] = [program["pid"] for program in bootstrap.status(config)["programs"] if program["name"] == "router"]
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) * 1024


def program_s(config: Config, *names: str) -> float:
    """Return the processor time that these programs have used."""
    pids = [program["pid"] for program in bootstrap.status(config)["programs"] if program["name"] in names]
    return sum(used_s(str(pid)) for pid in pids)


class Processors:
    """What share of all processors other programs take, from when this is made until it is asked."""

    def __init__(self, *homes: Path) -> None:
        self._homes = homes
        self._total, self._busy = _processor_s()
        self._own = self._own_s()

    def others(self) -> float:
        """Return the share, 0 to 1: what was in use, less what this program, its ended children and the homes' used."""
        total, busy = _processor_s()
        return max(0.0, busy - self._busy - self._own_s() + self._own) / max(_TICK_S, total - self._total)

    def _own_s(self) -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used) + sum(
            used_s(pid) for home in self._homes for pid in pids_of(home)
        )


_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def pids_of(home: Path) -> Iterator[str]:
    """List all that a system started: its programs, and what these started."""
    mark = b"EXESYS_HOME=" + os.fsencode(home)
    for pid in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield pid


def used_s(pid: str) -> float:
    """Return the processor time a process has used, 0 when it has ended."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(words[11]) + int(words[12])) * _TICK_S


def _processor_s() -> tuple[float, float]:
    """Return total and used time of all processors since the boot."""
    with open("/proc/stat", encoding="ascii") as stat:
        ticks = [int(word) for word in stat.readline().split()[1:9]]
    return sum(ticks) * _TICK_S, (sum(ticks) - ticks[3] - ticks[4]) * _TICK_S
