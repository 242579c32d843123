"""The active controller's lease by its own clock."""

from __future__ import annotations

from exesys.lease import LEASE_S, MARGIN_S, Lease


def test_it_holds_from_when_it_was_asked_for_and_no_longer_than_redis_thinks() -> None:
    lease = Lease("one")
    assert not lease.holds(100.0)
    lease.renewed(True, 100.0)
    assert lease.holds(100.0)
    assert lease.holds(100.0 + LEASE_S - MARGIN_S - 0.001)
    assert not lease.holds(100.0 + LEASE_S - MARGIN_S)


def test_an_answer_that_took_long_gives_no_more_time() -> None:
    lease = Lease("one")
    lease.renewed(True, 100.0)  # and the process was stopped before it read the answer
    assert not lease.holds(105.0)


def test_it_is_over_when_another_has_it() -> None:
    lease = Lease("one")
    lease.renewed(True, 100.0)
    lease.renewed(False, 100.5)
    assert not lease.holds(100.6)
