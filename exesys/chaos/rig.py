"""A system of its own for the blows: in a directory that is removed afterwards, with free ports and its own clock."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import redis

import exesys
from exesys import bootstrap, environment, process
from exesys.chaos.clock import Clock
from exesys.chaos.functions import chaos_work
from exesys.config import Config
from exesys.errors import BootError
from exesys.proof import is_ready
from exesys.servers import redis_data
from exesys.store.keys import Keys

UP_S = 120.0
SHORT_CHARS = 40  # what a directory may have for the names of unix sockets in it to fit
HOUSE = Path(exesys.__file__).resolve().parent
# Half the usual lease, two workers and two controllers, upkeep that looks often and is to find nothing; no attempt is
# the last that may crash.
SETTINGS = {
    "EXESYS_BUS_HEARTBEAT_S": "0.5",
    "EXESYS_CONTROLLER_PROCESSES": "2",
    "EXESYS_CONTROLLER_WALK_S": "10",
    "EXESYS_LIMITS_MAX_CRASHES": "1000",
    "EXESYS_LIMITS_MAX_LOSSES": "1000",
    "EXESYS_RUNNER_MAX_FAILURES": "1000000",
    "EXESYS_RUNNER_MAX_LOSSES": "1000000",
    "EXESYS_RUNNER_MAX_BACKOFF_S": "1",
    "EXESYS_WORKER_GRACE_S": "5",
    "EXESYS_WORKER_KILL_GRACE_S": "0.5",
    "EXESYS_MONGO_SERVER": "none",
}
INI = "[worker]\nslots = 4\n\n[worker:second]\nslots = 4\nqueues = default\n"


class Rig:
    """The system. `with` starts it, and ends it whatever state it is in."""

    def __init__(self) -> None:
        usual = tempfile.gettempdir()
        parent = usual if len(usual) <= SHORT_CHARS else "/tmp"
        self.root = Path(tempfile.mkdtemp(prefix="exesys-chaos-", dir=parent)).resolve()
        self.home = self.root / "h"
        (self.root / "exesys.ini").write_text(INI, encoding="utf-8")
        self.clock = Clock(self.root / "clock")
        ports = [str(process.free_port("127.0.0.1")) for _ in range(2)]
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")}
        self.environ |= SETTINGS | {
            "PYTHONPATH": os.pathsep.join((self.clock.python_path, str(HOUSE.parent))),
            "EXESYS_HOME": str(self.home),
            "EXESYS_INI": str(self.root / "exesys.ini"),
            "EXESYS_FUNCTIONS_PATH": f"{Path(chaos_work.__file__).parent}:{HOUSE.parent / 'modules'}",
            "EXESYS_REST_PORT": ports[0],
            "EXESYS_WEB_PORT": ports[1],
        }
        self.kept = False  # the directory stays when the system is gone
        self.config: Config = environment.load(self.environ, self.root)

    def __enter__(self) -> Rig:
        try:
            (self.home / chaos_work.LIVES).mkdir(parents=True)
            self.up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        if not self.kept:
            shutil.rmtree(self.root, ignore_errors=True)

    def end(self) -> None:
        """Kill all that was started here."""

        def is_gone() -> bool:
            left = self.processes()
            process.kill(left)
            return not left

        process.wait_until(is_gone, UP_S)

    # --- its programs ---------------------------------------------------------

    def up(self) -> None:
        """Start what does not run. Raises BootError."""
        self._exesys("up")

    def down(self) -> None:
        """Stop it as a person does. Raises BootError."""
        self._exesys("down")

    def _exesys(self, word: str) -> None:
        command = [sys.executable, "-P", "-m", "exesys.cli", word]
        done = subprocess.run(
            command, env=self.environ, cwd=self.root, capture_output=True, text=True, timeout=UP_S, check=False
        )
        if done.returncode:
            raise BootError(f"`exesys {word}` of the private system failed: {(done.stderr or done.stdout).strip()}")

    def pids(self) -> dict[str, int]:
        """Return the pid of each program that runs; that of supervisord too."""
        found = {each["name"]: each["pid"] for each in bootstrap.status(self.config)["programs"] if each["pid"]}
        with contextlib.suppress(OSError, ValueError):
            found["supervisord"] = int((self.config.run / "supervisord.pid").read_text())
        return {name: pid for name, pid in found.items() if process.alive(pid)}

    def victims(self, name: str) -> list[int]:
        """Return the pids that a blow at `name` can strike: a program, all workers' slots, or runners' instances."""
        pids = self.pids()
        if name == "slot":
            workers = [pid for program, pid in pids.items() if program.startswith("worker")]
            return [slot for pid in workers for slot in process.children(pid)]
        if name == "instance":
            servers = process.children(pids["runner"]) if "runner" in pids else []
            return [instance for pid in servers for instance in process.children(pid)]
        return [pid for program, pid in pids.items() if program == name or program.rpartition("-")[0] == name]

    def processes(self) -> list[int]:
        """List all that was started with this home, also by functions."""
        return process.of_home(self.home)

    def ready(self) -> bool:
        """Tell whether all programs run, and REST says that all behind it is there."""
        programs = bootstrap.status(self.config)["programs"]
        return bool(programs) and {each["state"] for each in programs} == {"RUNNING"} and is_ready(self.config)

    def await_ready(self, within_s: float) -> float | None:
        """Wait until it serves; return how long that took in seconds, None when it did not."""
        since = time.monotonic()
        return time.monotonic() - since if process.wait_until(self.ready, within_s) else None

    # --- its Redis --------------------------------------------------------------

    def redis(self, database: int = 0) -> Any:
        """Connect to its Redis; answers are bytes, whatever redis-py says of them."""
        return redis.Redis(unix_socket_path=str(self.config.run / "redis"), db=database, socket_timeout=10)

    @property
    def keys(self) -> Keys:
        """How its keys are spelled."""
        return Keys(self.config.redis.prefix)

    def ticks(self) -> int:
        """Return how often its timers have ticked."""
        with self.redis() as connection:
            names = [raw.decode() for raw in connection.smembers(self.keys("timers"))]
            return sum(int(connection.hget(self.keys("timer_state", name), "ran") or 0) for name in names)

    def redis_file(self) -> Path | None:
        """Return the file that Redis appends to just now."""
        found = sorted(redis_data(self.config).rglob("*.incr.aof"), key=lambda path: path.stat().st_mtime)
        return found[-1] if found else None

    def tracebacks(self) -> list[str]:
        """Return the last line of each traceback in the logs of the programs."""
        found = []
        for path in sorted(self.config.log.glob("*.log")):
            lines = path.read_text(errors="replace").splitlines()
            for number, line in enumerate(lines):
                if line.startswith("Traceback"):
                    last = next((each for each in lines[number + 1 :] if not each.startswith(" ")), "")
                    found.append(f"{path.name}: {last}")
        return found
