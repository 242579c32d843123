"""The controller: one is active, by a lease in Redis; others stand by.

It mirrors stops: a runner's key `run:<type>:<uuid>` that turns 0 becomes a
STOP to the router, which publishes it. Keyspace notifications bring it at
once; a sweep each second finds what they missed, or all where they are off.
Timers tick (`timing.py`), and a courier in threads of its own tells URLs of
the ends of steps. And it goes its rounds through the store (`rounds.py`).

Before it writes or sends anything it knows that its lease holds: what is
written goes out in scripts that compare the holder, and before a message is
sent its own clock is asked, so that one that was stopped (SIGSTOP) and goes on
does nothing that is another's by then.
"""

from __future__ import annotations

import logging
import secrets
import time

from exesys import timerviews
from exesys.bus import messages as m
from exesys.bus.client import Client
from exesys.config import Config
from exesys.courier import Courier
from exesys.daemons.loop import Loop, run, settings
from exesys.errors import ExesysError, Unavailable
from exesys.lease import Lease
from exesys.process import die_with_parent
from exesys.rounds import Rounds
from exesys.store.callbacks import Outbox
from exesys.store.timetable import Timetable
from exesys.store.upkeep import Runner, Upkeep
from exesys.timing import Timing

SWEEP_S = 1.0
STANDBY_S = 0.25  # so often one that stands by asks for the lease
TRIM_S = 60.0
log = logging.getLogger("controller")


class Controller:
    """Wires the lease, the stop keys and the bus together."""

    def __init__(
        self, config: Config, loop: Loop, client: Client, upkeep: Upkeep, table: Timetable, outbox: Outbox
    ) -> None:
        self.config = config
        self.loop = loop
        self.client = client
        self.upkeep = upkeep
        self.session = secrets.token_hex(8)
        self.lease = Lease(self.session)
        self.timing = Timing(config, client, table, self.session)
        self.courier = Courier(config, outbox, self.lease)
        self._told = False  # what was logged last: active or not
        self._events: int | None = None
        self._mirrored: set[Runner] = set()
        self._rounds = Rounds(config.controller, upkeep, client)
        self._sweep_at = self._trim_at = float("-inf")

    @property
    def active(self) -> bool:
        """Whether the lease is ours at this moment."""
        return self.lease.holds(time.monotonic())

    def serve(self) -> None:
        """Run until told to stop. Raises ExesysError when a part of it has died."""
        self.courier.start()
        while not self.loop.stopping:
            wake_at = min(self._sweep_at, self._rounds.wake_at) if self.active else self._sweep_at
            wait_s = wake_at - time.monotonic()
            ready = self.loop.poll(min(wait_s, self.timing.wait_s(_wall_ms())) if self.active else wait_s)
            try:
                self._step(bool(ready), time.monotonic())
            except Unavailable as error:
                log.warning("%s", error)
                self._deafen()
                self.timing.retire()
                self.lease.renewed(False, 0.0)
                self._sweep_at = time.monotonic() + SWEEP_S
        self.courier.stop()
        if self.active:
            self.upkeep.resign(self.session)

    def _step(self, ready: bool, now: float) -> None:
        if not self.courier.alive:
            raise ExesysError("the courier of callbacks has died.", fix="See the traceback above.")
        if self._events is None:
            self._events = self.upkeep.listen()
            self.loop.watch(self._events)
        runners = self.upkeep.changed() if ready else []
        swept = now >= self._sweep_at
        if swept:
            self._lead()
            self._sweep_at = now + (SWEEP_S if self.active else STANDBY_S)
            if self.active:
                # Told again each time while they are there: a router that has just died was told in vain.
                self._mirrored.clear()
                runners += self.upkeep.known()
                if now >= self._trim_at:
                    self._trim_at = now + TRIM_S
                    self.upkeep.trim(self.session, _wall_ms())
        if self.active:
            self._mirror(runners)
        if self.active:
            self._time(swept)
            self._rounds.step(now)
        else:
            self.timing.retire()

    def _time(self, swept: bool) -> None:
        """Have the timers tick."""
        looks, self.upkeep.tuned = swept or self.upkeep.tuned, False
        # It goes on while the machine sleeps, as the wall clock does.
        steady_ms = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
        self.timing.step(_wall_ms(), steady_ms, looks)

    def _lead(self) -> None:
        asked_at = time.monotonic()
        self.lease.renewed(self.upkeep.lead(self.session), asked_at)
        if self.active != self._told:
            self._told = not self._told
            log.info("active, as %s" if self._told else "standing by, as %s", self.session)
            if self._told:
                self._tell_spent()
            self._rounds.restart(time.monotonic())

    def _tell_spent(self) -> None:
        """Tell of timers of the ini that will not tick any more: somebody may wait for them."""
        for timer in self.config.timers:
            if why := timerviews.spent(timerviews.declared(timer.name, timer.fields()), _wall_ms()):
                log.error("the timer %s of the ini never ticks: %s; change it there, or take it out", timer.name, why)

    def _mirror(self, runners: list[Runner]) -> None:
        """Tell the router of stops it was not told of lately; one set back to 1 may be stopped again."""
        stopped = set(self.upkeep.stopped(runners))
        if not self.active:
            return
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
    config = settings("controller")
    loop = Loop()
    client = Client(config, role="controller")
    upkeep = Upkeep(config.redis_url, config.redis.prefix, config.limits)
    table = Timetable(config.redis_url, config.redis.prefix)
    outbox = Outbox(config.redis_url, config.redis.prefix, config.limits)
    Controller(config, loop, client, upkeep, table, outbox).serve()
    client.close(timeout=0.0)
    for connection in (upkeep, table, outbox):
        connection.close()
    return 0


def _wall_ms() -> int:
    return time.time_ns() // 1_000_000


if __name__ == "__main__":
    run("controller", main)
