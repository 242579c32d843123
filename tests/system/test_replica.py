"""The replica of Redis: it follows, keeps what it has when the master lost something, and brings all back."""

import contextlib
import http.client
import os
import re
import shutil
import signal
import socket
import threading
import time

import pytest
import redis
from harness import children, until, valkey_path

from exesys import bootstrap, home
from exesys.store.journal import KEEP_S

CUT_BYTES = 8192  # some of the 50 jobs that were sent last


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(redis_server=valkey_path(), redis_backup="yes")


@pytest.fixture(scope="module")
def victim(make_module):
    """A system whose data are destroyed; each test leaves it in sync."""
    return make_module(redis_server=valkey_path(), redis_backup="yes")


def replica_of(system):
    return redis.Redis(unix_socket_path=str(system.home / "run" / "redis-backup"), decode_responses=True)


def state(system):
    return bootstrap.status(system.config)["redis"]["backup"]["state"]


def in_sync(system):
    """Wait until the replica follows, and its own file is written anew."""
    until(lambda: state(system) == "in sync", "the replica is in sync")
    with replica_of(system) as replica:
        until(lambda: not replica.info("persistence")["aof_rewrite_in_progress"], "its file is written")


def caught_up(system):
    """Wait until the replica has all that the master had when this was called."""
    with system.redis() as master, replica_of(system) as replica:
        reached = master.info("replication")["master_repl_offset"]
        until(lambda: replica.info("replication")["slave_repl_offset"] >= reached, "it has that")


def parted(system, why):
    until(lambda: why in bootstrap.status(system.config)["redis"]["backup"]["reason"], f"it does not follow: {why}")
    assert state(system) == "not following"


class Load:
    """Sends one job after the other over REST, in several threads; notes which were acknowledged."""

    def __init__(self, system):
        self.accepted = []
        self._system = system
        self._halt = threading.Event()
        self._callers = [threading.Thread(target=self._call, args=(name,), daemon=True) for name in "abcd"]

    def _call(self, name):
        number = 0
        while not self._halt.is_set():
            number += 1
            job_id = f"{name}-{number}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                if self._system.post({"cmd": "echo", "data": job_id, "job_id": job_id}).status == 202:
                    self.accepted.append(job_id)

    def __enter__(self):
        for caller in self._callers:
            caller.start()
        return self

    def __exit__(self, *_):
        self._halt.set()
        for caller in self._callers:
            caller.join(30)
            assert not caller.is_alive()


# --- as long as all is well --------------------------------------------------------------


def test_it_is_a_program_of_its_own_that_only_its_owner_reads(system):
    in_sync(system)
    status = system.status()
    assert {"redis", "redis-backup"} <= {each["name"] for each in status["programs"]}
    assert status["redis"]["backup"]["behind_bytes"] < 10_000
    assert "backup in sync, " in system.exesys("status").out
    [told] = [each for each in system.exesys("doctor", "--json").json if each["name"] == "backup"]
    assert told["state"] == "ok"
    for name in ("redis", "redis-backup"):
        assert (system.home / "run" / name).stat().st_mode & 0o777 == 0o700
    with replica_of(system) as replica:
        assert replica.info("replication")["role"] == "slave"
        assert replica.config_get("appendonly") == {"appendonly": "yes"}
        with pytest.raises(redis.ReadOnlyError):
            replica.set("a", 1)
    with system.client() as client:
        values = client.submit_many("echo", range(300))
        assert [each.result(10) for each in values] == list(range(300))
    caught_up(system)
    with replica_of(system) as replica, system.redis() as master:
        assert replica.dbsize() == master.dbsize() > 600


@pytest.mark.parametrize(
    "sent",
    [
        b"*1\r\n$4\r\nPING\r\n*2\r\n$4\r\nAUTH\r\n$64\r\n%s\r\n*1\r\n$4\r\nSYNC\r\n" % (b"0" * 64),
        b"*1\r\n$4\r\nPING\r\n*1\r\n$4\r\nSYNC\r\n",
        b"*2\r\n$3\r\nGET\r\n$12\r\nexesys:epoch\r\n",
        b"GET exesys:epoch\r\n" * 10,
    ],
)
def test_nobody_else_comes_through_the_relay(system, sent):
    with replica_of(system) as replica:
        port = int(replica.info("replication")["master_port"])
    got = b""
    # It may be cut off in the middle.
    with socket.create_connection(("127.0.0.1", port), 10) as stranger, contextlib.suppress(ConnectionError):
        stranger.sendall(sent)
        while piece := stranger.recv(4096):
            got += piece
    assert got in (b"", b"+PONG\r\n")


def test_killed_it_comes_back_and_takes_up_what_it_missed(system):
    in_sync(system)
    daemon = system.pids()["redis-backup"]
    [server] = children(daemon)
    os.kill(daemon, signal.SIGKILL)
    until(lambda: system.pids().get("redis-backup", daemon) != daemon, "its program is there again")
    with system.client() as client:
        assert client.run("echo", 1, timeout=10) == 1
    in_sync(system)
    caught_up(system)
    [again] = children(system.pids()["redis-backup"])
    assert again != server
    os.kill(again, signal.SIGKILL)
    until(lambda: children(system.pids().get("redis-backup", os.getpid())) not in ([again], []), "its server, too")
    in_sync(system)


def test_a_master_that_was_killed_is_followed_again(system):
    in_sync(system)
    with Load(system) as load:
        until(lambda: len(load.accepted) > 200, "there is load")
        master = system.pids()["redis"]
        os.kill(master, signal.SIGKILL)
        until(lambda: system.pids().get("redis", master) != master, "it is there again")
        count = len(load.accepted)
        until(lambda: len(load.accepted) > count + 100, "and works")
        in_sync(system)
    caught_up(system)
    with system.client() as client:
        assert [client.result(job_id, 30) for job_id in load.accepted] == load.accepted


# --- what is lost ------------------------------------------------------------------------


def test_destroyed_under_load_all_that_was_replicated_comes_back(victim, tell):
    in_sync(victim)
    with Load(victim) as load:
        until(lambda: len(load.accepted) > 500, "there is load")
        sure = list(load.accepted)
        caught_up(victim)
        master = victim.pids()["redis"]
        shutil.rmtree(victim.config.data / "redis")
        os.kill(master, signal.SIGKILL)
        until(lambda: "does not start empty beside it" in victim.log_of("redis"), "it does not start empty")
        accepted = list(load.accepted)
    parted(victim, "the private Redis does not answer")
    with replica_of(victim) as replica:
        assert replica.dbsize() > len(sure)
    said = victim.exesys("doctor")
    assert "FAIL backup: The replica of Redis is not following" in said.out
    said = victim.exesys("restore", "--from-backup")
    assert said.code == 0, said.err + victim.logs()
    assert re.search(r"Restored \d+ keys \(\d+ jobs, .*\) from the replica", said.out)
    assert "Proof" in said.out
    in_sync(victim)
    steps = [victim.get(f"/jobs/{job_id}") for job_id in accepted]
    missing = [job_id for job_id, answer in zip(accepted, steps, strict=True) if answer.status == 404]
    assert not set(missing) & set(sure)
    kept = [job_id for job_id in accepted if job_id not in missing]
    with victim.client() as client:
        assert [client.result(job_id, 30) for job_id in kept] == kept
    for ref, (ended, _) in zip(kept, victim.records([f"client:{job_id}" for job_id in kept]), strict=True):
        assert ended == "data_available", ref
    tell(
        f"Redis destroyed under load: {len(accepted)} jobs accepted, {len(sure)} of them surely replicated before;"
        f" {len(missing)} were not yet, and are lost"
    )


def test_a_master_cut_short_while_it_was_down_is_not_followed_and_can_be_replaced(victim):
    in_sync(victim)
    jobs = ended(victim, 50)
    caught_up(victim)
    victim.down()
    cut(victim, written(victim))
    victim.up()
    parted(victim, "it went on from turn ")
    with victim.client() as client:
        assert client.run("echo", "it works without", timeout=10) == "it works without"
    with replica_of(victim) as replica:
        assert replica.exists(*(f"client:{job_id}:data_available" for job_id in jobs)) == len(jobs)
    for more in ((), ("--replace",)):
        said = victim.exesys("restore", "--from-backup", *more)
        assert said.code == 1
        assert "its Redis answers" in said.err
    victim.down()
    said = victim.exesys("restore", "--from-backup")
    assert said.code == 1
    assert "holds data already" in said.err
    said = victim.exesys("restore", "--from-backup", "--replace", "--json")
    assert said.code == 0, said
    assert len(said.json["kept"]) == 1
    assert said.json["status"]["running"]
    with victim.client() as client:
        assert [client.result(job_id, 10) for job_id in jobs] == list(range(len(jobs)))
    in_sync(victim)


def test_a_master_cut_short_beside_a_living_router_is_not_followed(victim):
    in_sync(victim)
    jobs = ended(victim, 50)
    caught_up(victim)
    router = victim.pids()["router"]
    length, since = written(victim), time.monotonic()
    until(lambda: ended(victim, 1) and time.monotonic() > since + KEEP_S, "the router keeps them no more", every_s=0.2)
    stop(victim, "redis")
    cut(victim, length)
    home.supervisor(victim.config).start("redis")
    parted(victim, "it is at turn ")
    with victim.client() as client:
        assert client.run("echo", "it works without", timeout=20) == "it works without"
    parted(victim, "it went on from turn ")
    assert "Redis has lost turns that it had written" in victim.log_of("router")
    with replica_of(victim) as replica:
        assert replica.exists(*(f"client:{job_id}:data_available" for job_id in jobs)) == len(jobs)
    assert victim.pids()["router"] != router, "what it remembered does not fit what is there"
    # What is there counts from now on, and the old replica is kept aside.
    victim.down()
    (victim.config.data / "redis-backup").rename(victim.config.data / "redis-backup.old")
    victim.up()
    in_sync(victim)


def ended(system, count):
    with system.client() as client:
        handles = client.submit_many("echo", range(count))
        assert [each.result(10) for each in handles] == list(range(count))
        return [each.job_id for each in handles]


def stop(system, program):
    home.supervisor(system.config)._call("stopProcess", f"exesys:{program}", True)


def its_file(system):
    [file] = (system.config.data / "redis" / "appendonlydir").glob("*.incr.aof")
    return file


def written(system):
    """Return how long the append-only file is."""
    return its_file(system).stat().st_size


def cut(system, length):
    """Cut off the end of the append-only file, from somewhat before this length on, as a damaged disk may."""
    os.truncate(its_file(system), length - CUT_BYTES)


# --- what is refused -----------------------------------------------------------------------


def test_an_empty_master_does_not_start_beside_a_replica_with_data(victim):
    in_sync(victim)
    [job_id] = ended(victim, 1)
    caught_up(victim)
    victim.down()
    (victim.config.data / "redis").rename(victim.config.data / "away")
    for setting in ("yes", "no"):
        said = victim.exesys("up", environ={"EXESYS_REDIS_BACKUP": setting})
        assert said.code == 1
        assert "does not start empty beside it" in said.err
        assert "restore --from-backup" in said.err
    assert "does not start empty beside it" in victim.exesys("doctor").out
    said = victim.exesys("restore", "--from-backup")
    assert said.code == 0, said
    with victim.client() as client:
        assert client.result(job_id, 10) == 0
    in_sync(victim)


def test_after_a_restore_from_a_file_the_replica_begins_anew(victim):
    in_sync(victim)
    [kept] = ended(victim, 1)
    assert victim.exesys("backup", "b1").code == 0
    [lost] = ended(victim, 1)
    caught_up(victim)
    victim.down()
    said = victim.exesys("restore", "b1")
    assert said.code == 1
    assert "redis-backup hold data already" in said.err
    said = victim.exesys("restore", "b1", "--replace", "--json")
    assert said.code == 0, said
    assert len(said.json["kept"]) == 2
    assert all(os.path.isdir(each) for each in said.json["kept"])
    victim.up()
    in_sync(victim)
    caught_up(victim)
    with replica_of(victim) as replica:
        assert replica.exists(f"client:{kept}:data_available")
        assert not replica.exists(f"client:{lost}:data_available")


def test_without_a_replica_there_is_nothing_to_restore_from(make):
    system = make(start=False, redis_server=valkey_path())
    said = system.exesys("restore", "--from-backup")
    assert said.code == 1
    assert "There is no replica to restore from" in said.err
    assert not system.home.exists()
    system = make(start=False, redis_url="redis://127.0.0.1:1/0")
    for words, told in ((("restore", "--from-backup"), "no replica of ours"), (("up",), "[redis] backup is yes")):
        said = system.exesys(*words, environ={"EXESYS_REDIS_BACKUP": "yes" if words == ("up",) else "no"})
        assert said.code == 1
        assert told in said.err
