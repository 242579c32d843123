"""What the router lets in: commands, workflows and added steps, checked. Pure.

The same checks as at every other door (`command.py`, `workflow.py`), and one
that only the router can make: whether a worker knows the function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from exesys import callbacks, codec, command, queues, runner, schedule
from exesys.bus import messages as m
from exesys.catalogue import Catalogue, FunctionInfo
from exesys.config import Config
from exesys.errors import BadCommand, ExesysError, Unavailable, UnknownFunction
from exesys.turn import Enlist, Flow, Placed, Tuning
from exesys.workflow import Graph

MOST_UNKNOWN = 64

Fields = Mapping[str, str | int | float | bytes]
# What may be kept beside jobs: each checks what is to be done, the name, and the fields. Raises ExesysError.
TUNINGS: Mapping[str, Callable[[str, str, Mapping[Any, Any]], Fields]] = {
    "queue": queues.check,
    "timer": schedule.check,
}


class Door:
    """Makes what was sent into what can be stored, or raises what is wrong with it."""

    def __init__(self, config: Config, catalogue: Catalogue) -> None:
        self._limits = config.limits
        self._hosts = callbacks.Hosts(config.callbacks.hosts)
        self._catalogue = catalogue
        self._unknown: dict[str, tuple[str, str]] = {}  # cmd -> message and fix of its refusal

    @property
    def catalogue(self) -> Catalogue:
        """What the workers present can do."""
        return self._catalogue

    @catalogue.setter
    def catalogue(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue
        self.forget()

    def forget(self) -> None:
        """Forget which functions were unknown."""
        self._unknown.clear()

    def command(self, item: m.Item, session: str) -> Placed:
        """Check one command of a SUBMIT. Raises ExesysError."""
        if item.flow not in (0, -1):
            raise BadCommand("only a workflow's steps share a number.", field="flow")
        return self._placed(item, session, waits=item.flow == -1)

    def workflow(self, items: Sequence[m.Item], session: str) -> Flow:
        """Check the steps of a workflow, alone and as a graph. Raises ExesysError."""
        job_ids = {str(item.job_id) for item in items}
        if len(job_ids) > 1:
            raise BadCommand("a workflow has one job_id.", field="job_id", fix="Give all its steps the same.")
        # Before the parts, so that what is too large costs little.
        graph = Graph((item.from_, command.check_to(item.to)) for item in items)
        graph.check(self._limits.workflow_steps)
        items = _of_one_trace(items)
        roots = set(graph.roots)
        steps = []
        for number, item in enumerate(items):
            try:
                steps.append(self._placed(item, session, number not in roots))
            except ExesysError as error:
                error.message = f"the step {graph.steps[number]}: {error.message}"
                raise
        return Flow(steps[0].command.job_id, tuple(steps), graph)

    def added(self, ref: str, steps: Sequence[m.Added]) -> tuple[Placed, ...]:
        """Check the steps that a function adds to its own job. Raises ExesysError.

        Whether what they go to is there, and still waits, only the store can tell.
        """
        job_id = command.parts_of(ref)[1]
        items = [m.Item(0, step.from_, step.to, step.cmd, step.data, job_id, step.options, False) for step in steps]
        graph = Graph((item.from_, command.check_to(item.to)) for item in items)
        graph.check_added()
        return tuple([self._placed(item, "", waits=True) for item in items])

    def runner(self, start: m.Start) -> Enlist:
        """Check a runner that is to be started. Raises ExesysError."""
        name = runner.check_name(start.type, start.uuid)
        grace_s = runner.check_options(start.grace_s)
        if start.job and not command.REF.fullmatch(start.job):
            raise BadCommand(f"`job` is {start.job!r:.100}, which is no step.", field="job")
        codec.check_packed(start.data, self._limits.data_bytes, self._limits.depth)
        self._check_known()
        target = self._resolve(command.check_name(start.target, "target")).qualified
        digest = command.digest_of(target, start.data)
        return Enlist(name, target, start.data, digest, grace_s, start.job)

    def tuning(self, message: m.Tune) -> Tuning:
        """Check a change of a timer or of a queue's settings. Raises ExesysError."""
        kind, what, name = message.kind, message.what, command.check_name(message.name, "name")
        check = TUNINGS.get(kind)
        if check is None or what not in ("add", "put", "merge", "remove"):
            fix = f"`kind` is one of {', '.join(TUNINGS)}; `what` is add, put, merge or remove."
            raise BadCommand(f"`what` is {what!r:.40}, of {kind!r:.40}.", field="what", fix=fix)
        fields = {} if what == "remove" else check(what, name, message.fields)
        if kind == "timer" and "cmd" in fields:
            codec.check_packed(message.fields.get("data", b"\xc0"), self._limits.data_bytes, self._limits.depth)
            self._check_known()
            self._resolve(str(fields["cmd"]))
            if "notify" in message.fields:
                self._hosts.check(message.fields["notify"])
        return Tuning(kind, what, name, fields)

    def _check_known(self) -> None:
        if not (self._catalogue.functions or self._catalogue.broken):
            raise Unavailable("no worker has announced its functions yet.", fix="Try again in a moment.")

    def _placed(self, item: m.Item, session: str, waits: bool) -> Placed:
        tag, from_, to, cmd, data, job_id, given, notify, _ = item
        built = command.build(from_, to, cmd, data, job_id, given)
        codec.check_packed(data, self._limits.data_bytes, self._limits.depth)
        self._check_known()
        defaults = self._resolve(cmd).options
        options: dict[str, Any] = {**defaults, **built.options} if defaults else dict(built.options)
        if "notify" in options:
            self._hosts.check(options["notify"])
        # Negative: counted from the moment of the commit, or from when the step was fed.
        due_ms = max(command.due_ms(options["at"]), 0) if "at" in options else -int(options.get("delay_s", 0) * 1000)
        # The client's address goes into the record, so that no memory grows with the backlog.
        return Placed(built, options, f"{session}.{tag}" if notify else "", due_ms, waits)

    def _resolve(self, cmd: str) -> FunctionInfo:
        """Find a function. Finding the nearest name costs, so refusals are remembered for a while, and few."""
        if cmd in self._unknown:
            text, fix = self._unknown[cmd]
            raise UnknownFunction(text, field="cmd", fix=fix)
        try:
            return self._catalogue.resolve(cmd, suggest=len(self._unknown) < MOST_UNKNOWN)
        except UnknownFunction as error:
            if len(self._unknown) < MOST_UNKNOWN:
                self._unknown[cmd] = (error.message, error.fix)
            raise


def _of_one_trace(items: Sequence[m.Item]) -> Sequence[m.Item]:
    """Give the steps of a workflow that name no trace the first one that is named."""
    named = next((item.options["traceparent"] for item in items if "traceparent" in item.options), None)
    if named is None:
        return items
    return [item._replace(options={"traceparent": named, **item.options}) for item in items]
