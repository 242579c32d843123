"""The daemons' logs as JSON, and how a person is shown them."""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from exesys import logs, output

ROOT = Path(__file__).resolve().parent.parent.parent
TRACEPARENT = f"00-{'4b' * 16}-{'00f067aa0ba902b7'}-01"


def written(text: str, *arguments: Any, level: int = logging.INFO, exc: bool = False, **extra: Any) -> dict[str, Any]:
    record = logging.makeLogRecord(
        {"name": "router", "levelno": level, "levelname": logging.getLevelName(level), "msg": text, "args": arguments}
        | {"created": 1795979560.077, "exc_info": sys.exc_info() if exc else None, **extra}
    )
    line = logs.JsonLines("worker-mail").format(record)
    assert "\n" not in line
    told: dict[str, Any] = json.loads(line)
    return told


def test_a_line_is_an_object() -> None:
    assert written("%d of %s", 3, 'ä\n"x"') == {
        **{"ts": "2026-11-29T19:12:40.077Z", "level": "INFO", "logger": "router", "program": "worker-mail"},
        "msg": '3 of ä\n"x"',
    }


def test_what_a_line_is_about_stands_in_fields_of_its_own() -> None:
    told = written("cut short", **logs.about("a>b:job-1", "add", 2, TRACEPARENT))
    assert {name: told[name] for name in logs.ABOUT} == {
        **{"job_id": "job-1", "cmd": "add", "attempt": 2, "trace_id": "4b" * 16}
    }
    assert logs.about("a:j") == {"job_id": "j"}


def test_an_exception_is_one_field() -> None:
    try:
        raise ValueError("on purpose")
    except ValueError:
        told = written("it failed", level=logging.ERROR, exc=True)
    assert told["msg"] == "it failed"
    assert told["exc"].startswith("Traceback")
    assert told["exc"].endswith("ValueError: on purpose")


def test_a_person_is_shown_what_it_says() -> None:
    told = written("cut short", **logs.about("a:j", "add", 2))
    line = json.dumps(told)
    assert logs.readable(line) == "2026-11-29T19:12:40.077Z worker-mail INFO cut short [job_id=j cmd=add attempt=2]"
    assert logs.readable(json.dumps({**told, "exc": "Traceback\nx"})).endswith("attempt=2]\nTraceback\nx")
    for other in ("plain text", "{no json", '{"msg": "of another program"}', "[]", '{"ts": 1}'):
        assert logs.readable(other) == other


def test_lines_that_are_followed_are_shown_so_too(capsys: pytest.CaptureFixture[str]) -> None:
    line = json.dumps({**written("it failed"), "exc": "Traceback\nx"})
    output.Columns()("rest", line)
    assert [shown.partition("|")[2] for shown in capsys.readouterr().out.splitlines()] == [
        *(" 2026-11-29T19:12:40.077Z worker-mail INFO it failed", " Traceback", " x")
    ]
    output.Columns(as_json=True)("rest", line)
    assert json.loads(capsys.readouterr().out)["line"] == line


def test_the_page_names_every_field() -> None:
    table = (ROOT / "docs/metrics.md").read_text("utf-8").partition("## Logs as JSON")[2].partition("## Traces")[0]
    named = {name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in re.findall(r"`(\w+)`", row)}
    assert named == {*written("x"), *logs.ABOUT, "exc"}


DAEMON = """
import logging, warnings
from exesys.daemons.loop import run, settings
def main():
    logging.getLogger("early").info("before the settings")
    settings("rest")
    logging.getLogger("late").info("with the settings")
    warnings.warn("of a library")
    raise ZeroDivisionError("unforeseen")
run("rest", main)
"""


def test_a_daemon_writes_json_from_its_settings_on_also_what_ends_it(tmp_path: Path) -> None:
    environ = {"PYTHONPATH": str(ROOT), "EXESYS_HOME": str(tmp_path), "EXESYS_LOGS_FORMAT": "json"}
    done = subprocess.run([sys.executable, "-c", DAEMON], capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (1, "")
    early, *lines = done.stdout.splitlines()
    assert early.endswith("rest INFO before the settings")
    told = [json.loads(line) for line in lines]
    assert [each["logger"] for each in told] == ["late", "py.warnings", "rest"]
    assert told[-1]["level"] == "ERROR"
    assert told[-1]["exc"].endswith("ZeroDivisionError: unforeseen")
    assert {each["program"] for each in told} == {"rest"}
