"""The router's connection to Redis: the turns under way, sent again if they must be.

The connection (`line.py`) never blocks the router's poll: `begin` writes a
turn, `fileno` goes into the poll, `collect` reads the answers once they are
there. A second turn may be written before the first is answered, so that Redis
has something to do while the router deals with the answers of the first.
Whatever goes wrong with the connection is one `StoreAway`; after `reconnect`
the same turns are sent again, without their claims, which `recalls` make good
(see `claim.lua`). What Redis itself may lose is the matter of `journal.py`.
"""

from __future__ import annotations

import dataclasses
import logging
import re
import secrets
import time
from typing import Any, NamedTuple

import hiredis
import redis

from exesys import troubles
from exesys.config import Limits
from exesys.errors import ConfigError
from exesys.runner import Name
from exesys.store import dial, lineage
from exesys.store.dial import StoreAway
from exesys.store.journal import Journal
from exesys.store.keys import Keys
from exesys.store.line import SEND_TIMEOUT_S, Line, packed
from exesys.store.oddities import Oddities, texts
from exesys.store.scripts import CHUNK, Builder, Kind, Library, Request, lost_body
from exesys.store.underway import MOST_UNDERWAY, Flight, Underway
from exesys.troubles import TAKEN
from exesys.turn import Answers, Turn

REPLY_TIMEOUT_S = 5.0
FORMAT = 1  # of what is in Redis; one that an older ExeSys would read wrongly gets the next number
# What the router remembers of a runner. Its data stays in Redis.
RUNNER_FIELDS = ("target", "size", "state", "epoch", "session", "failures", "losses", "restarts")
_NO_FUNCTION = "ERR Function not found"  # somebody flushed them: a reconnect loads ours again

_SERVER = re.compile(rb"^master_replid:(\w+)", re.MULTILINE)

log = logging.getLogger(__name__)


class Wait(NamedTuple):
    """How many replicas must have a turn before it counts, and how long each look for them waits."""

    replicas: int = 0
    ms: int = 1000


class StoreTaken(StoreAway):
    """A later router has begun with this store: this one writes nothing any more."""


class Store:
    """The committing side of the store; the router owns the only one.

    `url` is an address as in `redisurl`.
    """

    def __init__(self, url: str, prefix: str, limits: Limits, wait: Wait | None = None) -> None:
        self.keys = Keys(prefix)
        self._library = Library(self.keys)
        self._oddities = Oddities(self.keys)
        self._builder = Builder(self.keys, self._library, limits, lost_body(limits.max_losses), self._oddities)
        self._line = Line(url)
        self._wait = wait or Wait()
        self._lagging = False  # fewer replicas than that have the turn under way
        self._server = b""  # its replication id
        self.history_lost = False  # Redis has lost turns for good: what the router remembers does not fit it any more
        self._underway = Underway()
        self._failure: StoreAway | None = None  # that came behind answers which are to be taken first
        self._epoch = 0
        self._journal = Journal()

    @property
    def busy(self) -> bool:
        """Whether a turn is under way."""
        return bool(self._underway.flights)

    @property
    def has_room(self) -> bool:
        """Whether one more turn may begin. What replicas have to confirm goes one by one."""
        return len(self._underway.flights) < (1 if self._wait.replicas else MOST_UNDERWAY)

    @property
    def answered(self) -> bool:
        """Whether `collect` has something to say without reading."""
        return self._underway.answered or self._failure is not None

    @property
    def trouble(self) -> troubles.Trouble:
        """Why the oldest turn under way has no answers, as far as is known."""
        return troubles.LAGGING if self._lagging else troubles.AWAY

    def fileno(self) -> int:
        """Return the connection's descriptor, for the poll. Raises StoreAway when there is none."""
        return self._line.fileno()

    def reconnect(self) -> None:
        """Connect anew, load the library, and give back what Redis has lost.

        Blocks at most `CONNECT_TIMEOUT_S` a step. Raises StoreAway, StoreTaken
        for good. Then `history_lost` tells whether what was answered is gone.
        """
        self._failure = None
        self._line.open()
        try:
            # The handshake is answered at once or the server is no use yet.
            self._load()
            self._line.hasten(SEND_TIMEOUT_S)
            self._journal.reconnected()
            self._trace()
            if self._epoch and (holds := self._begin(self._epoch)) != self._epoch:
                self._line.close()
                text = f"Another router, of epoch {holds}, has begun with this store: this one, of epoch {self._epoch},"
                raise StoreTaken(f"{text} writes nothing any more.", fix=TAKEN.fix, trouble=TAKEN)
            self._heal()
        except redis.ResponseError as error:
            self._line.close()
            raise dial.away(error) from error

    def check_format(self) -> None:
        """See to it that we can read what is in the store, and note in which form it is.

        A store of before that was noted is of the first form. Raises
        ConfigError when a newer ExeSys wrote it, StoreAway.
        """
        try:
            self._ask("SET", self.keys("format"), str(FORMAT), "NX")
            found = self._ask("GET", self.keys("format"))
        except redis.ResponseError as error:
            raise dial.away(error) from error
        if not (found.isdigit() and 0 < int(found) <= FORMAT):
            shown = found.decode("utf-8", "backslashreplace")[:40]
            raise ConfigError(
                f"another ExeSys wrote the store: {self.keys('format')} is {shown}, and this one reads up to {FORMAT}.",
                fix="Start it with the newer one, or give this one a store of its own ([redis] url, or EXESYS_HOME).",
            )

    def boot(self) -> tuple[int, list[str], bytes]:
        """Begin a router's life: its epoch, the sessions that may hold jobs, and the last catalogue.

        From then on no router that has begun before writes anything.
        """
        try:
            mark = self._ask("GET", self.keys("turn"))
            self._epoch = self._builder.epoch = epoch = self._begin(0, mark)
            sessions = [session.decode() for session in self._ask("SMEMBERS", self.keys("sessions"))]
            return epoch, sessions, self._ask("GET", self.keys("functions")) or b""
        except redis.ResponseError as error:
            raise dial.away(error) from error

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
        except redis.ResponseError as error:
            raise dial.away(error) from error

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
                self._line.write(b"".join(map(packed, asked)))
                for name in chunk:
                    fields = self._read_fields(name)
                    if fields and not self._oddities.spoilt(name, fields):
                        found[name] = fields
        except redis.ResponseError as error:
            raise dial.away(error) from error
        return found

    def _read_fields(self, name: Name) -> dict[bytes, bytes]:
        try:
            values = self._line.wait()
        except redis.ResponseError as error:  # a key of another kind stands in its place
            self._oddities.tell_spoilt(name, str(error).rstrip("."))
            return {}
        return {field.encode(): value for field, value in zip(RUNNER_FIELDS, values, strict=True) if value}

    def begin(self, turn: Turn) -> None:
        """Send a turn. Raises StoreAway; the turn is kept and `again` sends it once more."""
        self._send(self._underway.begin(turn, self._journal.next()))

    def again(self) -> None:
        """Send the turns under way once more, after `reconnect`. Raises StoreAway."""
        for flight in self._underway.restart():
            self._send(flight)

    def collect(self) -> tuple[Turn, Answers] | None:
        """Return the oldest turn under way with its answers, None until all are there. Raises StoreAway.

        Reads what the descriptor has, unless they are here already (`answered`).
        """
        if not self._underway.answered:
            if self._failure is not None:
                raise self._failure
            if not self._underway.flights:
                return None
            self._read()
        return self._finish() if self._underway.answered and self._confirmed(self._underway.flights[0]) else None

    def _read(self) -> None:
        """Read what the descriptor has. Raises StoreAway; with the next call, when a turn was answered before.

        For that turn belongs into the journal before the connection is made anew.
        """
        try:
            for reply in self._line.replies():
                if refused := isinstance(reply, hiredis.ReplyError):
                    self._heed(str(reply))
                if again := self._underway.take(reply, refused):
                    self._send(again)
        except StoreAway as error:
            if not self._underway.answered:
                raise
            self._failure = error

    def _confirmed(self, flight: Flight) -> bool:
        """Tell whether enough replicas have the turn under way; if not, ask them again."""
        wanted = self._wait.replicas
        if not wanted:
            return True
        count = flight.replies.pop()
        if isinstance(count, hiredis.ReplyError):
            self._line.close()
            raise dial.away(redis.ResponseError(str(count)))
        if count >= wanted:
            if self._lagging:
                log.info("%d replicas have confirmed: it goes on", count)
            self._lagging = False
            flight.requests.pop()
            return True
        if not self._lagging:
            log.warning("%d of %d replicas have what was written: nothing is answered before they do", count, wanted)
        self._lagging = True
        self._underway.sent(flight)
        self._line.write(packed(self._waiting.command))
        return False

    @property
    def _waiting(self) -> Request:
        return Request(("WAIT", self._wait.replicas, self._wait.ms), _ignore, _nothing, Kind.read)

    def _heed(self, refusal: str) -> None:
        """Raise StoreAway when an error concerns all that is asked, and not one request alone."""
        if troubles.of(refusal) is not None or refusal.startswith(_NO_FUNCTION):
            self._line.close()
            raise dial.away(redis.ResponseError(refusal))

    def _finish(self) -> tuple[Turn, Answers]:
        flight = self._underway.end()
        for request, reply in zip(flight.requests, flight.replies, strict=True):
            if isinstance(reply, hiredis.ReplyError):
                log.error("Redis refused %.200r: %s", request.command[:2], reply)
                request.blank()
            else:
                request.read(reply)
        self._journal.keep(flight.number, flight.turn, time.monotonic())
        flight.answers.claims_lost = flight.claims_lost
        return flight.turn, flight.answers

    def close(self) -> None:
        self._line.close()

    def _send(self, flight: Flight) -> None:
        turn, answers, requests = flight.turn, Answers(), list[Request]()
        if self._journal.wants_to_know(time.monotonic()):
            requests.append(Request(("INFO", "persistence", "replication"), self._journal.told, _nothing, Kind.read))
        requests += self._builder.build(turn, answers, flight.chunk)
        if turn.writes:
            mark = f"{self._epoch}.{self._underway.reached(flight)}"
            requests.append(self._builder.plain("SET", self.keys("turn"), mark))
        if not requests:
            # There were only claims: an answer is all that is wanted.
            requests.append(PING)
        if self._wait.replicas:
            requests.append(self._waiting)
        flight.requests, flight.replies, flight.answers, flight.spoilt = requests, [], answers, False
        self._underway.sent(flight)
        self._line.write(b"".join([packed(request.command) for request in requests]))

    def _load(self) -> None:
        try:
            self._ask("FUNCTION", "LOAD", self._library.source)
        except redis.ResponseError as error:
            if "already exists" not in str(error):
                raise

    def _trace(self) -> None:
        """Look whose history the server has: a fail-over or a restart gives it another."""
        found = _SERVER.search(self._ask("INFO", "replication"))
        before, self._server = self._server, found[1] if found else b""
        if before not in (b"", self._server):
            log.warning("this is another Redis than before, or one that was started anew")

    def _begin(self, epoch: int, mark: bytes | None = None) -> int:
        """Begin a life of the router (0) at the turn of this mark, or go on with one; return the epoch that holds."""
        keys = [self.keys(name) for name in ("epoch", "server", "lineage")]
        life = lineage.written(secrets.token_hex(8), mark), str(lineage.MOST_LIVES)
        return int(self._ask("FCALL", self._library.function("begin"), "3", *keys, self._server, str(epoch), *life))

    def _heal(self) -> None:
        """Give back to Redis the turns that it answered and lost. `history_lost` if not all of them are here."""
        mark = self._ask("GET", self.keys("turn")) or b""
        epoch, _, digits = mark.decode("utf-8", "replace").partition(".")
        found = int(digits) if epoch == str(self._epoch) and digits.isdecimal() else 0
        if found < self._journal.settled:
            # Its file is damaged, or another server is in its place. A replica must not follow it.
            log.error("Redis has lost turns that it had written: it is at %d of %d", found, self._journal.settled)
            self._begin_life(mark)
            self.history_lost = True
        forgotten = self._journal.after(found)
        for entry in forgotten:
            turn = dataclasses.replace(entry.turn, claims=[])  # what was claimed is found by its report, or again ready
            writes = [each for each in self._builder.build(turn, Answers()) if each.kind is Kind.write]
            self._line.write(b"".join(packed(request.command) for request in writes))
            for _ in writes:
                try:
                    self._line.wait()
                except redis.ResponseError as error:  # what was refused then is refused again
                    self._heed(str(error))
        reached = forgotten[-1].number if forgotten else self._journal.settled
        if reached > found:
            self._ask("SET", self.keys("turn"), f"{self._epoch}.{reached}")
        if forgotten:
            log.warning("Redis had lost %d turns that it had answered; they were sent again", len(forgotten))

    def _ask(self, *command: str | bytes) -> Any:
        return self._line.ask(*command)


def _ignore(reply: Any) -> None:
    pass


def _nothing() -> None:
    pass


PING = Request(("PING",), _ignore, _nothing, Kind.read)
