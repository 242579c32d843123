"""What a client holds of a command it sent: like a `concurrent.futures.Future`."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, Protocol

from exesys import codec, markup
from exesys.bus.future import JobFuture
from exesys.errors import ExesysError, JobCancelled, JobError, ResultTimeout
from exesys.states import State
from exesys.troubles import Trouble

TAKEN_S = 10.0  # so long a cancel waits until its command was taken
CANCELLED = ("Cancelled", "it was cancelled")  # type and message of a job that was
Drive = Callable[[Callable[[], bool], float], None]


class Owner(Protocol):
    """What a handle needs of the client that made it."""

    def cancel(self, job_id: str) -> int: ...

    def withdraw(self, handle: Handle) -> None: ...


class Handle:
    """A command on its way: like a `concurrent.futures.Future`, safe in any thread.

    `job_id`, `from_`, `to` and `cmd` are those of the command.
    """

    __slots__ = (
        "_body",
        "_callbacks",
        "_drive",
        "_error",
        "_first",
        "_lock",
        "_owner",
        "_state",
        "_waiters",
        "cmd",
        "from_",
        "held_up",
        "job_id",
        "to",
    )

    def __init__(
        self,
        job_id: str,
        from_: str,
        to: str,
        cmd: str,
        lock: threading.Lock,
        drive: Drive | None = None,
        owner: Owner | None = None,
    ) -> None:
        """`drive` lets the waiting thread serve the connection until its condition holds or the time is over.

        That time is in monotonic seconds.
        """
        self.job_id = job_id
        self.from_ = from_
        self.to = to
        self.cmd = cmd
        self._lock = lock
        self._drive = drive
        self._owner = owner
        self._state: State | None = None
        self._body: Any = None
        self._error: ExesysError | None = None
        self._waiters: list[threading.Lock] | None = None
        self._callbacks: list[Callable[[Handle], None]] | None = None
        self._first: Callable[[Handle], None] | None = None
        self.held_up: Trouble | None = None  # why the router took it not yet, as it said last

    def __repr__(self) -> str:
        return f"<Handle {self.cmd} {self.job_id} {self._state.name if self._state is not None else 'sent'}>"

    def _repr_html_(self) -> str:
        """Show it in a notebook, as far as is known without asking."""
        rows = [("job", markup.code(self.job_id)), ("cmd", markup.code(self.cmd)), ("state", self.shown_state())]
        error = self.exception()
        if error is not None:
            rows.append(("error", markup.code(str(error))))
            if isinstance(error, JobError) and error.traceback:
                rows.append(("traceback", f"<details>{markup.code(error.traceback)}</details>"))
        elif self.done():
            rows.append(("result", markup.code(repr(self.result(0)))))
        return markup.facts(rows)

    def shown_state(self) -> str:
        """Return the state as HTML."""
        refused = self._error is not None and self._state is None
        return markup.badge(State.error if refused else self._state)

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
            return job_error(self._body, self.job_id)
        return None

    def adopt(self, other: Handle) -> None:
        """Take over what another handle has heard of the same step."""
        with self._lock:
            callbacks = [] if self.done() or other._state is None else self._change(other._state, other._body)
        for callback in callbacks:
            callback(self)

    def cancel(self) -> bool:
        """Cancel the job, all its steps. True when something of it had not ended yet. Raises NotFound, Unavailable.

        A command that the router has not taken yet is waited for: a cancel that overtakes it would find nothing.
        """
        if self._owner is None:
            return False
        if self._state is None:
            try:
                self.accepted(TAKEN_S)
            except ResultTimeout:
                pass  # whether it was taken is not known: the cancel tells
            except ExesysError:
                return False  # it was refused
        return self._owner.cancel(self.job_id) > 0

    def future(self) -> JobFuture[Any]:
        """Return a `concurrent.futures.Future` of it, for `as_completed`, `wait` and `asyncio.wrap_future`."""
        return JobFuture(self, self._withdraw)

    def _withdraw(self) -> None:
        if self._owner is not None:
            self._owner.withdraw(self)

    def __await__(self) -> Generator[Any, None, Any]:
        """Wait in asyncio. Who stops waiting cancels nothing."""
        yield from ended(self).__await__()
        return self.result(0)

    def add_done_callback(self, callback: Callable[[Handle], None]) -> None:
        """Call `callback(handle)` at the end, in the client's thread; at once if it ended."""
        with self._lock:
            if not self.done():
                self._callbacks = [*(self._callbacks or ()), callback]
                return
        callback(self)

    def on_answer(self, callback: Callable[[Handle], None]) -> None:
        """Call `callback(handle)` when the router has taken or refused it, in the client's thread.

        To be said before it is sent.
        """
        self._first = callback

    def remove_done_callback(self, callback: Callable[[Handle], None]) -> None:
        """Call this no more at the end."""
        with self._lock:
            self._callbacks = [each for each in self._callbacks or () if each != callback] or None

    def _wait(self, condition: Callable[[], bool], timeout: float | None, what: str) -> None:
        if condition():
            return
        until = None if timeout is None else time.monotonic() + timeout
        drive = None
        while self._drive is not drive and not condition():  # a command that moves is waited for where it went
            drive = self._drive
            self._served(drive, condition, float("inf") if until is None else until)
        while not condition():
            with self._lock:
                if condition():
                    return
                waiter = threading.Lock()
                waiter.acquire()
                self._waiters = [*(self._waiters or ()), waiter]
            left = -1 if until is None else max(0.0, until - time.monotonic())
            if not waiter.acquire(timeout=left) and not condition():
                text = f"job {self.job_id} {what} within {timeout:g} s."
                if self._state is None and self.held_up is not None:
                    raise ResultTimeout(f"{text[:-1]}: {self.held_up.why}", fix=self.held_up.fix)
                if self._state is None:
                    raise ResultTimeout(text, fix="The router has not answered for it: is the system up?")
                raise ResultTimeout(text, fix="It goes on: ask again.")

    def _served(self, drive: Drive | None, condition: Callable[[], bool], until: float) -> None:
        """Serve the connection here, until the condition holds or the command has moved to another."""
        if drive is not None:
            drive(lambda: condition() or self._drive is not drive, until)

    def _moved(self, drive: Drive) -> None:
        """Be served by another connection from now on."""
        self._drive = drive

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
        callbacks: list[Callable[[Handle], None]] = []
        if self._first is not None:
            callbacks.append(self._first)
            self._first = None
        if self._callbacks and self.done():
            callbacks += self._callbacks
            self._callbacks = None
        return callbacks


class Handles(list[Handle]):
    """Handles in the order of what was sent; a notebook shows them as a table."""

    def _repr_html_(self) -> str:
        rows = [
            (markup.code(handle.job_id), markup.code(handle.cmd), handle.shown_state())
            for handle in self[: markup.MOST_ROWS]
        ]
        return markup.table(("job", "cmd", "state"), rows, len(self) - len(rows))


async def ended(*handles: Handle) -> None:
    """Wait until all of these have ended. Who stops waiting leaves nothing behind."""
    import asyncio  # most clients do without

    loop = asyncio.get_running_loop()
    all_ended = asyncio.Event()

    def look() -> None:
        if all(handle.done() for handle in handles):
            all_ended.set()

    def wake(_: Handle) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(look)

    waited = [handle for handle in handles if not handle.done()]
    for handle in waited:
        handle.add_done_callback(wake)
    try:
        if waited:
            await all_ended.wait()
    finally:
        for handle in waited:
            handle.remove_done_callback(wake)


def job_error(body: Any, job_id: str = "") -> JobError:
    """Make the error of an answer in state 4: [error bytes, attempts]."""
    packed, attempts = body
    told = codec.unpack(packed) if packed else {}
    type_, text = str(told.get("type", "Error")), str(told.get("message", ""))
    kind = JobCancelled if (type_, text) == CANCELLED else JobError
    return kind(type_, text, attempts, str(told.get("traceback", "")), job_id)
