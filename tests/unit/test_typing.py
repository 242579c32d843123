"""The package is typed for those who use it: a user's file, checked by `mypy --strict` against an installed ExeSys."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import exesys

# CI's types are checked by mypy first, so there it is; the venv of the newest Python alone has none.
pytest.importorskip("mypy")
SAMPLE = Path(__file__).resolve().parent.parent / "data" / "typed_user.py"
PACKAGE = Path(exesys.__file__).parent


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A Python in whose site-packages ExeSys is; errors in there are nobody's but ours, and not told."""
    home = tmp_path / "venv"
    venv.create(home)
    [packages] = home.glob("lib/python*/site-packages")
    shutil.copytree(PACKAGE, packages / "exesys", ignore=shutil.ignore_patterns("__pycache__"))
    return home / "bin" / "python"


def test_a_users_file_is_checked(installed: Path, tmp_path: Path) -> None:
    user = tmp_path / "user.py"  # away from our own settings
    shutil.copy(SAMPLE, user)
    words = ["--strict", "--python-executable", str(installed), "--cache-dir", str(tmp_path / "cache"), "user.py"]
    done = subprocess.run([sys.executable, "-m", "mypy", *words], cwd=tmp_path, capture_output=True, text=True)
    told = sorted(set(re.findall(r"^user\.py:(\d+): error: .*\[([\w-]+)\]$", done.stdout, re.MULTILINE)))
    lines = user.read_text().splitlines()
    meant = [
        (str(number), code) for number, line in enumerate(lines, 1) for code in re.findall(r"# error: (\S+)$", line)
    ]
    assert told == sorted(meant), done.stdout + done.stderr
    assert len(meant) > 5


def test_the_package_says_that_it_is_typed() -> None:
    assert (PACKAGE / "py.typed").is_file()
    assert '"py.typed"' in (PACKAGE.parent / "setup.py").read_text()
