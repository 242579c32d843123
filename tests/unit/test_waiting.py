"""Jobs in queues that no worker serves are found, and no others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from exesys import waiting
from exesys.states import State
from exesys.store.reader import ANY, Sought, Step

WORKERS = [
    {"queues": ["default"], "draining": False},
    {"queues": ["default", "fast"], "draining": False},
    {"queues": ["gpu"], "draining": True},
]


def step(queue: str = "", state: State = State.start, job_id: str = "j") -> Step:
    return Step(f"client:{job_id}", state, {"queue": queue.encode()} if queue else {})


class Reader:
    """Stands for the store: the newest jobs in a state, and how many are ready in each queue."""

    def __init__(self, steps: Sequence[Step], ready: dict[str, int]) -> None:
        self._steps = steps
        self._ready = ready

    def jobs(self, limit: int, before: str = "", sought: Sought = ANY) -> Any:
        found = [(each.job_id, [each, step("gone", State.error)]) for each in self._steps if each.state is sought.state]
        return found[:limit], ""

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        return {queue: self._ready.get(queue, 0) for queue in queues}


def unserved(steps: Sequence[Step], ready: dict[str, int], options: Sequence[dict[str, Any]] = ()) -> dict[str, int]:
    reader: Any = Reader(steps, ready)
    return waiting.unserved(reader, WORKERS, [{"options": each} for each in options])


def test_a_queue_without_a_worker_is_named_with_its_jobs() -> None:
    assert unserved([step("gpu"), step(), step("fast")], {"gpu": 12, "default": 3}) == {"gpu": 12}


def test_a_job_that_waits_for_its_time_counts() -> None:
    assert unserved([step("gpu"), step("gpu"), step("slow")], {"gpu": 1}) == {"gpu": 2, "slow": 1}


def test_an_old_job_is_found_by_the_queue_of_its_function() -> None:
    options = [{"queue": "night"}, {"queue": "empty"}, {}]
    assert unserved([], {"night": 1}, options) == {"night": 1}


def test_what_is_served_or_does_not_wait_is_not_named() -> None:
    assert unserved([step(), step("fast"), step("gpu", State.processing)], {"default": 9, "fast": 9}) == {}


def test_without_workers_every_queue_is_named() -> None:
    reader: Any = Reader([step(), step("fast")], {"default": 1})
    assert waiting.unserved(reader, [], []) == {"default": 1, "fast": 1}
