"""Functions that are steps of workflows, and show what they were fed."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from exesys.context import Context

GATE_S = 60.0


def cmd0(data: Any, ctx: Context) -> str:
    """Say that it ran on the data; this and the next three are those of the picture of the execution flow."""
    return _pictured(data, ctx)


def cmd1(data: Any, ctx: Context) -> str:
    """Say that it ran on the data."""
    return _pictured(data, ctx)


def cmd2(data: Any, ctx: Context) -> str:
    """Say that it ran on the data."""
    return _pictured(data, ctx)


def cmd3(data: Any, ctx: Context) -> str:
    """Say that it ran on the data."""
    return _pictured(data, ctx)


def _pictured(data: Any, ctx: Context) -> str:
    """Wait to be let go on, if the job has gates, and return the data and the cmd."""
    job = ctx.job
    if ctx.redis.exists(f"gated:{job.job_id}") and not ctx.redis.blpop(
        [f"gate:{job.job_id}:{job.from_}>{job.to}"], GATE_S
    ):
        raise TimeoutError("nobody opened the gate")
    return f"{data} {job.cmd}"


def fed(data: Any, ctx: Context) -> list[Any]:
    """Return the name of the step and what it was fed."""
    return [ctx.job.from_, data]


def one_more(data: int) -> int:
    """Return the number after this one."""
    return data + 1


def ones(data: Any) -> int:
    """Return 1."""
    return 1


def total(data: dict[str, int]) -> int:
    """Return the sum of what several steps gave."""
    return sum(data.values())


def fed_once_mended(data: Any, ctx: Context) -> list[Any]:
    """As `fed`, but fail while there is no Redis key `mended:<job_id>`."""
    if not ctx.redis.exists(f"mended:{ctx.job.job_id}"):
        print("it looks whether it is mended")
        raise LookupError(f"{ctx.job.from_} is not mended")
    return fed(data, ctx)


def fed_slowly(data: float, ctx: Context) -> list[Any]:
    """As `fed`, after so many seconds."""
    time.sleep(data)
    return fed(data, ctx)


def nap(data: Any) -> int:
    """Take a moment, and return 1."""
    time.sleep(0.1)
    return 1


def stays(data: bool, ctx: Context) -> None:
    """Leave the number of its process in the Redis key `pid:<job_id>`, and stay; deaf to SIGTERM when asked for."""
    if data:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    ctx.redis.set(f"pid:{ctx.job.job_id}", os.getpid())
    time.sleep(GATE_S)


def lists(data: list[Any], ctx: Context) -> int:
    """Add a step for each item of a list it finds, here its data; they go where it goes."""
    for item in data:
        ctx.add_step("fed", item)
    return len(data)


def needs_file(data: str) -> str:
    """Return what stands in a file; it fails while there is none."""
    with open(data, encoding="utf-8") as file:
        return file.read()


def fails_twice(data: Any, ctx: Context) -> list[Any]:
    """Fail in the first two attempts, and then return what it was fed."""
    if ctx.job.attempt < 3:
        raise LookupError(f"attempt {ctx.job.attempt}")
    return [ctx.job.from_, data]


def grows(data: Any, ctx: Context) -> int:
    """Add two steps that go where this one goes, and one between them and nothing else."""
    name = f"{ctx.job.from_}-mid"
    ctx.add_step("fed", [1], to=name)
    ctx.add_step("fed", [2], from_=f"{ctx.job.from_}-own")
    ctx.add_step("fed", from_=name)
    return 3


def grows_wrongly(data: Any, ctx: Context) -> None:
    """Add a step that goes nowhere."""
    ctx.add_step("fed", to="nowhere")
