"""The settings: one immutable, validated object. Pure: text in, `Config` out.

Every key of `etc/exesys.ini` is a field below, with its default and its rule,
and can also be set as `EXESYS_<SECTION>_<KEY>`. `environment.py` does the
reading. A wrong value raises ConfigError naming file, line, key and what is
allowed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exesys import addresses, appconfig, callbacks, inifile, redisurl, sections, shards
from exesys.addresses import is_loopback
from exesys.appconfig import APPSERVER, AppServer
from exesys.errors import ConfigError
from exesys.queues import NAMES, QUEUE, WORKER, Queue, WorkerOf
from exesys.rules import Rule
from exesys.rules import key_of as _key
from exesys.rules import line_of as _line_of
from exesys.rules import matching as _matching
from exesys.rules import seconds as _seconds
from exesys.rules import size as _bytes
from exesys.rules import value_of as _value
from exesys.rules import whole as _int
from exesys.rules import yes_or_no as _yes_or_no
from exesys.shards import SHARD, ShardMap, ShardOf
from exesys.timerconfig import TIMER, TimerOf, check_timers

UNIX_PATH_MAX_BYTES = 107


_FREE = Rule(str, "any text")
_PORT = _int(1, 65_535)
_AUTO_PORT = Rule(_int(0, 65_535).parse, "a port, 1 to 65535, or 0 to choose a free one")
_HOST = Rule(addresses.read_host, "an address such as 127.0.0.1, or a name; wider than loopback needs tokens")


@dataclass(frozen=True)
class Functions:
    path: str = _key("modules", Rule(str, "directories, with ':' between"))


@dataclass(frozen=True)
class Rest:
    host: str = _key("127.0.0.1", _HOST)
    port: int = _key(5000, _PORT)
    threads: int = _key(64, _int(4, 1024))
    connections: int = _key(2000, _int(10, 100_000))
    streams: int = _key(200, _int(0, 10_000))
    names: tuple[str, ...] = _key((), Rule(addresses.read_names, "names of hosts, with ',' between, or empty"))
    origins: tuple[str, ...] = _key(
        (), Rule(addresses.read_origins, "origins such as https://example.org:8443, with ',' between, or empty")
    )


@dataclass(frozen=True)
class Web:
    host: str = _key("127.0.0.1", _HOST)
    port: int = _key(5001, _PORT)
    path: str = _key("", Rule(str, "a directory of your own pages, or empty"))


@dataclass(frozen=True)
class Redis:
    url: str = _key(
        "", Rule(redisurl.check, f"{redisurl.FORMS}; see docs/redis.md for the options behind `?`"), secret=True
    )
    data_url: str = _key(
        "",
        Rule(redisurl.check, "like url; empty: database 1 (2, when url names 1) of the same server"),
        secret=True,
    )
    server: str = _key("", Rule(str, "the path of a redis-server or valkey-server, or empty to search"))
    port: int = _key(0, Rule(_int(0, 65_535).parse, "a port for the private server, or 0 for its unix socket alone"))
    prefix: str = _key("", _matching(r"(\{[A-Za-z0-9_-]{1,16}\})?", "empty, or a hash tag like {s07}"))
    wait_replicas: int = _key(0, _int(0, 9))
    wait_ms: int = _key(1000, _int(10, 4000))
    backup: bool = _key(False, _yes_or_no())


@dataclass(frozen=True)
class Mongo:
    uri: str = _key("", _matching(r"(mongodb(\+srv)?://.+)?", "mongodb://…, or empty"), secret=True)
    port: int = _key(0, _AUTO_PORT)
    server: str = _key("", Rule(str, "the path of a mongod, 'none' for no private server, or empty to search"))
    database: str = _key("exesys", _matching(r"[A-Za-z0-9_-]{1,60}", "letters, digits, _ and -, at most 60"))


@dataclass(frozen=True)
class Bus:
    endpoint: str = _key(
        "",
        _matching(
            r"(ipc://.+|tcp://([A-Za-z0-9._-]+|\*|\[[0-9A-Fa-f:.]+\]):\d{1,5})?",
            "ipc:///path, tcp://address:port, or empty",
        ),
    )
    key: str = _key("", Rule(str, "the path of a key file, or empty for the system's own"))
    shard: str = _key("", _matching(f"({SHARD.name.pattern})?", f"the name of a shard: {SHARD.allowed}; or empty"))
    heartbeat_s: float = _key(1.0, _seconds(0.05, 60))
    misses: int = _key(5, _int(2, 100))
    pending: int = _key(20_000, _int(100, 1_000_000))


@dataclass(frozen=True)
class Worker:
    slots: int = _key(2, _int(1, 1024))
    queues: tuple[str, ...] = _key(("default",), NAMES)
    prefetch: int = _key(250, _int(0, 1000))
    max_jobs: int = _key(100_000, _int(1, 1_000_000_000))
    memory_bytes: int = _key(1 << 30, _bytes(32 << 20, 1 << 44))
    grace_s: float = _key(20.0, _seconds(0, 3600))
    kill_grace_s: float = _key(2.0, _seconds(0, 600))
    import_timeout_s: float = _key(30.0, _seconds(0.5, 3600))


@dataclass(frozen=True)
class Runner:
    capacity: int = _key(1000, _int(1, 100_000))
    grace_s: float = _key(10.0, _seconds(0, 3600))
    kill_grace_s: float = _key(2.0, _seconds(0, 600))
    max_failures: int = _key(7, _int(1, 1_000_000))
    max_losses: int = _key(50, _int(1, 1_000_000))
    backoff_s: float = _key(0.5, _seconds(0.01, 3600))
    max_backoff_s: float = _key(30.0, _seconds(0.01, 86_400))
    healthy_s: float = _key(2.0, _seconds(0, 86_400))


@dataclass(frozen=True)
class Controller:
    processes: int = _key(1, _int(1, 3))
    walk_s: float = _key(60.0, _seconds(0, 366 * 86_400))
    walk_rate: int = _key(500, _int(1, 1_000_000))


@dataclass(frozen=True)
class Callbacks:
    hosts: tuple[str, ...] = _key(
        (), Rule(callbacks.read_hosts, "names, *.names, addresses and networks, with ',' between, or empty")
    )
    tries: int = _key(10, _int(1, 1000))
    backoff_s: float = _key(5.0, _seconds(0.01, 3600))
    timeout_s: float = _key(10.0, _seconds(0.1, 300))


@dataclass(frozen=True)
class Logs:
    format: str = _key("text", _matching(r"text|json", "text or json"))


@dataclass(frozen=True)
class Limits:
    body_bytes: int = _key(8 << 20, _bytes(1024, 1 << 30))
    data_bytes: int = _key(1 << 20, _bytes(64, 1 << 28))
    depth: int = _key(100, _int(1, 400))
    array: int = _key(1000, _int(1, 100_000))
    rate: float = _key(0.0, Rule(_seconds(0, 1_000_000).parse, "requests a second, 0 to 1000000; 0 for no limit"))
    burst: int = _key(100, _int(1, 1_000_000))
    workflow_steps: int = _key(10_000, _int(2, 100_000))
    runners: int = _key(10_000, _int(1, 100_000))
    timers: int = _key(100_000, _int(1, 10_000_000))
    standby_s: float = _key(86_400.0, _seconds(1, 366 * 86_400))
    queue_depth: int = _key(5_000_000, _int(1, 1_000_000_000))
    timeout_s: float = _key(3600.0, _seconds(0.01, 366 * 86_400))
    max_crashes: int = _key(3, _int(1, 1000))
    max_losses: int = _key(10, _int(1, 1000))
    result_ttl_s: float = _key(86_400.0, _seconds(1, 366 * 86_400))
    error_ttl_s: float = _key(14 * 86_400.0, _seconds(1, 366 * 86_400))
    log_bytes: int = _key(64 << 10, _bytes(1024, 16 << 20))


@dataclass(frozen=True)
class Config:
    """All settings, and where the project and its home are.

    `root` is the project's directory (relative paths in the ini start
    there); `home` holds run/, data/ and log/.
    """

    root: Path
    home: Path
    ini: Path | None = None
    functions: Functions = Functions()
    rest: Rest = Rest()
    web: Web = Web()
    redis: Redis = Redis()
    mongo: Mongo = Mongo()
    bus: Bus = Bus()
    worker: Worker = Worker()
    runner: Runner = Runner()
    controller: Controller = Controller()
    callbacks: Callbacks = Callbacks()
    logs: Logs = Logs()
    limits: Limits = Limits()
    appservers: tuple[AppServer, ...] = ()
    queues: tuple[Queue, ...] = ()
    workers: tuple[WorkerOf, ...] = ()
    timers: tuple[TimerOf, ...] = ()
    shards: tuple[ShardOf, ...] = ()

    @property
    def run(self) -> Path:
        return self.home / "run"

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def log(self) -> Path:
        return self.home / "log"

    @property
    def bus_endpoint(self) -> str:
        return self.bus.endpoint or f"ipc://{self.run}/bus"

    def shard_map(self) -> ShardMap:
        """Return who owns which jobs; without shards all are ours."""
        return ShardMap(self.bus.shard, {shard.name: shard.endpoint for shard in self.shards})

    @property
    def bus_is_wide(self) -> bool:
        """Whether other hosts can reach the bus, so that it needs keys."""
        scheme, _, where = self.bus_endpoint.partition("://")
        return scheme == "tcp" and not is_loopback(where.rpartition(":")[0].strip("[]"))

    @property
    def joins(self) -> bool:
        """Whether this home works for a system on another host, whose router it goes to with a key."""
        return bool(self.bus.key)

    @property
    def redis_url(self) -> str:
        return self.redis.url or f"unix://{self.run}/redis?db=0"

    @property
    def redis_data_url(self) -> str:
        """The database functions work in: never the one that holds job state."""
        return self.redis.data_url or redisurl.beside(self.redis_url)

    @property
    def rest_url(self) -> str:
        return addresses.url(self.rest.host, self.rest.port)

    @property
    def web_url(self) -> str:
        return addresses.url(self.web.host, self.web.port)

    @property
    def module_dirs(self) -> tuple[Path, ...]:
        return tuple(self.root / part for part in self.functions.path.split(":") if part)

    @property
    def lease_s(self) -> float:
        """How long a worker may be silent before its jobs go elsewhere."""
        return self.bus.heartbeat_s * self.bus.misses

    def for_worker(self, name: str) -> Config:
        """Return the settings that hold for the worker of a section [worker:NAME]. Raises ConfigError."""
        found = next((each for each in self.workers if each.name == name), None)
        if found is None:
            raise ConfigError(f"there is no worker {name}.", fix=f"Declare [worker:{name}].")
        own = dataclasses.replace(self.worker, slots=found.slots, queues=found.queues)
        return dataclasses.replace(self, worker=own)

    def appserver(self, name: str) -> AppServer | None:
        """Return the application server of this name, None when it is not declared."""
        return next((each for each in self.appservers if each.name == name), None)


SECTIONS: dict[str, type[Any]] = {
    "functions": Functions,
    "rest": Rest,
    "web": Web,
    "redis": Redis,
    "mongo": Mongo,
    "bus": Bus,
    "worker": Worker,
    "runner": Runner,
    "controller": Controller,
    "callbacks": Callbacks,
    "logs": Logs,
    "limits": Limits,
}


def _variable(section: str, key: dataclasses.Field[Any]) -> str:
    return f"EXESYS_{section}_{key.name}".upper()


SECRETS = {
    _variable(name, key): (name, key.name)
    for name, section in SECTIONS.items()
    for key in dataclasses.fields(section)
    if key.metadata["secret"]
}
PLAIN = frozenset(_variable(name, key) for name, section in SECTIONS.items() for key in dataclasses.fields(section))
# The sections of any name: how the settings call them all, and what they are.
KINDS: dict[str, sections.Kind] = {
    "appservers": APPSERVER,
    "queues": QUEUE,
    "workers": WORKER,
    "timers": TIMER,
    "shards": SHARD,
}


def is_secret(variable: str) -> bool:
    """Tell whether what this variable sets may hold a password."""
    return variable in SECRETS or (variable not in PLAIN and any(kind.is_secret(variable) for kind in KINDS.values()))


def parse(text: str, ini: Path | None, environ: Mapping[str, str], root: Path, cwd: Path) -> Config:
    """Build the settings from the ini's text and the environment.

    `EXESYS_HOME` counts from `cwd`, its default `var` from `root`. Raises
    ConfigError.
    """
    source = str(ini) if ini else "the settings"
    known = {name: [key.name for key in dataclasses.fields(section)] for name, section in SECTIONS.items()}
    given = inifile.read(text, source, known, list(KINDS.values()))
    home = cwd / environ["EXESYS_HOME"] if environ.get("EXESYS_HOME") else root / "var"
    parts: dict[str, Any] = {}
    for name, section in SECTIONS.items():
        values: dict[str, Any] = {}
        for key in dataclasses.fields(section):
            variable = _variable(name, key)
            if variable in environ:
                values[key.name] = _value(key, environ[variable], f"the environment variable {variable}")
            elif key.name in given.get(name, {}):
                line = _line_of(text, name, key.name)
                values[key.name] = _value(key, given[name][key.name], f"{source}, line {line}: [{name}] {key.name}")
        parts[name] = section(**values)
    for many, kind in KINDS.items():
        parts[many] = tuple(sections.declared(kind, text, source, given, environ, PLAIN))
    appconfig.check_apart(parts["appservers"])
    lines = {name.partition(":")[2]: _line_of(text, name, None) for name in given if name.startswith("timer:")}
    check_timers(parts["timers"], source, lines)
    config = Config(root=root, home=home.absolute(), ini=ini, **parts)
    _check_backup(config, source, _line_of(text, "redis", "backup"))
    shards.check(config.shards, config.bus.shard, config.bus_endpoint, config.redis_url, config.redis.prefix)
    return _check_paths(config)


def _check_backup(config: Config, source: str, line: int) -> None:
    if config.redis.backup and config.redis.url:
        where = f"{source}, line {line}" if line else source
        text = "backup is yes, and [redis] url names a Redis that is not ours: who runs it gives it a replica."
        raise ConfigError(f"{where}: [redis] {text}", field="backup", fix="Take backup away, or url.")


def _check_paths(config: Config) -> Config:
    # The longest socket beside the front one is that of a worker: bus.w-<16 hex>.
    longest = len(str(config.run / "bus.w-0123456789abcdef").encode())
    if longest > UNIX_PATH_MAX_BYTES:
        raise ConfigError(
            f"EXESYS_HOME is {config.home}: its sockets' names would have {longest} bytes,"
            f" and a unix socket's name holds {UNIX_PATH_MAX_BYTES}.",
            field="EXESYS_HOME",
            fix="Choose a shorter directory.",
        )
    if config.bus_endpoint.startswith("ipc://"):
        for server in config.appservers:
            path = f"{config.bus_endpoint.removeprefix('ipc://')}.a-{server.name}-{server.processes}"
            if len(path.encode()) > UNIX_PATH_MAX_BYTES:
                raise ConfigError(
                    f"the application server {server.name}: its socket {path} would have {len(path.encode())} bytes,"
                    f" and a unix socket's name holds {UNIX_PATH_MAX_BYTES}.",
                    field=server.name,
                    fix="Give the server a shorter name, or choose a shorter EXESYS_HOME.",
                )
    return config
