"""One POST: to which address it goes, what counts as taken, and that nothing holds it up for long."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from exesys import posting
from exesys.callbacks import Hosts, read_hosts, target
from exesys.posting import NotPosted, Post, Withheld

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
HERE = "127.0.0.1"


class Receiver:
    """Takes connections on a free port, reads a request, and does with it what it is told."""

    def __init__(self, answer: Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> None:
        self.requests: list[bytes] = []
        self._answer, self._tls = answer, tls
        self._socket = socket.create_server((HERE, 0))
        self.port: int = self._socket.getsockname()[1]
        self._done = threading.Event()
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while not self._done.is_set():
            try:
                raw, _ = self._socket.accept()
                with raw:
                    line = self._tls.wrap_socket(raw, server_side=True) if self._tls else raw
                    self.requests.append(self._read(line))
                    self._answer(line)
            except OSError:
                continue

    def _read(self, line: socket.socket) -> bytes:
        text = b""
        while b"\r\n\r\n" not in text and (more := line.recv(65_536)):
            text += more
        head, _, body = text.partition(b"\r\n\r\n")
        lengths = [int(each[15:]) for each in head.split(b"\r\n") if each.lower().startswith(b"content-length:")]
        length = lengths[0] if lengths else 0
        while len(body) < length and (more := line.recv(65_536)):
            body += more
        return head + b"\r\n\r\n" + body

    def close(self) -> None:
        self._done.set()
        self._socket.close()


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(answer: bytes | Callable[[socket.socket], None] = OK, **options: Any) -> Receiver:
        act = (lambda line: line.sendall(answer)) if isinstance(answer, bytes) else answer
        made.append(Receiver(act, **options))
        return made[-1]

    yield make
    for each in made:
        each.close()


def post(url: str, hosts: str = HERE, timeout_s: float = 5.0, may_send: bool = True, tls: Any = None) -> None:
    Post(target(url), Hosts(read_hosts(hosts)), timeout_s).send(
        {"X-Test": "1"}, b'{"a":1}', lambda: may_send, tls or ssl.create_default_context
    )


def refused(url: str, **options: Any) -> str:
    with pytest.raises(NotPosted) as error:
        post(url, **options)
    return error.value.message


def resolving(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have names resolve to these addresses, each question to the next; return the names that were asked for."""
    asked: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: str, port: int, *more: Any, **options: Any) -> Any:
        if not host.endswith(".example"):
            return real(host, port, *more, **options)
        asked.append(host)
        texts = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, port)) for text in texts]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


# --- what is sent, and what counts as taken ----------------------------------------


def test_it_posts_the_body_with_its_headers(receiver: Callable[..., Receiver]) -> None:
    there = receiver()
    post(f"http://{HERE}:{there.port}/hook?x=1")
    [request] = there.requests
    head, _, body = request.partition(b"\r\n\r\n")
    lines = head.decode().split("\r\n")
    assert lines[0] == "POST /hook?x=1 HTTP/1.1"
    assert {f"Host: {HERE}:{there.port}", "X-Test: 1", "Content-Length: 7", "Connection: close"} <= set(lines)
    assert body == b'{"a":1}'


@pytest.mark.parametrize("status", ["200 OK", "201 Created", "204 No Content", "299 Odd"])
def test_any_2xx_is_success(receiver: Callable[..., Receiver], status: str) -> None:
    there = receiver(f"HTTP/1.1 {status}\r\n\r\n".encode())
    post(f"http://{HERE}:{there.port}/")


@pytest.mark.parametrize("status", ["404 Not Found", "500 Oops", "429 Slow", "304 Not Modified"])
def test_any_other_answer_is_not(receiver: Callable[..., Receiver], status: str) -> None:
    there = receiver(f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode())
    assert f"the answer was {status[:3]}" in refused(f"http://{HERE}:{there.port}/")


def test_redirects_are_not_followed(receiver: Callable[..., Receiver]) -> None:
    other = receiver()
    there = receiver(f"HTTP/1.1 307 Go\r\nLocation: http://{HERE}:{other.port}/\r\nContent-Length: 0\r\n\r\n".encode())
    assert "redirects are not followed" in refused(f"http://{HERE}:{there.port}/")
    assert other.requests == []


def test_no_proxy_of_the_environment_is_used(
    receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = receiver()
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    post(f"http://{HERE}:{there.port}/")
    assert len(there.requests) == 1


@pytest.mark.parametrize("answer", [b"", b"\x00\xff\x00\xff\r\n\r\n", b"SSH-2.0-x\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_what_is_no_answer_is_told_in_words(receiver: Callable[..., Receiver], answer: bytes) -> None:
    there = receiver(answer)
    assert refused(f"http://{HERE}:{there.port}/").endswith(".")


def test_where_nobody_listens_is_told_in_words() -> None:
    with socket.create_server((HERE, 0)) as free:
        port = free.getsockname()[1]
    assert "refused" in refused(f"http://{HERE}:{port}/")


def test_it_is_not_sent_when_it_may_no_longer_be(receiver: Callable[..., Receiver]) -> None:
    there = receiver()
    with pytest.raises(Withheld):
        post(f"http://{HERE}:{there.port}/", may_send=False)
    assert [request for request in there.requests if request.startswith(b"POST")] == []


# --- bounds ---------------------------------------------------------------------


def test_a_long_answer_is_not_read_to_its_end(receiver: Callable[..., Receiver]) -> None:
    sent = [0]

    def endless(line: socket.socket) -> None:
        line.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            sent[0] += line.send(b"x" * 65_536)

    there = receiver(endless)
    post(f"http://{HERE}:{there.port}/")
    assert sent[0] < 64 << 20


@pytest.mark.parametrize("drips", [b"", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1000])
def test_a_receiver_that_stalls_is_cut_off_in_time(receiver: Callable[..., Receiver], drips: bytes) -> None:
    over = threading.Event()

    def stall(line: socket.socket) -> None:
        for byte in drips:
            line.sendall(bytes([byte]))
            if over.wait(0.05):
                return
        over.wait(10)

    there = receiver(stall)
    found = Post(target(f"http://{HERE}:{there.port}/"), Hosts((HERE,)), 0.5)
    began = time.monotonic()
    # As the courier does, whose thread looks at all that is under way.
    threading.Timer(0.6, found.cut).start()
    with pytest.raises(NotPosted, match=r"no answer within 0\.5 s"):
        found.send({}, b"{}", lambda: True, ssl.create_default_context)
    assert time.monotonic() - began < 3
    over.set()


# --- addresses -------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.0.1", "0.0.0.0"])
def test_a_name_that_leads_inside_is_refused_unless_the_address_is_listed(
    monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    resolving(monkeypatch, [address])
    said = refused("http://a.example:1/", hosts="a.example")
    assert f"a.example is {address}, which is not public" in said


def test_a_name_may_lead_to_an_address_that_is_listed(
    receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    resolving(monkeypatch, [HERE])
    there = receiver()
    post(f"http://a.example:{there.port}/", hosts=f"a.example,{HERE}")
    assert f"Host: a.example:{there.port}".encode() in there.requests[0]


def test_the_connection_goes_to_the_address_that_was_checked(
    receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the name leads elsewhere when it is asked for again."""
    there = receiver()
    asked = resolving(monkeypatch, ["93.184.216.34"], [HERE])
    reached: list[Any] = []

    def connect(address: Any, *more: Any, **options: Any) -> socket.socket:
        reached.append(address)
        raise ConnectionRefusedError("refused")

    monkeypatch.setattr(posting.socket, "create_connection", connect)
    refused(f"http://a.example:{there.port}/", hosts="a.example")
    assert asked == ["a.example"]
    assert reached == [("93.184.216.34", there.port)]
    assert there.requests == []


def test_of_several_addresses_only_those_that_may_be_are_tried(
    receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = receiver()
    resolving(monkeypatch, ["10.0.0.1", "127.0.0.9", HERE])
    post(f"http://a.example:{there.port}/", hosts=f"a.example,{HERE}")
    assert len(there.requests) == 1


def test_a_name_that_is_none_is_told_in_words() -> None:
    assert "cannot be resolved" in refused("http://nothing.invalid/", hosts="nothing.invalid")


# --- TLS ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One file with a key and a certificate for 127.0.0.1, signed by itself."""
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("openssl is not on PATH")
    home = tmp_path_factory.mktemp("tls")
    key, cert = home / "key", home / "cert"
    words = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    words += ["-keyout", str(key), "-out", str(cert), "-subj", "/CN=test", "-addext", f"subjectAltName=IP:{HERE}"]
    subprocess.run([openssl, *words], check=True, capture_output=True)
    both = home / "both"
    both.write_text(key.read_text() + cert.read_text())
    return both


def test_https_checks_the_certificate(receiver: Callable[..., Receiver], certificate: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    there = receiver(tls=context)
    assert "certificate verify failed" in refused(f"https://{HERE}:{there.port}/")
    assert there.requests == []
    post(f"https://{HERE}:{there.port}/", tls=lambda: ssl.create_default_context(cafile=str(certificate)))
    assert len(there.requests) == 1
