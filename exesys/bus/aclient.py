"""`AsyncClient`: the Python client with await, on the same desk and thread."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Any, Unpack

from exesys import command
from exesys.bus.appcall import App
from exesys.bus.client import WINDOW, Client, Steps
from exesys.bus.handle import Handle, ended
from exesys.bus.jobhandle import JobHandle
from exesys.config import Config
from exesys.errors import ResultTimeout
from exesys.states import State

LOOK_S = 1.0  # so often a wait for events looks up
MOST_CALLS = 64  # of application servers, under way from one AsyncClient


class AsyncHandle:
    """A command on its way, for `await`."""

    def __init__(self, handle: Handle) -> None:
        self.handle = handle
        self.job_id = handle.job_id

    @property
    def state(self) -> State | None:
        """The state last heard of; None until the router has taken the command."""
        return self.handle.state

    def done(self) -> bool:
        """Tell whether it ended: with a result, in error, or refused."""
        return self.handle.done()

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the value under `EOJ`. Raises as `Handle.result` does; who stops waiting cancels nothing."""
        await _within(ended(self.handle), timeout, self.job_id)
        return self.handle.result(0)

    async def cancel(self) -> bool:
        """Cancel the job, as `Handle.cancel` does."""
        return await asyncio.to_thread(self.handle.cancel)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    def __repr__(self) -> str:
        return f"<Async{repr(self.handle)[1:]}"

    def _repr_html_(self) -> str:
        return self.handle._repr_html_()


class AsyncJobHandle:
    """A workflow on its way, for `await`."""

    def __init__(self, handle: JobHandle) -> None:
        self.handle = handle
        self.job_id = handle.job_id

    def done(self) -> bool:
        """Tell whether every step that ends the job has ended."""
        return self.handle.done()

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the job's value. Raises as `JobHandle.result` does; who stops waiting cancels nothing."""
        await _within(self._settled(), timeout, self.job_id)
        return self.handle.value()

    async def _settled(self) -> None:
        await ended(*self.handle.ends)
        while not await asyncio.to_thread(self.handle.settled):
            await ended(*self.handle.ends)

    async def cancel(self) -> bool:
        """Cancel what has not ended, as `JobHandle.cancel` does."""
        return await asyncio.to_thread(self.handle.cancel)

    def __await__(self) -> Generator[Any, None, Any]:
        return self.result().__await__()

    def __repr__(self) -> str:
        return f"<Async{repr(self.handle)[1:]}"

    def _repr_html_(self) -> str:
        return self.handle._repr_html_()


async def _within(waiting: Coroutine[Any, Any, None], timeout: float | None, job_id: str) -> None:
    """Wait at most `timeout` seconds. Raises ResultTimeout."""
    try:
        async with asyncio.timeout(timeout) as limit:
            await waiting
    except TimeoutError:
        if not limit.expired():
            raise
        text = f"job {job_id} has not ended within {timeout:g} s."
        raise ResultTimeout(text, fix="It goes on: ask again.") from None


class AsyncApp:
    """An application server: each attribute is one of its methods, for `await`."""

    __slots__ = ("_app", "_callers")

    def __init__(self, app: App, callers: Executor) -> None:
        self._app = app
        self._callers = callers

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        call = getattr(self._app, method)

        async def awaited(*args: Any, **kwargs: Any) -> Any:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._callers, partial(call, *args, **kwargs))

        return awaited


class AsyncClient:
    """`Client` with await: the same calls. Make one and keep it; `async with` closes it."""

    def __init__(self, config: Config | None = None, *, window: int = WINDOW) -> None:
        self._client = Client(config, window=window)
        # Not asyncio's own threads: a server that is slow must not hold up what else uses those.
        self._callers = ThreadPoolExecutor(MOST_CALLS, "exesys-app")

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def submit(self, cmd: str, data: Any = None, **options: Unpack[command.Sending]) -> AsyncHandle:
        """Send one command, and return its handle once it is on its way. All is as in `Client.submit`."""
        return AsyncHandle(await self._unblocked(lambda: self._client.submit(cmd, data, **options)))

    async def submit_many(self, cmd: str, data: Iterable[Any], **options: Unpack[command.Options]) -> list[AsyncHandle]:
        """Send the same command for each item of `data`; return the handles in order. Raises as `submit`."""
        handles = await asyncio.to_thread(self._client.submit_many, cmd, data, **options)
        return [AsyncHandle(handle) for handle in handles]

    async def as_completed(
        self, handles: Iterable[AsyncHandle], timeout: float | None = None
    ) -> AsyncIterator[AsyncHandle]:
        """Give the handles as they end: `async for handle in client.as_completed(handles)`.

        Raises ResultTimeout when they have not all ended within `timeout` seconds.
        """
        until = None if timeout is None else time.monotonic() + timeout
        arrived: asyncio.Queue[AsyncHandle] = asyncio.Queue()
        loop = asyncio.get_running_loop()
        calls: list[tuple[Handle, Callable[[Handle], None]]] = []
        for each in handles:

            def arrive(_: Handle, each: AsyncHandle = each) -> None:
                with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
                    loop.call_soon_threadsafe(arrived.put_nowait, each)

            calls.append((each.handle, arrive))
            each.handle.add_done_callback(arrive)
        try:
            for number in range(len(calls)):
                left = None if until is None else max(until - time.monotonic(), 0.0)
                try:
                    async with asyncio.timeout(left):
                        ended_first = await arrived.get()
                except TimeoutError:
                    text = f"{len(calls) - number} of {len(calls)} jobs have not ended within {timeout:g} s."
                    raise ResultTimeout(text, fix="They go on: ask again.") from None
                yield ended_first
        finally:
            for handle, call in calls:
                handle.remove_done_callback(call)

    async def run(
        self, cmd: str, data: Any = None, timeout: float | None = None, **options: Unpack[command.Sending]
    ) -> Any:
        """Send one command and wait for its value, at most `timeout` seconds. Raises as `Client.run`."""
        return await (await self.submit(cmd, data, **options)).result(timeout)

    async def result(self, job_id: str, timeout: float | None = None, **step: Any) -> Any:
        """Wait for the value of a step sent earlier; `step` are `from_` and `to`. Raises as `Client.result`."""
        names = {"from_": command.DEFAULT_FROM, "to": command.END, **step}
        handle = await self._unblocked(lambda: self._client.follow(job_id, names["from_"], names["to"]))
        return await AsyncHandle(handle).result(timeout)

    async def status(self, job_id: str, **step: Any) -> dict[str, Any]:
        """Return `status`, `state`, and `result` or `error` of a step; `step` are `from_` and `to`. Raises NotFound."""
        return await asyncio.to_thread(self._client.status, job_id, **step)

    async def workflow(self, steps: Steps, job_id: str | None = None) -> AsyncJobHandle:
        """Send a workflow, all or nothing, and return its handle. Raises as `Client.workflow`."""
        return AsyncJobHandle(await asyncio.to_thread(self._client.workflow, steps, job_id))

    async def cancel(self, job_id: str) -> int:
        """Cancel what has not ended of a job; return how many steps that was. Raises NotFound, Unavailable."""
        return await asyncio.to_thread(self._client.cancel, job_id)

    async def retry(self, job_id: str) -> int:
        """Run again what failed of a job; return how many steps that is. Raises NotFound, Unavailable."""
        return await asyncio.to_thread(self._client.retry, job_id)

    async def purge(self, job_id: str) -> int:
        """Remove all there is of a job that has failed; return how many steps it had. Raises as `Client.purge`."""
        return await asyncio.to_thread(self._client.purge, job_id)

    async def events(self, **wanted: Any) -> AsyncIterator[dict[str, Any]]:
        """Listen to what happens to steps, as `Client.events` does: `async for event in client.events(cmd="add")`."""
        events = await asyncio.to_thread(partial(self._client.events, **wanted))
        waits: asyncio.Future[dict[str, Any]] | None = None
        try:
            while True:
                waits = asyncio.ensure_future(asyncio.to_thread(events.get, LOOK_S))
                with contextlib.suppress(ResultTimeout):
                    yield await asyncio.shield(waits)
        finally:
            events.close()
            if waits is None or waits.done():
                events.end()
            else:  # its thread sees within a moment that it is over, and ends it
                waits.add_done_callback(lambda over: over.exception())

    async def start_runner(self, target: str, data: Any = None, **options: Any) -> str:
        """Start a function as a runner, as `Client.start_runner` does."""
        return await asyncio.to_thread(self._client.start_runner, target, data, **options)

    async def stop_runner(self, type: str, uuid: str | None = None) -> int:
        """Load the stop of a runner, or of all of a type, as `Client.stop_runner` does."""
        return await asyncio.to_thread(self._client.stop_runner, type, uuid)

    async def restart_runner(self, type: str, uuid: str | None = None) -> None:
        """Start a runner anew, as `Client.restart_runner` does."""
        await asyncio.to_thread(self._client.restart_runner, type, uuid)

    def app(self, name: str, timeout_s: float | None = None, wait: bool = True) -> AsyncApp:
        """Return an application server, as `Client.app` does; its methods are awaited."""
        return AsyncApp(self._client.app(name, timeout_s, wait), self._callers)

    async def close(self) -> None:
        """Wait until the router has taken what was sent, and say goodbye, as `Client.close` does."""
        self._callers.shutdown(wait=False, cancel_futures=True)
        await asyncio.to_thread(self._client.close)

    async def _unblocked(self, call: Callable[[], Handle]) -> Handle:
        """Call at once when the window has room, else in a thread that may wait for it."""
        if self._client.full:
            return await asyncio.to_thread(call)
        return call()
