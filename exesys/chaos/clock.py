"""Another wall clock for the Python programs of one system; the monotonic clocks go on as they are.

So it is when somebody sets the clock of a machine. Redis keeps the true time.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path

_OFF = struct.Struct("<q")  # nanoseconds beside the true time


class Clock:
    """The wall clock of all programs that were started with `environ`. It lives in a directory of its own.

    `path` is that directory, which must not be there yet.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self._off = path / "off"
        self._off.write_bytes(_OFF.pack(0))
        # Python imports this module by itself, before a program begins.
        (path / "sitecustomize.py").write_text(f"from exesys.chaos.clock import fake\n\nfake({str(self._off)!r})\n")
        self.python_path = str(path)

    def set(self, off_s: float) -> None:
        """Set it to so many seconds beside the true time: at one blow, for all."""
        with self._off.open("r+b") as file:
            file.write(_OFF.pack(int(off_s * 1e9)))

    def now_ms(self) -> float:
        """Return the moment it shows, in milliseconds since 1970."""
        return time.time() * 1000 + float(_OFF.unpack(self._off.read_bytes())[0]) / 1e6


def fake(path: str) -> None:
    """Have time.time and time.time_ns of this process tell the time that a clock's file says, also as that changes."""
    fd = os.open(path, os.O_RDONLY)
    off = mmap.mmap(fd, _OFF.size, access=mmap.ACCESS_READ)
    os.close(fd)
    true_ns = time.time_ns

    def time_ns() -> int:
        return true_ns() + int(_OFF.unpack(off[:])[0])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9
