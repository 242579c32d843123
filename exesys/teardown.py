"""The end of a system: in order when supervisord lives, by force when it does not."""

from __future__ import annotations

import contextlib
import glob
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path

from exesys import home, process, programs
from exesys.config import Config
from exesys.errors import BootError

ORPHAN_S = 3.0
SERVER_STOP_S = 30.0
KILLED_S = 10.0
TELL_AFTER_S = 4.0
_STOPS_SLOWLY = ("redis", "redis-backup", "mongo")


class Teller:
    """Prints sentences for a person, or keeps quiet; also when nobody reads them any more."""

    def __init__(self, quiet: bool) -> None:
        self._quiet = quiet

    def __call__(self, text: str) -> None:
        if self._quiet:
            return
        try:
            print(text, flush=True)
        except BrokenPipeError:
            self._quiet = True
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def stop(config: Config, tell: Callable[[str], None]) -> None:
    """End supervisord, which ends the programs in order; what will not end is killed."""
    record = home.read_record(config)
    started = home.as_started(config, record) if record else config
    supervisor = home.supervisor(config)
    within_s = 3.0 * programs.stop_wait_s(started)
    since = time.monotonic()
    told = False

    def gone() -> bool:
        nonlocal told
        if not told and time.monotonic() - since > TELL_AFTER_S:
            told = True
            tell("Waiting for what is under way to end.")
        with contextlib.suppress(BootError):
            supervisor.programs()  # each question also makes it look after its children
        return not process.is_locked(home.lock(config)) and not process.programs_of(config.home)

    try:
        supervisor.shutdown()
    except BootError:
        process.kill(_supervisord_pids(config), signal.SIGTERM)
    if not process.wait_until(gone, within_s, every_s=0.1):
        process.kill(_supervisord_pids(config))
        process.kill([each.pid for each in process.programs_of(config.home)])
        if not process.wait_until(gone, KILLED_S):
            raise BootError(f"The system in {config.home} cannot be ended.", fix="See log/supervisord.log there.")
    forget(config)


def _supervisord_pids(config: Config) -> list[int]:
    """Return the pid in supervisord's file, if that is still this home's supervisord."""
    try:
        pid = int((config.run / "supervisord.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return []
    return [pid] if os.fsencode(config.home / "supervisord.conf") in words else []


def forget(config: Config) -> None:
    """Remove what programs that are gone leave: their record, their pid, their sockets."""
    record = home.read_record(config)
    started = home.as_started(config, record) if record else config
    for name in ("system.json", "supervisor.sock", "supervisord.pid"):
        (config.run / name).unlink(missing_ok=True)
    for path in _bus_sockets(started.bus_endpoint):
        if _is_left_over(path):
            path.unlink(missing_ok=True)


def _bus_sockets(endpoint: str) -> list[Path]:
    """List the socket files of a bus: its front's, and those beside it (see `sockets.beside`)."""
    if not endpoint.startswith("ipc://"):
        return []
    front = Path(endpoint.removeprefix("ipc://"))
    beside = [front.with_name(f"{front.name}.{name}") for name in ("events", "results")]
    pushes = front.parent.glob(f"{glob.escape(front.name)}.w-*")
    apps = front.parent.glob(f"{glob.escape(front.name)}.a-*")
    return [front, *beside, *pushes, *apps]


def _is_left_over(path: Path) -> bool:
    """Tell whether this is a socket on which nobody listens."""
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def end_orphans(config: Config, tell: Teller) -> None:
    """Wait for programs whose supervisord was killed; they were told by the kernel to end."""
    orphans = process.programs_of(config.home)
    if not orphans:
        return
    tell("Waiting for programs whose supervisord is gone: " + ", ".join(f"{name} ({pid})" for pid, name in orphans))
    if process.wait_until(lambda: not process.programs_of(config.home), ORPHAN_S):
        return
    process.kill([each.pid for each in process.programs_of(config.home) if each.program not in _STOPS_SLOWLY])
    if process.wait_until(lambda: not process.programs_of(config.home), SERVER_STOP_S):
        return
    process.kill([each.pid for each in process.programs_of(config.home)])
    if not process.wait_until(lambda: not process.programs_of(config.home), KILLED_S):
        left = ", ".join(f"{name} ({pid})" for pid, name in process.programs_of(config.home))
        raise BootError(f"These programs of {config.home} cannot be ended: {left}.")
