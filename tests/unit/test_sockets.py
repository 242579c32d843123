"""Sockets that anybody may connect to, by hand: what a peer does ends its own connection at most."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import zmq

from exesys.bus import sockets, zap

# Binds every kind of socket that the router has, reads nothing, and lives for a while after it is told to.
DEAF = """
import sys, time, zmq
from exesys.bus import sockets
context = zmq.Context()
bound = [sockets.bind(context, kind, f"ipc://{sys.argv[1]}/{kind}")[0] for kind in map(int, sys.argv[2:])]
for each in bound:
    if each.get(zmq.HEARTBEAT_IVL):
        each.close()
        raise SystemExit("heartbeats at a socket that is bound")
print("bound", flush=True)
sys.stdin.readline()
print("well", flush=True)
"""
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready(kind: bytes) -> bytes:
    told = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind
    return b"\x04" + bytes([len(told)]) + told


def test_who_sends_more_than_is_read_and_hangs_up_harms_nobody(tmp_path: Path) -> None:
    kinds = {zmq.ROUTER: b"DEALER", zmq.PULL: b"PUSH", zmq.XPUB: b"SUB", zmq.PUSH: b"PULL"}
    numbers = [str(int(kind)) for kind in kinds]
    command = [sys.executable, "-c", DEAF, str(tmp_path), *numbers]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as deaf:
        assert deaf.stdin is not None
        assert deaf.stdout is not None
        assert deaf.stdout.readline() == "bound\n"
        for number, kind in zip(numbers, kinds.values(), strict=True):
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(0.5)
                peer.connect(f"{tmp_path}/{number}")
                peer.sendall(GREETING + ready(kind))
                heard = b""
                while b"READY" not in heard:
                    heard += peer.recv(1000)
                with contextlib.suppress(TimeoutError, BrokenPipeError):  # it is read no more, or cut off
                    for _ in range(100):
                        peer.sendall(b"\x00\x01x" * 10_000)
        deaf.stdin.write("\n")
        deaf.stdin.flush()
        assert deaf.stdout.readline() == "well\n"


@pytest.mark.parametrize("endpoint", ["ipc", "tcp"])
def test_one_connection_is_ended_and_no_other(tmp_path: Path, endpoint: str) -> None:
    where = f"ipc://{tmp_path}/events" if endpoint == "ipc" else "tcp://127.0.0.1:*"
    with zmq.Context() as context:
        events, at = sockets.bind(context, zmq.XPUB, where)
        peers = []
        for topic in (b"\1good", b"\1bad"):
            peer = context.socket(zmq.XSUB)
            peer.linger = 0
            peer.setsockopt(zmq.RECONNECT_IVL, -1)
            peer.connect(at)
            peer.send(topic)
            peers.append(peer)
        told: dict[bytes, int] = {}
        until = time.monotonic() + 10
        while len(told) < 2 and time.monotonic() < until:
            told |= {topic: source for source, topic in sockets.drain_subscribers(events)}
        sockets.cut_off(told[b"\1bad"], "ipc:///elsewhere")
        sockets.cut_off(told[b"\1bad"], at)
        assert events.poll(10_000)
        assert sockets.drain_subscribers(events) == [(-1, b"\0bad")]
        events.send(b"good news")
        assert peers[0].poll(10_000)
        for peer in (*peers, events):
            peer.close()


def test_garbage_is_given_no_jobs(tmp_path: Path) -> None:
    """Bytes that are no ZMTP 3 could be ZMTP 1, which does not tell what it is: it would be taken for a worker."""
    with zmq.Context() as context, socket.socket(socket.AF_UNIX) as stranger:
        doorman = sockets.doorman(context)
        jobs, at = sockets.bind(context, zmq.PUSH, f"ipc://{tmp_path}/jobs")
        stranger.settimeout(10)
        stranger.connect(f"{tmp_path}/jobs")
        stranger.sendall(b"\x01\x00" * 20)
        with contextlib.suppress(ConnectionResetError):
            while stranger.recv(1000):
                pass  # it is cut off
        assert not jobs.poll(0, zmq.POLLOUT)
        worker = sockets.connect(context, zmq.PULL, at)
        assert doorman.poll(10_000)
        [question] = sockets.drain(doorman)
        frames, why = zap.answer(question, None, sockets.spelled)
        assert why == ""
        doorman.send_multipart(frames)
        assert jobs.poll(10_000, zmq.POLLOUT)
        for each in (worker, jobs, doorman):
            each.close(linger=0)


def test_without_keys_nobody_comes_with_one() -> None:
    question = [b"a", b"", b"1.0", b"1", b"jobs.", b"here", b"", b"CURVE", bytes(32)]
    frames, why = zap.answer(question, None, sockets.spelled)
    assert (frames[4], why) == (b"400", "here came with a key, and none is needed")
