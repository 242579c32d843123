"""Running a workflow in this process, by the rules of `exesys/workflow.py`: step after step, retries at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from exesys import codec, command
from exesys.bus.messages import Added
from exesys.command import END
from exesys.config import Config
from exesys.context import JobInfo
from exesys.errors import ExesysError, JobError
from exesys.functions import Library, describe_failure
from exesys.states import State
from exesys.testing.calling import Outcome, World, call, load
from exesys.workflow import Graph, Progress, Step, call_feeders

FOLLOWED = "PredecessorFailed"


class Builder(Protocol):
    """What `exesys.Workflow` is."""

    def commands(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True)
class StepOutcome:
    """How one step stands in the end.

    `outcome` is what its last attempt gave, None when it failed or did not
    run; `error` is what it failed with; `attempts` counts from 1, 0 when it did not run.
    """

    from_: str
    to: str
    cmd: str
    state: State
    attempts: int
    outcome: Outcome | None
    error: JobError | None

    @property
    def value(self) -> Any:
        """What the step gave. Raises JobError when it failed."""
        if self.outcome is None:
            assert self.error is not None
            raise self.error
        return self.outcome.value


@dataclass(frozen=True)
class Flow:
    """How a workflow ended. `steps` are by `from`, a further one with the same `from` by `from>to`; added ones too."""

    job_id: str
    steps: Mapping[str, StepOutcome]

    @property
    def state(self) -> State:
        """data_available when every step ended well, else error."""
        good = all(step.state is State.data_available for step in self.steps.values())
        return State.data_available if good else State.error

    def result(self) -> Any:
        """Return the job's `EOJ`: the value of the only step that goes to end_job, or a map of several.

        Raises JobError of the step that failed, not of those that failed with it.
        """
        errors = [step.error for step in self.steps.values() if step.error is not None]
        if errors:
            raise next((error for error in errors if error.type != FOLLOWED), errors[0])
        ends = [step for step in self.steps.values() if END in step.to.split(",")]
        names = call_feeders([Step(end.from_, tuple(end.to.split(","))) for end in ends])
        return ends[0].value if len(ends) == 1 else dict(zip(names, (end.value for end in ends), strict=True))


def run_workflow(
    workflow: Builder | Sequence[Mapping[str, Any]],
    *,
    modules: Sequence[Path | str] = (),
    functions: Mapping[str, Callable[..., Any]] | None = None,
    job_id: str = "test",
    redis: Any = None,
    mongo: Any = None,
    answers: Mapping[str, Any] | None = None,
    apps: Mapping[str, Any] | None = None,
    config: Config | None = None,
) -> Flow:
    """Run a workflow to its end, and tell how each step stands.

    workflow: an `exesys.Workflow`, or commands as REST takes them. modules: the
    directories of its functions (default: those of the settings here).
    functions: by cmd, some that take the place of others. The rest is that of
    `run`. Steps run one after the other in the order in which they may; what
    failed is tried again at once, as often as its `retries`; delays are not
    waited for, and time limits not kept.

    Raises BadCommand, TooLarge or UnknownFunction when a system would refuse
    it. What a function raises is its step's error.
    """
    world = World(redis, mongo, answers, apps, config)
    given = workflow if isinstance(workflow, Sequence) else workflow.commands()
    bodies = [{**body, "job_id": job_id} if isinstance(body, Mapping) else body for body in given]
    limits = command.Limits(world.limits.data_bytes, world.limits.depth)
    commands = command.workflow_from_json(bodies, limits, lambda: job_id)
    graph = Graph((each.from_, each.to) for each in commands)
    graph.check(world.limits.workflow_steps)
    own = Library.of(functions or {})
    places = own if functions and all(each.cmd in functions for each in commands) else load(modules)
    return _Run(job_id, commands, graph, (own, places), world).to_its_end()


class _Run:
    """One run: the graph's progress, and what each step gave."""

    def __init__(
        self,
        job_id: str,
        commands: list[command.Command],
        graph: Graph,
        libraries: tuple[Library, Library],
        world: World,
    ) -> None:
        self._job_id = job_id
        self._commands = commands
        self._progress = Progress(graph)
        self._libraries = libraries
        self._world = world
        self._outcomes: dict[int, Outcome] = {}
        self._errors: dict[int, JobError] = {}
        self._attempts: dict[int, int] = {}
        for each in commands:
            self._library(each.cmd)

    def to_its_end(self) -> Flow:
        waiting = deque(self._progress.graph.roots)
        while waiting:
            number = waiting.popleft()
            if self._progress.states[number] is State.start:
                waiting += self._step(number)
        graph = self._progress.graph
        return Flow(self._job_id, {first: self._told(number) for number, first in enumerate(graph.firsts)})

    def _told(self, number: int) -> StepOutcome:
        of = self._commands[number]
        state = self._progress.states[number]
        found = self._attempts.get(number, 0), self._outcomes.get(number), self._errors.get(number)
        return StepOutcome(of.from_, of.to, of.cmd, state, *found)

    def _library(self, cmd: str) -> Library:
        own, others = self._libraries
        if cmd in own.catalogue.names:
            return own
        others.catalogue.resolve(cmd)
        return others

    def _step(self, number: int) -> list[int]:
        """Run one step, as often as it may. Returns those that start now."""
        data = self._data(number)
        if isinstance(data, JobError):
            self._fail(number, data)
            return []
        of = self._commands[number]
        library = self._library(of.cmd)
        options = {**library.catalogue.resolve(of.cmd).options, **of.options}
        self._progress.begin(number)
        for attempt in range(1, 2 + int(options.get("retries", 0))):
            self._attempts[number] = attempt
            info = JobInfo(self._job_id, of.from_, of.to, of.cmd, attempt)
            try:
                outcome = call(library, info, data, self._world)
                started = self._grow(outcome.added)
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  # whatever a function raises is its own result
                failure = _failure(error, attempt, self._job_id)
                continue
            self._outcomes[number] = outcome
            return [*started, *self._progress.end(number)]
        self._fail(number, failure)
        return []

    def _fail(self, number: int, error: JobError) -> None:
        self._errors[number] = error
        self._spread(self._progress.fail(number))

    def _spread(self, failed: Sequence[int]) -> None:
        for number in failed:
            self._errors[number] = JobError(FOLLOWED, self._progress.reasons[number], 0, job_id=self._job_id)

    def _grow(self, added: Sequence[Added]) -> list[int]:
        """Take the steps that an attempt added. Raises JobError `BadStep` when they do not fit."""
        if not added:
            return []
        try:
            built = [
                command.build(step.from_, step.to, step.cmd, step.data, self._job_id, step.options) for step in added
            ]
            for each in built:
                self._library(each.cmd)
        except ExesysError as error:
            raise JobError("BadStep", error.message, 0) from error
        edges = [(each.from_, each.to) for each in built]
        why = self._progress.misfit(edges, self._world.limits.workflow_steps)
        if why:
            raise JobError("BadStep", why, 0)
        self._commands += built
        started, failed = self._progress.grow(edges)
        self._spread(failed)
        return started

    def _data(self, number: int) -> bytes | JobError:
        """Return what a step gets: its own data, its feeder's value, or a map of several; or why it cannot be."""
        graph = self._progress.graph
        feeders = graph.feeders.get(self._commands[number].from_, [])
        if not feeders:
            return self._commands[number].data
        values = [self._outcomes[feeder].value for feeder in feeders]
        names = graph.feeder_names(self._commands[number].from_)
        data = codec.pack(values[0] if len(values) == 1 else dict(zip(names, values, strict=True)))
        limit = self._world.limits.data_bytes
        if len(data) > limit:
            text = f"what its predecessors gave has more than the {limit} bytes that are allowed"
            return JobError("TooLarge", text, 0, job_id=self._job_id)
        return data


def _failure(error: BaseException, attempt: int, job_id: str) -> JobError:
    if isinstance(error, JobError) and error.type == "BadStep":
        return JobError(error.type, error.text, attempt, job_id=job_id)
    type_, text, traceback = describe_failure(error)
    failure = JobError(type_, text, attempt, traceback, job_id)
    failure.__cause__ = error
    return failure
