"""What can be set of a queue: by sections [queue:NAME], and while the system runs. Pure.

What is set is kept in Redis as text, and read by the scripts that take and
hand out jobs (store/queue.lua).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from exesys.command import NAME
from exesys.errors import BadCommand, nearest
from exesys.rules import Rule, key_of, optional, whole
from exesys.sections import Kind

MOST = 1_000_000_000
MOST_AT_ONCE = 1_000_000
MOST_OF_A_KEY = 10_000
MOST_PER_TIME = 10_000
_UNITS_MS = {"s": 1000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}
_RATE = re.compile(r"([0-9]{1,9})\s*/\s*([smhd])")
_RATES = f"a number, 1 to {MOST_PER_TIME:,}, per s, m, h or d, such as 100/m"


def parse_rate(text: str) -> tuple[int, int]:
    """Return how many may begin in how many milliseconds: `100/m` is (100, 60000). Raises ValueError."""
    match = _RATE.fullmatch(text.strip())
    if not match or not 1 <= int(match[1]) <= MOST_PER_TIME:
        raise ValueError(text)
    return int(match[1]), _UNITS_MS[match[2]]


def _names(text: str) -> tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(",") if part.strip())
    if not names or not all(NAME.fullmatch(name) for name in names):
        raise ValueError(text)
    return names


NAMES = Rule(_names, "names of queues, with ',' between")


def _whole(most: int) -> Rule:
    def parse(text: str) -> int:
        if not re.fullmatch(r"[0-9]{1,12}", text) or not 1 <= int(text) <= most:
            raise ValueError(text)
        return int(text)

    return Rule(parse, f"a whole number, 1 to {most:,}")


def _rate(text: str) -> str:
    number, ms = parse_rate(text)
    return f"{number}/{next(unit for unit, unit_ms in _UNITS_MS.items() if unit_ms == ms)}"


@dataclass(frozen=True)
class Queue:
    """One section [queue:NAME]; what is None is not limited, or as it is for all."""

    name: str
    depth: int | None = optional(_whole(MOST))
    rate: str | None = optional(Rule(_rate, _RATES))
    concurrency: int | None = optional(_whole(MOST_AT_ONCE))
    key_limit: int | None = optional(_whole(MOST_OF_A_KEY))


@dataclass(frozen=True)
class WorkerOf:
    """One section [worker:NAME]: a further worker, for some queues; what it does not say is as [worker] says."""

    name: str
    queues: tuple[str, ...] = key_of((), NAMES)
    slots: int = key_of(2, whole(1, 1024))

    @property
    def program(self) -> str:
        """What supervisord calls it."""
        return f"worker-{self.name}"


WORKER = Kind(
    word="worker",
    what="a worker",
    make=WorkerOf,
    name=re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}"),
    allowed="a letter, then letters, digits, _ and -, at most 32 in all",
    needed=("queues",),
)

QUEUE = Kind(
    word="queue",
    what="a queue",
    make=Queue,
    name=NAME,
    allowed="1 to 128 of the characters A-Z a-z 0-9 _ . -",
)
PAUSED = "paused"
LIMITS = tuple(key.name for key in fields(Queue)[1:])
SETTINGS = (*LIMITS, PAUSED)


def check(what: str, name: str, given: Mapping[Any, Any]) -> dict[str, str | int]:
    """Return what Redis keeps of settings, "" for one to be taken away. Raises BadCommand naming what is allowed."""
    kept: dict[str, str | int] = {}
    for key, value in given.items():
        if key not in SETTINGS:
            shown = str(key)[:60].encode(errors="backslashreplace").decode()
            close = nearest(shown, list(SETTINGS))
            fix = f"Did you mean `{close}`?" if close else f"Known: {', '.join(SETTINGS)}."
            raise BadCommand(f"the setting {shown!r} of a queue is unknown.", field=shown, fix=fix)
        if key == PAUSED:
            kept[PAUSED] = _paused(value)
            continue
        checked = _checked(key, value)
        kept[key] = "" if checked is None else checked
        if key == "rate":
            number, ms = parse_rate(checked) if checked else ("", "")
            kept["rate_n"], kept["rate_ms"] = number, ms
    return kept


def _checked(key: str, value: Any) -> Any:
    rule: Rule = next(each for each in fields(Queue) if each.name == key).metadata["rule"]
    try:
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():
            value = int(value)  # to JSON, 3.0 is 3
        if isinstance(value, bool) or not isinstance(value, str if key == "rate" else int):
            raise ValueError(value)
        return rule.parse(str(value))
    except ValueError:
        raise BadCommand(f"`{key}` is {value!r:.40}.", field=key, fix=f"Allowed: {rule.allowed}.") from None


def _paused(value: Any) -> str | int:
    if value is None or value is False:
        return ""
    if value is not True:
        raise BadCommand(f"`paused` is {value!r:.40}.", field=PAUSED, fix="Allowed: true or false.")
    return 1


def of_section(queue: Queue) -> dict[str, str | int]:
    """Return what Redis keeps of a section of the ini."""
    given = {key.name: getattr(queue, key.name) for key in fields(Queue)[1:]}
    return {key: value for key, value in check("put", queue.name, given).items() if value != ""} | {"origin": "ini"}


def shown(kept: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings as REST tells them, from what Redis keeps."""
    numbers = {key: int(kept[key]) for key in ("depth", "concurrency", "key_limit") if kept.get(key)}
    return {
        "paused": bool(kept.get(PAUSED)),
        "depth": numbers.get("depth"),
        "rate": kept.get("rate") or None,
        "concurrency": numbers.get("concurrency"),
        "key_limit": numbers.get("key_limit"),
    }
