"""Puts the wall clock of each Python program off by what stands in a file, at once when that changes.

The monotonic clocks go on as they are: so it is when somebody sets the clock of a machine.
"""

import mmap
import os
import struct
import time


def fake(path: str) -> None:
    """Have time.time and time.time_ns tell another time; the file holds so many ns, signed, 8 bytes."""
    with open(path, "rb") as file:
        off = mmap.mmap(file.fileno(), 8, access=mmap.ACCESS_READ)
    true_ns = time.time_ns

    def time_ns() -> int:
        return true_ns() + int(struct.unpack("<q", off[:])[0])

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


if "FAKED_CLOCK" in os.environ:
    fake(os.environ["FAKED_CLOCK"])
