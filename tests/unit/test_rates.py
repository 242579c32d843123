"""The buckets of requests: what a caller may send in any stretch of time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys.rates import MOST_CALLERS, Buckets


def test_so_many_at_once_and_then_as_many_as_the_rate_allows() -> None:
    buckets = Buckets(rate=2.0, burst=3)
    assert [buckets.take("a", 1, 0.0) for _ in range(3)] == [0.0, 0.0, 0.0]
    assert buckets.take("a", 1, 0.0) == pytest.approx(0.5)
    assert buckets.take("b", 1, 0.0) == 0.0, "each caller has a bucket of its own"
    assert buckets.take("a", 1, 0.5) == 0.0
    assert buckets.take("a", 1, 0.5) > 0


def test_a_refused_request_costs_nothing() -> None:
    buckets = Buckets(rate=1.0, burst=1)
    assert buckets.take("a", 1, 0.0) == 0.0
    assert [buckets.take("a", 1, 0.9) for _ in range(5)] == [pytest.approx(0.1)] * 5
    assert buckets.take("a", 1, 1.0) == 0.0


def test_what_costs_more_than_the_burst_needs_a_full_bucket_and_leaves_a_debt() -> None:
    buckets = Buckets(rate=10.0, burst=5)
    assert buckets.take("a", 25, 0.0) == 0.0
    assert buckets.take("a", 1, 0.0) == pytest.approx(2.1), "20 below nothing, and one more"
    assert buckets.take("a", 25, 2.4) > 0
    assert buckets.take("a", 25, 2.5) == 0.0


def test_what_was_taken_for_the_same_request_is_given_back_first() -> None:
    buckets = Buckets(rate=1.0, burst=4)
    assert buckets.take("a", 1, 0.0) == 0.0
    assert buckets.take("a", 4, 0.0, held=1) == 0.0
    assert buckets.take("a", 1, 0.0) == pytest.approx(1.0)
    other = Buckets(rate=1.0, burst=4)
    assert other.take("a", 3, 0.0) == 0.0
    assert other.take("a", 1, 0.0) == 0.0
    assert other.take("a", 3, 0.0, held=1) == pytest.approx(2.0)
    assert other.take("a", 1, 0.0) == 0.0, "a refused one costs nothing, also of what it had taken"


def test_a_clock_that_stands_or_goes_back_gives_nothing() -> None:
    buckets = Buckets(rate=1.0, burst=1)
    assert buckets.take("a", 1, 10.0) == 0.0
    assert buckets.take("a", 1, 5.0) > 0


def test_memory_is_bounded_and_the_oldest_go_first() -> None:
    buckets = Buckets(rate=1.0, burst=1)
    for caller in range(MOST_CALLERS + 100):
        buckets.take(caller, 1, 0.0)
        assert buckets.take("busy", 1, 0.0) == 0.0 or caller
    assert len(buckets) == MOST_CALLERS
    assert buckets.take("busy", 1, 0.0) > 0, "one that is seen all the time is not forgotten"
    assert buckets.take(0, 1, 0.0) == 0.0, "one not seen for long is"


@given(
    st.floats(0.1, 1000),
    st.integers(1, 50),
    st.lists(st.tuples(st.floats(0, 2), st.integers(1, 100)), min_size=1, max_size=50),
)
def test_in_no_stretch_of_time_more_is_taken_than_allowed(
    rate: float, burst: int, requests: list[tuple[float, int]]
) -> None:
    buckets = Buckets(rate, burst)
    now = taken = 0.0
    for pause_s, cost in requests:
        now += pause_s
        wait_s = buckets.take("a", cost, now)
        assert wait_s >= 0
        if not wait_s:
            # What was taken before this one never exceeds what had flowed in, so a debt is always paid.
            assert taken + min(cost, burst) <= burst + rate * now + 1e-6
            taken += cost
        else:
            assert buckets.take("a", cost, now + wait_s + 1e-6) == 0.0
            taken += cost
            now += wait_s + 1e-6
