"""Executor and futures over a client of which only the answers are made up; the desk and the handles are real."""

from __future__ import annotations

import asyncio
import concurrent.futures as cf
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from exesys import codec
from exesys.bus import messages as m
from exesys.bus.executor import MOST_AHEAD, Executor
from exesys.bus.future import JobFuture
from exesys.bus.handle import CANCELLED, Handle, Handles, ended
from exesys.bus.inflight import Desk
from exesys.errors import BadCommand, JobCancelled, JobError, Unavailable
from exesys.states import State


class Sender:
    """Takes commands; the test says how they end."""

    def __init__(self) -> None:
        self.desk = Desk("s", 10_000)
        self.sent: list[tuple[Handle, Any]] = []
        self.options: list[dict[str, Any]] = []
        self.withdrawn: list[Handle] = []
        self.closed = False
        self.at_once: Callable[[Any], Any] | None = None

    def submit_many(self, cmd: str, data: Iterable[Any], **options: Any) -> list[Handle]:
        handles = Handles()
        for item in data:
            handle = Handle(f"job-{len(self.sent)}", "client", "end_job", cmd, self.desk.lock, None, self)
            tag = self.desk.put(
                handle, m.Item(0, "client", "end_job", cmd, b"", handle.job_id, {}, True, 0), True, True
            )
            self.sent.append((handle, item))
            self.options.append(options)
            handles.append(handle)
            if self.at_once is not None:
                self.answer(tag, State.data_available, codec.pack({"EOJ": self.at_once(item)}))
        return handles

    def answer(self, tag: int, state: State, body: Any) -> None:
        for handle, call in self.desk.receive(m.Done((m.Answer(tag, int(state), body),)), 0.0):
            call(handle)

    def end(self, number: int, value: Any) -> None:
        self.answer(number + 1, State.data_available, codec.pack({"EOJ": value}))

    def fail(self, number: int, type_: str, message: str) -> None:
        body = codec.pack({"type": type_, "message": message, "traceback": ""})
        self.answer(number + 1, State.error, [body, 1])

    def cancel(self, job_id: str) -> int:
        raise AssertionError("an executor waits for no cancel")

    def withdraw(self, handle: Handle, then: Callable[[], None] = lambda: None) -> None:
        self.withdrawn.append(handle)
        for each, call in self.desk.withdraw(handle, JobCancelled(*CANCELLED, 0, "", handle.job_id)):
            call(each)
        then()


@pytest.fixture
def sender() -> Sender:
    return Sender()


@pytest.fixture
def executor(sender: Sender) -> Executor:
    return Executor(sender, {"queue": "q"})


def double(data: int) -> int:
    return 2 * data


def with_context(data: int, ctx: Any) -> int:
    return data


# --- submit -------------------------------------------------------------------


def test_a_function_is_sent_by_its_name_with_its_data(executor: Executor, sender: Sender) -> None:
    future = executor.submit(double, 4)
    assert isinstance(future, cf.Future)
    assert sender.sent == [(future.handle, 4)]
    assert future.handle.cmd == f"{__name__}.double"
    assert sender.options == [{"queue": "q"}]
    assert not future.done()
    sender.end(0, 8)
    assert future.result(0) == 8
    assert future.job_id == "job-0"


def test_a_name_will_do_and_so_will_no_data(executor: Executor, sender: Sender) -> None:
    executor.submit("noop")
    executor.submit(double, data=5)
    executor.submit(with_context, 6)
    assert [(handle.cmd.rpartition(".")[2], data) for handle, data in sender.sent] == [
        ("noop", None),
        ("double", 5),
        ("with_context", 6),
    ]


def test_a_function_has_one_argument(executor: Executor, sender: Sender) -> None:
    untyped: Any = executor
    with pytest.raises(TypeError, match="double takes one argument, its data, and 2 were given"):
        untyped.submit(double, 1, 2)
    with pytest.raises(TypeError, match="give one iterable, not 2"):
        untyped.map(double, [1], [2])
    with pytest.raises(BadCommand):
        untyped.submit(print, 1)
    with pytest.raises(ValueError, match="chunksize is 0"):
        executor.map(double, [1], chunksize=0)
    assert sender.sent == []


def test_a_failure_is_raised(executor: Executor, sender: Sender) -> None:
    future = executor.submit(double, 4)
    sender.fail(0, "ValueError", "no")
    with pytest.raises(JobError, match="ValueError: no"):
        future.result(0)
    assert not future.cancelled()


def test_as_completed_and_wait_take_them(executor: Executor, sender: Sender) -> None:
    futures = [executor.submit(double, number) for number in range(3)]
    sender.end(2, 4)
    done, left = cf.wait(futures, timeout=5, return_when=cf.FIRST_COMPLETED)
    assert (done, left) == ({futures[2]}, set(futures[:2]))
    sender.end(0, 0)
    futures[1].cancel()
    assert set(cf.as_completed(futures, timeout=5)) == set(futures)


# --- cancelling -----------------------------------------------------------------


def test_a_cancelled_job_is_a_cancelled_future(executor: Executor, sender: Sender) -> None:
    future = executor.submit(double, 1)
    assert future.cancel()
    assert future.cancelled()
    assert sender.withdrawn == [future.handle]
    with pytest.raises(cf.CancelledError):
        future.result(0)
    sender.end(0, 2)  # it had ended just before
    assert future.cancelled()
    assert future.cancel(), "as of any future"
    assert len(sender.withdrawn) == 1


def test_what_others_cancel_is_cancelled(executor: Executor, sender: Sender) -> None:
    future = executor.submit(double, 1)
    sender.fail(0, *CANCELLED)
    assert future.cancelled()
    with pytest.raises(JobError) as caught:
        future.handle.result(0)
    assert isinstance(caught.value, cf.CancelledError)


def test_what_ended_is_not_cancelled(executor: Executor, sender: Sender) -> None:
    future = executor.submit(double, 1)
    sender.end(0, 2)
    assert not future.cancel()
    assert future.result(0) == 2
    assert sender.withdrawn == []


def test_a_command_that_was_withdrawn_is_not_sent(executor: Executor, sender: Sender) -> None:
    sender.desk.receive(m.Welcome(m.VERSION, "r", 1, 1.0, 5, {}, {}, "", {}), 0.0)
    executor.submit(double, 1).cancel()
    kept = executor.submit(double, 2)
    [items] = [told.items for told in sender.desk.outgoing(0.0) if isinstance(told, m.Submit)]
    assert [item.job_id for item in items] == [kept.job_id]


# --- map ------------------------------------------------------------------------


def test_map_gives_values_in_order(executor: Executor, sender: Sender) -> None:
    sender.at_once = double
    assert list(executor.map(double, range(1000), chunksize=7)) == list(range(0, 2000, 2))
    assert list(executor.map("double", [])) == []


def test_map_begins_at_once_and_takes_no_more_than_it_may(executor: Executor, sender: Sender) -> None:
    sender.at_once = double
    taken = []

    def items() -> Iterator[int]:
        number = 0
        while True:
            taken.append(number)
            yield number
            number += 1

    values = executor.map(double, items())
    assert len(taken) == len(sender.sent) == MOST_AHEAD
    assert [next(values) for _ in range(10_000)] == list(range(0, 20_000, 2))
    assert len(taken) <= 10_000 + MOST_AHEAD
    assert len(executor._open) == 0, "what has ended is not kept"


def test_map_cancels_what_nobody_takes(executor: Executor, sender: Sender) -> None:
    values = executor.map(double, range(5))
    sender.end(0, 0)
    sender.fail(1, "ValueError", "no")
    assert next(values) == 0
    with pytest.raises(JobError, match="no"):
        next(values)
    assert [handle.job_id for handle in sender.withdrawn] == ["job-2", "job-3", "job-4"]


def test_map_has_a_time_limit(executor: Executor, sender: Sender) -> None:
    values = executor.map(double, range(2), timeout=0.01)
    with pytest.raises(TimeoutError):
        next(values)
    assert len(sender.withdrawn) == 2


def test_an_iterable_that_fails_leaves_nothing(executor: Executor, sender: Sender) -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        executor.map(double, items(), chunksize=1)
    assert len(sender.withdrawn) == 2


# --- the end --------------------------------------------------------------------


def test_shutdown_waits_for_what_was_sent(executor: Executor, sender: Sender) -> None:
    future = executor.submit(double, 1)
    timer = threading.Timer(0.05, sender.end, (0, 2))
    timer.start()
    with executor:
        pass
    assert future.result(0) == 2
    timer.join()
    for late in (lambda: executor.submit(double, 1), lambda: executor.map(double, [1])):
        with pytest.raises(RuntimeError, match="after shutdown"):
            late()


def test_shutdown_cancels_what_has_not_ended(executor: Executor, sender: Sender) -> None:
    futures = [executor.submit(double, number) for number in range(3)]
    sender.end(1, 2)
    executor.shutdown(cancel_futures=True)
    assert [future.cancelled() for future in futures] == [True, False, True]


def test_shutdown_without_waiting_leaves_them(executor: Executor, sender: Sender) -> None:
    future = executor.submit(double, 1)
    executor.shutdown(wait=False)
    assert not future.done()
    assert sender.withdrawn == []


def test_a_closed_client_holds_up_nobody(executor: Executor, sender: Sender) -> None:
    future = executor.submit(double, 1)
    sender.closed = True
    executor.shutdown()
    for handle, call in sender.desk.abandon(Unavailable("this client was closed.")):
        call(handle)
    with pytest.raises(Unavailable, match="closed"):
        future.result(0)


# --- asyncio --------------------------------------------------------------------


def test_asyncio_takes_them(executor: Executor, sender: Sender) -> None:
    sender.at_once = double

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, double, 3) == 6
        assert await asyncio.wrap_future(executor.submit(double, 4)) == 8
        several = [asyncio.wrap_future(executor.submit(double, number)) for number in range(3)]
        assert await asyncio.gather(*several) == [0, 2, 4]
        handle = executor.submit(double, 5).handle
        assert isinstance(handle, Handle)
        assert await handle == 10

    asyncio.run(main())


def test_a_timeout_in_asyncio_cancels_the_job_of_a_future(executor: Executor, sender: Sender) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.run_in_executor(executor, double, 3), 0.01)

    asyncio.run(main())
    assert len(sender.withdrawn) == 1


def test_who_stops_waiting_for_a_handle_leaves_it_as_it_was(sender: Sender) -> None:
    [handle] = sender.submit_many("f", [1])

    async def main() -> None:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ended(handle), 0.01)

    asyncio.run(main())
    assert handle._callbacks is None
    assert sender.withdrawn == []
    sender.end(0, 1)  # its loop is closed
    assert handle.result(0) == 1


def test_a_loop_that_is_gone_harms_nobody(sender: Sender) -> None:
    [handle] = sender.submit_many("f", [1])

    async def main() -> None:
        waiting = asyncio.ensure_future(ended(handle))
        await asyncio.sleep(0)
        assert handle._callbacks is not None
        left.extend(handle._callbacks)
        waiting.cancel()

    left: list[Any] = []
    asyncio.run(main())
    for callback in left:
        callback(handle)  # as the client's thread may, that has just taken it


def test_a_future_of_a_handle_that_has_ended_has_ended(sender: Sender) -> None:
    [handle] = sender.submit_many("f", [1])
    sender.end(0, 1)
    future: JobFuture[int] = handle.future()
    assert future.result(0) == 1
    assert not future.running()
