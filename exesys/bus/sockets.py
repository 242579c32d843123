"""Socket options, in one place, each with its reason.

A second bind of an ipc path steals it silently, so the router holds a lock
beside it (`process.hold_lock`). No fixed identities: with ROUTER_MANDATORY
and automatic routing ids a message to a peer that went is an error, not a
message to whoever took its name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket as plain
import struct
from pathlib import Path

import zmq
from zmq.utils import z85

from exesys.addresses import is_any, near
from exesys.bus import zap
from exesys.bus.curve import Guard, Identity
from exesys.bus.wire import MAX_FRAME_BYTES
from exesys.errors import ConfigError

LINGER_MS = 1000
NEVER_MS = 7 * 86_400_000
HWM = 100_000
HANDSHAKE_MS = 10_000
DEAD_S = 30
# At a socket that is bound, of one peer: so many messages wait for us, or for one that does not read. Then its
# connection is read no more, or what is for it is dropped, which every peer can bear.
MOST_WAITING, MOST_UNREAD = 1000, 5000
# What comes in at a socket that sends: the handshake, and names of topics.
MOST_SUBSCRIPTION_BYTES = 1024
DRAIN = 256
LET_IN, REFUSED, SILENT = "let in", "refused", "silent"
# Plain numbers: pyzmq's are enums, whose operators are slower than the calls they go to.
_EVENTS, _RCVMORE, _POLLIN = int(zmq.EVENTS), int(zmq.RCVMORE), int(zmq.POLLIN)
_SOURCE = int(zmq.SRCFD)
_AT_ONCE, _MORE_TO_COME = int(zmq.DONTWAIT), int(zmq.DONTWAIT | zmq.SNDMORE)

# What a line's monitor tells: first that it is up, then that it is down.
_UP = int(zmq.EVENT_HANDSHAKE_SUCCEEDED)
_DOWN = int(
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
)
_EVENT_NUMBER = struct.Struct("=H")

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


def _make(context: Context, kind: int) -> Socket:
    socket = context.socket(kind)
    socket.linger = LINGER_MS  # a goodbye goes out, a dead peer holds nobody up
    socket.setsockopt(zmq.MAXMSGSIZE, MAX_FRAME_BYTES)  # a larger frame ends that connection
    socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)  # who says less than a greeting is let go
    socket.setsockopt(zmq.SNDHWM, HWM)
    socket.setsockopt(zmq.RCVHWM, HWM)
    return socket


def _beat(socket: Socket) -> None:
    """Find a connection that is dead below us by heartbeats of ZMTP."""
    socket.setsockopt(zmq.HEARTBEAT_IVL, 5000)
    socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, DEAD_S * 1000)


def _watch_tcp(socket: Socket) -> None:
    """Find it by TCP's own means, at a socket that strangers connect to.

    With heartbeats there, whoever sends more than is read and hangs up ends our process: libzmq's
    timer then meets its assertion !_io_error (libzmq's issue 4364).
    """
    for option, value in ((zmq.TCP_KEEPALIVE, 1), (zmq.TCP_KEEPALIVE_IDLE, 5), (zmq.TCP_KEEPALIVE_INTVL, 5)):
        socket.setsockopt(option, value)
    socket.setsockopt(zmq.TCP_KEEPALIVE_CNT, DEAD_S // 5 - 1)
    socket.setsockopt(zmq.TCP_MAXRT, DEAD_S * 1000)  # also for who does not read


def bind(context: Context, kind: int, endpoint: str, guard: Guard | None = None) -> tuple[Socket, str]:
    """Bind a router's socket. Returns it and the endpoint it really has.

    With a `guard` only those come in whom the context's `doorman` lets in, over CURVE.
    Raises ConfigError when the address is in use or cannot be had.
    """
    socket = _make(context, kind)
    _watch_tcp(socket)
    if guard is not None:
        socket.setsockopt(zmq.CURVE_SERVER, 1)
        socket.setsockopt(zmq.CURVE_SECRETKEY, guard.own.secret)
        socket.setsockopt_string(zmq.ZAP_DOMAIN, guard.domain)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
    elif kind == zmq.PUSH:
        # Else libzmq takes garbage for a peer of ZMTP 1, which tells nothing of itself, and gives it jobs.
        socket.setsockopt_string(zmq.ZAP_DOMAIN, zap.JOBS)
    socket.setsockopt(zmq.RCVHWM, MOST_WAITING)
    if kind == zmq.ROUTER:
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        socket.setsockopt(zmq.SNDHWM, MOST_UNREAD)
    if kind == zmq.XPUB:
        socket.setsockopt(zmq.XPUB_NODROP, 0)
        socket.setsockopt(zmq.SNDHWM, MOST_UNREAD)
    if kind in (zmq.XPUB, zmq.PUSH):
        socket.setsockopt(zmq.MAXMSGSIZE, MOST_SUBSCRIPTION_BYTES)
    if kind == zmq.PUSH:
        socket.setsockopt(zmq.RCVHWM, 1)  # it receives nothing
    try:
        socket.bind(endpoint)
    except zmq.ZMQError as error:
        socket.close()
        raise ConfigError(f"the bus cannot listen on {endpoint}: {error}.", fix="See [bus] endpoint.") from error
    return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def doorman(context: Context) -> Socket:
    """Make the socket at which libzmq asks who may come in, where that is guarded or jobs are given; see `zap`."""
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind(zap.ENDPOINT)
    return socket


def spelled(raw: bytes) -> bytes:
    """Spell a raw key in Z85."""
    return z85.encode(raw)


def connect(
    context: Context,
    kind: int,
    endpoint: str,
    identity: Identity | None = None,
    topics: tuple[bytes, ...] = (b"stop.", b"ctl."),
) -> Socket:
    """Connect a peer's socket, over CURVE with an `identity`. It reconnects by itself, within a second.

    A SUB subscribes to what begins like one of `topics`.
    """
    socket = _make(context, kind)
    _beat(socket)
    _show(socket, identity)
    socket.setsockopt(zmq.RECONNECT_IVL, 20)
    socket.setsockopt(zmq.RECONNECT_IVL_MAX, 500)
    if kind == zmq.PUSH:
        socket.setsockopt(zmq.IMMEDIATE, 1)  # nothing is queued for a router that is away
    if kind == zmq.SUB:
        for topic in topics:
            socket.setsockopt(zmq.SUBSCRIBE, topic)
    socket.connect(towards(endpoint, endpoint))
    return socket


def _show(socket: Socket, identity: Identity | None) -> None:
    if identity is not None:
        socket.setsockopt(zmq.CURVE_SERVERKEY, identity.server)
        socket.setsockopt(zmq.CURVE_PUBLICKEY, identity.own.public)
        socket.setsockopt(zmq.CURVE_SECRETKEY, identity.own.secret)


def line(context: Context, endpoint: str, identity: Identity | None = None) -> tuple[Socket, Socket]:
    """Connect a DEALER to one process, and never again to another: returns it and its monitor.

    What it was sent when its peer dies must not reach the one that is started
    in its place. The monitor tells when the line is up, and when it is down
    (`ups`). The peer gets an empty message first, by which it knows the line.
    Raises ValueError when the endpoint is none.
    """
    socket = _make(context, zmq.DEALER)
    _beat(socket)
    _show(socket, identity)
    socket.linger = 0
    socket.setsockopt(zmq.PROBE_ROUTER, 1)
    # Never in the life of a line; with -1, libzmq would drop what came before the end and was not read yet.
    socket.setsockopt(zmq.RECONNECT_IVL, NEVER_MS)
    # Never one that was used before: libzmq gives an address back only some time after its socket was closed.
    address = f"inproc://line-{secrets.token_hex(8)}"
    socket.monitor(address, _UP | _DOWN)
    monitor = context.socket(zmq.PAIR)
    monitor.linger = 0
    monitor.connect(address)
    try:
        socket.connect(endpoint)
    except zmq.ZMQError as error:
        end_line(socket, monitor)
        raise ValueError(f"{endpoint!r:.200} is no endpoint: {error}.") from error
    return socket, monitor


def knock(endpoint: str, identity: Identity, within_s: float) -> str:
    """Find out whether somebody at an endpoint lets us in: LET_IN, REFUSED (our key is not known), or SILENT.

    A wrong public key of theirs cannot be told from silence: whoever is there does not answer it.
    """
    context = Context()
    try:
        socket = _make(context, zmq.DEALER)
        _show(socket, identity)
        monitor = socket.get_monitor_socket(_UP | int(zmq.EVENT_HANDSHAKE_FAILED_AUTH))
        socket.connect(towards(endpoint, endpoint))
        if not monitor.poll(int(within_s * 1000)):
            return SILENT
        return LET_IN if ups(monitor) == [True] else REFUSED
    finally:
        context.destroy(linger=0)


def end_line(socket: Socket, monitor: Socket) -> None:
    """Close what `line` made."""
    socket.disable_monitor()
    socket.close()
    monitor.close()


def ups(monitor: Socket) -> list[bool]:
    """Read what a line's monitor has to tell: True for up, False for down."""
    return [bool(_EVENT_NUMBER.unpack_from(frames[0])[0] & _UP) for frames in drain(monitor)]


def beside(endpoint: str, name: str) -> str:
    """Return where a further socket of the bus goes: a sibling path, or a free port."""
    if endpoint.startswith("ipc://"):
        return f"{endpoint}.{name}"
    return endpoint.rpartition(":")[0] + ":*"


def towards(front: str, endpoint: str) -> str:
    """Return where a further socket of the bus is reached: one that listens everywhere is where its front is."""
    scheme, _, rest = endpoint.partition("://")
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not is_any(host):
        return endpoint
    return f"tcp://{near(front.removeprefix('tcp://').rpartition(':')[0])}:{port}"


def unlink(endpoint: str) -> None:
    """Remove the file of a closed ipc endpoint; libzmq leaves it."""
    if endpoint.startswith("ipc://"):
        Path(endpoint.removeprefix("ipc://")).unlink(missing_ok=True)


def send(socket: Socket, *frames: bytes) -> bool:
    """Send without blocking. False when the peer is gone or its queue is full."""
    try:
        for frame in frames[:-1]:
            socket.send(frame, _MORE_TO_COME)
        socket.send(frames[-1], _AT_ONCE)
    except zmq.ZMQError as error:
        if error.errno in (zmq.EAGAIN, zmq.EHOSTUNREACH):
            return False
        raise
    return True


def readable(socket: Socket) -> bool:
    """Tell whether a message is there. Takes note of all that happened to the socket until now."""
    return bool(int(socket.getsockopt(_EVENTS)) & _POLLIN)


def drain(socket: Socket, most: int = DRAIN) -> list[list[bytes]]:
    """Read what is there, at most `most` messages, each a list of frames."""
    messages: list[list[bytes]] = []
    try:
        while len(messages) < most:
            frames = [socket.recv(_AT_ONCE)]
            while socket.getsockopt(_RCVMORE):
                frames.append(socket.recv(_AT_ONCE))
            messages.append(frames)
            if len(messages) == 1 and not readable(socket):
                break  # an exception costs more than asking, when one message is all there is
    except zmq.Again:
        pass
    return messages


def drain_named(socket: Socket, most: int = DRAIN) -> list[tuple[str, list[bytes]]]:
    """Read what is there at a guarded socket: each message, and whose key it came with (`roles.named`)."""
    messages: list[tuple[str, list[bytes]]] = []
    try:
        while len(messages) < most:
            first = socket.recv(_AT_ONCE, copy=False)
            frames = [first.bytes]
            while socket.getsockopt(_RCVMORE):
                frames.append(socket.recv(_AT_ONCE))
            messages.append((str(first.get("User-Id")), frames))
    except zmq.Again:
        pass
    return messages


def drain_subscribers(socket: Socket, most: int = DRAIN) -> list[tuple[int, bytes]]:
    """Read what subscribers sent to an XPUB: the descriptor of each one's connection, -1 of none, and the message."""
    messages: list[tuple[int, bytes]] = []
    try:
        while len(messages) < most:
            frame = socket.recv(_AT_ONCE, copy=False)
            try:
                source = int(frame.get(_SOURCE))
            except zmq.ZMQError:
                source = -1
            messages.append((source, frame.bytes))
    except zmq.Again:
        pass
    return messages


def cut_off(descriptor: int, endpoint: str) -> None:
    """End one connection to an endpoint that is bound here; libzmq finds it closed.

    A descriptor that has become something else meanwhile is left alone.
    """
    with contextlib.suppress(OSError), plain.socket(fileno=os.dup(descriptor)) as twin:
        here = twin.getsockname()
        if endpoint == f"ipc://{here}" or endpoint.rpartition(":")[2] == str(here[1]):
            twin.shutdown(plain.SHUT_RDWR)
