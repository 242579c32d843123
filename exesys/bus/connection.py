"""A client's connection to the router: the socket, and which thread serves it.

Calls lay what is to be sent on the desk (`inflight.Desk`), under its lock,
and `wake` whoever serves. What comes in goes to the desk, too, and what that
wants to be called is called without the lock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import zmq

from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.bus.curve import Identity
from exesys.bus.handle import CANCELLED, Handle
from exesys.bus.inflight import Desk
from exesys.errors import JobCancelled, ProtocolError, Unavailable

SYNC_S = 0.05
PARKED_S = 0.002
LONGEST_PASS_S = 1.0
log = logging.getLogger("client")


class Connection:
    """One connection, with a thread of its own. Thread-safe."""

    def __init__(self, endpoint: str, desk: Desk, identity: Identity | None = None, shard: str = "") -> None:
        """`shard` is what it goes to, for people; "" for the home's own router."""
        self.desk = desk
        self._router = f"the router of the shard {shard}" if shard else "the router"
        self._look = f"See `bin/exesys status`{' in its home' if shard else ''}."
        self.identity = identity
        self.room = threading.Condition(desk.lock)
        self.closing = False
        self.closed = threading.Event()
        self.endpoint = endpoint
        self._asleep = False
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._driver = threading.RLock()  # a callback may wait or submit, and then drives on
        self._drove_at = self._flushed_at = float("-inf")
        self._unpark = threading.Event()
        self._context = zmq.Context[sockets.Socket]()
        self._poller = zmq.Poller()
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._front = self._connect()
        self._thread = threading.Thread(target=self._serve, daemon=True, name="exesys-client")
        self._thread.start()

    @property
    def greeted(self) -> bool:
        """Whether the router has greeted us and is heard."""
        return self.desk.welcome is not None

    def wait_greeted(self, timeout: float) -> bool:
        """Wait until the router has greeted us."""
        with self.room:
            return self.room.wait_for(lambda: self.greeted, timeout)

    def admit(self, put: Callable[[], None], patient: bool, at_once: bool = False) -> None:
        """Have something laid on the desk once there is room. Raises Unavailable.

        With `at_once` there need not be room, and who serves is not woken.
        """
        while True:
            with self.room:
                if self.closing:
                    raise Unavailable("this client is closed.")
                if self.desk.refusal and not self.greeted:
                    fix = "Use the client of the ExeSys that runs there."
                    raise Unavailable(f"{self._router} does not take this client: {self.desk.refusal}.", fix=fix)
                if not patient and not self.greeted:
                    raise Unavailable(f"{self._router} is away.", fix="Send the same again in a moment.")
                if at_once or not self.desk.full:
                    put()
                    break
            self._make_room()
        if not at_once:
            self.wake()

    def _make_room(self) -> None:
        """Wait until the window is not full: serve the connection, or let who serves it go on."""
        self.drive(lambda: not self.desk.full, float("inf"))
        with self.room:
            self.room.wait_for(lambda: not self.desk.full or self.closing, SYNC_S)

    def ask(self, question: Callable[[int], m.Message], timeout: float) -> m.Reply:
        """Ask the router; `question` makes the message with its tag. Raises Unavailable after `timeout` seconds."""
        answer: list[m.Reply] = []
        arrived = threading.Event()

        def then(told: m.Reply) -> None:
            answer.append(told)
            arrived.set()

        with self.desk.lock:
            tag = self.desk.ask(question, then)
        self.wake()
        if not arrived.wait(timeout):
            with self.desk.lock:
                self.desk.forget(tag)
            raise Unavailable(f"{self._router} does not answer.", fix=self._look)
        return answer[0]

    def ask_instead(
        self, before: int, question: Callable[[int], m.Message], then: Callable[[m.Reply], None]
    ) -> int | None:
        """Give up the question with the tag `before` and ask another; return its tag, None when the router is away.

        `then` is called with the answer, in whatever thread serves the connection.
        """
        with self.desk.lock:
            if not self.greeted:
                return None
            self.desk.forget(before)
            tag = self.desk.ask(question, then)
        self.wake()
        return tag

    def withdraw(self, handle: Handle, question: Callable[[int], m.Message], then: Callable[[m.Reply], None]) -> None:
        """End a command for its caller, and ask the router to cancel it; `then` is called with the answer."""
        with self.desk.lock:
            calls = self.desk.withdraw(handle, JobCancelled(*CANCELLED, 0, "", handle.job_id))
            self.desk.ask(question, then)
        _call(calls)
        self.wake()

    def forget(self, handle: Handle) -> None:
        """Wait no longer for what is told of a command."""
        with self.desk.lock:
            self.desk.drop(handle)

    def tell(self, message: m.Message) -> None:
        """Send a message that has no answer; it waits while the router is away."""
        with self.desk.lock:
            self.desk.tell(message)
        self.wake()

    def introduce(self, info: dict[str, Any]) -> None:
        """Say HELLO again, with what there is to tell of this peer now."""
        desk = self.desk
        with desk.lock:
            desk.info = info
            # Also where the WELCOME of the one before is still on its way.
            desk.tell(m.Hello(m.VERSION, desk.role, desk.session, "", info))
        self.wake()

    def wait_taken(self, timeout: float) -> int:
        """Wait until all that was sent has had an answer; return how much has not."""
        with self.room:
            self.room.wait_for(lambda: self.closing or not self.desk.unanswered, timeout)
            return 0 if self.closing else self.desk.unanswered

    def end(self) -> None:
        """Say goodbye and end the thread."""
        with self.desk.lock:
            if self.closing:
                return
            self.closing = True
        self.closed.set()
        self._asleep = False  # from here on nobody else writes to the pipe
        os.write(self._wake_write, b"\0")
        self._unpark.set()
        self._thread.join(timeout=2 * sockets.LINGER_MS / 1000)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)
        with self.desk.lock:
            fix = "What was taken goes on: ask for its result with another client."
            calls = self.desk.abandon(Unavailable("this client was closed.", fix=fix))
        _call(calls)

    # --- serving it -------------------------------------------------------
    #
    # Whoever holds `_driver` serves the socket. Mostly that is the client's own
    # thread; a thread that waits for a result takes over, which saves two
    # switches of threads in each call, and the client's thread then only looks
    # in every `PARKED_S` until nobody drove for `SYNC_S`. Where something was
    # flushed in that time it does not park, and nobody drives: its answers are
    # waited for by no thread.

    def wake(self) -> None:
        if self._asleep and not self.closing:
            self._asleep = False
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_write, b"\0")

    def flush(self) -> None:
        """Send what was laid down at once. Nobody waits for its answers: for a while the client's thread reads them."""
        self._flushed_at = time.monotonic()
        if self._flushed_at - self._drove_at < SYNC_S:
            self._unpark.set()
        self.wake()

    def _serve(self) -> None:
        while not self.closing:
            now = time.monotonic()
            if now - self._drove_at < SYNC_S <= now - self._flushed_at:
                self._unpark.wait(PARKED_S)
                self._unpark.clear()
                if self._driver.acquire(blocking=False):
                    try:
                        self._pass(0.0)
                    finally:
                        self._driver.release()
            else:
                with self._driver:
                    self._pass(LONGEST_PASS_S)
        with self._driver:
            sockets.send(self._front, wire.encode(m.Bye(self.desk.session, "closed")))
            self._front.close()
            self._context.term()

    def drive(self, condition: Callable[[], bool], until: float) -> None:
        """Serve the connection in the calling thread until `condition` holds; give up if another does."""
        now = time.monotonic()
        if now - self._flushed_at < SYNC_S:
            return
        self._drove_at = now
        if not self._driver.acquire(blocking=False):
            self.wake()
            if not self._driver.acquire(timeout=PARKED_S):
                return
        try:
            while not condition() and not self.closing and self._drove_at < until:
                self._pass(min(until - self._drove_at, LONGEST_PASS_S))
                self._drove_at = time.monotonic()
        finally:
            self._driver.release()
            if self.desk.pressing or self.closing:
                self._unpark.set()

    def _pass(self, most_s: float) -> None:
        """Send what is due, wait up to `most_s` for something to come, and take it."""
        desk = self.desk
        now = time.monotonic()
        with desk.lock:
            silent = desk.silent(now)
            if silent:
                desk.rebuilt()
            outgoing = desk.outgoing(now)
            wait_s = min(desk.wake_in_s(now), most_s)
            self._asleep = wait_s > 0
        if silent:
            self._poller.unregister(self._front)
            self._front.close(linger=0)
            self._front = self._connect()
        for message in outgoing:
            sockets.send(self._front, wire.encode(message))
        ready = dict(self._poller.poll(int(wait_s * 1000 + 0.999)))
        self._asleep = False
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if self._front in ready:
            self._read(self._front)

    def _connect(self) -> sockets.Socket:
        front = sockets.connect(self._context, zmq.DEALER, self.endpoint, self.identity)
        self._poller.register(front, zmq.POLLIN)
        return front

    def _read(self, front: sockets.Socket) -> None:
        now = time.monotonic()
        calls: list[tuple[Handle, Callable[[Handle], None]]] = []
        frames = sockets.drain(front)
        with self.room:
            for parts in frames:
                # A frame that is no message tells nothing: what it answered will be asked again.
                with contextlib.suppress(ProtocolError):
                    calls += self.desk.receive(wire.decode_at_peer(parts[-1]), now)
            if not self.desk.full:
                self.room.notify_all()
        _call(calls)


def _call(calls: Iterable[tuple[Handle, Callable[[Handle], None]]]) -> None:
    """Call what wanted to be called at the end of a command. What one raises is logged, as futures do."""
    for handle, call in calls:
        try:
            call(handle)
        except Exception:  # a user's code may raise anything, and others wait for this connection
            log.exception("a callback of job %s failed", handle.job_id)
