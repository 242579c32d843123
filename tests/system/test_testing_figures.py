"""How soon the fixtures' system is ready: a test must not wait for it."""

import statistics

import pytest
from harness import MODULES

from exesys.testing import PrivateSystem

pytestmark = pytest.mark.alone

TRIES = 3
READY_S = 2.0


def test_a_private_system_is_ready_in_less_than_two_seconds(services, tell):
    took = []
    for _ in range(TRIES):
        with PrivateSystem(MODULES) as system, system.client() as client:
            took.append(system.took_s)
            assert client.run("add", [1, 2], timeout=20) == 3
    each = ", ".join(f"{one:.2f}" for one in took)
    tell(f"A private system is ready in {statistics.median(took):.2f} s (median of {each}).")
    assert statistics.median(took) < READY_S, each
