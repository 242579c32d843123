"""What is looked at in a Redis: before a start, so that one that cannot be costs nothing; and by the doctor."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from exesys import redisurl
from exesys.addresses import is_loopback, masked
from exesys.checks import Check
from exesys.config import Config
from exesys.errors import BootError
from exesys.store.keys import Keys

if TYPE_CHECKING:
    import redis

ANSWER_S = 3.0
SLOW_MS = 5.0
SKEW_S = 1.0
NEARLY = 0.9  # of maxmemory
OLDEST = (7, 0)
_THERE = "Change it there (CONFIG SET, and its configuration)"
_ASKED = (
    *("appendonly", "appendfsync", "save", "maxmemory-policy", "min-replicas-to-write", "protected-mode", "bind"),
    *("requirepass", "notify-keyspace-events"),
)
Info = Mapping[str, Any]
Settings = Mapping[str, str]


# -- before a start ---------------------------------------------------------------


def check_start(config: Config) -> None:
    """Raise BootError unless a Redis that will do answers where the settings say."""
    import redis

    from exesys.store import dial

    where = masked(config.redis.url)
    connection = dial.once(config.redis.url, ANSWER_S)
    try:
        info: Info = connection.info()
        _check_kind(config, where, info)
        connection.exists(Keys(config.redis.prefix)("format"))
    except redis.BusyLoadingError:
        return
    except redis.RedisError as error:
        trouble = dial.trouble_of(error)
        raise BootError(
            f"[redis] url is {where}, and no Redis can be used there: {dial.sentence(error)}",
            fix=trouble.fix if trouble else "Start it, correct the address, or leave it empty for a private Redis.",
        ) from error
    finally:
        connection.close()
    if _cluster(info):
        _check_data(config)


def _check_kind(config: Config, where: str, info: Info) -> None:
    version = str(info["redis_version"])
    if _release(version) < OLDEST:
        raise BootError(f"The Redis at {where} is {version}, and 7.0 is the oldest that will do.")
    if info.get("role") != "master":
        at = f"{info.get('master_host')}:{info.get('master_port')}"
        fix = f"Give [redis] url the address of its master ({at}), or those of the sentinels (sentinel://…)."
        raise BootError(f"The Redis at {where} is a replica, and takes no writes.", field="url", fix=fix)
    if _cluster(info) and not config.redis.prefix:
        fix = "Set [redis] prefix to a hash tag such as {s07}, and [redis] url to the node that owns its slot."
        text = f"The Redis at {where} is a node of a Redis Cluster, and our keys are to lie in one slot."
        raise BootError(text, field="prefix", fix=fix)


def _check_data(config: Config) -> None:
    """See to it that there is a database for functions: a cluster has but one."""
    import redis

    from exesys.store import dial

    connection = dial.once(config.redis_data_url, ANSWER_S)
    try:
        connection.ping()
    except redis.RedisError as error:
        text = f"ctx.redis would be {masked(config.redis_data_url)}, which cannot be used: {dial.sentence(error)}"
        fix = "A Redis Cluster has no second database: set [redis] data_url to a Redis that is none."
        raise BootError(text, field="data_url", fix=fix) from error
    finally:
        connection.close()


def _cluster(info: Info) -> bool:
    return str(info.get("cluster_enabled", 0)) == "1"


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


# -- the doctor -------------------------------------------------------------------


def look(config: Config) -> Iterator[Check]:
    """Look at the Redis that holds the jobs. Raises ConfigError for what is no address."""
    import redis

    from exesys.store import dial

    where = masked(config.redis_url)
    connection = dial.once(config.redis_url, ANSWER_S)
    try:
        connection.ping()
        times = []
        for _ in range(5):
            since = time.perf_counter()
            connection.ping()
            times.append((time.perf_counter() - since) * 1000)
        info: Info = connection.info()
        yield _latency(where, info, sorted(times)[2])
        yield _clock(connection)
        settings, forbidden = _settings(connection)
    except redis.RedisError as error:
        trouble = dial.trouble_of(error)
        fix = trouble.fix if trouble else "See `bin/exesys logs redis`."
        yield Check("redis", "fail", f"The Redis at {where} does not answer: {dial.sentence(error)}", fix)
        return
    finally:
        connection.close()
    found = [check for check in (each(config, info, settings) for each in _LOOKS) if check is not None]
    if forbidden:
        text = f"Redis does not tell its settings ({forbidden.rstrip('.')}): what depends on them was not looked at."
        yield Check("redis settings", "warn", text, "Allow `config|get` (docs/redis.md), or ask who runs it.")
    yield from found
    if not (found or forbidden):
        yield Check("redis settings", "ok", "Redis keeps what it is given (append-only file, no eviction).")


def _settings(connection: redis.Redis) -> tuple[Settings, str]:
    """Return those that are looked at, and why they cannot be seen, or ""."""
    import redis

    try:
        told: Any = connection.config_get(*_ASKED)
    except redis.ResponseError as error:
        return {}, str(error)
    return {str(name): str(value) for name, value in told.items()}, ""


def _latency(where: str, info: Info, ping_ms: float) -> Check:
    product = "Valkey" if "valkey_version" in info else "Redis"
    version = str(info.get("valkey_version") or info["redis_version"])
    text = f"{product} {version} at {where} answers in {ping_ms:.2f} ms."
    if _release(str(info["redis_version"])) < OLDEST:
        return Check("redis", "fail", text, "Use Redis 7.0 or newer, or Valkey 7.2 or newer: it lacks functions.")
    if ping_ms > SLOW_MS:
        return Check("redis", "warn", text, "Bring it nearer: each job waits for it several times.")
    return Check("redis", "ok", text)


def _clock(connection: redis.Redis) -> Check:
    """Compare its clock with ours, in the middle of the question."""
    before = time.time()
    told: Any = connection.time()
    off_s = told[0] + told[1] / 1e6 - (before + time.time()) / 2
    if abs(off_s) > SKEW_S:
        text = f"The clock of Redis is {abs(off_s):.1f} s {'ahead of' if off_s > 0 else 'behind'} the one of this host."
        fix = "Set both by NTP: records expire by that of Redis, and jobs with a time are due by ours."
        return Check("redis clock", "warn", text, fix)
    return Check("redis clock", "ok", f"Redis' clock is that of this host, but for {abs(off_s) * 1000:.0f} ms.")


def _durability(config: Config, info: Info, settings: Settings) -> Check | None:
    wrong = []
    if settings.get("appendonly", "yes") != "yes":
        without = "" if settings.get("save") else " and save is empty"
        wrong.append(f"appendonly is {settings['appendonly']}{without}, so a restart forgets {_forgets(settings)}")
    elif settings.get("appendfsync", "always") not in ("everysec", "always"):
        wrong.append(f"appendfsync is {settings['appendfsync']}, not everysec")
    if settings.get("maxmemory-policy", "noeviction") != "noeviction":
        wrong.append(f"maxmemory-policy is {settings['maxmemory-policy']}, not noeviction")
    if not wrong:
        return None
    fix = f"{_THERE}: otherwise accepted jobs can be lost."
    return Check("redis settings", "fail", f"Redis may lose jobs: {'; '.join(wrong)}.", fix)


def _forgets(settings: Settings) -> str:
    return "all since its last snapshot" if settings.get("save") else "every job"


def _disk(config: Config, info: Info, settings: Settings) -> Check | None:
    bad = [name for name in ("aof_last_write_status", "rdb_last_bgsave_status") if info.get(name, "ok") != "ok"]
    if not bad:
        return None
    text = f"Redis could not write its file the last time ({', '.join(bad)})."
    return Check("redis disk", "fail", text, "See the log of Redis, and make room on its disk.")


def _memory(config: Config, info: Info, settings: Settings) -> Check | None:
    used, most = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    if not most or used < NEARLY * most:
        return None
    text = (
        f"Redis has used {used * 100 // most} % of its maxmemory ({most >> 20} MiB): when it is full, it takes no job."
    )
    return Check("redis memory", "warn", text, "Raise maxmemory there, or keep results for a shorter time.")


def _replicas(config: Config, info: Info, settings: Settings) -> Check | None:
    behind = redisurl.read(config.redis_url).sentinels is not None
    wanted = config.redis.wait_replicas
    there = int(info.get("connected_slaves", 0))
    if there < wanted:
        text = f"Redis has {there} replicas, and [redis] wait_replicas is {wanted}: nothing is acknowledged."
        return Check("redis replicas", "fail", text, "Start its replicas, or lower wait_replicas.")
    if not behind or wanted or settings.get("min-replicas-to-write", "1") != "0":
        return None
    text = "Sentinels watch over Redis, and neither [redis] wait_replicas nor its min-replicas-to-write is set:"
    fix = "Set one of them to 1: a master that is cut off takes jobs that are lost when it comes back."
    return Check("redis replicas", "warn", f"{text} a fail-over can lose the last moments.", fix)


def _reach(config: Config, info: Info, settings: Settings) -> Check | None:
    """Anybody may come in: no password, no protection, an address that others reach."""
    if settings.get("protected-mode", "yes") != "no" or settings.get("requirepass", "-"):
        return None
    address = redisurl.read(config.redis_url)
    if address.options.get("password") or "@" in address.url.partition("?")[0]:
        return None  # the default user may still be open; but who set up users knows of it
    wide = [each for each in settings.get("bind", "").split() or ["*"] if not is_loopback(each.lstrip("-"))]
    if not wide:
        return None
    text = f"Redis listens on {', '.join(wide)} without a password, and its protected-mode is off: anybody may come in."
    return Check("redis reach", "fail", text, "Set a password or users there, and bind it to where it is needed.")


def _notifies(config: Config, info: Info, settings: Settings) -> Check | None:
    flags = settings.get("notify-keyspace-events", "KA")
    if "K" in flags and ("A" in flags or {"$", "g"} <= set(flags)):
        return None
    text = f"notify-keyspace-events is {flags!r}: stops of runners are seen only within a second."
    return Check("redis settings", "warn", text, f"{_THERE} to K$gx.")


_LOOKS: tuple[Callable[[Config, Info, Settings], Check | None], ...] = (
    *(_durability, _disk, _memory, _replicas, _reach, _notifies),
)
