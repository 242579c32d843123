"""A process that attacks: a bit of everything, at a steady rate, while its standard input says so.

    python attackers.py '{"seed": 1, "rate": 1500, …}'

A line `go N` has it send N cases, spread over time by the rate; it answers with a line of JSON, the number of
cases by socket so far and what REST answered. The end of its input ends it.
"""

import collections
import contextlib
import json
import os
import random
import re
import socket
import sys
import time
from collections import Counter, deque
from pathlib import Path

import zmq

CHECKOUT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(CHECKOUT), str(CHECKOUT / "tests" / "system")]

import hostile  # noqa: E402  # the path is set above

from exesys.bus import messages as m  # noqa: E402
from exesys.bus import wire  # noqa: E402
from exesys.bus.curve import Identity, Pair  # noqa: E402

HELD = 60  # connections that are held open and go no further, of each kind
STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})")
# What a peer of each socket is. A second PULL at a worker's jobs would be given some: on a unix socket whoever may
# connect is the system's own user, and over TCP it takes the worker's key.
PEERS = {"front": b"DEALER", "results": b"PUSH", "events": b"SUB", "jobs": b"PAIR", "app": b"DEALER"}


class Bus:
    """Whatever attacks by a zmq socket. A case that cannot be sent at once is none.

    One that is cut off does not come back by itself: it would send again what it had, beyond the rate.
    """

    def __init__(self, context, kind, endpoint, identity, reads=True):
        self.socket = context.socket(kind)
        self.socket.linger = 0
        self.socket.setsockopt(zmq.RECONNECT_IVL, -1)
        if not reads:
            self.socket.setsockopt(zmq.RCVHWM, 1)
        if identity:
            self.socket.setsockopt(zmq.CURVE_SERVERKEY, identity.server)
            self.socket.setsockopt(zmq.CURVE_PUBLICKEY, identity.own.public)
            self.socket.setsockopt(zmq.CURVE_SECRETKEY, identity.own.secret)
        self.socket.connect(endpoint)

    def send(self, *frames):
        try:
            self.socket.send_multipart(frames, zmq.DONTWAIT)
        except zmq.Again:
            return False
        return True

    def hear(self):
        with contextlib.suppress(zmq.Again):
            while True:
                self.socket.recv_multipart(zmq.DONTWAIT)


class Front(Bus):
    """A client that sends nonsense. It may or may not say HELLO, and read its answers."""

    def __init__(self, context, endpoint, identity, dice, greets=True, reads=True, kinds=hostile.KINDS):
        super().__init__(context, zmq.DEALER, endpoint, identity, reads)
        self.dice, self.greets, self.reads, self.kinds = dice, greets, reads, kinds

    def hit(self):
        if self.reads:
            self.hear()
        if self.greets and self.dice.random() < 0.05:
            hello = m.Hello(m.VERSION, "client", self.dice.randbytes(8).hex(), "", {})
            return self.send(wire.encode(hello))
        frames = hostile.frames(self.dice, *self.kinds)
        return not hostile.poses(frames[0]) and self.send(*frames)


class Poser(Bus):
    """Has the key of a client, and comes as what it is not."""

    def __init__(self, context, endpoint, identity, dice):
        super().__init__(context, zmq.DEALER, endpoint, identity)
        self.dice = dice

    def hit(self):
        self.hear()
        if self.dice.random() < 0.3:
            role = self.dice.choice(["worker", "runner", "app", "controller", "admin", "client"])
            info = hostile.well_formed(self.dice, dict[str, object])
            return self.send(wire.encode(m.Hello(m.VERSION, role, self.dice.randbytes(8).hex(), "", info)))
        kind = self.dice.choice([m.Tune, m.Result, m.Telling, m.Exits, m.Mend, m.Stop])
        return self.send(wire.encode(hostile.well_formed(self.dice, kind)))


class Results(Bus):
    """Reports what nobody asked for."""

    def __init__(self, context, endpoint, identity, dice):
        super().__init__(context, zmq.PUSH, endpoint, identity)
        self.dice = dice

    def hit(self):
        if self.dice.random() < 0.2:
            refs = ["a:hostile", "exesys:jobs", "a>b:hostile", "", "*:*", "a:b:c"]
            number = self.dice.choice(hostile.NUMBERS)
            reports = [m.Report(ref, number, self.dice.randrange(5), b"\x81\xa3EOJ\xc0", "", 1, 2) for ref in refs]
            return self.send(wire.encode(m.Result(self.dice.randbytes(8).hex(), tuple(reports))))
        return self.send(*hostile.frames(self.dice, m.Result))


class Caller(Bus):
    """Calls an application server, wrongly."""

    def __init__(self, context, endpoint, identity, dice):
        super().__init__(context, zmq.DEALER, endpoint, identity)
        self.dice = dice

    def hit(self):
        self.hear()
        if self.dice.random() < 0.3:
            args = hostile.msgpack.packb(hostile.anything(self.dice))
            name = self.dice.choice(["echo", "no_such", "__init__", "_kept", "start", ""])
            timeout_s = self.dice.choice(hostile.FLOATS)
            return self.send(wire.encode(m.Call(self.dice.choice(hostile.NUMBERS), name, args, timeout_s)))
        return self.send(*hostile.frames(self.dice, m.Call))


class Subscriber:
    """Subscribes to very many topics, sends garbage and never reads; now and then it begins anew."""

    def __init__(self, context, endpoint, identity, dice):
        self.make = lambda: Bus(context, zmq.XSUB, endpoint, identity, reads=False)
        self.dice, self.left = dice, 0

    def hit(self):
        if not self.left:
            self.left = self.dice.choice([200, 900, 1500])
            self.bus = self.make()
        self.left -= 1
        if self.dice.randrange(20) == 0:
            sent = self.bus.send(self.dice.randbytes(self.dice.choice([0, 1, 100, 2000])))
        else:
            topic = self.dice.choice([b"stop.", b"ev.", b""]) + self.dice.randbytes(self.dice.choice([4, 8, 8, 8, 200]))
            sent = self.bus.send(self.dice.choice([b"\1", b"\1", b"\1", b"\0"]) + topic)
        if not self.left:
            self.bus.socket.close()
        return sent


class Strangers:
    """Those who come without a key, with one of their own, or with one that is not for this socket."""

    def __init__(self, context, endpoints, known, dice):
        self.context, self.endpoints, self.known, self.dice = context, endpoints, known, dice
        self.held = deque()

    def hit(self):
        own = Identity(Pair(*zmq.curve_keypair()), self.known.server)
        mistaken = Identity(self.known.own, zmq.curve_keypair()[0])
        name = self.dice.choice(list(self.endpoints))
        shown = [None, own, mistaken, self.known if name in ("results", "jobs") else None][self.dice.randrange(4)]
        kind = {b"DEALER": zmq.DEALER, b"PUSH": zmq.PUSH, b"SUB": zmq.SUB, b"PAIR": zmq.PULL}[PEERS[name]]
        self.held.append(Bus(self.context, kind, self.endpoints[name], shown).socket)
        if len(self.held) > HELD:
            self.held.popleft().close()
        return True


class Bytes:
    """Whatever attacks by a plain socket: some connections end at once, some are held and get a byte now and then."""

    def __init__(self, addresses, make, dice):
        self.addresses, self.make, self.dice = addresses, make, dice
        self.held = deque()

    def hit(self):
        name = self.dice.choice(list(self.addresses))
        address = self.addresses[name]  # a path, or host and port
        opened = socket.socket(socket.AF_UNIX if isinstance(address, str) else socket.AF_INET)
        opened.setblocking(False)
        first, rest = self.make(name)
        with contextlib.suppress(OSError):
            opened.connect(address if isinstance(address, str) else tuple(address))
        self.held.append([opened, first, rest])
        for each in (self.held[-1], self.dice.choice(self.held)):
            self.go_on(each)
        if not rest and self.dice.random() < 0.4:
            self.held.pop()[0].close()
        if len(self.held) > HELD:
            self.held.popleft()[0].close()
        return True

    def go_on(self, held):
        """Send what is next: all of the beginning, then what is to follow, then any byte."""
        with contextlib.suppress(OSError):
            held[0].send(held[1] or held[2] or self.dice.randbytes(1))
            held[1], held[2] = b"", held[2] if held[1] else b""


class Http:
    """Requests that are HTTP and wrong, over connections that are kept."""

    def __init__(self, ports, dice, statuses):
        self.ports, self.dice, self.statuses = ports, dice, statuses
        self.kept = {}

    def hit(self):
        place = self.dice.randrange(12)
        opened = self.kept.get(place)
        try:
            if opened is None:
                opened = self.kept[place] = socket.create_connection(("127.0.0.1", self.dice.choice(self.ports)), 5)
                opened.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                while got := opened.recv(1 << 20):
                    self.statuses.update(int(each) for each in STATUS.findall(got))
                raise ConnectionError("closed")
            sent = hostile.request(self.dice)
            if opened.send(sent) < len(sent):
                raise ConnectionError("it takes no more")
        except OSError:
            if opened is not None:
                opened.close()
            self.kept.pop(place, None)
            return False
        return True


def attacks(told, dice, statuses):
    """Make all that attack: name of the row, how many of 1,000 cases, and who does it."""
    context = zmq.Context()
    known = (
        Identity(Pair(*(each.encode() for each in told["key"][:2])), told["key"][2].encode()) if told["key"] else None
    )
    worker = (
        Identity(Pair(*(each.encode() for each in told["worker_key"][:2])), known.server)
        if told["worker_key"]
        else None
    )
    at = told["endpoints"]
    front = at["front"]
    asks = (m.Sync, m.Heartbeat, m.Status, m.Submit)
    found = [
        ("front: client", 255, Front(context, front, known, dice)),
        ("front: no HELLO", 110, Front(context, front, known, dice, greets=False)),
        ("front: never reads", 60, Front(context, front, known, dice, reads=False, kinds=asks)),
        ("results", 210, Results(context, at["results"], worker, dice)),
        ("application server", 140, Caller(context, at["app"], known, dice)),
        ("events", 80, Subscriber(context, at["events"], known, dice)),
        ("raw bytes on the bus", 50, Bytes(told["addresses"], _zmtp(dice, known), dice)),
        ("REST and web: requests", 30, Http(told["ports"], dice, statuses)),
        ("REST and web: bytes", 15, Bytes(_web(told["ports"]), lambda name: (hostile.http(dice), b""), dice)),
    ]
    if known:
        found.append(("front: wrong role", 30, Poser(context, front, known, dice)))
        found.append(("ZAP: strangers", 20, Strangers(context, at, known, dice)))
    return found


def _zmtp(dice, known):
    return lambda name: hostile.zmtp(dice, PEERS[name], b"CURVE" if known else b"NULL")


def _web(ports):
    return {str(port): ("127.0.0.1", port) for port in ports}


def main():
    os.nice(10)  # an attacker elsewhere takes no processor from the daemons
    told = json.loads(sys.argv[1])
    dice = random.Random(told["seed"])
    counts: Counter[str] = collections.Counter()
    statuses: Counter[int] = collections.Counter()
    found = attacks(told, dice, statuses)
    names, weights, who = zip(*found, strict=True)
    order = list(range(len(found)))
    for line in sys.stdin:
        left = int(line.split()[1])
        due = time.monotonic()
        while left > 0:
            [place] = dice.choices(order, weights)
            hit = bool(who[place].hit())
            counts[names[place]] += hit
            left -= hit
            # What could not be sent in time is not made up for: the rate is never more than was said.
            now = time.monotonic()
            due = max(due + 1 / told["rate"], now)
            time.sleep(due - now)
        print(json.dumps({"cases": counts, "statuses": statuses}), flush=True)


if __name__ == "__main__":
    main()
