"""`python -m exesys.testing.launcher PLAN`: starts the programs of a private system, quickly, and ends all of it.

The daemons are forked from this process, which has imported them once, and
not started by supervisord: that is where most of the time of a usual start
goes. It has one thread and no context of ZeroMQ, so it may fork. A daemon that
ends is started again; when one cannot start, this process ends and leaves the
logs. When its standard input is closed, which the kernel does
when the tests' process dies in whatever way, it kills everything that was
started with this home, removes the directory, and ends. Should it be killed
itself, its children die with it (PR_SET_PDEATHSIG).
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from exesys import process
from exesys.errors import BootError

CHECK_S = 0.005
AGAIN_S = 0.2  # after so long a program that ended is started again
REDIS_S = 10.0
GONE_S = 10.0
SOON_S, MOST = 2.0, 3  # a program that ends so soon so often, one time after the other, cannot start


class Launcher:
    """The programs of one home. `plan` has the home, its root, the command of Redis, and the words of each program."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.home = Path(plan["home"])
        self.root = Path(plan["root"])
        self._redis: list[str] = plan["redis"]
        self._programs: dict[str, list[str]] = plan["programs"]
        self._children: dict[int, str] = {}
        self._began: dict[str, float] = {}
        self._early: Counter[str] = Counter()
        self._due: dict[str, float] = {}

    def start(self) -> None:
        """Start Redis, and the others in their order, each as soon as it is loaded."""
        self._fork("redis")
        there = (self.home / "run" / "redis").exists
        for name, words in self._programs.items():
            import_module(words[0])
            process.wait_until(lambda: there() or self._over(0), REDIS_S, CHECK_S)
            self._fork(name)

    def stay(self) -> None:
        """Start again what ends, until the tests do. Raises BootError for what cannot start."""
        while not self._over(AGAIN_S):
            self._reap()
            for name in [name for name, at in self._due.items() if at <= time.monotonic()]:
                del self._due[name]
                self._fork(name)

    def _over(self, wait_s: float) -> bool:
        """Wait for the end of standard input."""
        return bool(select.select([sys.stdin], [], [], wait_s)[0])

    def _reap(self) -> None:
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            name = self._children.pop(pid)
            how = process.how_it_ended(os.waitstatus_to_exitcode(status))
            now = time.monotonic()
            self._early[name] = self._early[name] + 1 if now - self._began[name] < SOON_S else 0
            if self._early[name] == MOST:
                raise BootError(f"{name} cannot start: it {how}, {MOST} times.")
            print(f"{name} (process {pid}) {how}; it is started again", flush=True)
            self._due[name] = now + AGAIN_S

    def _fork(self, name: str) -> None:
        parent = os.getpid()
        self._began[name] = time.monotonic()
        pid = os.fork()
        if pid:
            self._children[pid] = name
            return
        try:
            process.die_with_parent(signal.SIGKILL, parent)
            _write_to(self.home / "log" / f"{name}.log")
            if name == "redis":
                os.execv(self._redis[0], self._redis)
            _serve(name, self._programs[name])
        except BaseException:  # noqa: BLE001  # it must not go on as a second launcher
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(1)

    def end(self) -> None:
        """Kill all that was started with this home."""

        def alone() -> bool:
            left = [pid for pid in process.of_home(self.home) if pid != os.getpid()]
            process.kill(left)
            return not left

        process.wait_until(alone, GONE_S, CHECK_S)

    def remove(self) -> None:
        """Remove its directory."""
        shutil.rmtree(self.root, ignore_errors=True)


def _write_to(path: Path) -> None:
    log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    null = os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((null, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, stream)


def _serve(name: str, words: Sequence[str]) -> None:
    """Become a daemon. Does not return."""
    module = import_module(words[0])
    sys.argv = list(words)
    try:
        import_module("exesys.daemons.loop").run(name, module.main)
    except SystemExit as end:
        sys.stdout.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


def main() -> int:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the tests, and these then end us
    launcher = Launcher(json.loads(sys.argv[1]))
    try:
        launcher.start()
        launcher.stay()
    except BootError as error:
        print(error, flush=True)
        return 1
    finally:
        launcher.end()
    launcher.remove()
    return 0


if __name__ == "__main__":
    sys.exit(main())
