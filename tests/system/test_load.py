"""100,000 jobs through one start: none lost, none run twice, and what they cost to keep."""

from array import array

import pytest
from harness import rss_bytes, until

pytestmark = pytest.mark.alone

JOBS = 100_000
CHUNK = 5000
MOST_BYTES_PER_JOB = 700
MOST_GROWTH_BYTES = 20 << 20
WARM_UP = 2000
DONE_S = 120


@pytest.fixture(scope="module")
def system(make_module):
    return make_module()


def test_a_hundred_thousand_jobs(system, tell):
    with system.client() as client, system.redis() as store:
        run_all(client, -WARM_UP, 0)
        router = system.pids()["router"]
        router_before, memory_before = rss_bytes(router), used_bytes(store)
        for start in range(0, JOBS, CHUNK):
            run_all(client, start, start + CHUNK)
        grown = rss_bytes(router) - router_before
        kept = (used_bytes(store) - memory_before) / JOBS
        assert store.exists("exesys:ready:default", "exesys:delayed", "exesys:dead") == 0
        assert store.xlen("exesys:jobs") >= JOBS
    ran = array("I", (system.home / "tally").read_bytes())
    ran.byteswap()
    counted = sorted(ran)
    tell(f"{JOBS:,} jobs: {kept:.0f} bytes of Redis for each, router grown by {grown / (1 << 20):.1f} MB")
    # The warm-up counts downwards from the top.
    assert counted == sorted([*range(JOBS), *range((1 << 32) - WARM_UP, 1 << 32)]), "one was lost, or ran twice"
    assert system.pids()["router"] == router
    assert kept <= MOST_BYTES_PER_JOB
    assert grown < MOST_GROWTH_BYTES


def run_all(client, start, end):
    """Send one command for each number and check every result."""
    numbers = [number % (1 << 32) for number in range(start, end)]
    handles = client.submit_many("tally", numbers)
    assert [handle.result(DONE_S) for handle in handles] == numbers


def used_bytes(store):
    """Return what Redis uses when it does nothing else."""

    def quiet():
        told = store.info("persistence")
        return not (told["aof_rewrite_in_progress"] or told.get("aof_rewrite_scheduled"))

    until(quiet, "Redis has rewritten its file")
    return store.info("memory")["used_memory"]
