"""Callbacks: where the end of a step may be told, what is said there, and how it is signed. Pure.

A command names a URL (`notify`), and strangers send commands: so a host is
told only if the settings list it, and an address inside one's own network only
if it is listed as an address (server-side request forgery: OWASP's cheat
sheet). The router checks what can be seen in the URL; what a name resolves to
is checked when it is sent.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from exesys.errors import BadCommand

LONGEST_URL = 2048
LONGEST_BACKOFF_S = 3600.0
URL_SCHEMA = {"type": "string", "format": "uri", "pattern": "^[Hh][Tt][Tt][Pp][Ss]?://", "maxLength": LONGEST_URL}
PORTS = {"http": 80, "https": 443}
FORM = "Write it like https://host/path, with http or https."
_URL = re.compile(r"(https?)://([^/?#]*)([^#]*)(#.*)?", re.IGNORECASE)
_PRINTABLE = re.compile(r"[!-~]+")
_AUTHORITY = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_LABEL = re.compile(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"\d+|0x[0-9a-f]*")  # so ends an address in an odd spelling, and no name

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Target(NamedTuple):
    """A URL, taken apart. `host` is in lower case, an IPv6 address without its brackets."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def origin(self) -> str:
        """The URL without what may be secret: for logs."""
        return f"{self.scheme}://{self.netloc}"

    @property
    def netloc(self) -> str:
        """What the header Host says."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def target(url: Any) -> Target:
    """Take a URL apart. Raises BadCommand saying what is wrong with it."""
    if not isinstance(url, str):
        raise _bad("`notify` must be a string, the URL to tell.")
    if len(url) > LONGEST_URL:
        raise _bad(f"`notify` has {len(url):,} characters; at most {LONGEST_URL:,} are allowed.", "Send a shorter URL.")
    # What may hold a password is not shown.
    shown = f"`notify` is {url[:100]!r}" if "@" not in url else "`notify` (not shown, for it holds an @)"
    if not _PRINTABLE.fullmatch(url):
        raise _bad(f"{shown}: a URL has neither spaces nor letters outside ASCII.", "Write those as %20 and the like.")
    found = _URL.fullmatch(url)
    if not found:
        raise _bad(f"{shown}, which is no http or https URL.")
    scheme, authority, path = found[1].lower(), found[2], found[3]
    if "@" in authority:
        raise _bad("`notify` holds a user's name or password.", "Leave it out: callbacks are signed instead.")
    parts = _AUTHORITY.fullmatch(authority)
    port = int(parts[2] or PORTS[scheme]) if parts else 0
    if not parts or not 1 <= port <= 65_535:
        raise _bad(f"{shown}, whose host or port is none.")
    host = parts[1].strip("[]").lower().removesuffix(".")
    if address_of(host) is None and (":" in host or not _is_name(host)):
        raise _bad(f"{shown}, whose host is neither a name nor an address in its usual form.")
    return Target(scheme, host, port, path if path.startswith("/") else f"/{path}")


def check_url(url: Any) -> str:
    """Return the URL if it has the form of one. Raises BadCommand."""
    target(url)
    return str(url)


def _bad(text: str, fix: str = FORM) -> BadCommand:
    return BadCommand(text, field="notify", fix=fix)


def _is_name(host: str) -> bool:
    labels = host.split(".")
    fitting = len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels)
    return fitting and not _NUMBER.fullmatch(labels[-1])


def address_of(host: str) -> Address | None:
    """Return the address that is written here, None when it is none. One inside IPv6 is taken out."""
    try:
        return plain(ipaddress.ip_address(host))
    except ValueError:
        return None


def plain(address: Address) -> Address:
    """Return an IPv4 address that is written as an IPv6 one as what it is."""
    return getattr(address, "ipv4_mapped", None) or address


_TRANSLATED = tuple(map(ipaddress.IPv6Network, ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")))


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the Internet's: not private, nor a way to one that may be."""
    odd = address.is_private or address.is_loopback or address.is_link_local or address.is_multicast
    odd = odd or address.is_reserved or address.is_unspecified or not address.is_global
    return not odd and not any(address in network for network in _TRANSLATED if address.version == 6)


def read_hosts(text: str) -> tuple[str, ...]:
    """Read the setting: names, *.names, addresses and networks, commas between. Raises ValueError."""
    hosts = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for host in hosts:
        if not _is_network(host) and not _is_name(host.removeprefix("*.")):
            raise ValueError
    return hosts


def _is_network(host: str) -> bool:
    try:
        ipaddress.ip_network(host)
    except ValueError:
        return False
    return True


class Hosts:
    """Who may be told. `listed` is the setting, as `read_hosts` gives it."""

    def __init__(self, listed: Sequence[str]) -> None:
        self._listed = listed
        self._networks: list[Network] = [ipaddress.ip_network(host) for host in listed if _is_network(host)]
        self._names = {host for host in listed if not _is_network(host)}

    def check(self, url: str) -> Target:
        """Return the URL's parts, if its host may be told, as far as it can be seen there. Raises BadCommand."""
        found = target(url)
        address = address_of(found.host)
        if self.lists(address) if address else self._has_name(found.host):
            return found
        what = "address" if address else "host"
        raise _bad(f"`notify` names the {what} {found.host}, which callbacks may not reach.", self._allowed())

    def may_reach(self, address: Address) -> bool:
        """Tell whether a host that is allowed by its name may have this address."""
        return is_public(plain(address)) or self.lists(address)

    def lists(self, address: Address) -> bool:
        """Tell whether the settings list an address itself, or its network."""
        inner = plain(address)
        return any(inner in network for network in self._networks if network.version == inner.version)

    def _has_name(self, host: str) -> bool:
        if host in self._names:
            return True
        labels = host.split(".")
        return any(f"*.{'.'.join(labels[at:])}" in self._names for at in range(1, len(labels)))

    def _allowed(self) -> str:
        if not self._listed:
            return "Allowed: none. List the host in [callbacks] hosts, and restart."
        return f"Allowed: {', '.join(self._listed)}. See [callbacks] hosts."


def delay_s(base_s: float, tries: int, jitter: float) -> float:
    """Return the wait after so many tries: exponential, half of it by chance (`jitter` in [0, 1))."""
    longest = min(base_s * 2.0 ** min(tries - 1, 64), LONGEST_BACKOFF_S)
    return longest / 2 * (1 + jitter)


def signature(key: bytes, timestamp: str, body: bytes) -> str:
    """Return what the header X-ExeSys-Signature says."""
    digest = hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest()
    return f"sha256={digest}"
