"""The way by which the replica of the private Redis reaches it, and the guard on that way.

A Redis follows another over TCP alone, and the private one listens on a unix
socket that only its owner may open. So the replica connects to this relay, on
a port of loopback, with a secret (AUTH) that it was told by its standard
input; the relay connects to the unix socket and hands the bytes on.

Before it does, it asks the very server at the other end of that connection
whether it has all that the replica has (`lineage.py`). A replica that is let
through throws away what it has and takes what it is sent; one that is not
keeps what it has, and waits.
"""

from __future__ import annotations

import contextlib
import hmac
import logging
import secrets
import socket
import threading
import time
from collections.abc import Callable

from exesys.errors import Unavailable
from exesys.store import lineage
from exesys.store.lineage import Lineage
from exesys.store.snapshot import Source

HANDSHAKE_S = 1.0  # for all of it: who drips keeps a place no longer
ASK_S = 0.25
MOST_CALLERS = 64  # at once; there is one replica
_PIECE_BYTES = 1 << 18
_PING = b"*1\r\n$4\r\nPING\r\n"

log = logging.getLogger(__name__)


class Relay:
    """Listens from the beginning on. `master` is the private Redis, `of_replica` tells what the replica has."""

    def __init__(self, master: Source, of_replica: Callable[[], Lineage]) -> None:
        self.secret = secrets.token_hex(32)
        self._auth = b"*2\r\n$4\r\nAUTH\r\n$%d\r\n%s\r\n" % (len(self.secret), self.secret.encode())
        self._master = master
        self._of_replica = of_replica
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._places = threading.Semaphore(MOST_CALLERS)
        self._newest: socket.socket | None = None
        self._told = ""

    @property
    def port(self) -> int:
        port: int = self._listener.getsockname()[1]
        return port

    def start(self) -> None:
        """Serve in threads, which end with the process."""
        threading.Thread(target=self._accept, daemon=True, name="relay").start()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError as error:  # no descriptor is free, for one
                log.warning("no connection can be taken just now: %s", error)
                threading.Event().wait(1.0)
                continue
            if self._places.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(caller,), daemon=True, name="relayed").start()
            else:
                caller.close()

    def _serve(self, caller: socket.socket) -> None:
        try:
            with caller, contextlib.suppress(OSError):
                caller.settimeout(HANDSHAKE_S)
                if self._is_replica(caller):
                    self._newest = caller
                    self._connect(caller)
        finally:
            self._places.release()

    def _is_replica(self, caller: socket.socket) -> bool:
        """Read the two commands with which a replica begins; only the secret's holder is heard any further."""
        until = time.monotonic() + HANDSHAKE_S
        if _exactly(caller, len(_PING), until) != _PING:
            return False
        caller.sendall(b"+PONG\r\n")
        return hmac.compare_digest(_exactly(caller, len(self._auth), until), self._auth)

    def _connect(self, caller: socket.socket) -> None:
        """Wait until the master may be followed, then hand the bytes on until one side ends."""
        pause = threading.Event()
        while self._newest is caller:
            with contextlib.ExitStack() as closing:
                try:
                    line = closing.enter_context(self._master.line())
                    refusal = lineage.lacking(line.lineage, self._of_replica())
                except Unavailable as error:
                    refusal = error.message
                self._tell(refusal)
                if not refusal:
                    caller.sendall(b"+OK\r\n")
                    _join(caller, line.socket)
                    return
            pause.wait(ASK_S)

    def _tell(self, refusal: str) -> None:
        if refusal != self._told:
            self._told = refusal
            if refusal:
                log.warning("the private Redis is not followed: %s", refusal)
            else:
                log.info("the private Redis is followed")


def _exactly(caller: socket.socket, length: int, until: float) -> bytes:
    """Read so many bytes; fewer when the caller ends. Raises OSError when the time is over, in monotonic seconds."""
    found = bytearray()
    while len(found) < length:
        caller.settimeout(max(until - time.monotonic(), 0.001))
        piece = caller.recv(length - len(found))
        if not piece:
            break
        found += piece
    caller.settimeout(HANDSHAKE_S)
    return bytes(found)


def _join(caller: socket.socket, master: socket.socket) -> None:
    for each in (caller, master):
        each.settimeout(None)
    back = threading.Thread(target=_pump, args=(caller, master), daemon=True, name="relayed-back")
    back.start()
    _pump(master, caller)
    back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Hand on all that comes, until either side ends; then both do."""
    with contextlib.suppress(OSError):
        while piece := source.recv(_PIECE_BYTES):
            sink.sendall(piece)
    for each in (source, sink):
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
