"""`exesys.Executor`: the functions of modules/ where a program expects `concurrent.futures`.

    with client.executor(queue="reports", retries=3) as executor:
        future = executor.submit(shop.total, {"prices": [1, 2]})
        for value in executor.map("word_count", paths):
            ...

A function takes one argument, its data: so do `submit` and `map`.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent import futures
from itertools import islice
from typing import Any, ParamSpec, Protocol, TypeVar, Unpack, overload

from exesys.bus.future import JobFuture
from exesys.bus.handle import Handle
from exesys.command import Options
from exesys.functions import name_of

CHUNK = 250
MOST_AHEAD = 2000  # items of one `map` that are under way, or done and not yet taken
CHECK_S = 0.5
P = ParamSpec("P")
T = TypeVar("T")
D = TypeVar("D")


class Sender(Protocol):
    """What an executor needs of a client."""

    @property
    def closed(self) -> bool: ...

    def submit_many(self, cmd: str, data: Iterable[Any], **options: Unpack[Options]) -> list[Handle]: ...

    def withdraw(self, handle: Handle, then: Callable[[], None]) -> None: ...


class Executor(futures.Executor):
    """Runs functions as jobs of the system. Made by `client.executor(**options)`; thread-safe.

    Where a `ThreadPoolExecutor` takes a function, this takes a function of
    modules/ or its name. `options` are those of the commands.
    """

    def __init__(self, client: Sender, options: Options) -> None:
        self._client = client
        self._options = options
        self._news = threading.Condition()
        self._open: set[Handle] = set()
        self._withdrawn = 0  # jobs whose cancel the router has not answered yet
        self._shut = False

    # A function that also takes `ctx` is given that by the worker.
    @overload
    def submit(self, fn: Callable[[D, Any], T], data: D, /) -> JobFuture[T]: ...
    @overload
    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> JobFuture[T]: ...
    @overload
    def submit(self, fn: str, data: Any = None, /) -> JobFuture[Any]: ...
    def submit(self, fn: Callable[..., Any] | str, /, *args: Any, **kwargs: Any) -> JobFuture[Any]:
        """Send a job that calls `fn` with its data, None when there is none.

        Raises TypeError for more than one argument, RuntimeError after
        `shutdown`, and what `Client.submit` raises.
        """
        name, data = name_of(fn), _one(fn, args, kwargs)
        [handle] = self._send(name, [data])
        return JobFuture(handle, lambda: self._withdraw(handle))

    @overload  # type: ignore[override]  # as above
    def map(
        self, fn: Callable[[D, Any], T], data: Iterable[D], /, *, timeout: float | None = None, chunksize: int = CHUNK
    ) -> Iterator[T]: ...
    @overload
    def map(
        self, fn: Callable[[D], T], data: Iterable[D], /, *, timeout: float | None = None, chunksize: int = CHUNK
    ) -> Iterator[T]: ...
    @overload
    def map(
        self, fn: str, data: Iterable[Any], /, *, timeout: float | None = None, chunksize: int = CHUNK
    ) -> Iterator[Any]: ...
    def map(
        self,
        fn: Callable[..., Any] | str,
        /,
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = CHUNK,
    ) -> Iterator[Any]:
        """Send a job for each item, and give their values in the order of the items.

        Items are taken while their values are: at most MOST_AHEAD are under
        way, so there may be more of them than fit into memory. `chunksize` of
        them go to the router together. When one fails, when `timeout` seconds
        are over (counted from here) or nobody takes more, those under way are
        cancelled. Raises TypeError for more than one iterable; the values
        raise JobError, CancelledError, or TimeoutError.
        """
        if len(iterables) != 1:
            raise TypeError(f"a function takes one argument, its data: give one iterable, not {len(iterables)}")
        if not 1 <= chunksize <= MOST_AHEAD:
            raise ValueError(f"chunksize is {chunksize}; give 1 to {MOST_AHEAD:,}")
        until = None if timeout is None else time.monotonic() + timeout
        values = self._map(name_of(fn), iter(iterables[0]), until, chunksize)
        next(values)  # sends the first at once, as other executors do
        return values

    def _map(self, name: str, items: Iterator[Any], until: float | None, size: int) -> Iterator[Any]:
        """Give None once the first items are sent, then the values."""
        ahead: deque[Handle] = deque()
        more = True
        begun = False
        try:
            while more or ahead:
                while more and len(ahead) <= MOST_AHEAD - size:
                    chunk = list(islice(items, size))
                    more = len(chunk) == size
                    ahead += self._send(name, chunk, begun)
                if not begun:
                    begun = True
                    yield None
                if ahead:
                    value = ahead[0].result(None if until is None else max(0.0, until - time.monotonic()))
                    ahead.popleft()
                    yield value
        finally:
            for handle in ahead:
                if not handle.done():
                    self._withdraw(handle)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more, and wait until all that was sent has ended.

        With `cancel_futures` what has not ended is cancelled, also what runs:
        where it is, is the system's to know. Without `wait` it returns at
        once, and what was sent goes on. The client stays open.
        """
        with self._news:
            self._shut = True
            left = list(self._open) if cancel_futures else []
        for handle in left:
            self._withdraw(handle)
        if wait:
            with self._news:
                while (self._open or self._withdrawn) and not self._client.closed:
                    self._news.wait(CHECK_S)

    def _send(self, name: str, data: list[Any], begun: bool = False) -> list[Handle]:
        """Send some; a map that has `begun` goes on after the shutdown."""
        with self._news:
            if self._shut and not begun:
                raise RuntimeError("cannot schedule new futures after shutdown")
        handles = self._client.submit_many(name, data, **self._options)
        with self._news:
            self._open.update(handles)
        for handle in handles:
            handle.add_done_callback(self._ended)
        return handles

    def _ended(self, handle: Handle) -> None:
        with self._news:
            self._open.discard(handle)
            self._news.notify_all()

    def _withdraw(self, handle: Handle) -> None:
        with self._news:
            self._withdrawn += 1
        self._client.withdraw(handle, self._answered)

    def _answered(self) -> None:
        with self._news:
            self._withdrawn -= 1
            self._news.notify_all()


def _one(fn: Callable[..., Any] | str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Return the one argument there is, None without any."""
    given = [*args, *kwargs.values()]
    if len(given) > 1:
        called = fn if isinstance(fn, str) else fn.__name__
        raise TypeError(f"{called} takes one argument, its data, and {len(given)} were given: send a list or a dict")
    return given[0] if given else None
