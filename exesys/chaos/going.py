"""What goes on beside the jobs: runners that are started and stopped again and again, and timers."""

from __future__ import annotations

import itertools
import time
from typing import Any

import redis

from exesys import asking
from exesys.bus.client import Client
from exesys.chaos.functions import chaos_work
from exesys.chaos.hands import PATIENCE_S, TURN_S, Hand, patiently
from exesys.chaos.plan import MARKED
from exesys.chaos.rig import Rig
from exesys.errors import Unavailable
from exesys.process import wait_until

RUNNERS = 8
RUNNER_S = 2.0  # one is stopped, and one started, so often
ASK_S = 5.0
TIMERS = {"fast": 0.25, "often": 0.5, "slow": 1.5}  # every so many seconds
TICK: dict[str, Any] = {"number": 21, "seconds": 0.001}


class Runners(Hand):
    """Keeps some runners going; stops one and starts another, again and again.

    `stopped` has for each runner when its stop was confirmed, None while it
    goes on; seconds of the monotonic clock.
    """

    def __init__(self, rig: Rig) -> None:
        super().__init__("runners", rig)
        self.client = Client(rig.config)
        self.stopped: dict[str, float | None] = {}
        self._numbers = itertools.count(1)

    def work(self) -> None:
        """Start and stop them."""
        for _ in range(RUNNERS):
            self._start()
        while not self.halt.wait(RUNNER_S):
            self._start()
            self._end(next(uuid for uuid, at in self.stopped.items() if at is None))
        for uuid in [uuid for uuid, at in self.stopped.items() if at is None]:
            self._end(uuid)
        self.client.close()

    def _start(self) -> None:
        uuid = f"r{next(self._numbers)}"
        patiently(lambda: self.client.start_runner("chaos_work.beat", type="beat", uuid=uuid, timeout=ASK_S))
        self.stopped[uuid] = None

    def _end(self, uuid: str) -> None:
        """Stop one that has lived: one that is stopped at once, while its daemon is away, need not."""
        lives = self.rig.home / chaos_work.LIVES / uuid
        wait_until(lambda: lives.exists() and lives.stat().st_size > 0, PATIENCE_S, TURN_S)
        patiently(lambda: self.client.stop_runner("beat", uuid, timeout=ASK_S))
        if not wait_until(lambda: self._state(uuid) == "stopped", PATIENCE_S, TURN_S):
            self.wrong.append(f"runner {uuid} is {self._state(uuid)} {PATIENCE_S:g} s after it was told to stop")
        self.stopped[uuid] = time.monotonic()

    def _state(self, uuid: str) -> str:
        try:
            with self.rig.redis() as connection:
                return (connection.hget(self.rig.keys("runner", f"beat:{uuid}"), "state") or b"gone").decode()
        except redis.RedisError:
            return "not known"


def start_timers(rig: Rig) -> float:
    """Add the timers; return when, in monotonic seconds. Raises Unavailable."""
    for name, every_s in TIMERS.items():
        timer = {"name": name, "cmd": MARKED, "data": TICK, "every_s": every_s, "misfire": "all"}
        _ask(rig, "POST", "/timers", timer)
    return time.monotonic()


def stop_timers(rig: Rig) -> None:
    """Remove them; what their ticks have started goes on. Raises Unavailable."""
    for name in TIMERS:
        _ask(rig, "DELETE", f"/timers/{name}")


def _ask(rig: Rig, method: str, path: str, body: Any = None) -> None:
    def asked() -> None:
        try:
            status, answer = asking.ask(rig.config, method, path, body, ASK_S)
        except (OSError, asking.HTTPException) as error:
            raise Unavailable(f"{method} {path}: {error}") from error
        if status not in (200, 201, 404):  # it may have been removed by what went unanswered
            raise Unavailable(f"{method} {path} was answered {status}: {answer!r:.300}")

    patiently(asked)
