"""The controller's rounds: it walks through the store and has the router mend what does not fit.

Slowly, so that it is not noticed: a page is read, its finds go to the router
in one MEND, and the next page is read when so many are due again. Nothing
waits here, neither for time nor for the router: `step` does what there is to
do and says in `wake_at` when to call it again.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import Protocol

from exesys import mending
from exesys.bus import messages as m
from exesys.config import Controller
from exesys.store.keys import Keys
from exesys.store.walk import Page, Walk

PAGE = 100
ANSWER_S = 10.0  # without an answer for so long the same is asked again: it does no harm
LOOK_S = 0.02  # how often to look whether an answer has come, when it is late
PAUSE_S = 1.0  # before the same is asked again when the router or the store was away
MINUTE_S = 60.0
MOST_LINES = 20  # in the log, a minute

log = logging.getLogger("controller")


class Shelves(Protocol):
    """What reads pages: `store.upkeep.Upkeep`."""

    keys: Keys

    def page(self, page: Page, count: int) -> tuple[int, list[bytes]]: ...


class Router(Protocol):
    """What takes questions: `bus.client.Client`."""

    def ask_later(self, before: int, question: Callable[[int], m.Message], then: Callable[[m.Reply], None]) -> int: ...


class Rounds:
    """Walks, one after the other. Times are monotonic seconds."""

    def __init__(self, settings: Controller, shelves: Shelves, router: Router) -> None:
        self._settings = settings
        self._shelves = shelves
        self._router = router
        self._lines = Lines()
        self._tag = 0
        self.restart(float("-inf"))

    def restart(self, now: float) -> None:
        """Forget the walk; the next one begins with the next step."""
        self._walk: Walk | None = None
        self._began_at = now
        self._finds: list[m.Find] = []  # not looked at yet
        self._asked_at: float | None = None
        self._answers: deque[m.Reply] = deque()  # another thread puts them in
        self.wake_at = now if self._settings.walk_s else float("inf")

    def step(self, now: float) -> None:
        """Do what is due. Raises StoreAway."""
        self._lines.tell(now)
        if now < self.wake_at:
            return
        if self._asked_at is not None and not self._heard(now):
            return
        if not self._finds:
            self._read(now)
        else:
            self._ask(now)

    def _heard(self, now: float) -> bool:
        """Take the answer; tell whether one can go on."""
        # One to a question that was given up is nothing any more.
        answer = next((each for each in iter(self._popped, None) if each.tag == self._tag), None)
        if answer is None:
            self.wake_at = now + LOOK_S
            if self._asked_at is not None and now - self._asked_at > ANSWER_S:
                self._ask(now)
            return False
        self._asked_at = None
        assert isinstance(answer, m.Mended)
        if not answer.done:
            self.wake_at = now + PAUSE_S
            return False
        self._finds = [*answer.again, *self._finds[answer.done :]]
        self._lines.add(answer.repairs, now)
        return True

    def _popped(self) -> m.Reply | None:
        return self._answers.popleft() if self._answers else None

    def _read(self, now: float) -> None:
        if self._walk is None:
            self._walk, self._began_at = Walk(self._shelves.keys), now
        page = self._walk.page
        if page is None:
            log.debug("walked past %d keys and entries in %.1f s", self._walk.seen, now - self._began_at)
            self._walk = None
            self.wake_at = self._began_at + self._settings.walk_s
            return
        before = self._walk.seen
        self._finds = self._walk.take(*self._shelves.page(page, PAGE))
        if self._finds:
            self._ask(now)
        self._rest(now, self._walk.seen - before)

    def _ask(self, now: float) -> None:
        finds, answers = tuple(self._finds), self._answers
        self._tag = self._router.ask_later(self._tag, lambda tag: m.Mend(tag, finds), answers.append)
        if self._tag:
            self._asked_at = now
            self._rest(now, 1)
        else:
            self.wake_at = now + PAUSE_S

    def _rest(self, now: float, seen: int) -> None:
        """Let so much time pass as so many keys may take."""
        self.wake_at = max(self.wake_at, now + max(seen, 1) / self._settings.walk_rate)


class Lines:
    """What was mended, in the log: at most so many lines a minute, the rest as a sum."""

    def __init__(self) -> None:
        self._until = float("-inf")
        self._left = MOST_LINES
        self._more = 0

    def add(self, repairs: Iterable[m.Repair], now: float) -> None:
        """Tell of these."""
        for kind, name in repairs:
            self.tell(now)
            if self._left == MOST_LINES:
                self._until = now + MINUTE_S
            if self._left:
                self._left -= 1
                log.warning("mended %.400s", mending.told(kind, name))
            else:
                self._more += 1

    def tell(self, now: float) -> None:
        """When the minute is over tell how many were left out."""
        if now >= self._until:
            if self._more:
                log.warning("mended %d more; `bin/exesys doctor` shows all by their kind", self._more)
            self._left, self._more = MOST_LINES, 0
