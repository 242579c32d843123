"""When timers tick, and what may be said of one."""

from __future__ import annotations

import datetime as dt
import zoneinfo
from itertools import islice, pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys import codec, schedule
from exesys.errors import BadCommand, StateError
from exesys.schedule import Timer

DAY_MS = 86_400_000
T0 = int(dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC).timestamp() * 1000)


def at(zone: str, *parts: int, fold: int = 0) -> int:
    return int(dt.datetime(*parts, tzinfo=zoneinfo.ZoneInfo(zone), fold=fold).timestamp() * 1000)  # type: ignore[misc,arg-type]  # parts of a date


def ticks(timer: Timer, after_ms: int, count: int) -> list[int]:
    return list(islice(timer.after(after_ms), count))


def cron(line: str, zone: str = "UTC", **parts: Any) -> Timer:
    return Timer("t", "f", cron=line, zone=zone, **parts)


# --- every so often --------------------------------------------------------------


@given(st.integers(100, 10**9), st.integers(0, 2**42), st.text(min_size=1, max_size=9))
def test_ticks_are_one_period_apart_and_the_same_whenever_asked(every_ms: int, moment: int, name: str) -> None:
    timer = Timer(name, "f", every_ms=every_ms)
    first, second, third = ticks(timer, moment, 3)
    assert moment < first <= moment + every_ms
    assert (second - first, third - second) == (every_ms, every_ms)
    assert timer.next(first) == second
    assert timer.next(second - 1) == second
    assert timer.between(first, third, 9) == [second, third]
    assert timer.between(first, first + 1000 * every_ms, 2) == [first + 999 * every_ms, first + 1000 * every_ms]


def test_a_start_says_when_the_first_is_and_an_end_when_the_last() -> None:
    timer = Timer("t", "f", every_ms=60_000, start_ms=T0, end_ms=T0 + 120_000)
    assert ticks(timer, 0, 9) == [T0, T0 + 60_000, T0 + 120_000]
    assert timer.next(T0 + 120_000) is None


def test_timers_of_one_period_do_not_all_tick_at_once() -> None:
    firsts = {Timer(f"t{number}", "f", every_ms=60_000).next(T0) for number in range(100)}
    assert len(firsts) > 90


# --- cron ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "day", "skipped_to"),
    [("Europe/Rome", (2026, 3, 29), (3, 0)), ("America/New_York", (2026, 3, 8), (3, 0))],
)
def test_a_fixed_time_that_a_day_skips_ticks_right_after(
    zone: str, day: tuple[int, int, int], skipped_to: tuple[int, int]
) -> None:
    before = at(zone, *day) - 1
    assert ticks(cron("30 2 * * *", zone), before, 2) == [
        at(zone, *day, *skipped_to),
        at(zone, day[0], day[1], day[2] + 1, 2, 30),
    ]


@pytest.mark.parametrize(("zone", "day"), [("Europe/Rome", (2026, 10, 25)), ("America/New_York", (2026, 11, 1))])
def test_a_fixed_time_that_a_day_has_twice_ticks_once(zone: str, day: tuple[int, int, int]) -> None:
    hour = 2 if zone == "Europe/Rome" else 1
    found = [
        tick for tick in ticks(cron(f"30 {hour} * * *", zone), at(zone, *day) - 1, 3) if tick < at(zone, *day) + DAY_MS
    ]
    assert found == [at(zone, *day, hour, 30, fold=0)]


@pytest.mark.parametrize(
    ("zone", "day", "hours"),
    [
        ("Europe/Rome", (2026, 3, 29), 23),
        ("Europe/Rome", (2026, 10, 25), 25),
        ("America/New_York", (2026, 3, 8), 23),
        ("America/New_York", (2026, 11, 1), 25),
    ],
)
@pytest.mark.parametrize(("line", "per_hour"), [("*/15 * * * *", 4), ("0 * * * *", 1)])
def test_a_wildcard_goes_by_real_time(
    zone: str, day: tuple[int, int, int], hours: int, line: str, per_hour: int
) -> None:
    begin, timer = at(zone, *day), cron(line, zone)
    end = at(zone, day[0], day[1], day[2] + 1)
    found = [tick for tick in ticks(timer, begin - 1, 200) if tick < end]
    assert len(found) == hours * per_hour
    assert {later - sooner for sooner, later in pairwise(found)} == {3_600_000 // per_hour}
    assert timer.wild


@given(
    st.sampled_from(["* * * * *", "30 2 * * *", "*/7 3 * * MON", "0 12 1 * *", "5 4 29 2 *"]),
    st.integers(0, 2 * 10**12),
)
def test_what_is_between_two_moments_is_what_comes_after_the_first(line: str, moment: int) -> None:
    timer = cron(line, "Europe/Rome")
    three = ticks(timer, moment, 3)
    assert timer.between(moment, three[2], 9) == three
    assert timer.between(moment, three[2], 2) == three[1:]
    assert timer.between(moment, three[0] - 1, 9) == []


def test_the_newest_of_a_long_time_are_found_without_counting_all() -> None:
    until = T0 + 400 * DAY_MS
    assert cron("* * * * *").between(T0, until, 3) == [until - 120_000, until - 60_000, until]


# --- jitter, names ----------------------------------------------------------------


@given(st.integers(0, 10**13), st.integers(1, 100_000))
def test_the_jitter_of_a_tick_is_the_same_for_everyone(tick: int, jitter_ms: int) -> None:
    timer = Timer("t", "f", every_ms=1000, jitter_ms=jitter_ms)
    assert 0 <= timer.delay_ms(tick) <= jitter_ms
    assert timer.delay_ms(tick) == Timer("t", "g", every_ms=5000, jitter_ms=jitter_ms).delay_ms(tick)
    assert len({timer.delay_ms(tick + number) for number in range(50)}) > 1


def test_each_tick_has_a_job_of_its_own() -> None:
    timer = Timer("night", "f", cron="30 2 * * *")
    assert timer.job_id(T0 + 5, 0) == "night.20261124T120000.005Z"
    assert timer.job_id(T0 + 5, 2) == "night.20261124T120000.005Z.2"
    assert timer.command("night.1").cmd == "f"


# --- checking -----------------------------------------------------------------------

GOOD: dict[str, Any] = {"cmd": "f", "every_s": 5}


@pytest.mark.parametrize(
    ("fields", "field", "said", "fix"),
    [
        ({"cmd": "f", "cron": "0 0 30 2 *"}, "cron", "", "days 1-31"),
        ({"cmd": "f", "cron": "0 0 31 2,4 *"}, "cron", "", "days 1-31"),
        ({"cmd": "f", "cron": "0 0 0 1 1 *"}, "cron", "which has 6 fields", "Give five"),
        ({"cmd": "f", "cron": "@daily"}, "cron", "which has 1 field", "Give five: @daily is '0 0 * * *'."),
        ({"cmd": "f", "cron": "@Hourly"}, "cron", "which has 1 field", "'0 * * * *'"),
        ({"cmd": "f", "cron": "@reboot"}, "cron", "which has 1 field", "Give five: minute, hour"),
        ({"cmd": "f", "cron": "0 0 * * 7-1"}, "cron", "the range 7-1 goes backward", "Write 7-7,0-1."),
        ({"cmd": "f", "cron": "0 0 * * fri-mon"}, "cron", "the range fri-mon", "Write FRI-SAT,SUN-MON."),
        ({"cmd": "f", "cron": "0 22-2/2 * * *"}, "cron", "the range 22-2/2", "Write 22-23/2,0-2/2."),
        ({"cmd": "f", "cron": "0 0 * 4,NOV-FEB *"}, "cron", "the range NOV-FEB", "Write NOV-DEC,JAN-FEB."),
        ({"cmd": "f", "cron": "0 99-2 * * *"}, "cron", "bad hour", "Minutes are 0-59"),
        ({"cmd": "f", "cron": "61 * * * *"}, "cron", "bad minute", "Minutes are 0-59"),
        ({"cmd": "f", "cron": 5}, "cron", "which is no text", "Give text of five fields"),
        ({"cmd": "f", "cron": f"0-{'9' * 5000} * * * *"}, "cron", "characters", "at most 256"),
        ({"cmd": "f", "cron": f"0-{'9' * 200} * * * *"}, "cron", "bad minute", ""),
        ({"cmd": "f", "cron": "* * * * *", "zone": "Europe/Room"}, "zone", "'Europe/Room' is unknown", "`Europe/Rome`"),
        ({"cmd": "f", "cron": "* * * * *", "zone": "europe/rome"}, "zone", "", "Did you mean `Europe/Rome`?"),
        ({"cmd": "f", "cron": "* * * * *", "zone": "New York"}, "zone", "", "Did you mean `America/New_York`?"),
        ({"cmd": "f", "cron": "* * * * *", "zone": "CEST"}, "zone", "", "Zones are named by place"),
        ({"cmd": "f", "cron": "* * * * *", "zone": "Nope/Nope"}, "zone", "", "Zones are named by place"),
        ({"cmd": "f", "cron": "* * * * *", "zone": None}, "zone", "", ""),
        ({**GOOD, "zone": "Europe/Rome"}, "zone", "only `cron` goes by", "Leave `zone` out"),
        ({"cmd": "f", "every_s": 0}, "every_s", "`every_s` is 0", "Give 0.1 to"),
        ({"cmd": "f", "every_s": -1}, "every_s", "", "Give 0.1 to"),
        ({"cmd": "f", "every_s": float("nan")}, "every_s", "", "Give 0.1 to"),
        ({"cmd": "f", "every_s": "5"}, "every_s", "`every_s` is '5'", "Give 0.1 to 31,622,400 seconds, as a number wi"),
        ({**GOOD, "timeout_s": "5"}, "timeout_s", "must be a number", "without quotes"),
        ({"cmd": "f"}, "every_s", "neither", "Give one"),
        ({"cmd": "f", "every_s": 5, "cron": "* * * * *"}, "every_s", "both", "Give one"),
        ({"every_s": 5}, "cmd", "needs `cmd`", ""),
        ({"cmd": "a:b", "every_s": 5}, "cmd", "", "Use 1 to 128"),
        (
            {**GOOD, "start": "2026-02-01T00:00:00Z", "end": "2026-01-01T00:00:00Z"},
            "end",
            "before it starts",
            "later than",
        ),
        ({**GOOD, "start": "soon"}, "start", "`start` is 'soon'", "Write it like"),
        ({**GOOD, "end": "2026-01-01T00:00:00"}, "end", "no time zone", "Write it like"),
        ({**GOOD, "start": "9999-12-31T23:59:59Z"}, "start", "", "end of 2199"),
        ({**GOOD, "end": "0001-01-01T00:00:00Z"}, "end", "", "1970"),
        ({"cmd": "f", "cron": "* * * * *", "zone": ["x"]}, "zone", "", ""),
        ({"cmd": "f", "cron": "* * * * *", "zone": {}}, "zone", "", ""),
        ({"cmd": "f", "cron": "* * * * *", "zone": "../etc/passwd"}, "zone", "", ""),
        ({"cmd": "f", "cron": "* * * * *", "zone": "Europe"}, "zone", "", ""),
        ({"cmd": "\ud800", "every_s": 5}, "cmd", "", "Use 1 to 128"),
        ({**GOOD, "\ud800": 5}, "\\ud800", "", "Known:"),
        ({**GOOD, "misfire": "twice"}, "misfire", "", "skip, once, all"),
        ({**GOOD, "overlap": "wait"}, "overlap", "", "allow, skip"),
        ({**GOOD, "jitter_s": -1}, "jitter_s", "", ""),
        ({**GOOD, "misfires": "all"}, "misfires", "unknown", "Did you mean `misfire`?"),
        ({**GOOD, "delay_s": 5}, "delay_s", "unknown", ""),
        ({**GOOD, "priority": 10}, "priority", "", "0 to 9"),
        ({**GOOD, "data": "text"}, "data", "msgpack", ""),
    ],
)
def test_what_makes_no_sense_is_told_with_what_is_allowed(
    fields: dict[str, Any], field: str, said: str, fix: str
) -> None:
    with pytest.raises(BadCommand) as caught:
        schedule.check("add", "t", fields)
    assert caught.value.field == field
    assert said in caught.value.message
    assert fix in caught.value.fix


@pytest.mark.parametrize("line", ["7-7,0-1", "FRI-SAT,SUN-MON", "5-7,0-1"])
def test_what_is_advised_instead_of_a_backward_range_is_good(line: str) -> None:
    assert schedule.check("add", "t", {"cmd": "f", "cron": f"0 0 * * {line}"})["cron"] == f"0 0 * * {line}"


def test_a_period_may_say_that_its_zone_is_utc() -> None:
    """As the timers that are shown say it."""
    assert schedule.check("add", "t", {**GOOD, "zone": "UTC"})["zone"] == "UTC"


def test_a_name_is_short_enough_for_the_jobs_of_its_ticks() -> None:
    name = "n" * 64
    schedule.check("add", name, GOOD)
    assert len(Timer(name, "f", every_ms=1).job_id(T0, 9999)) <= 128
    with pytest.raises(BadCommand, match="has 65 characters"):
        schedule.check("add", name + "n", GOOD)


def test_a_definition_is_kept_and_read_again() -> None:
    fields = {"cmd": "f", "cron": " 30  2 * * MON ", "zone": "Europe/Rome", "misfire": "all", "overlap": "skip"}
    fields |= {"jitter_s": 1.5, "grace_s": 60, "start": "2026-01-01T00:00:00Z", "queue": "mail", "priority": 9}
    kept = schedule.check("add", "t", {**fields, "data": codec.pack([1, "a"])})
    raw = {key: value if isinstance(value, bytes) else str(value).encode() for key, value in kept.items()}
    timer = schedule.load("t", raw)
    assert (timer.cron, timer.zone, timer.misfire, timer.overlap) == ("30 2 * * MON", "Europe/Rome", "all", "skip")
    assert (timer.jitter_ms, timer.grace_ms, dict(timer.options)) == (1500, 60_000, {"priority": 9, "queue": "mail"})
    told = schedule.shown(timer, raw)
    assert (told["data"], told["queue"], told["cron"], told["start"]) == (
        [1, "a"],
        "mail",
        "30 2 * * MON",
        fields["start"],
    )


@pytest.mark.parametrize(
    ("spoilt", "said"),
    [
        ({"every_s": b"-5"}, "`every_s` is -5.0"),
        ({"every_s": b"0.0001"}, "`every_s` is 0.0001"),
        ({"every_s": b"1e400"}, "`every_s` is inf"),
        ({"every_s": b"nan"}, "`every_s` is nan"),
        ({"every_s": b"soon"}, "could not convert"),
        ({"every_s": None}, "neither `every_s` nor `cron`"),
        ({"every_s": None, "cron": b"0 0 30 2 *"}, "`cron` is"),
        ({"every_s": None, "cron": b"* * * *"}, "4 fields"),
        ({"cmd": None}, "needs `cmd`"),
        ({"cmd": b"no name"}, "cmd"),
        ({"options": b"[]"}, "mapping"),
        ({"options": b"{"}, "Expecting"),
        ({"options": b'{"retries": -1}'}, "retries"),
        ({"options": b'{"cmd": "g"}'}, "cmd"),
        ({"options": b"[" * 100_000}, "recursion"),
        ({"every_s": None, "cron": b"0 0 * * *", "zone": b"Nowhere/X"}, "time zone 'Nowhere/X'"),
        ({"zone": b"Europe/Rome"}, "only `cron` goes by"),
        ({"start": b"2026-01-02T00:00:00Z", "end": b"2026-01-01T00:00:00Z"}, "before it starts"),
        ({"start": b"never"}, "start"),
        ({"jitter_s": b"1e300"}, "jitter_s"),
        ({"misfire": b"\xff"}, "decode"),
        ({"data": b"\xc1"}, "msgpack"),
    ],
)
def test_a_definition_that_was_spoilt_is_read_as_none(spoilt: dict[str, bytes | None], said: str) -> None:
    kept = {"cmd": b"f", "every_s": b"5", "data": b"\xc0"}
    assert schedule.load("t", kept).every_ms == 5000
    with pytest.raises(StateError, match="the record of the timer t in Redis cannot be read") as caught:
        schedule.load("t", {key: value for key, value in (kept | spoilt).items() if value is not None})
    assert said in caught.value.message


def test_what_the_ini_says_is_compared_with_what_redis_keeps() -> None:
    kept = {"cmd": b"f", "every_s": b"5.0", "data": b"\xc0", "paused": b"1", "options": b'{"retries": 2}'}
    assert schedule.same({"cmd": "f", "every_s": 5, "retries": 2, "data": b"\xc0"}, kept)
    assert not schedule.same({"cmd": "f", "every_s": 6, "retries": 2}, kept)
    assert not schedule.same({"cmd": "f", "every_s": 5}, kept)
    assert not schedule.same({"cmd": "f", "every_s": 5, "retries": 2, "origin": "ini"}, kept)


@pytest.mark.parametrize("fields", [{}, {"paused": 1}, {"paused": True, "cmd": "g"}, {"cmd": "g"}])
def test_only_a_pause_is_merged(fields: dict[str, Any]) -> None:
    with pytest.raises(BadCommand):
        schedule.check("merge", "t", fields)
    assert schedule.check("merge", "t", {"paused": True}) == {"paused": 1}
