"""What clients ask of the router, and how they are answered. Pure.

SUBMIT, CHANGE and STATUS are checked and go into the next turn, each with the
session and tag to answer; what the store said of them goes to the outbox.
Whatever is refused, here or by the store, is told with a reason and a fix,
and leaves nothing behind.
"""

from __future__ import annotations

from exesys import command
from exesys.bus import messages as m
from exesys.bus import signpost
from exesys.bus.pending import Pending
from exesys.bus.roster import Peer
from exesys.bus.slate import Slate
from exesys.errors import (
    NO_JOB_FIX,
    BadCommand,
    Conflict,
    ExesysError,
    NotFound,
    QueueFull,
    StateError,
    Unavailable,
    no_job,
)
from exesys.turn import Answers, Change, Changed, Found, Lookup, Placed, Stored, Taken
from exesys.workflow import Graph, too_long

BUSY_RETRY_S = 0.2
AWAY_RETRY_S = 1.0


class Intake:
    """Takes in what clients ask; any peer may be one."""

    def __init__(self, slate: Slate) -> None:
        self._slate = slate

    # --- in -----------------------------------------------------------------

    def submit(self, peer: Peer, message: m.Submit, now: float) -> None:
        """Take commands and workflows into the next turn."""
        slate = self._slate
        sent = signpost.ours(slate, peer.address, message.items) if slate.shards else message.items
        late = slate.late(now)
        if late or slate.full:
            reason, retry_s = (slate.trouble.reason, AWAY_RETRY_S) if late else ("pending", BUSY_RETRY_S)
            tags = tuple(item.tag for item in sent)
            slate.figures["busy"] += len(tags)
            slate.say(peer.address, m.Busy(tags, reason, retry_s))
            return
        door, pending, session = slate.door, slate.pending, peer.session
        refused = []
        workflows: dict[int, list[m.Item]] = {}
        for item in sent:
            if item.flow > 0:
                workflows.setdefault(item.flow, []).append(item)
                continue
            try:
                pending.place(door.command(item, session), (session, item.tag, item.notify))
            except ExesysError as error:
                refused.append(_refusal(item.tag, error))
        for items in workflows.values():
            try:
                origins = [(session, item.tag, item.notify) for item in items]
                pending.place_flow(door.workflow(items, session), origins)
            except ExesysError as error:
                refused += [_refusal(item.tag, error) for item in items]
        if refused:
            slate.say(peer.address, m.SubmitAck(tuple(refused)))

    def change(self, peer: Peer, message: m.Change, now: float) -> None:
        """Take a cancel, retry or purge into the next turn."""
        slate = self._slate
        try:
            if message.what not in ("cancel", "retry", "purge"):
                fix = "Send cancel, retry or purge of a job, stop or restart of a runner."
                raise BadCommand(f"`what` is {message.what!r:.40}.", field="what", fix=fix)
            command.check_name(message.name, "job_id")
            if slate.shards and (shard := slate.shards.elsewhere(message.name)):
                signpost.point(slate, peer.address, shard, [message.tag])
                return
            slate.check_store(now)
        except ExesysError as error:
            slate.say(peer.address, m.Changed(message.tag, -1, list(error.problem)))
            return
        slate.pending.change(Change(message.what, message.name), (peer.session, message.tag))

    def status(self, peer: Peer, message: m.Status, now: float) -> None:
        """Take questions into the next turn."""
        slate = self._slate
        asked = signpost.ours(slate, peer.address, message.queries) if slate.shards else message.queries
        if slate.full:
            tags = tuple(query.tag for query in asked)
            slate.say(peer.address, m.Busy(tags, "pending", BUSY_RETRY_S))
            return
        refused = []
        for tag, job_id, from_, to, notify in asked:
            try:
                command.check_name(job_id, "job_id")
                command.check_name(from_, "from")
                command.check_to(to.split(","))
            except ExesysError as error:
                refused.append(_refusal(tag, error))
                continue
            slate.pending.turn.lookups.append(Lookup(job_id, from_, to))
            slate.pending.asked_by.append((peer.session, tag, notify))
        if refused:
            slate.say(peer.address, m.StatusReply(tuple(refused)))

    # --- out ----------------------------------------------------------------

    def apply(self, underway: Pending, answers: Answers, now: float) -> None:
        """Answer what the turn under way asked for clients."""
        turn = underway.turn
        if turn.flows:
            self._apply_flows(underway, answers.stored, now)
        if turn.placed:
            self._apply_submits(underway, answers.taken, now)
        if turn.changes:
            self._apply_changes(underway, answers.changed)
        if turn.lookups:
            self._apply_lookups(underway, answers.found)

    def _apply_flows(self, underway: Pending, stored: list[Stored], now: float) -> None:
        outbox = self._slate.outbox
        for origins, flow, answer in zip(underway.flowed_by, underway.turn.flows, stored, strict=True):
            if not answer.steps:
                refusal = _why_no_workflow(answer, flow.job_id)
                for session, tag, _ in origins:
                    outbox.answer(session, m.SubmitAck, _refusal(tag, refusal))
                continue
            for (session, tag, notify), placed, (ref, state, body) in zip(
                origins, flow.steps, answer.steps, strict=True
            ):
                if answer.verdict == "new":
                    self._slate.figures["accepted"] += 1
                    self._slate.meters.of(placed.command.cmd).accepted += 1
                    if notify:
                        outbox.taken(session, tag, now, state)
                        continue
                elif notify and not state.final:
                    outbox.wait(ref, session, tag)
                outbox.answer(session, m.SubmitAck, m.Answer(tag, state, body))

    def _apply_submits(self, underway: Pending, taken: list[Taken], now: float) -> None:
        slate, outbox = self._slate, self._slate.outbox
        for (session, tag, notify), placed, took in zip(underway.placed_by, underway.turn.placed, taken, strict=True):
            for ended in took.also:
                slate.ended(ended)
            if took.verdict == "new":
                slate.figures["accepted"] += 1
                slate.meters.of(placed.command.cmd).accepted += 1
                if notify and not took.state.final:
                    outbox.taken(session, tag, now, took.state)
                    continue
                answer = m.Answer(tag, took.state, took.body)
            elif took.verdict == "same":
                answer = m.Answer(tag, took.state, took.body)
                if notify and not took.state.final:
                    outbox.wait(took.ref, session, tag)
            else:
                answer = _refusal(tag, _why_not_taken(took, placed))
            outbox.answer(session, m.SubmitAck, answer)

    def _apply_changes(self, underway: Pending, changed: list[Changed]) -> None:
        slate = self._slate
        for (session, tag), change, done in zip(underway.changed_by, underway.turn.changes, changed, strict=True):
            answer = m.Changed(tag, done.steps, None)
            if done.steps < 0:
                answer = m.Changed(tag, -1, list(_why_not_changed(done.steps, change.job_id).problem))
            peer = slate.roster.sessions.get(session)
            if peer is not None:
                slate.say(peer.address, answer)
            for ended in done.ended:
                slate.ended(ended)

    def _apply_lookups(self, underway: Pending, found: list[Found]) -> None:
        outbox = self._slate.outbox
        for (session, tag, notify), lookup, step in zip(underway.asked_by, underway.turn.lookups, found, strict=True):
            if not step.ref:
                answer = _refusal(tag, Unavailable("the store could not be read.", fix="Ask again in a moment."))
            elif step.state is None:
                text = f"there is no step from {lookup.from_} to {lookup.to} in job {lookup.job_id}."
                answer = _refusal(tag, NotFound(text, fix=NO_JOB_FIX))
            else:
                answer = m.Answer(tag, step.state, step.body)
                if notify and not step.state.final:
                    outbox.wait(step.ref, session, tag)
            outbox.answer(session, m.StatusReply, answer)


# --- refusals ---------------------------------------------------------------


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
    fix = "Try again later, or raise its `depth` (`bin/exesys queue list`), or [limits] queue_depth if it has none."
    return QueueFull(f"the queue {queue} is full.", field="queue", fix=fix)


def _why_not_changed(verdict: int, job_id: str) -> ExesysError:
    if verdict == -2:
        text = f"job {job_id} is under way: only one that has ended and failed can be removed."
        return StateError(text, fix=f"Cancel it first: DELETE /jobs/{job_id}.")
    if verdict == -3:
        text = f"job {job_id} ended well: only one that has failed can be removed."
        return StateError(text, fix="Its result expires by itself.")
    return no_job(job_id)


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


def _refusal(tag: int, error: ExesysError) -> m.Answer:
    return m.Answer(tag, -1, list(error.problem))
