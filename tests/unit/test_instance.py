"""What a runner prints and tells, on its way to the daemon; the rest of an instance is in `test_nursery.py`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

import pytest

from exesys.channel import Channel, pair
from exesys.instance import CHUNK_BYTES, TELL_S, Scribe

DEADLINE_S = 20.0


class Desk:
    """A scribe, and the daemon's end of its line."""

    def __init__(self, near: Channel, far: Channel) -> None:
        self.line = near
        self.scribe = Scribe(far)

    def heard(self) -> list[tuple[float, str, str]]:
        """Return what has arrived: fraction, text, log."""
        notes = []
        while (message := self.line.receive(wait=False)) is not None:
            assert message[0] == "note"
            notes.append(message[1:])
        return notes

    def log(self) -> str:
        return "".join(log for _, _, log in self.heard())

    def until(self, text: str) -> list[str]:
        """Wait until so much has been logged; return the parts in which it came."""
        parts: list[str] = []
        deadline = time.monotonic() + DEADLINE_S
        while text not in "".join(parts):
            assert time.monotonic() < deadline, parts
            parts += [log for _, _, log in self.heard()]
            time.sleep(0.01)
        return parts


@pytest.fixture
def desk() -> Iterator[Desk]:
    near, far = map(Channel, pair())
    with contextlib.closing(near), contextlib.closing(far):
        desk = Desk(near, far)
        yield desk
        desk.scribe._channel = Channel(pair()[1])  # its thread may live on


def busy(desk: Desk) -> None:
    """Have it tell something, so that what follows is put together."""
    desk.scribe.write("!")
    assert desk.log() == "!"


def test_the_first_word_is_told_at_once(desk: Desk) -> None:
    assert desk.scribe.writable()
    assert desk.scribe.write("hello\n") == 6
    assert desk.heard() == [(-1.0, "", "hello\n")]


def test_many_words_are_told_together_soon_and_in_their_order(desk: Desk) -> None:
    began = time.monotonic()
    text = "".join(f"{number}\n" for number in range(500))
    for line in text.splitlines(keepends=True):
        desk.scribe.write(line)
    parts = desk.until("499\n")
    assert "".join(parts) == text
    passed_s = time.monotonic() - began
    assert len(parts) <= 2 + passed_s / TELL_S


def test_progress_is_told_with_what_was_printed_and_the_last_counts(desk: Desk) -> None:
    busy(desk)
    desk.scribe.progress(0.25, "a quarter")
    desk.scribe.write("half way\n")
    desk.scribe.progress(0.5, "half")
    desk.scribe.tell_all()
    assert desk.heard() == [(0.5, "half", "half way\n")]
    desk.scribe.tell_all()
    assert desk.heard() == [], "there is nothing new"
    desk.scribe.write("more")
    desk.scribe.tell_all()
    assert desk.heard() == [(0.5, "half", "more")]


def test_progress_alone_is_told(desk: Desk) -> None:
    desk.scribe.progress(0.0, "begins")
    assert desk.heard() == [(0.0, "begins", "")]


@pytest.mark.parametrize("char", ["x", "é", "€", "😀"])
def test_of_too_much_at_once_the_end_is_kept_and_it_is_said_how_much_is_missing(desk: Desk, char: str) -> None:
    busy(desk)
    text = char * (3 * CHUNK_BYTES)
    desk.scribe.write(text)
    desk.scribe.tell_all()
    [(_, _, log)] = desk.heard()
    head, _, rest = log.partition("\n")
    kept = len(rest.encode())
    assert text.endswith(rest)
    assert CHUNK_BYTES / 4 <= kept <= CHUNK_BYTES
    assert head == f"… {len(text.encode()) - kept} bytes left out: more was printed than can be kept …"


def test_of_too_many_lines_the_last_are_kept(desk: Desk) -> None:
    busy(desk)
    lines = [f"{number:99d}\n" for number in range(1000)]
    for line in lines:
        desk.scribe.write(line)
    desk.scribe.tell_all()
    heard = desk.log()
    assert heard.endswith("".join(lines[-50:]))
    told = [line for line in heard.splitlines() if "left out" in line]
    left_out = sum(int(line.split()[1]) for line in told)
    kept = sum(len(line) + 1 for line in heard.splitlines() if "left out" not in line)
    assert left_out + kept == 100_000


def test_what_is_no_text_is_told_as_an_escape(desk: Desk) -> None:
    desk.scribe.write("a \udc80 b\n")
    assert desk.log() == "a \\udc80 b\n"


def test_writers_in_many_threads_lose_nothing(desk: Desk) -> None:
    def write(number: int) -> None:
        for each in range(100):
            desk.scribe.write(f"<{number}.{each}>")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    desk.scribe.tell_all()
    heard = desk.log()
    for number in range(8):
        places = [heard.index(f"<{number}.{each}>") for each in range(100)]
        assert places == sorted(places)


def test_a_line_that_is_closed_stops_no_runner(desk: Desk) -> None:
    desk.line.close()
    desk.scribe.write("nobody hears\n")
    desk.scribe.tell_all()
