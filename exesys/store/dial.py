"""How a connection to Redis is made from its address: over TCP, TLS or a unix socket, or to whom the sentinels name.

Whoever speaks with Redis dials here. An address of sentinels leads to the
master of that moment: they are asked anew whenever a connection is made, and
what they name is taken only if it says itself that it is a master.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from exesys import redisurl, troubles
from exesys.addresses import masked
from exesys.errors import ConfigError, Unavailable

# A peer whose host is gone is noticed after 25 s also where no reply is waited for by the clock.
_KEEPALIVE = {socket.TCP_KEEPIDLE: 10, socket.TCP_KEEPINTVL: 5, socket.TCP_KEEPCNT: 3}
# redis-py takes the word in front off these. The first that fits counts: some are kinds of others.
_WORDS: dict[type[redis.RedisError], str] = {
    redis.exceptions.MasterDownError: "MASTERDOWN",
    redis.exceptions.OutOfMemoryError: "OOM",
    redis.exceptions.ReadOnlyError: "READONLY",
    redis.exceptions.BusyLoadingError: "LOADING",
    redis.exceptions.NoPermissionError: "NOPERM",
    redis.exceptions.AuthenticationError: "WRONGPASS",
    redis.exceptions.MovedError: "MOVED",
    redis.exceptions.AskError: "ASK",
    redis.exceptions.TryAgainError: "TRYAGAIN",
    redis.exceptions.ClusterDownError: "CLUSTERDOWN",
    redis.exceptions.ClusterCrossSlotError: "CROSSSLOT",
}


class StoreAway(Unavailable):
    """Redis cannot be reached, or cannot work just now."""

    def __init__(self, message: str, *, fix: str = "", trouble: troubles.Trouble = troubles.AWAY) -> None:
        super().__init__(message, fix=fix)
        self.trouble = trouble


def trouble_of(error: Exception) -> troubles.Trouble | None:
    """Tell what an error of redis-py, or one with the text of Redis, means for all that is asked of it."""
    if "NOAUTH" in str(error) or "Authentication required" in str(error):
        return troubles.of("NOAUTH")
    word = next((word for kind, word in _WORDS.items() if isinstance(error, kind)), "")
    return troubles.of(word or str(error))


def away(error: Exception, shard: str = "") -> StoreAway:
    """Say why Redis, or that of another shard, is of no use just now, and what to do."""
    trouble = trouble_of(error)
    if trouble is None:
        whose, there = (f"the Redis of the shard {shard}", " in its home") if shard else ("Redis", "")
        fix = f"See `bin/exesys status` and redis.log{there}."
        return StoreAway(f"{whose} does not answer: {sentence(error)}", fix=fix)
    text = f"{trouble.why[0].upper()}{trouble.why[1:]} It says: {sentence(error)}"
    if shard:
        text = f"of the shard {shard}: {text}"
    return StoreAway(text, fix=trouble.fix, trouble=trouble)


def sentence(error: Exception) -> str:
    """Return the text of an error with a full stop."""
    return f"{str(error).rstrip('.') or type(error).__name__}."


# -- dialling ---------------------------------------------------------------------


def client(url: str, timeout_s: float | None, **options: Any) -> redis.Redis:
    """Return a client of redis-py that connects when it is first used.

    `timeout_s` is the longest wait for a connection and for a reply, None for
    no limit on replies. `options` are those of redis-py's connections; those
    of the address come before them. Raises ConfigError.
    """
    limits = {"socket_timeout": timeout_s, **({"socket_connect_timeout": timeout_s} if timeout_s is not None else {})}
    return redis.Redis.from_pool(_pool(url, {**limits, **options}))


def once(url: str, timeout_s: float, **options: Any) -> redis.Redis:
    """Return a client as `client` does, whose calls are made once: whoever asks decides whether to ask again."""
    return client(url, timeout_s, retry=Retry(NoBackoff(), 0), **options)


def connection(url: str, timeout_s: float) -> Any:
    """Return one connection, not yet made, that speaks RESP2 and tries once. Raises ConfigError."""
    limits = {"socket_timeout": timeout_s, "socket_connect_timeout": timeout_s}
    return _pool(url, {**limits, "protocol": 2, "retry": Retry(NoBackoff(), 0)}).make_connection()


def address(url: str) -> redisurl.Address:
    """Read an address, and see to it that the files it names can be read. Raises ConfigError."""
    try:
        found = redisurl.read(url)
    except ValueError as error:
        fix = "In a name or a password `/`, `?`, `#`, `@` and `:` are written as %2F, %3F, %23, %40 and %3A."
        raise ConfigError(f"[redis] url is {masked(url)}: {error}.", field="url", fix=fix) from None
    for option, path in found.files.items():
        if not os.access(path, os.R_OK):
            text = f"[redis] url names {path} as its {option}, and no file there can be read."
            raise ConfigError(text, field="url", fix="Correct the path, or the rights of the file.")
    return found


def _pool(url: str, options: Mapping[str, Any]) -> redis.ConnectionPool:
    found = address(url)
    given = dict(options)
    if found.scheme != "unix":
        given |= {"socket_keepalive": True, "socket_keepalive_options": _KEEPALIVE}
    if found.tls and found.options.get("ssl_cert_reqs", "") != "none":
        given["ssl_check_hostname"] = True  # the default of redis-py depends on its version
    try:
        pool = redis.ConnectionPool.from_url(found.url, **given)
        if found.sentinels is not None:
            pool.connection_class = _TlsMaster if found.tls else _Master
            pool.connection_kwargs["sentinels"] = _Sentinels(found.sentinels, _theirs(pool.connection_kwargs))
            pool.connection_kwargs["redis_connect_func"] = _greet_master
    except ValueError:  # its text quotes parts of the address
        fix = "Its port, its database and the values of its options are to be looked at."
        raise ConfigError(f"[redis] url is {masked(url)}, which is no address of a Redis.", fix=fix) from None
    return pool


# -- sentinels --------------------------------------------------------------------


class _Sentinels:
    """The sentinels of one service. `options` are those of a connection to one of them."""

    def __init__(self, told: redisurl.Sentinels, options: Mapping[str, Any]) -> None:
        self._told = told
        self._options = {**options, "username": told.username, "password": told.password}
        self._nodes = told.nodes  # whoever answered last stands first

    def master(self, kind: type[redis.Connection]) -> tuple[str, int]:
        """Return host and port of the master. Raises redis.ConnectionError when none of them names one."""
        reasons = []
        for node in self._nodes:
            try:
                named = self._ask(kind, *node)
            except (redis.RedisError, OSError) as error:
                reasons.append(f"{node[0]}:{node[1]} says: {sentence(error).rstrip('.')}")
                continue
            if named is not None:
                self._nodes = (node, *(other for other in self._nodes if other != node))
                return named[0].decode(), int(named[1])
            reasons.append(f"{node[0]}:{node[1]} knows no {self._told.service}")
        raise redis.ConnectionError(f"no sentinel names the master of {self._told.service}: {'; '.join(reasons)}")

    def _ask(self, kind: type[redis.Connection], host: str, port: int) -> list[bytes] | None:
        connection: Any = kind(host=host, port=port, **self._options)
        try:
            connection.connect()
            connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._told.service)
            named: list[bytes] | None = connection.read_response(disable_decoding=True)
            return named
        finally:
            connection.disconnect()


def _theirs(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of the options of connections to Redis holds for sentinels, too."""
    kept = {name: value for name, value in options.items() if name.startswith(("socket_", "ssl_"))}
    return {**kept, "retry": Retry(NoBackoff(), 0), "protocol": 2}


class _ToMaster(redis.Connection):
    """A connection whose host and port are asked for each time it is made."""

    _plain: type[redis.Connection] = redis.Connection

    def __init__(self, *, sentinels: _Sentinels, **options: Any) -> None:
        super().__init__(**options)  # type: ignore[no-untyped-call]  # redis-py gives no types there
        self._sentinels = sentinels

    def _connect(self) -> Any:
        self.host, self.port = self._sentinels.master(self._plain)
        return super()._connect()  # type: ignore[no-untyped-call]  # nor there


class _Master(_ToMaster):
    pass


class _TlsMaster(_ToMaster, redis.SSLConnection):
    _plain = redis.SSLConnection


def _greet_master(connection: Any) -> None:
    """Log in, and see to it that a master is there: for a moment the sentinels name one that is not, or not yet."""
    connection.on_connect()
    connection.send_command("ROLE", check_health=False)
    role = connection.read_response(disable_decoding=True)[0]
    if role != b"master":
        raise redis.ConnectionError(f"{connection.host}:{connection.port} is a {role.decode()}, not yet the master")
