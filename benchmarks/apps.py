"""Calls of an application server from functions, and the floor: a bare ROUTER that answers bare DEALERs."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks import load
from exesys import Client
from exesys.config import Config

CALLERS = 2  # functions at the same time, one in each slot
THREADS = 4  # in each
JOB_S = 300.0
ECHO = """
import sys, zmq
socket = zmq.Context().socket(zmq.ROUTER)
socket.bind(sys.argv[1])
print("ready", flush=True)
while True:
    socket.send_multipart(socket.recv_multipart())
"""


def latency(config: Config, calls: int) -> dict[str, float]:
    """One call after the other, from one function: ours, then the floor."""
    with Client(config) as client, _echo(config) as endpoint:
        ours: list[float] = client.run("app_calls", [calls, 1], JOB_S)
        floor: list[float] = client.run("floor_calls", [calls, 1, endpoint], JOB_S)
    return {
        f"{name}_p{percent}_ms": 1000 * load.quantile(took_s, percent / 100)
        for name, took_s in (("call", ours), ("floor", floor))
        for percent in (50, 90, 99)
    }


def rate(config: Config, calls: int) -> dict[str, float]:
    """Calls per second to one instance, from threads of several functions: ours, then the floor."""
    with Client(config) as client, _echo(config) as endpoint:
        return {
            "calls_per_s": _rate(client, "app_calls", [calls // CALLERS, THREADS]),
            "floor_per_s": _rate(client, "floor_calls", [calls // CALLERS, THREADS, endpoint]),
        }


def _rate(client: Client, cmd: str, data: list[object]) -> float:
    since = time.perf_counter()
    handles = client.submit_many(cmd, [data] * CALLERS)
    done = sum(len(handle.result(JOB_S)) for handle in handles)
    return done / (time.perf_counter() - since)


@contextlib.contextmanager
def _echo(config: Config) -> Iterator[str]:
    endpoint = f"ipc://{config.run}/echo"
    with subprocess.Popen([sys.executable, "-c", ECHO, endpoint], stdout=subprocess.PIPE) as echo:
        assert echo.stdout is not None
        try:
            echo.stdout.readline()
            yield endpoint
        finally:
            echo.kill()
