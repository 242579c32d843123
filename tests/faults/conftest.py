"""What drills need, and copies of the package in which something was broken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from drills import CHECKOUT
from harness import missing_services


@pytest.fixture(autouse=True)
def services() -> None:
    """A Redis that can be started is here: else skip, and fail where everything has to be there."""
    if lack := missing_services():
        if os.environ.get("CI") == "true":
            pytest.fail(f"this machine lacks {lack}", pytrace=False)
        pytest.skip(f"this machine lacks {lack}")


@pytest.fixture
def broken(tmp_path: Path) -> Callable[[str, str, str], Path]:
    """Give `broken(file, old, new)`: a copy of the package in which that stands otherwise; returns where it lies."""

    def copy(file: str, old: str, new: str) -> Path:
        shutil.copytree(CHECKOUT / "exesys", tmp_path / "exesys", ignore=shutil.ignore_patterns("__pycache__"))
        for each in ("etc", "modules"):
            shutil.copytree(CHECKOUT / each, tmp_path / each, ignore=shutil.ignore_patterns("__pycache__"))
        path = tmp_path / "exesys" / file
        text = path.read_text()
        assert text.count(old) == 1, f"{file} has {old!r} {text.count(old)} times"
        path.write_text(text.replace(old, new))
        return tmp_path

    return copy
