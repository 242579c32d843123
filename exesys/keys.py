"""What the command line does with keys: make, list and revoke them. `KINDS` says who does that for each role."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from exesys import command, home, keyring, keystore, output, process, tokens
from exesys.addresses import is_loopback
from exesys.bus import roles
from exesys.config import Config
from exesys.errors import BadCommand, NotFound, nearest
from exesys.tokens import LOCAL, Role
from exesys.usage import PROGRAM


class Made(NamedTuple):
    """A new key: what there is to know of it, how that is told to a person, and what to do with it."""

    shown: dict[str, Any]
    text: str
    note: str


class Kind(Protocol):
    """What makes, lists and revokes the keys of some roles."""

    def new(self, config: Config, given: argparse.Namespace) -> Made:
        """Make a key, of the role and name that were given. Raises ExesysError."""

    def listed(self, config: Config) -> list[dict[str, Any]]:
        """Return the keys there are: `name`, `role`, `created` and `expires` (or None) of each, at least."""

    def revoke(self, config: Config, role: str, name: str, old: bool) -> int:
        """Take the keys of a name away, or all but the newest. Returns how many that were."""


class Tokens:
    """REST's tokens."""

    def new(self, config: Config, given: argparse.Namespace) -> Made:
        if given.out is not None:
            raise BadCommand("a token goes into no file.", field="--out", fix="Leave it out: the token is printed.")
        name, rotate = given.name, given.rotate
        text, entry = keystore.add(config, Role[given.role], name, given.days, rotate)
        if name == LOCAL:
            where = str(keystore.local_file(config))
            return Made({**entry.shown(), "file": where}, where, "the token of this user's own tools is in this file.")
        note = "this token is shown once, and kept nowhere. Send it as `Authorization: Bearer TOKEN`."
        if rotate:
            note += f" The one before holds until `{PROGRAM} keys revoke {name} --old`."
            if given.days is None:
                note += " The new one holds until it is revoked: --days gives it a limit."
        return Made({**entry.shown(), "token": text}, text, note)

    def listed(self, config: Config) -> list[dict[str, Any]]:
        now_s = time.time()
        return [{**each.shown(), "expired": each.expired(now_s)} for each in keystore.read(config)]

    def revoke(self, config: Config, role: str, name: str, old: bool) -> int:
        gone = keystore.revoke(config, Role[role], name, old)
        if not keystore.read(config):
            wide = not (is_loopback(config.rest.host) and is_loopback(config.web.host))
            what = "REST lets nobody in" if wide else "whoever reaches loopback may ask REST for all"
            output.note(f"no token is left: {what}.")
        return gone


class BusKeys:
    """The keys of the bus, for CURVE. What `keys` calls bus-worker has the role worker there."""

    def new(self, config: Config, given: argparse.Namespace) -> Made:
        for option, used in (("--days", given.days is not None), ("--rotate", given.rotate)):
            if used:
                fix = "It holds until it is revoked; for a change make one of another name, and revoke this one then."
                raise BadCommand(f"a key of the bus knows no {option}.", field=option, fix=fix)
        out = Path(given.out or f"{given.name}.key").absolute()
        first = not keyring.Keyring(config).there
        entry = keyring.Keyring(config).new(_bus_role(given.role), given.name, out)
        note = (
            f"this file is the key: carry it to who is to come in, and leave no copy. The bus is {config.bus_endpoint}."
        )
        if not config.bus_endpoint.startswith("tcp://"):
            note += " Others reach it when [bus] endpoint is a tcp:// address."
        elif first and process.is_locked(home.lock(config)):
            note += f" The keys are asked for from the next start on: `{PROGRAM} restart`."
        return Made({**_shown(entry), "file": str(out)}, str(out), note)

    def listed(self, config: Config) -> list[dict[str, Any]]:
        return [_shown(each) for each in keyring.Keyring(config).entries()]

    def revoke(self, config: Config, role: str, name: str, old: bool) -> int:
        if old:
            raise BadCommand("a name has one key of the bus.", field="--old", fix="Leave --old out.")
        if (role, name) == (_BUS + "admin", keyring.LOCAL):
            fix = f"To have no keys of the bus, stop the system and delete {config.home}/keys/private/*.key."
            raise BadCommand("local is the key of this system's own daemons.", field="NAME", fix=fix)
        keyring.Keyring(config).revoke(_bus_role(role), name)
        return 1


_BUS = "bus-"


def _bus_role(role: str) -> str:
    return role.removeprefix(_BUS)


def _shown(entry: keyring.Entry) -> dict[str, Any]:
    return {
        **{"name": entry.name, "role": _BUS + entry.role, "public": entry.public},
        **{"created": tokens.moment(entry.since_ms // 1000), "expires": None},
    }


TOKENS, BUS_KEYS = Tokens(), BusKeys()
# Each role a key can have, and who sees to it. Those of one kind stand together.
KINDS: Mapping[str, Kind] = {
    **{role.name: TOKENS for role in tokens.GRANTED},
    **{_BUS + role: BUS_KEYS for role in roles.ROLES},
}


def new(config: Config, given: argparse.Namespace) -> int:
    command.check_name(given.name, "NAME")
    made = _kind(given.role).new(config, given)
    if given.json:
        output.show(made.shown)
    else:
        print(made.text)
        output.note(made.note)
    return 0


def list_(config: Config, given: argparse.Namespace) -> int:
    listed = _listed(config)
    if given.json:
        output.show({"keys": listed})
    elif listed:
        rows = [[each["name"], each["role"], each["created"], _until(each)] for each in listed]
        output.table(("name", "role", "created", "expires"), rows)
    else:
        output.note(f"there is no key. See `{PROGRAM} keys new --help`.")
    return 0


def revoke(config: Config, given: argparse.Namespace) -> int:
    if given.role is not None:
        _kind(given.role)
    named = [each for each in _listed(config) if each["name"] == given.name and given.role in (None, each["role"])]
    roles = list(dict.fromkeys(each["role"] for each in named))
    if not roles:
        close = nearest(given.name, [each["name"] for each in _listed(config)])
        fix = f"Did you mean {close}?" if close else f"See `{PROGRAM} keys list`."
        raise NotFound(f"there is no key {given.name[:128]}.", fix=fix)
    if len(roles) > 1:
        raise BadCommand(
            f"{given.name} is the name of keys with several roles: {', '.join(roles)}.",
            field="--role",
            fix=f"Say which: `{PROGRAM} keys revoke {given.name} --role {roles[0]}`.",
        )
    [role] = roles
    count = _kind(role).revoke(config, role, given.name, given.old)
    if given.json:
        output.show({"name": given.name, "role": role, "revoked": count})
    else:
        print(f"{given.name} ({role}): {count} {'key' if count == 1 else 'keys'} revoked; nobody comes in with it")
    return 0


def _kind(role: str) -> Kind:
    if role not in KINDS:
        close = nearest(role, list(KINDS))
        fix = f"Did you mean {close}?" if close else f"Known: {', '.join(KINDS)}."
        raise BadCommand(f"the role {role[:60]!r} is unknown.", field="ROLE", fix=fix)
    return KINDS[role]


def _listed(config: Config) -> list[dict[str, Any]]:
    return [each for kind in dict.fromkeys(KINDS.values()) for each in kind.listed(config)]


def _until(key: Mapping[str, Any]) -> str:
    return f"{key['expires']} (over)" if key.get("expired") else key["expires"] or "never"
