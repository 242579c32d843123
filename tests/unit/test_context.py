"""A context: nothing before it is asked for, then what the job needs."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from exesys import codec, config
from exesys.bus.messages import Added
from exesys.context import MOST_ADDED_BYTES, Context, JobInfo, Resources
from exesys.errors import BadCommand, NoMongo, TooLarge

ROOT = Path("/srv/project")
JOB = JobInfo("16fd2706", "client", "end_job", "prints", 2)


class FakeClient:
    """Notes what is submitted."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, Any, dict[str, Any]]] = []
        self.closed = False

    def submit(self, cmd: str, data: Any = None, **options: Any) -> int:
        self.sent.append((cmd, data, options))
        return len(self.sent)

    def close(self) -> None:
        self.closed = True


class Desk:
    """A context, and everything that was done with it."""

    def __init__(self, job: JobInfo = JOB, **environ: str) -> None:
        self.clients: list[FakeClient] = []
        self.told: list[tuple[float, str]] = []
        self.cancelled = False
        self.resources = Resources(config.parse("", None, environ, ROOT, ROOT), self.make_client)
        self.ctx = Context(job, self.resources, lambda *note: self.told.append(note), lambda: self.cancelled)

    def make_client(self) -> FakeClient:
        self.clients.append(FakeClient())
        return self.clients[-1]


def test_the_job() -> None:
    job = Desk().ctx.job
    assert (job.job_id, job.from_, job.to, job.cmd, job.attempt) == ("16fd2706", "client", "end_job", "prints", 2)
    with pytest.raises(AttributeError):
        job.attempt = 3  # type: ignore[misc]  # that is the test


def test_no_driver_is_imported_before_it_is_asked_for() -> None:
    code = (
        "import sys, pathlib; from exesys import config; from exesys.context import Context, Resources\n"
        "p = pathlib.Path('/x'); r = Resources(config.parse('', None, {}, p, p), None)\n"
        "c = Context(None, r, None, None); c.log\n"
        "sys.exit(', '.join({'redis', 'pymongo', 'zmq'} & set(sys.modules)))"
    )
    house = Path(codec.__file__).parent.parent
    ended = subprocess.run([sys.executable, "-c", code], cwd=house, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "\n")  # exit("") says an empty line


def test_redis_is_the_data_database() -> None:
    desk = Desk(EXESYS_REDIS_URL="redis://127.0.0.1:1/0")
    options = desk.ctx.redis.connection_pool.connection_kwargs
    assert (options["port"], options["db"], options["socket_timeout"]) == (1, 1, None)
    assert desk.ctx.redis is desk.ctx.redis


def test_mongo_is_the_database_of_the_settings() -> None:
    desk = Desk(EXESYS_MONGO_URI="mongodb://127.0.0.1:1/?connect=false", EXESYS_MONGO_DATABASE="mine")
    assert desk.ctx.mongo.name == "mine"
    assert desk.ctx.mongo.client.options.server_selection_timeout == 5
    assert desk.ctx.mongo is desk.ctx.mongo
    desk.resources.close()
    chosen = Desk(EXESYS_MONGO_URI="mongodb://127.0.0.1:1/?connect=false&serverSelectionTimeoutMS=700")
    assert chosen.ctx.mongo.client.options.server_selection_timeout == 0.7
    chosen.resources.close()


def test_without_mongo_it_says_what_to_set() -> None:
    with pytest.raises(NoMongo) as caught:
        _ = Desk().ctx.mongo
    for hint in ("[mongo] uri", "EXESYS_MONGO_URI", "mongod", "SecantusDB"):
        assert hint in str(caught.value)


def test_the_log_goes_where_print_goes_in_order() -> None:
    desk = Desk()
    for _ in range(2):  # each job has its own place
        written = io.StringIO()
        with contextlib.redirect_stdout(written):
            print("one")
            desk.ctx.log.debug("two %d", 2)
            desk.ctx.log.warning("three")
            print("four")
        assert written.getvalue() == "one\nDEBUG two 2\nWARNING three\nfour\n"


def test_an_exception_is_logged_with_its_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        raise ValueError("here")
    except ValueError:
        Desk().ctx.log.exception("it failed")
    assert capsys.readouterr().out.startswith("ERROR it failed\nTraceback")


def test_progress() -> None:
    desk = Desk()
    desk.ctx.progress(0)
    desk.ctx.progress(0.5, "half")
    desk.ctx.progress(1, "x" * 1000 + "\ud800")
    assert desk.told == [(0.0, ""), (0.5, "half"), (1.0, "x" * 200)]
    assert all(type(fraction) is float for fraction, _ in desk.told)
    desk.ctx.progress(1, "\ud800")
    assert desk.told[-1] == (1.0, "?")


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), float("inf")])
def test_progress_outside_is_refused(fraction: float) -> None:
    desk = Desk()
    with pytest.raises(ValueError, match="give 0 to 1"):
        desk.ctx.progress(fraction)
    assert desk.told == []


def test_cancelled_is_asked_each_time() -> None:
    desk = Desk()
    assert not desk.ctx.cancelled
    desk.cancelled = True
    assert desk.ctx.cancelled


def test_submit_uses_one_client() -> None:
    desk = Desk()
    assert desk.clients == []
    assert desk.ctx.submit("add", [1, 2], priority=9) == 1
    assert desk.ctx.submit("noop") == 2
    [client] = desk.clients
    assert client.sent == [("add", [1, 2], {"priority": 9}), ("noop", None, {})]
    desk.resources.close()
    assert client.closed


# --- steps of its own job -----------------------------------------------------

SPLIT = JobInfo("16fd2706", "split", "merge", "split", 1)
SOME = codec.pack([1, 2])


def test_a_step_goes_where_the_one_that_adds_it_goes() -> None:
    ctx = Desk(SPLIT).ctx
    assert ctx.added == ()
    assert [ctx.add_step("add", [1, 2]), ctx.add_step("noop")] == ["split.1", "split.2"]
    assert ctx.added == [Added("split.1", "merge", "add", SOME, {}), Added("split.2", "merge", "noop", b"\xc0", {})]
    both = Desk(SPLIT._replace(to="left,right")).ctx
    both.add_step("noop")
    assert both.added == [Added("split.1", ["left", "right"], "noop", b"\xc0", {})]


def test_a_step_may_have_another_name_target_and_options() -> None:
    ctx = Desk(SPLIT).ctx
    assert ctx.add_step("add", [1, 2], from_="deep", to=["sum", "end_job"], priority=9, delay_s=0.5) == "deep"
    assert ctx.add_step("noop", from_="sum", to="merge") == "sum"
    assert ctx.added == [
        Added("deep", ["sum", "end_job"], "add", SOME, {"priority": 9, "delay_s": 0.5}),
        Added("sum", "merge", "noop", b"\xc0", {}),
    ]


def test_names_are_not_given_twice() -> None:
    ctx = Desk(SPLIT).ctx
    ctx.add_step("noop", from_="split.2")
    ctx.add_step("noop", from_="split.2", to="end_job")  # several steps with one name are good
    with pytest.raises(BadCommand):
        ctx.add_step("noop", queue="no such name")
    assert [ctx.add_step("noop") for _ in range(3)] == ["split.1", "split.3", "split.4"]
    assert len(ctx.added) == 5


@pytest.mark.parametrize(
    ("given", "field", "said"),
    [
        ({"cmd": "no name"}, "cmd", "' '"),
        ({"from_": ""}, "from", "empty"),
        ({"from_": "end_job"}, "from", "'end_job'"),
        ({"to": "a,b"}, "to", "','"),
        ({"to": []}, "to", "0 names"),
        ({"to": ["a", "a"]}, "to", "twice"),
        ({"from_": "x", "to": "x"}, "to", "feeds itself"),
        ({"to": "start_job"}, "to", "start_job"),
        ({"to": "split"}, "to", "goes back to split"),
        ({"from_": "split"}, "from", "split to merge already"),
        ({"from_": "twice"}, "from", "twice to merge already"),
        ({"priority": 10}, "priority", "10"),
        ({"priorty": 1}, "priorty", "unknown"),
        ({"job_id": "other"}, "job_id", "unknown"),
        ({"data": object()}, "data", "object"),
        ({"data": 1 << 64}, "data", "64 bits"),
        ({"data": [[[[1]]]]}, "data", "nested"),
    ],
)
def test_what_is_wrong_with_a_step_is_said_at_once(given: dict[str, Any], field: str, said: str) -> None:
    ctx = Desk(SPLIT, EXESYS_LIMITS_DEPTH="3").ctx
    ctx.add_step("noop", from_="twice")
    with pytest.raises(BadCommand) as caught:
        ctx.add_step(given.pop("cmd", "noop"), **given)
    assert caught.value.field == field
    assert said in str(caught.value)
    assert len(ctx.added) == 1


def test_a_name_that_gets_too_long_is_refused() -> None:
    ctx = Desk(SPLIT._replace(from_="x" * 128)).ctx
    with pytest.raises(BadCommand, match="130 characters"):
        ctx.add_step("noop")
    assert ctx.add_step("noop", from_="short") == "short"


def test_steps_have_limits() -> None:
    few = Desk(SPLIT, EXESYS_LIMITS_WORKFLOW_STEPS="3").ctx
    few.add_step("noop")
    few.add_step("noop")
    with pytest.raises(BadCommand, match=r"more than 3 steps.*\[limits\] workflow_steps"):
        few.add_step("noop")
    small = Desk(SPLIT, EXESYS_LIMITS_DATA_BYTES="1000").ctx
    with pytest.raises(TooLarge, match=r"\[limits\] data_bytes"):
        small.add_step("noop", "x" * 1000)
    large = Desk(SPLIT).ctx
    filling = b"x" * ((1 << 20) - 10)
    fitting = (MOST_ADDED_BYTES >> 20) - 1
    for _ in range(fitting):
        large.add_step("noop", filling)
    large.add_step("noop", b"x" * (1 << 19))
    with pytest.raises(TooLarge, match="in all"):
        large.add_step("noop", filling)
    assert large.add_step("noop", "small") == f"split.{fitting + 2}", "what fits is taken after it"


def test_threads_may_add_steps() -> None:
    ctx = Desk(SPLIT).ctx
    with ThreadPoolExecutor(8) as threads:
        names = list(threads.map(lambda _: ctx.add_step("noop"), range(400)))
    assert len(set(names)) == len({step.from_ for step in ctx.added}) == 400


def test_closing_closes_only_what_was_opened() -> None:
    desk = Desk()
    desk.resources.close()
    assert desk.clients == []
    assert Desk(EXESYS_REDIS_URL="redis://127.0.0.1:1/0").ctx.redis is not None
