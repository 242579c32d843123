"""How many requests a second each caller may send: one bucket for each (see docs/security.md). Pure.

A bucket fills at `rate` a second up to `burst`, and what a request costs is
taken out. One that costs more than `burst` needs a full bucket and leaves a
debt, so that in the long run the rate holds for it too.
"""

from __future__ import annotations

from collections import OrderedDict

MOST_CALLERS = 4096
_ROUNDING = 1e-9


class Buckets:
    """The buckets of all callers; of very many, those not seen for longest are forgotten. For one thread at a time."""

    def __init__(self, rate: float, burst: int) -> None:
        self._rate = rate
        self._burst = burst
        self._kept: OrderedDict[object, tuple[float, float]] = OrderedDict()  # caller -> what is in it, and when

    def take(self, caller: object, cost: int, now: float, held: int = 0) -> float:
        """Take `cost` out of a caller's bucket. Returns 0.0, or how many seconds too early it is.

        Then nothing is taken. `held` was taken for the same request before, and is given back first.
        """
        level, at = self._kept.pop(caller, (float(self._burst), now))
        level = min(level + held + max(now - at, 0.0) * self._rate, float(self._burst))
        lacking = min(cost, self._burst) - level
        if lacking <= _ROUNDING:
            lacking = 0.0
            level -= cost
        self._kept[caller] = (level, now)
        if len(self._kept) > MOST_CALLERS:
            self._kept.popitem(last=False)
        return lacking / self._rate

    def __len__(self) -> int:
        return len(self._kept)
