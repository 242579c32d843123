"""The outbox of callbacks: what is due, who tries it, how it went.

The scripts that end a step put an entry there (`announce` in graph.lua). The
active controller takes one, which moves its next try ahead, POSTs it, and notes
how that went. Killed in between, it leaves an entry that is due again: sent
twice perhaps, never not at all. Nothing here is job state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from exesys.config import Limits
from exesys.store.connection import Connection, StoreRefused

# Take one if it is due, and if the lease is still ours. KEYS controller, callbacks, callback, counts;
# ARGV session, ref, now_ms, when it is due again if nothing is noted of this try.
_TAKE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return false end
local at = redis.call('ZSCORE', KEYS[2], ARGV[2])
if not at or tonumber(at) > tonumber(ARGV[3]) then return false end
if redis.call('HEXISTS', KEYS[3], 'body') == 0 then
  redis.call('ZREM', KEYS[2], ARGV[2])
  return false
end
redis.call('HINCRBY', KEYS[3], 'tries', 1)
redis.call('HINCRBY', KEYS[4], 'tried', 1)
redis.call('ZADD', KEYS[2], ARGV[4], ARGV[2])
return redis.call('HMGET', KEYS[3], 'url', 'delivery', 'tries', 'state', 'to', 'cmd', 'attempt', 'body', 'traceparent')
"""
# Note how a try went: compare-and-set on the delivery and the try, so that whoever comes late (stopped, its lease
# gone to another, the step ended anew) changes nothing. KEYS callbacks, callback, counts; ARGV ref, delivery, tries,
# outcome, error, when it is due again (waiting) or how long the note is kept (sent, failed).
_NOTE = """
local known = redis.call('HMGET', KEYS[2], 'delivery', 'tries')
if known[1] ~= ARGV[2] or known[2] ~= ARGV[3] then return 0 end
redis.call('HSET', KEYS[2], 'outcome', ARGV[4], 'error', ARGV[5])
if ARGV[5] == '' then redis.call('HDEL', KEYS[2], 'error') end
if ARGV[4] == 'waiting' then
  redis.call('ZADD', KEYS[1], ARGV[6], ARGV[1])
  return 1
end
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('HDEL', KEYS[2], 'state', 'to', 'cmd', 'attempt', 'body', 'traceparent')
redis.call('EXPIRE', KEYS[2], ARGV[6])
redis.call('HINCRBY', KEYS[3], ARGV[4], 1)
return 1
"""


class Taken(NamedTuple):
    """One try of a callback. `body` is msgpack: the result, or the error's map."""

    ref: str
    url: str
    delivery: str
    tries: int
    state: str
    to: str
    cmd: str
    attempt: int
    body: bytes
    traceparent: str = ""


class Outbox(Connection):
    """The controller's way to the outbox, for any of its threads. Every call raises StoreAway when Redis is away."""

    def __init__(self, url: str, prefix: str, limits: Limits) -> None:
        super().__init__(url, prefix)
        self._ttl_s = {"sent": int(limits.result_ttl_s), "failed": int(limits.error_ttl_s)}

    def due(self, now_ms: int, most: int) -> list[tuple[str, str]]:
        """Return ref and URL of up to `most` that are due, those that waited longest first."""
        refs: Sequence[bytes] = self._do(
            self._redis.zrangebyscore, self.keys("callbacks"), "-inf", now_ms, 0, most, False
        )
        if not refs:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for ref in refs:
            pipeline.hget(self.keys("callback", ref.decode("utf-8", "replace")), "url")
        urls: Sequence[Any] = self._do(pipeline.execute, False)
        return [
            (ref.decode("utf-8", "replace"), url.decode("utf-8", "replace") if isinstance(url, bytes) else "")
            for ref, url in zip(refs, urls, strict=True)
        ]

    def take(self, session: str, ref: str, now_ms: int, again_ms: int) -> Taken | None:
        """Begin a try, if it is due and this session is the active controller's; without a note it is due again."""
        keys = (self.keys("controller"), self.keys("callbacks"), self.keys("callback", ref))
        told = self._do(self._redis.eval, _TAKE, 4, *keys, self.keys("callback_counts"), session, ref, now_ms, again_ms)
        return _taken(ref, told) if told else None

    def sent(self, taken: Taken) -> bool:
        """Note that it was told. False when another try has been made since, or the step has ended anew."""
        return self._note(taken, "sent", "", self._ttl_s["sent"])

    def failed(self, taken: Taken, error: str) -> bool:
        """Give it up."""
        return self._note(taken, "failed", error, self._ttl_s["failed"])

    def later(self, taken: Taken, error: str, at_ms: int) -> bool:
        """Have it tried again."""
        return self._note(taken, "waiting", error, at_ms)

    def _note(self, taken: Taken, outcome: str, error: str, number: int) -> bool:
        keys = (self.keys("callbacks"), self.keys("callback", taken.ref), self.keys("callback_counts"))
        arguments = (taken.ref, taken.delivery, taken.tries, outcome, error, number)
        return bool(self._do(self._redis.eval, _NOTE, 3, *keys, *arguments))

    def _do(self, call: Any, *arguments: Any) -> Any:
        try:
            return super()._do(call, *arguments)
        except StoreRefused as error:
            if "WRONGTYPE" in error.message:  # a key of another kind stands in its place: all others go on
                return None
            raise


def _taken(ref: str, told: Sequence[bytes | None]) -> Taken | None:
    """Read an entry; None for one that a hand has spoilt."""
    url, delivery, tries, state, to, cmd, attempt, body, traceparent = (part or b"" for part in told)
    try:
        named = (state.decode(), to.decode(), cmd.decode())
        return Taken(ref, url.decode(), delivery.decode(), int(tries), *named, int(attempt), body, traceparent.decode())
    except ValueError:
        return None
