"""Whom a replica may follow: a store that has all that the replica has, by the lives of its routers."""

from __future__ import annotations

import copy
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys.store import lineage
from exesys.store.lineage import Lineage, lacking


class Log:
    """A store as the sequence of its writes: lives that began, and turns. What it has is a beginning of that."""

    def __init__(self) -> None:
        self.writes: list[tuple[str, str]] = []

    def boot(self, id: str) -> None:
        """A router starts: its epoch is one more than that of the last start that is still there."""
        self.writes.append(("life", lineage.written(id, self.mark())))
        self.epoch = sum(kind == "life" for kind, _ in self.writes)
        self.number = 0

    def turn(self) -> None:
        self.number += 1
        self.writes.append(("turn", f"{self.epoch}.{self.number}"))

    def mark(self) -> bytes | None:
        return next((text.encode() for kind, text in reversed(self.writes) if kind == "turn"), None)

    def lineage(self) -> Lineage:
        return lineage.read([text.encode() for kind, text in self.writes if kind == "life"], self.mark())


def written(*turns: int) -> Log:
    log = Log()
    for number, count in enumerate(turns):
        log.boot(f"life{number}")
        for _ in range(count):
            log.turn()
    return log


def test_an_empty_replica_follows_any_and_none_follows_an_empty_master():
    empty, full = Log().lineage(), written(3).lineage()
    assert lacking(full, empty) == lacking(empty, empty) == ""
    assert lacking(empty, full) == "it is empty, and the replica is not"


def test_the_same_and_one_that_is_ahead_are_followed():
    log = written(2, 0, 3)
    replica = log.lineage()
    assert lacking(log.lineage(), replica) == ""
    log.turn()
    assert lacking(log.lineage(), replica) == ""
    log.boot("next")
    assert lacking(log.lineage(), replica) == ""
    for number in range(5):
        log.boot(f"idle{number}")
    assert lacking(log.lineage(), replica) == ""


def test_another_store_is_not_followed():
    other = written(9)
    other.boot("another")
    other.writes[0] = ("life", "strange ")
    assert "another store" in lacking(other.lineage(), written(3).lineage())


def test_one_that_went_on_from_an_earlier_turn_is_told_by_its_turns():
    log = written(5)
    replica = log.lineage()
    del log.writes[-2:]
    assert lacking(log.lineage(), replica) == "it is at turn 1.3, the replica at 1.5"
    log.boot("again")
    for _ in range(9):
        log.turn()
    assert lacking(log.lineage(), replica) == "it went on from turn 1.3, and the replica has 1.5"


@given(st.lists(st.integers(0, 4), min_size=1, max_size=5), st.data())
def test_it_is_followed_just_when_it_has_every_turn_that_the_replica_has(turns, data):
    """The master is damaged, cut off anywhere, and goes on; what the replica has is cut off anywhere."""
    master = written(*turns)
    replica = copy.deepcopy(master)
    del replica.writes[data.draw(st.integers(0, len(replica.writes))) :]
    del master.writes[data.draw(st.integers(0, len(master.writes))) :]
    kept = len(master.writes)
    dice = random.Random(data.draw(st.integers(0, 1000)))
    for number in range(data.draw(st.integers(0, 3))):
        master.boot(f"new{number}")
        for _ in range(dice.randrange(6)):
            master.turn()
    lost = [write for write in replica.writes[kept:] if write[0] == "turn"]
    lives = [text.partition(" ")[0] for kind, text in replica.writes if kind == "life"]
    known = not lives or any(text.startswith(f"{lives[-1]} ") for kind, text in master.writes if kind == "life")
    assert (lacking(master.lineage(), replica.lineage()) == "") == (known and not lost)


@pytest.mark.parametrize("text", [b"", b"x", b"\xff \xfe", b"id 1", b"id 1.", b"id one.two", b"id -1.2", b"a b c d"])
def test_what_a_hand_has_spoilt_is_read_as_nothing(text):
    found = lineage.read([text], text.rpartition(b" ")[2])
    assert found.mark == lineage.NO_MARK
    assert found.lives[0].found == lineage.NO_MARK
