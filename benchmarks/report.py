"""From measurements to medians, ratios, targets and a table. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from benchmarks.targets import ALIKE, OURS, Measurement, ratio, targets

_COLUMNS = ("jobs_per_s", "p50_ms", "p90_ms", "p99_ms")
_Row = tuple[str, ...]


def as_json(runs: Sequence[Measurement], peers: Sequence[str], about: dict[str, Any]) -> dict[str, Any]:
    """Return everything, for a program."""
    return {
        **about,
        "measurements": [run._asdict() for run in runs],
        "ratios": {peer: {figure: ratio(runs, peer, figure) for figure in _COLUMNS} for peer in peers},
        "targets": [target._asdict() for target in targets(runs, peers)],
    }


def _figures(runs: Sequence[Measurement]) -> list[_Row]:
    """Return the medians of the figures that have no column, with the least and the most."""
    names = dict.fromkeys(
        (run.side, run.goal, name)
        for run in runs
        if not run.goal.startswith("app ")
        for name in run.figures
        if name not in _COLUMNS
    )
    rows: list[_Row] = []
    for side, goal, name in names:
        had = [run.figures[name] for run in runs if (run.side, run.goal) == (side, goal) and name in run.figures]
        spread = f"{_plain(min(had))}–{_plain(max(had))}" if len(had) > 1 else ""
        rows.append((f"{side} {goal}", name, _plain(median(had)), spread))
    return rows


def _plain(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _lines(rows: Sequence[_Row], left: int) -> list[str]:
    """Lay rows out in columns, the first `left` of them flush left."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))] if rows else []
    return [
        "  ".join(
            cell.ljust(width) if column < left else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


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
        own = [run for run in own if goal or run.goal in ALIKE]
        rows += _rows(name if goal else "ExeSys", own)
        rows += _rows("  floor", [run for run in runs if (run.side, run.goal) == ("limit", goal)])
    rows += _rows("app calls (calls)", _calls(runs, "call", "calls_per_s"))
    rows += _rows("  bare DEALER, ROUTER", _calls(runs, "floor", "floor_per_s"))
    for peer in peers:
        rows += _rows(peer, [run for run in runs if run.side == peer and run.goal in ALIKE])
        rows.append((f"ExeSys ÷ {peer}", *(_ratio(runs, peer, figure) for figure in _COLUMNS), "", ""))
    figures = _lines(_figures(runs), 2)
    marks = [
        f"{'reached    ' if target.reached else 'NOT reached'}  {target.name} {target.wanted}: {target.measured}"
        for target in targets(runs, peers)
    ]
    shown = _lines(rows, 1) if len(rows) > 1 else []
    return "\n\n".join("\n".join(part) for part in (shown, figures, marks) if part)


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
