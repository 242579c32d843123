"""Starting and stopping, with the real supervisord and real signals."""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent.parent
# The same calls as `bin/exesys up` and its kin, without the command line around them.
CALL = """
import json, sys
from exesys import bootstrap, environment
from exesys.errors import ExesysError
verb, *flags = sys.argv[1:]
try:
    config = environment.load()
    if verb == "status":
        print(json.dumps(bootstrap.status(config)))
        sys.exit(0)
    if verb == "logs":
        sys.exit(bootstrap.logs(config, *flags))
    sys.exit(getattr(bootstrap, verb)(config, **{flag: True for flag in flags}))
except ExesysError as error:
    print(error, file=sys.stderr)
    sys.exit(1)
"""
MODULE = """
def test_cmd(data):
    return data
"""
DEADLINE_S = 60


def until(condition, what, within_s=DEADLINE_S):
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"in {within_s} s not: {what}"
        time.sleep(0.05)
    return found


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def belonging_to(home):
    """Return {pid: name} of everything started with this EXESYS_HOME, but for what the test itself waits for."""
    found = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and f"EXESYS_HOME={home}".encode() in Path(f"/proc/{entry}/environ").read_bytes().split(
                b"\0"
            ):
                found[int(entry)] = Path(f"/proc/{entry}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


class System:
    """A project of its own in a directory of its own, with moved ports."""

    def __init__(self, **keys):
        # Not pytest's directory: names of unix sockets are short.
        self.root = Path(tempfile.mkdtemp(prefix="exesys-")).resolve()
        self.home = self.root / "home"
        (self.root / "etc").mkdir()
        (self.root / "etc" / "exesys.ini").write_text("[worker]\nslots = 1\n")
        (self.root / "modules").mkdir()
        (self.root / "modules" / "own.py").write_text(MODULE)
        self.rest, self.web = free_ports(2)
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")}
        self.environ |= {
            "PYTHONPATH": str(CHECKOUT),
            "EXESYS_HOME": str(self.home),
            "EXESYS_REST_PORT": str(self.rest),
            "EXESYS_WEB_PORT": str(self.web),
            "EXESYS_MONGO_SERVER": "none",
            "EXESYS_WORKER_GRACE_S": "2",
            **{f"EXESYS_{name.upper()}": value for name, value in keys.items()},
        }

    def call(self, verb, *flags, **keys):
        """Run a verb to its end; return (exit code, what it printed, what it complained)."""
        with self.begin(verb, *flags, **keys) as process:
            out, err = process.communicate(timeout=2 * DEADLINE_S)
        return process.returncode, out, err

    def begin(self, verb, *flags, cwd=None, **keys):
        return subprocess.Popen(
            [sys.executable, "-c", CALL, verb, *flags],
            cwd=cwd or self.root,
            env={**self.environ, **{f"EXESYS_{name.upper()}": value for name, value in keys.items()}},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def up(self, *flags):
        code, out, err = self.call("up", *flags)
        assert (code, err) == (0, ""), err + self.logs()
        return out

    def logs(self):
        return "".join(
            f"\n--- {path.name}\n{path.read_text()[-1500:]}" for path in sorted((self.home / "log").glob("*"))
        )

    def status(self):
        return json.loads(self.call("status")[1])

    def pids(self):
        return {each["name"]: each["pid"] for each in self.status()["programs"]}

    def supervisord(self):
        return int((self.home / "run" / "supervisord.pid").read_text())

    def supervisorctl(self, *words):
        command = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(self.home / "supervisord.conf"), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, env=self.environ).stdout

    def send(self, job_id, data="x"):
        body = {"from": "test", "to": "end_job", "cmd": "test_cmd", "data": data, "job_id": job_id}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.rest}/sys_cmd?wait=10",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=20) as answer:
            return json.load(answer)

    def is_empty(self):
        return belonging_to(self.home) == {}

    def end(self):
        def is_gone():
            left = belonging_to(self.home)
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        until(is_gone, "everything that was killed is gone")
        shutil.rmtree(self.root)


@pytest.fixture
def make():
    """Makes systems, and ends them with the test."""
    made = []

    def factory(**keys):
        made.append(System(**keys))
        return made[-1]

    yield factory
    for system in made:
        system.end()


@pytest.fixture(scope="module")
def running():
    """One running system for all tests that leave it as it is."""
    system = System()
    system.up()
    yield system
    system.end()


def left(system):
    """Name what is in the run directory of a system that was stopped."""
    return {path.name for path in (system.home / "run").iterdir()}


def tree(directory):
    return sorted(str(path) for path in directory.rglob("*"))


def one_sentence(err):
    """An error for people: no traceback, and it says what to do."""
    assert "Traceback" not in err
    assert err.count("\n") == 1
    return err


# -- up and down ------------------------------------------------------------------


def test_from_nothing_to_a_job_and_back(make):
    system = make()
    before = tree(system.root)
    out = system.up()
    assert f"http://127.0.0.1:{system.rest}/sys_cmd" in out
    assert "one job was run: test_cmd answered" in out
    assert re.search(r"Redis +(Redis|Valkey) \d", out)
    assert "down" in out.splitlines()[-1]
    assert system.send("first", {"a": 1})["result"] == {"EOJ": {"a": 1}}
    written = [path for path in tree(system.root) if path not in before and not path.startswith(str(system.home))]
    assert [path for path in written if "__pycache__" not in path] == []
    assert (system.home / "run").stat().st_mode & 0o777 == 0o700
    assert (system.home / "run" / "supervisor.sock").stat().st_mode & 0o777 == 0o700

    code, out, _ = system.call("down")
    assert code == 0
    assert "is stopped" in out
    assert system.is_empty()
    assert left(system) == {"boot.lock", "lock", "router.lock"}
    assert system.status()["running"] is False
    code, out, _ = system.call("down")
    assert (code, "Nothing runs" in out) == (0, True)


def test_status_has_the_keys_scripts_rely_on(running):
    status = running.status()
    assert status["home"] == str(running.home)
    assert status["running"] is True
    assert status["rest"]["url"] == f"http://127.0.0.1:{running.rest}"
    assert status["web"]["url"] == f"http://127.0.0.1:{running.web}"
    assert status["redis"]["url"] == f"unix://{running.home}/run/redis?db=0"
    assert status["mongo"]["uri"] == ""
    assert status["bus"]["endpoint"] == f"ipc://{running.home}/run/bus"
    programs = {each["name"]: each for each in status["programs"]}
    assert set(programs) == {"redis", "router", "controller", "worker", "runner", "rest", "web"}
    assert {each["state"] for each in programs.values()} == {"RUNNING"}
    assert all(Path(f"/proc/{each['pid']}").exists() for each in programs.values())


def test_status_tells_the_settings_of_what_runs(running):
    _, out, _ = running.call("status", rest_port="1", web_port="2")
    assert json.loads(out)["rest"]["url"] == f"http://127.0.0.1:{running.rest}"


def test_supervisorctl_works(running):
    lines = running.supervisorctl("status").splitlines()
    assert len(lines) == 7
    assert all(re.match(r"exesys:\w+ +RUNNING", line) for line in lines)


def test_logs_are_shown(running):
    code, out, _ = running.call("logs", "web")
    assert (code, "listening on" in out) == (0, True)
    code, _, err = running.call("logs", "wep")
    assert (code, "Did you mean web?" in one_sentence(err)) == (1, True)


def test_up_again_changes_nothing_and_is_quick(running):
    before = running.pids()
    since = time.monotonic()
    code, out, err = running.call("up")
    took_s = time.monotonic() - since
    assert (code, err) == (0, "")
    assert "runs already" in out
    assert running.pids() == before
    assert took_s < 6  # under 1 s on a machine that does nothing else


def test_up_starts_what_does_not_run(running):
    before = running.pids()
    running.supervisorctl("stop", "exesys:web")
    assert running.pids()["web"] is None
    code, out, err = running.call("up")
    assert (code, err) == (0, "")
    assert "Starting web." in out
    after = running.pids()
    assert after.pop("web") != before.pop("web")
    assert after == before


def test_json_is_json(running):
    code, out, _ = running.call("up", "as_json")
    assert (code, json.loads(out)["running"], json.loads(out)["proof"]) == (0, True, None)


def test_two_systems_side_by_side(running, make):
    other = make()
    other.up()
    assert other.send("same", "theirs")["result"] == {"EOJ": "theirs"}
    assert running.send("same", "ours")["result"] == {"EOJ": "ours"}
    other.call("down")
    assert running.status()["running"] is True
    assert running.send("same", "ours")["result"] == {"EOJ": "ours"}


def test_two_ups_at_the_same_time(make):
    system = make()
    both = [system.begin("up") for _ in range(2)]
    outs = [process.communicate(timeout=2 * DEADLINE_S) for process in both]
    assert [process.returncode for process in both] == [0, 0], outs
    assert sorted("runs already" in out for out, _ in outs) == [False, True]


def test_restart_takes_over_new_settings(make):
    system = make()
    system.up()
    before = system.pids()
    system.send("kept", "through")
    system.environ["EXESYS_WORKER_SLOTS"] = "2"
    code, _, err = system.call("up")
    assert code == 1
    assert "[worker] slots is '1' there and '2' here" in one_sentence(err)
    code, _, err = system.call("restart")
    assert (code, err) == (0, "")
    assert not set(before.values()) & set(system.pids().values())
    assert system.send("kept", "through")["state"] == "data_available"


def test_a_restart_that_cannot_succeed_stops_nothing(running):
    before = running.pids()
    code, _, err = running.call("restart", redis_server="/no/such/program")
    assert code == 1
    assert "/no/such/program" in one_sentence(err)
    assert running.pids() == before


# -- what is refused ----------------------------------------------------------------


def test_a_home_with_other_settings_is_refused(running):
    code, _, err = running.call("up", worker_slots="7")
    assert code == 1
    assert f"{running.home} is held by a system with other settings" in one_sentence(err)
    assert str(running.supervisord()) in err
    assert "restart" in err


def test_a_home_of_another_project_is_refused(running, make):
    stranger = make()
    code, _, err = stranger.call("up", home=str(running.home))
    assert code == 1
    assert f"{running.home} is held by the system of {running.root}" in one_sentence(err)
    assert "down" in err


@pytest.mark.parametrize("key", ["rest_port", "web_port", "redis_port"])
def test_a_busy_port_is_refused(running, make, key):
    system = make(**{key: str(running.rest)})
    code, _, err = system.call("up")
    assert code == 1
    section, _, name = key.partition("_")
    assert f"Port {running.rest} of 127.0.0.1 ([{section}] {name}) is in use by process" in one_sentence(err)
    assert f"EXESYS_{key.upper()}" in err
    assert not system.home.exists()


def refusals():
    yield "no number", {"rest_port": "x"}, r"EXESYS_REST_PORT is 'x'\. Allowed: a whole number"
    yield "two equal ports", {"rest_port": "5999", "web_port": "5999"}, r"are both 5999"
    yield "no redis", {"redis_server": "/no/such"}, r"\[redis\] server is '/no/such'"
    yield "no mongo", {"mongo_server": "/no/such"}, r"\[mongo\] server is '/no/such'"
    yield "redis away", {"redis_url": "unix:///no/such?db=0"}, r"\[redis\] url is .* no Redis can be used there"
    yield "a file above the home", {"home": "etc/exesys.ini/home"}, r"nothing can be written"
    yield "a home that cannot be made", {"home": "/proc/home"}, r"nothing can be written"
    yield "a long home", {"home": "/tmp/" + "x" * 100}, r"Choose a shorter"
    yield "a home no URL carries", {"home": "home?"}, r"does not fit a Redis URL"


@pytest.mark.parametrize(("keys", "says"), [case[1:] for case in refusals()], ids=[case[0] for case in refusals()])
def test_what_cannot_be_started_leaves_nothing(make, keys, says):
    system = make()
    before = tree(system.root)
    code, _, err = system.call("up", **keys)
    assert code == 1
    assert re.search(says, one_sentence(err))
    assert tree(system.root) == before


def test_a_bad_value_in_the_ini_names_file_line_and_key(make):
    system = make()
    (system.root / "etc" / "exesys.ini").write_text("[worker]\n# how many\nslots = many\n")
    code, _, err = system.call("up")
    assert code == 1
    assert "exesys.ini, line 3: [worker] slots is 'many'. Allowed: a whole number" in one_sentence(err)
    assert not system.home.exists()


def test_a_run_directory_open_to_others_is_refused_and_not_changed(make):
    system = make()
    (system.home / "run").mkdir(parents=True)
    (system.home / "run").chmod(0o755)
    code, _, err = system.call("up")
    assert code == 1
    assert "open to other users" in one_sentence(err)
    assert (system.home / "run").stat().st_mode & 0o777 == 0o755
    assert tree(system.home) == [str(system.home / "run")]


def test_data_of_another_server_is_refused(make):
    system = make()
    data = system.home / "data" / "redis"
    data.mkdir(parents=True)
    (data / "written-by.json").write_text('{"product": "Valkey", "version": "99.0.0"}')
    code, _, err = system.call("up")
    assert code == 1
    assert "was written by Valkey 99.0.0" in one_sentence(err)
    assert system.is_empty()


def test_a_program_that_cannot_start_stops_all_and_shows_its_log(make):
    system = make()
    broken = system.root / "mongod"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "db version v7.0.5" && exit\necho "no disk"; exit 7\n')
    broken.chmod(0o755)
    code, out, err = system.call("up", mongo_server=str(broken))
    assert code == 1
    assert "mongo does not start" in err
    assert "    no disk" in err
    assert "Traceback" not in err
    assert "Try it" not in out
    assert system.is_empty()
    assert system.status()["running"] is False
    # And nothing of it stands in the way of a start that can be.
    system.up()


# -- deaths -------------------------------------------------------------------------


def test_killing_supervisord_leaves_no_orphans_and_up_works_again(make):
    system = make()
    system.up()
    system.send("kept", "through the kill")
    assert len(belonging_to(system.home)) >= 7
    os.kill(system.supervisord(), signal.SIGKILL)
    until(system.is_empty, f"all gone: {belonging_to(system.home)}")
    assert system.status()["running"] is False

    system.up()
    assert system.send("kept", "through the kill")["result"] == {"EOJ": "through the kill"}


def test_up_right_after_killing_supervisord(make):
    """Old programs may still be ending: up waits for them, whatever they do."""
    system = make()
    system.up()
    before = system.pids()
    # This one cannot end by itself.
    os.kill(before["controller"], signal.SIGSTOP)
    os.kill(system.supervisord(), signal.SIGKILL)
    out = system.up()
    assert "Waiting for programs whose supervisord is gone" in out
    assert not set(before.values()) & set(belonging_to(system.home))


def test_down_after_killing_supervisord(make):
    system = make()
    system.up()
    os.kill(system.supervisord(), signal.SIGKILL)
    code, _, err = system.call("down")
    assert (code, err) == (0, "")
    assert system.is_empty()
    assert not {name for name in left(system) if name.startswith(("bus", "supervisor"))}


def test_down_removes_sockets_of_a_bus_elsewhere_and_nothing_beside_them(make):
    system = make()
    (system.root / "bus.txt").write_text("mine")
    endpoint = f"ipc://{system.root}/bus"
    code, _, err = system.call("up", bus_endpoint=endpoint)
    assert (code, err) == (0, "")
    assert (system.root / "bus.events").is_socket()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(system.root / "bus.w-other"))
        other.listen()
        assert system.call("down")[0] == 0
        assert sorted(path.name for path in system.root.glob("bus*")) == ["bus.txt", "bus.w-other"]


def test_a_killed_program_is_started_again(running):
    before = running.pids()
    os.kill(before["web"], signal.SIGKILL)
    until(lambda: running.pids()["web"] not in (None, before["web"]), "web is started again")
    until(lambda: running.status()["programs"] and "RUNNING" in running.supervisorctl("status", "exesys:web"), "up")


def test_an_up_that_was_killed_is_completed_by_the_next(make):
    system = make()
    first = system.begin("up")
    until(lambda: (system.home / "run" / "supervisord.pid").exists(), "supervisord started")
    first.kill()
    first.communicate()
    code, out, err = system.call("up")
    assert (code, err) == (0, "")
    assert "runs already" in out
    assert system.send("after")["state"] == "data_available"


def test_terminating_supervisord_stops_in_order(make):
    """A worker can still give its results to the router, and the router to Redis."""
    system = make()
    system.up()
    pid = system.supervisord()
    os.kill(pid, signal.SIGTERM)
    until(system.is_empty, "all gone")
    log = (system.home / "log" / "supervisord.log").read_text()
    stopped = re.findall(r"stopped: (\w+) \((.*)\)", log)
    order = [name for name, _ in stopped]
    assert set(order[:2]) == {"rest", "web"}
    assert set(order[2:5]) == {"controller", "worker", "runner"}
    assert order[5:] == ["router", "redis"]
    assert {how for _, how in stopped} == {"exit status 0"}


def test_supervisord_can_reload_without_giving_up_the_home(make):
    system = make()
    system.up()
    before = system.pids()
    system.supervisorctl("reload")
    until(
        lambda: set(system.pids()) == set(before) and not set(system.pids().values()) & set(before.values()),
        "new programs",
    )
    code, _, err = make().call("up", home=str(system.home))
    assert (code, "is held by" in err) == (1, True)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_foreground_ends_with_its_process(make, number):
    system = make()
    shell = system.begin("up", "foreground")
    until(lambda: shell.poll() is not None or "Stop it with" in shell.stdout.readline(), "it is up")
    assert shell.poll() is None, shell.communicate()
    assert system.send("front")["state"] == "data_available"
    shell.send_signal(number)
    shell.communicate(timeout=DEADLINE_S)
    if number != signal.SIGKILL:
        assert shell.returncode == 0
        assert system.is_empty()
    until(system.is_empty, "all gone")


def test_foreground_is_refused_when_it_runs(running):
    code, _, err = running.call("up", "foreground")
    assert (code, "runs in" in one_sentence(err)) == (1, True)


# -- MongoDB --------------------------------------------------------------------------


def test_a_private_mongo_keeps_its_port_and_its_data(make):
    pytest.importorskip("secantus")
    pymongo = pytest.importorskip("pymongo")
    beside = Path(sys.executable).with_name("secantusd-py")
    system = make(mongo_server=str(beside))
    out = system.up()
    assert "for trials only" in out
    uri = system.status()["mongo"]["uri"]
    with pymongo.MongoClient(uri, serverSelectionTimeoutMS=5000) as client:
        client.exesys.things.insert_one({"_id": 1, "kept": True})
    system.call("down")
    system.up()
    assert system.status()["mongo"]["uri"] == uri
    with pymongo.MongoClient(uri, serverSelectionTimeoutMS=5000) as client:
        assert client.exesys.things.find_one({"_id": 1}) == {"_id": 1, "kept": True}
