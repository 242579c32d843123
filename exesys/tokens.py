"""Tokens: who may ask REST, and for what. Pure.

A token is `exs_` and 256 random bits. Its file keeps the SHA-256 of it: a
password would need a slow hash against guessing, 256 bits cannot be guessed.
"""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
from collections.abc import Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from exesys.command import check_name
from exesys.errors import BadCommand

PREFIX = "exs_"
RANDOM_BYTES = 32
MOST = 100  # so that to compare with all of them stays cheap
LOCAL = "local"  # the token of this user's own tools
_DIGEST_BYTES = 32
_VERSION = 1
_KEYS = {"name", "role", "sha256", "created", "expires"}


class Role(IntEnum):
    """What may be done; each role may do what the one before may. No token has `anyone`."""

    anyone = 0
    read = 1
    submit = 2
    admin = 3


GRANTED = (Role.read, Role.submit, Role.admin)


class Token(NamedTuple):
    """One entry of the file. Times are seconds since 1970; `expires_s` is 0 for never."""

    name: str
    role: Role
    digest: bytes
    created_s: int
    expires_s: int = 0

    def expired(self, now_s: float) -> bool:
        return 0 < self.expires_s <= now_s

    def shown(self) -> dict[str, Any]:
        """Return what people may see of it."""
        expires = moment(self.expires_s) if self.expires_s else None
        return {"name": self.name, "role": self.role.name, "created": moment(self.created_s), "expires": expires}


def spell(chance: bytes) -> str:
    """Write 32 random bytes as a token."""
    return PREFIX + base64.urlsafe_b64encode(chance).decode().rstrip("=")


def digest_of(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def find(tokens: Sequence[Token], given: str) -> Token | None:
    """Return the entry of a token, also an expired one. Each entry is compared, in constant time."""
    digest = digest_of(given)
    found = None
    for token in tokens:
        if hmac.compare_digest(token.digest, digest):
            found = token
    return found


def bearer(header: str) -> str:
    """Return the token in a header Authorization (RFC 6750), "" when there is none."""
    scheme, _, token = header.strip().partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def dump(tokens: Sequence[Token]) -> str:
    """Write the file."""
    entries = []
    for token in tokens:
        entry = {"name": token.name, "role": token.role.name, "sha256": token.digest.hex()}
        entry["created"] = moment(token.created_s)
        if token.expires_s:
            entry["expires"] = moment(token.expires_s)
        entries.append(entry)
    return json.dumps({"version": _VERSION, "tokens": entries}, indent=1) + "\n"


def parse(text: bytes) -> tuple[Token, ...]:
    """Read the file. Raises ValueError for anything `dump` does not write."""
    try:
        whole = json.loads(text)
        entries = whole["tokens"]
        known = set(whole) == {"version", "tokens"} and whole["version"] == _VERSION and isinstance(entries, list)
        if not known or len(entries) > MOST:
            raise ValueError("its form is unknown")
        return tuple(_entry(entry) for entry in entries)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError("its form is unknown") from error


def _entry(entry: dict[str, Any]) -> Token:
    if not set(entry) <= _KEYS:
        raise ValueError("an entry has an unknown key")
    role = Role[entry["role"]]
    digest = bytes.fromhex(entry["sha256"])
    if role not in GRANTED or len(digest) != _DIGEST_BYTES:
        raise ValueError("an entry has no such role, or no SHA-256")
    try:
        name = check_name(entry["name"], "name")
    except BadCommand as error:
        raise ValueError("an entry has no name") from error
    expires_s = _seconds(entry["expires"]) if "expires" in entry else 0
    return Token(name, role, digest, _seconds(entry["created"]), expires_s)


def moment(seconds: int) -> str:
    """Write a moment in UTC."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _seconds(text: str) -> int:
    return int(dt.datetime.strptime(text, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=dt.UTC).timestamp())
