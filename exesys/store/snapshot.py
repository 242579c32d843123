"""A Redis of which a backup is made: what is in it, and all of it as it is at one moment.

The snapshot is asked for as a replica does (SYNC): the server forks, and what
its child sends is an RDB file of all databases at that moment, while it goes
on serving. It needs no access to the server's files, so it works from afar.
"""

from __future__ import annotations

import contextlib
import re
import socket
from collections.abc import Iterator
from typing import Any, NamedTuple

import redis

from exesys.errors import BackupError
from exesys.store import lineage
from exesys.store.connection import Connection, StoreRefused
from exesys.store.dial import StoreAway, away, sentence
from exesys.store.lineage import Lineage
from exesys.store.redis import FORMAT

QUIET_S = 60.0  # it sends a sign of life at least each ten seconds
_MARK_BYTES = 40
_PIECE_BYTES = 1 << 18
_BY_HAND = "Have who runs it make one (BGSAVE) and copy its RDB file, or allow SYNC: docs/backup.md."


class Contents(NamedTuple):
    """What is in a Redis: product and version, `exesys:format`, keys by database, some counts."""

    server: str
    format: int
    keys: dict[str, int]
    counts: dict[str, int]


class Line(NamedTuple):
    """A connection to a server that has just told its lineage over it, and has nothing more to say."""

    lineage: Lineage
    socket: socket.socket


class Source(Connection):
    """Every call raises StoreAway when Redis is away."""

    @property
    def database(self) -> int:
        """The number of the database that is read."""
        return int(self._redis.connection_pool.connection_kwargs.get("db") or 0)

    def contents(self) -> Contents:
        """Tell what is there. Raises BackupError when that is no store of ExeSys, or one of a newer one."""
        keys = self.keys
        info = self._do(self._redis.info)
        found = self._do(self._redis.get, keys("format"))
        if found is None:
            text = f"there is no store of ExeSys: the key {keys('format')} is not in database {self.database}."
            raise BackupError(text, fix="Look at [redis] url and prefix.")
        if not (found.isdigit() and 0 < int(found) <= FORMAT):
            shown = found.decode("utf-8", "backslashreplace")[:40]
            text = f"another ExeSys wrote the store: {keys('format')} is {shown}, and this one knows up to {FORMAT}."
            raise BackupError(text, fix="Take the ExeSys that wrote it, or a newer one.")
        counted = {
            "jobs": self._do(self._redis.xlen, keys("jobs")),
            "failed": self._do(self._redis.zcard, keys("dead")),
            "runners": self._do(self._redis.scard, keys("runners")),
            "timers": self._do(self._redis.scard, keys("timers")),
        }
        databases = {name[2:]: each["keys"] for name, each in info.items() if re.fullmatch(r"db\d+", name)}
        product = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
        return Contents(product, int(found), databases, counted)

    def lineage(self) -> Lineage:
        """Tell the lives of the store and its last turn."""
        with self.line() as line:
            return line.lineage

    @contextlib.contextmanager
    def line(self) -> Iterator[Line]:
        """Connect to the server and have it tell its lineage: what is sent over that line then goes to the same one."""
        connection: Any = self._redis.connection_pool.make_connection()
        try:
            try:
                connection.connect()
                told = []
                for words in lineage.commands(self.keys):
                    connection.send_command(*words)
                    told.append(connection.read_response())
            except (redis.RedisError, OSError) as error:
                raise away(error) from error
            yield Line(lineage.read(*told), connection._sock)  # redis-py has no public way to it
        finally:
            with contextlib.suppress(redis.RedisError, OSError):
                connection.disconnect()

    def replication(self) -> dict[str, Any]:
        """Tell what the server says of whom it follows and how far it is (INFO replication)."""
        told: dict[str, Any] = self._do(self._redis.info, "replication")
        return told

    def snapshot(self) -> Iterator[bytes]:
        """Give an RDB file of all databases as they are now, piece by piece.

        Raises StoreRefused when the server does not hand one out, StoreAway
        when it breaks off.
        """
        connection: Any = self._redis.connection_pool.make_connection()
        connection.socket_timeout = QUIET_S
        try:
            connection.connect()
            for words in (("capa", "eof"), ("rdb-only", "1")):
                connection.send_command("REPLCONF", *words)
                connection.read_response()
            connection.send_command("SYNC")
            yield from _payload(connection._sock)  # redis-py has no public way to it
        except redis.ResponseError as error:
            raise StoreRefused(f"Redis hands out no snapshot (SYNC): {error}.", fix=_BY_HAND) from error
        except (redis.RedisError, OSError) as error:
            raise StoreAway(f"Redis broke off its snapshot: {sentence(error)}", fix="Try again.") from error
        finally:
            with contextlib.suppress(redis.RedisError, OSError):
                connection.disconnect()


def _payload(sock: socket.socket) -> Iterator[bytes]:
    """Read the answer to SYNC: `$EOF:<mark>`, the bytes, the mark; or `$<length>`, the bytes."""
    held = bytearray()
    while b"\r\n" not in held:
        held += _more(sock)
        del held[: len(held) - len(held.lstrip(b"\n"))]  # signs of life, while it prepares
    line, _, rest = bytes(held).partition(b"\r\n")
    if line.startswith(b"-"):
        raise redis.ResponseError(line[1:].decode("utf-8", "replace"))
    if line.startswith(b"$EOF:") and len(line) == 5 + _MARK_BYTES:
        mark = line[5:]
        while not rest.endswith(mark):
            yield rest[:-_MARK_BYTES]
            rest = rest[-_MARK_BYTES:] + _more(sock)
        yield rest[:-_MARK_BYTES]
    elif line[:1] == b"$" and line[1:].isdigit():
        left = int(line[1:])
        while left > len(rest):
            yield rest
            left -= len(rest)
            rest = _more(sock)
        yield rest[:left]
    else:
        raise redis.ResponseError(f"it answers {line[:80]!r}")


def _more(sock: socket.socket) -> bytes:
    piece = sock.recv(_PIECE_BYTES)
    if not piece:
        raise ConnectionError("it closed the connection")
    return piece
