"""The Python clients against a real system, also one whose router goes away."""

import asyncio
import datetime as dt
import decimal
import os
import queue
import signal
import threading
import time
import uuid
from collections import Counter

import pytest
from harness import until

import exesys
from exesys import command
from exesys.errors import BadCommand, Conflict, NotFound, ResultTimeout, TooLarge, Unavailable, UnknownFunction
from exesys.states import State

KINDS = {
    "datetime": dt.datetime(2026, 2, 3, 4, 5, 6, 789, dt.timezone(dt.timedelta(hours=2))),
    "naive": dt.datetime(2026, 2, 3, 4, 5, 6),
    "uuid": uuid.UUID(int=5),
    "decimal": decimal.Decimal("1.10"),
    "set": {1, "a", (2, 3)},
    "frozenset": frozenset({1, 2}),
    "bytes": b"\x00\xff",
}


@pytest.fixture
def client(shared):
    with shared.client() as client:
        yield client


# --- one system, unharmed -----------------------------------------------------------


def test_run(client):
    assert client.run("add", [1, 2, 3], timeout=10) == 6


def test_submit_gives_a_handle_like_a_future(client):
    handle = client.submit("sleep", 0.3)
    assert not handle.done()
    assert handle.accepted(10) is State.start
    with pytest.raises(ResultTimeout, match=handle.job_id):
        handle.result(0.01)
    assert handle.exception() is None
    assert handle.result(10) == 0.3
    assert handle.done()
    assert handle.state is State.data_available
    assert uuid.UUID(handle.job_id)


def test_callbacks_are_called_once_each(client):
    called = []
    handle = client.submit("sleep", 0.1)
    handle.add_done_callback(called.append)
    handle.result(10)
    handle.add_done_callback(called.append)
    until(lambda: called == [handle, handle], "both were called")


def test_a_callback_that_raises_harms_nobody(client, caplog):
    def raises(handle):
        raise ValueError("of the callback")

    handle = client.submit("sleep", 0.1)
    handle.add_done_callback(raises)
    assert handle.result(10) == 0.1
    until(lambda: "of the callback" in caplog.text, "it was logged")
    assert client.run("echo", 1, timeout=10) == 1


def test_submit_many_keeps_the_order(client):
    handles = client.submit_many("echo", range(3000))
    assert [handle.result(20) for handle in handles] == list(range(3000))
    assert len({handle.job_id for handle in handles}) == 3000


def test_options_go_along(client, shared):
    handle = client.submit("echo", 1, from_="A", to=["B", "C"], job_id=f"options-{uuid.uuid4()}", delay_s=0.3)
    since = time.monotonic()
    assert handle.result(10) == 1
    assert time.monotonic() - since > 0.25
    [step] = shared.get(f"/jobs/{handle.job_id}").body["steps"]
    assert (step["from"], step["to"]) == ("A", ["B", "C"])


def test_an_error_of_the_function_comes_with_type_message_and_traceback(client):
    with pytest.raises(exesys.JobError) as caught:
        client.run("fail", "as it was asked", timeout=10)
    error = caught.value
    assert (error.type, error.text, error.attempts) == ("ValueError", "as it was asked", 1)
    assert str(error) == "ValueError: as it was asked"
    assert 'raise ValueError("it was asked to fail"' in error.traceback
    assert isinstance(error, exesys.ExesysError)


@pytest.mark.parametrize(
    ("cmd", "data", "options", "kind"),
    [
        ("ecko", 1, {}, UnknownFunction),
        ("echo", object(), {}, BadCommand),
        ("echo", 1, {"from_": "a:b"}, BadCommand),
        ("echo", 1, {"timeout_s": -1}, BadCommand),
        ("echo", 1, {"time_out_s": 1}, BadCommand),
        ("echo", b"x" * (1 << 20), {}, TooLarge),
    ],
    ids=["cmd", "data", "name", "option", "key", "size"],
)
def test_a_refusal_is_raised(client, cmd, data, options, kind):
    with pytest.raises(kind):
        client.run(cmd, data, timeout=10, **options)


def test_a_conflict_is_raised(client):
    handle = client.submit("echo", 1)
    handle.result(10)
    with pytest.raises(Conflict):
        client.submit("echo", 2, job_id=handle.job_id).result(10)
    assert client.submit("echo", 1, job_id=handle.job_id).result(10) == 1


def test_status_and_result_of_a_job_that_someone_else_sent(client, shared):
    with shared.client() as other:
        handle = other.submit("sleep", 0.5)
        handle.accepted(10)
    assert client.status(handle.job_id)["state"] in ("start", "processing")
    assert client.result(handle.job_id, 10) == 0.5
    status = client.status(handle.job_id)
    assert status == {"status": 3, "state": "data_available", "result": {"EOJ": 0.5}}
    with pytest.raises(NotFound):
        client.status("nowhere")
    with pytest.raises(NotFound):
        client.result("nowhere", 10)


def test_every_kind_of_value_makes_the_round_trip(client):
    assert client.run("echo", KINDS, timeout=10) == KINDS
    named = client.run("kinds_of", KINDS, timeout=10)
    assert named == {name: type(value).__name__ for name, value in KINDS.items()}
    assert client.run("kinds", 5, timeout=10) == {**KINDS, "was": 5}


@pytest.mark.parametrize("size", [0, 1, 4000, 4096, 5000, 1_000_000])
def test_data_of_every_size_makes_the_round_trip(client, size):
    """Also those that no longer fit a packet between the worker and its slot."""
    data = os.urandom(size)
    assert client.run("echo", data, timeout=20) == data


def test_many_large_ones(client):
    data = [os.urandom(200_000) for _ in range(40)]
    handles = client.submit_many("echo", data)
    assert [handle.result(30) for handle in handles] == data


def test_threads_may_share_a_client(client):
    wrong = []

    def work(thread):
        handles = [client.submit("echo", [thread, number]) for number in range(200)]
        wrong.extend(handle for number, handle in enumerate(handles) if handle.result(30) != [thread, number])
        if client.run("add", [thread, 1], timeout=30) != thread + 1:
            wrong.append(thread)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert wrong == []


def test_the_window_bounds_what_is_not_acknowledged(shared):
    with shared.client(window=10) as client:
        handles = client.submit_many("echo", range(500))
        assert [handle.result(20) for handle in handles] == list(range(500))


def test_a_callback_may_submit_while_the_window_is_full(shared):
    """Callbacks run in whatever thread reads the socket: one that waits for room there would wait for ever."""
    followers = []
    client = shared.client(window=1)

    def work():
        handles = []
        for number in range(200):
            handle = client.submit("echo", number)
            handle.add_done_callback(lambda handle: followers.append(client.submit("echo", handle.result(0))))
            handles.append(handle)
            if number % 10 == 9:
                handle.result(20)
        for handle in handles:
            handle.result(20)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive(), "it hangs"
    until(lambda: len(followers) == 600, "all callbacks were called")
    assert sorted(handle.result(20) for handle in followers) == sorted([*range(200)] * 3)
    client.close()


def test_clients_come_and_go(shared):
    """Closed at once after use, from one thread while another opens files."""
    for number in range(100):
        with shared.client() as client:
            assert client.run("echo", number, timeout=10) == number


def test_what_is_posted_waits_for_nothing_and_goes_with_the_flush(make):
    system = make()
    client = system.client(window=2)
    assert client.run("echo", 0, timeout=10) == 0
    router = system.pids()["router"]
    os.kill(router, signal.SIGSTOP)
    told = queue.Queue()
    limits = command.Limits()
    bodies = [{"cmd": "echo", "data": i, "job_id": f"posted-{i}"} for i in range(20)] + [{"cmd": "nothing"}]
    handles = [client.post(command.from_json(body, limits, lambda: "posted"), told.put) for body in bodies]
    client.flush()
    assert client.full
    assert [handle.state for handle in handles] == [None] * 21
    os.kill(router, signal.SIGCONT)
    assert {told.get(timeout=20) for _ in handles} == set(handles)
    assert told.empty()
    assert [handle.accepted(0).name for handle in handles[:20]] == ["start"] * 20
    assert isinstance(handles[20].exception(), UnknownFunction)
    assert [client.result(f"posted-{i}", timeout=20) for i in range(20)] == list(range(20))
    client.close()


def test_a_client_waits_while_its_window_is_full(make):
    """With the router standing still only as many commands are taken as the window allows."""
    system = make()
    client = system.client(window=10)
    assert client.run("echo", 0, timeout=10) == 0
    router = system.pids()["router"]
    os.kill(router, signal.SIGSTOP)
    handles = []
    submitter = threading.Thread(
        target=lambda: handles.extend(client.submit("echo", i) for i in range(30)), daemon=True
    )
    counted = []
    slow = threading.Thread(target=lambda: counted.extend(one_by_one(client, 30)), daemon=True)
    slow.start()
    submitter.start()
    submitter.join(1)
    assert submitter.is_alive()
    os.kill(router, signal.SIGCONT)
    submitter.join(20)
    slow.join(20)
    assert [handle.result(20) for handle in handles] == list(range(30))
    assert counted == list(range(30))
    client.close()


def one_by_one(client, count):
    return [client.run("echo", i, timeout=30) for i in range(count)]


def test_a_client_that_is_closed_says_goodbye(shared):
    def peers():
        with shared.client() as asking:
            return asking.snapshot("figures")["figures"]["peers"]

    before = peers()
    clients = [shared.client() for _ in range(5)]
    for client in clients:
        assert client.run("echo", 1, timeout=10) == 1
    assert peers() == before + 5
    for client in clients:
        client.close()
    until(lambda: peers() == before, "the router forgot them", within_s=5)


def test_a_client_finds_its_system_by_the_environment(shared, monkeypatch):
    for name, value in shared.environ.items():
        if name.startswith("EXESYS_"):
            monkeypatch.setenv(name, value)
    with exesys.Client() as client:
        assert client.run("echo", "found", timeout=10) == "found"


def test_a_client_without_patience_is_told_that_nobody_is_there(tmp_path):
    from exesys import config

    nowhere = config.parse("", None, {"EXESYS_HOME": str(tmp_path / "none")}, tmp_path, tmp_path)
    with exesys.Client(nowhere, patient=False) as client, pytest.raises((Unavailable, ResultTimeout)):
        client.run("echo", 1, timeout=3)


# --- await ------------------------------------------------------------------------------


def test_the_async_client(shared):
    async def all_of_it():
        async with exesys.AsyncClient(shared.config) as client:
            assert await client.run("add", [1, 2], timeout=10) == 3
            handle = await client.submit("sleep", 0.2)
            assert not handle.done()
            with pytest.raises(ResultTimeout):
                await handle.result(0.01)
            assert await handle == 0.2
            handles = await client.submit_many("echo", range(1000))
            assert await asyncio.gather(*(handle.result(20) for handle in handles)) == list(range(1000))
            with pytest.raises(exesys.JobError, match="ValueError: why"):
                await client.run("fail", "why", timeout=10)
            with pytest.raises(UnknownFunction):
                await client.run("ecko", timeout=10)
            assert await client.result(handle.job_id, 10) == 0.2
            assert (await client.status(handle.job_id))["state"] == "data_available"
            assert await client.run("echo", KINDS, timeout=10) == KINDS

    asyncio.run(all_of_it())


def test_the_async_client_holds_up_nobody(shared):
    """While one job is awaited others are served, in the same loop."""

    async def both():
        async with exesys.AsyncClient(shared.config) as client:
            long = asyncio.create_task(client.run("sleep", 4.0, timeout=20))
            since = time.monotonic()
            for i in range(50):
                assert await client.run("echo", i, timeout=10) == i
            assert time.monotonic() - since < 4
            assert not long.done()
            assert await long == 4.0

    asyncio.run(both())


def test_the_async_client_waits_without_a_thread_for_each(shared):
    async def many():
        async with exesys.AsyncClient(shared.config, window=50) as client:
            return await asyncio.gather(*(client.run("echo", i, timeout=30) for i in range(500)))

    assert asyncio.run(many()) == list(range(500))


# --- the router goes away --------------------------------------------------------------


@pytest.fixture(scope="module")
def own(make_module):
    return make_module()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_client_goes_through_a_restart_of_the_router(own, how):
    """With 1,000 in flight: each has its result, and each ran once."""
    until(own.ready, "all is there")
    marks = own.root / f"restart-{how.name}"
    router = own.pids()["router"]
    with own.client() as client:
        data = [{"runs": str(marks), "number": i, "seconds": 0.002} for i in range(1000)]
        handles = client.submit_many("marked", data)
        until(lambda: sum(handle.done() for handle in handles) > 20, "some ended", every_s=0.001)
        os.kill(router, how)
        late = client.submit_many("marked", [{**item, "number": i} for i, item in enumerate(data[:100], 1000)])
        assert [handle.result(30)["value"] for handle in handles + late] == [2 * i for i in range(1100)]
        assert own.pids()["router"] != router
    runs = Counter(line.split()[0] for line in marks.read_text().splitlines())
    assert set(runs) == {handle.job_id for handle in handles + late}
    assert set(runs.values()) == {1}, "the workers lived: nothing had to run again"


def test_a_client_with_very_many_under_way_goes_through_a_restart_of_the_router(make):
    """It asks for all of them at once, and that must not be too much for anyone."""
    system = make()
    with system.client() as client:
        handles = client.submit_many("echo", range(60_000), queue="nobody-serves-it")
        for handle in handles:
            handle.accepted(60)
        router = system.pids()["router"]
        os.kill(router, signal.SIGKILL)
        until(lambda: system.pids().get("router") not in (None, router), "there is a new router")
        since = time.monotonic()
        with system.client() as other:
            assert other.run("echo", 1, timeout=20) == 1
        assert time.monotonic() - since < 10
        until(lambda: client.status(handles[-1].job_id)["state"] == "start", "the first client is served too")


def test_a_command_sent_again_and_again_runs_once(own):
    """What a client without an answer does: the same command, from many sides at the same time."""
    until(own.ready, "all is there")
    marks = own.root / "again"
    job_ids = [f"again-{i}" for i in range(50)]
    data = {job_id: {"runs": str(marks), "number": i, "seconds": 0.01} for i, job_id in enumerate(job_ids)}
    clients = [own.client() for _ in range(4)]
    handles = [
        client.submit("marked", data[job_id], job_id=job_id)
        for _ in range(3)
        for client in clients
        for job_id in job_ids
    ]
    values = [handle.result(30)["value"] for handle in handles]
    assert values == [2 * i for i in range(50)] * 12
    for client in clients:
        client.close()
    runs = Counter(line.split()[0] for line in marks.read_text().splitlines())
    assert runs == Counter(job_ids)


def test_an_async_client_goes_through_a_restart_of_the_router(own):
    until(own.ready, "all is there")
    router = own.pids()["router"]

    async def work():
        async with exesys.AsyncClient(own.config) as client:
            handles = await client.submit_many("sleep", [0.002] * 500)
            await handles[10].result(20)
            os.kill(router, signal.SIGKILL)
            return await asyncio.gather(*(handle.result(30) for handle in handles))

    assert asyncio.run(work()) == [0.002] * 500


def test_a_client_that_was_there_before_the_router(own):
    """A client may come first, and waits."""
    own.down()
    client = own.client()
    handle = client.submit("echo", "early")
    assert not client.wait_connected(0.2)
    own.up()
    assert handle.result(30) == "early"
    client.close()
