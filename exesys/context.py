"""What a function gets as `ctx`: its job (or itself as a runner), databases, log, progress and more.

A context is made for every job, so making it costs nothing: what takes time
is made when it is first used. What outlives a job (connections, a client of
the bus) lies in `Resources`, of which each process has one.
"""

from __future__ import annotations

import logging
import sys
import threading
import uuid as uuid_module
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO, Unpack

from exesys import codec, command
from exesys.bus.messages import Added
from exesys.config import Config, Limits
from exesys.errors import BadCommand, NoMongo, TooLarge
from exesys.functions import name_of
from exesys.workflow import Graph

if TYPE_CHECKING:
    from pymongo.database import Database
    from redis import Redis

MONGO_SELECT_MS = 5000
MAX_PROGRESS_CHARS = 200
MOST_ADDED_BYTES = 32 << 20  # by one attempt: its report is one message of the bus
RUNNERS = uuid_module.UUID("5f0c4f5e-6f0e-5d5b-9d6c-3f9d1c9a7b21")  # the namespace of uuids made from a job's names
_ADDING = threading.Lock()  # a function may add steps from several threads


class JobInfo(NamedTuple):
    """The job a function runs for. `attempt` counts from 1."""

    job_id: str
    from_: str
    to: str
    cmd: str
    attempt: int
    traceparent: str = ""  # of the trace it belongs to (W3C Trace Context), "" for none


class Submitter(Protocol):
    """What a context needs of a client of the bus."""

    def submit(self, cmd: str, data: Any = None, **options: Unpack[command.Sending]) -> Any: ...

    def start_runner(
        self, target: str, data: Any = None, *, type: str | None, uuid: str | None, grace_s: float | None, job: str
    ) -> str: ...

    def stop_runner(self, type: str, uuid: str | None = None) -> int: ...

    def app(self, name: str, timeout_s: float | None = None, wait: bool = True) -> Any: ...

    def close(self) -> None: ...


class Resources:
    """Connections and loggers for all jobs of one process, each made when first asked for."""

    def __init__(self, config: Config, make_client: Callable[[], Submitter]) -> None:
        self._config = config
        self._make_client = make_client

    @property
    def limits(self) -> Limits:
        return self._config.limits

    @cached_property
    def redis(self) -> Redis:
        from exesys.store import dial  # a job without it need not wait for its import

        # No time limit on a reply: BLPOP may wait as long as the function likes.
        return dial.client(self._config.redis_data_url, None)

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


class Addition:
    """The steps that one attempt adds to its own job, checked as far as that can be done here."""

    def __init__(self, job: JobInfo, limits: Limits) -> None:
        self.steps: list[Added] = []
        self._job = job
        self._limits = limits
        self._edges = {(job.from_, job.to)}
        self._names: set[str] = set()
        self._number = 0
        self._bytes = 0

    def add(self, from_: str | None, to: str | Sequence[str] | None, cmd: str, data: Any, options: Any) -> str:
        """Add a step and return its `from`. Raises BadCommand or TooLarge, and then nothing was added."""
        packed = codec.pack(data)
        codec.check_packed(packed, self._limits.data_bytes, self._limits.depth)
        number = self._number
        if from_ is None:
            number, from_ = self._next_name()
        target = self._job.to.split(",") if to is None else to
        built = command.build(from_, target, cmd, packed, self._job.job_id, options)
        targets = built.to.split(",")
        self._check_edge(built.from_, built.to, targets)
        step = Added(built.from_, targets if len(targets) > 1 else targets[0], built.cmd, packed, dict(built.options))
        self._bytes = self._checked_size(step)
        self._number = number
        self._edges.add((built.from_, built.to))
        self._names.add(built.from_)
        self.steps.append(step)
        return built.from_

    def _next_name(self) -> tuple[int, str]:
        number = self._number + 1
        while f"{self._job.from_}.{number}" in self._names:
            number += 1
        return number, f"{self._job.from_}.{number}"

    def _check_edge(self, from_: str, to: str, targets: Sequence[str]) -> None:
        Graph([(from_, to)]).check_added()
        if self._job.from_ in targets:
            raise BadCommand(
                f"the step from {from_} goes back to {self._job.from_}, which adds it.",
                field="to",
                fix="Let it go to a step that waits, or to another that is added.",
            )
        if (from_, to) in self._edges:
            raise BadCommand(
                f"there is a step from {from_} to {to} already.",
                field="from",
                fix="Steps of one job differ in `from` or `to`.",
            )

    def _checked_size(self, step: Added) -> int:
        """Return how large all of them are with this one."""
        most = self._limits.workflow_steps
        if len(self._edges) + 1 > most:
            raise BadCommand(
                f"the job would have more than {most:,} steps.", fix="Add fewer, or raise [limits] workflow_steps."
            )
        size = self._bytes + len(codec.pack(step))
        if size > MOST_ADDED_BYTES:
            raise TooLarge(
                f"the steps added have {size:,} bytes in all; at most {MOST_ADDED_BYTES:,} are allowed.",
                field="data",
                fix="Add fewer, or store their data elsewhere and give references.",
            )
        return size


class Common:
    """What a job's function and a runner have both."""

    __slots__ = ("_resources", "_tell")

    def __init__(self, resources: Resources, tell: Callable[[float, str], None]) -> None:
        """`tell` is called with each progress."""
        self._resources = resources
        self._tell = tell

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
        """A logger into the log of this job or runner, for every level."""
        return self._resources.log

    def progress(self, fraction: float, text: str = "") -> None:
        """Tell how far it is, from 0 to 1, and in a few words what it does.

        Raises ValueError outside 0 to 1.
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"progress is {fraction!r}; give 0 to 1")
        self._tell(float(fraction), text[:MAX_PROGRESS_CHARS].encode(errors="replace").decode())

    def submit(self, cmd: str, data: Any = None, **options: Unpack[command.Sending]) -> Any:
        """Send a command of its own, as `exesys.Client.submit` does; return its handle.

        Waiting here for its result holds this slot, and a slot must be free
        to run it.
        """
        if self.traceparent:
            options.setdefault("traceparent", self.traceparent)
        return self._resources.client.submit(cmd, data, **options)

    @property
    def traceparent(self) -> str:
        """The header `traceparent` to send with what belongs to this (W3C Trace Context), "" for none."""
        return ""

    def app(self, name: str, timeout_s: float | None = None, wait: bool = True) -> Any:
        """Return an application server, to call its methods: `ctx.app("words").suggest("serch")`.

        As `exesys.Client.app` does, which also tells what a call raises.
        """
        return self._resources.client.app(name, timeout_s, wait)

    def start_runner(
        self,
        target: str | Callable[..., Any],
        data: Any = None,
        *,
        type: str | None = None,
        uuid: str | None = None,
        grace_s: float | None = None,
    ) -> str:
        """Start a runner: a function that runs until it is stopped. Return its name, `type:uuid`.

        `target` is the name of a function of `modules/`, or the function
        itself; it gets `data`, and a context with `stopping`. Its `type` is,
        if not given, the function's name, its `uuid` a new one; the same one
        again, with the same target and data, is the same runner. `grace_s` is
        how many seconds it may take to stop. It is stored when this returns,
        and runs soon after.

        Raises UnknownFunction, BadCommand, TooLarge, Conflict (another runner
        has this name), StateError (its stop is loaded already), QueueFull
        (there are [limits] runners), Unavailable.
        """
        return self._resources.client.start_runner(
            name_of(target),
            data,
            type=type,
            uuid=self._new_uuid() if uuid is None else uuid,
            grace_s=grace_s,
            job=self._ref,
        )

    def stop_runner(self, type: str, uuid: str | None = None) -> bool:
        """Load the stop of a runner; tell whether that is news. Does not wait for its end.

        It is named by `type` and `uuid`, or by `type:uuid` alone; a type alone
        means all of that type. False when it stops or has stopped already.
        Raises NotFound when there never was such a runner, Unavailable.
        """
        return self._resources.client.stop_runner(type, uuid) > 0

    def _new_uuid(self) -> str:
        return str(uuid_module.uuid4())

    @property
    def _ref(self) -> str:
        return ""


class Context(Common):
    """What a job's function can use beside its data.

    `job` says what it runs for: `job_id`, `from_`, `to`, `cmd`, and
    `attempt`, counted from 1.
    """

    __slots__ = ("_addition", "_is_cancelled", "_started", "job")

    def __init__(
        self,
        job: JobInfo,
        resources: Resources,
        tell: Callable[[float, str], None],
        is_cancelled: Callable[[], bool],
    ) -> None:
        """`tell` is called with each progress, `is_cancelled` each time a function asks."""
        super().__init__(resources, tell)
        self.job = job
        self._is_cancelled = is_cancelled
        self._addition: Addition | None = None
        self._started = 0

    @property
    def cancelled(self) -> bool:
        """Whether the job was cancelled: a long function looks now and then, and returns."""
        return self._is_cancelled()

    @property
    def traceparent(self) -> str:
        """That of the job; where spans are made, that of this attempt's span."""
        return self.job.traceparent

    def _new_uuid(self) -> str:
        # The same in each attempt: a job that runs again starts the same runners.
        self._started += 1
        return str(uuid_module.uuid5(RUNNERS, f"{self.job.to}/{self._ref}/{self._started}"))

    @property
    def _ref(self) -> str:
        return f"{self.job.from_}:{self.job.job_id}"

    def add_step(
        self,
        cmd: str,
        data: Any = None,
        *,
        from_: str | None = None,
        to: str | Sequence[str] | None = None,
        **options: Any,
    ) -> str:
        """Add a step to this job; return its name, the step's `from`.

        It is stored, and may start, in the moment in which this function's
        result is; if the function fails, nothing is added. `from_` is, if not
        given, this step's own with a number behind it (`split.1`), `to` is
        where this step itself goes. A step whose `from_` nothing goes to
        starts with `data`; one that another step goes to waits for that, and
        gets its result instead. `options` are those of `submit`.

        Raises BadCommand or TooLarge for what can be seen here: a bad name or
        option, data that cannot be sent, a step that is there already or goes
        back to this one, more steps than [limits] workflow_steps. What only
        the store can see (no step waits at `to`) makes this attempt fail with
        `BadStep`.
        """
        with _ADDING:
            if self._addition is None:
                self._addition = Addition(self.job, self._resources.limits)
            if self.traceparent:
                options.setdefault("traceparent", self.traceparent)
            return self._addition.add(from_, to, cmd, data, options)

    @property
    def added(self) -> Sequence[Added]:
        """The steps added so far."""
        return self._addition.steps if self._addition is not None else ()


class RunnerInfo(NamedTuple):
    """The runner a function is. `epoch` counts its lives, from 1."""

    type: str
    uuid: str
    target: str
    epoch: int

    @property
    def name(self) -> str:
        return f"{self.type}:{self.uuid}"


class RunnerContext(Common):
    """What a runner's function can use beside its data.

    `runner` says what it is: `type`, `uuid`, `name`, `target`, and `epoch`,
    which counts its lives from 1. `stopping`, a `threading.Event`, is set when
    it is to stop. It should return then: after its
    grace period it is ended with TERM, and then with KILL.
    """

    __slots__ = ("_calls", "_lock", "runner", "stopping")

    def __init__(self, runner: RunnerInfo, resources: Resources, tell: Callable[[float, str], None]) -> None:
        super().__init__(resources, tell)
        self.runner = runner
        self.stopping = threading.Event()
        self._lock = threading.Lock()
        self._calls: list[Callable[[], None]] = []

    def wait_stop(self, seconds: float | None = None) -> bool:
        """Wait until it is to stop, at most `seconds`; tell whether it is."""
        return self.stopping.wait(seconds)

    def on_stop(self, call: Callable[[], None]) -> None:
        """Have `call` called in another thread when it is to stop; at once if it is so already."""
        with self._lock:
            if not self.stopping.is_set():
                self._calls.append(call)
                return
        call()

    def stop(self) -> None:
        """Tell the function to stop. What it asked to be called must not raise."""
        with self._lock:
            self.stopping.set()
            calls, self._calls = self._calls, []
        for call in calls:
            call()
