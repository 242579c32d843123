"""Drawing the steps of a job for people: as text, for Graphviz and for Mermaid; and why each still waits.

In the text a step is a row, and its sign stands where lines meet:

    ✓        split              what feeds a step comes from above, or from the left
    ├─✓─╮    part-0             what a step feeds goes on below, or to the right
    ├─●─┤    part-1
    ╰─○─┤    part-2
    ·───╯    merge              here the line from above ends
    ·        report → end_job

A line is a *bundle*: it leads from steps to all that are fed by just these.
Where it passes behind another they do not touch: `├─│─·`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from exesys import command
from exesys.states import State
from exesys.workflow import MOST_NAMED, Graph, Step

MOST_ROWS = 200
MOST_LINES = 40  # side by side
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
    rows = list(_Lines(graph).rows()) if len(steps) <= MOST_ROWS else []
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
            drawn = drawn.replace(_HERE, SIGNS[step.state])
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


# --- lines ------------------------------------------------------------------

_HERE = "@"  # the step of the row; no line and no name has it


class _Bundle:
    """The way from steps to those that are fed by just these."""

    def __init__(self, sources: int) -> None:
        self.sources = sources
        self.sinks = 0
        self.left = 0  # sinks not drawn yet


class _Lines:
    """Which bundle stands in which column, from row to row."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.columns: list[_Bundle | None] = []
        self.bundles: dict[str, _Bundle] = {}  # by the name it leads to
        shared: dict[tuple[int, ...], _Bundle] = {}
        for name, numbers in graph.named.items():
            feeders = tuple(graph.feeders.get(name, ()))
            if feeders:
                bundle = self.bundles[name] = shared.setdefault(feeders, _Bundle(len(feeders)))
                bundle.sinks += len(numbers)
                bundle.left += len(numbers)

    def rows(self) -> Iterator[tuple[int | None, str]]:
        """Yield each row's step, None between steps, and its lines."""
        for number in _in_order(self.graph):
            step = self.graph.steps[number]
            out = dict.fromkeys(self.bundles[target] for target in step.to if target in self.bundles)
            yield from self._row(number, self.bundles.get(step.from_), [bundle for bundle in out if bundle.left])

    def _row(self, number: int, into: _Bundle | None, out: list[_Bundle]) -> Iterator[tuple[int | None, str]]:
        own = next((bundle for bundle in out if bundle.sources == 1), None)  # goes on straight below
        came = self.columns.index(into) if into in self.columns else None
        here = self._place(came, into, own, len(out))
        row = _Row(self.columns)
        if into is not None:
            into.left -= 1
            if came is not None and not into.left:
                self.columns[came] = None
        if came is not None and came != here:
            row.line(came, here)
            row.put(came, "╯" if came > here else "├" if into and into.left else "╰")
        row.put(here, _HERE)
        self._grow(here)
        self.columns[here] = own or self.columns[here]

        fresh = {bundle: self._open(bundle, here) for bundle in out if bundle not in self.columns}
        at = {bundle: self.columns.index(bundle) for bundle in out if bundle is not own}
        beside = {column for column in at.values() if column > here and (came is None or came <= here)}
        row.join(here, beside, set(fresh.values()))
        yield number, row.text()
        below = set(at.values()) - beside
        if below:
            row = _Row([None if bundle in fresh and fresh[bundle] in below else bundle for bundle in self.columns])
            row.join(here, below, set(fresh.values()))
            row.turn(here, bool(own), any(column < here for column in below), any(column > here for column in below))
            yield None, row.text()

    def _place(self, came: int | None, into: _Bundle | None, own: _Bundle | None, out: int) -> int:
        """Choose the column of a step: on the line it comes from if that is all its own, else beside it."""
        if came is None or into is None:
            return self._free(0)
        if into.sinks == 1:
            return min(self._free(0), came) if into.sources > 1 and out == bool(own) else came
        beside = self._free(came + 1)
        return came if into.left == 1 and beside > came + 1 and own else beside

    def _free(self, column: int) -> int:
        """Find the first free column from here on."""
        while column < len(self.columns) and self.columns[column] is not None:
            column += 1
        return column

    def _open(self, bundle: _Bundle, here: int) -> int:
        column = self._free(here + 1)
        self._grow(column)
        self.columns[column] = bundle
        return column

    def _grow(self, column: int) -> None:
        self.columns += [None] * (column + 1 - len(self.columns))


class _Row:
    """The characters of a row: those of the columns, and one between any two."""

    def __init__(self, columns: Sequence[object]) -> None:
        self.chars = [char for column in columns for char in (" " if column is None else "│", " ")]

    def put(self, column: int, char: str) -> None:
        self.chars += " " * (2 * column + 1 - len(self.chars))
        self.chars[2 * column] = char

    def line(self, start: int, end: int) -> None:
        """Draw what lies between two columns, behind the lines that pass there."""
        low, high = sorted((2 * start, 2 * end))
        self.chars += " " * (high - len(self.chars))
        self.chars[low + 1 : high] = ["─" if char == " " else char for char in self.chars[low + 1 : high]]

    def join(self, here: int, columns: set[int], fresh: set[int]) -> None:
        """Draw from here to each of these columns; in the fresh ones a line begins."""
        for farthest in {min(columns, default=here), max(columns, default=here)} - {here}:
            self.line(here, farthest)
            side = [column for column in columns if (column > here) == (farthest > here)]
            for column in side:
                if column in fresh:
                    self.put(column, "╮" if column == farthest else "┬")
                else:
                    self.put(column, "┼" if column != farthest else "┤" if farthest > here else "├")

    def turn(self, here: int, down: bool, left: bool, right: bool) -> None:
        """Draw where the lines of a step part below it."""
        sides = {(True, True): "┼┴", (True, False): "┤╯", (False, True): "├╰"}[left, right]
        self.put(here, sides[0] if down else sides[1])

    def text(self) -> str:
        return "".join(self.chars).rstrip()


def _in_order(graph: Graph) -> list[int]:
    """Put each step behind those that feed it, and close behind them; what goes in a circle comes last."""
    waiting = {name: len(graph.feeders.get(name, ())) for name in graph.named}
    stack = graph.roots[::-1]
    order = []
    while stack:
        number = stack.pop()
        order.append(number)
        freed: list[int] = []
        for target in graph.steps[number].to:
            if target in waiting:
                waiting[target] -= 1
                if not waiting[target]:
                    freed += graph.named[target]
        stack += freed[::-1]
    placed = set(order)
    return order + [number for number in range(len(graph.steps)) if number not in placed]


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
    lines = [f"{len(steps):,} steps in {len(levels):,} levels" if steps else "no steps"]
    for level, count, cmds, states in rows:
        lines.append(f"{level:>{widths[0]}}  {count:>{widths[1]}}  {cmds:{widths[2]}}  {states}")
    return "\n".join(lines)


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first}–{last}"


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


def why(steps: Sequence[Node], standby_s: float = STANDBY_S) -> list[str]:
    """Say in a sentence what each unfinished step waits for. One that nothing feeds is given up after `standby_s`."""
    graph = _graph(steps)
    awaited: dict[str, str] = {}  # a name -> what its steps wait for
    told = []
    for number, step in enumerate(steps):
        called = _called(graph, number)
        if step.state is State.processing:
            told.append(f"{called} runs on its attempt {step.attempt}")
        elif step.state is State.start:
            again = f" for its attempt {step.attempt + 1}" if step.attempt else ""
            told.append(f"{called} waits{again} for a free worker in the queue {step.queue}")
        elif step.state is State.standby:
            feeders = graph.feeders.get(step.from_)
            if not feeders:
                told.append(f"no step goes to {called} yet: it ends in error after {standby_s / 3600:g} h")
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
