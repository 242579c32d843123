"""`queue.lua` in Python: where steps wait, and what holds them back."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from store.space import Space

from exesys.command import DEFAULT_PRIORITY, DEFAULT_QUEUE
from exesys.config import Limits
from exesys.states import State
from exesys.store.keys import Keys

PRIORITY_STEP = 1 << 45


@dataclass
class Held:
    """What is set of a queue."""

    paused: bool
    depth: int | None
    concurrency: int | None
    key_limit: int
    rate_n: int | None
    rate_ms: int | None

    @property
    def free(self) -> bool:
        return not (self.paused or self.concurrency is not None or self.rate_n is not None)


def score(priority: int, order: int) -> int:
    return (9 - priority) * PRIORITY_STEP + order


def sooner(one: float, other: float) -> float:
    return min(one, other) if one and other else one or other


class Queues:
    """The queues. `finished` counts the ends that stand, per ref."""

    def __init__(self, limits: Limits, prefix: str = "") -> None:
        self.keys = Keys(prefix)
        self.limits = limits
        self.db = Space()
        self.finished: Counter[str] = Counter()
        self.now_ms = 0

    def record(self, ref: str, state: State) -> str:
        return self.keys("record", ref, state.name)

    def _text(self, record: str, field: str, default: str = "") -> str:
        found = self.db.hget(record, field)
        return default if found is None else found.decode()

    def _number(self, record: str, field: str, default: float) -> float:
        return float(self._text(record, field, str(default)))

    def _whole(self, record: str, field: str) -> int | None:
        found = self.db.hget(record, field)
        return None if found is None else int(found)

    def _lane(self, queue: str, called: str) -> str:
        return self.keys("lane", f"{queue}={called}")

    def _held(self, queue: str) -> Held:
        key = self.keys("queue", queue)
        whole = [self._whole(key, field) for field in ("depth", "concurrency", "key_limit", "rate_n", "rate_ms")]
        depth, concurrency, key_limit, rate_n, rate_ms = whole
        return Held(self.db.hget(key, "paused") is not None, depth, concurrency, key_limit or 1, rate_n, rate_ms)

    def _depth(self, queue: str) -> int:
        return self.db.zcard(self.keys("ready", queue)) + self.db.zcard(self.keys("keyed", queue))

    # --- waiting ------------------------------------------------------------

    def _offer(self, queue: str, called: str, place: float) -> None:
        turns = self.keys("turns", queue)
        self.db.zadd(turns, called, min(place, self.db.zscore(turns, called) or math.inf))

    def _line_up(self, ref: str, queue: str, called: str, place: float) -> None:
        if not called:
            self.db.zadd(self.keys("ready", queue), ref, place)
            return
        self.db.zadd(self._lane(queue, called), ref, place)
        self.db.sadd(self.keys("keyed", queue), ref)
        self._offer(queue, called, place)

    def _step_out(self, ref: str, queue: str, called: str) -> None:
        if not called:
            self.db.zrem(self.keys("ready", queue), ref)
            return
        first = self.db.zrange(self._lane(queue, called), 1)
        self.db.zrem(self._lane(queue, called), ref)
        self.db.srem(self.keys("keyed", queue), ref)
        if first and first[0][0] == ref:
            self.db.zrem(self.keys("turns", queue), called)
            self._give_turn(queue, called)

    def _place_of(self, record: str) -> tuple[str, str]:
        return self._text(record, "queue", DEFAULT_QUEUE), self._text(record, "key")

    def _make_ready(self, ref: str, since: int | None = None) -> None:
        record = self.record(ref, State.start)
        if since is not None:
            self.db.hset(record, ready=since)
        priority = int(self._number(record, "priority", DEFAULT_PRIORITY))
        place = score(priority, self.db.incrby(self.keys("order")))
        self._line_up(ref, *self._place_of(record), place)

    def _put_back(self, ref: str, place: float) -> None:
        record = self.record(ref, State.start)
        self.db.hset(record, ready=self.now_ms)
        self._line_up(ref, *self._place_of(record), place)

    def _give_turn(self, queue: str, called: str) -> None:
        first = self.db.zrange(self._lane(queue, called), 1)
        if first:
            rank = int(first[0][1] // PRIORITY_STEP) * PRIORITY_STEP
            self._offer(queue, called, rank + self.db.incrby(self.keys("order")))

    def _wake_keys(self, queue: str) -> None:
        seen = set()
        for ref in sorted(self.db.values.get(self.keys("keyed", queue), ()), key=str.encode):
            called = self._text(self.record(ref, State.start), "key")
            if called and called not in seen:
                seen.add(called)
                if self.db.zscore(self.keys("turns", queue), called) is None:
                    self._give_turn(queue, called)

    # --- running ------------------------------------------------------------

    def _occupy(self, ref: str, record: str, attempt: int, queue: str, held: Held) -> None:
        called = self._text(record, "key")
        if called:
            self.db.sadd(self.keys("running", f"{queue}={called}"), ref)
        if held.concurrency is not None:
            self.db.sadd(self.keys("running", queue), ref)
            self.db.hset(record, counted=1)
        if held.rate_n is not None and held.rate_ms is not None:
            starts = self.keys("starts", queue)
            self.db.zadd(starts, f"{ref}.{attempt}", self.now_ms)
            self.db.expire(starts, held.rate_ms // 1000)

    def _vacate(self, ref: str, queue: str, called: str, counted: bool) -> bool:
        if counted:
            self.db.srem(self.keys("running", queue), ref)
        if called:
            self.db.srem(self.keys("running", f"{queue}={called}"), ref)
            self._give_turn(queue, called)
        return counted or bool(called)

    def _leave(self, ref: str) -> bool:
        record = self.record(ref, State.processing)
        counted = self.db.hget(record, "counted") is not None
        self.db.hdel(record, "counted")
        return self._vacate(ref, *self._place_of(record), counted)

    # --- how many may run -----------------------------------------------------

    def _room_of(self, queue: str, held: Held) -> tuple[float, float]:
        """How many may begin now, and if it is for the rate that none may, when."""
        if held.free:
            return math.inf, 0
        if held.paused:
            return 0, 0
        room, at = math.inf, 0.0
        if held.concurrency is not None:
            room = held.concurrency - self.db.zcard(self.keys("running", queue))
            if room <= 0:
                return 0, 0
        if held.rate_n is not None and held.rate_ms is not None:
            starts = self.keys("starts", queue)
            for ref, began_ms in self.db.zrange(starts):
                if began_ms > self.now_ms:
                    self.db.zadd(starts, ref, self.now_ms)
            gone = [ref for ref, began_ms in self.db.zrange(starts) if began_ms <= self.now_ms - held.rate_ms]
            self.db.zrem(starts, *gone)
            begun = self.db.zrange(starts)
            if len(begun) >= held.rate_n:
                room, at = 0, begun[len(begun) - held.rate_n][1] + held.rate_ms
            else:
                room = min(room, held.rate_n - len(begun))
        return room, at
