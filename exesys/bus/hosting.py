"""A runner daemon's side of the conversation. Pure: events and `now` in, messages out.

The daemon hosts *lives*: (name, epoch). It keeps each until the router has
acknowledged its end, and tells in every heartbeat which it has. So a LAUNCH
may come twice: it is not begun again while it is kept, and none comes after
the acknowledgement, which was sent later on the same connection.

The router gives a life to another daemon when it has not heard this one for a
lease. Two lives of one runner must never overlap, so this one has to be gone
by then: `dead_by` says when all that it hosts must have ended unless the
router is heard again. It counts from the *sending* of the last message that
the router surely heard, while the router counts from its arrival, so it is
always the earlier one, whatever stood still in between. (The argument is that
of Gray and Cheriton, "Leases", 1989.)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from exesys.bus import messages as m
from exesys.bus.conversation import NEVER, Conversation
from exesys.runner import Ending

RESEND_S = 1.0
RETELL_S = 3.0  # what was told in this time before a connection was lost may be lost with it
MARGIN = 0.1  # of the lease: so long before its end all is over
MOST_TOLD = 500


@dataclass
class Hosted:
    """A life that the router counts on this daemon for."""

    launch: m.Launch
    told: m.Told | None = None  # the last of it, without its log
    exit: m.Exit | None = None
    sent_at: float = NEVER


@dataclass
class HostSession(Conversation):
    """The conversation of one runner daemon. `capacity` is how many lives it may host at once."""

    capacity: int = 0
    draining: bool = False
    lives: dict[str, Hosted] = field(default_factory=dict)  # by name
    _untold: list[m.Told] = field(default_factory=list)
    _retell: list[tuple[float, m.Told]] = field(default_factory=list)
    _told_capacity: int = -1
    _lease_s: float = 0.0  # as the router last said

    @property
    def held(self) -> tuple[m.Held, ...]:
        """What the router may count on: it lives here, or its end will be told."""
        return tuple(m.Held(name, each.launch.epoch) for name, each in self.lives.items())

    @property
    def idle(self) -> bool:
        """Whether there is no life, and no end that the router has not acknowledged."""
        return not self.lives

    @property
    def give_up_at(self) -> float:
        """When to end all lives in order, unless the router is heard; infinite when there are none."""
        return self.sure_at + self._lease_s * (1 - 2 * MARGIN) if self.lives else float("inf")

    @property
    def dead_by(self) -> float:
        """When all lives must be over, whatever else happens; infinite when there are none."""
        return self.sure_at + self._lease_s * (1 - MARGIN) if self.lives else float("inf")

    # --- in ---------------------------------------------------------------

    def greeted(self, welcome: m.Welcome, now: float) -> None:
        """WELCOME came: what the router may not know goes out again."""
        self._lease_s = welcome.heartbeat_s * welcome.misses
        super().greeted(welcome, now)
        for each in self.lives.values():
            each.sent_at = NEVER
        logs = [told for at, told in self._retell if now - at < RETELL_S]
        present = [each.told for each in self.lives.values() if each.told is not None]
        self._untold, self._retell = [*logs, *present, *self._untold], []

    def launched(self, launches: Iterable[m.Launch]) -> list[m.Launch]:
        """LAUNCH came. Returns what is to begin."""
        fresh = []
        for launch in launches:
            known = self.lives.get(launch.name)
            if known is not None and (known.exit is None or known.launch.epoch >= launch.epoch):
                continue
            self.lives[launch.name] = Hosted(launch)
            if self.draining:
                self.ended(m.Exit(launch.name, launch.epoch, Ending.handed_back, b"", 0))
            else:
                fresh.append(launch)
        return fresh

    def cancelled(self, cancel: m.Cancel) -> list[tuple[str, int]]:
        """CANCEL came: these are not to live here. Returns those that do, which are to be ended.

        One that is not here never will be, for a LAUNCH that was sent before
        has come before; so it can be said to be over.
        """
        alive = []
        for name, epoch in cancel.attempts:
            if self.living(name, epoch):
                alive.append((name, epoch))
            elif name not in self.lives:
                self.lives[name] = Hosted(m.Launch(name, epoch, "", b"", 0.0))
                self.ended(m.Exit(name, epoch, Ending.handed_back, b"", 0))
        return alive

    def living(self, name: str, epoch: int) -> bool:
        """Whether this life goes on here, as far as is known."""
        each = self.lives.get(name)
        return each is not None and each.launch.epoch == epoch and each.exit is None

    def told(self, told: m.Told, now: float) -> None:
        """A life tells of itself; its `log` is what was added."""
        if self.living(told.name, told.epoch):
            self.lives[told.name].told = told._replace(log="")
            self._untold.append(told)

    def ended(self, exit_: m.Exit) -> None:
        """A life is over: its process is gone."""
        each = self.lives.get(exit_.name)
        if each is not None and each.launch.epoch == exit_.epoch:
            each.exit, each.sent_at = exit_, NEVER

    def acked(self, ack: m.ResultAck) -> None:
        """The router has stored these ends."""
        for name, epoch in ack.acks:
            each = self.lives.get(name)
            if each is not None and each.launch.epoch == epoch and each.exit is not None:
                del self.lives[name]

    def drain(self) -> list[m.Message]:
        """Take no more."""
        self.draining = True
        self._beat_at = NEVER
        return [m.Drain(self.session)]

    # --- out --------------------------------------------------------------

    def outgoing(self, now: float) -> list[m.Message]:
        """Return what is due to be sent."""
        if self.welcome is None:
            return self._hello(now)
        messages: list[m.Message] = []
        if self._untold:
            due, self._untold = self._untold[:MOST_TOLD], self._untold[MOST_TOLD:]
            self._retell = [(at, told) for at, told in self._retell if now - at < RETELL_S]
            self._retell += [(now, told) for told in due if told.log]
            messages.append(m.Telling(self.session, tuple(due)))
        exits = []
        for each in self.lives.values():
            if each.exit is not None and now - each.sent_at >= RESEND_S:
                each.sent_at = now
                exits.append(each.exit)
        if exits:
            messages.append(m.Exits(self.session, tuple(exits)))
        capacity = 0 if self.draining else self.capacity
        if self._beat_due(now) or capacity != self._told_capacity:
            self._beats(now)
            self._told_capacity = capacity
            messages.append(m.Heartbeat(self.session, self.epoch, 0, capacity, self.held, ()))
        return messages

    def wake_in_s(self, now: float) -> float:
        """Return how long the loop may sleep if nothing comes in."""
        if self.welcome is not None and self._untold:
            return 0.0
        return super().wake_in_s(now)
