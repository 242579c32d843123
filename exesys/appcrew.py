"""The threads of an application server: all of the user's code runs in them, and nothing else does.

The first one makes the instance and ends it; with one thread everything of a
class happens in the same one, as some libraries want it. Calls are run in the
order in which they came.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

from exesys.appservice import AppContext, Service, refusal
from exesys.bus import messages as m
from exesys.bus import wire
from exesys.errors import AppTimeout, AppUnavailable, ExesysError, QueueFull
from exesys.functions import describe_failure

MOST_WAITING = 1000  # calls
MOST_WAITING_BYTES = 64 << 20
log = logging.getLogger(__name__)


class Waiting(NamedTuple):
    """A call that came, and where from."""

    address: bytes
    call: m.Call
    came: float


class Crew:
    """Runs the calls of one instance. Everything but `wake` is called by the thread that has the sockets."""

    def __init__(self, service: Service, make_context: Callable[[], AppContext], wake: Callable[[], None]) -> None:
        """`wake` is called, in a thread of the crew, when there is something new to look at."""
        self.answers: deque[tuple[bytes, bytes]] = deque()  # address and frame, to be sent
        self.ready = False
        self.failure: tuple[str, str, str] | None = None  # why it could not start: type, message, traceback
        self.ended = False
        self.broken = False  # a thread ended unasked: the process is to be begun anew
        self._service = service
        self._make_context = make_context
        self._wake = wake
        self._calls: SimpleQueue[Waiting | None] = SimpleQueue()
        self._bytes = 0  # of what was put in and taken out, each counted by one thread alone
        self._taken_bytes = [0] * service.server.threads
        self._busy: list[bytes | None] = [None] * service.server.threads  # the address of the caller, of each
        self._leaving = False
        self._threads = [
            threading.Thread(target=self._run, args=(number,), daemon=True, name=f"calls-{number + 1}")
            for number in range(service.server.threads)
        ]

    def begin(self) -> None:
        """Make the instance, in the first thread; `ready` or `failure` tells how that went."""
        self._threads[0].start()

    def take(self, address: bytes, call: m.Call, now: float) -> None:
        """Have a call run, or refuse it."""
        waiting = self._calls.qsize()
        held = self._bytes - sum(self._taken_bytes)
        name = self._service.server.name
        if self._leaving or not self.ready:
            error: ExesysError = self._is_leaving()
        elif waiting >= MOST_WAITING or held + len(call.args) > MOST_WAITING_BYTES:
            fix = f"Send less at a time, or give it more processes: [appserver:{name}] processes."
            error = QueueFull(f"{waiting:,} calls wait at this instance of {name}.", fix=fix)
        else:
            self._bytes += len(call.args)
            self._calls.put(Waiting(address, call, now))
            return
        self.answers.append((address, _refused(call.tag, error)))

    def leave(self) -> None:
        """Take no more calls, give back those that did not begin, and end the instance after those that run."""
        self._leaving = True
        error = self._is_leaving()
        with contextlib.suppress(Empty):
            while (waiting := self._calls.get_nowait()) is not None:
                self.answers.append((waiting.address, _refused(waiting.call.tag, error)))
        for _ in self._threads:
            self._calls.put(None)

    @property
    def running(self) -> int:
        """How many calls run."""
        return len(self.callers)

    @property
    def callers(self) -> list[bytes]:
        """The addresses of those whose calls run."""
        return [address for address in self._busy if address is not None]

    def farewell(self) -> bytes:
        """Make the frame that tells a caller, whose calls do not run, that none of them will."""
        return _refused(m.FAREWELL, self._is_leaving())

    def _is_leaving(self) -> AppUnavailable:
        return AppUnavailable(f"this instance of {self._service.server.name} is leaving; the call was not run.")

    @property
    def done(self) -> bool:
        """Whether there is nothing more to wait for."""
        return self.ended or (self.broken and not self.running)

    def _run(self, number: int) -> None:
        try:
            self._work(number)
        except BaseException as error:  # noqa: BLE001  # a thread that is missing looks like one that is idle
            self.broken = True
            log.error("a thread of the calls ended: %s", type(error).__name__)
            self._wake()

    def _work(self, number: int) -> None:
        if number == 0 and not self._start():
            return
        while (waiting := self._calls.get()) is not None:
            self._busy[number] = waiting.address
            self._taken_bytes[number] += len(waiting.call.args)
            try:
                self.answers.append((waiting.address, wire.encode(self._answer(waiting))))
            finally:
                self._busy[number] = None
            self._wake()
        if number == 0:
            self._stop()

    def _answer(self, waiting: Waiting) -> m.Return:
        call = waiting.call
        if not time.monotonic() - waiting.came < call.timeout_s:
            text = f"{self._service.server.name}.{call.method:.80} waited {call.timeout_s:g} s and was not run."
            return m.Return(call.tag, False, refusal(AppTimeout(text)))
        return m.Return(call.tag, *self._service.call(call.method, call.args))

    def _start(self) -> bool:
        try:
            self._service.start(self._make_context)
        except BaseException as error:  # noqa: BLE001  # whatever a class raises is told
            self.failure = describe_failure(error)
        else:
            self.ready = True
            for thread in self._threads[1:]:
                thread.start()
        self._wake()
        return self.ready

    def _stop(self) -> None:
        for thread in self._threads[1:]:
            thread.join()
        try:
            self._service.stop()
        except BaseException as error:  # noqa: BLE001  # it ends all the same
            log.error("stop() failed:\n%s", describe_failure(error)[2].rstrip())
        self.ended = True
        self._wake()


def _refused(tag: int, error: ExesysError) -> bytes:
    return wire.encode(m.Return(tag, False, refusal(error)))
