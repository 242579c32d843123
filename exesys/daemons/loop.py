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
import select
import signal
import socket
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import zmq

PARENT_CHECK_S = 1.0


class Loop:
    """Poll over zmq sockets and descriptors. Make it in the main thread.

    A zmq socket's descriptor tells only that its state changed, so its events
    are asked for before each sleep (zmq_getsockopt(3), ZMQ_FD). That takes half
    the system calls of zmq_poll, which asks twice.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.reloading = False
        self._epoll = select.epoll()
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._parent = os.getppid()
        self._wake, waker = socket.socketpair()
        for end in (self._wake, waker):
            end.setblocking(False)
        self._waker = waker  # kept open: the interpreter writes to its descriptor
        signal.set_wakeup_fd(waker.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        self._epoll.register(self._wake, select.EPOLLIN)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGHUP:
            self.reloading = True
        else:
            self.stopping = True

    def watch(self, source: zmq.Socket[bytes] | int) -> None:
        """Poll a zmq socket or a descriptor for reading."""
        if isinstance(source, int):
            self._epoll.register(source, select.EPOLLIN)
            return
        descriptor = int(source.getsockopt(zmq.FD))
        self._sockets[descriptor] = source
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, source: zmq.Socket[bytes] | int) -> None:
        """Stop polling a source; one never watched, or closed already, is no error."""
        descriptor = source if isinstance(source, int) else int(source.getsockopt(zmq.FD))
        self._sockets.pop(descriptor, None)
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(descriptor)

    def poll(self, wait_s: float) -> set[Any]:
        """Sleep until something can be read, at most `wait_s`; return what.

        A zmq socket that is returned may have nothing to read after all.
        """
        ready: set[Any] = {each for each in self._sockets.values() if int(each.getsockopt(zmq.EVENTS)) & zmq.POLLIN}
        events = self._epoll.poll(0 if ready else max(0.0, min(wait_s, PARENT_CHECK_S)))
        for descriptor, _ in events:
            ready.add(self._sockets.get(descriptor, descriptor))
        if self._wake.fileno() in ready:
            self._wake.recv(4096)
        if not ready and os.getppid() != self._parent:
            logging.getLogger(__name__).warning("the parent process is gone: ending")
            self.stopping = True
        return ready

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._epoll.close()
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
