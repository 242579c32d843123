"""What people are shown of timers: plain dicts, the same over REST and on the command line."""

from __future__ import annotations

from itertools import islice
from typing import Any

from exesys import schedule
from exesys.errors import Conflict, NotFound, StateError
from exesys.schedule import Timer
from exesys.store.timetable import TimerRecord
from exesys.ticker import Progress

NEXT = 5


def shown(record: TimerRecord, now_ms: int) -> dict[str, Any]:
    """Describe a timer: its definition, its last and next ticks (in ms since 1970), and how late they were."""
    try:
        timer, progress = read(record)
    except StateError as error:
        return {"name": record.name, "state": "spoilt", "reason": error.message}
    since_ms = now_ms if progress.ahead(timer, now_ms) else max(now_ms, progress.last_ms or 0)
    upcoming = [] if timer.paused else list(islice(timer.after(since_ms), NEXT))
    ran = [done.late_ms for done in progress.recent if done.what == "run"]
    return {
        **schedule.shown(timer, record.kept),
        "state": "paused" if timer.paused else "ticking" if upcoming else "ended",
        "last": [done._asdict() for done in progress.recent],
        "next": [{"tick_ms": tick, "due_ms": tick + timer.delay_ms(tick)} for tick in upcoming],
        "late_ms": max(ran, default=None),
        **{count: getattr(progress, count) for count in ("ran", "skipped", "missed", "refused")},
        "reason": progress.reason,
    }


def read(record: TimerRecord) -> tuple[Timer, Progress]:
    """Read a record. Raises StateError when somebody spoilt it."""
    if record.trouble:
        raise schedule.spoilt(record.name, record.trouble)
    return schedule.load(record.name, record.kept), Progress.load(record.name, record.progress)


def check_there(record: TimerRecord) -> TimerRecord:
    """Return a record that is there. Raises NotFound."""
    if not record.there:
        raise NotFound(f"there is no timer {record.name}.", fix="`bin/exesys timer list` shows those there are.")
    return record


def check_removable(record: TimerRecord) -> None:
    """Raise Conflict for a timer that the ini declares: it would come back."""
    if record.kept.get("origin") == schedule.INI.encode():
        raise Conflict(
            f"the timer {record.name} stands in the ini, as [timer:{record.name}].",
            field="name",
            fix="Take it out there and restart, or pause it.",
        )
