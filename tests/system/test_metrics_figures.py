"""How long a scrape takes with a thousand queues."""

import statistics
import time

import pytest

pytestmark = pytest.mark.alone

QUEUES = 1000
MOST_MS = 50.0


def test_a_scrape_of_a_thousand_queues_is_quick(make, tell):
    system = make()
    with system.client() as client:
        for handle in [client.submit("noop", queue=f"q{number}") for number in range(QUEUES)]:
            handle.accepted(20)
    took = []
    for _ in range(7):
        began = time.perf_counter()
        answer = system.get("/metrics")
        took.append((time.perf_counter() - began) * 1000)
    assert answer.body.count("exesys_queue_depth{") == QUEUES
    tell(f"a scrape of {QUEUES:,} queues, {len(answer.body):,} bytes: {statistics.median(took):.1f} ms")
    assert statistics.median(took) <= MOST_MS
