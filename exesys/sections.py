"""Sections of any name, [KIND:NAME], in the ini or in the environment alone. Pure.

A kind's keys are the fields of a dataclass whose first field is `name`; a key
that is a word of Python has `_` behind it there. In the environment a key is
EXESYS_KIND_NAME_KEY, and EXESYS_KINDS lists which of those declared there
are, so that a running system keeps its own.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from exesys.errors import ConfigError
from exesys.rules import line_of, unknown, value_of

Given = Mapping[str, Mapping[str, str]]  # section -> key -> text


@dataclass(frozen=True)
class Kind:
    """One kind of section. `make` is its dataclass; `needed` are keys without a default."""

    word: str
    what: str  # in words, with its article: "an application server"
    make: type[Any]
    name: re.Pattern[str]
    allowed: str  # which names, in words
    needed: tuple[str, ...] = ()

    @property
    def keys(self) -> tuple[dataclasses.Field[Any], ...]:
        return dataclasses.fields(self.make)[1:]

    @property
    def words(self) -> list[str]:
        """The keys as they are written."""
        return [key.name.rstrip("_") for key in self.keys]

    @property
    def noun(self) -> str:
        return self.what.partition(" ")[2]

    @property
    def listed(self) -> str:
        """The variable that lists the names."""
        return f"EXESYS_{self.word.upper()}S"

    def variable(self, name: str, key: str) -> str:
        """The variable that sets a key."""
        return f"EXESYS_{self.word.upper()}_{name}_{key.rstrip('_').upper()}"

    def is_secret(self, variable: str) -> bool:
        """Tell whether a variable is one of this kind's that may hold a password."""
        word = _split(self, variable)[1]
        return any(key.metadata["secret"] for key in self.keys if key.name.rstrip("_") == word)


def check_section(kind: Kind, section: str, where: str) -> None:
    """Raise ConfigError for a section whose name is none of its kind."""
    name = section.removeprefix(f"{kind.word}:")
    if name == section or not kind.name.fullmatch(name):
        raise ConfigError(
            f"{where}: the section [{section}] names no {kind.noun}.",
            fix=f"Write [{kind.word}:NAME]; the name is {kind.allowed}.",
        )


def declared(
    kind: Kind, text: str, source: str, given: Given, environ: Mapping[str, str], plain: Collection[str] = ()
) -> list[Any]:
    """Build what the ini or the environment declares, by name; `plain` are the variables of other sections.

    Raises ConfigError.
    """
    in_ini = {name.partition(":")[2]: keys for name, keys in given.items() if name.startswith(f"{kind.word}:")}
    in_environ = _variables(kind, environ, list(in_ini), plain)
    names = sorted({*in_ini, *in_environ})
    if kind.listed in environ:
        wanted = [part.strip() for part in environ[kind.listed].split(",") if part.strip()]
        for name in wanted:
            if name not in names:
                raise unknown(f"the environment variable {kind.listed}: the {kind.noun} {name!r}", name, names)
        names = sorted(set(wanted))
    found = []
    for name in names:
        values: dict[str, Any] = {}
        for key, word in zip(kind.keys, kind.words, strict=True):
            if word in (variables := in_environ.get(name, {})):
                variable = variables[word]
                values[key.name] = value_of(key, environ[variable], f"the environment variable {variable}")
            elif word in (keys := in_ini.get(name, {})):
                line = line_of(text, f"{kind.word}:{name}", word)
                values[key.name] = value_of(key, keys[word], f"{source}, line {line}: [{kind.word}:{name}] {word}")
        for needed in kind.needed:
            if needed not in values:
                line = line_of(text, f"{kind.word}:{name}", None)
                where = f"{source}, line {line}" if name in in_ini else "the environment"
                raise _lacks(kind, name, needed.rstrip("_"), where)
        found.append(kind.make(name, **values))
    return found


def _lacks(kind: Kind, name: str, word: str, where: str) -> ConfigError:
    key = next(key for key in kind.keys if key.name.rstrip("_") == word)
    allowed = key.metadata["rule"].allowed
    fix = f"Set `{word}` in [{kind.word}:{name}], or {kind.variable(name, word)}, to {allowed}."
    return ConfigError(f"{where}: the {kind.noun} {name} has no `{word}`.", field=word, fix=fix)


def variables(kind: Kind, items: Sequence[Any]) -> dict[str, Any]:
    """Return the environment that declares these, values not yet as text."""
    found: dict[str, Any] = {kind.listed: ",".join(item.name for item in items)}
    for item in items:
        for key in kind.keys:
            found[kind.variable(item.name, key.name)] = getattr(item, key.name)
    return found


def key_of(kind: Kind, variable: str) -> str:
    """Turn EXESYS_KIND_NAME_KEY into "[kind:NAME] key", EXESYS_KINDS into words; "" when it is neither."""
    if variable == kind.listed:
        return f"the list of {kind.noun}s"
    name, word = _split(kind, variable)
    return f"[{kind.word}:{name}] {word}" if name else ""


def _split(kind: Kind, variable: str) -> tuple[str, str]:
    """Return the name and the key that a variable is of; empty when it is none of this kind."""
    prefix = f"EXESYS_{kind.word.upper()}_"
    rest = variable.removeprefix(prefix)
    if rest == variable:
        return "", ""
    # The longest key first: `timeout_s` ends like a key `s` would.
    for word in sorted(kind.words, key=len, reverse=True):
        name = rest.removesuffix(f"_{word.upper()}")
        if name != rest and kind.name.fullmatch(name):
            return name, word
    return "", ""


def _variables(
    kind: Kind, environ: Mapping[str, str], in_ini: list[str], plain: Collection[str]
) -> dict[str, dict[str, str]]:
    """Find the variables of a kind: by name and key. A declared name may stand in capitals."""
    capitals = {name.upper(): name for name in in_ini}
    found: dict[str, dict[str, str]] = {}
    for variable in sorted(environ):
        if not variable.startswith(f"EXESYS_{kind.word.upper()}_") or variable in plain:
            continue
        written, word = _split(kind, variable)
        if not written:
            key = variable.rpartition("_")[2].lower()
            raise unknown(f"the environment variable {variable}: the key `{key}`", key, kind.words)
        name = written if written in in_ini else capitals.get(written, written)
        # Written as it is declared it comes before capitals.
        if word not in found.setdefault(name, {}) or written == name:
            found[name][word] = variable
    return found
