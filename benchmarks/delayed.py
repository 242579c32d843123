"""Jobs that wait for their time: what they cost who sends more of them, and the router."""

from __future__ import annotations

import time

from benchmarks import ours
from benchmarks.system import Store, program_s, router_rss_bytes
from exesys import Client
from exesys.config import Config

MORE = 50_000
PIECE = 5_000
FAR_S = 30 * 86_400


def fill(config: Config, jobs: int) -> dict[str, float]:
    """Send so many delayed jobs to a system. Returns what they cost its memory."""
    with Client(config) as client, Store(config) as store:
        _warm(client, store)
        router_before = router_rss_bytes(config)
        _send(client, jobs)
        store.wait_quiet()
        return {
            "router_growth_bytes": router_rss_bytes(config) - router_before,
            "redis_bytes_per_delayed_job": store.used_bytes() / jobs,
        }


def beside(full: Config, empty: Config) -> dict[str, float]:
    """Send 50,000 delayed jobs to a full system and 50,000 to an empty one, 5,000 to each in turn.

    So both have the same of what else the machine does meanwhile. Besides the
    rates, the processor time that router and Redis take for a job.
    """
    with Client(full) as to_full, Client(empty) as to_empty, Store(empty) as store:
        _warm(to_empty, store)
        clients, configs, took_s = (to_full, to_empty), (full, empty), [0.0, 0.0]
        used_s = [program_s(config, "router", "redis") for config in configs]
        for number in range(MORE // PIECE):
            for which in (0, 1) if number % 2 else (1, 0):
                took_s[which] += _send(clients[which], PIECE)
        used_s = [program_s(config, "router", "redis") - before for config, before in zip(configs, used_s, strict=True)]
    return {
        "full_jobs_per_s": MORE / took_s[0],
        "empty_jobs_per_s": MORE / took_s[1],
        "full_us_per_job": used_s[0] / MORE * 1e6,
        "empty_us_per_job": used_s[1] / MORE * 1e6,
    }


def _warm(client: Client, store: Store) -> None:
    """Let the first jobs through: what programs do once is no part of what is measured."""
    _send(client, 2_000)
    store.wait_quiet()


def _send(client: Client, jobs: int) -> float:
    """Send delayed jobs and wait until each is taken. Returns the seconds it took."""
    since = time.perf_counter()
    ours.put(client, jobs, delay_s=FAR_S)
    return time.perf_counter() - since
