"""The settings of timers: sections [timer:NAME]. Pure."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from exesys import codec, schedule
from exesys.errors import BadCommand, ConfigError
from exesys.rules import Rule, key_of, optional
from exesys.sections import Kind

_PACKED = "base64:"


@dataclass(frozen=True)
class Data:
    """What a timer's commands get, as msgpack. Its text fits into supervisord's configuration, as JSON's does not."""

    packed: bytes

    def __str__(self) -> str:
        return _PACKED + base64.b64encode(self.packed).decode()


def _data(text: str) -> Data:
    if text.startswith(_PACKED):
        try:
            return Data(base64.b64decode(text.removeprefix(_PACKED), validate=True))
        except binascii.Error as error:
            raise ValueError(text) from error
    try:
        return Data(codec.pack(json.loads(text, parse_constant=_no_number)))
    except (RecursionError, BadCommand) as error:
        raise ValueError(text) from error


def _no_number(text: str) -> Any:
    raise ValueError(text)  # NaN and its kin are no JSON


def _number(text: str) -> int | float:
    return float(text) if re.search(r"[.eE]", text) else int(text)


_TEXT = Rule(str, "text")
_NUMBER = Rule(_number, "a number")
_SECONDS = Rule(_number, "seconds, as a number such as 86400")
_JSON = Rule(_data, "JSON")


@dataclass(frozen=True)
class TimerOf:
    """One section [timer:NAME]; what is None is not set."""

    name: str
    cmd: str = key_of("", Rule(str, "the name of a function"))
    data: Data | None = optional(_JSON)  # noqa: RUF009  # it makes a field, as the others do
    every_s: float | None = optional(_SECONDS)
    cron: str | None = optional(_TEXT)
    zone: str | None = optional(_TEXT)
    misfire: str | None = optional(_TEXT)
    overlap: str | None = optional(_TEXT)
    grace_s: float | None = optional(_SECONDS)
    jitter_s: float | None = optional(_SECONDS)
    start: str | None = optional(_TEXT)
    end: str | None = optional(_TEXT)
    queue: str | None = optional(_TEXT)
    priority: int | None = optional(_NUMBER)
    timeout_s: float | None = optional(_SECONDS)
    retries: int | None = optional(_NUMBER)
    backoff_s: float | None = optional(_SECONDS)
    key: str | None = optional(_TEXT)
    key_limit: int | None = optional(_NUMBER)
    result_ttl_s: float | None = optional(_SECONDS)
    notify: str | None = optional(_TEXT)

    def fields(self) -> dict[str, Any]:
        """Return what it says, as TUNE carries it."""
        given = {key.name: getattr(self, key.name) for key in fields(self)[1:]}
        told = {key: value for key, value in given.items() if value is not None and key != "data"}
        return {**told, "data": self.data.packed if self.data else codec.pack(None), "origin": schedule.INI}


TIMER = Kind(
    word="timer",
    what="a timer",
    make=TimerOf,
    name=re.compile(rf"[A-Za-z0-9_.-]{{1,{schedule.MOST_NAME_CHARS}}}"),
    allowed=f"1 to {schedule.MOST_NAME_CHARS} of the characters A-Z a-z 0-9 _ . -",
    needed=("cmd",),
)


def check_timers(timers: tuple[TimerOf, ...], where: str, lines: Mapping[str, int]) -> None:
    """Raise ConfigError for the first that makes no sense, with the line of its section in `lines`."""
    for timer in timers:
        try:
            schedule.check("put", timer.name, timer.fields())
        except BadCommand as error:
            line = f"{where}, line {lines[timer.name]}" if timer.name in lines else "the environment"
            raise ConfigError(
                f"{line}: [timer:{timer.name}]: {error.message}", field=error.field, fix=error.fix
            ) from error
