"""What is checked before a start, so that one that cannot be costs nothing."""

from __future__ import annotations

import contextlib
import errno
from typing import NamedTuple

from exesys import home, keyring, keystore, process, programs, redischecks, servers
from exesys.addresses import masked
from exesys.bus import sockets
from exesys.config import Config
from exesys.errors import BootError, ConfigError

KNOCK_S = 5.0


class Plan(NamedTuple):
    """What a start needs to know; made before anything is written."""

    redis: servers.Server | None
    mongo: servers.Server | None
    environment: dict[str, str]


def plan(config: Config, ours: frozenset[int] = frozenset()) -> Plan:
    """Find the servers and check what can be checked. Writes nothing.

    Ports in `ours` may be in use: it is the system itself that listens there.
    Raises BootError or ConfigError.
    """
    programs.check_home(config)
    if config.joins:
        return _joining(config)
    keystore.read(config)
    keystore.credentials(config)
    for section, host in (("rest", config.rest.host), ("web", config.web.host)):
        keystore.check_reach(config, section, host)
    keyring.guard(config)  # a bus that other hosts can reach needs keys
    for shard in config.shards:
        if shard.key and shard.name != config.bus.shard:
            keyring.identity_at(config, shard.name, shard.endpoint)  # whose file must be there
    redis = None if config.redis.url else servers.redis_server(config)
    mongo = None if config.mongo.uri else servers.mongo_server(config)
    if config.redis.url:
        redischecks.check_start(config)
    else:
        servers.check_not_lost(config)
    if redis and config.redis.backup:
        servers.check_writer(redis, servers.replica_data(config))
    for key, (host, port) in ports(config).items():
        if port not in ours:
            check_port(key, host, port)
    environment = _environment(config)
    if redis:
        environment["EXESYS_REDIS_SERVER"] = redis.path
    if mongo:
        port = config.mongo.port or _kept_port(config)
        environment["EXESYS_MONGO_SERVER"] = mongo.path
        environment["EXESYS_MONGO_PORT"] = str(port)
        environment["EXESYS_MONGO_URI"] = f"mongodb://127.0.0.1:{port}/?directConnection=true"
    for name, value in environment.items():
        programs.fit(name, value)
    return Plan(redis, mongo, environment)


def _environment(config: Config) -> dict[str, str]:
    found = {"EXESYS_HOME": str(config.home), **programs.settings(config)}
    return {**found, "EXESYS_INI": str(config.ini)} if config.ini else found


def _joining(config: Config) -> Plan:
    """Check what is needed to work for a router elsewhere: the key, and that the router lets it in."""
    identity = keyring.identity(config)
    if identity is None:
        text = f"[bus] key is set, and the bus at {config.bus_endpoint} has no keys."
        raise ConfigError(text, field="endpoint", fix="Give the router's tcp:// address, or no key.")
    if identity.role == "client":
        fix = "Make one there with `bin/exesys keys new bus-worker NAME`, and bring its file here."
        text = f"{config.bus.key} is a key bus-client, with which nobody may work."
        raise ConfigError(text, field="key", fix=fix)
    told = sockets.knock(config.bus_endpoint, identity, KNOCK_S)
    if told == sockets.REFUSED:
        fix = "Make one there with `bin/exesys keys new bus-worker NAME`, and bring its file here."
        raise BootError(f"The router at {config.bus_endpoint} does not let in {config.bus.key}.", field="key", fix=fix)
    if told == sockets.SILENT:
        fix = "Is it up, does [bus] endpoint there listen to this host, and does a firewall stand between?"
        raise BootError(f"No router answers at {config.bus_endpoint} within {KNOCK_S:g} s.", field="endpoint", fix=fix)
    return Plan(None, None, _environment(config))


def record(config: Config, made: Plan) -> home.Record:
    """Return what is noted in the home about a system started by this plan."""
    redis = f"{made.redis} ({made.redis.path})" if made.redis else masked(config.redis.url)
    mongo = f"{made.mongo} ({made.mongo.path})" if made.mongo else masked(config.mongo.uri)
    return home.Record(str(config.root), programs.settings(config), made.environment, redis, mongo)


def ports(config: Config) -> dict[str, tuple[str, int]]:
    """Return the ports that will be listened on, by key. Raises ConfigError when two are the same."""
    found = {"[rest] port": (config.rest.host, config.rest.port), "[web] port": (config.web.host, config.web.port)}
    if config.redis.port and not config.redis.url:
        found["[redis] port"] = ("127.0.0.1", config.redis.port)
    if config.mongo.port and not config.mongo.uri and config.mongo.server != "none":
        found["[mongo] port"] = ("127.0.0.1", config.mongo.port)
    if config.bus.endpoint.startswith("tcp://"):
        host, _, port = config.bus.endpoint.removeprefix("tcp://").rpartition(":")
        found["[bus] endpoint"] = ("0.0.0.0" if host == "*" else host.strip("[]"), int(port))
    seen: dict[int, str] = {}
    for key, (_, number) in found.items():
        if number in seen:
            raise ConfigError(f"{seen[number]} and {key} are both {number}.", fix="Give each a port of its own.")
        seen[number] = key
    return found


def check_port(key: str, host: str, port: int) -> None:
    """Raise BootError when nothing can listen on this address, saying who does."""
    error = process.bind_error(host, port)
    if error is None:
        return
    section, _, name = key.strip("[").partition("] ")
    fix = f"Stop it, or choose another with EXESYS_{section.upper()}_{name.upper()}."
    if error.errno != errno.EADDRINUSE:
        raise BootError(f"Nothing can listen on {host}:{port} ({key}): {error.strerror}.", field=key, fix=fix)
    holder = process.port_holder(port) or "another process"
    raise BootError(f"Port {port} of {host} ({key}) is in use by {holder}.", field=key, fix=fix)


def _kept_port(config: Config) -> int:
    """Return the port MongoDB had the last time while it is free, else a free one."""
    with contextlib.suppress(OSError, ValueError):
        port = int((config.run / "mongo.port").read_text())
        if 0 < port < 1 << 16 and process.bind_error("127.0.0.1", port) is None:
            return port
    return process.free_port("127.0.0.1")
