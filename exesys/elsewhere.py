"""Reading what other shards keep, for REST: a job of theirs is shown by any of us.

The map has each shard's Redis. A connection is made when a job of that shard
is first asked for; what is asked of all jobs, such as lists, stays our own.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from exesys.config import Config
from exesys.errors import Unavailable
from exesys.store.connection import Connection

T = TypeVar("T", bound=Connection)


class Elsewhere(Generic[T]):
    """Readers of one kind: our own, and one for each other shard. Thread-safe."""

    def __init__(self, config: Config, own: T, make: Callable[[str, str, str], T]) -> None:
        """`make` gets the address of a Redis, the prefix of its keys, and the name of the shard whose it is."""
        self._shards = config.shard_map()
        self._stores = {shard.name: (shard.redis, shard.prefix) for shard in config.shards}
        self._make = make
        self._lock = threading.Lock()
        self._others: dict[str, T] = {}
        self.own = own

    def shard_of(self, job_id: str) -> str:
        """Return the shard of a job of another's, "" for one of our own."""
        return self._shards.elsewhere(job_id) if self._shards else ""

    def of(self, job_id: str) -> T:
        """Return what reads the shard of a job. Raises Unavailable when the map has no Redis for it."""
        shard = self.shard_of(job_id)
        if not shard:
            return self.own
        url, prefix = self._stores[shard]
        if not url:
            text = f"job {job_id} belongs to the shard {shard}, whose Redis is not known here."
            raise Unavailable(text, fix=f"Ask the REST of that shard, or set `redis` in [shard:{shard}].")
        with self._lock:
            if shard not in self._others:
                self._others[shard] = self._make(url, prefix, shard)
            return self._others[shard]

    def close(self) -> None:
        """Close all connections, our own too."""
        with self._lock:
            for each in (self.own, *self._others.values()):
                each.close()
