"""Huey: tasks in a list, blocking pop, results in a hash.

For throughput the results of all jobs under way are fetched with one HMGET,
every millisecond: the fastest way found (waiting for one after the other,
blocking or polling, gives half). For latency a result is announced
(`notify_result`), so that the producer blocks instead of polling.
"""

import os
import time

import load
from huey import RedisHuey

POLL_S = 0.001

huey = RedisHuey("bench", url=os.environ["BENCH_REDIS"], notify_result=os.environ["BENCH_GOAL"] == "latency")


@huey.task()
def noop(data):
    return data


def run(data):
    return noop(data).get(blocking=True, timeout=load.LOST_S)


def throughput(data, in_flight):
    return load.gathering(lambda text: noop(text).id, ended, data, in_flight)


def ended(ids):
    storage = huey.storage
    found = storage.peek_many(list(ids))
    if found:
        storage.conn.hdel(storage.result_key, *found)
    else:
        time.sleep(POLL_S)
    return {key: huey.serializer.deserialize(value) for key, value in found.items()}
