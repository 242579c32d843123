"""Celery: prefork, messages acknowledged early, nothing logged or sent as events."""

import os
import time

import load
from celery import Celery

app = Celery("bench", broker=os.environ["BENCH_REDIS"], backend=os.environ["BENCH_REDIS"])
app.conf.update(
    worker_prefetch_multiplier=64,
    worker_disable_rate_limits=True,
    worker_send_task_events=False,
    task_send_sent_event=False,
    broker_connection_retry_on_startup=True,
)


@app.task
def noop(data):
    return data


def run(data):
    return noop.delay(data).get(timeout=load.LOST_S)


MODE=os.environ.get("MODE","slide")
def throughput(data, in_flight):
    if MODE=="slide":
        return load.sliding(noop.delay, lambda result: result.get(timeout=load.LOST_S), data, in_flight)
    b=app.backend
    kf={}
    def submit(t):
        r=noop.apply_async((t,), ignore_result=False)
        return r.id
    def ended(ids):
        ids=list(ids)
        keys=[b.get_key_for_task(i) for i in ids]
        got={i:b.decode_result(v)["result"] for i,v in zip(ids,b.mget(keys)) if v}
        if not got: time.sleep(0.002)
        else: b.client.delete(*[b.get_key_for_task(i) for i in got])
        return got
    b.on_task_call=lambda *a, **k: None
    return load.gathering(submit, ended, data, in_flight)
