"""What a key lets its holder do on the bus: its role, checked for each message. Pure.

A peer that came by a way which only the system's own user can take (a socket
in the 0700 run directory, or loopback while there are no keys) has no key,
and may do all. Else libzmq has proved by CURVE which key it holds (`zap`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from exesys.bus import messages as m

# role of a key -> the roles that HELLO may name
PEERS: Mapping[str, frozenset[str]] = {
    "client": frozenset({"client"}),
    "worker": frozenset({"client", "worker", "runner"}),
    "admin": frozenset({"client", "worker", "runner", "app", "controller"}),
}
ROLES = tuple(PEERS)
REVOKED = "this key is not let in any more"
_ASK: frozenset[type[Any]] = frozenset(
    {m.Hello, m.Submit, m.Status, m.Change, m.Start, m.Sync, m.Heartbeat, m.Drain, m.Bye}
)
# A worker's functions are clients, too. Whatever is not named here is for admin alone.
_SENDS: Mapping[str, frozenset[type[Any]]] = {
    "client": _ASK,
    "worker": _ASK | {m.Result, m.Telling, m.Exits},
}


def named(role: str, name: str) -> str:
    """Spell a key's role and name as one word, which libzmq puts beside each message of its holder."""
    return f"{role}:{name}"


def role_of(key: str) -> str:
    """Return the role of a key that was spelled by `named`; "" of none."""
    return key.partition(":")[0]


def why_not(key: str, message: m.Message) -> str:
    """Say why the holder of a key may not send a message; "" when it may."""
    role = role_of(key)
    if not key or role == "admin":
        return ""
    if isinstance(message, m.Hello) and message.role not in PEERS.get(role, ()):
        return f"a key of the role {role} lets in no {message.role[:40]}"
    if type(message) not in _SENDS.get(role, ()):
        return f"a key of the role {role} does not allow {type(message).__name__.upper()}"
    return ""
