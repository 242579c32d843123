"""Systems for the tests of this directory."""

import os
import shutil

import netns
import pytest
import redises
from harness import FORKS, System, missing_services, mongo_path, valkey_path

_SYSTEMS = pytest.StashKey[list[System]]()


def pytest_configure(config):
    config.stash[_SYSTEMS] = []


def pytest_unconfigure():
    FORKS.close()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that failed shows the logs of the systems that run."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for system in item.config.stash[_SYSTEMS]:
            report.sections.append((f"logs of {system.home}", system.logs()))


def lacking(what):
    """A service is not there: skip at home, fail where everything has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"this machine lacks {what}", pytrace=False)
    pytest.skip(f"this machine lacks {what}")


@pytest.fixture(scope="session")
def services():
    missing = missing_services()
    if missing:
        lacking(missing)


@pytest.fixture(scope="session")
def network():
    """Network namespaces can be made here."""
    if missing := netns.missing():
        lacking(missing)


def _systems(pytestconfig):
    made = []

    def make(start=True, **options):
        system = System(**options)
        made.append(system)
        pytestconfig.stash[_SYSTEMS].append(system)
        if start:
            system.up()
        return system

    yield make
    for system in made:
        pytestconfig.stash[_SYSTEMS].remove(system)
        system.end()


@pytest.fixture
def make(services, pytestconfig):
    """Makes systems that end with the test."""
    yield from _systems(pytestconfig)


@pytest.fixture(scope="module")
def make_module(services, pytestconfig):
    """Makes systems that end with the module."""
    yield from _systems(pytestconfig)


@pytest.fixture(scope="session")
def make_session(services, pytestconfig):
    yield from _systems(pytestconfig)


@pytest.fixture(scope="module")
def field(services):
    """Redis servers of a test's own, as they are in the field."""
    with redises.Field(valkey_path() or shutil.which("redis-server")) as field:
        yield field


@pytest.fixture(scope="session")
def shared(make_session):
    """The system for all tests that do it no harm: on Valkey, and with a MongoDB, where these are to be had."""
    return make_session(mongo_server=mongo_path() or "none", redis_server=valkey_path())


@pytest.fixture(scope="session")
def need():
    """Call it with what was found of something, and its name."""

    def check(found, name):
        if not found:
            lacking(name)

    return check


@pytest.fixture
def with_mongo(need):
    need(mongo_path(), "a MongoDB: neither mongod nor secantusd-py is here")
