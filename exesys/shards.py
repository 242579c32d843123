"""Several routers as one system: the sections [shard:NAME], and which shard a job belongs to. Pure.

    slot  = CRC-32(job_id) mod 16384
    shard = of all names the one for which SHA-256("NAME:SLOT") is the largest, compared byte by byte

The first line costs one cheap hash for each job, however many shards there
are; the second (rendezvous hashing, Thaler and Ravishankar 1998) is computed
once for each slot, and lets a further shard take 1/n of the slots from the
others and move nothing else. CRC-32 alone would not do for it: it is linear,
so that the largest of several of one job_id are far from even.

A job_id that ends with `.` and the name of a shard belongs to that one. So a
home's own timers run where they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from zlib import crc32

from exesys import redisurl
from exesys.errors import ConfigError
from exesys.rules import Rule, key_of, matching, unknown
from exesys.sections import Kind

SLOTS = 16_384
_PREFIX = matching(r"(\{[A-Za-z0-9_-]{1,16}\})?", "empty, or a hash tag like {s07}")
_ENDPOINT = matching(
    r"ipc:///.+|tcp://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):\d{1,5}",
    "ipc:///path or tcp://address:port, where the other shards and their clients reach it",
)


@dataclass(frozen=True)
class ShardOf:
    """One section [shard:NAME]: where its router is, and its Redis as the other shards' REST reads it."""

    name: str
    endpoint: str = key_of("", _ENDPOINT)
    redis: str = key_of("", Rule(redisurl.check, redisurl.FORMS), secret=True)
    prefix: str = key_of("", _PREFIX)
    key: str = key_of("", Rule(str, "the path of the key file with which we go there, or empty for our own"))


SHARD = Kind(
    word="shard",
    what="a shard",
    make=ShardOf,
    name=re.compile(r"[a-z][a-z0-9]{0,15}"),
    allowed="a small letter, then small letters and digits, at most 16 in all",
    needed=("endpoint",),
)


class ShardMap:
    """Who owns what. `own` is this home's shard; no endpoints: there is one router, to which all belongs."""

    def __init__(self, own: str = "", endpoints: Mapping[str, str] | None = None) -> None:
        self.own = own
        self.endpoints: dict[str, str] = dict(endpoints or {})
        self._names = sorted(self.endpoints)
        self._of_slot: dict[int, str] = {}

    def __bool__(self) -> bool:
        """Whether there is more than one shard, so that it matters whose a job is."""
        return len(self._names) > 1

    def owner(self, job_id: str) -> str:
        """Return the name of the shard that a job belongs to, "" where there are none."""
        named = job_id.rpartition(".")[2]
        if named in self.endpoints:
            return named
        slot = crc32(job_id.encode("utf-8", "surrogatepass")) % SLOTS
        found = self._of_slot.get(slot)
        if found is None:
            found = max(self._names, key=lambda name: sha256(f"{name}:{slot}".encode()).digest(), default="")
            self._of_slot[slot] = found
        return found

    def elsewhere(self, job_id: str) -> str:
        """Return the shard of a job of another's, "" for one of our own."""
        owner = self.owner(job_id)
        return "" if owner == self.own else owner


def pinned(job_id: str, shard: str) -> str:
    """Return a job_id that belongs to this shard; the same, where there are none."""
    return f"{job_id}.{shard}" if shard else job_id


def check(shards: Sequence[ShardOf], own: str, endpoint: str, redis: str, prefix: str) -> None:
    """Raise ConfigError for a map that cannot be right.

    `own` is [bus] shard, `endpoint` where our router listens, `redis` and `prefix` where our jobs are kept.
    """
    names = [shard.name for shard in shards]
    if own and not shards:
        fix = "Declare all shards, one section [shard:NAME] each, or take `shard` away."
        raise ConfigError(f"[bus] shard is {own}, and there is no section [shard:{own}].", field="shard", fix=fix)
    if not shards:
        return
    if not own:
        fix = f"Set [bus] shard to one of {', '.join(names)}."
        raise ConfigError("There are shards, and [bus] shard does not say which this home is.", field="shard", fix=fix)
    if own not in names:
        raise unknown(f"[bus] shard is {own}; this shard", own, names)
    _check_apart(shards)
    [ours] = [shard for shard in shards if shard.name == own]
    if not _same_place(endpoint, ours.endpoint):
        text = f"[shard:{own}] endpoint is {ours.endpoint}, and our router is at {endpoint}."
        raise ConfigError(text, field="endpoint", fix="Give both, here and in [bus] endpoint, the same place.")
    here, mapped = (each.partition("?")[0] for each in (redis, ours.redis))
    if here.startswith("unix://") and mapped.startswith("unix://") and here != mapped:
        text = f"[shard:{own}] redis is {mapped}, and ours is at {here}."
        raise ConfigError(text, field="redis", fix="Give the one that is there.")
    if prefix != ours.prefix:
        text = f"[shard:{own}] prefix is {ours.prefix!r}, and [redis] prefix is {prefix!r}."
        raise ConfigError(text, field="prefix", fix="Give both the same.")


def _check_apart(shards: Sequence[ShardOf]) -> None:
    places: dict[str, str] = {}
    stores: dict[tuple[str, str], str] = {}
    for shard in shards:
        other = places.setdefault(shard.endpoint, shard.name)
        if other != shard.name:
            text = f"the shards {other} and {shard.name} have one endpoint, {shard.endpoint}."
            raise ConfigError(text, field="endpoint", fix="Each shard has a router of its own.")
        other = stores.setdefault((shard.redis, shard.prefix), shard.name)
        if shard.redis and other != shard.name:
            text = f"the shards {other} and {shard.name} have one Redis, and keys that begin alike."
            raise ConfigError(text, field="redis", fix="Give each a Redis of its own, or a `prefix` such as {s00}.")


def _same_place(bound: str, mapped: str) -> bool:
    """Tell whether what listens at `bound` can be what is reached at `mapped`: hosts have several names."""
    if bound.startswith("ipc://") or mapped.startswith("ipc://"):
        return bound == mapped
    return bound.rpartition(":")[2] == mapped.rpartition(":")[2]
