"""`exesys.testing` without a daemon: a function, and a workflow, as a system would run them."""

from __future__ import annotations

import datetime as dt
import logging
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import exesys
from exesys import Workflow, codec
from exesys.errors import (
    AppError,
    BadCommand,
    JobError,
    NotFound,
    TooLarge,
    Unavailable,
    UnknownApp,
    UnknownFunction,
    UnknownMethod,
)
from exesys.states import State
from exesys.testing import Started, Submitted, run, run_workflow

MODULES = [Path(__file__).resolve().parents[2] / "modules"]


# --- one function ---------------------------------------------------------


def describe(data: Any) -> str:
    return f"{type(data).__name__} {data!r}"


def test_a_function_gets_what_came_over_the_bus() -> None:
    assert run(describe, (1, 2)).value == "list [1, 2]"
    assert run(describe).value == "NoneType None"
    assert run(lambda_like).value is None
    moment = dt.datetime(2026, 1, 31, 12, tzinfo=dt.UTC)
    assert run(describe, moment).value == f"datetime {moment!r}"
    assert run(describe, None).took_s >= 0


def lambda_like() -> None:
    """A function without data."""


def test_the_value_is_what_a_client_gets() -> None:
    def wrapped(data: Any) -> Any:
        return {"EOJ": (data, {1})}

    async def awaited(data: Any) -> Any:
        return data + 1

    assert run(wrapped, 1).value == [1, {1}]
    assert run(awaited, 1).value == 2


def test_a_function_by_its_name() -> None:
    assert run("add", [1, 2], modules=MODULES).value == 3
    assert run("exesys_test.add", [1, 2], modules=MODULES).value == 3
    with pytest.raises(UnknownFunction, match="Did you mean `echo`"):
        run("ecko", modules=MODULES)


def test_a_function_goes_by_the_name_of_its_command() -> None:
    @exesys.function(name="called")
    def of_another_name(data: Any, ctx: Any) -> str:
        return str(ctx.job.cmd)

    of_another_name.__module__ = "__main__"  # as in a script
    assert run(of_another_name).value == "called"
    with pytest.raises(BadCommand, match="type cannot be called as a command"):
        run(int)


def test_what_it_tells_is_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    def talks(data: Any, ctx: Any) -> list[Any]:
        print("printed")
        ctx.log.debug("for its log")
        logging.getLogger("mine").info("logged")
        ctx.progress(0.5, "half")
        ctx.progress(1)
        return [*ctx.job[:5], ctx.cancelled]

    outcome = run(talks, job_id="j", from_="A", to="B", attempt=3, cancelled=True)
    assert outcome.value == ["j", "A", "B", "talks", 3, True]
    assert outcome.log == "printed\nDEBUG for its log\nINFO mine: logged\n"
    assert outcome.progress == ((0.5, "half"), (1.0, ""))
    assert capsys.readouterr().out == ""


def test_what_it_sends_is_checked_recorded_and_answered() -> None:
    def sends(data: Any, ctx: Any) -> list[Any]:
        handles = [ctx.submit("double", number, priority=9) for number in data]
        name = ctx.start_runner(describe, {"a": 1}, type="mail", uuid="u1", grace_s=2)
        ctx.add_step("echo", (1, 2), retries=2)
        stops = [ctx.stop_runner("mail", "u1"), ctx.stop_runner("mail:u1")]
        return [[handle.result(5) for handle in handles], name, stops]

    outcome = run(sends, [1, 2], answers={"double": lambda number: (number, 2 * number)})
    assert outcome.value == [[[1, 2], [2, 4]], "mail:u1", [True, False]]
    assert outcome.submitted == (Submitted("double", 1, {"priority": 9}), Submitted("double", 2, {"priority": 9}))
    assert outcome.started == (Started("mail:u1", f"{__name__}.describe", {"a": 1}, 2),)
    assert outcome.stopped == ("mail:u1",)
    [step] = outcome.added
    assert (step.from_, step.to, step.cmd, codec.unpack(step.data)) == ("client.1", "end_job", "echo", [1, 2])
    assert step.options == {"retries": 2}


def test_a_runner_without_a_uuid_is_the_same_in_each_attempt() -> None:
    def starts(data: Any, ctx: Any) -> str:
        return str(ctx.start_runner("idle"))

    assert run(starts).value == run(starts, attempt=2).value != run(starts, job_id="other").value


@pytest.mark.parametrize(
    ("options", "kind"),
    [({"priority": 10}, BadCommand), ({"to": "a b"}, BadCommand), ({"data": "x" * (2 << 20)}, TooLarge)],
)
def test_what_a_system_refuses_is_refused(options: dict[str, Any], kind: type[Exception]) -> None:
    def sends(data: Any, ctx: Any) -> None:
        ctx.submit("echo", **options)

    with pytest.raises(kind):
        run(sends)


def test_an_answer_may_fail_and_one_that_is_missing_is_told() -> None:
    def asks(data: Any, ctx: Any) -> Any:
        return ctx.submit(data).result(5)

    def refuses(data: Any) -> None:
        raise LookupError("none")

    with pytest.raises(JobError, match="LookupError: none"):
        run(asks, "find", answers={"find": refuses})
    with pytest.raises(JobError, match="KeyError"):
        run(asks, "find", answers={"find": KeyError("k")})
    with pytest.raises(Unavailable, match=r"nobody runs `find` here. Give answers=\{'find': …\}."):
        run(asks, "find")


def test_application_servers_are_objects() -> None:
    class Words:
        def size(self, text: str, *, times: int = 1) -> int:
            return len(text) * times

        def kinds(self, of: Any) -> str:
            return type(of).__name__

        def fails(self) -> None:
            raise ValueError("no")

    def asks(data: Any, ctx: Any) -> list[Any]:
        words = ctx.app("words")
        return [words.size("abc", times=2), words.kinds((1, 2))]

    assert run(asks, apps={"words": Words()}).value == [6, "list"]
    with pytest.raises(UnknownApp, match="Did you mean `word`"):
        run(asks, apps={"word": Words()})
    with pytest.raises(AppError, match=r"words\.fails raised ValueError: no"):
        run(lambda_with("fails"), apps={"words": Words()})
    with pytest.raises(UnknownMethod):
        run(lambda_with("_hidden"), apps={"words": Words()})


def lambda_with(method: str) -> Any:
    def calls(data: Any, ctx: Any) -> Any:
        return getattr(ctx.app("words"), method)()

    return calls


def test_what_it_raises_is_raised_with_what_it_printed() -> None:
    def raises(data: Any, ctx: Any) -> None:
        print("on the way")
        raise ZeroDivisionError("here")

    with pytest.raises(ZeroDivisionError, match="here") as caught:
        run(raises)
    assert caught.value.__notes__ == ["It printed and logged:\non the way"]
    with pytest.raises(NotFound):
        run(stops)


def stops(data: Any, ctx: Any) -> None:
    ctx.stop_runner("mail", "nobody")


def test_what_cannot_be_sent_is_refused_both_ways() -> None:
    with pytest.raises(BadCommand, match="a object cannot be sent"):
        run(describe, object())
    with pytest.raises(TypeError, match=r"what .*returns_a_type returned cannot be sent"):
        run(returns_a_type)
    with pytest.raises(TooLarge, match="the result has"):
        run(returns_much)
    with pytest.raises(BadCommand, match="cannot be called"):
        run(needs_two, 1)


def returns_a_type(data: Any) -> Any:
    return int


def returns_much(data: Any) -> Any:
    return b"x" * (2 << 20)


def needs_two(data: Any, other: Any) -> None:
    """No command: nobody gives `other`."""


def test_a_time_limit_lets_it_clean_up() -> None:
    cleaned = []

    def sleeps(data: Any) -> None:
        try:
            time.sleep(30)
        except Exception:  # noqa: BLE001  # as careless functions do
            cleaned.append("swallowed")
        finally:
            cleaned.append("finally")

    began = time.monotonic()
    with pytest.raises(JobError, match=r"Timeout: it ran longer than its limit of 0\.05 s"):
        run(sleeps, timeout_s=0.05)
    assert time.monotonic() - began < 10
    assert cleaned == ["finally"]
    assert run(describe, 1, timeout_s=5).value == "int 1"


def test_a_time_limit_needs_the_main_thread() -> None:
    caught: list[Exception] = []

    def elsewhere() -> None:
        try:
            run(describe, timeout_s=1)
        except ValueError as error:
            caught.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "main thread" in str(caught[0])


def test_databases_that_were_not_given_are_named() -> None:
    def counts(data: Any, ctx: Any) -> None:
        ctx.redis.incr("n")

    def stores(data: Any, ctx: Any) -> str:
        return str(ctx.mongo["things"])

    with pytest.raises(Unavailable, match=r"ctx\.redis, and this test has none\. Give redis="):
        run(counts)
    with pytest.raises(Unavailable, match=r"ctx\.mongo"):
        run(stores)
    assert run(stores, mongo={"things": 1}).value == "1"


# --- a workflow -----------------------------------------------------------


def steps_of(*edges: tuple[str, Any, str, Any]) -> list[dict[str, Any]]:
    return [{"from": from_, "to": to, "cmd": cmd, "data": data} for from_, to, cmd, data in edges]


def test_a_workflow_in_python() -> None:
    flow = Workflow()
    numbers = flow.step("echo", [1, 2, 3])
    parts = [numbers.then("add", name=f"part-{n}") for n in range(3)]
    flow.step("echo", after=parts, name="together")
    done = run_workflow(flow, modules=MODULES)
    assert done.state is State.data_available
    assert done.result() == {"part-0": 6, "part-1": 6, "part-2": 6}
    assert {step.attempts for step in done.steps.values()} == {1}


def test_fan_in_and_several_ends() -> None:
    commands = steps_of(
        ("A", "B", "echo", 1),
        ("A", ["B", "C"], "echo", 2),
        ("B", "end_job", "echo", None),
        ("C", "end_job", "echo", None),
    )
    done = run_workflow(commands, modules=MODULES)
    assert done.result() == {"B": {"A>B": 1, "A>B,C": 2}, "C": 2}
    assert list(done.steps) == ["A", "A>B,C", "B", "C"]


def test_failure_spreads_and_the_rest_goes_on() -> None:
    commands = steps_of(
        ("A", ["B", "C"], "echo", "on purpose"),
        ("B", "D", "fail", None),
        ("C", "end_job", "echo", None),
        ("D", "end_job", "echo", None),
    )
    done = run_workflow(commands, modules=MODULES)
    assert done.state is State.error
    assert done.steps["C"].value == "on purpose"
    assert done.steps["D"].error is not None
    assert (done.steps["D"].error.type, done.steps["D"].error.text) == ("PredecessorFailed", "predecessor B failed")
    assert done.steps["D"].attempts == 0
    with pytest.raises(JobError, match="ValueError: on purpose") as caught:
        done.result()
    assert isinstance(caught.value.__cause__, ValueError)
    with pytest.raises(JobError, match="predecessor B failed"):
        _ = done.steps["D"].value


def test_retries_are_those_of_the_step_or_of_its_function() -> None:
    @exesys.function(retries=2, backoff_s=60)
    def third(data: Any, ctx: Any) -> int:
        if ctx.job.attempt < 3:
            raise RuntimeError(f"attempt {ctx.job.attempt}")
        return int(ctx.job.attempt)

    [step] = steps_of(("A", "end_job", "third", None))
    began = time.monotonic()
    assert run_workflow([step], functions={"third": third}).result() == 3
    assert time.monotonic() - began < 30, "nobody waits for the back-off"
    failed = run_workflow([{**step, "retries": 1}], functions={"third": third})
    with pytest.raises(JobError, match=r"RuntimeError: attempt 2 \(after 2 attempts\)"):
        failed.result()


def adding(*steps: dict[str, Any]) -> Any:
    def adds(data: Any, ctx: Any) -> int:
        for step in steps:
            ctx.add_step(**step)
        return len(steps)

    return adds


def test_added_steps_run_and_are_waited_for() -> None:
    commands = steps_of(("A", "B", "adds", None), ("B", "end_job", "echo", None))
    functions = {"adds": adding({"cmd": "add", "data": [1, 2]}, {"cmd": "add", "data": [3, 4]})}
    done = run_workflow(commands, modules=MODULES, functions=functions)
    assert done.result() == {"A": 2, "A.1": 3, "A.2": 7}
    assert list(done.steps) == ["A", "B", "A.1", "A.2"]


@pytest.mark.parametrize(
    ("steps", "why"),
    [
        ([{"cmd": "echo", "to": "X"}], "no step waits at X to be fed by A.1"),
        ([{"cmd": "ecko"}], "no function is named `ecko`"),
        ([{"cmd": "echo", "from_": "B", "to": "end_job"}], "there is a step from B to end_job already"),
        ([{"cmd": "echo", "from_": "B", "to": "Y"}, {"cmd": "echo", "from_": "Y", "to": "B"}], "circle"),
    ],
)
def test_an_added_step_that_does_not_fit_fails_the_attempt(steps: list[dict[str, Any]], why: str) -> None:
    commands = steps_of(("A", "B", "adds", None), ("B", "end_job", "echo", None))
    done = run_workflow(commands, modules=MODULES, functions={"adds": adding(*steps)})
    assert list(done.steps) == ["A", "B"]
    error = done.steps["A"].error
    assert error is not None
    if error.type == "BadCommand":  # it was seen when it was added
        assert why in error.text
    else:
        assert error.type == "BadStep"
        assert why in error.text


def test_what_is_no_workflow_is_refused() -> None:
    with pytest.raises(BadCommand, match="circle"):
        run_workflow(steps_of(("A", "B", "echo", 1), ("B", "A", "echo", 1)), modules=MODULES)
    with pytest.raises(UnknownFunction):
        run_workflow(steps_of(("A", "end_job", "ecko", 1)), modules=MODULES)
    with pytest.raises(BadCommand, match="no steps"):
        run_workflow([], modules=MODULES)


def test_what_feeds_too_much_fails_the_step() -> None:
    def much(data: Any) -> str:
        return "x" * (600 << 10)

    commands = steps_of(("A", "C", "much", 1), ("B", "C", "much", 1), ("C", "end_job", "much", None))
    error = run_workflow(commands, functions={"much": much}).steps["C"].error
    assert error is not None
    assert error.type == "TooLarge"
