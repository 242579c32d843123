"""Jobs and workflows as HTML, for notebooks: small, without scripts, all text escaped. Pure.

Colours are such that they can be read on a light page and on a dark one.
"""

from __future__ import annotations

import html
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import NamedTuple

from exesys.states import State
from exesys.workflow import MOST_NAMED, Graph

MOST_DRAWN = 80  # steps
MOST_EDGES = 400
MOST_CHARS = 2000  # of a value or an error's text
MOST_ROWS = 50
_NAME_CHARS = 24
_CHAR_PX = 7.2
_ROW_PX = 36
_BOX_PX = 24
_GAP_PX = 44
_COLOURS = {
    State.start: "#b58900",
    State.standby: "#8a8f98",
    State.processing: "#3b7dd8",
    State.data_available: "#2e9e6b",
    State.error: "#d1495b",
}
_PLAIN = "#8a8f98"


class Box(NamedTuple):
    """A step as it is drawn: its name, what it runs, and its state where that is known."""

    name: str
    cmd: str
    state: State | None = None


def clipped(text: str, most: int = MOST_CHARS) -> str:
    return text if len(text) <= most else f"{text[:most]}…"


def badge(state: State | None, otherwise: str = "sent") -> str:
    """Show a state in its colour."""
    colour = _PLAIN if state is None else _COLOURS[state]
    return f'<b style="color:{colour}">{html.escape(otherwise if state is None else state.name)}</b>'


def code(text: str) -> str:
    return f'<code style="white-space:pre-wrap">{html.escape(clipped(text))}</code>'


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Make a table of names and what is to be said of them; the latter is HTML already."""
    cell = '<td style="text-align:left;vertical-align:top">'
    lines = "".join(f"<tr>{cell}{html.escape(name)}</td>{cell}{shown}</td></tr>" for name, shown in rows)
    return f"<table>{lines}</table>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], left_out: int = 0) -> str:
    """Make a table with a head; the cells are HTML already."""
    names = "".join(f'<th style="text-align:left">{html.escape(name)}</th>' for name in head)
    lines = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    more = f"<p>… and {left_out:,} more</p>" if left_out else ""
    return f"<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table>{more}"


def graph(drawn: Graph, boxes: Sequence[Box]) -> str:
    """Draw a graph as inline SVG, from left to right; one that is too large is counted by its levels."""
    edges = [(number, fed) for number in range(len(boxes)) for fed in drawn.successors(number)]
    levels = drawn.levels()
    if not boxes:
        return "<p>no steps</p>"
    if len(boxes) > MOST_DRAWN or len(edges) > MOST_EDGES:
        return _summary(levels, boxes)
    if not any(levels):
        return "<p>no step begins: they go in a circle</p>"
    level_of = {number: place for place, level in enumerate(levels) for number in level}
    ways = [_way(start, end, level_of) for start, end in edges if start in level_of and end in level_of]
    places, width, height = _places(levels, boxes, ways)
    parts = [_line([places[stop] for stop in way]) for way in ways]
    parts += [_box(boxes[number], places[number]) for number in level_of]
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    style = "max-width:100%;height:auto;font:12px ui-monospace,monospace"
    says = f"a workflow of {len(boxes)} steps"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{says}" {size} style="{style}">'
        f"{''.join(parts)}</svg>"
    )


class _Place(NamedTuple):
    """Where a box stands, or a line passes, in pixels."""

    left: float
    middle: float
    width: float


Stop = int | tuple[int, int, int]  # a step; or where the line between two passes a level, the third


def _way(start: int, end: int, level_of: Mapping[int, int]) -> list[Stop]:
    """Return where a line between two steps goes: in each level between it has a place of its own, behind no box."""
    return [start, *((start, end, level) for level in range(level_of[start] + 1, level_of[end])), end]


def _places(
    levels: Sequence[Sequence[int]], boxes: Sequence[Box], ways: Sequence[Sequence[Stop]]
) -> tuple[dict[Stop, _Place], float, float]:
    """Give each level a column, and order what is in it by where its lines come from (Sugiyama, 1981).

    Returns the places, and the width and height of all.
    """
    columns: list[list[Stop]] = [[*level] for level in levels]
    sources: defaultdict[Stop, list[Stop]] = defaultdict(list)
    for way in ways:
        for stop, following in pairwise(way):
            sources[following].append(stop)
            if isinstance(following, tuple):
                columns[following[2]].append(following)
    places: dict[Stop, _Place] = {}
    height = max(map(len, columns)) * _ROW_PX
    left = 1.0
    for level, column in zip(levels, columns, strict=True):
        width = max(_CHAR_PX * len(clipped(boxes[number].name, _NAME_CHARS - 1)) for number in level) + 16
        pulled = {stop: mean(places[each].middle for each in sources[stop]) for stop in column if sources[stop]}
        for row, stop in enumerate(sorted(column, key=lambda stop: pulled.get(stop, 0.0))):
            places[stop] = _Place(left, (row + 0.5) * height / len(column), width)
        left += width + _GAP_PX
    return places, left - _GAP_PX + 1, height


def _line(stops: Sequence[_Place]) -> str:
    """Draw a line through all stops; where it passes a level, it goes straight."""
    way = f"M{stops[0].left + stops[0].width:.1f},{stops[0].middle:.1f}"
    for one, other in pairwise(stops):
        x, bend = one.left + one.width, (other.left - one.left - one.width) / 2
        way += f" C{x + bend:.1f},{one.middle:.1f} {other.left - bend:.1f},{other.middle:.1f}"
        way += f" {other.left:.1f},{other.middle:.1f}"
        if other is not stops[-1]:
            way += f" H{other.left + other.width:.1f}"
    return f'<path d="{way}" fill="none" stroke="{_PLAIN}" stroke-opacity=".7"/>'


def _box(box: Box, place: _Place) -> str:
    colour = _PLAIN if box.state is None else _COLOURS[box.state]
    top = place.middle - _BOX_PX / 2
    told = f"{box.name}: {box.cmd}" + ("" if box.state is None else f", {box.state.name}")
    return (
        f"<g><title>{html.escape(told)}</title>"
        f'<rect x="{place.left:.1f}" y="{top:.1f}" width="{place.width:.1f}" height="{_BOX_PX}" rx="5"'
        f' fill="{colour}" fill-opacity=".15" stroke="{colour}"/>'
        f'<text x="{place.left + place.width / 2:.1f}" y="{place.middle + 4:.1f}" text-anchor="middle"'
        f' fill="currentColor">{html.escape(clipped(box.name, _NAME_CHARS - 1))}</text></g>'
    )


def _summary(levels: Sequence[Sequence[int]], boxes: Sequence[Box]) -> str:
    rows = []
    for place, level in enumerate(levels[:MOST_ROWS], 1):
        cmds = list(dict.fromkeys(boxes[number].cmd for number in level))
        named = ", ".join(cmds[:MOST_NAMED]) + (", …" if len(cmds) > MOST_NAMED else "")
        rows.append((str(place), f"{len(level):,}", code(named)))
    return f"<p>{len(boxes):,} steps</p>" + table(("level", "steps", "cmd"), rows, max(len(levels) - MOST_ROWS, 0))
