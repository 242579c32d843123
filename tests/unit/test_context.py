"""A context: nothing before it is asked for, then what the job needs."""

from __future__ import annotations

import contextlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exesys import codec, config
from exesys.context import Context, JobInfo, Resources
from exesys.errors import NoMongo

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

    def __init__(self, **environ: str) -> None:
        self.clients: list[FakeClient] = []
        self.told: list[tuple[float, str]] = []
        self.cancelled = False
        self.resources = Resources(config.parse("", None, environ, ROOT, ROOT), self.make_client)
        self.ctx = Context(JOB, self.resources, lambda *note: self.told.append(note), lambda: self.cancelled)

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


def test_closing_closes_only_what_was_opened() -> None:
    desk = Desk()
    desk.resources.close()
    assert desk.clients == []
    assert Desk(EXESYS_REDIS_URL="redis://127.0.0.1:1/0").ctx.redis is not None
