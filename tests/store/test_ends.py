"""What an end leaves behind: the outbox of callbacks, and the removal of jobs that failed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from store.fake import RealStore, Turns
from store.turns import BODY, FAILURE, NOW_MS, ONE, change, claim, close, flow, place, report, run, send, submit, wait

from exesys import codec
from exesys.bus.messages import Outcome
from exesys.config import Limits
from exesys.store.callbacks import Outbox, Taken
from exesys.store.dial import StoreAway
from exesys.store.upkeep import Upkeep

URL = "http://a.example/x"
LIMITS = Limits(max_losses=1, result_ttl_s=60, error_ttl_s=600)


def outbox(store: Turns) -> dict[str, float]:
    """Return the refs that are due, and when."""
    found: dict[str, float] = store.dump().get(store.keys("callbacks"), ({}, None))[0]
    return found


def told(store: Turns, ref: str) -> dict[str, bytes]:
    fields: dict[str, bytes] = store.dump()[store.keys("callback", ref)][0]
    return fields


def error_of(store: Turns, ref: str) -> str:
    body: str = codec.unpack(told(store, ref)["body"])["type"]
    return body


# --- every end ------------------------------------------------------------------


def test_a_step_that_ends_well_is_to_be_told_at_once(store: Turns) -> None:
    submit(store, place(notify=URL, traceparent="t"))
    assert outbox(store) == {}
    report(store, close(claim(store)[0]), now_ms=NOW_MS + 7)
    assert outbox(store) == {"a:j": NOW_MS + 7}
    fields = told(store, "a:j")
    assert fields.pop("delivery").decode().isalnum()
    assert fields == {
        "url": URL.encode(),
        "outcome": b"waiting",
        "tries": b"0",
        "state": b"data_available",
        "to": b"end_job",
        "cmd": b"f",
        "attempt": b"1",
        "body": BODY,
        "traceparent": b"t",
    }
    assert store.dump()[store.keys("record", "a:j", "data_available")][0]["notify"] == URL.encode()


def test_a_step_without_the_option_is_not_told(store: Turns) -> None:
    submit(store, place("j"), place("k"))
    first, second = claim(store, 2)
    report(store, close(first), close(second, Outcome.failed))
    change(store, "cancel", "j")
    assert outbox(store) == {}
    assert not [key for key in store.dump() if "callback" in key]


def test_a_step_that_failed_is_told_with_its_error_and_only_for_good(store: Turns) -> None:
    submit(store, place(notify=URL, retries=1, backoff_s=0))
    report(store, close(claim(store)[0], Outcome.failed))
    assert outbox(store) == {}, "it is tried again"
    report(store, close(claim(store)[0], Outcome.failed))
    assert outbox(store) == {"a:j": NOW_MS}
    fields = told(store, "a:j")
    assert (fields["state"], fields["attempt"], fields["body"]) == (b"error", b"2", FAILURE)


def test_a_crash_and_a_loss_for_good_are_told(make_store: Any) -> None:
    store = make_store(Limits(max_crashes=1, max_losses=1))
    submit(store, place("j", notify=URL), place("k", notify=URL))
    first, _ = claim(store, 2)
    report(store, close(first, Outcome.crashed))
    run(store, lost=[ONE])
    assert outbox(store) == {"a:j": NOW_MS, "a:k": NOW_MS}
    assert error_of(store, "a:k") == "WorkerLost"


@pytest.mark.parametrize("when", ["waiting", "delayed", "standby", "running"])
def test_a_cancel_is_told(store: Turns, when: str) -> None:
    due_ms = NOW_MS + 60_000 if when == "delayed" else 0
    submit(store, place(notify=URL, due_ms=due_ms, waits=when == "standby"))
    if when == "running":
        claim(store)
    assert change(store, "cancel").steps == 1
    assert outbox(store) == {"a:j": NOW_MS}
    assert error_of(store, "a:j") == "Cancelled"
    assert told(store, "a:j")["attempt"] == (b"1" if when == "running" else b"0")


def test_what_is_given_up_with_another_is_told(store: Turns) -> None:
    send(store, flow([place(from_="a", to="b"), place(from_="b", notify=URL)]))
    report(store, close(claim(store)[0], Outcome.failed))
    assert outbox(store) == {"b:j": NOW_MS}
    assert error_of(store, "b:j") == "PredecessorFailed"


def test_what_is_never_fed_or_comes_too_late_is_told(make_store: Any) -> None:
    store = make_store(Limits(standby_s=1))
    submit(store, wait("x", job="k", notify=URL))
    run(store, NOW_MS + 2000, sweep=True)
    assert error_of(store, "x:k") == "NeverFed"
    submit(store, place(from_="a", to="b"))
    report(store, close(claim(store)[0], Outcome.failed))
    submit(store, wait("b", notify=URL))
    assert error_of(store, "b:j") == "PredecessorFailed"
    assert set(outbox(store)) == {"x:k", "b:j"}


def test_a_step_of_several_that_ends_well_is_told(store: Turns) -> None:
    send(store, flow([place(from_="a", to="b", notify=URL), place(from_="b", notify=URL)]))
    report(store, close(claim(store)[0]))
    assert set(outbox(store)) == {"a:j"}
    report(store, close(claim(store)[0]))
    assert set(outbox(store)) == {"a:j", "b:j"}


def test_an_end_that_comes_twice_is_told_once_and_one_after_a_retry_anew(store: Turns) -> None:
    submit(store, place(notify=URL))
    [job] = claim(store)
    for _ in range(2):
        report(store, close(job, Outcome.failed))
    first = told(store, "a:j")
    assert change(store, "retry").steps == 1
    assert told(store, "a:j") == first, "that it failed is still to be told"
    report(store, close(claim(store)[0]), now_ms=NOW_MS + 9)
    assert outbox(store) == {"a:j": NOW_MS + 9}
    second = told(store, "a:j")
    assert (second["state"], second["attempt"]) == (b"data_available", b"2")
    assert second["delivery"] != first["delivery"]


# --- purge ------------------------------------------------------------------------


def test_a_purge_leaves_nothing_but_the_entry_of_the_stream(store: Turns) -> None:
    submit(store, place(notify=URL))
    report(store, close(claim(store)[0], Outcome.failed, log="printed"))
    send(store, flow([place("k", "a", "b", notify=URL), place("k", "b", "c"), place("k", "c", notify=URL)], "k"))
    report(store, close(claim(store)[0], log="printed"))
    report(store, close(claim(store)[0], Outcome.failed))
    assert change(store, "purge", "j") == (1, (), ())
    assert not [key for key in store.dump() if key.endswith(":j") or ":j:" in key]
    assert set(outbox(store)) == {"a:k", "c:k"}
    assert change(store, "purge", "k") == (3, (), ())
    left = {key.rpartition("}")[2] for key in store.dump()}
    assert left == {"exesys:jobs", "exesys:order", "exesys:sessions"}


def test_only_a_job_that_failed_and_ended_can_be_purged(store: Turns) -> None:
    submit(store, place("j"), place("k", from_="a", to="x"), place("k", from_="b", to="x"))
    before = store.dump()
    assert change(store, "purge", "j").steps == -2
    report(store, close(claim(store)[0]))
    assert change(store, "purge", "j").steps == -3
    report(store, close(claim(store)[0], Outcome.failed))
    assert change(store, "purge", "k").steps == -2, "its other step waits"
    assert change(store, "purge", "nobody").steps == -1
    assert store.keys("job", "k") in store.dump().keys() & before.keys()
    change(store, "cancel", "k")
    assert change(store, "purge", "k").steps == 2
    assert change(store, "purge", "k").steps == -1


def test_a_late_report_of_a_purged_job_changes_nothing(store: Turns) -> None:
    submit(store, place(notify=URL))
    [job] = claim(store)
    change(store, "cancel")
    change(store, "purge")
    before = store.dump()
    [ended] = report(store, close(job))
    assert ended.stale
    assert store.dump() == before


# --- the controller's side ----------------------------------------------------------


@pytest.fixture(params=["", "{s07}"])
def real(request: pytest.FixtureRequest, redis_server: Any) -> Iterator[RealStore]:
    store = RealStore(redis_server.url, redis_server.client, LIMITS, request.param)
    yield store
    store.close()


@pytest.fixture
def box(real: RealStore, redis_server: Any) -> Iterator[Outbox]:
    found = Outbox(redis_server.url, real.keys.prefix, LIMITS)
    yield found
    found.close()


@pytest.fixture
def upkeep(real: RealStore, redis_server: Any) -> Iterator[Upkeep]:
    found = Upkeep(redis_server.url, real.keys.prefix, LIMITS)
    assert found.lead("one")
    yield found
    found.close()


def ended(real: RealStore, job: str = "j", now_ms: int = NOW_MS) -> None:
    submit(real, place(job, notify=URL))
    report(real, close(claim(real)[0]), now_ms=now_ms)


def take(box: Outbox, ref: str = "a:j", now_ms: int = NOW_MS, session: str = "one") -> Taken | None:
    return box.take(session, ref, now_ms, now_ms + 15_000)


def taken(box: Outbox, **parts: Any) -> Taken:
    found = take(box, **parts)
    assert found is not None
    return found


def test_what_is_due_is_taken_once_and_is_due_again_if_nothing_is_noted(
    real: RealStore, box: Outbox, upkeep: Upkeep
) -> None:
    ended(real)
    ended(real, "k", NOW_MS + 5)
    assert box.due(NOW_MS - 1, 10) == []
    assert box.due(NOW_MS + 5, 10) == [("a:j", URL), ("a:k", URL)]
    assert box.due(NOW_MS + 5, 1) == [("a:j", URL)]
    first = taken(box)
    assert first._replace(delivery="") == Taken("a:j", URL, "", 1, "data_available", "end_job", "f", 1, BODY)
    assert take(box) is None
    assert box.due(NOW_MS + 14_999, 10) == [("a:k", URL)]
    second = taken(box, now_ms=NOW_MS + 15_000)
    assert (second.tries, second.delivery) == (2, first.delivery)


def test_only_the_active_controller_takes(real: RealStore, box: Outbox, upkeep: Upkeep) -> None:
    ended(real)
    before = real.dump()
    assert take(box, session="two") is None
    assert real.dump()[real.keys("callback", "a:j")] == before[real.keys("callback", "a:j")]
    upkeep.resign("one")
    assert take(box) is None, "nobody holds the lease"
    assert outbox(real) == {"a:j": NOW_MS}


def test_what_was_sent_leaves_the_outbox_and_a_note_that_expires(real: RealStore, box: Outbox, upkeep: Upkeep) -> None:
    ended(real)
    assert box.sent(taken(box))
    assert outbox(real) == {}
    fields, ttl_s = real.dump()[real.keys("callback", "a:j")]
    assert {key: value for key, value in fields.items() if key != "delivery"} == {
        "url": URL.encode(),
        "outcome": b"sent",
        "tries": b"1",
    }
    assert ttl_s is not None
    assert 58 <= ttl_s <= 60
    assert real.dump()[real.keys("callback_counts")][0] == {"tried": b"1", "sent": b"1"}


def test_a_failed_try_waits_and_the_last_one_is_given_up(real: RealStore, box: Outbox, upkeep: Upkeep) -> None:
    ended(real)
    assert box.later(taken(box), "no answer.", NOW_MS + 5000)
    assert outbox(real) == {"a:j": NOW_MS + 5000}
    assert told(real, "a:j")["error"] == b"no answer."
    assert box.failed(taken(box, now_ms=NOW_MS + 5000), "the answer was 500.")
    assert outbox(real) == {}
    fields, ttl_s = real.dump()[real.keys("callback", "a:j")]
    assert (fields["outcome"], fields["tries"], fields["error"]) == (b"failed", b"2", b"the answer was 500.")
    assert "body" not in fields
    assert ttl_s is not None
    assert 598 <= ttl_s <= 600
    assert real.dump()[real.keys("callback_counts")][0] == {"tried": b"2", "failed": b"1"}


def test_a_note_that_comes_late_changes_nothing(real: RealStore, box: Outbox, upkeep: Upkeep) -> None:
    ended(real)
    first = taken(box)
    second = taken(box, now_ms=NOW_MS + 20_000)
    before = real.dump()
    assert not box.sent(first), "another try was made since"
    assert not box.later(first, "late", NOW_MS)
    assert real.dump() == before
    assert box.sent(second)
    change(real, "retry")
    assert not box.failed(second._replace(delivery="other"), "of another end")


def test_an_end_after_a_retry_is_not_taken_for_the_one_that_is_just_told(
    real: RealStore, box: Outbox, upkeep: Upkeep
) -> None:
    submit(real, place(notify=URL))
    report(real, close(claim(real)[0], Outcome.failed))
    first = taken(box)
    change(real, "retry")
    report(real, close(claim(real)[0]), now_ms=NOW_MS + 9)
    assert not box.sent(first)
    assert box.due(NOW_MS + 9, 10) == [("a:j", URL)]
    assert taken(box, now_ms=NOW_MS + 9).state == "data_available"


def test_entries_that_a_hand_has_spoilt_hold_up_no_others(
    real: RealStore, box: Outbox, upkeep: Upkeep, redis_server: Any
) -> None:
    client, key = redis_server.client, real.keys
    for ref in ("gone:j", "kind:j", "text:j"):
        client.zadd(key("callbacks"), {ref: 1})
    client.zadd(key("callbacks"), {b"\xff:j": 1})
    client.set(key("callback", "kind:j"), "no hash")
    client.hset(key("callback", "text:j"), mapping={"body": b"\xc0", "url": b"\xff", "attempt": "x"})
    ended(real)
    refs = [ref for ref, _ in box.due(NOW_MS, 10)]
    assert refs[-1] == "a:j"
    assert len(refs) == 5
    assert [take(box, ref=ref) is not None for ref in refs] == [False, False, False, False, True]


def test_the_outbox_says_when_redis_is_away(tmp_path: Any) -> None:
    away = Outbox(f"unix://{tmp_path}/nothing", "", LIMITS)
    with pytest.raises(StoreAway, match="does not answer"):
        away.due(NOW_MS, 1)
    away.close()


def test_trimming_needs_the_lease(real: RealStore, upkeep: Upkeep, redis_server: Any) -> None:
    redis_server.client.zadd(real.keys("dead"), {"a:old": NOW_MS - 601_000})
    upkeep.trim("two", NOW_MS)
    assert redis_server.client.zcard(real.keys("dead")) == 1
    upkeep.trim("one", NOW_MS)
    assert redis_server.client.zcard(real.keys("dead")) == 0
