"""Which ticks are due, whatever the clock and the controller did."""

from __future__ import annotations

import datetime as dt
import random
from itertools import pairwise
from typing import Any

import pytest

from exesys.errors import StateError
from exesys.schedule import MOST_MISFIRED, Timer
from exesys.ticker import Done, Progress, Tick, Ticker

HOUR_MS = 3_600_000
T0 = int(dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC).timestamp() * 1000)


def timer(name: str = "t", **parts: Any) -> Timer:
    parts = {"every_ms": 60_000, "start_ms": 0, **parts} if "cron" not in parts else parts
    return Timer(name, "f", **parts)


def ticker(*timers: Timer, now_ms: int = T0, **progress: Any) -> Ticker:
    made = Ticker()
    for each in timers:
        made.put(each, Progress(**progress) if progress else None, now_ms)
    return made


def run(given: list[tuple[Tick, bool]]) -> list[int]:
    """The ticks to be run, in seconds after T0."""
    return [(tick.tick_ms - T0) // 1000 for tick, runs in given if runs]


def walk(made: Ticker, begin_ms: int, end_ms: int, step_ms: int = 250) -> list[Tick]:
    """Let the clock run, and return all that is run."""
    found = []
    for now_ms in range(begin_ms, end_ms + 1, step_ms):
        found += [tick for tick, runs in made.due(now_ms) if runs]
    return found


# --- the usual --------------------------------------------------------------------


def test_each_tick_is_given_once_and_in_time() -> None:
    made = ticker(timer())
    assert made.wake_ms() == T0 + 60_000
    assert made.due(T0 + 59_999) == []
    assert run(made.due(T0 + 60_000)) == [60]
    assert made.due(T0 + 60_000) == []
    assert run(made.due(T0 + 185_000)) == [180]


def test_many_timers_tick_in_the_order_they_are_due() -> None:
    made = ticker(*(Timer(f"t{number}", "f", every_ms=1000) for number in range(500)))
    dues = [tick.due_ms for tick in walk(made, T0, T0 + 10_000, 10)]
    assert len(dues) == 5000
    assert all(due <= later + 10 for due, later in pairwise(dues))


def test_a_paused_timer_ticks_not_and_nothing_is_made_up_for() -> None:
    made = ticker(timer(misfire="all"))
    made.put(timer(misfire="all", paused=True), None, T0 + 10_000)
    assert made.wake_ms() is None
    assert made.due(T0 + 10 * 60_000) == []
    made.put(timer(misfire="all"), None, T0 + 10 * 60_000 + 1)
    assert run(made.due(T0 + 11 * 60_000)) == [660]


def test_a_timer_that_was_dropped_is_silent() -> None:
    made = ticker(timer())
    made.drop("t")
    assert made.wake_ms() is None
    assert made.due(T0 + HOUR_MS) == []


def test_a_timer_whose_times_were_changed_goes_by_the_new_ones() -> None:
    made = ticker(timer())
    made.put(timer(every_ms=10_000), None, T0 + 35_000)
    assert run(made.due(T0 + 40_000)) == [40]


def test_the_jitter_puts_off_and_loses_none() -> None:
    jittery = timer(jitter_ms=50_000, grace_ms=0)
    found = walk(ticker(jittery), T0, T0 + HOUR_MS)
    assert [tick.tick_ms for tick in found] == [T0 + 60_000 * number for number in range(1, len(found) + 1)]
    assert len(found) >= 58
    assert all(tick.due_ms - tick.tick_ms == jittery.delay_ms(tick.tick_ms) for tick in found)


# --- misfires -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("misfire", "expected"),
    [("skip", [600]), ("once", [540, 600]), ("all", [60, 120, 180, 240, 300, 360, 420, 480, 540, 600])],
)
def test_after_an_outage_the_policy_says_what_is_made_up_for(misfire: str, expected: list[int]) -> None:
    """The controller was away for ten minutes; the last tick is within the grace."""
    made = ticker(timer(misfire=misfire), now_ms=T0 + 605_000, last_ms=T0)
    given = made.due(T0 + 605_000)
    assert run(given) == expected
    assert made.due(T0 + 605_000) == []
    assert len(given) == 10


def test_what_is_late_by_no_more_than_the_grace_is_run_whatever_the_policy() -> None:
    made = ticker(timer(every_ms=1000, grace_ms=5000), now_ms=T0 + 5000, last_ms=T0)
    assert run(made.due(T0 + 5000)) == [1, 2, 3, 4, 5]


def test_all_has_a_bound() -> None:
    made = ticker(timer(misfire="all", every_ms=1000, grace_ms=0), now_ms=T0 + HOUR_MS, last_ms=T0)
    found = run(made.due(T0 + HOUR_MS))
    assert len(found) == MOST_MISFIRED + 1
    assert found[-1] == 3600


def test_a_timer_that_never_ticked_goes_on_where_the_controller_before_took_it_in() -> None:
    first = Ticker()
    assert first.put(timer(every_ms=1000), None, T0) is True
    progress = first.progress("t")
    assert progress is not None
    kept = {key: str(value).encode() for key, value in progress.kept().items()}
    second = Ticker()
    assert second.put(timer(every_ms=1000), Progress.load("t", kept), T0 + 3000) is False
    assert run(second.due(T0 + 3000)) == [1, 2, 3]


# --- the clock is set -----------------------------------------------------------------


@pytest.mark.parametrize("misfire", ["skip", "once", "all"])
def test_a_clock_set_forward_floods_nobody(misfire: str) -> None:
    timers = [timer("a", misfire=misfire), timer("b", cron="* * * * *", misfire=misfire)]
    made = ticker(*timers)
    walk(made, T0, T0 + 130_000)
    made.jumped(HOUR_MS, T0 + 130_000 + HOUR_MS)
    assert made.due(T0 + 130_000 + HOUR_MS) == []
    found = walk(made, T0 + 130_000 + HOUR_MS, T0 + HOUR_MS + 430_000)
    assert sorted(tick.timer.name for tick in found) == ["a"] * 5 + ["b"] * 5


def test_a_clock_set_back_stops_nobody_and_repeats_no_job() -> None:
    timers = [timer("a"), timer("b", cron="* * * * *"), timer("c", every_ms=250)]
    made = ticker(*timers)
    before = walk(made, T0, T0 + 130_000)
    made.jumped(-HOUR_MS, T0 + 130_000 - HOUR_MS)
    after = walk(made, T0 + 130_000 - HOUR_MS, T0 + 430_000)
    for name, period_s in (("a", 60), ("b", 60), ("c", 0.25)):
        times = [tick.due_ms / 1000 for tick in after if tick.timer.name == name]
        assert all(later - sooner == period_s for sooner, later in pairwise(times))
        assert times[0] - (T0 + 130_000 - HOUR_MS) / 1000 <= period_s
    ids = [tick.job_id for tick in (*before, *after)]
    assert len(ids) == len(set(ids))
    assert {tick.fold for tick in after} == {1}


def test_a_fixed_time_that_ran_does_not_run_again() -> None:
    made = ticker(timer(cron="30 12 * * *"))
    assert len(walk(made, T0, T0 + 31 * 60_000)) == 1
    made.jumped(-HOUR_MS, T0 - 29 * 60_000)
    assert walk(made, T0 - 29 * 60_000, T0 + 40 * 60_000, 5000) == []
    [next_day] = [tick for tick, runs in made.due(T0 + 24 * HOUR_MS + 30 * 60_000) if runs]
    assert next_day.fold == 0


def test_a_clock_that_was_wrong_by_a_day_brings_fixed_times_again() -> None:
    made = ticker(timer(cron="30 12 * * *"))
    walk(made, T0, T0 + 31 * 60_000)
    made.jumped(-24 * HOUR_MS, T0 + 31 * 60_000 - 24 * HOUR_MS)
    assert made.wake_ms() == T0 + 30 * 60_000
    [again] = [tick for tick, _ in made.due(T0 + 30 * 60_000)]
    assert again.job_id == "t.20261124T123000.000Z.1"


def test_a_clock_set_back_while_no_controller_looked_stops_nobody() -> None:
    made = ticker(timer(), now_ms=T0 + 600_000 - HOUR_MS, last_ms=T0 + 600_000)
    [tick] = walk(made, T0 + 600_000 - HOUR_MS, T0 + 660_000 - HOUR_MS)
    assert tick.fold == 1
    fixed = ticker(timer(cron="30 12 * * *"), now_ms=T0, last_ms=T0 + 30 * 60_000)
    assert fixed.wake_ms() == T0 + 30 * 60_000 + 24 * HOUR_MS


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_clock_does_timers_keep_their_pace(seed: int) -> None:
    """A random life: the clock is set, the controller restarts, and steady time goes on."""
    rng = random.Random(seed)
    every = timer(every_ms=rng.choice((500, 1000, 7000)), misfire=rng.choice(("skip", "once", "all")))
    made, wall, ids, steady, times = ticker(every), T0, set(), 0, []
    for _ in range(4000):
        step = rng.randint(1, 400)
        wall, steady = wall + step, steady + step
        if rng.random() < 0.005:
            by = rng.choice((-1, 1)) * rng.choice((2_000, 60_000, HOUR_MS))
            made.due(wall)
            wall += by
            made.jumped(by, wall)
        if rng.random() < 0.01:
            progress = made.progress("t")
            assert progress is not None
            kept = {key: str(value).encode() for key, value in progress.kept().items()}
            made = Ticker()
            made.put(every, Progress.load("t", kept), wall)
        for tick, runs in made.due(wall):
            assert tick.job_id not in ids or not runs
            ids.add(tick.job_id)
            progress = made.progress("t")
            assert progress is not None
            progress.note(Done(tick.tick_ms, tick.due_ms, 0, tick.job_id, "run" if runs else "missed"), tick.fold)
            times += [steady] if runs else []
    gaps = [later - sooner for sooner, later in pairwise(times)]
    assert max(gaps) <= 3 * every.every_ms + 800, "it never stops"
    assert len(times) <= steady / every.every_ms * 1.5 + 50, "it never floods"


def test_a_fixed_time_that_a_wrong_clock_skipped_comes_when_the_clock_is_put_right() -> None:
    made = ticker(timer(cron="30 12 * * *"))
    made.jumped(HOUR_MS, T0 + HOUR_MS)
    assert walk(made, T0 + HOUR_MS, T0 + HOUR_MS + 300_000) == []
    made.jumped(-HOUR_MS, T0 + 300_000)
    [tick] = walk(made, T0 + 300_000, T0 + HOUR_MS, 5000)
    assert (tick.tick_ms, tick.fold) == (T0 + HOUR_MS // 2, 0)


def test_a_resume_is_known_to_the_next_controller() -> None:
    made = ticker(timer(misfire="all", paused=True))
    assert made.put(timer(misfire="all"), None, T0 + HOUR_MS) is True
    progress = made.progress("t")
    assert progress is not None
    after = Ticker()
    after.put(
        timer(misfire="all"), Progress.load("t", {k: str(v).encode() for k, v in progress.kept().items()}), T0 + HOUR_MS
    )
    assert after.due(T0 + HOUR_MS + 59_999) == []


def test_many_ticks_within_the_grace_come_in_several_looks() -> None:
    made = ticker(timer(every_ms=100, grace_ms=HOUR_MS), now_ms=T0 + 250_000, last_ms=T0)
    found: list[Any] = []
    while given := made.due(T0 + 250_000):
        found += given
    assert [tick.tick_ms for tick, runs in found if runs] == list(range(T0 + 100, T0 + 250_001, 100))


def test_a_definition_that_was_changed_while_no_controller_looked_makes_up_for_nothing() -> None:
    made = ticker(timer(misfire="all"))
    progress = made.progress("t")
    assert progress is not None
    kept = {key: str(value).encode() for key, value in progress.kept().items()}
    for other in (timer(every_ms=1000, misfire="all"), timer(misfire="all", paused=True)):
        after = Ticker()
        after.put(other, Progress.load("t", kept), T0 + HOUR_MS)
        assert after.due(T0 + HOUR_MS) == []


def test_a_jitter_of_more_than_all_ticks_at_once_ends() -> None:
    made = ticker(timer(every_ms=100, jitter_ms=400_000))
    found = [tick for now_ms in range(T0, T0 + 600_000, 5000) for tick, runs in made.due(now_ms) if runs]
    times = [tick.tick_ms for tick in found]
    assert times == list(range(T0 + 100, T0 + 100 + 100 * len(times), 100))
    assert len(times) > 1000


@pytest.mark.parametrize(
    "spoilt",
    [
        {"last_ms": b"-1"},
        {"last_ms": b"9" * 30},
        {"last_ms": b"soon"},
        {"ran": b"-1"},
        {"fold": b"x"},
        {"job": b"\xff"},
        {"recent": b"{"},
        {"recent": b"[[1, 2]]"},
        {"recent": b'[[1, 2, 3, "t.x", "flew"]]'},
        {"recent": b'[["1", 2, 3, "t.x", "run"]]'},
        {"recent": b"[5]"},
        {"recent": b"7"},
    ],
)
def test_progress_that_was_spoilt_is_read_as_none(spoilt: dict[str, bytes]) -> None:
    good = {"last_ms": b"5", "ran": b"1", "recent": b'[[1, 2, 3, "t.x", "run"]]'}
    assert Progress.load("t", good).recent[0].late_ms == 3
    with pytest.raises(StateError, match="the timer t in Redis cannot be read"):
        Progress.load("t", good | spoilt)
