"""Thousands of hostile frames while an honest client works: only their sender suffers."""

import os
import random
import secrets
import signal
import threading
import time
from collections import Counter

import msgpack
import pytest
import zmq
from harness import rss_bytes, until
from hostile import anything as any_value

from exesys.bus import messages as m
from exesys.bus import wire
from exesys.errors import ProtocolError

FRAMES = 8000
MOST_GROWTH_BYTES = 20 << 20
MOST_HELD_UP_S = 2.0
TEXTS = ["", "a", "client", "worker", "a:b", "x" * 5000, "é☂😀", "\0", "exesys", "run", "{}", "*", "../..", "0" * 16]


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(bus_heartbeat_s=0.5)  # so that what is waited for, a lease, is half of the usual


class Honest(threading.Thread):
    """Runs one job after the other, checks each, and notes how long the slowest took."""

    def __init__(self, system):
        super().__init__(daemon=True)
        self.client = system.client()
        self.client.run("echo", 0, timeout=10)
        self.halt = threading.Event()
        self.done = 0
        self.wrong = []
        self.longest_s = 0.0

    def run(self):
        while not self.halt.is_set():
            since = time.monotonic()
            try:
                value = self.client.run("echo", self.done, timeout=30)
                if value != self.done:
                    self.wrong.append(value)
            except Exception as error:  # noqa: BLE001  # whatever it is, the test shows it
                self.wrong.append(repr(error))
            self.longest_s = max(self.longest_s, time.monotonic() - since)
            self.done += 1

    def end(self):
        self.halt.set()
        self.join(60)
        assert not self.is_alive()
        self.client.close()
        assert self.wrong == []
        return self.longest_s


@pytest.fixture
def honest(system):
    """An honest client at work, and a check that nobody but the sender had anything to suffer."""
    before = system.pids()
    until(system.ready, "all is there")
    honest = Honest(system)
    router = before["router"]
    grown = rss_bytes(router)
    honest.start()
    yield honest
    done = honest.done
    until(lambda: honest.done > done + 20, "the honest client gets on")
    longest_s = honest.end()
    assert longest_s < MOST_HELD_UP_S, f"the honest client was held up for {longest_s:.1f} s"
    assert system.pids() == before
    grown = rss_bytes(router) - grown
    assert grown < MOST_GROWTH_BYTES, f"the router has grown by {grown >> 20} MB"


def figures(system):
    with system.client() as client:
        return client.snapshot("figures")["figures"]


# --- what is sent -----------------------------------------------------------------------


def anything(dice):
    return any_value(dice, texts=TEXTS)


def templates(session):
    """Make one good message of each kind that a peer may send, but for HELLO as a worker."""
    item = m.Item(1, "a", "b", "echo", b"\xc0", secrets.token_hex(8), {}, True)
    note = m.Note("a:b", 1, 0.5, "", "")
    return [
        m.Hello(m.VERSION, "client", session, "", {}),
        m.Submit((item, item)),
        m.Status((m.Query(1, "a", "b", "c", True),)),
        m.Result(session, (m.Report("a:b", 1, 0, b"\xc0", "", 1, 2),)),
        m.Heartbeat(session, 1, 0, 0, (m.Held("a:b", 1),), (note,)),
        m.Stop("a", "b"),
        m.Sync(1, ("stops", "workers", "functions", "figures")),
        m.Drain(session),
    ]


def spoil(dice, value):
    """Put something else in one place of a message."""
    if isinstance(value, (list, tuple)) and value and dice.random() < 0.85:
        parts = list(value)
        place = dice.randrange(len(parts))
        what = dice.randrange(8)
        if what == 0:
            del parts[place]
        elif what == 1:
            parts.insert(place, anything(dice))
        else:
            parts[place] = spoil(dice, parts[place])
        return parts
    if isinstance(value, dict) and dice.random() < 0.5:
        return {**value, dice.choice([*TEXTS, "queue", "at", "priority", "delay_s"]): anything(dice)}
    return anything(dice)


def hostile(dice, session):
    """Make the frames of one hostile message."""
    kind = dice.randrange(6)
    if kind == 0:
        return [dice.randbytes(dice.choice([0, 1, 5, 50, 3000]))]
    if kind == 1:
        return [msgpack.packb(anything(dice))]
    if kind == 2:
        return [dice.randbytes(dice.randrange(8)) for _ in range(dice.randrange(2, 6))]
    frame = bytearray(wire.encode(dice.choice(templates(session))))
    if kind == 3:
        return [bytes(frame[: dice.randrange(len(frame))])]
    if kind == 4:
        for _ in range(dice.randrange(1, 4)):
            frame[dice.randrange(len(frame))] = dice.randrange(256)
        return [bytes(frame)]
    return [msgpack.packb(spoil(dice, msgpack.unpackb(bytes(frame))))]


def impostor(frames):
    """Tell whether this, by bad luck, is a good HELLO of a worker or a controller."""
    try:
        message = wire.decode_at_router(frames[0])
    except ProtocolError:
        return False
    return isinstance(message, m.Hello) and message.role != "client"


class Attacker:
    """A peer of the front socket that reads when it is told to."""

    def __init__(self, context, system, greet=True):
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 2000
        self.socket.sndtimeo = 5000
        self.socket.rcvtimeo = 5000
        self.socket.connect(system.config.bus_endpoint)
        self.session = secrets.token_hex(8)
        if greet:
            self.say(m.Hello(m.VERSION, "client", self.session, "", {}))
            assert isinstance(self.hear(), m.Welcome)

    def say(self, message):
        self.socket.send(wire.encode(message))

    def hear(self):
        return wire.decode_at_peer(self.socket.recv())

    def hear_of(self, kind):
        """Read on until there is such a message."""
        while True:
            message = self.hear()
            if isinstance(message, kind):
                return message

    def close(self):
        self.socket.close()


@pytest.fixture
def context():
    with zmq.Context() as context:
        yield context


# --- tests -------------------------------------------------------------------------------


@pytest.mark.parametrize("greet", [True, False], ids=["greeted", "not greeted"])
@pytest.mark.parametrize("reads", [True, False], ids=["reads", "does not read"])
@pytest.mark.usefixtures("honest")
def test_hostile_frames_to_the_front(system, seed, context, greet, reads):
    dice = random.Random(f"{seed} front {greet} {reads}")
    before = figures(system)["garbage"]
    attackers = [Attacker(context, system, greet) for _ in range(4)]
    heard = Counter()
    for number in range(FRAMES):
        attacker = attackers[number % 4]
        frames = hostile(dice, attacker.session)
        if impostor(frames):
            continue
        attacker.socket.send_multipart(frames)
        while reads and attacker.socket.poll(0):
            heard[type(attacker.hear()).__name__] += 1
    until(lambda: figures(system)["garbage"] - before > FRAMES / 3, "the garbage is counted")
    for attacker in attackers:
        while reads and attacker.socket.poll(200):
            heard[type(attacker.hear()).__name__] += 1
        attacker.close()
    if reads:
        assert heard["Error"] > FRAMES / 3, heard


@pytest.mark.usefixtures("honest")
def test_hostile_frames_to_the_results(system, seed, context):
    dice = random.Random(f"{seed} results")
    before = figures(system)["garbage"]
    push = context.socket(zmq.PUSH)
    push.linger = 5000
    push.sndtimeo = 5000
    push.connect(f"{system.config.bus_endpoint}.results")
    for _ in range(FRAMES):
        push.send_multipart(hostile(dice, secrets.token_hex(8)))
    push.close()
    until(lambda: figures(system)["garbage"] - before > FRAMES / 3, "the garbage is counted")


@pytest.mark.usefixtures("honest")
def test_results_of_nobody(system, context):
    """Well-formed results for steps that never were, or that ended long ago, change nothing."""
    with system.client() as client:
        handle = client.submit("echo", "right")
        assert handle.result(10) == "right"
    push = context.socket(zmq.PUSH)
    push.linger = 5000
    push.connect(f"{system.config.bus_endpoint}.results")
    body = msgpack.packb({"EOJ": "wrong"})
    for number in range(500):
        refs = [f"client:{handle.job_id}", f"nobody:{secrets.token_hex(8)}", "exesys:jobs", "a:b:c", "", "*:*"]
        reports = tuple(m.Report(ref, number % 3, number % 5, body, "log", 1, 2) for ref in refs)
        push.send(wire.encode(m.Result(secrets.token_hex(8), reports)))
    push.close()
    assert system.post({"cmd": "echo", "data": 1}, wait=10).status == 200
    assert system.results([f"client:{handle.job_id}"]) == ["right"]
    assert not [name for _, name in system.everything() if "nobody" in name]


def test_a_result_of_another_attempt_is_dropped(system, context):
    """Who finishes late finds another attempt in its place, and changes nothing."""
    marks = system.root / "attempts"
    with system.client() as client:
        handle = client.submit("slower", {"runs": str(marks), "seconds": [60, 2]})
        until(marks.exists, "the first attempt runs")
        os.kill(int(marks.read_text().split()[3]), signal.SIGKILL)
        until(lambda: len(marks.read_text().splitlines()) == 2, "the second attempt runs")
        [session] = [worker["session"] for worker in system.get("/workers").body["workers"]]
        push = context.socket(zmq.PUSH)
        push.linger = 5000
        push.connect(f"{system.config.bus_endpoint}.results")
        ref, body = f"client:{handle.job_id}", msgpack.packb({"EOJ": "late"})
        for attempt in (1, 0, 3, -1):
            for outcome in range(4):
                report = m.Report(ref, attempt, outcome, body, "", 1, 2)
                push.send(wire.encode(m.Result(session, (report,))))
        push.close()
        assert handle.result(20) == 2
    assert system.results([ref]) == [2]
    assert len(marks.read_text().splitlines()) == 2


@pytest.mark.usefixtures("honest")
def test_each_refusal_goes_to_its_sender(system, context):
    stranger = Attacker(context, system, greet=False)
    item = m.Item(1, "a", "b", "echo", b"\xc0", secrets.token_hex(8), {}, True)
    stranger.say(m.Submit((item,)))
    assert stranger.hear().code == "unknown_session"
    for hello, code in (
        (m.Hello(99, "client", stranger.session, "", {}), "bad_version"),
        (m.Hello(m.VERSION, "king", stranger.session, "", {}), "bad_hello"),
        (m.Hello(m.VERSION, "client", "short", "", {}), "bad_hello"),
        (m.Hello(m.VERSION, "client", "*" * 16, "", {}), "bad_hello"),
        (m.Hello(m.VERSION, "worker", stranger.session, "", {}), "bad_hello"),
        (m.Hello(m.VERSION, "worker", stranger.session, "", {"catalogue": 5, "queues": ["a"]}), "bad_hello"),
        (m.Hello(m.VERSION, "worker", stranger.session, "", {"catalogue": {}, "queues": ["a:b"]}), "bad_hello"),
    ):
        stranger.say(hello)
        assert stranger.hear().code == code, hello
    stranger.close()
    client = Attacker(context, system)
    client.say(m.Stop("type", "uuid"))
    assert client.hear().code == "not_allowed"
    client.say(m.Result(client.session, ()))
    assert client.hear().code == "not_allowed"
    client.socket.send(b"")
    assert client.hear().code == "bad_message"
    client.socket.send_multipart([wire.encode(m.Sync(1, ())), b"and more"])
    assert client.hear().code == "bad_message"
    bad = [
        (item._replace(tag=2, cmd="no_such"), "unknown_cmd"),
        (item._replace(tag=3, from_="a:b"), "bad_field"),
        (item._replace(tag=4, data=b"\xc1"), "bad_field"),
        (item._replace(tag=5, data=b"\xc0\xc0"), "bad_field"),
        (item._replace(tag=6, data=b"\x91" * 200 + b"\xc0"), "bad_field"),
        (item._replace(tag=7, data=msgpack.packb(b"x" * (1 << 20))), "too_large"),
        (item._replace(tag=8, options={"timeout_s": -1}), "bad_field"),
        (item._replace(tag=9, to=["a", "a"]), "bad_field"),
        (item._replace(tag=10, options={"no_such": 1}), "bad_field"),
        (item._replace(tag=11, to=None), "bad_field"),
        (item._replace(tag=-5, job_id=""), "bad_field"),
    ]
    client.say(m.Submit(tuple(each for each, _ in bad)))
    answers = {answer.tag: answer for answer in client.hear_of(m.SubmitAck).answers}
    assert [(answers[each.tag].state, answers[each.tag].body[0]) for each, _ in bad] == [(-1, code) for _, code in bad]
    # And after all that it is served like anyone else.
    client.say(m.Submit((item._replace(tag=99),)))
    assert client.hear_of((m.SubmitAck, m.Done)).answers[0].tag == 99
    client.close()


@pytest.mark.parametrize("kind", ["submit", "status", "sync", "heartbeat", "result"])
@pytest.mark.usefixtures("honest")
def test_one_message_of_very_many_parts(system, context, kind):
    """Near the largest frame there may be: it must not hold up the others."""
    attacker = Attacker(context, system)
    many = 300_000
    item = m.Item(1, "a", "b", "no_such", b"\xc0", "c", {}, False)
    message = {
        "submit": lambda: m.Submit((item,) * many),
        "status": lambda: m.Status((m.Query(1, "a", "b", "c", False),) * many),
        "sync": lambda: m.Sync(1, ("functions",) * many),
        "heartbeat": lambda: m.Heartbeat(attacker.session, 1, 0, 0, (m.Held("a:b", 1),) * many, ()),
        "result": lambda: m.Result(attacker.session, (m.Report("a:b", 1, 0, b"\xc0", "", 1, 2),) * many),
    }[kind]()
    frame = wire.encode(message)
    assert len(frame) < wire.MAX_FRAME_BYTES
    if kind == "result":
        push = context.socket(zmq.PUSH)
        push.linger = 5000
        push.connect(f"{system.config.bus_endpoint}.results")
        push.send(frame)
        push.close()
    else:
        attacker.socket.send(frame)
    # Served in its turn, after that one.
    attacker.socket.rcvtimeo = 30_000
    attacker.say(m.Sync(77, ("figures",)))
    until(lambda: attacker.hear_of(m.Snapshot).tag == 77, "the router goes on")
    attacker.close()


@pytest.mark.usefixtures("honest")
def test_very_many_commands_from_one_that_does_not_read(system, context):
    """Its answers wait for it, up to a bound, and go when it goes."""
    attacker = Attacker(context, system)
    item = m.Item(1, "a", "b", "no_such", b"\xc0", "c", {}, False)
    frame = wire.encode(m.Submit((item,) * 100))
    for _ in range(500):
        attacker.socket.send(frame)
    until(lambda: figures(system)["peers"] >= 3, "the router goes on")
    attacker.close()


@pytest.mark.usefixtures("honest")
def test_peers_that_come_and_go(system, context):
    before = figures(system)["peers"]
    for _ in range(300):
        Attacker(context, system).close()
    # Nobody said BYE: they are forgotten after their lease.
    until(lambda: figures(system)["peers"] <= before, "they are forgotten", within_s=15)


def test_someone_else_takes_jobs_from_a_workers_socket(system, context):
    """What went astray is sent again: the worker's heartbeats tell that it never came."""
    [path] = [path for path in (system.home / "run").iterdir() if path.name.startswith("bus.w-")]
    thief = context.socket(zmq.PULL)
    thief.connect(f"ipc://{path}")
    with system.client() as client:
        stolen = 0
        until(lambda: client.run("echo", 1, timeout=30) == 1 and thief.poll(0), "it took a job", within_s=30)
        handles = client.submit_many("echo", range(200))
        while thief.poll(300):
            thief.recv()
            stolen += 1
        thief.close()
        assert [handle.result(30) for handle in handles] == list(range(200))
    assert stolen > 0


def test_a_worker_that_takes_jobs_and_says_no_more(system, context, tell):
    """Its lease runs out, and others do the jobs."""
    impostor = Attacker(context, system, greet=False)
    catalogue = system.client()
    known = catalogue.snapshot("functions")["functions"]
    catalogue.close()
    info = {"queues": ["default"], "catalogue": known}
    impostor.say(m.Hello(m.VERSION, "worker", impostor.session, "", info))
    welcome = impostor.hear()
    assert isinstance(welcome, m.Welcome), welcome
    pull = context.socket(zmq.PULL)
    pull.connect(welcome.endpoints["jobs"])
    impostor.say(m.Heartbeat(impostor.session, welcome.epoch, 20, 20, (), ()))
    impostor.hear_of(m.HeartbeatAck)
    with system.client() as client:
        handles = client.submit_many("echo", range(200))
        since = time.monotonic()
        assert [handle.result(30) for handle in handles] == list(range(200))
        took_s = time.monotonic() - since
    assert pull.poll(0), "it took some"
    assert took_s < 12
    tell(f"200 jobs of which a worker took some and fell silent were done after {took_s:.1f} s")
    pull.close()
    impostor.close()
    until(lambda: len(system.get("/workers").body["workers"]) == 1, "it is forgotten")
