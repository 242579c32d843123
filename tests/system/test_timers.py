"""Timers on a real system: they tick once each, whatever is killed."""

import datetime as dt
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from itertools import pairwise

import pytest
from harness import alive, until

INI = """
[timer:declared]
cmd = echo
data = {"a": [1, "it's"]}
every_s = 0.5
"""


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(ini=INI)


@pytest.fixture
def name():
    return f"t-{uuid.uuid4().hex[:8]}"


def add(system, name, **fields):
    fields = {"cmd": "noop", "every_s": 0.2, **fields, "name": name}
    return system.request("POST", "/timers", json.dumps(fields), {"Content-Type": "application/json"})


def progress(system, name):
    with system.redis() as redis:
        return {key.decode(): value.decode() for key, value in redis.hgetall(f"exesys:timer-state:{name}").items()}


def ran(system, name):
    return int(progress(system, name).get("ran", 0))


def job_ids(system, name):
    """All jobs of a timer, from the stream of jobs, in order."""
    with system.redis() as redis:
        ids = [fields[b"j"].decode() for _, fields in redis.xrange("exesys:jobs")]
    return [each for each in ids if each.startswith(f"{name}.")]


def moment_ms(job_id):
    date, _, ms = job_id.rpartition(".")
    stamp = date.rpartition(".")[2]
    import datetime as dt

    return int(dt.datetime.strptime(f"{stamp}+0000", "%Y%m%dT%H%M%S%z").timestamp() * 1000) + int(ms.rstrip("Z"))


# --- the usual --------------------------------------------------------------------


def test_a_timer_of_the_ini_ticks(system):
    until(lambda: ran(system, "declared") >= 3, "it ticks")
    told = system.get("/timers/declared").body
    assert (told["cmd"], told["data"], told["every_s"], told["origin"]) == ("echo", {"a": [1, "it's"]}, 0.5, "ini")
    job = system.get(f"/jobs/{told['last'][0]['job_id']}").body
    assert (job["state"], job["EOJ"]) == ("data_available", {"a": [1, "it's"]})
    assert len(told["next"]) == 5
    assert told["late_ms"] < 3000


def test_a_timer_of_the_ini_is_taken_when_its_function_comes(make, tmp_path):
    """A function and its timer are new: the router has heard of the timer first."""
    (tmp_path / "first.py").write_text("def first(data):\n    return data\n")
    system = make(ini="[timer:early]\ncmd = comes_later\nevery_s = 0.3\n", modules=[tmp_path])
    until(lambda: "the timer early of the ini: no function is named" in system.log_of("controller"), "it is told")
    checks = [each for each in system.exesys("doctor", "--json").json if each["name"] == "timers"]
    assert [(check["state"], "early" in check["message"]) for check in checks] == [("warn", True)]
    (tmp_path / "first.py").write_text("def comes_later(data):\n    return data\n")
    assert system.exesys("reload").code == 0
    until(lambda: ran(system, "early") >= 2, "it ticks")
    assert system.log_of("controller").count("timer early of the ini") == 2, "told when it is refused, and when taken"
    checks = [each for each in system.exesys("doctor", "--json").json if each["name"] == "timers"]
    assert [check["state"] for check in checks] == ["ok"]


def test_a_timer_whose_last_tick_was_refused_is_told_by_the_doctor(system, name):
    assert add(system, name, every_s=0.2).status == 201
    until(lambda: ran(system, name) > 0, "it ticks")
    assert system.exesys("timer", "pause", name).code == 0
    recent = json.dumps([[1, 1, 0, "", "refused"]])
    with system.redis() as redis:
        redis.hset(f"exesys:timer-state:{name}", mapping={"recent": recent, "reason": "the data is too large."})
    checks = [each for each in system.exesys("doctor", "--json").json if each["name"] == "timers"]
    assert any(f"The last tick of {name} was refused: the data is too large." in str(check) for check in checks)


def test_a_timer_is_added_shown_paused_and_removed_over_rest(system, name):
    added = add(system, name)
    assert (added.status, added.body["state"]) == (201, "ticking")
    assert add(system, name).status == 200
    other = add(system, name, every_s=9)
    assert (other.status, other.body["error"]["code"]) == (409, "conflict")
    until(lambda: ran(system, name) >= 3, "it ticks")
    ids = job_ids(system, name)
    gaps = {later - sooner for sooner, later in pairwise(map(moment_ms, ids))}
    assert gaps == {200}
    assert system.request("POST", f"/timers/{name}/pause").body["state"] == "paused"
    until(lambda: progress(system, name).get("ran") == str(len(job_ids(system, name))), "all is noted")
    seen = len(job_ids(system, name))
    run = system.request("POST", f"/timers/{name}/run")
    assert (run.status, run.body["job_id"].startswith(f"{name}.now-")) == (202, True)
    until(lambda: system.get(f"/jobs/{run.body['job_id']}").body["state"] == "data_available", "it ran")
    assert len(job_ids(system, name)) == seen + 1
    assert system.request("POST", f"/timers/{name}/resume").body["state"] == "ticking"
    until(lambda: len(job_ids(system, name)) > seen + 2, "it ticks again")
    assert system.request("DELETE", f"/timers/{name}").body == {"name": name, "removed": True}
    assert system.get(f"/timers/{name}").status == 404
    assert system.request("DELETE", f"/timers/{name}").status == 404
    until(lambda: progress(system, name) == {}, "nothing is left of it")


def test_the_doctor_tells_of_timers_that_cannot_be_read(system, name):
    """A name without a timer is none; a key of another kind is told, and not passed over in silence."""

    def told():
        return [each for each in system.exesys("doctor", "--json").json if each["name"] == "timers"]

    with system.redis() as redis:
        redis.sadd("exesys:timers", name)
        assert name not in str(told())
        redis.set(f"exesys:timer:{name}", "foo")
        [check] = [each for each in told() if name in each["message"]]
        assert check["state"] == "fail"
        assert f"exesys:timer:{name}" in check["message"]
        redis.delete(f"exesys:timer:{name}")
        redis.srem("exesys:timers", name)
    assert name not in str(told())


def test_a_spoilt_timer_spoils_no_other(system, name):
    """Records and progress that were written by hand: each is told and can be removed; the others tick on."""
    spoilt = {
        "far": ("hset", "every_s", "-5"),
        "never": ("hset", "every_s", "1e400"),
        "list": ("hset", "options", "[]"),
        "zone": ("hset", "zone", "Nowhere/X"),
        "data": ("hset", "data", b"\xc1"),
        "kind": ("set", "somebody else's"),
    }
    names = [f"{name}-{which}" for which in spoilt]
    for which in spoilt:
        assert add(system, f"{name}-{which}", every_s=0.3).status == 201
    with system.redis() as redis:
        for which, (call, *what) in spoilt.items():
            redis.execute_command(call, f"exesys:timer:{name}-{which}", *what)
    assert add(system, f"{name}-state", every_s=0.3).status == 201
    until(lambda: ran(system, f"{name}-state") > 0, "it ticks")
    with system.redis() as redis:
        redis.delete(f"exesys:timer-state:{name}-state")
        redis.set(f"exesys:timer-state:{name}-state", "somebody else's")
    os.kill(system.pids()["controller"], signal.SIGKILL)
    assert add(system, name, every_s=0.3).status == 201
    until(lambda: ran(system, name) > 2, "the sound one ticks", 20)
    listed = {each["name"]: each for each in system.get("/timers").body["timers"]}
    told = system.exesys("doctor", "--json").json
    for bad in (*names, f"{name}-state"):
        assert listed[bad]["state"] == "spoilt", bad
        assert any(bad in check["message"] and check["state"] == "fail" for check in told), bad
        assert system.get(f"/timers/{bad}").body["state"] == "spoilt"
        assert system.request("POST", f"/timers/{bad}/run").error["code"] == "bad_state"
        assert system.request("DELETE", f"/timers/{bad}").status == 200
        assert add(system, bad, every_s=0.3).status == 201
        until(lambda bad=bad: ran(system, bad) > 0, "it ticks again")
        system.request("DELETE", f"/timers/{bad}")
    system.request("DELETE", f"/timers/{name}")


def test_a_spoilt_timer_is_shown_with_what_to_do(system, name):
    assert add(system, name, every_s=3600).status == 201
    until(lambda: progress(system, name), "it is taken in")
    with system.redis() as redis:
        redis.hset(f"exesys:timer-state:{name}", "last_ms", "rubbish")
    said = system.exesys("timer", "show", name)
    assert (said.code, said.out) == (2, "")
    assert f"the record of the timer {name} in Redis cannot be read" in said.err
    assert "Remove the timer, and add it again." in said.err
    assert system.exesys("timer", "remove", name).code == 0


def test_a_name_that_is_no_text_stops_no_controller(system, name):
    with system.redis() as redis:
        redis.sadd("exesys:timers", b"\xff\xfe")
        redis.zadd("exesys:timer-changes", {b"\xff\xfe": 1})
    os.kill(system.pids()["controller"], signal.SIGKILL)
    assert add(system, name, every_s=0.3).status == 201
    until(lambda: ran(system, name) > 2, "the timers tick", 20)
    assert system.exesys("timer", "list").code == 0
    assert "Traceback" not in system.log_of("controller")
    with system.redis() as redis:
        redis.srem("exesys:timers", b"\xff\xfe")
        redis.zrem("exesys:timer-changes", b"\xff\xfe")
    system.request("DELETE", f"/timers/{name}")


def test_a_timer_that_its_list_has_lost_comes_back_when_it_is_put_again(system, name):
    assert add(system, name, every_s=0.3).status == 201
    with system.redis() as redis:
        redis.delete("exesys:timers")
    assert add(system, name, every_s=0.3).status == 201, "it is listed again"
    assert add(system, name, every_s=0.3).status == 200
    os.kill(system.pids()["controller"], signal.SIGKILL)
    until(lambda: "declared" in str(system.get("/timers").body), "the one of the ini is listed again", 20)
    assert name in str(system.get("/timers").body)
    system.request("DELETE", f"/timers/{name}")


def test_the_doctor_tells_when_no_controller_is_active(system):
    def told():
        return [each for each in system.exesys("doctor", "--json").json if each["name"] == "controller"]

    assert told() == []
    pid = system.pids()["controller"]
    os.kill(pid, signal.SIGSTOP)
    try:
        until(told, "its lease is over", 20)
        assert "No controller is active" in told()[0]["message"]
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: told() == [], "it is active again")


def test_a_timer_of_the_ini_takes_no_name_of_another(make, tmp_path):
    """One that was added by hand goes on, and the doctor tells; when it is gone the one of the ini is taken."""
    both = tmp_path / "both.py"
    both.write_text("def first():\n    return 1\n")
    system = make(ini="[timer:nightly]\ncmd = later\nevery_s = 0.2\n", modules=[tmp_path])
    until(lambda: "the timer nightly of the ini: no function is named" in system.log_of("controller"), "it is told")
    assert add(system, "nightly", cmd="first", every_s=3600).status == 201
    both.write_text("def first():\n    return 1\ndef later():\n    return 2\n")
    assert system.exesys("reload").code == 0
    until(lambda: "there is a timer nightly already" in system.log_of("controller"), "it is told")
    [check] = [each for each in system.exesys("doctor", "--json").json if each["name"] == "timers"]
    assert "The timer nightly of the ini was not taken. The one that ticks under its name" in check["message"]
    assert system.request("DELETE", "/timers/nightly").status == 200
    until(lambda: ran(system, "nightly") > 1, "the one of the ini ticks")


def test_the_list_comes_in_pages(system, name):
    for number in range(5):
        assert add(system, f"{name}-{number}", every_s=3600).status == 201
    first = system.get("/timers", after=name, limit=2).body
    assert ([each["name"] for each in first["timers"]], first["next"]) == ([f"{name}-0", f"{name}-1"], f"{name}-1")
    whole = system.get("/timers", after=first["next"]).body
    assert [each["name"] for each in whole["timers"]][:3] == [f"{name}-{number}" for number in (2, 3, 4)]
    assert whole["next"] is None
    assert system.get("/timers", limit="many").error["field"] == "limit"
    assert "'٣'" in system.get("/timers", limit="٣").error["message"], "shown as it was sent"
    assert system.get("/timers?after=%FF").error["message"] == "`after` is no UTF-8."
    for number in range(5):
        system.request("DELETE", f"/timers/{name}-{number}")


def test_the_command_line_does_the_same(system, name):
    said = system.exesys("timer", "add", name, "echo", '{"n": 1}', "--cron", "0 0 1 1 *", "--zone", "Europe/Rome")
    assert (said.code, said.out.startswith(f"{name}: next at ")) == (0, True)
    assert (
        "there already"
        in system.exesys("timer", "add", name, "echo", '{"n": 1}', "--cron", "0 0 1 1 *", "--zone", "Europe/Rome").out
    )
    assert re.search(rf"{name}\t.*\t\d{{4}}-01-01 00:00:00\+01:00\t", system.exesys("timer", "list").out)
    assert re.search(r"declared\t.*Z\t.*Z run\t", system.exesys("timer", "list").out)
    shown = system.exesys("timer", "show", name)
    assert shown.out.count("-01-01 00:00:00+01:00: to come") == 5
    assert system.exesys("timer", "pause", name).out == f"{name}: paused\n"
    assert system.exesys("timer", "resume", name).out == f"{name}: ticking\n"
    job_id = system.exesys("timer", "run", name).out.strip()
    assert json.loads(system.exesys("result", job_id, "--wait", "10").out) == {"n": 1}
    assert "  0 ran, 0 skipped, 0 missed, 0 refused\n" in system.exesys("timer", "show", name).out, "that is no tick"
    assert system.exesys("timer", "remove", name).out == f"{name}: removed\n"
    said = system.exesys("timer", "show", name)
    assert (said.code, "timer list" in said.err) == (1, True)
    said = system.exesys("timer", "remove", "declared")
    assert (said.code, "[timer:declared]" in said.err) == (2, True)


def test_a_timer_that_can_never_tick_is_refused_unless_it_is_there(system, name):
    old = {"every_s": 1, "end": "2026-01-01T00:00:00Z"}
    refused = add(system, name, **old)
    assert (refused.status, refused.error["field"]) == (400, "end")
    assert "its `end`, 2026-01-01T00:00:00Z, is past" in refused.error["message"]
    said = system.exesys("timer", "add", name, "noop", "--every-s", "1", "--end", "2026-01-01T00:00:00Z")
    assert (said.code, "would never tick" in said.err) == (2, True)
    soon = dt.datetime.fromtimestamp(time.time() + 2, dt.UTC).isoformat()
    fields = json.dumps({"name": name, "cmd": "noop", "cron": "0 0 29 2 *", "end": soon})
    refused = system.request("POST", "/timers", fields, {"Content-Type": "application/json"})
    assert "there is no tick before its `end`" in refused.error["message"]
    assert system.get(f"/timers/{name}").status == 404
    ending = {"every_s": 0.1, "end": soon}
    assert add(system, name, **ending).status == 201
    until(lambda: system.get(f"/timers/{name}").body["state"] == "ended", "its time is over")
    assert add(system, name, **ending).status == 200, "the same again changes nothing"
    assert add(system, name, **old).status == 409


def test_a_timer_of_the_ini_whose_end_is_past_is_told_and_stops_nothing(make):
    system = make(ini="[timer:old]\ncmd = noop\nevery_s = 1\nend = 2026-01-01T00:00:00Z\n")
    why = "the timer old of the ini never ticks: its `end`, 2026-01-01T00:00:00Z, is past"
    until(lambda: why in system.log_of("controller"), "it is told")
    until(lambda: system.get("/timers/old").status == 200, "it is there")
    [check] = [each for each in system.exesys("doctor", "--json").json if each["name"] == "timers"]
    assert (check["state"], why.removeprefix("the timer") in check["message"]) == ("warn", True)
    assert system.get("/timers/old").body["state"] == "ended"


def test_ticks_that_would_overlap_are_skipped(system, name):
    add(system, name, cmd="sleep", data=0.9, every_s=0.3, overlap="skip")
    until(lambda: int(progress(system, name).get("skipped", 0)) >= 2 and ran(system, name) >= 2, "some are skipped")
    system.request("DELETE", f"/timers/{name}")
    jobs = [system.get(f"/jobs/{job_id}").body["steps"][0] for job_id in job_ids(system, name)]
    spans = [(job["began_ms"], job.get("ended_ms", 1 << 60)) for job in jobs if "began_ms" in job]
    assert all(ended <= began for (_, ended), (began, _) in pairwise(spans)), spans


def test_a_tick_that_finds_its_queue_full_is_sent_again(system, name):
    system.request("PATCH", f"/queues/{name}", '{"depth": 1, "paused": true}', {"Content-Type": "application/json"})
    add(system, name, queue=name, every_s=0.3)
    until(lambda: ran(system, name) == 1, "one is taken")
    system.request("PATCH", f"/queues/{name}", '{"depth": null}', {"Content-Type": "application/json"})
    until(lambda: ran(system, name) >= 4, "the others are taken")
    times = list(map(moment_ms, job_ids(system, name)))
    assert {later - sooner for sooner, later in pairwise(times)} == {300}
    system.request("DELETE", f"/timers/{name}")


@pytest.mark.parametrize(
    ("fields", "status", "field", "fix"),
    [
        ({"cron": "0 0 30 2 *"}, 400, "cron", "days 1-31"),
        ({"cron": "0 * * * * *"}, 400, "cron", "Give five"),
        ({"cron": "* * * * *", "zone": "Europe/Room"}, 400, "zone", "`Europe/Rome`"),
        ({"every_s": 0}, 400, "every_s", "Give 0.1 to"),
        ({"every_s": 1, "start": "2026-02-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"}, 400, "end", "later than"),
        ({"every_s": 1, "cmd": "ecko"}, 422, "cmd", "`echo`"),
        ({"every_s": 1, "cmd": None}, 400, "cmd", ""),
        ({"every_s": 1, "name": "a:b"}, 400, "name", "Use 1 to 128"),
        ({"every_s": 1, "name": "n" * 65}, 400, "name", "at most 64"),
        ({"every_s": 1, "data": "x" * (2 << 20)}, 413, "data", ""),
        ({"every_s": 1, "nmae": 1}, 400, "nmae", "`name`"),
        ({"cron": "* * * * *", "zone": ["x"]}, 400, "zone", ""),
        ({"cron": "0 0 1 1 *", "start": "9999-12-31T23:59:59Z"}, 400, "start", "2199"),
        ({"every_s": 1, "cmd": "\ud800"}, 400, "cmd", "Use 1 to 128"),
        ({"every_s": 1, "\ud800": 1}, 400, "\\ud800", ""),
    ],
)
def test_what_makes_no_sense_is_refused_and_leaves_nothing(system, name, fields, status, field, fix):
    body = json.dumps({"name": name, "cmd": "noop", **fields})
    answer = system.request("POST", "/timers", body, {"Content-Type": "application/json"})
    assert (answer.status, answer.body["error"]["field"]) == (status, field), answer.body
    assert fix in answer.body["error"]["fix"] or field == "nmae"
    with system.redis() as redis:
        assert not redis.exists(f"exesys:timer:{fields.get('name', name)}")


def test_two_sections_of_one_name_are_told(system):
    ini = system.root / "twice.ini"
    ini.write_text("[timer:a]\ncmd = noop\nevery_s = 1\n[timer:a]\ncmd = noop\nevery_s = 2\n")
    said = system.exesys("timer", "list", environ={"EXESYS_INI": str(ini)})
    assert said.code == 1
    assert f"{ini}, line 4: the section [timer:a] stands in line 1 already. Merge them" in said.err
    ini.write_text("[timer:a]\ncmd = noop\ncron = 0 0 30 2 *\n")
    said = system.exesys("timer", "list", environ={"EXESYS_INI": str(ini)})
    assert "line 1: [timer:a]" in said.err
    assert "days 1-31" in said.err


# --- whatever is killed -----------------------------------------------------------


@pytest.fixture
def second(system):
    """A second controller of the same system, started by hand."""
    environ = {**system.environ, "EXESYS_HOME": str(system.home)}
    started = []

    def start():
        started.append(subprocess.Popen([sys.executable, "-m", "exesys.daemons.controller"], env=environ))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_no_tick_is_lost_or_doubled_whatever_is_killed(system, second, name, seed, tell):
    """Two controllers; the controllers, the router and redis are killed in turn."""
    rng = random.Random(f"{seed} timers")
    system.request("POST", "/timers/declared/pause")
    other = second()
    add(system, name, every_s=0.2)
    until(lambda: ran(system, name) >= 2, "it ticks")
    for kind in ("controller", "other", "router", "controller", "redis", "other", "router"):
        seen = ran(system, name)
        if kind == "other":
            other.kill()
            other.wait()
            other = second()
        else:
            pid = until(lambda kind=kind: system.pids().get(kind), kind)
            os.kill(pid, signal.SIGKILL)
            until(lambda pid=pid: not alive(pid), "it is gone")
        wanted = seen + rng.randint(3, 9)
        until(lambda wanted=wanted: ran(system, name) >= wanted, "it ticks again", 30)
    system.request("POST", f"/timers/{name}/pause")
    until(lambda: ran(system, name) == len(job_ids(system, name)), "all is noted")
    ids = job_ids(system, name)
    times = sorted(map(moment_ms, ids))
    assert len(set(ids)) == len(ids)
    gaps = {later - sooner for sooner, later in pairwise(times)}
    assert gaps == {200}, "each tick is there once"
    steps = [system.get(f"/jobs/{job_id}").body["steps"] for job_id in ids]
    until(lambda: all(system.get(f"/jobs/{job_id}").body["state"] == "data_available" for job_id in ids), "all ran")
    assert all(len(each) == 1 for each in steps)
    late = [max(0, step[0]["accepted_ms"] - moment_ms(job_id)) for job_id, step in zip(ids, steps, strict=True)]
    tell(f"timers, 7 kills: {len(ids)} ticks, each once; the latest {max(late) / 1000:.1f} s late")
    assert max(late) < 10_000
    system.request("DELETE", f"/timers/{name}")


def test_the_other_controller_takes_over_within_five_seconds(system, second, name, tell):
    add(system, name, every_s=0.1)
    until(lambda: ran(system, name) >= 2, "it ticks")
    took = []
    other = second()
    for _ in range(2):
        with system.redis() as redis:
            holder = redis.get("exesys:controller")
        pid = system.pids()["controller"]
        os.kill(pid, signal.SIGSTOP)
        other.send_signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGCONT)
        other.send_signal(signal.SIGCONT)
        since = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        seen = ran(system, name)
        until(lambda seen=seen: ran(system, name) > seen, "it ticks again", 10, 0.005)
        took.append(time.monotonic() - since)
        until(lambda pid=pid: system.pids().get("controller", pid) != pid, "a new one stands by")
        assert holder
    tell(f"a killed controller is replaced after {max(took):.1f} s at most")
    assert max(took) <= 8
    system.request("DELETE", f"/timers/{name}")
