"""How many topics each subscriber has, so that one with very many is let go. Pure.

libzmq keeps every topic in memory, however many there are and whoever asks
for them, and tells of each that is new or that nobody wants any more.
"""

from __future__ import annotations

from collections import defaultdict

MOST = 1000  # of one connection
MOST_BYTES = 300  # of one topic


class Topics:
    """The topics there are, each counted for the connection that subscribed to it first."""

    def __init__(self) -> None:
        self._of: dict[bytes, int] = {}
        self._topics: defaultdict[int, set[bytes]] = defaultdict(set)

    def __len__(self) -> int:
        return len(self._of)

    def wanted(self, topic: str) -> bool:
        """Tell whether somebody subscribes to a topic, or to all that begin as it does."""
        return any(topic.encode().startswith(each) for each in self._of)

    def heard(self, told: bytes, connection: int) -> bool:
        """Take what a socket of the type XPUB received; tell whether the connection is to be ended."""
        mark, topic = told[:1], told[1:]
        if mark in (b"\0", b"\1"):
            self._forget(topic)
        if mark != b"\1":
            return False
        self._of[topic] = connection
        self._topics[connection].add(topic)
        if len(self._topics[connection]) <= MOST and len(topic) <= MOST_BYTES:
            return False
        for each in tuple(self._topics[connection]):
            self._forget(each)  # its number is soon that of another
        return True

    def _forget(self, topic: bytes) -> None:
        connection = self._of.pop(topic, None)
        if connection is not None:
            self._topics[connection].discard(topic)
            if not self._topics[connection]:
                del self._topics[connection]
