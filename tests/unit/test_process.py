"""Dying with the parent, locks, ports: with real processes and real descriptors."""

import errno
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from exesys import process
from exesys.errors import BootError

CHECKOUT = Path(__file__).resolve().parent.parent.parent
SLEEPER = "import signal; print('up', flush=True); signal.pause()"


def start(code, **environ):
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(CHECKOUT), **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def is_gone(pid):
    """Whether a process ended; one that nobody waited for counts."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_a_child_dies_with_its_parent():
    child = f"from exesys.process import die_with_parent; die_with_parent(); {SLEEPER}"
    parent = start(
        "import subprocess, sys, signal\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "signal.pause()\n"
    )
    pid = int(parent.stdout.readline())
    assert not is_gone(pid)
    parent.kill()
    parent.wait()
    assert process.wait_until(lambda: is_gone(pid), 5)


def test_a_child_whose_parent_went_before_exits_at_once():
    child = start(
        "from exesys.process import die_with_parent; die_with_parent(); print('alive')", EXESYS_SUPERVISOR_PID="1"
    )
    out, err = child.communicate(timeout=20)
    assert (out, child.returncode) == ("", 1)
    assert "The parent process 1 is gone" in err


def test_the_pid_of_the_supervisor_is_not_handed_down():
    code = "from exesys.process import die_with_parent; import os; die_with_parent(); print('{}' in os.environ)"
    child = start(code.format(process.SUPERVISOR_PID), EXESYS_SUPERVISOR_PID=str(os.getpid()))
    assert child.communicate(timeout=20)[0] == "False\n"


def test_a_lock_is_held_by_one_until_it_is_closed(tmp_path):
    path = tmp_path / "lock"
    assert not process.is_locked(path)
    assert not path.exists()
    fd = process.hold_lock(path)
    assert process.is_locked(path)
    with pytest.raises(BootError, match=f"Another process holds {path}"):
        process.hold_lock(path, wait_s=0.1)
    os.close(fd)
    assert not process.is_locked(path)
    os.close(process.hold_lock(path))


def test_a_lock_that_cannot_be_opened(tmp_path):
    with pytest.raises(BootError, match="cannot be opened"):
        process.hold_lock(tmp_path / "missing" / "lock")


def test_a_lock_is_free_when_its_process_was_killed(tmp_path):
    path = tmp_path / "lock"
    holder = start(
        f"from pathlib import Path; from exesys.process import hold_lock; hold_lock(Path({str(path)!r})); {SLEEPER}"
    )
    holder.stdout.readline()
    assert process.is_locked(path)
    holder.kill()
    holder.wait()
    assert not process.is_locked(path)


def test_waiting_ends_with_the_condition_or_the_time():
    calls = []
    assert process.wait_until(lambda: bool(calls.append(1)) or len(calls) == 3, 5, every_s=0.001)
    since = time.monotonic()
    assert not process.wait_until(lambda: False, 0.05, every_s=0.01)
    assert 0.05 <= time.monotonic() - since < 2


def test_the_programs_of_a_home_are_found(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path)
    program = start(
        SLEEPER, EXESYS_HOME=str(link), EXESYS_SUPERVISOR_PID=str(os.getpid()), SUPERVISOR_PROCESS_NAME="worker"
    )
    person = start(SLEEPER, EXESYS_HOME=str(tmp_path))
    other = start(SLEEPER, EXESYS_HOME="/elsewhere", EXESYS_SUPERVISOR_PID=str(os.getpid()))
    try:
        for each in (program, person, other):
            each.stdout.readline()
        assert process.programs_of(tmp_path) == [process.Process(program.pid, "worker")]
        process.kill([program.pid, 2**22 + 1], signal.SIGKILL)
        assert process.wait_until(lambda: process.programs_of(tmp_path) == [], 5)
    finally:
        for each in (program, person, other):
            each.kill()
            each.communicate()


def test_a_port_in_use_is_found_with_its_holder():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        error = process.bind_error("127.0.0.1", port)
        assert error is not None
        assert error.errno == errno.EADDRINUSE
        assert process.port_answers("127.0.0.1", port)
        assert process.port_holder(port).startswith(f"process {os.getpid()} (")
    assert process.bind_error("127.0.0.1", port) is None
    assert process.port_holder(port) == ""
    assert not process.port_answers("127.0.0.1", port)


def test_an_address_of_another_machine_cannot_be_bound():
    error = process.bind_error("192.0.2.1", 5000)
    assert error is not None
    assert error.errno == errno.EADDRNOTAVAIL


def test_a_free_port_can_be_bound():
    assert process.bind_error("127.0.0.1", process.free_port("127.0.0.1")) is None
