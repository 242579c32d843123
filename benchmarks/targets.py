"""The figures to reach, and whether they were. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import NamedTuple

OURS = "exesys"
ALIKE = ("throughput", "latency")  # what peers do, too
# Ours ÷ theirs, of the jobs a second that are sent one by one, a hundred under way.
LEAST_TIMES = {"huey": 4.0, "celery": 15.0, "limit": 0.7}


class Measurement(NamedTuple):
    """One run. `beside` names the peer it was measured next to; `others` is what other programs took of
    all processors meanwhile, 0 to 1."""

    side: str
    goal: str
    beside: str
    round: int
    figures: dict[str, float]
    load_1min: float
    others: float


def values(runs: Iterable[Measurement], side: str, figure: str, beside: str | None = None) -> list[float]:
    """Return one figure of all runs of a side, in the order they were measured."""
    return [
        run.figures[figure]
        for run in runs
        if run.side == side and figure in run.figures and beside in (None, run.beside)
    ]


def ratio(runs: Sequence[Measurement], peer: str, figure: str, *goals: str) -> float | None:
    """Return ours ÷ peer: the median over the rounds, each against the run of ours right before it.

    `goals` are the measurements that count, by default one at a time and a hundred under way.
    """
    runs = [run for run in runs if run.goal in (goals or ALIKE)]
    ours, theirs = values(runs, OURS, figure, peer), values(runs, peer, figure, peer)
    return median(a / b for a, b in zip(ours, theirs, strict=True)) if theirs else None


class Target(NamedTuple):
    """A figure to reach, and whether it was."""

    name: str
    wanted: str
    measured: str
    reached: bool


class Goal(NamedTuple):
    """What the median of a figure of ours is to be. `goal` is the measurement it is in, "" for any."""

    name: str
    figure: str
    bound: float
    form: str
    least: bool = False  # else `bound` is the most
    goal: str = ""

    def judge(self, measured: float) -> Target:
        """Tell whether what was measured will do."""
        wanted = f"{'≥' if self.least else '≤'} {self.form.format(self.bound)}"
        reached = measured >= self.bound if self.least else measured <= self.bound
        return Target(self.name, wanted, self.form.format(measured), reached)


GOALS = (
    Goal("p50", "p50_ms", 0.5, "{:.3g} ms"),
    Goal("p99", "p99_ms", 2, "{:.3g} ms"),
    Goal("workflows", "jobs_per_s", 5_000, "{:,.0f} steps/s", least=True, goal="workflows"),
    Goal("rest", "jobs_per_s", 3_000, "{:,.0f} jobs/s", least=True, goal="rest"),
    Goal("rest arrays", "jobs_per_s", 10_000, "{:,.0f} jobs/s", least=True, goal="rest arrays"),
    Goal("app call p50", "call_p50_ms", 0.5, "{:.3g} ms"),
    Goal("app calls", "calls_per_s", 4_000, "{:,.0f} calls/s", least=True),
    Goal("ticks, late by, p99", "ticks_p99_ms", 50, "{:.3g} ms"),
    Goal("delayed jobs, late by, p99", "delayed_p99_ms", 50, "{:.3g} ms"),
    Goal("10,000 idle timers", "idle_percent", 5, "{:.3g} % of a core"),
    Goal("Redis", "redis_bytes_per_job", 700, "{:,.0f} bytes a finished job"),
    Goal("router grown by", "router_growth_bytes", 20 << 20, "{:,.0f} bytes", goal="memory"),
    Goal("accepted", "accepted_per_s", 30_000, "{:,.0f} jobs/s", least=True),
    Goal("1 kB, of the floor's bytes/s", "1kB_share", 0.9, "{:.2f}", least=True),
    Goal("10 kB, of the floor's bytes/s", "10kB_share", 0.6, "{:.2f}", least=True),
    Goal("100 kB, of the floor's bytes/s", "100kB_share", 0.3, "{:.2f}", least=True),
    Goal("Redis", "redis_bytes_per_queued_job", 700, "{:,.0f} bytes a queued job over its data"),
    Goal("router, with all queued", "router_rss_mb", 100, "{:.1f} MB", goal="queued"),
    Goal("sleeping jobs, 64 slots", "naps_share", 0.95, "{:.1%} of the ideal rate", least=True),
    Goal("short jobs among long ones wait, p99", "mixed_p99_ms", 20, "{:.3g} ms"),
    Goal("idle system", "idle_cpu_percent", 1, "{:.2f} % of a core"),
    Goal("idle system", "idle_pss_mb", 400, "{:.0f} MB"),
    Goal("two shards on two cores ÷ one on one, by time", "cores_by_time", 1.6, "{:.2f}", least=True),
    Goal("two shards on two cores ÷ one on one, by processor time", "cores_by_cpu", 1.6, "{:.2f}", least=True),
    Goal("router, processor time for a job, two ÷ one", "router_per_core", 1.2, "{:.2f}"),
    Goal("Redis, processor time for a job, two ÷ one", "redis_per_core", 1.2, "{:.2f}"),
)


class Pair(NamedTuple):
    """How large one rate of a measurement is to be as a share of another, taken by turns with it."""

    name: str
    figure: str
    beside: str
    least: float


PAIRS = (
    Pair("delayed, rate beside many ÷ in an empty store", "full_jobs_per_s", "empty_jobs_per_s", 0.9),
    Pair("keys on TCP, rate with ÷ without", "keyed_jobs_per_s", "plain_jobs_per_s", 0.9),
    Pair("100 streams, rate with ÷ without", "listened_jobs_per_s", "alone_jobs_per_s", 0.9),
    Pair("all queued, rate ÷ with 1,000 queued", "queued_full_per_s", "queued_few_per_s", 0.9),
)


def targets(runs: Sequence[Measurement], peers: Sequence[str]) -> list[Target]:
    """Return the targets for which there are measurements."""
    found = []
    for peer, least in LEAST_TIMES.items():
        times = ratio(runs, peer, "jobs_per_s") if peer in peers else None
        if times is not None:
            found.append(Target(f"jobs/s beside {peer}", f"≥ {least:g} ×", f"{times:.2f} ×", times >= least))
    for goal in GOALS:
        had = values([run for run in runs if goal.goal in ("", run.goal)], OURS, goal.figure)
        if had:
            found.append(goal.judge(median(had)))
    for pair in PAIRS:
        rates, besides = values(runs, OURS, pair.figure), values(runs, OURS, pair.beside)
        if rates:
            share = median(rate / beside for rate, beside in zip(rates, besides, strict=True))
            found.append(Target(pair.name, f"≥ {pair.least:g}", f"{share:.3f}", share >= pair.least))
    return found
