"""What people are shown of runners: plain dicts, the same over REST and on the command line.

The record in the store says what a runner is and how it fares; what only the
router knows (its process, what it tells of itself, what it waits for) comes
with a SNAPSHOT.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from exesys import codec
from exesys.store.reader import RunnerRecord

_TIMES = (("accepted_ms", "born"), ("began_ms", "began"), ("ended_ms", "ended"))
_TOLD = ("pid", "waits", "progress", "cpu_s", "memory_bytes")


def by_name(told: Iterable[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Index what a SNAPSHOT tells of runners."""
    return {each["name"]: each for each in told}


def runners(
    records: Sequence[RunnerRecord], told: Mapping[str, Mapping[str, Any]], now_ms: int
) -> list[dict[str, Any]]:
    """Describe runners."""
    return [runner(record, told.get(str(record.name)), now_ms) for record in records]


def runner(record: RunnerRecord, told: Mapping[str, Any] | None, now_ms: int, whole: bool = False) -> dict[str, Any]:
    """Describe a runner; `whole` adds the traceback of its last error."""
    name, state, fields = record
    shown: dict[str, Any] = {
        "name": str(name),
        "type": name.type,
        "uuid": name.uuid,
        "target": record.text("target"),
        "state": str(state),
        "epoch": record.whole("epoch") or 0,
        "restarts": record.whole("restarts") or 0,
    }
    if fields.get("how"):
        shown["how"] = record.text("how")
    if fields.get("host"):
        shown["host"] = record.text("host")
    if fields.get("job"):
        shown["started_by"] = record.text("job")
    for key, field in _TIMES:
        if field in fields:
            shown[key] = record.whole(field)
    if fields.get("error"):
        shown["error"] = codec.unpack(fields["error"])
        if not whole:
            shown["error"].pop("traceback", None)
    if told is not None and not state.final and told["epoch"] == shown["epoch"]:
        shown |= {key: told[key] for key in _TOLD if key in told}
    if "began" in fields and "pid" in shown:
        shown["uptime_s"] = round(max(now_ms - int(fields["began"]), 0) / 1000, 1)
        if shown["uptime_s"]:
            shown["cpu_percent"] = round(100 * shown["cpu_s"] / shown["uptime_s"], 2)
    return shown


def log_text(kept: bytes, total: int, after: int | None = None) -> str:
    """Return what is kept of a log as text, or what follows the first `after` bytes of all that was written.

    Where the beginning was cut off, it starts with the first whole line.
    """
    start = total - len(kept)
    if after is not None and after > start:
        return kept[after - start :].decode("utf-8", "replace")
    if start > 0:
        kept = kept.partition(b"\n")[2]
    return kept.decode("utf-8", "replace")
