"""The stops that were published lately, to be told again to whoever may have missed one. Pure."""

from __future__ import annotations

from collections import OrderedDict

from exesys.bus import messages as m
from exesys.bus.slate import Slate
from exesys.runner import Name

MOST = 1000
NEWEST = 32


class Stops:
    """Publishes stops and remembers them, until what they stopped runs again."""

    def __init__(self, slate: Slate) -> None:
        self._slate = slate
        self._stopped: OrderedDict[m.StopName, None] = OrderedDict()

    def announce(self, stopped: Name) -> None:
        """Publish the stop of a runner, or (without a uuid) of all of a type."""
        name = m.StopName(*stopped)
        if not name.uuid:
            # Not remembered: told later it would stop those started since. Each that it stops is announced, too.
            self._slate.publish(f"stop.{name.type}", list(name))
            return
        self._stopped[name] = None
        self._stopped.move_to_end(name)
        while len(self._stopped) > MOST:
            self._stopped.popitem(last=False)
        self._slate.publish(f"stop.{name.type}.{name.uuid}", list(name))

    def forget(self, name: Name) -> None:
        """It runs, or runs again: a stop of it that was told is over."""
        self._stopped.pop(m.StopName(*name), None)

    @property
    def newest(self) -> tuple[m.StopName, ...]:
        """What a HB_ACK repeats."""
        return tuple(self._stopped)[-NEWEST:]

    def listed(self) -> list[list[str]]:
        """What a SNAPSHOT tells."""
        return [list(name) for name in self._stopped]
