"""`exesys.testing` with real systems: docs/testing.md's project, the fixtures, and that workflows end alike in both."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from harness import CHECKOUT, MODULES, alive, until

from exesys import JobError, asking, process
from exesys.errors import BootError, ConfigError
from exesys.testing import PrivateRedis, PrivateSystem, run, run_workflow

pytest_plugins = ["exesys.testing.plugin"]
FLOWS = 60
FENCE = re.compile(r"^```(?:python|ini)\n# (\S+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="session")
def exesys_options(services):
    return {"modules": MODULES, "rest": True, "runner": True}


@pytest.fixture(autouse=True)
def modules_of_its_own(monkeypatch):
    """What is loaded here to be called is forgotten: other tests have modules of the same names."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").parent in MODULES:
            del sys.modules[name]


@pytest.fixture
def system(exesys_system):
    return exesys_system


def project(directory):
    """Write the files of the page's first project."""
    for name, text in reversed(FENCE.findall((CHECKOUT / "docs" / "testing.md").read_text())):
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)  # of two of one name the first stays
    return directory


def pytest_in(directory, *words, **options):
    environ = {**os.environ, "PYTHONPATH": str(CHECKOUT), "PYTEST_ADDOPTS": "", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-P", "-m", "pytest", "-q", "-p", "no:cacheprovider", *words]
    return subprocess.Popen(
        command, cwd=directory, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options
    )


def test_the_pages_project(tmp_path, services):
    tests = pytest_in(project(tmp_path))
    said, _ = tests.communicate(timeout=150)
    assert tests.returncode == 0, said.decode()
    assert b"4 passed" in said


def test_the_pages_other_options(services):
    """The second conftest.py of the page."""
    blocks = FENCE.findall((CHECKOUT / "docs" / "testing.md").read_text())
    [_, second] = [text for name, text in blocks if name == "tests/conftest.py"]
    options = eval(re.search(r"return (\{.*\})", second)[1])
    made = PrivateSystem(**options)
    made.end()
    assert (made.config.worker.slots, made.config.limits.result_ttl_s) == (4, 60)
    assert made.rest_url != "http://127.0.0.1:5000"


def test_the_pages_workflow_with_functions_of_its_own():
    [block] = re.findall(
        r"^```python\n(from exesys.testing.*?)^```$", (CHECKOUT / "docs" / "testing.md").read_text(), re.M | re.S
    )
    space = {"__name__": "page"}
    exec(block, space)
    space["test_conversion"]()


def test_nothing_is_left_when_pytest_is_killed(tmp_path, services):
    home = tmp_path / "home"
    (project(tmp_path) / "tests" / "test_shop.py").write_text(
        "import time\n"
        "from pathlib import Path\n"
        "def test_hangs(exesys_system, exesys_client):\n"
        "    exesys_client.submit('total', {'prices': [1]}).result(10)\n"
        f"    Path({str(home)!r}).write_text(str(exesys_system.home))\n"
        "    time.sleep(600)\n"
    )
    tests = pytest_in(tmp_path)
    try:
        found = Path(until(lambda: home.exists() and home.read_text(), "it runs"))
        assert len(process.of_home(found)) >= 6, "launcher, Redis, router, controller, worker, slots"
    finally:
        tests.send_signal(signal.SIGKILL)
        tests.wait()
    until(lambda: not process.of_home(found), "all processes are gone")
    until(lambda: not found.parent.exists(), "its directory is removed")


# --- the fixtures ---------------------------------------------------------


def test_a_client_of_the_sessions_system(exesys_client, exesys_system):
    assert exesys_client.run("add", [1, 2], timeout=20) == 3
    assert exesys_system.home.exists()


def test_a_redis_for_functions_alone(exesys_redis):
    assert exesys_redis.dbsize() == 0
    assert run("counts", "n", modules=MODULES, redis=exesys_redis).value == 1
    assert run("counts", "n", modules=MODULES, redis=exesys_redis).value == 2


def test_the_next_test_finds_it_empty(exesys_redis):
    assert exesys_redis.dbsize() == 0


# --- the system -----------------------------------------------------------


def test_it_has_what_it_was_asked_for(system):
    with system.client() as client:
        assert client.run("where", timeout=20) == os.getcwd()
        assert client.run("counts", "private", timeout=20) == 1
        name = client.run("lives.start", {"target": "idle", "options": {"type": "private"}}, timeout=20)
        with system.redis(0) as store:
            until(lambda: store.hget(f"exesys:runner:{name}", "state") == b"running", "the runner runs")
        assert client.stop_runner(name) == 1
    with system.redis() as data:
        assert data.get("private") == b"1"
    assert "router" in system.logs()


def test_what_is_killed_is_started_again(system):
    with system.client() as client:
        pid = client.snapshot("workers")["workers"][0]["pid"]
        handles = client.submit_many("sleep", [0.1] * 20)
        os.kill(pid, signal.SIGKILL)
        assert [handle.result(60) for handle in handles] == [0.1] * 20
    assert not alive(pid)
    assert f"worker (process {pid}) killed by SIGKILL; it is started again" in system.logs()


def test_two_at_once_do_not_meet_and_an_ini_brings_application_servers(system):
    ini = "[appserver:things]\nclass = services:Desk\n"
    with PrivateSystem(MODULES, ini=ini) as other, other.client() as client:
        assert client.app("things", wait=False).echo("there at once") == "there at once"
        assert client.run("counts", "private", timeout=20) == 1
        assert other.home != system.home
        pids, root = other.pids(), other.root
    other.end()  # again, which does no harm
    assert not any(alive(pid) for pid in pids)
    assert not root.exists()


def test_one_that_cannot_start_says_why_and_leaves_nothing(tmp_path):
    made = PrivateSystem([tmp_path], bus_endpoint="ipc:///nonexistent/bus")
    with pytest.raises(BootError, match=r"(?s)is not ready.*router cannot start.*cannot listen on ipc:///nonex"), made:
        pytest.fail("it started")
    assert not made.root.exists()
    before = set(made.root.parent.glob("exesys-test-*"))
    with pytest.raises(ConfigError):
        PrivateSystem([tmp_path], worker_slots="many")
    with pytest.raises(BootError, match="no program is there"), PrivateRedis(redis_server="/nonexistent"):
        pytest.fail("it started")
    assert set(made.root.parent.glob("exesys-test-*")) <= before


def test_nothing_is_left_when_the_launcher_is_killed():
    made = PrivateRedis()
    with made as server:
        pids = server.pids()
        [launcher] = [pid for pid in pids if b"exesys.testing.launcher" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(launcher, signal.SIGKILL)
        until(lambda: not any(alive(pid) for pid in pids), "its children are gone, too")
        assert made.root.exists()
    assert not made.root.exists()


def test_what_others_left_is_removed_by_the_next(tmp_path):
    with PrivateRedis() as server:
        beside = server.root.parent
        left, young, ours = (beside / f"exesys-test-{name}" for name in ("left", "young", "held"))
        for directory in (left, young, ours):
            directory.mkdir()
            (directory / "lock").touch()
        for directory in (left, ours):
            os.utime(directory / "lock", (1, 1))
        held = process.hold_lock(ours / "lock")
        try:
            PrivateSystem([tmp_path]).end()
            assert [directory.exists() for directory in (left, young, ours)] == [False, True, True]
            assert server.root.exists()
        finally:
            os.close(held)
            for directory in (young, ours):
                shutil.rmtree(directory)


# --- workflows end as they do in a system ---------------------------------


def drawn(dice):
    """Draw steps: some fail, some are tried again, and some add others.

    Not both: whether what an added step goes to still waits is then a matter of time.
    """
    cmds = dice.choice([("fed", "fails_twice", "grows"), ("fed", "fed", "fail", "fails_twice", "grows_wrongly")])
    names = [f"n{number}" for number in range(dice.randint(1, 6))]
    steps = {}
    for place, name in enumerate(names):
        for _ in range(dice.choice([1, 1, 1, 2])):
            later = names[place + 1 :]
            to = dice.sample(later, min(len(later), dice.choice([0, 1, 1, 2])))
            to = to if to and dice.random() > 0.15 else [*to, "end_job"]
            cmd = dice.choice(cmds)
            if any(first == name and step["cmd"] == "grows" for (first, *_), step in steps.items()):
                cmd = "fed"  # which of two that add the same steps comes too late is a matter of time
            retries = {"retries": 2 if "grows" in cmds else dice.choice([0, 1, 2]), "backoff_s": 0}
            steps[name, *to] = {"from": name, "to": to, "cmd": cmd, "data": dice.randint(0, 9), **retries}
    return dice.sample(list(steps.values()), len(steps))


def message_of(type_, message):
    """Which of several failed first is a matter of time."""
    return type_, "" if type_ == "PredecessorFailed" else message


def ends_of(job):
    """How each step ended, from GET /jobs/<id>."""
    return {
        (each["from"], tuple([each["to"]] if isinstance(each["to"], str) else each["to"])): (
            each["state"],
            each["result"]["EOJ"] if "result" in each else message_of(each["error"]["type"], each["error"]["message"]),
        )
        for each in job["steps"]
    }


def told_by(flow):
    return {
        (each.from_, tuple(each.to.split(","))): (
            each.state.name,
            each.value if each.error is None else message_of(each.error.type, each.error.text),
        )
        for each in flow.steps.values()
    }


def test_random_workflows_end_as_in_a_system(system, seed):
    dice = random.Random(seed)
    flows = {f"both-{number}": drawn(dice) for number in range(FLOWS)}
    with system.client() as client:
        for job_id, steps in flows.items():
            client.workflow(steps, job_id=job_id)
        for job_id, steps in flows.items():
            here = run_workflow(steps, modules=MODULES, job_id=job_id)
            job = ended(system, job_id)
            assert told_by(here) == ends_of(job), (job_id, steps)
            assert here.state.name == job["state"]
            if job["state"] == "data_available":
                assert here.result() == job["EOJ"]
            else:
                with pytest.raises(JobError, match=r"ValueError|LookupError|BadStep"):
                    here.result()


def ended(system, job_id):
    """Wait for the end of a job, and return it."""

    def over():
        job = asking.ask(system.config, "GET", f"/jobs/{job_id}")[1]
        return job["status"] >= 3 and job

    until(over, f"{job_id} ends")
    return until(over, f"{job_id} ends")  # one that grew in the moment in which it was read looked over
