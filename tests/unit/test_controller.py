"""The controller's fences: before it sends or writes, its lease holds; a part of it that died ends it."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, cast

import pytest

from exesys.bus import messages as m
from exesys.bus.client import Client
from exesys.config import Config
from exesys.daemons import controller as module
from exesys.daemons.controller import Controller
from exesys.daemons.loop import Loop
from exesys.errors import ExesysError
from exesys.lease import LEASE_S
from exesys.store.callbacks import Outbox
from exesys.store.timetable import Timetable
from exesys.store.upkeep import Runner, Upkeep


class Store:
    """What the controller asks of the store; `ours` says whose the lease is."""

    def __init__(self) -> None:
        self.ours = True
        self.tuned = False
        self.trimmed: list[str] = []
        self.asked = 0
        self.loaded: list[Runner] = []
        self.meanwhile = lambda: None

    def listen(self) -> int:
        return 0

    def changed(self) -> list[Runner]:
        return []

    def known(self) -> list[Runner]:
        return list(self.loaded)

    def lead(self, session: str) -> bool:
        self.asked += 1
        return self.ours

    def stopped(self, runners: list[Runner]) -> list[Runner]:
        self.meanwhile()
        return runners

    def trim(self, session: str, now_ms: int) -> None:
        self.trimmed.append(session)


class Told:
    """The bus, and a loop that watches nothing."""

    def __init__(self) -> None:
        self.told: list[m.Message] = []

    def tell(self, message: m.Message) -> None:
        self.told.append(message)

    def watch(self, descriptor: int) -> None:
        pass


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def bus() -> Told:
    return Told()


@pytest.fixture
def controller(tmp_path: Path, store: Store, bus: Told, monkeypatch: pytest.MonkeyPatch) -> Controller:
    monkeypatch.setattr(module.Courier, "alive", property(lambda _: True))
    monkeypatch.setattr(module.Timing, "step", lambda *_: None)
    monkeypatch.setattr(module.Rounds, "step", lambda *_: None)
    parts: Any = bus
    return Controller(
        Config(tmp_path, tmp_path),
        cast(Loop, parts),
        cast(Client, parts),
        cast(Upkeep, store),
        cast(Timetable, None),
        cast(Outbox, None),
    )


def test_an_active_one_mirrors_stops_and_trims(controller: Controller, store: Store, bus: Told) -> None:
    store.loaded = [("cam", "7")]
    controller._step(False, time.monotonic())
    assert bus.told == [m.Stop("cam", "7")]
    assert store.trimmed == [controller.session]


def test_one_that_stands_by_does_neither_and_asks_more_often(controller: Controller, store: Store, bus: Told) -> None:
    store.ours, store.loaded = False, [("cam", "7")]
    now = time.monotonic()
    controller._step(False, now)
    assert (bus.told, store.trimmed) == ([], [])
    assert controller._sweep_at == now + module.STANDBY_S < now + module.SWEEP_S


def test_one_that_was_stopped_in_between_sends_nothing(controller: Controller, store: Store, bus: Told) -> None:
    """As by SIGSTOP while Redis answers: when it goes on, its lease is over by its own clock."""
    store.loaded = [("cam", "7")]
    store.meanwhile = lambda: controller.lease.renewed(True, time.monotonic() - LEASE_S)
    controller._step(False, time.monotonic())
    assert bus.told == []
    store.meanwhile = lambda: None
    controller._step(False, time.monotonic() + module.SWEEP_S)
    assert bus.told == [m.Stop("cam", "7")], "it is told by whoever is active then"


def test_a_courier_that_has_died_ends_it(controller: Controller, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.Courier, "alive", property(lambda _: False))
    with pytest.raises(ExesysError, match="courier"):
        controller._step(False, time.monotonic())
    assert store.asked == 0
