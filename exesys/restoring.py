"""Restoring the private Redis from a backup file or from its replica, with the system down.

The new data are made ready aside (`staging.py`); then one list of renames puts
them in the place of the old ones (`moves.py`). Killed at any moment, it leaves
the old or the new.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from exesys import archive, home, moves, process, servers, staging, teardown
from exesys.config import Config
from exesys.errors import BackupError, BootError
from exesys.store.redis import FORMAT
from exesys.store.snapshot import Contents

LOCK_S = 10.0
_BY_HAND = (
    "By hand: `tail -n +3 {name} | head -c -73 > dump.rdb` gives the snapshot. Stop ExeSys and that Redis, put the file"
    " into its data directory and its append-only files away, start it with appendonly no, then"
    " CONFIG SET appendonly yes: docs/backup.md."
)


class Restored(NamedTuple):
    """What was restored: from where, as of when ("" when that is not known), what it is, and what is kept of before."""

    source: str
    time: str
    contents: Contents
    kept: list[str]


def from_file(config: Config, path: Path, replace: bool) -> Restored:
    """Put what a backup file holds in the place of the private Redis's data, and keep what was there aside.

    Raises BackupError for a file that will not do, BootError when the system
    runs, when there is data and `replace` is not given, or when Redis is not
    ours.
    """
    if config.redis.url:
        text = f"[redis] url is set, and a Redis that is not ours is not restored into ({path})."
        raise BootError(text, fix=_BY_HAND.format(name=shlex.quote(str(path))))
    with _reading(path) as file:
        header = archive.read(file, str(path), len)  # whole, before anything is done
        _check(config, header, path)

        def fill(stage: Path) -> None:
            with (stage / staging.SNAPSHOT).open("wb") as out:
                archive.read(file, str(path), out.write)

        # The data that are there say nothing of which server may read the file.
        return _replace(config, replace, staging.directory(config), fill, (str(path), header.time))


def from_replica(config: Config, replace: bool) -> Restored:
    """Put what the replica has in the place of the private Redis's data, and keep what was there aside.

    The replica keeps its own. Raises BackupError when it has nothing that can
    be loaded, BootError as `from_file` does.
    """
    check_replica(config, replace)
    replica = servers.replica_data(config)

    def fill(stage: Path) -> None:
        shutil.copytree(replica / "appendonlydir", stage / "appendonlydir")

    return _replace(config, replace, replica, fill, ("the replica", ""), keeps_replica=True)


def check_replica(config: Config, replace: bool) -> None:
    """Raise what `from_replica` would raise for what can be seen before; also while the system runs."""
    if config.redis.url:
        raise BootError("[redis] url is set: there is no replica of ours.", fix="Ask who runs that Redis.")
    replica = servers.replica_data(config)
    if not servers.holds_data(replica):
        text = f"There is no replica to restore from: {replica} holds no data."
        raise BackupError(text, fix="Restore a backup file, if there is one: `bin/exesys restore FILE`.")
    _check_free([servers.redis_data(config)], replace)


def _check_free(places: list[Path], replace: bool) -> list[Path]:
    """Return those of the directories that hold data. Raises BootError when they are not to be replaced."""
    held = [each for each in places if servers.holds_data(each)]
    if held and not replace:
        text = f"{' and '.join(map(str, held))} {'hold' if len(held) > 1 else 'holds'} data already."
        raise BootError(text, fix="With --replace it is kept aside under another name.")
    return held


def _reading(path: Path) -> BinaryIO:
    if path.exists() and not path.is_file():
        raise BackupError(f"{path} is no file.", fix="Give the path of a backup; a pipe cannot be read twice.")
    try:
        return path.open("rb")
    except OSError as error:
        raise BackupError(f"{path} cannot be read: {error.strerror}.", fix="Give the path of a backup.") from error


def _check(config: Config, header: archive.Header, path: Path) -> None:
    if header.format > FORMAT:
        text = f"{path} holds a store of format {header.format}, and this ExeSys reads up to {FORMAT}."
        raise BackupError(text, fix="Restore it with the ExeSys that made it, or a newer one.")
    if header.prefix != config.redis.prefix:
        text = f"The keys in {path} begin with {header.prefix!r}, and [redis] prefix is {config.redis.prefix!r}."
        raise BackupError(text, fix="Set it to what the backup has.")
    if header.database != 0 or header.data_database not in (None, 1):
        text = f"{path} has the jobs in database {header.database} and the data of functions in {header.data_database}."
        raise BackupError(f"{text} The private Redis has them in 0 and 1.", fix="Restore it by hand: docs/backup.md.")


def _replace(
    config: Config,
    replace: bool,
    readable: Path,
    fill: Callable[[Path], None],
    source: tuple[str, str],
    keeps_replica: bool = False,
) -> Restored:
    """Have the server that may read the data in `readable` load what `fill` brings, and put it in place."""
    home.make(config)
    with home.booting(config), _no_replica(config):
        if process.is_locked(home.lock(config)):
            raise BootError(f"ExeSys runs in {config.home}.", fix="Stop it first: `bin/exesys down`.")
        teardown.end_orphans(config, teardown.Teller(quiet=True))
        moves.settle(config.data)
        places = [servers.redis_data(config), *([] if keeps_replica else [servers.replica_data(config)])]
        held = _check_free(places, replace)
        server = servers.redis_server(config, readable)
        contents = staging.make(config, server, fill)
        mark = time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        kept = {each: _free(each, f"before-{mark}") for each in places}
        steps = []
        for each in places:
            if aside := _steps(config, each, kept[each]):
                kept[each].mkdir(mode=0o700)
                steps += aside
        steps += _steps(config, staging.directory(config), servers.redis_data(config))
        moves.carry_out(config.data, steps)
        shutil.rmtree(staging.directory(config), ignore_errors=True)
    return Restored(*source, contents, [str(kept[each]) for each in held])


def _steps(config: Config, source: Path, target: Path) -> list[moves.Move]:
    """List the renames that bring the data in one directory to another.

    The directories stay, as they may be links to another disk, or the roots of one.
    """
    names = [(source / part, target / part) for part in servers.REDIS_PARTS if (source / part).exists()]
    return [(str(old.relative_to(config.data)), str(new.relative_to(config.data))) for old, new in names]


@contextlib.contextmanager
def _no_replica(config: Config) -> Iterator[None]:
    """Keep the replica's server from running; one that is about to end is waited for."""
    lock = process.hold_lock(servers.replica_lock(config), LOCK_S)
    try:
        yield
    finally:
        os.close(lock)


def _free(directory: Path, name: str) -> Path:
    """Return a path in the directory that is not taken."""
    number, path = 1, directory / name
    while path.exists():
        number += 1
        path = directory / f"{name}-{number}"
    return path
