"""What a client holds of a workflow it sent: the job as a whole."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from exesys import markup
from exesys.bus.handle import Handle
from exesys.command import END
from exesys.errors import ExesysError, JobError, ResultTimeout
from exesys.states import State
from exesys.workflow import Graph

ANSWER_S = 10.0
FOLLOWED = "PredecessorFailed"


class JobHandle:
    """A workflow on its way: like a Future of the job's result."""

    def __init__(
        self, job_id: str, graph: Graph, steps: Sequence[Handle], follow: Callable[[str, str, str, bool], Handle]
    ) -> None:
        self.job_id = job_id
        self.graph = graph
        self._sent = tuple(steps)
        self._ends = [self._sent[number] for number in graph.ends]
        self._follow = follow
        self._followed: dict[int, Handle] = {}

    def __repr__(self) -> str:
        return f"<JobHandle {self.job_id}, {len(self._sent)} steps{', done' if self.done() else ''}>"

    def _repr_html_(self) -> str:
        """Draw it in a notebook, as far as is known without asking: of steps between, only once all is well."""
        well = self.done() and all(end.exception() is None for end in self._ends)
        ends = dict(zip(self.graph.ends, self._ends, strict=True))
        boxes = []
        for number, sent in enumerate(self._sent):
            state = State.data_available if well else ends[number].state if number in ends else None
            boxes.append(markup.Box(sent.from_, sent.cmd, state))
        facts = [("job", markup.code(self.job_id)), ("state", markup.badge(self.state))]
        return markup.facts(facts) + markup.graph(self.graph, boxes)

    def step(self, number: int) -> Handle:
        """Return a handle of one step, by its place in what was sent."""
        if number in self.graph.ends:
            return self._sent[number]
        if number not in self._followed:
            # Only of the steps that end the job the end is told without asking.
            sent = self._sent[number]
            self._followed[number] = self._follow(sent.job_id, sent.from_, sent.to, True)
        return self._followed[number]

    @property
    def state(self) -> State | None:
        """The state of the least finished step that ends the job, error if one failed; None until it was taken."""
        states = [end.state for end in self._ends]
        known = [state for state in states if state is not None]
        if len(known) < len(states):
            return None
        return State.error if State.error in known else min(known)

    def done(self) -> bool:
        """Tell whether every step that ends the job has ended."""
        return all(end.done() for end in self._ends)

    def accepted(self, timeout: float | None = None) -> None:
        """Wait until the router has stored the workflow. Raises what it was refused with, or ResultTimeout."""
        until = None if timeout is None else time.monotonic() + timeout
        for step in self._sent:
            step.accepted(_left(until))

    def wait(self, timeout: float | None = None) -> bool:
        """Wait for the end, whatever it is; tell whether it came within `timeout` seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        return all(end.wait(_left(until)) for end in self._ends)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end; return the value of the only step that goes to end_job, or a map from their names.

        Raises JobError of the step that failed, the refusal when the workflow
        was refused, and ResultTimeout after `timeout` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        while True:
            if not self.wait(_left(until)):
                text = f"job {self.job_id} has not ended within {timeout:g} s."
                raise ResultTimeout(text, fix="It goes on: ask again.")
            if self.settled():
                return self.value()

    @property
    def ends(self) -> Sequence[Handle]:
        """Handles of the steps that end the job. Once all have, `settled` tells whether that holds."""
        return self._ends

    def settled(self) -> bool:
        """Tell whether the ends heard of hold; False when what failed was retried since, and is followed anew.

        Asks the router. Raises JobError of the step that failed, or the refusal.
        """
        failed = next((error for end in self._ends if (error := end.exception()) is not None), None)
        if failed is None:
            return True
        cause = self._cause(failed)
        if cause is not None:
            raise cause
        self._ends = [self._follow(end.job_id, end.from_, end.to, True) for end in self._ends]
        return False

    def value(self) -> Any:
        """Return the job's value, once all has ended well."""
        values = [end.result(0) for end in self._ends]
        return values[0] if len(values) == 1 else dict(zip(self.graph.feeder_names(END), values, strict=True))

    def cancel(self) -> bool:
        """Cancel what has not ended. True when something had not. Raises NotFound, Unavailable."""
        return self._sent[0].cancel()

    def _cause(self, error: ExesysError) -> ExesysError | None:
        """Find the step whose failure made others fail. None when no step is in error any more."""
        if not isinstance(error, JobError):
            return error
        still = False
        asked = [self._follow(step.job_id, step.from_, step.to, False) for step in self._sent]
        until = time.monotonic() + ANSWER_S
        for step in asked:
            try:
                state = step.accepted(_left(until))
            except ExesysError:
                return error  # better than none
            cause = step.exception() if state is State.error else None
            if isinstance(cause, JobError) and cause.type != FOLLOWED:
                return cause
            still = still or state is State.error
        return error if still else None


def _left(until: float | None) -> float | None:
    return None if until is None else max(0.0, until - time.monotonic())
