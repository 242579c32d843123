"""Huey: a list with blocking pop, results in a hash, no scheduler and no health check.

For throughput the results of all jobs under way are fetched together, every
millisecond: the fastest way found (to wait for one after the other, blocking
or polling, gives half). For latency a result is announced (`notify_result`),
so that the producer blocks instead of polling.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

from huey import RedisHuey

from benchmarks import load

POLL_S = 0.001

huey = RedisHuey("bench", url=os.environ["BENCH_REDIS"], notify_result=os.environ["BENCH_GOAL"] == "latency")


def noop(data: str) -> str:
    return data


task = huey.task()(noop)


def run(text: str) -> object:
    return task(text).get(blocking=True, timeout=load.LOST_S)


def throughput(data: Sequence[str], in_flight: int) -> float:
    return load.gathering(lambda text: str(task(text).id), ended, data, in_flight)


def ended(ids: Iterable[str]) -> dict[str, object]:
    storage = huey.storage
    found = storage.peek_many(list(ids))
    if found:
        storage.conn.hdel(storage.result_key, *found)
    else:
        time.sleep(POLL_S)  # it has no way to wait for several results; the loop around it is bounded by LOST_S
    return {ticket: huey.serializer.deserialize(value) for ticket, value in found.items()}
