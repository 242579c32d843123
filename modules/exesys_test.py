"""Functions to try a system with, each doing one thing, good or bad."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from typing import Any

from exesys.context import Context


def test_cmd(data: Any) -> dict[str, Any]:
    """Greet whoever sends the first command."""
    return {"EOJ": {"hello": data, "length": len(str(data))}}


def noop() -> None:
    """Do nothing."""


def echo(data: Any) -> Any:
    """Return the data as it came."""
    return data


def add(data: list[float]) -> float:
    """Return the sum of a list of numbers."""
    return sum(data)


def fail(data: Any) -> None:
    """Raise a ValueError with the data as its text."""
    raise ValueError("it was asked to fail" if data is None else str(data))


def sleep(data: float) -> float:
    """Sleep that many seconds."""
    time.sleep(data)
    return data


async def slow_async(data: float) -> float:
    """Sleep that many seconds as a coroutine."""
    await asyncio.sleep(data)
    return data


def spin(data: float) -> int:
    """Keep a processor busy for that many seconds; return how often it went round."""
    rounds, end = 0, time.monotonic() + data
    while time.monotonic() < end:
        rounds += 1
    return rounds


def ignores_term(data: float) -> float:
    """Sleep that many seconds and not heed SIGTERM."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        time.sleep(data)
    finally:
        signal.signal(signal.SIGTERM, before)
    return data


def crash(data: str | None) -> None:
    """Send its own process the signal of that name, SIGKILL if none is named."""
    name = data or "SIGKILL"
    os.kill(os.getpid(), signal.Signals[name])
    raise RuntimeError(f"{name} did not end the process")


def hog(data: int) -> int:
    """Take that many megabytes of memory and use them, one every 5 ms."""
    held = []
    for _ in range(data):
        held.append(bytearray(b"x") * (1 << 20))
        time.sleep(0.005)
    return len(held)


def prints(data: int | None, ctx: Context) -> int:
    """Print that many lines (3 if none are asked for), log each, and report progress."""
    lines = 3 if data is None else data
    for number in range(1, lines + 1):
        print(f"line {number}")
        ctx.log.info("logged %d", number)
        ctx.progress(number / lines, f"line {number} of {lines}")
    return lines


def record_run(data: str | dict[str, Any], ctx: Context) -> Any:
    """Append "job_id attempt" to the Redis list exesys_test:runs:<run>, then return the value.

    The data is the name of the run, or a map: `run`, `value` (to return) and
    `seconds` (to sleep before that).
    """
    asked: dict[str, Any] = data if isinstance(data, dict) else {"run": data, "value": data}
    ctx.redis.rpush(f"exesys_test:runs:{asked['run']}", f"{ctx.job.job_id} {ctx.job.attempt}")
    time.sleep(asked.get("seconds", 0))
    return asked.get("value")
