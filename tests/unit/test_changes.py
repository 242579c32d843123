"""What grows in logs, and which sources were saved."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from exesys import changes


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    (tmp_path / "worker.log").write_text("from before\n")
    return tmp_path


def test_only_what_is_added_is_told(logs: Path) -> None:
    tails = changes.Tails(logs)
    assert list(tails.read()) == []
    with (logs / "worker.log").open("a") as log:
        log.write("one\ntw")
    (logs / "rest.log").write_text("new\n")
    assert list(tails.read()) == [("rest", "new"), ("worker", "one")]
    with (logs / "worker.log").open("a") as log:
        log.write("o\n")
    assert list(tails.read()) == [("worker", "two")]
    tails.close()


def test_a_rotated_log_is_read_to_its_end_and_then_the_new_one(logs: Path) -> None:
    tails = changes.Tails(logs)
    with (logs / "worker.log").open("a") as log:
        log.write("last\n")
    os.rename(logs / "worker.log", logs / "worker.log.1")
    (logs / "worker.log").write_text("first\n")
    assert list(tails.read()) == [("worker", "last"), ("worker", "first")]
    assert list(tails.read()) == []
    tails.close()


def test_a_log_that_was_cut_is_read_anew(logs: Path) -> None:
    tails = changes.Tails(logs)
    (logs / "worker.log").write_text("cut\n")
    assert list(tails.read()) == [("worker", "cut")]
    tails.close()


def test_files_are_told_of_when_they_have_settled(tmp_path: Path) -> None:
    one, two = tmp_path / "one.py", tmp_path / "below" / "two.py"
    one.write_text("a = 1\n")
    saved = changes.Saved(lambda: changes.sources([tmp_path]))
    assert saved.changed() == []
    one.write_text("a = 22\n")
    assert saved.changed() == []  # it may be half of it
    one.write_text("a = 333\n")
    assert saved.changed() == []
    assert saved.changed() == [one]
    assert saved.changed() == []
    two.parent.mkdir()
    two.write_text("b = 1\n")
    one.unlink()
    assert [saved.changed(), saved.changed(), saved.changed()] == [[], [two, one], []]


def test_a_change_that_was_taken_back_is_none(tmp_path: Path) -> None:
    looks: list[changes.Look] = [{}, {tmp_path: (1, 1, 1)}, {}, {}]
    saved = changes.Saved(iter(looks).__next__)
    assert [saved.changed() for _ in looks[1:]] == [[], [], []]


def test_what_is_no_source_is_not_looked_at(tmp_path: Path) -> None:
    for name in ("__pycache__/one.py", ".git/two.py", "three.txt", "_four.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert set(changes.sources([tmp_path, tmp_path / "missing"])) == {tmp_path / "_four.py"}
    assert changes.files([tmp_path / "no such file"]) == {}
