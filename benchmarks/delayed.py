"""Jobs that wait for their time: what they cost who sends more of them, and the router."""

from __future__ import annotations

import os
import time
from collections import deque

from benchmarks.system import Store, program_s, router_rss_bytes
from exesys import Client, codec
from exesys.bus.handle import Handle
from exesys.command import Command, build
from exesys.config import Config

MORE = 50_000
HUNDRED = 100
IN_FLIGHT = 20  # hundreds
FAR_S = 30 * 86_400
TAKEN_S = 60.0


def backlog(config: Config, jobs: int) -> dict[str, float]:
    """Send 50,000 delayed jobs to an empty store, then fill it up to `jobs`, and send 50,000 more.

    Besides the rates, the processor time that router and Redis take for a job:
    other programs on the machine do not change it.
    """
    with Client(config) as client, Store(config) as store:
        _send(client, 2_000)
        store.wait_quiet()
        router_before = router_rss_bytes(config)
        empty_rate, empty_us = _measured(config, client)
        _send(client, max(0, jobs - MORE))
        store.wait_quiet()
        full_rate, full_us = _measured(config, client)
        return {
            "empty_jobs_per_s": empty_rate,
            "full_jobs_per_s": full_rate,
            "empty_us_per_job": empty_us,
            "full_us_per_job": full_us,
            "router_growth_bytes": router_rss_bytes(config) - router_before,
            "redis_bytes_per_delayed_job": store.used_bytes() / (jobs + MORE),
        }


def _measured(config: Config, client: Client) -> tuple[float, float]:
    used_s = program_s(config, "router", "redis")
    took_s = _send(client, MORE)
    return MORE / took_s, (program_s(config, "router", "redis") - used_s) / MORE * 1e6


def _send(client: Client, jobs: int) -> float:
    """Send delayed jobs in hundreds, and wait until each is taken. Returns the seconds it took."""
    since = time.perf_counter()
    under_way: deque[list[Handle]] = deque()
    for start in range(0, jobs, HUNDRED):
        if len(under_way) == IN_FLIGHT:
            _taken(under_way.popleft())
        # As REST sends them: who waits for results asks for each again now and then, and that would be measured too.
        numbers = range(start, min(start + HUNDRED, jobs))
        commands = [_command(number) for number in numbers]
        under_way.append(client.send(*commands, notify=False))
    while under_way:
        _taken(under_way.popleft())
    return time.perf_counter() - since


def _command(number: int) -> Command:
    return build("client", "end_job", "noop", codec.pack(number), os.urandom(16).hex(), {"delay_s": FAR_S})


def _taken(handles: list[Handle]) -> None:
    for handle in handles:
        handle.accepted(TAKEN_S)
