"""A client's connections: one to its home's router, and one to that of each other shard, made when first needed.

The home's WELCOME says which shards there are (before it, the settings do),
so that each command goes to its own at once. Where the two ends know
different maps the router answers MOVED, and the command goes where that says.
All desks share one lock, so that a command stands on one of them at any time.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from exesys import keyring
from exesys.bus import messages as m
from exesys.bus.connection import Connection
from exesys.bus.curve import Identity
from exesys.bus.handle import Handle
from exesys.bus.inflight import Asked, Desk, Flight
from exesys.config import Config
from exesys.errors import ExesysError, Unavailable
from exesys.shards import ShardMap

MOST_MOVES = 5
MOST_DRAWN = 32  # so that one away of two, or ten of twelve, are passed over nearly always
FIRST_S = 1.0  # so long even an impatient client waits for a shard it has just turned to
LOOK_S = 0.25  # so long it is looked which shards of a map are there, before the first job_id is made
log = logging.getLogger("client")

Calls = list[tuple[Handle, Callable[[Handle], None]]]


class Fleet:
    """The connections of one client. Thread-safe."""

    def __init__(self, config: Config, window: int, role: str, info: dict[str, Any]) -> None:
        """`window` is that of each connection, so that a shard that is away holds up no other. Raises ConfigError."""
        self._config = config
        self._window = window
        self._map = config.shard_map()
        self._told: m.Welcome | None = None
        self._making = threading.Lock()
        self._others: dict[str, Connection] = {}  # by endpoint
        self._made_at: dict[Connection, float] = {}
        self._looked: ShardMap | None = None  # the map whose shards were looked for
        self._ended = False
        self._lock = threading.Lock()
        self.home = self._connect(config.bus_endpoint, keyring.identity(config), role, info)
        self._made_at[self.home] = time.monotonic()

    # --- which --------------------------------------------------------------

    @property
    def alone(self) -> bool:
        """Whether there is one router, so that nothing is to be asked about whose a job is."""
        welcome = self.home.desk.welcome
        if welcome is not self._told and welcome is not None:
            self._told = welcome
            if welcome.shards != self._map.endpoints or welcome.shard != self._map.own:
                self._map = ShardMap(welcome.shard, {name: str(at) for name, at in welcome.shards.items()})
        return not self._map

    def of(self, job_id: str) -> Connection:
        """Return the connection to the shard of a job. Raises ConfigError when there is no key to go there with."""
        if self.alone:
            return self.home
        shards = self._map
        shard = shards.elsewhere(job_id)
        return self._at(shard, shards.endpoints[shard]) if shard else self.home

    def new_id(self, make: Callable[[], str]) -> str:
        """Return a job_id of those that `make` gives: one whose shard is not known to be away, if there is any."""
        job_id = make()
        if not self.alone:
            if self._looked is not self._map:
                self._looked = self._map
                self._look()
            for _ in range(MOST_DRAWN):
                if not self._away(job_id):
                    break
                job_id = make()
        return job_id

    def _look(self) -> None:
        """Turn to all shards, and give them a moment to greet us."""
        for shard, endpoint in self._map.endpoints.items():
            with contextlib.suppress(ExesysError):  # no key to go there with: whoever sends there is told
                self._at(shard, endpoint)
        until = time.monotonic() + LOOK_S
        for each in self.all:
            each.wait_greeted(max(0.0, until - time.monotonic()))

    def _away(self, job_id: str) -> bool:
        shards = self._map
        shard = shards.elsewhere(job_id)
        connection = self._others.get(shards.endpoints[shard]) if shard else self.home
        if connection is None or connection.greeted:
            return connection is None  # there is no key to go there with
        return time.monotonic() > self._made_at[connection] + LOOK_S

    @property
    def all(self) -> list[Connection]:
        """The connections that were made."""
        with self._making:
            return [self.home, *self._others.values()]

    @property
    def full(self) -> bool:
        """Whether a window is full, so that a command may have to wait."""
        return self.home.desk.full or any(each.desk.full for each in self.all[1:])

    def _at(self, shard: str, endpoint: str) -> Connection:
        """Return the connection to a shard's router, made if there is none yet."""
        if endpoint == self.home.endpoint or shard == self._map.own:
            return self.home
        with self._making:
            found = self._others.get(endpoint)
            if found is None:
                if self._ended:
                    raise Unavailable("this client is closed.")
                identity = keyring.identity_at(self._config, shard, endpoint)
                found = self._others[endpoint] = self._connect(endpoint, identity, "client", {}, shard)
                self._made_at[found] = time.monotonic()
        return found

    def _connect(
        self, endpoint: str, identity: Identity | None, role: str, info: dict[str, Any], shard: str = ""
    ) -> Connection:
        desk = Desk(secrets.token_hex(8), self._window, role, self._lock)
        desk.info = info
        desk.on_moved = lambda moved: self._moved(desk, moved)
        return Connection(endpoint, desk, identity, shard)

    # --- out ----------------------------------------------------------------

    def put(
        self, handles: Sequence[Handle], items: Sequence[m.Item | None], told: Callable[[int], bool], patient: bool
    ) -> None:
        """Lay commands or questions on the desks of their shards; of those at the places `told` names the end is told.

        What cannot be sent while others can fails for itself alone. Raises Unavailable when nothing could be sent.
        """
        if self.alone:
            return self._put(self.home, handles, items, range(len(handles)), told, patient)
        of_shard: dict[str, list[int]] = {}
        shards = self._map
        for place, handle in enumerate(handles):
            of_shard.setdefault(shards.elsewhere(handle.job_id), []).append(place)
        places = {
            self._at(shard, shards.endpoints[shard]) if shard else self.home: of_shard[shard] for shard in of_shard
        }
        failures: list[tuple[Unavailable, list[int]]] = []
        # Those with room first: a shard that is away holds up no other.
        for connection in sorted(places, key=lambda each: each.desk.full or not each.greeted):
            try:
                self._put(connection, handles, items, places[connection], told, patient)
            except Unavailable as error:
                failures.append((error, places[connection]))
        if failures and len(failures) == len(places):
            raise failures[0][0]
        for why, left in failures:
            with self._lock:
                calls = [(handles[place], call) for place in left for call in handles[place]._fail(why)]
            for handle, call in calls:
                call(handle)
        return None

    def _put(
        self,
        connection: Connection,
        handles: Sequence[Handle],
        items: Sequence[m.Item | None],
        places: Iterable[int],
        told: Callable[[int], bool],
        patient: bool,
    ) -> None:
        desk, drive = connection.desk, connection.drive

        def put() -> None:
            for place in places:
                handles[place]._moved(drive)
                desk.put(handles[place], items[place], told(place), patient)

        self.admit(connection, put, patient)

    def post(self, handle: Handle, item: m.Item, patient: bool) -> None:
        """Lay one command on the desk of its shard at once, however full it is, for `flush`. Raises Unavailable."""
        connection = self.of(handle.job_id)
        handle._moved(connection.drive)
        # A shard just turned to had no time to greet us: that it is away is not known yet.
        young = connection is not self.home and time.monotonic() < self._made_at[connection] + FIRST_S
        connection.admit(lambda: _laid(connection.desk, handle, item, patient), patient or young, at_once=True)

    def flush(self) -> None:
        """Send what was posted."""
        for each in self.all:
            each.flush()

    def put_workflow(self, handles: Sequence[Handle], items: Sequence[m.Item], patient: bool) -> None:
        """Lay a workflow on the desk of its shard. Raises Unavailable."""
        connection = self.of(handles[0].job_id)
        for handle in handles:
            handle._moved(connection.drive)
        self.admit(connection, lambda: connection.desk.put_workflow(handles, items, patient), patient)

    def admit(self, connection: Connection, put: Callable[[], None], patient: bool) -> None:
        """Have something laid on a desk once there is room. Raises Unavailable."""
        if not patient and connection is not self.home and not connection.greeted:
            connection.wait_greeted(max(0.0, self._made_at[connection] + FIRST_S - time.monotonic()))
        connection.admit(put, patient)

    def withdraw(self, handle: Handle, question: Callable[[int], m.Message], then: Callable[[m.Reply], None]) -> None:
        """End a command for its caller, wherever it stands, and have its shard cancel it."""
        owner = self.of(handle.job_id)
        if not self.alone:
            for other in self.all:
                if other is not owner:
                    other.forget(handle)
        owner.withdraw(handle, question, then)

    # --- in -----------------------------------------------------------------

    def _moved(self, desk: Desk, moved: m.Moved) -> Calls:
        """What has these tags belongs to another shard: have it go there. The lock is held."""
        flights = desk.leave(moved.tags)
        asked = [(tag, each) for tag in moved.tags if (each := desk.leave_asked(tag)) is not None]
        error: ExesysError | None = None
        try:
            there = self._at(moved.shard, moved.endpoint)
        except ExesysError as problem:
            error = problem
        calls: Calls = []
        going: list[Flight] = []
        for flight in flights:
            if why := error or _why_not_further(flight.moves, moved):
                calls += [(flight.handle, call) for call in flight.handle._fail(why)]
            else:
                going.append(flight)
                flight.handle._moved(there.drive)
        for tag, each in asked:
            if why := error or _why_not_further(each.moves, moved):
                _answer(each, tag, why)
            else:
                there.desk.adopt_asked(each, desk, tag)
        if error is None:
            there.desk.adopt(going)
            there.wake()
        return calls

    # --- the end ------------------------------------------------------------

    def wait_taken(self, timeout: float) -> int:
        """Wait until all that was sent has had an answer; return how much has not."""
        until = time.monotonic() + timeout
        while True:
            for each in self.all:
                each.wait_taken(max(0.0, until - time.monotonic()))
            left = sum(each.wait_taken(0.0) for each in self.all)  # what moved stands on a desk seen before, perhaps
            if not left or time.monotonic() >= until:
                return left

    def end(self) -> None:
        """Say goodbye to all, and end their threads."""
        with self._making:
            self._ended = True
        for each in self.all:
            each.end()


def _laid(desk: Desk, handle: Handle, item: m.Item, patient: bool) -> None:
    desk.put(handle, item, False, patient)


def _why_not_further(moves: int, moved: m.Moved) -> Unavailable | None:
    if moves < MOST_MOVES:
        return None
    text = f"the shards send this job to each other, the last time to {moved.shard}: their maps differ."
    return Unavailable(text, fix="Let all homes have the same sections [shard:NAME]: `bin/exesys doctor`.")


def _answer(asked: Asked, tag: int, why: ExesysError) -> None:
    asked.then(m.Changed(tag, -1, list(why.problem)))
