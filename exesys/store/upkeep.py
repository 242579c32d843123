"""What the controller does in the store: its lease, the stop keys, and retention.

The router stays the only writer of job state: what is trimmed here are the
indexes of records that Redis has expired already.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from exesys.config import Limits
from exesys.lease import LEASE_S
from exesys.store.connection import Connection, StoreRefused
from exesys.store.oddities import Oddities
from exesys.store.walk import Page

LEASE_MS = int(LEASE_S * 1000)
# Take the lease if it is free, renew it if it is ours.
_LEAD = """
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
# Give it up, if it is ours.
_RESIGN = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
return 1
"""
# Drop old entries of jobs, dead and ended, if the lease is still ours.
_TRIM = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('XTRIM', KEYS[2], 'MINID', '~', ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', ARGV[3])
redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', ARGV[2])
return 1
"""

Runner = tuple[str, str]  # type, uuid


class Upkeep(Connection):
    """The controller's connection to the store. Every call raises StoreAway when Redis is away."""

    def __init__(self, url: str, prefix: str, limits: Limits) -> None:
        super().__init__(url, prefix)
        self._limits = limits
        self._oddities = Oddities(self.keys)
        self._events: Any = None
        self.tuned = False  # a timer or a queue was changed since this was set back

    def lead(self, session: str) -> bool:
        """Take or renew the lease of the active controller; tell whether it is ours."""
        return bool(self._do(self._redis.eval, _LEAD, 1, self.keys("controller"), session, LEASE_MS))

    def resign(self, session: str) -> None:
        """Give the lease up, so that another controller need not wait for it to expire."""
        self._do(self._redis.eval, _RESIGN, 1, self.keys("controller"), session)

    def listen(self) -> int:
        """Subscribe to changes of the stop keys, of timers and of queues; return the descriptor for the poll."""
        self._events = self._redis.pubsub()  # type: ignore[no-untyped-call]  # no types there
        patterns = [f"__keyspace@*__:{key}" for key in (self.keys("run", "*", "*"), self.keys("tuned"))]
        self._do(self._events.psubscribe, *patterns)
        # redis-py has no public way to the socket of a subscription.
        return int(self._events.connection._sock.fileno())

    def changed(self) -> list[Runner]:
        """Return the runners whose stop keys were written since the last call."""
        runners: list[Runner] = []
        # Confirmations are not skipped by redis-py: it would return None for one, as if nothing followed.
        while (event := self._do(self._events.get_message, False, 0)) is not None:
            if event["type"] != "pmessage":
                continue
            key = event["channel"].partition(b"__:")[2]
            if key == self.keys("tuned").encode():
                self.tuned = True
                continue
            name = self._oddities.stop(key.removeprefix(self.keys.prefix.encode()))
            if name is not None:
                runners.append((name.type, name.uuid))
        return runners

    def known(self) -> list[Runner]:
        """Return all runners that have not ended, and, without a uuid, their types: these have keys, too."""
        members = self._do(self._redis.smembers, self.keys("runners"))
        runners: list[Runner] = [name for each in members if (name := self._oddities.name(each, "runners")) is not None]
        return [*runners, *((type_, "") for type_ in {type_ for type_, _ in runners})]

    def stopped(self, runners: Iterable[Runner]) -> list[Runner]:
        """Return those of `runners` whose stop is loaded."""
        asked = list(dict.fromkeys(runners))
        if not asked:
            return []
        values = self._do(self._redis.mget, [self.keys("run", type_, uuid) for type_, uuid in asked])
        return [runner for runner, value in zip(asked, values, strict=True) if value == b"0"]

    def page(self, page: Page, count: int) -> tuple[int, list[bytes]]:
        """Read about `count` keys or members; return where to go on, 0 at the end, and what was read."""
        if not page.key:
            cursor, found = self._do(self._redis.scan, page.cursor, None, count)
            return int(cursor), list(found)
        try:
            read = self._redis.sscan if page.is_set else self._redis.zscan
            cursor, found = self._do(read, page.key, page.cursor, None, count)
        except StoreRefused:
            return 0, []  # a key of another kind stands there
        return int(cursor), list(found) if page.is_set else [member for member, _ in found]

    def trim(self, session: str, now_ms: int) -> None:
        """Drop index entries older than any record they could name, if the lease is still this session's."""
        limits = self._limits
        oldest = max(now_ms - int(max(limits.result_ttl_s, limits.error_ttl_s) * 1000), 0)
        keys = [self.keys(name) for name in ("controller", "jobs", "dead", "ended")]
        failed = now_ms - int(limits.error_ttl_s * 1000)
        self._do(self._redis.eval, _TRIM, len(keys), *keys, session, oldest, failed)

    def close(self) -> None:
        if self._events is not None:
            self._events.close()
            self._events = None
        super().close()
