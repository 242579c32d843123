"""The command line: what it prints, what it gives to programs, and its exit codes.

0 well, 1 failed, 2 wrong usage or refused, 3 the system is not there, 4 time over.
"""

import json
import signal
import subprocess
import sys
import time
import uuid

import pytest
from harness import CHECKOUT, hear_ctrl_c, until

COMMANDS = (
    *("up", "down", "restart", "status", "reload", "logs", "doctor", "bench", "demo"),
    *("submit", "result", "jobs", "workflow", "why", "cancel", "retry", "dead", "functions"),
)


@pytest.fixture
def job_id():
    return f"cli-{uuid.uuid4()}"


def complaint(said, code):
    """An error for people: one sentence or two on stderr, nothing on stdout, no traceback."""
    assert said.code == code, said
    assert said.out == ""
    assert said.err.startswith("exesys: ")
    assert "Traceback" not in said.err
    return said.err


# --- the system -----------------------------------------------------------------------


def test_status(shared):
    said = shared.exesys("status")
    assert (said.code, said.err) == (0, "")
    assert f"http://127.0.0.1:{shared.rest_port}" in said.out
    assert f"router\tRUNNING\t{shared.pids()['router']}" in said.out
    assert "program\tstate\tpid\n" in said.out


def test_status_for_programs(shared):
    said = shared.exesys("status", "--json")
    assert said.code == 0
    status = said.json
    assert status["home"] == str(shared.home)
    assert status["rest"]["url"] == f"http://127.0.0.1:{shared.rest_port}"
    assert status["web"]["url"] == f"http://127.0.0.1:{shared.web_port}"
    assert status["redis"]["url"] == f"unix://{shared.home}/run/redis?db=0"
    assert status["bus"]["endpoint"] == shared.config.bus_endpoint
    assert {"mongo", "programs"} <= set(status)
    programs = {each["name"]: each for each in status["programs"]}
    assert {"redis", "router", "controller", "worker", "rest", "web"} <= set(programs)
    assert {each["state"] for each in programs.values()} == {"RUNNING"}
    pids = shared.pids()
    assert {name: each["pid"] for name, each in programs.items()} == {name: pids[name] for name in programs}


def test_doctor(shared):
    said = shared.exesys("doctor")
    assert said.code == 0, said
    assert "FAIL" not in said.out
    checks = shared.exesys("doctor", "--json").json
    names = {check["name"] for check in checks}
    assert {"python", "packages", "libzmq", "home", "redis", "ports"} <= names
    assert {check["state"] for check in checks} <= {"ok", "warn"}
    assert all(check["message"] for check in checks)
    assert all(check["fix"] for check in checks if check["state"] != "ok")


def test_logs(shared):
    said = shared.exesys("logs", "router", "-n", "1000")
    assert said.code == 0
    assert "listening on" in said.out
    assert "Did you mean router?" in complaint(shared.exesys("logs", "ruter"), 1)


def test_logs_of_all_programs(shared):
    said = shared.exesys("logs")
    assert (said.code, said.err) == (0, "")
    assert "router" in said.out


def test_logs_for_programs(shared):
    logs = shared.exesys("logs", "-n", "2", "--json").json
    assert {"router", "worker", "rest"} <= set(logs)
    assert all(len(lines) <= 2 for lines in logs.values())
    assert list(shared.exesys("logs", "router", "--json").json) == ["router"]
    assert shared.exesys("logs", "ruter", "--json").json["error"]["fix"] == "Did you mean router?"
    refused = shared.exesys("logs", "worker", "--follow", "--json").json["error"]
    assert "bin/exesys logs --follow --json" in refused["fix"]


def test_logs_can_be_followed(shared):
    process = subprocess.Popen(
        [sys.executable, "-m", "exesys.cli", "logs", "worker", "--follow"],
        cwd=shared.root,
        env=shared.environ,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert "joined epoch" in process.stdout.readline()
    shared.exesys("reload")
    assert until(lambda: "reload" in process.stdout.readline(), "what is new", within_s=20)
    process.terminate()
    process.communicate(timeout=10)
    until(shared.ready, "the slots are new")


def test_all_logs_can_be_followed(shared):
    process = subprocess.Popen(
        [sys.executable, "-m", "exesys.cli", "logs", "--follow", "--lines", "5", "--json"],
        cwd=shared.root,
        env=shared.environ,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    )
    try:
        assert {"program", "line"} == set(json.loads(process.stdout.readline()))
        shared.exesys("reload")
        told = json.loads(process.stdout.readline())
        while told["program"] != "worker" or "reload" not in told["line"]:
            told = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
    finally:
        process.kill()
        process.communicate()
    until(shared.ready, "the slots are new")


# --- jobs ------------------------------------------------------------------------------


def test_submit_prints_the_job_id_and_result_the_value(shared):
    said = shared.exesys("submit", "add", "[1, 2, 3]")
    assert (said.code, said.err) == (0, "")
    job_id = said.out.strip()
    assert uuid.UUID(job_id)
    said = shared.exesys("result", job_id)
    assert (said.code, said.out, said.err) == (0, "6\n", "")
    assert shared.exesys("result", job_id, "--json").json == {
        **{"job_id": job_id, "from": "client", "to": "end_job"},
        **{"status": 3, "state": "data_available", "result": {"EOJ": 6}},
    }


def test_submit_and_wait(shared):
    said = shared.exesys("submit", "echo", '{"a": [1, null, "ü"]}', "--wait", "10")
    assert (said.code, json.loads(said.out)) == (0, {"a": [1, None, "ü"]})
    said = shared.exesys("submit", "echo", "1", "--wait", "10", "--json")
    assert (said.code, said.json["result"], said.json["state"]) == (0, {"EOJ": 1}, "data_available")


@pytest.mark.parametrize(
    ("data", "value"), [("plain text", "plain text"), ('"quoted"', "quoted"), ("17", 17), ("null", None), (None, None)]
)
def test_data_is_json_or_plain_text(shared, data, value):
    words = ["submit", "echo", *([data] if data is not None else []), "--wait", "10"]
    assert json.loads(shared.exesys(*words).out) == value


@pytest.mark.parametrize("data", ["[1,2", "{bad"])
def test_data_that_is_no_json_is_sent_as_text_and_that_is_said(shared, data):
    said = shared.exesys("submit", "echo", data, "--wait", "10")
    assert (said.code, json.loads(said.out)) == (0, data)
    assert "DATA looks like JSON and is none, so it is sent as text: Expecting" in said.err
    said = shared.exesys("submit", "echo", data, "--wait", "10", "--json")
    assert (said.code, said.json["result"]) == (0, {"EOJ": data})


def test_data_from_a_file_and_from_stdin(shared, tmp_path):
    path = tmp_path / "data.json"
    path.write_text('{"from": "file"}')
    assert json.loads(shared.exesys("submit", "echo", f"@{path}", "--wait", "10").out) == {"from": "file"}
    said = shared.exesys("submit", "echo", "-", "--wait", "10", stdin='["stdin"]')
    assert json.loads(said.out) == ["stdin"]
    assert "no.json" in complaint(shared.exesys("submit", "echo", f"@{tmp_path}/no.json"), 2)
    assert complaint(shared.exesys("submit", "echo", "-", stdin="{"), 2)


def test_all_options_of_a_command(shared, job_id):
    said = shared.exesys(
        *("submit", "echo", "1", "--job-id", job_id, "--from", "A", "--to", "B,C", "--priority", "9"),
        *("--delay-s", "0.1", "--timeout-s", "5", "--retries", "1", "--backoff-s", "0.5", "--result-ttl-s", "60"),
        *("--queue", "default", "--wait", "10", "--json"),
    )
    assert said.code == 0, said
    assert (said.json["job_id"], said.json["from"], said.json["to"]) == (job_id, "A", ["B", "C"])
    with shared.redis() as store:
        assert 0 < store.ttl(f"A:{job_id}:data_available") <= 60
    said = shared.exesys("result", job_id, "--from", "A", "--to", "B,C")
    assert (said.code, said.out) == (0, "1\n")


def test_a_job_that_fails(shared, job_id):
    said = shared.exesys("submit", "fail", "why", "--job-id", job_id, "--wait", "10")
    assert (said.code, said.out) == (1, "")
    assert said.err.startswith("exesys: ValueError: why")
    assert "raise ValueError" in said.err, "with the traceback of the function"
    assert "What it printed" not in said.err, "it has printed nothing"
    assert f"job {job_id} has printed and logged nothing.\n" in shared.exesys("logs", "--job", job_id).err
    said = shared.exesys("result", job_id)
    assert (said.code, said.out) == (1, "")
    said = shared.exesys("result", job_id, "--json")
    assert (said.code, said.json["state"], said.json["error"]["type"]) == (1, "error", "ValueError")
    said = shared.exesys("submit", "fail", "--wait", "10", "--json")
    assert (said.code, said.json["state"]) == (1, "error")
    said = shared.exesys("submit", "fail", "why", "--retries", "2", "--backoff-s", "0.01", "--wait", "10")
    assert said.err.startswith("exesys: ValueError: why (after 3 attempts)\n")


def test_a_result_is_found_whoever_sent_the_job(shared, job_id):
    """Such as the first job of the README, from `testclient` to `testjob`."""
    shared.post({"from": "A", "to": ["B", "C"], "cmd": "echo", "data": 1, "job_id": job_id}, wait=10)
    assert shared.exesys("result", job_id).out == "1\n"
    assert shared.exesys("result", job_id, "--json").json["to"] == "B,C"
    assert f"job {job_id} has no such step" in complaint(shared.exesys("result", job_id, "--to", "D"), 1)
    shared.post({"from": "D", "to": "E", "cmd": "echo", "data": 2, "job_id": job_id}, wait=10)
    said = complaint(shared.exesys("result", job_id), 1)
    assert "has 2 such steps" in said
    assert "--from A --to B,C; --from D --to E" in said
    assert shared.exesys("result", job_id, "--from", "D").out == "2\n"
    said = shared.exesys("logs", "--job", job_id)
    assert said.out == "--- from A to B,C ---\n--- from D to E ---\n"
    assert "has printed and logged nothing" in said.err


def test_time_over(shared, job_id):
    said = shared.exesys("submit", "sleep", "4", "--job-id", job_id, "--wait", "0.2")
    assert f"bin/exesys result {job_id}" in complaint(said, 4)
    said = shared.exesys("result", job_id, "--wait", "0.2")
    assert f"job {job_id} has not ended within 0.2 s. Ask:" in complaint(said, 4)
    said = shared.exesys("result", job_id, "--wait", "0.2", "--json")
    assert said.code == 4
    assert said.json["state"] in ("start", "processing")
    assert shared.exesys("result", job_id, "--wait", "10").out == "4\n"


def test_jobs_in_a_queue_without_a_worker(shared, job_id):
    """Each door says so: the waiting submit, the result, and the doctor."""
    says = f"no worker serves the queue {job_id}. Add it to [worker] queues"
    words = ("submit", "echo", "--queue", job_id, "--job-id", job_id)
    assert says in complaint(shared.exesys(*words, "--wait", "0.2"), 4)
    assert says in complaint(shared.exesys("result", job_id, "--wait", "0.2"), 4)
    assert says.startswith(shared.exesys(*words, "--wait", "0.2", "--json").json["error"]["message"].split(": ", 1)[1])
    [check] = [
        each for each in shared.exesys("doctor", "--json").json if each["name"] == "queues" and job_id in str(each)
    ]
    assert (check["state"], "1 job waits" in check["message"]) == ("warn", True)
    assert "[worker] queues" in check["fix"]
    with shared.another_worker(worker_queues=job_id):
        assert shared.exesys("result", job_id, "--wait", "30").out == "null\n"
    assert job_id not in shared.exesys("doctor").out


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["submit", "ecko"], "echo"),
        (["submit", "a:b"], "cmd"),
        (["submit", "echo", "--priority", "10"], "priority"),
        (["submit", "echo", "--timeout-s", "-1"], "timeout_s"),
        (["submit", "echo", "--at", "soon"], "at"),
        (["submit", "echo", "--from", "a:b"], "from"),
        (["jobs", "a:b"], "job_id"),
    ],
    ids=lambda part: " ".join(part) if isinstance(part, list) else "",
)
def test_a_refused_command(shared, words, says):
    assert says in complaint(shared.exesys(*words), 2)
    said = shared.exesys(*words, "--json")
    assert (said.code, said.err) == (2, "")
    assert set(said.json["error"]) == {"code", "message", "field", "fix"}


def test_a_conflict(shared, job_id):
    assert shared.exesys("submit", "echo", "1", "--job-id", job_id, "--wait", "10").code == 0
    assert job_id in complaint(shared.exesys("submit", "echo", "2", "--job-id", job_id), 2)
    assert shared.exesys("submit", "echo", "1", "--job-id", job_id, "--wait", "10").out == "1\n"


@pytest.mark.parametrize("words", [["result", "nowhere"], ["jobs", "nowhere"], ["logs", "--job", "nowhere"]])
def test_a_job_that_is_not_there(shared, words):
    assert "nowhere" in complaint(shared.exesys(*words), 1)


@pytest.mark.parametrize(
    "words", [[], ["dance"], ["submit"], ["submit", "echo", "--priority", "x"], ["status", "--no"]], ids=str
)
def test_wrong_usage(shared, words):
    said = shared.exesys(*words)
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("usage: bin/exesys")


def test_jobs(shared, job_id):
    for i in range(3):
        shared.post({"cmd": "echo", "data": i, "job_id": f"{job_id}-{i}"}, wait=10)
    shared.post({"cmd": "fail", "data": "why", "job_id": f"{job_id}-bad"}, wait=10)
    head, *lines = shared.exesys("jobs", "--limit", "4").out.splitlines()
    assert head.split("\t") == ["job_id", "from", "to", "cmd", "state", "attempt", "accepted", "error"]
    assert [line.split("\t")[:6] for line in lines] == [
        [f"{job_id}-bad", "client", "end_job", "fail", "error", "1"],
        *([f"{job_id}-{i}", "client", "end_job", "echo", "data_available", "1"] for i in (2, 1, 0)),
    ]
    assert lines[0].endswith("\twhy")
    jobs = shared.exesys("jobs", "--json", "--limit", "2").json
    assert [job["job_id"] for job in jobs] == [f"{job_id}-bad", f"{job_id}-2"]
    failed = shared.exesys("jobs", "--state", "error", "--json").json
    assert f"{job_id}-bad" in [job["job_id"] for job in failed]
    assert f"{job_id}-2" not in [job["job_id"] for job in failed]
    one = shared.exesys("jobs", f"{job_id}-1")
    assert (one.code, json.loads(one.out)["EOJ"]) == (0, 1)
    none = shared.exesys("jobs", "--state", "standby")
    assert (none.code, none.out, none.err) == (0, f"{head}\n", "exesys: there is no job in state standby.\n")


def test_the_log_of_a_job(shared, job_id):
    shared.post({"cmd": "prints", "data": 2, "job_id": job_id}, wait=10)
    said = shared.exesys("logs", "--job", job_id)
    assert (said.code, said.out) == (0, "line 1\nINFO logged 1\nline 2\nINFO logged 2\n")
    [step] = shared.exesys("logs", "--job", job_id, "--json").json
    assert step["attempts"][0]["attempt"] == 1
    command = {"cmd": "speaks_and_fails", "data": "why", "job_id": f"{job_id}-2", "retries": 2, "backoff_s": 0.01}
    shared.post(command, wait=10)
    line = "before the failure\n"
    assert f"What it printed: bin/exesys logs --job {job_id}-2\n" in shared.exesys("result", f"{job_id}-2").err
    said = shared.exesys("logs", "--job", f"{job_id}-2")
    assert said.out == f"{line}--- attempt 2 ---\n{line}--- attempt 3 ---\n{line}"


def test_functions(shared):
    said = shared.exesys("functions")
    assert (said.code, said.err) == (0, "")
    rows = {row[0]: row for row in (line.split("\t") for line in said.out.splitlines())}
    assert rows["echo"][1] == "exesys_test"
    assert rows["echo"][3] == "Return the data as it came."
    listed = shared.exesys("functions", "--json").json
    assert {"functions", "broken"} <= set(listed)
    assert "echo" in {each["name"] for each in listed["functions"]}


@pytest.mark.usefixtures("with_mongo")
def test_the_demo(shared, tmp_path):
    (tmp_path / "one.txt").write_text("Ships in the harbour\n\nAn old ship beside a new ship.\n")
    (tmp_path / "two.txt").write_text("Gardens\n\nRoses, a rake, a spade and no ship at all.\n")
    (tmp_path / "three.txt").write_text("Kitchens\n\nPots and pans.\n")
    said = shared.exesys("demo", str(tmp_path), "--query", "ship", "--json")
    assert said.code == 0, said
    assert said.json["indexed"]["documents"] == 3
    assert [hit["title"] for hit in said.json["found"]["hits"]] == ["Ships in the harbour", "Gardens"]
    said = shared.exesys("demo", str(tmp_path), "--query", "pans")
    assert said.code == 0, said
    assert "Kitchens" in said.out
    assert "Gardens" not in said.out
    said = shared.exesys("demo")
    assert said.code == 0, said
    assert "Search for 'free software'" in said.out
    assert complaint(shared.exesys("demo", str(tmp_path / "no")), 2)


# --- without a system ---------------------------------------------------------------------


@pytest.fixture
def nothing(make):
    """A home in which nothing runs."""
    return make(start=False)


def test_where_nothing_runs(nothing):
    said = nothing.exesys("status")
    assert (said.code, said.err) == (1, "")
    assert "`bin/exesys up`" in said.out
    said = nothing.exesys("status", "--json")
    assert (said.code, said.json["running"], said.json["programs"]) == (1, False, [])
    for words in (["submit", "echo"], ["result", "x"], ["jobs"], ["reload"]):
        since = time.monotonic()
        assert "exesys" in complaint(nothing.exesys(*words), 3)
        assert time.monotonic() - since < 8
    said = nothing.exesys("submit", "echo", "--json")
    assert (said.code, said.json["error"]["code"]) == (3, "unavailable")
    said = nothing.exesys("down")
    assert (said.code, "Nothing runs" in said.out) == (0, True)
    assert "there is no log" in nothing.exesys("logs").err
    assert nothing.exesys("doctor").code == 0
    assert not nothing.home.exists()


def test_a_bad_setting(nothing):
    for verb in ("jobs", "up", "restart"):
        said = nothing.exesys(verb, environ={"EXESYS_REST_PORT": "x"})
        assert "EXESYS_REST_PORT" in complaint(said, 1)


def test_a_broken_ini_where_nothing_runs(nothing):
    nothing.ini.write_text("[rest]\nprot = 1\n")
    why = f"exesys: {nothing.ini}, line 2: the key `prot` of [rest] is unknown. Did you mean `port`?"
    said = nothing.exesys("status")
    assert (said.code, "Nothing runs here" in said.out) == (1, True)
    assert said.err.startswith(why)
    assert ":5000" not in said.out, "what it would be is not known"
    assert nothing.exesys("status", "--json").json["rest"] == {"url": None}
    said = nothing.exesys("down")
    assert (said.code, "Nothing runs" in said.out, said.err.startswith(why)) == (0, True, True)
    said = nothing.exesys("doctor")
    assert said.code == 1
    assert said.out.startswith(f"FAIL settings: {why.removeprefix('exesys: ').partition(' Did')[0]}")
    assert "ok   python" in said.out
    assert not nothing.home.exists()


def test_a_system_whose_ini_was_broken_can_be_looked_at_and_stopped(nothing):
    nothing.up()
    nothing.ini.write_text("[queue:a]\n[queue:a]\n")
    why = f"exesys: {nothing.ini}, line 2: the section [queue:a] stands in line 1 already. Merge them"
    said = nothing.exesys("status", environ={"EXESYS_REST_PORT": "x"})
    assert (said.code, "RUNNING" in said.out) == (0, True)
    assert f":{nothing.rest_port}\n" in said.out, "as it was started"
    assert nothing.exesys("status", "--json").json["running"] is True
    said = nothing.exesys("doctor")
    assert (said.code, "FAIL settings: " in said.out, "ok   programs" in said.out) == (1, True, True)
    for words in (["jobs"], ["timer", "list"], ["queue", "list"], ["up"], ["restart"]):
        assert complaint(nothing.exesys(*words), 1).startswith(why)
    said = nothing.exesys("down")
    assert (said.code, "is stopped" in said.out, said.err.startswith(why)) == (0, True, True)
    assert nothing.belonging() == []


def test_the_mongo_of_a_stopped_system_is_not_told_to_be_none(nothing):
    assert "mongo  none\n" in nothing.exesys("status").out, "so it is set"
    said = nothing.exesys("status", environ={"EXESYS_MONGO_SERVER": ""})
    assert "mongo  a private one, if it can be; `bin/exesys doctor` looks\n" in said.out
    said = nothing.exesys("status", environ={"EXESYS_MONGO_URI": "mongodb://elsewhere/"})
    assert "mongo  mongodb://elsewhere/\n" in said.out


def test_up_and_down(nothing):
    for verb in ("up", "restart"):
        said = nothing.exesys(verb, "--json")
        assert (said.code, said.json["running"]) == (0, True)
        proof = said.json["proof"]
        assert (proof["state"], proof["took_ms"] > 0) == ("data_available", True)
        assert nothing.exesys("result", proof["job_id"]).code == 0
    assert nothing.exesys("up", "--json").json["proof"] is None, "nothing had to be started"
    assert "Nothing runs" not in nothing.exesys("status").out
    said = nothing.exesys("down", "--json")
    assert (said.code, said.json["running"]) == (0, False)
    assert nothing.belonging() == []
    assert "==> worker <==" in nothing.exesys("logs", "-n", "1").out, "logs are there also when nothing runs"


# --- help -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_an_example(shared, command):
    said = shared.exesys(command, "--help")
    assert (said.code, said.err) == (0, "")
    assert f"example:\n  bin/exesys {command}" in said.out


def test_help_lists_all_commands_and_exit_codes(shared):
    said = shared.exesys("--help")
    assert {line.split()[0] for line in said.out.splitlines() if line.strip()} >= set(COMMANDS)
    assert "Exit codes" in said.out
    assert shared.exesys("--version").out.startswith("exesys ")


def test_the_script_in_bin_calls_it(shared):
    """bin/exesys runs the command line with the Python of the virtual environment."""
    venv = sys.prefix
    done = subprocess.run(
        [str(CHECKOUT / "bin" / "exesys"), "status", "--json"],
        env={**shared.environ, "EXESYS_VENV": venv},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["running"] is True


def test_output_into_a_closed_pipe_is_no_error(shared):
    command = f"{sys.executable} -m exesys.cli functions | head -n 1"
    done = subprocess.run(
        ["sh", "-c", command],
        env=shared.environ,
        cwd=shared.root,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stderr == ""
