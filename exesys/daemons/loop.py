"""What every daemon's loop needs: one poll, a stop flag set by signals, a watch on the parent.

Signal handlers only set a flag; the wake-up descriptor makes the poll return
at once. A daemon ends when its parent does (PR_SET_PDEATHSIG), and also when
it finds itself adopted by another process.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import zmq

PARENT_CHECK_S = 1.0


class Loop:
    """Poll over zmq sockets and descriptors. Make it in the main thread."""

    def __init__(self) -> None:
        self.stopping = False
        self.reloading = False
        self._poller = zmq.Poller()
        self._parent = os.getppid()
        self._wake, waker = socket.socketpair()
        for end in (self._wake, waker):
            end.setblocking(False)
        self._waker = waker  # kept open: the interpreter writes to its descriptor
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        self._poller.register(self._wake, zmq.POLLIN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reloading = True
        else:
            self.stopping = True

    def watch(self, source: Any) -> None:
        """Poll a zmq socket or a descriptor for reading."""
        self._poller.register(source, zmq.POLLIN)

    def forget(self, source: Any) -> None:
        """Stop polling a source; one never watched is no error."""
        with contextlib.suppress(KeyError):
            self._poller.unregister(source)

    def poll(self, wait_s: float) -> set[Any]:
        """Sleep until something can be read, at most `wait_s`; return what."""
        wait_s = max(0.0, min(wait_s, PARENT_CHECK_S))
        events = self._poller.poll(int(wait_s * 1000 + 0.999))
        ready = {source for source, _ in events}
        if self._wake.fileno() in ready:
            self._wake.recv(4096)
        if not events and os.getppid() != self._parent:
            logging.getLogger(__name__).warning("the parent process is gone: ending")
            self.stopping = True
        return ready

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._wake.close()
        self._waker.close()


def run(name: str, main: Callable[[], int]) -> None:
    """Run a daemon's main with logging to stdout, and end with its exit code."""
    from exesys.errors import ExesysError

    # Messages are trees, not rings: the collector finds nothing, so let it look seldom.
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    logging.basicConfig(
        stream=sys.stdout, level=logging.INFO, format=f"%(asctime)s {name} %(levelname)s %(message)s", force=True
    )
    try:
        code = main()
    except ExesysError as error:
        logging.getLogger(name).error("%s", error)
        code = 1
    sys.exit(code)
