"""Dramatiq: two processes of one thread, only the middleware that results need."""

import os
import time

import dramatiq
import load
from dramatiq.brokers.redis import RedisBroker
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend
from dramatiq.results.errors import ResultMissing

results = RedisBackend(url=os.environ["BENCH_REDIS"])
broker = RedisBroker(url=os.environ["BENCH_REDIS"], middleware=[Results(backend=results)])
dramatiq.set_broker(broker)


@dramatiq.actor(store_results=True)
def noop(data):
    return data


def wait(message):
    return message.get_result(block=True, timeout=1000 * load.LOST_S)


def run(data):
    return wait(noop.send(data))

MODE=os.environ.get("MODE","slide")
def throughput(data, in_flight):
    if MODE=="slide":
        return load.sliding(noop.send, wait, data, in_flight)
    ms={}
    def submit(t):
        m=noop.send(t); ms[m.message_id]=m; return m.message_id
    def ended(ids):
        ids=list(ids)
        p=results.client.pipeline(transaction=False)
        for i in ids: p.lindex(results.build_message_key(ms[i]),0)
        got={i:results.unwrap_result(results.encoder.decode(v)) for i,v in zip(ids,p.execute()) if v is not None}
        if not got: time.sleep(0.002)
        return got
    return load.gathering(submit, ended, data, in_flight)
