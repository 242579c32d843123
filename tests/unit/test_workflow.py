"""The graph of a job: what is refused, and that every run of what is not comes to its end."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from unit.graphs import graphs

from exesys.command import END
from exesys.errors import BadCommand, ExesysError, StateError, TooLarge
from exesys.states import State
from exesys.workflow import START, Graph, Progress, Step, call_feeders, predecessor_failed

MOST = 10_000
# The picture: A's result goes to B, B's to C, and C's command is run twice, for D and for E.
PICTURE = [("A", "B"), ("B", "C"), ("C", "D"), ("C", "E"), ("D", END), ("E", END)]
DIAMOND = [("a", "b,c"), ("b", "d"), ("c", "d"), ("d", END)]


# --- any graph --------------------------------------------------------------


chance = st.randoms(use_true_random=False)
Failing = Callable[[int, int], bool]  # whether a step's attempt fails


def never(number: int, attempt: int) -> bool:
    return False


class Run:
    """Carry out a graph in an order that chance chooses, and keep what was seen."""

    def __init__(self, graph: Graph, chance: random.Random) -> None:
        self.graph = graph
        self.chance = chance
        self.progress = Progress(graph)
        self.ran: Counter[int] = Counter()
        self.results: dict[int, str] = {}

    def to_the_end(self, fails: Failing = never, retrying: float = 0.0) -> Run:
        """`retrying` is how often all that failed is tried again meanwhile."""
        progress = self.progress
        while not progress.over:
            if self.chance.random() < retrying:
                progress.retry()
            number = self.chance.choice([n for n, state in enumerate(progress.states) if state in _GOING])
            if progress.states[number] is State.start:
                self.begin(number)
            elif fails(number, self.ran[number]):
                progress.fail(number)
            else:
                self.results[number] = work(self.graph, number, self.results)
                for fed in progress.end(number):
                    assert progress.states[fed] is State.start
        return self

    def begin(self, number: int) -> None:
        for feeder in feeders_of(self.graph, number):
            assert self.progress.states[feeder] is State.data_available, "it began before all that feed it had ended"
        assert number not in self.results, "it ran again although it had ended well"
        self.progress.begin(number)
        self.ran[number] += 1

    @property
    def end_of_job(self) -> dict[str, str]:
        return dict(zip(self.graph.feeder_names(END), map(self.results.get, self.graph.ends), strict=True))

    def in_state(self, state: State) -> set[int]:
        return {number for number, one in enumerate(self.progress.states) if one is state}


_GOING = (State.start, State.processing)


def feeders_of(graph: Graph, number: int) -> list[int]:
    return [n for n, step in enumerate(graph.steps) if graph.steps[number].from_ in step.to]


def data_of(graph: Graph, number: int, results: dict[int, str]) -> object:
    """What a step is given: nothing, what its only feeder gave, or a map of what several gave."""
    feeders = feeders_of(graph, number)
    if len(feeders) < 2:
        return results[feeders[0]] if feeders else None
    return dict(zip(call_feeders([graph.steps[n] for n in feeders]), (results[n] for n in feeders), strict=True))


def work(graph: Graph, number: int, results: dict[int, str]) -> str:
    """A function of what a step is and of all that it is given."""
    packed = json.dumps([graph.firsts[number], data_of(graph, number, results)], sort_keys=True)
    return hashlib.blake2b(packed.encode(), digest_size=8).hexdigest()


def dependents(graph: Graph, numbers: Iterable[int]) -> set[int]:
    found, left = set(), list(numbers)
    while left:
        more = set(graph.successors(left.pop())) - found
        found |= more
        left += more
    return found


@given(graphs())
def test_a_random_graph_is_a_workflow(graph: Graph) -> None:
    graph.check(len(graph.steps))
    assert graph.roots
    assert graph.ends


@given(graphs(), chance)
def test_every_order_of_completion_comes_to_the_end(graph: Graph, chance: random.Random) -> None:
    run = Run(graph, chance).to_the_end()
    assert run.in_state(State.data_available) == set(range(len(graph.steps)))
    assert set(run.ran.values()) == {1}


@given(graphs(), chance)
def test_the_results_are_the_same_in_every_order(graph: Graph, chance: random.Random) -> None:
    run = Run(graph, chance).to_the_end()
    results: dict[int, str] = {}
    for level in graph.levels():
        for number in level:
            results[number] = work(graph, number, results)
    assert run.results == results
    assert run.end_of_job == {
        name: results[number] for name, number in zip(graph.feeder_names(END), graph.ends, strict=True)
    }


@given(graphs(), chance, st.data())
def test_a_failure_ends_what_depends_on_it_and_nothing_else(
    graph: Graph, chance: random.Random, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.sampled_from(range(len(graph.steps)))))
    run = Run(graph, chance).to_the_end(lambda number, _: number in bad)
    failed = bad & set(run.ran)
    lost = dependents(graph, failed)
    assert not lost & set(run.ran)
    assert run.in_state(State.error) == failed | lost
    assert run.in_state(State.data_available) == set(range(len(graph.steps))) - failed - lost
    assert set(run.progress.reasons) == lost
    for number, reason in run.progress.reasons.items():
        causes = {graph.steps[feeder].from_ for feeder in feeders_of(graph, number) if feeder in failed | lost}
        assert reason in {f"predecessor {name} failed" for name in causes}

    before = run.ran.copy()
    started, waiting = run.progress.retry()
    assert (set(started), set(waiting)) == (failed, lost)
    assert not run.progress.reasons
    run.to_the_end()
    assert run.in_state(State.data_available) == set(range(len(graph.steps)))
    assert run.ran - before == Counter(failed | lost), "what ended well does not run again"
    assert run.results == Run(graph, chance).to_the_end().results


@given(graphs(), chance, st.lists(st.integers(0, 2), min_size=24, max_size=24))
def test_what_is_retried_while_the_rest_goes_on_ends_well(
    graph: Graph, chance: random.Random, failures: list[int]
) -> None:
    run = Run(graph, chance)
    for _ in range(50):
        run.to_the_end(lambda number, attempt: attempt <= failures[number], retrying=0.3)
        if not run.in_state(State.error):
            break
        run.progress.retry()
    assert run.in_state(State.data_available) == set(range(len(graph.steps)))
    assert run.ran == Counter({number: 1 + failures[number] for number in range(len(graph.steps))})


# --- reading a graph ----------------------------------------------------------


def test_the_picture() -> None:
    graph = Graph(PICTURE)
    graph.check(MOST)
    assert graph.steps[:2] == (Step("A", ("B",)), Step("B", ("C",)))
    assert graph.firsts == ("A", "B", "C", "C>E", "D", "E")
    assert (graph.roots, graph.ends) == ([0], [4, 5])
    assert graph.named["C"] == [2, 3]
    assert graph.feeders["C"] == [1]
    assert graph.successors(1) == [2, 3]
    assert graph.feeder_names(END) == ["D", "E"]
    assert graph.levels() == [[0], [1], [2, 3], [4, 5]]


def test_a_step_stands_in_the_level_behind_its_last_feeder() -> None:
    assert Graph([("a", "b,d"), ("b", "c"), ("c", "d"), ("d", END)]).levels() == [[0], [1], [2], [3]]


def test_what_is_in_a_circle_or_behind_one_is_in_no_level() -> None:
    assert Graph([("r", "a"), ("a", "b,c"), ("b", "a"), ("c", END)]).levels() == [[0]]


def test_feeders_with_one_name_are_called_by_their_edges() -> None:
    graph = Graph([("a", "x"), ("a", "x,y"), ("b", "x"), ("x", END), ("y", END)])
    assert graph.feeder_names("x") == ["a>x", "a>x,y", "b"]
    assert graph.feeder_names("y") == ["a"]
    assert graph.feeder_names("a") == []


def test_steps_that_come_later_may_go_to_those_that_are_there() -> None:
    Graph([("a", "c"), ("b", "c"), (START, "d")]).check_added()
    for steps, problem in (
        ([("a", "b"), ("b", "c"), ("c", "a")], "circle: a → b → c → a"),
        ([("a", "b"), ("a", "b")], "two steps go a → b"),
        ([("a", "a")], "feeds itself"),
        ([("a", START)], "goes to start_job"),
        ([(END, "a")], "comes from end_job"),
    ):
        with pytest.raises(BadCommand, match=problem):
            Graph(steps).check_added()


def test_steps_are_shown_as_they_go() -> None:
    assert str(Step("a", ("b", "c"))) == "a → b, c"
    assert str(Step("a", tuple("bcdefgh"))) == "a → b, c, d, e, f, … (7 in all)"


# --- one run, move by move -----------------------------------------------------


def test_the_picture_runs_as_it_is_drawn() -> None:
    progress = Progress(Graph(PICTURE))
    assert progress.states == [State.start, *[State.standby] * 5]
    started = []
    for number in range(6):
        progress.begin(number)
        started.append(progress.end(number))
    assert started == [[1], [2, 3], [4], [5], [], []]
    assert progress.over


def test_a_join_waits_for_all() -> None:
    progress = Progress(Graph(DIAMOND))
    progress.begin(0)
    assert progress.end(0) == [1, 2]
    progress.begin(1)
    progress.begin(2)
    assert progress.end(2) == []
    assert progress.states[3] is State.standby
    assert progress.end(1) == [3]


def test_the_reason_names_the_step_before() -> None:
    progress = Progress(Graph([("a", "b,x"), ("b", "c"), ("c", "d"), ("d", END), ("x", END)]))
    progress.begin(0)
    progress.end(0)
    progress.begin(1)
    assert progress.fail(1) == [2, 3]
    assert progress.reasons == {2: predecessor_failed("b"), 3: predecessor_failed("c")}
    assert progress.states[4] is State.start, "another branch goes on"
    assert not progress.over


def test_a_step_that_two_failed_for_fails_once() -> None:
    progress = Progress(Graph(DIAMOND))
    progress.begin(0)
    progress.end(0)
    assert progress.fail(1) == [3]
    assert progress.fail(2) == []
    assert progress.reasons == {3: "predecessor b failed"}
    assert progress.retry() == ([1, 2], [3])


def test_a_step_that_was_given_up_while_it_waited_waits_again() -> None:
    progress = Progress(Graph(DIAMOND))
    assert progress.fail(3) == []
    progress.begin(0)
    assert progress.end(0) == [1, 2]
    assert progress.retry() == ([], [3])
    for number in (1, 2):
        progress.begin(number)
    assert [progress.end(1), progress.end(2)] == [[], [3]]


def test_a_step_given_up_is_not_started_by_its_feeders_but_by_a_retry() -> None:
    progress = Progress(Graph([("a", "b"), ("b", END)]))
    progress.fail(1)
    progress.begin(0)
    assert progress.end(0) == []
    assert progress.over
    assert progress.retry() == ([1], [])


def test_moves_that_the_states_forbid_change_nothing() -> None:
    progress = Progress(Graph(DIAMOND))
    for move in (progress.end, progress.begin):
        with pytest.raises(StateError):
            move(3)
    assert progress.states[3] is State.standby
    progress.begin(0)
    with pytest.raises(StateError):
        progress.begin(0)
    assert progress.retry() == ([], [])


# --- what is refused ------------------------------------------------------------

REFUSED = {
    "a circle": (
        [("r", "a"), ("a", "b"), ("b", "c,x"), ("c", "a"), ("x", END)],
        "the steps go in a circle: a → b → c → a. A workflow has none: cut it.",
        "to",
    ),
    "a circle that nothing feeds and that never ends": (
        [("b", "a"), ("a", "b")],
        "the steps go in a circle: b → a → b.",
        "to",
    ),
    "a circle of many": (
        [("r", "s0"), *((f"s{n}", f"s{(n + 1) % 9}") for n in range(9)), ("r2", END)],
        "the steps go in a circle: s0 → s1 → s2 → s3 → … → s8 → s0 (9 names).",
        "to",
    ),
    "a step that feeds itself": ([("a", "b"), ("b", "c,b"), ("c", END)], "the step b → c, b feeds itself.", "to"),
    "two equal steps": (
        [("a", "b"), ("a", "c"), ("a", "b"), ("b", END), ("c", END)],
        "two steps go a → b. Steps of one job differ in `from` or `to`.",
        "from",
    ),
    "an edge to nowhere": (
        [("a", "b,z"), ("b", END)],
        "the step a → b, z leads nowhere: no step comes from z. Send a step from z, or let it go to end_job.",
        "to",
    ),
    "no end": (
        [("a", "b"), ("b", "c")],
        "the step b → c leads nowhere: no step comes from c, and no step goes to end_job.",
        "to",
    ),
    "a step nothing reaches": (
        [(START, "a"), ("a", END), ("b", "a")],
        "nothing reaches the step b → a: no step goes there, and it is not from start_job. "
        "Let a step go there, or let it come from start_job.",
        "from",
    ),
    "several that nothing reaches": (
        [(START, "a"), ("a", END), ("b", "a"), ("c", "a"), ("d", END)],
        "nothing reaches the step b → a (nor 2 more):",
        "from",
    ),
    "a step to the start": (
        [(START, "a"), ("a", f"{START},{END}")],
        "the step a → start_job, end_job goes to start_job, where jobs begin.",
        "to",
    ),
    "a step from the end": (
        [("a", END), (END, "a")],
        "the step end_job → a comes from end_job, where jobs end.",
        "from",
    ),
    "nothing": ([], "the workflow has no steps. Send at least one.", ""),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_workflow_is_refused_by_name(name: str) -> None:
    steps, message, field = REFUSED[name]
    with pytest.raises(BadCommand) as caught:
        Graph(steps).check(MOST)
    assert str(caught.value).startswith(message)
    assert (caught.value.status, caught.value.field) == (400, field)
    assert caught.value.fix


def test_too_many_steps_are_refused_saying_where_the_limit_is() -> None:
    chain = [(f"s{n}", f"s{n + 1}") for n in range(10_000)] + [("s10000", END)]
    with pytest.raises(TooLarge) as caught:
        Graph(chain).check(10_000)
    assert caught.value.message == "the workflow has 10,001 steps; at most 10,000 are allowed."
    assert "[limits] workflow_steps" in caught.value.fix
    Graph(chain).check(10_001)


def test_without_start_job_all_unfed_steps_are_roots() -> None:
    graph = Graph([("a", "c"), ("b", "c"), ("c", END)])
    graph.check(MOST)
    assert graph.roots == [0, 1]


@given(graphs(), chance)
def test_an_edge_backwards_is_a_circle_that_is_really_there(graph: Graph, chance: random.Random) -> None:
    """Let the last of a way go back to its first: the circle named is one of the graph's, whole."""
    way = [chance.choice(graph.roots)]
    while graph.successors(way[-1]):
        way.append(chance.choice(graph.successors(way[-1])))
    first, last = graph.steps[way[0]].from_, graph.steps[way[-1]]
    back = (last.from_, first)
    if first in (last.from_, START):
        return
    bent = [*((step.from_, ",".join(step.to)) for step in graph.steps), back]
    with pytest.raises(BadCommand, match="circle: ") as caught:
        Graph(bent).check(MOST)
    names = caught.value.message.partition(": ")[2].rstrip(".").split(" → ")
    if "…" in names:
        return
    edges = {(from_, target) for from_, to in bent for target in to.split(",")}
    assert names[0] == names[-1]
    assert len(set(names)) == len(names) - 1
    assert set(itertools.pairwise(names)) <= edges
    assert (back[0], back[1]) in itertools.pairwise(names), "the graph had no circle without it"


edges = st.tuples(st.sampled_from([*"abcd", START, END]), st.sampled_from(["a", "b", "a,b", "c", "d", START, END]))


@given(st.lists(edges, max_size=8))
def test_whatever_is_accepted_comes_to_its_end(steps: list[tuple[str, str]]) -> None:
    graph = Graph(steps)
    try:
        graph.check(MOST)
    except ExesysError:
        return
    run = Run(graph, random.Random(0)).to_the_end()
    assert run.in_state(State.data_available) == set(range(len(steps)))
    assert run.end_of_job


# --- size -----------------------------------------------------------------------

LAST = MOST - 1
PARTS = [f"p{n}" for n in range(MOST - 2)]
LARGE = {
    "a chain": [(f"s{n}", f"s{n + 1}" if n < LAST else END) for n in range(MOST)],
    "out by a list, and in": [("a", ",".join(PARTS)), *((part, "z") for part in PARTS), ("z", END)],
    "out by steps": [("a", "b"), *(("b", part) for part in PARTS[: MOST // 2 - 1])]
    + [(part, END) for part in PARTS[: MOST // 2 - 1]],
    "all roots and ends": [(part, END) for part in PARTS],
}


@pytest.mark.parametrize("name", LARGE)
def test_large_graphs_cost_little(name: str) -> None:
    """About 20 ms to check on the machine this was written on; what is quadratic takes many seconds."""
    took_s = []
    for _ in range(5):  # the best counts: the machine may be busy with other things
        began = time.process_time()
        graph = Graph(LARGE[name])
        graph.check(MOST)
        took_s.append(time.process_time() - began)
    assert min(took_s) < 0.5
    progress = Progress(graph)
    ready = list(graph.roots)
    while ready:
        number = ready.pop()
        progress.begin(number)
        ready += progress.end(number)
    assert progress.over
    assert time.process_time() - began < 2


@pytest.mark.parametrize("name", LARGE)
def test_large_graphs_fail_without_recursion(name: str) -> None:
    graph = Graph(LARGE[name])
    progress = Progress(graph)
    failed = len(graph.roots)
    for root in graph.roots:
        failed += len(progress.fail(root))
    assert failed == len(graph.steps)
    assert progress.over
    assert progress.retry() == (graph.roots, sorted(set(range(failed)) - set(graph.roots)))


def test_a_large_circle_is_found_fast() -> None:
    began = time.process_time()
    with pytest.raises(BadCommand, match="s0 → s1 → s2 → s3 → … → s9999 → s0"):
        Graph([(f"s{n}", f"s{(n + 1) % MOST}") for n in range(MOST)]).check(MOST)
    assert time.process_time() - began < 0.5
