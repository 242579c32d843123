"""The path of a job through each process, without sockets and the clock: what `kept.py` counts instructions of.

    python -m benchmarks.paths TAPE [PART…]

Each part first runs to get warm, and then more between two calls of `mark`;
both are rounds of 16 jobs, as in a turn of the router at full load. What a
part reads is what the code of today writes: the messages are made before, and
TAPE holds what a Redis answered to the same messages a moment ago (`record`).
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast
from unittest import mock

import msgpack

from benchmarks.tape import Taped
from exesys import codec, command
from exesys.bus import effects, messages, wire
from exesys.bus.broker import Broker
from exesys.bus.handle import Handle
from exesys.bus.inflight import Desk
from exesys.bus.session import WorkerSession
from exesys.catalogue import Catalogue, FunctionInfo
from exesys.channel import Channel, pair
from exesys.config import Config
from exesys.daemons.slot import Journal
from exesys.daemons.slot import Slot as SlotProcess
from exesys.functions import Library
from exesys.slots import Finished, Phase, Slot, SlotPool
from exesys.states import State
from exesys.store.redis import Store

ROUND = 16
WARM, COUNTED = 10, 20  # rounds
PIECES = 5  # of the yard, for each job
JOBS = ROUND * COUNTED
CLIENT, WORKER = "c" * 16, "d" * 16
CONFIG = Config(root=Path("/nowhere"), home=Path("/nowhere/var"))
CATALOGUE = Catalogue({"bench.noop": FunctionInfo("noop", "bench", "", "(data)", {}, "bench.py")}, {})
EPOCH_MS = 1_700_000_000_000
STARTED_S = 100.0
FULL_SLOTS = CONFIG.worker.slots * (1 + CONFIG.worker.prefetch)


def mark() -> None:
    """Tell callgrind to begin anew: by a call into libc that nothing else makes."""
    os.getsid(0)


def job_id(number: int) -> str:
    return f"{number:032x}"


def text(number: int) -> str:
    return f"{number}.{number * 2_654_435_761 % (1 << 32):08x}"


def _report(number: int) -> messages.Report:
    body = codec.pack({"EOJ": text(number)})
    return messages.Report(f"client:{job_id(number)}", 1, messages.Outcome.done, body, "", EPOCH_MS, EPOCH_MS + 1)


def _rounds(counted: bool) -> range:
    return range(WARM, WARM + COUNTED) if counted else range(WARM)


def _numbers(round_: int) -> range:
    return range(round_ * ROUND, (round_ + 1) * ROUND)


# -- the router --------------------------------------------------------------------


class Router:
    """The router's core, its words and its store, moved by hand."""

    def __init__(self, line: Taped) -> None:
        self.now = STARTED_S
        self.store = Store("unix:///nowhere", CONFIG.redis.prefix, CONFIG.limits)
        self.store._line = line  # what it made itself leads nowhere
        self.store.reconnect()
        epoch, sessions, _ = self.store.boot()
        self.core = Broker(CONFIG, epoch, sessions, CATALOGUE, self.now, lambda: 0.5)
        self.core.endpoints = {"results": "r", "events": "e"}
        self.core.restore({}, self.now)
        hello = {"host": "h", "pid": 1, "queues": ["default"], "loads": 1, "catalogue": CATALOGUE.to_wire()}
        self._hear(CLIENT.encode(), wire.encode(messages.Hello(messages.VERSION, "client", CLIENT, "", {})))
        self._hear(WORKER.encode(), wire.encode(messages.Hello(messages.VERSION, "worker", WORKER, "", hello)))
        self.turns()
        beat = messages.Heartbeat(WORKER, epoch, CONFIG.worker.slots, FULL_SLOTS, (), ())
        self._hear(WORKER.encode(), wire.encode(beat))
        self.turns()
        self.dealt = 0

    def _hear(self, address: bytes, frame: bytes) -> None:
        self.core.receive(address, wire.decode_at_router(frame), self.now, "")

    def submit(self, frames: list[bytes]) -> None:
        for frame in frames:
            self._hear(CLIENT.encode(), frame)

    def results(self, frames: list[bytes]) -> None:
        for frame in frames:
            self.core.results(cast(messages.Result, wire.decode_at_router(frame)), "")

    def turns(self) -> None:
        """Run turns until there is nothing more to do, as the router's loop does."""
        while True:
            self.now += 0.001
            self.core.tick(self.now)
            self._carry_out()
            turn = self.core.plan(EPOCH_MS + int(self.now * 1000), self.now)
            if turn is None:
                return
            self.store.begin(turn)
            while (done := self.store.collect()) is None:
                pass
            self.core.apply(*done, self.now)
            self._carry_out()

    def _carry_out(self) -> None:
        for effect in self.core.effects():
            match effect:
                case effects.Send(_, message):
                    wire.encode(message)
                case effects.Dispatch(_, message):
                    wire.encode(message)
                    self.dealt += len(message.jobs)
                case effects.Publish(_, message):
                    wire.encode(message)
                case effects.OpenWorker(session):
                    self.core.worker_opened(session, "w")


def router(line: Taped, around: Callable[[], None]) -> None:
    """Submits one by one, and in the same turn the results of the jobs before, in two messages."""
    submits = [
        [wire.encode(messages.Submit((_item(number),))) for number in _numbers(round_)]
        for round_ in range(WARM + COUNTED)
    ]
    results = [
        [
            wire.encode(messages.Result(WORKER, tuple(map(_report, half))))
            for half in (_numbers(round_)[: ROUND // 2], _numbers(round_)[ROUND // 2 :])
        ]
        for round_ in range(WARM + COUNTED)
    ]
    with mock.patch("time.monotonic", _started):  # how often Redis is asked what it has written goes by it
        moved = Router(line)
        for counted in (False, True):
            if counted:
                around()
            for round_ in _rounds(counted):
                moved.submit(submits[round_])
                if round_:
                    moved.results(results[round_ - 1])
                moved.turns()
        around()
    if moved.dealt != (WARM + COUNTED) * ROUND:
        raise RuntimeError(f"the router has dealt {moved.dealt} jobs of {(WARM + COUNTED) * ROUND}")


def _started() -> float:
    return STARTED_S


def _item(number: int) -> messages.Item:
    return messages.Item(number + 1, "client", "end_job", "noop", codec.pack(text(number)), job_id(number), {}, True)


def record(url: str) -> tuple[list[bytes], list[bytes]]:
    """Run the router's part on a Redis that is empty. Returns what that answered, and what it was sent."""
    tape: list[bytes] = []
    line = Taped(url, tape)
    bounds: list[int] = []
    router(line, lambda: bounds.append(len(line.written)))
    return tape, [b"".join(line.written[: bounds[0]]), *line.written[bounds[0] :]]


# -- the other processes -----------------------------------------------------------


def client(around: Callable[[], None]) -> None:
    """A command that is built, sent, acknowledged and told to have ended, and its result."""
    desk = Desk(CLIENT, 2000)
    welcome = messages.Welcome(messages.VERSION, CLIENT, 1, 1e9, 5, {}, {"results": "r", "events": "e"}, "", {})
    desk.receive(welcome, STARTED_S)
    bodies = [codec.pack({"EOJ": text(number)}) for number in range((WARM + COUNTED) * ROUND)]
    frames = [
        (
            wire.encode(
                messages.SubmitAck(tuple(messages.Answer(number + 1, State.processing, None) for number in numbers))
            ),
            wire.encode(
                messages.Done(
                    tuple(messages.Answer(number + 1, State.data_available, bodies[number]) for number in numbers)
                )
            ),
        )
        for numbers in map(_numbers, range(WARM + COUNTED))
    ]
    for counted in (False, True):
        if counted:
            around()
        for round_ in _rounds(counted):
            handles = []
            for number in _numbers(round_):
                built = command.build("client", "end_job", "noop", codec.pack(text(number)), job_id(number), {})
                handle = Handle(built.job_id, built.from_, built.to, built.cmd, desk.lock)
                item = messages.Item(0, built.from_, built.to, built.cmd, built.data, built.job_id, {}, True)
                with desk.lock:
                    desk.put(handle, item, True, True)
                    for message in desk.outgoing(STARTED_S):
                        wire.encode(message)
                handles.append(handle)
            for frame in frames[round_]:
                with desk.lock:
                    desk.receive(wire.decode_at_peer(frame), STARTED_S)
            if [handle.result(0) for handle in handles] != list(map(text, _numbers(round_))):
                raise RuntimeError("the client has other results than were sent")
    around()


def worker(around: Callable[[], None]) -> None:
    """Jobs from the router to the line of a slot, and from there to the router: the worker's thread."""
    near, far = (Channel(end) for end in pair())
    pool = SlotPool(CONFIG, STARTED_S)
    slot = Slot(0, cast(Any, None), near, far, -1, Phase.serving)
    pool.slots.append(slot)
    session = WorkerSession(WORKER, {}, CONFIG.worker.slots, CONFIG.worker.prefetch)
    session.greeted(messages.Welcome(messages.VERSION, WORKER, 1, 1e9, 5, {}, {}, "", {}), STARTED_S)
    jobs = [
        messages.Job(f"client:{job_id(number)}", 1, "end_job", "noop", codec.pack(text(number)), 60.0)
        for number in range((WARM + COUNTED) * ROUND)
    ]
    rounds = [
        (
            wire.encode(messages.Jobs(1, tuple(jobs[number] for number in numbers))),
            [["done", *_report(number)[:-1], (), 0.01] for number in numbers],
            wire.encode(messages.ResultAck(tuple(messages.Held(jobs[number].ref, 1) for number in numbers))),
        )
        for numbers in map(_numbers, range(WARM + COUNTED))
    ]
    for counted in (False, True):
        if counted:
            around()
        for round_ in _rounds(counted):
            given, reports, acks = rounds[round_]
            session.given(cast(messages.Jobs, wire.decode_at_peer(given)).jobs)
            for turn in pool.in_turn(ROUND, STARTED_S):
                pool.give(turn, session.begin(), STARTED_S)
                if not session.queue:
                    break
            for report in reports:
                far.receive()
                far.send(report)
            for happening in pool.read(slot, STARTED_S):
                if isinstance(happening, Finished):
                    session.ended(happening.report, happening.run_ms)
            for message in (session.reports(STARTED_S), *session.beats(STARTED_S)):
                if message is not None:
                    wire.encode(message)
            session.acked(cast(messages.ResultAck, wire.decode_at_peer(acks)))
    around()
    if not session.idle:
        raise RuntimeError("the worker still holds jobs")


def slot(around: Callable[[], None], modules: Path) -> None:
    """A job from the line to the function and back: the slot."""
    near, far = (Channel(end) for end in pair())
    process = SlotProcess(CONFIG, far)
    process.journal = Journal(far, CONFIG.limits.log_bytes)
    process.library = Library.load([modules])
    for counted in (False, True):
        if counted:
            around()
        for round_ in _rounds(counted):
            for number in _numbers(round_):
                ref, data = f"client:{job_id(number)}", codec.pack(text(number))
                near.send(["job", ref, 1, "end_job", "noop", data, ""])
                process.run(*far.receive()[1:])
                if near.receive()[3] != messages.Outcome.done:
                    raise RuntimeError("the slot has not run the job")
    around()


def yard(around: Callable[[], None]) -> None:
    """A fixed piece of plain Python, in the measure of which the others are told: builds of Python differ."""
    for counted in (False, True):
        if counted:
            around()
        for round_ in _rounds(counted):
            for number in _numbers(round_):
                for place in range(PIECES):
                    piece(number, place)
    around()


def piece(number: int, place: int) -> None:
    """What the yard does: some of what Python does on the path of a job. It never changes."""
    fields = [number, f"job-{number}-{place}", "end_job", b"data" * 8, {"a": 1.5}, True]
    name, came = msgpack.unpackb(msgpack.packb(["SUBMIT", fields]))
    kept: dict[str, tuple[int, bytes]] = {}
    if name == "SUBMIT" and type(came) is list and len(came) == 6:
        kept[came[1]] = came[0], came[3]
    for key in list(kept):
        first, data = kept.pop(key)
        msgpack.unpackb(msgpack.packb((key, first, data)), use_list=False)


def main(tape: Path, *names: str) -> None:
    """Run these parts, or all: first what is before the first mark, then of each what is counted and what is not."""
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    chunks: list[bytes] = msgpack.unpackb(tape.read_bytes())
    parts: dict[str, Callable[[], None]] = {
        "yard": lambda: yard(mark),
        "router": lambda: router(Taped("", chunks), mark),
        "client": lambda: client(mark),
        "worker": lambda: worker(mark),
        "slot": lambda: slot(mark, tape.parent / "modules"),
    }
    for name in names or parts:
        parts[name]()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
