"""What the router's core wants done. `daemons/router.py` does it."""

from __future__ import annotations

from typing import NamedTuple

from exesys.bus import messages as m


class Send(NamedTuple):
    """Send a message to a peer of the front socket."""

    address: bytes
    message: m.Message


class Dispatch(NamedTuple):
    """Push jobs to a worker."""

    session: str
    message: m.Jobs


class Publish(NamedTuple):
    topic: str
    message: m.Event


class OpenWorker(NamedTuple):
    """Bind a PUSH for this worker and call `worker_opened` with its endpoint."""

    session: str


class CloseWorker(NamedTuple):
    session: str


class Warn(NamedTuple):
    """Log what a person should see."""

    text: str


Effect = Warn | Send | Dispatch | Publish | OpenWorker | CloseWorker
