"""Walks through a store as the controller makes them, over what a dump shows."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence

from store.fake import Dump, Turns
from store.turns import NOW_MS

from exesys.bus.messages import Find, Repair
from exesys.store.keys import Keys
from exesys.store.walk import Page, Walk
from exesys.turn import Ended, Looked, Turn

MOST_PASSES = 8


class Shelf:
    """What a dump has, a page at a time, as Upkeep reads it from Redis."""

    def __init__(self, dump: Dump, keys: Keys) -> None:
        self.keys = keys
        self._dump = dump
        self.pages: list[Page] = []

    def page(self, page: Page, count: int) -> tuple[int, list[bytes]]:
        self.pages.append(page)
        members = sorted(self._dump.get(page.key, ((), None))[0]) if page.key else sorted(self._dump)
        found = [member.encode() for member in members[page.cursor : page.cursor + count]]
        after = page.cursor + count
        return (after if after < len(members) else 0), found


def finds_of(dump: Dump, keys: Keys, count: int = 7) -> Iterator[list[Find]]:
    """Walk through a dump once; give the finds of each page."""
    walk, shelf = Walk(keys), Shelf(dump, keys)
    while walk.page is not None:
        yield walk.take(*shelf.page(walk.page, count))


def look(store: Turns, finds: Iterable[Find], known: Sequence[str] = (), now_ms: int = NOW_MS) -> Looked:
    """Have the store look at finds, to their end; what was found in several looks is put together."""
    left = list(finds)
    looked = Looked(0)
    for _ in range(10_000):
        if not left:
            return looked
        more = store.run(Turn(now_ms, finds=copy.copy(left), known=list(known))).looked
        assert more is not None
        assert more.done
        left = [*more.again, *left[more.done :]]
        looked = Looked(looked.done + more.done, (), *(a + b for a, b in zip(looked[2:], more[2:], strict=True)))
    raise AssertionError("there is always something to go on with")


def walk_once(store: Turns, known: Sequence[str] = (), now_ms: int = NOW_MS) -> Looked:
    """Walk through a store once, and have it look at all that is found."""
    looked = Looked(0)
    for finds in list(finds_of(store.dump(), store.keys)):
        more = look(store, finds, known, now_ms)
        looked = Looked(looked.done + more.done, (), *(a + b for a, b in zip(looked[2:], more[2:], strict=True)))
    return looked


def mend(store: Turns, known: Sequence[str] = (), now_ms: int = NOW_MS) -> tuple[list[Repair], list[Ended]]:
    """Walk until nothing is left to mend; return what was mended, but for sessions nobody knows, and what failed.

    A session that comes back to nobody is released, as the router does it after a lease.
    """
    repairs: list[Repair] = []
    ended: list[Ended] = []
    for _ in range(MOST_PASSES):
        looked = walk_once(store, known, now_ms)
        ended += looked.ended
        for session in dict.fromkeys(looked.strays):
            ended += release(store, session, now_ms)
        new = [repair for repair in looked.repairs if repair.kind != "stray"]
        repairs += new
        if not new and not looked.strays:
            return repairs, ended
    raise AssertionError(f"there is always something to mend: {looked}")


def release(store: Turns, session: str, now_ms: int = NOW_MS) -> list[Ended]:
    """Give back what a session holds."""
    gone: list[Ended] = []
    while True:
        [(left, failed)] = store.run(Turn(now_ms, lost=[session])).lost
        gone += failed
        if not left:
            return gone
