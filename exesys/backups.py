"""The commands `backup` and `restore`."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from exesys import __version__, archive, bootstrap, home, moves, output, process, restoring
from exesys.addresses import masked
from exesys.config import Config
from exesys.errors import BackupError, BootError, Unavailable
from exesys.store.dial import StoreAway
from exesys.store.snapshot import Source
from exesys.usage import PROGRAM


def backup(config: Config, given: argparse.Namespace) -> int:
    """Write a snapshot of the store to a file, whole or not at all."""
    config = home.started(config)
    path = Path(given.file).resolve()  # a link stays one
    if path.exists() and not path.is_file():
        raise BackupError(f"{path} is there, and is no file.", fix="Give another name.")
    began = time.monotonic()
    with contextlib.closing(Source(config.redis_url, config.redis.prefix)) as source, _whole_or_not(path) as file:
        header = _header(config, source)
        writer = archive.Writer(file, header)
        for piece in source.snapshot():
            writer.write(piece)
        writer.end()
    size = path.stat().st_size
    told = {"file": str(path.absolute()), "bytes": size, "seconds": round(time.monotonic() - began, 3)}
    if given.json:
        output.show({**told, **header._asdict()})
        return 0
    print(f"{path} holds {_counted(header.keys, header.counts)}: {size} bytes, in {told['seconds']:g} s.")
    if header.data_database is None:
        output.note(f"what functions keep is on another server, {masked(config.redis.data_url)}, and not in it.")
    return 0


def restore(config: Config, given: argparse.Namespace) -> int:
    """Put a backup in the place of the private Redis's data; the system stays down."""
    if given.from_backup:
        return _restore_from_replica(config, given)
    done = restoring.from_file(config, Path(given.file), given.replace)
    if given.json:
        output.show(_told(done))
        return 0
    _tell(done)
    print(f"Start the system with: {PROGRAM} up")
    return 0


def _restore_from_replica(config: Config, given: argparse.Namespace) -> int:
    """Bring all back from the replica, and the system up."""
    with contextlib.redirect_stdout(sys.stderr if given.json else sys.stdout):
        runs = process.is_locked(home.lock(config))
        if runs:
            _check_gone(config)
        restoring.check_replica(config, given.replace)  # before anything is stopped in vain
        if runs:
            bootstrap.down(config)
        done = restoring.from_replica(config, given.replace)
        _tell(done)
        bootstrap.up(config)
    if given.json:
        output.show({**_told(done), "status": bootstrap.status(config)})
    return 0


def _check_gone(config: Config) -> None:
    """Raise BootError when the Redis of a system that runs answers: then nothing is lost."""
    with contextlib.closing(Source(config.redis_url, config.redis.prefix)) as source, contextlib.suppress(StoreAway):
        source.lineage()
        fix = f"If you mean it nevertheless, stop it first: `{PROGRAM} down`."
        raise BootError(f"ExeSys runs in {config.home}, and its Redis answers.", fix=fix)


def _tell(done: restoring.Restored) -> None:
    as_of = f", as of {done.time}" if done.time else " from the replica"
    print(f"Restored {_counted(done.contents.keys, done.contents.counts)}{as_of}.")
    for each in done.kept:
        print(f"What was there before is kept in {each}: delete it when you do not need it any more.")


def _told(done: restoring.Restored) -> dict[str, Any]:
    return {"from": done.source, "time": done.time, "kept": done.kept, **done.contents._asdict()}


def _header(config: Config, source: Source) -> archive.Header:
    try:
        contents = source.contents()
    except StoreAway as error:
        fix = "Is it up? A backup is made of a system that runs: `bin/exesys up`."
        raise Unavailable(error.message, fix=fix) from error
    return archive.Header(
        time=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        exesys=__version__,
        format=contents.format,
        prefix=config.redis.prefix,
        server=contents.server,
        database=source.database,
        data_database=_data_database(config),
        keys=contents.keys,
        counts=contents.counts,
    )


def _data_database(config: Config) -> int | None:
    """The number of the database in which functions keep their data; None when it is not known to be this server's."""
    if config.redis.data_url:
        return None
    with contextlib.closing(Source(config.redis_data_url, "")) as data:
        return data.database


def _counted(keys: dict[str, int], counts: dict[str, int]) -> str:
    listed = ", ".join(f"{number} {name}" for name, number in counts.items())
    return f"{sum(keys.values())} keys ({listed})"


@contextlib.contextmanager
def _whole_or_not(path: Path) -> Iterator[BinaryIO]:
    """Open a file that only its owner may read, and that takes its name when it is whole and on the disk."""
    scratch = ""
    try:
        fd, scratch = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # 0600
        with os.fdopen(fd, "wb") as file:
            yield file
            file.flush()
            os.fsync(fd)
        os.replace(scratch, path)
        moves.sync(path.parent)
    except OSError as error:
        fix = "Give a file in a directory of yours, on a disk with room."
        raise BackupError(f"{path} cannot be written: {error.strerror}.", fix=fix) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(scratch)
