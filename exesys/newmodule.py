"""`bin/exesys new-module`: writes a module that works at once, and says how to call it."""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import keyword
from collections.abc import Iterator
from pathlib import Path

from exesys import command, home, keystore, output, samples
from exesys.appconfig import APPSERVER
from exesys.config import Config
from exesys.errors import BadCommand, Conflict
from exesys.usage import PROGRAM

_CURL = 'curl{token} -H "Content-type: application/json" -X POST "{url}/sys_cmd?wait=5" -d \'{body}\''


def new_module(config: Config, given: argparse.Namespace) -> int:
    """Write the module where a running system looks for modules. Raises BadCommand, Conflict."""
    config = home.started(config)
    kind = "runner" if given.runner else "app" if given.app else "function"
    name = check(given.name, kind, config.module_dirs)
    path = config.module_dirs[0] / f"{name}.py"
    sample = {"function": samples.FUNCTION, "runner": samples.RUNNER, "app": samples.APP}[kind]
    write(path, samples.written(sample, name))
    commands = next_commands(config, kind, name)
    if given.json:
        output.show({"file": str(path), "commands": commands})
        return 0
    shown = path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path
    print(f"Wrote {shown}. Load it and call it:")
    print("\n".join(f"  {line}" for line in commands))
    return 0


def check(name: str, kind: str, dirs: tuple[Path, ...]) -> str:
    """Return the name if a module may have it, as may the functions of its example. Raises BadCommand, Conflict."""
    fix = "Give a name of letters, digits and _ that begins with a letter, such as greetings."
    if not (name.isidentifier() and name.isascii()) or keyword.iskeyword(name) or name.startswith("_"):
        raise BadCommand(f"{name!r} is no name for a module.", field="name", fix=fix)
    command.check_name(f"{name}.start_{name}", "name")
    if kind == "app" and not APPSERVER.name.fullmatch(name):
        raise BadCommand(f"{name!r} is no name for an application server.", field="name", fix=fix)
    if not dirs:
        raise BadCommand("[functions] path names no directory.", field="path", fix="Set it: path = modules")
    for directory in dirs:
        if (directory / f"{name}.py").exists():
            fix = "Choose another name, or change that file: nothing is overwritten."
            raise Conflict(f"{directory / f'{name}.py'} is there already.", field="name", fix=fix)
    for made in {name, f"start_{name}"} if kind == "runner" else {name}:
        for path, function in defined(dirs):
            if function == made:
                text = f"{path} has a function {made} already, and of two neither could be called by that name."
                raise Conflict(text, field="name", fix="Choose another name.")
    return name


def defined(dirs: tuple[Path, ...]) -> Iterator[tuple[Path, str]]:
    """Give the names of the functions that the files of these directories define, as they stand there."""
    for directory in dirs:
        for path in sorted(directory.glob("[!._]*.py")):
            with contextlib.suppress(OSError, ValueError, SyntaxError):  # a broken module takes no names
                for node in ast.parse(path.read_bytes()).body:
                    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                        yield path, node.name


def write(path: Path, text: str) -> None:
    """Write a new file, and its directory if need be. Raises BadCommand, Conflict."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        if path.exists():
            raise Conflict(f"{path} is there already.", field="name", fix="Choose another name.") from error
        fix = "Make the directory yours, or set [functions] path to one that is."
        raise BadCommand(f"{path} cannot be written: {error.strerror}.", field="path", fix=fix) from error


def next_commands(config: Config, kind: str, name: str) -> list[str]:
    """Return what a person types next."""
    if kind == "runner":
        return [
            f"{PROGRAM} reload",
            f"{PROGRAM} runner start {name} '\"a\"' --uuid a",
            f"{PROGRAM} runner stop {name}:a",
        ]
    if kind == "app":
        ini = config.ini or config.root / "etc" / "exesys.ini"
        shown = ini.relative_to(Path.cwd()) if ini.is_relative_to(Path.cwd()) else ini
        return [
            f"printf '\\n[appserver:{name}]\\nclass = {name}:{samples.class_of(name)}\\n' >> {shown}",
            f"{PROGRAM} restart",
            f"{PROGRAM} app call {name} count '[\"word\"]'",
        ]
    token = ' -H "Authorization: Bearer $EXESYS_TOKEN"' if keystore.read(config) else ""
    body = json.dumps({"cmd": name, "data": ["Ada", "Alan"]})
    return [f"{PROGRAM} reload", _CURL.format(token=token, url=config.rest_url, body=body)]
