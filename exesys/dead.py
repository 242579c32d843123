"""Jobs that failed, many at once: listed, run again or removed in bounded steps."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from exesys.errors import NotFound, StateError
from exesys.store.reader import Reader, Step

PAGE = 500
MOST_CHANGED = 1000  # jobs in one go
MOST_SCANNED = 20_000


class Swept(NamedTuple):
    """What one go did, and the mark where the next one begins ("": all are done)."""

    jobs: int
    steps: int
    skipped: int  # jobs that could not be changed: they are under way again, or gone
    following: str


def fits(step: Step | None, cmd: str | None) -> bool:
    """Tell whether a step is there, and is of this function, or of any."""
    return step is not None and (cmd is None or step.text("cmd") == cmd)


def listed(reader: Reader, limit: int, before: str, cmd: str | None) -> tuple[list[tuple[int, Step]], str]:
    """Return up to `limit` steps that fit, the newest first, and where the next page begins ("": nowhere).

    Of those that do not fit it looks at a bounded number, so a page may have fewer than there are.
    """
    found: list[tuple[int, Step]] = []
    scanned = 0
    while True:
        # No more than are wanted, so that the mark stands right behind the last one given.
        size = min(PAGE, limit - len(found))
        rows, before = reader.dead(size, before)
        found += [(ms, step) for ms, step in rows if step is not None and fits(step, cmd)]
        scanned += size
        if not before or len(found) >= limit or scanned >= MOST_SCANNED:
            return found, before


def sweep(
    reader: Reader, change: Callable[[str], int], until_ms: int, cmd: str | None = None, passed: int = 0
) -> Swept:
    """Change jobs that failed at `until_ms` or before, behind the first `passed` of these; a bounded number.

    `change` changes one, and returns of how many steps that was. What is
    changed leaves the list, so only what stays there is passed over. What fails
    again meanwhile is newer than `until_ms`, so going on has an end.
    """
    jobs = steps = skipped = scanned = 0
    tried: dict[str, bool] = {}  # job -> whether it was changed
    while jobs < MOST_CHANGED and scanned < MOST_SCANNED:
        rows, following = reader.dead(PAGE, f"{until_ms}-{passed}")
        for _, step in rows:
            if step is None or not fits(step, cmd):
                passed += 1
                continue
            if step.job_id not in tried:
                done = _changed(change, step.job_id)
                tried[step.job_id] = done > 0
                jobs, steps, skipped = jobs + (done > 0), steps + done, skipped + (done == 0)
            passed += not tried[step.job_id]
        scanned += len(rows)
        if not following:
            return Swept(jobs, steps, skipped, "")
    return Swept(jobs, steps, skipped, f"{until_ms}-{passed}")


def cmds(reader: Reader) -> set[str]:
    """Return in which functions steps have failed, as they were called; a bounded number is looked at."""
    found: set[str] = set()
    before = ""
    for _ in range(0, MOST_SCANNED, PAGE):
        rows, before = reader.dead(PAGE, before)
        found.update(step.text("cmd") for _, step in rows if step is not None)
        if not before:
            break
    return found


def _changed(change: Callable[[str], int], job_id: str) -> int:
    try:
        return change(job_id)
    except (NotFound, StateError):
        return 0
