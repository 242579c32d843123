"""The router's core: messages and time in, a turn and effects out. No IO, no clock.

One loop turn is: `receive` what the sockets gave, `plan` a turn for the
store, and when its answers are there `apply` them; after each, `effects` are
to be carried out. The store is the truth. What is kept here can be lost at
any moment: connections, credit, and who waits for what; a client that asks
again and a worker that says HELLO again bring it all back.

Answers go out only after the commit they speak of (`outbox`). The ready queue is not
held here: claims pop from the store for as much credit as there is, so memory
stays flat at any backlog.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from exesys import codec, command
from exesys.bus import messages as m
from exesys.bus.door import Door
from exesys.bus.effects import CloseWorker, Dispatch, Effect, OpenWorker, Publish, Send
from exesys.bus.outbox import Outbox
from exesys.bus.pending import Pending
from exesys.bus.roster import Peer, Roster, Sent, Worker
from exesys.catalogue import Catalogue
from exesys.config import Config
from exesys.errors import (
    BadCommand,
    Conflict,
    ExesysError,
    NotFound,
    ProtocolError,
    QueueFull,
    Unavailable,
)
from exesys.states import State
from exesys.turn import (
    Answers,
    Change,
    Changed,
    Claimed,
    Closed,
    Ended,
    Found,
    Lookup,
    Placed,
    Stored,
    Taken,
    Turn,
)
from exesys.workflow import Graph, too_long

ROLES = ("client", "worker", "controller")
SESSION = re.compile(r"[0-9a-f]{16}")
RESEND_S = 2.0
STORE_LATE_S = 1.0
BUSY_RETRY_S = 0.2
AWAY_RETRY_S = 1.0
MOST_PENDING_BYTES = 64 << 20
MOST_STOPS = 1000
NEWEST_STOPS = 32
RESULT = codec.pack({"EOJ": None})[:-1]  # what results begin with: the next steps get what follows (graph.lua)


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
        self.door = Door(config, catalogue)
        self.roster = Roster(config.lease_s)
        self.roster.expect(sessions, now)
        self.endpoints: dict[str, Any] = {}
        self.garbage = 0
        self.figures = {"accepted": 0, "done": 0, "failed": 0, "turns": 0}
        self._jitter = jitter
        self._effects: list[Effect] = []
        self._pending = Pending()
        self._underway = Pending()
        self._outbox = Outbox()
        self._stops: OrderedDict[m.StopName, None] = OrderedDict()
        self._seq = 0
        self._sated: set[str] = set()  # workers whose queues were found empty
        self._due_ms = 0
        self._unfed_ms: int | None = 0  # when steps that nothing feeds are to be looked for; None: there are none
        self._store_late_at: float | None = None
        self._ticked_at = now
        self._check_at = now  # when to look for silent peers again
        self._handlers: dict[type[Any], Callable[[Peer, Any, float], None]] = {
            m.Submit: self._on_submit,
            m.Status: self._on_status,
            m.Change: self._on_change,
            m.Heartbeat: self._on_heartbeat,
            m.Stop: self._on_stop,
            m.Sync: self._on_sync,
            m.Drain: self._on_drain,
            m.Bye: self._on_bye,
        }

    def effects(self) -> list[Effect]:
        """Return what is to be done, and forget it."""
        effects, self._effects = self._effects, []
        return effects

    # --- in: messages ----------------------------------------------------

    def receive(self, address: bytes, message: m.Message, now: float) -> None:
        """Take a message from the front socket."""
        if isinstance(message, m.Hello):
            self._on_hello(address, message, now)
            return
        peer = self.roster.peers.get(address)
        if peer is None:
            self._refuse(address, "unknown_session", "say HELLO first: this router does not know you")
            return
        peer.seen = now
        handler = self._handlers.get(type(message))
        if handler is None:
            self._refuse(address, "not_allowed", "results go to the results socket")
            return
        handler(peer, message, now)

    def garbled(self, address: bytes, error: ProtocolError) -> None:
        """A peer sent no valid message: it is told so, and it alone is concerned."""
        self.garbage += 1
        if address:
            self._effects.append(Send(address, m.Error(*error.problem)))

    def results(self, message: m.Result) -> None:
        """Take finished attempts from the results socket."""
        pending = self._pending
        worker = self.roster.workers.get(message.session)
        held = worker.held if worker is not None else {}
        for report in message.reports:
            attempt = (report.ref, report.attempt)
            if attempt in pending.reported:
                continue
            if not 0 <= report.outcome <= 3 or not (report.ref in held or command.REF.fullmatch(report.ref)):
                self.garbage += 1
                continue
            added: tuple[Placed, ...] = ()
            if report.added:
                try:
                    added = self.door.added(report.ref, report.added)
                except Unavailable:
                    continue  # it comes again, and then we may know what the workers can do
                except ExesysError as error:
                    report = _failed(report, "BadStep", error.message)
            if report.outcome == m.Outcome.done and not report.body[:-1].startswith(RESULT):
                report = _failed(report, "BadResult", 'the worker\'s result is not {"EOJ": value} in its shortest form')
            pending.reported.add(attempt)
            self._leave(worker, attempt)
            pending.report(Closed(message.session, report, self._jitter(), added))

    def _leave(self, worker: Worker | None, attempt: tuple[str, int]) -> None:
        """A report came: if steps may start by it, there is credit for them in its own turn.

        Not for others: claims of one job each cost more than they bring.
        """
        sent = worker.held.get(attempt[0]) if worker is not None else None
        if worker is not None and sent is not None and sent.attempt == attempt[1] and sent.feeds:
            worker.leaving.add(attempt)
            self._sated.clear()

    def _refuse(self, address: bytes, code: str, text: str) -> None:
        self._effects.append(Send(address, m.Error(code, text, "", "")))

    def _on_hello(self, address: bytes, hello: m.Hello, now: float) -> None:
        if hello.version != m.VERSION:
            text = f"this router speaks version {m.VERSION} of the protocol, not {hello.version}"
            return self._refuse(address, "bad_version", text)
        if hello.role not in ROLES or not SESSION.fullmatch(hello.session):
            text = f"HELLO needs a role of {', '.join(ROLES)} and a session of 16 hexadecimal digits"
            return self._refuse(address, "bad_hello", text)
        if self.roster.was_lost(hello.session):
            return self._refuse(address, "session_lost", "this session was given up; start a new one")
        peer = Peer(address, hello.session, hello.role, now)
        if hello.role == "worker":
            try:
                self._admit_worker(peer, hello.info)
            except ExesysError as error:
                self._refuse(address, "bad_hello", error.message)
            return None
        self.roster.admit(peer)
        self._effects.append(Send(address, self._welcome(hello.session, {})))
        return None

    def _admit_worker(self, peer: Peer, info: dict[str, Any]) -> None:
        catalogue = Catalogue.from_wire(info.get("catalogue"))
        queues = info.get("queues")
        if not isinstance(queues, list) or not queues:
            raise BadCommand("a worker's HELLO needs `queues`", field="queues")
        checked = tuple(command.check_name(queue, "queues") for queue in queues)
        self.roster.admit(peer)
        known = self.roster.workers.get(peer.session)
        worker = Worker(peer, checked, catalogue, {key: info[key] for key in info if key != "catalogue"})
        if known is not None:
            worker.held, worker.slots, worker.capacity = known.held, known.slots, known.capacity
        self.roster.workers[peer.session] = worker
        turn = self._pending.turn
        turn.opened.append(peer.session)
        turn.recalls.append(peer.session)
        self._learn()
        self._effects.append(OpenWorker(peer.session))

    def worker_opened(self, session: str, endpoint: str) -> None:
        """The worker's PUSH is bound: it may be welcomed."""
        worker = self.roster.workers[session]
        self._effects.append(Send(worker.peer.address, self._welcome(session, {"jobs": endpoint})))

    def _welcome(self, session: str, extra: dict[str, Any]) -> m.Welcome:
        config = self.config
        limits = {
            "data_bytes": config.limits.data_bytes,
            "depth": config.limits.depth,
            "log_bytes": config.limits.log_bytes,
        }
        endpoints = {**self.endpoints, **extra}
        prefix = config.redis.prefix
        return m.Welcome(
            m.VERSION, session, self.epoch, config.bus.heartbeat_s, config.bus.misses, limits, endpoints, prefix, {}
        )

    def _learn(self) -> None:
        """Make the catalogue that of the workers present, and have it remembered."""
        merged = Catalogue.merge([worker.catalogue for worker in self.roster.workers.values()])
        if merged != self.door.catalogue:
            self.door.catalogue = merged
            self._pending.turn.catalogue = codec.pack(merged.to_wire())

    def _on_submit(self, peer: Peer, message: m.Submit, now: float) -> None:
        late = self._late(now)
        if late or self._full:
            reason, retry_s = ("store", AWAY_RETRY_S) if late else ("pending", BUSY_RETRY_S)
            tags = tuple(item.tag for item in message.items)
            self._effects.append(Send(peer.address, m.Busy(tags, reason, retry_s)))
            return
        refused = []
        workflows: dict[int, list[m.Item]] = {}
        for item in message.items:
            if item.flow > 0:
                workflows.setdefault(item.flow, []).append(item)
                continue
            try:
                self._pending.place(self.door.command(item, peer.session), (peer.session, item.tag, item.notify))
            except ExesysError as error:
                refused.append(_refusal(item.tag, error))
        for items in workflows.values():
            try:
                origins = [(peer.session, item.tag, item.notify) for item in items]
                self._pending.place_flow(self.door.workflow(items, peer.session), origins)
            except ExesysError as error:
                refused += [_refusal(item.tag, error) for item in items]
        if refused:
            self._effects.append(Send(peer.address, m.SubmitAck(tuple(refused))))

    def _late(self, now: float) -> bool:
        return self._store_late_at is not None and now >= self._store_late_at

    @property
    def _full(self) -> bool:
        pending = self._pending
        return pending.waiting >= self.config.bus.pending or pending.bytes >= MOST_PENDING_BYTES

    def _on_change(self, peer: Peer, message: m.Change, now: float) -> None:
        try:
            if message.what not in ("cancel", "retry"):
                raise BadCommand("a job can be cancelled or retried.", field="what", fix="Send cancel or retry.")
            command.check_name(message.job_id, "job_id")
            if self._late(now) or self._full:
                raise Unavailable("the store is away.", fix="Send the same again in a moment.")
        except ExesysError as error:
            self._effects.append(Send(peer.address, m.Changed(message.tag, -1, list(error.problem))))
            return
        self._pending.change(Change(message.what, message.job_id), (peer.session, message.tag))

    def _on_status(self, peer: Peer, message: m.Status, now: float) -> None:
        if self._full:
            tags = tuple(query.tag for query in message.queries)
            self._effects.append(Send(peer.address, m.Busy(tags, "pending", BUSY_RETRY_S)))
            return
        refused = []
        for tag, job_id, from_, to, notify in message.queries:
            try:
                command.check_name(job_id, "job_id")
                command.check_name(from_, "from")
                command.check_to(to.split(","))
            except ExesysError as error:
                refused.append(_refusal(tag, error))
                continue
            self._pending.turn.lookups.append(Lookup(job_id, from_, to))
            self._pending.asked_by.append((peer.session, tag, notify))
        if refused:
            self._effects.append(Send(peer.address, m.StatusReply(tuple(refused))))

    def _on_heartbeat(self, peer: Peer, beat: m.Heartbeat, now: float) -> None:
        worker = self.roster.workers.get(peer.session)
        if worker is not None:
            worker.slots, worker.capacity = max(beat.slots, 0), max(beat.capacity, 0)
            if worker.recalled:
                for held in worker.missing(beat, now, RESEND_S):
                    self._pending.turn.reloads.append(held)
                    self._pending.reload_for[held] = peer.session
                if worker.foreign:
                    unwanted = tuple(held for held in beat.held if held.ref in worker.foreign)
                    self._effects.append(Send(peer.address, m.Cancel(unwanted)))
            self._pending.turn.notes += [note for note in beat.notes if note.ref in worker.held]
        newest = tuple(self._stops)[-NEWEST_STOPS:]
        self._effects.append(Send(peer.address, m.HeartbeatAck(peer.session, self.epoch, self._seq, newest)))

    def _on_stop(self, peer: Peer, stop: m.Stop, now: float) -> None:
        if peer.role != "controller":
            return self._refuse(peer.address, "not_allowed", "only the controller sends STOP")
        name = m.StopName(stop.type, stop.uuid)
        self._stops[name] = None
        self._stops.move_to_end(name)
        while len(self._stops) > MOST_STOPS:
            self._stops.popitem(last=False)
        topic = f"stop.{stop.type}.{stop.uuid}" if stop.uuid else f"stop.{stop.type}"
        self._publish(topic, list(name))
        return None

    def _publish(self, topic: str, body: Any) -> None:
        self._seq += 1
        self._effects.append(Publish(topic, m.Event(self.epoch, self._seq, body)))

    def _on_sync(self, peer: Peer, sync: m.Sync, now: float) -> None:
        parts: dict[str, Callable[[], Any]] = {
            "stops": lambda: [list(name) for name in self._stops],
            "workers": lambda: [_describe(worker, now) for worker in self.roster.workers.values()],
            "functions": self.door.catalogue.to_wire,
            "figures": lambda: {**self.figures, "garbage": self.garbage, "peers": len(self.roster.peers)},
        }
        wanted = {name: parts[name]() for name in sync.parts if name in parts}
        self._effects.append(Send(peer.address, m.Snapshot(sync.tag, self.epoch, self._seq, wanted)))

    def _on_drain(self, peer: Peer, drain: m.Drain, now: float) -> None:
        worker = self.roster.workers.get(peer.session)
        if worker is not None:
            worker.draining = True

    def _on_bye(self, peer: Peer, bye: m.Bye, now: float) -> None:
        if self.roster.dismiss(peer):
            # It gave everything back; what it still holds in the store was under way to it.
            self._pending.turn.lost.append(peer.session)
            self._effects.append(CloseWorker(peer.session))
            if self.roster.workers:
                self._learn()

    # --- in: time and the store's health ---------------------------------

    def tick(self, now: float) -> None:
        """Send the answers that waited long enough, and give up whoever was silent for a lease."""
        if now >= self._outbox.next_at:
            self._tell(now)
        deaf_s = now - self._ticked_at
        self._ticked_at = now
        if deaf_s > self.config.bus.heartbeat_s:
            # We stood still (stopped, swapped, suspended): nobody was silent, we did not listen.
            self.roster.excuse(deaf_s)
        if now < self._check_at:
            return
        self._check_at = now + self.config.bus.heartbeat_s / 2
        self.door.forget()
        silent, lost = self.roster.overdue(now)
        for peer in silent:
            self._effects.append(Send(peer.address, m.Bye(peer.session, "silent for too long")))
        for session in lost:
            self._effects.append(CloseWorker(session))
            self._publish("ev.worker", ["lost", session])
        self._pending.turn.lost += lost
        if lost and self.roster.workers:
            self._learn()

    def _tell(self, now: float) -> None:
        for session, message in self._outbox.messages(now):
            peer = self.roster.sessions.get(session)
            if peer is not None:
                self._effects.append(Send(peer.address, message))

    def store_slow(self, since: float) -> None:
        """The turn under way began at `since` and has no answer yet."""
        self._store_late_at = since + STORE_LATE_S

    def store_back(self) -> None:
        """The connection is new: claims whose answers were lost are found by asking."""
        for worker in self.roster.workers.values():
            worker.recalled = False
        self._pending.turn.recalls += list(self.roster.workers)
        self._sated.clear()

    def wake_in_s(self, now: float, now_ms: int) -> float:
        """Return how long the loop may sleep if nothing comes in."""
        wait = min(self._check_at, self._outbox.next_at) - now
        if self._due_ms:
            wait = min(wait, (self._due_ms - now_ms) / 1000)
        if self._unfed_ms:
            wait = min(wait, (self._unfed_ms - now_ms) / 1000)
        return max(wait, 0.0)

    # --- out: the turn ----------------------------------------------------

    def plan(self, now_ms: int) -> Turn | None:
        """Return the next turn, or None when there is nothing to ask of the store."""
        if self._due_ms and now_ms >= self._due_ms:
            # The next claim moves it to its queue, and says when another is due.
            self._due_ms = 0
            self._sated.clear()
        turn = self._pending.turn
        if turn.placed or turn.flows:
            self._sated.clear()
        if self._unfed_ms is not None and now_ms >= self._unfed_ms:
            self._unfed_ms = None
            turn.sweep = True
        if self._unfed_ms is None and (turn.changes or any(placed.waits for placed in turn.placed)):
            # A sweep sees what was there before this turn; what comes with it has its full time.
            self._unfed_ms = now_ms + int(self.config.limits.standby_s * 1000)
        turn.claims = self.roster.claims(self._sated)
        if not turn:
            return None
        rest = self._pending.leave()
        turn.now_ms = now_ms
        if any(placed.due_ms < 0 and not placed.waits for placed in turn.placed):
            turn.placed = [
                placed._replace(due_ms=now_ms - placed.due_ms) if placed.due_ms < 0 and not placed.waits else placed
                for placed in turn.placed
            ]
        self._underway, self._pending = self._pending, rest
        self.figures["turns"] += 1
        return turn

    def apply(self, turn: Turn, answers: Answers, now: float) -> None:
        """Act on the answers to the turn under way."""
        self._store_late_at = None
        underway, self._underway = self._underway, Pending()
        if answers.claims_lost:
            self.store_back()
        self._apply_claims(turn, answers, now)
        self._apply_reports(turn, answers.ended, now)
        for session, (left, failed) in zip(turn.lost, answers.lost, strict=True):
            self._sated.clear()
            if left:
                self._pending.turn.lost.append(session)
            for ended in failed:
                self._note_end(ended)
        if turn.sweep and answers.next_unfed_ms:
            self._unfed_ms = min(answers.next_unfed_ms, self._unfed_ms or answers.next_unfed_ms)
        for ended in answers.swept:
            self._note_end(ended)
        self._apply_flows(underway, answers.stored, now)
        self._apply_submits(underway, answers.taken, now)
        self._apply_changes(underway, answers.changed)
        self._apply_lookups(underway, answers.found)
        for session, held in zip(turn.recalls, answers.recalled, strict=True):
            self._recalled(session, held)
        for job in answers.reloaded:
            session = underway.reload_for[m.Held(job.ref, job.attempt)]
            self._effects.append(Dispatch(session, m.Jobs(self.epoch, (job,))))
        self._tell(now)

    def _apply_reports(self, turn: Turn, ended: list[Ended], now: float) -> None:
        for closed, end in zip(turn.reports, ended, strict=True):
            report = closed.report
            worker = self.roster.workers.get(closed.session)
            if worker is not None:
                worker.leaving.discard((report.ref, report.attempt))
                sent = worker.held.get(report.ref)
                if sent is not None and sent.attempt == report.attempt:
                    del worker.held[report.ref]
                self._outbox.ack(closed.session, m.Held(report.ref, report.attempt), now)
            if end.stale:
                continue
            if end.state is State.data_available:
                self._note_end(end._replace(body=report.body))
            elif end.state is State.error:
                self._note_end(end)
            if end.started or not end.state.final:
                self._sated.clear()

    def _note_end(self, end: Ended) -> None:
        """A step ended, and perhaps others with it: tell who waits for them."""
        self.figures["done" if end.state is State.data_available else "failed"] += 1
        self._outbox.ended(end.ref, end.peer, end.state, end.body)
        for other in end.also:
            self._note_end(other)

    def _apply_changes(self, underway: Pending, changed: list[Changed]) -> None:
        for (session, tag), change, done in zip(underway.changed_by, underway.turn.changes, changed, strict=True):
            answer = m.Changed(tag, done.steps, None)
            if done.steps < 0:
                error = NotFound(f"there is no job {change.job_id}.", fix="It was never sent, or it has expired.")
                answer = m.Changed(tag, -1, list(error.problem))
            peer = self.roster.sessions.get(session)
            if peer is not None:
                self._effects.append(Send(peer.address, answer))
            for ended, runs_at in zip(done.ended, done.sessions, strict=True):
                self._note_end(ended)
                worker = self.roster.workers.get(runs_at)
                if worker is not None:
                    worker.held.pop(ended.ref, None)
                    unwanted = m.Held(ended.ref, ended.attempt)
                    self._effects.append(Send(worker.peer.address, m.Cancel((unwanted,))))
            self._sated.clear()

    def _apply_flows(self, underway: Pending, stored: list[Stored], now: float) -> None:
        for origins, flow, answer in zip(underway.flowed_by, underway.turn.flows, stored, strict=True):
            if not answer.steps:
                refusal = _why_no_workflow(answer, flow.job_id)
                for session, tag, _ in origins:
                    self._outbox.answer(session, m.SubmitAck, _refusal(tag, refusal))
                continue
            for (session, tag, notify), (ref, state, body) in zip(origins, answer.steps, strict=True):
                if answer.verdict == "new":
                    self.figures["accepted"] += 1
                    if notify:
                        self._outbox.taken(session, tag, now, state)
                        continue
                elif notify and not state.final:
                    self._outbox.wait(ref, session, tag)
                self._outbox.answer(session, m.SubmitAck, m.Answer(tag, state, body))

    def _apply_submits(self, underway: Pending, taken: list[Taken], now: float) -> None:
        for (session, tag, notify), placed, took in zip(underway.placed_by, underway.turn.placed, taken, strict=True):
            for ended in took.also:
                self._note_end(ended)
            if took.verdict == "new":
                self.figures["accepted"] += 1
                if notify and not took.state.final:
                    self._outbox.taken(session, tag, now, took.state)
                    continue
                answer = m.Answer(tag, took.state, took.body)
            elif took.verdict == "same":
                answer = m.Answer(tag, took.state, took.body)
                if notify and not took.state.final:
                    self._outbox.wait(took.ref, session, tag)
            else:
                answer = _refusal(tag, _why_not_taken(took, placed))
            self._outbox.answer(session, m.SubmitAck, answer)

    def _apply_lookups(self, underway: Pending, found: list[Found]) -> None:
        for (session, tag, notify), lookup, step in zip(underway.asked_by, underway.turn.lookups, found, strict=True):
            if not step.ref:
                answer = _refusal(tag, Unavailable("the store could not be read.", fix="Ask again in a moment."))
            elif step.state is None:
                text = f"there is no step from {lookup.from_} to {lookup.to} in job {lookup.job_id}."
                answer = _refusal(tag, NotFound(text, fix="It was never sent, or its result has expired."))
            else:
                answer = m.Answer(tag, step.state, step.body)
                if notify and not step.state.final:
                    self._outbox.wait(step.ref, session, tag)
            self._outbox.answer(session, m.StatusReply, answer)

    def _apply_claims(self, turn: Turn, answers: Answers, now: float) -> None:
        if not turn.claims:
            return
        # A worker whose last claim was not filled has emptied its queues.
        for claim, claimed in zip(turn.claims, answers.claimed, strict=True):
            if len(claimed.jobs) < claim.most:
                self._sated.add(claim.session)
        self._due_ms = answers.next_due_ms
        dealt: dict[str, list[m.Job]] = {}
        for claimed in answers.claimed:
            self._hold(claimed, now)
            if claimed.jobs:
                dealt.setdefault(claimed.session, []).extend(claimed.jobs)
        for session, jobs in dealt.items():
            self._effects.append(Dispatch(session, m.Jobs(self.epoch, tuple(jobs))))

    def _hold(self, claimed: Claimed, now: float) -> None:
        worker = self.roster.workers.get(claimed.session)
        if worker is None:
            # It went while the turn was under way: what was claimed for it goes back.
            if claimed.jobs:
                self._pending.turn.lost.append(claimed.session)
            return
        for job in claimed.jobs:
            worker.held[job.ref] = Sent(job.attempt, now, feeds=job.to != command.END)

    def _recalled(self, session: str, held: tuple[m.Held, ...]) -> None:
        worker = self.roster.workers.get(session)
        if worker is None:
            return
        worker.recalled = True
        worker.leaving.clear()
        known = worker.held
        # A job the store says it holds and that was not sent from here is as old as can be.
        worker.held = {
            ref: known[ref] if ref in known and known[ref].attempt == attempt else Sent(attempt, float("-inf"))
            for ref, attempt in held
        }
        self._sated.clear()


def _why_not_taken(took: Taken, placed: Placed) -> ExesysError:
    wanted = placed.command
    if took.verdict == "circle":
        return _circle(took.body.decode().split(","))
    if took.verdict == "long":
        return too_long(wanted.from_)
    if took.verdict == "conflict":
        return Conflict(
            f"job {wanted.job_id} has a step from {wanted.from_} to {wanted.to} with another cmd or data.",
            field="job_id",
            fix="Send the same cmd and data to get its state, or use a new job_id.",
        )
    if took.verdict == "refused":
        return ExesysError("the store could not write this command.", fix="See router.log for what Redis says.")
    queue = placed.options.get("queue", command.DEFAULT_QUEUE)
    return QueueFull(f"the queue {queue} is full.", field="queue", fix="Try again later; see [limits] queue_depth.")


def _circle(names: list[str]) -> ExesysError:
    try:
        Graph(zip(names, [*names[1:], names[0]], strict=True)).check_added()
    except BadCommand as error:
        return error
    return ExesysError("the store found a circle where none is.")


def _why_no_workflow(answer: Stored, job_id: str) -> ExesysError:
    name = command.parts_of(answer.ref)[0] if answer.ref else ""
    if answer.verdict == "conflict":
        return Conflict(
            f"job {job_id} is there, and its step from {name} is another or none.",
            field="job_id",
            fix="Send the same workflow to get its state, or use a new job_id.",
        )
    if answer.verdict == "full":
        return QueueFull(f"the queue of the step from {name} is full.", field="queue", fix="Try again later.")
    return ExesysError("the store could not write this workflow.", fix="See router.log for what Redis says.")


def _failed(report: m.Report, kind: str, text: str) -> m.Report:
    """Make of an attempt that was done one that failed."""
    body = codec.pack({"type": kind, "message": text, "traceback": ""})
    return report._replace(outcome=int(m.Outcome.failed), body=body)


def _refusal(tag: int, error: ExesysError) -> m.Answer:
    return m.Answer(tag, -1, list(error.problem))


def _describe(worker: Worker, now: float) -> dict[str, Any]:
    return {
        **worker.info,
        "session": worker.peer.session,
        "queues": list(worker.queues),
        "slots": worker.slots,
        "capacity": worker.capacity,
        "held": len(worker.held),
        "draining": worker.draining,
        "silent_s": round(now - worker.peer.seen, 3),
    }
