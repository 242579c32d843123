"""The client's side of the conversation. Pure: calls, messages and `now` in, messages out.

Every command stays here until its end is known. What the router did not
acknowledge is sent again after a reconnect, which is safe: a command is
identified by job_id, from and to, and the same one sent twice runs once. What
it did acknowledge is asked for (STATUS) after a reconnect, and now and then,
in case a DONE was lost.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from exesys import codec
from exesys.bus import messages as m
from exesys.errors import ExesysError, JobError, ResultTimeout, Unavailable, from_problem
from exesys.states import State

HELLO_AGAIN_S = 1.0
RECHECK_S = 5.0
MOST_RECHECKED = 100
MOST_IN_MESSAGE = 1000
MOST_BYTES_IN_MESSAGE = 4 << 20
UNANSWERED_S = 10.0


Drive = Callable[[Callable[[], bool], float], None]


class Handle:
    """A command on its way: like a `concurrent.futures.Future`, safe in any thread.

    `drive`, when given, lets the waiting thread itself serve the connection
    until its condition holds or the time is over (monotonic seconds).
    """

    __slots__ = (
        "_body",
        "_callbacks",
        "_drive",
        "_error",
        "_lock",
        "_state",
        "_waiters",
        "cmd",
        "from_",
        "job_id",
        "to",
    )

    def __init__(
        self, job_id: str, from_: str, to: str, cmd: str, lock: threading.Lock, drive: Drive | None = None
    ) -> None:
        self.job_id = job_id
        self.from_ = from_
        self.to = to
        self.cmd = cmd
        self._lock = lock
        self._drive = drive
        self._state: State | None = None
        self._body: Any = None
        self._error: ExesysError | None = None
        self._waiters: list[threading.Lock] | None = None
        self._callbacks: list[Callable[[Handle], None]] | None = None

    def __repr__(self) -> str:
        return f"<Handle {self.cmd} {self.job_id} {self._state.name if self._state is not None else 'sent'}>"

    @property
    def state(self) -> State | None:
        """The state last heard of; None until the router has taken the command."""
        return self._state

    def done(self) -> bool:
        """Tell whether it ended: with a result, in error, or refused."""
        return self._error is not None or (self._state is not None and self._state.final)

    def accepted(self, timeout: float | None = None) -> State:
        """Wait until the router has stored the command; return its state.

        Raises the error with which it was refused, or ResultTimeout after
        `timeout` seconds.
        """
        self._wait(lambda: self._state is not None or self._error is not None, timeout, "was not acknowledged")
        if self._error is not None:
            raise self._error
        assert self._state is not None
        return self._state

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, whatever it is; tell whether it came within `timeout` seconds."""
        try:
            self._wait(self.done, timeout, "has not ended")
        except ResultTimeout:
            return False
        return True

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end and return the value under `EOJ`.

        Raises JobError when the function failed, the refusal when the command
        was refused, and ResultTimeout after `timeout` seconds.
        """
        outcome = self.outcome(timeout)
        return outcome["EOJ"] if isinstance(outcome, dict) and "EOJ" in outcome else outcome

    def outcome(self, timeout: float | None = None) -> Any:
        """Like `result`, but return the whole `{"EOJ": …}`."""
        self._wait(self.done, timeout, "has not ended")
        error = self.exception()
        if error is not None:
            raise error
        return codec.unpack(self._body)

    def exception(self) -> ExesysError | None:
        """Return the error of a step that ended, None when it went well or goes on."""
        if self._error is not None:
            return self._error
        if self._state is State.error:
            return job_error(self._body)
        return None

    def adopt(self, other: Handle) -> None:
        """Take over what another handle has heard of the same step."""
        with self._lock:
            callbacks = [] if self.done() or other._state is None else self._change(other._state, other._body)
        for callback in callbacks:
            callback(self)

    def add_done_callback(self, callback: Callable[[Handle], None]) -> None:
        """Call `callback(handle)` at the end, in the client's thread; at once if it ended."""
        with self._lock:
            if not self.done():
                self._callbacks = [*(self._callbacks or ()), callback]
                return
        callback(self)

    def _wait(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        if condition():
            return
        until = None if timeout is None else time.monotonic() + timeout
        if self._drive is not None:
            self._drive(condition, float("inf") if until is None else until)
        while not condition():
            with self._lock:
                if condition():
                    return
                waiter = threading.Lock()
                waiter.acquire()
                self._waiters = [*(self._waiters or ()), waiter]
            left = -1 if until is None else max(0.0, until - time.monotonic())
            if not waiter.acquire(timeout=left) and not condition():
                raise ResultTimeout(f"job {self.job_id} {what} within {timeout:g} s.", fix="It goes on: ask again.")

    # The two below are called with the lock held; what they return is called without.

    def _change(self, state: State, body: Any) -> list[Callable[[Handle], None]]:
        self._state, self._body = state, body
        return self._wake()

    def _fail(self, error: ExesysError) -> list[Callable[[Handle], None]]:
        self._error = error
        return self._wake()

    def _wake(self) -> list[Callable[[Handle], None]]:
        waiters, self._waiters = self._waiters, None
        for waiter in waiters or ():
            waiter.release()
        if self._callbacks and self.done():
            callbacks, self._callbacks = self._callbacks, None
            return callbacks
        return []


def job_error(body: Any) -> JobError:
    """Make the error of an answer in state 4: [error bytes, attempts]."""
    packed, attempts = body
    told = codec.unpack(packed) if packed else {}
    return JobError(
        str(told.get("type", "Error")), str(told.get("message", "")), attempts, str(told.get("traceback", ""))
    )


@dataclass(slots=True)
class Flight:
    """A command or question under way."""

    handle: Handle
    item: m.Item | None  # None once acknowledged, or for a question
    notify: bool
    patient: bool  # waits while the router is busy or away
    sent_at: float = 0.0


class Desk:
    """All that one client has under way. The caller holds `lock` around every call."""

    def __init__(self, session: str, window: int, role: str = "client") -> None:
        self.session = session
        self.role = role
        self.window = window
        self.lock = threading.Lock()
        self.welcome: m.Welcome | None = None
        self._tag = 0
        self._flights: dict[int, Flight] = {}
        self._unanswered: dict[int, Flight] = {}  # of these, the ones without any answer yet
        self._outbox: deque[int] = deque()
        self._later: list[tuple[float, list[int]]] = []  # BUSY: when to send them again
        self._recheck: deque[tuple[float, int]] = deque()
        self._asks: dict[int, Callable[[m.Snapshot], None]] = {}
        self._to_tell: list[m.Message] = []
        self._hello_at = self._beat_at = self._heard_at = self._resend_at = float("-inf")

    # --- calls ------------------------------------------------------------

    @property
    def full(self) -> bool:
        return len(self._unanswered) >= self.window

    def put(self, handle: Handle, item: m.Item | None, notify: bool, patient: bool) -> int:
        """Take a command (or, without `item`, a question) to be sent."""
        self._tag += 1
        tag = self._tag
        if item is not None:
            item = item._replace(tag=tag)
        self._flights[tag] = self._unanswered[tag] = Flight(handle, item, notify, patient)
        self._outbox.append(tag)
        return tag

    def ask(self, parts: Iterable[str], then: Callable[[m.Snapshot], None]) -> int:
        """Ask the router for a SNAPSHOT. Returns the tag, for `forget`."""
        self._tag += 1
        self._asks[self._tag] = then
        self._to_tell.append(m.Sync(self._tag, tuple(parts)))
        return self._tag

    def tell(self, message: m.Message) -> None:
        """Send a message that has no answer, once the router is there."""
        self._to_tell.append(message)

    def forget(self, tag: int) -> None:
        """Wait no longer for this tag's answer; a command not yet sent stays unsent."""
        self._asks.pop(tag, None)
        self._flights.pop(tag, None)
        self._unanswered.pop(tag, None)

    # --- in ---------------------------------------------------------------

    def receive(self, message: m.Message, now: float) -> list[tuple[Handle, Callable[[Handle], None]]]:
        """Take a message from the router. Returns callbacks to call without the lock."""
        self._heard_at = now
        calls: list[tuple[Handle, Callable[[Handle], None]]] = []
        match message:
            case m.SubmitAck(answers) | m.Done(answers) | m.StatusReply(answers):
                for answer in answers:
                    flight = self._flights.get(answer.tag)
                    if flight is not None:
                        calls += [(flight.handle, call) for call in self._answer(flight, answer, now)]
            case m.Busy(tags, reason, retry_s):
                calls = self._busy(tags, reason, now + retry_s)
            case m.Welcome():
                self._greeted(message)
            case m.Error("unknown_session") | m.Bye():
                self.welcome, self._hello_at = None, float("-inf")
            case m.Snapshot():
                then = self._asks.pop(message.tag, None)
                if then is not None:
                    then(message)
        return calls

    def _answer(self, flight: Flight, answer: m.Answer, now: float) -> list[Callable[[Handle], None]]:
        tag, number, body = answer
        flight.item = None
        self._unanswered.pop(tag, None)
        if number < 0:
            del self._flights[tag]
            return flight.handle._fail(from_problem(body))
        state = State(number)
        if state.final or not flight.notify:
            del self._flights[tag]
        else:
            self._recheck.append((now + RECHECK_S, tag))
        return flight.handle._change(state, body)

    def _busy(self, tags: Iterable[int], reason: str, at: float) -> list[tuple[Handle, Callable[[Handle], None]]]:
        calls = []
        again = []
        for tag in tags:
            flight = self._flights.get(tag)
            if flight is None:
                continue
            if flight.patient:
                again.append(tag)
                continue
            self.forget(tag)
            what = "the store is away" if reason == "store" else "the router has too much under way"
            error = Unavailable(f"{what}.", fix="Send the same again in a moment.")
            calls += [(flight.handle, call) for call in flight.handle._fail(error)]
        self._later.append((at, again))
        return calls

    def _greeted(self, welcome: m.Welcome) -> None:
        """WELCOME came, perhaps from a new router: everything under way goes out again."""
        self.welcome = welcome
        self._beat_at = float("-inf")
        self._outbox = deque(self._flights)
        self._later = []
        self._recheck.clear()

    # --- out --------------------------------------------------------------

    def outgoing(self, now: float) -> list[m.Message]:
        """Return what is due to be sent."""
        if self.welcome is None:
            if now - self._hello_at < HELLO_AGAIN_S:
                return []
            self._hello_at = now
            return [m.Hello(m.VERSION, self.role, self.session, "", {})]
        messages: list[m.Message] = []
        self._call_back(now)
        if self._outbox:
            messages += self._pack(now)
        if self._to_tell:
            messages += self._to_tell
            self._to_tell = []
        if now - self._beat_at >= self.welcome.heartbeat_s:
            self._beat_at = now
            messages.append(m.Heartbeat(self.session, self.welcome.epoch, 0, 0, (), ()))
        return messages

    def _call_back(self, now: float) -> None:
        """Put back into the outbox what was BUSY, and what was not heard of for long."""
        due = [tags for at, tags in self._later if at <= now]
        if due:
            self._later = [(at, tags) for at, tags in self._later if at > now]
            self._outbox.extend(tag for tags in due for tag in tags)
        for _ in range(MOST_RECHECKED):
            if not self._recheck or self._recheck[0][0] > now:
                break
            tag = self._recheck.popleft()[1]
            if tag in self._flights:
                self._outbox.append(tag)
        if now >= self._resend_at:
            self._resend_at = now + UNANSWERED_S / 4
            # Lest a message was lost: what got no answer at all goes out again.
            late = [tag for tag, flight in self._unanswered.items() if 0 < flight.sent_at < now - UNANSWERED_S]
            self._outbox.extend(late)

    def _pack(self, now: float) -> list[m.Message]:
        items: list[m.Item] = []
        queries: list[m.Query] = []
        size = 0
        while self._outbox and len(items) < MOST_IN_MESSAGE and size < MOST_BYTES_IN_MESSAGE:
            tag = self._outbox.popleft()
            flight = self._flights.get(tag)
            if flight is None:
                continue
            flight.sent_at = now
            if flight.item is not None:
                items.append(flight.item)
                size += len(flight.item.data)
            else:
                handle = flight.handle
                queries.append(m.Query(tag, handle.job_id, handle.from_, handle.to, flight.notify))
                size += 64
        messages: list[m.Message] = []
        if items:
            messages.append(m.Submit(tuple(items)))
        if queries:
            messages.append(m.Status(tuple(queries)))
        return messages

    @property
    def pressing(self) -> bool:
        """Whether something waits to be sent at once."""
        return self.welcome is not None and bool(self._outbox or self._to_tell)

    def silent(self, now: float) -> bool:
        """Whether the router was not heard for a lease: the socket is to be built anew."""
        if self.welcome is None:
            return False
        return now - self._heard_at > self.welcome.heartbeat_s * self.welcome.misses

    def rebuilt(self) -> None:
        self.welcome, self._hello_at = None, float("-inf")

    def wake_in_s(self, now: float) -> float:
        """Return how long the loop may sleep if nothing comes in."""
        if self.welcome is None:
            return max(0.0, self._hello_at + HELLO_AGAIN_S - now)
        if self.pressing:
            return 0.0
        wait = self._beat_at + self.welcome.heartbeat_s - now
        if self._later:
            wait = min(wait, min(at for at, _ in self._later) - now)
        if self._recheck:
            wait = min(wait, self._recheck[0][0] - now)
        return max(0.0, wait)
