"""Building a workflow in Python, so that it reads like the graph it makes.

    flow = exesys.Workflow()
    split = flow.step("split", "docs")
    parts = [flow.step("index", after=split, name=f"part-{n}") for n in range(3)]
    merge = flow.step("merge", after=parts)
    flow.step("report", after=merge)
    handle = client.workflow(flow)

Each task is one step, named by its `from`; its `to` lists the tasks after it,
or is end_job. As a task comes after others that are there already, no circle
can be built.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from exesys import command, markup
from exesys.errors import BadCommand
from exesys.workflow import MOST_NAMED, START, Graph

_TAKEN = command.RESERVED | {START}  # no names to be found by counting
_OF_THE_GRAPH = {"from": "name", "from_": "name", "to": "after", "job_id": ""}


class Task:
    """One step of a `Workflow`, to name in the `after` of others. `name` is what the others' data call its value."""

    def __init__(self, flow: Workflow, name: str, cmd: str, data: Any, options: dict[str, Any]) -> None:
        self.flow = flow
        self.name = name
        self.cmd = cmd
        self.data = data
        self.options = options
        self.to: list[str] = []  # the names of the tasks after it

    def then(self, cmd: str, *, name: str | None = None, **options: Any) -> Task:
        """Add a task that runs on what this one gives, and return it; `name` and `options` as in `Workflow.step`."""
        return self.flow.step(cmd, after=self, name=name, **options)

    def __repr__(self) -> str:
        return f"<Task {self.name}>"


class Workflow:
    """Tasks that run one after the other, or side by side.

    `client.workflow(flow)` sends it. Each task is one step of the job.
    """

    def __init__(self) -> None:
        self.tasks: list[Task] = []
        self._names: set[str] = set()
        self._counts: Counter[str] = Counter()

    def step(
        self,
        cmd: str,
        data: Any = None,
        *,
        after: Task | Iterable[Task] = (),
        name: str | None = None,
        **options: Any,
    ) -> Task:
        """Add a task that runs `cmd` and return it.

        Without `after` it runs at once, on `data`. With it, it waits until all
        of these have ended, and its data is what they gave: of one task the
        value, of several a map from their names. `name` is that of `cmd` when
        left out, with a number if that is taken. `options` are those of a
        command: queue, priority, delay_s or at, timeout_s, retries, backoff_s, key, key_limit,
        result_ttl_s. Raises BadCommand.
        """
        feeders = [after] if isinstance(after, Task) else list(after)
        task = Task(self, self._name(cmd, name), cmd, data, _checked(options))
        self._check_feeders(task, feeders)
        for feeder in feeders:
            feeder.to.append(task.name)
        self.tasks.append(task)
        self._names.add(task.name)
        return task

    @property
    def graph(self) -> Graph:
        """How the tasks feed each other."""
        return Graph((task.name, ",".join(task.to or [command.END])) for task in self.tasks)

    def __repr__(self) -> str:
        shown = ", ".join(task.name for task in self.tasks[:MOST_NAMED])
        more = f", … ({len(self.tasks):,} in all)" if len(self.tasks) > MOST_NAMED else ""
        return f"<Workflow {shown}{more}>" if self.tasks else "<Workflow, no tasks yet>"

    def _repr_html_(self) -> str:
        """Draw it in a notebook."""
        return markup.graph(self.graph, [markup.Box(task.name, task.cmd) for task in self.tasks])

    def commands(self) -> list[dict[str, Any]]:
        """Return the commands to send, in the order of the tasks and without a job_id. Raises BadCommand."""
        for task in self.tasks:
            if len(task.to) > command.MAX_TARGETS:
                raise BadCommand(
                    f"{len(task.to):,} tasks come after {task.name}.",
                    field="to",
                    fix=f"At most {command.MAX_TARGETS:,} can: put a step between.",
                )
        self.graph.check(len(self.tasks))  # how many there may be is the system's to say
        return [
            {"from": task.name, "to": _to(task.to), "cmd": task.cmd, "data": task.data, **task.options}
            for task in self.tasks
        ]

    def _name(self, cmd: str, name: str | None) -> str:
        command.check_name(cmd, "cmd")
        if name is None:
            name = cmd
            while name in self._names or name in _TAKEN:
                self._counts[cmd] += 1
                name = f"{cmd}-{self._counts[cmd] + 1}"
        name = command.check_name(name, "name")
        if name in command.RESERVED:
            raise BadCommand(f"{name!r} is a name of the system's own.", field="name", fix="Choose another name.")
        if name in self._names:
            raise BadCommand(f"there are two steps with the name {name}.", field="name", fix="Choose another name.")
        return name

    def _check_feeders(self, task: Task, feeders: list[Task]) -> None:
        names = set()
        for feeder in feeders:
            if not isinstance(feeder, Task) or feeder.flow is not self:
                raise BadCommand(
                    f"{task.name} comes after {feeder!r:.60}, which is no task of this workflow.",
                    field="after",
                    fix="Give what its `step` returned.",
                )
            if feeder.name in names:
                raise BadCommand(f"{task.name} comes after {feeder.name} twice.", field="after", fix="Name it once.")
            names.add(feeder.name)
        if feeders and task.data is not None:
            raise BadCommand(
                f"{task.name} has data, but is given what {feeders[0].name} returns.",
                field="data",
                fix="Give the data to a step before it, or leave out `after`.",
            )


def _checked(options: dict[str, Any]) -> dict[str, Any]:
    for key, instead in _OF_THE_GRAPH.items():
        if key in options:
            fix = f"Use `{instead}`." if instead else "It is given when the workflow is sent."
            raise BadCommand(f"a task has no `{key}`.", field=key, fix=fix)
    return command.check_options(options)


def _to(names: list[str]) -> str | list[str]:
    if len(names) == 1:
        return names[0]
    return list(names) or command.END
