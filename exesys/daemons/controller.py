"""The controller: one is active, by a lease in Redis; others stand by.

It mirrors stops: a runner's key `run:<type>:<uuid>` that turns 0 becomes a
STOP to the router, which publishes it. Keyspace notifications bring it at
once; a sweep each second finds what they missed, or all where they are off.
And it goes its rounds through the store (`rounds.py`).
"""

from __future__ import annotations

import logging
import secrets
import time

from exesys import environment
from exesys.bus import messages as m
from exesys.bus.client import Client
from exesys.config import Config
from exesys.daemons.loop import Loop, run
from exesys.errors import Unavailable
from exesys.process import die_with_parent
from exesys.rounds import Rounds
from exesys.store.upkeep import Runner, Upkeep

SWEEP_S = 1.0
TRIM_S = 60.0
log = logging.getLogger("controller")


class Controller:
    """Wires the lease, the stop keys and the bus together."""

    def __init__(self, config: Config, loop: Loop, client: Client, upkeep: Upkeep) -> None:
        self.config = config
        self.loop = loop
        self.client = client
        self.upkeep = upkeep
        self.session = secrets.token_hex(8)
        self.active = False
        self._events: int | None = None
        self._mirrored: set[Runner] = set()
        self._rounds = Rounds(config.controller, upkeep, client)
        self._sweep_at = self._trim_at = float("-inf")

    def serve(self) -> None:
        """Run until told to stop."""
        while not self.loop.stopping:
            wake_at = min(self._sweep_at, self._rounds.wake_at) if self.active else self._sweep_at
            ready = self.loop.poll(wake_at - time.monotonic())
            try:
                self._step(bool(ready), time.monotonic())
            except Unavailable as error:
                log.warning("%s", error)
                self._deafen()
                self.active = False
                self._sweep_at = time.monotonic() + SWEEP_S
        if self.active:
            self.upkeep.resign(self.session)

    def _step(self, ready: bool, now: float) -> None:
        if self._events is None:
            self._events = self.upkeep.listen()
            self.loop.watch(self._events)
        runners = self.upkeep.changed() if ready else []
        if now >= self._sweep_at:
            self._sweep_at = now + SWEEP_S
            self._lead()
            if self.active:
                # Told again each time while they are there: a router that has just died was told in vain.
                self._mirrored.clear()
                runners += self.upkeep.known()
                if now >= self._trim_at:
                    self._trim_at = now + TRIM_S
                    self.upkeep.trim(time.time_ns() // 1_000_000)
        if self.active:
            self._mirror(runners)
            self._rounds.step(now)

    def _lead(self) -> None:
        was, self.active = self.active, self.upkeep.lead(self.session)
        if self.active != was:
            log.info("active" if self.active else "standing by")
            self._rounds.restart(time.monotonic())

    def _mirror(self, runners: list[Runner]) -> None:
        """Tell the router of stops it was not told of lately; one set back to 1 may be stopped again."""
        stopped = set(self.upkeep.stopped(runners))
        self._mirrored -= set(runners) - stopped
        for type_, uuid in stopped - self._mirrored:
            log.info("stop %s:%s", type_, uuid)
            self.client.tell(m.Stop(type_, uuid))
        self._mirrored |= stopped

    def _deafen(self) -> None:
        if self._events is not None:
            self.loop.forget(self._events)
            self._events = None


def main() -> int:
    die_with_parent()
    config = environment.load()
    loop = Loop()
    client = Client(config, role="controller")
    upkeep = Upkeep(config.redis_url, config.redis.prefix, config.limits)
    Controller(config, loop, client, upkeep).serve()
    client.close(timeout=0.0)
    upkeep.close()
    return 0


if __name__ == "__main__":
    run("controller", main)
