"""The keys of the bus, in files: who may connect over TCP, and as what.

    HOME/keys/private/router.key         the router's own pair
    HOME/keys/private/local.key          a pair of this system's own daemons
    HOME/keys/public/ROLE/NAME.key       whom it lets in; the directory is the role

A key file is JSON. One that has a secret is for its owner alone (0600), in a
directory for its owner alone (0700). The file that `bin/exesys keys new` makes for
another host has all that host needs: its pair, and the router's public key.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import zmq

from exesys import keystore
from exesys.bus.curve import Identity, Pair
from exesys.bus.roles import ROLES, named
from exesys.command import check_name
from exesys.config import Config
from exesys.errors import BadCommand, BootError, ConfigError, Conflict, NotFound

LOCAL = "local"
_KEY_CHARS = 40  # of Z85


class Entry(NamedTuple):
    """A key that is let in."""

    role: str
    name: str
    public: str
    since_ms: int


class Keyring:
    """The keys of one system. Makes nothing until a key is asked for."""

    def __init__(self, config: Config) -> None:
        self._config = config
        self._home = keystore.directory(config)
        self._public = self._home / "public"
        self._private = self._home / "private"
        self._seen: tuple[object, ...] = ()
        self._known: dict[bytes, str] = {}

    @property
    def server(self) -> Pair | None:
        """The router's own pair; None while there are no keys. Raises BootError, ConfigError."""
        for directory in (self._home, self._private, self._public):
            if os.path.lexists(directory):
                keystore.check_directory(directory)
        path = self._private / "router.key"
        return _read(path).own if path.exists() else None

    @property
    def there(self) -> bool:
        """Whether any key was made."""
        return (self._private / "router.key").exists()

    def local(self) -> Identity | None:
        """Return the pair of this system's own daemons, None while there are no keys. Raises ConfigError."""
        path = self._private / f"{LOCAL}.key"
        return _read(path) if path.exists() else None

    def known(self) -> dict[bytes, str]:
        """Return who is let in: public key -> role and name. Looks at the files again when one came or went."""
        seen = tuple(_stamp(self._public / role) for role in ROLES)
        if seen != self._seen:
            self._known = {each.public.encode(): named(each.role, each.name) for each in self.entries()}
            self._seen = seen
        return self._known

    def entries(self) -> Iterator[Entry]:
        """Give the keys that are let in, by role and name. A file that is none is passed over."""
        for role in ROLES:
            for path in sorted((self._public / role).glob("*.key")):
                try:
                    told = json.loads(path.read_bytes())
                    public = str(told["public"])
                    since_ms = int(path.stat().st_mtime_ns // 1_000_000)
                except (OSError, ValueError, KeyError, TypeError):
                    continue
                if len(public) == _KEY_CHARS:
                    yield Entry(role, path.stem, public, since_ms)

    def new(self, role: str, name: str, out: Path) -> Entry:
        """Make a key, and the file for its holder. The first one makes the system's own, too.

        Raises Conflict when there is one of that name, BootError or ConfigError when a file cannot be written.
        """
        check_name(name, "name")
        if role not in ROLES:
            raise BadCommand(f"the role is {role!r:.40}.", field="role", fix=f"Give one of {', '.join(ROLES)}.")
        path = self._public / role / f"{name}.key"
        if path.exists():
            fix = f"Revoke it first (`bin/exesys keys revoke {name}`), or choose another name."
            raise Conflict(f"there is a key bus-{role} {name} already.", field="name", fix=fix)
        with keystore.changing(self._config):
            server = self.server or self._begin()
            pair = _pair()
            _hand_out(out, _spelled(role, name, pair, server.public))
            try:
                self._let_in(role, name, pair)
            except BootError:
                out.unlink()
                raise
        return Entry(role, name, pair.public.decode(), path.stat().st_mtime_ns // 1_000_000)

    def revoke(self, role: str, name: str) -> None:
        """Let a key in no more. Raises NotFound."""
        path = self._public / role / f"{check_name(name, 'name')}.key"
        try:
            path.unlink()
        except FileNotFoundError:
            raise NotFound(f"there is no key bus-{role} {name}.", fix="See `bin/exesys keys list`.") from None

    def _begin(self) -> Pair:
        """Make the system's own keys; the router's last, for with it they are there."""
        for directory in (self._public, *(self._public / role for role in ROLES)):
            keystore.make_directory(directory)
        server, local = _pair(), _pair()
        keystore.write_private(self._private / f"{LOCAL}.key", _spelled("admin", LOCAL, local, server.public))
        self._let_in("admin", LOCAL, local)
        keystore.write_private(self._private / "router.key", _spelled("router", "router", server, server.public))
        return server

    def _let_in(self, role: str, name: str, pair: Pair) -> None:
        text = json.dumps({"role": role, "name": name, "public": pair.public.decode()}) + "\n"
        keystore.write_private(self._public / role / f"{name}.key", text)


def guard(config: Config) -> Pair | None:
    """Return the router's own pair where the bus needs one; None where it is for this user, or this host, alone.

    Raises ConfigError where other hosts could come in and there are no keys.
    """
    if not config.bus_endpoint.startswith("tcp://"):
        return None
    server = Keyring(config).server
    if server is None and config.bus_is_wide:
        raise ConfigError(
            f"[bus] endpoint is {config.bus_endpoint}, which other hosts can reach, and there are no keys.",
            field="endpoint",
            fix="Make one for each that is to come in, such as `bin/exesys keys new bus-worker HOST`.",
        )
    return server


def identity(config: Config) -> Identity | None:
    """Return the keys with which a peer goes to the bus; None when it goes without. Raises ConfigError."""
    if not config.bus_endpoint.startswith("tcp://"):
        return None
    if config.bus.key:
        return _read(config.root / config.bus.key)
    return Keyring(config).local()


def identity_at(config: Config, shard: str, endpoint: str) -> Identity | None:
    """Return the keys with which a peer goes to the bus of another shard. Raises ConfigError."""
    if not endpoint.startswith("tcp://"):
        return None
    key = next((each.key for each in config.shards if each.name == shard), "")
    if key:
        return _read(config.root / key)
    return identity(config)


def _read(path: Path) -> Identity:
    text = keystore.read_private(path)
    if text is None:
        fix = "Make one with `bin/exesys keys new`, where the router runs, and bring it here."
        raise ConfigError(f"there is no key file {path}.", field="key", fix=fix)
    try:
        told = json.loads(text)
        keys = [str(told[part]).encode() for part in ("public", "secret", "server")]
    except (ValueError, KeyError, TypeError) as error:
        fix = "Make a new one with `bin/exesys keys new`, where the router runs."
        raise ConfigError(f"{path} is no key file, or a damaged one.", field="key", fix=fix) from error
    if any(len(key) != _KEY_CHARS for key in keys):
        raise ConfigError(f"{path} is no key file: its keys do not have {_KEY_CHARS} characters.", field="key")
    public, secret, server = keys
    return Identity(Pair(public, secret), server, str(told.get("role", "")))


def _spelled(role: str, name: str, pair: Pair, server: bytes) -> str:
    """Write the text of a key file."""
    told = {"role": role, "name": name, "public": pair.public.decode(), "secret": pair.secret.decode()}
    return json.dumps({**told, "server": server.decode()}, indent=1) + "\n"


def _hand_out(path: Path, text: str) -> None:
    """Write a key for its holder, wherever that is wanted: a new file, which only its owner may read."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
    except FileExistsError:
        raise Conflict(f"{path} is there already.", field="out", fix="Choose another file, or delete it.") from None
    except OSError as error:
        fix = "Name another file with --out."
        raise ConfigError(f"{path} cannot be written: {error.strerror}.", field="out", fix=fix) from error


def _pair() -> Pair:
    return Pair(*zmq.curve_keypair())


def _stamp(directory: Path) -> tuple[int, int] | None:
    try:
        told = directory.stat()
    except OSError:
        return None
    return told.st_mtime_ns, told.st_nlink
