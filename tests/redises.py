"""Redis as it is in the field: servers with passwords, users, TLS, replicas, sentinels and clusters. All are real."""

from __future__ import annotations

import contextlib
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

START_S = 20.0
EMPTY = '""'


def until(condition: Callable[[], Any], what: str, within_s: float = START_S, every_s: float = 0.02) -> Any:
    """Wait until the condition gives something true, and return that. Fails at the deadline."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not within {within_s:g} s: {what}"
        time.sleep(every_s)
    return found


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


class Certificates(NamedTuple):
    """A certificate authority of a test's own, and one certificate of it, for 127.0.0.1."""

    ca: str
    cert: str
    key: str

    @property
    def options(self) -> str:
        """What an address needs, behind its `?`."""
        return f"ssl_ca_certs={self.ca}&ssl_certfile={self.cert}&ssl_keyfile={self.key}"


def certificates(directory: Path) -> Certificates:
    """Make them with openssl; missing that, FileNotFoundError."""
    ca, cert, key = (str(directory / name) for name in ("ca.pem", "cert.pem", "key.pem"))
    ca_key, request, names = (str(directory / name) for name in ("ca-key.pem", "request.pem", "names"))
    Path(names).write_text("subjectAltName=IP:127.0.0.1\n")
    rsa = ("-newkey", "rsa:2048", "-nodes", "-subj")
    signed = ("-CA", ca, "-CAkey", ca_key, "-CAcreateserial")
    for words in (
        ("req", "-x509", "-days", "2", *rsa, "/CN=a test's authority", "-keyout", ca_key, "-out", ca),
        ("req", *rsa, "/CN=127.0.0.1", "-keyout", key, "-out", request),
        ("x509", "-req", "-days", "2", "-in", request, "-extfile", names, "-out", cert, *signed),
    ):
        subprocess.run(["openssl", *words], check=True, capture_output=True)
    return Certificates(ca, cert, key)


class Node:
    """One server on a port of 127.0.0.1. `settings` are those of redis.conf, with `_` for `-`."""

    def __init__(self, binary: str, directory: Path, sentinel: bool = False, **settings: str) -> None:
        self.port = free_port()
        self.directory = directory / f"node-{self.port}"
        self.directory.mkdir(parents=True)
        self.settings = {"port": str(self.port), "bind": "127.0.0.1", "dir": str(self.directory), **settings}
        if not sentinel:
            self.settings = {"appendonly": "yes", "notify_keyspace_events": "K$gx", "save": "", **self.settings}
        # A file, since servers with sentinels write their own changes into it.
        self.conf = self.directory / "redis.conf"
        self.conf.write_text(
            "".join(f"{name.replace('_', '-')} {value or chr(34) * 2}\n" for name, value in self.settings.items())
        )
        self._command = [binary, str(self.conf), *(["--sentinel"] if sentinel else [])]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **login: Any) -> Node:
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(self._command, stdout=log, stderr=log)
        until(lambda: self._answers(login), f"it answers: {(self.directory / 'log').read_text()[-500:]}")
        return self

    def _answers(self, login: dict[str, Any]) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, (self.directory / "log").read_text()
        try:
            with self.client(**login) as client:
                return bool(client.ping())
        except redis.BusyLoadingError:
            return True
        except redis.RedisError:
            return False

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis("127.0.0.1", self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0), **options)

    def kill(self) -> None:
        """End it with -9, if it runs."""
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None


@contextlib.contextmanager
def tls_before(port: int, made: Certificates, through: Callable[[Any, Any], None] | None = None) -> Iterator[int]:
    """Put an end of TLS before a server, as proxies do, which asks for a certificate; gives the port.

    `through` moves the bytes of TLS on their way to the client: (from, to).
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.cert, made.key)
    context.load_verify_locations(made.ca)
    context.verify_mode = ssl.CERT_REQUIRED
    opened: list[socket.socket] = []

    def serve(peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            if through is not None:
                inner, outer = socket.socketpair()
                opened.extend((inner, outer))
                threading.Thread(target=_relay, args=(peer, outer), daemon=True).start()
                threading.Thread(target=through, args=(outer, peer), daemon=True).start()
                peer = inner
            secure = context.wrap_socket(peer, server_side=True)
            behind = socket.create_connection(("127.0.0.1", port))
            opened.extend((secure, behind))
            threading.Thread(target=_relay, args=(behind, secure), daemon=True).start()
            _relay(secure, behind)

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = listening.accept()
                opened.append(peer)
                threading.Thread(target=serve, args=(peer,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=accept, daemon=True).start()
        yield int(listening.getsockname()[1])
        listening.shutdown(socket.SHUT_RDWR)
    for each in opened:
        with contextlib.suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)
        each.close()


def _relay(source: Any, sink: Any) -> None:
    with contextlib.suppress(OSError):
        while chunk := source.recv(1 << 16):
            sink.sendall(chunk)
    for end in (source, sink):
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class Field:
    """Starts nodes and ends them all; a context."""

    def __init__(self, binary: str) -> None:
        self.binary = binary
        self.directory = Path(tempfile.mkdtemp(prefix="xr-"))
        self.nodes: list[Node] = []

    def node(
        self, binary: str = "", sentinel: bool = False, login: dict[str, Any] | None = None, **settings: str
    ) -> Node:
        """Start one, on `binary` or the usual one."""
        made = Node(binary or self.binary, self.directory, sentinel, **settings)
        self.nodes.append(made)
        return made.start(**(login or {}))

    def sentinels(self, master: Node, service: str, count: int = 3, password: str = "") -> list[Node]:
        """Start sentinels that watch over a master; most of them must agree. `password` is what they ask for."""
        login = {"password": password} if password else {}
        made = []
        for _ in range(count):
            node = Node(self.binary, self.directory, sentinel=True, **({"requirepass": password} if password else {}))
            lines = [
                f"sentinel monitor {service} 127.0.0.1 {master.port} {count // 2 + 1}",
                f"sentinel down-after-milliseconds {service} 500",
                f"sentinel failover-timeout {service} 3000",
            ]
            node.conf.write_text(node.conf.read_text() + "\n".join(lines) + "\n")
            self.nodes.append(node)
            made.append(node.start(**login))
        until(lambda: all(self._agreed(node, service, count, login) for node in made), "the sentinels know each other")
        return made

    @staticmethod
    def _agreed(node: Node, service: str, count: int, login: dict[str, str]) -> bool:
        with node.client(**login) as client:
            known = {_text(k): _text(v) for k, v in client.sentinel_masters()[service].items()}
        return int(known["num-other-sentinels"]) == count - 1 and (count == 1 or int(known["num-slaves"]) >= 1)

    def __enter__(self) -> Field:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self.directory, ignore_errors=True)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
