"""A connection to Redis for who reads, or writes what is its own: one that waits for each answer.

Jobs are written by the router alone, over a connection that does not wait (see store/redis.py).
"""

from __future__ import annotations

from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from exesys.store.keys import Keys
from exesys.store.redis import StoreAway

TIMEOUT_S = 2.0


class StoreRefused(StoreAway):
    """Redis answers, and does not do what it is asked."""


class Connection:
    """Every call of those below raises StoreAway when Redis is away, and StoreRefused when it refuses."""

    def __init__(self, url: str, prefix: str) -> None:
        self.keys = Keys(prefix)
        self._redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )

    def close(self) -> None:
        self._redis.close()

    def _do(self, call: Any, *arguments: Any) -> Any:
        """Return what a call of redis-py gives. It is made once: whoever asked decides whether to ask again."""
        try:
            return call(*arguments)
        except redis.ResponseError as error:
            raise StoreRefused(f"Redis refuses: {away(error)}", fix="See `bin/exesys doctor`.") from error
        except (redis.RedisError, OSError) as error:
            raise StoreAway(f"Redis does not answer: {away(error)}", fix="See `bin/exesys status`.") from error

    def _each(self, pipeline: Any) -> list[Any]:
        """Return what each call of a pipeline gives; None where a key of another kind stands in the place of ours."""
        replies: list[Any] = self._do(pipeline.execute, False)
        for place, reply in enumerate(replies):
            if isinstance(reply, redis.ResponseError):
                if not str(reply).startswith("WRONGTYPE"):
                    raise StoreRefused(f"Redis refuses: {away(reply)}", fix="See `bin/exesys doctor`.") from reply
                replies[place] = None
        return replies


def away(error: Exception) -> str:
    """Write what redis-py says as a sentence."""
    return f"{str(error).rstrip('.')}."
