"""The router's answer to what belongs to another shard: MOVED. Pure.

Nothing of it is stored here, and nothing else is looked at: whether it is any
good is for its own shard to say.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from exesys.bus import messages as m
from exesys.bus.slate import Slate


def ours(slate: Slate, address: bytes, asked: Iterable[Any]) -> list[Any]:
    """Return the items or queries that belong to this shard; of the others their sender is told where they do.

    The steps of a workflow go together, to where its first belongs.
    """
    kept: list[Any] = []
    left: dict[str, list[int]] = {}
    flows: dict[int, str] = {}
    for each in asked:
        shard = slate.shards.elsewhere(each.job_id)
        if (flow := getattr(each, "flow", 0)) > 0:
            shard = flows.setdefault(flow, shard)
        if shard:
            left.setdefault(shard, []).append(each.tag)
        else:
            kept.append(each)
    for shard, tags in left.items():
        point(slate, address, shard, tags)
    return kept


def point(slate: Slate, address: bytes, shard: str, tags: list[int]) -> None:
    """Tell a peer that what has these tags belongs to that shard."""
    slate.figures["moved"] = slate.figures.get("moved", 0) + len(tags)
    slate.say(address, m.Moved(tuple(tags), shard, slate.shards.endpoints[shard]))
