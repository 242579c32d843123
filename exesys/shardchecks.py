"""What the doctor looks at where there are several routers: whether the others answer, and know the same map."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

from exesys import keyring
from exesys.bus import sockets
from exesys.bus.connection import Connection
from exesys.bus.inflight import Desk
from exesys.bus.messages import Welcome
from exesys.checks import Check
from exesys.config import Config
from exesys.errors import ExesysError
from exesys.shards import ShardMap, ShardOf
from exesys.store.reader import Reader

ANSWER_S = 2.0


def look(config: Config, running: bool) -> Iterator[Check]:
    """Ask the router and the Redis of each shard, our own router too: it may have been started with an older map."""
    if not config.shards:
        return
    ours, well = config.shard_map(), True
    for shard in config.shards:
        for check in _ask(config, ours, shard, running):
            well = False
            yield check
    if well:
        yield Check("shards", "ok", f"This is {ours.own} of {', '.join(ours.endpoints)}, and all know the same map.")


def _ask(config: Config, ours: ShardMap, shard: ShardOf, running: bool) -> Iterator[Check]:
    if shard.name == ours.own and not running:
        return
    try:
        welcome = _welcome(config, shard)
    except ExesysError as error:
        yield Check("shards", "fail", f"The shard {shard.name}: {error.message}", error.fix)
        return
    if welcome is None:
        yield _silent(config, shard)
        return
    if welcome.shard != shard.name or welcome.shards != ours.endpoints:
        there = ", ".join(f"{name} at {at}" for name, at in sorted(welcome.shards.items())) or "none"
        calls = welcome.shard or "nothing"
        text = f"The shard {shard.name} has another map: it calls itself {calls}, and knows {there}."
        yield Check("shards", "fail", text, "Let all homes have the same sections [shard:NAME], and restart them.")
    if shard.name == ours.own:
        return
    if not shard.redis:
        text = f"Jobs of the shard {shard.name} cannot be shown here."
        yield Check("shards", "warn", text, f"Set `redis` in [shard:{shard.name}].")
        return
    try:
        with contextlib.closing(Reader(shard.redis, shard.prefix, shard.name)) as reader:
            epoch = reader.epoch()
    except ExesysError as error:
        text = f"{error.message[0].upper()}{error.message[1:]}"
        yield Check("shards", "fail", text, "Its jobs cannot be shown by this REST. See `redis` of its section.")
        return
    if epoch != welcome.epoch:
        text = f"The Redis that [shard:{shard.name}] names is not that of its router: its jobs seem not to be there."
        yield Check("shards", "fail", text, f"Correct `redis` in [shard:{shard.name}]: address, database, `prefix`.")


def _silent(config: Config, shard: ShardOf) -> Check:
    """Say why the router of a shard does not greet us, as far as it can be known."""
    identity = keyring.identity_at(config, shard.name, shard.endpoint) if shard.name != config.bus.shard else None
    if identity is not None and sockets.knock(shard.endpoint, identity, ANSWER_S) == sockets.REFUSED:
        text = f"The shard {shard.name} does not let us in at {shard.endpoint}: it does not know our key."
        fix = f"Make one in its home: `bin/exesys keys new bus-client NAME`; `key` in [shard:{shard.name}] names it."
        return Check("shards", "fail", text, fix)
    text = f"The shard {shard.name} does not answer at {shard.endpoint}: its jobs wait, the others go on."
    fix = "See `bin/exesys status` in its home."
    if shard.endpoint.startswith("tcp://"):
        fix += f" If it runs there: does it have keys, and is `key` in [shard:{shard.name}] one of them?"
    return Check("shards", "fail", text, fix)


def _welcome(config: Config, shard: ShardOf) -> Welcome | None:
    """Return what the router of a shard says to a client; None when it does not answer. Raises ConfigError."""
    own = shard.name == config.bus.shard
    identity = keyring.identity(config) if own else keyring.identity_at(config, shard.name, shard.endpoint)
    desk = Desk(secrets.token_hex(8), 1)
    endpoint = config.bus_endpoint if own else shard.endpoint
    line = Connection(endpoint, desk, identity, shard.name)
    try:
        line.wait_greeted(ANSWER_S)
        return desk.welcome
    finally:
        line.end()
