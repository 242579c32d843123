"""Keys on the bus: who is let in over TCP, and what each may do, on a real system."""

import contextlib
import dataclasses
import json
import stat
from pathlib import Path

import pytest
import zmq
from harness import MODULES, free_ports, until

from exesys import Client
from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.bus.curve import Identity, Pair
from exesys.errors import BootError, ConfigError, Conflict, ExesysError, NotFound
from exesys.keyring import Keyring, identity

SILENT_MS = 700
SESSION = "00112233445566aa"
APP = """
[appserver:words]
class = words_for_keys:Words
"""
WORDS = """
class Words:
    def size(self, text):
        return len(text)
"""


@pytest.fixture(scope="module")
def keyed(make_module, tmp_path_factory):
    """A system whose bus is on TCP with keys: one for a client, two for workers."""
    files = tmp_path_factory.mktemp("keys")
    (files / "words_for_keys.py").write_text(WORDS)
    [port] = free_ports(1)
    system = make_module(start=False, ini=APP, modules=[*MODULES, files], bus_endpoint=f"tcp://127.0.0.1:{port}")
    ring = Keyring(system.config)
    for role, name in (("client", "c"), ("client", "gone"), ("worker", "w"), ("worker", "v"), ("admin", "a")):
        ring.new(role, name, files / f"{name}.key")
    system.up()
    system.files = files
    return system


def config_of(system, name):
    return with_key(system, system.files / f"{name}.key")


def with_key(system, path):
    return dataclasses.replace(system.config, bus=dataclasses.replace(system.config.bus, key=str(path)))


def identity_of(system, name):
    return identity(config_of(system, name))


class Raw:
    """A socket of the bus, by hand."""

    def __init__(self, endpoint, shown, kind=zmq.DEALER):
        self.context = zmq.Context()
        self.socket = sockets.connect(self.context, kind, endpoint, shown)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.context.destroy(linger=0)

    def say(self, message):
        self.socket.send(wire.encode(message), zmq.DONTWAIT)

    def hear(self, within_ms=5000):
        """Return the next message, None when none comes."""
        if not self.socket.poll(within_ms):
            return None
        return wire.decode_at_peer(self.socket.recv_multipart()[-1])

    def ask(self, message, within_ms=5000):
        self.say(message)
        return self.hear(within_ms)


def hello(role="client", session=SESSION):
    return m.Hello(m.VERSION, role, session, "", {})


def command(cmd, data, **options):
    return {"from": "test", "to": "end_job", "cmd": cmd, "data": data, **options}


# --- who comes in ------------------------------------------------------------------


def test_the_system_runs_its_proof_with_keys_of_its_own(keyed):
    answer = keyed.post(command("echo", "hello"), wait=5)
    assert answer.body["result"] == {"EOJ": "hello"}, answer
    keys = keyed.home / "keys"
    assert {stat.S_IMODE(path.stat().st_mode) for path in (keys, keys / "private")} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (keys / "private").iterdir()} == {0o600}
    assert keyed.exesys("submit", "echo", "1", "--wait", "5").out.strip() == "1"


def test_nobody_comes_in_without_a_key_or_with_one_that_is_not_known(keyed):
    known = identity_of(keyed, "c")
    stranger = Identity(Pair(*zmq.curve_keypair()), known.server)
    mistaken = Identity(known.own, zmq.curve_keypair()[0])
    for shown in (None, stranger, mistaken):
        with Raw(keyed.config.bus_endpoint, shown) as raw:
            assert raw.ask(hello(), SILENT_MS) is None
    with Raw(keyed.config.bus_endpoint, known) as raw:
        assert isinstance(raw.ask(hello()), m.Welcome)
    assert "came with a key that is not known" in keyed.log_of("router")


@pytest.mark.parametrize(
    ("name", "role", "welcome"),
    [
        ("c", "client", True),
        ("c", "worker", False),
        ("c", "runner", False),
        ("c", "controller", False),
        ("c", "app", False),
        ("w", "client", True),
        ("w", "controller", False),
        ("w", "app", False),
        ("a", "controller", True),
    ],
)
def test_the_role_of_a_key_says_as_what_its_holder_comes(keyed, name, role, welcome):
    with Raw(keyed.config.bus_endpoint, identity_of(keyed, name)) as raw:
        answer = raw.ask(hello(role))
        raw.say(m.Bye(SESSION, "done"))
    if welcome:
        assert isinstance(answer, m.Welcome)
    else:
        assert (answer.code, f"lets in no {role}" in answer.message) == ("not_allowed", True)


def test_each_message_is_checked_against_the_role(keyed):
    tune = m.Tune(1, "queue", "merge", "default", {"paused": True})
    others = (
        tune,
        m.Stop("t", "u"),
        m.Exits(SESSION, ()),
        m.Telling(SESSION, ()),
        m.Mend(1, ()),
        m.Result(SESSION, ()),
    )
    with Raw(keyed.config.bus_endpoint, identity_of(keyed, "c")) as raw:
        assert isinstance(raw.ask(hello()), m.Welcome)
        for message in others:
            answer = raw.ask(message)
            told = answer.problem if isinstance(answer, m.Changed) else [answer.code, answer.message]
            assert told[0] == "not_allowed", message
            assert told[1].startswith("a key of the role client does not allow"), message
        assert isinstance(raw.ask(m.Sync(1, ("figures",))), m.Snapshot)
    with Raw(keyed.config.bus_endpoint, identity_of(keyed, "a")) as raw:
        raw.ask(hello(session="00112233445566ab"))
        assert isinstance(raw.ask(m.Tune(1, "queue", "merge", "default", {"paused": False})), m.Changed)


def test_a_session_belongs_to_the_key_that_began_it(keyed):
    with Raw(keyed.config.bus_endpoint, identity_of(keyed, "c")) as raw:
        assert isinstance(raw.ask(hello()), m.Welcome)
        with Raw(keyed.config.bus_endpoint, identity_of(keyed, "w")) as thief:
            assert "another key" in thief.ask(hello()).message
        raw.say(m.Bye(SESSION, "done"))


def test_jobs_and_results_are_for_workers_and_those_of_one_for_itself(keyed):
    """Neither another worker's jobs nor the results socket let others in; a forged result is dropped."""
    with Raw(keyed.config.bus_endpoint, identity_of(keyed, "w")) as raw:
        nothing = {"functions": [], "broken": {}}
        info = {"queues": ["nothing"], "catalogue": nothing, "host": "here", "pid": 1}
        told = raw.ask(m.Hello(m.VERSION, "worker", SESSION, "", info))
        assert isinstance(told, m.Welcome), told
        jobs, results = told.endpoints["jobs"], told.endpoints["results"]
        for name, at, kind in (("v", jobs, zmq.PULL), ("c", jobs, zmq.PULL), ("c", results, zmq.PUSH)):
            assert not connects(at, identity_of(keyed, name), kind), (name, at)
        assert connects(jobs, identity_of(keyed, "w"), zmq.PULL)
        assert connects(results, identity_of(keyed, "v"), zmq.PUSH)
        for session in (SESSION, "ffffffffffffffff"):  # of another, and of nobody
            before = refused(raw)
            with Raw(results, identity_of(keyed, "v"), zmq.PUSH) as pushed:
                pushed.socket.send(wire.encode(m.Result(session, ())))
                until(lambda before=before: refused(raw) > before, "it is not heard")
        raw.say(m.Bye(SESSION, "done"))


def refused(raw):
    """Return how many messages the router has not taken because of the key they came with."""
    return raw.ask(m.Sync(1, ("figures",))).parts["figures"]["not_allowed"]


def connects(endpoint, shown, kind):
    """Tell whether a handshake succeeds."""
    context = zmq.Context()
    try:
        socket = context.socket(kind)
        sockets._show(socket, shown)
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        socket.connect(endpoint)
        assert monitor.poll(5000), "one of both comes"
        number = int.from_bytes(monitor.recv_multipart()[0][:2], "little")
        return number == zmq.EVENT_HANDSHAKE_SUCCEEDED
    finally:
        context.destroy(linger=0)


# --- who works with it ---------------------------------------------------------------


def test_a_client_with_a_key_submits_calls_and_is_told_of_what_it_may_not(keyed):
    with Client(config_of(keyed, "c")) as client:
        assert client.run("echo", [1, 2], 10) == [1, 2]
        assert client.app("words").size("abc") == 3
        with pytest.raises(ExesysError, match="does not allow TUNE"):
            client.tune("queue", "merge", "default", {"paused": True}, timeout=5)


def test_a_worker_with_a_key_works_and_one_that_was_revoked_does_not(keyed):
    ring = Keyring(keyed.config)
    with keyed.another_worker(bus_key=keyed.files / "v.key", worker_queues="far"):
        answer = keyed.post(command("echo", "far away", queue="far"), wait=10)
        assert answer.body["result"] == {"EOJ": "far away"}
        ring.revoke("worker", "v")
        until(lambda: len(keyed.get("/workers").body["workers"]) == 1, "the router lets it go", 10)
        assert keyed.post(command("echo", "x", queue="far"), wait=1).status == 202
        until(lambda: "worker:v" not in str(keyed.get("/workers").body), "it does not come back")
    ring.revoke("client", "gone")
    with Raw(keyed.config.bus_endpoint, identity_of(keyed, "gone")) as raw:
        assert raw.ask(hello(), SILENT_MS) is None
    with pytest.raises(NotFound):
        ring.revoke("client", "gone")


def test_who_was_let_in_is_not_heard_once_its_key_is_revoked(keyed):
    """The router goes on; those who listen to it connect again, but for the one whose key is gone."""
    ring, router = Keyring(keyed.config), keyed.pids()["router"]
    ring.new("client", "short", keyed.files / "short.key")
    with Raw(keyed.config.bus_endpoint, identity_of(keyed, "short")) as raw:
        assert isinstance(raw.ask(hello()), m.Welcome)
        ring.revoke("client", "short")

        def refused():
            answer = raw.ask(m.Sync(1, ("figures",)))
            return isinstance(answer, (m.Error, m.Bye))

        until(refused, "it is not served any more", 10)
        for session in (SESSION, "00112233445566dd"):
            answer = raw.ask(hello(session=session))
            while isinstance(answer, m.Bye):  # to the session that was there
                answer = raw.hear()
            assert (answer.code, answer.message) == ("not_allowed", "this key is not let in any more"), answer
    assert keyed.pids()["router"] == router


# --- refusals -----------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "192.0.2.1"])
def test_the_bus_does_not_listen_wider_than_this_host_without_keys(make, host):
    [port] = free_ports(1)
    system = make(start=False, bus_endpoint=f"tcp://{host}:{port}")
    said = system.exesys("up")
    assert said.code == 1
    assert "which other hosts can reach, and there are no keys" in said.err
    assert "exesys keys new bus-worker" in said.err
    assert not system.home.exists()


def test_it_listens_everywhere_with_keys(make, tmp_path):
    [port] = free_ports(1)
    system = make(start=False, bus_endpoint=f"tcp://0.0.0.0:{port}")
    Keyring(system.config).new("client", "c", tmp_path / "c.key")
    system.up()
    assert system.post(command("echo", 1), wait=5).body["result"] == {"EOJ": 1}


def test_keys_are_made_listed_and_revoked_on_the_command_line(keyed, tmp_path):
    path = tmp_path / "shop.key"
    said = keyed.exesys("keys", "new", "bus-client", "shop", "--out", str(path), "--json")
    assert (said.code, said.json["role"], said.json["file"]) == (0, "bus-client", str(path))
    told = json.loads(path.read_text())
    assert told["public"] == said.json["public"]
    assert told["secret"] not in said.out
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Client(with_key(keyed, path)) as client:
        assert client.run("echo", 7, 10) == 7
    listed = keyed.exesys("keys", "list", "--json").json["keys"]
    assert ("shop", "bus-client") in {(each["name"], each["role"]) for each in listed}
    assert told["secret"] not in str(listed)
    for words, code, text in (
        (("new", "bus-client", "shop", "--out", str(tmp_path / "b.key")), 2, "there is a key bus-client shop already"),
        (("new", "bus-client", "other", "--out", str(path)), 2, "is there already"),
        (("new", "bus-boss", "other"), 2, "the role 'bus-boss' is unknown"),
        (("new", "bus-client", "other", "--days", "3"), 2, "knows no --days"),
        (("new", "submit", "other", "--out", "f"), 2, "goes into no file"),
        (("revoke", "local", "--role", "bus-admin"), 2, "the key of this system's own daemons"),
        (("revoke", "shop"), 0, ""),
        (("revoke", "shop"), 1, "there is no key shop"),
    ):
        said = keyed.exesys("keys", *words)
        assert (said.code, text in said.err) == (code, True), said


def test_no_secret_is_logged_or_shown(keyed):
    """The secrets of keys are in their files alone: not in logs, arguments, or the environment of any process."""
    secrets = {
        json.loads(path.read_text())["secret"].encode()
        for path in (*(keyed.home / "keys" / "private").glob("*.key"), *keyed.files.glob("*.key"))
    }
    assert len(secrets) > 4
    texts = [path.read_bytes() for path in (keyed.home / "log").iterdir()]
    for pid in keyed.belonging():
        for part in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                texts.append(Path(f"/proc/{pid}/{part}").read_bytes())
    texts += [path.read_bytes() for path in (keyed.home / "supervisord.conf", keyed.home / "run" / "system.json")]
    assert not [secret for secret in secrets if any(secret in text for text in texts)]


def test_what_is_wrong_with_a_key_file_is_told(keyed, tmp_path):
    ring = Keyring(keyed.config)
    with pytest.raises(Conflict, match="there is a key bus-client c already"):
        ring.new("client", "c", tmp_path / "again.key")
    with pytest.raises(Conflict, match="is there already"):
        ring.new("client", "d", keyed.files / "c.key")
    bad = tmp_path / "bad.key"
    for text, mode, said in (
        ("{", 0o600, "is no key file"),
        ("{}", 0o600, "is no key file"),
        (json.dumps(dict.fromkeys(("public", "secret", "server"), "short")), 0o600, "is no key file"),
        ((keyed.files / "c.key").read_text(), 0o644, "is open to other users"),
    ):
        bad.write_text(text)
        bad.chmod(mode)
        with pytest.raises((BootError, ConfigError), match=said):
            Client(with_key(keyed, bad))
