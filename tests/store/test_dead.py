"""Jobs that failed, many at once: pages, and bounded goes over all, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from store.fake import RealStore
from store.turns import NOW_MS, change, claim, close, place, report, submit

from exesys import dead
from exesys.bus.messages import Outcome
from exesys.config import Limits
from exesys.errors import NotFound, StateError
from exesys.store.reader import Reader


@pytest.fixture
def store(redis_server: Any) -> Iterator[RealStore]:
    store = RealStore(redis_server.url, redis_server.client, Limits(), "{s07}")
    yield store
    store.close()


@pytest.fixture
def reader(store: RealStore, redis_server: Any) -> Iterator[Reader]:
    reader = Reader(redis_server.url, store.keys.prefix)
    yield reader
    reader.close()


def fail(store: RealStore, *jobs: str, now_ms: int = NOW_MS, cmd: str = "f") -> None:
    submit(store, *(place(job, cmd=cmd) for job in jobs))
    report(store, *(close(job, Outcome.failed) for job in claim(store, len(jobs))), now_ms=now_ms)


def purge(store: RealStore, job_id: str) -> int:
    steps = change(store, "purge", job_id).steps
    if steps < 0:
        raise NotFound("gone") if steps == -1 else StateError("not so")
    return steps


def listed(reader: Reader, limit: int = 100, before: str = "", cmd: str | None = None) -> list[str]:
    return [step.job_id for _, step in dead.listed(reader, limit, before, cmd)[0]]


def test_pages_give_each_once_although_many_failed_in_the_same_millisecond(store: RealStore, reader: Reader) -> None:
    jobs = [f"j{number:02}" for number in range(20)]
    fail(store, *jobs)
    fail(store, "later", now_ms=NOW_MS + 5)
    seen, mark = [], ""
    while True:
        page, mark = dead.listed(reader, 3, mark, None)
        seen += [step.job_id for _, step in page]
        if not mark:
            break
    assert sorted(seen) == [*jobs, "later"]
    assert seen[0] == "later"


def test_a_filter_looks_on_until_the_page_is_full(
    store: RealStore, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail(store, *(f"g{number}" for number in range(5)), cmd="g")
    fail(store, *(f"f{number}" for number in range(30)), now_ms=NOW_MS + 5)
    assert sorted(listed(reader, 10, cmd="g")) == [f"g{number}" for number in range(5)]
    assert len(listed(reader, 3, cmd="g")) == 3
    assert listed(reader, cmd="h") == []
    monkeypatch.setattr(dead, "MOST_SCANNED", 10)
    found, following = dead.listed(reader, 10, "", "g")
    assert found == []
    assert following, "it says that there may be more"


def test_only_what_failed_then_or_before_is_given(store: RealStore, reader: Reader) -> None:
    fail(store, "old")
    fail(store, "new", now_ms=NOW_MS + 10)
    assert listed(reader, before=str(NOW_MS + 9)) == ["old"]
    assert listed(reader, before=str(NOW_MS + 10)) == ["new", "old"]


def test_what_is_under_way_again_is_not_listed(store: RealStore, reader: Reader, redis_server: Any) -> None:
    fail(store, "j", "k")
    change(store, "retry", "j")
    redis_server.client.zadd(store.keys("dead"), {"gone:x": NOW_MS, "a:j": NOW_MS})
    assert listed(reader) == ["k"]


@pytest.mark.parametrize("page", [1, 3, 500])
def test_a_sweep_changes_each_once_and_no_other(
    store: RealStore, reader: Reader, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """All in one millisecond, those of two functions mixed, some that cannot be changed: each page moves the next."""
    monkeypatch.setattr(dead, "PAGE", page)
    monkeypatch.setattr(dead, "MOST_CHANGED", 4)
    fail(store, *(f"f{number}" for number in range(10)))
    fail(store, *(f"g{number}" for number in range(10)), cmd="g")
    fail(store, "new", now_ms=NOW_MS + 10)
    submit(store, place("f3", from_="other"))  # this one is under way: it cannot be purged
    changed: list[str] = []

    def act(job_id: str) -> int:
        done = purge(store, job_id)
        changed.append(job_id)
        return done

    goes, passed, skipped = 0, 0, 0
    while True:
        swept = dead.sweep(reader, act, NOW_MS, "f", passed)
        goes, skipped = goes + 1, skipped + swept.skipped
        if not swept.following:
            break
        passed = int(swept.following.partition("-")[2])
    assert sorted(changed) == [f"f{number}" for number in range(10) if number != 3]
    assert skipped == 1
    assert goes > 1 or page == 500
    assert sorted(listed(reader)) == sorted(["f3", "new", *(f"g{number}" for number in range(10))])


def test_a_job_that_failed_in_several_steps_is_changed_once(store: RealStore, reader: Reader) -> None:
    submit(store, *(place("j", from_=name, to="end_job") for name in "abc"))
    report(store, *(close(job, Outcome.failed) for job in claim(store, 3)))
    calls: list[str] = []

    def act(job_id: str) -> int:
        calls.append(job_id)
        return change(store, "retry", job_id).steps

    assert dead.sweep(reader, act, NOW_MS) == (1, 3, 0, "")
    assert calls == ["j"]
    assert dead.sweep(reader, act, NOW_MS) == (0, 0, 0, "")


def test_how_callbacks_go_is_read(store: RealStore, reader: Reader, redis_server: Any) -> None:
    submit(store, place("j", notify="http://a.example/"), place("k"))
    report(store, *(close(job) for job in claim(store, 2)), now_ms=NOW_MS + 3)
    [first], [second] = reader.steps(["j", "k"])
    assert reader.callbacks([first, second]) == {"a:j": ("waiting", 0, "", NOW_MS + 3)}
    assert reader.callbacks([second]) == {}
    assert reader.callback_counts() == {"waiting": 1, "tried": 0, "sent": 0, "failed": 0}
    redis_server.client.delete(store.keys("callback", "a:j"))
    assert reader.callbacks([first]) == {}
    redis_server.client.set(store.keys("callback", "a:j"), "no hash")
    assert reader.callbacks([first]) == {}
