"""ExeSys: a self-hosted job server. Plain Python functions, called over a bus.

The names below are loaded when first used, so that `import exesys` in a
function module costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exesys.bus.aclient import AsyncClient
    from exesys.bus.client import Client
    from exesys.bus.executor import Executor
    from exesys.errors import AppError, ExesysError, JobCancelled, JobError
    from exesys.flow import Workflow
    from exesys.functions import function

__version__ = "0.1.0"
__all__ = [
    "AppError",
    "AsyncClient",
    "Client",
    "Executor",
    "ExesysError",
    "JobCancelled",
    "JobError",
    "Workflow",
    "__version__",
    "function",
]

_HOMES = {
    "AppError": "exesys.errors",
    "AsyncClient": "exesys.bus.aclient",
    "Client": "exesys.bus.client",
    "Executor": "exesys.bus.executor",
    "ExesysError": "exesys.errors",
    "JobCancelled": "exesys.errors",
    "JobError": "exesys.errors",
    "Workflow": "exesys.flow",
    "function": "exesys.functions",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'exesys' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOMES[name]), name)
