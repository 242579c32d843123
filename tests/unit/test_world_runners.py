"""Runners, their daemons and the router together, while everything that can fail does.

Whatever happens, a runner has one life at a time. A failure names its seed,
and happens again with it. EXESYS_SEEDS=1000 looks for longer.
"""

from __future__ import annotations

import os

import pytest
from unit.world import Faults
from unit.world_runners import RunnerWorld, Story, check_rest

from exesys.runner import Name

SEEDS = range(int(os.environ.get("EXESYS_SEEDS", "8")))
TROUBLE_S = 20.0
SETTLE_S = 60.0  # a lease, a second one after that, lives that fail, and answers that are waited for
FAULTS = {
    "messages are lost": Faults(lose=0.03),
    "messages are late": Faults(delay=0.1),
    "the store breaks": Faults(break_store=0.1),
    "the store forgets": Faults(break_store=0.1, forget_store=0.5, stutter_store=0.5),
    "lives crash": Faults(crash_slot=0.3),
    "daemons die": Faults(kill_worker=0.2, stop_worker=0.2, freeze_worker=0.2),
    "the router dies": Faults(kill_router=0.3),
    "all of it": Faults(0.01, 0.0, 0.02, 0.03, 0.3, 0.1, 0.05, 0.05, 0.08, 0.08, stutter_store=0.5),
}


def populate(world: RunnerWorld, steps: int = 6) -> list[Story]:
    """Let clients start, stop and restart runners of all kinds on daemons of some sizes."""
    rng = world.rng
    for capacity in (rng.randint(1, 4), rng.randint(1, 4), 50):
        world.add_host(capacity)
    world.add_asker("controller")
    for _ in range(3):
        world.add_asker()
    kinds = ("forever", "forever", "forever", "returns", "fails", "flaky")
    return [
        Story(world, Name(rng.choice("ab"), str(number)), rng.choice(kinds), rng.randint(0, steps))
        for number in range(rng.randint(4, 12))
    ]


def settle(world: RunnerWorld, stories: list[Story]) -> None:
    """Wait until all is told and answered, and some time more; then look at everything."""
    assert world.run(120.0, lambda: all(story.told for story in stories)), "an answer never came"
    world.run(SETTLE_S)
    for story in stories:
        story.check()
    check_rest(world)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_each_runner_has_one_life_at_a_time_and_ends_where_it_should_while(fault: str, seed: int) -> None:
    world = RunnerWorld(seed, FAULTS[fault])
    stories = populate(world)
    world.trouble(TROUBLE_S)
    settle(world, stories)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_faults_each_life_has_its_reason_and_the_router_sleeps(seed: int) -> None:
    world = RunnerWorld(seed)
    stories = populate(world, steps=0)
    world.run(TROUBLE_S)
    settle(world, stories)
    lives = {story.name: world.begun[story.name] for story in stories}
    reasons = {"forever": 1, "returns": 1, "fails": 3, "flaky": 2}
    assert lives == {name: reasons[world.kinds[name]] for name in lives}
    router = world.router
    assert router is not None
    before = router.steps
    world.run(10.0)
    peers = len(world.workers) + len(world.clients)
    assert router.steps - before <= 10 * (3 * peers + 5), "heartbeats, and twice a second a look around"
