"""Drawing the steps of a job for people: as text, for Graphviz and for Mermaid; and why each still waits. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from exesys import command
from exesys.lines import HERE, Lines
from exesys.states import State
from exesys.workflow import MOST_NAMED, Graph

MOST_ROWS = 200
MOST_LINES = 24  # side by side
MOST_LEVELS = 50  # rows of the summary
STANDBY_S = 86_400

SIGNS = {
    State.start: "○",
    State.standby: "·",
    State.processing: "●",
    State.data_available: "✓",
    State.error: "✗",
}
_COLOURS = {
    State.start: "#fff3c4",
    State.standby: "#eeeeee",
    State.processing: "#cfe4ff",
    State.data_available: "#d3f2d3",
    State.error: "#f8d0d0",
}
_BY_PROGRESS = (State.data_available, State.processing, State.start, State.standby, State.error)


class Node(NamedTuple):
    """A step as it is drawn."""

    from_: str
    to: tuple[str, ...]
    cmd: str
    state: State
    attempt: int = 0
    queue: str = command.DEFAULT_QUEUE


def text(steps: Sequence[Node]) -> str:
    """Draw the graph for a terminal; one that is too large is summed up by its levels."""
    graph = _graph(steps)
    rows = list(Lines(graph).rows()) if len(steps) <= MOST_ROWS else []
    width = max((len(drawn) for _, drawn in rows), default=0)
    if not 0 < width < 2 * MOST_LINES:
        return _summary(graph, steps)
    shown = [_label(graph, number) for number in range(len(steps))]
    names = max(map(len, shown))
    cmds = max(len(step.cmd) for step in steps)
    lines = []
    for number, drawn in rows:
        if number is None:
            lines.append(drawn)
        else:
            step = steps[number]
            drawn = drawn.replace(HERE, SIGNS[step.state])
            lines.append(f"{drawn:{width}}  {shown[number]:{names}}  {step.cmd:{cmds}}  {_state(step)}")
    return "\n".join(lines)


def _graph(steps: Sequence[Node]) -> Graph:
    return Graph((step.from_, ",".join(step.to)) for step in steps)


def _state(step: Node) -> str:
    return step.state.name + (f", attempt {step.attempt}" if step.attempt > 1 else "")


def _called(graph: Graph, number: int) -> str:
    """Name a step by its `from`, or as an edge where several have that."""
    step = graph.steps[number]
    return step.from_ if len(graph.named[step.from_]) == 1 else str(step)


def _label(graph: Graph, number: int) -> str:
    """Name a step, with what the lines do not show: that it ends the job, or goes to a name without a step."""
    step = graph.steps[number]
    return _called(graph, number) if all(target in graph.named for target in step.to) else str(step)


# --- a summary ----------------------------------------------------------------


def _summary(graph: Graph, steps: Sequence[Node]) -> str:
    """Count the states in each level, or in as many together as makes few rows."""
    levels = graph.levels()
    placed = {number for level in levels for number in level}
    if len(placed) < len(steps):
        levels.append([number for number in range(len(steps)) if number not in placed])
    together = -(-len(levels) // MOST_LEVELS)
    rows = []
    for first in range(0, len(levels), max(together, 1)):
        some = levels[first : first + together]
        numbers = [number for level in some for number in level]
        rows.append((_span(first + 1, first + len(some)), f"{len(numbers):,}", *_counted(steps, numbers)))
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    lines = [f"{len(steps):,} steps in {len(levels):,} level{'' if len(levels) == 1 else 's'}" if steps else "no steps"]
    for level, count, cmds, states in rows:
        lines.append(f"{level:>{widths[0]}}  {count:>{widths[1]}}  {cmds:{widths[2]}}  {states}")
    return "\n".join(lines)


def _span(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,}–{last:,}"


def _counted(steps: Sequence[Node], numbers: Sequence[int]) -> tuple[str, str]:
    cmds = list(dict.fromkeys(steps[number].cmd for number in numbers))
    shown = ", ".join(cmds[:3]) + (", …" if len(cmds) > 3 else "")
    states = Counter(steps[number].state for number in numbers)
    told = (f"{SIGNS[state]} {states[state]:,} {state.name}" for state in _BY_PROGRESS if state in states)
    return shown, "  ".join(told)


# --- for other tools ------------------------------------------------------------


def dot(steps: Sequence[Node]) -> str:
    """Write the graph for Graphviz."""
    graph = _graph(steps)
    lines = ["digraph job {", '  node [shape=box, style="rounded,filled", fillcolor=white];']
    for number, (step, first) in enumerate(zip(steps, graph.firsts, strict=True)):
        parts = (_called(graph, number), step.cmd, f"{SIGNS[step.state]} {_state(step)}")
        label = "\\n".join(map(_in_dot, parts))
        lines.append(f'  "{_in_dot(first)}" [label="{label}", fillcolor="{_COLOURS[step.state]}"];')
    for name in _lacking(graph):
        lines.append(f'  "{_in_dot(name)}" [label="{_in_dot(name)}\\nno step yet", style=dashed];')
    if graph.ends:
        lines.append(f'  "{command.END}" [shape=plain, style="", label="{command.END}"];')
    for name in _hubs(graph):
        lines.append(f'  ">{_in_dot(name)}" [shape=point];')
    edges = _edges(graph, lambda number: graph.firsts[number], lambda name: name, lambda name: f">{name}")
    lines += [f'  "{_in_dot(start)}" -> "{_in_dot(end)}";' for start, end in edges]
    return "\n".join([*lines, "}"])


def mermaid(steps: Sequence[Node]) -> str:
    """Write the graph for Mermaid."""
    graph = _graph(steps)
    lines = ["flowchart TD"]
    for number, step in enumerate(steps):
        parts = (f"{SIGNS[step.state]} {_called(graph, number)}", step.cmd, _state(step))
        lines.append(f'  n{number}["{"<br/>".join(map(_in_mermaid, parts))}"]:::{step.state.name}')
    ids = {name: f"x{number}" for number, name in enumerate(_lacking(graph))}
    for name, id_ in ids.items():
        lines.append(f'  {id_}["{_in_mermaid(name)}<br/>no step yet"]:::lacking')
    if graph.ends:
        ids[command.END] = "e"
        lines.append(f'  e(["{command.END}"])')
    hubs = {name: f"h{number}" for number, name in enumerate(_hubs(graph))}
    lines += [f'  {id_}((" "))' for id_ in hubs.values()]
    edges = _edges(graph, lambda number: f"n{number}", ids.__getitem__, hubs.__getitem__)
    lines += [f"  {start} --> {end}" for start, end in edges]
    for state in sorted({step.state for step in steps}):
        lines.append(f"  classDef {state.name} fill:{_COLOURS[state]},stroke:#555,color:#000")
    if _lacking(graph):
        lines.append("  classDef lacking fill:none,stroke:#555,stroke-dasharray:4")
    return "\n".join(lines)


def _lacking(graph: Graph) -> list[str]:
    """The names that steps go to and none comes from yet."""
    return [name for name in graph.feeders if name not in graph.named and name != command.END]


def _hubs(graph: Graph) -> list[str]:
    """The names with several steps on both sides: each is drawn as a point, or there would be too many edges."""
    return [name for name, steps in graph.named.items() if len(steps) > 1 and len(graph.feeders.get(name, ())) > 1]


def _edges(
    graph: Graph, step: Callable[[int], str], other: Callable[[str], str], hub: Callable[[str], str]
) -> Iterator[tuple[str, str]]:
    """Yield the edges between what is drawn, each end named by one of these functions."""
    hubs = set(_hubs(graph))
    for name, feeders in graph.feeders.items():
        ends = [step(number) for number in graph.named.get(name, ())] or [other(name)]
        if name in hubs:
            yield from ((step(number), hub(name)) for number in feeders)
            yield from ((hub(name), end) for end in ends)
        else:
            yield from ((step(number), end) for number in feeders for end in ends)


def _in_dot(shown: str) -> str:
    return shown.replace("\\", "\\\\").replace('"', '\\"')


def _in_mermaid(shown: str) -> str:
    """`#` first: it begins Mermaid's own escapes."""
    for char, code in (("#", "#35;"), ('"', "#quot;"), ("<", "#lt;"), (">", "#gt;")):
        shown = shown.replace(char, code)
    return shown


# --- why ------------------------------------------------------------------------


def why(
    steps: Sequence[Node], standby_s: float = STANDBY_S, held_up: Mapping[int, str] = MappingProxyType({})
) -> list[str]:
    """Say in a sentence what each unfinished step waits for. One that nothing feeds is given up after `standby_s`.

    `held_up` says of steps in start, by their place, what they wait for besides a free worker.
    """
    graph = _graph(steps)
    awaited: dict[str, str] = {}  # a name -> what its steps wait for
    told = []
    for number, step in enumerate(steps):
        called = _called(graph, number)
        if step.state is State.processing:
            told.append(f"{called} runs on its attempt {step.attempt}")
        elif step.state is State.start:
            again = f", for its attempt {step.attempt + 1}" if step.attempt else ""
            waits = held_up.get(number, f"a free worker in the queue {step.queue}")
            told.append(f"{called} waits for {waits}{again}")
        elif step.state is State.standby:
            feeders = graph.feeders.get(step.from_)
            if not feeders:
                it = "it" if called == step.from_ else called
                told.append(f"no step goes to {step.from_} yet: {it} ends in error after {standby_s / 3600:g} h")
                continue
            if step.from_ not in awaited:
                awaited[step.from_] = _awaited(graph, steps, feeders)
            told.append(f"{called} {awaited[step.from_]}")
    return told


def _awaited(graph: Graph, steps: Sequence[Node], feeders: Sequence[int]) -> str:
    open_ = [number for number in feeders if steps[number].state is not State.data_available]
    if not open_:
        return "starts now: all that feed it have ended"
    shown = [f"{_called(graph, number)} ({_state(steps[number])})" for number in open_[:MOST_NAMED]]
    if len(open_) > MOST_NAMED:
        shown.append(f"{len(open_) - MOST_NAMED:,} more")
    return "waits for " + " and ".join([", ".join(shown[:-1]), shown[-1]] if len(shown) > 1 else shown)
