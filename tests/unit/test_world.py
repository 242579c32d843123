"""Router, workers and clients together, while everything that can fail does.

Whatever happens: each accepted command ends once, with the right result, and
everybody who waits for it is told. A failure names its seed, and happens again
with it. EXESYS_SEEDS=1000 looks for longer.
"""

from __future__ import annotations

import os
from typing import Any

import pytest
from unit.world import Client, Faults, World, check_end
from unit.world_flows import random_plan

from exesys.bus import broker
from exesys.errors import NotFound

SEEDS = range(int(os.environ.get("EXESYS_SEEDS", "3")))
TROUBLE_S = 10.0
SETTLE_S = 90.0  # a lease, a lost answer and a question asked again, some times over
QUIET_S = 15.0
FAULTS = {
    "messages are lost": Faults(lose=0.05),
    "messages are repeated": Faults(repeat=0.2),
    "messages are late": Faults(delay=0.1),
    "the store breaks": Faults(break_store=0.1),
    "the store forgets": Faults(break_store=0.1, forget_store=0.5),
    "slots crash": Faults(crash_slot=0.1),
    "workers die": Faults(kill_worker=0.2, stop_worker=0.2, freeze_worker=0.2),
    "the router dies": Faults(kill_router=0.3),
    "all of it": Faults(0.03, 0.03, 0.03, 0.03, 0.3, 0.02, 0.05, 0.05, 0.05, 0.08),
}


@pytest.fixture(autouse=True)
def least_beside(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """How much is to be done for a second turn to be sent: with even seeds anything, else as much as usual."""
    least = broker.LEAST_BESIDE if request.node.callspec.params["seed"] % 2 else 1
    monkeypatch.setattr(broker, "LEAST_BESIDE", least)
    return least


def populate(world: World) -> None:
    """Let workers of some shapes serve clients that send jobs of all kinds for a while."""
    rng = world.rng
    for _ in range(rng.randint(1, 3)):
        queues = rng.choice((("default",), ("default",), ("fast", "default")))
        world.add_worker(rng.randint(1, 3), rng.choice((0, 0, 4)), queues)
    world.add_worker(1, 0, ("fast", "default"))
    for _ in range(2):
        world.add_client(window=rng.choice((5, 1000)))
    for _ in range(8):
        world.later(rng.uniform(0.5, TROUBLE_S), lambda: burst(world))


def burst(world: World) -> None:
    rng = world.rng
    for _ in range(rng.randint(1, 30)):
        client, kind = rng.choice(world.clients), rng.random()
        if kind > 0.9:
            begin_workflow(world, client)
            continue
        options: dict[str, Any] = {"queue": "fast"} if rng.random() < 0.2 else {}
        options |= {"priority": rng.randint(0, 9)} if rng.random() < 0.2 else {}
        options |= {"delay_s": rng.uniform(0, 3)} if rng.random() < 0.1 else {}
        if kind < 0.1:
            client.submit("flaky", {"fails": rng.randint(1, 2)}, retries=2, backoff_s=rng.choice((0, 0.5)), **options)
        elif kind < 0.15:
            client.submit("broken", retries=rng.randint(0, 1), backoff_s=0.1, **options)
        elif kind < 0.25 and world.deeds:
            client.follow(rng.choice(world.deeds))
        else:
            client.submit(**options)


def begin_workflow(world: World, client: Client) -> None:
    """Send a workflow; of some of them cancels and retries follow."""
    rng = world.rng
    plan = random_plan(rng, world.hex())
    client.workflow(plan)
    if plan.unsettled:
        for _ in range(rng.randint(1, 4)):
            what = rng.choice(("cancel", "retry", "retry"))
            someone = rng.choice(world.clients)
            world.later(rng.expovariate(1.0), lambda what=what, someone=someone: someone.change(what, plan))  # type: ignore[misc]  # no types for a lambda


def mend(world: World) -> None:
    """Try half of what was meddled with again until all of it is well."""
    plans = [plan for plan in world.plans.values() if plan.unsettled][::2]
    for _ in range(10):
        failed = [plan for plan in plans if plan.failed(world.store)]
        for plan in failed:
            world.clients[0].change("retry", plan)
        world.run(6.0)
        if not failed:
            break
    for plan in plans:
        plan.mended = True


def settle(world: World) -> None:
    """Wait for all ends, and a little longer for what should not come; then look at everything."""
    world.run(SETTLE_S, world.settled)
    world.run(QUIET_S)
    mend(world)
    # A question may overtake its command; then there is no such step yet.
    world.deeds = [deed for deed in world.deeds if not isinstance(deed.handle.exception(), NotFound)]
    check_end(world)
    assert all(worker.session.idle for worker in world.workers)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_command_ends_once_and_right_while(fault: str, seed: int) -> None:
    world = World(seed, FAULTS[fault])
    populate(world)
    if seed % 2:
        world.run(0.5)  # else trouble begins before anybody has greeted
    world.trouble(TROUBLE_S + 0.5)
    settle(world)


@pytest.mark.parametrize("seed", SEEDS)
def test_without_faults_each_function_runs_once_and_nobody_waits(seed: int, least_beside: int) -> None:
    world = World(seed)
    populate(world)
    world.trouble(TROUBLE_S + 0.5)
    commands = {f"client:{deed.handle.job_id}": deed.handle for deed in world.deeds if deed.handle.cmd}
    assert world.run(20.0, world.settled), "the work of ten seconds is done soon after"
    settle(world)
    once = [ref for ref, handle in commands.items() if handle.cmd == "double"]
    assert {ref: world.runs[ref] for ref in once} == dict.fromkeys(once, 1)
    assert world.beside or least_beside > 1, "turns were under way beside each other"


@pytest.mark.parametrize("seed", SEEDS)
def test_a_system_without_work_sleeps(seed: int) -> None:
    world = World(seed)
    populate(world)
    world.run(TROUBLE_S + 20.0)
    router = world.router
    assert router is not None
    before = router.steps
    world.run(10.0)
    peers = len(world.workers) + len(world.clients)
    assert router.steps - before <= 10 * (2 * peers + 5), "heartbeats, and twice a second a look around"
