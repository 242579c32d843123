"""The router's line to Redis: written at once, read when the poll says that there is something.

Over TLS the poll sees bytes that are not yet, or no more, what can be read: a
record may have come in part, hold no reply at all, or lie decrypted in the
library already. So such a line is read without waiting, until nothing is left.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from typing import Any

import hiredis
import redis

from exesys.store import dial
from exesys.store.dial import StoreAway
from exesys.store.spelling import Argument

CONNECT_TIMEOUT_S = 0.25
SEND_TIMEOUT_S = 1.0
_READ_BYTES = 1 << 16  # no record of TLS is larger


class Line:
    """One connection that is made anew by `open`. Whatever breaks it raises StoreAway and leaves it closed."""

    def __init__(self, url: str) -> None:
        self._connection = dial.connection(url, CONNECT_TIMEOUT_S)
        self._socket: Any = None
        self._reader = hiredis.Reader()

    def fileno(self) -> int:
        """Return the descriptor, for the poll. Raises StoreAway when the line is closed."""
        if self._socket is None:
            raise StoreAway("the connection to Redis is closed.")
        return int(self._socket.fileno())

    def open(self) -> None:
        """Connect anew, log in and choose the database; blocks at most `CONNECT_TIMEOUT_S` a step."""
        self.close()
        try:
            self._connection.connect()
        except (redis.RedisError, OSError) as error:
            self.close()
            raise dial.away(error) from error
        # redis-py has no public way to the socket of a connection.
        self._socket = self._connection._sock
        self._reader = hiredis.Reader()

    def hasten(self, timeout_s: float) -> None:
        """Set how long a write, or a reply that is waited for, may take."""
        self._socket.settimeout(timeout_s)

    def ask(self, *command: Argument) -> Any:
        """Send a command and wait for its reply. Raises redis.ResponseError with the text of Redis, too."""
        self.write(packed(command))
        return self.wait()

    def wait(self) -> Any:
        """Wait for one reply. Raises redis.ResponseError with the text of Redis, too."""
        try:
            while (reply := self._reader.gets()) is False:
                self._feed(self._socket.recv(_READ_BYTES) if self._socket else b"")
        except (OSError, hiredis.HiredisError) as error:
            raise self._broken(error) from error
        if isinstance(reply, hiredis.ReplyError):
            raise redis.ResponseError(str(reply))
        return reply

    def write(self, data: bytes) -> None:
        """Send bytes that are packed already."""
        if self._socket is None:
            raise StoreAway("the connection to Redis is closed.")
        view = memoryview(data)
        try:
            # Not sendall: its time limit is for the whole, and Redis works while it reads.
            while view:
                view = view[self._socket.send(view) :]
        except OSError as error:
            raise self._broken(error) from error

    def replies(self) -> Iterable[Any]:
        """Take what the descriptor has, without waiting, and give the replies that are whole.

        An error of Redis is given as a hiredis.ReplyError.
        """
        try:
            if isinstance(self._socket, ssl.SSLSocket):
                self._take_records(self._socket)
            else:
                self._feed(self._socket.recv(_READ_BYTES) if self._socket else b"")
            while (reply := self._reader.gets()) is not False:
                yield reply
        except (OSError, hiredis.HiredisError) as error:
            raise self._broken(error) from error

    def _take_records(self, line: ssl.SSLSocket) -> None:
        limit_s = line.gettimeout()
        line.settimeout(0)
        try:
            while True:
                self._feed(line.recv(_READ_BYTES))
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            line.settimeout(limit_s)

    def _feed(self, chunk: bytes) -> None:
        if not chunk:
            self.close()
            raise StoreAway("Redis closed the connection.")
        self._reader.feed(chunk)

    def _broken(self, error: Exception) -> StoreAway:
        self.close()
        return StoreAway(f"the connection to Redis broke: {dial.sentence(error)}")

    def close(self) -> None:
        """Drop the connection; it can be opened again."""
        self._connection.disconnect()
        self._socket = None


def packed(command: tuple[Argument, ...]) -> bytes:
    """Spell a command as Redis reads it."""
    # The stub wrongly asks for a tuple of one.
    spelt: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return spelt
