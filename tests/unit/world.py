"""A whole system without sockets, clock or Redis: time is a number, and chance has a seed.

The real router core, worker sessions and client desks talk over a network
that may lose, repeat and delay any message, on a store that may break at any
request. Routers and workers die and are replaced. Each actor sleeps as long
as it says itself (`wake_in_s`), so a forgotten wake-up shows.
"""

from __future__ import annotations

import copy
import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from store.fake import FakeStore
from store.invariants import check_places
from unit.world_flows import Plan, place_of, work

from exesys import codec
from exesys.bus import broker, effects, wire
from exesys.bus import messages as m
from exesys.bus.handle import Handle
from exesys.bus.inflight import Desk
from exesys.bus.session import WorkerSession
from exesys.catalogue import Catalogue, FunctionInfo
from exesys.command import parts_of
from exesys.config import Config, Limits
from exesys.errors import JobError
from exesys.store.underway import MOST_UNDERWAY
from exesys.turn import Answers, Turn

EPOCH_MS = 1_700_000_000_000
LONGEST_POLL_S = 1.0  # as in daemons/loop.py
RECONNECT_S = 0.25
CONFIG = Config(
    root=Path("/nowhere"),
    home=Path("/nowhere/var"),
    limits=Limits(max_crashes=10**6, max_losses=10**6),
)
CATALOGUE = Catalogue(
    {
        f"w.{name}": FunctionInfo(name, "w", "", "(data)", {}, "w.py")
        for name in ("double", "flaky", "broken", "join", "grow")
    },
    {},
)


@dataclass(frozen=True)
class Faults:
    """How likely faults are: by message, by turn, by job, or per second."""

    lose: float = 0.0
    repeat: float = 0.0
    delay: float = 0.0
    break_store: float = 0.0  # by turn: the connection breaks before, within or after it
    forget_store: float = 0.0  # of these: Redis has also lost its last turns
    crash_slot: float = 0.0  # by job
    kill_worker: float = 0.0  # per second
    stop_worker: float = 0.0  # per second, TERM
    freeze_worker: float = 0.0  # per second, for a while around the lease
    kill_router: float = 0.0  # per second
    stutter_store: float = 0.0  # of the turns that Redis lost: the first was kept, and is sent again


class Deed(NamedTuple):
    """A command that was sent, the handle it was sent for, and what is to come of it."""

    handle: Handle
    value: Any  # None: it is to fail


class World:
    """Runs the actors in the order of their times."""

    def __init__(self, seed: int, faults: Faults = Faults(), config: Config = CONFIG) -> None:  # frozen
        self.rng = random.Random(seed)
        self.faults = faults
        self.config = config
        self.now = 1000.0
        self.store = FakeStore(config.limits)
        self.workers: list[Worker] = []
        self.clients: list[Client] = []
        self.router: Router | None = None
        self.generation = 0
        self.deeds: list[Deed] = []
        self.plans: dict[str, Plan] = {}
        self.runs: Counter[str] = Counter()  # ref -> how often its function was begun
        self.credit: dict[str, int] = {}  # session -> the most it ever grants
        self.beside = 0  # turns that were sent while another was under way
        self.most_over: defaultdict[str, int] = defaultdict(int)  # session -> jobs held beyond its credit, at most
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.start_router()

    # --- building ---------------------------------------------------------

    def hex(self) -> str:
        return f"{self.rng.getrandbits(64):016x}"

    def start_router(self) -> None:
        if self.router is None:
            self.generation += 1
            self.router = Router(self)

    def add_worker(self, slots: int = 2, prefetch: int = 0, queues: tuple[str, ...] = ("default",)) -> Worker:
        worker = Worker(self, slots, prefetch, queues)
        self.workers.append(worker)
        return worker

    def add_client(self, window: int = 1000) -> Client:
        client = Client(self, window)
        self.clients.append(client)
        return client

    # --- time -------------------------------------------------------------

    def later(self, wait_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + wait_s, next(self._numbers), event))

    def run(self, for_s: float, until: Callable[[], bool] = lambda: False) -> bool:
        """Let time pass, at most so long; tell whether `until` came true."""
        end = self.now + for_s
        while not until():
            actors: list[Actor] = [*self.workers, *self.clients, *([self.router] if self.router else [])]
            actor = min(actors, key=lambda each: each.wake_at)
            event_at = self._events[0][0] if self._events else float("inf")
            at = min(event_at, actor.wake_at)
            if at > end:
                self.now = end
                return until()
            self.now = max(self.now, at)
            if event_at <= actor.wake_at:
                heapq.heappop(self._events)[2]()
            else:
                actor.step(self.now)
        return True

    def chance(self, likely: float) -> bool:
        return likely > 0 and self.rng.random() < likely

    def settled(self) -> bool:
        flows = (handle for plan in self.plans.values() for handle in plan.handles)
        return all(deed.handle.done() for deed in self.deeds) and all(handle.done() for handle in flows)

    # --- faults -----------------------------------------------------------

    def trouble(self, for_s: float) -> None:
        """Let faults happen for a while, then none any more."""
        end = self.now + for_s

        def once() -> None:
            if self.now >= end:
                self.faults = Faults()
                return
            self._mishap()
            self.later(0.1, once)

        once()
        self.run(for_s + 0.2)
        assert self.faults == Faults()

    def _mishap(self) -> None:
        faults, tenth = self.faults, 0.1
        if self.chance(faults.kill_router * tenth) and self.router is not None:
            self.router = None
            self.later(self.rng.uniform(0.05, 2.0), self.start_router)
        for worker in list(self.workers):
            if self.chance(faults.kill_worker * tenth):
                worker.die()
            elif self.chance(faults.stop_worker * tenth):
                worker.stop(self.now)
            elif self.chance(faults.freeze_worker * tenth):
                worker.frozen_until = self.now + self.rng.choice((1.0, 4.5, 7.0))

    # --- the network ------------------------------------------------------

    def carry(self, deliver: Callable[[], None]) -> None:
        """Bring a message to its end: perhaps late, perhaps twice, perhaps not."""
        faults = self.faults
        if self.chance(faults.lose):
            return
        for _ in range(2 if self.chance(faults.repeat) else 1):
            wait_s = self.rng.uniform(0.2, 2.5) if self.chance(faults.delay) else self.rng.uniform(0.0001, 0.002)
            self.later(wait_s, deliver)

    def to_router(self, link: Link, frame: bytes, tries: int = 0) -> None:
        def deliver() -> None:
            if self.router is not None:
                self.router.wake_at = self.now
                self.router.front.append((link.address(self.generation), frame))
            elif tries < 10 and self.rng.random() < 0.7:
                self.later(0.3, lambda: self.to_router(link, frame, tries + 1))  # zmq keeps it for the next router

        self.carry(deliver)

    def result_to(self, endpoint: str, frame: bytes) -> None:
        def deliver() -> None:
            if self.router is not None and self.router.core.endpoints["results"] == endpoint:
                self.router.wake_at = self.now
                self.router.results.append(frame)

        self.carry(deliver)

    def to_peer(self, address: bytes, frame: bytes) -> None:
        def deliver() -> None:
            actors: list[Worker | Client] = [*self.workers, *self.clients]
            for actor in actors:
                if actor.link.address(self.generation) == address:
                    actor.hear(frame, self.now)

        self.carry(deliver)

    def publish(self, frame: bytes) -> None:
        """Bring an event to whoever subscribed: here nobody."""

    def job_to(self, endpoint: str, frame: bytes) -> None:
        def deliver() -> None:
            for worker in self.workers:
                if worker.jobs_at == endpoint:
                    worker.hear(frame, self.now)

        self.carry(deliver)


class Link:
    """One connection to the router's front; each router gives it another address."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.name = world.hex()

    def address(self, generation: int) -> bytes:
        return f"{self.name}@{generation}".encode()

    def send(self, message: m.Message) -> None:
        self.world.to_router(self, wire.encode(message))


class Actor:
    wake_at: float = 0.0
    link: Link

    def step(self, now: float) -> None:
        raise NotImplementedError


class Router(Actor):
    """`daemons/router.py` without its sockets and its connection."""

    def __init__(self, world: World) -> None:
        self.world = world
        epoch, sessions, known = world.store.boot()
        catalogue = Catalogue.from_wire(codec.unpack(known)) if known else Catalogue.merge([])
        self.core = broker.Broker(world.config, epoch, sessions, catalogue, world.now, world.rng.random)
        self.core.restore(world.store.runners(), world.now)
        self.core.endpoints = {"results": f"results-{world.generation}", "events": "events"}
        self.front: list[tuple[bytes, bytes]] = []
        self.results: list[bytes] = []
        self.pushes: dict[str, str] = {}
        self.store = Connection(world)
        self.retry_at: float | None = None
        self.wake_at = world.now
        self.steps = 0

    def step(self, now: float) -> None:
        self.steps += 1
        front, self.front = self.front, []
        for address, frame in front:
            self.core.receive(address, wire.decode_at_router(frame), now)
        results, self.results = self.results, []
        for frame in results:
            message = wire.decode_at_router(frame)
            assert isinstance(message, m.Result)
            self.core.results(message)
        self._collect(now)
        self.core.tick(now)
        if self.store.has_room and self.retry_at is None:
            turn = self.core.plan(self.now_ms, self.world.now)
            if turn is not None:
                self.store.begin(turn)
        self._carry_out()
        wait_s = self.core.wake_in_s(now, self.now_ms) if self.retry_at is None else self.retry_at - now
        self.wake_at = now + min(max(wait_s, 0.001), LONGEST_POLL_S)
        if self.store.busy:
            self.wake_at = min(self.wake_at, max(self.store.ready_at, now + 0.0001))

    @property
    def now_ms(self) -> int:
        return EPOCH_MS + int(self.world.now * 1000)

    def _collect(self, now: float) -> None:
        if self.retry_at is not None:
            if now >= self.retry_at:
                self.retry_at = None
                self.store.again()
                self.core.store_back()
            return
        if not self.store.busy:
            return
        if now < self.store.ready_at:
            self.core.store_slow(self.store.began_at)
        elif self.store.broken:
            self.core.store_slow(float("-inf"))
            self.retry_at = now + RECONNECT_S
        else:
            self.core.apply(*self.store.collect(), now)

    def _carry_out(self) -> None:
        due = self.core.effects()
        while due:
            for effect in due:
                match effect:
                    case effects.Send(address, message):
                        self.world.to_peer(address, wire.encode(message))
                    case effects.Dispatch(session, message):
                        if session in self.pushes:
                            self.world.job_to(self.pushes[session], wire.encode(message))
                    case effects.OpenWorker(session):
                        endpoint = self.pushes.setdefault(session, f"jobs-{self.world.generation}-{session}")
                        self.core.worker_opened(session, endpoint)
                    case effects.CloseWorker(session):
                        self.pushes.pop(session, None)
                    case effects.Publish(_, message):
                        self.world.publish(wire.encode(message))
            due = self.core.effects()


class Flight:
    """A turn on its way to the store, and its answers on their way back."""

    def __init__(self, turn: Turn) -> None:
        self.turn = turn
        self.began_at = self.ready_at = 0.0
        self.lost = self.claims_lost = False  # lost: no answer comes
        self.answers = Answers()
        self.before: Any = None  # what the store had before it


class Connection:
    """`store/redis.py` over the fake store: has two turns under way, breaks, repeats and heals."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.flights: list[Flight] = []
        self._broken = self._forgets = False
        self._journal: list[tuple[Any, Turn]] = []  # the store before each recent turn, and the turn's writes

    @property
    def busy(self) -> bool:
        return bool(self.flights)

    @property
    def has_room(self) -> bool:
        return len(self.flights) < MOST_UNDERWAY

    @property
    def broken(self) -> bool:
        """Whether the oldest turn has no answer, and gets none."""
        return bool(self.flights) and self.flights[0].lost

    @property
    def began_at(self) -> float:
        return self.flights[0].began_at

    @property
    def ready_at(self) -> float:
        return self.flights[0].ready_at

    def begin(self, turn: Turn) -> None:
        self.world.beside += bool(self.flights)
        self.flights.append(Flight(turn))
        self._send(self.flights[-1])

    def again(self) -> None:
        """Send the turns under way, if there are any, without their claims."""
        self._broken = False
        if self._forgets:
            self._forget()
        for flight in self.flights:
            flight.claims_lost = flight.claims_lost or bool(flight.turn.claims)
            flight.turn.claims.clear()
            self._send(flight)

    def collect(self) -> tuple[Turn, Answers]:
        flight = self.flights.pop(0)
        self._journal.append((flight.before, replace(copy.deepcopy(flight.turn), claims=[])))
        self._journal = self._journal[-5:]
        flight.answers.claims_lost = flight.claims_lost
        return flight.turn, flight.answers

    def _send(self, flight: Flight) -> None:
        world, store, rng = self.world, self.world.store, self.world.rng
        flight.began_at = world.now
        wait_s = rng.uniform(0.5, 3.0) if world.chance(world.faults.delay) else 0.0005
        flight.ready_at = max([world.now + wait_s, *(each.ready_at for each in self.flights[:1])])
        flight.before = (copy.deepcopy(store.db), store.finished.copy())
        scripts = 0 if self._broken else None
        if not self._broken and world.chance(world.faults.break_store):
            self._broken, scripts = True, rng.choice((0, rng.randint(1, 9), None))
            self._forgets = world.chance(world.faults.forget_store)
            if rng.random() < 0.5:
                self.flights[0].lost = True  # though the store has done it
        flight.lost = self._broken
        flight.answers = store.run(copy.deepcopy(flight.turn), scripts)
        for claim in flight.turn.claims:
            over = len(store.held(claim.session)) - world.credit[claim.session]
            world.most_over[claim.session] = max(world.most_over[claim.session], over)

    def _forget(self) -> None:
        """The store has lost its last turns: those that were answered are sent again."""
        world, store, rng = self.world, self.world.store, self.world.rng
        self._forgets = False
        if not self._journal:
            return
        back = rng.randint(1, len(self._journal))
        store.db, store.finished = self._journal[-back][0]
        if world.chance(world.faults.stutter_store):
            store.run(copy.deepcopy(self._journal[-back][1]))  # it was kept, but not that it was
        for _, turn in self._journal[-back:]:
            store.run(copy.deepcopy(turn))
        self._journal = []


class Worker(Actor):
    """`daemons/worker.py` without processes: a slot is a time at which a job ends."""

    def __init__(self, world: World, slots: int, prefetch: int, queues: tuple[str, ...]) -> None:
        self.world = world
        self.shape = (slots, prefetch, queues)
        info = {"queues": list(queues), "catalogue": CATALOGUE.to_wire()}
        self.session = WorkerSession(world.hex(), info, slots, prefetch)
        world.credit[self.session.session] = slots * (1 + prefetch)
        self.link = Link(world)
        self.jobs_at = self.results_at = ""
        self.running: dict[tuple[str, int], tuple[m.Job, float, float]] = {}  # -> job, began, ends
        self.inbox: list[bytes] = []
        self.frozen_until = float("-inf")
        self.ending_at: float | None = None
        self.wake_at = world.now

    def hear(self, frame: bytes, now: float) -> None:
        self.inbox.append(frame)
        self.wake_at = now

    def die(self) -> None:
        """Vanish without a word; supervisord starts another."""
        self.world.workers.remove(self)
        self.world.later(self.world.rng.uniform(0.1, 1.5), lambda: void(self.world.add_worker(*self.shape)))

    def stop(self, now: float) -> None:
        """TERM."""
        if self.ending_at is None:
            self.ending_at = now + 3.0
            for message in self.session.drain():
                self.link.send(message)
            self.wake_at = now

    def step(self, now: float) -> None:
        if now < self.frozen_until:
            self.wake_at = self.frozen_until
            return
        session = self.session
        inbox, self.inbox = self.inbox, []
        for frame in inbox:
            self._heed(wire.decode_at_peer(frame), now)
        if session.lost:
            self.die()
            return
        self._work(now)
        if session.silent(now):
            self.link = Link(self.world)
            self.jobs_at = self.results_at = ""
            session.rebuilt(now)
        for message in session.beats(now):
            self.link.send(message)
        result = session.reports(now)
        if result is not None and self.results_at:
            self.world.result_to(self.results_at, wire.encode(result))
        if self.ending_at is not None and (session.idle or now > self.ending_at):
            self.link.send(m.Bye(session.session, "ending"))
            self.die()
        ends = [ends_at for _, _, ends_at in self.running.values()]
        self.wake_at = min(now + min(max(session.wake_in_s(now), 0.001), LONGEST_POLL_S), *ends, float("inf"))

    def _heed(self, message: m.Message, now: float) -> None:
        session = self.session
        match message:
            case m.Jobs(_, jobs):
                session.given(jobs)
            case m.ResultAck():
                session.acked(message)
            case m.HeartbeatAck():
                session.heard(message, now)
            case m.Cancel():
                # A slot needs a moment to be rid of it.
                for attempt in session.cancelled(message):
                    job, began_at, ends_at = self.running[attempt]
                    rid_at = now + self.world.rng.uniform(0.001, 1.0)
                    self.running[attempt] = (job, began_at, min(ends_at, rid_at))
            case m.Welcome():
                session.greeted(message, now)
                self.jobs_at, self.results_at = message.endpoints["jobs"], message.endpoints["results"]
            case m.Error():
                session.refused(message)
            case m.Bye():
                session.rebuilt(now)

    def _work(self, now: float) -> None:
        world, session = self.world, self.session
        for attempt, (job, began_at, ends_at) in list(self.running.items()):
            if ends_at <= now:
                del self.running[attempt]
                outcome, body = self._outcome(job)
                added = world.plans[parts_of(job.ref)[1]].added() if job.cmd == "grow" and not outcome else ()
                session.ended(m.Report(*attempt, outcome, body, "", 1, 2, added), (ends_at - began_at) * 1000)
        while session.queue and len(self.running) < session.slots and self.ending_at is None:
            job = session.begin()
            world.runs[job.ref] += 1
            long = world.rng.random() < 0.05
            takes_s = world.rng.uniform(0.5, 3.0) if long else world.rng.uniform(0.0005, 0.02)
            self.running[job.ref, job.attempt] = (job, now, now + takes_s)

    def _outcome(self, job: m.Job) -> tuple[m.Outcome, bytes]:
        if self.world.chance(self.world.faults.crash_slot):
            return m.Outcome.crashed, codec.pack({"type": "Crashed", "message": "killed by SIGKILL"})
        data = codec.unpack(job.data)
        if job.cmd in ("join", "grow"):
            plan = self.world.plans[parts_of(job.ref)[1]]
            if self.world.runs[job.ref] <= plan.fails.get(place_of(plan, job.ref), 0):
                return m.Outcome.failed, codec.pack({"type": "ValueError", "message": "no"})
            return m.Outcome.done, codec.pack({"EOJ": work(job.ref, data)})
        if job.cmd == "broken" or (job.cmd == "flaky" and self.world.runs[job.ref] <= data["fails"]):
            return m.Outcome.failed, codec.pack({"type": "ValueError", "message": "no"})
        return m.Outcome.done, codec.pack({"EOJ": data["n"] * 2})


class Client(Actor):
    """`bus/client.py` without its thread."""

    def __init__(self, world: World, window: int) -> None:
        self.world = world
        self.desk = Desk(world.hex(), window)
        self.link = Link(world)
        self.inbox: list[bytes] = []
        self.wake_at = world.now

    def hear(self, frame: bytes, now: float) -> None:
        self.inbox.append(frame)
        self.wake_at = now

    def submit(
        self, cmd: str = "double", data: Any = None, job_id: str = "", notify: bool = True, **options: Any
    ) -> Handle:
        """Send a command; what is to come of it is remembered."""
        world = self.world
        data = {"n": len(world.deeds), **(data or {})}
        handle = Handle(job_id or world.hex(), "client", "end_job", cmd, self.desk.lock)
        item = m.Item(0, "client", "end_job", cmd, codec.pack(data), handle.job_id, options, notify)
        with self.desk.lock:
            self.desk.put(handle, item, notify, patient=True)
        world.deeds.append(Deed(handle, None if cmd == "broken" else data["n"] * 2))
        self.wake_at = world.now
        return handle

    def workflow(self, plan: Plan) -> None:
        """Send a workflow: whole, or step by step in any order, while some of it runs already."""
        world = self.world
        items = plan.items()
        plan.handles = [Handle(plan.job_id, item.from_, ",".join(item.to), item.cmd, self.desk.lock) for item in items]
        world.plans[plan.job_id] = plan
        pairs = list(zip(plan.handles, items, strict=True))
        if plan.by_step:
            at_once = world.rng.random() < 0.3
            for handle, item in world.rng.sample(pairs, len(pairs)):
                wait_s = 0.0 if at_once else world.rng.uniform(0.0, 3.0)
                world.later(wait_s, lambda handle=handle, item=item: self._put(handle, item))  # type: ignore[misc]  # no types for a lambda
            return
        with self.desk.lock:
            self.desk.put_workflow(plan.handles, items, patient=True)
        self.wake_at = world.now

    def _put(self, handle: Handle, item: m.Item) -> None:
        with self.desk.lock:
            self.desk.put(handle, item, True, patient=True)
        self.wake_at = self.world.now

    def change(self, what: str, plan: Plan) -> None:
        """Cancel or retry a job; nobody waits for the answer."""
        with self.desk.lock:
            self.desk.ask(lambda tag: m.Change(tag, what, plan.job_id), void)
        self.wake_at = self.world.now

    def follow(self, deed: Deed) -> Handle:
        """Ask for the end of a command that was sent, by anyone."""
        handle = Handle(deed.handle.job_id, "client", "end_job", "", self.desk.lock)
        with self.desk.lock:
            self.desk.put(handle, None, True, patient=True)
        self.world.deeds.append(Deed(handle, deed.value))
        self.wake_at = self.world.now
        return handle

    def step(self, now: float) -> None:
        desk = self.desk
        inbox, self.inbox = self.inbox, []
        with desk.lock:
            calls = [call for frame in inbox for call in desk.receive(wire.decode_at_peer(frame), now)]
            if desk.silent(now):
                self.link = Link(self.world)
                desk.rebuilt()
            outgoing = desk.outgoing(now)
            self.wake_at = now + max(desk.wake_in_s(now), 0.0005)
        assert not calls
        for message in outgoing:
            self.link.send(message)


def void(value: object) -> None:
    """Make a call an event."""


def check_end(world: World) -> None:
    """Every handle has the right end, every accepted command exactly one, and nothing is left over."""
    undone = [deed.handle for deed in world.deeds if not deed.handle.done()]
    assert not undone, f"{len(undone)} of {len(world.deeds)} never ended: {undone[:3]}"
    for deed in world.deeds:
        error = deed.handle.exception()
        if deed.value is None:
            assert isinstance(error, JobError), f"{deed} ended with {error!r}"
            assert error.type == "ValueError", f"{deed} ended with {error!r}"
        else:
            assert error is None, f"{deed} ended with {error!r}"
            assert deed.handle.result(0) == deed.value
    for plan in world.plans.values():
        plan.check(world.store)
    refs = {f"client:{deed.handle.job_id}" for deed in world.deeds}
    refs |= {ref for plan in world.plans.values() for ref in plan.refs if world.store.state_of(ref) is not None}
    assert world.store.finished == dict.fromkeys(refs, 1)
    check_places(world.store.dump())
    over = {session: jobs for session, jobs in world.most_over.items() if jobs > 0}
    assert not over, f"workers were given more than they can hold: {over}"
    left = [key for key in world.store.dump() if ":ready:" in key or ":held:" in key or key.endswith(":delayed")]
    assert not left, f"the store still has {left}"
