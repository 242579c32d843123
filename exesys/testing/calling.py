"""Running one function as a slot would, in this process."""

from __future__ import annotations

import contextlib
import io
import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from exesys import codec, command, environment
from exesys.bus.messages import Added
from exesys.config import Config, Limits
from exesys.context import Context, JobInfo, Resources
from exesys.errors import JobError, TooLarge, Unavailable
from exesys.functions import EOJ, Library, Terminated, bare_name
from exesys.store import dial
from exesys.testing.recorded import Recorder, Started, Submitted

Target = str | Callable[..., Any]


@dataclass(frozen=True)
class Outcome:
    """What came of a function that returned.

    `value` is what a client would get. `progress` are the (fraction, text) it
    told. What it sent is in `submitted`, `started` (runners), `stopped`
    (names of those) and `added` (steps, whose data is packed).
    """

    value: Any
    log: str = ""
    progress: tuple[tuple[float, str], ...] = ()
    submitted: tuple[Submitted, ...] = ()
    started: tuple[Started, ...] = ()
    stopped: tuple[str, ...] = ()
    added: tuple[Added, ...] = ()
    took_s: float = 0.0


@dataclass
class World:
    """What functions find around them: see `run` for each of these."""

    redis: Any = None
    mongo: Any = None
    answers: Mapping[str, Any] | None = None
    apps: Mapping[str, Any] | None = None
    config: Config | None = None

    def __post_init__(self) -> None:
        self.settings = self.config if self.config is not None else environment.load({})

    @property
    def limits(self) -> Limits:
        return self.settings.limits


def run(
    function: Target,
    data: Any = None,
    *,
    modules: Sequence[Path | str] = (),
    job_id: str = "test",
    from_: str = command.DEFAULT_FROM,
    to: str = command.END,
    attempt: int = 1,
    cancelled: bool | Callable[[], bool] = False,
    timeout_s: float | None = None,
    redis: Any = None,
    mongo: Any = None,
    answers: Mapping[str, Any] | None = None,
    apps: Mapping[str, Any] | None = None,
    config: Config | None = None,
) -> Outcome:
    """Run a function as a job would, and tell what came of it.

    function: it, or its name; then `modules` are the directories it is looked
    for in (default: those of the settings here). data: travels as over the
    bus, so a tuple arrives as a list. job_id, from_, to, attempt: what `ctx.job`
    says. cancelled: what `ctx.cancelled` says. timeout_s: seconds after which it
    is ended as by a time limit, in the main thread alone (default: never).
    redis: what `ctx.redis` is, a client or an address. mongo: a pymongo
    database. answers: what comes of that which it submits, by cmd: a value, an
    exception, or a function of the data. apps: objects that stand for application
    servers, by name. config: settings
    (default: those of the ini here).

    Raises whatever the function raises; JobError of the type `Timeout`;
    UnknownFunction, BadCommand or TooLarge where a system would refuse it.
    """
    world = World(redis, mongo, answers, apps, config)
    library, cmd = find(function, modules)
    info = JobInfo(job_id, from_, to, cmd, attempt)
    packed = codec.pack(data)
    codec.check_packed(packed, world.limits.data_bytes, world.limits.depth)
    is_cancelled = cancelled if callable(cancelled) else lambda: bool(cancelled)
    return call(library, info, packed, world, is_cancelled, timeout_s)


def find(function: Target, modules: Sequence[Path | str]) -> tuple[Library, str]:
    """Return the library that has a function, and its name there. Raises UnknownFunction, BadCommand."""
    if not isinstance(function, str):
        name = bare_name(function)
        return Library.of({name: function}), name
    library = load(modules)
    library.catalogue.resolve(function)
    return library, function


def load(modules: Sequence[Path | str]) -> Library:
    """Load the functions of directories; of none, those of the settings that hold here."""
    return Library.load([Path(each) for each in modules] or environment.load().module_dirs)


def call(
    library: Library,
    info: JobInfo,
    data: bytes,
    world: World,
    is_cancelled: Callable[[], bool] = lambda: False,
    timeout_s: float | None = None,
) -> Outcome:
    """Call a function of a library on packed data. Raises whatever it raises, JobError for its time."""
    recorder = Recorder(world.limits, world.answers or {}, world.apps or {})
    progress: list[tuple[float, str]] = []
    contexts: list[Context] = []
    resources = _Resources(world, recorder)

    def context() -> Context:
        contexts.append(
            Context(info, resources, lambda fraction, text: progress.append((fraction, text)), is_cancelled)
        )
        return contexts[0]

    log = io.StringIO()
    began = time.perf_counter()
    try:
        with _written(log), _limited(timeout_s, info.attempt):
            body = library.call(info.cmd, codec.unpack(data), context)
    except BaseException as error:
        if log.getvalue():
            error.add_note(f"It printed and logged:\n{log.getvalue().rstrip()}")
        raise
    finally:
        resources.leave()
    if len(body) > world.limits.data_bytes:
        text = f"the result has {len(body):,} bytes; at most {world.limits.data_bytes:,} are allowed."
        raise TooLarge(text, fix="Store it elsewhere and return a reference, or raise [limits] data_bytes.")
    return Outcome(
        codec.unpack(body)[EOJ],
        log.getvalue(),
        tuple(progress),
        tuple(recorder.submitted),
        tuple(recorder.started),
        tuple(recorder.stopped),
        tuple(contexts[0].added) if contexts else (),
        time.perf_counter() - began,
    )


class _Resources(Resources):
    """Gives what the test gave, and says what it did not."""

    def __init__(self, world: World, recorder: Recorder) -> None:
        super().__init__(world.settings, lambda: recorder)
        self._world = world

    @cached_property
    def redis(self) -> Any:
        given = self._world.redis
        if given is None:
            raise _lacking("redis", "Give redis=…, such as the fixture `exesys_redis`.")
        return dial.client(given, None) if isinstance(given, str) else given

    @cached_property
    def mongo(self) -> Any:
        if self._world.mongo is None:
            raise _lacking("mongo", "Give mongo=…, a database of pymongo.")
        return self._world.mongo

    def leave(self) -> None:
        """Close what was opened here, and not what the test gave."""
        if isinstance(self._world.redis, str) and "redis" in vars(self):
            self.redis.close()


def _lacking(name: str, fix: str) -> Unavailable:
    return Unavailable(f"the function asks for ctx.{name}, and this test has none.", field=name, fix=fix)


@contextlib.contextmanager
def _written(log: io.StringIO) -> Iterator[None]:
    """Take what is printed and logged, as a slot does."""
    handler = logging.StreamHandler(log)
    handler.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        root.setLevel(level)
        root.removeHandler(handler)


@contextlib.contextmanager
def _limited(timeout_s: float | None, attempt: int) -> Iterator[None]:
    """End what takes longer, as TERM ends it in a slot: its clean-up runs. Raises JobError."""
    if timeout_s is None:
        yield
        return

    def over(number: int, frame: FrameType | None) -> None:
        raise Terminated(128 + signal.SIGTERM)

    before = signal.signal(signal.SIGALRM, over)
    signal.setitimer(signal.ITIMER_REAL, timeout_s)
    try:
        yield
    except Terminated:
        raise JobError("Timeout", f"it ran longer than its limit of {timeout_s:g} s", attempt) from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
