"""Runners: what they see of themselves goes into Redis lists and hashes, for the tests to read."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
from typing import Any

from exesys.context import Context, RunnerContext

BEAT_S = 0.05


def _say(ctx: RunnerContext, what: str) -> None:
    """Note an event of this life: what, epoch, pid, monotonic time."""
    ctx.redis.rpush(f"lives:{ctx.runner.name}", f"{what} {ctx.runner.epoch} {os.getpid()} {time.monotonic()}")


def beat(data: Any, ctx: RunnerContext) -> None:
    """Write a heartbeat with the epoch until told to stop."""
    _say(ctx, "began")
    while not ctx.wait_stop(BEAT_S):
        ctx.redis.zadd(f"beats:{ctx.runner.name}", {f"{ctx.runner.epoch} {os.getpid()}": time.monotonic()})
    _say(ctx, "ended")


def idle(data: Any, ctx: RunnerContext) -> None:
    """Do nothing until told to stop; note when."""
    _say(ctx, "began")
    ctx.wait_stop()
    _say(ctx, "ended")


async def sleeper(data: Any, ctx: RunnerContext) -> None:
    """A coroutine that sleeps until it is cancelled."""
    _say(ctx, "began")
    try:
        while True:
            await asyncio.sleep(3600)
    finally:
        _say(ctx, "cancelled")


def stubborn(data: dict[str, Any], ctx: RunnerContext) -> None:
    """Ignore the stop; end at TERM, or not even then."""
    _say(ctx, "began")
    while True:
        try:
            time.sleep(3600)
        except SystemExit:
            _say(ctx, "terminated")
            if not data.get("immortal"):
                raise


def raises(data: Any, ctx: RunnerContext) -> None:
    """Fail at once, with the number of the life."""
    _say(ctx, "began")
    raise ValueError(f"life {ctx.runner.epoch} of {data}")


def returns(data: Any, ctx: RunnerContext) -> None:
    """Return by itself."""
    _say(ctx, "began")


def talks(data: dict[str, Any], ctx: RunnerContext) -> None:
    """Print, log and tell progress; then wait for the stop."""
    for number in range(data.get("lines", 3)):
        print(f"line {number} of life {ctx.runner.epoch}")
    ctx.log.warning("a warning")
    ctx.progress(0.25, "a quarter")
    ctx.wait_stop()
    print("told to stop")


def sends(data: dict[str, Any], ctx: RunnerContext) -> None:
    """Submit a command and keep its value; then wait for the stop."""
    value = ctx.submit("add", data["numbers"]).result(30)
    ctx.redis.set(data["key"], value)
    ctx.wait_stop()


def spawns(data: Any, ctx: RunnerContext) -> None:
    """Start a process and a thread that outlive the function, and wait for the stop."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
    threading.Thread(target=time.sleep, args=(3600,)).start()
    ctx.redis.set(f"child:{ctx.runner.name}", child.pid)
    ctx.wait_stop()


def forks(data: Any, ctx: RunnerContext) -> None:
    """Fork a process that leaves the group and never becomes another program, and wait for the stop."""
    pid = os.fork()
    if not pid:
        os.setsid()
        time.sleep(3600)
        os._exit(0)
    ctx.redis.set(f"child:{ctx.runner.name}", pid)
    ctx.wait_stop()


def marks(data: str, ctx: RunnerContext) -> None:
    """Write a line into a file each `BEAT_S`: epoch, pid, monotonic time. It needs no Redis."""
    with open(f"{data}/{ctx.runner.uuid}", "a", buffering=1) as file:
        while True:
            file.write(f"{ctx.runner.epoch} {os.getpid()} {time.monotonic()}\n")
            if ctx.wait_stop(BEAT_S):
                return


# --- the jobs that start and stop them ------------------------------------


def start(data: dict[str, Any], ctx: Context) -> str:
    """Start a runner: `target`, `data`, and any of type, uuid, grace_s. Returns its name."""
    return ctx.start_runner(data["target"], data.get("data"), **data.get("options", {}))


def start_function(data: str, ctx: Context) -> str:
    """Start a runner that is named by the function itself."""
    return ctx.start_runner(idle, data)


def start_many(data: dict[str, Any], ctx: Context) -> list[str]:
    """Start `count` runners."""
    return [ctx.start_runner(data["target"], None, type=data["type"]) for _ in range(data["count"])]


def start_and_fail(data: dict[str, Any], ctx: Context) -> str:
    """Start a runner, fail in the first attempt, and return its name in the second."""
    name = ctx.start_runner("idle", data, type="twice")
    if ctx.job.attempt == 1:
        raise RuntimeError("the first attempt")
    return name


def start_number(data: Any, ctx: Context) -> str:
    """Start what is no function."""
    return ctx.start_runner(42)  # type: ignore[arg-type]  # that is what is tested


def stop(data: list[str], ctx: Context) -> bool:
    """Stop a runner: its type and uuid, or its name."""
    return ctx.stop_runner(*data)
