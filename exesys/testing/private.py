"""A real private system for tests: its own home, its own Redis, its own processes; ready in about a second.

It is a system like any other, made of the same daemons, but without
supervisord, without the proof of a first job, and with only the programs that
are asked for. It ends with the `with` block, and with this process, however
that ends; what a killed one may have left of directories the next one removes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from exesys import environment, process, programs, servers
from exesys.config import Config
from exesys.errors import BootError, Unavailable
from exesys.home import tail
from exesys.proof import is_ready
from exesys.store import dial

if TYPE_CHECKING:
    import redis as redis_library

    from exesys.bus.client import Client

READY_S = 60.0
END_S = 20.0
ASK_S = 1.0
LOOK_S = 0.005
SHORT_CHARS = 40  # what a directory may have for the names of unix sockets in it to fit
OLD_S = 60.0
PREFIX = "exesys-test-"
HOUSE = Path(__file__).resolve().parent.parent.parent


class PrivateRedis:
    """A real Redis (or Valkey) of its own, without anything else. `with` starts and ends it."""

    def __init__(self, ini: str = "", **settings: Any) -> None:
        """`ini` is the text of its settings, `settings` more of them: worker_slots=4 is EXESYS_WORKER_SLOTS."""
        usual = tempfile.gettempdir()
        parent = usual if len(usual) <= SHORT_CHARS else "/tmp"
        _sweep(Path(parent))
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent)).resolve()
        self._lock = process.hold_lock(self.root / "lock")
        self.home = self.root / "h"
        (self.root / "exesys.ini").write_text(ini, encoding="utf-8")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")}
        self.environ |= {
            "PYTHONPATH": os.pathsep.join([str(HOUSE), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "EXESYS_HOME": str(self.home),
            "EXESYS_INI": str(self.root / "exesys.ini"),
            "EXESYS_MONGO_SERVER": "none",
            **{f"EXESYS_{name.upper()}": str(value) for name, value in settings.items()},
        }
        self._launcher: subprocess.Popen[bytes] | None = None
        try:
            self.config: Config = environment.load(self.environ, self.root)
        except BaseException:
            self.end()
            raise

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def start(self) -> None:
        """Start it, and wait until it serves. Raises BootError."""
        self._launch({})
        self._await(self._answers, "Redis")

    def _answers(self) -> bool:
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as line:
            return line.connect_ex(str(self.config.run / "redis")) == 0

    def end(self) -> None:
        """Kill everything and remove it: nobody asks for its data any more."""
        if self._launcher is not None:
            assert self._launcher.stdin is not None
            self._launcher.stdin.close()
            try:
                self._launcher.wait(END_S)
            except subprocess.TimeoutExpired:
                self._launcher.kill()  # and with it its children
                self._launcher.wait()
            self._launcher = None
        shutil.rmtree(self.root, ignore_errors=True)
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def redis(self, database: int = 1) -> redis_library.Redis:
        """Connect to its Redis; its answers are bytes. Database 1 is `ctx.redis`, 0 holds the jobs."""
        return dial.client(f"unix://{self.config.run}/redis?db={database}", None)

    def logs(self, lines: int = 40) -> str:
        """Return the end of every program's log."""
        paths = sorted(self.config.log.glob("*.log"))
        return "".join(f"\n--- {path.name}\n" + "\n".join(tail(path, lines)) for path in paths)

    def pids(self) -> list[int]:
        """List all processes that were started for it and run, those of its functions too."""
        return process.of_home(self.home)

    def _launch(self, wanted: dict[str, list[str]]) -> None:
        for directory in (self.home, self.config.run, self.config.data, self.config.log):
            directory.mkdir(mode=0o700, exist_ok=True)
        servers.redis_data(self.config).mkdir(mode=0o700)
        server = servers.redis_server(self.config)
        command = servers.redis_command(self.config, server)
        plan = {"home": str(self.home), "root": str(self.root), "redis": command, "programs": wanted}
        with (self.config.log / "launcher.log").open("wb") as log:
            self._launcher = subprocess.Popen(
                [sys.executable, "-P", "-m", "exesys.testing.launcher", json.dumps(plan)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=self.environ,
                start_new_session=True,
            )

    def _await(self, condition: Any, what: str) -> None:
        launcher = self._launcher
        assert launcher is not None
        process.wait_until(lambda: condition() or launcher.poll() is not None, READY_S, LOOK_S)
        if launcher.poll() is not None or not condition():
            raise BootError(f"The private system is not ready: {what} does not answer.{self.logs()}")


class PrivateSystem(PrivateRedis):
    """A whole system: Redis, router, worker and controller; REST and the runner daemon where they are asked for.

    Its functions run in the directory in which this process was when it started.
    """

    def __init__(
        self,
        modules: Sequence[Path | str] = (),
        *,
        rest: bool = False,
        runner: bool = False,
        ini: str = "",
        **settings: Any,
    ) -> None:
        """`modules`: directories of functions; default: those of the settings that hold here."""
        given = [Path(each).absolute() for each in modules] or environment.load().module_dirs
        ports = {"rest_port": process.free_port("127.0.0.1")} if rest else {}
        path = ":".join(map(str, given))
        super().__init__(ini, **{"functions_path": path, "worker_kill_grace_s": 0.5, **ports, **settings})
        self._left_out = {"redis", "web", *(() if rest else ("rest",)), *(() if runner else ("runner",))}
        self._rest = rest
        self.took_s = 0.0  # until it served

    def start(self) -> None:
        """Start it, and wait until its workers are there. Raises BootError."""
        began = time.monotonic()
        config = self.config
        all_of_it = programs.programs(True, False, config.appservers, config.workers, config.controller.processes)
        # Workers first: their slots load the modules while the launcher loads the router.
        order = sorted(all_of_it, key=lambda each: (not each.name.startswith("worker"), each.name != "router"))
        self._launch({each.name: each.module.split() for each in order if each.name not in self._left_out})
        bus = Path(config.bus_endpoint.removeprefix("ipc://"))
        self._await(lambda: bus.exists() or not config.bus_endpoint.startswith("ipc://"), "the router")
        with self.client() as client:
            self._await(lambda: self._serves(client), "the worker")
        if self._rest:
            self._await(lambda: is_ready(config), "REST")
        self.took_s = time.monotonic() - began

    def _serves(self, client: Client) -> bool:
        try:
            told = client.snapshot("workers", "apps", timeout=ASK_S)
        except Unavailable:
            return False
        apps = {each["name"] for each in told["apps"] if each["state"] in ("ready", "failed")}
        there = apps >= {each.name for each in self.config.appservers}
        return there and len(told["workers"]) >= 1 + len(self.config.workers)

    def client(self, **options: Any) -> Client:
        """Return a client of it, to be closed."""
        from exesys.bus.client import Client

        return Client(self.config, **options)

    @property
    def rest_url(self) -> str:
        """Where REST listens, if it was asked for."""
        return self.config.rest_url


def _sweep(parent: Path) -> None:
    """Remove what is left of systems whose process was killed together with their launcher."""
    for root in parent.glob(f"{PREFIX}*"):
        lock = root / "lock"
        with contextlib.suppress(OSError):
            old = time.time() - lock.stat().st_mtime > OLD_S and lock.stat().st_uid == os.getuid()
            if old and not process.is_locked(lock):
                shutil.rmtree(root, ignore_errors=True)
