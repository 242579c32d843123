"""How fast jobs are accepted, and whether many that wait slow anything down."""

from __future__ import annotations

import time
from collections import deque

from benchmarks import load, ours
from benchmarks.costs import Meter, of_system
from benchmarks.system import Store, router_rss_bytes
from exesys import Client, codec
from exesys.bus.handle import Handle
from exesys.config import Config
from exesys.process import wait_until

RUN_S = 300.0
QUEUE = "default"
FEW = 1_000
PIECE = 5_000
PIECES = 6
LOOK_S = 0.002
NAMED = ("router", "redis")  # whose processor time is told


def accepted(config: Config, jobs: int, seed: int) -> dict[str, float]:
    """Send jobs by `submit_many` in hundreds. Returns the jobs a second from the first call to the last SUBMIT_ACK.

    Twice: `accepted_per_s`, while the slots have nothing to do, as the queue is
    paused; `accepted_run_per_s`, while they run these jobs and no others. All
    are run, and each result is checked, after the clock has stopped.
    """
    with Client(config) as client:
        _drain(client, _sent(client, load.payloads(2_000, seed))[1])
        _pause(client, True)
        took_s, handles = _sent(client, load.payloads(jobs, seed + 1))
        _pause(client, False)
        _drain(client, handles)
        run_took_s, handles = _sent(client, load.payloads(jobs, seed + 2))
        _drain(client, handles)
    return {"accepted_per_s": jobs / took_s, "accepted_run_per_s": jobs / run_took_s}


def _sent(client: Client, data: list[str]) -> tuple[float, list[tuple[str, Handle]]]:
    """Send in hundreds until all are taken. Returns the seconds that took, and the data with its handles."""
    under_way: deque[list[Handle]] = deque()
    handles: list[Handle] = []
    since = time.perf_counter()
    for hundred in load.hundreds(data):
        if len(under_way) == ours.HUNDREDS_UNDER_WAY:
            ours.taken(under_way.popleft())
        under_way.append(client.submit_many("noop", hundred))
        handles += under_way[-1]
    for each in under_way:
        ours.taken(each)
    return time.perf_counter() - since, list(zip(data, handles, strict=True))


def _drain(client: Client, sent: list[tuple[str, Handle]]) -> None:
    for text, handle in sent:
        load.check(text, handle.result(RUN_S))


def _pause(client: Client, paused: bool) -> None:
    client.tune("queue", "merge", QUEUE, {"paused": paused})


# -- beside many that wait --------------------------------------------------------


def fill(config: Config, jobs: int) -> dict[str, float]:
    """Have so many jobs wait. Returns what they cost the memory of Redis, and how large the router is then."""
    with Client(config) as client, Store(config) as store:
        _pause(client, True)
        ours.put(client, 2_000)
        store.wait_quiet()
        before = store.used_bytes()
        since = time.perf_counter()
        ours.put(client, jobs - 2_000)
        took_s = time.perf_counter() - since
        store.wait_quiet()
        data_bytes = len(codec.pack(0))
        return {
            "filled_per_s": (jobs - 2_000) / took_s,
            "redis_bytes_per_queued_job": (store.used_bytes() - before) / (jobs - 2_000) - data_bytes,
            "router_rss_mb": router_rss_bytes(config) / 1e6,
        }


def beside(full: Config, few: Config) -> dict[str, float]:
    """Accept and run 30,000 jobs in a system where many wait, and in one with 1,000, 5,000 in each in turn.

    In a piece so many are sent, and so many of those that wait longest are
    run: as many wait afterwards as before. The other system is paused meanwhile.
    """
    took_s = [0.0, 0.0]
    with Client(full) as to_full, Client(few) as to_few, Store(full) as full_store, Store(few) as few_store:
        sides = ((to_full, full_store), (to_few, few_store))
        _pause(to_few, True)
        ours.put(to_few, FEW)
        for side in sides:
            _piece(*side)
        groups = [{name: pids for name, pids in of_system(each).items() if name in NAMED} for each in (full, few)]
        meters = [Meter(group) for group in groups]
        for number in range(PIECES):
            for which in (0, 1) if number % 2 else (1, 0):
                took_s[which] += _piece(*sides[which])
        waiting = full_store.waiting(QUEUE)
    costs = {
        f"queued_{side}_{name}_us": meter.us_per_job(PIECES * PIECE)[f"{name}_us"]
        for side, meter in zip(("full", "few"), meters, strict=True)
        for name in NAMED
    }
    return {
        "queued": waiting,
        "queued_full_per_s": PIECES * PIECE / took_s[0],
        "queued_few_per_s": PIECES * PIECE / took_s[1],
        "router_rss_mb": router_rss_bytes(full) / 1e6,
        **costs,
    }


def _piece(client: Client, store: Store) -> float:
    """Send 5,000 jobs and have 5,000 run. Returns the seconds that took."""
    store.wait_quiet()
    most = store.waiting(QUEUE)
    since = time.perf_counter()
    _pause(client, False)
    ours.put(client, PIECE)
    if not wait_until(lambda: store.waiting(QUEUE) <= most, RUN_S, LOOK_S):
        raise TimeoutError(f"{store.waiting(QUEUE) - most:,} jobs too many still wait after {RUN_S:g} s.")
    _pause(client, True)
    return time.perf_counter() - since
