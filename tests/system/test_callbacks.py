"""Callbacks on a real system: each end is told, signed, again after a failure, and never not at all."""

import http.client
import json
import os
import signal
import statistics
import threading
import time

import pytest
from harness import until
from receiver import Receiver

TOLD_S = 15.0
ROUNDS = 2


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(
        callbacks_hosts="127.0.0.1, *.example.org", callbacks_backoff_s=0.1, callbacks_timeout_s=1, callbacks_tries=30
    )


@pytest.fixture
def receiver():
    made = Receiver()
    yield made
    made.close()


def key(system):
    return (system.home / "data" / "callback-key").read_text().strip()


def send(system, receiver, job_id, cmd="echo", data=1, wait=None, **options):
    body = {"cmd": cmd, "data": data, "job_id": job_id, "notify": f"{receiver.url}/hook/{job_id}", **options}
    return system.post(body, wait=wait)


def told(receiver, job_id, count=1):
    return until(lambda: (found := receiver.of(job_id)) and len(found) >= count and found, f"{job_id} told", TOLD_S)


def notify_of(system, job_id):
    [step] = system.get(f"/jobs/{job_id}").body["steps"]
    return step["notify"]


# --- what is told -----------------------------------------------------------------


def test_the_end_of_a_job_is_told_once_and_signed(system, receiver, tell):
    assert send(system, receiver, "well-1", data={"a": 1}).status == 202
    [one] = told(receiver, "well-1")
    assert one.path == "/hook/well-1"
    assert one.headers["content-type"] == "application/json"
    assert one.body == {
        "job_id": "well-1",
        "from": "client",
        "to": "end_job",
        "cmd": "echo",
        "status": 3,
        "state": "data_available",
        "result": {"EOJ": {"a": 1}},
        "attempts": 1,
    }
    assert one.is_signed(key(system))
    assert not one.is_signed("another key")
    assert abs(int(one.headers["x-exesys-timestamp"]) - time.time()) < 60
    until(lambda: notify_of(system, "well-1")["state"] == "sent", "it is noted")
    assert notify_of(system, "well-1") == {"url": f"{receiver.url}/hook/well-1", "state": "sent", "tries": 1}
    assert len(receiver.of("well-1")) == 1
    late = []
    for number in range(20):
        send(system, receiver, f"late-{number}", wait=10)
        ended = time.monotonic()
        late.append(told(receiver, f"late-{number}")[0].at - ended)
    tell(f"callbacks: told {statistics.median(late):.3f} s after the end (p50), {max(late):.3f} s (max of 20)")
    assert max(late) < 2


def test_the_key_is_for_its_owner_alone_and_stands_nowhere_else(system):
    path = system.home / "data" / "callback-key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert key(system) not in system.logs(10_000)
    for pid in system.belonging():
        try:
            with open(f"/proc/{pid}/environ", "rb") as environ:
                assert key(system).encode() not in environ.read()
        except FileNotFoundError:
            continue


def test_failures_cancels_and_what_fails_with_another_are_told(system, receiver):
    send(system, receiver, "bad-1", "fail", "no", retries=1, backoff_s=0.05)
    send(system, receiver, "crash-1", "crash", None)
    send(system, receiver, "cancel-1", delay_s=600)
    system.request("DELETE", "/jobs/cancel-1")
    flow = [
        {"from": "a", "to": "b", "cmd": "fail", "data": "no"},
        {"from": "b", "cmd": "echo", "notify": f"{receiver.url}/b"},
    ]
    body = json.dumps([{**step, "job_id": "flow-1"} for step in flow])
    headers = {"Content-Type": "application/json", "Operation": "workflow"}
    assert system.request("POST", "/sys_cmd", body, headers).status == 202
    [bad] = told(receiver, "bad-1")
    assert (bad.body["status"], bad.body["state"], bad.body["attempts"]) == (4, "error", 2)
    assert set(bad.body["error"]) == {"type", "message", "attempts"}
    assert bad.body["error"]["attempts"] == 2
    assert told(receiver, "crash-1")[0].body["error"]["type"] == "Crashed"
    assert told(receiver, "cancel-1")[0].body["error"]["type"] == "Cancelled"
    [step] = told(receiver, "flow-1")
    assert (step.body["from"], step.body["error"]["type"]) == ("b", "PredecessorFailed")
    assert all(each.is_signed(key(system)) for each in receiver.told)
    assert len(receiver.told) == 4


def test_a_job_retried_by_hand_is_told_anew(system, receiver):
    send(system, receiver, "again-1", "fail", "no")
    [first] = told(receiver, "again-1")
    assert system.request("POST", "/jobs/again-1/retry").status == 202
    first, second = told(receiver, "again-1", 2)
    assert (first.body["attempts"], second.body["attempts"]) == (1, 2)
    assert first.delivery != second.delivery


def test_the_python_client_and_the_command_line_send_it_too(system, receiver):
    with system.client() as client:
        client.submit("echo", 1, job_id="py-1", notify=f"{receiver.url}/py").result(20)
    said = system.exesys("submit", "echo", "1", "--job-id", "cli-1", "--notify", f"{receiver.url}/cli", "--wait", "20")
    assert said.code == 0, said.err
    assert [told(receiver, job_id)[0].path for job_id in ("py-1", "cli-1")] == ["/py", "/cli"]


# --- what is refused ----------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        *(
            "ftp://127.0.0.1/",
            "nonsense",
            "http://user:secret@127.0.0.1/",
            "http://other.example/",
            "http://localhost/",
        ),
        *("http://10.0.0.1/", "http://169.254.169.254/latest", "http://127.0.0.2/", "http://[::1]/", "http://8.8.8.8/"),
        *("http://2130706433/", "http://127.1/", "http://example.org/", 5, None),
    ],
)
def test_where_it_may_not_go_is_refused_and_leaves_nothing(system, url):
    before = system.everything()
    refused = system.post({"cmd": "echo", "job_id": "no-1", "notify": url})
    assert refused.status == 400
    assert (refused.error["code"], refused.error["field"]) == ("bad_field", "notify")
    assert refused.error["fix"]
    assert "secret" not in str(refused.body)
    if url == "http://other.example/":
        assert "127.0.0.1, *.example.org" in refused.error["fix"]
    assert system.everything() == before


def test_all_doors_refuse_alike(system):
    url = "http://10.0.0.1/"
    by_rest = system.post({"cmd": "echo", "notify": url}).error
    said = system.exesys("submit", "echo", "1", "--notify", url, "--json")
    assert said.code == 2
    assert said.json["error"] == by_rest
    with system.client() as client:
        handle = client.submit("echo", 1, notify=url)
        with pytest.raises(Exception, match="may not reach") as error:
            handle.accepted(10)
    assert error.value.problem._asdict() == by_rest
    headers = {"Content-Type": "application/json", "Operation": "workflow"}
    flow = json.dumps([{"from": "a", "to": "b", "cmd": "echo"}, {"from": "b", "cmd": "echo", "notify": url}])
    assert system.request("POST", "/sys_cmd", flow, headers).error["field"] == "notify"


def test_without_hosts_none_is_told(make):
    system = make()
    error = system.post({"cmd": "echo", "notify": "https://example.org/"}).error
    assert (error["code"], error["field"]) == ("bad_field", "notify")
    assert error["fix"] == "Allowed: none. List the host in [callbacks] hosts, and restart."
    assert not (system.home / "data" / "callback-key").exists()


# --- tries --------------------------------------------------------------------------


def test_a_receiver_that_fails_is_told_until_it_takes_it(system, receiver):
    receiver.status = lambda told: 500 if len(receiver.of("flaky-1")) < 4 else 204
    send(system, receiver, "flaky-1")
    waiting = until(lambda: (found := notify_of(system, "flaky-1")).get("error") and found, "a try failed", TOLD_S)
    assert waiting["state"] == "waiting"
    assert "500" in waiting["error"]
    tries = told(receiver, "flaky-1", 4)
    assert len({each.delivery for each in tries}) == 1
    until(lambda: notify_of(system, "flaky-1")["state"] == "sent", "it is noted")
    assert notify_of(system, "flaky-1")["tries"] == 4
    assert len(receiver.of("flaky-1")) == 4


def test_one_that_is_never_taken_is_given_up_logged_and_counted(make, receiver):
    system = make(callbacks_hosts="127.0.0.1", callbacks_backoff_s=0.05, callbacks_tries=3)
    receiver.status = 302
    send(system, receiver, "never-1", wait=10)
    until(lambda: notify_of(system, "never-1")["state"] == "failed", "it is given up", TOLD_S)
    shown = notify_of(system, "never-1")
    assert shown["tries"] == 3
    assert "302" in shown["error"]
    assert {each.path for each in receiver.told} == {"/hook/never-1"}, "no redirect is followed"
    assert len(receiver.told) == 3
    said = system.exesys("why", "never-1")
    assert "could not be told of its end" in said.out
    assert "302" in said.out
    assert "is given up after 3 tries" in system.log_of("controller")
    assert "/hook/" not in system.log_of("controller")
    assert system.get("/callbacks").body == {"waiting": 0, "tried": 3, "sent": 0, "failed": 1}


def test_receivers_that_hang_hold_up_neither_others_nor_stops(system, receiver, tell):
    hanging = Receiver()
    over = threading.Event()
    hanging.status = lambda told: (over.wait(30) and 200) or 200
    try:
        for number in range(30):
            send(system, hanging, f"hang-{number}")
        until(lambda: len(hanging.told) >= 4, "they hang", TOLD_S)
        sent = time.monotonic()
        send(system, receiver, "beside-1")
        [beside] = told(receiver, "beside-1")
        with system.client() as client, system.redis() as redis:
            took = []
            for number in range(10):
                name = client.start_runner("lives.idle", None, type="stops", uuid=f"s{number}")
                until(lambda name=name: redis.hget(f"exesys:runner:{name}", "state") == b"running", "it runs")
                began = time.monotonic()
                redis.set(f"run:{name}", 0)
                until(
                    lambda name=name: redis.hget(f"exesys:runner:{name}", "state") == b"stopped", "stopped", 10, 0.002
                )
                took.append(time.monotonic() - began)
        tell(
            f"callbacks: while others hang one is told after {beside.at - sent:.2f} s,"
            f" a stop is over after {statistics.median(took) * 1000:.0f} ms (p50), {max(took) * 1000:.0f} ms (max)"
        )
        assert beside.at - sent < 3
        assert statistics.median(took) < 0.5
        over.set()
        until(lambda: system.get("/callbacks").body["waiting"] == 0, "those that hung are told too")
    finally:
        over.set()
        hanging.close()


# --- when something dies --------------------------------------------------------------


def kill(system, program):
    pid = until(lambda: system.pids().get(program), f"{program} is there")
    os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("victim", ["controller", "router", "redis"])
def test_every_end_is_told_although_something_is_killed(system, receiver, tell, victim):
    receiver.status = lambda told: time.sleep(0.02) or 200
    names = [f"{victim}-{number}" for number in range(60 * ROUNDS)]
    for number in range(ROUNDS):
        until(system.ready, "all is there")
        for job_id in names[number * 60 : (number + 1) * 60]:
            until(lambda job_id=job_id: accepted(system, receiver, job_id), f"{job_id} is taken", every_s=0.05)
        before = len(receiver.told)
        until(lambda before=before: len(receiver.told) > before, "some are told", TOLD_S, 0.001)
        kill(system, victim)
    until(lambda: {each.body["job_id"] for each in receiver.told} >= set(names), "all are told", 60)
    deliveries = {}
    for each in receiver.told:
        assert each.is_signed(key(system))
        assert deliveries.setdefault(each.body["job_id"], each.delivery) == each.delivery
    twice = len(receiver.told) - len(set(deliveries))
    until(lambda: system.get("/callbacks").body["waiting"] == 0, "none is left", 30)
    tell(f"callbacks: {len(names)} ends, {ROUNDS} times kill -9 of {victim}: all told, {twice} more than once")


def accepted(system, receiver, job_id):
    try:
        return send(system, receiver, job_id).status in (200, 202)
    except (OSError, http.client.HTTPException):
        return False
