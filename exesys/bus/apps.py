"""Which application servers are there: what the router knows of them. Pure.

The router only introduces. An instance says HELLO with the role `app`, where
it listens and what it can do; callers ask (SYNC part `apps`) and then speak
to it directly. One that could not start says HELLO with the reason, which is
kept until an instance of the same number is well.

An instance stands under its server's name and its number: one that was killed
and started again takes its place at once, not when its lease is over.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from exesys.appconfig import AppServer
from exesys.bus import messages as m
from exesys.bus.roster import Peer
from exesys.bus.slate import Slate
from exesys.errors import BadCommand

STATES = ("starting", "ready", "failed")
MOST_INSTANCES = 1000  # a guard against nonsense, not a limit to plan with


class Reason(NamedTuple):
    """Why an instance could not start."""

    text: str
    traceback: str
    since_ms: int  # when that attempt began


@dataclass
class Instance:
    session: str
    state: str
    info: Mapping[str, Any]  # endpoint, host, pid, since_ms
    threads: int
    methods: list[Any]


class Apps:
    """The instances present, by server and number."""

    def __init__(self, declared: Iterable[AppServer]) -> None:
        self._declared = {server.name: server for server in declared}
        self._instances: dict[tuple[str, int], Instance] = {}
        self._reasons: dict[tuple[str, int], Reason] = {}
        self._of: dict[str, tuple[str, int]] = {}  # session -> server and number

    def admit(self, session: str, info: Mapping[str, Any]) -> None:
        """Take in an instance that said HELLO, or says it again in another state. Raises BadCommand."""
        kinds = {"app": str, "number": int, "state": str, "endpoint": str, "threads": int, "methods": list}
        kinds |= {"host": str, "pid": int, "since_ms": int, "reason": str, "traceback": str}
        for key, kind in kinds.items():
            if type(info.get(key)) is not kind:
                raise BadCommand(f"an application server's HELLO needs `{key}`, a {kind.__name__}.", field=key)
        if info["state"] not in STATES:
            raise BadCommand(f"`state` is one of {', '.join(STATES)}.", field="state")
        place = (info["app"], info["number"])
        if place not in self._instances and len(self._instances) >= MOST_INSTANCES:
            raise BadCommand(f"there are {MOST_INSTANCES:,} instances already.", field="app")
        self.gone(session)
        if info["state"] == "failed":
            self._reasons[place] = Reason(info["reason"], info["traceback"], info["since_ms"])
        elif info["state"] == "ready":
            self._reasons.pop(place, None)
        old = self._instances.get(place)
        if old is not None:
            self._of.pop(old.session, None)
        shown = {key: info[key] for key in ("endpoint", "host", "pid", "since_ms")}
        self._instances[place] = Instance(session, info["state"], shown, info["threads"], info["methods"])
        self._of[session] = place

    def drain(self, session: str) -> None:
        """An instance takes no more calls."""
        if session in self._of:
            self._instances[self._of[session]].state = "leaving"

    def gone(self, session: str) -> None:
        """A session ended; that of no instance is no matter."""
        place = self._of.pop(session, None)
        if place is not None:
            del self._instances[place]

    def to_wire(self) -> list[dict[str, Any]]:
        """Describe every server that is declared, present, or known to have failed."""
        names = {*self._declared, *(name for name, _ in self._instances), *(name for name, _ in self._reasons)}
        return [self._describe(name) for name in sorted(names)]

    def _describe(self, name: str) -> dict[str, Any]:
        declared = self._declared.get(name)
        numbers = sorted(number for known, number in self._instances if known == name)
        found = {number: self._instances[name, number] for number in numbers}
        states = {instance.state for instance in found.values()}
        reasons = [self._reasons[place] for place in sorted(self._reasons) if place[0] == name]
        reason = reasons[0] if reasons else Reason("", "", 0)
        state = next((state for state in ("ready", "starting") if state in states), "failed" if reasons else "away")
        ready = [instance for instance in found.values() if instance.methods]
        return {
            "name": name,
            "state": state,
            "reason": reason.text,
            "traceback": reason.traceback,
            "failed_ms": reason.since_ms,
            "class": declared.class_ if declared else "",
            "processes": declared.processes if declared else len(found),
            "threads": declared.threads if declared else max((one.threads for one in found.values()), default=1),
            "timeout_s": declared.timeout_s if declared else AppServer(name).timeout_s,
            "methods": ready[0].methods if ready else [],
            "instances": [{"number": number, "state": one.state, **one.info} for number, one in found.items()],
        }


class Lobby:
    """The broker's part for peers of the role `app`: admits them, and knows them by `apps`."""

    def __init__(self, slate: Slate) -> None:
        self.apps = Apps(slate.config.appservers)
        self._slate = slate

    def admit(self, peer: Peer, info: dict[str, Any]) -> bool:
        """Take in an instance. Raises BadCommand."""
        self.apps.admit(peer.session, info)
        self._slate.roster.admit(peer)
        return True

    def heartbeat(self, peer: Peer, beat: m.Heartbeat, now: float) -> None:
        """There is nothing in it but that the instance is there."""

    def drain(self, peer: Peer, drain: m.Drain, now: float) -> None:
        """An instance takes no more calls."""
        self.apps.drain(peer.session)
