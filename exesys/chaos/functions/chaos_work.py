"""What runs under the blows: functions that mark each run in a file, so that the account knows of it.

A line is `mark attempt token moment`; the token is of this run alone, the
moment, in seconds of the monotonic clock, stands only behind a run that came
to its end. It is one write to a file opened for appending, so it is whole
whatever happens next.
"""

from __future__ import annotations

import os
import time
from typing import Any

from exesys.chaos.plan import mark
from exesys.context import Context, RunnerContext

RUNS = "runs"
LIVES = "lives"
BEAT_S = 0.1


def work(data: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Take `seconds`, and return twice the `number` and the run's token; the first `fails` attempts fail."""
    token = _token()
    _note(ctx, token)
    time.sleep(data["seconds"])
    if ctx.job.attempt <= data.get("fails", 0):
        raise ValueError("as planned")
    _note(ctx, token, time.monotonic())
    return {"number": 2 * data["number"], "token": token}


def part(data: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Give one more than the feeders' numbers together, the run's token, and those of the runs it was fed by.

    A root has `number` itself; with `parts` it adds so many steps that go where it goes.
    """
    token = _token()
    _note(ctx, token)
    inputs = [data] if "number" in data else list(data.values())
    seconds = inputs[0]["seconds"]
    time.sleep(seconds)
    for number in range(1, data.get("parts", 0) + 1):
        ctx.add_step("chaos_work.part", {"number": number, "seconds": seconds})
    given = [each["token"] for each in inputs if "token" in each]
    _note(ctx, token, time.monotonic())
    return {"number": sum(each["number"] for each in inputs) + 1, "seconds": seconds, "token": token, "given": given}


def beat(data: Any, ctx: RunnerContext) -> None:
    """Run on: write the epoch, the pid and the monotonic time into the runner's file, several times a second."""
    path = os.path.join(os.environ["EXESYS_HOME"], LIVES, ctx.runner.uuid)
    with open(path, "a", buffering=1) as file:
        while True:
            file.write(f"{ctx.runner.epoch} {os.getpid()} {time.monotonic()}\n")
            if ctx.wait_stop(BEAT_S):
                return


def _token() -> str:
    return f"{os.getpid()}.{time.monotonic_ns()}"


def _note(ctx: Context, token: str, ended_s: float | None = None) -> None:
    to = ctx.job.to if isinstance(ctx.job.to, str) else ",".join(ctx.job.to)
    behind = "" if ended_s is None else f" {ended_s:.6f}"
    line = f"{mark(ctx.job.from_, to, ctx.job.job_id)} {ctx.job.attempt} {token}{behind}\n"
    file = os.open(os.path.join(os.environ["EXESYS_HOME"], RUNS), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, line.encode())
    os.close(file)
