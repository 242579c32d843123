"""The router's connection to Redis: one turn under way, sent again if it must be.

The connection never blocks the router's poll: `begin` writes a turn,
`fileno` goes into the poll, `collect` reads the answers once they are there.
Whatever goes wrong with the connection is one `StoreAway`; after `reconnect`
the same turn is sent again, without its claims, which `recalls` make good
(see `claim.lua`). What Redis itself may lose is the matter of `journal.py`.
"""

from __future__ import annotations

import dataclasses
import logging
import secrets
import socket
import time
from typing import Any

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from exesys.config import Limits
from exesys.errors import ConfigError, Unavailable
from exesys.runner import Name
from exesys.store import lineage
from exesys.store.journal import Journal
from exesys.store.keys import Keys
from exesys.store.oddities import Oddities, texts
from exesys.store.scripts import CHUNK, Builder, Kind, Library, Request, lost_body
from exesys.store.spelling import Argument
from exesys.turn import Answers, Turn

CONNECT_TIMEOUT_S = 0.25
SEND_TIMEOUT_S = 1.0
REPLY_TIMEOUT_S = 5.0
FORMAT = 1  # of what is in Redis; one that an older ExeSys would read wrongly gets the next number
_READ_BYTES = 1 << 16
# What the router remembers of a runner. Its data stays in Redis.
RUNNER_FIELDS = ("target", "size", "state", "epoch", "session", "failures", "losses", "restarts")
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
    "ERR Function not found",  # somebody flushed them: a reconnect loads ours again
)

log = logging.getLogger(__name__)


class StoreAway(Unavailable):
    """Redis cannot be reached, or cannot write just now."""


class Store:
    """The committing side of the store; the router owns the only one.

    `url` is a redis://, rediss:// or unix:// address.
    """

    def __init__(self, url: str, prefix: str, limits: Limits) -> None:
        self.keys = Keys(prefix)
        self._library = Library(self.keys)
        self._oddities = Oddities(self.keys)
        self._builder = Builder(self.keys, self._library, limits, lost_body(limits.max_losses), self._oddities)
        self._connection: Any = redis.ConnectionPool.from_url(
            url,
            protocol=2,
            socket_timeout=SEND_TIMEOUT_S,
            socket_connect_timeout=CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
        ).make_connection()
        self._turn: Turn | None = None
        self._requests: list[Request] = []
        self._claims_lost = False
        self._chunk = CHUNK
        self._answers = Answers()
        self._replies: list[Any] = []
        self._epoch = 0
        self._journal = Journal()
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
        """Connect anew and load the library. Raises StoreAway; blocks at most `CONNECT_TIMEOUT_S` a step."""
        connection = self._connection
        self._drop()
        try:
            # The handshake is answered at once or the server is no use yet.
            connection.socket_timeout = CONNECT_TIMEOUT_S
            connection.connect()
            self._load()
            connection.socket_timeout = SEND_TIMEOUT_S
            self._ask("PING")
            # redis-py has no public way to the socket of a connection.
            self._socket = connection._sock
            self._reader = hiredis.Reader()
            self._heal()
        except (redis.RedisError, OSError) as error:
            self._drop()
            raise StoreAway(
                f"Redis does not answer: {str(error).rstrip('.')}.", fix="See `bin/exesys status` and redis.log."
            ) from error

    def check_format(self) -> None:
        """See to it that we can read what is in the store, and note in which form it is.

        A store of before that was noted is of the first form. Raises
        ConfigError when a newer ExeSys wrote it, StoreAway.
        """
        try:
            self._ask("SET", self.keys("format"), str(FORMAT), "NX")
            found = self._ask("GET", self.keys("format"))
        except (redis.RedisError, OSError) as error:
            raise StoreAway(f"Redis does not answer: {str(error).rstrip('.')}.") from error
        if not (found.isdigit() and 0 < int(found) <= FORMAT):
            shown = found.decode("utf-8", "backslashreplace")[:40]
            raise ConfigError(
                f"another ExeSys wrote the store: {self.keys('format')} is {shown}, and this one reads up to {FORMAT}.",
                fix="Start it with the newer one, or give this one a store of its own ([redis] url, or EXESYS_HOME).",
            )

    def boot(self) -> tuple[int, list[str], bytes]:
        """Begin a router's life: its epoch, the sessions that may hold jobs, and the last catalogue."""
        try:
            mark = self._ask("GET", self.keys("turn"))
            self._ask("MULTI")
            self._begin_life(mark)
            self._ask("INCR", self.keys("epoch"))
            self._epoch = epoch = int(self._ask("EXEC")[-1])
            sessions = [session.decode() for session in self._ask("SMEMBERS", self.keys("sessions"))]
            return epoch, sessions, self._ask("GET", self.keys("functions")) or b""
        except (redis.RedisError, OSError) as error:
            raise StoreAway(f"Redis does not answer: {str(error).rstrip('.')}.") from error

    def _begin_life(self, mark: bytes | None) -> None:
        """Note in the store that from the turn of this mark on it is another life."""
        key = self.keys("lineage")
        self._ask("RPUSH", key, lineage.written(secrets.token_hex(8), mark))
        self._ask("LTRIM", key, str(-lineage.MOST_LIVES), "-1")

    def declared_queues(self) -> list[str]:
        """Return the queues whose settings an ini gave them."""
        try:
            names = texts(self._ask("SMEMBERS", self.keys("queues")))
            return [name for name in names if self._origin(name) == b"ini"]
        except (redis.RedisError, OSError) as error:
            raise StoreAway(f"Redis does not answer: {str(error).rstrip('.')}.") from error

    def _origin(self, queue: str) -> bytes | None:
        try:
            origin: bytes | None = self._ask("HGET", self.keys("queue", queue), "origin")
        except redis.ResponseError as error:
            if not str(error).startswith("WRONGTYPE"):
                raise
            return None  # a foreign key: the doctor tells of it
        return origin

    def runners(self) -> dict[Name, dict[bytes, bytes]]:
        """Return the records of all runners that have not ended, without their data; those that can be read."""
        found: dict[Name, dict[bytes, bytes]] = {}
        try:
            members = self._ask("SMEMBERS", self.keys("runners"))
            names = [name for each in members if (name := self._oddities.name(each, "runners")) is not None]
            for start in range(0, len(names), CHUNK):
                chunk = names[start : start + CHUNK]
                asked = [("HMGET", self.keys("runner", str(name)), *RUNNER_FIELDS) for name in chunk]
                self._write(b"".join(map(_packed, asked)))
                for name in chunk:
                    fields = self._read_fields(name)
                    if fields and not self._oddities.spoilt(name, fields):
                        found[name] = fields
        except (redis.RedisError, OSError) as error:
            raise StoreAway(f"Redis does not answer: {str(error).rstrip('.')}.") from error
        return found

    def _read_fields(self, name: Name) -> dict[bytes, bytes]:
        try:
            values = self._connection.read_response(disable_decoding=True)
        except redis.ResponseError as error:  # a key of another kind stands in its place
            self._oddities.tell_spoilt(name, str(error).rstrip("."))
            return {}
        return {field.encode(): value for field, value in zip(RUNNER_FIELDS, values, strict=True) if value}

    def begin(self, turn: Turn) -> None:
        """Send a turn. Raises StoreAway; the turn is kept and `again` sends it once more."""
        self._turn = turn
        self._chunk = CHUNK
        self._claims_lost = False
        self._journal.next()
        self._send(turn)

    def again(self) -> None:
        """Send the turn under way once more, after `reconnect`. Raises StoreAway."""
        if self._turn is None:
            return
        self._claims_lost = self._claims_lost or bool(self._turn.claims)
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
            raise StoreAway(f"the connection to Redis broke: {str(error).rstrip('.')}.") from error
        if not chunk:
            self._drop()
            raise StoreAway("Redis closed the connection.")
        self._reader.feed(chunk)
        while (reply := self._reader.gets()) is not False:
            if isinstance(reply, hiredis.ReplyError) and str(reply).startswith(_PASSING):
                self._drop()
                raise StoreAway(f"Redis cannot work just now: {reply}.")
            self._replies.append(reply)
        if len(self._replies) < len(self._requests):
            return None
        if self._chunk > 1 and any(isinstance(reply, hiredis.ReplyError) for reply in self._replies):
            # One job spoils its chunk: send each by itself, so that it alone is refused.
            self._chunk = 1
            self.again()
            return None
        return self._finish()

    def _finish(self) -> tuple[Turn, Answers] | None:
        for request, reply in zip(self._requests, self._replies, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                log.error("Redis refused %.200r: %s", request.command[:2], reply)
                request.blank()
            else:
                request.read(reply)
        turn, self._turn = self._turn, None
        if turn is None:
            return None
        self._journal.keep(turn, time.monotonic())
        self._answers.claims_lost = self._claims_lost
        return turn, self._answers

    def close(self) -> None:
        self._drop()

    def _drop(self) -> None:
        self._connection.disconnect()
        self._socket = None

    def _send(self, turn: Turn) -> None:
        self._answers = Answers()
        self._replies = []
        self._requests = list(self._builder.build(turn, self._answers, self._chunk))
        packed = [_packed(request.command) for request in self._requests]
        if turn.writes:
            self._requests.append(MARK)
            packed.append(_packed(("SET", self.keys("turn"), f"{self._epoch}.{self._journal.number}")))
        if self._journal.wants_to_know(time.monotonic()):
            asked = Request(("INFO", "persistence"), self._journal.told, _nothing, Kind.read)
            self._requests.insert(0, asked)
            packed.insert(0, _packed(asked.command))
        if not self._requests:
            # There were only claims: an answer is all that is wanted.
            self._requests.append(PING)
            packed.append(_packed(PING.command))
        self._write(b"".join(packed))

    def _write(self, packed: bytes) -> None:
        if self._socket is None:
            raise StoreAway("the connection to Redis is closed.")
        view = memoryview(packed)
        try:
            # Not sendall: its time limit is for the whole, and Redis works while it reads.
            while view:
                view = view[self._socket.send(view) :]
        except OSError as error:
            self._drop()
            raise StoreAway(f"the connection to Redis broke: {str(error).rstrip('.')}.") from error

    def _load(self) -> None:
        try:
            self._ask("FUNCTION", "LOAD", self._library.source)
        except redis.ResponseError as error:
            if "already exists" not in str(error):
                raise

    def _heal(self) -> None:
        """Give back to Redis the turns that it answered and lost."""
        mark = self._ask("GET", self.keys("turn")) or b""
        epoch, _, number = mark.decode().partition(".")
        found = int(number) if epoch == str(self._epoch) else 0
        if found < self._journal.settled:
            # Its file is damaged, or another server is in its place. A replica must not follow it.
            log.error("Redis has lost turns that it had written: it is at %d of %d", found, self._journal.settled)
            self._begin_life(mark)
        forgotten = self._journal.after(found)
        for entry in forgotten:
            turn = dataclasses.replace(entry.turn, claims=[])  # what was claimed is found by its report, or again ready
            writes = [each for each in self._builder.build(turn, Answers()) if each.kind is Kind.write]
            self._write(b"".join(_packed(request.command) for request in writes))
            for _ in writes:
                self._connection.read_response(disable_decoding=True)
        reached = forgotten[-1].number if forgotten else self._journal.settled
        if reached > found:
            self._ask("SET", self.keys("turn"), f"{self._epoch}.{reached}")
        if forgotten:
            log.warning("Redis had lost %d turns that it had answered; they were sent again", len(forgotten))

    def _ask(self, *command: str) -> Any:
        self._connection.send_packed_command([_packed(command)], check_health=False)
        return self._connection.read_response(disable_decoding=True)


def _packed(command: tuple[Argument, ...]) -> bytes:
    # The stub wrongly asks for a tuple of one.
    packed: bytes = hiredis.pack_command(command)  # type: ignore[arg-type]
    return packed


def _ignore(reply: Any) -> None:
    pass


def _nothing() -> None:
    pass


MARK = Request(("SET",), _ignore, _nothing)  # of the turn's number; the number itself is put in when it is sent
PING = Request(("PING",), _ignore, _nothing, Kind.read)
