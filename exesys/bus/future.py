"""A job as a real `concurrent.futures.Future`, for what takes only these."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

from exesys.errors import ExesysError, JobCancelled
from exesys.states import State

T = TypeVar("T")


class Ending(Protocol):
    """What a future needs of a handle."""

    job_id: str

    @property
    def state(self) -> State | None: ...

    def add_done_callback(self, callback: Callable[[Any], None]) -> None: ...

    def exception(self) -> ExesysError | None: ...

    def result(self, timeout: float | None = None) -> Any: ...


class JobFuture(Future[T]):
    """A job, for `concurrent.futures.wait` and `as_completed`, and for `asyncio.wrap_future`.

    `result` gives the value under `EOJ`, or raises JobError, and
    CancelledError when the job was cancelled, here or elsewhere. `cancel`
    cancels the job, also while it runs, and does not wait for the router.
    """

    def __init__(self, handle: Ending, withdraw: Callable[[], None]) -> None:
        """Follow `handle`; `withdraw` ends it, as cancelled, if it has not ended."""
        super().__init__()
        self.handle = handle
        self.job_id = handle.job_id
        self._withdraw = withdraw
        handle.add_done_callback(self._settle)

    def running(self) -> bool:
        """Tell whether the job is being executed, as far as was heard."""
        return not self.done() and self.handle.state is State.processing

    def cancel(self) -> bool:
        """Cancel the job; False when it has ended already."""
        if not self.done():
            self._withdraw()
        return self.cancelled()

    def _settle(self, handle: Ending) -> None:
        """Take over how the job ended. Called once, so the future's state has no other way to change."""
        error = handle.exception()
        if isinstance(error, JobCancelled):
            super().cancel()
            self.set_running_or_notify_cancel()
        elif error is not None:
            self.set_exception(error)
        else:
            try:
                value = handle.result(0)
            except ExesysError as unreadable:
                self.set_exception(unreadable)
            else:
                self.set_result(value)
