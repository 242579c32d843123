"""The executor, and asyncio, on a real system: jobs where programs expect the calls of a pool."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import re
import resource
import subprocess
import sys
import uuid
from collections.abc import Iterator

import pytest
from harness import CHECKOUT, System, until

import exesys
from exesys.errors import JobCancelled, ResultTimeout, UnknownFunction

sys.path.append(str(CHECKOUT / "modules"))
import exesys_test  # the functions as a user's program imports them


@pytest.fixture(scope="module")
def client(shared: System) -> Iterator[exesys.Client]:
    with shared.client() as client:
        yield client


def state_of(shared: System, job_id: str) -> str:
    return str(shared.get(f"/jobs/{job_id}").body.get("state", "not there"))


def test_functions_run_as_jobs(client: exesys.Client, shared: System) -> None:
    with client.executor(retries=1) as executor:
        futures = [executor.submit(exesys_test.add, [number, 1]) for number in range(20)]
        assert {future.result(10) for future in cf.as_completed(futures, timeout=20)} == set(range(1, 21))
        assert cf.wait(futures, timeout=1).not_done == set()
        assert executor.submit("echo", "x").result(10) == "x"
    assert state_of(shared, futures[0].job_id) == "data_available"


def test_errors_are_those_of_the_function(client: exesys.Client) -> None:
    with client.executor() as executor:
        failing = executor.submit(exesys_test.fail, "on purpose")
        unknown = executor.submit("no_such_function")
        with pytest.raises(exesys.JobError, match="on purpose") as caught:
            failing.result(10)
        assert caught.value.type == "ValueError"
        with pytest.raises(UnknownFunction):
            unknown.result(10)


def test_ten_thousand_items_in_bounded_memory(client: exesys.Client) -> None:
    def items() -> Iterator[int]:
        for number in range(10_000):
            taken.append(number)
            yield number

    taken: list[int] = []
    executor = client.executor()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    most = 0
    for place, value in enumerate(executor.map("echo", items())):
        assert value == place
        most = max(most, len(taken) - place)
    assert place == 9999
    assert most <= 2001
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 40 << 10, "kB"
    executor.shutdown()


def test_a_job_that_runs_can_be_cancelled(client: exesys.Client, shared: System) -> None:
    with client.executor() as executor:
        future = executor.submit("sleep", 60)
        until(lambda: state_of(shared, future.job_id) == "processing", "it runs")
        assert future.cancel()
        with pytest.raises(cf.CancelledError):
            future.result(0)
    assert state_of(shared, future.job_id) == "error"
    with pytest.raises(JobCancelled):
        client.result(future.job_id, 10)


def test_shutdown_can_cancel_all(client: exesys.Client, shared: System) -> None:
    executor = client.executor()
    futures = [executor.submit("sleep", 60) for _ in range(50)]
    executor.shutdown(cancel_futures=True)
    assert all(future.cancelled() for future in futures)
    # What was not sent yet never is.
    ended = {"error", "not there"}
    assert {state_of(shared, future.job_id) for future in futures} <= ended


def test_asyncio_runs_them_and_leaves_nothing(client: exesys.Client, shared: System) -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, exesys_test.add, [1, 2]) == 3
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.wrap_future(late := executor.submit("sleep", 60)), 0.3)
        return late.job_id

    with client.executor() as executor:
        job_id = asyncio.run(main())
    assert state_of(shared, job_id) == "error"


def test_async_handles_come_as_they_end(shared: System) -> None:
    async def main() -> None:
        async with exesys.AsyncClient(shared.config) as client:
            slow = await client.submit("sleep", 3)
            quick = await client.submit_many("echo", range(20))
            ended = [handle async for handle in client.as_completed([slow, *quick], timeout=20)]
            assert ended[-1] is slow
            assert set(ended) == {slow, *quick}
            assert await asyncio.gather(*quick) == list(range(20))
            long = await client.submit("sleep", 60)
            with pytest.raises(ResultTimeout, match="1 of 1 jobs"):
                async for _ in client.as_completed([long], timeout=0.2):
                    pass
            task = asyncio.ensure_future(long.result())
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert long.handle._callbacks is None, "nothing is left of those that waited"
            assert not long.done(), "who stops waiting cancels nothing"
            assert await long.cancel()
            with pytest.raises(JobCancelled):
                await long.result(10)

    asyncio.run(main())


def test_an_async_workflow_is_waited_for_without_a_thread(shared: System) -> None:
    async def main() -> None:
        flow = exesys.Workflow()
        first = flow.step("sleep", 0.5)
        flow.step("echo", after=first)
        async with exesys.AsyncClient(shared.config) as client:
            handle = await client.workflow(flow)
            with pytest.raises(ResultTimeout):
                await handle.result(0.01)
            assert await handle == 0.5
            failing = await client.workflow([{"from": "A", "to": "B", "cmd": "fail"}, {"from": "B", "cmd": "echo"}])
            with pytest.raises(exesys.JobError, match="ValueError"):
                await failing.result(20)

    asyncio.run(main())


def test_a_client_that_is_closed_says_so_to_who_waits(shared: System) -> None:
    client = shared.client()
    job_id = str(uuid.uuid4())
    future = client.submit("sleep", 1, job_id=job_id).future()
    client.close()
    with pytest.raises(exesys.ExesysError, match="this client was closed"):
        future.result(5)
    until(lambda: state_of(shared, job_id) == "data_available", "it went on")


@pytest.mark.parametrize("part", ["Python", "Executor", "asyncio"])
def test_what_the_page_of_clients_shows_runs(shared: System, part: str) -> None:
    page = (CHECKOUT / "docs" / "clients.md").read_text()
    block = re.split(rf"^##+ {part}$", page, flags=re.MULTILINE)[1].partition("```python\n")[2].partition("```")[0]
    words = [sys.executable, "-c", block]
    done = subprocess.run(words, env=shared.environ, cwd=shared.root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == {"Python": "499500", "Executor": "49995000", "asyncio": "9]"}[part]


def test_a_notebook_shows_what_it_holds(client: exesys.Client) -> None:
    handle = client.submit("add", [1, 2])
    assert handle.result(10) == 3
    assert "data_available" in handle._repr_html_()
    many = client.submit_many("echo", range(3))
    assert [each.result(10) for each in many] == [0, 1, 2]
    assert many._repr_html_().count("data_available") == 3
    flow = exesys.Workflow()
    flow.step("echo", after=flow.step("add", [1, 2]))
    job = client.workflow(flow)
    assert job.result(10) == 3
    assert job._repr_html_().count("<rect") == 2
    assert "<svg" in flow._repr_html_()
