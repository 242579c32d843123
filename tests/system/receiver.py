"""A receiver of callbacks: an HTTP server in the test's own process that remembers what it was told."""

from __future__ import annotations

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Told(NamedTuple):
    """One POST, as it came in; `at` is monotonic."""

    path: str
    headers: dict[str, str]
    raw: bytes
    at: float

    @property
    def body(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.raw)
        return found

    @property
    def delivery(self) -> str:
        return self.headers["x-exesys-delivery"]

    def is_signed(self, key: str) -> bool:
        """Check the signature as docs/ends.md shows it."""
        signed = self.headers["x-exesys-timestamp"].encode() + b"." + self.raw
        expected = "sha256=" + hmac.new(key.encode(), signed, hashlib.sha256).hexdigest()
        return hmac.compare_digest(expected, self.headers["x-exesys-signature"])


class Receiver:
    """Listens on a free port of loopback. `status` may be set: a number, or what gives one for a POST."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.status: int | Callable[[Told], int] = 200
        lock, receiver = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                headers = {name.lower(): value for name, value in self.headers.items()}
                told = Told(self.path, headers, raw, time.monotonic())
                with lock:
                    receiver.told.append(told)
                status = receiver.status
                self.send_response(status if isinstance(status, int) else status(told))
                self.send_header("Location", f"{receiver.url}/redirected")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # whoever sent it was killed

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def of(self, job_id: str) -> list[Told]:
        """Return what was told of a job, in order."""
        return [each for each in self.told if each.body["job_id"] == job_id]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
