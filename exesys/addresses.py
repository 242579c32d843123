"""Addresses: how wide one reaches, how it is written, and what of it may be shown. Pure."""

from __future__ import annotations

import ipaddress
import re

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9_-]{0,61}[A-Za-z0-9])?"
# The last label is no number: such a name would be read as an address in one of its old forms (127.1).
_NAME = re.compile(rf"({_LABEL}\.)*(?!\d+$){_LABEL}")
_MOST_NAME = 253
_ORIGIN = re.compile(r"https?://(?P<host>[^/?#@\s]+)")
_LOGIN = re.compile(r"//([^/:@]*)(:?).*@", re.DOTALL)  # up to the last @: one in a password should be written as %40
_SECRET_OPTION = re.compile(r"([?&][^=&]*(?:pass|secret|token|properties)[^=&]*=)[^&#]+", re.IGNORECASE)
# All addresses of a machine, as settings and ZeroMQ write them -> one by which it reaches itself.
_ANY = {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1", "[::]": "[::1]"}


def read_host(text: str) -> str:
    """Take an IP address or the name of a host. Raises ValueError."""
    if not is_ip(text) and not (len(text) <= _MOST_NAME and _NAME.fullmatch(text)):
        raise ValueError(text)
    return text


def read_names(text: str) -> tuple[str, ...]:
    """Take names of hosts with `,` between, in small letters. Raises ValueError."""
    return tuple(read_host(part.strip().lower()) for part in text.split(",") if part.strip())


def read_origins(text: str) -> tuple[str, ...]:
    """Take origins (RFC 6454) with `,` between, in small letters. Raises ValueError."""
    origins = tuple(part.strip().lower() for part in text.split(",") if part.strip())
    for origin in origins:
        found = _ORIGIN.fullmatch(origin)
        if not found:
            raise ValueError(origin)
        read_host(host_of(found["host"]))
    return origins


def is_ip(text: str) -> bool:
    """Tell whether this is an IP address as it is written, without brackets and port."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Tell whether only this machine reaches what listens there. A name but `localhost` is not known to be so."""
    return host == "localhost" or (is_ip(host) and ipaddress.ip_address(host).is_loopback)


def host_of(header: str) -> str:
    """Return the host of a header Host, or of an origin's end, in small letters; without port and brackets."""
    text = header.strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0]


def near(host: str) -> str:
    """Return where this machine reaches what listens on `host`."""
    return _ANY.get(host, host)


def is_any(host: str) -> bool:
    """Tell whether what listens on `host` listens on all addresses of its machine."""
    return host in _ANY


def url(host: str, port: int) -> str:
    """Write the address of what listens there, as this machine reaches it."""
    host = near(host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def masked(address: str) -> str:
    """Hide the password in an address: `redis://user:***@host`. Rather too much than too little."""
    address = _LOGIN.sub(lambda found: f"//{found[1]}:***@" if found[2] else "//***@", address, count=1)
    return _SECRET_OPTION.sub(r"\1***", address)


def masked_wrong(text: str) -> str:
    """Hide what may be a password in a text that was to be an address, and is none."""
    shown = masked(text)
    return f"***{text[text.rindex('@') :]}" if shown == text and "@" in text else shown
