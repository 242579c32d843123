"""Timers: what one is, checked, and when it ticks. Pure.

A timer's definition stands in Redis as one hash of text (`kept`), whether it
came from a section [timer:NAME], over REST or from the command line. A tick is
a moment, in milliseconds since 1970. `cron` is what Debian's cron understands
(by cronsim), also on the days when the clocks change.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import re
import zoneinfo
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cronsim import CronSim, CronSimError

from exesys import codec
from exesys.command import OPTIONS as COMMAND_OPTIONS
from exesys.command import Command, build, check_name, check_options, due_ms
from exesys.errors import BadCommand, StateError, nearest

MISFIRES = ("skip", "once", "all")
OVERLAPS = ("allow", "skip")
MOST_MISFIRED = 100  # of `all`
LEAST_EVERY_S = 0.1
MOST_S = 366 * 86_400
GRACE_S = 30.0
MOMENTS_MS = range(0, 7_258_118_400_000)  # 1970 to 2199: far enough, and within what calendars can reckon with
MOST_CRON_CHARS = 256
MOST_NAME_CHARS = 64  # the tick stands behind it in the job_id
# The fields of a cron line: the least and the most, as numbers and by name.
_FIELDS: tuple[tuple[int, int, tuple[str, ...]], ...] = (
    (0, 59, ()),
    (0, 23, ()),
    (1, 31, ()),
    (1, 12, ("JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC")),
    (0, 7, ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")),
)
_RANGE = re.compile(r"(\w+)-(\w+)(/\d+)?", re.ASCII)
# What other programs know as one word, in five fields.
_WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_CLOSE = 0.85  # how much alike a zone must be to be meant
PAUSED = "paused"
INI = "ini"
_TICKS_SEEN = 2000
_DENSE_MS = 2 * 86_400_000
# Those of a command that a timer has no use for.
OPTIONS = tuple(name for name in COMMAND_OPTIONS if name not in ("delay_s", "at", "traceparent"))
_OWN = ("cmd", "data", "every_s", "cron", "zone", "misfire", "overlap", "grace_s", "jitter_s", "start", "end")
FIELDS = (*_OWN, *OPTIONS)


@dataclass(frozen=True)
class Timer:
    """One timer. Times in milliseconds; `options` are those of its commands, `data` is msgpack."""

    name: str
    cmd: str
    data: bytes = b"\xc0"
    options: Mapping[str, Any] = field(default_factory=dict)
    every_ms: int = 0  # 0: by cron
    cron: str = ""
    zone: str = "UTC"
    misfire: str = MISFIRES[0]
    overlap: str = OVERLAPS[0]
    grace_ms: int = int(GRACE_S * 1000)
    jitter_ms: int = 0
    start_ms: int | None = None
    end_ms: int | None = None
    paused: bool = False
    origin: str = ""

    # --- when -----------------------------------------------------------------

    def after(self, moment_ms: int) -> Iterator[int]:
        """Give the ticks later than a moment, in order."""
        if self.start_ms is not None and moment_ms < self.start_ms:
            moment_ms = self.start_ms - 1
        for tick in self._every(moment_ms) if self.every_ms else self._cron(moment_ms):
            if self.end_ms is not None and tick > self.end_ms:
                return
            yield tick

    def next(self, moment_ms: int) -> int | None:
        """Return the first tick later than a moment; None when there is none."""
        return next(self.after(moment_ms), None)

    def between(self, after_ms: int, until_ms: int, most: int) -> list[int]:
        """Return the newest ticks later than `after_ms`, up to `until_ms`; at most `most`."""
        if self.every_ms:
            after_ms = max(after_ms, until_ms - self.every_ms * (most + 1))
        found: list[int] = []
        for seen, tick in enumerate(self.after(after_ms)):
            if tick > until_ms:
                return found[-most:] if most else []
            if seen == _TICKS_SEEN and after_ms < until_ms - _DENSE_MS:
                return self.between(until_ms - _DENSE_MS, until_ms, most)
            found.append(tick)
        return found[-most:] if most else []

    def nearest(self, moment_ms: int) -> int | None:
        """Return the tick nearest to a moment, of a timer with `every_s`."""
        return self.next(moment_ms - self.every_ms // 2 - 1)

    @property
    def wild(self) -> bool:
        """Whether it goes by real time, as Debian's cron has it for a `*` in minute or hour, and `every_s` does."""
        minute, hour = (*self.cron.split(), "*", "*")[:2]
        return minute.startswith("*") or hour.startswith("*")

    def delay_ms(self, tick_ms: int) -> int:
        """Return by how much the jitter puts off a tick: the same for everyone who asks."""
        if not self.jitter_ms:
            return 0
        return int.from_bytes(_digest(f"{self.name} {tick_ms}"), "big") % (self.jitter_ms + 1)

    def _every(self, moment_ms: int) -> Iterator[int]:
        # Without a start, timers of one period do not all tick at the same moment.
        spread = int.from_bytes(_digest(self.name), "big") % self.every_ms
        phase = spread if self.start_ms is None else self.start_ms
        tick = moment_ms + self.every_ms - (moment_ms - phase) % self.every_ms
        while True:
            yield tick
            tick += self.every_ms

    def _cron(self, moment_ms: int) -> Iterator[int]:
        zone = dt.UTC if self.zone == "UTC" else zoneinfo.ZoneInfo(self.zone)
        for moment in CronSim(self.cron, dt.datetime.fromtimestamp(moment_ms / 1000, zone)):
            tick = int(moment.timestamp() * 1000)
            if tick > moment_ms:  # with the fold of a day on which clocks go back it may come near
                yield tick

    @property
    def times(self) -> str:
        """What says when it ticks, in one text."""
        return f"{self.every_ms} {self.cron} {self.zone} {self.start_ms} {self.end_ms} {self.paused}"

    # --- what -----------------------------------------------------------------

    def job_id(self, tick_ms: int, fold: int) -> str:
        """Name the job of a tick. `fold` counts how often the clock was set back: the same moment comes again."""
        moment = dt.datetime.fromtimestamp(tick_ms // 1000, dt.UTC)
        again = f".{fold}" if fold else ""
        return f"{self.name}.{moment:%Y%m%dT%H%M%S}.{tick_ms % 1000:03}Z{again}"

    def command(self, job_id: str) -> Command:
        """Make the command of a tick."""
        return build("timer", "end_job", self.cmd, self.data, job_id, self.options)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=8).digest()


# --- checking -------------------------------------------------------------------


def check(what: str, name: str, given: Mapping[Any, Any]) -> dict[str, str | int | float | bytes]:
    """Return what Redis keeps of a timer. `data` is msgpack already. Raises BadCommand naming what is allowed."""
    if len(name) > MOST_NAME_CHARS:
        text = f"the name of the timer has {len(name)} characters."
        raise BadCommand(text, field="name", fix=f"Use at most {MOST_NAME_CHARS}.")
    if not name.strip("."):
        raise BadCommand(f"the timer's name is {name!r}.", field="name", fix="Use more than dots: it stands in URLs.")
    if what == "merge":
        return _pause(given)
    for key in given:
        if key not in FIELDS and key != "origin":
            shown = str(key)[:60].encode(errors="backslashreplace").decode()
            close = nearest(shown, list(FIELDS))
            fix = f"Did you mean `{close}`?" if close else f"Known: {', '.join(FIELDS)}."
            raise BadCommand(f"the key {shown!r} of a timer is unknown.", field=shown, fix=fix)
    checked = _checked(given)
    _made(name, checked)
    kept: dict[str, str | int | float | bytes] = {key: checked[key] for key in _OWN if key in checked}
    if checked["options"]:
        kept["options"] = json.dumps(checked["options"], sort_keys=True)
    if given.get("origin") == INI:
        kept["origin"] = INI
    return kept


def _checked(given: Mapping[Any, Any]) -> dict[str, Any]:
    """Return what is known of a timer, each value checked. `options` are those of its commands."""
    if given.get("cmd") is None:
        raise BadCommand("a timer needs `cmd`.", field="cmd", fix="Name the function to run.")
    check_name(given["cmd"], "cmd")
    if ("every_s" in given) == ("cron" in given):
        both = "both `every_s` and `cron`" if "cron" in given else "neither `every_s` nor `cron`"
        raise BadCommand(f"the timer has {both}.", field="every_s", fix="Give one of them.")
    if "every_s" in given and given.get("zone", "UTC") != "UTC":
        text = "the timer has `every_s`, and a `zone`, which only `cron` goes by."
        raise BadCommand(text, field="zone", fix="Leave `zone` out, or give `cron`.")
    data = given.get("data", b"\xc0")
    if not isinstance(data, bytes):
        raise BadCommand("`data` must be msgpack.", field="data", fix="Pack it, as the data of a command.")
    checked = {"cmd": given["cmd"], "data": data}
    for key in _OWN[2:]:
        if key in given:
            checked[key] = _CHECKS[key](key, given[key])
    return checked | {"options": check_options({key: given[key] for key in given if key in OPTIONS})}


def _made(name: str, checked: Mapping[str, Any]) -> Timer:
    """Make the timer of what was checked."""
    known = {key: checked[key] for key in ("cron", "zone", "misfire", "overlap") if key in checked}
    known |= {f"{key}_ms": due_ms(checked[key]) for key in ("start", "end") if key in checked}
    for key in ("every", "grace", "jitter"):
        if f"{key}_s" in checked:
            known[f"{key}_ms"] = round(checked[f"{key}_s"] * 1000)
    timer = Timer(name, checked["cmd"], checked["data"], checked["options"], **known)
    if timer.start_ms is not None and timer.end_ms is not None and timer.end_ms < timer.start_ms:
        text = f"the timer ends ({checked['end']}) before it starts ({checked['start']})."
        raise BadCommand(text, field="end", fix="Give an `end` that is later than `start`.")
    timer.command(timer.job_id(0, 0))
    return timer


def _pause(given: Mapping[Any, Any]) -> dict[str, str | int | float | bytes]:
    if set(given) != {PAUSED} or not isinstance(given[PAUSED], bool):
        raise BadCommand("of a timer only `paused` can be merged.", field=PAUSED, fix="Give true or false.")
    return {PAUSED: 1 if given[PAUSED] else ""}


def _seconds(low: float) -> Callable[[str, Any], float]:
    def check(key: str, value: Any) -> float:
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and low <= value <= MOST_S
        if not good:
            form = ", as a number without quotes" if isinstance(value, str) else ""
            fix = f"Give {low:g} to {MOST_S:,} seconds{form}."
            raise BadCommand(f"`{key}` is {value!r:.40}.", field=key, fix=fix)
        return round(float(value), 3)

    return check


def _cron(key: str, value: Any) -> str:
    five = "five fields: minute, hour, day of the month, month, day of the week"
    if not isinstance(value, str):
        text = f"`cron` is {value!r:.80}, which is no text."
        raise BadCommand(text, field=key, fix=f"Give text of {five}, such as '30 2 * * MON'.")
    if len(value) > MOST_CRON_CHARS:
        raise BadCommand(f"`cron` has {len(value):,} characters.", field=key, fix=f"Use at most {MOST_CRON_CHARS}.")
    words = value.split()
    if len(words) != 5:
        text = f"`cron` is {value!r:.80}, which has {len(words)} field{'' if len(words) == 1 else 's'}."
        same = _WORDS.get(value.strip().lower())
        example = f"{words[0]} is '{same}'." if same else f"{five.partition(': ')[2]}, such as '30 2 * * MON'."
        raise BadCommand(text, field=key, fix=f"Give five: {example}")
    if backward := next(filter(None, map(_backward, words, _FIELDS)), None):
        wrong, right = backward
        raise BadCommand(f"`cron` is {value!r:.80}: the range {wrong} goes backward.", field=key, fix=f"Write {right}.")
    try:
        next(CronSim(value, dt.datetime(2026, 1, 1, tzinfo=dt.UTC)))
    except CronSimError as error:
        fix = "Minutes are 0-59, hours 0-23, days 1-31 and such as their month has (30 February never comes), "
        fix += "months 1-12 or JAN-DEC, days of the week 0-7 or SUN-SAT."
        raise BadCommand(f"`cron` is {value!r:.80}: {str(error).lower()}.", field=key, fix=fix) from None
    except StopIteration:
        text = f"`cron` is {value!r:.80}, which never matches a day."
        raise BadCommand(text, field=key, fix="Give a day that its month has.") from None
    return " ".join(words)


def _backward(word: str, of: tuple[int, int, tuple[str, ...]]) -> tuple[str, str] | None:
    """Return the first range of a field whose end comes before its begin, and what says the same."""
    least, most, named = of
    for part in word.split(","):
        match = _RANGE.fullmatch(part)
        if not match:
            continue
        first, last, step = match[1].upper(), match[2].upper(), match[3] or ""
        begin, end = (_place(text, least, most, named) for text in (first, last))
        if begin is not None and end is not None and begin > end:
            high, low = (named[-1], named[0]) if first in named else (str(most), str(least))
            return part, f"{first}-{high}{step},{low}-{last}{step}"
    return None


def _place(text: str, least: int, most: int, named: tuple[str, ...]) -> int | None:
    """Return a value of a cron field as a number, None when it is none."""
    if text in named:
        return named.index(text) + least
    return int(text) if text.isdigit() and len(text) < 4 and least <= int(text) <= most else None


def _zone(key: str, value: Any) -> str:
    try:
        if isinstance(value, str) and value:
            zoneinfo.ZoneInfo(value)
            return value
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        pass  # it is none: tell the nearest
    close = _zone_like(str(value)[:60])
    fix = f"Did you mean `{close}`?" if close else "Zones are named by place, such as Europe/Rome or America/New_York."
    raise BadCommand(f"the time zone {value!r:.60} is unknown.", field=key, fix=fix)


def _zone_like(text: str) -> str:
    """Name the zone that is meant: written in other letters, by its place alone, or almost; "" when none is."""
    wanted = text.strip().lower().replace(" ", "_")
    zones = {name.lower(): name for name in sorted(zoneinfo.available_timezones())}
    if wanted in zones:
        return zones[wanted]
    placed = [name for lower, name in zones.items() if "/" in lower and lower.rpartition("/")[2] == wanted]
    if placed or "/" not in wanted:  # an abbreviation such as CEST is like many, and means none of them
        return placed[0] if len(placed) == 1 else ""
    return zones.get(nearest(wanted, list(zones), _CLOSE), "")


def _one_of(allowed: tuple[str, ...]) -> Callable[[str, Any], str]:
    def check(key: str, value: Any) -> str:
        if value not in allowed:
            raise BadCommand(f"`{key}` is {value!r:.40}.", field=key, fix=f"Give one of {', '.join(allowed)}.")
        return str(value)

    return check


def _moment(key: str, value: Any) -> str:
    try:
        if due_ms(value) not in MOMENTS_MS:
            text = f"`{key}` is {value!r:.60}."
            raise BadCommand(text, field=key, fix="Give a moment from 1970 to the end of 2199.")
    except BadCommand as error:
        error.field, error.message = key, error.message.replace("`at`", f"`{key}`")
        raise
    return str(value)


_CHECKS: dict[str, Callable[[str, Any], str | float]] = {
    "every_s": _seconds(LEAST_EVERY_S),
    "cron": _cron,
    "zone": _zone,
    "misfire": _one_of(MISFIRES),
    "overlap": _one_of(OVERLAPS),
    "grace_s": _seconds(0),
    "jitter_s": _seconds(0),
    "start": _moment,
    "end": _moment,
}


def load(name: str, kept: Mapping[str, bytes]) -> Timer:
    """Read what Redis keeps, and check it again: it may have been written by hand. Raises StateError."""
    try:
        text = {key: value.decode() for key, value in kept.items() if key != "data"}
        given: dict[str, Any] = {key: text[key] for key in _OWN if key in text}
        given |= {key: float(text[key]) for key in given if key.endswith("_s")}
        options = json.loads(text.get("options", "{}"))
        data = kept.get("data", b"\xc0")
        codec.unpack(data)
        timer = _made(name, _checked({**check_options({**options}), **given, "data": data}))
    except (ValueError, TypeError, OverflowError, RecursionError, BadCommand) as error:
        raise spoilt(name, error) from error
    return replace(timer, paused=bool(text.get(PAUSED)), origin=text.get("origin", ""))


def as_kept(name: str, given: Mapping[Any, Any]) -> dict[str, bytes]:
    """Return what Redis gives back of a timer that was put. Raises BadCommand."""
    checked = check("put", name, given).items()
    return {key: value if isinstance(value, bytes) else str(value).encode() for key, value in checked}


def same(given: Mapping[Any, Any], kept: Mapping[str, bytes]) -> bool:
    """Tell whether what Redis keeps is what was given, but for a pause."""
    return as_kept("t", given) == {key: value for key, value in kept.items() if key != PAUSED}


def spoilt(name: str, why: object) -> StateError:
    """Make the error for a timer whose keys in Redis make no sense."""
    return StateError(
        f"the record of the timer {name} in Redis cannot be read: {why!s:.160}",
        fix="Remove the timer, and add it again.",
    )


def shown(timer: Timer, kept: Mapping[str, bytes]) -> dict[str, Any]:
    """Return a timer's definition as REST tells it."""
    told: dict[str, Any] = {"name": timer.name, "cmd": timer.cmd, "data": codec.unpack(timer.data)}
    for key in _OWN[2:]:
        if key in kept:
            text = kept[key].decode()
            told[key] = float(text) if key.endswith("_s") else text
    told |= {"zone": timer.zone, "misfire": timer.misfire, "overlap": timer.overlap, "grace_s": timer.grace_ms / 1000}
    return told | dict(timer.options) | {"paused": timer.paused, "origin": timer.origin}
