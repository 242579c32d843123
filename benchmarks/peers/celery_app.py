"""Celery: prefork, messages acknowledged early and fetched in advance, no events, no rate limits.

For throughput the results of all jobs under way are fetched together, and the
producer does not subscribe to each: 10 to 50 % faster than `get` one after the
other. For latency it is `get`, which is told by Redis.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Sequence

from celery import Celery

from benchmarks import load

POLL_S = 0.002

app = Celery("bench", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
app.conf.update(
    worker_prefetch_multiplier=64,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    task_send_sent_event=False,
    broker_connection_retry_on_startup=True,
)


def noop(data: str) -> str:
    return data


task = app.task(noop)


def run(text: str) -> object:
    return task.delay(text).get(timeout=load.LOST_S)


def throughput(data: Sequence[str], in_flight: int) -> float:
    app.backend.on_task_call = lambda *_: None  # it would subscribe to the result
    return load.gathering(lambda text: str(task.delay(text).id), ended, data, in_flight)


def ended(ids: Iterable[str]) -> dict[str, object]:
    backend = app.backend
    keys = {ticket: backend.get_key_for_task(ticket) for ticket in ids}
    found = {ticket: value for ticket, value in zip(keys, backend.mget(keys.values()), strict=True) if value}
    if found:
        backend.client.delete(*(keys[ticket] for ticket in found))
    else:
        time.sleep(POLL_S)  # it has no way to wait for several results; the loop around it is bounded by LOST_S
    return {ticket: backend.decode_result(value)["result"] for ticket, value in found.items()}
