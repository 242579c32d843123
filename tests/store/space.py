"""The few commands of Redis that the scripts use, in memory."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from typing import Any


def raw(value: Any) -> bytes:
    """Spell a value as Redis keeps it."""
    return value if isinstance(value, bytes) else str(value).encode()


class Space:
    """Keys, their values, and how long they live."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.ttl_s: dict[str, int] = {}

    def delete(self, key: str) -> None:
        self.values.pop(key, None)
        self.ttl_s.pop(key, None)

    def _at(self, key: str, kind: Callable[[], Any]) -> Any:
        return self.values.setdefault(key, kind())

    def _unless_empty(self, key: str) -> None:
        if key in self.values and not self.values[key]:
            self.delete(key)

    def rename(self, key: str, new: str) -> bool:
        if key not in self.values:
            return False
        self.delete(new)
        self.values[new] = self.values.pop(key)
        if key in self.ttl_s:
            self.ttl_s[new] = self.ttl_s.pop(key)
        return True

    def expire(self, key: str, ttl_s: int) -> bool:
        if key in self.values:
            self.ttl_s[key] = ttl_s
        return key in self.values

    def persist(self, key: str) -> None:
        self.ttl_s.pop(key, None)

    def incrby(self, key: str, by: int = 1) -> int:
        self.values[key] = raw(int(self.values.get(key, 0)) + by)
        return int(self.values[key])

    # hashes

    def hget(self, key: str, field: str) -> bytes | None:
        found: bytes | None = self.values.get(key, {}).get(field)
        return found

    def hset(self, key: str, /, **fields: Any) -> None:
        self._at(key, dict).update({name: raw(value) for name, value in fields.items()})

    def hsetnx(self, key: str, field: str, value: str) -> bool:
        if self.hget(key, field) is not None:
            return False
        self.hset(key, **{field: value})
        return True

    def hdel(self, key: str, *fields: str) -> None:
        for field in fields:
            self.values.get(key, {}).pop(field, None)
        self._unless_empty(key)

    def hincrby(self, key: str, field: str, by: int = 1) -> int:
        number = int(self.hget(key, field) or 0) + by
        self.hset(key, **{field: number})
        return number

    # sorted sets and sets

    def zadd(self, key: str, member: str, score: float) -> None:
        self._at(key, dict)[member] = float(score)

    def zrem(self, key: str, *members: str) -> None:
        self.hdel(key, *members)

    def zscore(self, key: str, member: str) -> float | None:
        found: float | None = self.values.get(key, {}).get(member)
        return found

    def zcard(self, key: str) -> int:
        return len(self.values.get(key, ()))

    def zrange(self, key: str, most: int | None = None) -> list[tuple[str, float]]:
        pairs = self.values.get(key, {}).items()
        order = [(score, member.encode(), member) for member, score in pairs]
        first = sorted(order) if most is None else heapq.nsmallest(most, order)
        return [(member, score) for score, _, member in first]

    def zpopmin(self, key: str, most: int) -> list[tuple[str, float]]:
        popped = self.zrange(key, most)
        self.zrem(key, *(member for member, _ in popped))
        return popped

    def sadd(self, key: str, *members: str) -> int:
        there = self._at(key, set)
        before = len(there)
        there.update(members)
        return len(there) - before

    def srem(self, key: str, member: str) -> None:
        self._at(key, set).discard(member)
        self._unless_empty(key)

    def xadd(self, key: str, value: str) -> None:
        self._at(key, list).append(value)
