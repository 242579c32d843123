"""What the command line does with runners: start, list, show, stop, restart, read their logs."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from exesys import output, reach
from exesys.config import Config
from exesys.errors import NotFound, ResultTimeout, Unavailable
from exesys.process import wait_until
from exesys.runner import Name, check_type, parse_name, written
from exesys.usage import PROGRAM

if TYPE_CHECKING:
    from exesys.bus.client import Client
    from exesys.store.reader import Reader, RunnerRecord

TOLD_S = 1.0
POLL_S = 0.02
FOLLOW_S = 0.25
_UNITS = ((86_400, "d"), (3600, "h"), (60, "min"))


def start(config: Config, given: argparse.Namespace) -> int:
    with reach.connect(config) as client:
        data = reach.data(given.data)
        name = client.start_runner(given.target, data, type=given.type, uuid=given.uuid, grace_s=given.grace_s)
    record = _record(reach.reader(config), parse_name(name))
    output.show({"name": name, "state": record.state}) if given.json else print(name)
    if record.state.final:
        how = record.text("how").rstrip(".")
        output.note(f"it has ended before, and is not started again: {how}. See `{PROGRAM} runner restart {name}`.")
        return 1
    return 0


def list_(config: Config, given: argparse.Namespace) -> int:
    from exesys import runnerviews

    reader = reach.reader(config)
    type_ = None if given.type is None else check_type(given.type)
    shown = runnerviews.runners(reader.runners(type_, given.ended), _told(config), _now_ms())
    if given.state:
        shown = [each for each in shown if each["state"] == given.state]
    if given.json:
        output.show(shown)
        return 0
    rows = [
        [
            each["name"],
            each["target"],
            each["state"],
            each.get("host", ""),
            each.get("pid", ""),
            _lasting(each.get("uptime_s")),
            each["restarts"],
            _percent(each.get("cpu_percent")),
            _megabytes(each.get("memory_bytes")),
            _remark(each),
        ]
        for each in shown
    ]
    output.table(("name", "target", "state", "host", "pid", "up", "restarts", "cpu", "memory", "remark"), rows)
    if not rows:
        output.note(f"there is no such runner. Start one: {PROGRAM} runner start TARGET")
    return 0


def show(config: Config, given: argparse.Namespace) -> int:
    from exesys import runnerviews

    name = _name(given)
    record = _record(reach.reader(config), name)
    told = None if record.state.final else _told(config).get(str(name))
    shown = runnerviews.runner(record, told, _now_ms(), whole=True)
    output.show(shown) if given.json else output.show_whole(shown)
    return 0


def stop(config: Config, given: argparse.Namespace) -> int:
    """Load a stop, and wait for the end."""
    text = written(given.name, given.uuid)
    reader = reach.reader(config)
    with reach.connect(config) as client:
        news = client.stop_runner(text)
    ended = wait_until(lambda: not _going(reader, text), given.wait, POLL_S)
    if given.json:
        output.show({"name": text, "news": news, "ended": ended})
        return 0 if ended else 4
    if not ended:
        fix = f"It goes on stopping: {PROGRAM} runner show {text}" if ":" in text else f"See {PROGRAM} runner list"
        raise ResultTimeout(f"{text} has not ended within {given.wait:g} s.", fix=fix)
    if ":" not in text:
        print(f"{news} {'runner' if news == 1 else 'runners'} of type {text} stopped.")
        return 0
    how = _record(reader, parse_name(text)).text("how")
    print(f"{text} is stopped: {how}." if news else f"{text} had ended already: {how}.")
    return 0


def _going(reader: Reader, text: str) -> bool:
    """Tell whether the runner, or one of the type, has not ended."""
    if ":" not in text:
        return bool(reader.runners(text, 0))
    return not _record(reader, parse_name(text)).state.final


def restart(config: Config, given: argparse.Namespace) -> int:
    name = _name(given)
    with reach.connect(config) as client:
        client.restart_runner(*name)
    output.show({"name": str(name)}) if given.json else print(f"{name} starts again.")
    return 0


def logs(config: Config, given: argparse.Namespace) -> int:
    from exesys import runnerviews

    name = _name(given)
    reader = reach.reader(config)
    _record(reader, name)
    total, kept = reader.runner_log(name)
    text = runnerviews.log_text(kept, total)
    if given.json:
        output.show({"name": str(name), "log": text})
        return 0
    lines = text.splitlines(keepends=True)
    print("".join(lines[-given.lines :] if given.lines else []), end="", flush=True)
    if given.follow:
        for added in _added(reader, name, total):
            print(added, end="", flush=True)
    elif not text:
        output.note(f"the runner {name} has printed and logged nothing so far.")
    return 0


def _added(reader: Reader, name: Name, total: int) -> Iterator[str]:
    """Give what is added to a log, until the runner has ended."""
    from exesys import runnerviews

    while True:
        wait_until(lambda seen=total: reader.runner_log(name)[0] > seen, FOLLOW_S, FOLLOW_S)  # type: ignore[misc]  # no types for a lambda
        ended = _record(reader, name).state.final
        now, kept = reader.runner_log(name)
        if now > total:
            yield runnerviews.log_text(kept, now, total)
            total = now
        elif ended:
            return


def _name(given: argparse.Namespace) -> Name:
    """Read `type:uuid`, or the two given apart."""
    return parse_name(written(given.name, given.uuid))


def _record(reader: Reader, name: Name) -> RunnerRecord:
    record = reader.runner(name)
    if record is None:
        fix = f"It was never started, or its record has expired: {PROGRAM} runner list"
        raise NotFound(f"there is no runner {name}.", fix=fix)
    return record


def _told(config: Config) -> Mapping[str, Mapping[str, Any]]:
    """Return what the router knows of runners; nothing when it is not there."""
    from exesys import runnerviews

    client: Client
    try:
        with reach.connect(config) as client:
            return runnerviews.by_name(client.snapshot("runners", timeout=TOLD_S)["runners"])
    except Unavailable:
        return {}


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _lasting(seconds: float | None) -> str:
    if seconds is None:
        return ""
    for size, unit in _UNITS:
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} %"


def _megabytes(value: int | None) -> str:
    return f"{value / (1 << 20):.0f} MB" if value else ""


def _remark(shown: Mapping[str, Any]) -> str:
    """Say in a few words what stands out."""
    if "waits" in shown:
        after = f" after {shown['error']['type']}: {shown['error']['message']}" if "error" in shown else ""
        return f"{shown['waits']}{after}"
    if "progress" in shown:
        return f"{shown['progress']['fraction']:.0%} {shown['progress']['text']}".rstrip()
    if "error" in shown and shown["state"] in ("starting", "failed"):
        return f"{shown['error']['type']}: {shown['error']['message']}"
    return str(shown.get("how", ""))
