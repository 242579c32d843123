"""What people are shown of queues: plain dicts, the same over REST and on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from exesys import queues
from exesys.command import DEFAULT_QUEUE
from exesys.config import Config
from exesys.store.reader import Reader


def listed(
    config: Config, reader: Reader, workers: Iterable[Mapping[str, Any]], now_ms: int, only: str = ""
) -> list[dict[str, Any]]:
    """Describe all queues that are known, or one: settings, how many wait and run, and how many workers serve it.

    Known are those that are declared or served, in which something waits, or of which something is set.
    """
    served: dict[str, int] = {}
    for worker in workers:
        for queue in worker["queues"] if not worker["draining"] else ():
            served[queue] = served.get(queue, 0) + 1
    known = {DEFAULT_QUEUE, *config.worker.queues, *served, *(queue.name for queue in config.queues)}
    known |= {queue for worker in config.workers for queue in worker.queues}
    records = reader.queues([only] if only else sorted(known | reader.queue_names()))
    # One that was used or set once, and is nothing more now, is not there.
    there = [each for each in records if only or each.name in known or each.waiting or each.running or each.settings]
    oldest = {each.name: each.oldest_ms for each in reader.waiting([each.name for each in there if each.waiting])}
    return [
        {
            "name": record.name,
            "waiting": record.waiting,
            "oldest_s": None if (born := oldest.get(record.name)) is None else round(max(now_ms - born, 0) / 1000, 3),
            "keys": record.keys,
            "running": record.running if record.settings.get("concurrency") else None,
            "workers": served.get(record.name, 0),
            **queues.shown(record.settings),
            "origin": record.settings.get("origin", ""),
        }
        for record in there
    ]
