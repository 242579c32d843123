"""Random workflows in the store, and beside it `workflow.Progress`, which says where each step must stand."""

from __future__ import annotations

import copy
import os
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from store.fake import Turns, steady
from store.invariants import check_places, records
from store.turns import FAILURE, NOW_MS, ONE, flow, give, random_edges

from exesys import codec
from exesys.bus.messages import Job, Outcome, Report
from exesys.command import END
from exesys.states import State
from exesys.turn import Answers, Change, Claim, Closed, Turn
from exesys.workflow import Progress, call_feeders

Make = Callable[..., Turns]
SEEDS = range(int(os.environ.get("EXESYS_SEEDS", "15")))
NAMES = "abcdefgh"


class Walk:
    """Moves one job in the store, each turn twice, and the same in a Progress."""

    def __init__(self, store: Turns, seed: int, edges: list[str]) -> None:
        self.store = store
        self.rng = random.Random(seed)
        self.flow = flow(edges)
        self.graph = self.flow.graph
        self.progress = Progress(self.graph)
        self.refs = [f"{first}:j" for first in self.graph.firsts]
        self.running: dict[str, Job] = {}
        self.values: dict[int, Any] = {}
        self.attempts: Counter[str] = Counter()
        self.ended: Counter[str] = Counter()
        self.coming: list[int] = []  # steps that the store has not been sent yet

    def turn(self, **parts: Any) -> Answers:
        """Run a turn, and again as after a lost connection: it changes nothing more."""
        turn = Turn(NOW_MS, **parts)
        answers = self.store.run(copy.deepcopy(turn))
        before = _without_order(self.store)
        turn.claims.clear()
        self.store.run(turn)
        assert _without_order(self.store) == before
        return answers

    def act(self, *likely: str) -> None:
        """Do one of these things, in the store and in the model."""
        getattr(self, self.rng.choice(likely))()
        self.compare()

    def claim(self) -> None:
        answers = self.turn(opened=[ONE], claims=[Claim(ONE, self.rng.randint(1, 3), ("default",))])
        for job in answers.claimed[0].jobs:
            self.attempts[job.ref] += 1
            assert job.attempt == self.attempts[job.ref], "attempts rise by one"
            self.progress.begin(number := self.refs.index(job.ref))
            assert codec.unpack(job.data) == self.data_of(number)
            self.running[job.ref] = job

    def finish(self) -> None:
        """Several may end in one turn, some of them badly."""
        some = [job for job in self.running.values() if self.rng.random() < 0.6]
        self.rng.shuffle(some)
        closed = [self._closed(job, bad=self.rng.random() < self.bad) for job in some]
        for job, ended in zip(some, self.turn(reports=closed).ended, strict=True):
            number = self.refs.index(job.ref)
            del self.running[job.ref]
            if ended.state is State.error:
                failed = [self.refs[fed] for fed in self.progress.fail(number)]
                assert self.coming or [each.ref for each in ended.also] == failed
            else:
                started = self.progress.end(number)
                assert self.coming or (ended.started, ended.also) == (len(started), ())
                self.ended[job.ref] += 1

    bad = 0.3

    def _closed(self, job: Job, bad: bool) -> Closed:
        if bad:
            return Closed(ONE, Report(job.ref, job.attempt, Outcome.failed, FAILURE, "", 1, 2), 0.0)
        number = self.refs.index(job.ref)
        self.values[number] = [self.refs[number], codec.unpack(job.data)]
        return give(job, self.values[number])

    def cancel(self) -> None:
        changed = self.turn(changes=[Change("cancel", "j")]).changed[0]
        mine = [number for number, state in enumerate(self.progress.states) if not state.final]
        assert Counter(each.ref for each in changed.ended) == Counter(self.refs[number] for number in mine)
        assert changed.steps == len(mine)
        for ended, session in zip(changed.ended, changed.sessions, strict=True):
            assert session == (ONE if ended.ref in self.running else "")
        for number in mine:
            # The model has no cancel; each step may move so.
            self.progress._move(number, State.error)
        late = [self._closed(job, bad=False) for job in self.running.values()]
        assert all(each.stale for each in self.turn(reports=late).ended)
        self.running.clear()

    def retry(self) -> None:
        changed = self.turn(changes=[Change("retry", "j")]).changed[0]
        started, waiting = self.progress.retry()
        assert (changed.steps, changed.ended) == (len(started) + len(waiting), ())

    def lose_worker(self) -> None:
        self.turn(lost=[ONE])
        for ref in self.running:
            self.progress._move(self.refs.index(ref), State.start)
        self.running.clear()

    def data_of(self, number: int) -> Any:
        feeders = self.graph.feeders.get(self.graph.steps[number].from_, [])
        if len(feeders) < 2:
            return self.values[feeders[0]] if feeders else None
        names = call_feeders([self.graph.steps[feeder] for feeder in feeders])
        return dict(zip(names, (self.values[feeder] for feeder in feeders), strict=True))

    def compare(self) -> None:
        dump = self.store.dump()
        check_places(dump)
        self.store.check_news()
        if self.coming:
            return  # what waits for these does not know of what came before them
        found = records(dump)
        expected = dict(zip(self.refs, self.progress.states, strict=True))
        assert {ref: record.state for ref, record in found.items()} == expected
        for number, reason in self.progress.reasons.items():
            told = codec.unpack(found[self.refs[number]].fields["error"])
            assert (told["type"], told["message"]) == ("PredecessorFailed", reason)

    def to_the_end(self) -> None:
        """Let all that is left end well."""
        self.bad = 0.0
        for _ in range(200):
            if self.progress.over:
                if State.error not in self.progress.states:
                    break
                self.retry()
            self.claim()
            self.finish()
            self.compare()
        assert set(self.progress.states) == {State.data_available}
        assert self.ended == dict.fromkeys(self.refs, 1), "each step ended well once"
        for number, ref in enumerate(self.refs):
            assert codec.unpack(records(self.store.dump())[ref].fields["result"]) == {"EOJ": self.values[number]}


def _without_order(store: Turns) -> dict[str, Any]:
    return {key: value for key, value in steady(store.dump()).items() if not key.endswith("exesys:order")}


def edges_of(seed: int) -> list[str]:
    rng = random.Random(f"edges {seed}")
    return random_edges(rng, NAMES[: rng.randint(1, 8)])


@pytest.mark.parametrize("seed", SEEDS)
def test_a_workflow_moves_as_its_model_does(store: Turns, seed: int) -> None:
    walk = Walk(store, seed, edges_of(seed))
    [stored] = walk.turn(flows=[walk.flow]).stored
    assert [(ref, state) for ref, state, _ in stored.steps] == list(zip(walk.refs, walk.progress.states, strict=True))
    walk.compare()
    for _ in range(25):
        walk.act("claim", "claim", "claim", "finish", "finish", "finish", "retry", "cancel", "lose_worker")
    walk.to_the_end()


@pytest.mark.parametrize("seed", SEEDS)
def test_without_cancels_too(store: Turns, seed: int) -> None:
    walk = Walk(store, seed, edges_of(100 + seed))
    walk.turn(flows=[walk.flow])
    for _ in range(25):
        walk.act("claim", "claim", "finish", "finish", "retry")
    walk.to_the_end()


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_may_be_sent_one_by_one_in_any_order(store: Turns, seed: int) -> None:
    """None has ended before all are there; so it is as if they had been sent together."""
    walk = Walk(store, seed, edges_of(200 + seed))  # its edges are in no order
    steps = list(walk.flow.steps)
    while steps:
        size = walk.rng.randint(1, 3)
        taken = walk.turn(placed=steps[:size]).taken
        assert [each.verdict for each in taken] == ["new"] * len(taken)
        del steps[:size]
    walk.compare()
    for _ in range(20):
        walk.act("claim", "claim", "finish", "finish", "retry", "cancel")
    walk.to_the_end()


@pytest.mark.parametrize("seed", SEEDS)
def test_steps_of_a_tree_may_come_while_others_run_end_and_fail(store: Turns, seed: int) -> None:
    """Where each name has one feeder at most, no step can start too early."""
    rng = random.Random(f"tree {seed}")
    children: dict[str, list[str]] = {}
    for place_, name in enumerate(NAMES[1:], 1):
        children.setdefault(rng.choice(NAMES[:place_]), []).append(name)
    walk = Walk(store, seed, [f"{name}>{','.join(children.get(name, [END]))}" for name in NAMES])
    walk.coming = rng.sample(range(len(NAMES)), len(NAMES))
    while walk.coming:
        number = walk.coming.pop()
        [taken] = walk.turn(placed=[walk.flow.steps[number]]).taken
        assert taken.verdict == "new"
        for _ in range(rng.randint(0, 3)):
            walk.act("claim", "finish")
    walk.compare()
    walk.to_the_end()
