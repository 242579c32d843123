"""One runner, and one daemon that hosts some, as the router knows them. Pure.

What follows the end of a life is decided here; `board.py` has all of them,
asks the store, and speaks with the daemons.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from exesys.bus import messages as m
from exesys.bus.roster import Peer
from exesys.runner import HOW, Ending, Life, Name, Patience, RunnerState
from exesys.turn import Assign, Enlist, Loglines, Noted, RunnerOp

NEVER = float("inf")


@dataclass
class Runner:
    """One runner that has not ended. Times are monotonic seconds."""

    name: Name
    target: str
    size: int  # of its data, in bytes
    state: RunnerState = RunnerState.starting
    epoch: int = 0
    session: str = ""  # of the daemon that hosts it; "": none does
    life: Life = field(default_factory=lambda: Life(0, 0))
    restarts: int = 0
    due: float = float("-inf")  # when it may be launched
    launched_at: float = NEVER  # when LAUNCH was sent last
    began: float | None = None
    ending: bool = False  # the end of this life is on its way into the store
    restarting: bool = False  # it is stopped in order to be started again
    revived: bool = False  # a restart was asked for while it ended: should that be for good, it begins again
    stop_sent_at: float = float("-inf")
    told: m.Told | None = None

    @property
    def unwanted(self) -> bool:
        """Whether its life is to end."""
        return self.restarting or self.state is RunnerState.stopping

    def give(self, host: Host) -> Assign:
        """Give its next life to a daemon."""
        self.epoch += 1
        self.session, self.launched_at, self.began, self.told = host.peer.session, NEVER, None, None
        host.names.add(self.name)
        return self.assignment(host)

    def assignment(self, host: Host) -> Assign:
        """What asks the store to give this life to a daemon."""
        return Assign(self.name, self.epoch, self.session, host.name)

    def end(self, ending: Ending, error: bytes, lived_s: float, now: float, patience: Patience, jitter: float) -> Noted:
        """Decide what follows the end of a life; return what is to be stored. `jitter` is in [0, 1)."""
        self.ending = True
        stopping = self.state is RunnerState.stopping
        if stopping or (ending is Ending.returned and not self.restarting):
            return self.noted(final=True, state=RunnerState.stopped, how=HOW[ending])
        if not self.restarting:
            self.life, wait_s = patience.after(self.life, ending, lived_s)
            if wait_s is None:
                how = f"it ended too often: {self.life.failures} failures, {self.life.losses} losses in a row"
                return self.noted(final=True, state=RunnerState.failed, how=how, error=error, restarts=self.restarts)
            self.due = now + wait_s * (0.5 + jitter / 2)
        self.restarts += 1
        again: dict[str, Any] = {"error": error} if error else {}
        again |= {"restarts": self.restarts, "failures": self.life.failures, "losses": self.life.losses}
        return self.noted(state=RunnerState.starting, session="", **again)

    def noted(self, final: bool = False, **fields: Any) -> Noted:
        """What asks the store to change its record."""
        return Noted(self.name, self.epoch, final, fields)

    def describe(self, host: Host | None, why: str, now: float) -> dict[str, Any]:
        """Tell what only the router knows of it; `why` no daemon can take it, or ""."""
        told: dict[str, Any] = {"name": str(self.name), "state": str(self.state), "epoch": self.epoch}
        if host is not None:
            told["host"] = host.name
        elif self.session:
            told["waits"] = "its daemon is not heard"
        elif self.due > now:
            told["waits"] = f"it starts again in {self.due - now:.1f} s"
        elif why:
            told["waits"] = why
        if self.told is not None:
            last = self.told
            told |= {"pid": last.pid, "cpu_s": last.cpu_s, "memory_bytes": last.memory_bytes}
            if last.fraction >= 0:
                told["progress"] = {"fraction": last.fraction, "text": last.text}
        return told


@dataclass
class Host:
    """A runner daemon."""

    peer: Peer
    info: dict[str, Any]
    capacity: int = 0
    draining: bool = False
    names: set[Name] = field(default_factory=set)

    @property
    def name(self) -> str:
        """The name of the machine it is on."""
        return str(self.info.get("host", ""))

    @property
    def room(self) -> int:
        """How many more it may host."""
        return 0 if self.draining else self.capacity - len(self.names)


def from_store(name: Name, fields: Mapping[bytes, bytes]) -> Runner:
    """Make a runner of its record."""
    number = {key: int(fields.get(key, b"0")) for key in (b"epoch", b"failures", b"losses", b"restarts", b"size")}
    session = fields.get(b"session", b"").decode()
    state = RunnerState(fields[b"state"].decode())
    return Runner(
        name,
        fields[b"target"].decode(),
        number[b"size"],
        state,
        number[b"epoch"],
        session,
        Life(number[b"failures"], number[b"losses"]),
        number[b"restarts"],
        launched_at=float("-inf") if session else NEVER,
    )


def size_of(op: RunnerOp) -> int:
    """Return about how many bytes an operation takes in a turn."""
    return len(op.data) if isinstance(op, Enlist) else len(op.text) if isinstance(op, Loglines) else 0
