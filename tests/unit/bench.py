"""The router's core over the fake store, moved by hand: one message, one turn, one second at a time."""

from __future__ import annotations

import copy
from collections import defaultdict
from typing import Any

from store.fake import FakeStore
from unit.world import CATALOGUE, CONFIG, EPOCH_MS

from exesys import codec
from exesys.bus import effects, wire
from exesys.bus import messages as m
from exesys.bus.broker import Broker
from exesys.catalogue import Catalogue
from exesys.config import Config
from exesys.turn import Answers, Turn

HELLO = {"queues": ["default"], "catalogue": CATALOGUE.to_wire()}


def item(tag: int = 1, job: str = "j", cmd: str = "double", notify: bool = True, n: int = 21, **options: Any) -> m.Item:
    return m.Item(tag, "a", "end_job", cmd, codec.pack({"n": n}), job, options, notify)


def result(job: m.Job, session: str, outcome: m.Outcome = m.Outcome.done, body: bytes = b"\x81\xa3EOJ*") -> m.Result:
    return m.Result(session, (m.Report(job.ref, job.attempt, outcome, body, "", 1, 2),))


class Bench:
    """A router; whatever it wants done is noted by whom it is for, and kept until it is read."""

    def __init__(self, config: Config = CONFIG, store: FakeStore | None = None, known: Catalogue = CATALOGUE) -> None:
        self.config = config
        self.now = 100.0
        self.store = store or FakeStore(config.limits)
        self._peers = 0
        self.restart(known)

    def restart(self, known: Catalogue = CATALOGUE, look: bool = True) -> None:
        """Start a new router on the same store, and let it `look` at once for steps that nothing feeds."""
        epoch, sessions, _ = self.store.boot()
        self.broker = Broker(self.config, epoch, sessions, known, self.now, lambda: 0.0)
        self.broker.restore(self.store.runners(), self.now)
        self.broker.endpoints = {"results": "r", "events": "e"}
        self.broker.tick(self.now)
        self._said: defaultdict[bytes, list[m.Message]] = defaultdict(list)
        self._dealt: defaultdict[str, list[m.Job]] = defaultdict(list)
        self.published: list[tuple[str, m.Event]] = []
        self.closed: list[str] = []
        if look:
            self.turn()

    # --- in ---------------------------------------------------------------

    @property
    def now_ms(self) -> int:
        return EPOCH_MS + int(self.now * 1000)

    def tell(self, address: bytes, *messages: m.Message) -> None:
        """Send messages of a peer to the front socket, as bytes."""
        for message in messages:
            self.broker.receive(address, wire.decode_at_router(wire.encode(message)), self.now)
        self._note()

    def results(self, *messages: m.Result) -> None:
        for message in messages:
            self.broker.results(message)
        self._note()

    def client(self, role: str = "client") -> bytes:
        """Connect a peer; returns its address, which ends in its session."""
        self._peers += 1
        session = f"{self._peers:016x}"
        self.tell(session.encode(), m.Hello(m.VERSION, role, session, "", {}))
        return session.encode()

    def worker(self, slots: int = 1, capacity: int | None = None, **info: Any) -> str:
        """Connect a worker and let it have its first heartbeat; returns its session, which is its address too."""
        self._peers += 1
        session = f"{self._peers:016x}"
        self.tell(session.encode(), m.Hello(m.VERSION, "worker", session, "", {**HELLO, **info}))
        self.turn()
        self.beat(session, slots, capacity)
        return session

    def beat(self, session: str, slots: int = 1, capacity: int | None = None, *held: m.Held) -> None:
        capacity = slots if capacity is None else capacity
        self.tell(session.encode(), m.Heartbeat(session, self.broker.epoch, slots, capacity, held, ()))

    def submit(self, address: bytes, *items: m.Item) -> None:
        self.tell(address, m.Submit(items))

    # --- turns and time ---------------------------------------------------

    def plan(self) -> Turn | None:
        return self.broker.plan(self.now_ms, self.now)

    def apply(self, turn: Turn, answers: Answers) -> None:
        self.broker.apply(turn, answers, self.now)
        self._note()

    def turn(self) -> Turn | None:
        """Run one turn, if there is something to do."""
        turn = self.plan()
        if turn is not None:
            self.apply(turn, self.store.run(copy.deepcopy(turn)))
        return turn

    def turns(self) -> None:
        """Run turns until there is nothing to do."""
        for _ in range(50):
            if self.turn() is None:
                return
        raise AssertionError("there is always one more turn")

    def wait(self, wait_s: float) -> None:
        """Let time pass with nothing coming in, in steps as small as the router asks for."""
        end = self.now + wait_s
        for _ in range(10_000):
            self.turns()
            self.now = min(end, self.now + max(self.broker.wake_in_s(self.now, self.now_ms), 0.001))
            self.broker.tick(self.now)
            self._note()
            if self.now >= end:
                self.turns()
                return
        raise AssertionError("the router does not sleep")

    # --- out --------------------------------------------------------------

    def _note(self) -> None:
        while due := self.broker.effects():
            for effect in due:
                match effect:
                    case effects.Send(address, message):
                        self._said[address].append(wire.decode_at_peer(wire.encode(message)))
                    case effects.Dispatch(session, message):
                        assert message.epoch == self.broker.epoch
                        self._dealt[session] += message.jobs
                    case effects.Publish(topic, message):
                        wire.encode(message)
                        self.published.append((topic, message))
                    case effects.OpenWorker(session):
                        self.broker.worker_opened(session, f"jobs-{session}")
                    case effects.CloseWorker(session):
                        self.closed.append(session)

    def said(self, to: bytes | str) -> list[m.Message]:
        """Return what was said to a peer since the last look."""
        return self._said.pop(to if isinstance(to, bytes) else to.encode(), [])

    def dealt(self, session: str) -> list[m.Job]:
        """Return the jobs pushed to a worker since the last look."""
        return self._dealt.pop(session, [])

    def snapshot(self, part: str) -> Any:
        """Ask for a SNAPSHOT as a peer does."""
        watcher = self.client()
        self.tell(watcher, m.Sync(1, (part,)))
        [snapshot] = [message for message in self.said(watcher) if isinstance(message, m.Snapshot)]
        return snapshot.parts[part]


# --- shorter ways to say things ------------------------------------------------


def codes(messages: list[m.Message]) -> list[str]:
    """Return the codes of the refusals among these messages."""
    found = []
    for message in messages:
        if isinstance(message, m.Error):
            found.append(message.code)
        elif isinstance(message, (m.SubmitAck, m.StatusReply)):
            found += [answer.body[0] for answer in message.answers if answer.state < 0]
    return found


def states(messages: list[m.Message]) -> dict[int, int]:
    """Return the last state told of each tag."""
    return {
        answer.tag: answer.state
        for message in messages
        if isinstance(message, (m.SubmitAck, m.Done, m.StatusReply))
        for answer in message.answers
    }


def finish(
    bench: Bench, session: str, *jobs: m.Job, outcome: m.Outcome = m.Outcome.done, body: bytes = b"\x81\xa3EOJ*"
) -> None:
    for job in jobs:
        bench.results(result(job, session, outcome, body))
    bench.turns()


def load(bench: Bench, count: int, **options: Any) -> bytes:
    """Put jobs into the queue, from a client that asks for no notice."""
    client = bench.client()
    bench.submit(client, *(item(tag, f"{client.decode()}-{tag}", notify=False, **options) for tag in range(count)))
    return client


def keep_alive(bench: Bench, wait_s: float, *sessions: str, slots: int = 1, held: tuple[m.Held, ...] = ()) -> None:
    """Let time pass while these workers send their heartbeats."""
    for _ in range(round(wait_s)):
        for session in sessions:
            bench.beat(session, slots, None, *held)
        bench.wait(1)
