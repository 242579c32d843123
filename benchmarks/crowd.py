"""Many slots, and jobs that do not look alike: is a slot idle while a job waits?"""

from __future__ import annotations

import random
import time

from benchmarks import load
from exesys import Client
from exesys.bus.handle import Handle
from exesys.config import Config

SLOTS = 64
NAP_S = 0.010
NAPS_UNDER_WAY = 10 * SLOTS
MIXED_SLOTS = 8
LONG_S, SHORT_S, LONG_SHARE = 2.0, 0.001, 0.01
BURST = 10  # jobs that come together
BURST_EVERY_S = 0.1
MIXED_JOBS = 2_500


def sleeps(config: Config, jobs: int) -> dict[str, float]:
    """Run jobs that sleep for 10 ms in 64 slots. Returns their rate, and its share of what 64 slots can do."""
    with Client(config) as client:
        _nap_all(client, NAPS_UNDER_WAY)
        rate = jobs / _nap_all(client, jobs)
    return {"naps_per_s": rate, "naps_share": rate / (SLOTS / NAP_S)}


def _nap_all(client: Client, jobs: int) -> float:
    return load.sliding(
        lambda number: client.submit("nap", [NAP_S, number]),
        lambda handle: handle.result(load.LOST_S)[1],
        range(jobs),
        NAPS_UNDER_WAY,
    )


def mixed(config: Config, seed: int) -> dict[str, float]:
    """Send 2,500 jobs to 8 slots, ten every 0.1 s: of 100 one takes 2 s, the rest 1 ms.

    Returns how long the short ones waited: from the call of `submit` to the first line of the function. All
    slots are busy with long ones for less than a thousandth of the time.
    """
    chance = random.Random(seed)
    lengths = [LONG_S if chance.random() < LONG_SHARE else SHORT_S for _ in range(MIXED_JOBS)]
    sent: list[tuple[float, float, Handle]] = []
    with Client(config) as client:
        for _ in range(200):
            client.run("nap", [SHORT_S, 0], load.LOST_S)
        began = time.perf_counter()
        for number, length_s in enumerate(lengths):
            if number % BURST == 0:
                time.sleep(max(0.0, began + number // BURST * BURST_EVERY_S - time.perf_counter()))  # as they come
            sent.append((length_s, time.time(), client.submit("nap", [length_s, number])))
        waits_ms = []
        for number, (length_s, sent_at, handle) in enumerate(sent):
            begun_at, came = handle.result(load.LOST_S)
            load.check(number, came)
            if length_s == SHORT_S:
                waits_ms.append((begun_at - sent_at) * 1000)
    return {f"mixed_p{percent}_ms": load.quantile(waits_ms, percent / 100) for percent in (50, 99)} | {
        "mixed_most_ms": max(waits_ms)
    }
