"""Hearing of stops without missing one. Pure.

Events only lower latency: each has the router's epoch and a number. After a
gap, a new epoch or a reconnect the subscriber asks for a SNAPSHOT, and every
HB_ACK repeats the newest stops (rule 12 in `docs/architecture.md`). A stop
may so come several times, and an old one late: who heeds it must not mind.
"""

from __future__ import annotations

from collections.abc import Iterable

from exesys.bus import messages as m

ASK_AGAIN_S = 1.0


class Subscription:
    """Turns what arrives in any way into stops, each given once for each router."""

    def __init__(self) -> None:
        self._epoch = 0
        self._seq: int | None = None  # of the newest event seen; None: not known yet
        self._tag = 0
        self._wanted = False
        self._asked_at = float("-inf")
        self._known: dict[m.StopName, None] = {}  # as the router told them last

    def welcomed(self, welcome: m.Welcome) -> None:
        """WELCOME came: what was published before is asked for."""
        if welcome.epoch != self._epoch:
            self._epoch, self._seq = welcome.epoch, None
            self._known = {}
        self._want()

    def event(self, event: m.Event) -> list[m.Stop]:
        """An event came. Returns the stop it tells of, if it is one."""
        if event.epoch == self._epoch:
            if self._seq is not None and event.seq > self._seq + 1:
                self._want()
            self._seq = max(self._seq or 0, event.seq)
        stop = _stop_in(event.body)
        return [] if stop is None else [stop]

    def acknowledged(self, ack: m.HeartbeatAck) -> list[m.Stop]:
        """HB_ACK came. Returns the stops that are news in it."""
        if ack.epoch == self._epoch and self._seq is not None and ack.seq > self._seq:
            self._want()
        return self._fresh(ack.stops)

    def snapshot(self, snapshot: m.Snapshot) -> list[m.Stop]:
        """SNAPSHOT came. Returns the stops that are news in it."""
        if snapshot.tag != self._tag:
            return []
        self._wanted = False
        if snapshot.epoch == self._epoch:
            self._seq = max(self._seq or 0, snapshot.seq)
        stops = [stop for stop in map(_stop_in, snapshot.parts.get("stops", ())) if stop is not None]
        return self._fresh(m.StopName(*stop) for stop in stops)

    def _fresh(self, stops: Iterable[m.StopName]) -> list[m.Stop]:
        names = dict.fromkeys(stops)
        fresh = [m.Stop(*name) for name in names if name not in self._known]
        self._known = names
        return fresh

    def _want(self) -> None:
        self._wanted = True
        self._asked_at = float("-inf")

    def outgoing(self, now: float) -> list[m.Message]:
        """Return the question that is due. It is asked again until it is answered."""
        if not self._wanted or now - self._asked_at < ASK_AGAIN_S:
            return []
        self._asked_at = now
        self._tag += 1
        return [m.Sync(self._tag, ("stops",))]


def _stop_in(body: object) -> m.Stop | None:
    """Read `[type, uuid]`."""
    if isinstance(body, list) and len(body) == 2 and all(isinstance(part, str) for part in body):
        return m.Stop(*body)
    return None
