"""The router's connection to Redis: one turn under way, sent again if it must be.

The connection never blocks the router's poll: `begin` writes a turn,
`fileno` goes into the poll, `collect` reads the answers once they are there.
Whatever goes wrong with the connection is one `StoreAway`; after `reconnect`
the same turn is sent again, without its claims, which `recalls` make good
(see `claim.lua`).
"""

from __future__ import annotations

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
REPLY_TIMEOUT_S = 5.0
_PASSING = ("LOADING", "READONLY", "MASTERDOWN", "OOM", "MISCONF", "BUSY", "CLUSTERDOWN", "NOREPLICAS", "TRYAGAIN")


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
            socket_timeout=REPLY_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        ).make_connection()
        self._turn: Turn | None = None
        self._requests: list[Request] = []
        self._answers = Answers()

    @property
    def busy(self) -> bool:
        """Whether a turn is under way."""
        return self._turn is not None

    def fileno(self) -> int:
        """Return the connection's descriptor, for the poll. Raises StoreAway when there is none."""
        # redis-py has no public way to the socket of a connection.
        sock = self._connection._sock
        if sock is None:
            raise StoreAway("the connection to Redis is closed.")
        return int(sock.fileno())

    def reconnect(self) -> None:
        """Connect anew and load the scripts. Raises StoreAway; blocks at most `CONNECT_TIMEOUT_S` a step."""
        connection = self._connection
        connection.disconnect()
        try:
            # The handshake is answered at once or the server is no use yet.
            connection.socket_timeout = CONNECT_TIMEOUT_S
            connection.connect()
            for source in self._scripts.sources.values():
                self._ask("SCRIPT", "LOAD", source)
            connection.socket_timeout = REPLY_TIMEOUT_S
            self._ask("PING")
        except (redis.RedisError, OSError) as error:
            connection.disconnect()
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
        """Read the answers. Returns None while they are not there. Raises StoreAway."""
        if self._turn is None:
            return None
        connection = self._connection
        try:
            if not connection.can_read(0):
                return None
            replies = [connection.read_response(disable_decoding=True) for _ in self._requests]
        except redis.ResponseError as error:
            connection.disconnect()
            raise _away(error) from error
        except (redis.RedisError, OSError) as error:
            connection.disconnect()
            raise StoreAway(f"the connection to Redis broke: {error}.") from error
        for request, reply in zip(self._requests, replies, strict=True):
            request.read(reply)
        turn, self._turn = self._turn, None
        return turn, self._answers

    def close(self) -> None:
        self._connection.disconnect()

    def _send(self, turn: Turn) -> None:
        self._answers = Answers()
        self._requests = list(self._builder.build(turn, self._answers))
        try:
            self._connection.send_packed_command(
                [b"".join(_packed(request.command) for request in self._requests)], check_health=False
            )
        except (redis.RedisError, OSError) as error:
            self._connection.disconnect()
            raise StoreAway(f"the connection to Redis broke: {error}.") from error

    def _ask(self, *command: str) -> Any:
        self._connection.send_packed_command([_packed(command)], check_health=False)
        return self._connection.read_response(disable_decoding=True)


def _packed(command: tuple[Argument, ...]) -> bytes:
    # The stub wrongly asks for a tuple of one.
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def _away(error: redis.ResponseError) -> StoreAway:
    text = str(error)
    if isinstance(error, redis.exceptions.NoScriptError) or text.startswith(_PASSING):
        return StoreAway(f"Redis cannot work just now: {text}.")
    return StoreAway(
        f"Redis refused a script: {text}.", fix="This is a fault in ExeSys or a foreign key in its database."
    )
