"""Two controllers: one is active, the other takes over; one that was stopped does not act on its lost lease."""

import os
import random
import re
import signal
import statistics
import time

import pytest
from harness import until
from receiver import Receiver

ROUNDS = int(os.environ.get("EXESYS_ROUNDS", "3"))
TAKEOVER_S = 5.0


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(controller_processes=2, callbacks_hosts="127.0.0.1", callbacks_backoff_s=0.1)


def leader(system):
    """Return the session of the active controller, "" while there is none."""
    with system.redis() as redis:
        return (redis.get("exesys:controller") or b"").decode()


def pid_of(system, session):
    """Return the pid of the controller with this session, by what it logged."""
    for name in ("controller-1", "controller-2"):
        said = re.findall(r"(?:active|standing by), as (\w+)", system.log_of(name))
        if said and said[-1] == session:
            return system.pids()[name]
    return None


def active(system):
    """Return session and pid of the active controller."""

    def found():
        session = leader(system)
        pid = session and pid_of(system, session)
        return pid and (session, pid)

    return until(found, "one is active")


def others_session(system, session):
    return until(lambda: (now := leader(system)) not in ("", session) and now, "another is active", 20, 0.002)


def both(system):
    return {name for name in system.pids() if name.startswith("controller")} == {"controller-1", "controller-2"}


def at_any_moment_of_its_lease(system, dice):
    """Wait until so much of the lease is left; it is renewed each second."""
    left_ms = dice.uniform(2050, 2980)
    with system.redis() as redis:
        until(lambda: left_ms - 40 < redis.pttl("exesys:controller") <= left_ms, "that moment", 20, 0.002)


def mirrors_stops(system, type_, uuid):
    """A stop that is loaded reaches its runner: so the active controller acts."""
    with system.client() as client, system.redis() as redis:
        name = client.start_runner("lives.idle", None, type=type_, uuid=uuid)
        until(lambda: redis.hget(f"exesys:runner:{name}", "state") == b"running", "it runs")
        redis.set(f"run:{name}", 0)
        until(lambda: redis.hget(f"exesys:runner:{name}", "state") == b"stopped", "it was stopped")


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda number: number.name)
def test_the_other_takes_over_in_time(system, tell, seed, number):
    took, dice = [], random.Random(f"{seed} {number}")
    for round_ in range(ROUNDS):
        until(lambda: both(system), "both are there")
        session, pid = active(system)
        at_any_moment_of_its_lease(system, dice)
        struck = time.monotonic()
        os.kill(pid, number)
        others_session(system, session)
        took.append(time.monotonic() - struck)
        if number == signal.SIGSTOP:
            os.kill(pid, signal.SIGCONT)
        mirrors_stops(system, number.name.lower(), f"u{round_}")
    tell(
        f"standby: {ROUNDS} times {number.name} of the active controller, the other took over after"
        f" {statistics.median(took):.2f} s (p50), {max(took):.2f} s (max)"
    )
    assert max(took) < TAKEOVER_S


def test_one_that_was_stopped_does_nothing_of_the_others(system):
    """It is stopped while it has a callback to send, and goes on when the other has sent it."""
    receiver = Receiver()
    until(lambda: both(system), "both are there")
    session, pid = active(system)
    os.kill(pid, signal.SIGSTOP)
    try:
        for number in range(20):
            answer = system.post({"cmd": "echo", "job_id": f"fenced-{number}", "notify": receiver.url}, wait=10)
            assert answer.body["state"] == "data_available"
        second = others_session(system, session)
        until(lambda: len(receiver.told) == 20, "the other has told all")
        until(lambda: system.get("/callbacks").body["waiting"] == 0, "and noted it")
    finally:
        os.kill(pid, signal.SIGCONT)
    program = next(name for name, its in system.pids().items() if its == pid)
    until(lambda: system.log_of(program).rstrip().endswith(f"standing by, as {session}"), "it has noticed")
    assert leader(system) == second
    send = {"cmd": "echo", "job_id": "fenced-last", "notify": receiver.url}
    assert system.post(send, wait=10).body["state"] == "data_available"
    until(lambda: len(receiver.told) == 21, "the active one goes on")
    assert len({each.delivery for each in receiver.told}) == 21, "each was told once"
    assert leader(system) == second
    receiver.close()


def test_when_the_system_ends_in_order_the_other_need_not_wait(system):
    until(lambda: both(system), "both are there")
    session, pid = active(system)
    began = time.monotonic()
    os.kill(pid, signal.SIGTERM)
    others_session(system, session)
    assert time.monotonic() - began < 2.5
