"""A slot as its daemon meets it: a process on a line, what it says, and how it is rid of a job."""

from __future__ import annotations

import itertools
import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exesys import codec, environment
from exesys.bus.messages import Added, Job, Note, Outcome
from exesys.channel import Channel, pair
from exesys.config import Config
from exesys.slots import Finished, Phase, Slot, SlotPool

MODULE = '''
import pathlib
import time


def speaks(data):
    """Print twice at once, the second time without a newline, make the file, and print once more at the end."""
    print("first")
    print("second", end="")
    try:
        pathlib.Path(data).touch()
        time.sleep(60)
    finally:
        print(", third")


def holds_on(data):
    """Print, make the file, and end well although it is to be ended."""
    print("first", end="")
    try:
        pathlib.Path(data).touch()
        time.sleep(60)
    except SystemExit:
        print(", caught", end="")
    return "well"


def sleeps(data, ctx):
    """Print, sleep, and print in the end whether it is cancelled."""
    try:
        print("sleeps ", end="")
        time.sleep(data)
    finally:
        print("cancelled" if ctx.cancelled else "not cancelled")


def weighs(data):
    return len(data)


def deaf(data):
    """Catch what ends others, make the file, and go on."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            pathlib.Path(data).touch()
            time.sleep(60)
        except SystemExit:
            pass


def adds(data, ctx):
    """Add two steps of so many bytes, and fail if there is nothing to add."""
    ctx.add_step("f", b"x" * data, priority=9)
    ctx.add_step("f", b"x" * data, to=["b", "c"])
    return 1 / data
'''
DEADLINE_S = 20.0


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    """An environment in which slots find the module, and nothing else."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "speaker.py").write_text(MODULE)
    return {
        **{name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")},
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "EXESYS_HOME": str(tmp_path / "home"),
        "EXESYS_FUNCTIONS_PATH": str(tmp_path / "modules"),
        "EXESYS_WORKER_SLOTS": "1",
        "EXESYS_WORKER_KILL_GRACE_S": "0.5",
    }


@pytest.fixture
def slot(environ: dict[str, str]) -> Iterator[tuple[subprocess.Popen[bytes], Channel]]:
    """A slot that has imported the module, and the daemon's end of its line."""
    near, far = pair()
    near.settimeout(DEADLINE_S)
    process = subprocess.Popen(
        [sys.executable, "-m", "exesys.daemons.slot", "--fd", str(far.fileno()), "--parent", str(os.getpid())],
        pass_fds=[far.fileno()],
        env=environ,
    )
    far.close()
    line = Channel(near)
    line.send(["settings", {}])
    while line.receive()[0] != "ready":
        pass
    yield process, line
    process.kill()
    process.wait()
    line.close()


def end(process: subprocess.Popen[bytes], line: Channel, cmd: str, mark: Path) -> list[Any]:
    """Let it run the function, send TERM once the mark is there, and return all that it said."""
    line.send(["job", "a:j", 1, "end_job", cmd, codec.pack(str(mark)), ""])
    deadline = time.monotonic() + DEADLINE_S
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = []
    while (message := line.receive()) is not None:
        said.append(message)
    process.wait(DEADLINE_S)
    return said


def test_what_a_function_printed_last_is_told_before_term_ends_it(slot: Any, tmp_path: Path) -> None:
    process, line = slot
    said = end(process, line, "speaks", tmp_path / "mark")
    assert process.returncode == 128 + signal.SIGTERM
    assert {message[0] for message in said} == {"note"}
    assert said[-1] == ("note", "a:j", 1, -1.0, "", "first\nsecond, third\n"), "its clean-up included"


def test_a_job_that_ends_well_all_the_same_has_its_log_once(slot: Any, tmp_path: Path) -> None:
    process, line = slot
    said = end(process, line, "holds_on", tmp_path / "mark")
    kind, ref, attempt, outcome, body, log, *_ = said[-1]
    assert (kind, ref, attempt, outcome, codec.unpack(body)) == ("done", "a:j", 1, 0, {"EOJ": "well"})
    assert log == "first, caught"
    assert process.returncode == 0


# --- added steps --------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 100_000])
def test_the_steps_a_function_adds_come_with_its_result(slot: Any, size: int) -> None:
    _, line = slot
    line.send(["job", "split:j", 1, "merge", "adds", codec.pack(size), ""])
    kind, *_, added, _ = line.receive()
    data = codec.pack(b"x" * size)
    assert kind == "done"
    assert added == (
        ("split.1", "merge", "f", data, {"priority": 9}),
        ("split.2", ("b", "c"), "f", data, {}),
    )


def test_the_steps_of_a_function_that_fails_are_dropped(slot: Any) -> None:
    _, line = slot
    line.send(["job", "split:j", 1, "merge", "adds", codec.pack(0), ""])
    kind, _, _, outcome, *_, added, _ = line.receive()
    assert (kind, outcome, added) == ("done", Outcome.failed, ())
    line.send(["job", "split:j", 2, "merge", "sleeps", codec.pack(0), ""])
    while (message := line.receive())[0] != "done":
        pass
    assert message[-2] == (), "nor do they come with the next job"


# --- a slot and its pool ------------------------------------------------------


class Pool:
    """One slot in its pool, and what became of the jobs."""

    def __init__(self) -> None:
        self.pool = SlotPool(environment.load(), time.monotonic())
        self.finished: dict[str, Finished] = {}
        self.taken_back: list[Job] = []
        self.logs: dict[str, str] = {}
        self.serve()

    @property
    def slot(self) -> Slot:
        return self.pool.slots[0]

    def serve(self) -> None:
        """Wait for a slot that serves."""
        self.until(lambda: bool(self.pool.slots) and self.slot.phase is Phase.serving)

    def until(self, condition: Callable[[], bool]) -> None:
        """Do the daemon's part until something is so."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            now = time.monotonic()
            assert now < deadline
            self.pool.fill(now)
            for slot in list(self.pool.slots):
                ready, _, _ = select.select([slot.pidfd, slot.channel], [], [], 0.01)
                if slot.pidfd in ready:
                    happenings, unbegun = self.pool.reap(slot, now)
                    self.take(happenings, unbegun)
                elif ready:
                    self.take(self.pool.read(slot, now), [])
            for _, unbegun in self.pool.tick(now):
                self.take([], unbegun)

    def take(self, happenings: list[Any], unbegun: list[Job]) -> None:
        self.taken_back += unbegun
        for each in happenings:
            if isinstance(each, Finished):
                assert each.report.ref not in self.finished, "reported twice"
                self.finished[each.report.ref] = each
            elif isinstance(each, Note):
                self.logs[each.ref] = each.log

    def give(self, name: str, cmd: str, data: Any, timeout_s: float = 60.0) -> Job:
        job = Job(f"a:{name}", 1, "end_job", cmd, codec.pack(data), timeout_s)
        assert self.pool.give(self.slot, job, time.monotonic())
        return job

    def is_gone(self, job: Job) -> bool:
        """Tell whether it was reported, or taken back."""
        return job.ref in self.finished or job in self.taken_back

    def cancel(self, *jobs: Job) -> None:
        self.take(*self.pool.cancel({(job.ref, job.attempt) for job in jobs}, time.monotonic()))


@pytest.fixture
def pool(environ: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    for name in os.environ.keys() - environ.keys():
        monkeypatch.delenv(name)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    pool = Pool()
    yield pool
    for slot in list(pool.pool.slots):
        slot.process.kill()
        pool.pool.reap(slot, time.monotonic())


def test_a_cancelled_job_that_runs_is_ended_and_those_behind_it_come_back(pool: Pool, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    first = pool.slot
    running = pool.give("j", "speaks", str(mark))
    behind = [pool.give(name, "sleeps", 0) for name in "kl"]
    pool.until(mark.exists)
    since = time.monotonic()
    pool.cancel(running)
    assert pool.taken_back == behind, "at once"
    pool.until(lambda: "a:j" in pool.finished)
    assert time.monotonic() - since < 0.5
    finished = pool.finished["a:j"]
    assert (finished.report.outcome, finished.cut_short) == (Outcome.failed, "it was cancelled")
    assert pool.logs["a:j"] == "first\nsecond, third\n", "its clean-up ran"
    pool.serve()
    assert pool.slot is not first
    pool.give("m", "sleeps", 0)
    pool.until(lambda: "a:m" in pool.finished)
    assert pool.finished["a:m"].report.outcome == Outcome.done


def test_a_function_that_is_cancelled_sees_it(pool: Pool) -> None:
    job = pool.give("j", "sleeps", 60)
    pool.until(lambda: "a:j" in pool.logs)
    pool.cancel(job)
    pool.until(lambda: "a:j" in pool.finished)
    assert pool.logs["a:j"] == "sleeps cancelled\n"


def test_a_cancelled_job_that_heeds_nothing_is_killed(pool: Pool, tmp_path: Path) -> None:
    job = pool.give("j", "deaf", str(tmp_path / "mark"))
    pool.until((tmp_path / "mark").exists)
    since = time.monotonic()
    pool.cancel(job)
    pool.until(lambda: "a:j" in pool.finished)
    assert 0.5 <= time.monotonic() - since < 2


def test_a_cancelled_job_that_was_not_begun_comes_back_and_what_runs_goes_on(pool: Pool, tmp_path: Path) -> None:
    first, mark = pool.slot, tmp_path / "mark"
    running = pool.give("j", "holds_on", str(mark))
    pool.until(mark.exists)
    behind = [pool.give(name, "sleeps", 0) for name in "klm"]
    pool.cancel(behind[1])
    assert pool.taken_back == behind, "whose session drops the one, and gives out the others"
    assert list(first.jobs) == [running]
    assert first.verdict is None
    pool.cancel(behind[0])
    assert first.verdict is None, "it is not here any more"


def test_a_cancel_while_the_time_limit_ends_the_job_changes_nothing(pool: Pool, tmp_path: Path) -> None:
    job = pool.give("j", "deaf", str(tmp_path / "mark"), timeout_s=0.2)
    pool.until(lambda: pool.slot.verdict is not None)
    kill_at = pool.slot.kill_at
    pool.cancel(job)
    assert (pool.slot.verdict or ("",))[0] == "Timeout"
    assert pool.slot.kill_at == kill_at
    pool.until(lambda: "a:j" in pool.finished)


def test_a_cancel_of_what_died_by_itself(pool: Pool) -> None:
    """The signal goes to a process that has ended and is not yet waited for."""
    job = pool.give("j", "sleeps", 60)
    pool.slot.process.kill()
    os.waitid(os.P_PID, pool.slot.process.pid, os.WEXITED | os.WNOWAIT)
    pool.cancel(job)
    assert "a:j" not in pool.finished
    if job not in pool.taken_back:
        pool.until(lambda: "a:j" in pool.finished)
    pool.serve()


def test_cancelled_at_any_moment_each_job_is_reported_or_comes_back_once(pool: Pool) -> None:
    """Some end in the very moment; the others in the slot's line are never lost, nor run twice."""
    rng = random.Random(1)
    ended_in_time, cut_short = 0, 0
    for turn in range(1000):
        if turn >= 25 and min(ended_in_time, cut_short) > 3:
            break
        jobs = [pool.give(f"{turn}.{number}", "sleeps", 0.002) for number in range(4)]
        asked = rng.sample(jobs, 3)
        # Its process may get no time at all for a while: so it is told by what has ended how far it is. And what
        # waits behind a job that takes too long is taken back.
        gone = rng.randint(0, 3)
        pool.until(lambda jobs=jobs, gone=gone: sum(pool.is_gone(job) for job in jobs) >= gone)
        at = time.monotonic() + rng.uniform(0, 0.003)
        while time.monotonic() < at:
            for slot in pool.pool.slots:  # none for a moment, if the one before ended after its last job
                pool.take(pool.pool.read(slot, time.monotonic()), [])
        pool.cancel(*asked)
        pool.until(lambda jobs=jobs: all(map(pool.is_gone, jobs)))
        pool.serve()
        back = [job.ref for job in pool.taken_back]
        assert len(back) == len(set(back))
        assert not set(back) & pool.finished.keys()
        for job in jobs:
            if job.ref not in pool.finished:
                continue
            if pool.finished[job.ref].report.outcome == Outcome.done:
                ended_in_time += 1
            else:
                assert job in asked, "only what was cancelled is cut short"
                cut_short += 1
    assert ended_in_time > 3
    assert cut_short > 3
    assert len(pool.taken_back) > 3


def test_added_steps_reach_the_daemon_as_what_they_are(pool: Pool) -> None:
    pool.give("j", "adds", 50_000)
    pool.until(lambda: "a:j" in pool.finished)
    data = codec.pack(b"x" * 50_000)
    assert pool.finished["a:j"].report.added == (
        Added("a.1", "end_job", "f", data, {"priority": 9}),
        Added("a.2", ("b", "c"), "f", data, {}),
    )


def test_a_slot_with_a_full_line_is_told_to_go_once_there_is_room(pool: Pool) -> None:
    first = pool.slot
    pool.give("j", "sleeps", 0.3)
    jobs = 1
    while pool.pool.give(first, Job(f"a:{jobs}", 1, "end_job", "weighs", codec.pack("x" * 60_000), 60.0), 0.0):
        jobs += 1
    pool.pool.retire(first)
    assert not first.told_to_quit
    deadline = time.monotonic() + DEADLINE_S
    while not select.select([first.pidfd], [], [], 0.01)[0]:
        assert time.monotonic() < deadline, "it was not told"
        pool.take(pool.pool.read(first, 0.0), [])
    happenings, unbegun = pool.pool.reap(first, 0.0)
    pool.take(happenings, unbegun)
    assert not unbegun
    assert len(pool.finished) == jobs
    assert {each.report.outcome for each in pool.finished.values()} == {Outcome.done}


# --- in which order slots get jobs ------------------------------------------


def slots(*held: int, since: float = 0.0) -> SlotPool:
    """A pool of slots that have so many jobs, of which the first runs since then; without their processes."""
    pool = SlotPool(Config(root=Path("/nowhere"), home=Path("/nowhere/var")), 0.0)
    nothing: Any = None
    for number, count in enumerate(held):
        slot = Slot(number, nothing, nothing, nothing, -1, Phase.serving, since=since)
        slot.jobs.extend(Job(f"a:{number}.{place}", 1, "end_job", "f", b"", 60.0) for place in range(count))
        pool.slots.append(slot)
    return pool


def dealt(pool: SlotPool, jobs: int, depth: int = 4, now: float = 0.001) -> list[int]:
    """Give out so many jobs; return the numbers of the slots that got them."""
    turns = pool.in_turn(depth, now)
    return [slot.number for slot in itertools.islice(turns, jobs)]


def test_idle_slots_get_jobs_first_and_then_each_in_turn() -> None:
    assert dealt(slots(0, 0, 0), 3) == [0, 1, 2]
    assert dealt(slots(2, 0, 1), 5) == [1, 1, 2, 0, 1]
    assert dealt(slots(0, 3), 9) == [0, 0, 0, 0, 1], "as deep as jobs are short"


def test_nothing_is_put_behind_a_job_that_runs_for_long() -> None:
    assert dealt(slots(1, 1), 9, now=0.0201) == []
    assert dealt(slots(1, 1), 2, now=0.0199) == [0, 1], "with all slots busy it may be the first to be done"
    assert dealt(slots(0, 1), 9, now=0.0051) == [0, 0, 0, 0]
    pool = slots(1, 1)
    pool.slots[1].since = 0.005
    assert dealt(pool, 9, now=0.0201) == [1, 1, 1]


def test_a_slot_that_ends_gets_no_jobs() -> None:
    pool = slots(0, 0, 0, 0)
    pool.slots[0].phase = Phase.leaving
    pool.slots[1].verdict = ("Timeout", "it ran for long")
    pool.slots[2].done = pool.config.worker.max_jobs - 2
    assert dealt(pool, 9) == [2, 3, 2, 3, 3, 3]
