"""What a function can use, and how it may fail: seen from outside."""

import os
import re
import signal
import time
import uuid
import zlib

import pytest
from harness import CHECKOUT, MODULES, until


@pytest.fixture
def job_id():
    return f"functions-{uuid.uuid4()}"


def log_of(system, job_id):
    return system.get(f"/jobs/{job_id}/log", headers={"Accept": "text/plain"}).body


# --- the context ----------------------------------------------------------------


def test_the_context_names_the_job(shared, job_id):
    answer = shared.post({"from": "A", "to": ["B", "C"], "cmd": "who", "job_id": job_id}, wait=10)
    told = answer.body["result"]["EOJ"]
    assert {key: told[key] for key in ("job_id", "from_", "to", "cmd", "attempt")} == {
        **{"job_id": job_id, "from_": "A", "to": "B,C"},
        **{"cmd": "who", "attempt": 1},
    }
    assert told["pid"] in shared.slots()
    assert told["parent"] == shared.pids()["worker"]
    assert told["group"] == told["pid"], "a process group of its own"


def test_redis_is_another_database_than_the_jobs(shared, job_id):
    assert shared.post({"cmd": "counts", "data": job_id}, wait=10).body["result"] == {"EOJ": 1}
    assert shared.post({"cmd": "counts", "data": job_id}, wait=10).body["result"] == {"EOJ": 2}
    with shared.redis(0) as jobs, shared.redis(1) as data:
        assert (jobs.get(job_id), data.get(job_id)) == (None, b"2")


@pytest.mark.usefixtures("with_mongo")
def test_mongo(shared, job_id):
    for number in (1, 2):
        answer = shared.post({"cmd": "stores", "data": {"kind": job_id, "n": number}}, wait=20)
    assert answer.body["result"] == {"EOJ": [{"kind": job_id, "n": 1}, {"kind": job_id, "n": 2}]}


def test_mongo_where_there_is_none(plain):
    error = plain.post({"cmd": "stores", "data": {"kind": "x", "n": 1}}, wait=10).body["error"]
    assert error["type"] == "NoMongo"
    assert "EXESYS_MONGO_URI" in error["message"]


def test_progress_and_log_are_seen_while_it_runs(shared, job_id):
    gate = shared.root / f"gate-{job_id}"
    command = {"cmd": "advances", "data": str(gate), "job_id": job_id}
    shared.post(command)
    running = until(
        lambda: (step := shared.get(f"/jobs/{job_id}").body["steps"][0]).get("progress") and step,
        "progress",
        within_s=5,
    )
    assert (running["state"], running["progress"]) == ("processing", {"fraction": 0.5, "text": "half way"})
    until(lambda: log_of(shared, job_id) == "half way\n", "what it prints", within_s=5)
    gate.touch()
    assert shared.post(command, wait=10).body["result"] == {"EOJ": "all the way"}
    assert "progress" not in shared.get(f"/jobs/{job_id}").body["steps"][0]
    assert log_of(shared, job_id) == "half way\n"


@pytest.mark.parametrize("fraction", [-0.1, 1.1])
def test_progress_beyond_its_range(shared, fraction):
    error = shared.post({"cmd": "progress_beyond", "data": fraction}, wait=10).body["error"]
    assert error["type"] == "ValueError"


def test_a_function_sends_commands_of_its_own(shared):
    job_ids = shared.post({"cmd": "submits", "data": [1, 2, 3]}, wait=20).body["result"]["EOJ"]
    values = [until(lambda id_=id_: shared.get(f"/jobs/{id_}").body.get("EOJ"), "it ended") for id_ in job_ids]
    assert values == [1, 2, 3]


def test_a_wrapped_value_is_not_wrapped_twice(shared):
    assert shared.post({"cmd": "wrapped", "data": 5}, wait=10).body["result"] == {"EOJ": 5}


@pytest.mark.parametrize("cmd", ["awaited", "probes.awaited"])
def test_a_coroutine(shared, job_id, cmd):
    answer = shared.post({"cmd": cmd, "data": 5, "job_id": job_id}, wait=10)
    assert answer.body["result"] == {"EOJ": [5, cmd]}
    assert log_of(shared, job_id) == "INFO awaited\n"


def test_a_function_has_options_of_its_own(shared, job_id):
    since = time.monotonic()
    error = shared.post({"cmd": "renamed", "data": 60, "job_id": job_id}, wait=20).body["error"]
    assert (error["type"], error["attempts"]) == ("Timeout", 2)
    assert time.monotonic() - since < 15
    # A command's own come before them.
    assert shared.post({"cmd": "renamed", "data": 0.5, "timeout_s": 10}, wait=20).body["result"] == {"EOJ": 0.5}
    assert shared.post({"cmd": "has_options", "data": 0.1}).status == 422


def test_values_that_json_lacks_come_as_text(shared):
    value = shared.post({"cmd": "kinds", "data": None}, wait=10).body["result"]["EOJ"]
    assert value["datetime"] == "2026-02-03T04:05:06.000789+02:00"
    assert value["uuid"] == "00000000-0000-0000-0000-000000000005"
    assert value["decimal"] == "1.10"
    assert value["bytes"] == "AP8="
    assert sorted(value["frozenset"]) == [1, 2]


# --- steps of its own job ---------------------------------------------------------


def flow(system, job_id, *steps, wait=20):
    """Send a workflow of (from, to, cmd, data), wait for its end, and return the job.

    The answer comes when the steps sent have ended; what they added may go on.
    """
    commands = [{"job_id": job_id, "from": from_, "to": to, "cmd": cmd, "data": data} for from_, to, cmd, data in steps]
    answer = system.post(commands, wait=wait, headers={"Operation": "workflow"})
    assert answer.status in (200, 202), answer
    return until(lambda: (job := system.get(f"/jobs/{job_id}").body)["status"] >= 3 and job, "the job ended")


def states(job):
    """The state of each step by its `from`."""
    return {step["from"]: step["state"] for step in job["steps"]}


def error_of(job, name):
    [error] = [step["error"] for step in job["steps"] if step["from"] == name]
    return error


@pytest.mark.parametrize("parts", [1, 7, 300])
def test_a_function_adds_steps_to_its_job(shared, job_id, parts):
    """Each part's value comes under its name, beside what the function itself returned."""
    job = flow(shared, job_id, ("split", "merge", "fan", {"parts": parts}), ("merge", "end_job", "echo", None))
    names = [f"split.{part}" for part in range(1, parts + 1)]
    assert job["EOJ"] == {"split": {"steps": names}, **{name: part for part, name in enumerate(names, 1)}}
    assert states(job) == dict.fromkeys(["split", "merge", *names], "data_available")


def test_with_no_step_added_the_next_gets_a_single_value(shared, job_id):
    job = flow(shared, job_id, ("split", "merge", "fan", {"parts": 0}), ("merge", "end_job", "echo", None))
    assert job["EOJ"] == {"steps": []}


def test_added_steps_may_be_large(plain):
    """Larger together than a line to the slot, or a message to the worker, takes at once."""
    steps = [
        *[("split", "merge", "fan", {"parts": 12, "bytes": 900_000, "to": "end_job"})],
        *[("merge", "end_job", "echo", None)],
    ]
    job = flow(plain, f"large-{uuid.uuid4()}", *steps)
    assert len(job["EOJ"]) == 13
    assert {len(job["EOJ"][f"split.{part}"]["filling"]) for part in range(1, 13)} == {900_000 * 4 // 3}


def test_a_plain_job_becomes_a_workflow(shared, job_id):
    shared.post({"cmd": "fan", "data": {"parts": 3}, "job_id": job_id, "from": "A"}, wait=10)
    job = until(lambda: (told := shared.get(f"/jobs/{job_id}").body)["state"] == "data_available" and told, "it ended")
    assert job["EOJ"] == {"A": {"steps": ["A.1", "A.2", "A.3"]}, "A.1": 1, "A.2": 2, "A.3": 3}


def test_added_steps_may_feed_each_other(shared, job_id):
    """split adds first → second → third, and third goes to merge; the data of what is fed is what feeds it."""
    job = flow(shared, job_id, ("split", "merge", "chains", 5), ("merge", "end_job", "echo", None))
    assert job["EOJ"] == {"split": ["first", "second", "third"], "third": 30}
    assert states(job)["second"] == "data_available"


def test_a_function_that_fails_adds_nothing(shared, job_id):
    steps = [("split", "merge", "fan", {"parts": 3, "fail": True}), ("merge", "end_job", "echo", None)]
    job = flow(shared, job_id, *steps)
    assert states(job) == {"split": "error", "merge": "error"}
    assert error_of(job, "split")["type"] == "RuntimeError"


@pytest.mark.parametrize("how", ["raises", "dies"])
def test_an_attempt_that_ends_badly_adds_nothing_and_the_next_one_does(plain, how):
    job_id = f"again-{how}"
    command = {"from": "split", "to": "merge", "cmd": "adds_at_second", "data": how, "retries": 1, "backoff_s": 0.01}
    commands = [{**command, "job_id": job_id}, {"from": "merge", "cmd": "echo", "job_id": job_id}]
    assert plain.post(commands, wait=20, headers={"Operation": "workflow"}).status == 200
    job = plain.get(f"/jobs/{job_id}").body
    assert job["EOJ"] == {"split": 2, "split.1": 2}
    assert len(job["steps"]) == 3


@pytest.mark.parametrize(
    ("given", "type_", "said"),
    [
        ({"to": "nowhere"}, "BadStep", "nowhere"),
        ({"from_": "start", "to": "other"}, "BadStep", "other"),
        ({"cmd": "no_such_function"}, "BadStep", "no_such_function"),
        ({"from_": "merge", "to": "end_job"}, "BadStep", "already"),
        ({"from_": "a b"}, "BadCommand", "' '"),
        ({"to": "split"}, "BadCommand", "goes back"),
    ],
)
def test_a_step_that_does_not_fit_fails_the_function(shared, job_id, given, type_, said):
    job = flow(shared, job_id, ("split", "merge", "adds", given), ("merge", "end_job", "echo", None))
    assert states(job) == {"split": "error", "merge": "error"}, "nothing is added"
    error = error_of(job, "split")
    assert (error["type"], said in error["message"]) == (type_, True), error


def test_nodes_of_a_workflow_have_the_weight_that_can_be_told(shared, job_id):
    """workflow_node over a diamond with a double edge: what other tests rely on."""
    edges = [("A", ["B", "C"]), ("B", ["D"]), ("B", ["E"]), ("C", ["D", "E"]), ("D", ["end_job"]), ("E", ["end_job"])]
    job = flow(shared, job_id, *[(from_, to, "workflow_node", None) for from_, to in edges])
    own = {name: zlib.crc32(name.encode()) for name in "ABCDE"}
    two = own["A"] + own["B"] + own["A"] + own["C"]
    assert job["EOJ"] == {name: {"step": name, "weight": (own[name] + two) % 2**32, "inputs": 2} for name in ("D", "E")}


def test_the_example_of_the_documents(make, tmp_path):
    page = (CHECKOUT / "docs" / "functions.md").read_text()
    [source] = re.findall(r"```python\n(# modules/words\.py\n.*?)```", page, re.DOTALL)
    (tmp_path / "words.py").write_text(source)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "one.md").write_text("three words here")
    (texts / "two.md").write_text("and two")
    system = make(modules=[tmp_path])
    job = flow(system, "words", ("split", "merge", "word_files", str(texts)), ("merge", "end_job", "sum_words", None))
    assert job["EOJ"] == {"files": 2, "words": 5}


def test_a_job_that_grows_while_it_is_cancelled(shared, job_id):
    """What it was about to add is never stored."""
    gate = shared.root / f"gate-{job_id}"
    with shared.client() as client:
        handle = client.submit("adds_when_ended", str(gate), job_id=job_id)
        until(gate.exists, "it runs")
        assert client.cancel(job_id) == 1
        assert handle.wait(10)
        assert handle.exception().type == "Cancelled"
    # Its first attempt returns well after TERM; time for that to be told and refused.
    until(lambda: gate.with_suffix(".left").exists(), "it left")
    until(lambda: all(each["held"] == 0 for each in shared.get("/workers").body["workers"]), "nothing is held")
    job = shared.get(f"/jobs/{job_id}").body
    assert (states(job), len(job["steps"])) == ({"client": "error"}, 1)


# --- what a job prints ----------------------------------------------------------


def test_what_a_failed_job_printed_is_kept(shared, job_id):
    error = shared.post({"cmd": "speaks_and_fails", "data": "why", "job_id": job_id}, wait=10).body["error"]
    assert (error["type"], error["message"]) == ("LookupError", "why")
    assert log_of(shared, job_id) == "before the failure\n"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV"])
def test_what_a_crashed_job_printed_is_kept(plain, name):
    job_id = f"crashed-{name}"
    error = plain.post({"cmd": "speaks_and_crashes", "data": name, "job_id": job_id}, wait=30).body["error"]
    assert (error["type"], error["attempts"]) == ("Crashed", 3)
    assert name in error["message"]
    [step] = plain.get(f"/jobs/{job_id}/log").body["steps"]
    assert step["attempts"] == [{"attempt": number, "log": "before the crash\n"} for number in (1, 2, 3)]


def test_what_a_job_printed_before_its_time_was_over_is_kept(plain):
    job_id = f"late-{uuid.uuid4()}"
    command = {"cmd": "speaks_and_stays", "data": 60, "timeout_s": 0.5, "job_id": job_id}
    assert plain.post(command, wait=20).body["error"]["type"] == "Timeout"
    assert log_of(plain, job_id) == "before the end\n"


def test_a_log_is_capped(plain):
    job_id = f"long-{uuid.uuid4()}"
    plain.post({"cmd": "speaks", "data": 5000, "job_id": job_id}, wait=20)
    log = log_of(plain, job_id)
    assert log.startswith(f"{0:099d}\n{1:099d}\n")
    assert 64 << 10 <= len(log) <= (64 << 10) + 200
    assert "log_bytes" in log[-200:]


def test_what_is_printed_stays_with_its_job(shared, job_id):
    commands = [{"cmd": "prints", "data": i % 3, "job_id": f"{job_id}-{i}"} for i in range(30)]
    assert shared.post(commands, wait=20).status == 200
    for i in range(30):
        wanted = "".join(f"line {n}\nINFO logged {n}\n" for n in range(1, i % 3 + 1))
        assert log_of(shared, f"{job_id}-{i}") == wanted


# --- how a function may fail ------------------------------------------------------


@pytest.fixture(scope="module")
def plain(make_module):
    """A system without MongoDB, for functions that end their processes."""
    return make_module()


def failure(system, cmd, data=None, **options):
    answer = system.post({"cmd": cmd, "data": data, **options}, wait=30)
    assert answer.body["state"] == "error", answer
    return answer.body["error"]


def test_sys_exit_is_a_failure(plain):
    before = plain.slots()
    error = failure(plain, "leaves", 3)
    assert (error["type"], error["attempts"]) == ("SystemExit", 1)
    assert plain.slots() == before, "the slot goes on"


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGABRT", "SIGTERM"])
def test_a_crash_is_tried_three_times_and_names_the_signal(plain, name):
    error = failure(plain, "crash", name)
    assert (error["type"], error["attempts"]) == ("Crashed", 3)
    assert name in error["message"]


def test_an_exit_is_a_crash(plain):
    error = failure(plain, "exits", 7)
    assert (error["type"], error["attempts"]) == ("Crashed", 3)
    assert "exit code 7" in error["message"]


def test_retries_and_crashes_are_counted_apart(plain):
    error = failure(plain, "crash", "SIGKILL", retries=5, backoff_s=0.01)
    assert error["attempts"] == 3


def test_a_result_that_cannot_be_sent(plain):
    error = failure(plain, "returns_what_cannot_be_sent")
    assert error["type"] == "TypeError"
    assert "probes.returns_what_cannot_be_sent" in error["message"]


def test_a_result_that_is_too_large(make):
    system = make(limits_data_bytes=10_000)
    error = failure(system, "multiplies", ["x" * 1000, 100])
    assert error["type"] == "TooLarge"
    assert "10,000" in error["message"]


# --- modules ------------------------------------------------------------------------

GOOD = "def {name}(data):\n    '''{doc}'''\n    return {value!r}\n"


@pytest.fixture
def own(make, tmp_path):
    """A system with a directory of modules of its own, one of them broken, one that kills its importer."""
    (tmp_path / "good.py").write_text(GOOD.format(name="good", doc="Good.", value=1))
    (tmp_path / "broken.py").write_text("def lost(data):\n    return 1\n\n\nraise RuntimeError('as it is broken')\n")
    (tmp_path / "syntax.py").write_text("def lost_too(:\n")
    (tmp_path / "deadly.py").write_text("import os\n\nos.kill(os.getpid(), 9)\n")
    (tmp_path / "one.py").write_text(GOOD.format(name="twice", doc="One.", value="one"))
    (tmp_path / "two.py").write_text(GOOD.format(name="twice", doc="Two.", value="two"))
    return make(modules=[tmp_path, MODULES[1]])


def test_broken_modules_are_reported_and_the_others_work(own):
    told = own.get("/functions").body
    assert set(told["broken"]) == {"broken", "syntax", "deadly"}
    assert "RuntimeError: as it is broken" in told["broken"]["broken"]
    assert "Traceback" in told["broken"]["broken"]
    assert "SyntaxError" in told["broken"]["syntax"]
    assert "SIGKILL" in told["broken"]["deadly"]
    assert own.post({"cmd": "good"}, wait=10).body["result"] == {"EOJ": 1}
    refused = own.post({"cmd": "broken.lost"})
    assert refused.status == 422
    assert "as it is broken" in refused.error["message"] + refused.error["fix"]
    # A bare name of two modules is nobody's; both full names are listed, and work.
    refused = own.post({"cmd": "twice"})
    assert (refused.status, refused.error["code"]) == (422, "unknown_cmd")
    said = refused.error["message"] + refused.error["fix"]
    assert "one.twice" in said
    assert "two.twice" in said
    for module in ("one", "two"):
        assert own.post({"cmd": f"{module}.twice"}, wait=10).body["result"] == {"EOJ": module}


@pytest.mark.parametrize("how", ["command", "signal"])
def test_changed_modules_are_loaded_on_reload(own, tmp_path, how):
    long = {"cmd": "sleep", "data": 2, "job_id": "through-the-reload"}
    own.post(long)
    until(lambda: own.post(long).body["state"] == "processing", "it runs")
    before = own.pids()
    (tmp_path / "good.py").write_text(GOOD.format(name="good", doc="Better.", value=2))
    (tmp_path / "broken.py").write_text(GOOD.format(name="mended", doc="Mended.", value=3))
    (tmp_path / "new.py").write_text(GOOD.format(name="new", doc="New.", value=4))
    (tmp_path / "one.py").unlink()
    assert own.post({"cmd": "good", "data": 0}, wait=10).body["result"] == {"EOJ": 1}, "nothing changes by itself"
    if how == "command":
        said = own.exesys("reload")
        assert said.code == 0, said
        assert all(line.startswith("broken: ") for line in said.err.splitlines()), said
    else:
        os.kill(before["worker"], signal.SIGHUP)

    def renewed():
        functions = {each["name"]: each["doc"] for each in own.get("/functions").body["functions"]}
        return functions.get("good") == "Better." and "new" in functions and "mended" in functions

    until(renewed, "the new functions are known", within_s=10)
    ended = own.post(long, wait=10)
    assert ended.body["result"] == {"EOJ": 2}, "what ran then ended"
    assert own.get("/jobs/through-the-reload").body["steps"][0]["attempt"] == 1
    until(lambda: own.post({"cmd": "good"}, wait=10).body["result"]["EOJ"] == 2, "all slots are new", within_s=10)
    assert own.post({"cmd": "new"}, wait=10).body["result"] == {"EOJ": 4}
    assert own.post({"cmd": "mended"}, wait=10).body["result"] == {"EOJ": 3}
    assert own.post({"cmd": "twice"}, wait=10).body["result"] == {"EOJ": "two"}, "the name is no longer of two"
    assert set(own.get("/functions").body["broken"]) == {"syntax", "deadly"}
    assert own.pids() == before, "the daemon is the same"
