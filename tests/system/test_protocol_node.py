"""`docs/protocol.md` is enough to write a client: one in JavaScript talks to a real system.

Node.js and its packages are installed below a directory of the test's own. Where
they are not to be had the tests are skipped, but not with CI=true: there they fail.
"""

import json
import os
import queue
import shutil
import signal
import subprocess
import threading
import time
import uuid
from pathlib import Path

import pytest
from harness import until

NODE = Path(__file__).resolve().parent / "node"
DEADLINE_S = 30
INSTALL_S = 180
HEARTBEAT_S = 0.25


def lacking(reason):
    if os.environ.get("CI") == "true":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class NodeClient:
    """The JavaScript client as a process: requests go in as lines, and what happens comes out as lines."""

    def __init__(self, directory, endpoint):
        self.process = subprocess.Popen(
            ["node", "client.mjs", endpoint], cwd=directory, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self._arrived = queue.Queue()
        self._kept = []
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self._arrived.put(json.loads(line))

    def ask(self, do, **fields):
        self.process.stdin.write(json.dumps({"do": do, **fields}) + "\n")
        self.process.stdin.flush()

    def heard(self, what, within_s, **fields):
        """Return the first line of this kind with these fields that was not returned yet, None if none comes."""
        deadline = time.monotonic() + within_s
        while True:
            for line in self._kept:
                if line["what"] == what and fields.items() <= line.items():
                    self._kept.remove(line)
                    return line
            try:
                self._kept.append(self._arrived.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                return None

    def next(self, what, **fields):
        line = self.heard(what, DEADLINE_S, **fields)
        assert line is not None, f"in {DEADLINE_S} s no {what} {fields}; there came {self._kept[-20:]}"
        return line

    def submit(self, *items):
        self.ask("submit", items=items)
        return self.next("tags")["tags"]

    def status(self, job_id, from_="client", to="end_job"):
        self.ask("status", job_id=job_id, **{"from": from_, "to": to})
        [tag] = self.next("tags")["tags"]
        return self.next("answer", tag=tag)

    def ended(self, tag):
        """Return how a command ended; it may have been acknowledged before that, or not."""
        while (answer := self.next("answer", tag=tag))["state"] in (0, 1, 2):
            pass
        return answer

    def close(self):
        self.process.stdin.close()
        try:
            assert self.process.wait(DEADLINE_S) == 0
        finally:
            self.process.kill()


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A directory with the client and its packages."""
    if not (shutil.which("node") and shutil.which("npm")):
        lacking("node and npm are not installed")
    directory = tmp_path_factory.mktemp("node")
    for name in ("client.mjs", "package.json"):
        shutil.copy(NODE / name, directory)
    command = ["npm", "install", "--ignore-scripts", "--no-audit", "--no-fund"]
    try:
        done = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired:
        lacking(f"npm did not install the client's packages in {INSTALL_S} s")
    if done.returncode:
        lacking(f"npm cannot install the client's packages: {done.stderr[-500:]}")
    return directory


@pytest.fixture(scope="module")
def system(installed, make_module):
    return make_module(bus_heartbeat_s=HEARTBEAT_S)


@pytest.fixture
def client(installed, system):
    client = NodeClient(installed, system.config.bus_endpoint)
    try:
        client.welcome = client.next("welcome")
        yield client
    finally:
        client.close()


def new_id():
    return str(uuid.uuid4())


def test_welcome_says_what_a_client_must_know(client, system):
    welcome = client.welcome
    assert (welcome["version"], welcome["heartbeat_s"], welcome["misses"]) == (1, HEARTBEAT_S, 5)
    assert welcome["epoch"] >= 1
    assert welcome["limits"] == {"data_bytes": 1 << 20, "depth": 100, "log_bytes": 64 << 10}
    assert welcome["endpoints"] == {name: f"{system.config.bus_endpoint}.{name}" for name in ("results", "events")}


def test_submit_then_done_then_status(client):
    job_id = new_id()
    [tag] = client.submit({"cmd": "echo", "data": {"a": [1, "è"]}, "job_id": job_id})
    assert client.ended(tag)["result"] == {"EOJ": {"a": [1, "è"]}}
    asked = client.status(job_id)
    assert (asked["kind"], asked["state"], asked["result"]) == ("STATUS", 3, {"EOJ": {"a": [1, "è"]}})
    # The same command again is answered at once, by its acknowledgement.
    [again] = client.submit({"cmd": "echo", "data": {"a": [1, "è"]}, "job_id": job_id})
    answer = client.next("answer", tag=again)
    assert (answer["kind"], answer["state"], answer["result"]) == ("SUBMIT_ACK", 3, {"EOJ": {"a": [1, "è"]}})


def test_a_long_job_is_acknowledged_and_done_later(client):
    [tag] = client.submit({"cmd": "sleep", "data": 0.3, "to": ["D", "E"]})
    first, second = client.next("answer", tag=tag), client.next("answer", tag=tag)
    assert (first["kind"], first["state"]) == ("SUBMIT_ACK", 0)
    assert (second["kind"], second["result"]) == ("DONE", {"EOJ": 0.3})


def test_many_in_one_message(client):
    tags = client.submit(*({"cmd": "add", "data": [number, 1]} for number in range(300)))
    assert [client.ended(tag)["result"]["EOJ"] for tag in tags] == list(range(1, 301))


def test_what_json_lacks_comes_back_as_it_was(client):
    client.ask("types")
    [tag] = client.next("tags")["tags"]
    assert client.ended(tag)["equal"] is True


def test_a_function_that_fails(client):
    [tag] = client.submit({"cmd": "fail", "data": "on purpose", "options": {"retries": 1, "backoff_s": 0.01}})
    answer = client.ended(tag)
    assert (answer["state"], answer["attempts"]) == (4, 2)
    assert (answer["error"]["type"], answer["error"]["message"]) == ("ValueError", "on purpose")
    assert answer["error"]["traceback"].endswith("ValueError: on purpose\n")


def test_refusals_concern_one_command_each(client):
    job_id = new_id()
    tags = client.submit(
        {"cmd": "ecko"},
        {"cmd": "echo", "from": "a:b"},
        {"cmd": "echo", "data": 1, "job_id": job_id},
        {"cmd": "echo", "data": 2, "job_id": job_id},
    )
    unknown, bad, good, conflict = (client.ended(tag) for tag in tags)
    assert (unknown["state"], unknown["code"], unknown["fix"]) == (-1, "unknown_cmd", "Did you mean `echo`?")
    assert (bad["code"], bad["field"]) == ("bad_field", "from")
    assert good["result"] == {"EOJ": 1}
    assert (conflict["code"], conflict["field"]) == ("conflict", "job_id")
    assert client.status(new_id())["code"] == "not_found"


@pytest.mark.parametrize("frame", ["c1", "a0", "90", "93a6", "92a6" + b"SUBMIT".hex() + "01", "ff" * 64])
def test_bytes_that_are_no_message_are_told_so(client, frame):
    client.ask("sendHex", hex=frame)
    assert client.next("error")["code"] == "bad_message"
    [tag] = client.submit({"cmd": "echo", "data": 1})
    assert client.ended(tag)["result"] == {"EOJ": 1}


@pytest.mark.parametrize(
    ("message", "code"),
    [
        (["HELLO", 99, "client", "0123456789abcdef", "", {}], "bad_version"),
        (["HELLO", 1, "clients", "0123456789abcdef", "", {}], "bad_hello"),
        (["HELLO", 1, "worker", "0123456789abcdef", "", {}], "bad_hello"),
        (["STOP", "mail", "x"], "not_allowed"),
        (["RESULT", "0123456789abcdef", []], "not_allowed"),
    ],
)
def test_errors_have_codes(client, message, code):
    client.ask("send", message=message)
    assert client.next("error")["code"] == code


def test_snapshot_has_the_parts_asked_for(client):
    client.ask("send", message=["SYNC", 7, ["workers", "figures", "functions", "no such part"]])
    parts = client.next("snapshot", tag=7)["parts"]
    assert parts.keys() == {"workers", "figures", "functions"}
    assert [worker["queues"] for worker in parts["workers"]] == [["default"]]
    assert "echo" in {function["name"] for function in parts["functions"]["functions"]}


def test_a_stop_key_set_to_0_becomes_an_event(client, system):
    with system.redis() as store:

        def stop(runner):
            store.set(f"run:mail:{runner}", 1)
            store.set(f"run:mail:{runner}", 0)

        # Nothing tells when a subscription has reached the publisher: stop others until one is heard.
        until(lambda: stop(new_id()) or client.heard("event", within_s=0.2), "an event came")
        runner = new_id()
        stop(runner)
    event = client.next("event", topic=f"stop.mail.{runner}")
    assert event["body"] == ["mail", runner]
    assert event["epoch"] == client.welcome["epoch"]
    assert client.next("stop", uuid=runner)["type"] == "mail"


def test_the_stop_of_a_runner_that_runs_is_heard_and_ends_it(client, system):
    """Started by a function, stopped by a message of this client, and heard as a topic."""
    uuid = new_id()
    [tag] = client.submit({"cmd": "lives.start", "data": {"target": "idle", "options": {"type": "cam", "uuid": uuid}}})
    assert client.ended(tag)["result"] == {"EOJ": f"cam:{uuid}"}
    with system.redis() as store:
        record = f"exesys:runner:cam:{uuid}"
        until(lambda: store.hget(record, "state") == b"running", "it runs")
        client.ask("send", message=["CHANGE", 901, "stop", f"cam:{uuid}"])
        event = client.next("event", topic=f"stop.cam.{uuid}")
        assert event["body"] == ["cam", uuid]
        assert store.get(f"run:cam:{uuid}") == b"0"
        until(lambda: store.hget(record, "state") == b"stopped", "it ended")


def test_busy_while_the_store_is_away_then_done(client, system):
    pid = system.pids()["redis"]
    os.kill(pid, signal.SIGSTOP)
    try:
        [tag] = client.submit({"cmd": "echo", "data": "patience"})
        until(lambda: client.submit({"cmd": "noop"}) and client.heard("busy", 0.1, reason="store"), "BUSY came")
        [late] = client.submit({"cmd": "echo", "data": "later"})
    finally:
        os.kill(pid, signal.SIGCONT)
    assert client.ended(tag)["result"] == {"EOJ": "patience"}
    assert client.ended(late)["result"] == {"EOJ": "later"}


def test_a_router_killed_with_work_under_way(client, system):
    tags = client.submit(*({"cmd": "sleep", "data": 0.02} for _ in range(100)))
    os.kill(system.pids()["router"], signal.SIGKILL)
    more = client.submit({"cmd": "echo", "data": "after"})
    again = client.next("welcome")
    assert again["epoch"] > client.welcome["epoch"]
    assert again["session"] == client.welcome["session"]
    assert [client.ended(tag)["result"]["EOJ"] for tag in tags] == [0.02] * 100
    assert client.ended(more[0])["result"] == {"EOJ": "after"}
