"""The environment: finds the ini and the project, and reads the settings once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from exesys import config
from exesys.errors import ConfigError


def load(environ: Mapping[str, str] | None = None, cwd: Path | None = None) -> config.Config:
    """Read the settings that hold here.

    The ini is `EXESYS_INI`, else `etc/exesys.ini` in this directory, else the
    one of the checkout this package lies in. Raises ConfigError.
    """
    environ = os.environ if environ is None else environ
    cwd = Path.cwd() if cwd is None else cwd
    named = environ.get("EXESYS_INI")
    if named:
        ini = (cwd / named).absolute()
        if not ini.is_file():
            raise ConfigError(f"EXESYS_INI names {ini}, which is no file.", fix="Unset it or correct the path.")
        return _parse(ini, environ, cwd)
    checkout = Path(__file__).resolve().parent.parent
    for root in (cwd.absolute(), checkout):
        if (root / "etc" / "exesys.ini").is_file():
            return _parse(root / "etc" / "exesys.ini", environ, cwd)
    return config.parse("", None, environ, cwd.absolute(), cwd)


def _parse(ini: Path, environ: Mapping[str, str], cwd: Path) -> config.Config:
    try:
        text = ini.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{ini} cannot be read: {error}.") from error
    root = ini.parent.parent if ini.parent.name == "etc" else ini.parent
    return config.parse(text, ini, environ, root, cwd)
