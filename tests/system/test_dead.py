"""Jobs that failed: listed, shown, run again and removed, over REST and on the command line."""

import json
import time

import pytest
from harness import until
from receiver import Receiver


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(callbacks_hosts="127.0.0.1", callbacks_backoff_s=60)


@pytest.fixture(autouse=True)
def clean(system):
    """Each test begins with nothing that failed."""
    assert system.request("DELETE", "/dead").body["next"] is None
    assert system.get("/dead").body == {"dead": [], "next": None}


def failed(system, *job_ids, cmd="fail", **options):
    for job_id in job_ids:
        answer = system.post({"cmd": cmd, "data": None, "job_id": job_id, **options}, wait=20)
        assert answer.body["state"] == "error", answer


def listed(system, **query):
    return [each["job_id"] for each in system.get("/dead", **query).body["dead"]]


def test_the_list_shows_when_what_and_why(system):
    before_ms = time.time() * 1000
    failed(system, "d-1", retries=1, backoff_s=0.05)
    [one] = system.get("/dead").body["dead"]
    assert before_ms <= one.pop("failed_ms") <= time.time() * 1000
    assert one.pop("error").keys() == {"type", "message"}
    assert one == {"job_id": "d-1", "from": "client", "to": "end_job", "cmd": "fail", "attempts": 2}
    said = system.exesys("dead", "list")
    assert said.code == 0
    header, row = (line.split("\t") for line in said.out.splitlines())
    assert header == ["failed", "job_id", "step", "cmd", "attempts", "error"]
    assert row[1:5] == ["d-1", "client > end_job", "fail", "2"]
    assert system.exesys("dead", "list", "--json").json["dead"][0]["job_id"] == "d-1"


def test_pages_and_filters(system):
    failed(system, *(f"p-{number}" for number in range(5)))
    failed(system, "c-1", cmd="crash")
    assert listed(system) == ["c-1", "p-4", "p-3", "p-2", "p-1", "p-0"]
    first = system.get("/dead", limit=4).body
    second = system.get("/dead", limit=4, before=first["next"]).body
    assert [each["job_id"] for page in (first, second) for each in page["dead"]] == listed(system)
    assert second["next"] is None
    assert listed(system, cmd="crash") == ["c-1"]
    assert listed(system, older_s=3600) == []
    for query in ({"limit": 0}, {"before": "x"}, {"cmd": "a b"}, {"older_s": "soon"}, {"state": "error"}):
        assert system.get("/dead", **query).status == 400


def test_one_is_shown_and_run_again(system):
    failed(system, "s-1")
    shown = system.get("/dead/s-1").body
    assert shown["steps"][0]["error"]["traceback"]
    said = system.exesys("dead", "show", "s-1")
    assert json.loads(said.out)["job_id"] == "s-1"
    answer = system.request("POST", "/dead/s-1/retry")
    assert (answer.status, answer.body["retried"]) == (202, 1)
    until(lambda: listed(system) == ["s-1"], "it failed again")
    assert system.get("/jobs/s-1").body["steps"][0]["attempt"] == 2
    said = system.exesys("dead", "retry", "s-1")
    assert said.out == "1 step of job s-1 retried.\n"
    system.post({"cmd": "echo", "job_id": "well"}, wait=10)
    for method, path in (("GET", "/dead/well"), ("POST", "/dead/well/retry"), ("GET", "/dead/nobody")):
        assert system.request(method, path).error["code"] == "not_found"
    assert system.exesys("dead", "show", "well").code == 1


def test_a_purge_leaves_nothing_of_a_job(system):
    receiver = Receiver()
    receiver.status = 500
    before = {key for _, key in system.everything()}
    failed(system, "purged-1", notify=receiver.url)
    flow = [{"from": "a", "to": "b", "cmd": "fail", "job_id": "purged-2"}, {"from": "b", "cmd": "echo"}]
    headers = {"Content-Type": "application/json", "Operation": "workflow"}
    system.request("POST", "/sys_cmd", json.dumps(flow), headers)
    until(lambda: len(receiver.told) == 1, "its callback was tried")
    until(lambda: "purged-2" in listed(system), "it failed")
    assert system.request("DELETE", "/dead/purged-1").body == {"job_id": "purged-1", "purged": 1}
    said = system.exesys("dead", "purge", "purged-2")
    assert said.out == "2 steps of job purged-2 purged.\n"
    # Of the data database and of what is counted there may be more; of these jobs there is nothing.
    after = {key for _, key in system.everything()}
    assert not [key for key in after if "purged" in key]
    assert after - before <= {"exesys:callback-counts", "exesys:jobs"}
    assert system.get("/jobs/purged-1").status == 404
    for answer in (
        system.get("/jobs/purged-1"),
        system.get("/dead/purged-1"),
        system.request("DELETE", "/dead/purged-1"),
    ):
        assert answer.error["fix"].startswith("It was never sent, or was purged"), answer
    assert "or was purged" in system.exesys("jobs", "purged-1").err
    assert system.request("DELETE", "/dead/purged-1").error["code"] == "not_found"
    receiver.close()


def test_what_has_not_failed_is_not_purged(system):
    system.post({"cmd": "echo", "job_id": "later-1", "delay_s": 600})
    refused = system.request("DELETE", "/dead/later-1")
    assert refused.status == 409
    assert refused.error["code"] == "bad_state"
    assert "under way" in refused.error["message"]
    assert "Cancel it first" in refused.error["fix"]
    said = system.exesys("dead", "purge", "later-1")
    assert said.code == 2
    assert "under way" in said.err
    system.post({"cmd": "echo", "job_id": "well-1"}, wait=10)
    assert system.request("DELETE", "/dead/well-1").status == 409
    assert system.get("/jobs/well-1").body["state"] == "data_available"
    system.request("DELETE", "/jobs/later-1")
    assert system.request("DELETE", "/dead/later-1").status == 200
    assert system.request("DELETE", "/dead/nobody").status == 404


def test_all_at_once(system, tell):
    many = 300
    system.post([{"cmd": "fail", "job_id": f"all-{number}"} for number in range(many)])
    failed(system, "other-1", cmd="crash")
    until(lambda: len(listed(system, limit=1000)) == many + 1, "all failed")
    began = time.monotonic()
    answer = system.request("POST", "/dead/retry?cmd=fail")
    took = time.monotonic() - began
    assert answer.body == {"retried": many, "steps": many, "skipped": 0, "next": None}
    until(lambda: len(listed(system, limit=1000)) == many + 1, "all failed again")
    assert system.get("/jobs/all-7").body["steps"][0]["attempt"] == 2
    assert system.get("/jobs/other-1").body["steps"][0]["attempt"] == 3
    assert system.request("DELETE", "/dead?older_s=3600").body["purged"] == 0
    said = system.exesys("dead", "purge", "--all", "--cmd", "fail", "--json")
    assert said.json == {"purged": many, "steps": many, "skipped": 0}
    assert listed(system) == ["other-1"]
    assert system.exesys("dead", "retry", "--all").out == "1 job retried.\n"
    until(lambda: listed(system) == ["other-1"], "it crashed again")
    assert system.request("DELETE", "/dead").body == {"purged": 1, "steps": 1, "skipped": 0, "next": None}
    tell(f"dead: {many} jobs run again in {took:.2f} s by one request")


def test_a_large_number_goes_in_bounded_steps(system, tell):
    many = 2300
    for start in range(0, many, 1000):
        count = min(1000, many - start)
        system.post([{"cmd": "fail", "job_id": f"large-{start + number}"} for number in range(count)])
    with system.redis() as redis:
        until(lambda: redis.zcard("exesys:dead") == many, "all failed")
    began = time.monotonic()
    first = system.request("DELETE", "/dead").body
    assert 1000 <= first["purged"] < many
    assert first["next"]
    purged, mark, rounds = first["purged"], first["next"], 1
    while mark:
        answer = system.request("DELETE", f"/dead?before={mark}").body
        purged, mark, rounds = purged + answer["purged"], answer["next"], rounds + 1
    assert purged == many
    tell(f"dead: {many} jobs removed in {rounds} requests, {time.monotonic() - began:.2f} s")


def test_a_cmd_that_is_none_is_told_with_the_nearest(system):
    assert "nothing has failed" in system.exesys("dead", "retry", "--all", "--cmd", "fial").err
    failed(system, "typo-1")
    for words in (("list",), ("retry", "--all"), ("purge", "--all")):
        said = system.exesys("dead", *words, "--cmd", "fial")
        assert said.code == 0
        assert "no job that failed has the cmd `fial`. Did you mean `fail`?" in said.err
    assert "Those that have: fail." in system.exesys("dead", "retry", "--all", "--cmd", "xyz").err
    said = system.exesys("dead", "retry", "--all", "--cmd", "fail", "--older-s", "3600")
    assert (said.out, "nothing of `fail` has failed so long ago" in said.err) == ("0 jobs retried.\n", True)
    assert system.exesys("dead", "retry", "--all", "--cmd", "fail").err == ""


@pytest.mark.parametrize(
    "words",
    [("retry",), ("purge",), ("retry", "x", "--all"), ("purge", "x", "--cmd", "fail"), ("show",), ("shred", "x")],
)
def test_the_command_line_says_what_it_needs(system, words):
    said = system.exesys("dead", *words)
    assert said.code == 2
    assert said.err
