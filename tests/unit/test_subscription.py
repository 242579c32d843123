"""Stops by events, heartbeats and snapshots: none is missed, and few come twice."""

from __future__ import annotations

import random
from typing import Any

import pytest
from unit.bench import Bench

from exesys.bus import messages as m
from exesys.bus.subscription import ASK_AGAIN_S, Subscription

SELF = "1" * 16


def welcome(epoch: int = 7) -> m.Welcome:
    return m.Welcome(m.VERSION, SELF, epoch, 1.0, 5, {}, {}, "", {})


def event(seq: int, uuid: str = "x", epoch: int = 7) -> m.Event:
    return m.Event(epoch, seq, ["t", uuid])


def ack(seq: int, *uuids: str, epoch: int = 7) -> m.HeartbeatAck:
    return m.HeartbeatAck(SELF, epoch, seq, tuple(m.StopName("t", uuid) for uuid in uuids))


def snapshot(tag: int, seq: int, *uuids: str, epoch: int = 7) -> m.Snapshot:
    return m.Snapshot(tag, epoch, seq, {"stops": [["t", uuid] for uuid in uuids]})


def stops(*uuids: str) -> list[m.Stop]:
    return [m.Stop("t", uuid) for uuid in uuids]


def asked(subscription: Subscription, now: float) -> list[int]:
    """Return the tags of the questions that go out."""
    tags = []
    for message in subscription.outgoing(now):
        assert isinstance(message, m.Sync)
        assert message.parts == ("stops",)
        tags.append(message.tag)
    return tags


@pytest.fixture
def subscription() -> Subscription:
    """One that was welcomed and knows of all until the event 10."""
    subscription = Subscription()
    subscription.welcomed(welcome())
    [tag] = asked(subscription, 0.0)
    assert subscription.snapshot(snapshot(tag, 10)) == []
    return subscription


def test_before_a_welcome_it_asks_nothing() -> None:
    assert asked(Subscription(), 0.0) == []


def test_what_was_published_before_it_came_is_asked_for_until_it_is_answered() -> None:
    subscription = Subscription()
    subscription.welcomed(welcome())
    assert asked(subscription, 0.0) == [1]
    assert asked(subscription, ASK_AGAIN_S - 0.1) == []
    assert asked(subscription, ASK_AGAIN_S) == [2]
    assert subscription.snapshot(snapshot(1, 3, "x")) == [], "an old answer may lack what is new"
    assert subscription.snapshot(snapshot(2, 3, "x", "y")) == stops("x", "y")
    assert asked(subscription, 10.0) == []


def test_events_are_stops_in_their_order(subscription: Subscription) -> None:
    assert subscription.event(event(11, "x")) == stops("x")
    assert subscription.event(event(12, "y")) == stops("y")
    assert subscription.event(event(13, "")) == stops("")
    assert asked(subscription, 10.0) == []


@pytest.mark.parametrize("body", [None, "x", 7, [], ["t"], ["t", 7], ["t", "x", "y"], {"t": "x"}])
def test_other_events_are_counted_and_are_no_stops(subscription: Subscription, body: Any) -> None:
    assert subscription.event(m.Event(7, 11, body)) == []
    assert subscription.event(event(12)) == stops("x")
    assert asked(subscription, 10.0) == []


def test_after_a_gap_it_asks(subscription: Subscription) -> None:
    assert subscription.event(event(12, "y")) == stops("y")
    [tag] = asked(subscription, 10.0)
    assert subscription.snapshot(snapshot(tag, 12, "x", "y")) == stops("x", "y"), "it heeds one again rather than none"
    assert subscription.event(event(13, "z")) == stops("z")
    assert asked(subscription, 20.0) == []


def test_a_heartbeat_shows_that_the_newest_event_was_lost(subscription: Subscription) -> None:
    assert subscription.acknowledged(ack(10)) == []
    assert asked(subscription, 10.0) == []
    assert subscription.acknowledged(ack(11, "x")) == stops("x")
    assert len(asked(subscription, 10.0)) == 1


def test_what_heartbeats_repeat_is_news_once(subscription: Subscription) -> None:
    for _ in range(3):
        subscription.acknowledged(ack(10, "x"))
    assert subscription.acknowledged(ack(10, "x", "y")) == stops("y")
    assert subscription.acknowledged(ack(10, "y")) == []
    assert subscription.acknowledged(ack(10, "y", "x")) == stops("x"), "it has run in between"


def test_a_new_router_is_asked_and_tells_all_anew(subscription: Subscription) -> None:
    subscription.acknowledged(ack(10, "x"))
    subscription.welcomed(welcome(8))
    assert subscription.acknowledged(ack(1, "x", epoch=8)) == stops("x")
    [tag] = asked(subscription, 10.0)
    assert subscription.snapshot(snapshot(tag, 1, "y", epoch=8)) == stops("y")
    assert subscription.event(event(2, "z", epoch=8)) == stops("z")
    assert asked(subscription, 20.0) == []


def test_a_late_event_of_an_old_router_is_heeded_and_not_counted(subscription: Subscription) -> None:
    subscription.welcomed(welcome(8))
    [tag] = asked(subscription, 0.0)
    subscription.snapshot(snapshot(tag, 1, epoch=8))
    assert subscription.event(event(500, "x", epoch=7)) == stops("x")
    assert asked(subscription, 10.0) == []
    assert subscription.event(event(2, "y", epoch=8)) == stops("y")
    assert asked(subscription, 10.0) == []


def test_a_reconnect_to_the_same_router_asks_for_what_was_missed(subscription: Subscription) -> None:
    subscription.welcomed(welcome())
    [tag] = asked(subscription, 10.0)
    assert subscription.snapshot(snapshot(tag, 15, "x")) == stops("x")
    assert subscription.event(event(16)) == stops("x")
    assert asked(subscription, 20.0) == []


@pytest.mark.parametrize("parts", [{}, {"stops": []}, {"stops": [7, ["t"], None]}])
def test_a_snapshot_without_stops_is_an_answer(subscription: Subscription, parts: dict[str, Any]) -> None:
    subscription.welcomed(welcome())
    [tag] = asked(subscription, 10.0)
    assert subscription.snapshot(m.Snapshot(tag, 7, 11, parts)) == []
    assert asked(subscription, 20.0) == []


@pytest.mark.parametrize("seed", range(20))
def test_no_stop_is_missed_whatever_is_lost(seed: int) -> None:
    """The real router publishes and answers; any event, answer or question may be lost, and the router may be new."""
    rng = random.Random(seed)
    bench, subscription = Bench(), Subscription()
    wanted, heard = set[str](), set[str]()
    watcher, controller = bench.client(), bench.client("controller")
    subscription.welcomed(welcome(bench.broker.epoch))
    for step in range(200):
        bench.now += 0.5
        calm = step >= 190
        if rng.random() < 0.02 and not calm:
            wanted &= heard  # what a router has told nobody, its controller tells the next one
            bench.restart()
            watcher, controller = bench.client(), bench.client("controller")
            subscription.welcomed(welcome(bench.broker.epoch))
        if rng.random() < 0.3 and not calm:
            wanted.add(str(step))
            bench.tell(controller, m.Stop("t", str(step)))
        for _, published in bench.published:
            if rng.random() < 0.6:
                heard |= {stop.uuid for stop in subscription.event(published)}
        bench.published.clear()
        questions = subscription.outgoing(bench.now) if calm or rng.random() < 0.5 else []
        bench.tell(watcher, *questions, m.Heartbeat(watcher.decode(), bench.broker.epoch, 0, 0, (), ()))
        for answer in bench.said(watcher):
            if not calm and rng.random() < 0.5:
                continue
            if isinstance(answer, m.Snapshot):
                heard |= {stop.uuid for stop in subscription.snapshot(answer)}
            elif isinstance(answer, m.HeartbeatAck):
                heard |= {stop.uuid for stop in subscription.acknowledged(answer)}
    assert wanted
    assert heard >= wanted
