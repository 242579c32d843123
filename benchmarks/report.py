"""From measurements to medians, ratios, targets and a table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median
from typing import Any, NamedTuple

OURS = "exesys"
LEAST_TIMES_HUEY = 2.5
MOST_P50_MS = 0.6
LEAST_STEPS_PER_S = 5_000
LEAST_REST_JOBS_PER_S = 3_000
LEAST_ARRAY_JOBS_PER_S = 10_000
MOST_BYTES_PER_JOB = 700
MOST_TIMES_EMPTY = 1.1
MOST_LOST_BY_KEYS_PERCENT = 10.0
MOST_LOST_BY_STREAMS_PERCENT = 10.0
MOST_LATE_MS = 50
MOST_IDLE_PERCENT = 5
MOST_CALL_P50_MS = 0.5
LEAST_CALLS_PER_S = 4_000
MOST_ROUTER_GROWTH_BYTES = 20 << 20
_COLUMNS = ("jobs_per_s", "p50_ms", "p90_ms", "p99_ms")
_Row = tuple[str, ...]


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


class Target(NamedTuple):
    """A figure to reach, and whether it was."""

    name: str
    wanted: str
    measured: str
    reached: bool


def values(runs: Iterable[Measurement], side: str, figure: str, beside: str | None = None) -> list[float]:
    """Return one figure of all runs of a side, in the order they were measured."""
    return [
        run.figures[figure]
        for run in runs
        if run.side == side and figure in run.figures and beside in (None, run.beside)
    ]


def ratio(runs: Sequence[Measurement], peer: str, figure: str) -> float | None:
    """Return ours ÷ peer: the median over the rounds, each against the run of ours right before it."""
    ours, theirs = values(runs, OURS, figure, peer), values(runs, peer, figure, peer)
    return median(a / b for a, b in zip(ours, theirs, strict=True)) if theirs else None


def targets(runs: Sequence[Measurement], peers: Sequence[str]) -> list[Target]:
    """Return the targets for which there are measurements."""
    found = []
    if "huey" in peers:
        times = ratio(runs, "huey", "jobs_per_s") or 0.0
        found.append(Target("jobs/s", f"≥ {LEAST_TIMES_HUEY:g} × Huey", f"{times:.2f} ×", times >= LEAST_TIMES_HUEY))
    p50_ms = values(runs, OURS, "p50_ms")
    if p50_ms:
        found.append(_most("p50", median(p50_ms), MOST_P50_MS, "{:.3g} ms"))
    for goal, least, unit in (
        ("workflows", LEAST_STEPS_PER_S, "steps/s"),
        ("rest", LEAST_REST_JOBS_PER_S, "jobs/s"),
        ("rest arrays", LEAST_ARRAY_JOBS_PER_S, "jobs/s"),
    ):
        rates = [run.figures["jobs_per_s"] for run in runs if run.goal == goal]
        if rates:
            rate = median(rates)
            found.append(Target(goal, f"≥ {least:,} {unit}", f"{rate:,.0f} {unit}", rate >= least))
    call_p50_ms = values(runs, OURS, "call_p50_ms")
    if call_p50_ms:
        found.append(_most("app call p50", median(call_p50_ms), MOST_CALL_P50_MS, "{:.3g} ms"))
        rate = median(values(runs, OURS, "calls_per_s"))
        wanted = f"≥ {LEAST_CALLS_PER_S:,} calls/s"
        found.append(Target("app calls", wanted, f"{rate:,.0f} calls/s", rate >= LEAST_CALLS_PER_S))
    full, empty = values(runs, OURS, "full_jobs_per_s"), values(runs, OURS, "empty_jobs_per_s")
    if full:
        times = median(rate / beside for rate, beside in zip(empty, full, strict=True))
        found.append(_most("delayed, time of a job", times, MOST_TIMES_EMPTY, "{:.2f} × that in an empty store"))
    keyed, plain = values(runs, OURS, "keyed_jobs_per_s"), values(runs, OURS, "plain_jobs_per_s")
    if keyed:
        lost = 100 * (1 - median(rate / beside for rate, beside in zip(keyed, plain, strict=True)))
        found.append(_most("keys on TCP, of throughput", lost, MOST_LOST_BY_KEYS_PERCENT, "{:.1f} %"))
    listened, alone = values(runs, OURS, "listened_jobs_per_s"), values(runs, OURS, "alone_jobs_per_s")
    if listened:
        lost = 100 * (1 - median(rate / beside for rate, beside in zip(listened, alone, strict=True)))
        found.append(_most("100 streams, of throughput", lost, MOST_LOST_BY_STREAMS_PERCENT, "{:.1f} %"))
    if values(runs, OURS, "idle_percent"):
        for name, goal in (("ticks_p99_ms", "ticks, late by, p99"), ("delayed_p99_ms", "delayed jobs, late by, p99")):
            found.append(_most(goal, median(values(runs, OURS, name)), MOST_LATE_MS, "{:.3g} ms"))
        idle = median(values(runs, OURS, "idle_percent"))
        found.append(_most("10,000 idle timers", idle, MOST_IDLE_PERCENT, "{:.3g} % of a core"))
    per_job = values(runs, OURS, "redis_bytes_per_job")
    if per_job:
        found.append(_most("Redis", median(per_job), MOST_BYTES_PER_JOB, "{:,.0f} bytes a finished job"))
        grown = median(values(runs, OURS, "router_growth_bytes")) / (1 << 20)
        found.append(_most("router", grown, MOST_ROUTER_GROWTH_BYTES / (1 << 20), "{:.1f} MiB grown"))
    return found


def _most(name: str, measured: float, most: float, form: str) -> Target:
    return Target(name, f"≤ {form.format(most)}", form.format(measured), measured <= most)


def as_json(runs: Sequence[Measurement], peers: Sequence[str], about: dict[str, Any]) -> dict[str, Any]:
    """Return everything, for a program."""
    return {
        **about,
        "measurements": [run._asdict() for run in runs],
        "ratios": {peer: {figure: ratio(runs, peer, figure) for figure in _COLUMNS} for peer in peers},
        "targets": [target._asdict() for target in targets(runs, peers)],
    }


def table(runs: Sequence[Measurement], peers: Sequence[str]) -> str:
    """Return the medians, with the least and the most below them, and ours ÷ peer, for a person."""
    rows: list[_Row] = [("", "jobs/s", "p50 ms", "p90 ms", "p99 ms", "load", "others")]
    goals = {
        "": OURS,
        "many": "submit_many",
        "workflows": "workflows (steps)",
        "rest": "REST",
        "rest arrays": "REST arrays",
    }
    for goal, name in goals.items():
        own = [run for run in runs if run.side == OURS and (run.goal == goal or goal == "")]
        own = [run for run in own if goal or run.goal in ("throughput", "latency")]
        rows += _rows(name if goal else "ExeSys", own)
    rows += _rows("app calls (calls)", _calls(runs, "call", "calls_per_s"))
    rows += _rows("  bare DEALER, ROUTER", _calls(runs, "floor", "floor_per_s"))
    for peer in peers:
        rows += _rows(peer, [run for run in runs if run.side == peer])
        rows.append((f"ExeSys ÷ {peer}", *(_ratio(runs, peer, figure) for figure in _COLUMNS), "", ""))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in cells)
        for cells in (list(enumerate(zip(row, widths, strict=True))) for row in rows)
    ]
    marks = [
        f"{'reached    ' if target.reached else 'NOT reached'}  {target.name} {target.wanted}: {target.measured}"
        for target in targets(runs, peers)
    ]
    return "\n".join([*(line.rstrip() for line in lines), "", *marks])


def _calls(runs: Sequence[Measurement], side: str, rate: str) -> list[Measurement]:
    """Return the measurements of calls, or of their floor, under the names of the columns."""
    names = {rate: "jobs_per_s", **{f"{side}_p{percent}_ms": f"p{percent}_ms" for percent in (50, 90, 99)}}
    return [
        run._replace(figures={names[name]: value for name, value in run.figures.items() if name in names})
        for run in runs
        if names.keys() & run.figures.keys()
    ]


def _rows(name: str, runs: Sequence[Measurement]) -> list[_Row]:
    found = [[run.figures[figure] for run in runs if figure in run.figures] for figure in _COLUMNS]
    if not any(found):
        return []
    loads = f"{min(run.load_1min for run in runs):.1f}–{max(run.load_1min for run in runs):.1f}"
    others = f"{median(run.others for run in runs):.0%}"
    middle = [_number(figure, median(had)) if had else "" for figure, had in zip(_COLUMNS, found, strict=True)]
    spread = [
        f"{_number(figure, min(had))}–{_number(figure, max(had))}" if len(had) > 1 else ""
        for figure, had in zip(_COLUMNS, found, strict=True)
    ]
    rows: list[_Row] = [(name, *middle, loads, others)]
    return [*rows, ("  least–most", *spread, "", "")] if any(spread) else rows


def _ratio(runs: Sequence[Measurement], peer: str, figure: str) -> str:
    found = ratio(runs, peer, figure)
    return "" if found is None else f"{found:.2f}"


def _number(figure: str, value: float) -> str:
    return f"{value:,.0f}" if figure == "jobs_per_s" else f"{value:.2f}"
