"""The reference in Markdown, made from the code: settings, the command line, errors.

Each function takes what the code declares and returns a page. What a setting
means stands in docs/operations.md alone, whose tables the tests compare with
the code, so its text is given to `settings`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import inspect
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from exesys import config
from exesys.errors import ExesysError
from exesys.sections import Kind

WIDTH = 92  # of the usage lines, so that they fit beside the navigation
_OF_ERRORS = """\
An error of REST is `{"error": {"code", "message", "field", "fix"}}`: the code is stable and meant for programs,
`message` says what happened, `field` names the part of the input at fault, and `fix` says what to do next. In Python it
is an exception with the same four, and `exesys.errors` has the classes. What a function raised, or how its process
ended, is the type of a `JobError`: see [errors, retries, crashes](functions.md#errors-retries-crashes). The bus has
[codes of its own](protocol.md#the-clients-conversation)."""
_ROW = re.compile(r"^\| `(\w+)` \|(.*?)\|(.*)\|$", re.MULTILINE)


class Meaning(NamedTuple):
    """What docs/operations.md says of a key: its default as it is written in the ini, and what it is for."""

    default: str
    text: str


# --- settings ---------------------------------------------------------------


def settings(operations: str) -> str:
    """Return the page of all settings. Raises KeyError for a key that `operations` does not explain."""
    told = meanings(operations)
    parts = [
        "# Settings",
        "Every key of `etc/exesys.ini`, and the variable of the environment that sets it as well, and wins. They are"
        " read once, at the start: [running ExeSys](operations.md#settings) tells how.",
    ]
    for name, section in config.SECTIONS.items():
        parts.append(f"## [{name}]")
        rows = [_setting(key, f"EXESYS_{name}_{key.name}".upper(), told[name]) for key in dataclasses.fields(section)]
        parts.append(table(("key", "default", "allowed", "what"), rows))
    parts += [_many(kind, told[f"{kind.word}:NAME"]) for kind in config.KINDS.values()]
    return page(parts)


def _many(kind: Kind, told: Mapping[str, Meaning]) -> str:
    """Describe the sections of any name of one kind."""
    rows = [_setting(key, kind.variable("<NAME>", key.name), told) for key in kind.keys]
    head = f"Any number of sections, each declares {kind.what}. NAME is {kind.allowed}. In the environment, "
    listed = f"`{kind.listed}` names those of the declared ones that there are, with `,` between."
    return page([f"## [{kind.word}:NAME]", head + listed, table(("key", "default", "allowed", "what"), rows)])


def _setting(key: dataclasses.Field[Any], variable: str, told: Mapping[str, Meaning]) -> tuple[str, ...]:
    word = key.name.rstrip("_")
    default, text = told[word]
    return f"`{word}`<br>`{variable}`", default if default.strip("` ") else "empty", key.metadata["rule"].allowed, text


def meanings(operations: str) -> dict[str, dict[str, Meaning]]:
    """Read the tables of settings: section -> key -> what is said of it."""
    body = operations.partition("\n## Settings\n")[2].partition("\n## ")[0]
    parts = re.split(r"^### \[([\w:]+)\]$", body, flags=re.MULTILINE)
    return {
        section: {key: Meaning(default.strip(), text.strip()) for key, default, text in _ROW.findall(rows)}
        for section, rows in zip(parts[1::2], parts[2::2], strict=True)
    }


# --- the command line ---------------------------------------------------------


def command_line(parser: argparse.ArgumentParser, elsewhere: Mapping[str, argparse.ArgumentParser]) -> str:
    """Return the page of all commands with their options; of those that are `elsewhere` as the parsers there say."""
    parts = [
        "# The command line",
        f"{parser.description} Each command takes `--help`, and `--json` for programs. DATA is JSON or plain text,"
        " `@FILE`, or `-` for standard input. Exit codes: [running ExeSys](operations.md#start-stop-look).",
    ]
    for listed in commands(parser):
        child = elsewhere.get(listed.prog, listed)
        parts.append(f"{'##' if child.prog.count(' ') == 1 else '###'} {child.prog.partition('/')[2]}")
        parts.append(listed.description or "")
        if not subcommands(child):
            given = [_argument(action) for action in arguments(child)]
            parts += [f"```text\n{_usage(child)}\n```", table(("argument", "what"), given)]
            parts.append(_example(child) if given else "")
    return page(parts)


def commands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """Yield each command and what is below it, in the order in which help lists them."""
    for child in subcommands(parser).values():
        yield child
        yield from commands(child)


def subcommands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """Return the commands directly below."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return dict(below[0].choices) if below else {}


def arguments(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """Return the arguments of a command, but for those that each has."""
    shared = ("help", "json")
    return [action for action in parser._actions if action.dest not in shared]


def _usage(parser: argparse.ArgumentParser) -> str:
    parser.formatter_class = functools.partial(argparse.RawDescriptionHelpFormatter, width=WIDTH)
    lines = parser.format_usage().removeprefix("usage: ").rstrip().splitlines()
    return "\n".join([lines[0], *(line.removeprefix("       ") for line in lines[1:])])


def _argument(action: argparse.Action) -> tuple[str, str]:
    name = ", ".join(action.option_strings)
    shown = action.metavar if isinstance(action.metavar, str) else ""
    if action.choices and not shown:
        shown = "{" + ",".join(str(choice) for choice in action.choices) + "}"
    text = (action.help or "") % {**vars(action), "prog": ""}
    return f"`{' '.join(filter(None, (name, shown or (action.dest if not name else ''))))}`", text


def _example(parser: argparse.ArgumentParser) -> str:
    example = (parser.epilog or "").partition("example:\n")[2].strip()
    return f"```sh\n{example}\n```" if example else ""


# --- errors -----------------------------------------------------------------------


def errors() -> str:
    """Return the page of all errors: codes, statuses, classes, meaning."""
    parts = [
        "# Errors",
        _OF_ERRORS,
    ]
    for title, kinds in (("Over REST", _over_rest()), ("In Python and on the command line", _others())):
        parts.append(f"## {title}")
        for kind in kinds:
            parts += [f"### {kind.code}", _head(kind), _reindented(inspect.getdoc(kind) or "")]
    return page(parts)


def kinds(base: type[ExesysError] = ExesysError) -> Iterator[type[ExesysError]]:
    """Yield every kind of error that has a code of its own; those of a module besides `errors` are its own affair."""
    if "code" in vars(base) and base.__module__ == ExesysError.__module__:
        yield base
    for kind in base.__subclasses__():
        yield from kinds(kind)


def _over_rest() -> list[type[ExesysError]]:
    return sorted((kind for kind in kinds() if "status" in vars(kind)), key=lambda kind: (kind.status, kind.code))


def _others() -> list[type[ExesysError]]:
    listed = set(_over_rest())
    return sorted((kind for kind in kinds() if kind not in listed), key=lambda kind: kind.code)


def _head(kind: type[ExesysError]) -> str:
    return f"`{kind.__name__}`" + (f", HTTP status {kind.status}" if kind in _over_rest() else "")


def _reindented(text: str) -> str:
    return text.replace("<", "\\<")


# --- Markdown ----------------------------------------------------------------------


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table, nothing when it has no rows. A bar in a cell is escaped."""
    lines = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *lines)) if lines else ""


def page(parts: Iterable[str]) -> str:
    """Join the parts of a page; empty ones are left out."""
    return "\n\n".join(filter(None, parts)) + "\n"
