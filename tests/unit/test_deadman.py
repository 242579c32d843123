"""The dead man's switch: the kernel ends a process, and with it its children, at a moment that is put off."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
HEAD = "import os, signal, sys, time; from exesys.process import DeadMan; now = time.monotonic; d = DeadMan()\n"
SLEEP = "print('up', flush=True)\ntime.sleep(60)\n"
Start = Callable[[str], "subprocess.Popen[str]"]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process with a switch `d`, and wait until it says that it is up."""
    started: list[subprocess.Popen[str]] = []

    def begin(code: str) -> subprocess.Popen[str]:
        environ = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
        process = subprocess.Popen([sys.executable, "-c", HEAD + code], env=environ, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline().startswith("up")
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ended(process: subprocess.Popen[str], within_s: float = 20.0) -> float:
    """Wait until it was killed; return after how many seconds."""
    began = time.monotonic()
    assert process.wait(within_s) == -signal.SIGKILL
    return time.monotonic() - began


def test_it_ends_the_process_at_its_moment(start: Start) -> None:
    process = start("d.put_off(now() + 0.4)\n" + SLEEP)
    assert 0.2 < ended(process) < 5


def test_it_ends_a_process_that_is_stopped(start: Start) -> None:
    process = start("d.put_off(now() + 0.5)\n" + SLEEP)
    process.send_signal(signal.SIGSTOP)
    ended(process)


@pytest.mark.parametrize("at", ["now() - 5", "now()", "float('-inf')", "0.0"])
def test_a_moment_that_is_over_is_now(start: Start, at: str) -> None:
    assert ended(start(f"print('up', flush=True)\ntime.sleep(0.1)\nd.put_off({at})\ntime.sleep(60)\n")) < 5


def test_while_it_is_put_off_nothing_happens(start: Start) -> None:
    code = (
        "print('up', flush=True)\n"
        "for _ in range(50):\n"
        "    d.put_off(now() + 2)\n"
        "    time.sleep(0.05)\n"
        "print('alive', flush=True)\n"
        "time.sleep(60)\n"
    )
    process = start(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "alive\n", "it was put off each 0.05 s, for 2.5 s in all"
    ended(process)


def test_it_may_come_earlier_than_it_was_set(start: Start) -> None:
    assert ended(start("d.put_off(now() + 60)\nd.put_off(now() + 0.2)\n" + SLEEP)) < 5


def test_it_can_be_switched_off_and_on(start: Start) -> None:
    code = (
        "d.put_off(now() + 0.2)\nd.put_off(float('inf'))\nprint('up', flush=True)\n"
        "time.sleep(0.5)\nprint('alive', flush=True)\nd.put_off(now() + 0.1)\ntime.sleep(60)\n"
    )
    process = start(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "alive\n"
    ended(process)


def test_children_that_die_with_their_parent_die_with_it(start: Start) -> None:
    code = (
        "from exesys.process import die_with_parent\n"
        "parent = os.getpid()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    die_with_parent(signal.SIGKILL, parent)\n"
        "    os.setsid()\n"
        "    time.sleep(60)\n"
        "d.put_off(now() + 0.5)\n"
        "print('up', flush=True)\n"
        "print(child, flush=True)\n"
        "time.sleep(60)\n"
    )
    process = start(code)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    os.kill(child, 0)
    process.send_signal(signal.SIGSTOP)
    ended(process)
    deadline = time.monotonic() + 20
    while Path(f"/proc/{child}/cmdline").exists() and Path(f"/proc/{child}/cmdline").read_bytes():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_child_has_no_switch_of_its_parent(start: Start) -> None:
    """POSIX: timers are not inherited by fork; so an instance is not ended by its daemon's."""
    code = (
        "d.put_off(now() + 0.3)\n"
        "child = os.fork()\n"
        "if child:\n"
        "    d.put_off(float('inf'))\n"
        "    print('up', flush=True)\n"
        "    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "    print(status, flush=True)\n"
        "else:\n"
        "    time.sleep(0.6)\n"
        "    os._exit(7)\n"
    )
    process = start(code)
    assert process.stdout is not None
    assert process.stdout.readline() == "7\n"
