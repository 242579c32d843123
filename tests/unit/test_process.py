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


# A daemon, and two processes below it that leave its group: one becomes another program, one is only a fork.
DAEMON = """
import os, pathlib, subprocess, sys, time
from exesys.process import hosting_mark
if len(sys.argv) == 1:
    mark = hosting_mark(pathlib.Path(os.environ["HOSTS"]))
    subprocess.run([sys.executable, "-c", os.environ["CODE"], "server"], env={**os.environ, **mark})
child = subprocess.Popen(["sleep", "3600"], start_new_session=True)
fork = os.fork()
if not fork:
    os.setsid()
    time.sleep(3600)
print(child.pid, fork, flush=True)
time.sleep(3600)
"""


def test_what_a_daemon_that_is_gone_has_left_is_killed_and_nothing_else(tmp_path):
    homes = {"gone": tmp_path, "lives": tmp_path, "elsewhere": tmp_path / "other"}
    daemons = {name: start(DAEMON, CODE=DAEMON, HOSTS=str(home)) for name, home in homes.items()}
    below = {name: list(map(int, daemon.stdout.readline().split())) for name, daemon in daemons.items()}
    servers = {name: parent_of(pids[0]) for name, pids in below.items()}
    try:
        for name in ("gone", "elsewhere"):
            daemons[name].kill()
            # One that has ended and was not waited for is gone as well.
            os.waitid(os.P_PID, daemons[name].pid, os.WEXITED | os.WNOWAIT)
        assert process.end_left_behind(tmp_path / "none") == 0
        assert process.end_left_behind(tmp_path) == 3
        assert all(is_gone(pid) for pid in (servers["gone"], *below["gone"]))
        spared = [pid for name in ("lives", "elsewhere") for pid in (servers[name], *below[name])]
        assert not any(is_gone(pid) for pid in spared)
        assert process.end_left_behind(tmp_path) == 0
        daemons["lives"].kill()
        daemons["lives"].wait()
        assert process.end_left_behind(tmp_path) == 3
        assert process.end_left_behind(tmp_path / "other") == 3
    finally:
        # A daemon first: it would go on once its server is gone.
        for daemon in daemons.values():
            daemon.kill()
        process.kill([*servers.values(), *(pid for pids in below.values() for pid in pids)])
        for daemon in daemons.values():
            daemon.communicate()


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize("mark", ["", "7", "7.8", "x.y.{namespace}", "..{namespace}", "{pid}.{start}.1", "{pid}.9.1"])
def test_a_mark_that_is_not_understood_or_of_another_namespace_is_spared(tmp_path, mark):
    pid, start_, namespace = process.hosting_mark(tmp_path)[process.HOSTED_BY].split(".")
    mark = mark.format(pid=pid, start=start_, namespace=namespace)
    spared = start(SLEEPER, EXESYS_HOME=str(tmp_path), **{process.HOSTED_BY: mark})
    spared.stdout.readline()
    assert process.end_left_behind(tmp_path) == 0
    # Another process has the pid of the daemon by now.
    left = start(SLEEPER, EXESYS_HOME=str(tmp_path), **{process.HOSTED_BY: f"{pid}.{int(start_) + 1}.{namespace}"})
    left.stdout.readline()
    assert process.end_left_behind(tmp_path) == 1
    assert left.wait() == -signal.SIGKILL
    assert spared.poll() is None
    spared.kill()
    for each in (spared, left):
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
