"""What a runner gets as `ctx`, and how functions start and stop runners."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from exesys import config
from exesys.context import Common, Context, JobInfo, Resources, RunnerContext, RunnerInfo
from exesys.errors import BadCommand
from exesys.runner import check_name

ROOT = Path("/srv/project")
JOB = JobInfo("16fd2706", "client", "end_job", "prints", 1)
INFO = RunnerInfo("clock", "u-1", "m.f", 3)


class FakeClient:
    """Notes which runners are started and stopped."""

    def __init__(self) -> None:
        self.started: list[dict[str, Any]] = []
        self.stopped: list[tuple[str, str | None]] = []
        self.known = 1

    def submit(self, cmd: str, data: Any = None, **options: Any) -> int:
        return 1

    def start_runner(self, target: str, data: Any = None, **parts: Any) -> str:
        self.started.append({"target": target, "data": data, **parts})
        return f"{parts['type'] or 'default'}:{parts['uuid']}"

    def stop_runner(self, type: str, uuid: str | None = None) -> int:
        self.stopped.append((type, uuid))
        return self.known

    def close(self) -> None:
        pass


class Desk:
    """Contexts of one process, and what they ask of the client."""

    def __init__(self) -> None:
        self.client = FakeClient()
        self.told: list[tuple[float, str]] = []
        self.resources = Resources(config.parse("", None, {}, ROOT, ROOT), lambda: self.client)

    def job(self, **changes: Any) -> Context:
        return Context(JOB._replace(**changes), self.resources, lambda *note: self.told.append(note), lambda: False)

    def runner(self) -> RunnerContext:
        return RunnerContext(INFO, self.resources, lambda *note: self.told.append(note))

    def uuids(self, ctx: Common, count: int = 3) -> list[str]:
        """Start runners and return their uuids."""
        self.client.started.clear()
        for _ in range(count):
            ctx.start_runner("m.f")
        return [each["uuid"] for each in self.client.started]


@pytest.fixture
def desk() -> Desk:
    return Desk()


def target(data: Any) -> None:
    """Be a function."""


# --- starting and stopping ----------------------------------------------------------


def test_a_runner_is_started_with_all_that_is_given(desk: Desk) -> None:
    assert desk.job().start_runner("m.f", [1], type="cam", uuid="7", grace_s=2.5) == "cam:7"
    [started] = desk.client.started
    given = {"data": [1], "type": "cam", "uuid": "7", "grace_s": 2.5}
    assert started == {"target": "m.f", **given, "job": "client:16fd2706"}


def test_what_is_not_given_is_left_to_the_client_but_for_the_uuid(desk: Desk) -> None:
    desk.job().start_runner(target)
    [started] = desk.client.started
    assert started["target"] == f"{target.__module__}.target"
    assert (started["data"], started["type"], started["grace_s"]) == (None, None, None)
    assert UUID(started["uuid"])


def test_the_runners_of_a_job_are_the_same_in_each_attempt_and_differ_within_one(desk: Desk) -> None:
    first = desk.uuids(desk.job())
    assert len(set(first)) == 3
    assert desk.uuids(desk.job(attempt=2)) == first
    assert all(check_name("t", uuid).uuid == uuid for uuid in first)


@pytest.mark.parametrize("change", [{"job_id": "other"}, {"from_": "other"}, {"to": "other"}])
def test_other_steps_have_other_runners(desk: Desk, change: dict[str, str]) -> None:
    assert not set(desk.uuids(desk.job())) & set(desk.uuids(desk.job(**change)))


def test_a_uuid_that_is_given_moves_none_of_the_others(desk: Desk) -> None:
    first = desk.uuids(desk.job())
    ctx = desk.job(attempt=2)
    ctx.start_runner("m.f", uuid="mine")
    assert desk.uuids(ctx) == first


def test_the_runners_of_a_runner_are_always_new(desk: Desk) -> None:
    assert not set(desk.uuids(desk.runner())) & set(desk.uuids(desk.runner()))
    assert {each["job"] for each in desk.client.started} == {""}


def test_what_is_no_function_is_not_started(desk: Desk) -> None:
    with pytest.raises(BadCommand):
        desk.job().start_runner(print)
    assert desk.client.started == []


def test_a_stop_tells_whether_it_is_news(desk: Desk) -> None:
    ctx = desk.job()
    assert ctx.stop_runner("cam", "7") is True
    desk.client.known = 0
    assert ctx.stop_runner("cam:7") is False
    assert desk.client.stopped == [("cam", "7"), ("cam:7", None)]


# --- a runner's own ------------------------------------------------------------------


def test_a_runner_knows_itself(desk: Desk) -> None:
    ctx = desk.runner()
    assert (ctx.runner.type, ctx.runner.uuid, ctx.runner.target, ctx.runner.epoch) == INFO
    assert ctx.runner.name == "clock:u-1"
    with pytest.raises(AttributeError):
        ctx.cancelled = True  # type: ignore[attr-defined]  # that is the test


def test_it_waits_for_its_stop(desk: Desk) -> None:
    ctx = desk.runner()
    assert not ctx.stopping.is_set()
    assert ctx.wait_stop(0.01) is False
    threading.Timer(0.05, ctx.stop).start()
    assert ctx.wait_stop() is True
    assert ctx.wait_stop(0) is True
    assert ctx.stopping.is_set()


def test_what_it_asked_for_is_called_once_when_it_is_to_stop(desk: Desk) -> None:
    ctx, called = desk.runner(), list[str]()
    ctx.on_stop(lambda: called.append("first"))
    ctx.on_stop(lambda: called.append(f"second, {ctx.stopping.is_set()}"))
    assert called == []
    ctx.stop()
    ctx.stop()
    assert called == ["first", "second, True"]


def test_after_the_stop_it_is_called_at_once(desk: Desk) -> None:
    ctx, called = desk.runner(), list[str]()
    ctx.stop()
    ctx.on_stop(lambda: called.append("late"))
    assert called == ["late"]


def test_a_call_may_ask_for_another(desk: Desk) -> None:
    ctx, called = desk.runner(), list[str]()
    ctx.on_stop(lambda: ctx.on_stop(lambda: called.append("inner")))
    ctx.stop()
    assert called == ["inner"]


def test_no_call_is_missed_while_the_stop_comes(desk: Desk) -> None:
    for _ in range(200):
        ctx, called = desk.runner(), list[int]()
        stopper = threading.Thread(target=ctx.stop)
        stopper.start()
        for number in range(5):
            ctx.on_stop(partial(called.append, number))
        stopper.join()
        assert sorted(called) == [0, 1, 2, 3, 4]


def test_progress_is_told_and_checked(desk: Desk) -> None:
    ctx = desk.runner()
    ctx.progress(0.5, "half")
    with pytest.raises(ValueError, match="0 to 1"):
        ctx.progress(1.5)
    assert desk.told == [(0.5, "half")]
