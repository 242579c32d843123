"""Functions that leave a mark of each run in a file, so that a test can see which ran again.

A line is `job_id attempt token pid started`: the token is of this run alone,
`started` is the machine's monotonic clock in seconds. A line is one write to
a file opened for appending, so it is whole whatever happens next.
"""

from __future__ import annotations

import os
import time
from typing import Any

from exesys.context import Context


def marked(data: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """Mark the run in the file `runs`, take `seconds`, and return twice the `number` and the run's token."""
    token = _mark(data["runs"], ctx)
    time.sleep(data["seconds"])
    return {"value": 2 * data["number"], "token": token}


def node(data: dict[str, Any], ctx: Context) -> dict[str, Any]:
    """A step of a workflow: mark the run, take `seconds`, and return one more than its feeders' numbers together.

    A root has `number` itself. `given` are the tokens of the runs it was fed
    by; a root with `parts` adds so many steps that go where it goes.
    """
    inputs = [data] if "runs" in data else list(data.values())
    runs, seconds = inputs[0]["runs"], inputs[0]["seconds"]
    to = ctx.job.to if isinstance(ctx.job.to, str) else ",".join(ctx.job.to)
    token = _mark(runs, ctx, f"{ctx.job.from_}>{to}:{ctx.job.job_id}")
    time.sleep(seconds)
    for part in range(data.get("parts", 0)):
        ctx.add_step("node", {"runs": runs, "seconds": seconds, "number": part})
    number = sum(each["number"] for each in inputs) + 1
    given = [each["token"] for each in inputs if "token" in each]
    return {"runs": runs, "seconds": seconds, "number": number, "token": token, "given": given}


def held_up(data: dict[str, Any], ctx: Context) -> int:
    """Mark the run in the file `runs`; the first attempt takes `seconds`, the others none. Return the attempt."""
    _mark(data["runs"], ctx)
    if ctx.job.attempt == 1:
        time.sleep(data["seconds"])
    return ctx.job.attempt


def slower(data: dict[str, Any], ctx: Context) -> int:
    """Mark the run in the file `runs`; attempt n takes the n-th of `seconds`. Return the attempt."""
    _mark(data["runs"], ctx)
    time.sleep(data["seconds"][ctx.job.attempt - 1])
    return ctx.job.attempt


def tally(data: int) -> int:
    """Add the number to the file `tally` of the home, and return it."""
    tallied = os.open(os.environ["EXESYS_HOME"] + "/tally", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(tallied, data.to_bytes(4, "big"))
    os.close(tallied)
    return data


def _mark(path: str, ctx: Context, name: str = "") -> str:
    now = time.monotonic()
    token = f"{os.getpid()}.{time.monotonic_ns()}"
    marks = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(marks, f"{name or ctx.job.job_id} {ctx.job.attempt} {token} {os.getpid()} {now:.6f}\n".encode())
    os.close(marks)
    return token
