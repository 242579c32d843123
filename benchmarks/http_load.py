"""POST many bodies over a few kept connections, in one thread: the load must cost less than what it measures."""

from __future__ import annotations

import re
import selectors
import socket
import time
from collections.abc import Sequence

ACCEPTED = b"HTTP/1.1 202 "
SILENT_S = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class Refused(Exception):
    """REST did not accept a command, or ended the conversation."""


def post_all(host: str, port: int, path: str, bodies: Sequence[bytes], connections: int) -> float:
    """Send each body and read its answer. Returns the seconds it took. Raises Refused unless each is a 202."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\nContent-Length: "
    requests = iter([f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies])
    left = len(bodies)
    answers: dict[socket.socket, bytearray] = {}
    with selectors.DefaultSelector() as selector:
        try:
            for _ in range(min(connections, left)):
                connection = socket.create_connection((host, port), timeout=SILENT_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                selector.register(connection, selectors.EVENT_READ)
                answers[connection] = bytearray()
            since = time.perf_counter()
            for connection in answers:
                connection.sendall(next(requests))
            while left:
                ready = selector.select(SILENT_S)
                if not ready:
                    raise Refused(f"REST has been silent for {SILENT_S:g} s, with {left} requests to go.")
                for key, _ in ready:
                    connection = key.fileobj  # type: ignore[assignment]  # only sockets are registered
                    if _read(connection, answers[connection]):
                        left -= 1
                        following = next(requests, None)
                        if following is not None:
                            connection.sendall(following)
            return time.perf_counter() - since
        finally:
            for connection in answers:
                connection.close()


def _read(connection: socket.socket, answer: bytearray) -> bool:
    """Read what has come; tell whether an answer is complete, and empty the buffer then."""
    came = connection.recv(1 << 16)
    answer += came
    head, end, body = bytes(answer).partition(b"\r\n\r\n")
    if not came or (end and not head.startswith(ACCEPTED)):
        raise Refused(f"REST answered {bytes(answer[:300])!r}.")
    length = _LENGTH.search(head)
    if not end or length is None or len(body) < int(length[1]):
        return False
    answer.clear()
    return True
