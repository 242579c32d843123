"""The loops that measure, the same for ExeSys and its peers. They need nothing but Python.

Every result is compared with what was sent; a wrong one raises WrongResult.
How a lost one shows is up to whoever waits for it: each `wait` below must
raise when nothing came.
"""

from __future__ import annotations

import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TypedDict, TypeVar

Ticket = TypeVar("Ticket")
LOST_S = 60.0


class WrongResult(Exception):
    """A job came back with another job's data, or with data nobody sent."""


class Latency(TypedDict):
    """Milliseconds from the call to the result in the producer's hands."""

    p50_ms: float
    p90_ms: float
    p99_ms: float


def payloads(count: int, seed: int) -> list[str]:
    """Return what is sent: short texts, all different, and others for each seed."""
    chance = random.Random(seed)
    return [f"{number}.{chance.getrandbits(32):08x}" for number in range(count)]


def check(sent: str, came: object) -> None:
    """Raise WrongResult unless the no-op function gave back what it was sent."""
    if came != sent:
        raise WrongResult(f"the job with {sent!r} came back with {came!r}.")


def sliding(
    submit: Callable[[str], Ticket], wait: Callable[[Ticket], object], data: Sequence[str], in_flight: int
) -> float:
    """Keep `in_flight` jobs under way, waiting for the oldest. Returns jobs per second."""
    under_way: deque[tuple[str, Ticket]] = deque()
    since = time.perf_counter()
    for text in data:
        under_way.append((text, submit(text)))
        if len(under_way) >= in_flight:
            sent, ticket = under_way.popleft()
            check(sent, wait(ticket))
    for sent, ticket in under_way:
        check(sent, wait(ticket))
    return len(data) / (time.perf_counter() - since)


def gathering(
    submit: Callable[[str], str], ended: Callable[[Iterable[str]], dict[str, object]], data: Sequence[str], in_flight: int
) -> float:
    """Keep `in_flight` jobs under way, taking all that have ended. Returns jobs per second.

    `submit` returns an id, and `ended` the results there are for some ids;
    it should pause a moment when there are none.
    """
    under_way: dict[str, str] = {}
    to_send = iter(data)
    left = len(data)
    since = last = time.perf_counter()
    while left:
        for text in to_send:
            under_way[submit(text)] = text
            if len(under_way) >= in_flight:
                break
        came = ended(under_way)
        for ticket, value in came.items():
            check(under_way.pop(ticket), value)
        left -= len(came)
        now = time.perf_counter()
        if came:
            last = now
        elif now - last > LOST_S:
            raise TimeoutError(f"{left} jobs have no result after {LOST_S:g} s.")
    return len(data) / (time.perf_counter() - since)


def one_by_one(run: Callable[[str], object], data: Sequence[str]) -> Latency:
    """Run one job after the other. Returns how long each took."""
    took_s = []
    for text in data:
        since = time.perf_counter()
        came = run(text)
        took_s.append(time.perf_counter() - since)
        check(text, came)
    return Latency(
        p50_ms=1000 * quantile(took_s, 0.50), p90_ms=1000 * quantile(took_s, 0.90), p99_ms=1000 * quantile(took_s, 0.99)
    )


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value below or at which `share` of all lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
