"""The wall clock of a running system is set by an hour: timers neither stop nor flood, and jobs go on."""

import os
import time

import pytest
from harness import CHECKOUT, until
from test_timers import add, job_ids, moment_ms, progress, ran

from exesys.chaos.clock import Clock

HOUR_S = 3600
EVERY_S = 0.2
LOOK_S = 4.0
AGAIN_S = 3.0  # a timer may stand still for so long


@pytest.fixture
def system(make):
    system = make(start=False, ini="[timer:declared]\ncmd = noop\ncron = * * * * *\nmisfire = all\n")
    system.clock = Clock(system.root / "clock")
    system.environ["PYTHONPATH"] = os.pathsep.join((system.clock.python_path, str(CHECKOUT)))
    system.up()
    return system


def stretch(system, names):
    """Return how often each timer ticked in the next seconds, and how long it took until all had ticked."""
    before = {name: ran(system, name) for name in names}
    since = time.monotonic()
    until(lambda: all(ran(system, name) > before[name] for name in names), "all tick", LOOK_S)
    stood_s = time.monotonic() - since
    until(lambda: time.monotonic() - since > LOOK_S, "the stretch is over", LOOK_S + 1)
    return {name: ran(system, name) - before[name] for name in names}, stood_s


@pytest.mark.parametrize("blows", [(HOUR_S, 0), (-HOUR_S, 0)], ids=["forward and back", "back and forward"])
def test_a_clock_set_by_an_hour_neither_stops_nor_floods(system, blows, tell):
    policies = ("all", "once", "skip")
    for misfire in policies:
        assert add(system, misfire, every_s=EVERY_S, misfire=misfire).status == 201
    until(lambda: all(ran(system, name) > 2 for name in policies), "they tick")
    told = []
    for off_s in blows:
        system.clock.set(off_s)
        ticks, stood_s = stretch(system, policies)
        most = (LOOK_S + 1) / EVERY_S
        assert all(LOOK_S / EVERY_S / 3 < count <= most for count in ticks.values()), ticks
        assert stood_s < AGAIN_S
        # What runs now has the moment of the clock as it is now.
        newest = moment_ms(job_ids(system, "all")[-1].removesuffix(".1").removesuffix(".2"))
        assert abs(newest - system.clock.now_ms()) < 5000
        # Jobs without a timer go on as ever, also those that wait a moment.
        job_id = system.post({"from": "clock", "cmd": "noop", "delay_s": 0.5}).body["job_id"]
        until(lambda job=job_id: system.get(f"/jobs/{job}").body["steps"][0]["state"] == "data_available", "it ran")
        told.append(
            f"set to {off_s:+d} s: {ticks} ticks in {LOOK_S:g} s of {LOOK_S / EVERY_S:g}, again after {stood_s:.2f} s"
        )
    # The one of each minute, too, ran once a minute at most, and was not made up for.
    assert ran(system, "declared") <= 3
    for name in policies:
        ids = job_ids(system, name)
        assert len(set(ids)) == len(ids), "no tick has two jobs"
        assert int(progress(system, name).get("missed", 0)) == 0
    tell("; ".join(told))
