"""The settings of application servers: sections of any name, in the ini or in the environment alone. Pure."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from exesys.errors import ConfigError
from exesys.rules import key_of, line_of, matching, seconds, unknown, value_of, whole

APPSERVER = "appserver"
APPSERVERS = "EXESYS_APPSERVERS"  # which of those declared there are: so a running system keeps its own
_APP_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}")


@dataclass(frozen=True)
class AppServer:
    """One section [appserver:NAME]; `class_` is the key `class`."""

    name: str
    class_: str = key_of(
        "",
        matching(
            r"[A-Za-z][A-Za-z0-9_]*:[A-Za-z][A-Za-z0-9_]*",
            "module:Class, a file of [functions] path and a public class in it",
        ),
    )
    processes: int = key_of(1, whole(1, 64))
    threads: int = key_of(1, whole(1, 256))
    timeout_s: float = key_of(10.0, seconds(0.01, 86_400))

    @property
    def programs(self) -> tuple[str, ...]:
        """What supervisord calls its instances, number 1 first."""
        if self.processes == 1:
            return (f"{APPSERVER}-{self.name}",)
        return tuple(f"{APPSERVER}-{self.name}-{number}" for number in range(1, self.processes + 1))


KEYS = dataclasses.fields(AppServer)[1:]


def check_section(section: str, where: str) -> None:
    """Raise ConfigError for a section whose name is none of an application server."""
    name = section.removeprefix(f"{APPSERVER}:")
    if name == section or not _APP_NAME.fullmatch(name):
        allowed = "a letter, then letters, digits, _ and -, at most 32 in all"
        raise ConfigError(
            f"{where}: the section [{section}] names no application server.",
            fix=f"Write [{APPSERVER}:NAME]; the name is {allowed}.",
        )


def declared(
    text: str, source: str, given: Mapping[str, Mapping[str, str]], environ: Mapping[str, str]
) -> tuple[AppServer, ...]:
    """Build the application servers that the ini or the environment declares, by name."""
    in_ini = {name.partition(":")[2]: keys for name, keys in given.items() if name.partition(":")[0] == APPSERVER}
    in_environ = _variables(environ, list(in_ini))
    names = sorted({*in_ini, *in_environ})
    if APPSERVERS in environ:
        wanted = [part.strip() for part in environ[APPSERVERS].split(",") if part.strip()]
        for name in wanted:
            if name not in names:
                raise unknown(f"the environment variable {APPSERVERS}: the application server {name!r}", name, names)
        names = sorted(set(wanted))
    found = []
    for name in names:
        values: dict[str, Any] = {}
        for key in KEYS:
            word = key.name.rstrip("_")
            if word in (variables := in_environ.get(name, {})):
                variable = variables[word]
                values[key.name] = value_of(key, environ[variable], f"the environment variable {variable}")
            elif word in (keys := in_ini.get(name, {})):
                line = line_of(text, f"{APPSERVER}:{name}", word)
                values[key.name] = value_of(key, keys[word], f"{source}, line {line}: [{APPSERVER}:{name}] {word}")
        if "class_" not in values:
            line = line_of(text, f"{APPSERVER}:{name}", None)
            where = f"{source}, line {line}" if name in in_ini else "the environment"
            fix = f"Set `class` in [{APPSERVER}:{name}], or EXESYS_APPSERVER_{name}_CLASS, to module:Class."
            raise ConfigError(f"{where}: the application server {name} has no `class`.", field="class", fix=fix)
        found.append(AppServer(name, **values))
    _check_apart(found)
    return tuple(found)


def _variables(environ: Mapping[str, str], declared: list[str]) -> dict[str, dict[str, str]]:
    """Find the variables of application servers: by name and key. A declared name may stand in capitals."""
    capitals = {name.upper(): name for name in declared}
    words = [key.name.rstrip("_") for key in KEYS]
    found: dict[str, dict[str, str]] = {}
    for variable in sorted(environ):
        rest = variable.removeprefix(f"{APPSERVERS.removesuffix('S')}_")
        if rest == variable:
            continue
        word = next((word for word in words if rest.endswith(f"_{word.upper()}")), "")
        name = rest.removesuffix(f"_{word.upper()}")
        if not word or not _APP_NAME.fullmatch(name):
            key = rest.rpartition("_")[2]
            raise unknown(f"the environment variable {variable}: the key `{key.lower()}`", key.lower(), words)
        name = name if name in declared else capitals.get(name, name)
        # Written as it is declared it comes before capitals.
        if word not in found.setdefault(name, {}) or f"_{name}_" in variable:
            found[name][word] = variable
    return found


def _check_apart(servers: list[AppServer]) -> None:
    """Raise ConfigError for two whose names are alike but for capitals, or whose programs have one name."""
    seen: dict[str, str] = {}
    for server in servers:
        for name in (server.name.upper(), *server.programs):
            other = seen.setdefault(name, server.name)
            if other != server.name:
                raise ConfigError(
                    f"the application servers {other} and {server.name} cannot be told apart.", fix="Rename one."
                )
