"""The worker daemon and its slots: limits, recycling, and leaving in order."""

import os
import random
import signal
import threading
import time
import uuid
from collections import Counter

import pytest
from harness import alive, rss_bytes, until

from exesys.errors import JobError

MEMORY_MB = 128
KILL_GRACE_S = 0.5  # as the harness sets it


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(worker_memory_bytes=f"{MEMORY_MB}m", worker_max_jobs=500)


@pytest.fixture(scope="module")
def plain_module(make_module):
    return make_module(worker_slots=2)


@pytest.fixture
def plain(plain_module):
    """A system with the usual limits, all there and idle, whose worker has learned that jobs are short."""
    until(plain_module.ready, "all is there")
    until(lambda: idle(plain_module), "nothing is held")
    with plain_module.client() as client:
        for handle in client.submit_many("noop", [None] * 200):
            handle.result(20)
    return plain_module


@pytest.fixture
def job_id():
    return f"worker-{uuid.uuid4()}"


# --- limits -----------------------------------------------------------------------


def test_a_time_limit_ends_the_whole_process_group(system, job_id):
    """Also children and grandchildren, and all that ignore SIGTERM."""
    written = system.root / job_id
    command = {"cmd": "has_children", "data": str(written), "timeout_s": 1.5, "job_id": job_id}
    system.post(command)
    until(written.exists, "the function has children")
    family = [int(pid) for pid in written.read_text().split()]
    assert len(family) == 3
    assert all(map(alive, family))
    since = time.monotonic()
    error = system.post(command, wait=20).body["error"]
    assert (error["type"], error["attempts"]) == ("Timeout", 1)
    assert time.monotonic() - since < 1.5 + 0.5 + 2, "TERM, half a second of grace, KILL"
    until(lambda: not any(map(alive, family)), "all of them ended", within_s=2)
    assert system.post({"cmd": "echo", "data": 1}, wait=10).body["result"] == {"EOJ": 1}


def test_a_time_limit_ends_what_ignores_sigterm(system):
    since = time.monotonic()
    error = system.post({"cmd": "ignores_term", "data": 60, "timeout_s": 0.3}, wait=20).body["error"]
    assert error["type"] == "Timeout"
    assert time.monotonic() - since < 4


def test_a_time_limit_ends_what_is_busy(system):
    assert system.post({"cmd": "spin", "data": 60, "timeout_s": 0.3}, wait=20).body["error"]["type"] == "Timeout"


def test_a_time_limit_ends_a_coroutine(system):
    assert system.post({"cmd": "slow_async", "data": 60, "timeout_s": 0.3}, wait=20).body["error"]["type"] == "Timeout"


def test_a_job_that_ran_out_of_time_is_tried_again_when_it_has_retries(system, job_id):
    command = {"cmd": "sleep", "data": 60, "timeout_s": 0.2, "retries": 1, "backoff_s": 0.01, "job_id": job_id}
    error = system.post(command, wait=20).body["error"]
    assert (error["type"], error["attempts"]) == ("Timeout", 2)


def test_a_time_limit_spares_what_waits_in_the_same_slot(system, job_id):
    """Short jobs that stood behind one that is killed run once each, and well."""
    marks = system.root / job_id
    for i in range(60):  # measured as short, jobs are fetched ahead
        system.post({"cmd": "noop", "job_id": f"{job_id}-warm-{i}"}, wait=10)
    array = [{"cmd": "ignores_term", "data": 60, "timeout_s": 0.5, "job_id": f"{job_id}-{i}"} for i in range(2)]
    array += [
        {"cmd": "marked", "data": {"runs": str(marks), "number": i, "seconds": 0}, "job_id": f"{job_id}-{i}"}
        for i in range(2, 22)
    ]
    ended = system.post(array, wait=30).body
    assert [item["error"]["type"] for item in ended[:2]] == ["Timeout"] * 2
    assert [item["result"]["EOJ"]["value"] for item in ended[2:]] == [2 * i for i in range(2, 22)]
    runs = Counter(line.split()[0] for line in marks.read_text().splitlines())
    assert set(runs.values()) == {1}


def test_a_memory_limit(system, job_id):
    command = {"cmd": "hog", "data": 4 * MEMORY_MB, "job_id": job_id}
    error = system.post(command, wait=30).body["error"]
    assert (error["type"], error["attempts"]) == ("MemoryLimit", 1)
    assert f"{MEMORY_MB} MB" in error["message"]
    until(lambda: len(system.slots()) == 2, "there is another slot")
    assert all(rss_bytes(pid) < MEMORY_MB << 20 for pid in system.slots())


def test_a_slot_that_keeps_too_much_memory_is_renewed_between_jobs(system):
    before = system.slots()
    for _ in range(2):
        system.post({"cmd": "keeps", "data": MEMORY_MB}, wait=30)
        until(system.ready, "the slot was renewed, or goes on")
    until(lambda: not set(before) <= set(system.slots()), "a slot was renewed", within_s=10)


def test_a_slot_is_renewed_after_so_many_jobs(make):
    system = make(worker_max_jobs=20, worker_slots=2)
    commands = [{"cmd": "who", "job_id": f"recycled-{i}"} for i in range(200)]
    ended = system.post(commands, wait=60).body
    jobs = Counter(item["result"]["EOJ"]["pid"] for item in ended)
    assert {item["result"]["EOJ"]["attempt"] for item in ended} == {1}, "none was cut off"
    assert len(jobs) >= 10
    assert max(jobs.values()) <= 20
    assert not any(alive(pid) for pid in set(jobs) - set(system.slots()))


# --- order ------------------------------------------------------------------------


def test_a_long_job_does_not_hold_up_short_ones_behind_it(plain):
    """Fetched ahead into one slot's line, they go on as soon as the first turns out to be long."""
    with plain.client() as client:
        long = client.submit("sleep", 3.0)
        short = client.submit_many("noop", [None] * 30)
        since = time.monotonic()
        for handle in short:
            handle.result(20)
        took_s = time.monotonic() - since
        assert not long.done()
        assert took_s < 2.5, f"30 short jobs took {took_s:.2f} s behind a long one"
        assert long.result(20) == 3.0


def test_all_slots_are_used(system):
    with system.client() as client:
        since = time.monotonic()
        pair = client.submit_many("sleep", [2.0, 2.0])
        for handle in pair:
            handle.result(20)
        assert time.monotonic() - since < 3.9


# --- cancelling -----------------------------------------------------------------------


def tidied(system, run):
    """What `tidy` has written so far."""
    with system.redis(1) as data:
        return [entry.decode() for entry in data.lrange(f"exesys_test:tidy:{run}", 0, -1)]


def start_tidy(system, client, run, **data):
    """Start a job that cleans up after itself, and wait until it runs."""
    handle = client.submit("tidy", {"run": run, "seconds": 60, **data})
    until(lambda: tidied(system, run), "it runs")
    return handle


def cancelled(handle):
    """Wait for the end of a job; tell whether it was cancelled. Any other error is raised."""
    try:
        handle.result(20)
    except JobError as error:
        if error.type != "Cancelled":
            raise
        return True
    return False


def idle(system):
    return all(worker["held"] == 0 for worker in system.get("/workers").body["workers"])


def side_by_side(client):
    """Tell whether two jobs run at once. While a slot that was ended starts anew, they do not."""
    since = time.monotonic()
    for handle in client.submit_many("sleep", [0.5] * 2):
        handle.result(10)
    return time.monotonic() - since < 0.9


def test_a_cancelled_job_is_ended_where_it_runs(system, job_id):
    with system.client() as client:
        handle = start_tidy(system, client, job_id)
        before = set(system.slots())
        since = time.monotonic()
        assert client.cancel(handle.job_id) == 1
        assert cancelled(handle)
        until(lambda: tidied(system, job_id) == ["began", "cancelled"], "its clean-up ran, and saw it")
        assert time.monotonic() - since < 4 * KILL_GRACE_S
        until(lambda: len(before & set(system.slots())) == 1, "its slot ended")
        until(system.ready, "there is another slot")
        assert len(before & set(system.slots())) == 1, "the other goes on"
        assert client.cancel(handle.job_id) == 0
        [(state, fields)] = system.records([f"client:{handle.job_id}"])
        assert (state, fields[b"attempt"]) == ("error", b"1")
        assert b"worker" not in fields
        until(lambda: idle(system), "nothing is held")
        assert client.run("echo", 1, timeout=10) == 1
    said = f"client:{handle.job_id}, attempt 1, was cut short: it was cancelled; it is dropped"
    until(lambda: said in system.log_of("worker"), "the worker's log says so")


def test_a_cancelled_job_that_heeds_nothing_is_killed(system, job_id):
    written = system.root / job_id
    with system.client() as client:
        handle = client.submit("has_children", str(written))
        until(written.exists, "it runs")
        family = [int(pid) for pid in written.read_text().split()]
        since = time.monotonic()
        client.cancel(handle.job_id)
        assert cancelled(handle)
        assert time.monotonic() - since < KILL_GRACE_S, "told before it is dead"
        until(lambda: not any(map(alive, family)), "it is, and its children", within_s=KILL_GRACE_S + 1)
        until(system.ready, "there is another slot")


def test_what_waits_in_the_worker_is_cancelled_without_running(plain):
    """Two jobs hold both slots; of those fetched ahead, every other one is cancelled."""
    marks = plain.root / "waiting"
    with plain.client() as client:
        running = [start_tidy(plain, client, f"hold-{number}") for number in range(2)]
        waiting = [
            client.submit("marked", {"runs": str(marks), "number": number, "seconds": 0}, job_id=f"wait-{number}")
            for number in range(20)
        ]
        for handle in waiting:
            handle.accepted(10)
        assert [client.cancel(handle.job_id) for handle in waiting[::2]] == [1] * 10
        assert client.cancel(running[0].job_id) == 1
        assert [handle.result(20)["value"] for handle in waiting[1::2]] == [2 * number for number in range(1, 20, 2)]
        assert [cancelled(handle) for handle in waiting[::2]] == [True] * 10
        assert not running[1].done()
        client.cancel(running[1].job_id)
        until(lambda: idle(plain), "nothing is held")
    runs = Counter(line.split()[0] for line in marks.read_text().splitlines())
    assert runs == {f"wait-{number}": 1 for number in range(1, 20, 2)}


def test_cancelled_at_any_moment_a_job_ends_in_one_way(plain, seed, tell):
    """Short jobs, each cancelled by another thread at about the time of its end; the others run once, and well."""
    rng = random.Random(seed)
    marks = plain.root / "races"
    count = 300
    with plain.client() as client, plain.client() as other:

        def send(number):
            data = {"runs": str(marks), "number": number, "seconds": rng.choice([0, 0.002, 0.01])}
            return client.submit("marked", data, job_id=f"race-{number}")

        handles, cancelling = [], []
        for number in range(count):
            handles.append(send(number))
            if number % 3 == 0:
                timer = threading.Timer(rng.uniform(0, 0.05), other.cancel, [f"race-{number}"])
                timer.start()
                cancelling.append(timer)
            time.sleep(rng.uniform(0, 0.01))
        for timer in cancelling:
            timer.join()
        ended = ["cancelled" if cancelled(handle) else handle.result(0)["value"] for handle in handles]
        until(lambda: idle(plain), "nothing is held")
        until(lambda: side_by_side(client), "no credit is lost: as many run at once as there are slots")
    states = [state for state, _ in plain.records([f"client:race-{number}" for number in range(count)])]
    assert states == ["error" if value == "cancelled" else "data_available" for value in ended]
    runs = Counter(line.split()[0] for line in marks.read_text().splitlines())
    for number, value in enumerate(ended):
        assert value in ("cancelled", 2 * number)
        assert value != "cancelled" or number % 3 == 0
        assert runs[f"race-{number}"] == 1 or value == "cancelled"
    assert max(runs.values()) == 1
    gone = ended.count("cancelled")
    cut = plain.log_of("worker").count("it was cancelled; it is dropped")
    assert gone > 10
    tell(f"of {count // 3} jobs cancelled at about their end {gone} were, {cut} of them while they ran")


def test_a_worker_that_ends_lets_a_cancelled_job_clean_up(plain):
    with plain.client() as client:
        handle = start_tidy(plain, client, "ending", lingers=0.3)
        client.cancel(handle.job_id)
        worker = plain.pids()["worker"]
        os.kill(worker, signal.SIGTERM)
        until(lambda: not alive(worker), "the worker ended", within_s=5)
        assert tidied(plain, "ending") == ["began", "cancelled"]
        assert "not acknowledged" not in plain.log_of("worker")


def test_retried_at_once_a_cancelled_job_runs_beside_what_is_left_of_it(system, job_id):
    """The first attempt takes its time to leave; the second is another."""
    with system.client() as client:
        handle = start_tidy(system, client, job_id, lingers=0.4)
        client.cancel(handle.job_id)
        until(lambda: len(tidied(system, job_id)) == 2, "it cleans up")
        assert client.retry(handle.job_id) == 1
        until(lambda: len(tidied(system, job_id)) == 3, "it runs again")
        assert tidied(system, job_id) == ["began", "cancelled", "began"]
        [(state, fields)] = system.records([f"client:{handle.job_id}"])
        assert (state, fields[b"attempt"]) == ("processing", b"2")
        until(system.ready, "the first one's slot was replaced")
        assert next(system.records([f"client:{handle.job_id}"]))[0] == "processing", "the second goes on"
        client.cancel(handle.job_id)
        until(lambda: idle(system), "nothing is held")


# --- leaving ------------------------------------------------------------------------


def test_a_worker_told_to_end_ends_in_order(plain, tell):
    """What runs ends, what has not begun goes back, nothing runs twice, and no attempt is lost to a lease."""
    marks = plain.root / "leaving"
    with plain.client() as client:
        long = [
            client.submit("marked", {"runs": str(marks), "number": i, "seconds": 1.5}, job_id=f"long-{i}")
            for i in range(2)
        ]
        short = [
            client.submit("marked", {"runs": str(marks), "number": i, "seconds": 0.01}, job_id=f"short-{i}")
            for i in range(100)
        ]
        until(lambda: marks.exists() and len(marks.read_text().splitlines()) >= 2, "two run")
        worker = plain.pids()["worker"]
        os.kill(worker, signal.SIGTERM)
        since = time.monotonic()
        until(lambda: not alive(worker), "the worker ended", within_s=10)
        left_s = time.monotonic() - since
        assert [handle.result(20)["value"] for handle in long] == [0, 2]
        assert [handle.result(20)["value"] for handle in short] == [2 * i for i in range(100)]
        took_s = time.monotonic() - since
    runs = Counter(line.split()[0] for line in marks.read_text().splitlines())
    assert set(runs.values()) == {1}, [job for job, times in runs.items() if times > 1]
    assert 1.0 < left_s < 4
    assert took_s < left_s + 5, "what went back is taken at once, not after a lease"
    tell(f"a worker told to end left after {left_s:.1f} s; all jobs done after {took_s:.1f} s, each run once")


def test_what_outlasts_the_grace_period_goes_back(make):
    system = make(worker_grace_s=1)
    marks = system.root / "marks"
    with system.client() as client:
        handle = client.submit("held_up", {"runs": str(marks), "seconds": 60})
        until(marks.exists, "it runs")
        worker = system.pids()["worker"]
        os.kill(worker, signal.SIGTERM)
        until(lambda: not alive(worker), "the worker ended", within_s=6)
        assert handle.result(10) == 2
    assert len(marks.read_text().splitlines()) == 2
    wanted = f"client:{handle.job_id}, attempt 1, was cut short: the worker is ending; it goes back to its queue"
    assert wanted in system.log_of("worker")


def test_stopping_the_system_lets_running_jobs_end(make):
    system = make()
    marks = system.root / "marks"
    with system.client() as client:
        handles = [
            client.submit("marked", {"runs": str(marks), "number": i, "seconds": 1}, job_id=f"last-{i}")
            for i in range(6)
        ]
        until(lambda: marks.exists() and len(marks.read_text().splitlines()) == 2, "two run")
        system.down()
        assert len(marks.read_text().splitlines()) == 2
        assert system.belonging() == []
        system.up()
        assert [handle.result(30)["value"] for handle in handles] == [2 * i for i in range(6)]
    runs = Counter(line.split()[0] for line in marks.read_text().splitlines())
    assert set(runs.values()) == {1}


def test_a_worker_that_stands_still_loses_its_jobs_and_comes_back(make):
    """Frozen for longer than its lease, it is given up; thawed, it begins anew."""
    system = make(bus_heartbeat_s=0.2)
    marks = system.root / "marks"
    with system.client() as client:
        handle = client.submit("held_up", {"runs": str(marks), "seconds": 60})
        until(marks.exists, "it runs")
        worker = system.pids()["worker"]
        os.kill(worker, signal.SIGSTOP)
        until(lambda: system.get("/workers").body["workers"] == [], "it is given up", within_s=10)
        os.kill(worker, signal.SIGCONT)
        assert handle.result(20) == 2
        until(lambda: system.pids().get("worker") not in (None, worker), "a new one came")
        until(system.ready, "all is there")
        assert system.results([f"client:{handle.job_id}"]) == [2]


# --- several workers --------------------------------------------------------------------


def test_two_workers_share_the_work(system):
    with system.another_worker() as other, system.client() as client:
        handles = client.submit_many("sleep", [0.2] * 40)
        since = time.monotonic()
        for handle in handles:
            handle.result(30)
        assert time.monotonic() - since < 3.5, "40 times 0.2 s in four slots are 2 s, in two 4 s"
        workers = {worker["pid"]: worker for worker in system.get("/workers").body["workers"]}
        assert set(workers) == {other.pid, system.pids()["worker"]}
        # It leaves, and the other goes on alone.
        other.terminate()
        assert other.wait(20) == 0
        until(lambda: len(system.get("/workers").body["workers"]) == 1, "it has left", within_s=5)
        assert client.run("echo", 1, timeout=10) == 1


def test_long_jobs_that_one_worker_fetched_as_short_ones_go_to_the_other(make):
    system = make(worker_slots=1)
    with system.client() as client:
        for handle in client.submit_many("noop", [None] * 300):
            handle.result(20)
        handles = client.submit_many("sleep", [0.5] * 16)
        for handle in handles:
            handle.accepted(10)
        with system.another_worker():
            since = time.monotonic()
            for handle in handles:
                handle.result(30)
            assert time.monotonic() - since < 6.5, "16 times 0.5 s in two slots are 4 s, in one 8 s"


def test_a_worker_of_another_queue(system):
    with system.another_worker(worker_queues="special"), system.client() as client:
        here = client.run("who", timeout=10)
        there = client.run("who", timeout=10, queue="special")
        assert here["parent"] == system.pids()["worker"]
        assert there["parent"] != here["parent"]


def test_a_late_result_is_dropped(make):
    """A worker frozen for longer than its lease reports an attempt that is no longer the one."""
    system = make(bus_heartbeat_s=0.2)
    marks = system.root / "marks"
    with system.client() as client:
        handle = client.submit("slower", {"runs": str(marks), "seconds": [0.8, 3.0, 0.0]})
        until(marks.exists, "it runs")
        first = system.pids()["worker"]
        os.kill(first, signal.SIGSTOP)
        with system.another_worker():
            until(lambda: len(marks.read_text().splitlines()) == 2, "another worker runs it again", within_s=10)
            # The slot of the frozen one has ended the first attempt meanwhile; now that is told.
            os.kill(first, signal.SIGCONT)
            assert handle.result(20) == 2
        [(state, fields)] = system.records([f"client:{handle.job_id}"])
        assert (state, fields[b"attempt"]) == ("data_available", b"2")
    until(system.ready, "the first worker began anew")
    assert len(marks.read_text().splitlines()) == 2
    assert system.results([f"client:{handle.job_id}"]) == [2]


def test_a_system_with_a_backlog_starts_although_nothing_can_be_tried(make):
    """The first job of a start waits behind those that were accepted before; that ends nothing."""
    system = make(worker_slots=1, worker_grace_s=1)
    with system.client() as client:
        handles = client.submit_many("sleep", [60, 60, 60])
        for handle in handles:
            handle.accepted(20)
    until(lambda: system.get("/workers").body["workers"][0]["held"], "one runs")
    system.down()
    said = system.up()
    assert "no job could be tried: jobs from before keep all slots busy" in said.out
    assert system.ready()
