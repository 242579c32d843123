"""What a system takes that has nothing to do."""

from __future__ import annotations

import re
import time
from pathlib import Path

from benchmarks.system import pids_of, used_s
from exesys import bootstrap, process
from exesys.config import Config

IDLE_S = 30.0
SETTLE_S = 5.0  # what programs do once, after their start
_PSS = re.compile(r"^Pss: +(\d+) kB", re.MULTILINE)


def idle(config: Config) -> dict[str, float]:
    """Watch all processes of a system for 30 s. Returns what each takes of a core, its memory (PSS), and the sums."""
    time.sleep(SETTLE_S)  # it has no sign of being settled: that it does nothing is what is measured
    names = named(config)
    before = {pid: used_s(pid) for pid in names}
    time.sleep(IDLE_S)  # the time that is measured
    figures = {"idle_cpu_percent": 0.0, "idle_pss_mb": 0.0}
    for pid, name in sorted(names.items(), key=lambda item: item[1]):
        percent, mb = 100 * (used_s(pid) - before[pid]) / IDLE_S, pss_bytes(pid) / 1e6
        for total, each, value in (("idle_cpu_percent", "cpu_percent", percent), ("idle_pss_mb", "pss_mb", mb)):
            figures[f"{name}_{each}"] = figures.get(f"{name}_{each}", 0.0) + value
            figures[total] += value
    return figures


def named(config: Config) -> dict[str, str]:
    """Return the processes of a system, each with its program's name; what a program started has its name and a `+`."""
    own = {str(program["pid"]): str(program["name"]) for program in bootstrap.status(config)["programs"]}
    return {pid: own.get(pid) or _by_parent(pid, own) for pid in pids_of(config.home)}


def _by_parent(pid: str, own: dict[str, str]) -> str:
    return next(
        (f"{name}+" for parent, name in own.items() if int(pid) in process.children(int(parent))), "supervisord"
    )


def pss_bytes(pid: str) -> int:
    """Return a process' share of memory: what it alone has, and its part of what several have. 0 when it is gone."""
    try:
        found = _PSS.search(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except OSError:
        return 0
    return int(found[1]) * 1024 if found else 0
