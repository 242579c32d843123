"""The form of the ini: its text as sections with keys, and what is wrong with one that cannot be read. Pure."""

from __future__ import annotations

import configparser
from collections.abc import Mapping, Sequence

from exesys import addresses, sections
from exesys.errors import ConfigError
from exesys.rules import line_of, unknown


def read(
    text: str, source: str, known: Mapping[str, Sequence[str]], kinds: Sequence[sections.Kind]
) -> dict[str, dict[str, str]]:
    """Return the text of each key, by section.

    `known` has the keys of the sections that there may be, `kinds` are the
    sections of any name; `source` is what an error calls the file. Raises
    ConfigError.
    """
    kind_of = {kind.word: kind for kind in kinds}
    parser = configparser.ConfigParser(interpolation=None, inline_comment_prefixes=("#", ";"), default_section="\0")
    try:
        parser.read_string(text, source)
    except configparser.Error as error:
        raise _unreadable(error, text, source) from error
    for name in parser.sections():
        kind = kind_of.get(name.partition(":")[0])
        if name not in known and kind is None:
            line = line_of(text, name, None)
            named = [f"{word}:NAME" for word in kind_of]
            raise unknown(f"{source}, line {line}: the section [{name}]", name, [*known, *named])
        keys = known.get(name, ())
        if name not in known and kind is not None:
            sections.check_section(kind, name, f"{source}, line {line_of(text, name, None)}")
            keys = kind.words
        for key in parser[name]:
            if key.startswith("["):
                raise _open_bracket(key, text, source)
            if key not in keys:
                line = line_of(text, name, key)
                raise unknown(f"{source}, line {line}: the key `{key}` of [{name}]", key, list(keys))
    return {name: dict(parser[name]) for name in parser.sections()}


def _open_bracket(key: str, text: str, source: str) -> ConfigError:
    """Make the error for a section's head that lacks its end, which configparser takes for a key."""
    numbered = enumerate(text.splitlines(), 1)
    line = next((number for number, each in numbered if each.strip().lower().startswith(key)), 0)
    shown = text.splitlines()[line - 1].strip() if line else key
    return ConfigError(f"{source}, line {line}: {shown!r:.100} opens a section and has no `]`.", fix="Write [NAME].")


def _unreadable(error: configparser.Error, text: str, source: str) -> ConfigError:
    """Say where and why the ini cannot be read, and what to do."""
    form = "See etc/exesys.ini of ExeSys for the form."
    if isinstance(error, configparser.DuplicateSectionError):
        first = line_of(text, error.section, None)
        message = f"{source}, line {error.lineno}: the section [{error.section}] stands in line {first} already."
        return ConfigError(message, fix=f"Merge them: one [{error.section}], with the keys of both.")
    if isinstance(error, configparser.DuplicateOptionError):
        first = line_of(text, error.section, error.option)
        message = (
            f"{source}, line {error.lineno}: `{error.option}` of [{error.section}] stands in line {first} already."
        )
        return ConfigError(message, field=error.option, fix="Merge them: keep one of the two lines.")
    if isinstance(error, configparser.MissingSectionHeaderError):
        shown = addresses.masked_wrong(error.line.strip())
        message = f"{source}, line {error.lineno}: {shown!r:.60} stands before any [section]."
        return ConfigError(message, fix=f"Put it below the section it belongs to. {form}")
    if isinstance(error, configparser.ParsingError) and error.errors:
        number = error.errors[0][0]
        line = text.splitlines()[number - 1].strip() if number <= len(text.splitlines()) else ""
        shown = addresses.masked_wrong(line)
        message = f"{source}, line {number}: {shown!r:.60} is no `key = value`."
        return ConfigError(message, fix=f"Write a key, = and a value, or # before what is a comment. {form}")
    return ConfigError(f"{source} cannot be read: {' '.join(str(error).split())}.", fix=form)
