"""How long it takes from saving a file to its function being called, with `exesys dev`."""

import time

import pytest
from devs import Dev, a_system
from harness import until

pytestmark = pytest.mark.alone
SAVED_S = 2.0
TRIES = 3


def test_what_is_saved_is_callable_within_two_seconds(make, tmp_path, tell):
    system, modules = a_system(make, tmp_path)
    modules.mkdir()
    dev = Dev(system)
    try:
        dev.told("Watching")
        for number in range(1, TRIES + 1):
            saved = time.monotonic()
            (modules / "fresh.py").write_text(f"def fresh(data):\n    return data * {number}\n")
            until(
                lambda number=number: (
                    system.post({"cmd": "fresh", "data": 4}, wait=2).body.get("result") == {"EOJ": 4 * number}
                ),
                "it is callable, and new",
                every_s=0.05,
            )
            took_s = time.monotonic() - saved
            tell(f"dev: what was saved answered {took_s:.2f} s later.")
            assert took_s <= SAVED_S
            until(
                lambda number=number: sum("functions can be called" in line for line in dev.lines) >= number,
                "it is told",
            )
    finally:
        assert dev.end() == 0
