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
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from exesys import runner as runners
from exesys.bus import messages as m
from exesys.bus.roster import Peer
from exesys.bus.slate import Slate
from exesys.bus.stops import Stops
from exesys.errors import BadCommand, Conflict, ExesysError, NotFound, QueueFull, StateError, Unavailable
from exesys.runner import Ending, Life, Name, Patience, RunnerState
from exesys.turn import Assign, Enlist, Halt, Loglines, Noted, Revive, RunnerDone, RunnerOp

MOST_IN_TURN = 200
MOST_BYTES_IN_TURN = 4 << 20
MOST_WAITING = 20_000  # operations for the turns to come
RESEND_S = 2.0
STOP_AGAIN_S = 1.0
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
    stop_sent_at: float = float("-inf")
    told: m.Told | None = None

    @property
    def unwanted(self) -> bool:
        """Whether its life is to end."""
        return self.restarting or self.state is RunnerState.stopping


@dataclass
class Host:
    """A runner daemon."""

    peer: Peer
    info: dict[str, Any]
    capacity: int = 0
    draining: bool = False
    names: set[Name] = field(default_factory=set)

    @property
    def room(self) -> int:
        return 0 if self.draining else self.capacity - len(self.names)


class Origin(NamedTuple):
    """Who is to be told what came of an operation."""

    session: str
    tag: int


@dataclass
class Group:
    """An answer that several operations make together."""

    origin: Origin
    left: int
    changed: int = 0


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
        self._jitter = jitter
        self._waiting: dict[Name, None] = {}  # those without a host, the one that waits longest first
        self._ops: list[tuple[RunnerOp, Group | Origin | None]] = []
        self._underway: list[tuple[RunnerOp, Group | Origin | None]] = []

    def restore(self, found: Mapping[Name, Mapping[bytes, bytes]], now: float) -> None:
        """Take in what the store remembers, and expect the sessions that may still host some."""
        for name, fields in found.items():
            self._adopt(from_store(name, fields), now)

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
            self._ops.append((self._slate.door.runner(start), origin))
        except ExesysError as error:
            self._refuse(origin, error)

    def change(self, peer: Peer, change: m.Change, now: float) -> None:
        """Stop or restart a runner (`type:uuid`), or stop all of a type."""
        origin = Origin(peer.session, change.tag)
        try:
            self._check_store(now)
            self._change(change.what, change.name, origin, now)
        except ExesysError as error:
            self._refuse(origin, error)

    def _check_store(self, now: float) -> None:
        if self._slate.late(now) or self._slate.full or len(self._ops) > MOST_WAITING:
            raise Unavailable("the store is away.", fix="Send the same again in a moment.")

    def _change(self, what: str, text: str, origin: Origin, now: float) -> None:
        if ":" in text:
            name = runners.parse_name(text)
            self._ops.append((Halt(name), origin)) if what == "stop" else self._restart(name, origin)
            return
        type_ = runners.check_type(text)
        if what != "stop":
            raise BadCommand("one runner is restarted at a time.", field="name", fix="Name it as type:uuid.")
        names = runners.of_type(list(self.runners), type_)
        if not names:
            raise NotFound(f"no runner of type {type_} runs.", fix="`bin/exesys runner list` shows those there are.")
        group = Group(origin, len(names))
        self._ops += [(Halt(name), group) for name in names]

    def halt(self, stopped: Name) -> None:
        """A stop was loaded in Redis by somebody: heed it. Without a uuid it is for all of a type."""
        runner = self.runners.get(stopped)
        if not stopped.uuid:
            self._stops.announce(stopped)
            self._ops.append((Halt(stopped), None))
            self._ops += [(Halt(name), None) for name in runners.of_type(list(self.runners), stopped.type)]
        elif runner is None:
            self._stops.announce(stopped)  # it is of none of our daemons, or about to be
        elif runner.state is not RunnerState.stopping:
            # Looked at once more: it may have been started anew since that was seen.
            self._ops.append((Halt(stopped, loaded=True), None))

    def _restart(self, name: Name, origin: Origin) -> None:
        runner = self.runners.get(name)
        if runner is not None and runner.state is RunnerState.stopping and not runner.ending:
            raise _stops(name)
        self._ops.append((Revive(name), origin))

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
        if held:
            unwanted = tuple(m.Held(ref, epoch) for ref, epoch in held.items())
            self._slate.say(host.peer.address, m.Cancel(unwanted))

    def _launch_again(self, runner: Runner, host: Host, now: float) -> None:
        """A daemon does not have what it was sent: it was lost, or is still on its way."""
        if runner.unwanted:
            self._withdraw(runner, host, now)
        else:
            runner.launched_at = NEVER
            self._ops.append((Assign(runner.name, runner.epoch, runner.session, _host_of(host.info)), None))

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
                self._ops.append((Loglines(runner.name, each.epoch, each.chunk, each.log), None))
            if runner.began is None:
                runner.began = now
                if runner.state is RunnerState.starting:
                    runner.state = RunnerState.running
                    self._note(runner, state=runner.state, began=each.began_ms)

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
        """Decide what follows the end of a life, and store it."""
        runner.ending = True
        stopping = runner.state is RunnerState.stopping
        if stopping or (ending is Ending.returned and not runner.restarting):
            self._note(runner, final=True, state=RunnerState.stopped, how=runners.HOW[ending])
            return
        if not runner.restarting:
            runner.life, wait_s = self._patience.after(runner.life, ending, lived_s)
            if wait_s is None:
                how = f"it ended too often: {runner.life.failures} failures, {runner.life.losses} losses in a row"
                self._note(runner, final=True, state=RunnerState.failed, how=how, error=error, restarts=runner.restarts)
                return
            runner.due = now + wait_s * (0.5 + self._jitter() / 2)
        runner.restarts += 1
        failures, losses = runner.life
        again: dict[str, Any] = {"restarts": runner.restarts, "failures": failures, "losses": losses}
        if error:
            again["error"] = error
        self._note(runner, state=RunnerState.starting, session="", **again)

    def _note(self, runner: Runner, final: bool = False, **fields: Any) -> None:
        self._ops.append((Noted(runner.name, runner.epoch, final, fields), None))

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
        self._assign(now)
        size = number = 0
        for op, _ in self._ops[:MOST_IN_TURN]:
            size += _size(op)
            if number and size > MOST_BYTES_IN_TURN:
                break
            number += 1
        self._underway, self._ops = self._ops[:number], self._ops[number:]
        return [op for op, _ in self._underway]

    def next_due(self) -> float:
        """When the next runner may be launched that waits for its time; NEVER if none does, or nobody has room."""
        if not any(host.room > 0 for host in self.hosts.values()):
            return NEVER
        return min((self.runners[name].due for name in self._waiting), default=NEVER)

    def _assign(self, now: float) -> None:
        """Give runners that wait to the daemons with the most room."""
        size = 0
        for name in list(self._waiting):
            runner = self.runners[name]
            if runner.due > now:
                continue
            host = max(self.hosts.values(), key=lambda each: each.room, default=None)
            if host is None or host.room <= 0 or len(self._ops) >= MOST_IN_TURN or size > MOST_BYTES_IN_TURN:
                return
            size += runner.size
            del self._waiting[name]
            runner.epoch += 1
            runner.session, runner.launched_at, runner.began, runner.told = host.peer.session, NEVER, None, None
            host.names.add(name)
            self._ops.append((Assign(name, runner.epoch, runner.session, _host_of(host.info)), None))

    def applied(self, done: list[RunnerDone], now: float) -> None:
        """Act on the answers to the operations of the turn under way."""
        underway, self._underway = self._underway, []
        for (op, origin), answer in zip(underway, done, strict=True):
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
                case Loglines():
                    pass

    def _enlisted(self, op: Enlist, answer: RunnerDone, origin: Group | Origin | None, now: float) -> None:
        verdict, name = answer.verdict, op.name
        if verdict in ("new", "same"):
            # Also one that is here `already`: the answer to the first try was lost.
            if name not in self.runners and not _state(answer).final:
                self._stops.forget(name)
                self._adopt(from_store(name, answer.fields), now)
            self._answer(origin, int(verdict == "new"))
        elif verdict == "conflict":
            fix = "Start it with the same target and data, or give it another uuid."
            self._refuse(origin, Conflict(f"the runner {name} is there with another target or data.", fix=fix))
        elif verdict == "stopped":
            fix = "Use another uuid, or delete that key."
            text = f"the stop of {name} is loaded already: run:{name} is 0 in Redis."
            self._refuse(origin, StateError(text, field="uuid", fix=fix))
        else:
            self._refuse(origin, _why_not(verdict))

    def _assigned(self, op: Assign, answer: RunnerDone, now: float) -> None:
        runner = self.runners.get(op.name)
        if runner is None or (runner.epoch, runner.session) != (op.epoch, op.session):
            return
        host = self.hosts.get(op.session)
        if answer.verdict == "stale":
            self._adopt_anew(runner, answer, now)
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
        if op.final or answer.verdict == "ended":
            self._drop(runner)
        elif answer.verdict == "stale":
            self._adopt_anew(runner, answer, now)
        else:
            self._leave_host(runner)
            if runner.state is RunnerState.stopping:
                self._ops.append((Halt(op.name), None))  # it was to stop after this was decided
            runner.state, runner.session = RunnerState.starting, ""
            runner.ending = runner.restarting = False
            self._waiting[runner.name] = None
        self._ack(session, str(op.name), op.epoch)

    def _halted(self, name: Name, verdict: str, origin: Group | Origin | None, now: float) -> None:
        runner = self.runners.get(name)
        changed = 0
        if verdict == "refused" and isinstance(origin, Origin):
            self._refuse(origin, _why_not(verdict))
            return
        if verdict == "none" and isinstance(origin, Origin):
            fix = "It was never started, or its record has expired. `bin/exesys runner list` shows those there are."
            self._refuse(origin, NotFound(f"there is no runner {name}.", fix=fix))
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
        self._answer(origin, changed)

    def _stop(self, runner: Runner) -> int:
        """A runner is to stop: tell its daemon. Returns whether that is news."""
        if runner.state is RunnerState.stopping:
            return 0
        runner.state, runner.restarting = RunnerState.stopping, False
        self._stops.announce(runner.name)
        return 1

    def _revived(self, name: Name, answer: RunnerDone, origin: Group | Origin | None, now: float) -> None:
        if answer.verdict in ("started", "active"):
            runner = self.runners.get(name)
            if runner is None:
                self._stops.forget(name)
                self._adopt(from_store(name, answer.fields), now)
            elif runner.state is RunnerState.stopping:
                self._refuse(origin, _stops(name))
                return
            else:
                runner.life, runner.due = Life(0, 0), now
                if runner.session and not runner.ending:
                    runner.restarting = True
                    self._tell_to_stop(runner, now)
            self._answer(origin, 1)
        elif answer.verdict == "none":
            fix = "It was never started, or its record has expired."
            self._refuse(origin, NotFound(f"there is no runner {name}.", fix=fix))
        else:
            self._refuse(origin, _why_not(answer.verdict))

    def _drop(self, runner: Runner) -> None:
        self._leave_host(runner)
        self._waiting.pop(runner.name, None)
        del self.runners[runner.name]

    def _leave_host(self, runner: Runner) -> None:
        host = self.hosts.get(runner.session)
        if host is not None:
            host.names.discard(runner.name)

    # --- answers --------------------------------------------------------------

    def _answer(self, to: Group | Origin | None, changed: int) -> None:
        if isinstance(to, Group):
            to.left -= 1
            to.changed += changed
            if to.left == 0:
                self._answer(to.origin, to.changed)
        elif to is not None:
            self._send(to, m.Changed(to.tag, changed, None))

    def _refuse(self, to: Group | Origin | None, error: ExesysError) -> None:
        if isinstance(to, Origin):
            self._send(to, m.Changed(to.tag, -1, list(error.problem)))

    def _send(self, to: Origin, message: m.Changed) -> None:
        peer = self._slate.roster.sessions.get(to.session)
        if peer is not None:
            self._slate.say(peer.address, message)

    # --- to be seen -------------------------------------------------------------

    def describe(self, now: float) -> list[dict[str, Any]]:
        """Tell of each runner what only the router knows."""
        return [self._describe(runner, now) for runner in self.runners.values()]

    def _describe(self, runner: Runner, now: float) -> dict[str, Any]:
        host = self.hosts.get(runner.session)
        told: dict[str, Any] = {"name": str(runner.name), "state": str(runner.state), "epoch": runner.epoch}
        if host is not None:
            told["host"] = _host_of(host.info)
        elif runner.session:
            told["waits"] = "its daemon is not heard"
        elif runner.due > now:
            told["waits"] = f"it starts again in {runner.due - now:.1f} s"
        else:
            told["waits"] = "no runner daemon has room" if self.hosts else "no runner daemon is there"
        if runner.told is not None:
            last = runner.told
            told |= {"pid": last.pid, "cpu_s": last.cpu_s, "memory_bytes": last.memory_bytes}
            if last.fraction >= 0:
                told["progress"] = {"fraction": last.fraction, "text": last.text}
        return told


def _host_of(info: Mapping[str, Any]) -> str:
    return str(info.get("host", ""))


def _size(op: RunnerOp) -> int:
    return len(op.data) if isinstance(op, Enlist) else len(op.text) if isinstance(op, Loglines) else 0


def _state(answer: RunnerDone) -> RunnerState:
    return RunnerState(answer.fields[b"state"].decode())


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


def _stops(name: Name) -> ExesysError:
    return StateError(f"the runner {name} is stopping.", fix="Restart it when it has stopped.")


def _why_not(verdict: str) -> ExesysError:
    if verdict == "full":
        return QueueFull("there are as many runners as may be.", fix="Stop some, or raise [limits] runners.")
    return ExesysError("the store could not write this runner.", fix="See router.log for what Redis says.")
