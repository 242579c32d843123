"""A secret in a file: made once, for its owner alone."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from exesys.secret import read_or_make


def test_it_is_made_on_first_use_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "data" / "key"
    first = read_or_make(path)
    assert len(bytes.fromhex(first.decode())) == 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_or_make(path) == first
    assert [each.name for each in path.parent.iterdir()] == ["key"]
    path.unlink()
    assert read_or_make(path) != first


def test_those_that_make_it_at_once_use_the_same(tmp_path: Path) -> None:
    start, found = threading.Barrier(8), list[bytes]()

    def make() -> None:
        start.wait()
        found.append(read_or_make(tmp_path / "key"))

    threads = [threading.Thread(target=make) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8
    assert set(found) == {(tmp_path / "key").read_bytes().strip()}
    assert [each.name for each in tmp_path.iterdir()] == ["key"]


def test_one_that_others_can_read_is_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "key"
    key = read_or_make(path)
    path.chmod(0o644)
    assert read_or_make(path) == key
    assert "others can read" in caplog.text
    assert key.decode() not in caplog.text
