"""The command line without a system: what it understands, and with which code it ends."""

from __future__ import annotations

import argparse
import io
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run as benchmark
from exesys import __version__, cli, command, jobs, output, reach
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
from exesys.states import State

ROOT = Path(__file__).resolve().parent.parent.parent


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
    monkeypatch.setattr(reach, "CONNECT_S", 0.05)


@pytest.fixture(autouse=True)
def the_benchmark_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """What `bench` becomes by exec reads its arguments here; it measures nothing."""

    def execv(program: str, words: list[str]) -> None:
        assert words[:3] == [sys.executable, "-P", str(ROOT / "benchmarks" / "run.py")]
        benchmark.arguments(words[3:])

    monkeypatch.setattr(cli.os, "execv", execv)


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
    found = re.search(r"example:\n\s+bin/exesys (.+)", told)
    assert found, f"the help of {name} has no example"
    words = shlex.split(found[1])
    assert words[0] == name
    given, options = cli._parser().parse_known_args(words)
    assert callable(given.run)
    assert not options or name == "bench", f"the example of {name} is not understood: {options}"
    if name == "bench":
        benchmark.arguments(options)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_argument_says_what_it_is_for(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    parser = commands()[name]
    if name == "bench":
        with monkeypatch.context() as patch:
            patch.setattr(argparse.ArgumentParser, "parse_args", lambda parser, _: parser)
            parser = benchmark.arguments([])
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue  # its commands explain themselves
        assert action.help, f"{name} does not explain {action.dest}"
    assert "FROM_" not in parser.format_help()


def test_the_benchmark_lists_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("bench", "--help") == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: bin/exesys bench")
    assert all(option in told for option in ("--jobs", "--in-flight", "--peers", "--json", "--strict"))


def test_without_a_command_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits() == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "examples:\n  bin/exesys up\n" in told.err


# These are changed by others just now.
def test_hints_name_the_program_as_it_is_called() -> None:
    """Somebody who typed bin/exesys cannot run exesys."""
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "etc").iterdir(), *(ROOT / "bin").iterdir()]
    texts += [
        *(ROOT / "exesys").rglob("*.py"),
        *(ROOT / "exesys" / "web").rglob("*.*"),
        *(ROOT / "modules").glob("*.py"),
    ]
    names = "|".join(COMMANDS)
    for path in texts:
        bare = re.findall(rf"(?<!bin/)\bexesys (?:{names})\b", path.read_text("utf-8"))
        assert not bare, f"{path} says {bare}"


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_can_answer_in_json(name: str) -> None:
    takes_one = ("submit", "result", "why", "cancel", "retry", "backup", "restore", "new-module")
    example = ["tcp://h:1", "--key", "f"] if name == "join" else ["j"] if name in takes_one else []
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


@pytest.mark.parametrize(
    "words",
    [
        ["timer", "add", "t", "noop", "--every-s", "10s"],
        ["timer", "add", "t", "noop", "--every-s", "10", "--jitter-s", "1m"],
        ["submit", "noop", "--delay-s", "1d"],
        ["submit", "noop", "--wait", "5s"],
        ["dead", "list", "--older-s", "7d"],
    ],
)
def test_a_time_with_a_unit_is_told_to_be_seconds(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(*words) == 2
    assert f"argument {words[-2]}: {words[-1]!r} is no number; give seconds, such as 86400" in capsys.readouterr().err


def test_a_moment_is_told_with_its_offset() -> None:
    ms = 1_795_521_600_000
    assert output.when(None) == output.when(0, "UTC") == ""
    assert output.when(ms, "UTC") == "2026-11-24 12:00:00Z"
    assert output.when(ms + 999, "Europe/Rome") == "2026-11-24 13:00:00+01:00"
    assert re.fullmatch(r"2026-11-2\d \d\d:\d\d:00(Z|[+-]\d\d:\d\d)", output.when(ms))


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
    ("attempts", "says"), [(1, "ValueError: no"), (2, "ValueError: no (after 2 attempts)"), (0, "ValueError: no")]
)
def test_a_failed_job_says_after_how_many_attempts(attempts: int, says: str) -> None:
    error = JobError("ValueError", "no", attempts)
    assert (str(error), error.text, error.job_id) == (says, "no", "")


def test_a_failed_job_says_where_its_log_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any) -> int:
        raise JobError("ValueError", "no", 2, "", "job-7")

    monkeypatch.setattr(cli, "_status", fails)
    told = "exesys: ValueError: no (after 2 attempts)\n"
    assert exits("status") == 1
    assert capsys.readouterr().err == told, "it has printed nothing, or nobody knows"
    monkeypatch.setattr(jobs, "has_log", lambda _, job_id: job_id == "job-7")
    assert exits("status") == 1
    assert capsys.readouterr().err == f"{told}What it printed: bin/exesys logs --job job-7\n"


class Waiting:
    """A job somebody waits for, in vain."""

    def __init__(self, error: BaseException) -> None:
        self.job_id = "job-7"
        self.from_ = self.to = self.cmd = "x"
        self.state = State.error
        self.error = error

    def accepted(self, _: float) -> None:
        pass

    def wait(self, _: float) -> bool:
        if isinstance(self.error, KeyboardInterrupt):
            raise self.error
        return True

    def result(self, _: float) -> Any:
        raise self.error


class Connection:
    """What `reach.connect` gives, with one job in it."""

    def __init__(self, handle: Waiting) -> None:
        self.handle = handle

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, *_: Any, **__: Any) -> Waiting:
        return self.handle


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (KeyboardInterrupt(), 130, "job job-7 goes on. Ask: bin/exesys result job-7"),
        (
            JobError("ValueError", "no", 3, "", "job-7"),
            1,
            "(after 3 attempts)\nWhat it printed: bin/exesys logs --job job-7",
        ),
    ],
    ids=["interrupted", "failed"],
)
def test_who_waited_for_a_job_learns_its_name(
    error: BaseException,
    code: int,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(reach, "connect", lambda _: Connection(Waiting(error)))
    monkeypatch.setattr(jobs, "has_log", lambda _, job_id: True)
    assert exits("submit", "f", "--wait", "5") == code
    assert says in capsys.readouterr().err


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
        ["submit", "f", "--wait", "inf"],
        ["submit", "f", "--wait", "-1"],
        ["jobs", "--limit", "many"],
        ["jobs", "--limit", "0"],
        ["logs", "--lines", "-1"],
        ["bench", "--jobs", "0"],
        ["bench", "--nonsense"],
    ],
)
def test_wrong_usage_ends_with_two_and_says_how(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(*arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "usage: bin/exesys" in told.err
    if len(arguments) > 1:
        assert f"usage: bin/exesys {arguments[0]}" in told.err, "the usage of the command in question"


@pytest.mark.parametrize("arguments", [["submit", "f", "--wait", "1"], ["functions"]])
def test_where_nothing_runs_the_code_is_three(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert exits(*arguments) == 3
    told = capsys.readouterr().err
    assert "no router answers" in told
    assert "`bin/exesys up`" in told


def test_the_status_of_nothing_is_one_and_says_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert exits("status") == 1
    assert capsys.readouterr().out.endswith("Nothing runs here. Start it with `bin/exesys up`.\n")
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
    assert reach.data(text) == value


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[1,2", "Expecting ',' delimiter: line 1 column 5"),
        ("{bad", "Expecting property name enclosed in double quotes: line 1 column 2"),
        ("{'a': 1}", "Expecting property name enclosed in double quotes: line 1 column 2"),
        (' "half', "Unterminated string"),
        ("plain text", ""),
        ("12 o'clock", ""),
        ("[1, 2]", ""),
        ('"text"', ""),
        ("", ""),
    ],
)
def test_data_that_looks_like_json_and_is_none_is_noted(
    text: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reach.data(text)
    told = capsys.readouterr()
    assert told.out == ""
    assert (told.err == "") if not why else ("sent as text" in told.err and why in told.err)


def test_data_nested_too_deep_is_refused() -> None:
    with pytest.raises(BadCommand, match="nested too deep"):
        reach.data("[" * 200_000)


def test_text_that_begins_with_an_at_is_told_how_to_be_sent() -> None:
    with pytest.raises(BadCommand, match="""'"@nobody"'""") as caught:
        reach.data("@nobody")
    assert reach.data(caught.value.fix.partition("'")[2].partition("'")[0]) == "@nobody"


def test_data_from_a_file_or_from_standard_input_is_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "data.json"
    file.write_text('{"a": ["città"]}', "utf-8")
    assert reach.data(f"@{file}") == {"a": ["città"]}
    monkeypatch.setattr(sys, "stdin", io.StringIO("[1, 2]"))
    assert reach.data("-") == [1, 2]


@pytest.mark.parametrize("content", [None, b"plain text", b"\xff", b""])
def test_data_that_cannot_be_read_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "data.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(BadCommand) as caught:
        reach.data(f"@{file}")
    assert str(file) in caught.value.message
    assert caught.value.field == "data"


@pytest.mark.parametrize("name", sorted(command.OPTIONS))
def test_every_option_of_a_command_can_be_given_and_passes_its_check(name: str) -> None:
    values = {"queue": "fast", "at": "2026-01-31T12:00:00Z", "priority": "9", "retries": "3"}
    values |= {"notify": "https://a.example/x", "traceparent": f"00-{'4b' * 16}-{'0f' * 8}-01"}
    values |= {"key": "a", "key_limit": "3"}
    given = cli._parser().parse_args(["submit", "f", f"--{name.replace('_', '-')}", values.get(name, "1.5")])
    checked = command.check_options({name: getattr(given, name)})
    assert checked[name] in (1.5, 9, 3, values.get(name))


# --- what is shown ----------------------------------------------------------------


def test_a_table_in_a_pipe_has_a_header_and_a_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("job_id", "error"), [["a", "two\nlines\tand a tab"], ["b", 1]])
    assert capsys.readouterr().out == "job_id\terror\na\ttwo lines and a tab\nb\t1\n"
    output.table(("job_id", "error"), [])
    assert capsys.readouterr().out == "job_id\terror\n"


@pytest.mark.parametrize("width", [60, 100, 200])
def test_a_table_on_a_terminal_cuts_and_changes_nothing(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(width))
    row = ["6147d5a234690cb9bb2655b8c0f16fff", "data_available", "[b]bold[/i] :smile: " + "long " * 12]
    output.table(("job_id", "state", "error"), [row])
    told = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    assert re.match(r"job_id +state +error", told)
    assert "6147d5a234690cb9bb2655b8c0f16fff  data_available  [b]bold[/i] :smile:" in told
    assert told.count("long") == 12


def test_a_job_is_shown_over_lines_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output.show_whole({"a": [1, "ü"]})
    assert capsys.readouterr().out == '{"a":[1,"ü"]}\n'
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    output.show_whole({"a": [1, "ü"]})
    assert capsys.readouterr().out == '{\n  "a": [\n    1,\n    "ü"\n  ]\n}\n'


@pytest.mark.parametrize(
    ("logs", "shown"),
    [
        ({}, ""),
        ({1: "one\n"}, "one\n"),
        ({1: "one", 2: "two\n"}, "one\n--- attempt 2 ---\ntwo\n"),
        ({3: "three\n"}, "--- attempt 3 ---\nthree\n"),
        ({10: "ten\n", 2: "two\n"}, "--- attempt 2 ---\ntwo\n--- attempt 10 ---\nten\n"),
    ],
)
def test_attempts_are_told_apart(logs: dict[int, str], shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    jobs._print_attempts(logs)
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["stauts"], "status"),
        (["jobs", "--state", "eror"], "error"),
        (["timer", "ad"], "add"),
        (["runner", "lst"], "list"),
    ],
)
def test_a_misspelt_word_is_told_the_nearest(words: list[str], meant: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        cli._parser().parse_args(words)
    assert raised.value.code == 2
    assert f"Did you mean {meant}?" in capsys.readouterr().err


def test_a_word_like_none_is_told_all(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli._parser().parse_args(["xyzzy"])
    assert "choose from" in capsys.readouterr().err


def test_asking_how_it_is_waits_for_no_large_library(tmp_path: Path) -> None:
    code = "import sys; from exesys import cli; cli.main(['status']); print(*{'redis', 'asyncio'} & {*sys.modules})"
    environ = {"EXESYS_HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environ, check=True)
    assert ran.stdout.splitlines()[-1] == ""
