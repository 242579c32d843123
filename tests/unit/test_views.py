"""What people are shown of jobs."""

from __future__ import annotations

import json
from typing import Any

import pytest

from exesys import codec, http, views
from exesys.states import State
from exesys.store.reader import Step

ERROR = codec.pack({"type": "ValueError", "message": "no", "traceback": "Traceback …"})


def step(ref: str = "a:j", state: State = State.start, **fields: Any) -> Step:
    packed = {"to": "end_job", "cmd": "f", "data": b"\xc0", "born": 1000, **fields}
    return Step(ref, state, {name: v if isinstance(v, bytes) else str(v).encode() for name, v in packed.items()})


def done(ref: str = "a:j", value: Any = 5, **fields: Any) -> Step:
    result = codec.pack({"EOJ": value})
    return step(ref, State.data_available, result=result, attempt=1, began=1001, ended=1003, **fields)


def test_a_waiting_step_is_shown_with_its_names_and_when_it_was_accepted() -> None:
    assert views.job("j", [step()]) == {
        "job_id": "j",
        "status": 0,
        "state": "start",
        "steps": [
            {
                "from": "a",
                "to": "end_job",
                "cmd": "f",
                "status": 0,
                "state": "start",
                "attempt": 0,
                "queue": "default",
                "accepted_ms": 1000,
            }
        ],
    }


def test_a_list_of_targets_is_shown_as_it_was_sent() -> None:
    assert views.to_of("x") == "x"
    assert views.to_of("x,y") == ["x", "y"]
    assert views.job("j", [step(to="x,y")])["steps"][0]["to"] == ["x", "y"]


def test_a_second_step_of_one_from_is_shown_by_that_from() -> None:
    [shown] = views.job("j", [step("a>x:j", to="x")])["steps"]
    assert (shown["from"], shown["to"]) == ("a", "x")


def test_a_running_step_is_shown_with_its_worker_and_progress() -> None:
    running = step(state=State.processing, attempt=2, worker="1" * 16, sent=1007, progress="0.25", note="a quarter")
    [shown] = views.job("j", [running])["steps"]
    assert (shown["worker"], shown["attempt"]) == ("1" * 16, 2)
    assert (shown["sent_ms"], "began_ms" in shown) == (1007, False), "when it began only its end tells"
    assert shown["progress"] == {"fraction": 0.25, "text": "a quarter"}


@pytest.mark.parametrize("state", [State.start, State.standby, State.processing, State.error])
def test_the_queue_of_a_step_is_shown_while_it_is_known(state: State) -> None:
    [shown] = views.job("j", [step(state=state, queue="mail", error=ERROR)])["steps"]
    assert shown["queue"] == "mail"
    assert "queue" not in views.job("j", [done()])["steps"][0], "the record of a finished step has none"


def test_a_step_that_waits_on_a_queue_without_a_worker_says_so() -> None:
    steps = [
        step(queue="mail"),
        step("b:j"),
        step("c:j", queue="fast"),
        step("d:j", State.processing, queue="mail"),
        step("e:j", State.error, queue="mail", error=ERROR),
        done("f:j"),
    ]
    shown = views.job("j", steps, served={"default": False, "fast": True})["steps"]
    assert [each.get("waits") for each in shown] == [
        "no worker serves the queue mail",
        None,
        "the queue fast is paused",
        *[None] * 3,
    ]
    shown = views.job("j", steps, served={})["steps"]
    assert [each.get("waits", "").rpartition(" ")[2] for each in shown] == ["mail", "default", "fast", "", "", ""]
    assert not any("waits" in each for each in views.job("j", steps)["steps"]), "nobody was asked"


def test_a_finished_job_is_shown_with_its_end() -> None:
    shown = views.job("j", [done(value=[1, 2])], whole=True)
    assert (shown["state"], shown["EOJ"], shown["steps"][0]["result"]) == ("data_available", [1, 2], {"EOJ": [1, 2]})
    assert (shown["steps"][0]["began_ms"], shown["steps"][0]["ended_ms"]) == (1001, 1003)
    short = views.job("j", [done()])
    assert "EOJ" not in short
    assert "result" not in short["steps"][0]


def test_several_ends_are_a_map_by_from() -> None:
    steps = [done("d:j", 1), done("e:j", 2), done("a:j", 3, to="d,e")]
    assert views.job("j", steps, whole=True)["EOJ"] == {"d": 1, "e": 2}


@pytest.mark.parametrize(
    ("states", "whole"),
    [
        ([State.data_available, State.start], "start"),
        ([State.error, State.start, State.processing], "processing"),
        ([State.standby, State.start], "start"),
        ([State.standby, State.data_available], "standby"),
        ([State.error, State.data_available], "error"),
        ([State.data_available] * 2, "data_available"),
    ],
)
def test_a_jobs_state_is_that_of_its_least_finished_step(states: list[State], whole: str) -> None:
    steps = [step(f"{name}:j", state) for name, state in zip("abc", states, strict=False)]
    assert views.job("j", steps)["state"] == whole


def test_an_error_is_shown_and_its_traceback_only_on_request() -> None:
    failed = step(state=State.error, error=ERROR, attempt=3)
    [short] = views.job("j", [failed])["steps"]
    assert short["error"] == {"type": "ValueError", "message": "no", "attempts": 3}
    [whole] = views.job("j", [failed], whole=True)["steps"]
    assert whole["error"]["traceback"] == "Traceback …"


def test_an_error_of_an_earlier_attempt_is_not_shown() -> None:
    [shown] = views.job("j", [step(state=State.processing, error=ERROR, attempt=2)])["steps"]
    assert "error" not in shown


def test_logs_are_shown_by_attempt() -> None:
    told = views.logs([step(), step("b:j", to="x,y")], [{1: "one\n", 2: "two\n"}, {}])
    assert told[0]["attempts"] == [{"attempt": 1, "log": "one\n"}, {"attempt": 2, "log": "two\n"}]
    assert told[1] == {"from": "b", "to": ["x", "y"], "attempts": []}


def test_whatever_is_shown_is_json() -> None:
    steps = [done(value={1: {b"x", 2}}), step("b:j", State.error, error=ERROR, attempt=1)]
    json.loads(http.to_json(views.job("j", steps, whole=True)))
