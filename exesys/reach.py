"""How the command line reaches a running system: its router, and its store to read."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exesys import command
from exesys.config import Config
from exesys.errors import NotFound, Unavailable
from exesys.usage import PROGRAM

if TYPE_CHECKING:
    from exesys.bus.client import Client
    from exesys.store.reader import Reader, Step

CONNECT_S = 3.0


def connect(config: Config) -> Client:
    """Return a client that the router has greeted. Raises Unavailable."""
    from exesys.bus.client import Client

    client = Client(config)
    if not client.wait_connected(CONNECT_S):
        client.close()
        raise Unavailable(
            f"no router answers at {config.bus_endpoint}.",
            fix=f"Is the system up? See `{PROGRAM} status`, or start it with `{PROGRAM} up`.",
        )
    return client


def reader(config: Config) -> Reader:
    """Return what reads the store."""
    from exesys.store.reader import Reader

    return Reader(config.redis_url, config.redis.prefix)


def steps_of(reader: Reader, job_id: str) -> list[Step]:
    """Return all steps of a job. Raises NotFound."""
    [steps] = reader.steps([command.check_name(job_id, "job_id")])
    if not steps:
        raise NotFound(f"there is no job {job_id}.", fix="It was never sent, or its results have expired.")
    return steps
