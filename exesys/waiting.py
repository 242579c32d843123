"""Jobs that wait for a worker that is not there: in queues that nobody serves.

The store keeps no list of queues. They are found by the newest jobs that
wait, and by the queues that functions name; a single old job, sent to a queue
of its own before ten thousand others, is not seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from exesys import views
from exesys.command import DEFAULT_QUEUE
from exesys.states import State

if TYPE_CHECKING:
    from exesys.store.reader import Reader

NEWEST = 500


def unserved(
    reader: Reader, workers: Iterable[Mapping[str, Any]], functions: Iterable[Mapping[str, Any]]
) -> dict[str, int]:
    """Return how many jobs were found in each queue that none of these workers serves.

    `workers` and `functions` are as the router tells them. Raises StoreAway.
    """
    from exesys.store.reader import Sought

    served = views.served_by(workers)
    found, _ = reader.jobs(NEWEST, sought=Sought(State.start))
    seen = Counter(views.queue_of(step) for _, steps in found for step in steps if step.state is State.start)
    named = {each["options"].get("queue", DEFAULT_QUEUE) for each in functions}
    left = sorted((seen.keys() | named) - served.keys())
    # Seen and not ready are those that wait for their time.
    counts = {queue: max(seen[queue], ready) for queue, ready in reader.depths(left).items()}
    return {queue: count for queue, count in counts.items() if count}
