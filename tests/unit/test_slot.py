"""A slot as its daemon meets it: a process on a line, and what it still says when it is ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exesys import codec
from exesys.channel import Channel, pair

MODULE = '''
import pathlib
import time


def speaks(data):
    """Print twice at once, the second time without a newline, make the file, and print once more at the end."""
    print("first")
    print("second", end="")
    pathlib.Path(data).touch()
    try:
        time.sleep(60)
    finally:
        print(", third")


def holds_on(data):
    """Print, make the file, and end well although it is to be ended."""
    print("first", end="")
    pathlib.Path(data).touch()
    try:
        time.sleep(60)
    except SystemExit:
        print(", caught", end="")
    return "well"
'''
DEADLINE_S = 20.0


@pytest.fixture
def slot(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[bytes], Channel]]:
    """A slot that has imported the module, and the daemon's end of its line."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "speaker.py").write_text(MODULE)
    near, far = pair()
    near.settimeout(DEADLINE_S)
    process = subprocess.Popen(
        [sys.executable, "-m", "exesys.daemons.slot", "--fd", str(far.fileno()), "--parent", str(os.getpid())],
        pass_fds=[far.fileno()],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")},
            "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
            "EXESYS_HOME": str(tmp_path / "home"),
            "EXESYS_FUNCTIONS_PATH": str(tmp_path / "modules"),
        },
    )
    far.close()
    line = Channel(near)
    while line.receive()[0] != "ready":
        pass
    yield process, line
    process.kill()
    process.wait()
    line.close()


def end(process: subprocess.Popen[bytes], line: Channel, cmd: str, mark: Path) -> list[Any]:
    """Let it run the function, send TERM once the mark is there, and return all that it said."""
    line.send(["job", "a:j", 1, "end_job", cmd, codec.pack(str(mark))])
    deadline = time.monotonic() + DEADLINE_S
    while not mark.exists():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGTERM)
    said = []
    while (message := line.receive()) is not None:
        said.append(message)
    process.wait(DEADLINE_S)
    return said


def test_what_a_function_printed_last_is_told_before_term_ends_it(slot: Any, tmp_path: Path) -> None:
    process, line = slot
    said = end(process, line, "speaks", tmp_path / "mark")
    assert process.returncode == 128 + signal.SIGTERM
    assert {message[0] for message in said} == {"note"}
    assert said[-1] == ("note", "a:j", 1, -1.0, "", "first\nsecond, third\n"), "its clean-up included"


def test_a_job_that_ends_well_all_the_same_has_its_log_once(slot: Any, tmp_path: Path) -> None:
    process, line = slot
    said = end(process, line, "holds_on", tmp_path / "mark")
    kind, ref, attempt, outcome, body, log, *_ = said[-1]
    assert (kind, ref, attempt, outcome, codec.unpack(body)) == ("done", "a:j", 1, 0, {"EOJ": "well"})
    assert log == "first, caught"
    assert process.returncode == 0
