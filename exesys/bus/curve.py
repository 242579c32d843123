"""The keys of CURVE, as the sockets need them; each is Z85, 40 characters. Pure."""

from __future__ import annotations

from typing import NamedTuple


class Pair(NamedTuple):
    """Somebody's own keys."""

    public: bytes
    secret: bytes


class Identity(NamedTuple):
    """What a peer needs to connect: its own keys, and the public one of whom it connects to.

    `role` is what its file says of it; what counts is what the router knows.
    """

    own: Pair
    server: bytes
    role: str = ""


class Guard(NamedTuple):
    """What whoever binds needs: its own keys, and the domain by which `zap` knows the socket."""

    own: Pair
    domain: str
