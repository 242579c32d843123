"""The line between a daemon and a process that it started: a slot, the fork server, an instance.

A SOCK_SEQPACKET pair: each message arrives whole or not at all, and each is
read by exactly one reader. So the daemon, which keeps the slot's end open
too, can take back jobs the slot has not begun simply by reading them itself;
the kernel decides who gets which. A message too long for a packet travels as
a memfd whose descriptor is passed along (SCM_RIGHTS). A short one may have
another descriptor with it.
"""

from __future__ import annotations

import array
import os
import socket
from typing import Any

import msgpack

# Longer ones cost 25 µs more each way. A buffer twice as long would cost the short ones: it is not taken from the heap.
INLINE_BYTES = 65_536
_BUFFER_BYTES = 1 << 20
_IN_MEMORY = b"\xc1"  # what is no msgpack stands for a message that is in the memfd
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

    def send_with(self, message: list[Any], descriptor: int) -> bool:
        """Send a short message and a descriptor. False when the line is full or the other end is gone."""
        try:
            self._socket.sendmsg([msgpack.packb(message)], [_rights(descriptor)], socket.MSG_DONTWAIT)
        except (BlockingIOError, BrokenPipeError, ConnectionResetError):
            return False
        return True

    def _send_large(self, packed: bytes, flags: int) -> bool:
        body = os.memfd_create("exesys-message")
        try:
            with open(body, "wb", closefd=False) as file:
                file.write(packed)
            self._socket.sendmsg([_IN_MEMORY], [_rights(body)], flags)
        finally:
            os.close(body)
        return True

    def receive(self, wait: bool = True) -> Any:
        """Return the next message, or None: nothing there (without `wait`), or the other end is gone."""
        message, descriptor = self.receive_with(wait)
        if descriptor is not None:
            os.close(descriptor)
        return message

    def receive_with(self, wait: bool = True) -> tuple[Any, int | None]:
        """Return the next message, None as `receive` does, and the descriptor that came with it."""
        try:
            packed, ancillary, _, _ = self._socket.recvmsg(
                INLINE_BYTES, _ONE_DESCRIPTOR, 0 if wait else socket.MSG_DONTWAIT
            )
        except BlockingIOError:
            return None, None
        except ConnectionResetError:
            # Told once: the other end went and had not read all. What it said before is still to be read.
            return self.receive_with(wait)
        if not packed:
            return None, None
        descriptor = array.array("i", ancillary[0][2])[0] if ancillary else None
        if packed == _IN_MEMORY and descriptor is not None:
            with open(descriptor, "rb") as file:
                file.seek(0)
                packed = file.read()
            descriptor = None
        return msgpack.unpackb(packed, use_list=False), descriptor

    def at_end(self) -> bool:
        """Tell whether the other end is gone, and all it sent has been read."""
        try:
            return self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) == b""
        except BlockingIOError:
            return False
        except ConnectionResetError:  # told once
            return self.at_end()

    def close(self) -> None:
        self._socket.close()


def _rights(descriptor: int) -> tuple[int, int, array.array[int]]:
    # socket.send_fds and recv_fds ignore their flags.
    return socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [descriptor])


def pair() -> tuple[socket.socket, socket.socket]:
    """Make a line. Returns the daemon's end and the slot's."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    for end in ends:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return ends
