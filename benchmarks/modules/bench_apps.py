"""An application server that does nothing, and functions that call it; and the same without ExeSys."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import msgpack
import zmq

LOST_S = 60
WARM_UP = 100


class Bench:
    """What is called."""

    def noop(self, value: Any) -> Any:
        """Return the value."""
        return value


def app_calls(data: list[int], ctx: Any) -> list[float]:
    """Call the application server; `data` is how often, and in how many threads. Returns what each call took."""
    calls, threads = data
    app = ctx.app("bench", timeout_s=LOST_S)
    return _times(lambda: app.noop, calls, threads)


def floor_calls(data: list[Any]) -> list[float]:
    """Do the same over bare sockets; `data` has also the endpoint of what answers (`echo`)."""
    calls, threads, endpoint = data
    context = zmq.Context[zmq.Socket[bytes]]()

    def connect() -> Callable[[int], int]:
        socket = context.socket(zmq.DEALER)
        socket.rcvtimeo = LOST_S * 1000
        socket.connect(endpoint)

        def call(number: int) -> int:
            socket.send(msgpack.packb(number))
            return int(msgpack.unpackb(socket.recv()))

        return call

    try:
        return _times(connect, calls, threads)
    finally:
        context.destroy(linger=0)


def _times(connect: Callable[[], Callable[[int], object]], calls: int, threads: int) -> list[float]:
    """Call from several threads at once, and check each answer."""
    took_s: list[float] = []
    wrong: list[object] = []

    def run(first: int) -> None:
        call = connect()
        for number in range(first, first + WARM_UP):
            call(number)
        mine = []
        for number in range(first, first + calls // threads):
            since = time.perf_counter()
            came = call(number)
            mine.append(time.perf_counter() - since)
            if came != number:
                wrong.append(came)
        took_s.extend(mine)

    callers = [threading.Thread(target=run, args=(number * calls,)) for number in range(threads)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    if wrong or len(took_s) != calls // threads * threads:
        raise RuntimeError(f"of {calls} calls {len(took_s)} were answered, {len(wrong)} of them wrongly")
    return took_s
