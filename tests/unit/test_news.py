"""What is told of steps: read from the stream, gathered into frames, spelt as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys import news
from exesys.bus.listener import Hearing
from exesys.errors import BadCommand, ProtocolError
from exesys.news import MOST, PLAIN, Entry, Mark, Moved, Progress, Wanted
from exesys.states import State


def entry(*lines: str, id_: str = "1700000000000-0") -> Entry:
    return Entry(id_, {b"e": "\n".join(lines).encode()})


def many(count: int, states: str = "023", cmd: str = "add") -> Iterator[Entry]:
    """Give entries of ten lines: jobs that go through these states, one after the other."""
    lines = [f"client:j{job} {state} 1 {cmd} end_job" for job in range(count) for state in states]
    for start in range(0, len(lines), 10):
        yield entry(*lines[start : start + 10], id_=f"17{start:011d}-0")


def test_a_line_says_which_step_stands_where() -> None:
    [first, second] = news.read(entry("a:j 0 0 add b", "a>b:j 3 2 echo *"))
    assert first == Moved(Mark("1700000000000-0", 1), "j", "a", "b", "add", State.start, 0)
    assert first.told() == {
        **{"job_id": "j", "from": "a", "to": "b", "cmd": "add"},
        **{"status": 0, "state": "start", "at_ms": 1700000000000, "attempt": 0},
    }
    assert (second.from_, second.told()["to"], second.told()["state"]) == ("a", "", "data_available")
    assert str(second.mark) == "1700000000000-0-2"


def test_progress_is_told_with_its_text() -> None:
    fields = {b"p": b"a:j", b"a": b"2", b"f": b"0.25", b"t": b"ein Viertel\nfertig"}
    [told] = news.read(Entry("5-1", fields))
    assert told == Progress(Mark("5-1", 1), "j", "a", 2, 0.25, "ein Viertel\nfertig", False)
    [only_log] = news.read(Entry("5-1", {**fields, b"f": b"-1", b"l": b"1"}))
    assert (only_log.told()["fraction"], only_log.told()["log"]) == (None, True)


@given(st.dictionaries(st.sampled_from([b"e", b"p", b"a", b"f", b"t"]), st.binary(max_size=40)))
def test_what_makes_no_sense_is_passed_over(fields: dict[bytes, bytes]) -> None:
    for told in news.read(Entry("5-1", fields)):
        assert json.dumps(told.told())


def test_few_are_told_one_by_one() -> None:
    frame = news.gathered(list(many(30)), Wanted())
    assert frame.left_out == 0
    assert [(each.job_id, int(each.state)) for each in frame.news[:4]] == [("j0", 0), ("j0", 2), ("j0", 3), ("j1", 0)]
    assert len(frame.news) == 90 <= PLAIN


def test_of_many_the_newest_state_is_told() -> None:
    frame = news.gathered(list(many(120)), Wanted())
    assert [(each.job_id, int(each.state)) for each in frame.news] == [(f"j{n}", 3) for n in range(120)]
    assert frame.left_out == 240


def test_of_very_many_the_last_are_told_and_how_many_were_left_out() -> None:
    frame = news.gathered(list(many(2000, "3")), Wanted())
    assert [each.job_id for each in frame.news] == [f"j{n}" for n in range(2000 - MOST, 2000)]
    assert frame.left_out == 2000 - MOST


def test_of_one_job_nothing_is_left_out() -> None:
    lines = [f"s{step}:j {state} 1 add end_job" for step in range(500) for state in "023"]
    entries = [
        *many(500),
        entry(*lines, id_="1800000000000-0"),
        entry("client:jj 3 1 add end_job", id_="1900000000000-0"),
    ]
    frame = news.gathered(entries, Wanted(job_id="j"))
    assert (len(frame.news), frame.left_out) == (1500, 0)


def test_one_of_many_is_found_by_its_cmd_and_state() -> None:
    rare = entry("x:rare 2 1 slow end_job", "x:rare 4 1 slow end_job", id_="1700000000000-5")
    entries = [rare, *many(3000)]
    assert [each.job_id for each in news.gathered(entries, Wanted(cmd="slow")).news] == ["rare", "rare"]
    [failed] = news.gathered(entries, Wanted(state=State.error)).news
    assert (failed.job_id, failed.state) == ("rare", State.error)
    assert news.gathered(entries, Wanted(cmd="slow", state=State.start)).news == []


def test_a_frame_goes_on_where_another_broke_off() -> None:
    entries = [entry("a:j 0 0 add b", "a:k 0 0 add b", "a:l 0 0 add b"), entry("a:j 2 1 add b", id_="1700000000001-0")]
    frame = news.gathered(entries, Wanted(), Mark("1700000000000-0", 2))
    assert [(each.job_id, int(each.state)) for each in frame.news] == [("l", 0), ("j", 2)]


def test_an_event_is_spelt_as_the_standard_wants_it() -> None:
    data = news.spelt(news.gathered([entry("a:j 0 0 add b")], Wanted()))
    told = json.dumps(news.read(entry("a:j 0 0 add b"))[0].told(), separators=(",", ":"))
    assert data.decode() == f"id: 1700000000000-0-1\nevent: step\ndata: {told}\n\n"
    fields = {b"p": b"a:j", b"a": b"1", b"f": b"-1", b"t": b"two\nlines\r\n\n"}
    spelt = news.spelt(news.gathered([Entry("5-1", fields)], Wanted())).decode()
    assert spelt.count("\n") == 4, "no text of a function ends an event, or begins one"
    assert news.gap(None) == b'event: gap\ndata: {"left_out":null}\n\n'


@pytest.mark.parametrize("text", ["", "1", "1-", "x-1", "1-1-1-1", "-1-1", "1-1-x", "1" * 16 + "-1", "1-1\n"])
def test_what_is_no_mark_is_refused(text: str) -> None:
    with pytest.raises(BadCommand) as raised:
        news.mark(text)
    assert raised.value.problem.field == "Last-Event-ID"


def test_a_mark_is_read_as_it_was_told() -> None:
    assert news.mark("1700000000000-3-2") == Mark("1700000000000-3", 2)
    assert news.mark("1700000000000-3") == Mark("1700000000000-3", 0)
    assert news.later("10-0", "9-5")
    assert news.later("9-10", "9-9")
    assert not news.later("9-9", "9-9")


@pytest.mark.parametrize(
    ("given_", "field", "said"),
    [
        (("steps", None, None), "kinds", "step, progress, stats"),
        ((",", None, None), "kinds", "step, progress, stats"),
        ((None, "no cmd", None), "cmd", "the name of a function"),
        ((None, None, "done"), "state", "data_available"),
    ],
)
def test_what_nobody_can_want_is_refused(given_: tuple[str | None, ...], field: str, said: str) -> None:
    with pytest.raises(BadCommand) as raised:
        news.checked(*given_)
    assert raised.value.problem.field == field
    assert said in raised.value.problem.fix


# --- over the bus -----------------------------------------------------------------


def piece(before: str, last: str, *lines: str) -> list[object]:
    return [before, last, [[last, {b"e": "\n".join(lines).encode()}]] if lines else []]


def test_pieces_that_follow_each_other_are_heard_whole() -> None:
    hearing = Hearing(Wanted())
    assert not hearing.begun
    assert hearing.heard(piece("5-0", "5-0")) == []
    assert hearing.begun
    [event] = hearing.heard(piece("5-0", "6-0", "a:j 0 0 add b"))
    assert (event["event"], event["job_id"], event["at_ms"]) == ("step", "j", 6)
    assert [each["state"] for each in hearing.heard(piece("6-0", "7-0", "a:j 2 1 add b", "a:j 3 1 add b"))] == [
        "processing",
        "data_available",
    ]


@pytest.mark.parametrize("missed", [piece("8-0", "9-0", "a:j 3 1 add b"), piece("8-0", "8-0"), piece("2-0", "2-0")])
def test_what_was_missed_is_told_once(missed: list[object]) -> None:
    """Also when a router begins anew, and when Redis has another history."""
    hearing = Hearing(Wanted())
    hearing.heard(piece("5-0", "6-0", "a:j 0 0 add b"))
    first, *_ = hearing.heard(missed)
    assert first == {"event": "gap", "left_out": None}
    assert hearing.heard(piece(str(missed[1]), str(missed[1]))) == []


@pytest.mark.parametrize(
    "body", [None, [], ["1-0", "2-0"], ["x", "2-0", []], ["1-0", 2, []], ["1-0", "2-0", [["3-0", 4]]]]
)
def test_a_piece_that_makes_no_sense_is_an_error(body: object) -> None:
    with pytest.raises(ProtocolError):
        Hearing(Wanted()).heard(body)
