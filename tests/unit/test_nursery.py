"""The nursery, its fork server and its instances: real processes, really ended."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest

from exesys import codec, environment
from exesys.bus.messages import Exit, Launch, Told
from exesys.channel import Channel, pair
from exesys.daemons.forkserver import ForkServer
from exesys.nursery import Ended, Nursery
from exesys.process import how_it_ended
from exesys.runner import Ending

MODULE = '''
import asyncio
import os
import pathlib
import signal
import subprocess
import sys
import time


def waits(data, ctx):
    """Say hello, tell of progress, wait for the stop, and say goodbye."""
    print("hello", data)
    ctx.progress(0.5, "half")
    ctx.wait_stop()
    print("goodbye")


async def sleeps(data, ctx):
    """Be cancelled, and clean up."""
    print("sleeps")
    try:
        await asyncio.sleep(60)
    finally:
        print("cleaned up")


def returns(data):
    print("x" * data)


def fails(data):
    print("before")
    raise ValueError("no \\udc80 good")


def exits(data):
    sys.exit(data)


def vanishes(data):
    os._exit(data)


def kills(data):
    os.kill(os.getpid(), data)
    time.sleep(60)


def deaf(data, ctx):
    """Heed no stop, but end at TERM, with a word."""
    print("deaf")
    try:
        time.sleep(60)
    finally:
        print("ended")


def dead(data, ctx):
    """Heed nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("dead")
    end = time.monotonic() + 60
    while time.monotonic() < end:
        time.sleep(60)


def parent(data, ctx):
    """Start a process of its own, say its pid, and wait for the stop."""
    child = subprocess.Popen(["sleep", "60"])
    print(f"child {child.pid}.")
    ctx.wait_stop()


def counts(data, ctx):
    """Say what descriptors there are."""
    print("descriptors", len(os.listdir("/proc/self/fd")))
'''
BROKEN = "raise RuntimeError('no import')\n"
DEADLINE_S = 20.0


def is_gone(pid: int) -> bool:
    """Whether a process ended; one that nobody waited for counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class Ward:
    """A nursery, and what it has told."""

    def __init__(self) -> None:
        self.nursery = Nursery(environment.load())
        self.told: list[Told] = []
        self.exits: dict[str, Exit] = {}
        self.why: dict[str, str] = {}

    def begin(self, target: str, data: Any = None, name: str = "t:u", grace_s: float = 5.0, epoch: int = 1) -> None:
        self.exits.pop(name, None)
        self.told = [told for told in self.told if told.name != name]
        self.nursery.begin(Launch(name, epoch, f"lives.{target}", codec.pack(data), grace_s), time.monotonic())

    def until(self, condition: Callable[[], Any], within_s: float = DEADLINE_S) -> Any:
        """Serve the nursery until a condition holds."""
        deadline = time.monotonic() + within_s
        while not (found := condition()):
            now = time.monotonic()
            assert now < deadline, (self.told, self.exits)
            nursery = self.nursery
            wait_s = min(nursery.wake_in_s(now), 0.05)
            ready, _, _ = select.select([nursery.fileno(), *nursery.lines], [], [], wait_s)
            now = time.monotonic()
            if nursery.fileno() in ready:
                self._note(nursery.serve(now))
            for descriptor in nursery.lines & set(ready):
                self._note(nursery.read(descriptor, now))
            self._note(nursery.tick(now))
        return found

    def _note(self, happenings: Any) -> None:
        for happening in happenings:
            if isinstance(happening, Ended):
                self.exits[happening.exit.name] = happening.exit
                self.why[happening.exit.name] = happening.why
            else:
                self.told.append(happening)

    def log(self, name: str = "t:u") -> str:
        return "".join(told.log for told in self.told if told.name == name)

    def said(self, text: str, name: str = "t:u") -> None:
        self.until(lambda: text in self.log(name))

    def pid(self, name: str = "t:u") -> int:
        return int(self.until(lambda: next((each.pid for each in reversed(self.told) if each.name == name), 0)))

    def child(self, name: str = "t:u") -> int:
        """Return the pid of the process that it has started."""
        found: re.Match[str] = self.until(lambda: re.search(r"child (\d+)\.", self.log(name)))
        return int(found[1])

    def stop(self, name: str = "t:u", **parts: Any) -> None:
        self.nursery.stop(name, time.monotonic(), **parts)

    def end(self, name: str = "t:u") -> tuple[Ending, str]:
        """Wait for the end of a life; return how it ended and its error's message."""
        exit_ = self.until(lambda: self.exits.get(name))
        message = codec.unpack(exit_.body)["message"] if exit_.body else ""
        return Ending(exit_.ending), message

    @property
    def server(self) -> int:
        return self.nursery._server.pid


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """An environment in which instances find the module, and nothing else."""
    home = tmp_path_factory.mktemp("nursery")
    (home / "modules").mkdir()
    (home / "modules" / "lives.py").write_text(MODULE)
    (home / "modules" / "broken.py").write_text(BROKEN)
    settings = {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "EXESYS_HOME": str(home / "home"),
        "EXESYS_FUNCTIONS_PATH": str(home / "modules"),
        "EXESYS_RUNNER_KILL_GRACE_S": "0.3",
        "EXESYS_RUNNER_GRACE_S": "0.2",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("EXESYS_")]:
            patch.delenv(name)
        for name, value in settings.items():
            patch.setenv(name, value)
        yield settings


@pytest.fixture(scope="module")
def shared(settings: dict[str, str]) -> Iterator[Ward]:
    ward = Ward()
    yield ward
    ward.nursery.close()


@pytest.fixture
def ward(shared: Ward) -> Iterator[Ward]:
    """A nursery that all of these tests share; each leaves it empty."""
    shared.told, shared.exits, shared.why = [], {}, {}
    yield shared
    shared.nursery.kill_all()
    shared.until(lambda: shared.nursery.empty)


@pytest.fixture
def own(settings: dict[str, str]) -> Iterator[Ward]:
    """A nursery that may be destroyed."""
    ward = Ward()
    yield ward
    ward.nursery.close()


# --- a life ---------------------------------------------------------------------


def test_a_life_begins_tells_of_itself_and_stops_when_it_is_told(ward: Ward) -> None:
    ward.begin("waits", 7, epoch=3)
    ward.said("hello 7\n")
    ward.until(lambda: ward.told[-1].fraction == 0.5)
    assert ward.log().startswith("--- life 3, 20")
    last = ward.told[-1]
    assert (last.name, last.epoch, last.text, last.began_ms > 0) == ("t:u", 3, "half", True)
    assert not is_gone(ward.pid())
    ward.stop()
    assert ward.end() == (Ending.stopped, "")
    assert ward.log().endswith("goodbye\n")
    chunks = [told.chunk for told in ward.told if told.log]
    assert chunks == list(range(1, len(chunks) + 1))
    assert ward.why == {"t:u": ""}
    assert ward.exits["t:u"].epoch == 3


def test_a_coroutine_is_cancelled_and_may_clean_up(ward: Ward) -> None:
    ward.begin("sleeps")
    ward.said("sleeps")
    ward.stop()
    assert ward.end() == (Ending.stopped, "")
    assert ward.log().endswith("cleaned up\n")


def test_one_that_is_told_to_stop_at_once_stops(ward: Ward) -> None:
    ward.begin("waits")
    ward.stop()
    assert ward.end()[0] is Ending.stopped


def test_one_that_returns_has_told_all_before(ward: Ward) -> None:
    ward.begin("returns", 5000)
    assert ward.end() == (Ending.returned, "")
    assert "x" * 5000 + "\n" in ward.log()


def test_large_data_arrives(ward: Ward) -> None:
    ward.begin("waits", "y" * 200_000)
    ward.said("bytes left out")
    ward.stop()
    assert ward.end()[0] is Ending.stopped


def test_one_that_raises_has_failed_with_its_error(ward: Ward) -> None:
    ward.begin("fails")
    ending, message = ward.end()
    assert (ending, message) == (Ending.failed, "no \\udc80 good")
    assert "ValueError" in codec.unpack(ward.exits["t:u"].body)["traceback"]
    assert "before\n" in ward.log()


@pytest.mark.parametrize("target", ["no_such", "gone.away"])
def test_what_is_not_there_has_failed(ward: Ward, target: str) -> None:
    ward.begin(target)
    assert ward.end()[0] is Ending.failed


def test_a_module_that_cannot_be_imported_has_failed(ward: Ward) -> None:
    ward.nursery.begin(Launch("t:u", 1, "broken.f", codec.pack(None), 1.0), time.monotonic())
    assert ward.end()[0] is Ending.failed


@pytest.mark.parametrize(("target", "code"), [("exits", 0), ("exits", 3), ("vanishes", 0), ("vanishes", 7)])
def test_one_that_exits_has_failed(ward: Ward, target: str, code: int) -> None:
    ward.begin(target, code)
    ending, message = ward.end()
    assert ending is Ending.failed
    assert message == (str(code) if target == "exits" else f"its process was ended by exit code {code}")


@pytest.mark.parametrize(("number", "ending"), [(signal.SIGSEGV, Ending.failed), (signal.SIGABRT, Ending.failed)])
def test_one_that_a_signal_ends_has_crashed(ward: Ward, number: int, ending: Ending) -> None:
    ward.begin("kills", int(number))
    assert ward.end() == (ending, f"its process was {how_it_ended(-number)}")


def test_one_that_is_killed_from_outside_was_killed(ward: Ward) -> None:
    ward.begin("waits")
    ward.said("hello")
    os.kill(ward.pid(), signal.SIGKILL)
    assert ward.end() == (Ending.killed, "its process was killed by SIGKILL")


def test_term_from_outside_is_a_failure(ward: Ward) -> None:
    ward.begin("deaf")
    ward.said("deaf")
    os.kill(ward.pid(), signal.SIGTERM)
    assert ward.end()[0] is Ending.failed


# --- stops ------------------------------------------------------------------------


def test_one_that_heeds_no_stop_is_ended_with_term_after_its_grace_period(ward: Ward) -> None:
    ward.begin("deaf", grace_s=0.3)
    ward.said("deaf")
    began = time.monotonic()
    ward.stop()
    assert ward.end()[0] is Ending.terminated
    assert time.monotonic() - began >= 0.3
    assert ward.log().endswith("ended\n"), "its clean-up is heard"
    assert "TERM" in ward.why["t:u"]


def test_one_that_heeds_nothing_is_killed(ward: Ward) -> None:
    ward.begin("dead", grace_s=0.1)
    ward.said("dead")
    began = time.monotonic()
    ward.stop()
    assert ward.end()[0] is Ending.forced
    assert time.monotonic() - began >= 0.4


@pytest.mark.parametrize(("grace_s", "most_s"), [(-1.0, float("inf")), (60.0, 0.1), (0.0, 60.0)])
def test_a_grace_period_is_that_of_the_settings_or_shorter_as_the_daemon_says(
    ward: Ward, grace_s: float, most_s: float
) -> None:
    ward.begin("deaf", grace_s=grace_s)
    ward.said("deaf")
    ward.stop(most_s=most_s)
    assert ward.end()[0] is Ending.terminated


def test_a_stop_of_one_that_is_not_there_is_nothing(ward: Ward) -> None:
    ward.stop("t:nobody")
    ward.nursery.kill("t:nobody", 1)
    assert ward.nursery.empty
    assert ward.nursery.wake_in_s(time.monotonic()) > 1


def test_one_that_should_not_be_is_killed_and_nobody_wonders(ward: Ward) -> None:
    ward.begin("waits", epoch=2)
    ward.said("hello")
    ward.nursery.kill("t:u", 1)
    ward.until(lambda: True)
    assert not is_gone(ward.pid())
    ward.nursery.kill("t:u", 2)
    ward.end()
    assert ward.why["t:u"] == ""


def test_one_that_is_killed_before_it_is_forked_ends(ward: Ward) -> None:
    ward.begin("waits")
    ward.nursery.kill("t:u", 1)
    ward.end()
    assert ward.nursery.empty


def test_all_are_stopped(ward: Ward) -> None:
    names = [f"t:{number}" for number in range(5)]
    for name in names:
        ward.begin("waits", name=name)
    for name in names:
        ward.said("hello", name)
    ward.nursery.stop_all(time.monotonic())
    assert {ward.end(name)[0] for name in names} == {Ending.stopped}


# --- what is left -------------------------------------------------------------------


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_what_an_instance_has_started_ends_with_it(ward: Ward, how: str) -> None:
    ward.begin("parent")
    pid = ward.child()
    assert not is_gone(pid)
    if how == "stop":
        ward.stop()
    else:
        os.kill(ward.pid(), signal.SIGKILL)
    ward.end()
    ward.until(lambda: is_gone(pid))


def test_after_many_lives_nothing_is_left(ward: Ward) -> None:
    def live(number: int) -> None:
        names = [f"t:{number}-{each}" for each in range(10)]
        for name in names:
            ward.begin("counts", name=name)
        for name in names:
            assert ward.end(name)[0] is Ending.returned
        counts = {ward.log(name).rpartition(" ")[2] for name in names}
        assert len(counts) == 1, "an instance has nothing of the others"
        seen.add(counts.pop())

    seen = set[str]()
    live(0)
    ward.until(lambda: not children_of(ward.server))
    before, theirs = descriptors(), len(os.listdir(f"/proc/{ward.server}/fd"))
    for number in range(1, 6):
        live(number)
    ward.until(lambda: not children_of(ward.server))
    assert descriptors() == before
    assert len(os.listdir(f"/proc/{ward.server}/fd")) == theirs
    assert len(seen) == 1


# --- the fork server ------------------------------------------------------------------


def test_a_lost_fork_server_is_replaced_and_its_lives_are_reported(own: Ward) -> None:
    own.begin("waits", name="t:a")
    own.begin("parent", name="t:b")
    own.said("hello", "t:a")
    child = own.child("t:b")
    pids, line = [own.pid("t:a"), own.pid("t:b")], own.nursery.fileno()
    os.kill(own.server, signal.SIGKILL)
    assert {own.end(name)[0] for name in ("t:a", "t:b")} == {Ending.killed}
    assert all(map(is_gone, pids)), "none is reported before it is gone"
    own.until(lambda: is_gone(child))
    assert own.nursery.fileno() != line, "a poll that knows the old one must notice"
    own.begin("waits", name="t:a", epoch=2)
    own.said("hello", "t:a")
    own.stop("t:a")
    assert own.end("t:a")[0] is Ending.stopped


def test_a_life_that_begins_while_the_fork_server_is_lost_is_reported(own: Ward) -> None:
    os.kill(own.server, signal.SIGKILL)
    os.waitid(os.P_PID, own.server, os.WEXITED | os.WNOWAIT)
    own.begin("waits")
    assert own.end()[0] is Ending.killed


def test_ends_that_were_told_before_the_fork_server_was_lost_count(own: Ward) -> None:
    own.begin("returns", 1, name="t:a")
    own.begin("waits", name="t:b")
    own.until(lambda: own.log("t:a") and own.log("t:b"))
    pid = own.pid("t:a")
    deadline = time.monotonic() + DEADLINE_S
    while not is_gone(pid):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(own.server, signal.SIGKILL)
    os.waitid(os.P_PID, own.server, os.WEXITED | os.WNOWAIT)
    assert own.end("t:a")[0] is Ending.returned
    assert own.end("t:b")[0] is Ending.killed


def test_when_the_daemon_is_killed_all_of_it_ends(settings: dict[str, str]) -> None:
    code = (
        "import time; from exesys import codec, environment; from exesys.bus.messages import Launch\n"
        "from exesys.nursery import Nursery\n"
        "nursery = Nursery(environment.load())\n"
        "for n in range(3): nursery.begin(Launch(f't:{n}', 1, 'lives.dead', codec.pack(None), 1.0), 0.0)\n"
        "pids, end = set(), time.monotonic() + 20\n"
        "while len(pids) < 3 and time.monotonic() < end:\n"
        "    list(nursery.serve(0.0)); pids = set(nursery._by_pid); time.sleep(0.01)\n"
        "print(nursery._server.pid, *pids, flush=True); time.sleep(60)\n"
    )
    daemon = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert daemon.stdout is not None
    pids = [int(pid) for pid in daemon.stdout.readline().split()]
    daemon.kill()
    daemon.wait()
    daemon.stdout.close()
    assert len(pids) == 4
    deadline = time.monotonic() + DEADLINE_S
    while not all(map(is_gone, pids)):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_process_that_cannot_be_made_is_told_and_ends_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    one, other = pair()

    def fork() -> int:
        raise BlockingIOError(errno.EAGAIN, "no more")

    monkeypatch.setattr(os, "fork", fork)
    with near, far, one:
        assert ForkServer(Channel(far), ())._fork(7, other.detach()) is None
        assert msgpack.unpackb(near.recv(100)) == ["unborn", 7, errno.EAGAIN]
        assert one.recv(100) == b"", "its line is closed"


def test_a_life_whose_process_could_not_be_made_is_lost(own: Ward, monkeypatch: pytest.MonkeyPatch) -> None:
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with far:
        own.nursery._line.close()
        own.nursery._line = Channel(near)
        own.begin("waits")
        far.recv(100)
        far.send(msgpack.packb(["unborn", own.nursery._number, errno.EAGAIN]))
        ending, message = own.end()
        assert (ending, message) == (Ending.killed, "its process could not be made: Resource temporarily unavailable")
        assert own.nursery.empty
