"""Runners on a real system: started, seen, stopped in every way, ended by force, started again."""

import json
import os
import signal
import socket
import time

import pytest
import zmq
from harness import alive, children, until

STATE_S = 15.0


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(runner_grace_s=1, runner_kill_grace_s=0.5, runner_backoff_s=0.05, runner_max_failures=3)


@pytest.fixture(scope="module")
def client(system):
    with system.client() as client:
        yield client


def record(system, name):
    with system.redis() as redis:
        return {key.decode(): value for key, value in redis.hgetall(f"exesys:runner:{name}").items()}


def state(system, name):
    return record(system, name).get("state", b"").decode()


def lives(system, name):
    """Return what the runner noted: (what, epoch, pid, when)."""
    with system.redis(1) as redis:
        said = [line.decode().split() for line in redis.lrange(f"lives:{name}", 0, -1)]
    return [(what, int(epoch), int(pid), float(at)) for what, epoch, pid, at in said]


def in_state(system, name, *wanted, within_s=STATE_S):
    return until(lambda: (found := state(system, name)) in wanted and found, f"{name} is {wanted}", within_s, 0.005)


def began(system, name, count=1):
    until(lambda: sum(life[0] == "began" for life in lives(system, name)) >= count, f"{name} began", STATE_S, 0.005)
    return lives(system, name)[-1]


def job(system, cmd, data, **options):
    """Run a job and return its answer."""
    return system.post({"cmd": cmd, "data": data, **options}, wait=20).body


def started(system, target, data=None, **options):
    """Start a runner by a job, as the design has it; return its name when it runs."""
    answer = job(system, "lives.start", {"target": target, "data": data, "options": options})
    assert answer["state"] == "data_available", answer
    name = answer["result"]["EOJ"]
    began(system, name)
    return name


# --- starting ---------------------------------------------------------------


def test_a_function_starts_a_runner_and_returns(system):
    answer = job(system, "lives.start", {"target": "beat", "options": {"type": "first"}}, job_id="first-1")
    name = answer["result"]["EOJ"]
    type_, uuid = name.split(":")
    assert type_ == "first"
    _, epoch, pid, _ = began(system, name)
    assert epoch == 1
    assert alive(pid)
    with system.redis() as redis:
        assert redis.get(f"run:{type_}:{uuid}") == b"1"
        assert redis.sismember("exesys:runners", name)
    in_state(system, name, "running")
    shown = system.get(f"/runners/{type_}/{uuid}").body
    assert shown["name"] == name
    assert shown["target"] == "lives.beat"
    assert (shown["state"], shown["epoch"], shown["restarts"]) == ("running", 1, 0)
    assert shown["host"] == socket.gethostname()
    assert shown["pid"] == pid
    assert shown["started_by"] == "client:first-1"
    assert shown["uptime_s"] >= 0
    assert system.request("DELETE", f"/runners/{type_}/{uuid}?wait=10").status == 200


def test_a_runner_is_named_by_a_function_itself_and_takes_its_name_as_type(system, client):
    name = job(system, "lives.start_function", "x")["result"]["EOJ"]
    assert name.startswith("idle:")
    began(system, name)
    assert client.stop_runner(name) == 1


def test_a_job_that_runs_again_starts_no_second_runner(system, client):
    command = {"cmd": "lives.start_and_fail", "data": 1, "retries": 1, "backoff_s": 0.05}
    answer = system.post(command, wait=20).body
    name = answer["result"]["EOJ"]
    listed = system.get("/runners/twice").body["runners"]
    assert [each["name"] for each in listed] == [name]
    began(system, name)
    assert client.stop_runner("twice") == 1


def test_the_same_runner_started_twice_is_one_and_another_of_its_name_a_conflict(system, client):
    name = client.start_runner("lives.idle", [1], type="same", uuid="a")
    assert client.start_runner("idle", [1], type="same", uuid="a") == name
    answer = job(system, "lives.start", {"target": "idle", "data": [2], "options": {"type": "same", "uuid": "a"}})
    assert answer["error"]["type"] == "Conflict"
    assert len(system.get("/runners/same").body["runners"]) == 1
    client.stop_runner(name)


def test_rest_and_the_command_line_start_runners(system):
    body = json.dumps({"target": "lives.idle", "data": {"a": 1}, "type": "rest", "uuid": "r1", "grace_s": 3})
    answer = system.request("POST", "/runners", body, {"Content-Type": "application/json"})
    assert answer.status == 202
    assert answer.body["name"] == "rest:r1"
    said = system.exesys("runner", "start", "lives.idle", '{"a": 1}', "--type", "rest", "--uuid", "r2")
    assert said.code == 0, said.err
    assert said.out == "rest:r2\n"
    for name in ("rest:r1", "rest:r2"):
        began(system, name)
    assert system.request("DELETE", "/runners/rest?wait=10").body == {"type": "rest", "news": 2}


def test_a_runner_submits_commands_and_uses_redis(system, client):
    name = client.start_runner("sends", {"numbers": [1, 2, 3], "key": "sent"})
    with system.redis(1) as redis:
        until(lambda: redis.get("sent") == b"6", "the value is there")
    client.stop_runner(name)
    in_state(system, name, "stopped")


# --- stopping ---------------------------------------------------------------


def by_job(system, type_, uuid):
    assert job(system, "lives.stop", [type_, uuid])["result"]["EOJ"] is True


def by_redis(system, type_, uuid):
    with system.redis() as redis:
        redis.set(f"run:{type_}:{uuid}", 0)


def by_rest(system, type_, uuid):
    assert system.request("DELETE", f"/runners/{type_}/{uuid}").status in (200, 202)


def by_command_line(system, type_, uuid):
    said = system.exesys("runner", "stop", f"{type_}:{uuid}")
    assert said.code == 0, said.err
    assert "it stopped when it was told to" in said.out


@pytest.mark.parametrize("target", ["beat", "sleeper"])
@pytest.mark.parametrize("way", [by_job, by_redis, by_rest, by_command_line])
def test_a_runner_is_stopped_in_four_ways(system, way, target):
    name = started(system, target, type="ways")
    type_, uuid = name.split(":")
    pid = lives(system, name)[0][2]
    with zmq.Context() as context, context.socket(zmq.SUB) as events:
        events.linger = 0
        events.connect(system.config.bus_endpoint + ".events")
        events.subscribe(f"stop.{type_}.{uuid}")
        with system.redis() as redis:  # the subscription is there when a stop of another comes through it
            events.subscribe("stop.probe")
            numbers = iter(range(1000))
            until(lambda: redis.set(f"run:probe:{next(numbers)}", 0) and events.poll(50), "subscribed")
        way(system, type_, uuid)
        in_state(system, name, "stopped")
        topics = []
        until(
            lambda: (
                (events.poll(10) and topics.append(events.recv_multipart()[0].decode()))
                or f"stop.{type_}.{uuid}" in topics
            ),
            "the topic came",
        )
    assert not alive(pid)
    assert lives(system, name)[-1][0] == {"beat": "ended", "sleeper": "cancelled"}[target]
    shown = system.get(f"/runners/{type_}/{uuid}").body
    assert shown["how"] == "it stopped when it was told to"
    with system.redis() as redis:
        assert redis.get(f"run:{name}") == b"0"
        assert not redis.sismember("exesys:runners", name)


def test_all_of_a_type_are_stopped_by_a_key_by_rest_and_by_a_client(system, client):
    for stop in (
        lambda: by_redis(system, "kind", ""),
        lambda: system.request("DELETE", "/runners/kind"),
        lambda: client.stop_runner("kind"),
    ):
        names = [client.start_runner("idle", n, type="kind") for n in range(3)]
        other = client.start_runner("idle", None, type="kindred")
        for name in (*names, other):
            began(system, name)
        stop()
        for name in names:
            in_state(system, name, "stopped")
        assert state(system, other) == "running"
        client.stop_runner(other)
    # The key that stopped them all is gone: what is started later runs.
    with system.redis() as redis:
        until(lambda: redis.get("run:kind:") is None, "the key is gone")


def test_a_stop_that_was_loaded_before_the_start_refuses_it(system, client):
    by_redis(system, "early", "e1")
    answer = job(system, "lives.start", {"target": "idle", "options": {"type": "early", "uuid": "e1"}})
    assert answer["error"]["type"] == "StateError"
    assert "run:early:e1 is 0" in answer["error"]["message"]
    assert system.get("/runners/early/e1").status == 404
    with system.redis() as redis:
        redis.delete("run:early:e1")
    name = client.start_runner("idle", None, type="early", uuid="e1")
    began(system, name)
    client.stop_runner(name)


def test_stopping_twice_says_so_and_changes_nothing(system, client):
    name = started(system, "idle", type="double")
    type_, uuid = name.split(":")
    first = system.request("DELETE", f"/runners/{type_}/{uuid}?wait=10")
    assert (first.status, first.body["news"], first.body["state"]) == (200, True, "stopped")
    before = record(system, name)
    second = system.request("DELETE", f"/runners/{type_}/{uuid}")
    assert (second.status, second.body["news"], second.body["state"]) == (200, False, "stopped")
    assert client.stop_runner(name) == 0
    assert job(system, "lives.stop", [name])["result"]["EOJ"] is False
    assert "had ended already" in system.exesys("runner", "stop", name).out
    assert record(system, name) == before


def test_stopping_what_never_was_is_an_error_that_leaves_nothing(system, client):
    before = system.everything()
    assert system.request("DELETE", "/runners/never/was").error["code"] == "not_found"
    assert system.request("DELETE", "/runners/nevertype").error["code"] == "not_found"
    said = system.exesys("runner", "stop", "never:was")
    assert said.code == 1
    assert "there is no runner never:was" in said.err
    assert system.everything() == before
    assert job(system, "lives.stop", ["never:was"])["error"]["type"] == "NotFound"


def test_grace_then_term_then_kill_and_the_state_says_how(system, client):
    willing = started(system, "idle", type="grace")
    late = started(system, "stubborn", {}, type="grace")
    never = started(system, "stubborn", {"immortal": True}, type="grace")
    since = time.monotonic()
    client.stop_runner("grace")
    in_state(system, willing, "stopped", within_s=1)
    in_state(system, late, "stopping")
    in_state(system, late, "stopped")
    assert 1 <= time.monotonic() - since < 5
    in_state(system, never, "stopped")
    assert 1.5 <= time.monotonic() - since < 8
    hows = [record(system, name)["how"].decode() for name in (willing, late, never)]
    assert hows[0] == "it stopped when it was told to"
    assert "TERM" in hows[1]
    assert "killed" not in hows[1]
    assert "was killed" in hows[2]
    assert not any(alive(lives(system, name)[0][2]) for name in (willing, late, never))


def test_a_runner_has_a_grace_period_of_its_own(system, client):
    name = client.start_runner("stubborn", {}, grace_s=2.5)
    began(system, name)
    since = time.monotonic()
    client.stop_runner(name)
    in_state(system, name, "stopped")
    assert time.monotonic() - since >= 2.5


def test_what_a_runner_has_started_ends_with_it(system, client):
    name = client.start_runner("spawns", None, grace_s=0.2)
    with system.redis(1) as redis:
        until(lambda: redis.get(f"child:{name}"), "it has a child")
        child = int(redis.get(f"child:{name}"))
    client.stop_runner(name)
    in_state(system, name, "stopped")
    until(lambda: not alive(child), "its child is gone")


# --- ends that are no stop ----------------------------------------------------


def test_a_runner_that_returns_has_stopped_and_stays_so(system):
    name = started(system, "returns")
    in_state(system, name, "stopped")
    assert record(system, name)["how"] == b"it returned by itself"
    assert len(lives(system, name)) == 1


def test_a_runner_that_crashes_is_started_again_with_a_higher_epoch(system, client):
    name = started(system, "beat", type="crash")
    _, epoch, pid, _ = lives(system, name)[0]
    os.kill(pid, signal.SIGKILL)
    _, again, other, _ = began(system, name, 2)
    assert (again, other != pid) == (epoch + 1, True)
    in_state(system, name, "running")
    type_, uuid = name.split(":")
    shown = system.get(f"/runners/{type_}/{uuid}").body
    assert shown["restarts"] == 1
    assert shown["error"]["type"] == "Crashed"
    assert "SIGKILL" in shown["error"]["message"]
    client.stop_runner(name)


def test_a_runner_that_fails_too_often_is_failed_with_its_last_error(system, client):
    name = started(system, "raises", "it", type="fails")
    in_state(system, name, "failed")
    assert [life[1] for life in lives(system, name)] == [1, 2, 3]
    type_, uuid = name.split(":")
    shown = system.get(f"/runners/{type_}/{uuid}").body
    assert shown["state"] == "failed"
    assert (shown["error"]["type"], shown["error"]["message"]) == ("ValueError", "life 3 of it")
    assert "def raises" not in shown["error"]["traceback"]
    assert 'raise ValueError(f"life' in shown["error"]["traceback"]
    assert "3 failures" in shown["how"]
    # Stopping it is no news; restarting it by hand gives it another row of lives.
    assert client.stop_runner(name) == 0
    client.restart_runner(name)
    began(system, name, 4)
    in_state(system, name, "failed")


def test_restart_stops_it_first_and_a_stopped_one_runs_again(system, client):
    name = started(system, "beat", type="again")
    client.restart_runner(name)
    assert began(system, name, 2)[1] == 2
    in_state(system, name, "running")
    client.stop_runner(name)
    in_state(system, name, "stopped")
    said = system.exesys("runner", "restart", name)
    assert said.code == 0, said.err
    assert began(system, name, 3)[1] == 3
    with system.redis() as redis:
        assert redis.get(f"run:{name}") == b"1"
        assert redis.ttl(f"exesys:runner:{name}") == -1
    in_state(system, name, "running")
    assert client.stop_runner(name) == 1
    in_state(system, name, "stopped")
    whats = [(what, epoch) for what, epoch, *_ in lives(system, name)]
    assert whats == [(what, epoch) for epoch in (1, 2, 3) for what in ("began", "ended")]


# --- seeing them --------------------------------------------------------------


def test_log_progress_and_figures_are_seen(system, client):
    name = client.start_runner("talks", {"lines": 3}, type="talk")
    type_, uuid = name.split(":")
    path = f"/runners/{type_}/{uuid}"
    until(lambda: "a warning" in system.get(f"{path}/log").body["log"], "the log is there")
    log = system.get(f"{path}/log", {"Accept": "text/plain"}).body
    assert log.startswith("--- life 1, ")
    assert "line 0 of life 1\nline 1 of life 1\nline 2 of life 1\nWARNING a warning\n" in log
    shown = until(lambda: "progress" in (found := system.get(path).body) and found, "its progress is there")
    assert shown["progress"] == {"fraction": 0.25, "text": "a quarter"}
    until(lambda: system.get(path).body.get("memory_bytes"), "its memory is known")
    said = system.exesys("runner", "list", "talk")
    assert said.code == 0, said.err
    assert name in said.out
    assert "25% a quarter" in said.out
    assert system.exesys("runner", "show", name, "--json").json["target"] == "lives.talks"
    assert "line 2 of life 1" in system.exesys("runner", "logs", type_, uuid).out
    after = system.get(f"{path}/log").body["next"]
    client.stop_runner(name)
    in_state(system, name, "stopped")
    assert system.get(f"{path}/log", after=after).body["log"] == "told to stop\n"


def test_lists_by_type_and_state(system, client):
    going = client.start_runner("idle", None, type="listed")
    ended = started(system, "returns", type="listed")
    in_state(system, going, "running")
    in_state(system, ended, "stopped")
    names = {each["name"]: each["state"] for each in system.get("/runners/listed").body["runners"]}
    assert names == {going: "running", ended: "stopped"}
    assert [each["name"] for each in system.get("/runners/listed", ended=0).body["runners"]] == [going]
    assert [each["name"] for each in system.get("/runners/listed", state="stopped").body["runners"]] == [ended]
    assert going in [each["name"] for each in system.get("/runners").body["runners"]]
    listed = system.exesys("runner", "list", "--state", "running", "--json").json
    assert going in [each["name"] for each in listed]
    client.stop_runner(going)


# --- the system goes down and comes back -----------------------------------------


def test_down_stops_runners_and_up_starts_them_again_but_not_the_stopped(make):
    system = make(runner_grace_s=2)
    with system.client() as client:
        going = client.start_runner("beat", None, type="down", uuid="going")
        ended = client.start_runner("beat", None, type="down", uuid="ended")
        for name in (going, ended):
            began(system, name)
        client.stop_runner(ended)
        in_state(system, ended, "stopped")
    pid = lives(system, going)[0][2]
    system.down()
    assert not alive(pid)
    system.up()
    assert began(system, going, 2)[1] == 2
    noted = [(what, epoch) for what, epoch, *_ in lives(system, going)]
    assert noted[:2] == [("began", 1), ("ended", 1)]  # it was told, not killed
    assert state(system, ended) == "stopped"
    assert len(lives(system, ended)) == 2
    assert record(system, going).get("failures", b"0") == b"0"
    runner = system.pids()["runner"]
    [server] = children(runner)
    assert len(children(server)) == 1
