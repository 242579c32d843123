"""What a Redis answered, to be played to the router once more."""

from __future__ import annotations

import select
from typing import Any

from exesys.store.line import Line

ANSWER_S = 10.0


class _Head:
    """Stands for the socket to Redis: gives what is on the tape, or puts there what comes."""

    def __init__(self, tape: list[bytes], written: list[bytes], socket: Any = None) -> None:
        self._tape = tape
        self._written = written
        self._socket = socket
        self._at = 0

    def recv(self, size: int) -> bytes:
        if self._socket is not None:
            select.select([self._socket], [], [], ANSWER_S)
            self._tape.append(self._socket.recv(size))
            return self._tape[-1]
        self._at += 1
        return self._tape[self._at - 1]

    def send(self, data: memoryview) -> int:
        if self._socket is not None:
            self._written.append(bytes(data))
            self._socket.sendall(data)
        return len(data)

    def settimeout(self, timeout_s: float) -> None:
        pass

    def fileno(self) -> int:
        return -1


class Taped(Line):
    """The router's line to a Redis that is there (`url`), or is on a tape."""

    def __init__(self, url: str, tape: list[bytes]) -> None:
        super().__init__(url or "unix:///nowhere")
        self._tape = tape
        self._live = bool(url)
        self.written: list[bytes] = []

    def open(self) -> None:
        if self._live:
            super().open()
        self._socket = _Head(self._tape, self.written, self._socket)
