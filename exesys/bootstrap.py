"""Up and down: what stands between a person and supervisord.

A home belongs to one system at a time. supervisord holds the lock `run/lock`
for as long as it lives, `run/system.json` says which project and settings it
was started with, and `run/boot.lock` lets one `up` or `down` work at a time.
Whatever is found wrong before the start costs nothing; whatever goes wrong
after it stops everything again.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from exesys import apps, following, home, moves, preflight, process, programs, reach, teardown, welcome
from exesys.addresses import masked, near
from exesys.config import Config
from exesys.errors import BootError, nearest
from exesys.logs import readable
from exesys.proof import Proof, is_ready, prove, why_not_ready
from exesys.teardown import Teller

SUPERVISORD_START_S = 15.0
READY_S = 60.0
_DOWN = ("STOPPED", "EXITED", "FATAL", "BACKOFF")


def up(config: Config, foreground: bool = False, as_json: bool = False) -> int:
    """Start what does not run, wait until it serves, prove it by one job, and say how to use it.

    With `foreground`, stay until the system ends, and end it on TERM or INT.
    As JSON it is the status, and under `proof` what came of that job (null when nothing had to be started).
    Returns 0; raises BootError after stopping whatever it started.
    """
    tell = Teller(quiet=as_json)
    supervisord, done = bring_up(config, tell, attached=foreground, silent=not foreground, alone=foreground)
    if as_json:
        print(json.dumps({**status(config), "proof": done and done._asdict()}), flush=True)
    else:
        tell(welcome.welcome(config, done, apps.settled(config)))
    return _stay(config, supervisord, tell) if supervisord is not None and foreground else 0


def bring_up(
    config: Config, tell: Teller, attached: bool = False, silent: bool = True, alone: bool = False
) -> tuple[subprocess.Popen[bytes] | None, Proof | None]:
    """Start what does not run, wait until it serves, and prove it.

    Return the supervisord that was started, None when one runs already; and
    what came of the proof, None when nothing had to be started. An `attached`
    one ends with this process; one that is not `silent` writes to our stdout.
    Raises BootError after stopping whatever it started; with `alone` also
    when a system runs here already.
    """
    if not os.path.exists(config.run):
        preflight.plan(config)  # so that a start that cannot be leaves nothing behind
    home.make(config)
    with home.booting(config):
        if not _still_held(config):
            teardown.end_orphans(config, tell)
            return _start(config, attached, silent, tell)
        if alone:
            fix = f"Stop it first: `{welcome.down_text(config)}`."
            raise BootError(f"ExeSys runs in {config.home} already.", fix=fix)
        return None, _complete(config, tell)


def down(config: Config, as_json: bool = False) -> int:
    """Stop everything in this home, in order, and wait for it. Returns 0 also when nothing ran."""
    tell = Teller(quiet=as_json)
    if not os.path.isdir(config.run):
        tell(f"Nothing runs in {config.home}.")
        return 0
    with home.booting(config):
        if process.is_locked(home.lock(config)):
            teardown.stop(config, tell)
            tell(f"ExeSys in {config.home} is stopped.")
        else:
            teardown.end_orphans(config, tell)
            teardown.forget(config)
            tell(f"Nothing runs in {config.home}.")
    if as_json:
        print(json.dumps(status(config)), flush=True)
    return 0


def restart(config: Config, as_json: bool = False) -> int:
    """Stop, then start with the settings that hold now."""
    if process.is_locked(home.lock(config)):
        record = home.read_record(config)
        held = preflight.ports(home.as_started(config, record)).values() if record else []
        preflight.plan(
            config, frozenset(port for _, port in held)
        )  # a system that could not start again is not stopped
        with contextlib.redirect_stdout(sys.stderr if as_json else sys.stdout):
            down(config)
    return up(config, as_json=as_json)


def status(config: Config) -> dict[str, Any]:
    """Say what runs in this home, and where it is reached."""
    record = home.read_record(config) if process.is_locked(home.lock(config)) else None
    found: list[dict[str, Any]] = []
    if record is not None:
        config = home.as_started(config, record)
        with contextlib.suppress(BootError):
            found = [
                {"name": each.name, "state": each.state, "pid": each.pid} for each in home.supervisor(config).programs()
            ]
    replica = {"backup": following.look(config)._asdict()} if config.redis.backup and found else {}
    return {
        "home": str(config.home),
        "running": bool(found),
        "rest": {"url": config.rest_url},
        "web": {"url": config.web_url},
        "redis": {"url": masked(config.redis_url), **replica},
        "mongo": {"uri": masked(config.mongo.uri)},
        "bus": {"endpoint": config.bus_endpoint},
        **({"shard": {"name": config.bus.shard, "of": [each.name for each in config.shards]}} if config.shards else {}),
        "programs": found,
    }


def changed(config: Config) -> bool:
    """Tell whether the settings that hold now are others than those of the system that runs."""
    record = home.read_record(config)
    return record is not None and bool(_changed(config, record))


def logs(config: Config, program: str, lines: int = 50, follow: bool = False) -> int:
    """Print the last lines of a program's log; with `follow`, go on until interrupted."""
    path = log_of(config, program)
    for line in home.tail(path, lines):
        print(readable(line), flush=True)
    while follow:
        _follow(path)
    return 0


def logged(config: Config) -> list[str]:
    """Name the programs that have a log here, whether they run or not."""
    return sorted(path.stem for path in config.log.glob("*.log"))


def log_of(config: Config, program: str) -> Path:
    """Return a program's log. Raises BootError when there is none."""
    known = logged(config)
    if program not in known:
        close = nearest(program, known)
        hint = f"Did you mean {close}?" if close else f"There are: {', '.join(known) or 'none'}."
        raise BootError(f"There is no log of {program!r} in {config.log}.", fix=hint)
    return config.log / f"{program}.log"


def _follow(path: Path) -> None:
    """Print what is added to a log, until it is rotated."""
    with path.open("rb") as log:
        log.seek(0, os.SEEK_END)
        inode = os.fstat(log.fileno()).st_ino

        left = b""  # of a line that is not whole yet

        def rotated() -> bool:
            nonlocal left
            *lines, left = (left + log.read()).split(b"\n")
            for line in lines:
                print(readable(line.decode("utf-8", "replace")), flush=True)
            return path.exists() and path.stat().st_ino != inode

        while not process.wait_until(rotated, within_s=3600, every_s=0.2):
            continue


# -- before the start -------------------------------------------------------------


def _still_held(config: Config) -> bool:
    """Tell whether a system runs here; one that is ending by itself is waited for."""
    if not process.is_locked(home.lock(config)):
        return False
    if process.wait_until(
        lambda: home.supervisor(config).running() or not process.is_locked(home.lock(config)), SUPERVISORD_START_S
    ):
        return process.is_locked(home.lock(config))
    record = home.read_record(config)
    stop_s = 3.0 * programs.stop_wait_s(home.as_started(config, record)) if record else 0.0
    if process.wait_until(lambda: not process.is_locked(home.lock(config)), stop_s):
        return False
    raise BootError(
        f"{config.home} is held by a supervisord that does not answer.", fix=f"Stop it: `{welcome.down_text(config)}`."
    )


# -- the start --------------------------------------------------------------------


def _start(config: Config, attached: bool, silent: bool, tell: Teller) -> tuple[subprocess.Popen[bytes], Proof]:
    moves.settle(config.data)  # what a restore decided, and could not end
    plan = preflight.plan(config)
    parts = _programs(config, plan)
    conf = config.home / "supervisord.conf"
    text = programs.render(home.template(), config, parts, plan.environment, minfds=_minfds(config), silent=silent)
    lock = process.hold_lock(home.lock(config), wait_s=1.0)
    try:
        home.write(conf, text)
        home.write_record(config, preflight.record(config, plan))
        if plan.mongo and not config.mongo.port:
            home.write(config.run / "mongo.port", plan.environment["EXESYS_MONGO_PORT"] + "\n")
        tell(f"Starting {', '.join(part.name for part in parts)}.")
        supervisord = _spawn(config, conf, lock, attached, silent)
    finally:
        os.close(lock)
    try:
        _await_supervisord(config, supervisord)
        _await_ready(config, plan.environment)
        return supervisord, _prove(config)
    except BaseException:
        supervisord.terminate()  # it may not listen yet
        teardown.stop(config, Teller(quiet=True))
        supervisord.wait()
        raise


def _programs(config: Config, plan: preflight.Plan) -> list[programs.Program]:
    if config.joins:
        return programs.joined(config.workers)
    private = plan.redis is not None, plan.mongo is not None
    return programs.programs(
        *private, config.appservers, config.workers, config.controller.processes, backup=config.redis.backup
    )


def _spawn(config: Config, conf: Path, lock: int, attached: bool, silent: bool) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "exesys.launch", "supervisord", "--conf", str(conf), "--lock-fd", str(lock)]
    if attached:
        command += ["--parent", str(os.getpid())]
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")}
    with (config.log / "supervisord.out").open("wb") as out:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out if silent else None,
            stderr=out if silent else None,
            cwd=config.root,
            env={**environ, "EXESYS_HOME": str(config.home)},
            pass_fds=[lock],
            start_new_session=True,
        )


def _await_supervisord(config: Config, supervisord: subprocess.Popen[bytes]) -> None:
    supervisor = home.supervisor(config)
    process.wait_until(lambda: supervisor.running() or supervisord.poll() is not None, SUPERVISORD_START_S, 0.02)
    if not supervisor.running():
        raise BootError(f"supervisord does not start.{home.quote(config.log / 'supervisord.out')}")


def _await_ready(config: Config, environment: dict[str, str]) -> None:
    """Wait until every program runs and serves. Raises BootError at the first that cannot."""
    supervisor = home.supervisor(config)
    mongo = config.mongo.port or int(environment.get("EXESYS_MONGO_PORT", "0"))
    waiting = {
        "rest": lambda: is_ready(config),
        "web": lambda: process.port_answers(near(config.web.host), config.web.port),
        "mongo": lambda: process.port_answers("127.0.0.1", mongo),
    }
    failures: dict[str, int] = {}
    before: dict[str, str] = {}
    names: list[str] = []

    def settled() -> bool:
        states = supervisor.programs()
        for name, state, _, note in states:
            if state != before.get(name) and state in ("BACKOFF", "FATAL", "UNKNOWN"):
                failures[name] = failures.get(name, 0) + 1
            before[name] = state
            # Ending once may be bad luck, a port that was freed late; twice is a fault.
            if apps.is_app(name):
                continue  # a class that cannot be started is told, and keeps nothing else from serving
            if state in ("FATAL", "UNKNOWN") or failures.get(name, 0) > 1:
                raise BootError(f"{name} does not start ({state}: {note}).{home.quote(config.log / f'{name}.log')}")
        for name in list(waiting):
            if name not in before or waiting[name]():
                del waiting[name]
        names[:] = [name for name, state, _, _ in states if state != "RUNNING" and not apps.is_app(name)]
        return not waiting and not names

    if not process.wait_until(settled, READY_S):
        late = sorted({*waiting, *names})
        logs = late
        if "rest" in waiting:  # what it waits for is the router, mostly
            late = [why_not_ready(config) or "rest", *(name for name in late if name != "rest")]
            logs = ["router", *logs]
        shown = "".join(home.quote(config.log / f"{name}.log") for name in logs)
        raise BootError(f"Not ready in {READY_S:g} s: {', '.join(late)}.{shown}")


def _complete(config: Config, tell: Teller) -> Proof | None:
    """Start what does not run in a system that does. It is never stopped for what fails here."""
    record = home.read_record(config)
    if record is None:
        raise BootError(
            f"{config.home} is held by a supervisord whose run/system.json is gone.",
            fix=f"Stop it: `{welcome.down_text(config)}`.",
        )
    _check_same(config, record)
    supervisor = home.supervisor(config)
    missing = [each.name for each in supervisor.programs() if each.state in _DOWN]
    for name in missing:
        supervisor.start(name)
    if missing:
        tell(f"Starting {', '.join(missing)}.")
    _await_ready(config, record.environment)
    return _prove(config) if missing else None


def _prove(config: Config) -> Proof:
    if config.joins:
        return _joined(config)
    try:
        return prove(config, config.worker.queues[0])
    except BootError as error:
        shown = "".join(home.quote(config.log / f"{name}.log") for name in ("router", "worker"))
        raise BootError(error.message + shown) from error


def _joined(config: Config) -> Proof:
    """Wait until the router knows the worker that runs here."""
    ours = {each.pid for each in home.supervisor(config).programs()}
    began = time.monotonic()
    with contextlib.closing(reach.connect(config)) as client:

        def known() -> bool:
            workers = client.snapshot("workers", timeout=READY_S)["workers"]
            return any(each["host"] == socket.gethostname() and each["pid"] in ours for each in workers)

        if not process.wait_until(known, READY_S):
            shown = home.quote(config.log / "worker.log")
            raise BootError(f"The router at {config.bus_endpoint} does not know our worker in {READY_S:g} s.{shown}")
    ms = (time.monotonic() - began) * 1000
    return Proof("", "", ms, f"the router knows the worker of this host, after {ms:.0f} ms")


def _check_same(config: Config, record: home.Record) -> None:
    """Raise BootError unless the system that runs is of this project and has these settings."""
    pid = home.supervisor(config).pid()
    if Path(record.root).resolve() != config.root.resolve():
        raise BootError(
            f"{config.home} is held by the system of {record.root} (supervisord is process {pid}).",
            fix=f"Set EXESYS_HOME to another directory, or stop it: `{welcome.down_text(config, record.root)}`.",
        )
    changed = _changed(config, record)
    if changed:
        raise BootError(
            f"{config.home} is held by a system with other settings (supervisord is process {pid}):"
            f" {'; '.join(changed[:3])}{' …' if len(changed) > 3 else ''}.",
            fix=f"Take over the new ones with `{welcome.called(config)} restart`,"
            f" stop it with `{welcome.down_text(config)}`, or set EXESYS_HOME to another directory.",
        )


def _changed(config: Config, record: home.Record) -> list[str]:
    """Name the settings that differ from those of the system that runs."""
    return programs.differences(programs.settings(config), record.settings)


# -- the end ----------------------------------------------------------------------


def _stay(config: Config, supervisord: subprocess.Popen[bytes], tell: Teller) -> int:
    """Wait for the end of supervisord, or for a signal, and then end it."""
    wanted = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD}
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    while supervisord.poll() is None:
        came = signal.sigtimedwait(wanted, 1.0)
        if came and came.si_signo != signal.SIGCHLD and supervisord.poll() is None:
            end(config, supervisord, tell)
            return 0
    return 0 if supervisord.returncode == 0 else 1


def end(config: Config, supervisord: subprocess.Popen[bytes], tell: Callable[[str], None]) -> None:
    """Stop the system whose supervisord this process has started, and wait for it."""
    tell("Stopping.")
    with home.booting(config):
        teardown.stop(config, tell)
    supervisord.wait()


# -- figures -----------------------------------------------------------------------


def _minfds(config: Config) -> int:
    """How many descriptors a program may have: REST needs one for each connection, a runner daemon for each runner."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = max(config.rest.connections, config.runner.capacity) + 1024
    return wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
