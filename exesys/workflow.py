"""The graph of a job's steps. Pure: no store, no clock.

A step is an edge with work on it: it runs `cmd` and goes from a name to one or
more names. It feeds the steps whose `from` is one of its targets, and these
start when all that feed their name have ended. So the graph is one of names;
several steps with one `from` start together (fan-out), several steps with one
target come together (fan-in), and `end_job` is where a job ends.

`Graph` is what was sent, checked. `Progress` is what has happened in it; the
store's scripts do the same move by move (`store/advance.lua`), and the tests
hold the two against each other.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from exesys.command import END
from exesys.errors import BadCommand, TooLarge
from exesys.states import State, check_move

START = "start_job"
EDGES_PER_STEP = 10  # allowed in the mean, of as many steps as are allowed
LEAST_EDGES = 100_000
LONGEST_TO = 512  # characters, of a further step with the same `from`: they are part of its ref
MOST_NAMED = 5  # names in a message


class Step(NamedTuple):
    """One step: where it comes from and where its result goes."""

    from_: str
    to: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.from_} → {_listed(self.to)}"


class Graph:
    """The steps of one job and how they feed each other.

    `firsts` are the first parts of the steps' keys, by position; `named` gives
    the steps of a name, `feeders` the steps that go to a name.
    """

    def __init__(self, steps: Iterable[tuple[str, str]]) -> None:
        """Take (from, to) of each step, `to` joined by commas. `check` tells whether it is a workflow."""
        self.steps = tuple(Step(from_, tuple(to.split(","))) for from_, to in steps)
        self.named: defaultdict[str, list[int]] = defaultdict(list)
        self.feeders: defaultdict[str, list[int]] = defaultdict(list)
        firsts = []
        for number, step in enumerate(self.steps):
            firsts.append(f"{step.from_}>{','.join(step.to)}" if step.from_ in self.named else step.from_)
            self.named[step.from_].append(number)
            for target in step.to:
                self.feeders[target].append(number)
        self.firsts = tuple(firsts)

    @property
    def roots(self) -> list[int]:
        """The steps that nothing feeds: they start at once."""
        return [number for number, step in enumerate(self.steps) if not self.feeders.get(step.from_)]

    @property
    def ends(self) -> list[int]:
        """The steps whose result is the job's."""
        return self.feeders.get(END, [])

    def successors(self, number: int) -> list[int]:
        """The steps that a step feeds."""
        return [fed for target in self.steps[number].to for fed in self.named.get(target, ())]

    def feeder_names(self, name: str) -> list[str]:
        """How a step of this name calls its feeders: by their `from`, or the whole edge where that is not clear."""
        return call_feeders([self.steps[number] for number in self.feeders.get(name, ())])

    def levels(self) -> list[list[int]]:
        """The steps by how many others come before them, one after the other.

        Takes away what nothing feeds, again and again (Kahn, 1962); so what
        goes in a circle, or is fed by one, is in no level.
        """
        waiting = {name: len(self.feeders.get(name, ())) for name in self.named}
        free = [name for name, count in waiting.items() if not count]
        found = []
        while free:
            level = [number for name in free for number in self.named[name]]
            found.append(level)
            free = []
            for number in level:
                for target in self.steps[number].to:
                    if target in waiting:
                        waiting[target] -= 1
                        if not waiting[target]:
                            free.append(target)
        return found

    # --- checking ---------------------------------------------------------

    def check(self, most: int) -> None:
        """Raise BadCommand (or TooLarge, past `most` steps) naming the steps that make it no workflow.

        That the names are names, and stand in a `to` once, is checked before (see `command`).
        """
        if not self.steps:
            raise _refusal("the workflow has no steps", "Send at least one.", "")
        if len(self.steps) > most:
            raise TooLarge(
                f"the workflow has {len(self.steps):,} steps; at most {most:,} are allowed.",
                fix="Send fewer, or raise [limits] workflow_steps.",
            )
        self._check_size(most)
        self._check_edges()
        self._check_order()
        self._check_targets()
        self._check_reach()

    def check_added(self) -> None:
        """Raise BadCommand for steps that come to a job later; they may go to names that are not among them."""
        self._check_size(len(self.steps))
        self._check_edges()
        self._check_order()

    def _check_size(self, most_steps: int) -> None:
        most = max(LEAST_EDGES, EDGES_PER_STEP * most_steps)
        edges = sum(len(step.to) for step in self.steps)
        if edges > most:
            raise TooLarge(
                f"the steps go to {edges:,} names in all; at most {most:,} are allowed.",
                fix="Let a step between gather what many give to many, or raise [limits] workflow_steps.",
            )

    def _check_edges(self) -> None:
        seen: set[Step] = set()
        for step in self.steps:
            if step in seen:
                raise _refusal(f"two steps go {step}", "Steps of one job differ in `from` or `to`.", "from")
            if step.from_ == END:
                raise _refusal(f"the step {step} comes from {END}, where jobs end", "Give it another `from`.", "from")
            if step.from_ in step.to:
                raise _refusal(f"the step {step} feeds itself", "Give it another `to`.")
            if START in step.to:
                raise _refusal(f"the step {step} goes to {START}, where jobs begin", "Give it another `to`.")
            seen.add(step)
        for step, first in zip(self.steps, self.firsts, strict=True):
            if len(first) > len(step.from_) + 1 + LONGEST_TO:
                raise too_long(step.from_)

    def _check_order(self) -> None:
        ordered = {self.steps[number].from_ for level in self.levels() for number in level}
        if len(ordered) < len(self.named):
            circle = self._circle(ordered)
            raise _refusal(f"the steps go in a circle: {_round(circle)}", "A workflow has none: cut it.")

    def _circle(self, ordered: set[str]) -> list[str]:
        """Find a circle among the names that are not `ordered`: walk from feeder to feeder until one comes again.

        Each of them is fed by another of them, or it would be ordered.
        """
        feeder: dict[str, str] = {}  # of the names walked
        name = next(name for name in self.named if name not in ordered)
        while name not in feeder:
            feeding = (self.steps[number].from_ for number in self.feeders[name])
            feeder[name] = next(from_ for from_ in feeding if from_ not in ordered)
            name = feeder[name]
        circle = [name]
        while feeder[circle[-1]] != name:
            circle.append(feeder[circle[-1]])
        circle.reverse()
        first = circle.index(min(circle, key=lambda name: self.named[name][0]))
        return circle[first:] + circle[:first]

    def _check_targets(self) -> None:
        for step in self.steps:
            for target in step.to:
                if target != END and target not in self.named:
                    # Without a circle, that no step goes to the end always comes of this.
                    lost = "" if self.ends else f", and no step goes to {END}"
                    raise _refusal(
                        f"the step {step} leads nowhere: no step comes from {target}{lost}",
                        f"Send a step from {target}, or let it go to {END}.",
                    )

    def _check_reach(self) -> None:
        """Where a step comes from start_job, the others must be fed: one that is not was forgotten."""
        if START not in self.named:
            return
        lost = [str(self.steps[number]) for number in self.roots if self.steps[number].from_ != START]
        if lost:
            more = f" (nor {len(lost) - 1:,} more)" if len(lost) > 1 else ""
            raise _refusal(
                f"nothing reaches the step {lost[0]}{more}: no step goes there, and it is not from {START}",
                f"Let a step go there, or let it come from {START}.",
                "from",
            )


def too_long(from_: str) -> BadCommand:
    """Return the refusal of a further step with the same `from` that lists too many names."""
    return BadCommand(
        f"there is another step from {from_}, and the `to` of this one has more than {LONGEST_TO} characters.",
        field="to",
        fix=f"Send the step with the long list first, or give it another `from` than {from_}.",
    )


def call_feeders(steps: Sequence[Step]) -> list[str]:
    """Name steps by their `from`; those that share one, by the whole edge."""
    often = Counter(step.from_ for step in steps)
    return [step.from_ if often[step.from_] == 1 else f"{step.from_}>{','.join(step.to)}" for step in steps]


class Progress:
    """What has happened in a graph: the state of each step, and how much each name still waits for."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.states = [State.standby] * len(graph.steps)
        for number in graph.roots:
            self.states[number] = State.start
        self.reasons: dict[int, str] = {}  # of the steps that failed only because another did
        self._open = {name: len(graph.feeders.get(name, ())) for name in graph.named}

    @property
    def over(self) -> bool:
        """Whether every step has ended."""
        return all(state.final for state in self.states)

    def begin(self, number: int) -> None:
        """A worker took a step."""
        self._move(number, State.processing)

    def end(self, number: int) -> list[int]:
        """A step ended well. Returns the steps that start now."""
        self._move(number, State.data_available)
        started = []
        for target in self.graph.steps[number].to:
            if target != END:
                self._open[target] -= 1
                if not self._open[target]:
                    started += [fed for fed in self.graph.named[target] if self.states[fed] is State.standby]
        for fed in started:
            self._move(fed, State.start)
        return started

    def fail(self, number: int) -> list[int]:
        """A step failed for good. Returns the steps that fail with it, each once."""
        self._move(number, State.error)
        return self._spread(number)

    def _spread(self, number: int) -> list[int]:
        """Fail what waits for a step that failed, and what waits for that. Returns the steps, each once."""
        failed: list[int] = []
        spreading = deque([number])
        while spreading:
            one = spreading.popleft()
            for fed in self.graph.successors(one):
                if self.states[fed] is State.standby:
                    self._move(fed, State.error)
                    self.reasons[fed] = predecessor_failed(self.graph.steps[one].from_)
                    failed.append(fed)
                    spreading.append(fed)
        return failed

    def retry(self) -> tuple[list[int], list[int]]:
        """Run again what failed. Returns the steps that start, and those that wait again."""
        failed = [number for number, state in enumerate(self.states) if state is State.error]
        started = [number for number in failed if not self._open.get(self.graph.steps[number].from_)]
        waiting = [number for number in failed if self._open.get(self.graph.steps[number].from_)]
        for number in started:
            self._move(number, State.start)
        for number in waiting:
            self.states[number] = check_move(None, State.standby)  # as if it had been sent anew
        self.reasons.clear()
        return started, waiting

    def misfit(self, added: Sequence[tuple[str, str]], most: int) -> str:
        """Say why steps, (from, to) each, cannot be added by one that runs; "" when they can.

        `most` is how many steps a job may have.
        """
        if len(self.graph.steps) + len(added) > most:
            return f"the job would have more than {most} steps"
        there = set(self.graph.steps)
        coming = {from_ for from_, _ in added}
        for from_, to in added:
            step = Step(from_, tuple(to.split(",")))
            if len(to) > LONGEST_TO and from_ in self.graph.named:
                return f"there is a step from {from_} already; a further one may not list so many names"
            if step in there:
                return f"there is a step from {from_} to {to} already"
            for name in step.to:
                waits = (self.states[number] is State.standby for number in self.graph.named.get(name, ()))
                if name != END and name not in coming and not any(waits):
                    return f"no step waits at {name} to be fed by {from_}"
        try:
            self._with(added).check_added()
        except BadCommand as error:
            return error.message.rstrip(".")
        return ""

    def grow(self, added: Sequence[tuple[str, str]]) -> tuple[list[int], list[int]]:
        """Take steps that were added, and fit. Returns those that start, and those that fail at once."""
        before = len(self.graph.steps)
        self.graph = self._with(added)
        self.states += [State.standby] * len(added)
        done = State.data_available
        self._open = {
            name: sum(self.states[number] is not done for number in self.graph.feeders.get(name, ()))
            for name in self.graph.named
        }
        started: list[int] = []
        failed: list[int] = []
        for number in range(before, len(self.states)):
            feeders = self.graph.feeders.get(self.graph.steps[number].from_, ())
            at_fault = next((each for each in feeders if self.states[each] is State.error), None)
            if at_fault is not None:
                failed += self._spread(at_fault)
            elif not self._open[self.graph.steps[number].from_] and self.states[number] is State.standby:
                self._move(number, State.start)
                started.append(number)
        return started, failed

    def _with(self, added: Iterable[tuple[str, str]]) -> Graph:
        return Graph([*((step.from_, ",".join(step.to)) for step in self.graph.steps), *added])

    def _move(self, number: int, state: State) -> None:
        self.states[number] = check_move(self.states[number], state)


def predecessor_failed(name: str) -> str:
    """The message of the error of a step that can no longer be fed."""
    return f"predecessor {name} failed"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown}, … ({len(names):,} in all)" if len(names) > MOST_NAMED else shown


def _round(names: Sequence[str]) -> str:
    if len(names) <= MOST_NAMED:
        return " → ".join([*names, names[0]])
    shown = [*names[: MOST_NAMED - 1], "…", names[-1], names[0]]
    return f"{' → '.join(shown)} ({len(names):,} names)"


def _refusal(problem: str, fix: str, field: str = "to") -> BadCommand:
    return BadCommand(f"{problem}.", field=field, fix=fix)
