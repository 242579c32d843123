"""What it costs that many listen: the same jobs with and without a hundred streams of events, by turns."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import load
from exesys import Client
from exesys.config import Config

LISTENERS = 100
PIECES = 10
_ROOT = Path(__file__).resolve().parent.parent


def beside(config: Config, jobs: int, in_flight: int, seed: int) -> dict[str, float]:
    """Send jobs while a hundred listen to all events, and while nobody does. Returns the jobs a second of both.

    The listeners are a process of their own on the same machine: what they take of it counts as well.
    """
    took_s, read = [0.0, 0.0], 0
    with Client(config) as client:

        def send(count: int, number: int) -> float:
            items = load.payloads(count, seed + number)
            return load.sliding(
                lambda item: client.submit("noop", item), lambda handle: handle.result(load.LOST_S), items, in_flight
            )

        send(2000, 0)
        for number in range(PIECES):
            for listened in (True, False) if number % 2 else (False, True):
                with contextlib.ExitStack() as stack:
                    heard = stack.enter_context(listening(config)) if listened else {}
                    took_s[listened] += send(jobs // PIECES, 1 + 2 * number + listened)
                read += heard.get("bytes", 0)
    sent = jobs // PIECES * PIECES
    rates = {"listened_jobs_per_s": sent / took_s[1], "alone_jobs_per_s": sent / took_s[0]}
    return {**rates, "read_mb_per_s": read / took_s[1] / 1e6}


@contextlib.contextmanager
def listening(config: Config) -> Iterator[dict[str, Any]]:
    """Have a hundred listen to all that happens; at the end, what they have read stands in what is given."""
    command = [sys.executable, "-m", "benchmarks.streams", config.rest.host, str(config.rest.port)]
    heard: dict[str, Any] = {}
    with subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as listeners:
        assert listeners.stdin is not None
        assert listeners.stdout is not None
        assert listeners.stdout.readline() == "all listen\n"
        yield heard
        listeners.stdin.close()
        heard |= json.loads(listeners.stdout.readline())


def main(host: str, port: int) -> None:
    """Listen until standard input ends, and print how much was read."""
    lines = [socket.create_connection((host, port)) for _ in range(LISTENERS)]
    for line in lines:
        line.sendall(f"GET /events HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        if not line.recv(4096).startswith(b"HTTP/1.1 200"):
            raise SystemExit("a stream was refused")
        line.setblocking(False)
    print("all listen", flush=True)
    poll = select.epoll()
    by_number = {line.fileno(): line for line in lines}
    for number in (sys.stdin.fileno(), *by_number):
        poll.register(number, select.EPOLLIN)
    total = 0
    while True:
        for number, _ in poll.poll():
            if number not in by_number:
                print(json.dumps({"bytes": total}), flush=True)
                return
            total += len(by_number[number].recv(1 << 18))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
