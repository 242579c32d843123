"""Queues on a real system: who serves them, and what holds them back."""

import json
import os
import signal
import time

import pytest
from harness import until

INI = """
[worker:mail]
queues = mail, slow
slots = 4

[queue:slow]
concurrency = 2

[queue:tight]
depth = 2
"""


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(ini=INI)


@pytest.fixture(scope="module")
def client(system):
    with system.client() as client:
        yield client


def times(system, handles):
    """Return when each job began and ended, in ms."""
    jobs = [system.get(f"/jobs/{handle.job_id}").body["steps"][0] for handle in handles]
    return [(job["began_ms"], job["ended_ms"]) for job in jobs]


def most_at_once(spans):
    return max(sum(begin <= other < end for begin, end in spans) for other, _ in spans)


def test_a_further_worker_serves_the_queues_it_names(system, client):
    assert "worker-mail" in system.pids()
    assert client.run("add", [1, 2], queue="mail", timeout=10) == 3
    [mail] = [each for each in system.get("/workers").body["workers"] if each["queues"] == ["mail", "slow"]]
    assert mail["slots"] == 4
    before = system.pids()["worker-mail"]
    os.kill(before, signal.SIGKILL)
    until(lambda: system.pids().get("worker-mail", before) != before, "it is started again")
    assert client.run("add", [1, 3], queue="mail", timeout=20) == 4


def test_a_queue_of_nobody_says_so(system):
    answer = system.post({"cmd": "noop", "queue": "nobody"}, wait=0.2).body
    assert answer["waits"] == "no worker serves the queue nobody"
    said = system.exesys("queue", "list")
    assert "no worker serves the queue nobody" in said.err
    [listed] = [each for each in system.get("/queues").body["queues"] if each["name"] == "nobody"]
    assert (listed["waiting"], listed["workers"], listed["paused"]) == (1, 0, False)
    assert listed["oldest_s"] > 0


def test_a_queue_that_nobody_knows_can_be_paused_and_is_gone_when_it_is_resumed(system):
    said = system.exesys("queue", "pause", "mali")
    assert said.out == "mali: paused, no limits\n"
    assert "no worker serves the queue mali" in said.err
    assert "`bin/exesys queue resume mali` takes it off the list again" in said.err
    assert "Did you mean `mail`?" in said.err
    listed = {line.split("\t")[0]: line for line in system.exesys("queue", "list").out.splitlines()}
    assert listed["mali (paused)"].split("\t")[3] == "-", "nothing is counted without a limit"
    assert system.exesys("queue", "resume", "mali").err == ""
    assert "mali" not in system.exesys("queue", "list").out
    assert "mali" not in [each["name"] for each in system.get("/queues").body["queues"]]
    system.exesys("submit", "noop", "--queue", "mali", "--key", "k", "--job-id", "mali-1")
    [listed] = [each for each in system.get("/queues").body["queues"] if each["name"] == "mali"]
    assert (listed["waiting"], listed["oldest_s"] > 0) == (1, True)
    system.exesys("cancel", "mali-1")
    assert "mali" not in system.exesys("queue", "list").out


def test_a_paused_queue_goes_on_where_it_was(system, client):
    assert system.exesys("queue", "pause", "mail").out == "mail: paused, no limits\n"
    handle = client.submit("add", [2, 3], queue="mail")
    handle.accepted(10)
    assert system.get("/queues/mail").body["waiting"] == 1
    router = system.pids()["router"]
    os.kill(router, signal.SIGKILL)
    until(lambda: system.pids().get("router", router) != router and system.ready(), "a new router serves")
    assert system.get("/queues/mail").body["paused"] is True
    answer = system.post({"cmd": "noop", "queue": "mail", "job_id": "paused-1"}, wait=0.3).body
    assert (answer["state"], answer["waits"]) == ("start", "the queue mail is paused")
    assert "the queue mail is paused" in system.exesys("why", "paused-1").out
    since = time.monotonic()
    assert system.request("POST", "/queues/mail/resume").body["paused"] is False
    assert handle.result(10) == 5
    assert time.monotonic() - since < 5


def test_a_full_queue_is_429_with_when_to_come_again(system):
    system.request("POST", "/queues/tight/pause")
    answers = [system.post({"cmd": "noop", "queue": "tight", "job_id": f"tight-{number}"}) for number in range(3)]
    assert [answer.status for answer in answers] == [202, 202, 429]
    assert answers[2].headers["retry-after"]
    assert answers[2].body["error"]["code"] == "queue_full"
    assert system.get("/jobs/tight-2").status == 404


def test_no_more_run_at_once_than_the_ini_says(system, client):
    handles = client.submit_many("sleep", [0.1] * 8, queue="slow")
    for handle in handles:
        handle.result(20)
    assert most_at_once(times(system, handles)) == 2


def test_no_more_begin_than_the_rate_says(system, client):
    said = system.exesys("queue", "set", "mail", "--rate", "5/s")
    assert said.out == "mail: open, 5/s\n"
    handles = client.submit_many("noop", [None] * 14, queue="mail")
    for handle in handles:
        handle.result(20)
    began = sorted(begin for begin, _ in times(system, handles))
    print(f"14 jobs at 5/s began within {began[-1] - began[0]} ms")
    # The rate is that of handing them out; from there on each takes its own time.
    assert all(later - sooner >= 800 for sooner, later in zip(began, began[5:], strict=False)), began
    assert 1800 <= began[-1] - began[0] <= 4000
    assert system.exesys("queue", "set", "mail", "--rate", "none").out == "mail: open, no limits\n"


def test_of_one_key_one_runs_at_a_time_and_keys_run_side_by_side(system, client):
    one = client.submit_many("sleep", [0.05] * 6, queue="mail", key="one")
    other = client.submit_many("sleep", [0.05] * 6, queue="mail", key="other", key_limit=2)
    for handle in one + other:
        handle.result(20)
    assert most_at_once(times(system, one)) == 1
    assert most_at_once(times(system, other)) == 2
    assert most_at_once(times(system, one + other)) == 3


def test_a_flood_of_one_key_lets_the_other_wait_at_most_two_turns(system, client):
    flood = client.submit_many("noop", [None] * 10_000, key="flood")
    flood[-1].accepted(30)
    few = [client.submit("noop", key="few") for _ in range(20)]
    for handle in few:
        handle.result(30)
    ends = {handle.job_id: span for handle, span in zip(few, times(system, few), strict=True)}
    with system.redis() as redis:
        done = sum(
            redis.exists(*(f"client:{handle.job_id}:data_available" for handle in flood[at : at + 500]))
            for at in range(0, 10_000, 500)
        )
    print(f"20 jobs of a key ended while {done} of 10,000 of the other did")
    assert len(ends) == 20
    assert done < 10_000
    for handle in flood:
        handle.result(60)


@pytest.mark.parametrize(
    ("path", "body", "status", "fix"),
    [
        ("/queues/mail", {"rate": "ten/m"}, 400, "such as 100/m"),
        ("/queues/mail", {"concurrency": 0}, 400, "a whole number, 1 to"),
        ("/queues/mail", {"concurency": 1}, 400, "Did you mean `concurrency`?"),
        ("/queues/mail", ["rate"], 400, ""),
        ("/queues/a:b", {"rate": "1/s"}, 400, "Use 1 to 128"),
    ],
)
def test_settings_that_make_no_sense_are_refused_and_change_nothing(system, path, body, status, fix):
    before = system.get("/queues/mail").body
    answer = system.request("PATCH", path, json.dumps(body), {"Content-Type": "application/json"})
    assert answer.status == status
    assert fix in answer.body["error"]["fix"]
    after = system.get("/queues/mail").body
    assert {**after, "oldest_s": None} == {**before, "oldest_s": None}


def test_the_command_line_refuses_what_makes_no_sense(system):
    said = system.exesys("queue", "set", "mail", "--rate", "ten/m")
    assert (said.code, "such as 100/m" in said.err) == (2, True)
    said = system.exesys("queue", "set", "mail")
    assert (said.code, "nothing to set" in said.err) == (2, True)
    listed = {each["name"]: each for each in system.exesys("queue", "list", "--json").json["queues"]}
    assert listed["slow"]["concurrency"] == 2
    assert listed["slow"]["origin"] == "ini"


def test_a_foreign_key_in_the_place_of_a_queue_stops_no_other(make):
    """Also not a router that starts: it takes no settings from there, and the doctor names the key."""
    system = make()
    with system.redis() as redis:
        redis.set("exesys:queue:spoilt", "somebody else's")
        redis.sadd("exesys:queues", "spoilt", b"\xff\xfe")
    os.kill(system.pids()["router"], signal.SIGKILL)
    until(system.ready, "the router is back")
    assert system.exesys("submit", "echo", "1", "--wait", "5").out.strip() == "1"
    assert system.exesys("queue", "list").code == 0
    [check] = [each for each in system.exesys("doctor", "--json").json if each["name"] == "queues"]
    assert (check["state"], "exesys:queue:spoilt is a key of another kind" in check["message"]) == ("fail", True)
    with system.redis() as redis:
        redis.delete("exesys:queue:spoilt")
    [check] = [each for each in system.exesys("doctor", "--json").json if each["name"] == "queues"]
    assert check["state"] == "ok"
