"""`bin/exesys why`: what each unfinished step of a job waits for, what has failed, and what to do about it."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from typing import Any

from exesys import drawing, output, reach, views
from exesys.advice import Surroundings, advice
from exesys.config import Config
from exesys.errors import ExesysError
from exesys.states import State
from exesys.store.reader import Reader, Step

ANSWER_S = 1.0


def why(config: Config, given: argparse.Namespace) -> int:
    """Print a sentence for each step that has not ended well, and below them what to do."""
    reader = reach.reader(config, given.job_id)
    steps = reach.steps_of(reader, given.job_id)
    around, held_up = Surroundings(), {}
    if any(step.state is State.start for step in steps) and reach.is_ours(config, given.job_id):
        around = _around(config, reader, steps)
        served = views.served_by(around.workers or (), around.paused)
        held_up = views.held_up(steps, served, reader) if around.workers is not None else {}
    told = drawing.why(views.nodes(steps), config.limits.standby_s, held_up)
    told += [f"{step.from_} failed: {views.error_of(step)}" for step in steps if step.state is State.error]
    told += views.untold(steps, reader.callbacks(steps))
    todo = advice(given.job_id, steps, around)
    if given.json:
        output.show({"job_id": given.job_id, "why": told, "todo": todo})
    else:
        print("\n".join(told) if told else f"Nothing of job {given.job_id} waits: all its steps ended well.")
        for line in todo:
            print(f"→ {line}")
    return 0


def _around(config: Config, reader: Reader, steps: Sequence[Step]) -> Surroundings:
    """Ask the router for its workers, and the store for the queues in which steps wait."""
    waiting = [step for step in steps if step.state is State.start]
    workers: list[dict[str, Any]] | None = None
    with contextlib.suppress(ExesysError), reach.connect(config) as client:  # it is only a help
        workers = client.snapshot("workers", timeout=ANSWER_S)["workers"]
    names = sorted({views.queue_of(step) for step in waiting})
    limits = {queue.name: queue.settings for queue in reader.queues(names)}
    refs = [step.ref for step in waiting]
    due = dict(zip(refs, reader.due(refs), strict=True))
    return Surroundings(workers, reader.paused(), limits, due)
