"""Which shard a job belongs to, what a map must be, and how the two ends of the bus go by it."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from unit.bench import Bench, item
from unit.world import CONFIG

from exesys import config, environment, programs
from exesys.bus import messages as m
from exesys.bus.fleet import MOST_MOVES
from exesys.bus.handle import Handle
from exesys.bus.inflight import Desk
from exesys.config import Bus
from exesys.errors import ConfigError
from exesys.shards import SLOTS, ShardMap, ShardOf, check, pinned

ROOT = Path("/srv/exesys")
NAMES = [f"s{number:02d}" for number in range(12)]
# docs/protocol.md has the same; clients in other languages are to be tried on them.
VECTORS = [
    ("x-1", 14_895, "s00", "s02"),
    ("job-1", 14_911, "s01", "s01"),
    ("job-4", 3_760, "s00", "s00"),
    ("job-2", 11_141, "s00", "s00"),
    ("job-3", 6_931, "s01", "s02"),
    ("5f2b8d5e-0f6e-4c43-9c1a-7e1f4e2f6a10", 4_896, "s01", "s01"),
    ("nightly.20261129T020000.000Z", 15_578, "s01", "s01"),
    ("nightly.20261129T020000.000Z.s00", 9_260, "s00", "s00"),
]


def shard_map(*names: str, own: str = "s00") -> ShardMap:
    return ShardMap(own, {name: f"ipc:///tmp/{name}" for name in names})


# --- whose a job is -------------------------------------------------------


@pytest.mark.parametrize(("job_id", "slot", "of_two", "of_three"), VECTORS)
def test_the_vectors_of_the_protocol(job_id: str, slot: int, of_two: str, of_three: str) -> None:
    assert slot == crc32(job_id.encode()) % SLOTS
    assert shard_map("s00", "s01").owner(job_id) == of_two
    assert shard_map("s00", "s01", "s02").owner(job_id) == of_three
    protocol = (Path(config.__file__).parent.parent / "docs" / "protocol.md").read_text()
    assert f"| `{job_id}` | {slot} | `{of_two}` | `{of_three}` |" in protocol


@pytest.mark.parametrize("count", [2, 3, 5, 12])
@pytest.mark.parametrize("spelling", [lambda n: f"job-{n}", lambda n: str(uuid.UUID(int=n * 2**64 + 7)), str])
def test_jobs_spread_evenly_whatever_their_ids_look_like(count: int, spelling: Any) -> None:
    shards = shard_map(*NAMES[:count])
    jobs = 40_000
    found = Counter(shards.owner(spelling(number)) for number in range(jobs))
    assert set(found) == set(NAMES[:count])
    # 16,384 slots: the shares differ by some percent, and jobs by their own chance.
    assert all(abs(each * count / jobs - 1) < 0.12 for each in found.values()), found


def test_a_further_shard_takes_its_part_of_each_and_moves_nothing_else() -> None:
    before, after = shard_map(*NAMES[:4]), shard_map(*NAMES[:5])
    moved = 0
    for number in range(20_000):
        was, now = before.owner(f"j{number}"), after.owner(f"j{number}")
        assert now in (was, "s04")
        moved += was != now
    assert 0.18 < moved / 20_000 < 0.22


def test_the_order_in_which_a_map_is_written_means_nothing() -> None:
    one, other = shard_map(*NAMES), shard_map(*reversed(NAMES))
    assert all(one.owner(f"j{number}") == other.owner(f"j{number}") for number in range(5000))


def test_a_job_can_be_told_where_it_belongs() -> None:
    shards = shard_map("s00", "s01", "s02")
    assert {shards.owner(pinned(f"j{number}", "s01")) for number in range(100)} == {"s01"}
    assert pinned("j", "") == "j"
    assert shards.elsewhere("x.s00") == ""
    assert shards.elsewhere("x.s02") == "s02"
    assert shards.owner("x.s99") == shards.owner("x.s99")  # no shard of ours: a name like any other


def test_without_shards_all_is_ours() -> None:
    alone = ShardMap()
    assert not alone
    assert alone.owner("j") == alone.elsewhere("j") == ""
    assert not shard_map("s00")
    assert shard_map("s00").elsewhere("j") == ""


# --- maps -------------------------------------------------------------------

HOME = "/srv/a"
A = f"[shard:s00]\nendpoint = ipc://{HOME}/run/bus\nredis = unix://{HOME}/run/redis?db=0\n"
B = "[shard:s01]\nendpoint = tcp://10.0.0.2:5555\nredis = redis://:hidden-word@10.0.0.2/0\n"


def parse(text: str, **environ: str) -> config.Config:
    return config.parse(text, ROOT / "etc" / "exesys.ini", {"EXESYS_HOME": HOME, **environ}, ROOT, ROOT)


def test_a_map_is_declared_in_the_ini_or_by_variables() -> None:
    found = parse(f"[bus]\nshard = s00\n{A}{B}")
    assert found.shard_map().own == "s00"
    assert found.shard_map().endpoints == {"s00": f"ipc://{HOME}/run/bus", "s01": "tcp://10.0.0.2:5555"}
    assert parse("", **programs.settings(found)).shards == found.shards


@pytest.mark.parametrize(
    ("text", "says", "fix"),
    [
        (f"[bus]\nshard = s02\n{A}{B}", "[bus] shard is s02; this shard is unknown", "`s01`"),
        (f"[bus]\nshard = s00\n{B}", "this shard is unknown", "s01"),
        ("[bus]\nshard = s00\n", "there is no section [shard:s00]", "take `shard` away"),
        (f"{A}{B}", "does not say which this home is", "s00, s01"),
        (f"[bus]\nshard = s00\n{A}{A.replace('s00', 's01')}", "s00 and s01 have one endpoint", "of its own"),
        (
            f"[bus]\nshard = s00\n{A}{A.replace('s00', 's01').replace('bus', 'other')}",
            "s00 and s01 have one Redis",
            "`prefix`",
        ),
        (f"[bus]\nshard = s01\n{A}{B}", "[shard:s01] endpoint is tcp://10.0.0.2:5555, and our router is at", "same"),
        (f"[bus]\nshard = s00\n{A}prefix = {{s00}}\n{B}", "[redis] prefix is ''", "same"),
        (
            f"[bus]\nshard = s00\n{A.replace('run/redis', 'other')}{B}",
            f"unix://{HOME}/other, and ours is at",
            "that is there",
        ),
        (f"[bus]\nshard = s00\n{A}{B.replace('redis://', 'http://')}", "[shard:s01] redis is", "redis://…"),
        (f"[bus]\nshard = s00\n{A}{B.replace('tcp://10.0.0.2', 'tcp://*')}", "[shard:s01] endpoint is", "reach it"),
        (f"[bus]\nshard = s00\n{A}{B}[shard:s02]\n", "the shard s02 has no `endpoint`", "EXESYS_SHARD_s02_ENDPOINT"),
        (f"[bus]\nshard = s00\n{A}{B}[shard:S_2]\n", "names no shard", "small letter"),
        ("[bus]\nshard = Nord-1\n", "[bus] shard is 'Nord-1'", "small letter"),
    ],
)
def test_a_map_that_cannot_be_right_is_refused(text: str, says: str, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text)
    assert says in str(caught.value)
    assert fix in caught.value.fix
    assert "hidden-word" not in str(caught.value)


def test_hosts_have_several_names_and_ports_have_not() -> None:
    both = (ShardOf("s00", "tcp://a:5555"), ShardOf("s01", "tcp://b:5555"))
    check(both, "s00", "tcp://0.0.0.0:5555", "redis://b", "")
    with pytest.raises(ConfigError):
        check(both, "s00", "tcp://0.0.0.0:5556", "redis://b", "")


def test_the_password_of_another_shards_redis_is_not_in_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    found = parse(f"[bus]\nshard = s00\n{A}{B}")
    for name, value in programs.settings(found).items():
        monkeypatch.setenv(name, value)
    assert "hidden-word" not in str(environment.open_part())
    assert environment.secret_part(found)["EXESYS_SHARD_s01_REDIS"] == "redis://:hidden-word@10.0.0.2/0"
    assert "hidden-word" not in repr(found)


# --- the router -----------------------------------------------------------

SHARDS = (ShardOf("s00", "ipc:///tmp/a"), ShardOf("s01", "ipc:///tmp/b"), ShardOf("s02", "ipc:///tmp/c"))
MAP = ShardMap("s00", {shard.name: shard.endpoint for shard in SHARDS})


def name_of(shard: str, number: int = 0) -> str:
    """Return a job_id that belongs to a shard by its hash."""
    return [job for job in (f"j{each}" for each in range(1000)) if MAP.owner(job) == shard][number]


def bench() -> Bench:
    return Bench(replace(CONFIG, bus=replace(CONFIG.bus, shard="s00", endpoint="ipc:///tmp/a"), shards=SHARDS))


def test_welcome_tells_the_map() -> None:
    system = bench()
    client = system.client()
    [welcome] = system.said(client)
    assert isinstance(welcome, m.Welcome)
    assert (welcome.shard, welcome.shards) == ("s00", MAP.endpoints)


def test_what_belongs_elsewhere_gets_moved_and_leaves_nothing() -> None:
    system = bench()
    client = system.client()
    system.said(client)
    before = repr(sorted(system.store.db.values))
    theirs = [item(tag, name_of("s01", tag)) for tag in (1, 2)]
    system.tell(client, m.Submit((*theirs, item(3, name_of("s02")))))
    system.turn()
    assert system.said(client) == [m.Moved((1, 2), "s01", "ipc:///tmp/b"), m.Moved((3,), "s02", "ipc:///tmp/c")]
    system.tell(client, m.Status((m.Query(4, name_of("s01"), "a", "end_job", True),)))
    system.tell(client, m.Change(5, "cancel", name_of("s02")))
    system.turn()
    assert system.said(client) == [m.Moved((4,), "s01", "ipc:///tmp/b"), m.Moved((5,), "s02", "ipc:///tmp/c")]
    assert repr(sorted(system.store.db.values)) == before


def test_a_whole_workflow_moves_and_one_of_two_jobs_is_refused_whole() -> None:
    system = bench()
    client = system.client()
    system.said(client)
    job = name_of("s01")
    steps = [item(1, job)._replace(to="b", flow=1), item(2, job)._replace(from_="b", flow=1)]
    system.tell(client, m.Submit(tuple(steps)))
    assert system.said(client) == [m.Moved((1, 2), "s01", "ipc:///tmp/b")]
    mixed = [item(3, name_of("s00"))._replace(to="b", flow=3), item(4, job)._replace(from_="b", flow=3)]
    system.tell(client, m.Submit(tuple(mixed)))
    system.turn()
    [refused] = system.said(client)
    assert isinstance(refused, m.SubmitAck)
    assert [(answer.tag, answer.body[0]) for answer in refused.answers] == [(3, "bad_field"), (4, "bad_field")]


# --- the client's desks -----------------------------------------------------


def greeted(lock: Any = None) -> Desk:
    desk = Desk("0" * 16, 10, lock=lock)
    desk.receive(m.Welcome(1, desk.session, 1, 1.0, 5, {}, {}, "", {}), 0.0)
    desk.outgoing(0.0)
    return desk


def flying(desk: Desk, job: str, **fields: Any) -> tuple[Handle, m.Item]:
    return Handle(job, "a", "end_job", "double", desk.lock), item(0, job)._replace(**fields)


def test_what_one_desk_leaves_another_sends_in_its_order() -> None:
    one = greeted()
    other = greeted(one.lock)
    first, second = flying(one, "j1"), flying(one, "j2")
    one.put(*first, True, True)
    one.put(second[0], None, False, True)  # a question
    one.put_workflow(*zip(*[flying(one, "w", to="b"), flying(one, "w", from_="b")], strict=True), True)
    sent = one.outgoing(1.0)
    left = one.leave([1, 2, 3, 4, 99])
    assert one.unanswered == 0
    other.put(*flying(other, "before"), True, True)
    other.adopt(left)
    submit, status = other.outgoing(1.0)[:2]
    assert isinstance(submit, m.Submit)
    assert [(each.tag, each.job_id, each.flow) for each in submit.items] == [
        *[(1, "before", 0), (2, "j1", 0), (4, "w", 4), (5, "w", 4)]
    ]
    assert status == m.Status((m.Query(3, "j2", "a", "end_job", False),))
    assert isinstance(sent[0], m.Submit)
    assert submit.items[1].data == sent[0].items[0].data
    other.receive(m.Done((m.Answer(2, 3, b"\x2a"),)), 1.0)
    assert first[0].done()
    assert [flight.moves for flight in other.leave([4, 5])] == [1, 1]
    assert MOST_MOVES > 1


def test_a_question_that_moved_is_answered_or_forgotten_where_it_went() -> None:
    one = greeted()
    other = greeted(one.lock)
    heard: list[m.Reply] = []
    tag = one.ask(lambda tag: m.Change(tag, "cancel", "j"), heard.append)
    asked = one.leave_asked(tag)
    assert asked is not None
    other.put(*flying(other, "x"), True, True)
    other.adopt_asked(asked, one, tag)
    assert m.Change(2, "cancel", "j") in other.outgoing(1.0)
    other.receive(m.Changed(2, 1, None), 1.0)
    assert heard == [m.Changed(2, 1, None)]
    tag = one.ask(lambda tag: m.Change(tag, "cancel", "k"), heard.append)
    again = one.leave_asked(tag)
    assert again is not None
    other.adopt_asked(again, one, tag)
    one.forget(tag)
    other.receive(m.Changed(3, 1, None), 1.0)
    assert len(heard) == 1
    assert Bus().shard == ""
