"""What may be wrong in the store, and what is done about it. Pure: the words for what mend.lua finds."""

from __future__ import annotations

from collections.abc import Mapping

# kind -> what was wrong with something, and what was done
REPAIRS: Mapping[str, str] = {
    "unqueued": "it waited in no queue; it is on its queue again",
    "unheld": "it was running and its worker's session did not hold it; it is held again",
    "uncounted": "it was running and did not count where that is limited; it counts again",
    "unlisted": "it was not listed; it is listed again",
    "stray": "it is the session of a worker that nobody knows; it is released unless the worker comes within a lease",
    "unwatched": "nothing fed it and nothing watched it, or the other way round; that is right again",
    "stuck": "it waited for what has ended or is gone; it was started, or failed",
    "unindexed": "the index of its job did not have it; it has it again",
    "hollow": "the index of its job had it, and there was no record; it was taken out",
    "miscounted": "the steps of this job were counted wrongly; they were counted anew",
    "doubled": "it stood in two states or in two queues; it stands in one",
    "misplaced": "it was listed where it does not belong; it was taken out there",
    "orphan": "it was listed, and there was no record; it was taken out",
    "lasting": "it has ended and was to be kept for ever; it expires",
    "passing": "it is under way and was to expire; it is kept",
    "leftover": "it belongs to nothing; it expires, or is gone",
    "refused": "it could not be looked at: a key of another kind stands in its place; rename or delete that key",
}


def told(kind: str, name: str) -> str:
    """Say in a sentence what was mended."""
    return f"{name}: {REPAIRS.get(kind, kind)}."


def totals(fields: Mapping[bytes, bytes]) -> dict[str, tuple[int, int]]:
    """Read the hash of totals: kind -> how often, and when last, in milliseconds. What is spoilt is left out."""
    found = {}
    for field, value in fields.items():
        kind = field.decode("utf-8", "replace")
        at = fields.get(field + b":at", b"0")
        if not kind.endswith(":at") and value.isdigit() and at.isdigit():
            found[kind] = int(value), int(at)
    return found
