"""The router's side of the runners: which there are, which daemon hosts which. Pure.

Everything that has not ended is kept here; there are at most `[limits]
runners` of them, and their data stays in the store. The store is the truth
all the same: each change is an operation of a turn, and what follows from it
(a LAUNCH, an acknowledgement, an answer) goes out after its commit. A stop is
not decided here but by the key in Redis, which anyone may set: every launch
looks at it in the script that counts up the epoch.

Two lives of a runner never overlap. It is launched anew only when its daemon
has said that the last one ended, or when the daemon's session was given up;
and a daemon that is not sure to be heard ends with all it hosts before that
(`bus/hosting.py`). After a crash the next life waits, as `runner.Patience`
says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from exesys import runner as runners
from exesys.bus import messages as m
from exesys.bus.agenda import MOST_BYTES_IN_TURN, MOST_IN_TURN, Agenda
from exesys.bus.replies import Asked, Group, Origin, Replies, stops, why_not
from exesys.bus.roster import Peer
from exesys.bus.slate import Slate
from exesys.bus.stops import Stops
from exesys.bus.tenants import NEVER, Host, Runner, from_store
from exesys.errors import BadCommand, ExesysError, NotFound, Unavailable
from exesys.runner import Ending, Life, Name, Patience, RunnerState
from exesys.turn import Assign, Enlist, Halt, Loglines, Noted, Revive, RunnerDone, RunnerOp

RESEND_S = 2.0
STOP_AGAIN_S = 1.0
HOLD_BEATS = 2  # a new router gives nothing away until its daemons have said what they host


class Board:
    """All runners and their hosts. `jitter` gives a random number in [0, 1), which spreads what starts again."""

    def __init__(self, slate: Slate, stops: Stops, jitter: Callable[[], float]) -> None:
        self.runners: dict[Name, Runner] = {}
        self.hosts: dict[str, Host] = {}
        rules = slate.config.runner
        self._patience = Patience(
            rules.max_failures, rules.max_losses, rules.backoff_s, rules.max_backoff_s, rules.healthy_s
        )
        self._slate = slate
        self._stops = stops
        self._replies = Replies(slate)
        self._jitter = jitter
        self._hold_until = float("-inf")
        self._waiting: dict[Name, None] = {}  # those without a host, the one that waits longest first
        self._agenda = Agenda()

    def restore(self, found: Mapping[Name, Mapping[bytes, bytes]], now: float) -> None:
        """Take in what the store remembers, and expect the sessions that may still host some."""
        for name, fields in found.items():
            self._adopt(from_store(name, fields), now)
        if self._waiting:
            # Should Redis have lost that one was given away, its daemon says so first (see `_reclaim`).
            self._hold_until = now + HOLD_BEATS * self._slate.config.bus.heartbeat_s

    def _adopt(self, runner: Runner, now: float) -> None:
        """Take in a runner as the store has it."""
        self.runners[runner.name] = runner
        if runner.session in self.hosts:
            self.hosts[runner.session].names.add(runner.name)
        elif runner.session:
            self._slate.roster.expect([runner.session], now)
        else:
            self._waiting[runner.name] = None

    # --- what clients and the controller ask -------------------------------

    def start(self, peer: Peer, start: m.Start, now: float) -> None:
        """Take a new runner into the next turn; it is launched after that."""
        origin = Origin(peer.session, start.tag)
        try:
            self._check_store(now)
            self._agenda.add(self._slate.door.runner(start), origin)
        except ExesysError as error:
            self._replies.refuse(origin, error)

    def change(self, peer: Peer, change: m.Change, now: float) -> None:
        """Stop or restart a runner (`type:uuid`), or stop all of a type."""
        origin = Origin(peer.session, change.tag)
        try:
            self._check_store(now)
            self._change(change.what, change.name, origin, now)
        except ExesysError as error:
            self._replies.refuse(origin, error)

    def _check_store(self, now: float) -> None:
        self._slate.check_store(now)
        if self._agenda.full:
            raise Unavailable("the store is away.", fix="Send the same again in a moment.")

    def _change(self, what: str, text: str, origin: Origin, now: float) -> None:
        if ":" in text:
            name = runners.parse_name(text)
            self._agenda.add(Halt(name), origin) if what == "stop" else self._restart(name, origin)
            return
        type_ = runners.check_type(text)
        if what != "stop":
            raise BadCommand("one runner is restarted at a time.", field="name", fix="Name it as type:uuid.")
        names = runners.of_type(list(self.runners), type_)
        if not names:
            raise NotFound(f"no runner of type {type_} runs.", fix="`bin/exesys runner list` shows those there are.")
        group = Group(origin, len(names))
        for name in names:
            self._agenda.add(Halt(name), group)

    def halt(self, stopped: Name) -> None:
        """A stop was loaded in Redis by somebody: heed it. Without a uuid it is for all of a type."""
        runner = self.runners.get(stopped)
        if not stopped.uuid:
            self._stops.announce(stopped)
            self._agenda.add(Halt(stopped))
            for name in runners.of_type(list(self.runners), stopped.type):
                self._agenda.add(Halt(name))
        elif runner is None:
            self._stops.announce(stopped)  # it is of none of our daemons, or about to be
            self._agenda.add(Halt(stopped, loaded=True))
        elif runner.state is not RunnerState.stopping:
            # Looked at once more: it may have been started anew since that was seen.
            self._agenda.add(Halt(stopped, loaded=True))

    def _restart(self, name: Name, origin: Origin) -> None:
        runner = self.runners.get(name)
        if runner is not None and runner.state is RunnerState.stopping and not runner.ending:
            raise stops(name)
        self._agenda.add(Revive(name), origin)

    # --- what the hosts say -------------------------------------------------

    def admit(self, peer: Peer, info: dict[str, Any]) -> bool:
        """Take in a runner daemon. What it hosts comes with its heartbeat."""
        self._slate.roster.admit(peer)
        names = {name for name, each in self.runners.items() if each.session == peer.session}
        self.hosts[peer.session] = Host(peer, info, names=names)
        return True

    def drain(self, peer: Peer, drain: m.Drain, now: float) -> None:
        """A daemon takes no more."""
        if peer.session in self.hosts:
            self.hosts[peer.session].draining = True

    def lost(self, session: str, now: float) -> bool:
        """A session was given up, or ended: whatever it hosted is dead. Tells whether it was a runner daemon's."""
        host = self.hosts.pop(session, None)
        hosted = [runner for runner in self.runners.values() if runner.session == session]
        for runner in hosted:
            if not runner.ending:
                lived_s = now - runner.began if runner.began is not None else 0.0
                self._end(runner, Ending.killed, b"", lived_s, now)
        return host is not None or bool(hosted)

    def heartbeat(self, peer: Peer, beat: m.Heartbeat, now: float) -> None:
        """Compare what a daemon hosts with what it should."""
        host = self.hosts.get(peer.session)
        if host is None:
            return
        host.capacity = max(beat.capacity, 0)
        held = {each.ref: each.attempt for each in beat.held}
        for name in host.names:
            runner = self.runners[name]
            if held.get(str(name)) == runner.epoch:
                del held[str(name)]
                if runner.unwanted:
                    self._tell_to_stop(runner, now)
            elif not runner.ending and now - runner.launched_at >= RESEND_S:
                self._launch_again(runner, host, now)
        unwanted = [m.Held(*each) for each in held.items() if not self._reclaim(host, *each)]
        if unwanted:
            self._slate.say(host.peer.address, m.Cancel(tuple(unwanted)))

    def _reclaim(self, host: Host, text: str, epoch: int) -> bool:
        """Take back a life that the store has forgotten: Redis and a router died together after it was given."""
        try:
            runner = self.runners.get(runners.parse_name(text))
        except BadCommand:
            return False
        if runner is None or runner.session or runner.epoch >= epoch:
            return False
        del self._waiting[runner.name]
        runner.epoch = epoch - 1
        self._agenda.add(runner.give(host))
        return True

    def _launch_again(self, runner: Runner, host: Host, now: float) -> None:
        """A daemon does not have what it was sent: it was lost, or is still on its way."""
        if runner.unwanted:
            self._withdraw(runner, host, now)
        else:
            runner.launched_at = NEVER
            self._agenda.add(runner.assignment(host))

    def _withdraw(self, runner: Runner, host: Host, now: float) -> None:
        """Have a daemon say that a life is over there, or never will be; it ends then as any other."""
        runner.launched_at = now
        self._slate.say(host.peer.address, m.Cancel((m.Held(str(runner.name), runner.epoch),)))

    def told(self, peer: Peer, telling: m.Telling, now: float) -> None:
        """Take what runners tell of themselves."""
        for each in telling.told:
            runner = self._hosted(each.name, each.epoch, peer.session)
            if runner is None:
                continue
            runner.told = each
            if each.log:
                self._agenda.log(Loglines(runner.name, each.epoch, each.chunk, each.log))
            if runner.began is None:
                runner.began = now
                if runner.state is RunnerState.starting:
                    runner.state = RunnerState.running
                    self._agenda.add(runner.noted(state=runner.state, began=each.began_ms))

    def exits(self, peer: Peer, exits: m.Exits, now: float) -> None:
        """Lives ended. Each is told again until it is acknowledged."""
        for exit_ in exits.exits:
            runner = self._hosted(exit_.name, exit_.epoch, peer.session)
            if runner is None:
                self._ack(peer.session, exit_.name, exit_.epoch)
            elif not runner.ending:
                ending = Ending(exit_.ending) if exit_.ending in Ending._value2member_map_ else Ending.failed
                self._end(runner, ending, exit_.body, exit_.lived_ms / 1000, now)

    def _hosted(self, text: str, epoch: int, session: str) -> Runner | None:
        try:
            runner = self.runners.get(runners.parse_name(text))
        except BadCommand:
            return None
        return runner if runner is not None and (runner.epoch, runner.session) == (epoch, session) else None

    def _end(self, runner: Runner, ending: Ending, error: bytes, lived_s: float, now: float) -> None:
        self._agenda.add(runner.end(ending, error, lived_s, now, self._patience, self._jitter()))

    def _tell_to_stop(self, runner: Runner, now: float) -> None:
        """Tell a daemon directly: the event may have been lost, and for a restart there is none."""
        host = self.hosts.get(runner.session)
        if host is not None and now - runner.stop_sent_at >= STOP_AGAIN_S:
            runner.stop_sent_at = now
            self._slate.say(host.peer.address, m.Stop(*runner.name))

    def _ack(self, session: str, name: str, epoch: int) -> None:
        peer = self._slate.roster.sessions.get(session)
        if peer is not None:
            self._slate.say(peer.address, m.ResultAck((m.Held(name, epoch),)))

    # --- the turn -----------------------------------------------------------

    def take(self, now: float) -> list[RunnerOp]:
        """Return the operations of the next turn."""
        if self._waiting:
            self._assign(now)
        return self._agenda.take()

    def next_due(self) -> float:
        """When the next runner may be launched that waits for its time; NEVER if none does, or nobody has room."""
        if not self._waiting or not any(host.room > 0 for host in self.hosts.values()):
            return NEVER
        due = min(self.runners[name].due for name in self._waiting)
        return max(due, self._hold_until)

    def _assign(self, now: float) -> None:
        """Give runners that wait to the daemons with the most room."""
        if now < self._hold_until:
            return
        size = 0
        for name in list(self._waiting):
            runner = self.runners[name]
            if runner.due > now:
                continue
            host = max(self.hosts.values(), key=lambda each: each.room, default=None)
            if host is None or host.room <= 0 or len(self._agenda) >= MOST_IN_TURN or size > MOST_BYTES_IN_TURN:
                return
            size += runner.size
            del self._waiting[name]
            self._agenda.add(runner.give(host))

    def applied(self, done: list[RunnerDone], now: float) -> None:
        """Act on the answers to the operations of the turn under way."""
        for op, origin, answer in self._agenda.done(done):
            match op:
                case Enlist():
                    self._enlisted(op, answer, origin, now)
                case Assign():
                    self._assigned(op, answer, now)
                case Noted():
                    self._noted(op, answer, now)
                case Halt():
                    self._halted(op.name, answer.verdict, origin, now)
                case Revive():
                    self._revived(op.name, answer, origin, now)

    def _enlisted(self, op: Enlist, answer: RunnerDone, origin: Asked, now: float) -> None:
        verdict, name = answer.verdict, op.name
        if verdict in ("new", "same"):
            # Also one that is here `already`: the answer to the first try was lost.
            known = self.runners.get(name)
            if known is not None and verdict == "new":
                self._write_back(known, op)
            elif known is None and not RunnerState(answer.fields[b"state"].decode()).final:
                self._stops.forget(name)
                self._adopt(from_store(name, answer.fields), now)
            self._replies.answer(origin, int(verdict == "new"))
        else:
            self._replies.refuse(origin, why_not(verdict, name))

    def _write_back(self, runner: Runner, op: Enlist) -> None:
        """Somebody deleted the record of a runner that is here: give the new one its epoch and its life."""
        runner.target, runner.size = op.target, len(op.data)
        host = self.hosts.get(runner.session)
        if host is not None and not runner.ending:
            self._agenda.add(runner.assignment(host))
            self._agenda.add(runner.noted(state=runner.state))

    def _assigned(self, op: Assign, answer: RunnerDone, now: float) -> None:
        runner = self.runners.get(op.name)
        if runner is None or (runner.epoch, runner.session) != (op.epoch, op.session):
            return
        host = self.hosts.get(op.session)
        if answer.verdict == "stale":
            self._adopt_anew(runner, answer, now)
        elif answer.verdict == "refused":
            self._leave_host(runner)
            runner.session, runner.due = "", now + RESEND_S
            self._waiting[runner.name] = None
        elif answer.verdict not in ("launched", "stopping"):
            self._drop(runner)
        elif host is None or runner.ending:
            return
        elif answer.verdict == "stopping" or runner.unwanted:
            if answer.verdict == "stopping":
                self._stop(runner)
            self._withdraw(runner, host, now)
        else:
            runner.launched_at = now
            fields = answer.fields
            launch = m.Launch(
                str(op.name), op.epoch, runner.target, fields.get(b"data", b""), float(fields.get(b"grace_s", b"-1"))
            )
            self._slate.say(host.peer.address, m.Launches((launch,)))

    def _adopt_anew(self, runner: Runner, answer: RunnerDone, now: float) -> None:
        """The store knows of another life than we do: it is the truth."""
        self._drop(runner)
        self._adopt(from_store(runner.name, answer.fields), now)

    def _noted(self, op: Noted, answer: RunnerDone, now: float) -> None:
        """A life's end was stored: acknowledge it, and forget the runner or let it wait for the next."""
        runner = self.runners.get(op.name)
        ends = op.final or "session" in op.fields
        if runner is None or runner.epoch != op.epoch or not (runner.ending and ends):
            return
        session = runner.session
        if answer.verdict == "refused":
            if session in self.hosts:
                runner.ending = False  # its daemon tells it again
            else:
                self._drop(runner)  # nobody hosts it, and there is no record of it
            return
        if op.final or answer.verdict in ("ended", "spoilt"):
            self._drop(runner)
            if runner.revived:
                self._agenda.add(Revive(op.name))
        elif answer.verdict == "stale":
            self._adopt_anew(runner, answer, now)
        else:
            self._leave_host(runner)
            if runner.state is RunnerState.stopping:
                self._agenda.add(Halt(op.name))  # it was to stop after this was decided
            runner.state, runner.session = RunnerState.starting, ""
            runner.began, runner.told = None, None
            runner.ending = runner.restarting = False
            self._waiting[runner.name] = None
        self._ack(session, str(op.name), op.epoch)

    def _halted(self, name: Name, verdict: str, origin: Asked, now: float) -> None:
        runner = self.runners.get(name)
        changed = 0
        if verdict == "none" and runner is not None and runner.session:
            changed = self._stop(runner)  # somebody deleted its record
        elif verdict in ("refused", "none") and isinstance(origin, Origin):
            self._replies.refuse(origin, why_not(verdict, name))
            return
        if verdict == "stopping" and runner is not None:
            changed = self._stop(runner)
        elif verdict in ("stopped", "ended"):
            changed = int(verdict == "stopped")
            if runner is not None and runner.session:
                self._stop(runner)  # what is under way with it will find that it has ended
            elif runner is not None:
                self._drop(runner)
            if changed:
                self._stops.announce(name)
        self._replies.answer(origin, changed)

    def _stop(self, runner: Runner) -> int:
        """A runner is to stop: tell its daemon. Returns whether that is news."""
        if runner.state is RunnerState.stopping:
            return 0
        runner.state, runner.restarting = RunnerState.stopping, False
        self._stops.announce(runner.name)
        return 1

    def _revived(self, name: Name, answer: RunnerDone, origin: Asked, now: float) -> None:
        if answer.verdict in ("started", "active"):
            runner = self.runners.get(name)
            if runner is None:
                self._stops.forget(name)
                self._adopt(from_store(name, answer.fields), now)
            elif runner.state is RunnerState.stopping:
                self._replies.refuse(origin, stops(name))
                return
            else:
                runner.life, runner.due = Life(0, 0), now
                runner.revived = runner.ending
                if runner.session and not runner.ending:
                    runner.restarting = True
                    self._tell_to_stop(runner, now)
            self._replies.answer(origin, 1)
        else:
            self._replies.refuse(origin, why_not(answer.verdict, name))

    def _drop(self, runner: Runner) -> None:
        self._leave_host(runner)
        self._waiting.pop(runner.name, None)
        del self.runners[runner.name]

    def _leave_host(self, runner: Runner) -> None:
        host = self.hosts.get(runner.session)
        if host is not None:
            host.names.discard(runner.name)

    def describe(self, now: float) -> list[dict[str, Any]]:
        """Tell of each runner what only the router knows."""
        why = "" if any(host.room > 0 for host in self.hosts.values()) else "no runner daemon has room"
        why = why if self.hosts else "no runner daemon is there"
        return [each.describe(self.hosts.get(each.session), why, now) for each in self.runners.values()]
