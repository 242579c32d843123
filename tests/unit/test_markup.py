"""Jobs and workflows as HTML: well formed, without scripts, and nothing in it that was not escaped."""

from __future__ import annotations

import re
import threading
from typing import Any
from xml.etree import ElementTree

import pytest

import exesys
from exesys import codec, markup
from exesys.bus.handle import Handle, Handles
from exesys.bus.jobhandle import JobHandle
from exesys.errors import BadCommand
from exesys.states import State
from exesys.workflow import Graph

HOSTILE = '<script>alert("1")</script>&\'--><svg onload=x>'


def parsed(html: str) -> ElementTree.Element:
    """Parse it as XML, which forgives nothing, and see that it can do nothing."""
    whole = ElementTree.fromstring(f"<div>{html}</div>")
    for element in whole.iter():
        tag = element.tag.rpartition("}")[2]
        assert tag in {
            *("div", "table", "thead", "tbody", "tr", "td", "th", "code", "b", "p", "details"),
            *("svg", "g", "title", "rect", "text", "path"),
        }, tag
        assert not [name for name in element.attrib if name.startswith("on") or name.endswith("href")]
    return whole


def handle(state: State | None = None, body: Any = None, cmd: str = "f") -> Handle:
    made = Handle("job-1", "client", "end_job", cmd, threading.Lock())
    if state is not None:
        made._change(state, body)
    return made


def failed(message: str) -> Handle:
    told = {"type": "ValueError", "message": message, "traceback": f"in {message}"}
    return handle(State.error, [codec.pack(told), 2])


def test_a_handle_shows_what_is_known() -> None:
    assert "sent" in parsed(handle()._repr_html_()).itertext()
    assert "start" in parsed(handle(State.start)._repr_html_()).itertext()
    done = parsed(handle(State.data_available, codec.pack({"EOJ": {"a": 1}}))._repr_html_())
    assert {"data_available", "{'a': 1}"} <= set(done.itertext())
    wrong = list(parsed(failed("too bad")._repr_html_()).itertext())
    assert {"ValueError: too bad (after 2 attempts)", "in too bad"} <= set(wrong)


def test_a_refusal_is_shown() -> None:
    refused = handle()
    refused._fail(BadCommand("no such thing."))
    assert {"error", "no such thing."} <= set(parsed(refused._repr_html_()).itertext())


@pytest.mark.parametrize("made", [failed(HOSTILE), handle(State.data_available, codec.pack({"EOJ": HOSTILE}), HOSTILE)])
def test_hostile_text_stays_text(made: Handle) -> None:
    assert HOSTILE in "".join(parsed(made._repr_html_()).itertext())
    parsed(Handles([made])._repr_html_())


def test_what_is_long_is_clipped() -> None:
    shown = handle(State.data_available, codec.pack({"EOJ": "x" * 100_000}))._repr_html_()
    assert len(shown) < 2 * markup.MOST_CHARS
    assert "…" in shown
    many = Handles(handle() for _ in range(markup.MOST_ROWS + 9))
    assert len(parsed(many._repr_html_()).findall(".//tbody/tr")) == markup.MOST_ROWS
    assert "… and 9 more" in many._repr_html_()


def test_handles_are_a_list() -> None:
    assert Handles([handle()])[0].cmd == "f"
    assert parsed(Handles()._repr_html_()).findall(".//tbody/tr") == []


def svg(html: str) -> ElementTree.Element:
    found = parsed(html).find(".//{*}svg")
    assert found is not None
    return found


def test_a_workflow_is_drawn() -> None:
    flow = exesys.Workflow()
    split = flow.step("split", "docs")
    parts = [flow.step("index", after=split, name=f"part-{n}") for n in range(3)]
    flow.step("merge", after=parts)
    drawn = svg(flow._repr_html_())
    names = [element.text for element in drawn.iterfind(".//{*}text")]
    assert sorted(map(str, names)) == ["merge", "part-0", "part-1", "part-2", "split"]
    assert len(drawn.findall(".//{*}path")) == 6
    lefts = {element.text: float(element.get("x", 0)) for element in drawn.iterfind(".//{*}text")}
    assert lefts["split"] < lefts["part-0"] == lefts["part-2"] < lefts["merge"]
    assert "index" in "".join(drawn.itertext())
    assert repr(flow) == "<Workflow split, part-0, part-1, part-2, merge>"


def test_no_box_covers_another_and_none_lies_outside() -> None:
    flow = exesys.Workflow()
    layer = [flow.step("a", name=f"first-{n}") for n in range(7)]
    layer = [flow.step("b", after=layer[n : n + 3], name=f"second-{n}") for n in range(5)]
    flow.step("c", after=layer, name="last" * 10)
    drawn = svg(flow._repr_html_())
    width, height = (float(drawn.get(name, 0)) for name in ("width", "height"))
    boxes = [
        tuple(float(box.get(name, 0)) for name in ("x", "y", "width", "height"))
        for box in drawn.iter()
        if box.tag.endswith("rect")
    ]
    assert len(boxes) == 13
    for x, y, wide, high in boxes:
        assert x >= 0
        assert y >= 0
        assert x + wide <= width
        assert y + high <= height
    for number, (x, y, wide, high) in enumerate(boxes):
        for other_x, other_y, *_ in boxes[number + 1 :]:
            assert not (x <= other_x < x + wide and y <= other_y < y + high)


def test_a_line_goes_behind_no_box() -> None:
    flow = exesys.Workflow()
    split = flow.step("split")
    merge = flow.step("merge", after=flow.step("index", after=split))
    flow.step("report", after=[split, merge])
    drawn = svg(flow._repr_html_())
    middles = {str(box.findtext("{*}title")).partition(":")[0]: box.find("{*}rect") for box in drawn.iterfind("{*}g")}
    [long] = [str(line.get("d")) for line in drawn.iterfind("{*}path") if str(line.get("d")).count(" H") == 2]
    passed = {float(part.split(",")[1]) for part in re.findall(r"[\d.]+,[\d.]+(?= H)", long)}
    for name in ("index", "merge"):
        box = middles[name]
        assert box is not None
        top = float(box.get("y", 0))
        assert not [y for y in passed if top <= y <= top + float(box.get("height", 0))], name


def test_a_large_workflow_is_counted() -> None:
    flow = exesys.Workflow()
    first = flow.step("split")
    for _ in range(markup.MOST_DRAWN + 1):
        flow.step("index", after=first)
    shown = list(parsed(flow._repr_html_()).itertext())
    assert {"82 steps", "81", "index"} <= set(shown)
    assert repr(flow).endswith("… (82 in all)>")
    assert parsed(exesys.Workflow()._repr_html_()).findtext(".//p") == "no steps"


def test_a_circle_is_drawn_as_far_as_it_can_be() -> None:
    graph = Graph([("a", "b"), ("b", "a"), ("c", "end_job")])
    boxes = [markup.Box(name, "f") for name in "abc"]
    assert [element.text for element in svg(markup.graph(graph, boxes)).iterfind(".//{*}text")] == ["c"]
    assert "no step" in markup.graph(Graph([("a", "b"), ("b", "a")]), boxes[:2])


def test_a_workflow_that_was_sent_is_drawn_in_the_colours_of_its_states() -> None:
    graph = Graph([("a", "b"), ("b", "end_job")])
    steps = [Handle("job-1", name, to, "f", threading.Lock()) for name, to in (("a", "b"), ("b", "end_job"))]
    job = JobHandle("job-1", graph, steps, lambda *_: steps[0])
    assert "sent" in parsed(job._repr_html_()).itertext()
    steps[0]._change(State.start, None)
    steps[1]._change(State.standby, None)
    titles = [element.text for element in svg(job._repr_html_()).iterfind(".//{*}title")]
    assert titles == ["a: f", "b: f, standby"], "of a step between nothing more is told than that it was taken"
    steps[1]._change(State.data_available, codec.pack({"EOJ": 1}))
    titles = [element.text for element in svg(job._repr_html_()).iterfind(".//{*}title")]
    assert titles == ["a: f, data_available", "b: f, data_available"]
