"""The router's connection to Redis: one turn under way, sent again if it must be.

The connection never blocks the router's poll: `begin` writes a turn,
`fileno` goes into the poll, `collect` reads the answers once they are there.
Whatever goes wrong with the connection is one `StoreAway`; after `reconnect`
the same turn is sent again, without its claims, which `recalls` make good
(see `claim.lua`).
"""

from __future__ import annotations

import socket
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from exesys.config import Limits
from exesys.errors import Unavailable
from exesys.store.keys import Keys
from exesys.store.scripts import Argument, Builder, Request, Scripts, lost_body
from exesys.turn import Answers, Turn

CONNECT_TIMEOUT_S = 0.25
SEND_TIMEOUT_S = 1.0
REPLY_TIMEOUT_S = 5.0
_READ_BYTES = 1 << 20
_PASSING = (
    "LOADING",
    "READONLY",
    "MASTERDOWN",
    "OOM",
    "MISCONF",
    "BUSY",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "TRYAGAIN",
    "NOSCRIPT",
)


class StoreAway(Unavailable):
    """Redis cannot be reached, or cannot write just now."""


class Store:
    """The committing side of the store; the router owns the only one.

    `url` is a redis://, rediss:// or unix:// address.
    """

    def __init__(self, url: str, prefix: str, limits: Limits) -> None:
        self.keys = Keys(prefix)
        self._scripts = Scripts(self.keys)
        self._builder = Builder(self.keys, self._scripts, limits, lost_body(limits.max_losses))
        self._connection: Any = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=SEND_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        ).make_connection()
        self._turn: Turn | None = None
        self._requests: list[Request] = []
        self._answers = Answers()
        self._replies: list[Any] = []
        self._socket: socket.socket | None = None
        self._reader = hiredis.Reader()

    @property
    def busy(self) -> bool:
        """Whether a turn is under way."""
        return self._turn is not None

    def fileno(self) -> int:
        """Return the connection's descriptor, for the poll. Raises StoreAway when there is none."""
        if self._socket is None:
            raise StoreAway("the connection to Redis is closed.")
        return self._socket.fileno()

    def reconnect(self) -> None:
        """Connect anew and load the scripts. Raises StoreAway; blocks at most `CONNECT_TIMEOUT_S` a step."""
        connection = self._connection
        self._drop()
        try:
            # The handshake is answered at once or the server is no use yet.
            connection.socket_timeout = CONNECT_TIMEOUT_S
            connection.connect()
            for source in self._scripts.sources.values():
                self._ask("SCRIPT", "LOAD", source)
            connection.socket_timeout = SEND_TIMEOUT_S
            self._ask("PING")
            # redis-py has no public way to the socket of a connection.
            self._socket = connection._sock
            self._reader = hiredis.Reader()
        except (redis.RedisError, OSError) as error:
            self._drop()
            raise StoreAway(f"Redis does not answer: {error}.", fix="See `exesys status` and redis.log.") from error

    def boot(self) -> tuple[int, list[str], bytes]:
        """Begin a router's life: its epoch, the sessions that may hold jobs, and the last catalogue."""
        try:
            epoch = int(self._ask("INCR", self.keys("epoch")))
            sessions = [session.decode() for session in self._ask("SMEMBERS", self.keys("sessions"))]
            return epoch, sessions, self._ask("GET", self.keys("functions")) or b""
        except (redis.RedisError, OSError) as error:
            raise StoreAway(f"Redis does not answer: {error}.") from error

    def begin(self, turn: Turn) -> None:
        """Send a turn. Raises StoreAway; the turn is kept and `again` sends it once more."""
        self._turn = turn
        self._send(turn)

    def again(self) -> None:
        """Send the turn under way once more, after `reconnect`. Raises StoreAway."""
        if self._turn is None:
            return
        self._turn.claims.clear()
        self._send(self._turn)

    def collect(self) -> tuple[Turn, Answers] | None:
        """Read what the descriptor has. Returns None until all answers are there. Raises StoreAway."""
        if self._turn is None:
            return None
        try:
            chunk = self._socket.recv(_READ_BYTES) if self._socket else b""
        except OSError as error:
            self._drop()
            raise StoreAway(f"the connection to Redis broke: {error}.") from error
        if not chunk:
            self._drop()
            raise StoreAway("Redis closed the connection.")
        self._reader.feed(chunk)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError):
                self._drop()
                raise _away(reply)
            self._replies.append(reply)
        if len(self._replies) < len(self._requests):
            return None
        replies = self._replies
        for request, reply in zip(self._requests, replies, strict=True):
            request.read(reply)
        turn, self._turn = self._turn, None
        return turn, self._answers

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        self._connection.disconnect()
        self._socket = None

    def _send(self, turn: Turn) -> None:
        self._answers = Answers()
        self._replies = []
        self._requests = list(self._builder.build(turn, self._answers))
        if self._socket is None:
            raise StoreAway("the connection to Redis is closed.")
        try:
            self._socket.sendall(b"".join([_packed(request.command) for request in self._requests]))
        except OSError as error:
            self._drop()
            raise StoreAway(f"the connection to Redis broke: {error}.") from error

    def _ask(self, *command: str) -> Any:
        self._connection.send_packed_command([_packed(command)], check_health=False)
        return self._connection.read_response(disable_decoding=True)


def _packed(command: tuple[Argument, ...]) -> bytes:
    # The stub wrongly asks for a tuple of one.
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def _away(error: hiredis.ReplyError) -> StoreAway:
    text = str(error)
    if text.startswith(_PASSING):
        return StoreAway(f"Redis cannot work just now: {text}.")
    return StoreAway(
        f"Redis refused a script: {text}.", fix="This is a fault in ExeSys or a foreign key in its database."
    )
