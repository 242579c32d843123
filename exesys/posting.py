"""One POST to a host that a stranger named: to a checked address, bounded in time and size.

The name is resolved once, the addresses are checked, and the connection goes
to one of those: a name that resolves to another one a moment later (DNS
rebinding) reaches nothing. Redirects are not followed, proxies not used.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import time
from collections.abc import Callable, Mapping

from exesys.callbacks import Address, Hosts, Target, plain
from exesys.errors import ExesysError

READ_BYTES = 4096  # of the answer's body, which nobody needs
MOST_ADDRESSES = 4


class NotPosted(ExesysError):
    """The POST was not taken; the sentence says why. Whether the receiver has seen it is not known."""

    code = "not_posted"


class Withheld(ExesysError):
    """It was not sent, since it may no longer be."""

    code = "withheld"


class Post:
    """One POST under way. Another thread may `cut` it when it is over `until`."""

    def __init__(self, target: Target, hosts: Hosts, timeout_s: float) -> None:
        self.target = target
        self.until = time.monotonic() + timeout_s
        self._hosts = hosts
        self._timeout_s = timeout_s
        self._socket: socket.socket | None = None

    def cut(self) -> None:
        """End it: whoever waits for the receiver goes on at once."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)

    def send(
        self, headers: Mapping[str, str], body: bytes, may_send: Callable[[], bool], tls: Callable[[], ssl.SSLContext]
    ) -> None:
        """Send it, and return when it was taken (2xx). `may_send` is asked last. Raises NotPosted, Withheld."""
        try:
            self._send(headers, body, may_send, tls)
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() >= self.until or isinstance(error, TimeoutError):
                raise NotPosted(f"no answer within {self._timeout_s:g} s.") from error
            told = str(error) or type(error).__name__
            raise NotPosted(f"{told.rstrip('.')}.") from error
        finally:
            if self._socket is not None:
                self._socket.close()

    def _send(
        self, headers: Mapping[str, str], body: bytes, may_send: Callable[[], bool], tls: Callable[[], ssl.SSLContext]
    ) -> None:
        target = self.target
        self._socket = self._connect(self._addresses())
        if target.scheme == "https":
            self._socket = tls().wrap_socket(self._socket, server_hostname=target.host)
        connection = http.client.HTTPConnection(target.host, target.port)
        connection.auto_open = 0  # never by a way of its own
        connection.sock = self._socket
        if not may_send():
            raise Withheld("it may no longer be sent from here.")
        connection.request("POST", target.path, body, {"Host": target.netloc, "Connection": "close", **headers})
        answer = connection.getresponse()
        if time.monotonic() >= self.until:  # what was cut off may look like a short answer
            raise TimeoutError
        with contextlib.suppress(OSError, http.client.HTTPException):
            answer.read(READ_BYTES)
        if not 200 <= answer.status < 300:
            hint = " (redirects are not followed)" if 300 <= answer.status < 400 else ""
            raise NotPosted(f"the answer was {answer.status}{hint}.")

    def _addresses(self) -> list[Address]:
        """Resolve the name; return the addresses that may be reached."""
        target = self.target
        try:
            found = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise NotPosted(f"{target.host} cannot be resolved: {error}.") from error
        texts = dict.fromkeys(str(entry[4][0]) for entry in found)
        addresses = [plain(ipaddress.ip_address(text.partition("%")[0])) for text in texts]
        good = [address for address in addresses if self._hosts.may_reach(address)]
        if not good:
            listed = ", ".join(map(str, addresses[:MOST_ADDRESSES]))
            raise NotPosted(f"{target.host} is {listed}, which is not public, and not listed in [callbacks] hosts.")
        return good[:MOST_ADDRESSES]

    def _connect(self, addresses: list[Address]) -> socket.socket:
        problem: OSError = TimeoutError()
        for address in addresses:
            left_s = self.until - time.monotonic()
            if left_s <= 0:
                break
            try:
                return socket.create_connection((str(address), self.target.port), left_s)
            except OSError as error:
                problem = error
        raise problem
