"""The troubles of docs/troubleshooting.md, each made for real: what is said names the cause and the next step.

What is compared is what the page quotes: `says` looks for it in both.
"""

import os
import re
import signal

import pytest
from harness import CHECKOUT, until

PAGE = (CHECKOUT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
QUOTED = " ".join(PAGE.replace("`", "").split())


def says(said, *fragments):
    """What was printed has these words, and so has the page (names of jobs and numbers apart)."""
    printed = said if isinstance(said, str) else said.out + said.err
    for fragment in fragments:
        assert fragment in printed, f"{fragment!r} is not in what was printed:\n{printed}"
        assert fragment.replace("`", "") in QUOTED, f"{fragment!r} is not in the page"


@pytest.fixture(scope="module")
def system(make_module, tmp_path_factory):
    modules = tmp_path_factory.mktemp("modules")
    (modules / "letters.py").write_text("def deliver(data):\n    return data\n")
    system = make_module(
        modules=[modules, CHECKOUT / "modules", CHECKOUT / "tests/system/modules"],
        worker_slots=1,
        worker_queues="default,letters",
    )
    system.modules = modules
    return system


def send(system, job_id, cmd="noop", wait=0.1, **fields):
    answer = system.post({"cmd": cmd, "job_id": job_id, **fields}, wait=wait)
    assert answer.status in (200, 202), answer
    return answer.body


def why(system, job_id):
    said = system.exesys("why", job_id)
    assert said.code == 0, said
    assert "\n→ " in said.out, said.out
    assert system.exesys("why", job_id, "--json").json["todo"] == re.findall(r"^→ (.*)$", said.out, re.MULTILINE)
    return said


# --- 1. it stays in start -----------------------------------------------------------------


def test_no_worker_serves_its_queue(system):
    send(system, "unserved-1", queue="leters")
    says(
        why(system, "unserved-1"),
        "no worker serves the queue leters",
        "Add leters to [worker] queues in etc/exesys.ini, and `bin/exesys restart`",
    )
    assert "WARN queues: No worker serves the queue leters, in which 1 job waits." in system.exesys("doctor").out
    late = system.exesys("submit", "noop", "--queue", "leters", "--wait", "0.1")
    assert late.code == 4
    assert "no worker serves the queue leters" in late.err
    system.exesys("cancel", "unserved-1")


def test_its_queue_is_paused_or_has_limits_or_takes_turns(system):
    system.exesys("queue", "pause", "letters")
    send(system, "paused-1", queue="letters")
    says(why(system, "paused-1"), "the queue letters is paused", "bin/exesys queue resume letters")
    doctor = system.exesys("doctor").out
    assert "WARN queues: The queue letters is paused, and 1 job waits in it." in doctor
    assert "`bin/exesys queue resume letters`" in doctor
    system.exesys("queue", "resume", "letters")

    system.exesys("queue", "set", "letters", "--rate", "1/h")
    for number in range(3):
        send(system, f"limited-{number}", queue="letters")
    said = why(system, "limited-2")
    says(said, "the limits of the queue letters (rate 1/h), or a free worker")
    assert "`bin/exesys queue set letters --rate none` takes them away" in said.out
    system.exesys("queue", "set", "letters", "--rate", "none")

    send(system, "turn-1", "sleep", data=30, key="customer-7")
    send(system, "turn-2", key="customer-7")
    said = why(system, "turn-2")
    says(said, "the turn of its key customer-7, or a free worker", "key_limit")

    send(system, "busy-1")
    said = why(system, "busy-1")
    says(said, "a free worker in the queue default", "bin/exesys jobs --state processing")
    assert "jobs are with 1 slots" in said.out
    system.exesys("cancel", "turn-1")

    send(system, "later-1", at="2037-01-31T12:00:00Z")
    assert "its time, 2037-01-31T12:00:00Z" in system.exesys("why", "later-1").out
    assert "its time, 2027-01-31T12:00:00Z" in QUOTED


# --- 2. and 3. modules --------------------------------------------------------------------


def test_a_module_that_does_not_load(system):
    (system.modules / "broken.py").write_text("import no_such_package\n\n\ndef handle(data):\n    return data\n")
    assert "broken: broken: ModuleNotFoundError" in system.exesys("reload").err
    error = system.post({"cmd": "handle"}).error
    says(error["message"], "no function is named", "These did not load")
    assert "`broken` (ModuleNotFoundError: No module named 'no_such_package')" in error["message"]
    error = system.post({"cmd": "broken.handle"}).error
    assert error["fix"].startswith("Correct it, then `bin/exesys reload`")
    assert system.post({"cmd": "deliver_"}).error["fix"] == "Did you mean `deliver`?"
    doctor = system.exesys("doctor")
    assert doctor.code == 1
    says(doctor, "cannot be called")
    assert "Correct it; then `bin/exesys reload`." in doctor.out
    (system.modules / "broken.py").unlink()
    assert system.exesys("reload").err == ""


def test_a_change_that_was_not_loaded(system):
    until(lambda: "ok   modules" in system.exesys("doctor").out, "the slots are new")
    (system.modules / "letters.py").write_text("def deliver(data):\n    return [data]\n")
    assert system.post({"cmd": "deliver", "data": 1}, wait=5).body["result"] == {"EOJ": 1}
    said = system.exesys("doctor")
    says(said, "Saved since the workers loaded their modules")
    assert "letters.py. The old code still answers.\n     → Load them: `bin/exesys reload`." in said.out
    system.exesys("reload")
    until(lambda: "ok   modules" in system.exesys("doctor").out, "it is loaded")
    assert system.post({"cmd": "deliver", "data": 1}, wait=5).body["result"] == {"EOJ": [1]}


def test_settings_that_were_not_taken_over(system):
    said = system.exesys("doctor", environ={"EXESYS_WORKER_SLOTS": "3"})
    says(said, "The system runs with other settings", "bin/exesys restart")
    assert "[worker] slots is '1' there and '3' here" in said.out


# --- 4. to 7. jobs that fail, and are gone ------------------------------------------------


def test_a_function_that_takes_too_long(system):
    body = send(system, "slow-1", "sleep", wait=10, data=30, timeout_s=0.3)
    assert body["error"]["type"] == "Timeout"
    said = why(system, "slow-1")
    says(said, "it ran longer than its limit of", "needs more time")
    assert "`bin/exesys retry slow-1` then runs again what failed." in said.out


def test_a_job_that_kills_its_process(system):
    assert send(system, "crash-1", "crash", wait=20, data="SIGSEGV")["error"]["type"] == "Crashed"
    said = why(system, "crash-1")
    says(said, "the function's process was killed by SIGSEGV", "ended its process")
    assert "(after 3 attempts)" in said.out
    assert "`bin/exesys logs worker`" in said.out


def test_what_a_function_raised(system):
    send(system, "raised-1", "fail", wait=5, data="on purpose")
    said = why(system, "raised-1")
    assert "client failed: ValueError: on purpose\n" in said.out
    assert "→ Mend what fail raised, and `bin/exesys reload`. `bin/exesys logs --job raised-1`" in said.out


def test_a_result_that_is_gone(system):
    send(system, "gone-1", "echo", wait=5, result_ttl_s=1)
    until(lambda: system.get("/jobs/gone-1").status == 404, "it has expired")
    said = system.exesys("result", "gone-1")
    assert said.code == 1
    says(said, "there is no job", "24 h by default")
    assert "Send it again." in said.err
    assert "24 h by default" in system.get("/jobs/gone-1").error["fix"]
    assert "24 h by default" in system.exesys("why", "gone-1").err


def test_a_step_that_nothing_feeds(system):
    system.post({"from": "B", "cmd": "echo", "job_id": "unfed-1"}, headers={"Operation": "workflow"})
    said = why(system, "unfed-1")
    says(
        said,
        "no step goes to B yet: it ends in error after 24 h",
        "Send the step whose result B is to get",
    )
    assert '{"from": "…", "to": "B", "cmd": "…", "job_id": "unfed-1"}' in said.out


def test_a_function_that_needs_mongodb(system):
    send(system, "mongo-1", "search", wait=5, data={"query": "x"})
    said = why(system, "mongo-1")
    says(said, "NoMongo", "this function needs MongoDB, and none is set")
    assert "→ Install mongod, or set [mongo] uri in etc/exesys.ini; then `bin/exesys restart`." in said.out


def test_a_result_that_is_no_data(system):
    (system.modules / "wrong.py").write_text("def odd(data):\n    return object()\n")
    system.exesys("reload")
    error = send(system, "odd-1", "odd", wait=5)["error"]
    says(error["message"], "returned cannot be sent")
    assert "object" in error["message"]


# --- 8. it does not start -----------------------------------------------------------------


def test_a_port_that_is_taken_and_an_ini_that_is_wrong(system, make):
    other = make(start=False, rest_port=system.rest_port)
    said = other.exesys("up")
    assert said.code == 1
    says(said.err.replace(str(system.rest_port), "5000"), "Port 5000 of 127.0.0.1 ([rest] port) is in use by process")
    says(said, "choose another with EXESYS_REST_PORT")
    assert "FAIL ports" in other.exesys("doctor").out
    other.ini.write_text("[worker]\n\nslosts = 3\n")
    said = other.exesys("up")
    assert f"{other.ini}, line 3" in said.err
    assert "slots" in said.err
    assert not other.home.exists()


def test_a_home_that_is_held_with_other_settings(system):
    said = system.exesys("up", environ={"EXESYS_WORKER_SLOTS": "3"})
    says(said, "is held by a system with other settings", "restart")


# --- 9. Redis -----------------------------------------------------------------------------


def refusal(system, words):
    """Wait for a 503 with these words: what was under way when it began is told that the router gave no answer."""
    assert words in QUOTED

    def told():
        answer = system.post({"cmd": "noop"})
        assert answer.status in (202, 503), answer
        return answer.status == 503 and words in answer.error["message"] and answer

    answer = until(told, words)
    assert answer.headers["retry-after"]
    return answer.error


def test_a_redis_that_is_full(system):
    with system.redis() as store:
        store.config_set("maxmemory", "1mb")
        try:
            error = refusal(system, "Redis has reached its maxmemory and refuses to write")
            assert "Raise maxmemory there" in error["fix"]
            assert "WARN redis memory: Redis has used" in system.exesys("doctor").out
        finally:
            store.config_set("maxmemory", "0")
    until(lambda: system.post({"cmd": "noop"}).status == 202, "it goes on by itself")


def test_a_redis_that_does_not_answer(system):
    redis = system.pids()["redis"]
    os.kill(redis, signal.SIGSTOP)
    try:
        refusal(system, "the store is away")
        assert "FAIL redis" in system.exesys("doctor").out
    finally:
        os.kill(redis, signal.SIGCONT)
    until(lambda: system.post({"cmd": "noop"}).status == 202, "it goes on by itself")


# --- 10. tokens, and curl -----------------------------------------------------------------


def test_mistakes_with_curl(system):
    error = system.post("{cmd: add, data: [1, 2]}").error
    says(error["message"], "the body is no JSON")
    assert "single quotes" in error["fix"]
    error = system.request("POST", "/sys_cmd", "{}").error
    says(error["fix"], '-H "Content-Type: application/json"')


def test_a_token_that_is_missing_or_too_weak(system):
    token = system.exesys("keys", "new", "read", "shop").out.split()[0]
    try:
        answer = until(lambda: (told := system.post({"cmd": "noop"})).status == 401 and told, "a token is needed")
        says(answer.error["message"], "this needs a token, and none was sent")
        assert "Authorization: Bearer" in answer.error["fix"]
        weak = system.post({"cmd": "noop"}, headers={"Authorization": f"Bearer {token}"})
        assert weak.status == 403
        says(weak.error["message"], "this needs submit")
        assert "`bin/exesys keys new submit NAME`" in weak.error["fix"]
        # The test before held Redis up: the controller takes its lease again.
        until(lambda: system.exesys("doctor").code == 0, "the doctor finds nothing amiss")
    finally:
        system.exesys("keys", "revoke", "shop")
        system.exesys("keys", "revoke", "local")
    until(lambda: system.post({"cmd": "noop"}).status == 202, "it is open again")


def test_the_page_has_ten():
    assert re.findall(r"^## (\d+)\. ", PAGE, re.MULTILINE) == [str(number) for number in range(1, 11)]
