"""Each process killed in turn with kill -9 while 2,000 jobs are under way.

Every accepted job ends with its right result; each result is committed once:
it is that of one run, and stays that. The function marks its runs in a file,
so what ran again is known, and told at the end.
"""

import http.client
import os
import random
import signal
import threading
import time
from collections import Counter, defaultdict
from typing import NamedTuple

import pytest
from harness import until

JOBS = 2000
BEFORE, AFTER = 200, 200  # so many more have ended, at most, or are sent when the blow has fallen
ARRAYS, PER_ARRAY = 8, 50
RECOVERY_S = 60
ROUNDS = int(os.environ.get("EXESYS_ROUNDS", "3"))
HEARTBEAT_S = 0.5  # half of the usual, and so is the lease that is waited for when a worker was killed
KINDS = ["slot", "worker", "router", "rest", "redis", "supervisord"]


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(bus_heartbeat_s=HEARTBEAT_S)


class Run(NamedTuple):
    """One line of the file of marks."""

    attempt: int
    token: str
    pid: int
    started: float


def runs_of(path):
    """Return the runs of each job, by job_id."""
    runs = defaultdict(list)
    for line in path.read_text().splitlines() if path.exists() else []:
        job_id, attempt, token, pid, started = line.split()
        runs[job_id].append(Run(int(attempt), token, int(pid), float(started)))
    return runs


class Producer(threading.Thread):
    """Posts arrays of commands, each again until all of it was taken: what a client with patience does."""

    def __init__(self, system, commands):
        super().__init__(daemon=True)
        self.system = system
        self.arrays = [commands[start : start + PER_ARRAY] for start in range(0, len(commands), PER_ARRAY)]
        self.accepted = []
        self.tries = Counter()
        self.wrong = []
        self.halt = threading.Event()

    def run(self):
        for array in self.arrays:
            while not self.halt.is_set() and not self._post(array):
                self.halt.wait(0.1)

    def _post(self, array):
        try:
            answer = self.system.post(array, timeout=10)
        except (OSError, http.client.HTTPException) as error:
            self.tries[type(error).__name__] += 1
            return False
        self.tries[answer.status] += 1
        if answer.status == 503:
            return False
        if answer.status not in (200, 202):
            self.wrong.append(answer)
            return True
        refused = [item["error"] for item in answer.body if "error" in item and "state" not in item]
        if refused:
            self.wrong += [error for error in refused if error["code"] != "unavailable"]
            return not refused
        self.accepted += [item["job_id"] for item in answer.body]
        return True


def strike(system, kind, dice):
    """Kill -9 one process; return its pid."""
    if kind == "slot":
        pid = dice.choice(until(system.slots, "slots are there"))
    else:
        pid = until(lambda: system.pids().get(kind), f"{kind} is there")
    os.kill(pid, signal.SIGKILL)
    return pid


def mend(system, kind):
    """What a person has to do after that: nothing, but for supervisord."""
    if kind == "supervisord":
        system.up()


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_kill(system, seed, tell, kind, number):
    until(system.ready, "all is there")
    dice = random.Random(f"{seed} {kind} {number}")
    marks = system.root / f"{kind}-{number}"
    names = [f"{kind}-{number}-{i}" for i in range(JOBS + BEFORE + AFTER + ARRAYS * PER_ARRAY)]
    values = {job_id: dice.randrange(1 << 30) for job_id in names}
    datas = {
        job_id: {"runs": str(marks), "number": value, "seconds": round(dice.uniform(0, 0.003), 4)}
        for job_id, value in values.items()
    }
    by_bus, late, by_rest = (
        names[: JOBS + BEFORE],
        names[JOBS + BEFORE : -ARRAYS * PER_ARRAY],
        names[-ARRAYS * PER_ARRAY :],
    )
    producer = Producer(system, [{"cmd": "marked", "job_id": job_id, "data": datas[job_id]} for job_id in by_rest])
    with system.client() as client:
        handles = {job_id: client.submit("marked", datas[job_id], job_id=job_id) for job_id in by_bus}
        for handle in handles.values():
            handle.accepted(RECOVERY_S)
        enough = dice.randrange(1, BEFORE)
        until(lambda: sum(handle.done() for handle in handles.values()) >= enough, "some jobs ended", every_s=0.001)
        producer.start()
        victim = strike(system, kind, dice)
        struck = time.monotonic()
        left = sum(not handle.done() for handle in handles.values())
        handles |= {job_id: client.submit("marked", datas[job_id], job_id=job_id) for job_id in late}
        mend(system, kind)
        heard = {job_id: handle.result(RECOVERY_S) for job_id, handle in handles.items()}
        producer.join(RECOVERY_S)
        producer.halt.set()
        assert producer.wrong == []
        assert producer.accepted == by_rest, producer.tries
        for job_id in by_rest:
            heard[job_id] = client.result(job_id, RECOVERY_S)
        took_s = time.monotonic() - struck

    runs = runs_of(marks)
    assert set(runs) == set(values)
    for job_id, outcome in heard.items():
        assert outcome["value"] == 2 * values[job_id]
        assert outcome["token"] in {run.token for run in runs[job_id]}
        attempts = [run.attempt for run in runs[job_id]]
        assert len(set(attempts)) == len(attempts), f"{job_id} ran twice as the same attempt: {runs[job_id]}"
    # What the store holds is what the client was told, in one state each, and nothing is left over.
    refs = [f"client:{job_id}" for job_id in values]
    assert system.results(refs) == [heard[job_id] for job_id in values]
    until(system.ready, "all is there again")
    until(lambda: nothing_under_way(system), "no job is queued or held")
    assert system.results(refs) == [heard[job_id] for job_id in values]
    again = {job_id: len(found) for job_id, found in runs.items() if len(found) > 1}
    shown = ", ".join(f"{job_id} ×{times}" for job_id, times in list(again.items())[:4])
    tell(
        f"{kind} {number}: process {victim} killed with {left} jobs under way, all done after"
        f" {took_s:.1f} s; {len(again)} ran again{': ' if again else ''}{shown}{' …' if len(again) > 4 else ''};"
        f" REST {dict(producer.tries)}"
    )


def nothing_under_way(system):
    with system.redis() as connection:
        held = [key for key in connection.scan_iter("exesys:held:*", count=10_000)]
        return not (held or connection.exists("exesys:ready:default", "exesys:delayed"))


def hold(system, name):
    """Have one job under way that is cut off; return its handle's client and what marks it."""
    marks = system.root / name
    client = system.client()
    handle = client.submit("held_up", {"runs": str(marks), "seconds": 60})
    until(lambda: runs_of(marks)[handle.job_id], "the job runs")
    return client, handle, marks


@pytest.mark.parametrize(("kind", "within_s"), [("slot", 1.0), ("worker", 10.0)])
def test_what_was_cut_off_runs_again_soon(system, make, tell, kind, within_s):
    if kind == "worker":
        system = make()  # with the usual lease
    until(system.ready, "all is there")
    client, handle, marks = hold(system, f"soon-{kind}")
    [first] = runs_of(marks)[handle.job_id]
    os.kill(first.pid if kind == "slot" else system.pids()["worker"], signal.SIGKILL)
    struck = time.monotonic()
    assert handle.result(30) == 2
    client.close()
    second = runs_of(marks)[handle.job_id][1]
    assert [first.attempt, second.attempt] == [1, 2]
    tell(f"the job of a killed {kind} ran again after {second.started - struck:.2f} s")
    assert second.started - struck <= within_s


def test_jobs_end_right_although_all_daemons_are_killed_at_once(system, seed, tell):
    """Router, worker and REST in the same moment, while Redis keeps what they knew."""
    until(system.ready, "all is there")
    dice = random.Random(f"{seed} all")
    marks = system.root / "all"
    with system.client() as client:
        data = [{"runs": str(marks), "number": i, "seconds": round(dice.uniform(0, 0.003), 4)} for i in range(500)]
        handles = client.submit_many("marked", data)
        for handle in handles:
            handle.accepted(RECOVERY_S)
        until(lambda: sum(handle.done() for handle in handles) > 50, "some jobs ended", every_s=0.001)
        pids = system.pids()
        for kind in dice.sample(["router", "worker", "rest"], 3):
            os.kill(pids[kind], signal.SIGKILL)
        heard = [handle.result(RECOVERY_S) for handle in handles]
    assert [outcome["value"] for outcome in heard] == [2 * i for i in range(500)]
    assert system.results([f"client:{handle.job_id}" for handle in handles]) == heard
    until(system.ready, "all is there again")
