"""Two homes or more under one map: each its own router, Redis and workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from harness import System

from exesys import environment
from exesys.shards import ShardMap


def declare(systems: Sequence[System], names: Sequence[str] = (), **more: str) -> None:
    """Put the same map into the settings of all, which do not run yet: s00, s01, …; `more` are settings of all."""
    names = names or [f"s{number:02d}" for number in range(len(systems))]
    told: dict[str, str] = {}
    for name, system in zip(names, systems, strict=True):
        told[f"EXESYS_SHARD_{name}_ENDPOINT"] = f"ipc://{system.home}/run/bus"
        told[f"EXESYS_SHARD_{name}_REDIS"] = f"unix://{system.home}/run/redis?db=0"
    for name, system in zip(names, systems, strict=True):
        system.environ |= {**told, **more, "EXESYS_BUS_SHARD": name}
        system.config = environment.load(system.environ, system.root)


def sharing(make: Callable[..., System]) -> tuple[System, System]:
    """Start two homes whose shards share the Redis of the first, with a prefix each."""
    systems = make(start=False), make(start=False)
    url = f"unix://{systems[0].home}/run/redis?db=0"
    told: dict[str, str] = {}
    for name, system in zip(("s00", "s01"), systems, strict=True):
        told[f"EXESYS_SHARD_{name}_ENDPOINT"] = f"ipc://{system.home}/run/bus"
        told[f"EXESYS_SHARD_{name}_REDIS"] = url
        told[f"EXESYS_SHARD_{name}_PREFIX"] = f"{{{name}}}"
    systems[1].environ["EXESYS_REDIS_URL"] = url
    for name, system in zip(("s00", "s01"), systems, strict=True):
        system.environ |= {**told, "EXESYS_BUS_SHARD": name, "EXESYS_REDIS_PREFIX": f"{{{name}}}"}
        system.config = environment.load(system.environ, system.root)
        system.up()
    return systems


def pair(make: Callable[..., System], **settings: object) -> tuple[System, System]:
    """Start two homes, s00 and s01."""
    systems = make(start=False, **settings), make(start=False, **settings)
    declare(systems)
    for system in systems:
        system.up()
    return systems


def names_of(shards: ShardMap, shard: str, count: int, stem: str = "j") -> list[str]:
    """Return job_ids that belong to a shard by their hash."""
    found: list[str] = []
    number = 0
    while len(found) < count:
        if shards.owner(f"{stem}{number}") == shard:
            found.append(f"{stem}{number}")
        number += 1
    return found
