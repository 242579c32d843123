"""Names for jobs that have none."""

from __future__ import annotations

import os

BYTES = 16
DRAWN = 256  # at once


class Ids:
    """Makes random job_ids, 32 hexadecimal digits each. Thread-safe.

    They are drawn from the system many at once: with each draw a thread lets go
    of the interpreter's lock, and another that takes it keeps it for a while. A
    process that was forked draws its own.
    """

    def __init__(self) -> None:
        self._left: list[str] = []
        self._process = os.getpid()

    def __call__(self) -> str:
        if os.getpid() != self._process:
            self._left, self._process = [], os.getpid()
        while True:
            try:
                return self._left.pop()
            except IndexError:
                drawn = os.urandom(BYTES * DRAWN).hex()
                self._left += [drawn[at : at + 2 * BYTES] for at in range(0, len(drawn), 2 * BYTES)]
