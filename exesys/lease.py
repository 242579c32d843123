"""The lease of the active controller, as its holder may rely on it. Pure: it is told the time.

The lease itself is a key in Redis that expires. Its holder counts by its own
monotonic clock, from *before* it asked: so it thinks the lease over no later
than Redis does, also when it was stopped (SIGSTOP) in between. Kleppmann's
"How to do distributed locking" (2016) says why the store compares as well: what
is written under a lease goes out in a script that looks at the lease itself.
"""

from __future__ import annotations

LEASE_S = 3.0
MARGIN_S = 0.1  # what is sent on the last moment must arrive within the lease


class Lease:
    """Whether this process is the active one. One thread renews it, any may ask."""

    def __init__(self, session: str) -> None:
        self.session = session
        self._until = float("-inf")

    def renewed(self, ours: bool, asked_at: float) -> None:
        """Take what the store answered to a question that was sent at `asked_at`, monotonic seconds."""
        self._until = asked_at + LEASE_S - MARGIN_S if ours else float("-inf")

    def holds(self, now: float) -> bool:
        """Tell whether it may act as the active one now."""
        return now < self._until
