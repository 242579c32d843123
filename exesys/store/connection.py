"""A connection to Redis for who reads, or writes what is its own: one that waits for each answer.

Jobs are written by the router alone, over a connection that does not wait (see store/redis.py).
"""

from __future__ import annotations

from typing import Any

import redis

from exesys.store import dial
from exesys.store.dial import StoreAway, away, sentence, trouble_of
from exesys.store.keys import Keys

TIMEOUT_S = 2.0


class StoreRefused(StoreAway):
    """Redis answers, and does not do what it is asked."""


class Connection:
    """Every call of those below raises StoreAway when Redis is away, and StoreRefused when it refuses."""

    def __init__(self, url: str, prefix: str, shard: str = "") -> None:
        """`shard` is the one whose Redis it is, "" for our own."""
        self.keys = Keys(prefix)
        self._shard = shard
        self._redis = dial.once(url, TIMEOUT_S)

    def close(self) -> None:
        self._redis.close()

    def _do(self, call: Any, *arguments: Any) -> Any:
        """Return what a call of redis-py gives. It is made once: whoever asked decides whether to ask again."""
        try:
            return call(*arguments)
        except redis.ResponseError as error:
            raise self._refused(error) from error
        except (redis.RedisError, OSError) as error:
            raise away(error, self._shard) from error

    def _each(self, pipeline: Any) -> list[Any]:
        """Return what each call of a pipeline gives; None where a key of another kind stands in the place of ours."""
        replies: list[Any] = self._do(pipeline.execute, False)
        for place, reply in enumerate(replies):
            if isinstance(reply, redis.ResponseError):
                if not str(reply).startswith("WRONGTYPE"):
                    raise self._refused(reply) from reply
                replies[place] = None
        return replies

    def _refused(self, error: Exception) -> StoreAway:
        if trouble_of(error) is not None:
            return away(error, self._shard)
        return StoreRefused(f"Redis refuses: {sentence(error)}", fix="See `bin/exesys doctor`.")
