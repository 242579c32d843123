"""The peers: their environment, their workers, their producers. All of them are processes of their own.

Each works in a database of its own on the Redis that ExeSys uses, over the
same unix socket, with two worker processes. Its settings are the fastest
found for each goal; see the files in `peers/`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

CHECKOUT = Path(__file__).resolve().parent.parent
INSTALL = ("huey", "celery[redis]", "dramatiq[redis]", "hiredis")
LONGEST_S = 900
STOP_S = 15
LOG_LINES = 15
_VERSIONS = "import importlib.metadata as m, json; print(json.dumps({n: m.version(n) for n in %r}))"


class NotInstalled(Exception):
    """The peers could not be installed."""


class PeerFailed(Exception):
    """A peer did not give every result, or a wrong one."""


class Peer(NamedTuple):
    """How to run one. `share`: of how many of the jobs; the slow ones need fewer for a steady figure."""

    module: str
    worker: str
    url: str
    database: int
    stop: signal.Signals
    share: float
    environment: dict[str, dict[str, str]]


class Load(NamedTuple):
    """What a producer does, in the order of its arguments. `goal`: throughput or latency."""

    goal: str
    jobs: int
    in_flight: int
    seed: int


PEERS = {
    "huey": Peer(
        "huey_app",
        "huey_consumer benchmarks.peers.huey_app.huey --worker-type process --workers 2 --no-periodic --quiet -C",
        "unix://{socket}?db={database}",
        8,
        signal.SIGINT,
        1.0,
        {},
    ),
    "celery": Peer(
        "celery_app",
        "celery --app benchmarks.peers.celery_app worker --pool prefork --concurrency 2 --loglevel ERROR"
        " --without-gossip --without-mingle --without-heartbeat",
        "redis+socket://{socket}?virtual_host={database}",
        9,
        signal.SIGTERM,
        0.25,
        {},
    ),
    "dramatiq": Peer(
        "dramatiq_app",
        "dramatiq benchmarks.peers.dramatiq_app --processes 2 --threads 1",
        "unix://{socket}?db={database}",
        10,
        signal.SIGTERM,
        0.25,
        # Many are fetched at once, or else an idle worker looks often: both together are slower.
        {"throughput": {"dramatiq_queue_prefetch": "16"}, "latency": {"dramatiq_worker_timeout": "1"}},
    ),
}


def install(venv: Path) -> dict[str, str]:
    """Make the peers' environment unless it is there. Returns their versions. Raises NotInstalled."""
    python = venv / "bin" / "python"
    try:
        if not python.exists():
            _run([sys.executable, "-m", "venv", str(venv)])
        names = [name.partition("[")[0] for name in INSTALL]
        try:
            told = _run([str(python), "-c", _VERSIONS % names])
        except subprocess.CalledProcessError:
            _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *INSTALL])
            told = _run([str(python), "-c", _VERSIONS % names])
    except (subprocess.SubprocessError, OSError) as error:
        raise NotInstalled(f"The peers cannot be installed in {venv}: {error}\n{_end(error)}") from error
    return dict(json.loads(told))


def _run(command: list[str], environ: dict[str, str] | None = None) -> str:
    """Run a command and return what it printed. Raises SubprocessError, with its `stderr`."""
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=LONGEST_S, env=environ).stdout


def measure(name: str, load: Load, venv: Path, socket: Path, log: Path) -> dict[str, float]:
    """Run one peer's workers and its producer. Returns the figures. Raises PeerFailed."""
    peer = PEERS[name]
    environ = {
        **{key: value for key, value in os.environ.items() if not key.startswith(("EXESYS_", "PYTHON"))},
        **peer.environment.get(load.goal, {}),
        "PATH": f"{venv / 'bin'}:{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(CHECKOUT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "BENCH_REDIS": peer.url.format(socket=socket, database=peer.database),
        "BENCH_GOAL": load.goal,
    }
    producer = [str(venv / "bin" / "python"), "-m", "benchmarks.peers.producer", peer.module]
    with _workers(peer, environ, log):
        try:
            told = _run([*producer, *map(str, load)], environ)
        except subprocess.SubprocessError as error:
            said = f"{_end(error)}\nIts workers said:\n{_end(log.read_text(errors='replace'))}"
            raise PeerFailed(f"{name}, {load.goal}: {error}\n{said}") from error
    return dict(json.loads(told))


@contextlib.contextmanager
def _workers(peer: Peer, environ: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the worker processes, in a process group of their own."""
    with log.open("wb") as out:
        workers = subprocess.Popen(
            shlex.split(peer.worker), env=environ, cwd=log.parent, stdout=out, stderr=out, start_new_session=True
        )
    try:
        yield workers
    finally:
        workers.send_signal(peer.stop)
        with contextlib.suppress(subprocess.TimeoutExpired):
            workers.wait(STOP_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(workers.pid, signal.SIGKILL)
        workers.wait()


def _end(said: str | Exception) -> str:
    """Return the last lines of a log, or of what a failed command wrote to stderr."""
    text = said if isinstance(said, str) else str(getattr(said, "stderr", None) or "")
    return "\n".join(text.splitlines()[-LOG_LINES:])
