"""Upkeep on a real system: what a hand in Redis breaks is found, mended, counted and told; the rest is left alone."""

import contextlib
import os
import signal
import time
from pathlib import Path

import pytest
from harness import until

WALK_S = 0.3
MENDED_S = 20.0
HEARTBEAT_S = 0.3
JOBS = 200


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(controller_walk_s=WALK_S, controller_walk_rate=20_000, bus_heartbeat_s=HEARTBEAT_S)


@pytest.fixture(scope="module")
def client(system):
    with system.client() as client:
        yield client


@pytest.fixture
def redis(system):
    with system.redis() as redis:
        yield redis


def figure(client, name):
    return client.snapshot("figures")["figures"][name]


def walked(client, redis, times=3):
    """Wait until all there is was looked at so many times."""
    enough = figure(client, "looked") + times * (redis.dbsize() + 20)
    until(lambda: figure(client, "looked") >= enough, "it walked", MENDED_S)


def told(system, what, name):
    """Wait until the controller's log tells that `name` was mended in this way."""
    return until(lambda: f"mended {name}: {what}" in system.log_of("controller"), f"{name} is told", MENDED_S)


def totals(redis):
    return {kind.decode(): int(count) for kind, count in redis.hgetall("exesys:mended").items()}


@contextlib.contextmanager
def holding(client, tmp_path, name, **options):
    """Keep a job running until the block is left; gives its handle."""
    gate = tmp_path / name
    handle = client.submit("wait_for_file", str(gate), job_id=name, **options)
    until(lambda: client.status(name)["state"] == "processing", "it runs")
    try:
        yield handle
    finally:
        gate.touch()


def test_a_healthy_system_is_left_alone(system, client, redis, tmp_path):
    """Jobs of every kind end while it walks, and what they leave does not change."""
    handles = client.submit_many("echo", range(JOBS))
    handles.append(client.submit("echo", 1, delay_s=1.5))
    client.submit("echo", 1, job_id="never-served", queue="nobody-serves-this")
    client.submit("echo", 1, from_="lonely", job_id="lonely", standby=True)
    fan = [{"from": f"n{number}", "to": "end", "cmd": "echo", "data": number} for number in range(20)]
    flow = client.workflow([*fan, {"from": "end", "cmd": "echo"}])
    assert len(flow.result(30)) == 20
    for handle in handles:
        handle.result(30)
    running = client.start_runner("idle", type="up", uuid="1")
    until(lambda: redis.hget(f"exesys:runner:{running}", "state") == b"running", "it runs")
    walked(client, redis)
    client.stop_runner(running)
    until(lambda: redis.ttl(f"exesys:runner:{running}") > 0, "it has stopped")
    with holding(client, tmp_path, "healthy"):
        walked(client, redis)
        before = system.everything()
        walked(client, redis)
        assert system.everything() == before
    assert totals(redis) == {}
    assert figure(client, "mended") == 0
    assert "mended" not in system.log_of("controller")
    [check] = [each for each in system.exesys("doctor", "--json").json if each["name"] == "upkeep"]
    assert (check["state"], check["message"]) == ("ok", "Nothing had to be mended in Redis lately.")


def test_a_job_in_no_queue_runs(system, client, redis):
    """It is taken out while nobody serves its queue; then a worker comes that does."""
    client.submit("echo", 5, job_id="unqueued", queue="later")
    client.submit("echo", 6, job_id="delayed", delay_s=3600)
    until(lambda: redis.zcard("exesys:ready:later") == 1, "it waits")
    redis.delete("exesys:ready:later")
    redis.zrem("exesys:delayed", "client:delayed")
    until(lambda: redis.zscore("exesys:ready:later", "client:unqueued"), "it is back", MENDED_S)
    told(system, "it waited in no queue", "client:unqueued")
    assert client.result("delayed", 20) == 6
    with system.another_worker(worker_queues="later"):
        assert client.result("unqueued", 20) == 5


def test_a_running_job_stays_with_its_worker_whatever_is_deleted(system, client, redis, tmp_path):
    with holding(client, tmp_path, "held") as handle:
        [session] = until(lambda: len(found := redis.smembers("exesys:sessions")) == 1 and found, "the other is gone")
        redis.delete("exesys:sessions", f"exesys:held:{session.decode()}")
        until(lambda: redis.zscore(f"exesys:held:{session.decode()}", "client:held"), "it is held again", MENDED_S)
        walked(client, redis, 5)
        assert redis.smembers("exesys:sessions") == {session}
        assert redis.hget("client:held:processing", "attempt") == b"1"
        assert client.run("echo", 7, timeout=20) == 7, "the worker is given jobs as before"
    handle.result(20)
    [(state, fields)] = system.records(["client:held"])
    assert (state, fields[b"attempt"]) == ("data_available", b"1")


def test_a_job_of_a_worker_that_never_comes_back_runs_again_after_a_lease(system, client, redis):
    """Its session was left there while the router runs: in one list, in the other, or in none."""
    stranger, other, nobody = "e" * 16, "d" * 16, "c" * 16
    for name, session in (("stray-1", stranger), ("stray-2", other), ("stray-3", nobody)):
        client.submit("echo", 8, job_id=name, queue="strays")
        until(lambda name=name: redis.zscore("exesys:ready:strays", f"client:{name}"), "it waits")
        with redis.pipeline() as moved:  # as a claim does
            moved.zrem("exesys:ready:strays", f"client:{name}")
            moved.rename(f"client:{name}:start", f"client:{name}:processing")
            moved.hset(f"client:{name}:processing", mapping={"attempt": 1, "worker": session, "sent": 1})
            if session != nobody:
                moved.zadd(f"exesys:held:{session}", {f"client:{name}": 5})
            if session == stranger:
                moved.sadd("exesys:sessions", session)
            moved.execute()
    redis.sadd("exesys:sessions", "by-hand")
    since = time.monotonic()
    until(lambda: redis.zcard("exesys:ready:strays") == 3, "they wait again", MENDED_S)
    assert time.monotonic() - since > HEARTBEAT_S * 4, "they had a lease to come back"
    until(lambda: len(redis.smembers("exesys:sessions")) == 1, "only the worker's session is left", MENDED_S)
    with system.another_worker(worker_queues="strays"):
        for number in (1, 2, 3):
            assert client.result(f"stray-{number}", 20) == 8
    for _, fields in system.records([f"client:stray-{number}" for number in (1, 2, 3)]):
        assert fields[b"attempt"] == b"2"
    for session in (stranger, other, "by-hand"):
        assert f"worker session {session} is gone" in system.log_of("router")
    told(system, "it is the session of a worker that nobody knows", "by-hand")


def test_a_workflow_whose_index_flow_and_counts_are_lost_ends_well(system, client, redis, tmp_path):
    gates = [str(tmp_path / f"gate-{name}") for name in "ijk"]
    flows = []
    for job_id, gate in zip(("lost-index", "lost-flow", "lost-count"), gates, strict=True):
        steps = [
            {"from": "wait", "to": "end", "cmd": "wait_for_file", "data": gate},
            {"from": "a", "to": "end", "cmd": "echo", "data": 1},
            {"from": "end", "cmd": "echo"},
        ]
        flows.append(client.workflow(steps, job_id))
        until(lambda job_id=job_id: redis.exists(f"wait:{job_id}:processing"), "it runs")
        Path(gate).touch()
        if job_id == "lost-index":
            redis.delete("exesys:job:lost-index")
        elif job_id == "lost-flow":
            redis.delete("exesys:flow:lost-flow")
        else:
            redis.hset("exesys:flow:lost-count", "#end", 7)
            redis.hset("exesys:job:lost-count", ":open", 9)
        assert flows[-1].result(MENDED_S) == {"wait": None, "a": 1}
        until(lambda job_id=job_id: redis.ttl(f"exesys:job:{job_id}") > 0, "it has ended as a whole", MENDED_S)


def test_a_workflow_whose_step_is_gone_fails_and_who_waits_is_told(system, client, redis):
    steps = [
        {"from": "a", "to": "end", "cmd": "echo", "queue": "nobody-serves-this"},
        {"from": "b", "to": "end", "cmd": "echo"},
        {"from": "end", "cmd": "echo"},
    ]
    flow = client.workflow(steps, "gone-step")
    until(lambda: redis.exists("b:gone-step:data_available"), "the other ended")
    redis.delete("a:gone-step:start")
    with pytest.raises(Exception, match="ResultGone: the result of a is gone"):
        flow.result(MENDED_S)
    shown = until(
        lambda: (body := system.get("/jobs/gone-step").body)["state"] == "error" and body, "it has ended", MENDED_S
    )
    assert sorted(step["from"] for step in shown["steps"]) == ["b", "end"]


LARGE = 3000


def test_a_large_job_is_counted_anew_while_it_runs_and_whoever_is_killed(system, client, redis):
    """It takes many looks; nothing is lost, and nothing runs twice, when the controller or the router is killed."""
    steps = [{"from": f"n{number}", "to": "end", "cmd": "echo", "data": number} for number in range(LARGE)]
    flow = client.workflow([*steps, {"from": "end", "cmd": "echo"}], "large")
    until(lambda: redis.exists("n5:large:data_available"), "it runs")
    for program in ("controller", "router"):
        pid = system.pids()[program]
        redis.delete("exesys:flow:large")
        until(lambda: redis.hexists("exesys:job:large", ":anew"), "it is counted anew", MENDED_S)
        until(lambda pid=pid: _kill(pid), f"{program} is killed")
        until(lambda program=program, pid=pid: system.pids().get(program, pid) != pid, f"{program} is back")
    assert flow.result(120) == {f"n{number}": number for number in range(LARGE)}
    until(lambda: redis.ttl("exesys:job:large") > 0, "it has ended as a whole", MENDED_S)
    attempts = [
        fields[b"attempt"] for _, fields in system.records([f"n{number}:large" for number in range(0, LARGE, 50)])
    ]
    assert set(attempts) == {b"1"}
    assert not redis.exists("exesys:recount:large", "exesys:tallied:large", "exesys:recount-left:large")


def test_what_is_left_over_goes_and_other_keys_stay(system, client, redis):
    redis.set("mine:x:y", "stays")
    redis.set("run:mine", "stays")
    redis.set("run:mine:x", "stays")
    redis.zadd("exesys:ready:default", {"no:where": 1})
    redis.zadd("exesys:dead", {"no:where": 1})
    redis.hset("exesys:log:a:gone", "1", "printed")
    redis.set("run:cam:never-started", "1")
    redis.sadd("exesys:runners", "cam:deleted")
    redis.hset("exesys:job:nothing", "a", "end_job")
    until(lambda: redis.ttl("exesys:log:a:gone") > 0, "the log expires", MENDED_S)
    until(lambda: redis.ttl("run:cam:never-started") > 0, "the stop key expires", MENDED_S)
    gone = ("exesys:job:nothing", "exesys:runners")
    until(lambda: not redis.exists(*gone) and not redis.zscore("exesys:dead", "no:where"), "the rest is gone", MENDED_S)
    assert redis.zscore("exesys:ready:default", "no:where") is None
    assert [redis.ttl(key) for key in ("mine:x:y", "run:mine", "run:mine:x")] == [-1] * 3
    assert client.run("echo", 9, timeout=20) == 9


def test_a_key_of_another_kind_keeps_the_system_from_nothing(system, client, redis):
    redis.set("exesys:job:foreign", "somebody was here")
    redis.set("exesys:held:" + "b" * 16, "and here")
    redis.set("a:foreign:start", "and here")
    walked(client, redis)
    assert totals(redis)["refused"] >= 2
    redis.delete("exesys:job:foreign", "exesys:held:" + "b" * 16, "a:foreign:start")
    assert client.run("echo", 9, timeout=20) == 9


def test_what_was_mended_is_shown_by_the_doctor(system, redis):
    redis.zadd("exesys:delayed", {"no:where": 1})
    until(lambda: redis.zscore("exesys:delayed", "no:where") is None, "it is gone", MENDED_S)
    counted = totals(redis)
    assert counted["orphan"] >= 1
    said = system.exesys("doctor", "--json")
    assert said.code == 0, "a warning is no failure"
    checks = [each for each in said.json if each["name"] == "upkeep"]
    assert {each["state"] for each in checks} == {"warn"}
    text = " ".join(each["message"] for each in checks)
    assert f"Mended in Redis, {counted['orphan']} in all, the last " in text
    assert "orphan (it was listed, and there was no record; it was taken out)" in text


def test_it_goes_on_after_router_controller_and_redis_were_killed(system, client, redis):
    for program in ("controller", "router", "redis"):
        pid = system.pids()[program]
        until(lambda pid=pid: _kill(pid), f"{program} is killed")
        until(lambda program=program, pid=pid: system.pids().get(program, pid) != pid, f"{program} is back")
        until(system.ready, "all is well")
        with system.redis() as fresh:
            fresh.zadd("exesys:delayed", {f"no:{program}": 10**15})
            until(
                lambda program=program, fresh=fresh: fresh.zscore("exesys:delayed", f"no:{program}") is None,
                f"it mends after {program}",
                30,
            )


def _kill(pid):
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return True
