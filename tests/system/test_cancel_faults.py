"""A cancel that was answered holds, whatever is killed right behind it: nothing of it runs, or ends well."""

import os
import signal

import pytest
from harness import until

WAITING = 40
ROUNDS = int(os.environ.get("EXESYS_ROUNDS", "2"))


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(bus_heartbeat_s=0.5)


def written(system, run):
    with system.redis(1) as redis:
        return [entry.decode() for entry in redis.lrange(f"exesys_test:tidy:{run}", 0, -1)]


@pytest.mark.parametrize("number", range(ROUNDS))
@pytest.mark.parametrize("victim", ["router", "worker", "redis"])
def test_a_cancel_survives(system, tell, victim, number):
    until(system.ready, "all is there")
    name = f"{victim}-{number}"
    with system.client() as client:
        running = [
            client.submit("tidy", {"run": f"{name}-{slot}", "seconds": 600}, job_id=f"{name}-run-{slot}")
            for slot in range(system.config.worker.slots)
        ]
        for slot in range(system.config.worker.slots):
            until(lambda slot=slot: written(system, f"{name}-{slot}") == ["began"], "it runs")
        waiting = [client.submit("append", [f"ran:{name}", n], job_id=f"{name}-wait-{n}") for n in range(WAITING)]
        delayed = [
            client.submit("append", [f"ran:{name}", n], job_id=f"{name}-late-{n}", delay_s=3) for n in range(WAITING)
        ]
        for handle in (*waiting, *delayed):
            handle.accepted(20)
        pid = system.pids()[victim]
        cancelled = [client.cancel(handle.job_id) for handle in (*waiting, *delayed, *running)]
        os.kill(pid, signal.SIGKILL)
        assert cancelled == [1] * (2 * WAITING + len(running))
        until(system.ready, "all is there again")
        # One that came later runs, when its turn comes: so those before it had theirs.
        last = client.submit("append", [f"ran:{name}", "last"], job_id=f"{name}-last", delay_s=3.5, priority=0)
        last.result(60)
    refs = [f"client:{handle.job_id}" for handle in (*running, *waiting, *delayed)]
    for ref, (state, fields) in zip(refs, system.records(refs), strict=True):
        assert state == "error", ref
        assert b"Cancelled" in fields[b"error"], ref
    with system.redis(1) as redis:
        assert redis.lrange(f"ran:{name}", 0, -1) == [b"last"], "nothing that was cancelled has run"
    with system.redis() as redis:
        until(lambda: not redis.keys("exesys:held:*"), "nothing is held")
        assert not redis.exists("exesys:ready:default", "exesys:delayed")
    until(lambda: all(each["held"] == 0 for each in system.get("/workers").body["workers"]), "what ran has ended")
    if victim == "router":  # with the worker its slots die, and with Redis what they write there
        for slot in range(system.config.worker.slots):
            until(lambda slot=slot: written(system, f"{name}-{slot}")[1:] == ["cancelled"], "`ctx.cancelled` said so")
    tell(f"cancel: kill -9 of {victim} right behind it: all {len(refs)} stay cancelled, none ran")
