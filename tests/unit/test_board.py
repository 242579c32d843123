"""The router's side of the runners, moved by hand: one message, one turn, one second at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from unit.bench import Bench
from unit.world import CONFIG

from exesys import codec
from exesys.bus import messages as m
from exesys.bus.board import HOLD_BEATS
from exesys.config import Limits
from exesys.config import Runner as Rules
from exesys.runner import Ending, Name, RunnerState
from exesys.turn import RunnerDone, Turn

S = RunnerState
X, Y = Name("clock", "x"), Name("clock", "y")
RULES = Rules(max_failures=3, max_losses=4, backoff_s=1.0, max_backoff_s=8.0, healthy_s=20.0)
SETTINGS = replace(CONFIG, runner=RULES)
LEASE_S = CONFIG.lease_s
ERROR = codec.pack({"type": "ValueError", "message": "no", "traceback": ""})


class Stage(Bench):
    """A router with runner daemons. What those hold is written down by hand."""

    def __init__(self, config: Any = SETTINGS) -> None:
        super().__init__(config)
        self.asker = self.client()
        self.tag = 0

    # --- clients ------------------------------------------------------------

    def ask(self, message: Any) -> tuple[int, str]:
        """Ask for something and run its turn. Returns how many have changed, and the code of a refusal."""
        self.tag += 1
        self.tell(self.asker, message._replace(tag=self.tag))
        self.turns()
        [changed] = [each for each in self.said(self.asker) if isinstance(each, m.Changed)]
        assert changed.tag == self.tag
        return changed.steps, changed.problem[0] if changed.problem else ""

    def start(self, name: Name = X, data: bytes = b"\xc0", target: str = "double", **parts: Any) -> tuple[int, str]:
        return self.ask(m.Start(0, *name, target, data, -1.0, "")._replace(**parts))

    def stop(self, name: Name | str = X) -> tuple[int, str]:
        return self.ask(m.Change(0, "stop", str(name)))

    def begin_anew(self, name: Name | str = X) -> tuple[int, str]:
        return self.ask(m.Change(0, "restart", str(name)))

    def load(self, name: Name = X) -> None:
        """Load a stop with redis-cli, and let the controller tell of it."""
        self.store.db.values[self.store.keys("run", *name)] = b"0"
        self.tell(self.client("controller"), m.Stop(*name))
        self.turns()

    def reboot(self) -> None:
        """Start another router on the same store."""
        Bench.restart(self)
        self.asker = self.client()

    # --- daemons ------------------------------------------------------------

    def host(self, capacity: int = 10, session: str = "", **held: int) -> str:
        if not session:
            self._peers += 1
            session = f"{self._peers:016x}"
        self.tell(session.encode(), m.Hello(m.VERSION, "runner", session, "", {"host": "here"}))
        self.beat_of(session, capacity, **held)
        return session

    def beat_of(self, host: str, capacity: int = 10, **held: int) -> None:
        """Send a heartbeat that tells of lives by uuid, all of type clock."""
        lives = tuple(m.Held(f"clock:{uuid}", epoch) for uuid, epoch in held.items())
        self.tell(host.encode(), m.Heartbeat(host, self.broker.epoch, 0, capacity, lives, ()))
        self.turns()

    def began(self, host: str, name: Name = X, epoch: int = 1, log: str = "") -> None:
        told = m.Told(str(name), epoch, 77, 5, -1.0, "", 0.5, 1024, 1 if log else 0, log)
        self.tell(host.encode(), m.Telling(host, (told,)))
        self.turns()

    def exits(self, host: str, ending: int, name: Name = X, epoch: int = 1, lived_s: float = 1.0) -> None:
        body = ERROR if ending == Ending.failed else b""
        self.tell(host.encode(), m.Exits(host, (m.Exit(str(name), epoch, ending, body, int(lived_s * 1000)),)))
        self.turns()

    def heard(self, host: str, kind: type[Any]) -> list[Any]:
        """Return the messages of a kind that a daemon was sent since the last look; the others are forgotten."""
        return [each for each in self.said(host) if isinstance(each, kind)]

    def launched(self, host: str) -> list[tuple[str, int]]:
        return [(each.name, each.epoch) for message in self.heard(host, m.Launches) for each in message.launches]

    def keep(self, wait_s: float, *hosts: str, **held: int) -> None:
        """Let time pass while daemons send heartbeats."""
        for _ in range(round(wait_s)):
            for host in hosts:
                self.beat_of(host, **held)
            self.wait(1)

    # --- what is there --------------------------------------------------------

    def record(self, name: Name = X) -> dict[str, str]:
        fields = self.store.db.values[self.store.keys("runner", str(name))]
        return {key: value.decode() for key, value in fields.items() if key not in ("data", "sum", "error")}

    def state(self, name: Name = X) -> str:
        return self.record(name)["state"]

    def told_of(self, name: Name = X) -> dict[str, Any]:
        """Return what a snapshot says of a runner."""
        found: list[dict[str, Any]] = [each for each in self.snapshot("runners") if each["name"] == str(name)]
        assert len(found) == 1
        return found[0]


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def host(stage: Stage) -> str:
    return stage.host()


@pytest.fixture
def running(stage: Stage, host: str) -> str:
    """The host of a runner that runs."""
    assert stage.start() == (1, "")
    assert stage.launched(host) == [("clock:x", 1)]
    stage.began(host)
    assert stage.state() == "running"
    return host


# --- starting ------------------------------------------------------------------


def test_a_start_is_answered_when_it_is_stored_and_launched_where_there_is_room(stage: Stage) -> None:
    assert stage.start(data=b"\xa1x", grace_s=2.5) == (1, "")
    assert stage.told_of()["waits"] == "no runner daemon is there"
    host = stage.host()
    [launches] = stage.heard(host, m.Launches)
    assert launches.launches == (m.Launch("clock:x", 1, "w.double", b"\xa1x", 2.5),)
    assert (stage.record()["session"], stage.record()["host"], stage.state()) == (host, "here", "starting")
    stage.began(host, log="hello")
    assert stage.state() == "running"
    assert (stage.told_of()["host"], stage.told_of()["pid"]) == ("here", 77)
    assert stage.store.db.values[stage.store.keys("runner_log", "clock:x")] == b"hello"


def test_the_same_start_again_starts_nothing_and_another_is_a_conflict(stage: Stage, running: str) -> None:
    assert stage.start() == (0, "")
    assert stage.start(data=b"\x01") == (-1, "conflict")
    assert stage.launched(running) == []


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"type": "a.b"}, "bad_field"),
        ({"uuid": ""}, "bad_field"),
        ({"target": "no_such"}, "unknown_cmd"),
        ({"target": "a b"}, "bad_field"),
        ({"grace_s": -3.0}, "bad_field"),
        ({"job": "no ref"}, "bad_field"),
        ({"data": b"\xc1"}, "bad_field"),
    ],
)
def test_a_bad_start_is_refused_and_leaves_nothing(stage: Stage, change: dict[str, Any], code: str) -> None:
    before = stage.store.dump()
    assert stage.start(**change) == (-1, code)
    assert stage.store.dump() == before


def test_a_stop_before_the_start_refuses_it(stage: Stage) -> None:
    stage.store.db.values[stage.store.keys("run", *X)] = b"0"
    assert stage.start() == (-1, "bad_state")
    assert stage.snapshot("runners") == []


def test_there_are_no_more_runners_than_the_limit() -> None:
    stage = Stage(replace(SETTINGS, limits=Limits(runners=1)))
    assert stage.start() == (1, "")
    assert stage.start(Y) == (-1, "queue_full")
    assert stage.stop() == (1, "")
    assert stage.start(Y) == (1, "")
    assert stage.begin_anew() == (-1, "queue_full")


def test_while_the_store_is_late_nothing_is_taken(stage: Stage) -> None:
    stage.broker.store_slow(stage.now - 10)
    for message in (m.Start(1, *X, "double", b"\xc0", -1.0, ""), m.Change(2, "stop", "clock:x")):
        stage.tell(stage.asker, message)
    refused = [each for each in stage.said(stage.asker) if isinstance(each, m.Changed)]
    assert [(each.steps, each.problem[0]) for each in refused] == [(-1, "unavailable")] * 2


# --- where they live ----------------------------------------------------------------


def test_runners_go_to_the_daemon_with_the_most_room_and_to_none_beyond_it(stage: Stage) -> None:
    small, large = stage.host(2), stage.host(4)
    for number in range(8):
        stage.start(Name("clock", str(number)))
    assert (len(stage.launched(small)), len(stage.launched(large))) == (2, 4)
    assert [each["waits"] for each in stage.snapshot("runners") if "waits" in each] == ["no runner daemon has room"] * 2
    third = stage.host(1)
    assert stage.launched(third) == [("clock:6", 1)]


def test_a_daemon_that_drains_or_has_no_capacity_gets_none(stage: Stage) -> None:
    hosts = stage.host(0), stage.host(-3), stage.host(5)
    stage.tell(hosts[2].encode(), m.Drain(hosts[2]))
    stage.start()
    assert [stage.launched(host) for host in hosts] == [[], [], []]
    stage.beat_of(hosts[0], 1)
    assert stage.launched(hosts[0]) == [("clock:x", 1)]


def test_a_launch_that_was_lost_is_sent_again_and_one_that_came_is_not(stage: Stage, host: str) -> None:
    stage.start()
    assert stage.launched(host) == [("clock:x", 1)]
    stage.beat_of(host)
    assert stage.launched(host) == [], "it may be on its way"
    stage.wait(2.0)
    stage.beat_of(host)
    assert stage.launched(host) == [("clock:x", 1)]
    stage.keep(4, host, x=1)
    assert stage.launched(host) == []
    assert stage.record()["epoch"] == "1"


def test_what_a_daemon_should_not_have_is_cancelled(stage: Stage, running: str) -> None:
    other = stage.host()
    stage.said(other)
    stage.beat_of(other, x=1, y=3)
    [cancel] = stage.heard(other, m.Cancel)
    assert set(cancel.attempts) == {m.Held("clock:x", 1), m.Held("clock:y", 3)}
    stage.said(running)
    stage.beat_of(running, x=1)
    assert stage.heard(running, m.Cancel) == []


def test_an_older_life_of_a_runner_that_a_daemon_has_is_cancelled(stage: Stage, running: str) -> None:
    stage.exits(running, Ending.failed)
    stage.wait(1.0)
    assert stage.launched(running) == [("clock:x", 2)]
    stage.beat_of(running, x=1)
    [cancel] = stage.heard(running, m.Cancel)
    assert cancel.attempts == (m.Held("clock:x", 1),)


# --- ends -------------------------------------------------------------------------


def test_an_end_is_acknowledged_after_its_commit(stage: Stage, running: str) -> None:
    stage.tell(running.encode(), m.Exits(running, (m.Exit("clock:x", 1, Ending.failed, ERROR, 10),)))
    assert stage.heard(running, m.ResultAck) == []
    stage.turns()
    assert stage.heard(running, m.ResultAck) == [m.ResultAck((m.Held("clock:x", 1),))]
    stage.exits(running, Ending.failed)
    assert stage.heard(running, m.ResultAck) == [m.ResultAck((m.Held("clock:x", 1),))]
    assert stage.record()["failures"] == "1", "told twice, it counts once"


def test_that_it_runs_is_not_taken_for_its_end_when_both_come_at_once(stage: Stage, host: str) -> None:
    stage.start()
    stage.said(host)
    told = m.Told("clock:x", 1, 7, 5, -1.0, "", 0.0, 0, 0, "")
    stage.tell(host.encode(), m.Telling(host, (told,)))
    turn = stage.plan()
    assert turn is not None
    stage.tell(host.encode(), m.Exits(host, (m.Exit("clock:x", 1, Ending.failed, ERROR, 10),)))
    stage.apply(turn, stage.store.run(turn))
    assert stage.heard(host, m.ResultAck) == [], "only that it runs has been stored"
    stage.turns()
    assert stage.heard(host, m.ResultAck) == [m.ResultAck((m.Held("clock:x", 1),))]


def test_one_that_returns_has_stopped(stage: Stage, running: str) -> None:
    stage.exits(running, Ending.returned)
    assert (stage.state(), stage.record()["how"]) == ("stopped", "it returned by itself")
    assert stage.snapshot("runners") == []
    assert stage.start() == (0, "")
    assert stage.launched(running) == []


def test_one_that_fails_is_started_again_ever_later_and_fails_at_last(stage: Stage, host: str) -> None:
    stage.start()
    for epoch, wait_s in ((1, 0.5), (2, 1.0)):  # the jitter is 0: half of the wait
        assert stage.launched(host) == [("clock:x", epoch)]
        stage.exits(host, Ending.failed, epoch=epoch)
        assert stage.told_of()["waits"] == f"it starts again in {wait_s:.1f} s"
        stage.wait(wait_s - 0.1)
        assert stage.launched(host) == []
        stage.wait(0.1)
    assert stage.launched(host) == [("clock:x", 3)]
    stage.exits(host, Ending.failed, epoch=3)
    assert stage.state() == "failed"
    assert stage.record()["how"] == "it ended too often: 3 failures, 0 losses in a row"
    assert stage.snapshot("runners") == []
    stage.wait(20)
    assert stage.launched(host) == []


def test_a_healthy_life_is_forgiven(stage: Stage, host: str) -> None:
    stage.start()
    for epoch in range(1, 8):
        stage.exits(host, Ending.failed, epoch=epoch, lived_s=20.0)
        stage.wait(1.0)
    assert (stage.state(), stage.record()["failures"], stage.record()["restarts"]) == ("starting", "1", "7")


def test_an_unknown_ending_is_a_failure_and_a_strange_end_is_only_acknowledged(stage: Stage, running: str) -> None:
    stage.exits(running, Ending.failed, Name("clock", "z"), 4)
    stage.exits(running, Ending.failed, epoch=4)
    stage.tell(running.encode(), m.Exits(running, (m.Exit("no name", 1, 0, b"", 0),)))
    assert [message.acks[0].ref for message in stage.heard(running, m.ResultAck)] == ["clock:z", "clock:x", "no name"]
    assert stage.state() == "running"
    stage.exits(running, 99)
    assert (stage.state(), stage.record()["failures"]) == ("starting", "1")


def test_only_runner_daemons_tell_of_lives(stage: Stage, running: str) -> None:
    for message in (m.Telling("s", ()), m.Exits("s", (m.Exit("clock:x", 1, 0, b"", 0),))):
        stage.tell(stage.asker, message)
    stage.turns()
    assert [each.code for each in stage.said(stage.asker) if isinstance(each, m.Error)] == ["not_allowed"] * 2
    assert stage.state() == "running"


def test_a_daemon_tells_of_its_own_lives_alone(stage: Stage, running: str) -> None:
    other = stage.host()
    stage.began(other, log="not mine")
    stage.exits(other, Ending.failed)
    assert (stage.state(), stage.record().get("failures")) == ("running", None)
    assert stage.store.keys("runner_log", "clock:x") not in stage.store.db.values


# --- stops --------------------------------------------------------------------------


def test_a_stop_of_one_that_runs_is_published_and_then_it_stops(stage: Stage, running: str) -> None:
    assert stage.stop() == (1, "")
    assert [topic for topic, _ in stage.published] == ["stop.clock.x"]
    assert stage.state() == "stopping"
    assert stage.stop() == (0, "")
    stage.exits(running, Ending.stopped)
    assert (stage.state(), stage.record()["how"]) == ("stopped", "it stopped when it was told to")
    assert stage.stop() == (0, "")
    stage.wait(30)
    assert stage.launched(running) == []


@pytest.mark.parametrize("ending", [each for each in Ending if each is not Ending.stopped])
def test_one_that_is_to_stop_has_stopped_however_it_ends(stage: Stage, running: str, ending: Ending) -> None:
    stage.stop()
    stage.exits(running, ending)
    assert stage.state() == "stopped"
    assert stage.snapshot("runners") == []


def test_a_daemon_that_missed_a_stop_is_told_until_it_heeds_it(stage: Stage, running: str) -> None:
    stage.stop()
    stage.said(running)
    for _ in range(3):
        stage.beat_of(running, x=1)
        assert m.Stop("clock", "x") in stage.said(running)
        stage.beat_of(running, x=1)
        assert m.Stop("clock", "x") not in stage.said(running), "once a second is enough"
        stage.wait(1.0)


def test_a_stop_of_one_that_waits_ends_it(stage: Stage) -> None:
    stage.start()
    assert stage.stop() == (1, "")
    assert stage.state() == "stopped"
    assert stage.launched(stage.host()) == []
    assert stage.snapshot("runners") == []


def test_a_stop_of_one_that_never_was_is_refused(stage: Stage) -> None:
    assert stage.stop() == (-1, "not_found")
    assert stage.stop("clock") == (-1, "not_found")
    assert stage.stop("no name!") == (-1, "bad_field")
    assert stage.stop("a:b:c") == (-1, "bad_field")
    assert stage.store.keys("run", *X) not in stage.store.db.values


def test_all_of_a_type_are_stopped_and_counted(stage: Stage, running: str) -> None:
    stage.start(Y)
    stage.start(Name("clocks", "z"))
    stage.stop(Y)
    assert stage.stop("clock") == (1, "")
    assert [stage.state(name) for name in (X, Y, Name("clocks", "z"))] == ["stopping", "stopping", "starting"]


def test_a_stop_that_the_store_cannot_write_is_no_success(stage: Stage, running: str) -> None:
    stage.tell(stage.asker, m.Change(9, "stop", "clock:x"))
    turn = stage.plan()
    assert turn is not None
    answers = stage.store.run(Turn())
    answers.runners = [RunnerDone("refused", {})]
    stage.apply(turn, answers)
    [changed] = [each for each in stage.said(stage.asker) if isinstance(each, m.Changed)]
    assert changed.steps == -1
    assert stage.told_of()["state"] == "running"


def test_a_stop_whose_answers_were_lost_leaves_nothing_behind(stage: Stage) -> None:
    stage.start()
    stage.tell(stage.asker, m.Change(9, "stop", "clock:x"))
    turn = stage.plan()
    assert turn is not None
    stage.store.run(turn)
    stage.apply(turn, stage.store.run(turn))
    stage.said(stage.asker)
    assert stage.snapshot("runners") == []
    assert stage.begin_anew() == (1, "")
    assert stage.launched(stage.host()) == [("clock:x", 1)]


def test_a_stop_that_comes_while_the_end_of_a_life_is_stored_counts(stage: Stage, running: str) -> None:
    stage.tell(stage.asker, m.Change(9, "stop", "clock:x"))
    stage.exits(running, Ending.failed)
    assert stage.state() == "stopped"
    assert stage.snapshot("runners") == []
    stage.wait(10)
    assert stage.launched(running) == []


def test_a_stop_that_comes_with_the_launch_is_heeded(stage: Stage, host: str) -> None:
    """The daemon confirms that the life is over, or that it never began."""
    stage.tell(stage.asker, m.Start(1, *X, "double", b"\xc0", -1.0, ""))
    stage.turn()
    turn = stage.plan()
    assert turn is not None
    stage.tell(stage.asker, m.Change(2, "stop", "clock:x"))
    stage.apply(turn, stage.store.run(turn))
    stage.turns()
    assert stage.state() == "stopping"
    stage.wait(2.0)
    stage.said(host)
    stage.beat_of(host)
    assert stage.heard(host, m.Cancel) == [m.Cancel((m.Held("clock:x", 1),))], "it is not sent again"
    stage.exits(host, Ending.handed_back)
    assert stage.state() == "stopped"


# --- stops from Redis -----------------------------------------------------------------


def test_a_stop_loaded_in_redis_is_heeded(stage: Stage, running: str) -> None:
    stage.load()
    assert [topic for topic, _ in stage.published] == ["stop.clock.x"]
    assert stage.state() == "stopping"
    stage.load()
    assert len(stage.published) == 1, "it is known"


def test_a_stop_that_was_seen_before_it_was_started_anew_stops_nothing(stage: Stage, running: str) -> None:
    stage.stop()
    stage.exits(running, Ending.stopped)
    assert stage.begin_anew() == (1, "")
    before = len(stage.published)
    stage.tell(stage.client("controller"), m.Stop(*X))
    stage.turns()
    assert stage.state() == "starting"
    assert len(stage.published) == before


def test_a_stop_of_a_whole_type_loaded_in_redis_is_heeded_once(stage: Stage, running: str) -> None:
    every = Name("clock", "")
    stage.load(every)
    assert [topic for topic, _ in stage.published] == ["stop.clock", "stop.clock.x"]
    assert stage.store.keys("run", *every) not in stage.store.db.values
    assert stage.state() == "stopping"
    assert stage.start(Y) == (1, "")
    assert stage.launched(running)[-1] == ("clock:y", 1)


def test_no_launch_follows_a_stop_that_nobody_told_of(stage: Stage, running: str) -> None:
    stage.exits(running, Ending.failed)
    stage.store.db.values[stage.store.keys("run", *X)] = b"0"
    stage.wait(5)
    assert (stage.state(), stage.launched(running)) == ("stopped", [])
    assert stage.snapshot("runners") == []


def test_the_second_try_of_a_launch_finds_the_stop_and_ends_nothing_that_may_live(stage: Stage, host: str) -> None:
    stage.start()
    stage.wait(2.0)
    stage.store.db.values[stage.store.keys("run", *X)] = b"0"
    stage.said(host)
    stage.beat_of(host)
    assert stage.heard(host, m.Cancel) == [m.Cancel((m.Held("clock:x", 1),))]
    assert stage.state() == "stopping"
    assert stage.begin_anew() == (-1, "bad_state")
    stage.exits(host, Ending.forced)
    assert stage.state() == "stopped"


# --- restarts -------------------------------------------------------------------------


def test_a_restart_of_one_that_runs_stops_it_first(stage: Stage, running: str) -> None:
    assert stage.begin_anew() == (1, "")
    assert m.Stop(*X) in stage.said(running)
    assert stage.published == [], "the stop is not the runner's"
    assert stage.state() == "running"
    stage.exits(running, Ending.stopped)
    assert stage.launched(running) == [("clock:x", 2)]
    assert stage.record()["restarts"] == "1"


@pytest.mark.parametrize("ending", list(Ending))
def test_a_restart_that_was_answered_is_done_however_the_life_ends(stage: Stage, running: str, ending: Ending) -> None:
    assert stage.begin_anew() == (1, "")
    stage.exits(running, ending)
    assert stage.launched(running) == [("clock:x", 2)]
    assert stage.record().get("failures") == "0"


def test_a_restart_does_not_wait(stage: Stage, running: str) -> None:
    stage.exits(running, Ending.failed)
    stage.wait(1.0)
    stage.exits(running, Ending.failed, epoch=2)
    stage.said(running)
    assert stage.begin_anew() == (1, "")
    assert stage.launched(running) == [("clock:x", 3)]
    stage.exits(running, Ending.failed, epoch=3)
    assert stage.record()["failures"] == "1", "and counts anew"


@pytest.mark.parametrize("ending", [Ending.returned, Ending.failed])
def test_one_that_has_ended_is_started_again_with_a_higher_epoch(stage: Stage, host: str, ending: Ending) -> None:
    stage.start()
    for epoch in range(1, 4 if ending is Ending.failed else 2):
        stage.exits(host, ending, epoch=epoch)
        stage.wait(1.5)
    assert RunnerState(stage.state()).final
    last = stage.launched(host)[-1][1]
    assert stage.begin_anew() == (1, "")
    assert stage.launched(host) == [("clock:x", last + 1)]
    assert m.StopName(*X) not in stage.broker._stops.newest  # what every heartbeat would repeat


def test_a_restart_that_meets_the_end_of_the_runner_starts_it_again(stage: Stage, running: str) -> None:
    stage.tell(running.encode(), m.Exits(running, (m.Exit("clock:x", 1, Ending.returned, b"", 10),)))
    assert stage.begin_anew() == (1, "")
    assert stage.launched(running) == [("clock:x", 2)]


def test_one_that_is_stopping_is_not_restarted_until_it_has_stopped(stage: Stage, running: str) -> None:
    stage.stop()
    assert stage.begin_anew() == (-1, "bad_state")
    stage.exits(running, Ending.stopped)
    assert stage.begin_anew() == (1, "")


def test_a_stop_after_a_restart_counts(stage: Stage, running: str) -> None:
    stage.begin_anew()
    assert stage.stop() == (1, "")
    stage.exits(running, Ending.stopped)
    assert (stage.state(), stage.launched(running)) == ("stopped", [])


def test_what_cannot_be_restarted_is_refused(stage: Stage) -> None:
    assert stage.begin_anew() == (-1, "not_found")
    assert stage.begin_anew("clock") == (-1, "bad_field")


# --- daemons that go ------------------------------------------------------------------


def test_the_runners_of_a_lost_daemon_live_on_elsewhere_after_a_lease(stage: Stage, running: str) -> None:
    other = stage.host()
    stage.said(other)
    stage.keep(LEASE_S - 1, other)
    assert stage.launched(other) == []
    stage.keep(4, other)
    assert stage.launched(other)[:1] == [("clock:x", 2)]
    assert (stage.record()["losses"], stage.record()["session"]) == ("1", other)
    stage.said(running)
    stage.tell(running.encode(), m.Hello(m.VERSION, "runner", running, "", {}))
    assert [each.code for each in stage.said(running) if isinstance(each, m.Error)] == ["session_lost"]


def test_a_daemon_that_says_bye_is_gone_at_once(stage: Stage, running: str) -> None:
    other = stage.host()
    stage.tell(running.encode(), m.Bye(running, "ending"))
    stage.wait(1.0)
    assert stage.launched(other) == [("clock:x", 2)]
    assert [each["host"] for each in stage.snapshot("runners")] == ["here"]


def test_what_a_daemon_hands_back_starts_elsewhere_at_once(stage: Stage, running: str) -> None:
    other = stage.host()
    stage.tell(running.encode(), m.Drain(running))
    stage.exits(running, Ending.handed_back)
    assert stage.launched(other) == [("clock:x", 2)]
    assert (stage.record()["failures"], stage.record()["losses"]) == ("0", "0")


def test_a_stopping_runner_whose_daemon_is_lost_has_stopped(stage: Stage, running: str) -> None:
    stage.stop()
    stage.wait(2 * LEASE_S)
    assert (stage.state(), stage.record()["how"]) == ("stopped", "it was killed while it stopped")


def test_a_daemon_that_greets_again_keeps_its_runners(stage: Stage, running: str) -> None:
    stage.host(10, running, x=1)
    stage.said(running)
    stage.keep(4, running, x=1)
    assert stage.launched(running) == []
    assert stage.heard(running, m.Cancel) == []
    assert stage.told_of()["host"] == "here"


# --- a router that starts anew ------------------------------------------------------------


def test_a_new_router_finds_the_runners_where_they_are(stage: Stage, running: str) -> None:
    stage.reboot()
    assert stage.told_of()["waits"] == "its daemon is not heard"
    stage.host(10, running, x=1)
    stage.keep(2 * LEASE_S, running, x=1)
    assert stage.launched(running) == []
    assert (stage.state(), stage.record()["epoch"]) == ("running", "1")


def test_a_daemon_that_does_not_come_back_to_a_new_router_is_lost_after_a_lease(stage: Stage, running: str) -> None:
    stage.reboot()
    other = stage.host()
    stage.keep(LEASE_S - 1, other)
    assert stage.launched(other) == []
    stage.keep(3, other)
    assert stage.launched(other)[:1] == [("clock:x", 2)]


def test_a_launch_that_a_router_died_before_is_made_good_by_the_next(stage: Stage, host: str) -> None:
    stage.tell(stage.asker, m.Start(1, *X, "double", b"\xc0", -1.0, ""))
    stage.turn()
    turn = stage.plan()
    assert turn is not None
    stage.store.run(turn)
    stage.reboot()
    stage.host(10, host)
    assert stage.launched(host) == [("clock:x", 1)]


def test_a_stop_outlives_the_router(stage: Stage, running: str) -> None:
    stage.stop()
    stage.reboot()
    stage.host(10, running)
    stage.beat_of(running, x=1)
    assert m.Stop(*X) in stage.said(running)
    stage.exits(running, Ending.stopped)
    assert stage.state() == "stopped"


def test_a_wait_to_start_again_does_not_outlive_the_router_but_its_counts_do(stage: Stage, running: str) -> None:
    stage.exits(running, Ending.failed)
    stage.reboot()
    host = stage.host()
    assert stage.launched(host) == []  # until every daemon must have said what it has
    stage.keep(HOLD_BEATS * SETTINGS.bus.heartbeat_s, host)
    assert stage.launched(host) == [("clock:x", 2)]
    stage.exits(host, Ending.failed, epoch=2)
    assert stage.record()["failures"] == "2"


def test_a_life_that_redis_forgot_with_its_router_is_known_again_by_its_daemon(stage: Stage, running: str) -> None:
    """They died in the same moment, just after it was given away: nobody but the daemon knows of it."""
    stage.store.db.hset(stage.store.keys("runner", "clock:x"), epoch=0, session="", state="starting")
    stage.reboot()
    other, same = stage.host(), stage.host(session=running, x=1)
    cancelled = stage.heard(same, m.Cancel)
    for _ in range(3):
        stage.beat_of(other)
        stage.beat_of(same, x=1)
        cancelled += stage.heard(same, m.Cancel)
        stage.wait(1)
    assert (stage.launched(other), cancelled) == ([], [])
    assert (stage.record()["epoch"], stage.record()["session"]) == ("1", same)
    stage.exits(same, Ending.failed)
    assert stage.record()["failures"] == "1"


def test_a_life_that_redis_forgot_is_ended_when_its_stop_is_loaded(stage: Stage, running: str) -> None:
    stage.store.db.hset(stage.store.keys("runner", "clock:x"), epoch=0, session="", state="starting")
    stage.reboot()
    stage.load(X)
    same = stage.host(session=running, x=1)
    stage.keep(3, same, x=1)
    assert m.Cancel((m.Held("clock:x", 1),)) in stage.heard(same, m.Cancel)
    assert stage.record()["state"] == "stopped"


def test_a_router_that_knows_less_than_the_store_learns_it(stage: Stage, running: str) -> None:
    """Another router has been there meanwhile: the life it has given away is not doubled."""
    other = stage.host()
    stage.exits(running, Ending.failed)
    stage.store.db.hset(stage.store.keys("runner", "clock:x"), epoch=7, session=other)
    stage.wait(1.0)
    assert (stage.told_of()["epoch"], stage.launched(running)) == (7, [])
    stage.keep(3, running)
    stage.beat_of(other, x=7)
    stage.exits(other, Ending.stopped, epoch=7)
    stage.wait(0.6)
    assert stage.record()["epoch"] == "8"


# --- time -----------------------------------------------------------------------------


def test_the_router_wakes_when_a_runner_is_due_and_not_before(stage: Stage, running: str) -> None:
    stage.exits(running, Ending.failed)
    stage.wait(0.3)
    assert stage.broker.wake_in_s(stage.now, stage.now_ms) == pytest.approx(0.2)
    stage.beat_of(running, 0)
    assert stage.broker.wake_in_s(stage.now, stage.now_ms) > 0.2, "nobody has room"


def test_a_turn_takes_a_bounded_number_and_the_rest_follows(stage: Stage) -> None:
    for number in range(450):
        stage.tell(stage.asker, m.Start(number, "clock", str(number), "double", b"\xc0", -1.0, ""))
    sizes = []
    while (turn := stage.turn()) is not None:
        sizes.append(len(turn.runners))
    assert sizes == [200, 200, 50]
    host = stage.host(1000)
    launched = stage.launched(host)
    assert len(launched) == len(set(launched)) == 450


def test_a_turn_takes_a_bounded_number_of_bytes(stage: Stage) -> None:
    data = codec.pack(b"x" * 1_000_000)
    for number in range(6):
        stage.tell(stage.asker, m.Start(number, "clock", str(number), "double", data, -1.0, ""))
    sizes = []
    while (turn := stage.turn()) is not None:
        sizes.append(len(turn.runners))
    assert sizes == [4, 2]
    assert len(stage.launched(stage.host(1000))) == 6


# --- records that somebody spoilt ------------------------------------------------


def spoil(stage: Stage, field: str, value: bytes, name: Name = X) -> None:
    stage.store.db.hset(stage.store.keys("runner", str(name)), **{field: value})


@pytest.mark.parametrize(("field", "value"), [("state", b"bogus"), ("epoch", b"abc"), ("target", b"")])
def test_a_spoilt_record_is_refused_and_the_others_go_on(field: str, value: bytes) -> None:
    stage = Stage()
    stage.start(X)
    stage.start(Y)
    spoil(stage, field, value)
    stage.reboot()
    assert [each["name"] for each in stage.snapshot("runners")] == [str(Y)]
    assert stage.start(X) == (-1, "bad_state")
    assert stage.begin_anew(X) == (-1, "bad_state")
    assert [each["name"] for each in stage.snapshot("runners")] == [str(Y)]


def test_a_record_that_was_mended_begins_anew() -> None:
    stage = Stage()
    stage.start(X)
    spoil(stage, "state", b"bogus")
    stage.reboot()
    spoil(stage, "state", b"starting")
    assert stage.begin_anew(X) == (1, "")
    assert [each["name"] for each in stage.snapshot("runners")] == [str(X)]


def test_a_life_whose_record_is_spoilt_meanwhile_ends_and_is_acknowledged() -> None:
    stage = Stage()
    host = stage.host()
    stage.start(X)
    stage.began(host)
    spoil(stage, "target", b"")
    spoil(stage, "epoch", b"7")
    stage.exits(host, Ending.failed)
    assert stage.heard(host, m.ResultAck)
    assert stage.snapshot("runners") == []
