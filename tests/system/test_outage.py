"""Redis or the router is there, but not of use: clients get 503 or wait, and all goes on by itself."""

import http.client
import os
import signal
import threading
import time
from collections import Counter

import pytest
from harness import until, valkey_path

from exesys.errors import JobCancelled

AWAY_S = 10
BEFORE_S = 1
AFTER_S = 2
ANSWER_S = 8.0  # the longest that anyone may be left without any answer
RECOVERY_S = 60


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(redis_server=valkey_path())


class Caller(threading.Thread):
    """Sends one command after the other over REST, each once, and notes what it was told."""

    def __init__(self, system, name, marks):
        super().__init__(daemon=True)
        self.system, self.caller, self.marks = system, name, str(marks)
        self.accepted, self.refused = {}, {}
        self.statuses = Counter()
        self.longest_s = 0.0
        self.hasty = 0
        self.odd = []
        self.halt = threading.Event()

    def run(self):
        number = 0
        while not self.halt.wait(0.005):
            number += 1
            job_id = f"{self.caller}-{number}"
            command = {
                "cmd": "marked",
                "job_id": job_id,
                "data": {"runs": self.marks, "number": number, "seconds": 0.001},
            }
            since = time.monotonic()
            try:
                answer = self.system.post(command, timeout=30)
            except (OSError, http.client.HTTPException) as error:
                self.odd.append(repr(error))
                continue
            self.longest_s = max(self.longest_s, time.monotonic() - since)
            self.statuses[answer.status] += 1
            if answer.status in (200, 202):
                self.accepted[job_id] = number
            elif answer.status == 503 and answer.error["code"] == "unavailable":
                self.refused[job_id] = number
                if "retry-after" not in answer.headers:
                    self.hasty += 1
            else:
                self.odd.append(answer)


def test_redis_stands_still_for_ten_seconds(system, tell):
    before = system.pids()
    marks = system.root / "outage"
    callers = [Caller(system, f"rest{i}", marks) for i in range(4)]
    handles = []
    halt = threading.Event()
    client = system.client()

    def submit():
        while not halt.wait(0.005):
            data = {"runs": str(marks), "number": len(handles), "seconds": 0.001}
            handles.append(client.submit("marked", data, job_id=f"bus-{len(handles)}"))

    submitter = threading.Thread(target=submit, daemon=True)
    for thread in (submitter, *callers):
        thread.start()
    redis = before["redis"]
    moved(callers, handles, BEFORE_S)
    os.kill(redis, signal.SIGSTOP)
    stopped = time.monotonic()
    seen = Counter()
    ended_then = sum(handle.done() for handle in handles)
    while time.monotonic() < stopped + AWAY_S:
        # What needs no Redis goes on; what needs it says that it is away.
        seen["healthz", system.get("/healthz").status] += 1
        seen["workers", system.get("/workers").status] += 1
        ready = system.get("/readyz")
        seen["readyz", ready.status] += 1
        jobs = system.get("/jobs")
        seen["jobs", jobs.status] += 1
        assert "Redis" in jobs.error["message"]
    during = [handle for handle in handles if not handle.done()]
    os.kill(redis, signal.SIGCONT)
    resumed = time.monotonic()
    until(lambda: system.get("/readyz").status == 200, "ready again", within_s=10)
    ready_s = time.monotonic() - resumed
    moved(callers, handles, AFTER_S)
    halt.set()
    for caller in callers:
        caller.halt.set()
    for thread in (submitter, *callers):
        thread.join(RECOVERY_S)
        assert not thread.is_alive()

    assert set(seen) == {("healthz", 200), ("workers", 200), ("readyz", 503), ("jobs", 503)}
    assert during, "the client had nothing under way while Redis was away"
    assert ended_then > 0
    # Whoever waited has its result, and whoever was accepted too.
    assert [handle.result(RECOVERY_S)["value"] for handle in handles] == [2 * i for i in range(len(handles))]
    accepted = {job_id: number for caller in callers for job_id, number in caller.accepted.items()}
    for job_id, number in accepted.items():
        assert client.result(job_id, RECOVERY_S)["value"] == 2 * number
    client.close()
    for caller in callers:
        assert caller.odd == []
        assert caller.accepted
        assert caller.refused, caller.statuses
        assert caller.longest_s < ANSWER_S
    # Of what was refused nothing more is known than that it may be sent again: whole or not at all.
    refused = {job_id: number for caller in callers for job_id, number in caller.refused.items()}
    commands = [
        {"cmd": "marked", "job_id": job_id, "data": {"runs": str(marks), "number": number, "seconds": 0.001}}
        for job_id, number in refused.items()
    ]
    for start in range(0, len(commands), 200):
        some = commands[start : start + 200]
        answer = system.post(some, wait=RECOVERY_S, timeout=2 * RECOVERY_S)
        values = [item["result"]["EOJ"]["value"] for item in answer.body]
        assert values == [2 * command["data"]["number"] for command in some]
    attempts = Counter(tuple(line.split()[:2]) for line in marks.read_text().splitlines())
    assert set(attempts.values()) == {1}, "an attempt ran twice"
    runs = Counter(job_id for job_id, _ in attempts)
    assert set(runs) == {*accepted, *refused, *(handle.job_id for handle in handles)}
    again = {job_id: times for job_id, times in runs.items() if times > 1}
    assert system.pids() == before, "all went on without a restart"
    assert [caller.hasty for caller in callers] == [0] * len(callers), "a 503 did not say when to try again"
    tell(
        f"Redis away for {AWAY_S} s: {len(handles)} jobs of the client, {len(accepted)} accepted and {len(refused)}"
        f" refused over REST, none lost, {len(again)} ran again; ready {ready_s:.1f} s after;"
        f" longest answer {max(caller.longest_s for caller in callers):.1f} s"
    )


def moved(callers, handles, over_s):
    """Wait until everyone has got on, for at least that long."""
    since = time.monotonic()
    ended = sum(handle.done() for handle in handles)
    taken = [len(caller.accepted) for caller in callers]
    until(
        lambda: (
            time.monotonic() - since > over_s
            and sum(handle.done() for handle in handles) > ended
            and all(len(caller.accepted) > count for caller, count in zip(callers, taken, strict=True))
        ),
        "clients get on",
    )


# --- other ways of being of no use ------------------------------------------------------


def marked_jobs(system, client, name, count):
    """Send jobs that mark their runs; return their handles and the file of the marks."""
    marks = system.root / name
    data = [{"runs": str(marks), "number": number, "seconds": 0.001} for number in range(count)]
    return client.submit_many("marked", data), marks


def check(handles, marks):
    """All have the right result; no attempt ran twice. Returns how many jobs ran again."""
    assert [handle.result(RECOVERY_S)["value"] for handle in handles] == [2 * i for i in range(len(handles))]
    attempts = Counter(tuple(line.split()[:2]) for line in marks.read_text().splitlines())
    assert set(attempts.values()) == {1}, "an attempt ran twice"
    runs = Counter(job_id for job_id, _ in attempts)
    assert set(runs) == {handle.job_id for handle in handles}
    return sum(times > 1 for times in runs.values())


def test_the_connection_to_redis_breaks_again_and_again(system, tell):
    """A turn whose answers were lost is sent again, and changes nothing the second time."""
    before = system.pids()
    with system.client() as client, system.redis() as store:
        handles, marks = marked_jobs(system, client, "broken", 3000)
        broken = 0
        while not all(handle.done() for handle in handles) and broken < 20:
            store.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            broken += 1
            ended = sum(handle.done() for handle in handles)
            until(lambda ended=ended: sum(handle.done() for handle in handles) > ended, "it gets on", every_s=0.001)
        again = check(handles, marks)
    assert broken >= 3
    assert again == 0, "the workers lived: nothing had to run again"
    assert system.pids() == before
    tell(f"the connections to Redis broken {broken} times under 3,000 jobs: none lost, {again} ran again")


def test_the_library_in_redis_is_lost(system):
    """Somebody flushes scripts and functions: they are loaded again."""
    before = system.pids()
    with system.client() as client, system.redis() as store:
        for command in (("FUNCTION", "FLUSH"), ("SCRIPT", "FLUSH")):
            handles, marks = marked_jobs(system, client, f"flushed-{command[0]}", 500)
            until(lambda handles=handles: any(handle.done() for handle in handles), "some ended", every_s=0.001)
            store.execute_command(*command)
            assert check(handles, marks) == 0
            [job, *_] = handles
            assert system.get(f"/jobs/{job.job_id}").status == 200
    assert system.pids() == before


def test_redis_is_full(system):
    """It refuses to write: so are commands, until there is room again."""
    before = system.pids()
    with system.client() as client, system.redis() as store:
        handles, marks = marked_jobs(system, client, "full", 1000)
        until(lambda: any(handle.done() for handle in handles), "some ended", every_s=0.001)
        store.config_set("maxmemory", "1mb")
        try:
            refused = until(
                lambda: (found := system.post({"cmd": "echo", "data": 1})).status == 503 and found,
                "commands are refused",
                within_s=10,
            )
            assert refused.error["code"] == "unavailable"
            assert "retry-after" in refused.headers
            assert system.get("/healthz").status == 200
        finally:
            store.config_set("maxmemory", "0")
        assert check(handles, marks) == 0
        until(lambda: system.post({"cmd": "echo", "data": 1}).status == 202, "commands are taken", within_s=10)
    assert system.pids() == before


def test_the_router_stands_still(system, tell):
    """For longer than anyone's lease. Nobody was lost meanwhile, so nothing has to run again."""
    before = system.pids()
    lease_s = system.config.lease_s
    with system.client() as client:
        slow_marks = system.root / "slow"
        slow = [
            client.submit("marked", {"runs": str(slow_marks), "number": i, "seconds": lease_s + 4}) for i in range(2)
        ]
        until(lambda: slow_marks.exists() and len(slow_marks.read_text().splitlines()) == 2, "they run")
        handles, marks = marked_jobs(system, client, "behind", 500)
        os.kill(before["router"], signal.SIGSTOP)
        frozen = time.monotonic()
        late = client.submit("echo", "late")
        until(lambda: time.monotonic() - frozen > lease_s + 2, "the lease is over")
        refused = system.post({"cmd": "echo", "data": 1}, timeout=20)
        assert (refused.status, refused.error["code"]) == (503, "unavailable")
        os.kill(before["router"], signal.SIGCONT)
        assert late.result(RECOVERY_S) == "late"
        again = check(slow, slow_marks) + check(handles, marks)
    until(system.ready, "all is there")
    assert again == 0, "the worker lived: its jobs had not to run again"
    assert system.pids() == before
    tell(f"router frozen for {lease_s + 2:g} s: nothing lost, {again} ran again")


def test_a_cancel_does_not_overtake_its_command(system):
    """The command was told to come again while Redis was late; the cancel comes first."""
    redis = system.pids()["redis"]
    with system.client() as client:
        client.run("noop", timeout=RECOVERY_S)
        os.kill(redis, signal.SIGSTOP)
        try:
            first = client.submit("noop")
            until(lambda: system.post({"cmd": "noop"}).status == 503, "the router knows that Redis is late")
            later = client.submit("noop", delay_s=1000)
            go_on = threading.Timer(0.4, os.kill, (redis, signal.SIGCONT))
            go_on.start()
            assert later.cancel() is True
            go_on.join()
        finally:
            os.kill(redis, signal.SIGCONT)
        assert first.result(RECOVERY_S) is None
        with pytest.raises(JobCancelled):
            later.result(RECOVERY_S)
