"""What the router gives its workers and hears from them. Pure.

A worker is admitted by its HELLO and gets nothing until the store has said
what its session holds (a recall): only then its credit can be counted. From
then on it is dealt what the turn claimed for it, heartbeats say what it has,
and results go into the next turn. When it leaves or is lost, the store is
asked to take back what it held.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from exesys import codec, command
from exesys.bus import messages as m
from exesys.bus.effects import CloseWorker, Dispatch, OpenWorker
from exesys.bus.pending import Pending
from exesys.bus.roster import MOST_WORKERS, Peer, Sent, Worker
from exesys.bus.slate import Slate
from exesys.catalogue import Catalogue
from exesys.errors import BadCommand, ExesysError, QueueFull, Unavailable
from exesys.states import State
from exesys.turn import Answers, Changed, Claimed, Closed, Ended, Placed, Turn

RESEND_S = 2.0
DONE, RETURNED = int(m.Outcome.done), int(m.Outcome.returned)
RESULT = codec.pack({"EOJ": None})[:-1]  # what results begin with: the next steps get what follows (graph.lua)


class Crew:
    """The workers. `jitter` gives a random number in [0, 1)."""

    def __init__(self, slate: Slate, jitter: Callable[[], float]) -> None:
        self._slate = slate
        self._jitter = jitter

    # --- who is there -------------------------------------------------------

    def admit(self, peer: Peer, info: dict[str, Any]) -> bool:
        """Take in a worker; it is welcomed when its PUSH is bound. Raises ExesysError."""
        slate = self._slate
        catalogue = Catalogue.from_wire(info.get("catalogue"))
        queues = info.get("queues")
        if not isinstance(queues, list) or not queues:
            raise BadCommand("a worker's HELLO needs `queues`", field="queues")
        checked = tuple(command.check_name(queue, "queues") for queue in queues)
        known = slate.roster.workers.get(peer.session)
        if known is None and len(slate.roster.workers) >= MOST_WORKERS:
            raise QueueFull(f"there are {MOST_WORKERS} workers already", fix="Give those there are more slots.")
        slate.roster.admit(peer)
        worker = Worker(peer, checked, catalogue, {key: info[key] for key in info if key != "catalogue"})
        if known is not None:
            worker.held, worker.slots, worker.capacity = known.held, known.slots, known.capacity
            worker.asked = known.asked
        slate.roster.workers[peer.session] = worker
        turn = slate.pending.turn
        turn.opened.append(peer.session)
        turn.recalls.append(peer.session)
        self._learn()
        slate.effects.append(OpenWorker(peer.session))
        return False

    def heartbeat(self, peer: Peer, beat: m.Heartbeat, now: float) -> None:
        """Take a worker's credit, and look after what it should have and what it should not."""
        slate = self._slate
        worker = slate.roster.workers.get(peer.session)
        if worker is None:
            return
        worker.slots, worker.capacity = max(beat.slots, 0), max(beat.capacity, 0)
        if worker.recalled:
            for held in worker.missing(beat, now, RESEND_S):
                slate.pending.turn.reloads.append(held)
                slate.pending.reload_for[held] = peer.session
            if worker.foreign:
                unwanted = tuple(held for held in beat.held if held.ref in worker.foreign)
                slate.say(peer.address, m.Cancel(unwanted))
        slate.pending.turn.notes += [note for note in beat.notes if note.ref in worker.held]

    def drain(self, peer: Peer, drain: m.Drain, now: float) -> None:
        """A worker wants no more."""
        worker = self._slate.roster.workers.get(peer.session)
        if worker is not None:
            worker.draining = True

    def left(self, session: str) -> None:
        """A worker said BYE: it gave everything back; what it still holds in the store was under way to it."""
        self._release([session])

    def lost(self, sessions: list[str]) -> None:
        """Workers were silent for a lease, or never came back after a restart."""
        self._release(sessions)
        self._slate.figures["workers_lost"] += len(sessions)
        for session in sessions:
            self._slate.publish("ev.worker", ["lost", session])

    def _release(self, sessions: list[str]) -> None:
        self._slate.pending.turn.lost += sessions
        self._slate.effects += [CloseWorker(session) for session in sessions]
        if sessions and self._slate.roster.workers:
            self._learn()

    def recall(self) -> None:
        """What workers hold may have changed unseen: nothing is given out until the store has said."""
        workers = self._slate.roster.workers
        for worker in workers.values():
            worker.recalled = False
        self._slate.pending.turn.recalls += list(workers)
        self._slate.sated.clear()

    def _learn(self) -> None:
        """Make the catalogue that of the workers present, and have it remembered."""
        slate = self._slate
        merged = Catalogue.merge([worker.catalogue for worker in slate.roster.workers.values()])
        if merged != slate.door.catalogue:
            slate.door.catalogue = merged
            slate.pending.turn.catalogue = codec.pack(merged.to_wire())

    def describe(self, now: float) -> list[dict[str, Any]]:
        """Return what a SNAPSHOT says of the workers."""
        return [_describe(worker, now) for worker in self._slate.roster.workers.values()]

    # --- in: results --------------------------------------------------------

    def results(self, message: m.Result) -> None:
        """Take finished attempts into the next turn."""
        slate = self._slate
        pending = slate.pending
        worker = slate.roster.workers.get(message.session)
        held = worker.held if worker is not None else {}
        for report in message.reports:
            attempt = (report.ref, report.attempt)
            if attempt in pending.reported:
                continue
            known = report.ref in held
            if not 0 <= report.outcome <= RETURNED or not (known or command.REF.fullmatch(report.ref)):
                slate.garbage += 1
                continue
            if not known and slate.swamped:
                continue  # a worker sends it again until it is acknowledged
            added: tuple[Placed, ...] = ()
            if report.added:
                try:
                    added = slate.door.added(report.ref, report.added)
                except Unavailable:
                    continue  # it comes again, and then we may know what the workers can do
                except ExesysError as error:
                    report = _failed(report, "BadStep", error.message)
            if report.outcome == DONE and not (len(report.body) > len(RESULT) and report.body.startswith(RESULT)):
                report = _failed(report, "BadResult", 'the worker\'s result is not {"EOJ": value} in its shortest form')
            pending.reported.add(attempt)
            if known:
                self._leave(worker, attempt)
            pending.report(Closed(message.session, report, self._jitter(), added))

    def _leave(self, worker: Worker | None, attempt: tuple[str, int]) -> None:
        """A report came: if steps may start by it, there is credit for them in its own turn.

        Not for others: claims of one job each cost more than they bring.
        """
        sent = worker.held.get(attempt[0]) if worker is not None else None
        if worker is not None and sent is not None and sent.attempt == attempt[1] and sent.feeds:
            worker.leaving.add(attempt)
            self._slate.sated.clear()

    # --- out: the store's answers ---------------------------------------------

    def apply(self, underway: Pending, answers: Answers, now: float) -> None:
        """Deal what was claimed, acknowledge what was reported, and note what was released."""
        turn = underway.turn
        if turn.claims:
            self._apply_claims(underway, answers.claimed, now)
        if turn.reports:
            self._apply_reports(turn, answers.ended, now)
        for session, (left, failed) in zip(turn.lost, answers.lost, strict=True):
            self._slate.sated.clear()
            if left:
                self._slate.pending.turn.lost.append(session)
            for ended in failed:
                self._slate.ended(ended)

    def _apply_claims(self, underway: Pending, claims: list[Claimed], now: float) -> None:
        if not self._slate.underway:
            # A worker whose last claim was not filled has emptied its queues. A turn behind it may fill them again.
            for claim, claimed in zip(underway.turn.claims, claims, strict=True):
                if len(claimed.jobs) < claim.most:
                    self._slate.sated.add(claim.session)
        dealt: dict[str, list[m.Job]] = {}
        for claimed in claims:
            self._hold(claimed, underway, now)
            if claimed.jobs:
                dealt.setdefault(claimed.session, []).extend(claimed.jobs)
        for session, jobs in dealt.items():
            self._dispatch(session, jobs)

    def _dispatch(self, session: str, jobs: Iterable[m.Job]) -> None:
        self._slate.effects.append(Dispatch(session, m.Jobs(self._slate.epoch, tuple(jobs))))

    def _hold(self, claimed: Claimed, underway: Pending, now: float) -> None:
        worker = self._slate.roster.workers.get(claimed.session)
        if worker is None:
            # It went while the turn was under way: what was claimed for it goes back.
            if claimed.jobs:
                self._slate.pending.turn.lost.append(claimed.session)
            return
        trip_s, claimed_ms, tally_of = now - underway.planned_at, underway.turn.now_ms, self._slate.meters.of
        for job, ready_ms in zip(claimed.jobs, claimed.ready_ms, strict=True):
            tally = tally_of(job.cmd)
            worker.held[job.ref] = Sent(job.attempt, now, job.to != command.END, tally)
            tally.started += 1
            waited_ms = claimed_ms - ready_ms
            tally.wait.see(trip_s + waited_ms / 1000 if waited_ms > 0 else trip_s)

    def _apply_reports(self, turn: Turn, ended: list[Ended], now: float) -> None:
        slate, rest = self._slate, self._slate.meters.rest
        for closed, end in zip(turn.reports, ended, strict=True):
            report = closed.report
            worker = slate.roster.workers.get(closed.session)
            tally = rest
            if worker is not None:
                worker.leaving.discard((report.ref, report.attempt))
                sent = worker.held.get(report.ref)
                if sent is not None:
                    tally = sent.tally or rest
                    if sent.attempt == report.attempt:
                        del worker.held[report.ref]
                slate.outbox.ack(closed.session, m.Held(report.ref, report.attempt), now)
            if end.stale:
                continue
            if end.state is State.data_available:
                slate.ended(end, tally, report.body)
                if closed.added:
                    slate.meters.accepted(placed.command.cmd for placed in closed.added)
            elif end.state is State.error:
                slate.ended(end, tally)
            elif report.outcome != RETURNED:
                tally.retried += 1
            if report.outcome != RETURNED:
                ran_ms = report.ended_ms - report.began_ms
                tally.run.see(ran_ms / 1000 if ran_ms > 0 else 0.0)
            if end.started or not end.state.final:
                slate.sated.clear()

    def apply_changes(self, changed: list[Changed]) -> None:
        """Have what was cancelled ended where it runs; what is to run again may fill a queue."""
        for done in changed:
            for ended, runs_at in zip(done.ended, done.sessions, strict=True):
                worker = self._slate.roster.workers.get(runs_at)
                if worker is not None:
                    worker.held.pop(ended.ref, None)
                    self._slate.say(worker.peer.address, m.Cancel((m.Held(ended.ref, ended.attempt),)))
            self._slate.sated.clear()

    def apply_recalls(self, underway: Pending, answers: Answers) -> None:
        """Count what workers hold by what the store says, and send once more what they miss."""
        for session, held in zip(underway.turn.recalls, answers.recalled, strict=True):
            self._recalled(session, held)
        for job in answers.reloaded:
            self._dispatch(underway.reload_for[m.Held(job.ref, job.attempt)], (job,))

    def _recalled(self, session: str, held: tuple[m.Held, ...]) -> None:
        worker = self._slate.roster.workers.get(session)
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
        self._slate.sated.clear()


def _failed(report: m.Report, kind: str, text: str) -> m.Report:
    """Make of an attempt that was done one that failed."""
    body = codec.pack({"type": kind, "message": text, "traceback": ""})
    return report._replace(outcome=int(m.Outcome.failed), body=body)


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
