"""The kill test with 200 workflows under way: each process killed with kill -9.

Every workflow ends with its right result, no step's result is committed
twice (what a step was fed is what its feeders' records hold), and none is
left in standby.
"""

import random
import time

import pytest
from harness import until
from test_faults import HEARTBEAT_S, KINDS, RECOVERY_S, ROUNDS, mend, nothing_under_way, runs_of, strike

WORKFLOWS = 200
BEFORE = 40
SHAPES = {
    "chain": [("a", "b"), ("b", "c"), ("c", "d"), ("d", "end_job")],
    "diamond": [("a", ["b", "c", "d"]), ("b", "e"), ("c", "e"), ("d", "e"), ("e", "end_job")],
    "document": [("a", "b"), ("b", "c"), ("c", "d"), ("c", "e"), ("d", "end_job"), ("e", "end_job")],
    "roots": [("a", "d"), ("b", "d"), ("c", ["d", "end_job"]), ("d", "end_job")],
    "parts": [("a", "m"), ("m", "end_job")],
}
PARTS = 3


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(bus_heartbeat_s=HEARTBEAT_S)


def targets(to):
    return [to] if isinstance(to, str) else to


def steps_of(shape):
    """Return the steps of a workflow as it is in the end: (from, targets)."""
    steps = [(from_, targets(to)) for from_, to in SHAPES[shape]]
    return steps + [(f"a.{part}", ["m"]) for part in range(1, PARTS + 1)] if shape == "parts" else steps


def numbers(shape, values):
    """Return the number each step gives, by its name; steps of one name give the same."""
    found = dict(values)
    steps = steps_of(shape)
    found |= {from_: int(from_.removeprefix("a.")) for from_, _ in steps if from_.startswith("a.")}
    while len(found) < len({from_ for from_, _ in steps}):
        for from_, _ in steps:
            feeders = [other for other, to in steps if from_ in to]
            if from_ not in found and all(feeder in found for feeder in feeders):
                found[from_] = sum(found[feeder] for feeder in feeders) + 1
    return found


def commands(shape, data):
    roots = {from_ for from_, _ in SHAPES[shape]} - {name for _, to in SHAPES[shape] for name in targets(to)}
    return [
        {"from": from_, "to": to, "cmd": "node", **({"data": data[from_]} if from_ in roots else {})}
        for from_, to in SHAPES[shape]
    ]


@pytest.mark.parametrize("number", range(1, ROUNDS + 1))
@pytest.mark.parametrize("kind", KINDS)
def test_kill(system, seed, tell, kind, number):
    until(system.ready, "all is there")
    dice = random.Random(f"{seed} {kind} {number}")
    marks = system.root / f"{kind}-{number}"
    sent = {f"{kind}-{number}-{i}": dice.choice(list(SHAPES)) for i in range(WORKFLOWS + BEFORE)}
    datas = {
        job_id: {
            name: {"runs": str(marks), "seconds": round(dice.uniform(0, 0.003), 4), "number": dice.randrange(1000)}
            | ({"parts": PARTS} if shape == "parts" else {})
            for name in "abc"
        }
        for job_id, shape in sent.items()
    }
    with system.client() as client:
        handles = {job_id: client.workflow(commands(shape, datas[job_id]), job_id) for job_id, shape in sent.items()}
        for handle in handles.values():
            handle.accepted(RECOVERY_S)
        enough = dice.randrange(1, BEFORE)
        until(lambda: sum(handle.done() for handle in handles.values()) >= enough, "some ended", every_s=0.001)
        victim = strike(system, kind, dice)
        struck = time.monotonic()
        left = sum(not handle.done() for handle in handles.values())
        mend(system, kind)
        heard = {job_id: handle.result(RECOVERY_S) for job_id, handle in handles.items()}
        took_s = time.monotonic() - struck

    runs = runs_of(marks)
    until(system.ready, "all is there again")
    until(lambda: nothing_under_way(system), "no job is queued or held")
    for job_id, shape in sent.items():
        check(system, job_id, shape, datas[job_id], heard[job_id], runs)
    again = sum(len(found) > 1 for found in runs.values())
    tell(
        f"{kind} {number}: process {victim} killed with {left} workflows under way, all done after {took_s:.1f} s;"
        f" {again} steps ran again"
    )


def check(system, job_id, shape, data, heard, runs):
    """Compare what the client was told, what the store holds, and what ran."""
    steps = steps_of(shape)
    fed = {name for _, to in steps for name in to}
    roots = {from_: data[from_]["number"] + 1 for from_, _ in steps if from_ in data and from_ not in fed}
    expected = numbers(shape, roots)
    firsts = []
    for from_, to in steps:
        firsts.append(f"{from_}>{','.join(to)}" if from_ in firsts else from_)
    records = dict(zip(firsts, system.results([f"{first}:{job_id}" for first in firsts]), strict=True))
    for (first, record), (name, to) in zip(records.items(), steps, strict=True):
        assert record["number"] == expected[name], f"{job_id} {first}"
        assert record["token"] in {run.token for run in runs[f"{name}>{','.join(to)}:{job_id}"]}
        feeders = [other for other, (_, to) in zip(firsts, steps, strict=True) if name in to]
        assert sorted(record["given"]) == sorted(records[feeder]["token"] for feeder in feeders), f"{job_id} {first}"
    ends = [first for first, (_, to) in zip(firsts, steps, strict=True) if "end_job" in to]
    assert heard == (records[ends[0]] if len(ends) == 1 else {end: records[end] for end in ends})
