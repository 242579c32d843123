"""Functions to try a system with, each doing one thing, good or bad."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import zlib
from typing import Any

from exesys.context import Context, RunnerContext


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


def workflow_node(data: Any, ctx: Context) -> dict[str, Any]:
    """Be a step of a workflow of such steps, and return a value that can be told beforehand for any graph.

    It is {"step": its `from`, "weight": …, "inputs": how many steps fed it}.
    The weight is that of its name (the CRC-32 of its UTF-8) plus those of all
    that fed it, modulo 2**32:

        weight(step) = (zlib.crc32(from) + sum of weight(feeder)) % 2**32

    Raises ValueError when a value lies under another step's name. A root may
    get {"seconds": s}: then it and all that follow take that long, the
    longest where several meet.
    """
    inputs = _inputs(data)
    for name, value in inputs.items():
        if name.partition(">")[0] != value["step"]:
            raise ValueError(f"what {value['step']} gave lies under {name}")
    weight = zlib.crc32(ctx.job.from_.encode()) + sum(value["weight"] for value in inputs.values())
    given = inputs.values() if inputs else [data if isinstance(data, dict) else {}]
    seconds = max(value.get("seconds", 0) for value in given)
    time.sleep(seconds)
    result = {"step": ctx.job.from_, "weight": weight % 2**32, "inputs": len(inputs)}
    return {**result, "seconds": seconds} if seconds else result


def _inputs(data: Any) -> dict[str, dict[str, Any]]:
    """Return by name what fed a node: nothing a root, one value, or a map of several."""
    if not isinstance(data, dict):
        return {}
    if isinstance(data.get("step"), str):
        return {data["step"]: data}
    return {name: value for name, value in data.items() if isinstance(value, dict)}


def fan(data: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Add as many `echo` steps to its job as `parts` says, each with its number; return their names.

    They go where this step goes, or to `to`. With `bytes` each gets {"part":
    its number, "filling": so many bytes} instead; with `fail` it raises a
    RuntimeError in the end, and nothing is added.
    """
    filling = b"." * data.get("bytes", 0)
    steps = [
        ctx.add_step("echo", {"part": part, "filling": filling} if filling else part, to=data.get("to"))
        for part in range(1, data["parts"] + 1)
    ]
    if data.get("fail"):
        raise RuntimeError(f"{len(steps)} steps were to be added")
    return {"steps": steps}


def tidy(data: dict[str, Any], ctx: Context) -> str:
    """Take `seconds`, and write to the Redis list exesys_test:tidy:<run> when it begins and how it leaves.

    The first entry is "began". The last is "cancelled" when it was told to
    end, which `finally` sees, else "ended"; then it takes `lingers` seconds
    more to leave.
    """
    key = f"exesys_test:tidy:{data['run']}"
    ctx.redis.rpush(key, "began")
    try:
        time.sleep(data["seconds"])
    finally:
        ctx.redis.rpush(key, "cancelled" if ctx.cancelled else "ended")
        time.sleep(data.get("lingers", 0))
    return "ended"


# --- runners ----------------------------------------------------------------


def ticks(data: float | None, ctx: RunnerContext) -> None:
    """A runner: say how long it runs, each second or as often as the data says."""
    seconds = 1.0 if data is None else data
    number = 0
    while not ctx.wait_stop(seconds):
        number += 1
        print(f"tick {number}")


def start_runner(data: dict[str, Any], ctx: Context) -> str:
    """Start a runner: `target`, and perhaps `data`, `type`, `uuid`, `grace_s`. Returns its name."""
    return ctx.start_runner(**data)


def stop_runner(data: str, ctx: Context) -> bool:
    """Stop a runner by its name, or all of a type; tell whether that is news."""
    return ctx.stop_runner(data)
