"""The command line without a system: what it understands, and with which code it ends."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from exesys import __version__, cli, command
from exesys.errors import (
    BadCommand,
    BootError,
    ConfigError,
    Conflict,
    ExesysError,
    JobError,
    NotFound,
    ResultTimeout,
    Unavailable,
    UnknownFunction,
)


def commands() -> dict[str, argparse.ArgumentParser]:
    parser = cli._parser()
    [found] = [each for each in parser._actions if isinstance(each, argparse._SubParsersAction)]
    return dict(found.choices)


COMMANDS = sorted(commands())


@pytest.fixture(autouse=True)
def a_home_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees a system that runs on this machine."""
    monkeypatch.setenv("EXESYS_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("EXESYS_INI", raising=False)
    monkeypatch.setattr(cli, "CONNECT_S", 0.05)


def exits(*arguments: str) -> int:
    """Run the command line as a process would end."""
    try:
        return cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)


# --- help -----------------------------------------------------------------------


def test_the_commands_of_the_design_are_there() -> None:
    wanted = "up down status submit result jobs functions logs doctor bench demo"
    assert set(wanted.split()) <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself_with_an_example_that_works(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(name, "--help") == 0
    told = capsys.readouterr().out
    found = re.search(r"example:\n\s+exesys (.+)", told)
    assert found, f"the help of {name} has no example"
    words = shlex.split(found[1])
    assert words[0] == name
    given, options = cli._parser().parse_known_args(words)
    assert callable(given.run)
    assert not options or name == "bench", f"the example of {name} is not understood: {options}"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_can_answer_in_json(name: str) -> None:
    example = {"submit": ["f"], "result": ["j"]}.get(name, [])
    given, _ = cli._parser().parse_known_args([name, *example, "--json"])
    assert given.json is True


def test_the_help_lists_all_commands_and_the_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("--help") == 0
    told = capsys.readouterr().out
    assert all(re.search(rf"^\s+{name}\s+\w", told, re.MULTILINE) for name in COMMANDS)
    assert all(f"{code} " in " ".join(told.split()) for code in range(5))


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("--version") == 0
    assert capsys.readouterr().out == f"exesys {__version__}\n"


# --- exit codes -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (JobError("ValueError", "no", 1), 1),
        (BootError("it does not start"), 1),
        (ConfigError("a bad value"), 1),
        (NotFound("no such job"), 1),
        (BadCommand("a bad field"), 2),
        (Conflict("other data"), 2),
        (UnknownFunction("no such function"), 2),
        (Unavailable("nobody answers"), 3),
        (ResultTimeout("it takes too long"), 4),
        (KeyboardInterrupt(), 130),
    ],
)
@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_ends_with_its_code_and_a_sentence(
    error: BaseException,
    code: int,
    as_json: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fails(*_: Any) -> int:
        raise error

    monkeypatch.setattr(cli, "_status", fails)
    assert exits("status", *(["--json"] if as_json else [])) == code
    told = capsys.readouterr()
    if not isinstance(error, ExesysError):
        return
    if as_json:
        assert json.loads(told.out)["error"] == error.problem._asdict()
        assert told.err == ""
    else:
        assert told.err == f"exesys: {error}\n"
        assert told.out == ""


def test_the_traceback_of_a_failed_job_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> int:
        raise JobError("ValueError", "no", 1, "Traceback …\nValueError: no")

    monkeypatch.setattr(cli, "_status", fails)
    assert exits("status") == 1
    assert capsys.readouterr().err == "exesys: ValueError: no\nTraceback …\nValueError: no\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["status", "--nonsense"],
        ["status", "nonsense"],
        ["submit"],
        ["submit", "f", "1", "2"],
        ["submit", "f", "--priority", "high"],
        ["submit", "f", "--retries", "1.5"],
        ["submit", "f", "--wait", "soon"],
        ["result"],
        ["jobs", "--state", "finished"],
        ["jobs", "--limit", "many"],
    ],
)
def test_wrong_usage_ends_with_two_and_says_how(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "usage: exesys" in told.err


@pytest.mark.parametrize("arguments", [["submit", "f", "--wait", "1"], ["functions"]])
def test_where_nothing_runs_the_code_is_three(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(*arguments) == 3
    told = capsys.readouterr().err
    assert "no router answers" in told
    assert "exesys up" in told


def test_the_status_of_nothing_is_one_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("status") == 1
    assert "exesys up" in capsys.readouterr().out
    assert exits("status", "--json") == 1
    assert json.loads(capsys.readouterr().out)["running"] is False


def test_a_bad_setting_is_one_sentence(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("EXESYS_REST_PORT", "many")
    assert exits("status") == 1
    told = capsys.readouterr().err
    assert "EXESYS_REST_PORT" in told
    assert "Traceback" not in told


# --- what is sent -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (None, None),
        ("[1, 2.5, null]", [1, 2.5, None]),
        ('{"a": "x"}', {"a": "x"}),
        ("12", 12),
        ('"12"', "12"),
        ("plain text", "plain text"),
        ("", ""),
        ("città", "città"),
        ("{broken", "{broken"),
    ],
)
def test_data_is_json_or_else_text(text: str | None, value: Any) -> None:
    assert cli._data(text) == value


def test_data_from_a_file_or_from_standard_input_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.json"
    file.write_text('{"a": ["città"]}', "utf-8")
    assert cli._data(f"@{file}") == {"a": ["città"]}
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 2]"))
    assert cli._data("-") == [1, 2]


@pytest.mark.parametrize("content", [None, b"plain text", b"\xff", b""])
def test_data_that_cannot_be_read_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "data.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadCommand) as caught:
        cli._data(f"@{file}")
    assert str(file) in caught.value.message
    assert caught.value.field == "data"


@pytest.mark.parametrize("name", sorted(command.OPTIONS))
def test_every_option_of_a_command_can_be_given_and_passes_its_check(name: str) -> None:
    values = {"queue": "fast", "at": "2026-01-31T12:00:00Z", "priority": "9", "retries": "3"}
    given = cli._parser().parse_args(["submit", "f", f"--{name.replace('_', '-')}", values.get(name, "1.5")])
    checked = command.check_options({name: getattr(given, name)})
    assert checked[name] in (1.5, 9, 3, values.get(name))
