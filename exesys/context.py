"""What a function gets as `ctx`: its job, databases, log, progress and more.

A context is made for every job, so making it costs nothing: what takes time
is made when it is first used. What outlives a job (connections, a client of
the bus) lies in `Resources`, of which each process has one.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO

from exesys.config import Config
from exesys.errors import NoMongo

if TYPE_CHECKING:
    from pymongo.database import Database
    from redis import Redis

MONGO_SELECT_MS = 5000
MAX_PROGRESS_CHARS = 200


class JobInfo(NamedTuple):
    """The job a function runs for. `attempt` counts from 1."""

    job_id: str
    from_: str
    to: str
    cmd: str
    attempt: int


class Submitter(Protocol):
    """What `ctx.submit` needs of a client of the bus."""

    def submit(self, cmd: str, data: Any = None, **options: Any) -> Any: ...

    def close(self) -> None: ...


class Resources:
    """Connections and loggers for all jobs of one process, each made when first asked for."""

    def __init__(self, config: Config, make_client: Callable[[], Submitter]) -> None:
        self._config = config
        self._make_client = make_client

    @cached_property
    def redis(self) -> Redis:
        import redis

        # No time limit on a reply: BLPOP may wait as long as the function likes.
        return redis.Redis.from_url(self._config.redis_data_url, socket_timeout=None)

    @cached_property
    def mongo(self) -> Database[dict[str, Any]]:
        uri = self._config.mongo.uri
        if not uri:
            raise NoMongo(
                "this function needs MongoDB, and none is set.",
                field="mongo.uri",
                fix="Set [mongo] uri or EXESYS_MONGO_URI, or install mongod or SecantusDB, and start anew.",
            )
        import pymongo

        limits: dict[str, Any] = {"serverSelectionTimeoutMS": MONGO_SELECT_MS}
        if "serverselectiontimeoutms" in uri.lower():
            limits = {}
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(uri, **limits)
        return client[self._config.mongo.database]

    @cached_property
    def log(self) -> logging.Logger:
        # Not one of the tree of loggers: no setting of a user's module reaches it.
        log = logging.Logger("exesys.job")
        log.addHandler(_ToStdout())
        return log

    @cached_property
    def client(self) -> Submitter:
        return self._make_client()

    def close(self) -> None:
        """Close what was opened."""
        opened = vars(self)
        for name in ("client", "redis"):
            if name in opened:
                opened.pop(name).close()
        if "mongo" in opened:
            opened.pop("mongo").client.close()


class _ToStdout(logging.StreamHandler[TextIO]):
    """Writes where `print` writes at that moment, so that a job's log keeps its order."""

    def __init__(self) -> None:
        super().__init__(sys.stdout)
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stdout
        super().emit(record)


class Context:
    """What a function can use beside its data."""

    __slots__ = ("_is_cancelled", "_resources", "_tell", "job")

    def __init__(
        self,
        job: JobInfo,
        resources: Resources,
        tell: Callable[[float, str], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        """`tell` is called with each progress, `is_cancelled` each time a function asks."""
        self.job = job
        self._resources = resources
        self._tell = tell
        self._is_cancelled = is_cancelled

    @property
    def redis(self) -> Redis:
        """The data database, a `redis.Redis`; it answers with bytes."""
        return self._resources.redis

    @property
    def mongo(self) -> Database[dict[str, Any]]:
        """The data database, a `pymongo` one. Raises NoMongo when there is none."""
        return self._resources.mongo

    @property
    def log(self) -> logging.Logger:
        """A logger into the job's log, for every level."""
        return self._resources.log

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled: a long function looks now and then, and returns."""
        return self._is_cancelled()

    def progress(self, fraction: float, text: str = "") -> None:
        """Tell how far the job is, from 0 to 1, and in a few words what it does.

        Raises ValueError outside 0 to 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is {fraction!r}; give 0 to 1")
        self._tell(float(fraction), text[:MAX_PROGRESS_CHARS].encode(errors="replace").decode())

    def submit(self, cmd: str, data: Any = None, **options: Any) -> Any:
        """Send a command of its own, as `exesys.Client.submit` does; return its handle.

        Waiting here for its result holds this slot, and a slot must be free
        to run it.
        """
        return self._resources.client.submit(cmd, data, **options)
