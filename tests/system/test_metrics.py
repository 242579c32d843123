"""GET /metrics of a real system: what it counts, what it reads, and what it tells while parts are away."""

import os
import signal

import pytest
import zmq
from harness import until
from prometheus_client.parser import text_string_to_metric_families

from exesys.endpoints.metrics import METRICS


@pytest.fixture(scope="module")
def system(make_module):
    return make_module()


def scraped(system):
    answer = system.get("/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(answer.body)
        for sample in family.samples
    }


def of(told, name, **labels):
    return told[(name, *sorted(labels.items()))]


def test_jobs_are_counted_by_function_and_state(system):
    before = scraped(system)
    assert of(before, "exesys_up") == 1
    for number in range(3):
        assert system.post({"cmd": "echo", "data": number}, wait=10).status == 200
    assert system.post({"cmd": "fail", "retries": 1, "backoff_s": 0}, wait=10).body["state"] == "error"
    told = scraped(system)
    assert of(told, "exesys_steps_accepted_total", cmd="echo") == 3
    assert of(told, "exesys_steps_ended_total", cmd="echo", state="data_available") == 3
    assert of(told, "exesys_steps_ended_total", cmd="fail", state="error") == 1
    assert of(told, "exesys_attempts_retried_total", cmd="fail") == 1
    assert of(told, "exesys_step_wait_seconds_count", cmd="fail") == 2
    assert 0 < of(told, "exesys_step_wait_seconds_sum", cmd="echo") < 3
    assert of(told, "exesys_slots") == system.config.worker.slots
    assert of(told, "exesys_redis_round_trip_seconds_count") >= of(told, "exesys_turn_steps_count") - 1 > 0
    assert of(told, "exesys_steps_dead") == of(before, "exesys_steps_dead") + 1


def test_what_waits_is_read_at_the_moment(system):
    system.post({"cmd": "noop", "queue": "nobody"})
    system.post({"cmd": "noop", "queue": "nobody", "delay_s": 600})
    assert system.request("POST", "/queues/nobody/pause").status == 200
    told = scraped(system)
    assert of(told, "exesys_queue_depth", queue="nobody") == 1
    assert 0 <= of(told, "exesys_queue_oldest_seconds", queue="nobody") < 60
    assert of(told, "exesys_queue_paused", queue="nobody") == 1
    assert ("exesys_queue_paused", ("queue", "default")) not in told
    assert of(told, "exesys_queue_depth", queue="default") == 0
    assert of(told, "exesys_steps_delayed") == 1


def test_all_that_is_declared_is_told(system):
    system.post({"cmd": "noop", "queue": "held"})
    assert system.request("POST", "/queues/held/pause").status == 200
    names = {name for name, *_ in scraped(system)}
    for name in METRICS:
        assert names & {name, f"{name}_count"}, name


def test_garbage_is_counted(system):
    before = of(scraped(system), "exesys_bus_refused_total", reason="garbage")
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 1000
        peer.connect(system.config.bus_endpoint)
        peer.send(b"no message at all")
        until(lambda: of(scraped(system), "exesys_bus_refused_total", reason="garbage") == before + 1, "it is counted")


@pytest.mark.parametrize("part", ["router", "redis"])
def test_while_a_part_is_away_the_rest_is_told(system, part):
    pid = system.pids()[part]
    os.kill(pid, signal.SIGSTOP)
    try:
        # The router takes Redis for late when a turn has had no answer for a second.
        until(lambda: of(scraped(system), "exesys_part_up", part=part) == 0, "it is told")
        told = scraped(system)
        assert of(told, "exesys_up") == 0
        other = "redis" if part == "router" else "router"
        assert (of(told, "exesys_part_up", part=part), of(told, "exesys_part_up", part=other)) == (0, 1)
        assert (("exesys_router_epoch",) in told) == (part == "redis")
        assert (("exesys_steps_delayed",) in told) == (part == "router")
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: of(scraped(system), "exesys_up") == 1, "all is there again")
