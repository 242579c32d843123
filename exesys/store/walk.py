"""One walk through all of the store, a page at a time. Pure: it says what to read, and makes finds of it.

First the lists, then the whole key space by SCAN, and the queues and what
sessions hold as they are met. What is there all the time is seen at least
once, whatever moves meanwhile: that is what SCAN and its kin promise. Whether
a find fits is decided where it can be mended (mend.lua).
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from exesys.bus.messages import Find
from exesys.runner import TYPE, UUID
from exesys.store.keys import Keys, Spelled

# The lists that are always walked -> what their members are found as.
LISTS = {
    **{"sessions": "session", "runners": "runners", "ended": "ended"},
    **{"delayed": "delayed", "standby": "standby", "dead": "dead"},
}
SETS = ("sessions", "runners")
# Lists that are met on the way; their members are found as of these kinds.
MET = ("ready", "lane", "keyed", "running", "held")
MET_SETS = ("keyed", "running")


# What is no name of a runner is passed over, and told of by those who read it (oddities.py).
RUNNER = re.compile(rf"{TYPE.pattern}:{UUID.pattern}")
STOP = re.compile(rf"{TYPE.pattern}:({UUID.pattern})?")


class Page(NamedTuple):
    """What to read next: members of `key` from `cursor` on, or keys where it is empty."""

    key: str
    is_set: bool
    kind: str  # what its members are found as
    place: str
    cursor: int


class Walk:
    """A walk from the beginning to the end."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys
        self.seen = 0  # keys and members so far
        self._left = deque(Page(keys(name), name in SETS, kind, "", 0) for name, kind in LISTS.items())
        self._left.append(Page("", False, "", "", 0))

    @property
    def page(self) -> Page | None:
        """What to read next; None at the end."""
        return self._left[0] if self._left else None

    def take(self, cursor: int, found: Iterable[bytes]) -> list[Find]:
        """Take what was read of the page; `cursor` is where it goes on, 0 at its end."""
        page = self._left.popleft()
        finds: list[Find] = []
        for raw in found:
            self.seen += 1
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                continue  # no name of ours
            if page.key:
                finds += _of_ours(Find(page.kind, page.place, text, ""))
            else:
                finds += self._met(text)
        if cursor:
            # The lists that were met come first, so that few wait.
            self._left.append(page._replace(cursor=cursor))
        return finds

    def _met(self, text: str) -> list[Find]:
        match self._keys.read(text):
            case Spelled("record", (ref, _)):
                return [Find("step", "", ref, "")]
            case Spelled("run", (type_, uuid)):
                return _of_ours(Find("run", type_, uuid, ""))
            case Spelled("recount" | "tallied" | "recount_left", (part,)):
                return [Find("recount", "", part, "")]
            case Spelled("job" | "flow" | "log" | "runner" | "runner_log" as name, (part,)):
                return _of_ours(Find(name, "", part, ""))
            case Spelled(name, (place,)) if name in MET:
                self._left.append(Page(text, name in MET_SETS, name, place, 0))
                return [Find("session", "", place, "")] if name == "held" else []
        return []


def _of_ours(find: Find) -> list[Find]:
    if find.kind == "run":
        return [find] if STOP.fullmatch(f"{find.place}:{find.name}") else []
    if find.kind in ("runner", "runner_log", "runners", "ended"):
        return [find] if RUNNER.fullmatch(find.name) else []
    return [find]
