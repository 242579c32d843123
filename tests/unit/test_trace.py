"""W3C Trace Context: which traceparent is one, and to what it is handed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.bench import Bench, finish, item, states

from exesys import command, trace
from exesys.bus import messages as m
from exesys.schedule import FIELDS

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GOOD = f"00-{TRACE}-{PARENT}-01"
OTHER = f"00-{TRACE[::-1]}-{PARENT}-00"
LIMITS = command.Limits()


@pytest.mark.parametrize(
    ("given_", "kept"),
    [
        (GOOD, GOOD),
        (f" {GOOD}\t", GOOD),
        (f"00-{TRACE}-{PARENT}-ff", f"00-{TRACE}-{PARENT}-ff"),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", GOOD),
        (f"cc-{TRACE}-{PARENT}-03", GOOD),
        (f"cc-{TRACE}-{PARENT}-02", f"00-{TRACE}-{PARENT}-00"),
    ],
)
def test_a_good_one_is_kept_as_this_version_writes_it(given_: str, kept: str) -> None:
    assert trace.parent(given_) == kept
    assert trace.trace_id(kept) == TRACE


@pytest.mark.parametrize(
    "given_",
    [
        *("", "00", GOOD.upper(), GOOD[:-1], f"{GOOD}0", f"{GOOD}-", f"{GOOD}-more", f"{GOOD},{GOOD}", f"{GOOD}\n"),
        *(
            f"ff-{TRACE}-{PARENT}-01",
            f"00-{'0' * 32}-{PARENT}-01",
            f"00-{TRACE}-{'0' * 16}-01",
            f"cc-{TRACE}-{PARENT}-01x",
        ),
    ],
)
def test_a_malformed_one_counts_as_none(given_: str) -> None:
    assert trace.parent(given_) == ""
    built = command.build("a", "b", "f", b"\xc0", "j", {"traceparent": given_, "priority": 3})
    assert built.options == {"priority": 3}


@given(st.text())
def test_whatever_comes_is_none_or_one(text: str) -> None:
    kept = trace.parent(text)
    assert kept == "" or trace.parent(kept) == kept


def test_the_header_is_for_commands_that_name_none() -> None:
    plain = command.from_json({"cmd": "f"}, LIMITS, lambda: "j", GOOD)
    own = command.from_json({"cmd": "f", "traceparent": OTHER}, LIMITS, lambda: "j", GOOD)
    assert (plain.options, own.options) == ({"traceparent": GOOD}, {"traceparent": OTHER})
    assert plain.digest == own.digest
    steps = command.workflow_from_json(
        [{"cmd": "f", "from": "a"}, {"cmd": "f", "from": "b"}], LIMITS, lambda: "j", GOOD
    )
    assert [step.options["traceparent"] for step in steps] == [GOOD, GOOD]


def test_a_timer_has_no_use_for_one() -> None:
    assert "traceparent" not in FIELDS


# --- the router -------------------------------------------------------------------


def test_a_worker_is_told_of_it_in_each_attempt() -> None:
    bench = Bench()
    client, worker = bench.client(), bench.worker(slots=2)
    bench.submit(client, item(1, "j", traceparent=GOOD, retries=1, backoff_s=0), item(2, "k"))
    bench.turns()
    jobs = bench.dealt(worker)
    assert sorted(job.traceparent for job in jobs) == ["", GOOD]
    traced = next(job for job in jobs if job.traceparent)
    finish(bench, worker, traced, outcome=m.Outcome.failed, body=b"\x80")
    assert [(job.attempt, job.traceparent) for job in bench.dealt(worker)] == [(2, GOOD)]


def test_the_same_command_with_another_one_is_the_same_and_keeps_the_first() -> None:
    bench = Bench()
    client = bench.client()
    bench.submit(client, item(1, "j", notify=False, traceparent=GOOD))
    bench.turns()
    bench.submit(client, item(2, "j", notify=False, traceparent=OTHER), item(3, "j", notify=False))
    bench.turns()
    assert states(bench.said(client)) == {1: 0, 2: 0, 3: 0}
    worker = bench.worker(slots=2)
    bench.turns()
    assert [job.traceparent for job in bench.dealt(worker)] == [GOOD]


def test_steps_of_a_workflow_that_name_none_get_the_first_that_is_named() -> None:
    bench = Bench()
    client, worker = bench.client(), bench.worker()
    chain = [("a", "b", {}), ("b", "c", {"traceparent": GOOD}), ("c", "end_job", {"traceparent": OTHER})]
    items = [
        m.Item(tag, from_, to, "double", b"\xc0", "w", options, False, 1)
        for tag, (from_, to, options) in enumerate(chain, 1)
    ]
    bench.submit(client, *items)
    bench.turns()
    seen = []
    for _ in chain:
        [job] = bench.dealt(worker)
        seen.append(job.traceparent)
        finish(bench, worker, job)
    assert seen == [GOOD, GOOD, OTHER]
