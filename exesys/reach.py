"""How the command line reaches a running system: its router, its store to read, and what it is to send."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exesys import command, home, output
from exesys.config import Config
from exesys.errors import BadCommand, Unavailable, no_job
from exesys.usage import PROGRAM

if TYPE_CHECKING:
    from exesys.bus.client import Client
    from exesys.store.reader import Reader, Step

CONNECT_S = 3.0


def connect(config: Config) -> Client:
    """Return a client that the router has greeted. Raises Unavailable."""
    from exesys.bus.client import Client

    config = home.started(config)
    if _is_there(config.bus_endpoint):
        client = Client(config)
        if client.wait_connected(CONNECT_S):
            return client
        client.close()
    raise Unavailable(
        f"no router answers at {config.bus_endpoint}.",
        fix=f"Is the system up? See `{PROGRAM} status`, or start it with `{PROGRAM} up`.",
    )


def _is_there(endpoint: str) -> bool:
    """Tell whether it is worth waiting: where a router is, or was killed, there is its socket."""
    path = endpoint.removeprefix("ipc://")
    return path == endpoint or os.path.exists(path)


def reader(config: Config, job_id: str | None = None) -> Reader:
    """Return what reads the store; that of its shard, for a job of another's. Raises Unavailable."""
    from exesys.elsewhere import Elsewhere
    from exesys.store.reader import Reader

    config = home.started(config)
    readers = Elsewhere(config, Reader(config.redis_url, config.redis.prefix), Reader)
    return readers.of(job_id) if job_id else readers.own


def is_ours(config: Config, job_id: str) -> bool:
    """Tell whether a job belongs to the shard of this home, so that what its workers do concerns it."""
    shards = home.started(config).shard_map()
    return not (shards and shards.elsewhere(job_id))


def steps_of(reader: Reader, job_id: str) -> list[Step]:
    """Return all steps of a job. Raises NotFound."""
    [steps] = reader.steps([command.check_name(job_id, "job_id")])
    if not steps:
        raise no_job(job_id)
    return steps


def data(text: str | None) -> Any:
    """Read DATA: JSON, else the text itself; `@file` and `-` (standard input) must hold JSON. Raises BadCommand."""
    if text is None:
        return None
    source = "standard input" if text == "-" else text[1:] if text.startswith("@") else ""
    try:
        if text == "-":
            return json.load(sys.stdin)
        if source:
            return json.loads(Path(source).read_text("utf-8"))
        return json.loads(text)
    except RecursionError:
        raise BadCommand("DATA is nested too deep to be read.", field="data", fix="Flatten it.") from None
    except OSError as error:
        fix = f"A text that begins with @ is written as JSON: '\"{text}\"'."
        raise BadCommand(f"DATA cannot be read from {source}: {error.strerror}.", field="data", fix=fix) from error
    except ValueError as error:
        if source:
            raise BadCommand(f"DATA from {source} is no JSON: {error}.", field="data") from error
        if text.lstrip()[:1] in ("{", "[", '"'):
            output.note(f"DATA looks like JSON and is none, so it is sent as text: {error}.")
        return text
