"""Which application servers are there: what the router knows of them. Pure.

The router only introduces. An instance says HELLO with the role `app`, where
it listens and what it can do; callers ask (SYNC part `apps`) and then speak
to it directly. One that could not start says HELLO with the reason, which is
kept until an instance of the same number is well.

An instance stands under its server's name and its number: one that was killed
and started again takes its place at once, not when its lease is over. One
that lost its place and is heard again is told that it is unknown, says HELLO
again, and has it back.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from exesys.appconfig import AppServer
from exesys.bus import messages as m
from exesys.bus.roster import Peer
from exesys.bus.slate import Slate
from exesys.errors import BadCommand

STATES = ("starting", "ready", "failed")
# Guards against nonsense, not limits to plan with.
MOST_INSTANCES = 1000
MOST_OTHER_REASONS = 50  # of servers that are not declared
MOST_NAME_CHARS = 200
MOST_ENDPOINT_CHARS = 500
MOST_REASON_CHARS = 32 << 10
MOST_METHODS_CHARS = 4 << 20  # names, signatures and docs of one class


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
        _check(info)
        place = (info["app"], info["number"])
        if place not in self._instances and len(self._instances) >= MOST_INSTANCES:
            raise BadCommand(f"there are {MOST_INSTANCES:,} instances already.", field="app")
        self.gone(session)
        if info["state"] == "failed":
            texts = info["reason"][:MOST_REASON_CHARS], info["traceback"][-MOST_REASON_CHARS:]
            self._reasons.pop(place, None)
            self._reasons[place] = Reason(*texts, info["since_ms"])
            self._forget_others()
        elif info["state"] == "ready":
            self._reasons.pop(place, None)
        old = self._instances.get(place)
        if old is not None:
            self._of.pop(old.session, None)
        shown = {key: info[key] for key in ("endpoint", "host", "pid", "since_ms")}
        self._instances[place] = Instance(session, info["state"], shown, info["threads"], info["methods"])
        self._of[session] = place

    def has(self, session: str) -> bool:
        """Tell whether an instance has its place."""
        return session in self._of

    def drain(self, session: str) -> None:
        """An instance takes no more calls."""
        if session in self._of:
            self._instances[self._of[session]].state = "leaving"

    def gone(self, session: str) -> None:
        """A session ended; that of no instance is no matter."""
        place = self._of.pop(session, None)
        if place is not None:
            del self._instances[place]
            if not self._awaited(place):
                self._reasons.pop(place, None)

    def _awaited(self, place: tuple[str, int]) -> bool:
        """Tell whether the ini says that there is to be such an instance."""
        declared = self._declared.get(place[0])
        return declared is not None and 1 <= place[1] <= declared.processes

    def _forget_others(self) -> None:
        """Keep only the newest reasons of instances that nobody declared."""
        others = [place for place in self._reasons if not self._awaited(place)]
        for place in others[:-MOST_OTHER_REASONS]:
            del self._reasons[place]

    def to_wire(self) -> list[dict[str, Any]]:
        """Describe every server that is declared, present, or known to have failed."""
        found: defaultdict[str, dict[int, Instance]] = defaultdict(dict)
        for name, number in sorted(self._instances):
            found[name][number] = self._instances[name, number]
        reasons: dict[str, Reason] = {}  # of each server's first that could not start
        for name, number in sorted(self._reasons):
            reasons.setdefault(name, self._reasons[name, number])
        names = sorted({*self._declared, *found, *reasons})
        return [self._describe(name, found.get(name, {}), reasons.get(name)) for name in names]

    def _describe(self, name: str, found: Mapping[int, Instance], failed: Reason | None) -> dict[str, Any]:
        declared = self._declared.get(name)
        states = {instance.state for instance in found.values()}
        reason = failed or Reason("", "", 0)
        state = next((state for state in ("ready", "starting") if state in states), "failed" if failed else "away")
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


def _check(info: Mapping[str, Any]) -> None:
    """Raise BadCommand when a HELLO, whose fields have the right types, makes no sense."""
    if info["state"] not in STATES:
        raise BadCommand(f"`state` is one of {', '.join(STATES)}.", field="state")
    for key, most in (("app", MOST_NAME_CHARS), ("host", MOST_NAME_CHARS), ("endpoint", MOST_ENDPOINT_CHARS)):
        if not (info[key].isprintable() and len(info[key]) <= most):
            raise BadCommand(f"`{key}` has more than {most} characters, or some that are no text.", field=key)
    if not info["app"]:
        raise BadCommand("`app` is empty.", field="app")
    scheme, _, where = info["endpoint"].partition("://")
    if scheme not in ("ipc", "tcp") or not where:
        raise BadCommand("`endpoint` is ipc://PATH or tcp://HOST:PORT.", field="endpoint")
    room = MOST_METHODS_CHARS
    for method in info["methods"]:
        if type(method) is not dict or not all(type(text) is str for pair in method.items() for text in pair):
            raise BadCommand("`methods` are maps of text to text.", field="methods")
        room -= sum(len(text) for pair in method.items() for text in pair) + 1
    if room < 0:
        raise BadCommand(f"`methods` has more than {MOST_METHODS_CHARS:,} characters.", field="methods")


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
        """One whose place was taken by another is told to say HELLO again: it is alive."""
        if not self.apps.has(peer.session):
            self._slate.refuse(peer.address, "unknown_session", "say HELLO again: another has had your place")

    def drain(self, peer: Peer, drain: m.Drain, now: float) -> None:
        """An instance takes no more calls."""
        self.apps.drain(peer.session)
