"""Runners while processes are killed and frozen: never two lives at once, back soon, and the stopped stay stopped.

Each life writes its epoch and the time into a file, several times a second;
what is checked is read there and in Redis, and in no memory of ours.
"""

import itertools
import os
import random
import signal
import time
from collections import defaultdict

import pytest
from harness import alive, children, until

pytestmark = pytest.mark.alone

RUNNERS = 6
KINDS = ("instance", "runner", "controller", "redis", "router")
ROUNDS = len(KINDS) * int(os.environ.get("EXESYS_ROUNDS", "4"))
BACK_S = 10.0
FROZEN_S = 4.0


@pytest.fixture
def system(make):
    return make(bus_heartbeat_s=0.5)  # a lease of 2.5 s


class Lives:
    """What the lives of some runners have written."""

    def __init__(self, directory):
        self.directory = directory
        directory.mkdir()

    def of(self, uuid):
        """Return the lives of a runner in order: (epoch, pid, first time, last time)."""
        path = self.directory / uuid
        found = defaultdict(list)
        for line in path.read_text().splitlines() if path.exists() else []:
            parts = line.split()
            if len(parts) == 3:  # the last may be cut by a kill
                found[int(parts[0]), int(parts[1])].append(float(parts[2]))
        return sorted((epoch, pid, min(times), max(times)) for (epoch, pid), times in found.items())

    def newest(self, uuid):
        """Return when a runner wrote last, and the pid that did."""
        lives = self.of(uuid)
        return (lives[-1][3], lives[-1][1]) if lives else (0.0, 0)

    def check(self, uuid):
        """No two lives overlap, and their epochs rise."""
        lives = self.of(uuid)
        assert len({epoch for epoch, *_ in lives}) == len(lives), f"an epoch of {uuid} lived twice: {lives}"
        for before, after in itertools.pairwise(lives):
            assert before[3] < after[2], f"two lives of {uuid} at once: {before}, {after}"


def back(lives, uuids, since):
    """Wait until all of them write again, later than `since`."""
    until(lambda: all(lives.newest(uuid)[0] > since for uuid in uuids), "all runners are back", BACK_S, 0.02)


def strike(system, lives, kind, uuids, dice):
    """Kill -9 one process; return whom it was."""
    uuid = dice.choice(uuids)
    pid = until(lambda: lives.newest(uuid)[1] if kind == "instance" else system.pids().get(kind), kind)

    def killed():
        nonlocal pid
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # its life ended meanwhile: the next one is struck
            pid = lives.newest(uuid)[1] if kind == "instance" else system.pids().get(kind, pid)
            return False
        return True

    until(killed, f"{kind} is struck")
    until(lambda: not alive(pid), "it is gone")
    return pid


def states(system, type_):
    with system.redis() as redis:
        names = [name.decode() for name in redis.smembers("exesys:runners")]
        names += [name.decode() for name in redis.zrange("exesys:ended", 0, -1)]
        return {name: redis.hget(f"exesys:runner:{name}", "state").decode() for name in names if name.startswith(type_)}


def test_twenty_rounds_of_kills(system, seed, tell):
    dice = random.Random(f"{seed} runners")
    lives = Lives(system.root / "lives")
    longest = defaultdict(float)
    with system.client() as client:
        for number in range(RUNNERS + ROUNDS):
            client.start_runner("marks", str(lives.directory), type="mark", uuid=f"m{number}")
        going = [f"m{number}" for number in range(RUNNERS + ROUNDS)]
        stopped = {}
        back(lives, going, 0.0)
        for number in range(ROUNDS):
            kind = KINDS[number % len(KINDS)]
            # One is stopped in the moment of the blow, before it or after it.
            victim = going.pop(dice.randrange(len(going)))
            if dice.random() < 0.5:
                client.stop_runner(f"mark:{victim}", timeout=BACK_S)
                strike(system, lives, kind, going, dice)
            else:
                strike(system, lives, kind, going, dice)
                client.stop_runner(f"mark:{victim}", timeout=3 * BACK_S)
            since = time.monotonic()
            back(lives, going, since)
            longest[kind] = max(longest[kind], time.monotonic() - since)
            until(lambda name=victim: states(system, "mark")[f"mark:{name}"] == "stopped", "it is stopped", BACK_S)
            stopped[victim] = time.monotonic()
            for uuid in (*going, *stopped):
                lives.check(uuid)
        until(system.ready, "all is there")
        for uuid, at in stopped.items():
            assert lives.newest(uuid)[0] < at, f"{uuid} came back after its stop"
        # They write before Redis is told that they run: the router was struck last.
        stands = {f"mark:{uuid}": "running" for uuid in going} | {f"mark:{uuid}": "stopped" for uuid in stopped}
        until(lambda: states(system, "mark") == stands, "Redis has each as it is", BACK_S)
    count = sum(len(lives.of(uuid)) for uuid in (*going, *stopped))
    tell(
        f"runners, {ROUNDS} kills: {count} lives of {RUNNERS + ROUNDS} runners, none at once; all back within "
        + ", ".join(f"{kind} {seconds:.2f} s" for kind, seconds in longest.items())
    )


def test_two_daemons_share_the_work_and_take_over_from_each_other(system, tell):
    lives = Lives(system.root / "lives")
    with system.client() as client, system.another_runner() as other:
        uuids = [f"m{number}" for number in range(8)]
        for uuid in uuids:
            client.start_runner("marks", str(lives.directory), type="mark", uuid=uuid)
        back(lives, uuids, 0.0)
        first = system.pids()["runner"]
        hosted = {pid: sum(1 for each in uuids if is_below(pid, lives.newest(each)[1])) for pid in (first, other.pid)}
        assert hosted == {first: 4, other.pid: 4}
        other.kill()
        other.wait()
        since = time.monotonic()
        back(lives, uuids, since)
        taken_s = time.monotonic() - since
        for uuid in uuids:
            lives.check(uuid)
            assert is_below(system.pids()["runner"], lives.newest(uuid)[1])
    tell(f"runners of a daemon that was killed live on another one after {taken_s:.1f} s")


def is_below(daemon, pid):
    """Whether a process is an instance of this daemon: its grandchild."""
    return any(pid in children(server) for server in children(daemon))


@pytest.mark.parametrize("frozen", ["daemon", "router"])
def test_what_stands_still_for_longer_than_a_lease_never_has_two_lives(system, frozen):
    """A frozen daemon is ended by the kernel before its runners begin elsewhere; a frozen router forgives."""
    lives = Lives(system.root / "lives")
    with system.client() as client, system.another_runner() as other:
        uuids = [f"m{number}" for number in range(6)]
        for uuid in uuids:
            client.start_runner("marks", str(lives.directory), type="mark", uuid=uuid)
        back(lives, uuids, 0.0)
        pid = other.pid if frozen == "daemon" else system.pids()["router"]
        os.kill(pid, signal.SIGSTOP)
        since = time.monotonic()
        if frozen == "daemon":
            # It cannot be killed by anybody who waits for it to act: it is the kernel that does it.
            until(lambda: other.poll() is not None, "the frozen daemon is ended", FROZEN_S)
            assert other.returncode == -signal.SIGKILL
        else:
            until(lambda: time.monotonic() - since > FROZEN_S, "the router stood still")
            os.kill(pid, signal.SIGCONT)
        back(lives, uuids, time.monotonic())
        for uuid in uuids:
            lives.check(uuid)


def test_a_daemon_that_is_cut_off_ends_its_runners_before_others_have_them(system):
    """Its sockets are there, and nothing comes through: what a network does when it is cut."""
    lives = Lives(system.root / "lives")
    with system.client() as client:
        client.start_runner("marks", str(lives.directory), type="mark", uuid="m")
        back(lives, ["m"], 0.0)
        pid = system.pids()["runner"]
        router = system.pids()["router"]
        os.kill(router, signal.SIGSTOP)
        until(lambda: not alive(pid), "the daemon has ended by itself", FROZEN_S)
        assert "the router is not heard" in system.log_of("runner")
        os.kill(router, signal.SIGCONT)
        back(lives, ["m"], time.monotonic())
        lives.check("m")


def test_what_runners_have_started_ends_when_their_daemon_was_killed_and_is_back(system):
    with system.client() as client, system.another_runner() as other:
        names = [client.start_runner(function, None) for function in ("spawns", "forks") for _ in range(3)]
        with system.redis(1) as redis:
            until(lambda: all(redis.get(f"child:{name}") for name in names), "all have a child")
            had = {int(redis.get(f"child:{name}")) for name in names}
            daemon = system.pids()["runner"]
            below = [pid for server in children(other.pid) for pid in children(server)]
            spared = {child for pid in below for child in children(pid)} & had
            assert 0 < len(spared) < len(had)
            os.kill(daemon, signal.SIGKILL)
            until(lambda: not any(alive(pid) for pid in had - spared), "what it left is gone", BACK_S)
            until(system.ready, "all is there")
            assert all(alive(pid) for pid in spared), "another daemon's is not touched"
        # Some of the runners themselves may be among them: the kernel was ending those just then.
        assert "processes of runners, left by a daemon that is gone" in system.log_of("runner")
        for name in names:
            client.stop_runner(name, timeout=BACK_S)


def test_one_spoilt_record_and_odd_names_stop_nothing(system):
    """Somebody's hand slips in Redis, and all that reads runners begins anew: the others live on."""
    with system.client() as client:
        for uuid in ("l1", "l2", "l3", "l4"):
            client.start_runner("idle", type="t", uuid=uuid)
        until(lambda: set(states(system, "t").values()) == {"running"}, "they run")
        with system.redis() as redis:
            redis.hset("exesys:runner:t:l1", "state", "bogus")
            redis.hdel("exesys:runner:t:l2", "target")
            redis.hset("exesys:runner:t:l3", "epoch", "abc")
            redis.sadd("exesys:runners", b"\xff", "odd")
            for _ in range(3):
                redis.set(b"run:\xff:x", "0")
                redis.set("run:a:b:c", "0")
        for program in ("router", "controller"):
            pid = system.pids()[program]
            os.kill(pid, signal.SIGKILL)
            until(lambda name=program, old=pid: system.pids().get(name) not in (None, old), f"{program} is back")
        until(system.ready, "all is there")
        shown = system.get("/runners")
        assert shown.status == 200
        assert [each["name"] for each in shown.body["runners"]] == ["t:l4"]
        assert system.get("/runners/t/l1").status == 404
        assert client.stop_runner("t:l4", timeout=BACK_S)
        until(lambda: system.get("/runners/t/l4").body["state"] == "stopped", "it is stopped", BACK_S)
        for name in ("t:l1", "t:l2", "t:l3"):
            assert f"the record of the runner {name} cannot be read" in system.log_of("router")
        # Mended, it lives again.
        with system.redis() as redis:
            redis.hset("exesys:runner:t:l1", "state", "starting")
        client.restart_runner("t:l1", timeout=BACK_S)
        until(lambda: system.get("/runners/t/l1").body["state"] == "running", "it runs again", BACK_S)
        until(lambda: system.log_of("controller").count("is no name of a runner") == 2, "the new controller tells")
    assert "Traceback" not in system.log_of("router") + system.log_of("controller") + system.log_of("rest")
