"""Addresses of a Redis: their forms, their options, and which database they name. Pure.

    redis://[[USER]:PASSWORD@]HOST[:PORT][/DB][?OPTIONS]         rediss://… with TLS
    unix://[[USER]:PASSWORD@]/PATH[?db=DB&OPTIONS]
    sentinel://[[USER]:PASSWORD@]HOST[:PORT][,HOST[:PORT]…]/SERVICE[/DB][?OPTIONS]   sentinels://… with TLS

A user and a password are those of Redis; the sentinels have theirs as options.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote

SENTINEL_PORT = 26_379
FORMS = "redis://…, rediss://…, unix://…, sentinel://HOST:PORT,…/SERVICE, sentinels://…, or empty"
TLS = frozenset({"rediss", "sentinels"})
FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
TLS_OPTIONS = frozenset(
    {*FILES, "ssl_ca_path", "ssl_check_hostname", "ssl_cert_reqs", "ssl_ciphers", "ssl_min_version", "ssl_password"}
)
SENTINEL_OPTIONS = frozenset({"sentinel_username", "sentinel_password"})
OPTIONS = frozenset(
    {"db", "username", "password", "client_name", "socket_timeout", "socket_connect_timeout", "socket_keepalive"}
    | {"health_check_interval", "max_connections"}
)
_NODE = r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?"
_SENTINEL = re.compile(rf"(?:[^@]*@)?{_NODE}(?:,{_NODE})*/[A-Za-z0-9._-]+(?:/\d*)?")
_URL = re.compile(r"(redis|rediss|unix|sentinel|sentinels)://([^?]+)(?:\?(.*))?", re.DOTALL)


class Sentinels(NamedTuple):
    """What a sentinel:// address says beside what is so of every Redis."""

    nodes: tuple[tuple[str, int], ...]
    service: str
    username: str | None
    password: str | None


class Address(NamedTuple):
    """An address that was read. `url` is what redis-py takes; with `sentinels` its host is to be asked of them."""

    scheme: str
    url: str
    options: Mapping[str, str]
    sentinels: Sentinels | None

    @property
    def tls(self) -> bool:
        return self.scheme in TLS

    @property
    def files(self) -> dict[str, str]:
        """The files of TLS, by their options."""
        return {name: self.options[name] for name in FILES if name in self.options}


def read(text: str) -> Address:
    """Read an address. Raises ValueError with a sentence that quotes nothing but the names of options."""
    match = _URL.fullmatch(text)
    if not match:
        raise ValueError(f"it has none of the forms {FORMS}")
    scheme, place, query = match.groups()
    options = dict(parse_qsl(query or "", keep_blank_values=True))
    known = OPTIONS | (TLS_OPTIONS if scheme in TLS else frozenset())
    known |= SENTINEL_OPTIONS if scheme.startswith("sentinel") else frozenset()
    for name in options:
        if name not in known:
            raise ValueError(f"its option `{name:.40}` is none of {', '.join(sorted(known))}")
    for name in FILES:
        if name in options and not options[name].startswith("/"):
            raise ValueError(f"its option `{name}` needs the whole path of a file, from /")
    if not scheme.startswith("sentinel"):
        return Address(scheme, text, options, None)
    if not _SENTINEL.fullmatch(place):
        raise ValueError("it does not have the form sentinel://HOST:PORT,HOST:PORT/SERVICE/DB")
    login, _, rest = place.rpartition("@")
    hosts, _, path = rest.partition("/")
    service, _, database = path.partition("/")
    sentinels = Sentinels(
        tuple(_node(each) for each in hosts.split(",")),
        service,
        options.get("sentinel_username"),
        options.get("sentinel_password"),
    )
    kept = "&".join(part for part in (query or "").split("&") if part and not part.startswith("sentinel_"))
    url = f"{'rediss' if scheme in TLS else 'redis'}://{login}{'@' if login else ''}{service}/{database or 0}?{kept}"
    return Address(scheme, url, options, sentinels)


def check(text: str) -> str:
    """Take an address, or nothing. Raises ValueError."""
    if text:
        read(text)
    return text


def beside(url: str) -> str:
    """Return the address of another database of the same server: 1, or 2 when `url` names 1."""
    base, _, query = url.partition("?")
    options = [part for part in query.split("&") if part]
    taken = [part.removeprefix("db=") for part in options if part.startswith("db=")]
    service = re.fullmatch(r"(sentinels?://[^/]*(?:@[^/]*)?/[^/]+)(?:/(\d*))?", base)
    in_path = service or re.fullmatch(r"(rediss?://[^/]*)(?:/(\d*))?", base)
    if in_path:
        base = in_path[1]
        taken.append(in_path[2] or "0")
    database = 2 if taken and taken[0] == "1" else 1
    return f"{base}?{'&'.join([*(part for part in options if not part.startswith('db=')), f'db={database}'])}"


def _node(text: str) -> tuple[str, int]:
    host, port = text, ""
    if not text.endswith("]"):
        host, _, port = text.rpartition(":") if ":" in text else (text, "", "")
    return unquote(host.strip("[]")), int(port or SENTINEL_PORT)
