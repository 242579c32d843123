"""What people are shown of timers: plain dicts, the same over REST and on the command line."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from itertools import islice
from typing import Any

from exesys import schedule
from exesys.errors import BadCommand, Conflict, NotFound, StateError
from exesys.schedule import Timer
from exesys.store.timetable import TimerRecord
from exesys.ticker import read

NEXT = 5
SPOILT = "spoilt"


def shown(record: TimerRecord, now_ms: int) -> dict[str, Any]:
    """Describe a timer: its definition, its last and next ticks (in ms since 1970), and how late they were."""
    try:
        timer, progress = read(record)
    except StateError as error:
        return {"name": record.name, "state": SPOILT, "reason": error.message, "fix": error.fix}
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


def check_there(record: TimerRecord) -> TimerRecord:
    """Return a record that is there. Raises NotFound."""
    if not record.there:
        raise NotFound(f"there is no timer {record.name}.", fix="`bin/exesys timer list` shows those there are.")
    return record


def check_ticks(there: TimerRecord, fields: Mapping[str, Any], now_ms: int) -> None:
    """Raise BadCommand for a timer that is to be added and would never tick, or makes no sense.

    One of that name that is there already may have ticked: to add the same again is well.
    """
    timer = declared(there.name, fields)
    if not there.there and (why := spent(timer, now_ms)):
        fix = "Give an `end` behind a tick to come, or none."
        raise BadCommand(f"the timer {there.name} would never tick: {why}.", field="end", fix=fix)


def declared(name: str, fields: Mapping[str, Any]) -> Timer:
    """Return the timer that these fields mean, as TUNE carries them. Raises BadCommand."""
    return schedule.load(name, schedule.as_kept(name, fields))


def spent(timer: Timer, now_ms: int) -> str:
    """Say why a timer will not tick any more; "" when it will."""
    if timer.next(now_ms) is not None:
        return ""
    if timer.end_ms is None:
        return "no moment fits it"
    end = dt.datetime.fromtimestamp(timer.end_ms / 1000, dt.UTC).isoformat().replace("+00:00", "Z")
    return f"its `end`, {end}, is past" if timer.end_ms <= now_ms else f"there is no tick before its `end`, {end}"


def check_removable(record: TimerRecord) -> None:
    """Raise Conflict for a timer that the ini declares: it would come back."""
    if record.kept.get("origin") == schedule.INI.encode():
        raise Conflict(
            f"the timer {record.name} stands in the ini, as [timer:{record.name}].",
            field="name",
            fix="Take it out there and restart, or pause it.",
        )
