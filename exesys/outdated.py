"""What a running system has not taken over: modules saved since it loaded them, settings changed since its start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from exesys import changes, home, process, programs
from exesys.checks import Check
from exesys.config import Config

MOST_NAMED = 3


def modules(config: Config, running: bool) -> Iterator[Check]:
    """Compare when modules were saved with when the oldest slot began, which loads them once."""
    if not running or not (slots := _slots(config)):
        return
    oldest_s = time.time() - max(slots)
    later = [path for path, (saved_ns, *_) in changes.sources(config.module_dirs).items() if saved_ns / 1e9 > oldest_s]
    if later:
        shown = ", ".join(path.name for path in sorted(later)[:MOST_NAMED])
        more = f" and {len(later) - MOST_NAMED} more" if len(later) > MOST_NAMED else ""
        text = f"Saved since the workers loaded their modules: {shown}{more}. The old code still answers."
        yield Check("modules", "warn", text, "Load them: `bin/exesys reload`. `bin/exesys dev` does so by itself.")
    else:
        yield Check("modules", "ok", "The workers have loaded all modules as they are now.")


def settings(config: Config, running: home.Record) -> Iterator[Check]:
    """Compare the settings that hold now with those the system was started with."""
    found = programs.differences(programs.settings(config), running.settings)
    if found:
        more = " …" if len(found) > MOST_NAMED else ""
        text = f"The system runs with other settings: {'; '.join(found[:MOST_NAMED])}{more}."
        yield Check("settings", "warn", text, "Take over those that hold here: `bin/exesys restart`.")
    else:
        yield Check("settings", "ok", f"The system runs with the settings of {_ini(config)}.")


def _ini(config: Config) -> Path:
    return config.ini or config.root / "etc" / "exesys.ini"


def _slots(config: Config) -> list[float]:
    """Return for how many seconds each slot of our workers has been there."""
    names = {"worker", *(worker.program for worker in config.workers)}
    pids = [each.pid for each in home.supervisor(config).programs() if each.name in names and each.pid]
    slots = [pid for worker in pids for pid in process.children(worker) if _is_slot(pid)]
    return [age for age in map(process.age_s, slots) if age is not None]


def _is_slot(pid: int) -> bool:
    try:
        return b"exesys.daemons.slot" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
