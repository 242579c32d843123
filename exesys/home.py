"""The home of a system: its lock, its record, its logs.

supervisord holds `run/lock` for as long as it lives, and `run/system.json`
says with which project and settings it was started.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from exesys import config as configuration
from exesys import process
from exesys.config import Config
from exesys.errors import BootError
from exesys.supervision import Supervisor

QUOTED_LINES = 12
BOOT_WAIT_S = 120.0
_TAIL_BYTES = 256 << 10


class Record(NamedTuple):
    """`run/system.json`: who holds this home.

    `settings` are the ones asked for, `environment` is what became of them
    (a free port chosen, a server found); `redis` and `mongo` say which
    servers these are, for people.
    """

    root: str
    settings: dict[str, str]
    environment: dict[str, str]
    redis: str
    mongo: str


def lock(config: Config) -> Path:
    """The file that supervisord holds a lock on for as long as it lives."""
    return config.run / "lock"


def supervisor(config: Config) -> Supervisor:
    return Supervisor(config.run / "supervisor.sock")


def template() -> str:
    """Read the template of supervisord.conf: the checkout's, or the one installed with the package."""
    package = Path(__file__).resolve().parent
    for path in (package.parent / "etc" / "supervisord.conf", package / "etc" / "supervisord.conf"):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise BootError("etc/supervisord.conf is missing.", fix="Restore it, or install ExeSys again.")


def make(config: Config) -> None:
    """Make the directories. Raises BootError when they cannot be ours alone.

    A run directory that others may enter is refused, not closed: it may well
    be that of another program, /var/run for one.
    """
    try:
        if config.run.exists() and config.run.stat().st_mode & 0o077:
            raise BootError(
                f"{config.run} exists and is open to other users, so it will not do.",
                fix=f"Set EXESYS_HOME to another directory, or, if it is yours, `chmod 700 {config.run}`.",
            )
        config.home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in (config.run, config.data, config.log):
            directory.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise BootError(
            f"EXESYS_HOME is {config.home}, where nothing can be written: {error.strerror} ({error.filename}).",
            fix="Set EXESYS_HOME to a directory of yours.",
        ) from error


@contextlib.contextmanager
def booting(config: Config) -> Iterator[None]:
    """Work alone on this home: one `up`, `down` or `restore` at a time. Raises BootError when another takes long."""
    fd = process.hold_lock(config.run / "boot.lock", BOOT_WAIT_S)
    try:
        yield
    finally:
        os.close(fd)


def write(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all."""
    scratch = path.with_name(f"{path.name}.new")
    scratch.touch(mode=0o600)
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)


def write_record(config: Config, record: Record) -> None:
    write(config.run / "system.json", json.dumps(record._asdict(), indent=1) + "\n")


def read_record(config: Config) -> Record | None:
    """Return the record, None when there is none that can be read."""
    try:
        return Record(**json.loads((config.run / "system.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def as_started(config: Config, record: Record) -> Config:
    """Return the settings the running system has, whatever holds now."""
    return configuration.parse("", None, record.environment, Path(record.root), config.home)


def started(config: Config) -> Config:
    """Return the settings of the system that runs in this home; those that hold now when there is none."""
    record = read_record(config) if process.is_locked(lock(config)) else None
    return as_started(config, record) if record is not None else config


def tail(path: Path, lines: int) -> list[str]:
    """Return the last lines of a file, reading at most the last 256 KiB of it."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace").splitlines()[-lines:] if lines else []
    except OSError:
        return []


def quote(path: Path) -> str:
    """Return the end of a log, to stand below a sentence."""
    lines = tail(path, QUOTED_LINES)
    return f"\nThe last lines of {path}:\n" + "\n".join(f"    {line}" for line in lines) if lines else ""
