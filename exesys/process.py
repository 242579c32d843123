"""Processes and the kernel: dying with the parent, locks, ports, and who is still there.

Every program of a system is a child of its supervisord and must not outlive
it, also when it is killed with -9. The kernel does that (PR_SET_PDEATHSIG,
see prctl(2)); the signal survives exec, so servers that are not ours get it
too. Linux only.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from exesys.errors import BootError

SUPERVISOR_PID = "EXESYS_SUPERVISOR_PID"
PROGRAM_NAME = "SUPERVISOR_PROCESS_NAME"
HOSTED_BY = "EXESYS_HOSTED_BY"  # pid, start and pid namespace of the daemon below which a process was started
LEFT_S = 1.0  # so long what was killed may take to be gone
_PR_SET_PDEATHSIG = 1
_LISTEN = "0A"
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


class Process(NamedTuple):
    """A running program of a system, as /proc shows it."""

    pid: int
    program: str


def die_with_parent(signum: int = signal.SIGTERM, parent: int | None = None) -> None:
    """Have the kernel send `signum` to this process when its parent ends.

    `parent` is the pid the parent must have; without it, the one that
    supervisord leaves in the environment. That variable is taken out, so
    that it stands only in the environment of supervisord's own children.
    A parent that ended before the kernel was told is found by comparing:
    then this process exits at once, with status 1 and a sentence.
    """
    expected = os.environ.pop(SUPERVISOR_PID, "")
    if parent is None and expected:
        parent = int(expected)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signum, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if parent is not None and os.getppid() != parent:
        raise SystemExit(f"The parent process {parent} is gone, so this process ends too.")


class _Spec(ctypes.Structure):
    _fields_ = (
        ("interval_s", ctypes.c_long),
        ("interval_ns", ctypes.c_long),
        ("s", ctypes.c_long),
        ("ns", ctypes.c_long),
    )


class _Event(ctypes.Structure):
    # struct sigevent: a value, the signal, how to notify (0: SIGEV_SIGNAL), and room for other ways.
    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("room", ctypes.c_int * 12),
    )


class DeadMan:
    """Has the kernel kill this process at a moment that is put off again and again.

    A POSIX timer (timer_create(2)) whose signal is KILL: it also ends a
    process that is stopped, or hangs, and with it, by their PDEATHSIG, its
    children. It counts the time in which the machine was suspended.
    """

    def __init__(self) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._timer = ctypes.c_void_p()
        event = _Event(None, signal.SIGKILL, 0)
        self._check(self._libc.timer_create(time.CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._timer)))
        self._at = float("inf")

    def put_off(self, at: float) -> None:
        """Have it happen at `at`, in seconds of `time.monotonic()`; infinite: not at all."""
        if at == self._at:
            return
        self._at = at
        spec = _Spec()
        if at != float("inf"):
            # In this order: should we be stopped in between, it comes earlier, not later.
            since_boot = time.clock_gettime(time.CLOCK_BOOTTIME)
            moment = max(at + since_boot - time.monotonic(), 1e-9)
            spec.s, spec.ns = int(moment), int(moment % 1 * 1e9) or 1
        absolute = 1
        self._check(self._libc.timer_settime(self._timer, absolute, ctypes.byref(spec), None))

    @staticmethod
    def _check(code: int) -> None:
        if code:
            raise OSError(ctypes.get_errno(), "the kernel refuses a timer")


def hold_lock(path: Path, wait_s: float = 0.0) -> int:
    """Take the lock on a file for the life of this process; return its descriptor.

    The kernel frees it however the process ends. Raises BootError when
    another holds it for `wait_s` seconds.
    """
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise BootError(f"The lock {path} cannot be opened: {error.strerror}.") from error
    if wait_until(lambda: _try_lock(fd, fcntl.LOCK_EX), wait_s):
        return fd
    os.close(fd)
    raise BootError(f"Another process holds {path}.", fix="Wait for it or stop it, then try again.")


def is_locked(path: Path) -> bool:
    """Tell whether some process holds the lock on this file. Makes no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return not _try_lock(fd, fcntl.LOCK_SH)
    finally:
        os.close(fd)


def _try_lock(fd: int, kind: int) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def wait_until(condition: Callable[[], bool], within_s: float, every_s: float = 0.05) -> bool:
    """Ask until the condition holds or the time is over; return how it ended."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(every_s)
    return True


def programs_of(home: Path) -> list[Process]:
    """List the programs that a supervisord started for this home and that still run.

    They are known by two variables of the environment they were started
    with. supervisord itself and what the programs started are not among
    them, nor are processes of other users.
    """
    found = []
    wanted = os.path.realpath(home)
    for entry in _pids():
        environ = _environ(entry, SUPERVISOR_PID)
        if SUPERVISOR_PID in environ and os.path.realpath(environ.get("EXESYS_HOME", "")) == wanted:
            found.append(Process(entry, environ.get(PROGRAM_NAME, "?")))
    return found


def of_home(home: Path) -> list[int]:
    """List all processes that were started with this home, whoever started them."""
    wanted = str(home)
    return [pid for pid in _pids() if _environ(pid, "EXESYS_HOME").get("EXESYS_HOME") == wanted and alive(pid)]


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not waited for does not."""
    return _state(pid)[0] not in ("", "Z", "X")


def children(parent: int) -> list[int]:
    """List the processes that run and whose parent this one is."""
    return sorted(pid for pid in _pids() if alive(pid) and _state(pid)[1] == str(parent))


def _state(pid: int) -> tuple[str, str]:
    """Return the letter of a process' state and its parent; empty when it is gone."""
    try:
        state, parent, *_ = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return state, parent


def _pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _environ(pid: int, with_: str) -> dict[str, str]:
    """Return the environment a process was started with; empty when it is gone or not ours, or has no such variable."""
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    if with_.encode() not in block:
        return {}
    pairs = (os.fsdecode(part).partition("=") for part in block.split(b"\0"))
    return {name: value for name, _, value in pairs}


def hosting_mark(home: Path) -> dict[str, str]:
    """Return the variables by which all that is started below this process is known, also when this one is gone."""
    pid = os.getpid()
    return {HOSTED_BY: f"{pid}.{_started(pid)}.{_pid_namespace()}", "EXESYS_HOME": str(home)}


def end_left_behind(home: Path) -> int:
    """Kill what daemons of this home that are gone have left running; return how many processes that were.

    They are known by their `hosting_mark`, which a process hands down to all
    it starts. What a daemon has that lives, also another one's, is spared,
    and so is who took its mark off.
    """
    killed: set[int] = set()

    def none_is_left() -> bool:
        left = [pid for pid in _pids() if _is_left_behind(pid, home)]
        # Again until there is none: one may have forked while we looked.
        killed.update(pid for pid in left if _kill_left_behind(pid, home))
        return not left

    wait_until(none_is_left, LEFT_S, every_s=0.01)
    return len(killed)


def _is_left_behind(pid: int, home: Path) -> bool:
    environ = _environ(pid, HOSTED_BY)
    daemon, _, rest = environ.get(HOSTED_BY, "").partition(".")
    started, _, namespace = rest.partition(".")
    # In another namespace, which a container has, the same pid is another process.
    if pid == os.getpid() or not (daemon.isdigit() and started.isdigit()) or namespace != _pid_namespace():
        return False
    if os.path.realpath(environ.get("EXESYS_HOME", "")) != os.path.realpath(home):
        return False
    return _started(int(daemon)) != started


def _kill_left_behind(pid: int, home: Path) -> bool:
    try:
        pidfd = os.pidfd_open(pid)
    except OSError:
        return False
    try:
        # Looked at once more: from here on the pid cannot become another process's unseen.
        if _is_left_behind(pid, home):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            return True
    except OSError:
        pass
    finally:
        os.close(pidfd)
    return False


def _started(pid: int) -> str:
    """Return when a process was started, in ticks since the machine was; "" when it has ended."""
    try:
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except (OSError, ValueError):
        return ""
    return "" if state in ("Z", "X") else fields[18]  # field 22 of proc_pid_stat(5)


def age_s(pid: int) -> float | None:
    """Return for how many seconds a process has been there; None when it has ended."""
    ticks = _started(pid)
    if not ticks:
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(ticks) / os.sysconf("SC_CLK_TCK")


def _pid_namespace() -> str:
    return str(os.stat("/proc/self/ns/pid").st_ino)


def kill(pids: list[int], signum: int = signal.SIGKILL) -> None:
    """Send a signal to each; one that is gone is no error."""
    for pid in pids:
        try:
            os.kill(pid, signum)
        except ProcessLookupError:
            continue


def name_of(pid: int) -> str:
    """Return the short name of a process, or "" when it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def bind_error(host: str, port: int) -> OSError | None:
    """Return why a server could not bind this address now, None when it could."""
    try:
        for family, kind, proto, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, proto) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        return error
    return None


def free_port(host: str) -> int:
    """Return a port nobody listens on. It may be taken by the time it is used."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def port_answers(host: str, port: int, timeout_s: float = 1.0) -> bool:
    """Tell whether a server accepts connections at this address."""
    try:
        with socket.create_connection((host, port), timeout_s):
            return True
    except OSError:
        return False


def port_holder(port: int) -> str:
    """Say who listens on a port, "process 812 (python3)", or "" when that cannot be seen."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text().splitlines()[1:]
        except OSError:
            continue
        for fields in (line.split() for line in lines):
            if fields[3] == _LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                inodes.add(f"socket:[{fields[9]}]")
    if not inodes:
        return ""
    for pid in _pids():
        try:
            links = [os.readlink(link.path) for link in os.scandir(f"/proc/{pid}/fd")]
        except OSError:
            continue
        if inodes.intersection(links):
            return f"process {pid} ({name_of(pid)})"
    return ""


def how_it_ended(status: int) -> str:
    """Say how a process ended, from its exit code, or the negative of a signal."""
    if status < 0:
        try:
            return f"killed by {signal.Signals(-status).name}"
        except ValueError:
            return f"killed by signal {-status}"
    # Our slots turn TERM into an orderly exit, by the shells' convention of 128 + signal.
    named = {128 + number: f" ({number.name})" for number in signal.Signals}
    return f"ended by exit code {status}{named.get(status, '')}"


def resident_bytes(pid: int) -> int:
    """Return how much memory a process has; 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * PAGE_BYTES
    except (OSError, IndexError, ValueError):
        return 0
