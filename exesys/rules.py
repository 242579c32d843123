"""How the text of a setting becomes a value, and how one that will not do is told. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from exesys.addresses import masked_wrong
from exesys.errors import ConfigError, nearest

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}


@dataclass(frozen=True)
class Rule:
    """How the text of one key becomes a value. `parse` raises ValueError."""

    parse: Callable[[str], Any]
    allowed: str


def whole(low: int, high: int) -> Rule:
    """A whole number from `low` to `high`."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return Rule(parse, f"a whole number, {low} to {high}")


def seconds(low: float, high: float) -> Rule:
    """Seconds from `low` to `high`."""

    def parse(text: str) -> float:
        value = float(text)
        if not low <= value <= high:
            raise ValueError
        return value

    return Rule(parse, f"seconds, {low:g} to {high:g}")


def size(low: int, high: int) -> Rule:
    """Bytes from `low` to `high`, with or without a unit."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"(\d+)\s*([kmg]?)b?", text.strip().lower())
        if not match:
            raise ValueError
        value = int(match[1]) * _UNITS[match[2]]
        if not low <= value <= high:
            raise ValueError
        return value

    return Rule(parse, f"bytes, {low} to {high}; k, m and g are understood")


def yes_or_no() -> Rule:
    """Yes or no."""
    words = {"yes": True, "no": False}

    def parse(text: str) -> bool:
        if text.lower() not in words:
            raise ValueError
        return words[text.lower()]

    return Rule(parse, "yes or no")


def matching(pattern: str, allowed: str) -> Rule:
    """Text that matches `pattern` as a whole."""

    def parse(text: str) -> str:
        if not re.fullmatch(pattern, text):
            raise ValueError
        return text

    return Rule(parse, allowed)


def key_of(default: Any, rule: Rule, secret: bool = False) -> Any:
    """A key of a section: a field with its default and its rule. What is `secret` may hold a password."""
    return field(default=default, repr=not secret, metadata={"rule": rule, "secret": secret})


def optional(rule: Rule) -> Any:
    """A key that may be empty: then it is None, and nothing is set."""
    return key_of(None, Rule(lambda text: rule.parse(text) if text else None, f"{rule.allowed}; or empty"))


def value_of(key: dataclasses.Field[Any], text: str, where: str) -> Any:
    """Return the value of a key. Raises ConfigError, saying `where` the text stands and what is allowed."""
    rule: Rule = key.metadata["rule"]
    try:
        return rule.parse(text.strip())
    except ValueError:
        shown = masked_wrong(text) if key.metadata["secret"] else text
        raise ConfigError(f"{where} is {shown!r}.", field=key.name, fix=f"Allowed: {rule.allowed}.") from None


def unknown(what: str, word: str, known: list[str]) -> ConfigError:
    """Make the error for a word that is none of those known, with the nearest."""
    close = nearest(word, known)
    return ConfigError(
        f"{what} is unknown.", fix=f"Did you mean `{close}`?" if close else f"Known: {', '.join(known)}."
    )


def line_of(text: str, section: str, key: str | None) -> int:
    """Find the line a key (or a section's head) stands on; configparser forgets it."""
    inside = False
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if stripped.startswith("["):
            inside = stripped.startswith(f"[{section}]")
            if inside and key is None:
                return number
        elif inside and key and re.match(rf"{re.escape(key)}\s*[=:]", stripped, re.IGNORECASE):
            return number
    return 0
