"""A data directory for the private Redis, made aside: loaded by the server itself, so what it cannot read is found.

The server runs on the directory for a moment, with a socket of its own, and
ends with us. What it leaves has the form that the private Redis keeps its data
in, and is on the disk.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from exesys import home, moves, process, servers
from exesys.config import Config
from exesys.errors import BackupError, BootError
from exesys.store.keys import Keys
from exesys.store.snapshot import Contents, Source

STAGE = "restoring"
SNAPSHOT = "snapshot.rdb"
LOAD_S = 3600.0
STOP_S = 600.0
# More than a router is started between two backups: no epoch comes twice (see `subscription.py`).
EPOCHS = 1000


def directory(config: Config) -> Path:
    """Where the data are made ready: on the disk to which they belong."""
    return servers.redis_data(config) / STAGE


def make(config: Config, server: servers.Server, fill: Callable[[Path], None]) -> Contents:
    """Make the directory, have it filled and then loaded by the server; tell what is in it.

    `fill` puts a file `SNAPSHOT` or an append-only directory into it. Raises
    BackupError when that cannot be loaded or is no store of ours; then
    nothing is left.
    """
    stage = directory(config)
    shutil.rmtree(stage, ignore_errors=True)  # of a restore that was broken off
    try:
        stage.parent.mkdir(mode=0o700, exist_ok=True)
        stage.mkdir(mode=0o700)
        fill(stage)
        return _load(config, server, stage)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        with contextlib.suppress(OSError):
            stage.parent.rmdir()  # it was empty
        if isinstance(error, OSError):
            text = f"{error.filename or stage} cannot be written: {error.strerror}."
            raise BackupError(text, fix="Is there room on the disk?") from error
        raise


def _load(config: Config, server: servers.Server, stage: Path) -> Contents:
    snapshot = stage / SNAPSHOT
    from_file = snapshot.exists()
    with _serving(config, server, stage, from_file) as source:
        contents = source.contents()
        with contextlib.closing(_connect(config)) as connection:
            try:
                connection.incrby(Keys(config.redis.prefix)("epoch"), EPOCHS)
            except redis.ResponseError as error:
                raise BackupError(f"It holds no store of ours: {error}.", fix="Give another file.") from error
            if from_file:
                _keep_as_commands(connection)
    snapshot.unlink(missing_ok=True)
    servers.remember_writer(server, stage)
    for path in (*stage.rglob("*"), stage, stage.parent, config.data):
        moves.sync(path)
    return contents


def _connect(config: Config) -> redis.Redis:
    once = Retry(NoBackoff(), 0)
    return redis.Redis(unix_socket_path=_socket(config), socket_timeout=servers.REMOTE_S, retry=once)


def _socket(config: Config) -> str:
    return str(config.run / "redis-restoring")


@contextlib.contextmanager
def _serving(config: Config, server: servers.Server, stage: Path, from_file: bool) -> Iterator[Source]:
    """Run the server on the directory; at the end it is told to write all, and has ended."""
    log = config.log / "restore.log"
    command = servers.redis_command(
        *(config, server),
        dir=str(stage),
        unixsocket=_socket(config),
        port="0",
        dbfilename=SNAPSHOT,
        appendonly="no" if from_file else "yes",
    )
    ours = os.getpid()
    with log.open("wb") as out:
        running = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            preexec_fn=lambda: process.die_with_parent(signal.SIGKILL, ours),
        )
    source = Source(f"unix://{_socket(config)}?db=0", config.redis.prefix)
    try:
        _await(lambda: running.poll() is not None or _answers(config), LOAD_S, "loads the data")
        if running.poll() is not None:
            raise BackupError(
                f"{server} ({server.path}) cannot load it.{home.quote(log)}",
                fix="If a newer server wrote it, install that one, or set [redis] server to it.",
            )
        yield source
        running.terminate()
        _await(lambda: running.poll() is not None, STOP_S, "writes the data")
    finally:
        source.close()
        running.kill()
        running.wait()
        Path(_socket(config)).unlink(missing_ok=True)
    if running.returncode != 0:
        raise BackupError(f"{server} could not write the data.{home.quote(log)}", fix="Is there room on the disk?")


def _answers(config: Config) -> bool:
    with contextlib.closing(_connect(config)) as connection:
        try:
            return bool(connection.ping())
        except (redis.ConnectionError, redis.TimeoutError):  # among them that it is loading
            return False


def _keep_as_commands(connection: redis.Redis) -> None:
    """Have the server write its append-only file, and wait for that."""
    connection.config_set("appendonly", "yes")

    def written() -> bool:
        told = connection.info("persistence")
        if told["aof_rewrite_in_progress"]:
            return False
        if told["aof_last_bgrewrite_status"] != "ok":  # another try may be scheduled, and would end as this one
            raise BackupError("The server could not write the data.", fix="Is there room on the disk?")
        return not told["aof_rewrite_scheduled"]

    _await(written, LOAD_S, "writes the data")


def _await(condition: Callable[[], bool], within_s: float, what: str) -> None:
    if not process.wait_until(condition, within_s):
        raise BootError(f"The server that {what} does not end within {within_s:g} s.", fix="See log/restore.log.")
