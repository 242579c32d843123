"""What supervisord runs, and its configuration. Text in, text out.

The settings travel to the programs in the environment, all of them, so that
a running system keeps the ones it was started with.
"""

from __future__ import annotations

import dataclasses
import math
import re
import shlex
import string
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from exesys import sections
from exesys.addresses import masked, masked_wrong
from exesys.appconfig import AppServer
from exesys.config import KINDS, PLAIN, SECTIONS, UNIX_PATH_MAX_BYTES, Config, is_secret
from exesys.errors import BootError
from exesys.queues import WorkerOf

_LISTED = frozenset(kind.listed for kind in KINDS.values())
EACH_PROGRAM = "; -- once for each program --\n"
STOP_MARGIN_S = 10
_UNFIT = re.compile(r"[\"'\x00-\x1f\x7f]|\s[#;]")
_UNFIT_IN_URL = re.compile(r"[?#%]")


class Program(NamedTuple):
    """One program. All start at once; those of the highest priority number stop first."""

    name: str
    module: str
    priority: int

    @property
    def command(self) -> str:
        return shlex.join([sys.executable, "-m", *self.module.split()])


def programs(
    redis: bool,
    mongo: bool,
    appservers: Sequence[AppServer] = (),
    workers: Sequence[WorkerOf] = (),
    controllers: int = 1,
    backup: bool = False,
) -> list[Program]:
    """List what runs; `redis` and `mongo` tell whether these two are private, `backup` whether Redis has a replica."""
    # They end after the worker: what it still runs may call them.
    apps = [
        Program(name, f"exesys.daemons.appserver {server.name} {number}", 250)
        for server in appservers
        for number, name in enumerate(server.programs, 1)
    ]
    named = ["controller"] if controllers == 1 else [f"controller-{number}" for number in range(1, controllers + 1)]
    servers = [Program("redis", "exesys.launch redis", 100)] if redis else []
    # It ends last, with all that Redis had to say.
    servers += [Program("redis-backup", "exesys.daemons.replica", 90)] if backup else []
    servers += [Program("mongo", "exesys.launch mongo", 100)] if mongo else []
    return [
        *servers,
        Program("router", "exesys.daemons.router", 200),
        *apps,
        *(Program(name, "exesys.daemons.controller", 300) for name in named),
        *joined(workers),
        Program("rest", "exesys.daemons.rest", 400),
        Program("web", "exesys.daemons.web", 400),
    ]


def joined(workers: Sequence[WorkerOf] = ()) -> list[Program]:
    """List what runs on a host that works for a router elsewhere."""
    return [
        Program("worker", "exesys.daemons.worker", 300),
        *(Program(worker.program, f"exesys.daemons.worker {worker.name}", 300) for worker in workers),
        Program("runner", "exesys.daemons.runner", 300),
    ]


def settings(config: Config) -> dict[str, str]:
    """Return every key of the settings as the environment variable that sets it."""
    found = {}
    for section, keys in SECTIONS.items():
        for key in dataclasses.fields(keys):
            value = getattr(getattr(config, section), key.name)
            found[f"EXESYS_{section}_{key.name}".upper()] = _text(value)
    for many, kind in KINDS.items():
        for variable, value in sections.variables(kind, getattr(config, many)).items():
            found[variable] = _text(value)
    return found


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else ",".join(value) if isinstance(value, tuple) else str(value)


def key_of(variable: str) -> str:
    """Turn EXESYS_REST_PORT into "[rest] port"."""
    if variable not in PLAIN:
        for kind in KINDS.values():
            if named := sections.key_of(kind, variable):
                return named
    section, _, key = variable.removeprefix("EXESYS_").lower().partition("_")
    return f"[{section}] {key}"


def differences(here: Mapping[str, str], there: Mapping[str, str]) -> list[str]:
    """Say in which settings two systems differ, both as the environment that sets them."""
    found = []
    for name in [*here, *sorted(there.keys() - here.keys())]:
        if here.get(name) == there.get(name) or name in _LISTED:  # of what is new in a list its section tells
            continue
        key = key_of(name)
        if name in here and name in there:
            shown = [masked(each[name]) if is_secret(name) else each[name] for each in (there, here)]
            found.append(f"{key} is {shown[0]!r} there and {shown[1]!r} here")
        elif name in PLAIN:  # the other is of another version
            found.append(f"{key} is known only {'here' if name in here else 'there'}")
        else:
            section = key.partition("] ")[0] + "]"
            found.append(f"{section} is new here" if name in here else f"{section} is there, and not here")
    return list(dict.fromkeys(found))


def stop_wait_s(config: Config) -> int:
    """How long a program may take to stop before it is killed."""
    both = (config.worker.grace_s + config.worker.kill_grace_s, config.runner.grace_s + config.runner.kill_grace_s)
    return math.ceil(max(both)) + STOP_MARGIN_S


def check_home(config: Config) -> None:
    """Raise BootError for a directory whose name supervisord or a URL cannot carry."""
    home = str(config.home)
    bad = _UNFIT_IN_URL.search(home)
    if bad:
        raise BootError(f"EXESYS_HOME is {home}: the character {bad[0]!r} does not fit a Redis URL.", fix=_CHOOSE)
    fit("EXESYS_HOME", home)
    fit("the project's directory", str(config.root))
    # supervisord binds a name with its pid behind it and then renames it.
    longest = len(f"{config.run}/supervisor.sock.4194304".encode())
    if longest > UNIX_PATH_MAX_BYTES:
        raise BootError(
            f"EXESYS_HOME is {home}: supervisord's socket would have a name of {longest} bytes,"
            f" and {UNIX_PATH_MAX_BYTES} is the most.",
            fix=_CHOOSE,
        )


_CHOOSE = "Choose another directory."


def render(
    template: str, config: Config, parts: list[Program], environment: Mapping[str, str], *, minfds: int, silent: bool
) -> str:
    """Fill in the template of supervisord.conf. Raises BootError for a value it cannot carry."""
    head, mark, each = template.partition(EACH_PROGRAM)
    if not mark:
        raise BootError(f"etc/supervisord.conf lacks the line {EACH_PROGRAM.strip()!r}.", fix="Restore it.")
    common = {
        "run": fit("EXESYS_HOME", str(config.run)),
        "log": fit("EXESYS_HOME", str(config.log)),
        "root": fit("the project's directory", str(config.root)),
        "stopwaitsecs": str(stop_wait_s(config)),
        "minfds": str(minfds),
        "silent": str(silent).lower(),
        "programs": ",".join(part.name for part in parts),
        "environment": ",".join(f'\n    {name}="{fit(name, value)}"' for name, value in environment.items()),
    }
    texts = [_fill(head, common)]
    for part in parts:
        own = {"name": part.name, "command": part.command.replace("%", "%%"), "priority": str(part.priority)}
        texts.append(_fill(each, {**common, **own}))
    return "".join(texts)


def _fill(template: str, values: Mapping[str, str]) -> str:
    try:
        return string.Template(template).substitute(values)
    except (KeyError, ValueError) as error:
        raise BootError(f"etc/supervisord.conf cannot be filled in: {error}.", fix="Restore it.") from error


def fit(name: str, value: str) -> str:
    """Escape a value for supervisord's configuration. Raises BootError when it cannot be."""
    bad = _UNFIT.search(value)
    if bad:
        raise BootError(
            f"{name} is {masked_wrong(value)!r}: supervisord's configuration cannot carry {bad[0]!r}.",
            fix="Choose another value.",
        )
    return value.replace("%", "%%")
