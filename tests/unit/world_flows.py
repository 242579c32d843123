"""Workflows in the world: what is sent, and what is to come of it."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass, field
from typing import Any

from store.fake import FakeStore

from exesys import codec
from exesys.bus import messages as m
from exesys.bus.handle import Handle
from exesys.command import END, parts_of
from exesys.states import State
from exesys.workflow import Graph, Progress, call_feeders

ALWAYS = 10**6
NAMES = "abcdefgh"
_OPTIONS: tuple[dict[str, Any], ...] = ({"queue": "fast"}, {"priority": 9}, {"priority": 0}, {"delay_s": 0.7})
ROOT = "root"  # what a root is sent as data


def work(ref: str, data: Any) -> int:
    """What a step gives: a number that tells whether all that it depends on was right."""
    given = sorted(data.items()) if isinstance(data, dict) else data
    return zlib.crc32(codec.pack([ref.partition(":")[0], given]))


@dataclass
class Plan:
    """A workflow; `fails` says how often each step fails at first, by its place, `grown` how many steps it adds."""

    job_id: str
    edges: list[tuple[str, str]]
    by_step: bool = False  # its steps are sent one by one
    unsettled: bool = False  # it may be cancelled and tried again meanwhile: only its end is certain
    fails: dict[int, int] = field(default_factory=dict)
    retries: int = 0
    options: list[dict[str, Any]] = field(default_factory=list)  # of each step, beside its retries
    grown: int = 0
    mended: bool = False  # it was tried again until all was well
    handles: list[Handle] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.graph = Graph(self.edges)
        self.sent = len(self.edges)
        if self.grown:
            root, (target,) = self.graph.steps[0]
            self.graph = Graph([*self.edges, *((f"{root}-{number}", target) for number in range(self.grown))])

    @property
    def refs(self) -> list[str]:
        return [f"{first}:{self.job_id}" for first in self.graph.firsts]

    def items(self) -> list[m.Item]:
        roots = set(Graph(self.edges).roots)
        retries = {"retries": self.retries, "backoff_s": 0.2} if self.retries else {}
        return [
            m.Item(
                *(0, from_, to.split(","), "grow" if self.grown and number == 0 else "join"),
                *(codec.pack(ROOT if number in roots else None), self.job_id, retries | self.options[number], True),
                *((0 if number in roots else -1) if self.by_step else 1,),
            )
            for number, (from_, to) in enumerate(self.edges)
        ]

    def added(self) -> tuple[m.Added, ...]:
        """The steps that the first one adds."""
        edges = self.graph.steps[self.sent :]
        return tuple(m.Added(from_, list(to), "join", codec.pack(ROOT), {}) for from_, to in edges)

    @property
    def loose(self) -> bool:
        """Whether any end will do."""
        return self.unsettled and not self.mended

    def failed(self, store: FakeStore) -> bool:
        return any(store.state_of(ref) is State.error for ref in self.refs)

    def states(self) -> list[State]:
        """Where each step stands in the end."""
        if self.mended:
            return [State.data_available] * len(self.graph.steps)
        progress = Progress(self.graph)
        going = True
        while going:
            going = False
            for number, state in enumerate(progress.states):
                if state is State.start:
                    going = True
                    progress.begin(number)
                    if self.fails.get(number, 0) > self.retries:
                        progress.fail(number)
                    else:
                        progress.end(number)
        return progress.states

    def values(self) -> dict[int, int]:
        """What each step gives if all of them end well."""
        values: dict[int, int] = {}
        for level in self.graph.levels():
            for number in level:
                values[number] = work(self.graph.firsts[number], self._data(number, values))
        return values

    def _data(self, number: int, values: dict[int, int]) -> Any:
        feeders = self.graph.feeders.get(self.graph.steps[number].from_, [])
        if len(feeders) < 2:
            return values[feeders[0]] if feeders else ROOT
        names = call_feeders([self.graph.steps[feeder] for feeder in feeders])
        return dict(zip(names, (values[feeder] for feeder in feeders), strict=True))

    def check(self, store: FakeStore) -> None:
        """Each step stands where it must, with the right result, and nobody was told otherwise."""
        expected, values = self.states(), self.values()
        for number, ref in enumerate(self.refs):
            state = store.state_of(ref)
            if state is None and self.unsettled and number >= self.sent:
                continue  # it was cancelled before it grew
            assert state is not None, f"{ref} is lost"
            assert state.final, f"{ref} is still in {state.name}"
            assert self.loose or state is expected[number], f"{ref} ended in {state.name}"
            record = store.db.values[store.record(ref, state)]
            if state is State.data_available:
                assert codec.unpack(record["result"]) == {"EOJ": values[number]}, ref
            else:
                kinds = {"ValueError", "PredecessorFailed", *(("Cancelled",) if self.unsettled else ())}
                assert codec.unpack(record["error"])["type"] in kinds, ref
        for number, handle in enumerate(self.handles):
            assert handle.done(), handle
            if not self.unsettled:
                error = handle.exception()
                assert (error is None) == (expected[number] is State.data_available), (handle, error)
            if handle.exception() is None:  # the job may have been tried again since
                assert handle.result(0) == values[number]


def random_plan(rng: random.Random, job_id: str) -> Plan:
    """Make a workflow of one of the kinds there are."""
    kind = rng.choice(("whole", "whole", "whole", "by step", "grown"))
    if kind == "grown":
        grown = rng.randint(1, 5)
        plan = Plan(job_id, [("a", "m"), ("m", "z"), ("z", END)], grown=grown)
    elif kind == "by step":
        # Each is fed by one other: so it cannot start too early, whatever is lost on the way.
        count = rng.randint(2, 6)
        children: dict[str, list[str]] = {}
        for place in range(1, count):
            children.setdefault(rng.choice(NAMES[:place]), []).append(NAMES[place])
        plan = Plan(job_id, [(name, ",".join(children.get(name, [END]))) for name in NAMES[:count]], by_step=True)
    else:
        plan = Plan(job_id, _edges(rng, NAMES[: rng.randint(2, 6)]))
    places = range(len(plan.graph.steps))
    plan.options = [rng.choice(_OPTIONS) if rng.random() < 0.2 else {} for _ in plan.edges]
    fate = rng.random()
    if fate < 0.15:
        plan.fails = {rng.choice(places[1:]): ALWAYS}
    elif fate < 0.4:
        plan.retries = 2
        plan.fails = {place: rng.randint(1, 2) for place in places if rng.random() < 0.3 and place < plan.sent}
    elif fate < 0.65:
        plan.unsettled = True
        plan.fails = {place: 1 for place in places if rng.random() < 0.3}
    return plan


def _edges(rng: random.Random, names: str) -> list[tuple[str, str]]:
    edges: list[tuple[str, str]] = []
    for place, name in enumerate(names):
        later = [*names[place + 1 :], END]
        for _ in range(rng.choice((1, 1, 2))):
            edge = (name, ",".join(rng.sample(later, min(len(later), rng.choice((1, 1, 2))))))
            edges += [edge] if edge not in edges else []
    return edges


def place_of(plan: Plan, ref: str) -> int:
    """Find a step of a plan by its ref."""
    first, job_id = ref.partition(":")[0], parts_of(ref)[1]
    assert job_id == plan.job_id
    return plan.graph.firsts.index(first)
