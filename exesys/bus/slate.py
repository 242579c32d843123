"""What the parts of the router's core share: who is there, what the next turn asks, what is to be said. Pure.

The broker gives each part the same slate (`intake` for what clients ask, `crew`
for the workers), so that no part knows another. All of it may be lost at any
moment: the store is the truth.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from exesys.bus import messages as m
from exesys.bus.door import Door
from exesys.bus.effects import Effect, Publish, Send
from exesys.bus.outbox import Outbox
from exesys.bus.pending import Pending
from exesys.bus.roster import Roster
from exesys.config import Config
from exesys.errors import Unavailable
from exesys.meters import Meters, Tally
from exesys.shards import ShardMap
from exesys.states import State
from exesys.troubles import AWAY, Trouble
from exesys.turn import Ended

STORE_LATE_S = 1.0
MOST_PENDING_BYTES = 64 << 20


@dataclass
class Slate:
    config: Config
    epoch: int
    roster: Roster
    door: Door
    meters: Meters
    pending: Pending = field(default_factory=Pending)  # for the next turn; the broker takes it away whole
    outbox: Outbox = field(default_factory=Outbox)
    effects: list[Effect] = field(default_factory=list)  # the broker takes these too
    figures: dict[str, int] = field(
        default_factory=lambda: {"accepted": 0, "done": 0, "failed": 0, "turns": 0, "busy": 0}
    )
    garbage: int = 0  # how often a peer sent what makes no sense
    sated: set[str] = field(default_factory=set)  # workers whose queues were found empty; cleared by what may fill one
    seq: int = 0  # of the newest event
    underway: deque[Pending] = field(default_factory=deque)  # the turns that the store has, oldest first
    store_late_at: float | None = None
    trouble: Trouble = AWAY  # why it is late, while it is
    shards: ShardMap = field(init=False)

    def __post_init__(self) -> None:
        self.shards = self.config.shard_map()

    def say(self, address: bytes, message: m.Message) -> None:
        """Send a message to a peer with the next effects."""
        self.effects.append(Send(address, message))

    def refuse(self, address: bytes, code: str, text: str) -> None:
        """Tell a peer that what it sent is not taken."""
        self.effects.append(Send(address, m.Error(code, text, "", "")))

    def publish(self, topic: str, body: Any) -> None:
        """Tell whoever subscribed to a topic."""
        self.seq += 1
        self.effects.append(Publish(topic, m.Event(self.epoch, self.seq, body)))

    def ended(self, end: Ended, tally: Tally | None = None, result: bytes | None = None) -> None:
        """A step ended, and perhaps others with it: tell who waits for them.

        `tally` counts it, if that is known; `result` is that of one that ended well.
        """
        tally = tally or self.meters.of(end.cmd)
        if end.state is State.data_available:
            self.figures["done"] += 1
            tally.done += 1
        else:
            self.figures["failed"] += 1
            tally.failed += 1
        self.outbox.ended(end.ref, end.peer, end.state, end.body if result is None else result)
        for other in end.also:
            self.ended(other)

    def late(self, now: float) -> bool:
        """Whether the store lets us wait for so long that clients should not."""
        return self.store_late_at is not None and now >= self.store_late_at

    def check_store(self, now: float) -> None:
        """Raise Unavailable, with the cause, while the store or what waits for it lets nothing more in."""
        if self.late(now) or self.full:
            trouble = self.trouble if self.late(now) else AWAY
            raise Unavailable(trouble.why, fix=trouble.fix)

    @property
    def full(self) -> bool:
        """Whether so much waits for the next turn that no more is taken."""
        pending = self.pending
        return pending.waiting >= self.config.bus.pending or pending.bytes >= MOST_PENDING_BYTES

    @property
    def swamped(self) -> bool:
        """Whether so many reports wait for the next turn that only those are taken which the router waits for."""
        return self.full or self.pending.report_steps >= self.config.bus.pending
