"""Workers and runners on another host, over a network that delays, loses and is cut in two."""

import contextlib
import dataclasses
import json
import subprocess
import sys
import time
from pathlib import Path

import netns
import pytest
from harness import UP_S, System, alive, free_ports, until

from exesys.keyring import Keyring

JOBS = 400


@pytest.fixture
def host(network, seed):
    with netns.Host(seed) as host:
        yield host


@dataclasses.dataclass
class Elsewhere:
    """A home on another host."""

    host: netns.Host
    system: System

    def exesys(self, *words):
        """Run `bin/exesys WORDS…` there."""
        command = self.host.inside([sys.executable, "-m", "exesys.cli", *words])
        return subprocess.run(
            command, cwd=self.system.root, env=self.system.environ, capture_output=True, text=True, timeout=UP_S
        )


@pytest.fixture
def both(host, make, tmp_path):
    """A system whose bus listens to other hosts, and a home on another with a key to it."""
    [port] = free_ports(1)
    system = make(start=False, bus_endpoint=f"tcp://0.0.0.0:{port}", bus_heartbeat_s=0.5)
    said = system.exesys("keys", "new", "bus-worker", "far", "--out", str(tmp_path / "far.key"))
    assert said.code == 0, said.err
    system.up()
    data = f"unix://{system.home}/run/redis?db=1"  # the files of both are the same; only the network is another
    there = Elsewhere(host, System(bus_heartbeat_s=0.5, redis_data_url=data))
    try:
        yield system, there, [f"tcp://{host.near}:{port}", "--key", str(tmp_path / "far.key")]
    finally:
        there.system.end()


def join(there, how, *more):
    said = there.exesys("join", *how, *more)
    assert said.returncode == 0, said.stderr + there.system.logs()
    return said


def workers(system):
    return system.get("/workers").body["workers"]


def far_jobs(system, count, cmd="echo", data=None):
    """Send jobs for the other host's queue; return their ids."""
    commands = [
        {"from": "test", "to": "end_job", "cmd": cmd, "data": number if data is None else data, "queue": "far"}
        for number in range(count)
    ]
    return [each["job_id"] for each in system.post(commands).body]


def steps(system, job_ids):
    return [system.get(f"/jobs/{job_id}").body["steps"][0] for job_id in job_ids]


def ended(system, job_ids, within_s):
    """Wait until all have ended; return their steps."""
    with system.redis() as redis:

        def count():
            pipeline = redis.pipeline(transaction=False)
            for job_id in job_ids:
                pipeline.exists(f"test:{job_id}:data_available", f"test:{job_id}:error")
            return sum(pipeline.execute())

        until(lambda: count() == len(job_ids), "all have ended", within_s)
    return steps(system, job_ids)


def test_another_host_works_over_a_slow_network_that_loses_packets(both, tell):
    system, there, how = both
    there.host.delay_s, there.host.loss = 0.02, 0.02
    said = join(there, how, "--queues", "far", "--slots", "2")
    assert "the router knows the worker of this host" in said.stdout
    began = time.monotonic()
    found = ended(system, far_jobs(system, JOBS), 120)
    took_s = time.monotonic() - began
    assert [step["result"]["EOJ"] for step in found] == list(range(JOBS))
    assert {step["state"] for step in found} == {"data_available"}
    tell(f"another host, 20 ms and 2 % loss each way: {JOBS} jobs in {took_s:.1f} s, {there.host.lost} packets lost")
    assert there.exesys("status", "--json").returncode == 0
    doctor = there.exesys("doctor", "--json")
    told = {check["name"]: check["state"] for check in json.loads(doctor.stdout)}
    assert told["router"] == "ok", doctor.stdout
    assert "redis" not in told
    assert doctor.returncode == 0, doctor.stdout
    loaded = there.exesys("reload", "--json")
    assert loaded.returncode == 0, loaded.stderr
    assert there.exesys("down").returncode == 0
    until(lambda: len(workers(system)) == 1, "the router knows that it left")


def test_a_network_that_is_cut_and_heals_loses_and_doubles_nothing(both, tell):
    """Leases expire, the jobs run elsewhere, late results are refused, and the host comes back."""
    system, there, how = both
    join(there, how, "--queues", "far", "--slots", "4")
    job_ids = far_jobs(system, 4, "sleep", 6.0)
    until(lambda: {step["state"] for step in steps(system, job_ids)} == {"processing"}, "all run there")
    more = far_jobs(system, 40)
    with system.another_worker(worker_queues="far", worker_slots=4):
        there.host.cut = True
        cut = time.monotonic()
        until(lambda: len(workers(system)) == 2, "the other host is given up", 15)
        given_up_s = time.monotonic() - cut
        assert {step["state"] for step in ended(system, more, 30)} == {"data_available"}
        until(lambda: time.monotonic() - cut > 8, "the jobs there have ended, and nobody hears of it", 15, 0.2)
        there.host.cut = False
        healed = time.monotonic()
        found = ended(system, job_ids, 30)
        assert {(step["state"], step["attempt"]) for step in found} == {("data_available", 2)}
        until(lambda: len(workers(system)) == 3, "the other host is back", 40)
        back_s = time.monotonic() - healed
        before = steps(system, [*job_ids, *more])
        after = far_jobs(system, 60)
        assert {step["state"] for step in ended(system, after, 30)} == {"data_available"}
        assert steps(system, [*job_ids, *more]) == before, "what came late has changed nothing"
    tell(f"a network cut for 8 s: given up after {given_up_s:.1f} s, back {back_s:.1f} s after it healed")


def test_a_runner_on_a_host_that_was_cut_off_never_lives_twice(both):
    system, there, how = both
    join(there, how, "--queues", "far")

    def runner(name):
        return system.get(f"/runners/beat/{name}").body

    def start(name):
        body = json.dumps({"type": "beat", "uuid": name, "target": "lives.idle", "data": [2]})
        return system.request("POST", "/runners", body, {"Content-Type": "application/json"})

    names = [f"{number:08x}-0000-4000-8000-000000000000" for number in range(8)]
    for name in names:
        assert start(name).status in (201, 202), start(name).body
    until(lambda: all("pid" in runner(name) for name in names), "all run, and tell where", 30)
    far = {name: runner(name) for name in names if alive_below(there.system, runner(name)["pid"])}
    assert far, "some run there"
    there.host.cut = True
    overlaps = []

    def moved():
        for name, before in far.items():
            now = runner(name)
            if now["epoch"] > before["epoch"] and now["state"] == "running" and alive(before["pid"]):
                overlaps.append(name)
        return all(runner(name)["epoch"] > before["epoch"] for name, before in far.items())

    until(moved, "all live here", 30)
    assert not overlaps
    there.host.cut = False


def alive_below(system, pid):
    """Tell whether a process belongs to a home."""
    with contextlib.suppress(OSError):
        return f"EXESYS_HOME={system.home}".encode() in Path(f"/proc/{pid}/environ").read_bytes()
    return False


def test_who_is_not_let_in_and_a_router_that_is_not_there_are_told(both, tmp_path):
    system, there, (endpoint, _, key) = both
    stranger = tmp_path / "stranger.key"
    other = Keyring(system.config)
    other.new("worker", "gone", stranger)
    other.revoke("worker", "gone")
    client = tmp_path / "client.key"
    other.new("client", "laptop", client)
    for where, shown, said in (
        (endpoint, stranger, "does not let in"),
        (endpoint, client, "is a key bus-client, with which nobody may work"),
        (f"tcp://{there.host.near}:1", key, "No router answers"),
        (endpoint, tmp_path / "none.key", "there is no key file"),
        ("ipc:///tmp/x", key, "has no keys"),
        ("udp://x", key, "exesys: ENDPOINT is 'udp://x'"),
    ):
        answer = there.exesys("join", where, "--key", str(shown))
        assert answer.returncode == 1, answer
        assert said in answer.stderr, answer
        assert not there.system.home.exists()
