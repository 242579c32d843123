"""Random graphs: sent whole or step by step, failing, cancelled and retried at any moment, they end as they must."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from harness import until
from sent import called, cancel, ended, retry, send, send_one, step

JOBS = 150
RIDES = 60


@pytest.fixture(scope="module")
def system(make_module):
    return make_module()


def graph(dice):
    """Draw steps: names in an order, each with a step or two to later names; those to none go to the end."""
    names = [f"n{number}" for number in range(dice.randint(1, 9))]
    steps = {}
    for place, name in enumerate(names):
        for _ in range(dice.choice([1, 1, 1, 2])):
            later = names[place + 1 :]
            to = dice.sample(later, min(len(later), dice.choice([0, 1, 1, 2, 3])))
            if not to or dice.random() < 0.15:
                to.append("end_job")
            made = step(name, to, "ones")
            steps[called(made)] = made
    return dice.sample(list(steps.values()), len(steps))


def expected(steps, failing):
    """How each step ends, by its edge, when those of `failing` fail: ok, failed or not run."""
    found = {}

    def of(each):
        if called(each) not in found:
            fed = [of(other) for other in steps if each["from"] in other["to"]]
            found[called(each)] = (
                "PredecessorFailed" if set(fed) - {"ok"} else "LookupError" if called(each) in failing else "ok"
            )
        return found[called(each)]

    for each in steps:
        of(each)
    return found


def ends(job):
    return {called(each): each["error"]["type"] if each["state"] == "error" else "ok" for each in job["steps"]}


def dispatch(system, dice, job_id, steps):
    """Send it whole, or, when only one step begins it, the others first in any order."""
    roots = [each for each in steps if not any(each["from"] in other["to"] for other in steps)]
    if len(roots) == 1 and dice.random() < 0.5:
        for each in steps:
            if each is not roots[0]:
                assert send_one(system, job_id, each, waits=True).status == 202
        assert send_one(system, job_id, roots[0], waits=False).status in (200, 202)
    else:
        assert send(system, job_id, *steps, wait=None).status in (200, 202)


def mend(system, job_id):
    with system.redis(1) as data:
        data.set(f"mended:{job_id}", 1)


def nothing_is_left(system):
    """Nothing waits, nothing is held, and all that is there will expire."""
    with system.redis() as store:
        waiting = ("exesys:standby", "exesys:delayed", "exesys:ready:default", "exesys:dead")
        until(lambda: not any(store.zcard(key) for key in waiting), "nothing waits, and nothing is in error")
        until(lambda: not [*store.scan_iter("exesys:held:*", count=10_000)], "nothing is held")
        for pattern in ("*:rnd-*", "exesys:job:rnd-*", "exesys:flow:rnd-*"):
            assert [key for key in store.scan_iter(pattern, count=10_000) if store.ttl(key) < 0] == []


def test_what_fails_and_what_goes_on(system, seed):
    dice = random.Random(seed)
    jobs = {}
    for number in range(JOBS):
        steps = graph(dice)
        failing = {called(each) for each in dice.sample(steps, min(len(steps), dice.choice([0, 0, 1, 2])))}
        for each in steps:
            if called(each) in failing:
                each["cmd"] = "fed_once_mended"
        jobs[f"rnd-{number}"] = steps, failing
        dispatch(system, dice, f"rnd-{number}", steps)
    for job_id, (steps, failing) in jobs.items():
        assert ends(ended(system, job_id)) == expected(steps, failing), job_id
    for job_id, (steps, failing) in jobs.items():
        if failing:
            assert retry(system, job_id).status == 202
            assert ends(ended(system, job_id)) == expected(steps, failing), f"{job_id}: as before"
            mend(system, job_id)
            assert retry(system, job_id).status == 202
    for job_id, (steps, _) in jobs.items():
        job = ended(system, job_id)
        assert set(ends(job).values()) == {"ok"}, job_id
        once = {called(each) for each in steps if each["cmd"] == "ones"}
        assert {each["attempt"] for each in job["steps"] if called(each) in once} <= {1}
    nothing_is_left(system)


def test_cancelled_and_retried_at_any_moment(system, seed):
    def ride(number):
        dice = random.Random(f"{seed} {number}")
        job_id = f"rnd-ride-{number}"
        steps = graph(dice)
        for each in steps:
            each["cmd"] = dice.choice(["ones", "ones", "fed_once_mended", "nap"])
        dispatch(system, dice, job_id, steps)
        for _ in range(dice.randint(1, 6)):
            time.sleep(dice.random() * 0.15)  # no condition to wait for: any moment will do
            change = dice.choice([cancel, cancel, retry, retry, lambda *_: send(system, job_id, *steps, wait=None)])
            answer = change(system, job_id)
            assert answer.status in (200, 202), answer
            if change is cancel:
                assert answer.body["state"] in ("error", "data_available"), "it is over at once"
        mend(system, job_id)
        for _ in range(10):
            job = ended(system, job_id)
            if job["state"] == "data_available":
                break
            assert retry(system, job_id).status == 202
        assert set(ends(job).values()) == {"ok"}
        assert {called(each) for each in job["steps"]} == {called(each) for each in steps}

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ride, range(RIDES)))
    nothing_is_left(system)
    until(lambda: len(system.slots()) == 2, "all slots are there")
    assert [each["held"] for each in system.get("/workers").body["workers"]] == [0]
