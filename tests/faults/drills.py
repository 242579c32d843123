"""Drills as a person runs them: `exesys chaos`, of this checkout or of a copy in which something was broken."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

CHECKOUT = Path(__file__).resolve().parents[2]
WITHIN_S = 900.0


class Drill(NamedTuple):
    """What a drill came to: its exit code, what `--json` printed, and what it told on the way."""

    code: int
    account: dict[str, Any]
    told: str


def run(words: list[str], package: Path = CHECKOUT) -> Drill:
    """Run `exesys chaos WORDS… --json` with the package that lies in a directory."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("EXESYS_")}
    command = [sys.executable, "-P", "-m", "exesys.cli", "chaos", *words, "--json"]
    done = subprocess.run(
        command,
        env=environ | {"PYTHONPATH": str(package)},
        cwd=package,
        capture_output=True,
        text=True,
        timeout=WITHIN_S,
        check=False,
    )
    assert "exact" in done.stdout, done.stdout + done.stderr
    return Drill(done.returncode, json.loads(done.stdout), done.stderr)
