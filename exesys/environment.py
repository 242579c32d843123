"""The environment: finds the ini and the project, and reads the settings once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from exesys import config, sections
from exesys.errors import ConfigError


def load(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> config.Config:
    """Read the settings that hold here.

    The ini is `EXESYS_INI`, else `etc/exesys.ini` in this directory, else the
    one of the checkout this package lies in. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    ini, root = _find(environ, cwd)
    if ini is None:
        return config.parse("", None, environ, root, cwd)
    if not ini.is_file():
        raise ConfigError(f"EXESYS_INI names {ini}, which is no file.", fix="Unset it or correct the path.")
    try:
        text = ini.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{ini} cannot be read: {error}.", fix="Make it a text in UTF-8 that you may read."
        ) from error
    return config.parse(text, ini, environ, root, cwd)


def without_ini(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> config.Config:
    """Return what is known when the settings cannot be read: where the home is; all else by default.

    It is enough to find a system that runs there, whose own settings stand in
    its home. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    home = {name: environ[name] for name in ("EXESYS_HOME",) if name in environ}
    return config.parse("", None, home, _find(environ, cwd)[1], cwd)


def _find(environ: Mapping[str, str], cwd: Path) -> tuple[Path | None, Path]:
    """Return the ini, None when there is none, and the project's directory."""
    if environ.get("EXESYS_INI"):
        ini = (cwd / environ["EXESYS_INI"]).absolute()
        return ini, ini.parent.parent if ini.parent.name == "etc" else ini.parent
    checkout = Path(__file__).resolve().parent.parent
    for root in (cwd.absolute(), checkout):
        if (root / "etc" / "exesys.ini").is_file():
            return root / "etc" / "exesys.ini", root
    return None, cwd.absolute()


def open_part() -> dict[str, str]:
    """Return the environment without the settings that may hold a password: what processes with others' code get.

    The kernel shows the environment that a process was started with, for as long as it lives, in /proc/PID/environ;
    and it is handed down to all that is started there.
    """
    return {name: value for name, value in os.environ.items() if not config.is_secret(name)}


def secret_part(settings: config.Config) -> dict[str, str]:
    """Return the other settings, as variables, to be sent to such a process."""
    found = {name: str(getattr(getattr(settings, section), key)) for name, (section, key) in config.SECRETS.items()}
    for many, kind in config.KINDS.items():
        declared = sections.variables(kind, getattr(settings, many))
        found |= {name: str(value) for name, value in declared.items() if kind.is_secret(name)}
    return found


def load_from(message: Any) -> config.Config:
    """Read the settings in a process that was started without some, which came as the first message of its line."""
    if message is None:
        raise SystemExit("The daemon that started this process is gone, so this process ends too.")
    return load({**os.environ, **message[1]})
