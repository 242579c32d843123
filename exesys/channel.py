"""The line between a worker daemon and one of its slots.

A SOCK_SEQPACKET pair: each message arrives whole or not at all, and each is
read by exactly one reader. So the daemon, which keeps the slot's end open
too, can take back jobs the slot has not begun simply by reading them itself;
the kernel decides who gets which. A message too long for a packet travels as
a memfd whose descriptor is passed along (SCM_RIGHTS).
"""

from __future__ import annotations

import array
import os
import socket
from typing import Any

import msgpack

INLINE_BYTES = 4096
_BUFFER_BYTES = 1 << 20
_ONE_DESCRIPTOR = socket.CMSG_SPACE(array.array("i").itemsize)


class Channel:
    """One end of the line."""

    def __init__(self, end: socket.socket) -> None:
        self._socket = end

    def fileno(self) -> int:
        return self._socket.fileno()

    def send(self, message: list[Any] | tuple[Any, ...], wait: bool = True) -> bool:
        """Send a message. False when the line is full (and `wait` is not set) or the other end is gone."""
        packed: bytes = msgpack.packb(message)
        flags = 0 if wait else socket.MSG_DONTWAIT
        try:
            if len(packed) <= INLINE_BYTES:
                self._socket.send(packed, flags)
                return True
            return self._send_large(packed, flags)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False

    def _send_large(self, packed: bytes, flags: int) -> bool:
        body = os.memfd_create("exesys-message")
        try:
            with open(body, "wb", closefd=False) as file:
                file.write(packed)
            # socket.send_fds and recv_fds ignore their flags.
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [body]))
            self._socket.sendmsg([b"\xc1"], [rights], flags)
        finally:
            os.close(body)
        return True

    def receive(self, wait: bool = True) -> Any:
        """Return the next message, or None: nothing there (without `wait`), or the other end is gone."""
        try:
            packed, ancillary, _, _ = self._socket.recvmsg(
                INLINE_BYTES, _ONE_DESCRIPTOR, 0 if wait else socket.MSG_DONTWAIT
            )
        except (BlockingIOError, ConnectionResetError):
            return None
        if not packed:
            return None
        if ancillary:
            with open(array.array("i", ancillary[0][2])[0], "rb") as file:
                file.seek(0)
                packed = file.read()
        return msgpack.unpackb(packed, use_list=False)

    def close(self) -> None:
        self._socket.close()


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a line. Returns the daemon's end and the slot's."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ends
