"""The line to a slot: whole messages, each read by one reader."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import msgpack
import pytest

from exesys.channel import INLINE_BYTES, Channel, pair

Line = tuple[Channel, Channel]


@pytest.fixture
def line() -> Iterator[Line]:
    near, far = (Channel(end) for end in pair())
    with contextlib.closing(near), contextlib.closing(far):
        yield near, far


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def padded(packed_bytes: int) -> list[bytes]:
    """Make a message of exactly so many bytes on the line."""
    message = [b"x" * (packed_bytes - 4)]
    while len(msgpack.packb(message)) > packed_bytes:
        message[0] = message[0][:-1]
    assert len(msgpack.packb(message)) == packed_bytes
    return message


def test_messages_go_both_ways(line: Line) -> None:
    near, far = line
    assert near.send(["job", "a:j", 1, b"\xc0", None, 1.5])
    assert far.receive() == ("job", "a:j", 1, b"\xc0", None, 1.5)
    assert far.send(("done", ["x", ["y"]], {"k": True}))
    assert near.receive() == ("done", ("x", ("y",)), {"k": True})


@pytest.mark.parametrize(
    "size", [300, INLINE_BYTES - 1, INLINE_BYTES, INLINE_BYTES + 1, 70_000, 300_000, 5 << 20, 40 << 20]
)
def test_a_message_of_any_size_arrives_whole(line: Line, size: int) -> None:
    near, far = line
    message = padded(size)
    assert near.send(message)
    assert far.receive() == tuple(message)
    assert far.receive(wait=False) is None


def test_small_and_large_messages_keep_their_order(line: Line) -> None:
    near, far = line
    sent = [[number, b"x" * (50_000 if number % 3 == 0 else 10)] for number in range(60)]
    for message in sent:
        assert near.send(message, wait=False)
    assert [far.receive() for _ in sent] == [tuple(message) for message in sent]


def test_large_messages_leave_no_descriptor_behind(line: Line) -> None:
    near, far = line
    before = descriptors()
    for _ in range(50):
        assert near.send([b"x" * 100_000])
        far.receive()
    assert descriptors() == before


def test_nothing_there_is_none(line: Line) -> None:
    assert line[1].receive(wait=False) is None


@pytest.mark.parametrize("size", [100, 10_000])
def test_a_full_line_takes_no_more_and_loses_nothing(line: Line, size: int) -> None:
    near, far = line
    before = descriptors()
    taken = 0
    while taken < 100_000 and near.send([taken, b"x" * size], wait=False):
        taken += 1
    assert 10 < taken < 100_000
    assert [far.receive(wait=False)[0] for _ in range(taken)] == list(range(taken))
    assert far.receive(wait=False) is None
    assert near.send(["again"], wait=False)
    assert descriptors() == before


@pytest.mark.parametrize("size", [10, 10_000])
def test_when_the_other_end_is_gone_nothing_is_sent(size: int) -> None:
    near, far = (Channel(end) for end in pair())
    far.close()
    assert not near.send([b"x" * size])
    assert not near.send([b"x" * size], wait=False)
    assert near.receive() is None
    near.close()


def test_what_was_said_before_the_end_can_still_be_read() -> None:
    near, far = (Channel(end) for end in pair())
    assert far.send(["done", 1])
    assert far.send([b"x" * 100_000])
    far.close()
    assert near.receive() == ("done", 1)
    assert near.receive() == (b"x" * 100_000,)
    assert near.receive() is None
    near.close()


def test_who_waits_is_woken_by_the_end_of_the_other() -> None:
    near, far = (Channel(end) for end in pair())
    got: list[object] = ["nothing yet"]
    reader = threading.Thread(target=lambda: got.append(far.receive()))
    reader.start()
    near.close()
    reader.join(10)
    assert got[1:] == [None]
    far.close()


def test_each_message_goes_to_the_slot_or_back_and_never_both(line: Line) -> None:
    """The daemon takes jobs back by reading the slot's own end, while the slot reads it too."""
    near, far = line
    slots_end = Channel(far._socket.dup())
    begun: list[int] = []
    taken_back: list[int] = []
    count = 3000

    def slot() -> None:
        while (message := slots_end.receive()) is not None:
            begun.append(message[0])

    def daemon() -> None:
        while len(begun) + len(taken_back) < count and reader.is_alive():
            message = far.receive(wait=False)
            if message is not None:
                taken_back.append(message[0])

    reader = threading.Thread(target=slot)
    taker = threading.Thread(target=daemon)
    reader.start()
    taker.start()
    for number in range(count):
        assert near.send([number, b"x" * (5000 if number % 10 == 0 else 10)])
    taker.join(20)
    near.close()
    reader.join(20)
    slots_end.close()
    assert sorted(begun + taken_back) == list(range(count))
    assert begun == sorted(begun)
    assert taken_back == sorted(taken_back)
    assert taken_back, "both had their share"


def test_what_was_said_before_an_end_went_is_heard_though_it_had_not_read_all(line: Line) -> None:
    near, far = line
    assert near.send(["stop"])
    assert far.send(["ended", 1])
    assert far.send(["note"])
    far.close()
    assert near.receive() == ("ended", 1)
    assert near.receive(wait=False) == ("note",)
    assert near.receive() is None
    assert near.receive(wait=False) is None
