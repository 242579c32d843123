"""Counts are compared by their ratio to the floor, part by part, and kept for each machine."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import kept
from benchmarks.kept import Count

KEPT = {"router": Count(200_000, 10.0), "slot": Count(90_000, 4.0)}


@pytest.mark.parametrize(
    ("ratio", "lost"),
    [(10.0, []), (11.49, []), (11.51, ["router"]), (5.0, [])],
)
def test_a_part_is_lost_when_it_is_dearer_by_more_than_15_percent(ratio: float, lost: list[str]) -> None:
    now = {"router": Count(1, ratio), "slot": Count(900_000, 4.0), "new": Count(1, 99.0)}
    assert [loss.part for loss in kept.losses(KEPT, now)] == lost


def test_a_loss_says_what_was_and_what_is() -> None:
    [loss] = kept.losses(KEPT, {"router": Count(250_000, 12.5)})
    assert str(loss) == (
        "router: 250,000 instructions for a job, 200,000 were kept; "
        "beside the floor it is 1.250 times as dear as it was"
    )


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    kept.write({"b": KEPT, "a": {}}, path)
    assert kept.read(path) == {"a": {}, "b": KEPT}


def test_what_is_kept_has_every_part() -> None:
    for name, parts in kept.read().items():
        assert set(parts) == {*kept.PARTS, kept.REDIS}, name


def test_a_function_costs_what_it_does_itself(tmp_path: Path) -> None:
    profile = tmp_path / "out.2"
    profile.write_text(
        "version: 1\nevents: Ir\n\nob=x\nfl=y\nfn=malloc\n10 5\n+1 7\n\n"
        "fn=call\n3 100\ncfn=malloc\ncalls=2 10\n4 24\n* 1\n\ntotals: 113\n"
    )
    assert kept.costliest(profile, 5) == [("call", 101), ("malloc", 12)]
    assert kept.costliest(profile, 1) == [("call", 101)]


def test_totals_are_those_between_marks(tmp_path: Path) -> None:
    for number, total in ((1, 11), (2, 222)):
        (tmp_path / f"out.{number}").write_text(f"events: Ir\n{'x' * 20}\ntotals: {total}\n")
    assert kept.totals(tmp_path / "out") == [11, 222]
    assert kept.totals(tmp_path / "none") == []
