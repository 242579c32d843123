"""What runners cost: how soon a stop is heeded, how many at once, and what they take while they do nothing."""

import os
import time
from pathlib import Path

import pytest
from harness import children, until

pytestmark = pytest.mark.alone

STOPS = 200
STOP_S = 0.1
CROWD = 500
CROWD_S = 5.0
IDLE = 100
IDLE_SHARE = 0.002
LOOKED_S = 10.0
TICKS = os.sysconf("SC_CLK_TCK")


@pytest.fixture(scope="module")
def system(make_module):
    return make_module()


@pytest.fixture(scope="module")
def client(system):
    with system.client() as client:
        yield client


def running(system, names, within_s=60.0):
    def all_run():
        with system.redis() as redis:
            pipeline = redis.pipeline(transaction=False)
            for name in names:
                pipeline.hget(f"exesys:runner:{name}", "state")
            return set(pipeline.execute()) == {b"running"}

    until(all_run, f"{len(names)} runners run", within_s, 0.05)


def cpu_s(pid):
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def hosted(system):
    """Return the runner daemon, its fork server, and their instances."""
    daemon = system.pids()["runner"]
    [server] = children(daemon)
    return daemon, server, children(server)


def test_a_stop_ends_a_cooperative_runner_soon(system, client, tell):
    """From the stop in Redis to the end of its process, and to the state that says so."""
    heeded, ended = [], []
    with system.redis() as redis, system.redis(1) as data:
        for number in range(STOPS):
            name = client.start_runner("lives.idle", number, type="stops")
            running(system, [name])
            since = time.monotonic()
            redis.set(f"run:{name}", 0)
            until(lambda name=name: redis.hget(f"exesys:runner:{name}", "state") == b"stopped", "it ended", 10, 0.0005)
            ended.append(time.monotonic() - since)
            heeded.append(float(data.lindex(f"lives:{name}", -1).split()[3]) - since)
    heeded.sort()
    ended.sort()
    p50, p99 = (int(STOPS * share) - 1 for share in (0.5, 0.99))
    tell(
        f"stop by SET of a runner, {STOPS} times: its function hears it p50 {heeded[p50] * 1000:.1f} ms,"
        f" p99 {heeded[p99] * 1000:.1f} ms; it has ended, and Redis says so: p50 {ended[p50] * 1000:.1f} ms,"
        f" p99 {ended[p99] * 1000:.1f} ms"
    )
    assert ended[p99] <= STOP_S


def test_five_hundred_runners_end_at_once(system, client, tell):
    since = time.monotonic()
    names = [client.start_runner("lives.idle", number, type="crowd") for number in range(CROWD)]
    running(system, names)
    took_s = time.monotonic() - since
    with system.redis() as redis:
        since = time.monotonic()
        pipeline = redis.pipeline(transaction=False)
        for name in names:
            pipeline.set(f"run:{name}", 0)
        pipeline.execute()
        until(lambda: redis.scard("exesys:runners") == 0, "all have ended", 30, 0.01)
        ended_s = time.monotonic() - since
        hows = {redis.hget(f"exesys:runner:{name}", "how") for name in names}
    assert hows == {b"it stopped when it was told to"}
    assert hosted(system)[2] == []
    tell(f"{CROWD} runners: started and running in {took_s:.1f} s, all ended {ended_s:.2f} s after their stops")
    assert ended_s <= CROWD_S


def test_idle_runners_cost_nothing(system, client, tell):
    names = [client.start_runner("lives.idle", number, type="idle") for number in range(IDLE)]
    running(system, names)
    daemon, server, instances = hosted(system)
    assert len(instances) == IDLE
    router = system.pids()["router"]
    everybody = (daemon, server, *instances)
    before, before_router, since = sum(map(cpu_s, everybody)), cpu_s(router), time.monotonic()
    until(lambda: time.monotonic() - since > LOOKED_S, "some time has passed", every_s=0.5)
    passed_s = time.monotonic() - since
    share = (sum(map(cpu_s, everybody)) - before) / passed_s
    router_share = (cpu_s(router) - before_router) / passed_s
    private = sum(private_bytes(pid) for pid in instances) / len(instances)
    sockets = sum(1 for pid in instances for link in links(pid) if link.startswith("socket:"))
    tell(
        f"{IDLE} idle runners: {share / IDLE:.4%} of a core each with their daemon ({share:.2%} in all; the router"
        f" {router_share:.2%}), {private / (1 << 20):.1f} MB of their own, {sockets / len(instances):.0f} sockets each"
    )
    assert share / IDLE <= IDLE_SHARE
    # The only subscription is the daemon's: an instance has the line to its daemon, and its own Redis connection.
    assert sockets <= 2 * len(instances)
    client.stop_runner("idle")


def private_bytes(pid):
    """Return the memory a process shares with no other."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    fields = dict(line.split()[:2] for line in text.splitlines()[1:])
    return 1024 * (int(fields["Private_Clean:"]) + int(fields["Private_Dirty:"]))


def links(pid):
    directory = Path(f"/proc/{pid}/fd")
    return [os.readlink(path) for path in directory.iterdir()]
