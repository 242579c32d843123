"""Sentinels under whole systems: the master dies under load, also with the router, and nothing acknowledged is lost."""

import http.client
import os
import signal
import threading
import time
from collections import Counter

import pytest
import redis
import redises
from harness import System, until

from exesys import codec
from exesys.store import dial
from exesys.troubles import BY_REASON

PASSWORD = "s3cr3t-of-jobs"
OTHER = "s3cr3t-of-sentinels"
SERVICE = "main"
RECOVERY_S = 60


class Watched:
    """A master, a replica and three sentinels."""

    def __init__(self, field):
        settings = {"repl_diskless_sync_delay": "0", "repl_ping_replica_period": "1"}
        self.nodes = [field.node(**settings)]
        self.nodes.append(field.node(replicaof=f"127.0.0.1 {self.nodes[0].port}", **settings))
        with self.nodes[0].client() as client:
            until(lambda: client.wait(1, 100) == 1, "the replica follows")
        self.sentinels = field.sentinels(self.nodes[0], SERVICE)
        hosts = ",".join(f"127.0.0.1:{each.port}" for each in self.sentinels)
        self.url = f"sentinel://{hosts}/{SERVICE}/0"

    def master(self):
        with self.sentinels[0].client() as client:
            named = client.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return next(node for node in self.nodes if node.port == int(named[1]))

    def kill_master(self):
        dead = self.master()
        dead.kill()
        return dead

    def revive(self, node):
        """Start it again, and wait until the sentinels have made it the replica of the other."""
        node.start()
        with self.master().client() as client:
            until(lambda: client.info("replication")["connected_slaves"] == 1, "it follows the new master", 60)
            until(lambda: client.wait(1, 100) == 1, "and has all")


@pytest.fixture(scope="module")
def watched(field):
    return Watched(field)


class Caller(threading.Thread):
    """Sends one command after the other over REST, each once; notes those that were accepted."""

    def __init__(self, system, name, marks):
        super().__init__(daemon=True)
        self.system, self.caller, self.marks = system, name, str(marks)
        self.accepted = {}
        self.texts = Counter()
        self.odd = []
        self.halt = threading.Event()

    def run(self):
        number = 0
        while not self.halt.wait(0.002):
            number += 1
            job_id = f"{self.caller}-{number}"
            data = {"runs": self.marks, "number": number, "seconds": 0.001}
            try:
                answer = self.system.post({"cmd": "marked", "job_id": job_id, "data": data}, timeout=30)
            except (OSError, http.client.HTTPException) as error:
                self.odd.append(repr(error))
                continue
            if answer.status in (200, 202):
                self.accepted[job_id] = number
            elif answer.status == 503:
                self.texts[answer.error["message"]] += 1
            else:
                self.odd.append(answer)


def ends(system, watched, accepted):
    """Wait for the end of each, and see to it that the store has each once."""
    with system.client() as client:
        for job_id, number in accepted.items():
            assert client.result(job_id, RECOVERY_S)["value"] == 2 * number
    with watched.master().client() as store:
        for job_id, number in accepted.items():
            there = [state for state in ("start", "processing", "data_available", "error")
                     if store.exists(f"client:{job_id}:{state}")]  # fmt: skip
            assert there == ["data_available"]
            body = store.hget(f"client:{job_id}:data_available", "result")
            assert codec.unpack(body)["EOJ"]["value"] == 2 * number


def test_the_master_dies_under_load(watched, make, tell):
    system = make(redis_url=watched.url)
    before = system.pids()
    callers = [Caller(system, f"one-{i}", system.root / "marks") for i in range(3)]
    for caller in callers:
        caller.start()
    with system.client() as client:
        data = [{"runs": str(system.root / "marks"), "number": i, "seconds": 0.001} for i in range(2000)]
        handles = client.submit_many("marked", data)
        until(lambda: sum(handle.done() for handle in handles) > 100, "some ended", every_s=0.001)
        dead = watched.kill_master()
        since = time.monotonic()
        counts = [len(caller.accepted) for caller in callers]
        assert [handle.result(RECOVERY_S)["value"] for handle in handles] == [2 * i for i in range(2000)]
        until(lambda: all(len(c.accepted) > n + 20 for c, n in zip(callers, counts, strict=True)), "it goes on")
        took_s = time.monotonic() - since
    for caller in callers:
        caller.halt.set()
        caller.join(RECOVERY_S)
    accepted = {job_id: number for caller in callers for job_id, number in caller.accepted.items()}
    ends(system, watched, accepted)
    assert [caller.odd for caller in callers] == [[], [], []]
    assert watched.master() is not dead
    assert system.pids() == before, "all went on without a restart"
    assert system.post({"cmd": "counts", "data": "after"}, wait=20).body["result"]["EOJ"] >= 1
    checks = [check for check in system.exesys("doctor", "--json").json if check["name"] == "redis replicas"]
    assert [check["state"] for check in checks] == ["warn"]
    tell(f"the master killed: gets on {took_s:.1f} s after; {len(accepted)} accepted and 2000 of the client, none lost")
    watched.revive(dead)


def test_the_master_and_the_router_die_and_a_replica_had_confirmed_all(watched, make, tell):
    """What the router remembers is gone with it, so only what a replica had is left: all that was acknowledged."""
    system = make(redis_url=watched.url, redis_wait_replicas=1, redis_wait_ms=200)
    callers = [Caller(system, f"two-{i}", system.root / "marks") for i in range(4)]
    for caller in callers:
        caller.start()
    until(lambda: all(len(caller.accepted) > 50 for caller in callers), "all get on")
    router = system.pids()["router"]
    master = watched.master()
    os.kill(master.process.pid, signal.SIGKILL)
    os.kill(router, signal.SIGKILL)
    master.kill()
    until(lambda: watched.master() is not master, "another is master", within_s=30)
    # It has no replica yet, so nothing may be acknowledged.
    trouble = BY_REASON["store_lagging"]
    until(lambda: any(trouble.why in text for caller in callers for text in caller.texts), "it is told", within_s=30)
    counts = [len(caller.accepted) for caller in callers]
    assert trouble.why in system.get("/readyz").error["message"]
    assert [len(caller.accepted) for caller in callers] == counts, "acknowledged without a replica"
    watched.revive(master)
    until(lambda: all(len(c.accepted) > n + 20 for c, n in zip(callers, counts, strict=True)), "it goes on")
    for caller in callers:
        caller.halt.set()
        caller.join(RECOVERY_S)
    accepted = {job_id: number for caller in callers for job_id, number in caller.accepted.items()}
    ends(system, watched, accepted)
    assert sum(counts) > 200
    tell(f"master and router killed with wait_replicas = 1: {len(accepted)} accepted, none lost")


def test_no_sentinel_answers(make):
    """What to do is said at the start, and nothing is left behind."""
    system = System(redis_url=f"sentinel://127.0.0.1:{redises.free_port()}/{SERVICE}")
    try:
        said = system.exesys("up")
        assert said.code != 0
        assert f"no sentinel names the master of {SERVICE}" in said.err
        assert not (system.home / "run").exists()
    finally:
        system.end()


def test_a_sentinel_that_asks_for_a_password(field):
    """Its login is another one than that of Redis."""
    login = {"password": PASSWORD}
    master = field.node(requirepass=PASSWORD, login=login)
    [sentinel] = field.sentinels(master, SERVICE, count=1, password=OTHER)
    url = f"sentinel://:{PASSWORD}@127.0.0.1:{sentinel.port}/{SERVICE}"
    with dial.once(url, 2.0) as wrong, pytest.raises(redis.ConnectionError, match="no sentinel names") as caught:
        wrong.ping()
    assert PASSWORD not in str(caught.value)
    with dial.once(f"{url}?sentinel_password={OTHER}", 2.0) as right:
        assert right.ping()
        assert right.role()[0] in (b"master", "master")
