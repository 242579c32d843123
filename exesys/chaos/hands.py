"""What keeps the system busy: threads that go on until they are told to stop, and that no blow discourages."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

from exesys.chaos.rig import Rig
from exesys.errors import Unavailable

PATIENCE_S = 90.0
TURN_S = 0.1


class Hand(threading.Thread, ABC):
    """One such thread. `wrong` takes what should not have happened, its own failure among it."""

    def __init__(self, name: str, rig: Rig) -> None:
        super().__init__(name=name, daemon=True)
        self.rig = rig
        self.wrong: list[str] = []
        self.halt = threading.Event()

    def run(self) -> None:
        """Work until `halt`."""
        try:
            self.work()
        except Exception as error:  # a thread's error would be lost
            self.wrong.append(f"the thread {self.name} failed: {type(error).__name__}: {error}")
            raise

    @abstractmethod
    def work(self) -> None:
        """What it does until it is told to stop, and to finish."""


def patiently(do: Callable[[], Any]) -> None:
    """Do what may be repeated until the system takes it. Raises Unavailable when it does not for long."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            do()
            return
        except Unavailable:
            if time.monotonic() > deadline:
                raise
        time.sleep(TURN_S)  # between two tries; they are bounded by the deadline
