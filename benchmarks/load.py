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
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Ticket = TypeVar("Ticket")
LOST_S = 60


class WrongResult(Exception):
    """A job came back with another job's data, or with data nobody sent."""


def payloads(count: int, seed: int) -> list[str]:
    """Return what is sent: short texts, all different, and others for each seed."""
    chance = random.Random(seed)
    return [f"{number}.{chance.getrandbits(32):08x}" for number in range(count)]


def hundreds(data: list[str]) -> Iterator[list[str]]:
    """Give the data in lists of a hundred."""
    return (data[start : start + 100] for start in range(0, len(data), 100))


def check(sent: object, came: object) -> None:
    """Raise WrongResult unless the no-op function gave back what it was sent."""
    if came != sent:
        raise WrongResult(f"{sent!r} was sent, and {came!r} came back.")


def sliding(
    submit: Callable[[Item], Ticket], wait: Callable[[Ticket], object], items: Sequence[Item], in_flight: int
) -> float:
    """Keep `in_flight` items under way, waiting for the oldest. Returns the seconds it took."""
    under_way: deque[tuple[Item, Ticket]] = deque()
    since = time.perf_counter()
    for item in items:
        under_way.append((item, submit(item)))
        if len(under_way) >= in_flight:
            sent, ticket = under_way.popleft()
            check(sent, wait(ticket))
    for sent, ticket in under_way:
        check(sent, wait(ticket))
    return time.perf_counter() - since


def gathering(
    submit: Callable[[str], str],
    ended: Callable[[Iterable[str]], dict[str, object]],
    items: Sequence[str],
    in_flight: int,
) -> float:
    """Keep `in_flight` items under way, taking all that have ended. Returns the seconds it took.

    `submit` returns an id, and `ended` the results there are for some ids;
    it should pause a moment when there are none. Raises TimeoutError when
    nothing has ended for LOST_S.
    """
    under_way: dict[str, str] = {}
    to_send = iter(items)
    left = len(items)
    since = last = time.perf_counter()
    while left:
        while len(under_way) < in_flight and (item := next(to_send, None)) is not None:
            under_way[submit(item)] = item
        came = ended(under_way)
        for ticket, value in came.items():
            check(under_way.pop(ticket), value)
        left -= len(came)
        now = time.perf_counter()
        if came:
            last = now
        elif now - last > LOST_S:
            raise TimeoutError(f"{left:,} jobs have no result after {LOST_S} s.")
    return time.perf_counter() - since


def one_by_one(run: Callable[[str], object], data: Sequence[str]) -> dict[str, float]:
    """Run one job after the other. Returns quantiles of the time from the call to the result."""
    took_s = []
    for text in data:
        since = time.perf_counter()
        came = run(text)
        took_s.append(time.perf_counter() - since)
        check(text, came)
    return {f"p{percent}_ms": 1000 * quantile(took_s, percent / 100) for percent in (50, 90, 99)}


def quantile(values: Iterable[float], share: float) -> float:
    """Return the value below or at which `share` of all lie (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]
