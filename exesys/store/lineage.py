"""Which of two stores has what the other has: what a replica must know before it follows. Pure.

Each start of the router, which is the only writer of jobs, adds a life to the
list `exesys:lineage`: an id, and the number of the last turn that it found
(`exesys:turn`). A router that finds, after a reconnect, that turns are lost
which it cannot send again begins a new life, too. So the lives of two stores
say where they parted, and the turns how far each has come: an empty store has
no lives, and one that lost the end of its file has a life that began behind
turns which the other has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from exesys.store.keys import Keys

MOST_LIVES = 1000
Mark = tuple[int, int]
NO_MARK: Mark = (0, 0)


class Life(NamedTuple):
    """One life of a router, and the last turn (epoch and number) that was there when it began."""

    id: str
    found: Mark


class Lineage(NamedTuple):
    """The lives of a store, the oldest first, and its last turn."""

    lives: tuple[Life, ...]
    mark: Mark


def commands(keys: Keys) -> list[tuple[str, ...]]:
    """What to ask a Redis, for `read`."""
    return [("LRANGE", keys("lineage"), "0", "-1"), ("GET", keys("turn"))]


def read(lives: Sequence[bytes], mark: bytes | None) -> Lineage:
    """Read the answers to `commands`. What a hand has spoilt is as if it were not there."""
    found = (life.decode("utf-8", "replace").split(" ") for life in lives)
    last = (mark or b"").decode("utf-8", "replace")
    return Lineage(tuple(Life(parts[0], _mark(parts[-1])) for parts in found), _mark(last))


def written(id: str, mark: bytes | None) -> str:
    """Spell a life that begins, as `read` reads it."""
    return f"{id} {(mark or b'').decode('utf-8', 'replace')}"


def _mark(text: str) -> Mark:
    epoch, _, number = text.partition(".")
    return (int(epoch), int(number)) if epoch.isdecimal() and number.isdecimal() else NO_MARK


def lacking(master: Lineage, replica: Lineage) -> str:
    """Say what the master lacks of what the replica has, so that it must not be followed; "" for nothing."""
    if not replica.lives:
        return ""
    if not master.lives:
        return "it is empty, and the replica is not"
    last = replica.lives[-1]
    places = [place for place, life in enumerate(master.lives) if life.id == last.id]
    if not places:
        return "it is another store, an older one, or one that lost what the replica has"
    later = master.lives[places[-1] + 1 :]
    reached = later[0].found if later else master.mark
    if reached >= replica.mark:
        return ""
    told = (
        "it went on from turn {}.{}, and the replica has {}.{}"
        if later
        else "it is at turn {}.{}, the replica at {}.{}"
    )
    return told.format(*reached, *replica.mark)
