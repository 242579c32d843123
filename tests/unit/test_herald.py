"""Publishing what happens to steps: only while somebody listens, each piece where the last one ended."""

from __future__ import annotations

import pytest
from unit.world import CATALOGUE, CONFIG

from exesys.bus.door import Door
from exesys.bus.effects import Publish
from exesys.bus.herald import TOPIC, Herald
from exesys.bus.roster import Roster
from exesys.bus.slate import Slate
from exesys.meters import Meters
from exesys.news import Entry
from exesys.turn import MOST_FOLLOWED, NEWEST, Answers, Turn

LINE = {b"e": b"a:j 0 0 add b"}


@pytest.fixture
def slate() -> Slate:
    return Slate(CONFIG, 7, Roster(CONFIG.lease_s), Door(CONFIG, CATALOGUE), Meters(0.0, bool))


def pieces(slate: Slate) -> list[object]:
    """Return what was published since, and forget it."""
    found = []
    for effect in slate.effects:
        assert isinstance(effect, Publish)
        assert (effect.topic, effect.message.epoch) == (TOPIC, 7)
        found.append(effect.message.body)
    slate.effects = []
    return found


def turn(herald: Herald, *found: Entry, busy: bool = True) -> Turn:
    """Plan a turn, and have the store find this."""
    asked = Turn(opened=["s"] if busy else [])
    herald.plan(asked)
    herald.applied(asked, Answers(followed=list(found) if asked.follow else None))
    return asked


def test_while_nobody_listens_nothing_is_read(slate: Slate) -> None:
    herald = Herald(slate)
    assert turn(herald).follow == ""
    assert herald.beat() == TOPIC
    assert pieces(slate) == []


def test_a_listener_is_told_where_it_begins_and_then_what_is_new(slate: Slate) -> None:
    herald = Herald(slate)
    herald.listened_to(True)
    assert turn(herald, Entry("5-0", LINE), busy=False).follow == NEWEST, "also when there is nothing else to do"
    assert turn(herald, busy=False).follow == "", "an idle router stays idle"
    assert turn(herald, Entry("6-0", LINE), Entry("6-1", LINE)).follow == "5-0"
    assert turn(herald).follow == "6-1"
    herald.beat()
    assert pieces(slate) == [
        ["5-0", "5-0", []],
        ["5-0", "6-1", [["6-0", LINE], ["6-1", LINE]]],
        ["6-1", "6-1", []],
    ]


def test_what_is_too_much_for_one_turn_comes_with_the_next(slate: Slate) -> None:
    herald = Herald(slate)
    herald.listened_to(True)
    turn(herald)
    many = [Entry(f"{number}-0", LINE) for number in range(1, MOST_FOLLOWED + 1)]
    turn(herald, *many)
    assert turn(herald, Entry("999-0", LINE), busy=False).follow == f"{MOST_FOLLOWED}-0"
    assert turn(herald, busy=False).follow == ""
    assert [body[:2] for body in pieces(slate)] == [  # type: ignore[index]  # they are lists
        ["0-0", "0-0"],
        ["0-0", f"{MOST_FOLLOWED}-0"],
        [f"{MOST_FOLLOWED}-0", "999-0"],
    ]


def test_what_could_not_be_read_is_read_with_the_next_turn(slate: Slate) -> None:
    herald = Herald(slate)
    herald.listened_to(True)
    turn(herald, Entry("5-0", LINE))
    asked = Turn(opened=["s"])
    herald.plan(asked)
    herald.applied(asked, Answers())
    assert turn(herald, Entry("6-0", LINE)).follow == "5-0"


def test_when_all_have_gone_it_ends_and_begins_anew(slate: Slate) -> None:
    herald = Herald(slate)
    herald.listened_to(True)
    turn(herald, Entry("5-0", LINE))
    herald.listened_to(False)
    assert turn(herald).follow == ""
    herald.listened_to(True)
    assert turn(herald, Entry("9-0", LINE)).follow == NEWEST
    assert pieces(slate) == [["5-0", "5-0", []], ["9-0", "9-0", []]]
