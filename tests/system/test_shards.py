"""Two routers as one system: jobs spread, each REST shows all, and the death of one leaves the other alone."""

from __future__ import annotations

import json
import os
import secrets
import signal
import threading

import pytest
import zmq
from harness import free_ports, until
from sent import steady
from shard_homes import declare, names_of, pair, sharing

import exesys
from exesys import shardchecks
from exesys.bus import messages as m
from exesys.bus import wire
from exesys.bus.aclient import AsyncClient
from exesys.errors import NotFound, ResultTimeout, Unavailable
from exesys.keyring import Keyring

WITHIN_S = 60.0


@pytest.fixture(scope="module")
def both(make_module):
    return pair(make_module)


def kept_at(system):
    with system.redis() as store:
        return {fields[b"j"].decode() for _, fields in store.xrange("exesys:jobs")}


def test_jobs_spread_and_every_result_is_right(both):
    with both[0].client() as client:
        before = [kept_at(each) for each in both]
        handles = client.submit_many("echo", range(1000))
        assert [handle.result(WITHIN_S) for handle in handles] == list(range(1000))
        kept = [kept_at(each) - known for each, known in zip(both, before, strict=True)]
        shards = both[0].config.shard_map()
        mine = {handle.job_id for handle in handles}
        assert kept[0] & mine == {job for job in mine if shards.owner(job) == "s00"}
        assert kept[1] & mine == mine - kept[0]
        assert min(len(each & mine) for each in kept) > 400
        # Both ends know the map, so nothing had to be told where it belongs.
        figures = client.snapshot("figures")["figures"]
        assert figures.get("moved", 0) == 0


def test_workflows_belong_to_one_shard_each(both):
    shards = both[0].config.shard_map()
    with both[1].client() as client:
        flows = {
            name: client.workflow(
                [
                    {"from": "a", "to": "c", "cmd": "echo", "data": 1},
                    {"from": "b", "to": "c", "cmd": "echo", "data": 2},
                    {"from": "c", "to": "end_job", "cmd": "echo"},
                ],
                name,
            )
            for shard in ("s00", "s01")
            for name in names_of(shards, shard, 20, "w")
        }
        for name, handle in flows.items():
            assert handle.result(WITHIN_S) == {"a": {"EOJ": 1}, "b": {"EOJ": 2}} or handle.result() == {"a": 1, "b": 2}
            assert name in kept_at(both[shards.owner(name) == "s01"])
            assert name not in kept_at(both[shards.owner(name) == "s00"])


def test_a_job_is_followed_asked_for_retried_cancelled_and_purged_at_its_shard(both):
    shards = both[0].config.shard_map()
    [theirs] = names_of(shards, "s01", 1, "change")
    with both[0].client() as client:
        failing = client.submit("fail", "no", job_id=theirs)
        assert failing.wait(WITHIN_S)
        assert client.status(theirs)["state"] == "error"
        assert client.retry(theirs) == 1
        until(lambda: client.status(theirs)["state"] == "error", "it failed again")
        assert client.purge(theirs) == 1
        with pytest.raises(NotFound):
            client.status(theirs)
        later = client.submit("echo", 1, job_id=f"{theirs}-later", delay_s=1000)
        later.accepted(WITHIN_S)
        assert client.cancel(later.job_id) == 1
        assert later.wait(WITHIN_S)


def test_functions_and_executors_spread_too(both):
    with both[0].client() as client:
        jobs = client.run("submits", list(range(200)), timeout=WITHIN_S)
        assert [client.result(job, WITHIN_S) for job in jobs] == list(range(200))
        assert all(kept_at(each) & set(jobs) for each in both)
        with client.executor() as pool:
            assert list(pool.map("echo", range(300), timeout=WITHIN_S)) == list(range(300))


async def _asked(config):
    async with AsyncClient(config) as client:
        handles = await client.submit_many("echo", range(100))
        return [await handle.result(WITHIN_S) for handle in handles]


def test_an_async_client_spreads_too(both):
    import asyncio

    assert asyncio.run(_asked(both[0].config)) == list(range(100))


def test_each_rest_shows_the_jobs_of_all(both):
    here, there = both
    shards = here.config.shard_map()
    names = names_of(shards, "s01", 3, "rest")
    answer = here.post([{"cmd": "echo", "data": name, "job_id": name} for name in names], wait=20)
    assert answer.status == 200, answer
    for system in both:
        shown = system.get(f"/jobs/{names[0]}")
        assert (shown.status, shown.body["steps"][0]["result"]) == (200, {"EOJ": names[0]}), shown
        assert system.get(f"/jobs/{names[0]}/log").status == 200
        stream = system.request("GET", f"/jobs/{names[0]}/events")
        assert stream.status == 200
    assert names[0] in {job["job_id"] for job in there.get("/jobs").body["jobs"]}
    assert names[0] not in {job["job_id"] for job in here.get("/jobs").body["jobs"]}
    slow = names_of(shards, "s01", 1, "gone")[0]
    assert here.post({"cmd": "echo", "data": 1, "job_id": slow, "delay_s": 1000}).status == 202
    deleted = here.request("DELETE", f"/jobs/{slow}")
    assert (deleted.status, deleted.body["cancelled"]) == (200, 1)
    assert there.get(f"/jobs/{slow}").body["state"] == "error"
    assert here.get("/jobs/nobody-knows-it").status == 404


def test_the_command_line_shows_the_jobs_of_all(both):
    here, _ = both
    [theirs] = names_of(here.config.shard_map(), "s01", 1, "line")
    done = here.exesys("submit", "echo", '"hello"', "--job-id", theirs, "--wait", "20")
    assert (done.code, "hello" in done.out) == (0, True), done
    assert here.exesys("jobs", theirs, "--json").json["steps"][0]["result"] == {"EOJ": "hello"}
    assert "hello" in here.exesys("result", theirs).out
    assert here.exesys("logs", "--job", theirs).code == 0
    assert here.exesys("workflow", "show", theirs).code == 0
    [ours, asked] = [each.exesys("why", theirs) for each in both]
    assert (ours.code, ours.out) == (asked.code, asked.out)
    assert here.exesys("jobs", "nobody-knows-it").code != 0


def test_timers_run_where_they_are(both):
    here, there = both
    body = json.dumps({"name": "often", "cmd": "echo", "data": 1, "every_s": 1, "overlap": "skip"})
    added = here.request("POST", "/timers", body, {"Content-Type": "application/json"})
    assert added.status == 201, added

    def ticked():
        return [job for job in kept_at(here) if job.startswith("often.")]

    until(lambda: len(ticked()) >= 4, "it ticks")
    now = [here.request("POST", "/timers/often/run").body["job_id"] for _ in range(4)]
    now += [here.exesys("timer", "run", "often", "--json").json["job_id"] for _ in range(2)]
    assert set(now) <= kept_at(here), "also those that are run by hand"
    assert all(job.endswith(".s00") for job in ticked())
    assert not [job for job in kept_at(there) if job.startswith("often.")]
    here.request("DELETE", "/timers/often")


def test_a_peer_that_knows_no_map_gets_moved_and_leaves_nothing(both):
    here, there = both
    shards = here.config.shard_map()
    [theirs] = names_of(shards, "s01", 1, "bare")
    with zmq.Context() as context, context.socket(zmq.DEALER) as bare:
        bare.linger = 0
        bare.rcvtimeo = 10_000
        bare.connect(here.config.bus_endpoint)
        bare.send(wire.encode(m.Hello(m.VERSION, "client", secrets.token_hex(8), "", {})))
        welcome = wire.decode_at_peer(bare.recv())
        assert (welcome.shard, welcome.shards) == ("s00", shards.endpoints)
        before = steady(here)
        sent = m.Item(7, "user", "end_job", "echo", b"\x01", theirs, {}, True)
        bare.send(wire.encode(m.Submit((sent,))))
        assert wire.decode_at_peer(bare.recv()) == m.Moved((7,), "s01", there.config.bus_endpoint)
        bare.send(wire.encode(m.Change(8, "cancel", theirs)))
        assert wire.decode_at_peer(bare.recv()) == m.Moved((8,), "s01", there.config.bus_endpoint)
        assert steady(here) == before
        assert theirs not in kept_at(there)


def test_a_client_with_another_map_follows_moved(both):
    """Its settings and its router say that there is no shard but one: each of the others' jobs is moved once."""
    here, _ = both
    with here.client() as client:
        client.wait_connected(WITHIN_S)
        # As if the router had been restarted with the map after this client was greeted by one without.
        welcome = client._connection.desk.welcome
        client._connection.desk.welcome = welcome._replace(shard="", shards={})
        assert client._fleet.alone
        handles = client.submit_many("echo", range(400))
        assert [handle.result(WITHIN_S) for handle in handles] == list(range(400))
        assert client.snapshot("figures")["figures"]["moved"] > 100
        flow = client.workflow(
            [{"from": "a", "to": "b", "cmd": "echo", "data": 1}, {"from": "b", "to": "end_job", "cmd": "echo"}],
            names_of(here.config.shard_map(), "s01", 1, "flow")[0],
        )
        flow.result(WITHIN_S)
        [theirs] = names_of(here.config.shard_map(), "s01", 1, "moved")
        client.submit("echo", 1, job_id=theirs, delay_s=1000).accepted(WITHIN_S)
        assert client.cancel(theirs) == 1


def test_two_routers_that_send_a_job_to_each_other_are_told_of(make):
    """Of two homes each knows a map in which all belongs to the other."""
    systems = make(start=False), make(start=False)
    declare(systems)
    for number, system in enumerate(systems):
        for shard in ("s00", "s01"):
            if shard != f"s{number:02d}":
                system.environ[f"EXESYS_SHARD_{shard}x_ENDPOINT"] = system.environ.pop(f"EXESYS_SHARD_{shard}_ENDPOINT")
                system.environ[f"EXESYS_SHARD_{shard}x_REDIS"] = system.environ.pop(f"EXESYS_SHARD_{shard}_REDIS")
        system.config = exesys.environment.load(system.environ, system.root)
        system.up()
    maps = [system.config.shard_map() for system in systems]
    lost = next(f"j{n}" for n in range(1000) if maps[0].elsewhere(f"j{n}") and maps[1].elsewhere(f"j{n}"))
    with systems[0].client() as client, pytest.raises(Unavailable, match="their maps differ"):
        client.run("echo", 1, timeout=WITHIN_S, job_id=lost)
    with systems[0].client() as client, pytest.raises(Unavailable, match="their maps differ"):
        client.cancel(lost, timeout=5.0)
    doctor = systems[0].exesys("doctor")
    assert "s01x" in doctor.out
    assert "another map" in doctor.out


@pytest.mark.parametrize("victim", ["router", "redis"])
def test_the_death_of_one_shard_holds_up_its_own_jobs_alone(make, victim):
    here, there = pair(make)
    shards = here.config.shard_map()
    ours, theirs = (names_of(shards, shard, 400) for shard in ("s00", "s01"))
    with here.client() as client:
        for name in (ours[0], theirs[0]):
            assert client.run("echo", 0, timeout=WITHIN_S, job_id=name) == 0
        assert here.post({"cmd": "echo", "data": 0, "job_id": theirs[0]}, wait=10).status == 200
        pids = there.pids()
        supervisord = pids["supervisord"]
        os.kill(supervisord, signal.SIGSTOP)  # so that it is away for as long as we like
        os.kill(pids[victim], signal.SIGKILL)
        try:
            waiting = [client.submit("echo", name, job_id=name) for name in theirs[1:]]
            going = [client.submit("echo", name, job_id=name) for name in ours[1:200]]
            assert [handle.result(WITHIN_S) for handle in going] == ours[1:200]
            assert not any(handle.done() for handle in waiting)
            with pytest.raises(ResultTimeout):
                waiting[0].result(0.2)
            assert here.post({"cmd": "echo", "data": 1, "job_id": ours[300]}, wait=10).status == 200
            both = [{"cmd": "echo", "data": 1, "job_id": name} for name in (ours[301], "refused-too.s01")]
            answer = here.post(both, wait=10)  # also while nobody has noticed yet
            assert [("error" in each) for each in answer.body] == [False, True], answer
            refused = here.post({"cmd": "echo", "data": 1, "job_id": names_of(shards, "s01", 1, "refused")[0]})
            assert refused.status == 503, refused
            if victim == "redis":
                shown = here.get(f"/jobs/{theirs[0]}")
                assert (shown.status, "shard s01" in shown.body["error"]["message"]) == (503, True), shown
            if victim == "router":  # what has no job_id goes to a shard that is there
                with here.client() as fresh:
                    assert {shards.owner(fresh.new_id()) for _ in range(50)} == {"s00"}, "whoever comes looks first"
                # once it was noticed that the other's router is silent: by REST, and by this client
                until(lambda: {shards.owner(client.new_id()) for _ in range(50)} == {"s00"}, "it is noticed", 30)
                unnamed = [here.post({"cmd": "echo", "data": number}).status for number in range(20)]
                assert unnamed == [202] * 20
                handles = client.submit_many("echo", range(100))
                assert [handle.result(WITHIN_S) for handle in handles] == list(range(100))
            doctor = here.exesys("doctor")
            assert doctor.code != 0
            assert "shard s01" in doctor.out, doctor.out
        finally:
            os.kill(supervisord, signal.SIGCONT)
        assert [handle.result(WITHIN_S) for handle in waiting] == theirs[1:]
    with there.client() as client:
        assert client.result(theirs[1], WITHIN_S) == theirs[1]


def test_many_threads_share_one_client(both):
    with both[0].client() as client:
        wrong = []

        def run(number):
            for each in range(50):
                if client.run("echo", [number, each], timeout=WITHIN_S) != [number, each]:
                    wrong.append((number, each))

        threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_a_client_listens_to_a_job_at_its_shard(both):
    [theirs] = names_of(both[0].config.shard_map(), "s01", 1, "heard")
    with both[0].client() as client, client.events(job_id=theirs) as events:
        client.run("echo", 1, timeout=WITHIN_S, job_id=theirs)
        seen = [events.get(WITHIN_S)["state"]]
        while seen[-1] != "data_available":
            seen.append(events.get(WITHIN_S)["state"])
    assert seen[-1] == "data_available"


def test_a_map_that_cannot_be_right_starts_nothing(make):
    system = make(start=False)
    declare([system])
    system.environ["EXESYS_BUS_SHARD"] = "s7"
    said = system.exesys("up")
    assert said.code != 0
    assert "[bus] shard is s7; this shard is unknown" in said.err
    assert "s00" in said.err


def test_a_key_file_that_is_not_there_starts_nothing(make):
    systems = make(start=False), make(start=False)
    declare(systems)
    system = systems[0]
    system.environ |= {"EXESYS_SHARD_s01_ENDPOINT": "tcp://127.0.0.1:5", "EXESYS_SHARD_s01_KEY": "none.key"}
    said = system.exesys("up")
    assert said.code != 0
    assert "there is no key file" in said.err
    assert "none.key" in said.err


def test_status_says_which_shard_it_is(both):
    assert both[1].exesys("status", "--json").json["shard"] == {"name": "s01", "of": ["s00", "s01"]}
    assert "shard  s01 of s00, s01" in both[1].exesys("status").out


def test_the_doctor_finds_a_redis_that_is_not_that_of_its_shard(both):
    here, there = both
    assert "know the same map" in here.exesys("doctor").out
    wrong = {**here.environ, "EXESYS_SHARD_s01_REDIS": f"unix://{there.home}/run/redis?db=1"}
    [found] = shardchecks.look(exesys.environment.load(wrong, here.root), True)
    assert "is not that of its router" in found.message, found


def test_two_shards_share_one_redis_with_a_prefix_each(make):
    here, there = sharing(make)
    shards = here.config.shard_map()
    with there.client() as client:
        handles = client.submit_many("echo", range(200))
        assert [handle.result(WITHIN_S) for handle in handles] == list(range(200))
    with here.redis() as store:
        for shard in ("s00", "s01"):
            kept = {fields[b"j"].decode() for _, fields in store.xrange(f"{{{shard}}}exesys:jobs")}
            assert {handle.job_id for handle in handles if shards.owner(handle.job_id) == shard} <= kept
            assert all(shards.owner(job) == shard for job in kept)
    for system in (here, there):
        for handle in (handles[0], *(each for each in handles if shards.owner(each.job_id) == "s01")):
            shown = system.get(f"/jobs/{handle.job_id}")
            assert (shown.status, shown.body["state"]) == (200, "data_available"), shown


def test_the_bus_of_each_shard_has_keys_of_its_own(make):
    """Over TCP, each home goes to the other with a key that the other has made for it."""
    systems = make(start=False), make(start=False)
    ports = free_ports(2)
    told: dict[str, str] = {}
    for name, port, system in zip(("s00", "s01"), ports, systems, strict=True):
        told[f"EXESYS_SHARD_{name}_ENDPOINT"] = f"tcp://127.0.0.1:{port}"
        told[f"EXESYS_SHARD_{name}_REDIS"] = f"unix://{system.home}/run/redis?db=0"
        system.environ["EXESYS_BUS_ENDPOINT"] = f"tcp://127.0.0.1:{port}"
    for (name, other), system in zip((("s00", "s01"), ("s01", "s00")), systems, strict=True):
        key = system.root / "other.key"
        system.environ |= {**told, "EXESYS_BUS_SHARD": name, f"EXESYS_SHARD_{other}_KEY": str(key)}
        system.config = exesys.environment.load(system.environ, system.root)
    for system, other in (systems, systems[::-1]):
        Keyring(other.config).new("worker", "other", system.root / "other.key")
    for system in systems:
        system.up()
    with systems[0].client() as client:
        handles = client.submit_many("echo", range(100))
        assert [handle.result(WITHIN_S) for handle in handles] == list(range(100))
    names = names_of(systems[0].config.shard_map(), "s00", 1, "keyed")
    assert systems[1].post({"cmd": "echo", "data": 1, "job_id": names[0]}, wait=20).status == 200
    assert "all know the same map" in systems[0].exesys("doctor").out
