"""What each daemon on the bus does to be known: HELLO, heartbeats, noticing silence. Pure.

Liveness is a round trip: a heartbeat that is answered. Without an answer for
a lease the sockets are built anew and the router, perhaps a new one, is
greeted again. All times are `now`, monotonic seconds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from exesys.bus import messages as m

HELLO_AGAIN_S = 1.0
NEVER = float("-inf")


@dataclass
class Conversation:
    """One peer's side: `info` goes into HELLO, what it is into `role`."""

    role: str
    session: str
    info: dict[str, Any]
    epoch: int = 0
    welcome: m.Welcome | None = None
    lost: bool = False  # the router gave this session up
    _hello_at: float = NEVER
    _beat_at: float = NEVER
    _heard_at: float = NEVER
    _greeted_at: float | None = None  # when the oldest HELLO was sent that is not answered
    _asked_at: deque[float] = field(default_factory=deque)  # the same of heartbeats, all of them
    _sure_at: float = NEVER

    @property
    def heartbeat_s(self) -> float:
        return self.welcome.heartbeat_s if self.welcome else HELLO_AGAIN_S

    @property
    def sure_at(self) -> float:
        """When the newest message was sent that the router is known to have heard.

        The router counts a session's silence from that moment on, or from a
        later one. A message that was lost, or an answer that cannot be told
        from another, only makes this earlier.
        """
        return self._sure_at

    def greeted(self, welcome: m.Welcome, now: float) -> None:
        """WELCOME came."""
        self.welcome = welcome
        self.epoch = welcome.epoch
        self._beat_at = NEVER
        self._heard_at = now
        if self._greeted_at is not None:
            self._sure_at, self._greeted_at = self._greeted_at, None

    def heard(self, ack: m.HeartbeatAck, now: float) -> None:
        """HB_ACK came."""
        self._heard_at = now
        if self._asked_at:
            self._sure_at = self._asked_at.popleft()

    def refused(self, error: m.Error) -> None:
        """ERROR came: greet again, or end when this session was given up."""
        if error.code == "session_lost":
            self.lost = True
        elif error.code == "unknown_session":
            self._hello_at = NEVER
            self._asked_at.clear()
            self.welcome = None

    def silent(self, now: float) -> bool:
        """Whether the router was not heard for a lease: time to build the sockets anew."""
        return self.welcome is not None and now - self._heard_at > self.heartbeat_s * self.welcome.misses

    def rebuilt(self, now: float) -> None:
        """The sockets are new: greet again."""
        self.welcome = None
        self._hello_at = NEVER
        self._heard_at = now
        self._greeted_at = None  # its answer would come by the old socket
        self._asked_at.clear()

    def _hello(self, now: float) -> list[m.Message]:
        """Return HELLO if it is due. Only asked without a welcome."""
        if now - self._hello_at < HELLO_AGAIN_S:
            return []
        self._hello_at = now
        if self._greeted_at is None:
            self._greeted_at = now
        return [m.Hello(m.VERSION, self.role, self.session, "", self.info)]

    def _beat_due(self, now: float) -> bool:
        return now - self._beat_at >= self.heartbeat_s

    def _beats(self, now: float) -> None:
        """A heartbeat goes out."""
        self._beat_at = now
        self._asked_at.append(now)

    def wake_in_s(self, now: float) -> float:
        """Return how long the loop may sleep if nothing comes in."""
        if self.welcome is None:
            return max(0.0, self._hello_at + HELLO_AGAIN_S - now)
        return max(0.0, self._beat_at + self.heartbeat_s - now)
