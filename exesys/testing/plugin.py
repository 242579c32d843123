"""Fixtures for pytest: `pytest_plugins = ["exesys.testing.plugin"]` in your conftest.py.

exesys_redis     an empty private Redis, for `run(…, redis=exesys_redis)`
exesys_system    a private system for the whole session
exesys_client    a client of it, for one test
exesys_options   what the system is started with; override it
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from exesys.testing.private import PrivateRedis, PrivateSystem

if TYPE_CHECKING:
    import redis as redis_library

    from exesys.bus.client import Client


@pytest.fixture(scope="session")
def exesys_options(pytestconfig: pytest.Config) -> dict[str, Any]:
    """What `PrivateSystem` is made with: here the functions in `modules` of the project, if there are any."""
    modules = Path(pytestconfig.rootpath) / "modules"
    return {"modules": [modules]} if modules.is_dir() else {}


@pytest.fixture(scope="session")
def exesys_system(exesys_options: dict[str, Any]) -> Iterator[PrivateSystem]:
    """A real system of the session's own; what a test leaves in its Redis, the next one finds."""
    with PrivateSystem(**exesys_options) as system:
        yield system


@pytest.fixture
def exesys_client(exesys_system: PrivateSystem) -> Iterator[Client]:
    """A client of it. Each job has an id of its own, so tests do not meet."""
    with exesys_system.client() as client:
        yield client


@pytest.fixture(scope="session")
def _exesys_redis_server() -> Iterator[PrivateRedis]:
    with PrivateRedis() as server:
        yield server


@pytest.fixture
def exesys_redis(_exesys_redis_server: PrivateRedis) -> Iterator[redis_library.Redis]:
    """A client of a real Redis that is empty, as `ctx.redis` is one."""
    with _exesys_redis_server.redis() as connection:
        connection.flushall()
        yield connection
