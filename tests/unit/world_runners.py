"""The world of the runners: the real router core and runner sessions, lives that are simulated, and every fault.

Beside what `world.py` has, connections are in order here, as ZeroMQ's are: a
message may be late, but overtakes none of its direction, and with a
connection that breaks all is lost that was on its way. A daemon may stand
still; then the kernel ends it, and all its lives, at the moment it was told
last (`process.DeadMan`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from unit.world import CATALOGUE, CONFIG, LONGEST_POLL_S, Actor, Faults, Link, World

from exesys import codec
from exesys.bus import messages as m
from exesys.bus import wire
from exesys.bus.board import Board
from exesys.bus.hosting import HostSession
from exesys.bus.subscription import Subscription
from exesys.config import Runner as Rules
from exesys.runner import Ending, Name, RunnerState

S = RunnerState
RULES = Rules(
    grace_s=1.0,
    kill_grace_s=0.5,
    max_failures=3,
    max_losses=10**6,
    backoff_s=0.1,
    max_backoff_s=1.0,
    healthy_s=3.0,
)
RUNNER_CONFIG = replace(CONFIG, runner=RULES)
ASK_AGAIN_S = 2.0
SWEEP_S = 1.0
TARGET = "w.double"
STOPPED = (Ending.stopped, Ending.terminated, Ending.forced)


@dataclass
class Pipe:
    """One connection of an actor, as long as it holds."""

    link: Link
    up_at: float = 0.0  # when what was sent last arrives
    down_at: float = 0.0
    kept: list[bytes] = field(default_factory=list)  # while there is no router


class RunnerWorld(World):
    """Hosts stand in the place of workers, askers in that of clients."""

    def __init__(self, seed: int, faults: Faults | None = None) -> None:
        super().__init__(seed, faults or Faults(), RUNNER_CONFIG)
        self.alive: dict[Name, tuple[Host, int]] = {}
        self.epochs: defaultdict[Name, int] = defaultdict(int)  # of the newest life of each
        self.begun: defaultdict[Name, int] = defaultdict(int)
        # The last life there was when a stop was acknowledged; no other may begin until somebody asks for one.
        self.last: dict[Name, int] = {}
        self.kinds: dict[Name, str] = {}
        self.pipes: dict[str, Pipe] = {}
        self.store.db.values[self.store.keys("functions")] = codec.pack(CATALOGUE.to_wire())
        self.router = None
        self.start_router()

    @property
    def hosts(self) -> list[Host]:
        return [actor for actor in self.workers if isinstance(actor, Host)]

    @property
    def askers(self) -> list[Asker]:
        return [actor for actor in self.clients if isinstance(actor, Asker)]

    @property
    def board(self) -> Board:
        assert self.router is not None
        return self.router.core._board  # what it remembers is compared with the store

    def add_host(self, capacity: int) -> Host:
        host = Host(self, capacity)
        self.workers.append(host)  # type: ignore[arg-type]  # an actor that is found where workers are
        return host

    def add_asker(self, role: str = "client") -> Asker:
        asker = Asker(self, role)
        self.clients.append(asker)  # type: ignore[arg-type]  # the same
        return asker

    # --- lives ----------------------------------------------------------------

    def begins(self, host: Host, name: Name, epoch: int) -> None:
        """A process begins. What must never be is found here."""
        assert name not in self.alive, f"{name}: life {epoch} begins while {self.alive[name]} lives"
        assert epoch > self.epochs[name], f"{name}: life {epoch} comes after {self.epochs[name]}"
        last = self.last.get(name, epoch)
        assert epoch <= last, f"{name}: life {epoch} begins after its stop, which found {last}"
        self.alive[name], self.epochs[name] = (host, epoch), epoch
        self.begun[name] += 1

    def ends(self, name: Name, epoch: int) -> None:
        assert self.alive.pop(name)[1] == epoch

    def stopped(self, name: Name) -> None:
        """A stop was acknowledged."""
        epoch = self.store.db.hget(self.store.keys("runner", str(name)), "epoch")
        self.last[name] = int(epoch or 0)

    def load_stop(self, name: Name) -> None:
        """Set a stop key as `redis-cli` does."""
        run = self.store.keys("run", *name)
        if run in self.store.db.values:
            self.store.db.delete(run)
            self.store.db.values[run] = b"0"

    # --- the network ------------------------------------------------------------

    def pipe(self, link: Link) -> Pipe:
        return self.pipes.setdefault(link.name, Pipe(link))

    def _wait_s(self) -> float:
        rng = self.rng
        return rng.uniform(0.2, 2.5) if self.chance(self.faults.delay) else rng.uniform(0.0001, 0.002)

    def _survives(self, link: Link) -> bool:
        """Whether this message is not lost; mostly it is with its connection."""
        if not self.chance(self.faults.lose):
            return True
        if self.rng.random() < 0.8:
            self.pipes.pop(link.name, None)
            link.name = self.hex()
        return False

    def to_router(self, link: Link, frame: bytes, tries: int = 0) -> None:
        if not self._survives(link):
            return
        pipe, name = self.pipe(link), link.name
        pipe.up_at = max(pipe.up_at, self.now + self._wait_s())

        def deliver() -> None:
            if self.pipes.get(name) is not pipe:
                return
            if self.router is None or pipe.kept:
                pipe.kept.append(frame)
            else:
                self.router.wake_at = self.now
                self.router.front.append((link.address(self.generation), frame))

        self.later(pipe.up_at - self.now, deliver)

    def start_router(self) -> None:
        super().start_router()
        for pipe in getattr(self, "pipes", {}).values():
            kept, pipe.kept = pipe.kept, []
            if self.rng.random() < 0.7 and self.router is not None:  # else it went down with the old connection
                self.router.front += [(pipe.link.address(self.generation), frame) for frame in kept]

    def to_peer(self, address: bytes, frame: bytes) -> None:
        name = address.decode().partition("@")[0]
        pipe = self.pipes.get(name)
        if pipe is None or not self._survives(pipe.link):
            return
        pipe.down_at = max(pipe.down_at, self.now + self._wait_s())

        def deliver() -> None:
            if self.pipes.get(name) is not pipe:
                return
            for actor in [*self.workers, *self.clients]:
                if actor.link.name == name:
                    actor.hear(frame, self.now)

        self.later(pipe.down_at - self.now, deliver)

    def publish(self, frame: bytes) -> None:
        for host in self.hosts:
            if not self.chance(4 * self.faults.lose):
                host.events_at = max(host.events_at, self.now + self._wait_s())
                self.later(host.events_at - self.now, lambda host=host: host.hear_event(frame))  # type: ignore[misc]  # no types for a lambda


@dataclass
class Life:
    """A process: it ends of itself at `ends_at`, and how is known before."""

    launch: m.Launch
    began_at: float
    ends_at: float
    ending: Ending
    obeys_s: float  # how long it takes to stop when it is told; infinite: it never does
    told: bool = False  # to stop


class Host(Actor):
    """`daemons/runner.py` without its sockets and its processes."""

    jobs_at = ""

    def __init__(self, world: RunnerWorld, capacity: int) -> None:
        self.world = world
        self.capacity = capacity
        info = {"host": f"h{world.rng.randint(1, 9)}", "pid": 1}
        self.session = HostSession("runner", world.hex(), info, capacity=capacity)
        self.subscription = Subscription()
        self.link = Link(world)
        self.lives: dict[str, Life] = {}
        self.chunk = 0
        self.inbox: list[bytes] = []
        self.events: list[bytes] = []
        self.events_at = 0.0
        self.frozen_until = float("-inf")
        self.dead_at = float("inf")
        self.dead = False
        self.ending_at: float | None = None
        self.wake_at = world.now

    # --- faults -------------------------------------------------------------

    def hear(self, frame: bytes, now: float) -> None:
        self.inbox.append(frame)
        self.wake_at = now

    def hear_event(self, frame: bytes) -> None:
        self.events.append(frame)
        self.wake_at = self.world.now

    def die(self) -> None:
        """End with all lives; supervisord starts another."""
        if self.dead:
            return
        self.dead = True
        world = self.world
        for name in list(self.lives):
            self._gone(name)
        world.workers.remove(self)  # type: ignore[arg-type]  # as in add_host
        world.later(world.rng.uniform(0.1, 1.5), lambda: void(world.add_host(self.capacity)))

    def stop(self, now: float) -> None:
        """TERM."""
        if self.ending_at is None and not self.dead:
            self.ending_at = now + RULES.grace_s + RULES.kill_grace_s + 3.0
            for name in self.lives:
                self._stop(name, now)
            for message in self.session.drain():
                self.link.send(message)
            self.wake_at = now

    def _put_off(self, at: float) -> None:
        """Set the dead man's switch."""
        self.dead_at = at

        def fire() -> None:
            if not self.dead and self.dead_at <= self.world.now:
                self.die()

        if at <= self.world.now:
            self.die()
        elif at != float("inf"):
            self.world.later(at - self.world.now + 1e-9, fire)

    # --- the loop -------------------------------------------------------------

    def step(self, now: float) -> None:
        if now < self.frozen_until:
            self.wake_at = self.frozen_until
            return
        session = self.session
        for name, life in list(self.lives.items()):
            if life.ends_at <= now:
                self._over(name, life, now)
        inbox, self.inbox = self.inbox, []
        for frame in inbox:
            if not self.dead:
                self._receive(wire.decode_at_peer(frame), now)
        events, self.events = self.events, []
        for frame in events:
            event = wire.decode_at_peer(frame)
            assert isinstance(event, m.Event)
            self._stop_all(self.subscription.event(event), now)
        if self.dead:
            return
        if session.lost or now >= session.give_up_at:
            self.die()
            return
        self._put_off(session.dead_by)
        if self.dead:
            return
        self._talk(now)
        if self.ending_at is not None and ((session.idle and not self.lives) or now >= self.ending_at):
            self.link.send(m.Bye(session.session, "ending"))
            self.die()
            return
        ends = [life.ends_at for life in self.lives.values()]
        wait_s = min(session.wake_in_s(now), session.give_up_at - now)
        self.wake_at = min(now + min(max(wait_s, 0.001), LONGEST_POLL_S), *ends, float("inf"))

    def _talk(self, now: float) -> None:
        world = self.world
        if self.session.silent(now):
            world.pipes.pop(self.link.name, None)
            self.link = Link(world)
            self.session.rebuilt(now)
        for name, life in self.lives.items():
            if world.rng.random() < 0.02:
                self.chunk += 1
                self.session.told(self._told(name, life, "more\n"), now)
        for message in [*self.session.outgoing(now), *self.subscription.outgoing(now)]:
            self.link.send(message)

    def _told(self, name: str, life: Life, log: str) -> m.Told:
        return m.Told(name, life.launch.epoch, 1, 1, -1.0, "", 0.0, 0, self.chunk, log)

    def _receive(self, message: m.Message, now: float) -> None:
        session = self.session
        match message:
            case m.Launches(launches):
                begun = session.launched(launches)
                self._put_off(session.dead_by)
                for launch in begun:
                    if not self.dead:
                        self._begin(launch, now)
            case m.Stop():
                self._stop_all([message], now)
            case m.Cancel():
                for name, epoch in session.cancelled(message):
                    life = self.lives.get(name)
                    if life is not None and life.launch.epoch == epoch:
                        life.ends_at, life.ending = now, Ending.forced
                        self._over(name, life, now)
            case m.ResultAck():
                session.acked(message)
            case m.HeartbeatAck():
                session.heard(message, now)
                self._stop_all(self.subscription.acknowledged(message), now)
            case m.Snapshot():
                self._stop_all(self.subscription.snapshot(message), now)
            case m.Welcome():
                session.greeted(message, now)
                self.subscription.welcomed(message)
            case m.Error():
                session.refused(message)
            case m.Bye():
                session.rebuilt(now)

    # --- lives ------------------------------------------------------------------

    def _begin(self, launch: m.Launch, now: float) -> None:
        world, rng = self.world, self.world.rng
        name = Name(*launch.name.split(":"))
        world.begins(self, name, launch.epoch)
        kind, ending, lasts_s = world.kinds[name], Ending.failed, float("inf")
        if kind == "returns":
            ending, lasts_s = Ending.returned, rng.uniform(0.0, 4.0)
        elif kind == "fails" or (kind == "flaky" and world.begun[name] % 4 == 1):
            lasts_s = rng.uniform(0.0, 1.0)
        elif world.chance(world.faults.crash_slot):
            ending, lasts_s = Ending.killed, rng.uniform(0.0, 5.0)
        obeys_s = float("inf") if rng.random() < 0.05 else rng.uniform(0.0, 0.9)
        life = self.lives[launch.name] = Life(launch, now, now + lasts_s, ending, obeys_s)
        self.chunk = 1
        if lasts_s > 0.2:  # else it ends before it has told anything
            self.session.told(self._told(launch.name, life, "--- life\n"), now)

    def _stop_all(self, stops: list[m.Stop], now: float) -> None:
        for type_, uuid in stops:
            for name in [f"{type_}:{uuid}"] if uuid else [name for name in self.lives if name.startswith(f"{type_}:")]:
                self._stop(name, now)

    def _stop(self, name: str, now: float) -> None:
        life = self.lives.get(name)
        if life is None or life.told:
            return
        life.told = True
        forced_s = RULES.grace_s + RULES.kill_grace_s
        ends_at = now + min(life.obeys_s, forced_s)
        if ends_at < life.ends_at:
            life.ends_at = ends_at
            life.ending = Ending.stopped if life.obeys_s < forced_s else Ending.forced
        self.wake_at = min(self.wake_at, life.ends_at)

    def _over(self, name: str, life: Life, now: float) -> None:
        self._gone(name)
        ending = life.ending
        if self.ending_at is not None and ending in STOPPED:
            ending = Ending.handed_back
        body = codec.pack({"type": "ValueError", "message": "no", "traceback": ""}) if ending is Ending.failed else b""
        self.session.ended(m.Exit(name, life.launch.epoch, ending, body, int((now - life.began_at) * 1000)))

    def _gone(self, name: str) -> None:
        life = self.lives.pop(name)
        self.world.ends(Name(*name.split(":")), life.launch.epoch)


class Ask(NamedTuple):
    message: m.Message
    sent_at: float
    then: Callable[[m.Changed], None]


class Asker(Actor):
    """A client that asks until it is answered; as a controller it looks at the stop keys, too."""

    jobs_at = ""

    def __init__(self, world: RunnerWorld, role: str) -> None:
        self.world = world
        self.role = role
        self.session = world.hex()
        self.link = Link(world)
        self.inbox: list[bytes] = []
        self.asks: dict[int, Ask] = {}
        self.wake_at = world.now
        self._tag = 0
        self._epoch = 0
        self._hello_at = self._beat_at = self._heard_at = float("-inf")

    def hear(self, frame: bytes, now: float) -> None:
        self.inbox.append(frame)
        self.wake_at = now

    def ask(self, message: Callable[[int], m.Message], then: Callable[[m.Changed], None]) -> None:
        self._tag += 1
        self.asks[self._tag] = Ask(message(self._tag), float("-inf"), then)
        self.wake_at = self.world.now

    def step(self, now: float) -> None:
        inbox, self.inbox = self.inbox, []
        for frame in inbox:
            self._receive(wire.decode_at_peer(frame), now)
        if self._epoch and now - self._heard_at > 5.0:
            self.world.pipes.pop(self.link.name, None)
            self.link, self._epoch = Link(self.world), 0
        if not self._epoch and now - self._hello_at >= 1.0:
            self._hello_at = now
            self.link.send(m.Hello(m.VERSION, self.role, self.session, "", {}))
        elif self._epoch:
            self._speak(now)
        self.wake_at = now + 0.25

    def _speak(self, now: float) -> None:
        if now - self._beat_at >= SWEEP_S:
            self._beat_at = now
            self.link.send(m.Heartbeat(self.session, self._epoch, 0, 0, (), ()))
            if self.role == "controller":
                self._sweep()
        for tag, (message, sent_at, then) in self.asks.items():
            if now - sent_at >= ASK_AGAIN_S:
                self.asks[tag] = Ask(message, now, then)
                self.link.send(message)

    def _sweep(self) -> None:
        store = self.world.store
        for text in sorted(store.db.values.get(store.keys("runners"), ())):
            name = Name(*text.split(":"))
            if store.db.values.get(store.keys("run", *name)) == b"0":
                self.link.send(m.Stop(*name))

    def _receive(self, message: m.Message, now: float) -> None:
        self._heard_at = now
        match message:
            case m.Welcome():
                self._epoch = message.epoch
                self.asks = {tag: Ask(each.message, float("-inf"), each.then) for tag, each in self.asks.items()}
            case m.Error(code="unknown_session"):
                self._epoch, self._hello_at = 0, float("-inf")
            case m.Bye() | m.Error():
                self._epoch, self.session = 0, self.world.hex()
            case m.Changed():
                ask = self.asks.get(message.tag)
                if ask is None:
                    return
                if message.problem and message.problem[0] == "unavailable":
                    self.asks[message.tag] = Ask(ask.message, now, ask.then)
                    return
                del self.asks[message.tag]
                ask.then(message)


class Story:
    """What is done with one runner, each step after the one before was answered; and what is to come of it."""

    def __init__(self, world: RunnerWorld, name: Name, kind: str, steps: int) -> None:
        self.world = world
        self.name = name
        self.left = steps
        # Always the same: what it sends a second time comes before what it sends later.
        self.asker = world.rng.choice([each for each in world.askers if each.role == "client"])
        self.stopped: bool | None = False  # None: it may be either
        self.idle = False
        world.kinds[name] = kind
        world.later(world.rng.uniform(0.1, 3.0), lambda: self._ask("start"))

    def _ask(self, what: str) -> None:
        world, name = self.world, self.name
        if what == "load":
            self._load()
            return
        if what == "restart":
            world.last.pop(name, None)
        data = codec.pack({"n": 1})
        start = m.Start(0, *name, TARGET, data, -1.0, "")
        self.asker.ask(
            lambda tag: start._replace(tag=tag) if what == "start" else m.Change(tag, what, str(name)),
            lambda told: self._answered(what, told),
        )

    def _load(self) -> None:
        """Load the stop with redis-cli. It is as good as acknowledged when the key is there."""
        if self._state in (b"starting", b"running") and self.world.faults.forget_store == 0:
            self.world.load_stop(self.name)
            self.stopped = True
            self._wait_for_end()
        else:
            self._next()

    def _wait_for_end(self) -> None:
        if self._state in (b"stopped", b"failed"):
            self._next()
        else:
            self.world.later(0.5, self._wait_for_end)

    @property
    def _state(self) -> bytes | None:
        return self.world.store.db.hget(self.world.store.keys("runner", str(self.name)), "state")

    def _answered(self, what: str, told: m.Changed) -> None:
        code = told.problem[0] if told.problem else ""
        if what == "stop":
            assert not code, told
            self.stopped = True
            self.world.stopped(self.name)
        elif what == "restart":
            assert code in ("", "bad_state"), told
            # Refused, it may have been sent a second time and be taken then.
            self.stopped = None if code else False
        else:
            assert not code, told
        self._next()

    def _next(self) -> None:
        rng = self.world.rng
        if self.left <= 0:
            self.idle = True
            return
        self.left -= 1
        what = rng.choice(("start", "stop", "restart", "restart", "load"))
        wait_s = rng.choice((0.0, rng.uniform(0.0, 0.1), rng.uniform(0.5, 5.0)))
        if what == "load":
            wait_s += 5.0  # that comes by another way, and what was sent before may have been sent twice
        self.world.later(wait_s, lambda: self._ask(what))

    @property
    def told(self) -> bool:
        """Whether nothing more is done with it."""
        return self.idle

    def check(self) -> None:
        """Look whether it is where it should be."""
        world, name = self.world, self.name
        kind, store = world.kinds[name], world.store
        fields = store.db.values[store.keys("runner", str(name))]
        state = fields["state"].decode()
        if self.stopped is None:
            expected = {S.running, S.stopped, S.failed}
        elif self.stopped:
            expected = {S.stopped} if kind == "forever" else {S.stopped, S.failed}
        elif kind == "returns":
            expected = {S.stopped}
        else:
            expected = {S.failed} if kind == "fails" else {S.running}
        assert state in expected, f"{name}, {kind}, is {fields}, and that is no {expected}"
        assert (name in world.alive) == (state == S.running), (name, fields, world.alive.get(name))
        if state == S.running:
            host, epoch = world.alive[name]
            assert (fields["epoch"], fields["session"]) == (b"%d" % epoch, host.session.session.encode())


def check_rest(world: RunnerWorld) -> None:
    """The router remembers what the store has, the daemons have what they should, and nothing is left over."""
    board, store = world.board, world.store
    found = store.runners()
    assert board.runners.keys() == found.keys()
    for name, runner in board.runners.items():
        fields = found[name]
        mine = (str(runner.state), runner.epoch, runner.session)
        assert mine == (fields[b"state"].decode(), int(fields[b"epoch"]), fields.get(b"session", b"").decode())
        assert (runner.ending, runner.restarting) == (False, False)
    assert not board._waiting  # nothing leaks
    assert len(board._agenda) == 0  # the same
    assert board.hosts.keys() == {host.session.session for host in world.hosts}
    for host in world.hosts:
        names = {str(name) for name in board.hosts[host.session.session].names}
        assert host.session.lives.keys() == host.lives.keys() == names
        assert not host.session._untold  # the same
    assert not [asker.asks for asker in world.askers if asker.asks]


def void(value: Any) -> None:
    """Make a call an event."""
