"""REST is as /openapi.json says: real answers fit the schemas, and what schemathesis makes of them finds nothing."""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from harness import CHECKOUT, Answer, System, until

ROUNDS = int(os.environ.get("EXESYS_ROUNDS") or 2)
WITHIN_S = 15  # of a round
EXAMPLES = 4  # of each operation in a round
SEED = 7
CONFIG = CHECKOUT / "tests" / "data" / "schemathesis.toml"
JSON = {"Content-Type": "application/json"}


class Checked:
    """Asks a system, and holds each answer against the document."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.document: dict[str, Any] = system.get("/openapi.json").body
        self.paths = [(re.compile(re.sub(r"{\w+}", "[^/]+", path)), path) for path in self.document["paths"]]
        self.paths.sort(key=lambda each: "{" in each[1])
        self.seen: set[tuple[str, str]] = set()

    def ask(self, method: str, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        """Ask, and return the body of an answer that has this status and is as the document says."""
        sent = None if body is None else json.dumps(body)
        answer = self.system.request(method, path, sent, {**(JSON if body is not None else {}), **headers})
        assert answer.status == status, answer
        return self.fits(method, path, answer)

    def fits(self, method: str, path: str, answer: Answer) -> Any:
        bare = path.partition("?")[0]
        template = next(named for pattern, named in self.paths if pattern.fullmatch(bare))
        told = self.document["paths"][template][method.lower()]["responses"][str(answer.status)]
        if answer.status < 300:
            self.seen.add((method, template))
        kind = answer.headers["content-type"]
        content = told["content"].get(kind) or told["content"][kind.partition(";")[0]]
        schema = {**content["schema"], "components": self.document["components"]}
        for wrong in jsonschema_rs.Draft202012Validator(schema).iter_errors(answer.body):
            pytest.fail(f"{method} {path}: {wrong}")
        return answer.body


@pytest.fixture(scope="module")
def system(make_module: Callable[..., System]) -> System:
    ini = "[appserver:desk]\nclass = services:Desk\n[queue:mail]\nrate = 100/m\n"
    return make_module(ini=ini)


@pytest.fixture(scope="module")
def checked(system: System) -> Checked:
    return Checked(system)


def job(checked: Checked, **command: Any) -> str:
    return str(checked.ask("POST", "/sys_cmd?wait=20", command)["job_id"])


def test_jobs(checked: Checked) -> None:
    first = job(checked, cmd="add", data=[1, 2])
    assert checked.ask("GET", f"/jobs/{first}")["EOJ"] == 3
    checked.ask("GET", f"/jobs/{first}/log")
    text = checked.system.get(f"/jobs/{first}/log", {"Accept": "text/plain"})
    checked.fits("GET", f"/jobs/{first}/log", text)
    several = [{"cmd": "echo"}, {"cmd": "no_such"}, {"cmd": 5}, {"cmd": "fail", "data": "x"}]
    assert len(checked.ask("POST", "/sys_cmd?wait=20", several)) == 4
    checked.ask("POST", "/sys_cmd", {"cmd": "noop", "delay_s": 60, "job_id": "later"}, 202)
    checked.ask("GET", "/jobs/later")
    checked.ask("DELETE", "/jobs/later")
    flow = [
        {"from": "A", "to": ["B", "C"], "cmd": "add", "data": [1]},
        {"from": "B", "cmd": "echo"},
        {"from": "C", "cmd": "fail"},
    ]
    told = checked.ask("POST", "/sys_cmd?wait=20", flow, Operation="workflow")
    checked.ask("GET", f"/jobs/{told[0]['job_id']}")
    checked.ask("POST", f"/jobs/{told[0]['job_id']}/retry", status=202)
    checked.ask("GET", "/jobs?limit=3&state=data_available")


def test_refusals(checked: Checked) -> None:
    unknown = {"cmd": "no_such"}
    for body, status in (([], 400), (unknown, 422), ([unknown], 422), ({"cmd": "echo", "a": 1}, 400)):
        checked.ask("POST", "/sys_cmd", body, status)
    checked.fits("POST", "/sys_cmd", checked.system.request("POST", "/sys_cmd", "{}", {"Content-Type": "text/plain"}))
    checked.fits("POST", "/sys_cmd", checked.system.request("POST", "/sys_cmd", b"[" + b" " * (9 << 20) + b"]", JSON))
    taken = {"cmd": "echo", "data": 1, "job_id": str(uuid.uuid4())}
    checked.ask("POST", "/sys_cmd", taken, 202)
    checked.ask("POST", "/sys_cmd", {**taken, "data": 2}, 409)
    checked.ask("GET", "/jobs?limit=0", status=400)
    for path in ("/jobs/none", "/dead/none", "/runners/a/b", "/timers/none", "/apps/none"):
        checked.ask("GET", path, status=404)


def test_what_failed(checked: Checked) -> None:
    for number in range(3):
        job(checked, cmd="fail", data="x", job_id=f"failed-{number}")
    assert checked.ask("GET", "/dead?limit=2&cmd=fail")["next"]
    checked.ask("GET", "/dead/failed-0")
    checked.ask("POST", "/dead/failed-0/retry", status=202)
    until(lambda: checked.system.get("/jobs/failed-0").body["state"] == "error", "it failed again")
    checked.ask("DELETE", "/dead/failed-1")
    checked.ask("POST", "/dead/retry?cmd=fail&older_s=0")
    until(lambda: checked.system.get("/jobs/failed-2").body["state"] == "error", "it failed again")
    checked.ask("DELETE", "/dead?cmd=fail")


def test_queues_and_timers(checked: Checked) -> None:
    checked.ask("PATCH", "/queues/mail", {"depth": 10, "rate": "5/s", "concurrency": None})
    checked.ask("POST", "/queues/mail/pause")
    checked.ask("POST", "/sys_cmd", {"cmd": "noop", "queue": "mail", "job_id": "in-vain"}, 202)
    assert checked.ask("POST", "/sys_cmd?wait=0.2", {"cmd": "noop", "queue": "mail", "job_id": "in-vain"}, 202)["waits"]
    checked.ask("GET", "/queues")
    checked.ask("POST", "/queues/mail/resume")
    checked.ask("GET", "/queues/mail")
    timer = {
        "name": "often",
        "cmd": "noop",
        "every_s": 0.2,
        "jitter_s": 0,
        "retries": 1,
        "start": "2020-01-01T00:00:00Z",
    }
    checked.ask("POST", "/timers", timer, 201)
    checked.ask("POST", "/timers", timer)
    until(lambda: checked.system.get("/timers/often").body["last"], "it has ticked")
    assert checked.ask("GET", "/timers/often")["last"]
    checked.ask(
        "POST", "/timers", {"name": "seldom", "cmd": "noop", "cron": "30 2 * * MON", "zone": "Europe/Rome"}, 201
    )
    checked.ask("GET", "/timers?limit=1")
    checked.ask("POST", "/timers/often/pause")
    checked.ask("POST", "/timers/often/resume")
    checked.ask("POST", "/timers/often/run", status=202)
    checked.ask("DELETE", "/timers/often")
    with checked.system.redis() as connection:
        connection.hset("exesys:timer:seldom", "every_s", "soon")
    assert checked.ask("GET", "/timers/seldom")["state"] == "spoilt"
    checked.ask("DELETE", "/timers/seldom")


def test_runners(checked: Checked) -> None:
    checked.ask("POST", "/runners", {"target": "lives.sleeper", "type": "t", "uuid": "a", "grace_s": 1}, 202)
    until(lambda: checked.system.get("/runners/t/a").body.get("pid"), "it runs")
    checked.ask("GET", "/runners/t/a")
    checked.ask("GET", "/runners/t/a/log?after=0")
    checked.ask("GET", "/runners?state=running&ended=5")
    checked.ask("POST", "/runners/t/a/restart", status=202)
    checked.ask("GET", "/runners/t")
    checked.ask("DELETE", "/runners/t/a?wait=20")
    assert checked.ask("GET", "/runners/t/a")["state"] == "stopped"
    checked.ask("DELETE", "/runners/t?wait=20", status=404)
    checked.ask("POST", "/runners", {"target": "lives.sleeper", "type": "t", "uuid": "b", "grace_s": 1}, 202)
    checked.ask("DELETE", "/runners/t?wait=20")


def test_the_rest(checked: Checked) -> None:
    assert until(lambda: checked.ask("GET", "/apps/desk")["state"] == "ready" or None, "it is ready")
    checked.ask("GET", "/apps")
    [method] = [each["name"] for each in checked.ask("GET", "/apps/desk")["methods"] if each["name"] == "sleep"]
    checked.ask("POST", f"/apps/desk/{method}?timeout=10", [0])
    checked.ask("POST", "/apps/desk/none", [0], 404)
    checked.ask("POST", f"/apps/desk/{method}?timeout=0.2", [1], 504)
    for path in ("/callbacks", "/functions", "/workers", "/whoami", "/metrics", "/healthz", "/readyz", "/openapi.json"):
        checked.ask("GET", path)


@pytest.mark.parametrize("name", ["Operation", "Prefer", "Accept", "Authorization", "Last-Event-ID", "Origin", "Host"])
def test_a_header_that_is_no_text_is_no_fault_of_ours(checked: Checked, name: str) -> None:
    for method, path in (("POST", "/sys_cmd"), ("GET", "/jobs/none/log"), ("GET", "/events?kinds=none")):
        answer = checked.system.request(method, path, "{}", {**JSON, name: "\x84"})
        assert 400 <= answer.status < 500
        checked.fits(method, path, answer)


STREAMS = {("GET", "/events"), ("GET", "/jobs/{job_id}/events")}  # test_events.py has them


def test_every_operation_was_asked(checked: Checked) -> None:
    """All of the tests above together leave none out."""
    there = {(method.upper(), path) for path, item in checked.document["paths"].items() for method in item}
    assert there - checked.seen == STREAMS


# --- schemathesis ---------------------------------------------------------------


def run_schemathesis(system: System, document: str, seed: int, *words: str) -> str:
    """Let it ask all that there is, in bounded time; return its report. Fails when it found something."""
    command = [str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(CONFIG), "--no-color", "run"]
    command += [document, "--url", f"http://127.0.0.1:{system.rest_port}", "--seed", str(seed), "--continue-on-failure"]
    command += [
        "--max-time",
        str(WITHIN_S * ROUNDS),
        "--max-examples",
        str(EXAMPLES * ROUNDS),
        "--suppress-health-check",
        "all",
        "--request-timeout",
        "30",
    ]
    done = subprocess.run([*command, *words], cwd=system.root, env=system.environ, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_only_the_sender_suffers(make: Callable[..., System], tell: Callable[[str], None]) -> None:
    """The same requests each time, as far as time allows; another EXESYS_SEED, or EXESYS_ROUNDS, asks others."""
    system, seed = make(), int(os.environ.get("EXESYS_SEED") or SEED)
    header = {"Authorization": f"Bearer {system.exesys('keys', 'new', 'admin', 'fuzz', '--json').json['token']}"}
    before = system.pids()
    document = save(system, header, seed)
    report = run_schemathesis(system, document, seed, "--header", f"Authorization: {header['Authorization']}")
    tell("schemathesis: " + " ".join(re.findall(r"[0-9]+ generated.*", report)))
    run_schemathesis(system, document, seed, "--phases", "fuzzing")  # a stranger, who gets 401
    assert system.pids() == before, "no program had to be started anew"
    assert "Traceback" not in system.log_of("rest") + system.log_of("router")
    leave_nothing(system, header)
    done = system.post({"cmd": "add", "data": [1, 2]}, wait=20, headers=header)
    assert done.body["result"] == {"EOJ": 3}


def save(system: System, header: dict[str, str], seed: int) -> str:
    """Write the document to a file, its paths in any order: what there is no time for is something else then."""
    document = system.get("/openapi.json", header).body
    paths = list(document["paths"].items())
    random.Random(seed).shuffle(paths)
    path = system.root / "openapi.json"
    path.write_text(json.dumps({**document, "paths": dict(paths)}))
    return str(path)


def leave_nothing(system: System, header: dict[str, str]) -> None:
    """Remove what was accepted. What is then left in Redis belongs to the jobs that are listed."""
    for timer in system.get("/timers", header).body["timers"]:
        assert system.request("DELETE", f"/timers/{timer['name']}", headers=header).status == 200
    nothing = dict.fromkeys(("depth", "rate", "concurrency", "key_limit", "paused"))
    for queue in system.get("/queues", header).body["queues"]:
        body = json.dumps(nothing)
        assert system.request("PATCH", f"/queues/{queue['name']}", body, {**JSON, **header}).status == 200
    listed = system.get("/jobs", header, limit=1000).body
    assert listed["next"] is None
    known = {each["job_id"] for each in listed["jobs"]}
    for job_id in known:
        assert system.request("DELETE", f"/jobs/{job_id}", headers=header).status == 200
    names = [name.split(":") for database, name in system.everything() if database == 0]
    assert {parts[1] for parts in names if parts[0] != "exesys" and not parts[1].startswith("proof")} <= known
    assert not [parts for parts in names if parts[:2] in (["exesys", "timer"], ["exesys", "runner"])]
