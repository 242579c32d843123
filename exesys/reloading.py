"""A reload: the workers and application servers of this home load their modules anew, and tell what came of it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from exesys import apps, bootstrap, home, reach
from exesys.config import Config
from exesys.errors import Unavailable
from exesys.process import wait_until
from exesys.usage import PROGRAM

if TYPE_CHECKING:
    from exesys.bus.client import Client

RELOAD_S = 10.0


class Reloaded(NamedTuple):
    """What came of a reload.

    `loaded` is false while jobs that run keep the old modules; `functions`
    and `apps` are as the router tells them.
    """

    workers: int
    loaded: bool
    functions: dict[str, Any]
    apps: list[dict[str, Any]]

    @property
    def broken(self) -> dict[str, str]:
        """The modules and functions that cannot be called, each with its traceback or the reason."""
        found: dict[str, str] = self.functions["broken"]
        return found


def reload(config: Config, enough: Callable[[], bool] = lambda: False) -> Reloaded:
    """Reload, and wait until it is done, 10 s at most, or until that is `enough`. Raises Unavailable."""
    started = home.started(config)
    programs = bootstrap.status(config)["programs"]
    names = {"worker", *(worker.program for worker in started.workers)}
    workers = [each["pid"] for each in programs if each["name"] in names and each["pid"]]
    if not workers:
        raise Unavailable("no worker runs here.", fix=f"Start the system with `{PROGRAM} up`.")
    with reach.connect(config) as client:
        before = _loads(client)
        renewed = apps.renew(started, programs, lambda: client.snapshot("apps")["apps"])
        for pid in workers:
            os.kill(pid, signal.SIGHUP)

        def done() -> bool:
            now = _loads(client)
            return all(now.get(session, 0) > loads for session, loads in before.items()) and renewed()

        loaded = False

        def over() -> bool:
            nonlocal loaded
            loaded = done()
            return loaded or enough()

        wait_until(over, RELOAD_S, 0.05)
        told = client.snapshot("functions", "apps")
    return Reloaded(len(workers), loaded, told["functions"], told["apps"])


def _loads(client: Client) -> dict[str, int]:
    """Return how often each worker has loaded its modules, by session."""
    return {worker["session"]: worker["loads"] for worker in client.snapshot("workers")["workers"]}
