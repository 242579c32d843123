"""Jobs and workflows as HTML, for notebooks: small, without scripts, all text escaped. Pure.

Colours are such that they can be read on a light page and on a dark one.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
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
    places, width, height = _places(drawn, levels, boxes)
    parts = [_edge(places[start], places[end]) for start, end in edges if start in places and end in places]
    parts += [_box(boxes[number], place) for number, place in places.items()]
    size = f'width="{width:.0f}" height="{height:.0f}" viewBox="0 0 {width:.0f} {height:.0f}"'
    style = "max-width:100%;height:auto;font:12px ui-monospace,monospace"
    says = f"a workflow of {len(boxes)} steps"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{says}" {size} style="{style}">'
        f"{''.join(parts)}</svg>"
    )


class _Place(NamedTuple):
    """Where a box stands, in pixels."""

    left: float
    middle: float
    width: float


def _places(
    drawn: Graph, levels: Sequence[Sequence[int]], boxes: Sequence[Box]
) -> tuple[dict[int, _Place], float, float]:
    """Give each level a column, and order its boxes by where those that feed them stand (Sugiyama, 1981)."""
    rows: dict[int, float] = {}
    places: dict[int, _Place] = {}
    height = max(map(len, levels)) * _ROW_PX
    left = 1.0
    for level in levels:
        ordered = sorted(level, key=lambda number: _pull(drawn, number, rows))
        width = max(_CHAR_PX * len(clipped(boxes[number].name, _NAME_CHARS)) for number in level) + 16
        for row, number in enumerate(ordered):
            rows[number] = (row + 0.5) * height / len(ordered)
            places[number] = _Place(left, rows[number], width)
        left += width + _GAP_PX
    return places, left - _GAP_PX + 1, height


def _pull(drawn: Graph, number: int, rows: Mapping[int, float]) -> float:
    feeders = [rows[each] for each in drawn.feeders.get(drawn.steps[number].from_, ()) if each in rows]
    return sum(feeders) / len(feeders) if feeders else float(number)


def _edge(start: _Place, end: _Place) -> str:
    x, y, to_x, to_y = start.left + start.width, start.middle, end.left, end.middle
    bend = (to_x - x) / 2
    way = f"M{x:.1f},{y:.1f} C{x + bend:.1f},{y:.1f} {to_x - bend:.1f},{to_y:.1f} {to_x:.1f},{to_y:.1f}"
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
