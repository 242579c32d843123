"""Another host, as far as the network goes: a namespace, and a wire to it that delays, loses and can be cut.

The wire is a pair of TUN devices and a thread that carries packets between
them, so that it needs no module of the kernel for bad networks.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import random
import secrets
import select
import shutil
import struct
import subprocess
import threading
import time
from types import TracebackType

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MOST_BYTES = 65_536


def missing() -> str:
    """Return what this machine lacks to have network namespaces; "" when it lacks nothing."""
    if os.geteuid() != 0:
        return "network namespaces (they need root)"
    if shutil.which("ip") is None:
        return "network namespaces (they need ip, of Debian's iproute2)"
    name = f"xs{secrets.token_hex(3)}"
    try:
        _ip("netns", "add", name)
        _ip("netns", "del", name)
        os.close(_tun(f"{name}t"))
    except (OSError, subprocess.CalledProcessError) as error:
        return f"network namespaces ({error})"
    return ""


class Host:
    """A namespace with a wire to ours. `near` is our address on it, `far` is its own."""

    def __init__(self, seed: int) -> None:
        mark = secrets.token_hex(3)
        self.name = f"xs{mark}"
        number = int(mark, 16) % (1 << 14)
        prefix = f"10.231.{number >> 6}.{4 * (number & 63)}".rpartition(".")
        self.near, self.far = (f"{prefix[0]}.{int(prefix[2]) + last}" for last in (1, 2))
        self.delay_s = 0.0
        self.loss = 0.0
        self.cut = False
        self.lost = self.carried = 0
        self._rng = random.Random(seed)
        self._stop, self._stopper = os.pipe()
        ours, theirs = f"{self.name}a", f"{self.name}b"
        self._ends = _tun(ours), _tun(theirs)
        _ip("netns", "add", self.name)
        _ip("link", "set", theirs, "netns", self.name)
        _ip("addr", "add", self.near, "peer", self.far, "dev", ours)
        _ip("link", "set", ours, "up")
        _ip("-n", self.name, "addr", "add", self.far, "peer", self.near, "dev", theirs)
        for device in (theirs, "lo"):
            _ip("-n", self.name, "link", "set", device, "up")
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def __enter__(self) -> Host:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.write(self._stopper, b"\0")
        self._thread.join()
        for descriptor in (*self._ends, self._stop, self._stopper):
            os.close(descriptor)
        _ip("netns", "del", self.name)

    def inside(self, words: list[str]) -> list[str]:
        """Return the words of a command, to be run on this host."""
        return ["ip", "netns", "exec", self.name, *words]

    def _carry(self) -> None:
        under_way: list[tuple[float, int, int, bytes]] = []  # when it arrives, its number, where, the packet
        across = dict(zip(self._ends, reversed(self._ends), strict=True))
        number = 0
        while True:
            wait_s = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
            ready, _, _ = select.select([*self._ends, self._stop], [], [], wait_s)
            if self._stop in ready:
                return
            now = time.monotonic()
            for end in ready:
                packet = os.read(end, _MOST_BYTES)
                if self.cut or self._rng.random() < self.loss:
                    self.lost += 1
                    continue
                number += 1
                heapq.heappush(under_way, (now + self.delay_s, number, across[end], packet))
            while under_way and under_way[0][0] <= now:
                _, _, end, packet = heapq.heappop(under_way)
                if not self.cut:
                    self.carried += 1
                    _write(end, packet)


def _write(end: int, packet: bytes) -> None:
    try:
        os.write(end, packet)
    except OSError:  # the device is not up yet, or not any more: as lost
        return


def _tun(name: str) -> int:
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)
