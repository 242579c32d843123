"""ExeSys's side: what the peers' producers do, and what only ExeSys has."""

from __future__ import annotations

import json
import os
from collections import deque
from functools import partial
from typing import Any, Unpack

from benchmarks import http_load, load
from benchmarks.costs import Meter, of_system
from benchmarks.system import Store, router_rss_bytes
from exesys import Client, codec
from exesys.bus.handle import Handle
from exesys.bus.jobhandle import JobHandle
from exesys.command import Options, build
from exesys.config import Config

WARM_UP = 200
HUNDRED = 100
HUNDREDS_UNDER_WAY = 20  # of those that are only put
TAKEN_S = 60.0
CONNECTIONS = 32
ARRAY_CONNECTIONS = 4
MEMORY_IN_FLIGHT = 10
DIAMOND_STEPS = 5


def throughput(config: Config, jobs: int, in_flight: int, seed: int) -> dict[str, float]:
    """One call of `submit` for each job, `in_flight` under way. Returns jobs per second, and what they cost whom."""
    with Client(config) as client:
        _warm_up(client, seed)
        submit, data, meter = partial(client.submit, "noop"), load.payloads(jobs, seed), Meter(of_system(config))
        took_s = load.sliding(submit, _wait, data, in_flight)
        return {"jobs_per_s": jobs / took_s, **meter.us_per_job(jobs)}


def many(config: Config, jobs: int, in_flight: int, seed: int) -> dict[str, float]:
    """`submit_many` in hundreds, `in_flight` hundreds under way. Returns jobs per second, and what they cost whom."""
    with Client(config) as client:
        _warm_up(client, seed)
        hundreds = list(load.hundreds(load.payloads(jobs, seed)))
        submit, meter = partial(client.submit_many, "noop"), Meter(of_system(config))
        took_s = load.sliding(submit, _wait_all, hundreds, in_flight)
        return {"jobs_per_s": jobs / took_s, **meter.us_per_job(jobs)}


def put(client: Client, jobs: int, **options: Unpack[Options]) -> None:
    """Send jobs in hundreds, and wait until each is taken; of their ends nobody is told.

    As REST sends them: who waits for results asks for each again now and then, and that would be measured too.
    """
    under_way: deque[list[Handle]] = deque()
    for start in range(0, jobs, HUNDRED):
        if len(under_way) == HUNDREDS_UNDER_WAY:
            taken(under_way.popleft())
        commands = [
            build("client", "end_job", "noop", codec.pack(number), os.urandom(16).hex(), dict(options))
            for number in range(start, min(start + HUNDRED, jobs))
        ]
        under_way.append(client.send(*commands, notify=False))
    for handles in under_way:
        taken(handles)


def taken(handles: list[Handle]) -> None:
    """Wait until each of these is acknowledged."""
    for handle in handles:
        handle.accepted(TAKEN_S)


def latency(config: Config, jobs: int, seed: int) -> dict[str, float]:
    """One job after the other."""
    with Client(config) as client:
        _warm_up(client, seed)
        return load.one_by_one(lambda text: client.run("noop", text, load.LOST_S), load.payloads(jobs, seed))


def workflows(config: Config, steps: int, in_flight: int, seed: int) -> float:
    """Diamonds of five steps, one call each, `in_flight` under way. Returns steps per second; every end is checked."""
    with Client(config) as client:
        _warm_up(client, seed)
        data = load.payloads(steps // DIAMOND_STEPS, seed)
        took_s = load.sliding(lambda text: client.workflow(_diamond(text)), _middle, data, in_flight)
        return len(data) * DIAMOND_STEPS / took_s


def _diamond(text: str) -> list[dict[str, Any]]:
    middle = [{"from": name, "to": "last", "cmd": "noop"} for name in "abc"]
    first = {"from": "first", "to": list("abc"), "cmd": "noop", "data": text}
    return [first, *middle, {"from": "last", "to": "end_job", "cmd": "noop"}]


def _middle(handle: JobHandle) -> object:
    """Return what the first step was sent, if all three of the middle have passed it on."""
    ended = handle.result(load.LOST_S)
    texts = {ended[name] for name in "abc"}
    return texts.pop() if len(ended) == 3 and len(texts) == 1 else ended


def rest(config: Config, jobs: int, seed: int, array: int) -> float:
    """POST jobs alone (`array` 1) or in arrays. Returns accepted jobs per second; all are run and checked."""
    data = load.payloads(jobs, seed)
    commands = {f"rest-{array}-{text}": {"cmd": "noop", "data": text} for text in data}
    items = [{"job_id": job_id, **command} for job_id, command in commands.items()]
    bodies = [items[start : start + array] for start in range(0, jobs, array)]
    packed = [json.dumps(body if array > 1 else body[0]).encode() for body in bodies]
    connections = CONNECTIONS if array == 1 else ARRAY_CONNECTIONS
    took_s = http_load.post_all(config.rest.host, config.rest.port, "/sys_cmd", packed, connections)
    with Client(config) as client:
        handles = [client.follow(job_id, "client", "end_job") for job_id in commands]
        for text, handle in zip(data, handles, strict=True):
            load.check(text, _wait(handle))
    return jobs / took_s


def memory(config: Config, jobs: int, seed: int) -> dict[str, float]:
    """Run many jobs. Returns what each leaves in Redis, and by how much the router has grown."""
    with Store(config) as store:
        redis_before, router_before = store.used_bytes(), router_rss_bytes(config)
        many(config, jobs, MEMORY_IN_FLIGHT, seed)
        store.wait_quiet()
        grown = store.used_bytes() - redis_before
        return {
            "redis_bytes_per_job": grown / (jobs + WARM_UP),
            "router_growth_bytes": router_rss_bytes(config) - router_before,
        }


def _warm_up(client: Client, seed: int) -> None:
    for text in load.payloads(WARM_UP, seed + 1):
        load.check(text, client.run("noop", text, load.LOST_S))


def _wait(handle: Handle) -> object:
    return handle.result(load.LOST_S)


def _wait_all(handles: list[Handle]) -> object:
    return [_wait(handle) for handle in handles]
