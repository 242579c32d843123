"""What the processes of a system cost: processor time for a job, by group."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence

from benchmarks.system import used_s
from exesys import bootstrap, process
from exesys.config import Config

Groups = Mapping[str, Sequence[int]]


def of_system(config: Config) -> dict[str, list[int]]:
    """Return the processes through which a job of ExeSys goes, besides the client."""
    pids = {program["name"]: int(program["pid"]) for program in bootstrap.status(config)["programs"] if program["pid"]}
    found = {name: [pids[name]] for name in ("router", "redis", "worker", "rest")}
    return {**found, "slots": process.children(pids["worker"])}


class Meter:
    """Processor time of this process, the client, and of groups of others, from when this is made."""

    def __init__(self, groups: Groups) -> None:
        self._groups = groups
        self._before = self._used_s()

    def us_per_job(self, jobs: int) -> dict[str, float]:
        """Return as `<group>_us` the microseconds of each for one of so many jobs."""
        used = self._used_s()
        return {f"{name}_us": (used[name] - before) / jobs * 1e6 for name, before in self._before.items()}

    def _used_s(self) -> dict[str, float]:
        own = resource.getrusage(resource.RUSAGE_SELF)
        others = {name: sum(used_s(str(pid)) for pid in pids) for name, pids in self._groups.items()}
        return {"client": own.ru_utime + own.ru_stime, **others}
