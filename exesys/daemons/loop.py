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
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import zmq

from exesys import environment, logs
from exesys.bus.sockets import DRAIN, Socket, drain, drain_named, drain_subscribers, readable, send
from exesys.config import Config
from exesys.errors import ExesysError

PARENT_CHECK_S = 1.0


class Loop:
    """Poll over zmq sockets and descriptors. Make it in the main thread.

    A zmq socket's descriptor tells once that its state changed, and any call on
    the socket may take that note away (zmq_getsockopt(3), ZMQ_FD). So sockets are
    read and written through here: one that may have a message whose note was
    taken is asked before the next sleep. zmq_poll asks all of them, twice.
    """

    def __init__(self) -> None:
        self.stopping = False
        self.reloading = False
        self._epoll = select.epoll()
        self._sockets: dict[int, Socket] = {}
        self._unsure: set[Socket] = set()
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

    def watch(self, source: Socket | int) -> None:
        """Poll a zmq socket or a descriptor for reading."""
        if isinstance(source, int):
            self._epoll.register(source, select.EPOLLIN)
            return
        descriptor = int(source.getsockopt(zmq.FD))
        self._sockets[descriptor] = source
        self._unsure.add(source)
        self._epoll.register(descriptor, select.EPOLLIN)

    def forget(self, source: Socket | int) -> None:
        """Stop polling a source; one never watched, or closed already, is no error."""
        descriptor = source if isinstance(source, int) else int(source.getsockopt(zmq.FD))
        gone = self._sockets.pop(descriptor, None)
        if gone is not None:
            self._unsure.discard(gone)
        with contextlib.suppress(OSError, ValueError):
            self._epoll.unregister(descriptor)

    def poll(self, wait_s: float, awake_s: float = 0.0) -> set[Any]:
        """Sleep until something can be read, at most `wait_s`; return what.

        For the first `awake_s` seconds it does not sleep but looks again and again: to be woken takes longer.
        A zmq socket that is returned is to be read; it may have nothing after all.
        """
        if self._unsure:
            self._unsure = {each for each in self._unsure if readable(each)}
        ready: set[Any] = set(self._unsure)
        events = self._epoll.poll(0) if ready or awake_s else []
        if awake_s and not ready:
            until = time.monotonic() + min(awake_s, wait_s)
            while not events and time.monotonic() < until:
                events = self._epoll.poll(0)
        if not (ready or events):
            events = self._epoll.poll(max(0.0, min(wait_s, PARENT_CHECK_S)))
        for descriptor, _ in events:
            ready.add(self._sockets.get(descriptor, descriptor))
        if self._wake.fileno() in ready:
            self._wake.recv(4096)
        if not ready:
            self._unsure.update(self._sockets.values())  # idle: look whether a note was lost in another way
            if os.getppid() != self._parent:
                logging.getLogger(__name__).warning("the parent process is gone: ending")
                self.stopping = True
        return ready

    def read(self, socket: Socket) -> list[list[bytes]]:
        """Read what is there, up to DRAIN messages; the rest comes with the next `poll`."""
        messages = drain(socket)
        if len(messages) == DRAIN:
            self._unsure.add(socket)
        return messages

    def read_named(self, socket: Socket) -> list[tuple[str, list[bytes]]]:
        """Read as `read` does, at a guarded socket: each message, and whose key it came with."""
        messages = drain_named(socket)
        self._unsure.add(socket)
        return messages

    def read_subscribers(self, socket: Socket) -> list[tuple[int, bytes]]:
        """Read as `read` does, what subscribers sent: the descriptor of each one's connection, and the message."""
        messages = drain_subscribers(socket)
        self._unsure.add(socket)
        return messages

    def send(self, socket: Socket, *frames: bytes) -> bool:
        """Send on a watched socket, as `sockets.send` does."""
        self._unsure.add(socket)
        return send(socket, *frames)

    def close(self) -> None:
        signal.set_wakeup_fd(-1)
        self._epoll.close()
        self._wake.close()
        self._waker.close()


class Complaint:
    """What the router complains of: logged once, until it says something else."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._heard = ""

    def hear(self, text: str) -> None:
        if text != self._heard:
            self._heard = text
            self._log.warning("the router says: %s", text)


def settings(name: str) -> Config:
    """Read the settings of the daemon `name`, and log from now on in the form they say. Raises ConfigError."""
    config = environment.load()
    logs.change(config.logs.format, os.environ.get("SUPERVISOR_PROCESS_NAME", name))
    return config


def run(name: str, main: Callable[[], int]) -> None:
    """Run a daemon's main with logging to stdout, and end with its exit code."""
    # Messages are trees, not rings: the collector finds nothing, so let it look seldom.
    gc.freeze()
    gc.set_threshold(20_000, 50, 50)
    logs.begin(name)
    try:
        code = main()
    except ExesysError as error:
        logging.getLogger(name).error("%s", error)
        code = 1
    except Exception:
        logging.getLogger(name).exception("an error that should not be: the program ends")
        code = 1
    sys.exit(code)
