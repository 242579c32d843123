"""What the command line does with queues: list them, set their limits, pause and resume them."""

from __future__ import annotations

import argparse
import time
from typing import Any

from exesys import command, output, queues, reach
from exesys.config import Config
from exesys.errors import nearest
from exesys.usage import PROGRAM


def list_(config: Config, given: argparse.Namespace) -> int:
    shown = _listed(config)
    if given.json:
        output.show({"queues": shown})
        return 0
    rows = [
        [
            each["name"] + (" (paused)" if each["paused"] else ""),
            each["waiting"],
            "" if each["oldest_s"] is None else f"{each['oldest_s']:.1f} s",
            "-" if each["running"] is None else each["running"],
            each["workers"],
            _limits(each),
        ]
        for each in shown
    ]
    output.table(("queue", "waiting", "oldest", "running", "workers", "limits"), rows)
    for each in shown:
        if each["waiting"] and not each["workers"]:
            output.note(f"no worker serves the queue {each['name']}: see [worker:NAME] in docs/operations.md.")
    return 0


def set_(config: Config, given: argparse.Namespace) -> int:
    """Change the limits of a queue; `none` takes one away."""
    fields: dict[str, Any] = {}
    for key in queues.SETTINGS:
        text = getattr(given, key, None)
        if text is not None:
            fields[key] = None if text == "none" else int(text) if text.isascii() and text.isdigit() else text
    if not fields:
        output.note(f"nothing to set. See `{PROGRAM} queue set --help`.")
        return 2
    return _merge(config, given, fields)


def pause(config: Config, given: argparse.Namespace) -> int:
    return _merge(config, given, {queues.PAUSED: given.what == "pause"})


def _merge(config: Config, given: argparse.Namespace, fields: dict[str, Any]) -> int:
    name = command.check_name(given.name, "queue")
    with reach.connect(config) as client:
        client.tune("queue", "merge", name, fields)
    [shown] = _listed(config, name)
    if given.json:
        output.show(shown)
    else:
        print(f"{name}: {'paused' if shown['paused'] else 'open'}, {_limits(shown) or 'no limits'}")
    if shown["paused"] and not shown["workers"] and not shown["waiting"]:
        close = nearest(name, [each["name"] for each in _listed(config) if each["name"] != name])
        meant = f" Did you mean `{close}`?" if close else ""
        resume = f"`{PROGRAM} queue resume {name}` takes it off the list again."
        output.note(f"no worker serves the queue {name}, and nothing waits in it.{meant} {resume}")
    return 0


def _listed(config: Config, only: str = "") -> list[dict[str, Any]]:
    from exesys import queueviews

    with reach.connect(config) as client:
        workers = client.snapshot("workers")["workers"]
    return queueviews.listed(config, reach.reader(config), workers, time.time_ns() // 1_000_000, only)


def _limits(queue: dict[str, Any]) -> str:
    words = {"depth": "at most {} wait", "rate": "{}", "concurrency": "{} at once", "key_limit": "{} of a key"}
    return ", ".join(text.format(queue[key]) for key, text in words.items() if queue[key] is not None)
