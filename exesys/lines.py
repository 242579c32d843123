"""The lines of a graph drawn as text: which columns they stand in, from row to row. Pure.

A step is a row, and stands where lines meet:

    @        split          what feeds a step comes from above, or from the left
    ├─@─╮    part-0         what it feeds goes on below, or to the right
    ├─@─┤    part-1
    ╰─@─┤    part-2
    @───╯    merge          or the line from above ends in it
    @        report

A line is a *bundle*: it leads from steps to all that are fed by just these.
Several roots hang on one that begins with them (`╭─@`). So a step that nothing
leads to from a side is always fed from above. Lines that pass behind others do
not touch them (`├─│─@`). A step's line to the left has a row of its own below
it (`├─╯`), or it would look like one that comes from there.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from exesys.workflow import Graph

HERE = "@"  # the row's step


class _Bundle:
    """The way from steps to those that are fed by just these."""

    def __init__(self, sources: int) -> None:
        self.sources = sources
        self.sinks = 0
        self.left = 0  # sinks not drawn yet


class Lines:
    """Which bundle stands in which column."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.start = _Bundle(0)
        self.columns: list[_Bundle | None] = []
        self.bundles: dict[str, _Bundle] = {}  # by the name it leads to
        alike: dict[tuple[int, ...], _Bundle] = {}
        for name, numbers in graph.named.items():
            feeders = tuple(graph.feeders.get(name, ()))
            if feeders:
                bundle = self.bundles[name] = alike.setdefault(feeders, _Bundle(len(feeders)))
                bundle.sinks += len(numbers)
                bundle.left += len(numbers)
        roots = graph.roots
        if len(roots) > 1:
            self.start.sinks = self.start.left = len(roots)
            self.bundles |= {graph.steps[number].from_: self.start for number in roots}
            self.columns.append(self.start)

    def rows(self) -> Iterator[tuple[int | None, str]]:
        """Yield each row: the number of its step, or None, and its characters."""
        for position, number in enumerate(in_order(self.graph)):
            step = self.graph.steps[number]
            out = dict.fromkeys(self.bundles[target] for target in step.to if target in self.bundles)
            into = self.bundles.get(step.from_)
            if position and into not in self.columns:  # in a circle, above what feeds it: no line leads there
                yield None, _Row(self.columns).text()
            drawn, below = self._rows(into, [bundle for bundle in out if bundle.left])
            yield number, drawn
            if below:
                yield None, below

    def _rows(self, into: _Bundle | None, out: list[_Bundle]) -> tuple[str, str]:
        """Draw a step that one bundle leads to and others leave: its row, and the one below it or ""."""
        own = next((bundle for bundle in out if bundle.sources == 1), None)  # goes straight on
        came = self.columns.index(into) if into and into in self.columns else None
        here = self._place(came, into, own, len(out))
        row = _Row(self.columns)
        if into:
            into.left -= 1
            if came is not None:
                if came != here:
                    first = into is self.start and into.left == into.sinks - 1
                    row.line(came, here)
                    row.put(came, "╯" if came > here else "╭" if first else "├" if into.left else "╰")
                if not into.left:
                    self.columns[came] = None
        row.put(here, HERE)
        if own:
            self._stand(own, here)

        joined = [self.columns.index(bundle) for bundle in out if bundle is not own and bundle in self.columns]
        begun = [self._begin(bundle, here) for bundle in out if bundle not in self.columns]
        row.join(here, {column for column in joined if column > here}, begun)
        left = {column for column in joined if column < here}
        if not left:
            return row.text(), ""
        below = _Row(self.columns)
        below.join(here, left, [])
        below.put(here, "┤" if own else "╯")
        return row.text(), below.text()

    def _place(self, came: int | None, into: _Bundle | None, own: _Bundle | None, out: int) -> int:
        """Choose a step's column: its line's when that is all its own, else one beside it."""
        if came is None or into is None:
            return self._free(0)
        if into.sinks == 1:
            back = into.sources > 1 and out == bool(own)  # together, and nothing to the right: as far left as can be
            return min(self._free(0), came) if back else came
        beside = self._free(came + 1)
        return came if into.left == 1 and own and beside > came + 1 else beside

    def _free(self, column: int) -> int:
        """Find the first free column from this one on."""
        while column < len(self.columns) and self.columns[column]:
            column += 1
        return column

    def _begin(self, bundle: _Bundle, here: int) -> int:
        column = self._free(here + 1)
        self._stand(bundle, column)
        return column

    def _stand(self, bundle: _Bundle, column: int) -> None:
        self.columns += [None] * (column + 1 - len(self.columns))
        self.columns[column] = bundle


class _Row:
    """The characters of a row: one for each column, and one between any two."""

    def __init__(self, columns: Sequence[object]) -> None:
        self.chars = [char for column in columns for char in ("│" if column else " ", " ")]

    def put(self, column: int, char: str) -> None:
        self.chars += " " * (2 * column + 1 - len(self.chars))
        self.chars[2 * column] = char

    def line(self, start: int, end: int) -> None:
        """Draw what lies between two columns, behind the lines that pass there."""
        low, high = sorted((2 * start, 2 * end))
        self.chars += " " * (high - len(self.chars))
        self.chars[low + 1 : high] = ["─" if char == " " else char for char in self.chars[low + 1 : high]]

    def join(self, here: int, columns: set[int], begun: Sequence[int]) -> None:
        """Draw from here to columns on one side, to lines that stand there and lines that begin there."""
        if not columns and not begun:
            return
        farthest = max(columns.union(begun), key=lambda column: abs(column - here))
        self.line(here, farthest)
        for column in columns:
            self.put(column, "┼" if column != farthest else "┤" if column > here else "├")
        for column in begun:
            self.put(column, "╮" if column == farthest else "┬")

    def text(self) -> str:
        return "".join(self.chars).rstrip()


def in_order(graph: Graph) -> list[int]:
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
