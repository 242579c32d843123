"""The published workflows in tests/data/workflows: they are what their generator writes, and what was published."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
from data import make_workflows

from exesys import command
from exesys.states import State
from exesys.workflow import Graph, Progress


class Shape(NamedTuple):
    levels: tuple[int, ...]  # steps in each
    ends: int
    edges: int  # those to end_job too

    @property
    def steps(self) -> int:
        return sum(self.levels)


SHAPES = {
    "1000genome": Shape((88, 8, 112), ends=112, edges=416),
    "blast": Shape((1, 100, 2), ends=2, edges=302),
    "cybershake": Shape((4, 497, 498, 1), ends=2, edges=1990),
    "epigenomics": Shape((2, 11, 11, 11, 11, 2, 1, 1, 1), ends=1, edges=60),
    "ligo": Shape((55, 55, 5, 55, 55, 5), ends=5, edges=288),
    "montage": Shape((176, 625, 1, 1, 176, 1, 1, 1, 1), ends=1, edges=2584),
    "seismology": Shape((100, 1), ends=1, edges=101),
    "sipht": Shape((44, 4, 8, 2, 2), ends=2, edges=70),
    "soykb": Shape((15, 15, 15, 15, 15, 15, 150, 11, 1, 2, 2), ends=3, edges=557),
    "srasearch": Shape((31, 30, 2, 1), ends=1, edges=93),
}


def text_of(name: str) -> str:
    return (make_workflows.PLACE / f"{name}.json").read_text(encoding="utf-8")


def commands_of(name: str) -> list[command.Command]:
    return [command.from_json(body, command.Limits(), lambda: "new-id") for body in json.loads(text_of(name))]


def graph_of(name: str) -> Graph:
    return Graph((each.from_, each.to) for each in commands_of(name))


def test_all_are_here_and_no_other() -> None:
    assert {path.name for path in make_workflows.PLACE.iterdir()} == {f"{name}.json" for name in SHAPES}
    assert list(make_workflows.SHAPES) == list(SHAPES)


def test_their_sizes_differ() -> None:
    sizes = sorted(shape.steps for shape in SHAPES.values())
    assert (sizes[0], sizes[-1]) == (51, 1000)
    assert sum(50 <= size < 100 for size in sizes) == 3
    assert sum(size > 900 for size in sizes) == 2


@pytest.mark.parametrize("name", SHAPES)
def test_the_file_is_what_the_generator_writes(name: str) -> None:
    assert text_of(name) == make_workflows.written(name)


@pytest.mark.parametrize("name", SHAPES)
def test_one_command_stands_on_a_line(name: str) -> None:
    first, *lines, last = text_of(name).splitlines()
    assert (first, last) == ("[", "]")
    for line, body in zip(lines, json.loads(text_of(name)), strict=True):
        assert json.loads(line.rstrip(",")) == body
        assert list(body) == ["from", "to", "cmd", "data"]
        assert body["cmd"] == "workflow_node"


@pytest.mark.parametrize("name", SHAPES)
def test_it_has_the_shape_that_was_published(name: str) -> None:
    graph = graph_of(name)
    graph.check(10_000)
    assert tuple(len(level) for level in graph.levels()) == SHAPES[name].levels
    assert len(graph.steps) == SHAPES[name].steps
    assert len(graph.ends) == SHAPES[name].ends
    assert sum(len(step.to) for step in graph.steps) == SHAPES[name].edges
    assert graph.levels()[0] == graph.roots


@pytest.mark.parametrize("name", SHAPES)
def test_its_roots_have_data_and_the_others_have_none(name: str) -> None:
    bodies = json.loads(text_of(name))
    roots = graph_of(name).roots
    assert [bodies[root]["data"] for root in roots] == [{"weight": n} for n in range(1, len(roots) + 1)]
    assert all(body["data"] is None for number, body in enumerate(bodies) if number not in set(roots))


@pytest.mark.parametrize("name", SHAPES)
def test_it_runs_to_the_end(name: str) -> None:
    progress = Progress(graph_of(name))
    ready = list(progress.graph.roots)
    while ready:
        number = ready.pop()
        progress.begin(number)
        ready += progress.end(number)
    assert set(progress.states) == {State.data_available}


def kinds(name: str) -> dict[str, set[str]]:
    """Return what kinds of tasks feed a kind: that is what the publications draw."""
    graph = graph_of(name)
    found: dict[str, set[str]] = {}
    for number, step in enumerate(graph.steps):
        for fed in graph.successors(number):
            found.setdefault(kind(graph.steps[fed].from_), set()).add(kind(step.from_))
    return found


def kind(name: str) -> str:
    return name.rpartition("-")[0]


def test_montage_as_it_is_drawn() -> None:
    assert kinds("montage") == {
        "mDiffFit": {"mProjectPP"},
        "mConcatFit": {"mDiffFit"},
        "mBgModel": {"mConcatFit"},
        "mBackground": {"mBgModel", "mProjectPP"},
        "mImgtbl": {"mBackground"},
        "mAdd": {"mImgtbl", "mBackground"},
        "mShrink": {"mAdd"},
        "mJPEG": {"mShrink"},
    }


def test_sipht_as_it_is_drawn() -> None:
    found = kinds("sipht")
    assert found["SRNA"] == {"Transterm", "Findterm", "RNAMotif", "Blast"}
    assert found["Blast_synteny"] == {"SRNA", "FFN_Parse"}
    assert found["SRNA_annotate"] == {
        *("Patser_concate", "SRNA", "Blast_synteny", "Blast_candidate", "Blast_QRNA", "Blast_paralogues")
    }


def test_ligos_groups_overlap() -> None:
    graph = graph_of("ligo")
    coincidences = [name for name in graph.named if kind(name) == "Thinca"]
    assert [len(graph.feeders[name]) for name in coincidences] == [12, 12, 12, 12, 11] * 2
