"""What the router counts: how much was accepted, handed out and ended, and how long that took. Pure.

A tally for each command, by the name it was sent under, and a few of the whole
bus. All begin at 0 with the router. `to_wire` gives them as plain maps; of two
of these, `between` makes rates and percentiles of the time in between.

The buckets of the histograms are finer than those that Prometheus is shown
(`COARSE_S`), because a percentile is interpolated within one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

COARSE_S = (*(float(f"{step}e{power}") for power in range(-4, 3) for step in (1, 2, 5)), 1000.0, 2000.0, 3600.0)
# From 0.1 ms to an hour, six to each power of ten.
_STEPS = ("1", "1.5", "2", "3", "5", "7")
TIMES_S = (*(float(f"{step}e{power}") for power in range(-4, 3) for step in _STEPS), 1e3, 1.5e3, 2e3, 3e3, 3.6e3)
SIZES = tuple(float(step * 10**power) for power in range(4) for step in (1, 2, 5))
MOST_CMDS = 100  # with a tally of their own
REST = "(other)"  # the tally of all others; no name of a function has brackets
QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}

COUNTS = ("accepted", "started", "done", "failed", "retried")


class Histogram:
    """How many values fell into each bucket. `bounds` are the largest of each, the last bucket has none."""

    __slots__ = ("bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def see(self, value: float) -> None:
        """Count a value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def to_wire(self) -> dict[str, Any]:
        return {"counts": self.counts.copy(), "sum": self.total}


class Tally:
    """What became of the steps of one command.

    `accepted` is counted once a step, `started` and `retried` once an attempt:
    when it was handed out, and when it failed and is to be made again. `wait`
    is the time from when a step could start until it was handed out, `run`
    that of an attempt at its worker, in seconds.
    """

    __slots__ = ("accepted", "done", "failed", "retried", "run", "started", "wait")

    def __init__(self) -> None:
        self.accepted = self.started = self.done = self.failed = self.retried = 0
        self.wait, self.run = Histogram(TIMES_S), Histogram(TIMES_S)

    def to_wire(self) -> dict[str, Any]:
        counts = {name: getattr(self, name) for name in COUNTS}
        return {**counts, "wait": self.wait.to_wire(), "run": self.run.to_wire()}


class Meters:
    """All tallies of one router's life, which began at `now`. `knows` tells whether a name is that of a function."""

    def __init__(self, now: float, knows: Callable[[str], bool]) -> None:
        self._began = now
        self._knows = knows
        self.rest = Tally()  # of steps whose command is none of those below, or not known
        self._by_cmd: dict[str, Tally] = {}
        self.turn_steps = Histogram(SIZES)  # what a turn of the router asks of the store
        self.redis = Histogram(TIMES_S)  # the round trip of a turn

    def of(self, cmd: str) -> Tally:
        """Return the tally of a command."""
        return self._by_cmd.get(cmd) or self._entered(cmd)

    def accepted(self, cmds: Iterable[str]) -> None:
        """Count steps that were stored, by their commands."""
        for cmd in cmds:
            self.of(cmd).accepted += 1

    def _entered(self, cmd: str) -> Tally:
        if len(self._by_cmd) >= MOST_CMDS or not self._knows(cmd):
            return self.rest
        self._by_cmd[cmd] = tally = Tally()
        return tally

    def to_wire(self, now: float) -> dict[str, Any]:
        """Return all that was counted; `up_s` is the age of the router in seconds."""
        return {
            "up_s": now - self._began,
            "bounds_s": list(TIMES_S),
            "sizes": list(SIZES),
            "cmds": {cmd: tally.to_wire() for cmd, tally in ((REST, self.rest), *self._by_cmd.items())},
            "turn_steps": self.turn_steps.to_wire(),
            "redis": self.redis.to_wire(),
        }


def between(before: Mapping[str, Any] | None, after: Mapping[str, Any]) -> dict[str, Any]:
    """Tell what happened between two snapshots, the `metrics` of SNAPSHOT.

    Without `before`, or when it is of another life of the router, what happened
    since the router began. `accepted`, `started`, `done`, `failed` and `retried`
    are totals of `after`; `rate` has the same per second; `wait_ms` and `run_ms`
    have p50, p95 and p99 in milliseconds, None when nothing was measured; `turn`
    the mean of `jobs` in a turn of the router (steps placed and reported) and of `redis_ms`, its round trip.
    """
    if before is not None and (before["epoch"] != after["epoch"] or before["up_s"] > after["up_s"]):
        before = None
    seconds = after["up_s"] - (before["up_s"] if before else 0.0)
    totals = _totals(after)
    earlier = _totals(before) if before else dict.fromkeys(COUNTS, 0)
    told: dict[str, Any] = dict(totals)
    told["rate"] = {name: (totals[name] - earlier[name]) / seconds if seconds > 0 else 0.0 for name in COUNTS}
    bounds = after["bounds_s"]
    for name in ("wait", "run"):
        counts = _less(_summed(after, name), _summed(before, name) if before else None)
        seen = {quantile: at_quantile(bounds, counts, part) for quantile, part in QUANTILES.items()}
        told[f"{name}_ms"] = {quantile: None if at_s is None else at_s * 1000 for quantile, at_s in seen.items()}
    told["turn"] = {
        "jobs": _mean(after["turn_steps"], before and before["turn_steps"]),
        "redis_ms": 1000 * _mean(after["redis"], before and before["redis"]),
    }
    return told


def at_quantile(bounds: Sequence[float], counts: Sequence[int], part: float) -> float | None:
    """Return the value below which a `part` of all lies (0.5: the median), interpolated in its bucket; None of none."""
    left = part * sum(counts)
    if left <= 0:
        return None
    low = 0.0
    for bound, count in zip(bounds, counts, strict=False):  # the last bucket has no bound
        if count and left <= count:
            return low + (bound - low) * left / count
        left -= count
        low = bound
    return low


def coarse(bounds: Sequence[float], counts: Sequence[int], wanted: Sequence[float]) -> list[int]:
    """Return how many values are at most each of the bounds `wanted`, of which each is one of `bounds`; then all."""
    summed, total = {}, 0
    for bound, count in zip(bounds, counts, strict=False):
        total += count
        summed[bound] = total
    return [*(summed[bound] for bound in wanted), sum(counts)]


def _totals(snapshot: Mapping[str, Any]) -> dict[str, int]:
    return {name: sum(tally[name] for tally in snapshot["cmds"].values()) for name in COUNTS}


def _summed(snapshot: Mapping[str, Any], name: str) -> list[int]:
    return [sum(column) for column in zip(*(tally[name]["counts"] for tally in snapshot["cmds"].values()), strict=True)]


def _less(counts: Sequence[int], earlier: Sequence[int] | None) -> list[int]:
    return list(counts) if earlier is None else [now - then for now, then in zip(counts, earlier, strict=True)]


def _mean(after: Mapping[str, Any], before: Mapping[str, Any] | None) -> float:
    count = sum(after["counts"]) - (sum(before["counts"]) if before else 0)
    total: float = after["sum"] - (before["sum"] if before else 0.0)
    return total / count if count else 0.0
