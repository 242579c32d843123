"""What may be wrong with this installation, in sentences, each with what to do about it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

from exesys import (
    asking,
    following,
    home,
    keystore,
    machine,
    mending,
    outdated,
    output,
    preflight,
    process,
    reach,
    redischecks,
    servers,
    shardchecks,
)
from exesys.addresses import is_loopback, masked
from exesys.checks import Check
from exesys.config import Config
from exesys.errors import ConfigError, ExesysError, StateError, Unavailable

_TAKE_OUT = "Change its `end` in the ini, or take the section out; then `bin/exesys restart`."
LATELY_S = 86_400.0
SOON_S = 7 * 86_400.0
ANSWER_S = 3.0


def doctor(config: Config, broken: ConfigError | None = None) -> list[Check]:
    """Look at everything; starts nothing and changes nothing.

    When the settings are `broken`, those of the system that runs count; if none
    runs, what depends on them is left out.
    """
    running = None
    if process.is_locked(home.lock(config)):
        running = home.read_record(config)
    started = home.as_started(config, running) if running else config
    found: list[Check] = [Check("settings", "fail", broken.message, broken.fix)] if broken else []
    if running and not (broken or started.joins):
        found += outdated.settings(config, running)
    for name, look in _LOOKS.items():
        if started.joins and name in _OF_THE_ROUTER:
            continue
        if broken and not running and name not in _WITHOUT_SETTINGS:
            continue
        try:
            found += look(started, running is not None)
        except ExesysError as error:
            found.append(Check(name, "fail", error.message, error.fix))
    return found


def _keys(config: Config, running: bool) -> Iterator[Check]:
    kept = keystore.read(config)
    for section, host in (("rest", config.rest.host), ("web", config.web.host)):
        keystore.check_reach(config, section, host)
        if not is_loopback(host):
            text = f"[{section}] host is {host}, wider than loopback, where all is sent in clear text."
            yield Check("keys", "warn", text, "Let a proxy with TLS stand before it: docs/security.md.")
    now_s = time.time()
    for token in kept:
        if token.expires_s and token.expires_s - now_s < SOON_S:
            what = "has expired" if token.expired(now_s) else "expires within a week"
            fix = f"`bin/exesys keys new {token.role.name} {token.name} --rotate`; later revoke the --old one."
            yield Check("keys", "warn", f"The token {token.name} ({token.role.name}) {what}.", fix)
    keystore.credentials(config)
    text = f"{len(kept)} tokens." if kept else "No token is defined: whoever reaches loopback may do all."
    yield Check("keys", "ok", text)


def _ports(config: Config, running: bool) -> Iterator[Check]:
    ports = preflight.ports(config)
    if running:
        listed = ", ".join(f"{key} {port}" for key, (_, port) in ports.items())
        yield Check("ports", "ok", f"In use by this system: {listed}.")
        return
    for key, (host, port) in ports.items():
        preflight.check_port(key, host, port)
    yield Check("ports", "ok", f"Free: {', '.join(f'{key} {port}' for key, (_, port) in ports.items())}.")


def _redis(config: Config, running: bool) -> Iterator[Check]:
    if not config.redis.url and not running:
        server = servers.redis_server(config)
        yield Check("redis", "ok", f"The private server will be {server} ({server.path}).")
        return
    yield from redischecks.look(config)


def _backup(config: Config, running: bool) -> Iterator[Check]:
    if running and config.redis.backup:
        yield Check("backup", *following.check(config))
    elif not config.redis.url and not running:
        servers.check_not_lost(config)


def _mongo(config: Config, running: bool) -> Iterator[Check]:
    if not config.mongo.uri:
        server = servers.mongo_server(config)
        if server is None:
            fix = "Install mongod, set [mongo] uri, or `pip install SecantusDB` to try it out."
            yield Check("mongo", "warn", "There is no MongoDB: ctx.mongo raises an error in functions.", fix)
        else:
            yield Check("mongo", "ok", f"The private server will be {server} ({server.path}).")
        return
    import pymongo
    import pymongo.errors

    where = masked(config.mongo.uri)
    client: Any = pymongo.MongoClient(config.mongo.uri, serverSelectionTimeoutMS=int(ANSWER_S * 1000))
    try:
        info = client.server_info()
    except pymongo.errors.PyMongoError as error:
        first = str(error).split(",", 1)[0]
        fix = "See `bin/exesys logs mongo`."
        yield Check("mongo", "fail", f"The MongoDB at {where} does not answer: {first}.", fix)
        return
    finally:
        client.close()
    if "secantusVersion" in info:
        fix = "Install mongod, or set [mongo] uri, before you rely on it."
        yield Check("mongo", "warn", f"{where} is SecantusDB {info['secantusVersion']}, which is for trials.", fix)
    else:
        yield Check("mongo", "ok", f"MongoDB {info['version']} at {where} answers.")


def _programs(config: Config, running: bool) -> Iterator[Check]:
    if not running:
        yield Check("programs", "warn", "ExeSys does not run.", "Start it: bin/start_exe_sys.sh")
        return
    states = home.supervisor(config).programs()
    down = [f"{each.name} is {each.state}" for each in states if each.state != "RUNNING"]
    if down:
        logs = ", ".join(f"`bin/exesys logs {each.name}`" for each in states if each.state != "RUNNING")
        fix = f"See {logs}; `bin/exesys up` starts what does not run."
        yield Check("programs", "fail", f"{'; '.join(down)}.", fix)
    else:
        yield Check("programs", "ok", f"{len(states)} programs run: {', '.join(each.name for each in states)}.")


def _leftovers(config: Config, running: bool) -> Iterator[Check]:
    if running:
        return
    left = [f"{each.program} ({each.pid})" for each in process.programs_of(config.home)]
    if left:
        text = f"Programs of this home run without their supervisord: {', '.join(left)}."
        yield Check("leftovers", "fail", text, "End them: `bin/exesys down`.")
    else:
        yield Check("leftovers", "ok", "No program of this home was left over.")


def _functions(config: Config, running: bool) -> Iterator[Check]:
    missing = [str(path) for path in config.module_dirs if not path.is_dir()]
    if missing:
        yield Check("functions", "warn", f"No such directory: {', '.join(missing)}.", "See [functions] path.")
    if not running:
        return
    told = _ask(config, "functions")
    broken = told.get("broken", {})
    for name, text in broken.items():
        last = (str(text).strip().splitlines() or ["for an unknown reason"])[-1]
        yield Check("functions", "fail", f"{name} cannot be called: {last}.", "Correct it; then `bin/exesys reload`.")
    if not broken:
        yield Check("functions", "ok", f"{len(told.get('functions', []))} functions, none broken.")


def _apps(config: Config, running: bool) -> Iterator[Check]:
    if not running or not config.appservers:
        return
    listed: Any = _ask(config, "apps")["apps"]
    failed = [each for each in listed if each["reason"] or each["state"] == "away"]
    for each in failed:
        text = f"The application server {each['name']} does not start: {each['reason'].rstrip('.') or 'it is away'}."
        yield Check("apps", "fail", text, f"See `bin/exesys app show {each['name']}`; then `bin/exesys reload`.")
    if not failed:
        yield Check("apps", "ok", f"{len(listed)} application servers: {', '.join(each['name'] for each in listed)}.")


def _queues(config: Config, running: bool) -> Iterator[Check]:
    if not running:
        return
    from exesys import waiting
    from exesys.store.reader import Reader

    reader = Reader(config.redis_url, config.redis.prefix)
    try:
        foreign = reader.foreign_queues()
        left = waiting.unserved(reader, _ask(config, "workers")["workers"], _ask(config, "functions")["functions"])
        paused = {queue: jobs for queue, jobs in reader.depths(sorted(reader.paused() - left.keys())).items() if jobs}
    except ExesysError:
        return  # said under redis or functions
    finally:
        reader.close()
    for key in foreign:
        text = f"{key} is a key of another kind: the queue has no settings, and none of its jobs can be handed out."
        yield Check("queues", "fail", text, "Rename or delete that key.")
    for queue, jobs in left.items():
        text = f"No worker serves the queue {queue}, in which {_jobs_wait(jobs)}."
        yield Check("queues", "warn", text, "Add it to [worker] queues, and then `bin/exesys restart`.")
    for queue, jobs in paused.items():
        text = f"The queue {queue} is paused, and {_jobs_wait(jobs)} in it."
        yield Check("queues", "warn", text, f"Let it go on: `bin/exesys queue resume {queue}`.")
    if not (left or foreign or paused):
        yield Check("queues", "ok", "No job was found that waits in a queue without a worker, or in a paused one.")


def _jobs_wait(count: int) -> str:
    return "1 job waits" if count == 1 else f"{count} jobs wait"


def _router(config: Config, running: bool) -> Iterator[Check]:
    """Look whether the router of another host lets us in."""
    if not (running and config.joins):
        return
    with contextlib.closing(reach.connect(config)) as client:
        workers = client.snapshot("workers")["workers"]
    ours = sum(each["host"] == socket.gethostname() for each in workers)
    if ours:
        yield Check("router", "ok", f"The router at {config.bus_endpoint} knows {ours} of this host's workers.")
    else:
        text = f"The router at {config.bus_endpoint} knows no worker of this host."
        yield Check("router", "fail", text, "See `bin/exesys logs worker`.")


def _upkeep(config: Config, running: bool) -> Iterator[Check]:
    if not running:
        return
    from exesys.store.reader import Reader

    with contextlib.closing(Reader(config.redis_url, config.redis.prefix)) as reader:
        totals = mending.totals(reader.mended())
    since_ms = int((time.time() - LATELY_S) * 1000)
    for kind, (count, at_ms) in sorted(totals.items()):
        if at_ms >= since_ms:
            when = output.when(at_ms)
            text = f"Mended in Redis, {count} in all, the last {when}: {kind} ({mending.REPAIRS.get(kind, 'unknown')})."
            fix = "See `bin/exesys logs controller` for which; write nothing to this Redis by hand."
            yield Check("upkeep", "warn", text, fix)
    if all(at_ms < since_ms for _, at_ms in totals.values()):
        yield Check("upkeep", "ok", "Nothing had to be mended in Redis lately.")


def _timers(config: Config, running: bool) -> Iterator[Check]:
    if not running:
        return
    from exesys import schedule, ticker, timerviews
    from exesys.store.timetable import Timetable

    with contextlib.closing(Timetable(config.redis_url, config.redis.prefix)) as table:
        records = [record for record in table.read(table.names()) if record.there]
        if not table.controlled():
            fix = "See `bin/exesys status` and `bin/exesys logs controller`."
            yield Check("controller", "fail", "No controller is active: timers stand still, and so does upkeep.", fix)
    there = {record.name: record.kept for record in records if not record.trouble}
    refused = [timer.name for timer in config.timers if not schedule.same(timer.fields(), there.get(timer.name, {}))]
    for name in sorted(refused):
        other = " The one that ticks under its name is another, or what it was before." if name in there else ""
        fix = "See `bin/exesys logs controller` for why. It is put again until it is taken."
        yield Check("timers", "warn", f"The timer {name} of the ini was not taken.{other}", fix)
    well = not refused
    for declared in config.timers:
        timer = timerviews.declared(declared.name, declared.fields())
        if why := timerviews.spent(timer, time.time_ns() // 1_000_000):
            well = False
            yield Check("timers", "warn", f"The timer {timer.name} of the ini never ticks: {why}.", _TAKE_OUT)
    for record in records:
        try:
            _, progress = ticker.read(record)
        except StateError as error:
            well = False
            yield Check("timers", "fail", error.message, error.fix)
            continue
        if progress.recent and progress.recent[0].what == "refused":
            well = False
            fix = f"Mend the timer or what it calls; see `bin/exesys timer show {record.name}`."
            yield Check("timers", "warn", f"The last tick of {record.name} was refused: {progress.reason}", fix)
    if well:
        yield Check("timers", "ok", f"{len(records)} timers, none of them refused.")


def _ask(config: Config, what: str) -> dict[str, Any]:
    """Ask REST. Raises Unavailable."""
    try:
        status, told = asking.ask(config, "GET", f"/{what}", timeout_s=ANSWER_S)
    except (OSError, asking.HTTPException) as error:
        raise Unavailable(f"REST does not tell the {what}: {error}.", fix="See `bin/exesys logs rest`.") from error
    if status == 200 and isinstance(told, dict):
        return told
    problem = told.get("error", {}) if isinstance(told, dict) else {}
    text = f"REST does not tell the {what}: {status}, {problem.get('message', 'no JSON')}"
    raise Unavailable(text, fix=problem.get("fix", "") or "See `bin/exesys logs rest`.")


_LOOKS: dict[str, Callable[[Config, bool], Iterator[Check]]] = {
    "python": machine.python,
    "packages": machine.packages,
    "libzmq": machine.libzmq,
    "home": machine.home,
    "keys": _keys,
    "disk": machine.disk,
    "sockets": machine.sockets,
    "ports": _ports,
    "redis": _redis,
    "backup": _backup,
    "mongo": _mongo,
    "programs": _programs,
    "leftovers": _leftovers,
    "router": _router,
    "shards": shardchecks.look,
    "functions": _functions,
    "modules": outdated.modules,
    "apps": _apps,
    "queues": _queues,
    "timers": _timers,
    "upkeep": _upkeep,
}
# What a home that works for a router elsewhere has not.
_OF_THE_ROUTER = ("keys", "ports", "redis", "backup", "mongo", "functions", "apps", "queues", "timers", "upkeep")
# What stands the same whatever the settings are.
_WITHOUT_SETTINGS = ("python", "packages", "libzmq", "home", "disk", "sockets", "programs", "leftovers")
