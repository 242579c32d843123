"""The builder: what it makes of tasks, and what it refuses."""

from __future__ import annotations

import inspect
import json
import textwrap
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exesys
from exesys import command, flow
from exesys.errors import BadCommand
from exesys.workflow import Graph


def search() -> exesys.Workflow:
    flow = exesys.Workflow()
    split = flow.step("split", "docs")
    parts = [flow.step("index", after=split, name=f"part-{n}") for n in range(3)]
    merge = flow.step("merge", after=parts)
    flow.step("report", after=merge)
    return flow


def refused(field: str, *sent: Any, flow: exesys.Workflow | None = None, **options: Any) -> str:
    flow = exesys.Workflow() if flow is None else flow
    before = len(flow.tasks)
    with pytest.raises(BadCommand) as caught:
        flow.step(*sent, **options)
    assert caught.value.field == field
    assert len(flow.tasks) == before
    return str(caught.value)


def test_the_example() -> None:
    assert search().commands() == [
        {"from": "split", "to": ["part-0", "part-1", "part-2"], "cmd": "split", "data": "docs"},
        {"from": "part-0", "to": "merge", "cmd": "index", "data": None},
        {"from": "part-1", "to": "merge", "cmd": "index", "data": None},
        {"from": "part-2", "to": "merge", "cmd": "index", "data": None},
        {"from": "merge", "to": "report", "cmd": "merge", "data": None},
        {"from": "report", "to": "end_job", "cmd": "report", "data": None},
    ]


def test_the_example_is_the_one_in_the_documentation() -> None:
    lines = textwrap.dedent(inspect.getsource(search)).splitlines()[1:-1]
    shown = textwrap.dedent(inspect.getdoc(flow).partition("\n\n")[2]).splitlines()[: len(lines)]
    assert [line.strip() for line in shown] == [line.strip() for line in lines]


def test_its_graph() -> None:
    graph = search().graph
    assert isinstance(graph, Graph)
    graph.check(6)
    assert (graph.roots, graph.ends, graph.levels()) == ([0], [5], [[0], [1, 2, 3], [4], [5]])


def test_commands_are_what_rest_takes() -> None:
    for body in json.loads(json.dumps(search().commands())):
        built = command.from_json(body, command.Limits(), lambda: "new-id")
        assert built.from_ == body["from"]


def test_a_task_leads_to_the_next() -> None:
    flow = exesys.Workflow()
    end = flow.step("read", {"path": "x"}).then("count", retries=3).then("show", name="last")
    assert [(each["from"], each["to"]) for each in flow.commands()] == [
        ("read", "count"),
        ("count", "last"),
        ("last", "end_job"),
    ]
    assert flow.commands()[1]["retries"] == 3
    assert (end.name, end.cmd, repr(end)) == ("last", "show", "<Task last>")


def test_several_roots_and_ends() -> None:
    flow = exesys.Workflow()
    left, right = flow.step("left", 1), flow.step("right", 2)
    flow.step("both", after=(left, right))
    flow.step("only", after=left)
    flow.step("alone", 3)
    graph = flow.graph
    assert ([graph.steps[n].from_ for n in graph.roots], len(graph.ends)) == (["left", "right", "alone"], 3)
    assert flow.commands()[0]["to"] == ["both", "only"]


def test_options_stand_beside_the_rest() -> None:
    flow = exesys.Workflow()
    flow.step("mail", "x", queue="slow", priority=9, delay_s=1.5)
    assert flow.commands() == [
        {"from": "mail", "to": "end_job", "cmd": "mail", "data": "x", "queue": "slow", "priority": 9, "delay_s": 1.5}
    ]


def test_what_was_given_out_is_not_changed_by_more_tasks() -> None:
    flow = exesys.Workflow()
    first = flow.step("a")
    for _ in range(2):
        first.then("b")
    before = flow.commands()
    first.then("b")
    assert before[0]["to"] == ["b", "b-2"]
    assert flow.commands()[0]["to"] == ["b", "b-2", "b-3"]


# --- names ----------------------------------------------------------------------


def test_names_are_made_of_commands() -> None:
    flow = exesys.Workflow()
    flow.step("f", name="f-3")
    assert [flow.step("f").name for _ in range(4)] == ["f", "f-2", "f-4", "f-5"]
    assert flow.step("text.split").name == "text.split"


@pytest.mark.parametrize("cmd", ["run", "exesys", "end_job", "start_job"])
def test_a_command_may_have_a_name_that_a_step_may_not(cmd: str) -> None:
    flow = exesys.Workflow()
    assert [flow.step(cmd).name, flow.step(cmd).name] == [f"{cmd}-2", f"{cmd}-3"]
    flow.commands()


def test_many_steps_of_one_command_are_named_fast() -> None:
    flow = exesys.Workflow()
    began = time.process_time()
    first = flow.step("f")
    flow.step("g", after=[flow.step("f", after=first) for _ in range(9_998)])
    assert len(flow.commands()) == 10_000
    assert time.process_time() - began < 1
    assert flow.tasks[9_998].name == "f-9999"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("a b", "`name` holds the character ' '. Use 1 to 128"),
        ("", "`name` is empty."),
        ("end_job", "'end_job' is a name of the system's own."),
        ("run", "'run' is a name"),
    ],
)
def test_bad_names_are_refused(name: str, says: str) -> None:
    assert refused("name", "f", name=name).startswith(says)


def test_a_name_is_given_once() -> None:
    assert refused("name", "g", name="split", flow=search()) == (
        "there are two steps with the name split. Choose another name."
    )


def test_a_bad_command_is_refused() -> None:
    assert "`cmd` must be a string, not a number." in refused("cmd", 5)


# --- what comes after what -------------------------------------------------------


def test_a_task_of_another_workflow_is_refused() -> None:
    other = search().tasks[0]
    assert refused("after", "f", after=other) == (
        "f comes after <Task split>, which is no task of this workflow. Give what its `step` returned."
    )


@pytest.mark.parametrize("after", ["split", ["split"], [None]])
def test_a_name_is_no_task(after: Any) -> None:
    assert "which is no task of this workflow" in refused("after", "f", after=after, flow=search())


def test_a_task_comes_after_another_once() -> None:
    flow = exesys.Workflow()
    first = flow.step("a")
    assert refused("after", "b", after=[first, first], flow=flow) == "b comes after a twice. Name it once."
    assert first.to == [], "nothing of it stays"


def test_data_that_nobody_would_see_is_refused() -> None:
    flow = exesys.Workflow()
    first = flow.step("a")
    assert refused("data", "b", 5, after=first, flow=flow).startswith("b has data, but is given what a returns.")


def test_options_are_checked() -> None:
    assert "Did you mean `retries`?" in refused("retry", "f", retry=3)
    assert "`priority` is 10." in refused("priority", "f", priority=10)


@pytest.mark.parametrize(
    ("key", "says"), [("to", "Use `after`."), ("from_", "Use `name`."), ("job_id", "It is given when")]
)
def test_what_the_graph_gives_is_no_option(key: str, says: str) -> None:
    assert says in refused(key, "f", **{key: "x"})


# --- the whole -------------------------------------------------------------------


def test_no_tasks_are_no_workflow() -> None:
    with pytest.raises(BadCommand, match="the workflow has no steps"):
        exesys.Workflow().commands()


def test_the_graph_is_checked() -> None:
    flow = exesys.Workflow()
    flow.step("a", name="start_job")
    flow.step("b")
    with pytest.raises(BadCommand, match="nothing reaches the step b → end_job"):
        flow.commands()


def test_too_many_after_one_are_refused_by_name() -> None:
    flow = exesys.Workflow()
    first = flow.step("a")
    for _ in range(10_001):
        first.then("b")
    with pytest.raises(BadCommand, match="10,001 tasks come after a") as caught:
        flow.commands()
    assert caught.value.field == "to"


@given(st.lists(st.sets(st.integers(0, 7), max_size=3), min_size=1, max_size=8))
def test_whatever_is_built_is_a_workflow(afters: list[set[int]]) -> None:
    flow = exesys.Workflow()
    tasks: list[Any] = []
    for after in afters:
        tasks.append(flow.step("f", after=[tasks[n] for n in sorted(after) if n < len(tasks)]))
    graph = Graph((each["from"], command.check_to(each["to"])) for each in flow.commands())
    assert graph.steps == flow.graph.steps
    fed = [{tasks[n].name for n in after if n < number} for number, after in enumerate(afters)]
    assert [set(graph.feeder_names(task.name)) for task in tasks] == fed
