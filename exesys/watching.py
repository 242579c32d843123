"""Following what happens, on the command line: jobs, the log of one, and those of all programs."""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from exesys import changes, home, output, reach
from exesys.config import Config
from exesys.errors import ResultTimeout
from exesys.states import State

if TYPE_CHECKING:
    from exesys.bus.listener import Events
    from exesys.store.reader import Reader, Step

LOGS_S = 0.2  # so often it is looked for lines that were added
LOOK_S = 2.0  # so often it is looked after a job of which nothing is heard
_STYLES = {"data_available": "green", "error": "red", "processing": "cyan", "standby": "dim", "start": ""}


def follow(config: Config, given: argparse.Namespace) -> int:
    """Print a line for each change, or an object of JSON; of one job until it has ended."""
    with reach.connect(config) as client:
        events = client.events(job_id=given.job_id, cmd=given.cmd, state=given.state)
        with events:
            if given.job_id:
                reader = reach.reader(config, given.job_id)
                reach.steps_of(reader, given.job_id)
                for event in _until_ended(events, reader, given.job_id):
                    _show(event, given.json)
                return 0
            if not given.json:
                output.note("what happens from now on; Ctrl-C ends it.")
            for event in events:
                _show(event, given.json)
    return 0


def _until_ended(events: Events, reader: Reader, job_id: str) -> Iterator[dict[str, Any]]:
    """Give the events of a job. What is missed of its end is found by looking now and then."""
    while True:
        try:
            event = events.get(LOOK_S)
        except ResultTimeout:
            if not reader.under_way(job_id):
                return
            continue
        yield event
        over = event["event"] == "gap" or (event["event"] == "step" and State(event["status"]).final)
        if over and not reader.under_way(job_id):
            return


def _show(event: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(event, ensure_ascii=False), flush=True)
        return
    if event["event"] == "gap":
        output.note("some was not heard.")
        return
    at = dt.datetime.fromtimestamp(event["at_ms"] / 1000).strftime("%H:%M:%S.%f")[:-3]
    if event["event"] == "progress":
        share = "" if event["fraction"] is None else f"{event['fraction']:.0%} "
        if share or event["text"]:
            output.line(at, (f"{share}{event['text']}", "blue"), event["job_id"], event["from"])
        return
    again = f"attempt {event['attempt']}" if event["attempt"] > 1 else ""
    state = event["state"]
    output.line(at, (f"{state:<14}", _STYLES[state]), event["job_id"], event["from"], event["cmd"], again)


def follow_logs(config: Config, given: argparse.Namespace) -> int:
    """Print the last lines of all programs' logs, and go on with what is added until Ctrl-C."""
    say = output.Columns(given.json)
    with contextlib.closing(changes.Tails(config.log)) as tails:
        for path in sorted(config.log.glob("*.log")):
            for line in home.tail(path, given.lines):
                say(path.stem, line)
        waits = threading.Event()
        while not waits.wait(LOGS_S):
            for program, line in tails.read():
                say(program, line)
    return 0


def follow_log(config: Config, reader: Reader, job_id: str) -> int:
    """Print what a job has printed and logged, and go on with what is added until it has ended."""
    told: dict[tuple[str, int], str] = {}
    last: tuple[str, int] | None = None

    def show() -> None:
        nonlocal last
        [steps] = reader.steps([job_id])
        for step, attempts in zip(steps, reader.logs(steps), strict=True):
            for attempt, text in attempts.items():
                new = _added(told.get((step.ref, attempt), ""), text)
                if new and last not in (None, (step.ref, attempt)):
                    print(_heading(step, attempt, len(steps)))
                if new:
                    last = step.ref, attempt
                    told[last] = text
                    print(new, end="", flush=True)

    with reach.connect(config) as client, client.events(job_id=job_id) as events:
        show()
        if reader.under_way(job_id):
            for event in _until_ended(events, reader, job_id):
                if event["event"] != "progress" or event["log"]:
                    show()
        show()
    return 0


def _added(before: str, now: str) -> str:
    """Return what a log has more than before. One that was cut at its front is shown whole."""
    return now.removeprefix(before)


def _heading(step: Step, attempt: int, steps: int) -> str:
    parts = [f"from {step.from_}"] * (steps > 1) + [f"attempt {attempt}"] * (attempt > 1 or steps == 1)
    return f"--- {', '.join(parts)} ---"
