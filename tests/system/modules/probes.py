"""Functions that show what a function can see and do, and what it can do wrong."""

from __future__ import annotations

import datetime as dt
import decimal
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import exesys
from exesys.context import Context

PAUSE_S = 0.02
_KEPT: list[bytearray] = []


def fails_then_works(data: dict[str, Any], ctx: Context) -> int:
    """Note the time in the Redis list `name`, and fail `fails` times before returning the attempt."""
    ctx.redis.rpush(data["name"], time.time())
    if ctx.job.attempt <= data["fails"]:
        raise RuntimeError(f"attempt {ctx.job.attempt}")
    return ctx.job.attempt


def append(data: list[Any], ctx: Context) -> None:
    """Append the second item to the Redis list that the first one names."""
    ctx.redis.rpush(data[0], data[1])


def wait_for_file(data: str) -> None:
    """Return when there is such a file."""
    while not Path(data).exists():
        time.sleep(PAUSE_S)


def who(data: Any, ctx: Context) -> dict[str, Any]:
    """Tell of the job and the process it runs in."""
    return {**ctx.job._asdict(), "pid": os.getpid(), "parent": os.getppid(), "group": os.getpgrp()}


def counts(data: str, ctx: Context) -> int:
    """Count calls in Redis."""
    return int(ctx.redis.incr(data))


def stores(data: dict[str, Any], ctx: Context) -> list[dict[str, Any]]:
    """Store a document in MongoDB, and return all of its kind."""
    things = ctx.mongo["exesys_test"]
    things.insert_one({**data, "_id": str(uuid.uuid4())})
    return [{"kind": each["kind"], "n": each["n"]} for each in things.find({"kind": data["kind"]}).sort("n", 1)]


def advances(data: str, ctx: Context) -> str:
    """Report being half way, print it, and go on when there is such a file."""
    ctx.progress(0.5, "half way")
    print("half way")
    wait_for_file(data)
    return "all the way"


def progress_beyond(data: float, ctx: Context) -> None:
    """Report that progress."""
    ctx.progress(data)


def speaks_and_crashes(data: str) -> None:
    """Print a line, and after a moment end by that signal."""
    print("before the crash")
    time.sleep(0.4)
    os.kill(os.getpid(), signal.Signals[data])
    time.sleep(60)


def speaks_and_stays(data: float) -> None:
    """Print a line and stay for that many seconds."""
    print("before the end")
    time.sleep(data)


def speaks_and_fails(data: str) -> None:
    """Print a line and raise an error with that text."""
    print("before the failure")
    raise LookupError(data)


def speaks(data: int) -> None:
    """Print that many lines of 100 characters, some to stderr."""
    for number in range(data):
        print(f"{number:099d}", file=sys.stderr if number % 2 else sys.stdout)


def has_children(data: str) -> None:
    """Start a child and a grandchild that ignore SIGTERM, write their pids to a file, and ignore it too."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    code = (
        "import os, signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']) if sys.argv[1:] else None;"
        "print(os.getpid(), child.pid if child else '', flush=True); time.sleep(600)"
    )
    child = subprocess.Popen([sys.executable, "-c", code, "again"], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    pids = child.stdout.readline()
    Path(data).with_suffix(".new").write_text(f"{os.getpid()} {pids}")
    Path(data).with_suffix(".new").rename(data)
    time.sleep(600)


def exits(data: int) -> None:
    """End the process from within, past every exception handler."""
    os._exit(data)


def leaves(data: Any) -> None:
    """Raise SystemExit, as sys.exit() does."""
    sys.exit(data)


def returns_what_cannot_be_sent(data: Any) -> Any:
    """Return an open file."""
    return sys.__stdout__


def kinds(data: Any) -> dict[str, Any]:
    """Return a value of every kind that can be sent."""
    return {
        "datetime": dt.datetime(2026, 2, 3, 4, 5, 6, 789, dt.timezone(dt.timedelta(hours=2))),
        "naive": dt.datetime(2026, 2, 3, 4, 5, 6),
        "uuid": uuid.UUID(int=5),
        "decimal": decimal.Decimal("1.10"),
        "set": {1, "a", (2, 3)},
        "frozenset": frozenset({1, 2}),
        "bytes": b"\x00\xff",
        "was": data,
    }


def kinds_of(data: dict[str, Any]) -> dict[str, str]:
    """Name the type of each value."""
    return {name: type(value).__name__ for name, value in data.items()}


def submits(data: list[int], ctx: Context) -> list[str]:
    """Send a command of its own for each number, and return the job_ids."""
    handles = [ctx.submit("echo", number) for number in data]
    for handle in handles:
        handle.accepted(10)
    return [handle.job_id for handle in handles]


def adds(data: dict[str, Any], ctx: Context) -> str:
    """Add a good step and one with these options."""
    ctx.add_step("echo")
    return ctx.add_step(data.pop("cmd", "echo"), **data)


def adds_at_second(data: str, ctx: Context) -> int:
    """Add a step; the first attempt then raises an error, or dies, as asked."""
    ctx.add_step("echo", ctx.job.attempt)
    if ctx.job.attempt == 1:
        if data == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        raise RuntimeError(data)
    return ctx.job.attempt


def adds_when_ended(data: str, ctx: Context) -> str:
    """Make a file, and when told to end add a step, make another file, and return well."""
    try:
        Path(data).touch()
        time.sleep(60)
    except SystemExit:
        ctx.add_step("echo")
    Path(data).with_suffix(".left").touch()
    return "well"


def chains(data: int, ctx: Context) -> list[str]:
    """Add three steps, one after the other, that give the number, twice that, and three times that."""
    return [
        ctx.add_step("echo", data, from_="first", to="second"),
        ctx.add_step("times_two", "not this", from_="second", to="third"),
        ctx.add_step("times_three", from_="third"),
    ]


def times_two(data: int) -> int:
    """Return twice the number."""
    return 2 * data


def times_three(data: int) -> int:
    """Return three times the number."""
    return 3 * data


def wrapped(data: Any) -> dict[str, Any]:
    """Return the value as it is stored."""
    return {"EOJ": data}


def keeps(data: int) -> int:
    """Keep that many megabytes for good."""
    _KEPT.append(bytearray(b"x") * (data << 20))
    return len(_KEPT)


def multiplies(data: list[Any]) -> Any:
    """Return the first item as often as the second says."""
    return data[0] * data[1]


async def awaited(data: Any, ctx: Context) -> Any:
    """A coroutine with a context."""
    import asyncio

    await asyncio.sleep(0.01)
    ctx.log.info("awaited")
    return [data, ctx.job.cmd]


@exesys.function(name="renamed", timeout_s=0.3, retries=1, backoff_s=0.01)
def has_options(data: float) -> float:
    """Sleep that long, with options of its own."""
    time.sleep(data)
    return data


def _private(data: Any) -> Any:
    return data


def where() -> str:
    """Return the directory it runs in."""
    return os.getcwd()
