"""What the command line does with timers: add, list, show, remove, pause, resume, run now."""

from __future__ import annotations

import argparse
import time
import uuid
from typing import TYPE_CHECKING, Any

from exesys import codec, command, output, reach
from exesys.config import Config
from exesys.errors import StateError
from exesys.schedule import FIELDS, PAUSED
from exesys.shards import pinned
from exesys.usage import PROGRAM

if TYPE_CHECKING:
    from exesys.store.timetable import TimerRecord, Timetable


def add(config: Config, given: argparse.Namespace) -> int:
    from exesys import timerviews

    fields = {key: getattr(given, key) for key in FIELDS if key != "data" and getattr(given, key, None) is not None}
    fields["data"] = codec.pack(reach.data(given.data))
    name = command.check_name(given.name, "name")
    with reach.connect(config) as client:
        [there] = _table(config).read([name])
        timerviews.check_ticks(there, fields, time.time_ns() // 1_000_000)
        new = client.tune("timer", "add", name, fields)
    told = _told(config, given.name)
    if given.json:
        output.show(told)
    else:
        print(f"{given.name}: next at {_moment(told)}" if new else f"{given.name}: it is there already, and the same")
    return 0


def list_(config: Config, given: argparse.Namespace) -> int:
    from exesys import timerviews

    table, now_ms = _table(config), time.time_ns() // 1_000_000
    shown = [timerviews.shown(record, now_ms) for record in table.read(table.names()) if record.there]
    if given.json:
        output.show({"timers": shown})
        return 0
    if not shown:
        output.note(f"there is no timer. See `{PROGRAM} timer add --help`.")
        return 0
    rows = [
        [
            each["name"],
            each["state"],
            _when(each),
            each.get("cmd", ""),
            _moment(each),
            _last(each),
            "" if each.get("late_ms") is None else f"{each['late_ms']} ms",
        ]
        for each in shown
    ]
    output.table(("timer", "state", "when", "cmd", "next", "last", "late"), rows)
    return 0


def show(config: Config, given: argparse.Namespace) -> int:
    from exesys import timerviews

    told = _told(config, given.name)
    if given.json:
        output.show(told)
        return 0
    if told["state"] == timerviews.SPOILT:
        raise StateError(told["reason"], fix=told["fix"])
    print(f"{told['name']}: {told['cmd']} {_when(told)}, {told['state']}")
    print(f"  misfire {told['misfire']}, overlap {told['overlap']}, grace {told['grace_s']:g} s, zone {told['zone']}")
    counts = ", ".join(f"{told[count]} {count}" for count in ("ran", "skipped", "missed", "refused"))
    print(f"  {counts}" + (f"; {told['reason']}" if told["reason"] else ""))
    for done in told["last"]:
        job = f", job {done['job_id']}" if done["what"] == "run" else ""
        print(f"  {output.when(done['tick_ms'], told['zone'])}: {done['what']}, {done['late_ms']} ms late{job}")
    for tick in told["next"]:
        print(f"  {output.when(tick['due_ms'], told['zone'])}: to come")
    return 0


def change(config: Config, given: argparse.Namespace) -> int:
    """Pause, resume or remove a timer."""
    from exesys import timerviews

    name = command.check_name(given.name, "name")
    with reach.connect(config) as client:
        if given.what == "remove":
            timerviews.check_removable(_record(_table(config), name))
            client.tune("timer", "remove", name, {})
        else:
            client.tune("timer", "merge", name, {PAUSED: given.what == "pause"})
    if given.what == "remove":
        output.show({"name": name, "removed": True}) if given.json else print(f"{name}: removed")
        return 0
    told = _told(config, name)
    output.show(told) if given.json else print(f"{name}: {told['state']}")
    return 0


def run(config: Config, given: argparse.Namespace) -> int:
    """Run a timer's command now."""
    from exesys import ticker

    timer, _ = ticker.read(_record(_table(config), given.name))
    built = timer.command(pinned(f"{timer.name}.now-{uuid.uuid4().hex[:12]}", config.bus.shard))
    with reach.connect(config) as client:
        [handle] = client.send(built, notify=False)
        handle.accepted(reach.CONNECT_S)
    output.show({"name": timer.name, "job_id": built.job_id}) if given.json else print(built.job_id)
    return 0


def _told(config: Config, name: str) -> dict[str, Any]:
    from exesys import timerviews

    return timerviews.shown(_record(_table(config), name), time.time_ns() // 1_000_000)


def _record(table: Timetable, name: str) -> TimerRecord:
    from exesys import timerviews

    [record] = table.read([command.check_name(name, "name")])
    return timerviews.check_there(record)


def _table(config: Config) -> Timetable:
    from exesys.store.timetable import Timetable

    return Timetable(config.redis_url, config.redis.prefix)


def _when(told: dict[str, Any]) -> str:
    if "cron" in told:
        return f"{told['cron']} {told['zone']}"
    return f"every {told['every_s']:g} s" if "every_s" in told else ""


def _moment(told: dict[str, Any]) -> str:
    return output.when(told["next"][0]["due_ms"], told["zone"]) if told.get("next") else ""


def _last(told: dict[str, Any]) -> str:
    if not told.get("last"):
        return ""
    done = told["last"][0]
    return f"{output.when(done['tick_ms'], told['zone'])} {done['what']}"
