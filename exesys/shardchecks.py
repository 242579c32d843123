"""What the doctor looks at where there are several routers: whether the others answer, and know the same map."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator

from exesys import keyring
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
        text = f"The shard {shard.name} does not answer at {shard.endpoint}: its jobs wait, the others go on."
        yield Check("shards", "fail", text, "See `bin/exesys status` in its home.")
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
        with contextlib.closing(Reader(shard.redis, shard.prefix)) as reader:
            reader.ping()
    except ExesysError as error:
        text = f"The Redis of the shard {shard.name} does not answer here: {error.message}"
        yield Check("shards", "fail", text, "Its jobs cannot be shown by this REST. See `redis` of its section.")


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
