"""The router: the sockets and the clock around `bus.broker`.

Each pass of the loop is one poll and a flat list of steps. The store's
answers arrive through the same poll, so that the sockets are read (and
heartbeats answered) also while Redis is slow or away.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections import deque
from collections.abc import Iterable

import zmq

from exesys import codec, keyring
from exesys.bus import broker, effects, messages, sockets, wire, zap
from exesys.bus.curve import Guard
from exesys.bus.herald import TOPIC
from exesys.bus.topics import Topics
from exesys.catalogue import Catalogue
from exesys.config import Config
from exesys.daemons.loop import Loop, run, settings
from exesys.errors import ConfigError, ProtocolError, StateError
from exesys.keyring import Keyring
from exesys.process import die_with_parent, hold_lock, wait_until
from exesys.store.dial import StoreAway
from exesys.store.redis import REPLY_TIMEOUT_S, Store, StoreTaken, Wait

RECONNECT_S = 0.25
# A turn of so few steps is answered in less than it takes to be woken: so long we look for it without sleeping.
FEW, AWAKE_S = 2, 0.0003
KEYS_S = 0.5  # so often it is looked who may come in
FREED_S = 2.0
COMPLAIN_S = 1.0  # so often at most the log is told of peers that may not do what they try
log = logging.getLogger("router")


class Router:
    """Wires sockets, store and core together."""

    def __init__(self, config: Config, loop: Loop) -> None:
        self.config = config
        self.loop = loop
        wait = Wait(config.redis.wait_replicas, config.redis.wait_ms)
        self.store = Store(config.redis_url, config.redis.prefix, config.limits, wait)
        self.context = zmq.Context[sockets.Socket]()
        self.keyring = Keyring(config)
        self.pair = keyring.guard(config)
        self.doorman = sockets.doorman(self.context)
        front = config.bus_endpoint
        self.front, _ = self._bind(zmq.ROUTER, front, zap.FRONT)
        self.results, results_at = self._bind(zmq.PULL, sockets.beside(front, "results"), zap.RESULTS)
        self.events, events_at = self._bind(zmq.XPUB, sockets.beside(front, "events"), zap.EVENTS)
        self.pushes: dict[str, tuple[sockets.Socket, str]] = {}
        self._said = ""  # the last that was logged of the store
        self.core = self._boot()
        self.core.endpoints = {"results": results_at, "events": events_at}
        self._heard_at = 0.0
        self._began_at: deque[float] = deque()  # the turns under way
        self._awake_s = 0.0  # how long to look for its answer before we sleep
        self._alone = len(os.sched_getaffinity(0)) == 1
        self._retry_at: float | None = None  # set while the store is away
        self._keys_at = 0.0  # when to look again who may come in
        self._complain_at = 0.0  # when to complain again
        self._topics = Topics()
        loop.watch(self.front)
        loop.watch(self.results)
        loop.watch(self.events)
        loop.watch(self.doorman)
        self._store_fd = self.store.fileno()
        loop.watch(self._store_fd)

    def _bind(self, kind: int, endpoint: str, domain: str) -> tuple[sockets.Socket, str]:
        """Bind a socket of the bus, guarded where there are keys."""
        return sockets.bind(self.context, kind, endpoint, Guard(self.pair, domain) if self.pair else None)

    def _boot(self) -> broker.Broker:
        """Wait for the store, which starts beside us, and read what it remembers."""
        while True:
            try:
                self.store.reconnect()
                self.store.check_format()
                epoch, sessions, known = self.store.boot()
                runners = self.store.runners()
                declared = self.store.declared_queues()
                break
            except StoreAway as error:
                self._tell_why(error)
                self.loop.poll(RECONNECT_S)
                if self.loop.stopping:
                    raise
        catalogue = Catalogue.from_wire(codec.unpack(known)) if known else Catalogue.merge([])
        log.info("epoch %d, %d worker sessions to come back", epoch, len(sessions))
        now = time.monotonic()
        core = broker.Broker(self.config, epoch, sessions, catalogue, now, random.random)
        core.restore(runners, now)
        core.declare(declared)
        return core

    def serve(self) -> None:
        """Run until told to stop; the turn under way is finished first, if the store answers."""
        while not self.loop.stopping or (self.store.busy and self._retry_at is None):
            ready = self.loop.poll(self._wait_s(), self._awake_s if self.store.busy else 0.0)
            now = time.monotonic()
            self._guard(self.doorman in ready, now)
            if self.front in ready:
                self._read_front(now)
            if self.results in ready:
                self._read_results()
            if self.events in ready:
                self._read_events(now)
            self._collect(self._store_fd in ready, now)
            self.core.tick(now)
            self._commit(now)
            self._carry_out()

    def _wait_s(self) -> float:
        now = time.monotonic()
        if self._retry_at is not None:
            return self._retry_at - now
        wait_s = self.core.wake_in_s(now, time.time_ns() // 1_000_000)
        return wait_s if self.pair is None else min(wait_s, self._keys_at - now)

    def _guard(self, asked: bool, now: float) -> None:
        """Let in those who connect, or not; see to it that a key that was revoked is not heard any more."""
        questions = self.loop.read(self.doorman) if asked else []
        known = None
        if self.pair is not None and (questions or now >= self._keys_at):
            self._keys_at = now + KEYS_S
            known = self.keyring.known()
            if self.core.let_in(known.values(), now):
                self._rebind_events()
        for question in questions:
            frames, why = zap.answer(question, known, sockets.spelled, self.core.key_of)
            self.loop.send(self.doorman, *frames)
            if why:
                self._complain(f"not let in: {why}", now)

    def _rebind_events(self) -> None:
        """Let go of all who listen: those whose keys are still known connect again by themselves."""
        at = self.core.endpoints["events"]
        self.loop.forget(self.events)
        self.events.close(linger=0)
        self._topics = Topics()
        self.core.listened_to(False)

        def bound() -> bool:
            try:
                self.events, _ = self._bind(zmq.XPUB, at, zap.EVENTS)
            except ConfigError:  # libzmq gives a port back a moment after its socket was closed
                return False
            return True

        if not wait_until(bound, FREED_S, 0.002):
            raise ConfigError(f"the bus cannot listen on {at} again.", fix="It is started anew.")
        self.loop.watch(self.events)

    def _named(self, source: sockets.Socket) -> Iterable[tuple[str, list[bytes]]]:
        """Read a socket: each message, and whose key it came with, "" where none is needed."""
        if self.pair is not None:
            return self.loop.read_named(source)
        return [("", frames) for frames in self.loop.read(source)]

    def _read_front(self, now: float) -> None:
        for key, frames in self._named(self.front):
            address = frames[0]
            try:
                if len(frames) != 2:
                    raise ProtocolError(f"a message has one frame, not {len(frames) - 1}")
                self.core.receive(address, wire.decode_at_router(frames[1]), now, key)
            except ProtocolError as error:
                self.core.garbled(address, error)

    def _read_results(self) -> None:
        for key, frames in self._named(self.results):
            try:
                message = wire.decode_at_router(frames[0])
                if len(frames) != 1 or not isinstance(message, messages.Result):
                    raise ProtocolError("only RESULT goes to the results socket")
                self.core.results(message, key)
            except ProtocolError as error:
                self.core.garbled(b"", error)

    def _read_events(self, now: float) -> None:
        """Hear who subscribes to what, and let go of whoever subscribes to too much."""
        for source, told in self.loop.read_subscribers(self.events):
            if self._topics.heard(told, source):
                sockets.cut_off(source, self.core.endpoints["events"])
                self._complain("let go: a subscriber with too many or too long topics", now)
        self.core.listened_to(self._topics.wanted(TOPIC))

    def _complain(self, text: str, now: float) -> None:
        if now >= self._complain_at:
            self._complain_at = now + COMPLAIN_S
            log.warning("%s", text)

    def _collect(self, heard: bool, now: float) -> None:
        """Take what Redis answered, if it was `heard`; see to it that it is there."""
        if self._retry_at is not None:
            if now >= self._retry_at:
                self._reconnect()
            return
        try:
            done = self.store.collect() if heard or self.store.answered else None
            while done is not None:
                self.core.meters.redis.see(now - self._began_at.popleft())
                self.core.apply(*done, now)
                done = self.store.collect() if self.store.answered else None
        except StoreAway as error:
            self._lose_store(error, now)
            return
        if self.store.busy:
            self.core.store_slow(self._began_at[0], self.store.trouble)
            self._heard_at = now if heard else self._heard_at
            if now - self._heard_at > REPLY_TIMEOUT_S:
                self._lose_store(StoreAway("Redis is silent."), now)

    def _commit(self, now: float) -> None:
        """Send the next turn, if there is one and the store has room for it."""
        if self._retry_at is not None or self.loop.stopping or not self.store.has_room:
            return
        turn = self.core.plan(time.time_ns() // 1_000_000, now)
        if turn is None:
            return
        if not self.store.busy:
            self._heard_at = now
        self._began_at.append(time.monotonic())
        self._awake_s = AWAKE_S if 0 < turn.steps <= FEW and not self._alone else 0.0
        try:
            self.store.begin(turn)
        except StoreAway as error:
            self._lose_store(error, now)

    def _lose_store(self, error: StoreAway, now: float) -> None:
        self._tell_why(error)
        self.loop.forget(self._store_fd)
        self.core.store_slow(float("-inf"), error.trouble)
        self._retry_at = now + RECONNECT_S

    def _tell_why(self, error: StoreAway) -> None:
        """Log why the store is away, once until that is another reason or it was there again."""
        if error.message != self._said:
            log.warning("%s", error)
        self._said = error.message

    def _reconnect(self) -> None:
        try:
            self.store.reconnect()
            self.store.again()
        except StoreTaken as error:
            log.error("%s", error)
            self.core.store_slow(float("-inf"), error.trouble)
            self._retry_at = float("inf")  # whoever holds the store is not disturbed; a restart takes it back
            return
        except StoreAway as error:
            self._tell_why(error)
            self.core.store_slow(float("-inf"), error.trouble)
            self._retry_at = time.monotonic() + RECONNECT_S
            return
        if self.store.history_lost:
            text = "Redis came back without what it had answered, and not all of it could be sent again."
            raise StateError(text, fix="The router begins anew with what is there. How to lose less: docs/redis.md.")
        self._store_fd = self.store.fileno()
        self.loop.watch(self._store_fd)
        self._heard_at = now = time.monotonic()
        self._began_at = deque(now for _ in self._began_at)
        self._retry_at = None
        self._said = ""
        log.info("the store is back")
        self.core.store_back()

    def _carry_out(self) -> None:
        for effect in self.core.effects():
            match effect:
                case effects.Send(address, message):
                    if not self.loop.send(self.front, address, wire.encode(message)):
                        self.core.figures["dropped"] += 1
                case effects.Dispatch(session, message):
                    # A worker that went is found by its silence, and its jobs with it.
                    if session in self.pushes and not sockets.send(self.pushes[session][0], wire.encode(message)):
                        self.core.figures["dropped"] += 1
                case effects.Publish(topic, message):
                    self.loop.send(self.events, topic.encode(), wire.encode(message))
                case effects.Warn(text):
                    log.warning("%s", text)
                case effects.OpenWorker(session):
                    self._open(session)
                case effects.CloseWorker(session):
                    self._close(session)

    def _close(self, session: str) -> None:
        log.warning("worker session %s is gone; what it held goes to others", session)
        if session in self.pushes:
            socket, endpoint = self.pushes.pop(session)
            socket.close(linger=0)
            sockets.unlink(endpoint)

    def _open(self, session: str) -> None:
        if session not in self.pushes:
            at = sockets.beside(self.config.bus_endpoint, f"w-{session}")
            self.pushes[session] = self._bind(zmq.PUSH, at, zap.JOBS + session)
        self.core.worker_opened(session, self.pushes[session][1])
        for effect in self.core.effects():
            if isinstance(effect, effects.Send):
                self.loop.send(self.front, effect.address, wire.encode(effect.message))

    def close(self) -> None:
        for socket, endpoint in self.pushes.values():
            socket.close()
            sockets.unlink(endpoint)
        for socket in (self.front, self.results, self.events):
            socket.close()
        self.doorman.close()
        self.context.term()
        self.store.close()


def main() -> int:
    die_with_parent()
    config = settings("router")
    os.umask(0o077)
    config.run.mkdir(parents=True, exist_ok=True, mode=0o700)
    hold_lock(config.run / "router.lock")
    loop = Loop()
    try:
        router = Router(config, loop)
    except StoreAway:
        return 0
    log.info("listening on %s", config.bus_endpoint)
    router.serve()
    router.close()
    return 0


if __name__ == "__main__":
    run("router", main)
