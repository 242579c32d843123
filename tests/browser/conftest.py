"""A real system, a real Chromium, and pages that are watched while a test drives them."""

from __future__ import annotations

import os
import shutil
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import MODULES, System, missing_services

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage"]
SIZE = {"width": 1280, "height": 800}
WITHIN_MS = 15_000
LOOPBACK = ("127.0.0.1", "localhost")
INI = """
[appserver:words]
class = word_dict:Dictionary

[timer:nightly]
cmd = echo
data = "tick"
cron = 30 2 * * *
zone = Europe/Rome
"""


def lacking(what: str) -> None:
    """It is not there: skip at home, fail where everything has to be there."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"this machine lacks {what}", pytrace=False)
    pytest.skip(f"this machine lacks {what}")


@pytest.fixture(scope="session")
def chromium():
    """The browser, for the whole run."""
    path = next(filter(None, map(shutil.which, PROGRAMS)), None)
    if path is None:
        lacking("Chromium: apt-get install chromium")
    try:
        from playwright.sync_api import expect, sync_playwright
    except ImportError:
        lacking("playwright: .venv/bin/pip install playwright")
    expect.set_options(timeout=WITHIN_MS)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=OPTIONS)
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def make_system() -> Iterator[Callable[..., System]]:
    """Makes systems that end with the run."""
    if lack := missing_services():
        lacking(lack)
    made: list[System] = []

    def make(**options) -> System:
        system = System([Path(__file__).parent / "modules", *MODULES], **options)
        made.append(system)
        system.up()
        return system

    yield make
    for system in made:
        system.end()


@pytest.fixture(scope="session")
def system(chromium, make_system):
    """The system for all tests that do it no harm."""
    return make_system(ini=INI, worker_slots=4)


@pytest.fixture(scope="module")
def client(system):
    with system.client() as client:
        yield client


class Watched:
    """Pages of one browser profile. What they complain of, and whom they ask, is written down."""

    def __init__(self, browser, **options) -> None:
        self.context = browser.new_context(**{"viewport": SIZE, **options})
        self.context.set_default_timeout(WITHIN_MS)
        self.complaints: list[str] = []
        self.asked: set[str] = set()
        self.context.on("request", lambda request: self.asked.add(urllib.parse.urlsplit(request.url).netloc))
        self.context.on("weberror", lambda error: self.complaints.append(str(error.error)))
        self.context.on("console", self._said)

    def _said(self, message) -> None:
        if message.type in ("error", "warning"):
            self.complaints.append(f"{message.type}: {message.text}")

    def open(self, system: System, place: str = "#/", **ways):
        """Open a page of the dashboard, and wait until it is live."""
        page = self.context.new_page()
        page.goto(f"{system.config.web_url}/{place}", **ways)
        page.locator("#link[data-state=live]").wait_for()
        return page

    def check(self, *expected: str) -> None:
        """Nobody but this machine was asked, and nothing was complained of but what is expected."""
        assert {host.rpartition(":")[0] or host for host in self.asked if host} <= set(LOOPBACK)
        assert [text for text in self.complaints if not any(part in text for part in expected)] == []


@pytest.fixture
def watch(chromium) -> Iterator[Callable[..., Watched]]:
    """Makes watched browser profiles, which are closed with the test."""
    made: list[Watched] = []

    def make(**options) -> Watched:
        watched = Watched(chromium, **options)
        made.append(watched)
        return watched

    yield make
    for watched in made:
        watched.context.close()


@pytest.fixture
def browser(watch) -> Iterator[Watched]:
    """A watched profile; in the end nothing may have been complained of."""
    watched = watch()
    yield watched
    watched.check()
