"""The router's core: messages and time in, a turn and effects out. No IO, no clock.

One loop turn is: `receive` what the sockets gave, `plan` a turn for the
store, and when its answers are there `apply` them; after each, `effects` are
to be carried out. A second turn may be planned while the first is under way, if
both are plain and it is worth it: else what comes waits. The store is the truth. What is kept here can be lost at
any moment: connections, credit, and who waits for what; a client that asks
again and a worker that says HELLO again bring it all back.

Here is who may speak (HELLO, BYE, silence), which part a message goes to, the
order of a turn, and events. What is said is dealt with by the parts, which
share a `slate`: `intake` for what clients ask, `crew` for the workers, `board`
for runners and the daemons that host them, `tuner` for what is kept beside jobs, `mender`
for what is to be mended in the store, `apps` for application servers, `herald` for what is told of steps.

Answers go out only after the commit they speak of (`outbox`). The ready queue is not
held here: claims pop from the store for as much credit as there is, so memory
stays flat at any backlog.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Protocol

from exesys.bus import messages as m
from exesys.bus import roles
from exesys.bus.apps import Lobby
from exesys.bus.board import Board
from exesys.bus.crew import Crew
from exesys.bus.door import Door
from exesys.bus.effects import Effect, Warn
from exesys.bus.herald import Herald
from exesys.bus.intake import Intake
from exesys.bus.mender import Mender
from exesys.bus.roster import Peer, Roster
from exesys.bus.slate import STORE_LATE_S, Slate
from exesys.bus.stops import Stops
from exesys.bus.tuner import Tuner
from exesys.catalogue import Catalogue
from exesys.config import Config
from exesys.errors import ExesysError, ProtocolError
from exesys.meters import Meters
from exesys.runner import Name
from exesys.troubles import AWAY, Trouble
from exesys.turn import Answers, Turn

LEAST_BESIDE = 24  # steps that a turn has to have to be sent while another is under way
WARN_S = 60.0  # so often at most the log is told of peers of other versions
SESSION = re.compile(r"[0-9a-f]{16}")

Handler = Callable[[Peer, Any, float], None]


class Part(Protocol):
    """What serves the peers of one role. Those of a role without one are only there, and ask."""

    def admit(self, peer: Peer, info: dict[str, Any]) -> bool:
        """Take a peer into the roster; tell whether it may be welcomed at once. Raises ExesysError."""

    def heartbeat(self, peer: Peer, beat: m.Heartbeat, now: float) -> None:
        """Heed what a peer says of itself; the broker answers."""

    def drain(self, peer: Peer, drain: m.Drain, now: float) -> None:
        """A peer is about to end."""


class Broker:
    """The router without its sockets. `jitter` gives a random number in [0, 1)."""

    def __init__(
        self,
        config: Config,
        epoch: int,
        sessions: list[str],
        catalogue: Catalogue,
        now: float,
        jitter: Callable[[], float],
    ) -> None:
        self.config = config
        self.epoch = epoch
        self.roster = Roster(config.lease_s)
        self.roster.expect(sessions, now)
        self.endpoints: dict[str, Any] = {}
        door = Door(config, catalogue)
        self.meters = Meters(now, lambda cmd: cmd in door.catalogue.names)
        self._slate = Slate(config, epoch, self.roster, door, self.meters)
        self.figures = self._slate.figures
        self.figures |= {"not_allowed": 0, "other_versions": 0, "dropped": 0, "workers_lost": 0}
        self._keys: frozenset[str] = frozenset()  # those that are let in, as `roles.named` spells them
        self._warn_at = now
        self._intake = Intake(self._slate)
        self._crew = Crew(self._slate, jitter)
        self._tuner = Tuner(self._slate)
        self._mender = Mender(self._slate)
        self._stops = Stops(self._slate)
        self._board = Board(self._slate, self._stops, jitter)
        self._lobby = Lobby(self._slate)
        self._herald = Herald(self._slate)
        self._parts: dict[str, Part | None] = {
            "client": None,
            "worker": self._crew,
            "runner": self._board,
            "app": self._lobby,
            "controller": None,
        }
        self._due_ms = 0
        self._unfed_ms: int | None = 0  # when steps that nothing feeds are to be looked for; None: there are none
        self._ticked_at = now
        self._check_at = now  # when to look for silent peers again
        self._handlers: dict[type[Any], Handler] = {
            m.Submit: self._intake.submit,
            m.Status: self._intake.status,
            m.Change: self._on_change,
            m.Start: self._board.start,
            m.Tune: self._tuner.tune,
            m.Telling: self._only("runner", "TOLD", self._board.told),
            m.Exits: self._only("runner", "EXIT", self._board.exits),
            m.Heartbeat: self._on_heartbeat,
            m.Drain: self._on_drain,
            m.Stop: self._only("controller", "STOP", self._on_stop),
            m.Mend: self._only("controller", "MEND", self._mender.mend),
            m.Sync: self._on_sync,
            m.Bye: self._on_bye,
        }

    def restore(self, runners: Mapping[Name, Mapping[bytes, bytes]], now: float) -> None:
        """Take in the runners that the store remembers."""
        self._board.restore(runners, now)

    def declare(self, before: Iterable[str]) -> None:
        """Set of queues what the ini says, and take away what it said `before` of others."""
        self._tuner.declare(before)

    def listened_to(self, events: bool) -> None:
        """Tell whether anybody subscribes to what happens to steps."""
        self._herald.listened_to(events)

    def _only(self, role: str, what: str, handler: Handler) -> Handler:
        """Make a handler one for peers of this role."""

        def checked(peer: Peer, message: Any, now: float) -> None:
            if peer.role != role:
                text = f"only the {role} sends {what}"
                return self._slate.refuse(peer.address, "not_allowed", text)
            return handler(peer, message, now)

        return checked

    def effects(self) -> list[Effect]:
        """Return what is to be done, and forget it."""
        effects, self._slate.effects = self._slate.effects, []
        return effects

    # --- in: messages ----------------------------------------------------

    def receive(self, address: bytes, message: m.Message, now: float, key: str = "") -> None:
        """Take a message from the front socket; `key` is what its sender proved to hold (see `roles`)."""
        if key and (why := roles.why_not(key, message) if key in self._keys else roles.REVOKED):
            self.figures["not_allowed"] += 1
            if isinstance(message, m.Tune):
                self._slate.say(address, m.Changed(message.tag, -1, ["not_allowed", f"{why}.", "", ""]))
            else:
                self._slate.refuse(address, "not_allowed", why)
            return
        if isinstance(message, m.Hello):
            self._on_hello(address, message, now, key)
            return
        peer = self.roster.peers.get(address)
        if peer is None:
            self._slate.refuse(address, "unknown_session", "say HELLO first: this router does not know you")
            return
        peer.seen = now
        handler = self._handlers.get(type(message))
        if handler is None:
            self._slate.refuse(address, "not_allowed", "results go to the results socket")
            return
        handler(peer, message, now)

    def garbled(self, address: bytes, error: ProtocolError) -> None:
        """A peer sent no valid message: it is told so, and it alone is concerned."""
        self._slate.garbage += 1
        if address:
            self._slate.say(address, m.Error(*error.problem))

    def results(self, message: m.Result, key: str = "") -> None:
        """Take finished attempts from the results socket; what comes with another key than the session's is dropped."""
        if self.key_of(message.session) != key or (key and key not in self._keys):
            self.figures["not_allowed"] += 1
            return
        self._crew.results(message)

    def key_of(self, session: str) -> str:
        """Return the key of a session's peer, "" when it has none or is not here."""
        peer = self.roster.sessions.get(session)
        return peer.key if peer is not None else ""

    def let_in(self, keys: Collection[str], now: float) -> bool:
        """Know these keys alone from now on; tell whether one is gone.

        Peers with one that is gone are treated as those that were silent for too long.
        """
        gone = self._keys.difference(keys)
        self._keys = frozenset(keys)
        for peer in self.roster.peers.values():
            if peer.key in gone:
                peer.seen = float("-inf")
                self._check_at = now
        return bool(gone)

    def _on_hello(self, address: bytes, hello: m.Hello, now: float, key: str) -> None:
        refuse = self._slate.refuse
        if hello.version != m.VERSION:
            return self._of_another_version(address, hello, now)
        if hello.role not in self._parts or not SESSION.fullmatch(hello.session):
            text = f"HELLO needs a role of {', '.join(self._parts)} and a session of 16 hexadecimal digits"
            return refuse(address, "bad_hello", text)
        if self.roster.was_lost(hello.session):
            return refuse(address, "session_lost", "this session was given up; start a new one")
        known = self.roster.sessions.get(hello.session)
        if known is not None and known.role != hello.role:
            return refuse(address, "bad_hello", f"this session is that of a peer with the role {known.role}")
        if known is not None and known.key != key:
            return refuse(address, "bad_hello", "this session is that of a peer with another key")
        before = self.roster.peers.get(address)
        peer = Peer(address, hello.session, hello.role, now, key)
        part = self._parts[hello.role]
        try:
            if part is None:
                self.roster.admit(peer)
            if part is None or part.admit(peer, hello.info):
                self._welcome(peer, {})
        except ExesysError as error:
            return refuse(address, "bad_hello", error.message)
        if before is not None and before.session != peer.session:
            self._leave(before, now)  # a connection has one session: else they would pile up
        return None

    def _of_another_version(self, address: bytes, hello: m.Hello, now: float) -> None:
        """Tell a peer that it is of another version of ExeSys; and, now and then, the log."""
        text = f"this router speaks version {m.VERSION} of the protocol, not {hello.version}"
        self._slate.refuse(address, "bad_version", text)
        self.figures["other_versions"] += 1
        if now >= self._warn_at:
            self._warn_at = now + WARN_S
            who = f"a {hello.role[:20]}" if hello.role in self._parts else "a peer"
            where = f" on {hello.info['host']!s:.80}" if hello.info.get("host") else ""
            speaks = f"{who}{where} speaks version {hello.version} of the protocol"
            self._slate.effects.append(Warn(f"{speaks}, and this router {m.VERSION}: it is given nothing to do"))

    def worker_opened(self, session: str, endpoint: str) -> None:
        """The worker's PUSH is bound: it may be welcomed."""
        self._welcome(self.roster.workers[session].peer, {"jobs": endpoint})

    def _welcome(self, peer: Peer, extra: dict[str, Any]) -> None:
        config = self.config
        limits = {
            "data_bytes": config.limits.data_bytes,
            "depth": config.limits.depth,
            "log_bytes": config.limits.log_bytes,
        }
        endpoints = {**self.endpoints, **extra}
        beat_s, misses, shards = config.bus.heartbeat_s, config.bus.misses, self._slate.shards
        told = limits, endpoints, shards.own, shards.endpoints
        self._slate.say(peer.address, m.Welcome(m.VERSION, peer.session, self.epoch, beat_s, misses, *told))

    def _on_heartbeat(self, peer: Peer, beat: m.Heartbeat, now: float) -> None:
        part = self._parts[peer.role]
        if part is not None:
            part.heartbeat(peer, beat, now)
        ack = m.HeartbeatAck(peer.session, self.epoch, self._slate.seq, self._stops.newest)
        self._slate.say(peer.address, ack)

    def _on_drain(self, peer: Peer, drain: m.Drain, now: float) -> None:
        part = self._parts[peer.role]
        if part is not None:
            part.drain(peer, drain, now)

    def _on_change(self, peer: Peer, change: m.Change, now: float) -> None:
        part = self._board if change.what in ("stop", "restart") else self._intake
        part.change(peer, change, now)

    def _on_stop(self, peer: Peer, stop: m.Stop, now: float) -> None:
        """The controller saw a stop in Redis."""
        self._board.halt(Name(stop.type, stop.uuid))

    def _on_sync(self, peer: Peer, sync: m.Sync, now: float) -> None:
        slate = self._slate
        parts: dict[str, Callable[[], Any]] = {
            "stops": self._stops.listed,
            "workers": lambda: self._crew.describe(now),
            "runners": lambda: self._board.describe(now),
            "functions": slate.door.catalogue.to_wire,
            "apps": self._lobby.apps.to_wire,
            "events": self._herald.beat,
            "store": lambda: {"reason": slate.trouble.reason if slate.late(now) else ""},
            "figures": lambda: {**self.figures, "garbage": slate.garbage, "peers": len(self.roster.peers)},
            "metrics": lambda: self._metrics(now),
        }
        wanted = {name: tell() for name, tell in parts.items() if name in sync.parts}  # each once, however often asked
        slate.say(peer.address, m.Snapshot(sync.tag, self.epoch, slate.seq, wanted))

    def _metrics(self, now: float) -> dict[str, Any]:
        """Return all that was counted, and who is there now."""
        workers = self.roster.workers.values()
        roles = [peer.role for peer in self.roster.peers.values()]
        bus = {name: self.figures[name] for name in ("dropped", "busy", "not_allowed", "other_versions")}
        return {
            **self.meters.to_wire(now),
            "epoch": self.epoch,
            "slots": {
                "all": sum(worker.slots for worker in workers),
                "busy": sum(min(worker.busy, worker.slots) for worker in workers),
            },
            "held": sum(len(worker.held) for worker in workers),
            "sessions": {role: roles.count(role) for role in self._parts},
            "workers_lost": self.figures["workers_lost"],
            "bus": {**bus, "garbage": self._slate.garbage},
        }

    def _on_bye(self, peer: Peer, bye: m.Bye, now: float) -> None:
        self._leave(peer, now)

    def _leave(self, peer: Peer, now: float) -> None:
        """A session has ended."""
        if self.roster.dismiss(peer):
            self._crew.left(peer.session)
        if peer.role == "runner":
            self._board.lost(peer.session, now)
        self._lobby.apps.gone(peer.session)

    # --- in: time and the store's health ---------------------------------

    def tick(self, now: float) -> None:
        """Send the answers that waited long enough, and give up whoever was silent for a lease."""
        if now >= self._slate.outbox.next_at:
            self._tell(now)
        deaf_s = now - self._ticked_at
        self._ticked_at = now
        if deaf_s > self.config.bus.heartbeat_s:
            # We stood still (stopped, swapped, suspended): nobody was silent, we did not listen.
            self.roster.excuse(deaf_s)
        if now < self._check_at:
            return
        self._check_at = now + self.config.bus.heartbeat_s / 2
        self._slate.door.forget()
        silent, lost = self.roster.overdue(now)
        for peer in silent:
            self._slate.say(peer.address, m.Bye(peer.session, "silent for too long"))
            self._lobby.apps.gone(peer.session)
        self._crew.lost([session for session in lost if not self._board.lost(session, now)])

    def _tell(self, now: float) -> None:
        for session, message in self._slate.outbox.messages(now):
            peer = self.roster.sessions.get(session)
            if peer is not None:
                self._slate.say(peer.address, message)

    def store_slow(self, since: float, trouble: Trouble = AWAY) -> None:
        """The turn under way began at `since` and has no answer yet; `trouble` is why, as far as is known."""
        self._slate.store_late_at = since + STORE_LATE_S
        self._slate.trouble = trouble

    def store_back(self) -> None:
        """The connection is new: claims whose answers were lost are found by asking."""
        self._crew.recall()

    def wake_in_s(self, now: float, now_ms: int) -> float:
        """Return how long the loop may sleep if nothing comes in."""
        wait = min(self._check_at, self._slate.outbox.next_at) - now
        if not self._slate.underway:  # else the answers come first
            wait = min(wait, self._board.next_due() - now)
            if self._due_ms:
                wait = min(wait, (self._due_ms - now_ms) / 1000)
            if self._unfed_ms:
                wait = min(wait, (self._unfed_ms - now_ms) / 1000)
        return max(wait, 0.0)

    # --- out: the turn ----------------------------------------------------

    def plan(self, now_ms: int, now: float) -> Turn | None:
        """Return the next turn, or None when there is nothing to ask of the store, or not yet."""
        slate = self._slate
        if slate.underway and not self._bears_company(now_ms, now):
            return None
        if self._due_ms and now_ms >= self._due_ms:
            # The next claim moves it to its queue, and says when another is due.
            self._due_ms = 0
            slate.sated.clear()
        turn = slate.pending.turn
        if turn.placed or turn.flows:
            slate.sated.clear()
        if self._unfed_ms is not None and now_ms >= self._unfed_ms:
            self._unfed_ms = None
            turn.sweep = True
        if self._unfed_ms is None and (turn.changes or turn.finds or any(placed.waits for placed in turn.placed)):
            # A sweep sees what was there before this turn; what comes with it has its full time.
            self._unfed_ms = now_ms + int(self.config.limits.standby_s * 1000)
        turn.claims = self.roster.claims(slate.sated)
        turn.runners = self._board.take(now)
        self._herald.plan(turn)
        if not turn:
            return None
        self._mender.plan(turn)
        rest = slate.pending.leave()
        turn.now_ms = now_ms
        if any(placed.due_ms < 0 and not placed.waits for placed in turn.placed):
            turn.placed = [
                placed._replace(due_ms=now_ms - placed.due_ms) if placed.due_ms < 0 and not placed.waits else placed
                for placed in turn.placed
            ]
        planned, slate.pending = slate.pending, rest
        planned.planned_at, planned.asked = now, list(turn.claims)
        slate.underway.append(planned)
        self.figures["turns"] += 1
        self.meters.turn_steps.see(turn.steps + sum(len(flow.steps) for flow in turn.flows))
        return turn

    def _bears_company(self, now_ms: int, now: float) -> bool:
        """Whether what is pending may be sent, and is worth it, before the turn under way is answered.

        All else waits until it has the store for itself: what it asks, or how
        its answers are taken, counts on every turn before it having been applied.
        """
        turn = self._slate.pending.turn
        return (
            turn.steps >= LEAST_BESIDE
            and turn.plain
            and self._slate.underway[0].turn.plain
            and not self._herald.wanted
            and not (self._unfed_ms is not None and now_ms >= self._unfed_ms)
            and self._board.next_due() > now
        )

    def apply(self, turn: Turn, answers: Answers, now: float) -> None:
        """Act on the answers to the oldest turn under way."""
        slate = self._slate
        slate.store_late_at = None
        if not slate.underway or slate.underway[0].turn is not turn:
            raise RuntimeError("this turn is not under way")
        underway = slate.underway.popleft()
        self.roster.answered(underway.asked)
        if answers.claims_lost:
            self.store_back()
        if turn.claims:
            self._due_ms = answers.next_due_ms
        self._crew.apply(underway, answers, now)
        if turn.sweep and answers.next_unfed_ms:
            self._unfed_ms = min(answers.next_unfed_ms, self._unfed_ms or answers.next_unfed_ms)
        for ended in answers.swept:
            slate.ended(ended)
        self._intake.apply(underway, answers, now)
        self._tuner.apply(underway, answers)
        self._mender.apply(underway, answers, now)
        self._herald.applied(turn, answers)
        if turn.runners:
            self._board.applied(answers.runners, now)
        if answers.changed:
            self._crew.apply_changes(answers.changed)
        if turn.recalls or turn.reloads:
            self._crew.apply_recalls(underway, answers)
        self._tell(now)
