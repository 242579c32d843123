"""How the system does, second by second: what the router counted since the last look, and what waits in the queues."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from exesys import meters
from exesys.bus.client import Client
from exesys.command import DEFAULT_QUEUE
from exesys.errors import Unavailable
from exesys.store.reader import Reader

ASK_S = 0.5
MOST_QUEUES = 50  # the deepest


class Figures:
    """Called again and again, it tells what happened in between. One thread calls it."""

    def __init__(self, client: Client, reader: Reader) -> None:
        self._client = client
        self._reader = reader
        self._before: Mapping[str, Any] | None = None

    def __call__(self) -> dict[str, Any] | None:
        """Return the figures, None while the router or the store is away."""
        if not self._client.connected:
            return None
        try:
            found = self._client.snapshot("metrics", timeout=ASK_S)["metrics"]
            queues = self._queues()
        except Unavailable:
            return None
        before, self._before = self._before, found
        return {
            "at_ms": time.time_ns() // 1_000_000,
            **meters.between(before, found),
            "queues": queues,
            "slots": found["slots"],
            "workers": found["sessions"].get("worker", 0),
        }

    def _queues(self) -> list[dict[str, Any]]:
        """Tell of the deepest queues, and of those that are paused, the deepest first."""
        now_ms = time.time_ns() // 1_000_000
        found = self._reader.waiting(sorted({DEFAULT_QUEUE, *self._reader.queue_names()}))
        found = sorted((each for each in found if each.depth or each.paused), key=lambda each: (-each.depth, each.name))
        return [
            {
                "name": each.name,
                "waiting": each.depth,
                "oldest_s": None if each.oldest_ms is None else max(now_ms - each.oldest_ms, 0) / 1000,
                "paused": each.paused,
            }
            for each in found[:MOST_QUEUES]
        ]
