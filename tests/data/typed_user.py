"""What a user writes, for `mypy --strict`: a line ends with the code of the error that it must have."""

import asyncio
from collections.abc import Iterator
from concurrent.futures import Future, as_completed
from typing import Any, assert_type

import exesys


def total(data: list[float]) -> float:
    return sum(data)


def greet(data: str, ctx: Any) -> bool:
    return bool(data)


@exesys.function(retries=3)
def shout(data: str) -> str:
    return data.upper()


def sync(client: exesys.Client) -> None:
    handle = client.submit("add", [1, 2], retries=3, priority=9, queue="q", job_id="a", to=["B", "C"])
    assert_type(handle.job_id, str)
    assert_type(handle.done(), bool)
    assert_type(handle.result(timeout=5), Any)
    assert_type(handle.future(), Future[Any])  # error: assert-type
    future: Future[Any] = handle.future()
    as_completed([future])
    client.submit("add", [1, 2], retrys=3)  # error: call-arg
    client.submit("add", [1, 2], retries="3")  # error: arg-type
    client.submit(5)  # error: arg-type
    for each in client.submit_many("echo", range(3), delay_s=0.5):
        assert_type(each.job_id, str)
    client.run("add", [1], timeout=5, key_limit="x")  # error: arg-type


def executor(client: exesys.Client) -> None:
    with client.executor(queue="q", timeout_s=5) as pool:
        assert_type(pool, exesys.Executor)
        assert_type(pool.submit(total, [1.0]).result(), float)
        assert_type(pool.submit(greet, "x").result(), bool)
        assert_type(pool.submit(shout, "x").result(), str)
        assert_type(pool.submit("total", [1.0]).result(), Any)
        assert_type(pool.map(total, [[1.0]]), Iterator[float])
        assert_type(pool.map(greet, ["a"], timeout=5), Iterator[bool])
        pool.submit(total, "x")  # error: arg-type
        pool.submit(total, [1.0], [2.0])  # error: call-overload
    client.executor(priorty=3)  # error: call-arg


async def waiting(client: exesys.AsyncClient) -> None:
    handle = await client.submit("add", [1, 2], retries=3)
    assert_type(await handle, Any)
    assert_type(await handle.cancel(), bool)
    async for each in client.as_completed([handle], timeout=5):
        assert_type(each.job_id, str)
    await client.submit("add", 1, retry=3)  # error: call-arg
    await asyncio.gather(handle, handle)


def drawn(client: exesys.Client) -> None:
    flow = exesys.Workflow()
    task = flow.step("split", "docs")
    flow.step("merge", after=task, retries=2)
    try:
        client.workflow(flow).result(5)
    except exesys.JobCancelled as error:
        assert_type(error.attempts, int)
    except exesys.JobError as error:
        assert_type(error.type, str)
