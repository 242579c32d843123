"""The REST interface, row by row of the table of what is sent and what is answered."""

import contextlib
import datetime as dt
import http.client
import itertools
import json
import os
import signal
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import rss_bytes, until

STATUS = {"start": 0, "standby": 1, "processing": 2, "data_available": 3, "error": 4}


@pytest.fixture
def job_id():
    return f"rest-{uuid.uuid4()}"


def step(answer):
    """The one step of an answer of GET /jobs/<id>."""
    [only] = answer.body["steps"]
    return only


# --- one command --------------------------------------------------------------


def test_a_new_command_is_accepted(shared, job_id):
    command = {"from": "testclient", "to": "testjob", "cmd": "test_cmd", "data": "senatoremonti", "job_id": job_id}
    answer = shared.post(command)
    assert (answer.status, answer.headers["content-type"]) == (202, "application/json")
    assert answer.body == {
        **{"job_id": job_id, "from": "testclient", "to": "testjob", "cmd": "test_cmd"},
        **{"status": 0, "state": "start"},
    }
    # Sent again: its state, and once it has ended its result.
    again = until(lambda: (found := shared.post(command)).status == 200 and found, "it ended")
    assert again.body == {
        **{"job_id": job_id, "from": "testclient", "to": "testjob", "cmd": "test_cmd"},
        **{"status": 3, "state": "data_available"},
        "result": {"EOJ": {"hello": "senatoremonti", "length": 13}},
    }
    assert (shared.post(command, wait=5).status, shared.post(command, wait=5).body) == (200, again.body)


def test_what_is_accepted_is_in_redis(shared, job_id):
    assert shared.post({"cmd": "echo", "data": [1], "job_id": job_id, "delay_s": 3600}).status == 202
    [(state, fields)] = shared.records([f"client:{job_id}"])
    assert (state, fields[b"to"], fields[b"cmd"], fields[b"data"]) == ("start", b"end_job", b"echo", b"\x91\x01")


def test_what_is_left_out_is_filled_in(shared):
    answer = shared.post({"cmd": "echo"}, wait=10)
    assert answer.status == 200
    assert {key: answer.body[key] for key in ("from", "to", "cmd", "result")} == {
        **{"from": "client", "to": "end_job", "cmd": "echo"},
        "result": {"EOJ": None},
    }
    assert uuid.UUID(answer.body["job_id"])


def test_to_may_be_a_list(shared, job_id):
    command = {"from": "A", "to": ["B", "C"], "cmd": "echo", "data": 1, "job_id": job_id}
    answer = shared.post(command, wait=10)
    assert (answer.status, answer.body["to"]) == (200, ["B", "C"])
    [(_, fields)] = shared.records([f"A:{job_id}"])
    assert fields[b"to"] == b"B,C"
    assert step(shared.get(f"/jobs/{job_id}"))["to"] == ["B", "C"]


def test_the_same_again_while_it_runs_gives_its_state(shared, job_id):
    command = {"cmd": "sleep", "data": 1.0, "job_id": job_id}
    assert shared.post(command).body["state"] == "start"
    running = until(
        lambda: (found := shared.post(command)).body["state"] == "processing" and found, "it runs", within_s=5
    )
    assert (running.status, running.body["status"]) == (202, 2)
    shown = step(shared.get(f"/jobs/{job_id}"))
    assert (shown["queue"], shown["attempt"], "began_ms" in shown) == ("default", 1, False)
    assert 0 <= shown["sent_ms"] - shown["accepted_ms"] < 5000
    assert shown["worker"] in {worker["session"] for worker in shared.get("/workers").body["workers"]}
    ended = shared.post(command, wait=10)
    assert (ended.status, ended.body["result"]) == (200, {"EOJ": 1.0})
    assert step(shared.get(f"/jobs/{job_id}"))["attempt"] == 1


def test_a_failed_one_says_how(shared, job_id):
    command = {"cmd": "fail", "data": "as it was asked", "job_id": job_id}
    answer = shared.post(command, wait=10)
    assert (answer.status, answer.body["status"], answer.body["state"]) == (200, 4, "error")
    error = answer.body["error"]
    assert (error["type"], error["message"], error["attempts"]) == ("ValueError", "as it was asked", 1)
    assert shared.post(command).body == answer.body
    [(state, fields)] = shared.records([f"client:{job_id}"])
    assert state == "error"
    assert fields[b"data"] == b"\xafas it was asked", "it keeps its data, so that it can be tried again"


@pytest.mark.parametrize("how", ["query", "header", "both"])
def test_wait_ends_with_the_job(shared, job_id, how):
    command = {"cmd": "sleep", "data": 0.3, "job_id": job_id}
    since = time.monotonic()
    answer = shared.post(
        command,
        wait=None if how == "header" else 20,
        headers={} if how == "query" else {"Prefer": "respond-async, wait=20"},
    )
    assert 0.3 <= time.monotonic() - since < 5
    assert (answer.status, answer.body["result"]) == (200, {"EOJ": 0.3})


def test_wait_ends_with_the_time(shared, job_id):
    since = time.monotonic()
    answer = shared.post({"cmd": "sleep", "data": 3, "job_id": job_id}, wait=0.5)
    assert 0.5 <= time.monotonic() - since < 2.9
    assert (answer.status, answer.body["state"]) == (202, "processing")


def test_a_preference_is_read_as_rfc_7240_has_it(shared):
    for header in ("Wait=10", 'wait="10"', "respond-async, wait=10; more=1"):
        answer = shared.post({"cmd": "sleep", "data": 0.05}, headers={"Prefer": header})
        assert answer.status == 200, header


def test_two_may_wait_for_the_same(shared, job_id):
    command = {"cmd": "sleep", "data": 0.5, "job_id": job_id}
    shared.post(command)
    assert shared.post(command, wait=10).body["result"] == {"EOJ": 0.5}
    assert shared.post(command, wait=10).body["result"] == {"EOJ": 0.5}


@pytest.mark.parametrize("other", [{"cmd": "noop"}, {"data": 2}], ids=["cmd", "data"])
def test_the_same_job_id_with_other_work_is_a_conflict(shared, job_id, other):
    command = {"cmd": "echo", "data": 1, "job_id": job_id}
    assert shared.post(command, wait=10).status == 200
    refused = shared.post({**command, **other})
    assert (refused.status, refused.error["code"], refused.error["field"]) == (409, "conflict", "job_id")
    assert job_id in refused.error["message"]
    assert shared.post(command).body["result"] == {"EOJ": 1}


def test_one_job_may_have_several_steps(shared, job_id):
    for name in ("A", "B"):
        answer = shared.post({"from": name, "cmd": "echo", "data": name, "job_id": job_id}, wait=10)
        assert answer.body["result"] == {"EOJ": name}
    job = shared.get(f"/jobs/{job_id}").body
    assert sorted(each["from"] for each in job["steps"]) == ["A", "B"]
    assert job["EOJ"] == {"A": "A", "B": "B"}


@pytest.mark.parametrize(
    "data",
    [None, True, 0, -1, 1 << 62, 1.5, "", "über ☂ \u0000 😀", [], {}, {"a": [{"b": None}]}, [[[[]]]]],
    ids=repr,
)
def test_data_comes_back_as_it_went(shared, data):
    assert shared.post({"cmd": "echo", "data": data}, wait=10).body["result"] == {"EOJ": data}


# --- arrays -------------------------------------------------------------------


def test_an_array_is_answered_in_its_order(shared, job_id):
    commands = [{"cmd": "echo", "data": i, "job_id": f"{job_id}-{i}"} for i in range(50)]
    answer = shared.post(commands)
    assert answer.status == 202
    assert [item["job_id"] for item in answer.body] == [command["job_id"] for command in commands]
    assert {item["state"] for item in answer.body} <= {"start", "processing", "data_available"}
    waited = shared.post(commands, wait=20)
    assert waited.status == 200
    assert [item["result"]["EOJ"] for item in waited.body] == list(range(50))


def test_of_an_array_each_is_accepted_or_refused_on_its_own(shared, job_id):
    shared.post({"cmd": "echo", "data": "there", "job_id": f"{job_id}-old"}, wait=10)
    array = [
        {"cmd": "echo", "data": "good", "job_id": f"{job_id}-1"},
        {"cmd": "ecko", "job_id": f"{job_id}-2"},
        {"cmd": "echo", "job_id": 7},
        17,
        {"cmd": "echo", "data": "other", "job_id": f"{job_id}-old"},
        {"cmd": "echo", "data": "there", "job_id": f"{job_id}-old"},
        {"cmd": "echo", "priorty": 3, "job_id": f"{job_id}-6"},
        {"cmd": "echo", "data": "good too", "job_id": f"{job_id}-7"},
    ]
    before = shared.everything()
    answer = shared.post(array, wait=10)
    kinds = [item["error"]["code"] if "error" in item else item["state"] for item in answer.body]
    assert kinds == [
        *("data_available", "unknown_cmd", "bad_field", "bad_field"),
        *("conflict", "data_available", "bad_field", "data_available"),
    ]
    assert [answer.body[i]["result"]["EOJ"] for i in (0, 5, 7)] == ["good", "there", "good too"]
    assert answer.body[2]["error"]["field"] == "job_id"
    assert "priority" in answer.body[6]["error"]["fix"]
    new = {name for _, name in set(shared.everything()) - set(before) if job_id in name}
    assert new == {
        *(f"client:{job_id}-{i}:data_available" for i in (1, 7)),
        *(f"exesys:job:{job_id}-{i}" for i in (1, 7)),
    }


def test_the_same_twice_in_one_array(shared, job_id):
    command = {"cmd": "echo", "data": 1, "job_id": job_id}
    answer = shared.post([command, command], wait=10)
    assert [item["result"]["EOJ"] for item in answer.body] == [1, 1]
    assert step(shared.get(f"/jobs/{job_id}"))["attempt"] == 1


def test_an_array_all_refused_has_the_status_of_the_first(shared):
    answer = shared.post([{"cmd": "no_such_function"}, {"cmd": ""}])
    assert (answer.status, [item["error"]["code"] for item in answer.body]) == (422, ["unknown_cmd", "bad_field"])


# --- options ------------------------------------------------------------------


def test_delay_s_is_waited(shared, job_id):
    command = {"cmd": "echo", "data": 1, "job_id": job_id, "delay_s": 0.7}
    since = time.monotonic()
    assert shared.post(command).body["state"] == "start"
    assert shared.post(command, wait=0.3).body["state"] == "start"
    answer = shared.post(command, wait=10)
    assert answer.body["result"] == {"EOJ": 1}
    assert 0.7 <= time.monotonic() - since < 6
    times = step(shared.get(f"/jobs/{job_id}"))
    assert 700 <= times["began_ms"] - times["accepted_ms"] < 5000


@pytest.mark.parametrize("zone", [dt.UTC, dt.timezone(dt.timedelta(hours=5, minutes=30))], ids=str)
def test_at_is_waited_for(shared, zone):
    at = (dt.datetime.now(dt.UTC) + dt.timedelta(seconds=0.8)).astimezone(zone)
    answer = shared.post({"cmd": "echo", "data": 1, "at": at.isoformat()}, wait=10)
    assert answer.body["result"] == {"EOJ": 1}
    late_s = step(shared.get(f"/jobs/{answer.body['job_id']}"))["began_ms"] / 1000 - at.timestamp()
    assert -0.01 <= late_s < 1


def test_at_in_the_past_is_now(shared):
    assert shared.post({"cmd": "echo", "data": 1, "at": "2001-01-01T00:00:00Z"}, wait=10).status == 200


def test_timeout_s_ends_the_function(shared):
    since = time.monotonic()
    answer = shared.post({"cmd": "sleep", "data": 30, "timeout_s": 0.3}, wait=10)
    assert time.monotonic() - since < 5
    assert (answer.body["state"], answer.body["error"]["type"]) == ("error", "Timeout")
    assert "0.3 s" in answer.body["error"]["message"]


def test_retries_come_with_back_off(shared, job_id):
    name = f"retries-{job_id}"
    command = {"cmd": "fails_then_works", "data": {"name": name, "fails": 2}, "retries": 3, "backoff_s": 0.4}
    answer = shared.post({**command, "job_id": job_id}, wait=20)
    assert answer.body["result"] == {"EOJ": 3}
    with shared.redis(1) as data:
        times = [float(each) for each in data.lrange(name, 0, -1)]
    assert len(times) == 3
    first, second = (after - before for before, after in itertools.pairwise(times))
    # Half fixed, half random, doubling: 0.2 to 0.4 s, then 0.4 to 0.8 s.
    assert 0.2 <= first < 1.0
    assert 0.4 <= second < 1.4


def test_retries_run_out(shared, job_id):
    command = {"cmd": "fail", "data": "always", "retries": 2, "backoff_s": 0.01, "job_id": job_id}
    answer = shared.post(command, wait=20)
    assert answer.body["error"]["attempts"] == 3
    assert step(shared.get(f"/jobs/{job_id}"))["attempt"] == 3


def test_a_higher_priority_goes_first(shared, make_busy, job_id):
    with make_busy():
        array = [
            {"cmd": "sleep", "data": 0.05, "job_id": f"{job_id}-{place}", "priority": priority}
            for place, priority in enumerate([4, 0, 9, 4, 7])
        ]
        assert shared.post(array).status == 202
    assert shared.post(array, wait=20).status == 200
    began_ms = [step(shared.get(f"/jobs/{job_id}-{place}"))["began_ms"] for place in range(5)]
    places = sorted(range(5), key=lambda place: began_ms[place])
    # There are two slots: neighbours may have changed places.
    wanted = [2, 4, 0, 3, 1]
    assert all(abs(places.index(place) - wanted.index(place)) <= 1 for place in wanted), began_ms


@pytest.fixture
def make_busy(shared):
    """Keeps all slots busy for as long as the block takes."""

    @contextlib.contextmanager
    def busy():
        gate = shared.root / f"gate-{uuid.uuid4()}"
        jobs = [
            {"cmd": "wait_for_file", "data": str(gate), "job_id": f"{gate.name}-{i}"}
            for i in range(shared.config.worker.slots)
        ]
        shared.post(jobs)
        until(lambda: all(item["state"] == "processing" for item in shared.post(jobs).body), "all slots are busy")
        try:
            yield
        finally:
            gate.touch()
        assert shared.post(jobs, wait=20).status == 200

    return busy


def test_a_result_is_kept_for_its_ttl(shared, job_id):
    command = {"cmd": "echo", "data": 1, "job_id": job_id, "result_ttl_s": 1}
    assert shared.post(command, wait=10).status == 200
    with shared.redis() as store:
        assert 0 < store.pttl(f"client:{job_id}:data_available") <= 1000
    until(lambda: shared.get(f"/jobs/{job_id}").status == 404, "it expired", within_s=5)
    assert not [name for _, name in shared.everything() if job_id in name]
    # Then its job_id is free.
    assert shared.post({**command, "data": 2}, wait=10).body["result"] == {"EOJ": 2}


def test_a_result_is_kept_for_a_day_and_a_failure_for_two_weeks(shared, job_id):
    shared.post({"cmd": "echo", "job_id": f"{job_id}-1"}, wait=10)
    shared.post({"cmd": "fail", "job_id": f"{job_id}-2"}, wait=10)
    with shared.redis() as store:
        assert 86_000 < store.ttl(f"client:{job_id}-1:data_available") <= 86_400
        assert 14 * 86_000 < store.ttl(f"client:{job_id}-2:error") <= 14 * 86_400


def test_a_queue_that_nobody_serves_is_kept(shared, job_id):
    command = {"cmd": "echo", "data": 1, "job_id": job_id, "queue": "elsewhere"}
    assert shared.post(command, wait=0.3).body["state"] == "start"
    with shared.redis() as store:
        assert store.zrange("exesys:ready:elsewhere", 0, -1) == [f"client:{job_id}".encode()]
    assert shared.request("DELETE", f"/jobs/{job_id}").body["cancelled"] == 1


def test_what_waits_on_a_queue_that_nobody_serves_says_so(shared, job_id):
    command = {"cmd": "echo", "data": 1, "job_id": job_id, "queue": "nowhere"}
    why = "no worker serves the queue nowhere"
    first = shared.post(command)
    assert (first.status, "waits" in first.body) == (202, False), "it was not asked to wait"
    answer = shared.post(command, wait=0.1)
    assert (answer.status, answer.body["state"], answer.body["waits"]) == (202, "start", why)
    shown = step(shared.get(f"/jobs/{job_id}"))
    assert (shown["state"], shown["queue"], shown["waits"]) == ("start", "nowhere", why)
    # In an array each for itself: one that has ended, one that waits for its time, one that waits in vain.
    array = [
        {"cmd": "echo", "job_id": f"{job_id}-1"},
        {"cmd": "echo", "job_id": f"{job_id}-2", "delay_s": 3600},
        {"from": "A", "to": ["B", "C"], "cmd": "echo", "job_id": f"{job_id}-2", "queue": "nowhere"},
    ]
    answers = shared.post(array, wait=0.5).body
    assert [each["state"] for each in answers] == ["data_available", "start", "start"]
    assert [each.get("waits") for each in answers] == [None, None, why]
    shown = {each["from"]: each.get("waits") for each in shared.get(f"/jobs/{job_id}-2").body["steps"]}
    assert shown == {"client": None, "A": why}
    # A worker that serves it, and it is done.
    with shared.another_worker(worker_queues="nowhere", worker_slots=1):
        assert shared.post(command, wait=20).body["result"] == {"EOJ": 1}
    assert "waits" not in step(shared.get(f"/jobs/{job_id}"))


def test_a_job_is_shown_also_while_the_router_is_away(make):
    system = make()
    command = {"cmd": "echo", "job_id": "shown", "queue": "nowhere"}
    assert system.post(command, wait=0.1).body["waits"]
    router = system.pids()["router"]
    os.kill(router, signal.SIGSTOP)
    try:
        since = time.monotonic()
        shown = system.get("/jobs/shown")
        assert (shown.status, step(shown)["queue"], "waits" in step(shown)) == (200, "nowhere", False)
        assert time.monotonic() - since < 3
    finally:
        os.kill(router, signal.SIGCONT)
    until(lambda: "waits" in step(system.get("/jobs/shown")), "it is told again")


def test_while_the_router_says_nothing_who_sends_is_told_and_nobody_else_waits(make):
    system = make()
    command = {"cmd": "echo", "data": 1, "job_id": "unheard"}
    assert system.post({"cmd": "echo"}).status == 202
    router = system.pids()["router"]
    os.kill(router, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor() as pool:
            sent = [pool.submit(system.post, command) for _ in range(5)]
            since = time.monotonic()
            while not all(each.done() for each in sent):
                asked = time.monotonic()
                assert system.get("/healthz").status == 200
                assert time.monotonic() - asked < 2, "it waits for somebody else's command"
            assert 2 < time.monotonic() - since < 20
        for each in sent:
            assert (each.result().status, each.result().error["code"]) == (503, "unavailable")
            assert "did not answer in time" in each.result().error["message"]
            assert each.result().headers["retry-after"] == "1"
    finally:
        os.kill(router, signal.SIGCONT)
    until(lambda: system.post(command).status in (200, 202), "the router is back")
    assert system.post(command, wait=10).body["result"] == {"EOJ": 1}


def test_a_queue_that_is_full_refuses(make):
    system = make(limits_queue_depth=5)
    commands = [{"cmd": "echo", "data": i, "job_id": f"full-{i}", "queue": "elsewhere"} for i in range(7)]
    answer = system.post(commands)
    assert [item.get("state", "refused") for item in answer.body] == ["start"] * 5 + ["refused"] * 2
    assert answer.body[5]["error"]["code"] == "queue_full"
    before = system.everything()
    refused = system.post(commands[6])
    assert (refused.status, refused.error["code"], refused.error["field"]) == (429, "queue_full", "queue")
    assert "queue_depth" in refused.error["fix"]
    assert int(refused.headers["retry-after"]) >= 1
    all_refused = system.post(commands[5:])
    assert (all_refused.status, "retry-after" in all_refused.headers) == (429, True)
    assert system.everything() == before
    # What waits already is told its state, and other queues take more.
    assert system.post(commands[0]).status == 202
    assert system.post({"cmd": "echo", "data": 1}, wait=10).body["result"] == {"EOJ": 1}


def test_a_worker_may_serve_other_queues(make):
    system = make(worker_queues="red,blue")
    assert system.post({"cmd": "echo", "data": 1, "queue": "blue"}, wait=10).body["result"] == {"EOJ": 1}
    assert system.post({"cmd": "echo", "data": 1}, wait=0.3).body["state"] == "start"


# --- reading ------------------------------------------------------------------


def test_jobs_are_listed_newest_first_in_pages(shared, job_id):
    for i in range(7):
        shared.post({"cmd": "echo", "data": i, "job_id": f"{job_id}-{i}"}, wait=10)
    first = shared.get("/jobs", limit=3)
    assert first.status == 200
    assert [job["job_id"] for job in first.body["jobs"]] == [f"{job_id}-{i}" for i in (6, 5, 4)]
    second = shared.get("/jobs", limit=3, before=first.body["next"])
    assert [job["job_id"] for job in second.body["jobs"]] == [f"{job_id}-{i}" for i in (3, 2, 1)]
    job = first.body["jobs"][0]
    assert (job["state"], job["status"]) == ("data_available", 3)
    assert {key: job["steps"][0][key] for key in ("from", "to", "cmd", "state", "attempt")} == {
        **{"from": "client", "to": "end_job", "cmd": "echo"},
        **{"state": "data_available", "attempt": 1},
    }
    # Through to the end, each once.
    seen, mark = [], ""
    while mark is not None:
        page = shared.get("/jobs", limit=10, **({"before": mark} if mark else {})).body
        seen += [job["job_id"] for job in page["jobs"]]
        mark = page["next"]
    assert len(seen) == len(set(seen))
    assert {f"{job_id}-{i}" for i in range(7)} <= set(seen)


def test_jobs_are_listed_by_state(shared, job_id):
    commands = {
        "data_available": {"cmd": "echo"},
        "error": {"cmd": "fail"},
        "processing": {"cmd": "sleep", "data": 2.5},
        "start": {"cmd": "echo", "delay_s": 3600},
    }
    for state, command in commands.items():
        shared.post({**command, "job_id": f"{job_id}-{state}"})
    for state in commands:
        until(lambda state=state: shared.get(f"/jobs/{job_id}-{state}").body["state"] == state, f"one is in {state}")
    for state in commands:
        jobs = {job["job_id"]: job for job in shared.get("/jobs", state=state, limit=1000).body["jobs"]}
        assert (jobs[f"{job_id}-{state}"]["state"], jobs[f"{job_id}-{state}"]["status"]) == (state, STATUS[state])
        assert not jobs.keys() & {f"{job_id}-{other}" for other in commands if other != state}


def test_jobs_are_found_by_cmd_and_time(shared, job_id):
    shared.post([{"cmd": "add", "data": [1], "job_id": f"{job_id}-{n}"} for n in range(2)], wait=10)
    accepted_ms = shared.get(f"/jobs/{job_id}-0").body["steps"][0]["accepted_ms"]
    moment = dt.datetime.fromtimestamp(accepted_ms / 1000, dt.UTC)
    since, until_ = (moment + dt.timedelta(seconds=away) for away in (-1, 1))
    for query in (
        {"cmd": "add", "since": since.isoformat(), "until": until_.isoformat()},
        {"cmd": "add", "since": accepted_ms - 1000, "until": accepted_ms + 1000, "state": "data_available"},
    ):
        found = [job["job_id"] for job in shared.get("/jobs", **query).body["jobs"]]
        assert {f"{job_id}-0", f"{job_id}-1"} <= set(found)
    assert shared.get("/jobs", cmd="add", until=since.isoformat()[:19] + "Z").status == 200
    before = shared.get("/jobs", cmd="add", until=accepted_ms - 60_000, limit=1000).body["jobs"]
    assert f"{job_id}-0" not in {job["job_id"] for job in before}
    assert not shared.get("/jobs", cmd="no_such_function").body["jobs"]


def test_a_list_costs_what_it_shows(shared, job_id):
    """Not the data and results of its jobs."""
    steps = [{"from": f"s{n}", "cmd": "echo", "data": "x" * 900_000, "job_id": job_id} for n in range(8)]
    shared.post(steps, wait=20, headers={"Operation": "workflow"})
    rest = shared.pids()["rest"]
    shared.get("/jobs", limit=1)
    before = rss_bytes(rest)
    for _ in range(5):
        listed = shared.get("/jobs", limit=1).body["jobs"]
    assert listed[0]["job_id"] == job_id
    assert rss_bytes(rest) - before < 4 << 20
    assert shared.get("/jobs", before="9999999999999-0", until=1, limit=1).body["jobs"] == []


def test_a_traceparent_that_is_no_utf_8_is_ignored(shared):
    assert shared.request("GET", "/healthz", None, {"traceparent": "\xff"}).status == 200


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"limit": 0}, "limit"),
        ({"limit": "x"}, "limit"),
        ({"limit": 10**9}, "limit"),
        ({"limit": ""}, "limit"),
        ({"limit": "2.5"}, "limit"),
        ({"limit": "1_0"}, "limit"),
        ({"limit": "1" * 5000}, "limit"),
        ({"state": "done"}, "state"),
        ({"state": ""}, "state"),
        ({"before": "x"}, "before"),
        ({"before": ""}, "before"),
        ({"before": "0-0"}, "before"),
        ({"before": "-5"}, "before"),
        ({"before": "9" * 30}, "before"),
        ({"before": "1-2-3"}, "before"),
        ({"cmd": "no cmd"}, "cmd"),
        ({"since": "yesterday"}, "since"),
        ({"until": "2026-01-31T12:00:00"}, "until"),
        ({"until": "-1"}, "until"),
    ],
    ids=str,
)
def test_a_bad_list_is_refused(shared, query, field):
    refused = shared.get("/jobs", **query)
    assert (refused.status, refused.error["code"], refused.error["field"]) == (400, "bad_field", field)


@pytest.mark.parametrize("before", ["1", "1-1", "9" * 18, f"{'9' * 18}-{'9' * 18}"])
@pytest.mark.parametrize("state", [None, *STATUS])
def test_any_mark_of_the_right_form_is_good(shared, before, state):
    answer = shared.get("/jobs", before=before, limit=2, **({"state": state} if state else {}))
    assert answer.status == 200
    assert len(answer.body["jobs"]) <= 2


def test_failures_are_listed_in_pages(shared, job_id):
    shared.post([{"cmd": "fail", "job_id": f"{job_id}-{i}"} for i in range(5)], wait=20)
    seen, mark = [], {}
    while mark is not None and len(seen) < 5:
        page = shared.get("/jobs", state="error", limit=2, **mark).body
        seen += [job["job_id"] for job in page["jobs"]]
        mark = page["next"] and {"before": page["next"]}
    assert sorted(seen[:5]) == [f"{job_id}-{i}" for i in range(5)]


def test_a_job_is_shown_whole(shared, job_id):
    shared.post({"cmd": "echo", "data": {"a": 1}, "job_id": job_id}, wait=10)
    job = shared.get(f"/jobs/{job_id}").body
    assert (job["job_id"], job["status"], job["state"], job["EOJ"]) == (job_id, 3, "data_available", {"a": 1})
    [only] = job["steps"]
    assert only["result"] == {"EOJ": {"a": 1}}
    assert only["accepted_ms"] <= only["began_ms"] <= only["ended_ms"]
    assert abs(only["ended_ms"] / 1000 - time.time()) < 60


def test_a_failed_job_is_shown_with_its_traceback(shared, job_id):
    shared.post({"cmd": "fail", "job_id": job_id}, wait=10)
    job = shared.get(f"/jobs/{job_id}").body
    assert (job["state"], "EOJ" in job) == ("error", False)
    error = step(shared.get(f"/jobs/{job_id}"))["error"]
    assert error["type"] == "ValueError"
    assert "raise ValueError" in error["traceback"]
    assert "exesys/daemons" not in error["traceback"], "it begins at the user's code"


def test_the_log_of_a_job(shared, job_id):
    shared.post({"cmd": "prints", "data": 2, "job_id": job_id}, wait=10)
    told = shared.get(f"/jobs/{job_id}/log").body
    log = "line 1\nINFO logged 1\nline 2\nINFO logged 2\n"
    assert told == {
        "job_id": job_id,
        "steps": [{"from": "client", "to": "end_job", "attempts": [{"attempt": 1, "log": log}]}],
    }
    for accept in ("text/plain", "text/plain;q=0.9, */*;q=0.1", "text/html, Text/Plain"):
        plain = shared.get(f"/jobs/{job_id}/log", headers={"Accept": accept})
        assert (plain.status, plain.body) == (200, log)
        assert plain.headers["x-content-type-options"] == "nosniff"
    for accept in ("*/*", "application/json", "application/json, text/plain, */*"):
        assert shared.get(f"/jobs/{job_id}/log", headers={"Accept": accept}).body == told


@pytest.mark.parametrize("path", ["/jobs/nowhere", "/jobs/nowhere/log"])
def test_an_unknown_job_is_not_found(shared, path):
    refused = shared.get(path)
    assert (refused.status, refused.error["code"]) == (404, "not_found")
    assert "nowhere" in refused.error["message"]


def test_functions_are_listed(shared):
    told = shared.get("/functions").body
    functions = {each["name"]: each for each in told["functions"]}
    assert functions["echo"]["module"] == "exesys_test"
    assert functions["echo"]["doc"] == "Return the data as it came."
    assert functions["echo"]["signature"].startswith("(data")
    assert "search" in functions
    assert told["broken"] == {}


def test_workers_are_listed(shared):
    [worker] = shared.get("/workers").body["workers"]
    assert worker["pid"] == shared.pids()["worker"]
    assert (worker["slots"], worker["queues"], worker["draining"]) == (2, ["default"], False)
    assert worker["capacity"] >= 2
    assert 0 <= worker["silent_s"] < 5


def test_health(shared):
    assert shared.get("/healthz").body == {"status": "ok"}
    assert shared.get("/readyz").body == {"status": "ready"}


ENDPOINTS = ["/jobs", "/jobs/a", "/jobs/a/log", "/functions", "/workers", "/healthz", "/readyz"]


def test_unknown_pages_and_methods(shared):
    refused = shared.get("/no/such/page")
    assert (refused.status, refused.error["code"]) == (404, "not_found")
    assert "/no/such/page" in refused.error["message"]
    assert "POST /sys_cmd, GET /jobs, GET /jobs/<job_id>, DELETE /jobs/<job_id>, POST" in refused.error["fix"]
    for path in ("/sys_cmd/", "/syscmd", "/Sys_Cmd"):
        refused = shared.request("POST", path, b"{}", {"Content-Type": "application/json"})
        assert (refused.status, refused.error["fix"][:22]) == (404, "Did you mean /sys_cmd?")
    refused = shared.get("/sys_cmd")
    assert (refused.status, refused.error["code"]) == (405, "method_not_allowed")
    assert refused.error["message"] == "/sys_cmd does not take GET."
    assert refused.headers["allow"] == "POST"
    for path in (*ENDPOINTS, "/jobs/a/retry"):
        taken = {"/jobs/a": "DELETE,GET", "/jobs/a/retry": "POST"}.get(path, "GET")
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - set(taken.split(",")):
            refused = shared.request(method, path)
            assert (refused.status, refused.headers["allow"], refused.error["fix"]) == (405, taken, f"Use {taken}.")


@pytest.mark.parametrize("path", ENDPOINTS)
def test_head_is_get_without_the_body(shared, path):
    connection = http.client.HTTPConnection("127.0.0.1", shared.rest_port, timeout=30)
    connection.request("HEAD", path)
    head = connection.getresponse()
    assert (head.status, head.read()) == (shared.get(path).status, b"")
    assert (head.headers["Content-Type"], int(head.headers["Content-Length"]) > 0) == ("application/json", True)
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "field", "fix"),
    [
        ("POST", "/sys_cmd?wiat=5", "wiat", "Did you mean `wait`?"),
        ("POST", "/sys_cmd?wait=1&cmd=echo", "cmd", "Known parameters: wait."),
        ("POST", "/sys_cmd?wait=1&wait=2", "wait", "Give it once."),
        ("GET", "/jobs?limt=5", "limt", "Did you mean `limit`?"),
        ("GET", "/jobs?page=2", "page", "Known parameters: limit, state, cmd, since, until, before."),
        ("GET", "/jobs?cmd=", "cmd", "Use 1 to 128 of the characters A-Z a-z 0-9 _ . -"),
        ("GET", "/jobs?limit=5&limit=6", "limit", "Give it once."),
        *(("GET", f"{path}?wait=5", "wait", "Send none: this endpoint has none.") for path in ENDPOINTS[1:]),
    ],
)
def test_an_unknown_parameter_is_refused(shared, method, path, field, fix):
    newest = shared.get("/jobs", limit=1).body
    body, headers = (b'{"cmd":"echo"}', {"Content-Type": "application/json"}) if method == "POST" else (None, None)
    refused = shared.request(method, path, body, headers)
    assert (refused.status, refused.error["code"]) == (400, "bad_field")
    assert (refused.error["field"], refused.error["fix"]) == (field, fix)
    assert shared.get("/jobs", limit=1).body == newest, "nothing was taken"


@pytest.mark.parametrize("operation", ["workflow", "Workflow", " workflow "])
def test_with_the_header_a_command_waits(shared, job_id, operation):
    """What then becomes of it is in test_workflows.py."""
    command = {"from": "B", "cmd": "echo", "job_id": job_id}
    answer = shared.post(command, headers={"Operation": operation})
    assert (answer.status, answer.body["status"], answer.body["state"]) == (202, 1, "standby")
    assert shared.post({"to": "B", "cmd": "echo", "data": 1, "job_id": job_id}, wait=10).status == 200
    assert shared.post(command, wait=10, headers={"Operation": operation}).body["result"] == {"EOJ": 1}
    assert "is unknown" in shared.post({"cmd": "echo"}, headers={"Operation": "dance"}).error["message"]


def test_an_empty_body_is_called_empty(shared):
    for body in ("", "\n"):
        refused = shared.post(body)
        assert (refused.status, refused.error["message"]) == (400, "the body is empty.")


def test_one_connection_may_carry_many_requests(shared, job_id):
    connection = http.client.HTTPConnection("127.0.0.1", shared.rest_port, timeout=30)
    for i in range(20):
        body = json.dumps({"cmd": "echo", "data": i, "job_id": f"{job_id}-{i}"})
        connection.request("POST", "/sys_cmd?wait=10", body, {"Content-Type": "application/json; charset=utf-8"})
        answer = connection.getresponse()
        assert json.loads(answer.read())["result"] == {"EOJ": i}
    connection.close()
