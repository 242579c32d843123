"""The settings of application servers: sections [appserver:NAME]. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from exesys.errors import ConfigError
from exesys.rules import key_of, matching, seconds, whole
from exesys.sections import Kind


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
            return (f"appserver-{self.name}",)
        return tuple(f"appserver-{self.name}-{number}" for number in range(1, self.processes + 1))


APPSERVER = Kind(
    word="appserver",
    what="an application server",
    make=AppServer,
    name=re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,31}"),
    allowed="a letter, then letters, digits, _ and -, at most 32 in all",
    needed=("class_",),
)


def check_apart(servers: tuple[AppServer, ...]) -> None:
    """Raise ConfigError for two whose names are alike but for capitals, or whose programs have one name."""
    seen: dict[str, str] = {}
    for server in servers:
        for name in (server.name.upper(), *server.programs):
            other = seen.setdefault(name, server.name)
            if other != server.name:
                raise ConfigError(
                    f"the application servers {other} and {server.name} cannot be told apart.", fix="Rename one."
                )
