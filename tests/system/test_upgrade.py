"""Parts of different versions: what is refused is told, what is older is read, and a rolling restart loses nothing."""

import contextlib
import subprocess
import sys
import threading
from array import array

import pytest
import zmq
from harness import until

from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.errors import Unavailable

ANOTHER = m.VERSION + 1
SESSION = "00112233445566cc"
# A daemon, as one of another version would say HELLO.
OF_ANOTHER_VERSION = f"""
import sys
from exesys.bus import messages
messages.VERSION = {ANOTHER}
from exesys.daemons import {{name}}
from exesys.daemons.loop import run
run("{{name}}", {{name}}.main)
"""


@pytest.fixture(scope="module")
def system(make_module):
    return make_module()


@contextlib.contextmanager
def of_another_version(system, name, **keys):
    """Run a daemon that speaks another version of the protocol; gives its log."""
    path = system.home / "log" / f"{name}-other.log"
    settings = {f"EXESYS_{key.upper()}": value for key, value in keys.items()}
    with path.open("wb") as log:
        daemon = subprocess.Popen(
            [sys.executable, "-c", OF_ANOTHER_VERSION.format(name=name)],
            **{"cwd": system.root, "env": {**system.environ, **settings}, "stdin": subprocess.DEVNULL},
            **{"stdout": log, "stderr": log},
        )
    try:
        yield daemon, path
    finally:
        daemon.kill()
        daemon.wait()


def command(cmd, data, **options):
    return {"from": "test", "to": "end_job", "cmd": cmd, "data": data, **options}


# --- the protocol -------------------------------------------------------------------


@pytest.mark.parametrize("name", ["worker", "runner"])
def test_a_daemon_of_another_version_is_told_so_and_given_nothing(system, name):
    with of_another_version(system, name, worker_queues="other") as (daemon, log):
        until(lambda: f"version {m.VERSION} of the protocol, not {ANOTHER}" in log.read_text(), "it is told")
        said = f"speaks version {ANOTHER} of the protocol, and this router {m.VERSION}: it is given nothing to do"
        until(lambda: said in system.log_of("router"), "the log of the router has it")
        assert len(system.get("/workers").body["workers"]) == 1
        assert system.post(command("echo", 1, queue="other"), wait=1.5).status == 202
        assert daemon.poll() is None, "it waits for a router of its version"
        assert log.read_text().count("of the protocol, not") == 1, "it says so once"
    assert system.post(command("echo", 2), wait=10).status == 200


def test_a_hello_of_another_shape_is_answered_by_the_version(system):
    context = zmq.Context()
    socket = sockets.connect(context, zmq.DEALER, system.config.bus_endpoint)
    import msgpack

    for hello in (["HELLO", ANOTHER], ["HELLO", ANOTHER, {"role": "worker"}], ["HELLO", 0, 1, 2, 3, 4, 5, 6]):
        socket.send(msgpack.packb(hello))
        assert socket.poll(5000)
        assert wire.decode_at_peer(socket.recv()).code == "bad_version", hello
    socket.send(msgpack.packb(["HELLO", m.VERSION, "client"]))
    assert socket.poll(5000)
    assert wire.decode_at_peer(socket.recv()).code == "bad_message"
    context.destroy(linger=0)


def test_a_client_of_another_version_is_told_instead_of_waiting(system, monkeypatch):
    monkeypatch.setattr(m, "VERSION", ANOTHER)
    client = system.client()
    until(lambda: client._connection.desk.refusal, "the router answered")
    with pytest.raises(Unavailable, match="the router does not take this client: this router speaks version"):
        client.submit("echo", 1)
    client._end()


# --- the store ----------------------------------------------------------------------


def test_a_store_of_a_newer_version_is_not_touched(make):
    system = make()
    assert system.post(command("echo", "kept"), wait=5).status == 200
    system.down()
    config = system.config
    redis = subprocess.Popen(
        [sys.executable, "-m", "exesys.launch", "redis"],
        **{"cwd": system.root, "env": system.environ, "stdin": subprocess.DEVNULL},
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL},
    )
    try:
        until(lambda: (config.run / "redis").exists(), "Redis is there")
        with system.redis() as store:
            until(store.ping, "it answers")
            assert store.get("exesys:format") == b"1"
            store.set("exesys:format", 2)
            epoch = store.get("exesys:epoch")
    finally:
        redis.terminate()
        redis.wait()
    said = system.exesys("up")
    assert said.code == 1
    assert "another ExeSys wrote the store: exesys:format is 2, and this one reads up to 1" in said.err
    assert epoch is not None


def test_a_store_of_before_the_form_was_noted_is_read(make):
    system = make()
    job = system.post(command("echo", "old")).body["job_id"]
    until(lambda: system.get(f"/jobs/{job}").body["state"] == "data_available", "it has ended")
    with system.redis() as store:
        store.delete("exesys:format")
    assert system.exesys("restart").code == 0
    assert system.get(f"/jobs/{job}").body["steps"][0]["result"] == {"EOJ": "old"}
    with system.redis() as store:
        assert store.get("exesys:format") == b"1"


# --- a rolling restart ----------------------------------------------------------------


def test_a_rolling_restart_under_load_loses_nothing(make, tell):
    """Each program in turn, as after an upgrade, while jobs are sent and run on two workers: each has one result."""
    system = make()
    supervisorctl = [sys.executable, "-m", "supervisor.supervisorctl", "-c", str(system.home / "supervisord.conf")]
    sent, done, over = [], [], threading.Event()
    with system.another_worker(), system.client() as client:

        def load():
            number = 0
            while not over.is_set():
                numbers = list(range(number, number + 20))
                number += 20
                sent.extend(numbers)
                handles = client.submit_many("tally", numbers)
                done.extend(handle.result(60) for handle in handles)

        thread = threading.Thread(target=load)
        thread.start()
        restarted = []
        try:
            for name in ("worker", "runner", "router", "controller", "rest", "web", "redis"):
                before = len(done)
                until(lambda before=before: len(done) > before + 100, f"jobs are done before {name}", 30)
                subprocess.run(
                    [*supervisorctl, "restart", f"exesys:{name}"], check=True, capture_output=True, timeout=60
                )
                restarted.append(name)
            before = len(done)
            until(lambda: len(done) > before + 200, "and after all of them", 30)
        finally:
            over.set()
            thread.join(90)
    assert done == sent
    ran = array("I", (system.home / "tally").read_bytes())
    ran.byteswap()
    assert set(ran) == set(sent), "none is missing"
    twice = len(ran) - len(sent)
    assert twice == 0, "TERM lets what runs end: nothing ran twice"
    tell(f"a rolling restart of {', '.join(restarted)}: {len(sent):,} jobs, each ran once")
