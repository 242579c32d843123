"""The controller's rounds: paced, patient, quiet. Over a dump, with a router made up."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
from store.fake import Dump, FakeStore
from store.turns import place, submit, wait
from store.walks import Shelf, finds_of

from exesys import mending
from exesys.bus import messages as m
from exesys.config import Controller, Limits
from exesys.rounds import ANSWER_S, MINUTE_S, MOST_LINES, PAUSE_S, Rounds
from exesys.store.keys import Keys

STRANGE = {
    **{"exesys:order": b"5", "exesys:jobs": [], "foreign": b"x", "a:b:c:d": b"x", "exesys:nothing": b"x"},
    **{"exesys:mended": {}, "a:j:somewhere": {}, "exesys:queue:q": {}},
    # No names of runners: others tell of these.
    **{"run:a:b:c": b"0", "run:a b:c": b"0", "exesys:runner:odd": {}, "exesys:runners": {"odd", "a:b:c"}},
}


class Router:
    """Notes what it is asked, and answers when it is told to."""

    def __init__(self) -> None:
        self.here = True
        self.asked: list[m.Mend] = []
        self._then: Callable[[m.Reply], None] = lambda _: None

    def ask_later(self, before: int, question: Callable[[int], m.Message], then: Callable[[m.Reply], None]) -> int:
        if not self.here:
            return 0
        message = question(before + 1)
        assert isinstance(message, m.Mend)
        self.asked.append(message)
        self._then = then
        return message.tag

    def answer(self, done: int | None = None, again: tuple[m.Find, ...] = (), *repairs: m.Repair) -> None:
        last = self.asked[-1]
        self._then(m.Mended(last.tag, len(last.finds) if done is None else done, again, repairs))


class Walker:
    """Rounds over a dump, moved by hand."""

    def __init__(self, dump: Dump, **settings: float) -> None:
        self.router = Router()
        self.shelf = Shelf(dump, Keys())
        self.now = 1000.0
        self.rounds = Rounds(Controller(**settings), self.shelf, self.router)  # type: ignore[arg-type]  # from a test

    def step(self) -> None:
        """Let time pass until something is due, and do that."""
        self.now = max(self.now, self.rounds.wake_at)
        self.rounds.step(self.now)

    def walk(self) -> list[m.Find]:
        """Walk once, with a router that answers at once; return all finds."""
        finds: list[m.Find] = []
        before = len(self.router.asked)
        for _ in range(10_000):
            self.step()
            if len(self.router.asked) > before:
                before = len(self.router.asked)
                finds += self.router.asked[-1].finds
                self.router.answer()
            elif self.rounds._walk is None:
                return finds
        raise AssertionError("the walk never ends")


def some(count: int = 30) -> Dump:
    store = FakeStore(Limits())
    submit(store, *(place(f"j{number}") for number in range(count)), wait("b", job="w"))
    store.db.sadd("exesys:sessions", "1" * 16)
    store.db.zadd("exesys:held:" + "2" * 16, "x:y", 1)
    store.db.values["run:cam:7"] = b"0"
    return store.dump() | {key: (value, None) for key, value in STRANGE.items()}


def test_all_that_is_ours_is_found_and_nothing_else() -> None:
    finds = Walker(some(3)).walk()
    assert set(finds) == {
        *(m.Find("step", "", f"a:j{number}", "") for number in range(3)),
        *(m.Find("job", "", f"j{number}", "") for number in range(3)),
        *(m.Find("ready", "default", f"a:j{number}", "") for number in range(3)),
        *(m.Find(kind, "", "w", "") for kind in ("job",)),
        *(m.Find("step", "", "b:w", ""), m.Find("standby", "", "b:w", "")),
        *(m.Find("session", "", "1" * 16, ""), m.Find("session", "", "2" * 16, "")),
        *(m.Find("held", "2" * 16, "x:y", ""), m.Find("run", "cam", "7", "")),
    }
    assert len(finds) == len(set(finds))


def test_pages_are_small_and_names_that_are_none_are_passed_over() -> None:
    walker = Walker(some(1000))
    walker.walk()
    assert max(len(asked.finds) for asked in walker.router.asked) <= 100
    found = [find for finds in finds_of(some(50), Keys()) for find in finds]
    assert set(found) == set(Walker(some(50)).walk())


def test_a_walk_takes_the_time_that_its_rate_says() -> None:
    walker = Walker(some(2000), walk_rate=500)
    walker.walk()
    assert walker.shelf.pages
    keys_and_members = 2000 * 3 + 20
    assert keys_and_members / 500 * 0.9 < walker.now - 1000 < keys_and_members / 500 * 1.3


def test_the_next_walk_begins_so_long_after_the_last_one_began() -> None:
    walker = Walker(some(3), walk_s=60)
    walker.walk()
    assert walker.now < 1010
    walker.walk()
    assert 1060 <= walker.now < 1070


def test_a_walk_of_zero_seconds_is_none() -> None:
    walker = Walker(some(3), walk_s=0)
    assert walker.rounds.wake_at == float("inf")
    walker.rounds.restart(5.0)
    walker.rounds.step(10.0**9)
    assert walker.shelf.pages == []


def test_what_was_not_looked_at_is_sent_again_and_what_takes_longer_goes_on() -> None:
    walker = Walker(some(30))
    while not walker.router.asked or len(walker.router.asked[-1].finds) < 4:
        walker.step()
        if walker.router.asked and len(walker.router.asked[-1].finds) < 4:
            walker.router.answer()
    first = walker.router.asked[-1].finds
    more = first[0]._replace(at="200")
    walker.router.answer(3, (more,))
    walker.step()
    assert walker.router.asked[-1].finds == (more, *first[3:])


def test_a_router_that_does_not_answer_is_asked_the_same_again() -> None:
    walker = Walker(some(5))
    while not walker.router.asked:
        walker.step()
    first, at = walker.router.asked[-1], walker.now
    while len(walker.router.asked) < 2:
        walker.step()
    assert walker.router.asked[-1].finds == first.finds
    assert ANSWER_S <= walker.now - at < ANSWER_S + 2


def test_a_router_or_store_that_is_away_is_asked_after_a_pause() -> None:
    walker = Walker(some(5))
    walker.router.here = False
    while not walker.shelf.pages or walker.rounds.wake_at < walker.now + PAUSE_S:
        walker.step()
    walker.router.here = True
    walker.step()
    [first] = walker.router.asked
    walker.router.answer(0)
    at = walker.now
    while len(walker.router.asked) < 2:
        walker.step()
    assert walker.router.asked[-1].finds == first.finds
    assert walker.now - at >= PAUSE_S


def test_what_was_mended_is_told_but_not_without_end(caplog: pytest.LogCaptureFixture) -> None:
    walker = Walker(some(5))
    while not walker.router.asked:
        walker.step()
    repairs = [m.Repair("orphan", f"a:j{number}") for number in range(MOST_LINES + 7)]
    walker.router.answer(None, (), *repairs)
    walker.step()
    assert len(caplog.messages) == MOST_LINES
    assert caplog.messages[0] == "mended a:j0: it was listed, and there was no record; it was taken out."
    walker.now += MINUTE_S
    walker.rounds.step(walker.now)
    assert caplog.messages[MOST_LINES:] == ["mended 7 more; `bin/exesys doctor` shows all by their kind"]
    assert {record.levelno for record in caplog.records} == {logging.WARNING}


def test_a_restart_forgets_the_walk_and_what_was_asked() -> None:
    walker = Walker(some(5))
    while not walker.router.asked:
        walker.step()
    walker.rounds.restart(walker.now)
    walker.router.answer(0)
    pages = len(walker.shelf.pages)
    walker.step()
    assert walker.shelf.pages[pages].key == "exesys:sessions"


def test_totals_are_read_and_what_is_spoilt_is_left_out() -> None:
    fields = {b"orphan": b"3", b"orphan:at": b"99", b"stuck": b"1", b"odd": b"x", b"\xff": b"y", b"late:at": b"5"}
    assert mending.totals(fields) == {"orphan": (3, 99), "stuck": (1, 0)}
