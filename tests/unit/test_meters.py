"""What the router counts, and what two snapshots of it say of the time between them."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.bench import Bench, item, result

from exesys import meters
from exesys.bus import messages as m

ROOT = Path(__file__).resolve().parent.parent.parent
times = st.lists(st.floats(0, 4000), min_size=1, max_size=60)


def filled(*values: float) -> meters.Histogram:
    histogram = meters.Histogram(meters.TIMES_S)
    for value in values:
        histogram.see(value)
    return histogram


@given(times)
def test_each_value_is_in_the_bucket_whose_bound_is_not_less(values: list[float]) -> None:
    counts = filled(*values).counts
    for place, bound in enumerate(meters.TIMES_S):
        assert sum(counts[: place + 1]) == sum(value <= bound for value in values)
    assert sum(counts) == len(values)


@given(times, st.sampled_from(list(meters.QUANTILES.values())))
def test_a_quantile_lies_in_the_bucket_of_the_value_that_it_is(values: list[float], part: float) -> None:
    told = meters.at_quantile(meters.TIMES_S, filled(*values).counts, part)
    rank = next(rank for rank in range(1, len(values) + 1) if rank >= part * len(values))
    true = sorted(values)[rank - 1]
    above = [bound for bound in meters.TIMES_S if bound >= true]
    low = max([bound for bound in meters.TIMES_S if bound < true], default=0.0)
    assert told is not None
    assert low <= told <= (above[0] if above else meters.TIMES_S[-1])


def test_quantiles_of_many_are_near_the_true_ones() -> None:
    chance = random.Random(5)
    values = sorted(chance.lognormvariate(-6, 1) for _ in range(20_000))
    counts = filled(*values).counts
    for part in meters.QUANTILES.values():
        told = meters.at_quantile(meters.TIMES_S, counts, part)
        assert told == pytest.approx(values[int(part * len(values))], rel=0.1)


def test_of_nothing_there_is_no_quantile() -> None:
    assert meters.at_quantile(meters.TIMES_S, filled().counts, 0.5) is None


@given(times)
def test_coarse_buckets_count_the_same_values(values: list[float]) -> None:
    told = meters.coarse(meters.TIMES_S, filled(*values).counts, meters.COARSE_S)
    assert told == [*(sum(value <= bound for value in values) for bound in meters.COARSE_S), len(values)]


def test_names_are_bounded_and_only_those_of_functions() -> None:
    counted = meters.Meters(0.0, lambda cmd: cmd.startswith("f"))
    for number in range(3 * meters.MOST_CMDS):
        counted.of(f"f{number}").accepted += 1
        counted.of(f"x{number}").accepted += 1
    told = counted.to_wire(1.0)["cmds"]
    assert len(told) == meters.MOST_CMDS + 1
    assert told["f0"]["accepted"] == 1
    assert told[meters.REST]["accepted"] == 5 * meters.MOST_CMDS


# --- two snapshots ----------------------------------------------------------------


def snapshot(now: float, counted: meters.Meters, epoch: int = 7) -> dict[str, Any]:
    return {**counted.to_wire(now), "epoch": epoch}


def test_what_happened_in_between() -> None:
    counted = meters.Meters(100.0, lambda cmd: True)
    counted.of("add").wait.see(50.0)
    counted.of("add").done += 3
    before = snapshot(110.0, counted)
    for _ in range(10):
        counted.of("mail").accepted += 1
        counted.of("mail").wait.see(0.0015)
    counted.of("add").done += 4
    counted.turn_steps.see(2)
    counted.turn_steps.see(4)
    counted.redis.see(0.003)
    told = meters.between(before, snapshot(112.0, counted))
    assert (told["accepted"], told["done"], told["failed"]) == (10, 7, 0)
    assert (told["rate"]["accepted"], told["rate"]["done"]) == (5.0, 2.0)
    assert 1.0 < told["wait_ms"]["p50"] <= told["wait_ms"]["p99"] <= 1.5
    assert told["run_ms"] == {"p50": None, "p95": None, "p99": None}
    assert told["turn"] == {"jobs": 3.0, "redis_ms": pytest.approx(3.0)}


@pytest.mark.parametrize("epoch", [None, 6, 7])
def test_after_a_restart_all_since_then_counts(epoch: int | None) -> None:
    old = meters.Meters(0.0, lambda cmd: True)
    old.of("add").done = 1000
    new = meters.Meters(500.0, lambda cmd: True)
    new.of("add").done = 8
    before = snapshot(490.0, old, epoch) if epoch else None  # the same epoch: a store that was restored
    told = meters.between(before, snapshot(504.0, new))
    assert (told["done"], told["rate"]["done"]) == (8, 2.0)


# --- the router -------------------------------------------------------------------


def metrics(bench: Bench) -> dict[str, Any]:
    found: dict[str, Any] = bench.snapshot("metrics")
    return found


def test_the_router_counts_a_step_from_its_acceptance_to_its_end() -> None:
    bench = Bench()
    client, worker = bench.client(), bench.worker(slots=2)
    bench.tell(client, m.Submit((item(1),)))
    bench.turn()
    [job] = bench.dealt(worker)
    bench.results(result(job, worker))
    bench.turn()
    told = metrics(bench)
    step = told["cmds"]["double"]
    assert {name: step[name] for name in meters.COUNTS} == {
        **{"accepted": 1, "started": 1, "done": 1, "failed": 0, "retried": 0}
    }
    assert (sum(step["wait"]["counts"]), sum(step["run"]["counts"])) == (1, 1)
    assert step["run"]["sum"] == pytest.approx(0.001)
    assert told["slots"] == {"all": 2, "busy": 0}
    assert (told["sessions"]["worker"], told["sessions"]["client"]) == (1, 2)
    assert meters.between(None, told)["done"] == 1


def test_a_step_waits_from_when_it_is_due_and_again_from_when_it_failed() -> None:
    bench = Bench()
    client = bench.client()
    bench.tell(client, m.Submit((item(1, delay_s=5.0, retries=1, backoff_s=0),)))
    bench.turn()
    bench.wait(8.0)
    worker = bench.worker()
    bench.turn()
    [job] = bench.dealt(worker)
    bench.wait(2.0)
    bench.results(result(job, worker, m.Outcome.failed, b"\x80"))
    bench.turn()
    bench.turn()
    assert [again.attempt for again in bench.dealt(worker)] == [2]
    step = metrics(bench)["cmds"]["double"]
    assert (step["started"], step["retried"], step["failed"]) == (2, 1, 0)
    assert step["wait"]["sum"] == pytest.approx(3.0, abs=0.01)


def test_what_ends_without_having_run_is_counted() -> None:
    bench = Bench()
    client = bench.client()
    bench.tell(client, m.Submit((item(1),)))
    bench.turn()
    bench.tell(client, m.Change(2, "cancel", "j"))
    bench.turn()
    assert metrics(bench)["cmds"]["double"]["failed"] == 1


def test_commands_that_are_told_to_come_again_are_counted() -> None:
    bench = Bench()
    client = bench.client()
    bench.broker.store_slow(bench.now - 60)
    bench.tell(client, m.Submit((item(1), item(2))))
    assert metrics(bench)["bus"]["busy"] == 2


def test_the_protocol_names_all_of_the_snapshot() -> None:
    bench = Bench()
    told = metrics(bench)
    text = (ROOT / "docs/protocol.md").read_text("utf-8").partition("\n#### Metrics")[2].partition("\n### ")[0]
    named = set(re.findall(r"`(\w+)`", text))
    assert set(re.findall(r"`(\w+)`", "".join(re.findall(r"^- (`.*?): ", text, re.MULTILINE)))) == set(told)
    assert {*told["bus"], *told["slots"], *told["cmds"][meters.REST], *told["redis"]} <= named
    assert f"At most {meters.MOST_CMDS} functions" in text
