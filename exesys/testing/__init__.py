"""For the tests of your own functions and workflows: without any daemon, or with a real private system.

    from exesys.testing import run, run_workflow

    assert run(index_files, ["a.txt"]).value == 1
    assert run_workflow(flow, modules=["modules"]).result() == {"files": 3}

`exesys.testing.plugin` has fixtures for pytest; docs/testing.md shows all of it.
The names below are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exesys.testing.calling import Outcome, run
    from exesys.testing.flows import Flow, StepOutcome, run_workflow
    from exesys.testing.private import PrivateRedis, PrivateSystem
    from exesys.testing.recorded import Started, Submitted

__all__ = [
    "Flow",
    "Outcome",
    "PrivateRedis",
    "PrivateSystem",
    "Started",
    "StepOutcome",
    "Submitted",
    "run",
    "run_workflow",
]

_HOMES = {
    **dict.fromkeys(("Outcome", "run"), "exesys.testing.calling"),
    **dict.fromkeys(("Flow", "StepOutcome", "run_workflow"), "exesys.testing.flows"),
    **dict.fromkeys(("PrivateRedis", "PrivateSystem"), "exesys.testing.private"),
    **dict.fromkeys(("Started", "Submitted"), "exesys.testing.recorded"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'exesys.testing' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
