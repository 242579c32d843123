"""A hundred thousand hostile cases on every socket, while an honest client works: only their sender suffers.

The attack is paced: `RATE` cases a second from one process of low priority, as if it ran elsewhere. Whoever sends so
much that the router takes a whole core takes it from everybody; what is measured is that nobody waits for him beyond
his share.
"""

import contextlib
import dataclasses
import json
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

import hostile
import hypothesis
import pytest
import zmq
from harness import free_ports, rss_bytes, until
from hypothesis import strategies as st
from unit import shapes

from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.keyring import Keyring, identity

pytestmark = pytest.mark.alone

CASES = 100_000
ROUNDS = 5
RATE = 1500  # cases a second
CALM_S = 2.0
EXAMPLES = 150
WARM_UP = 1  # so many rounds, and one, before memory is looked at
LEFT_S = 10.0
LEAST_JOBS = 20  # of each round and way
MOST_TIMES = 2.0
MOST_GROWTH_BYTES = 10 << 20
MOST_LOG_BYTES = 256 << 10
APP = "\n[appserver:desk]\nclass = services:Desk\n"
DAEMONS = ("router", "rest", "controller", "worker", "runner", "web", "appserver-desk")
JOB = re.compile(r"\b[0-9a-f]{32}\b|\b[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b")
HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", params=["ipc", "tcp with keys"])
def attacked(request, make_module, tmp_path_factory):
    """A system with an application server; over TCP with the key of a client and that of a worker."""
    if request.param == "ipc":
        system = make_module(ini=APP)
        system.keys = {}
    else:
        [port] = free_ports(1)
        system = make_module(start=False, ini=APP, bus_endpoint=f"tcp://127.0.0.1:{port}")
        files, ring = tmp_path_factory.mktemp("keys"), Keyring(system.config)
        for role in ("client", "worker"):
            ring.new(role, role, files / f"{role}.key")
        system.up()
        system.keys = {role: json.loads((files / f"{role}.key").read_text()) for role in ("client", "worker")}
    system.way = request.param
    known = {each["name"] for each in system.get("/functions").body["functions"]}
    assert known & {*hostile.TEXTS, *hostile.WORDS} == set(), "nothing that is sent can be called"
    until(lambda: app_endpoint(system), "the application server is there")
    return system


def app_endpoint(system):
    [app] = [each for each in system.get("/apps").body["apps"] if each["name"] == "desk"]
    return next((each["endpoint"] for each in app["instances"] if each["state"] == "ready"), "")


class Teller:
    """A process that is asked by lines, and answers each with a line of JSON."""

    def __init__(self, program, argument, system):
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / program), argument],
            env=system.environ,
            cwd=system.root,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def say(self, line):
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def hear(self):
        line = self.process.stdout.readline()
        assert line, f"it ended with {self.process.wait()}"
        return json.loads(line)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.process.wait()
            self.process.stdout.close()


def endpoints(system):
    """Return what listens on the bus: the router's front, results, events and a worker's jobs, and the application."""
    shown = with_key(system, "client")
    with zmq.Context() as context, sockets.connect(context, zmq.DEALER, system.config.bus_endpoint, shown) as peer:
        peer.send(wire.encode(m.Hello(m.VERSION, "client", "f" * 16, "", {})))
        assert peer.poll(10_000)
        told = wire.decode_at_peer(peer.recv()).endpoints
    found = {"front": system.config.bus_endpoint, **told, "app": app_endpoint(system)}
    if system.keys:
        [jobs] = ports_of(system.pids()["router"]) - {int(each.rpartition(":")[2]) for each in found.values()}
        return {**found, "jobs": f"tcp://127.0.0.1:{jobs}"}
    [jobs] = (system.home / "run").glob("bus.w-*")
    return {**found, "jobs": f"ipc://{jobs}"}


def ports_of(pid):
    """Return the TCP ports at which a process listens."""
    held = {link.readlink().name for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return {int(row[1].partition(":")[2], 16) for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in held}


def address(endpoint):
    """Return where a plain socket connects to."""
    scheme, _, rest = endpoint.partition("://")
    return rest if scheme == "ipc" else ("127.0.0.1", int(rest.rpartition(":")[2]))


def with_key(system, role):
    if not system.keys:
        return None
    path = system.root / f"{role}.key"
    path.write_text(json.dumps(system.keys[role]))
    path.chmod(0o600)
    return identity(dataclasses.replace(system.config, bus=dataclasses.replace(system.config.bus, key=str(path))))


def lines_of(keys):
    return [keys["public"], keys["secret"], keys["server"]] if keys else []


def kept(system):
    """Return the names of all keys in Redis, but for those of the honest client's jobs."""
    return {name for name in system.everything() if not JOB.search(name[1])}


def check_nothing_left(system, before):
    left = set()

    def gone():
        nonlocal left
        left = kept(system) - before - {(0, "exesys:tuned")}  # it counts what was set, also what is gone again
        return not left

    with contextlib.suppress(AssertionError):
        until(gone, "nothing is left in Redis", LEFT_S)
    assert left == set()


def quantile(told, part):
    """Return p50 (`part` 50) or p99 of some times, in milliseconds."""
    return statistics.quantiles(told, n=100)[part - 1] * 1000


def compare(calm, stormy, way, part):
    """Return the middle one of the rounds' quantiles, calm and attacked, and of the times that it is more.

    Each round is compared with the calm before and after it, so that what else the machine does matters less.
    """
    quiet = [quantile(each[way], part) for each in calm]
    loud = [quantile(each[way], part) for each in stormy]
    times = [2 * now / (before + after) for before, now, after in zip(quiet, loud, quiet[1:], strict=False)]
    return [statistics.median(each) for each in (quiet, loud, times)]


def compared(calm, stormy):
    return {(way, part): compare(calm, stormy, way, part) for way in ("bus", "rest") for part in (50, 99)}


def suffers_little(times):
    return all(figures[2] < MOST_TIMES for figures in times.values())


def works(honest):
    """Tell whether the honest client has done jobs, also by REST, since it was asked last."""
    honest.say("take")
    return bool(honest.hear()["rest"])


def sizes(system):
    return {name: rss_bytes(pid) for name, pid in system.pids().items() if name in DAEMONS}


def logged(system):
    return sum(path.stat().st_size for path in (system.home / "log").iterdir())


def test_only_the_sender_suffers(attacked, seed, tell):
    system, at = attacked, endpoints(attacked)
    told = {
        "seed": f"{seed} {system.way}",
        "rate": RATE,
        "endpoints": at,
        "addresses": {name: address(each) for name, each in at.items()},
        "ports": [system.rest_port, system.web_port],
        "key": lines_of(system.keys.get("client")),
        "worker_key": lines_of(system.keys.get("worker")),
    }
    pids, keys, log_before = system.pids(), kept(system), logged(system)
    calm, stormy = [], []
    with (
        Teller("honest.py", str(system.rest_port), system) as honest,
        Teller("attackers.py", json.dumps(told), system) as attackers,
    ):
        until(lambda: works(honest), "the honest client works")
        for number in range(2 * ROUNDS + 1):  # as many again where the first leave it open: others use this machine
            works(honest)  # what went before does not count
            time.sleep(CALM_S)
            honest.say("take")
            calm.append(honest.hear())
            if number == 2 * ROUNDS or (number == ROUNDS and suffers_little(compared(calm, stormy))):
                break
            attackers.say(f"go {CASES // 2 // ROUNDS + 1}")
            sent = attackers.hear()
            honest.say("take")
            stormy.append(honest.hear())
            if number == WARM_UP:
                warm = sizes(system)
        grown = {name: size - warm[name] for name, size in sizes(system).items()}
    wrong = [text for each in (*calm, *stormy) for text in each["wrong"]]
    assert wrong == []
    done = [(len(each["bus"]), len(each["rest"])) for each in (*calm, *stormy)]
    assert all(min(each) > LEAST_JOBS for each in done), done
    for name, count in sent["cases"].items():
        tell(f"{system.way:14} {name:24} {count:8,}")
    times = compared(calm, stormy)
    for (way, part), figures in times.items():
        said = "{:.2f} ms calm, {:.2f} ms attacked, {:.2f} times".format(*figures)
        tell(f"{system.way:14} honest jobs by {way:4} p{part}: {said}")
    tell(f"{system.way:14} grown by KB: {', '.join(f'{name} {size >> 10}' for name, size in grown.items())}")
    tell(f"{system.way:14} logs: {(logged(system) - log_before) >> 10} KB, REST answered {sent['statuses']}")
    assert system.pids() == pids
    assert "Traceback" not in system.logs(100_000)
    assert logged(system) - log_before < MOST_LOG_BYTES
    assert not [status for status in sent["statuses"] if status == "500"]
    assert sum(sent["cases"].values()) >= CASES // 2
    check_nothing_left(system, keys)
    assert all(size < MOST_GROWTH_BYTES for size in grown.values()), grown
    assert suffers_little(times), times


def test_messages_of_any_content(attacked, seed, tell):
    """Well-formed messages of every kind, as hypothesis makes them, from a client."""
    system, sent = attacked, 0
    pids, keys = system.pids(), kept(system)
    with zmq.Context() as context:
        front = sockets.connect(context, zmq.DEALER, system.config.bus_endpoint, with_key(system, "client"))

        @hypothesis.seed(seed)
        @hypothesis.settings(max_examples=EXAMPLES, database=None, deadline=None, phases=[hypothesis.Phase.generate])
        @hypothesis.given(st.lists(shapes.any_of(shapes.FROM_PEERS), min_size=10, max_size=30))
        def attack(batch):
            nonlocal sent
            front.send(wire.encode(m.Hello(m.VERSION, "client", "e" * 16, "", {})))
            for message in batch:
                if not isinstance(message, m.Hello):
                    front.send(wire.encode(message))
                    sent += 1
            front.send(wire.encode(m.Hello(m.VERSION, "client", "e" * 16, "", {})))
            front.send(wire.encode(m.Sync(sent, ())))
            until(lambda: answered(front, sent), "the router goes on", 10, 0.0)

        attack()
        front.close(linger=0)
    tell(f"{system.way:14} {'front: hypothesis':24} {sent:8,}")
    assert system.post({"cmd": "echo", "data": 7, "result_ttl_s": 1}, wait=10).body["result"] == {"EOJ": 7}
    assert system.pids() == pids
    assert "Traceback" not in system.logs(100_000)
    check_nothing_left(system, keys)


def answered(front, tag):
    """Read on; tell whether the SNAPSHOT of this tag has come."""
    assert front.poll(10_000)
    told = wire.decode_at_peer(front.recv())
    return isinstance(told, m.Snapshot) and told.tag == tag
