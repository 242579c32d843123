"""The Python client, for threads. (`aclient.py` has its face for asyncio.)

    client = exesys.Client()
    client.run("add", [1, 2, 3])                   # the value, or JobError
    handles = client.submit_many("index", paths)   # each like a Future
    [handle.result(timeout=10) for handle in handles]

It finds the system by the same ini and environment as the daemons. Calls lay
commands on a desk (`inflight.Desk`); one thread at a time serves it
(`connection.py`). While the router or the store is away a patient client
waits and sends again; nothing runs twice for that.
"""

from __future__ import annotations

import os
import time
import uuid as uuid_module
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Unpack

from exesys import codec, command, environment, news, runner
from exesys.bus import messages as m
from exesys.bus import sockets
from exesys.bus.appcall import App, Apps
from exesys.bus.connection import Connection
from exesys.bus.door import TUNINGS
from exesys.bus.fleet import Fleet
from exesys.bus.handle import Handle, Handles, job_error
from exesys.bus.jobhandle import JobHandle
from exesys.bus.listener import Events
from exesys.config import Config
from exesys.errors import BadCommand, Unavailable, from_problem
from exesys.states import State
from exesys.workflow import Graph

if TYPE_CHECKING:
    from exesys.bus.executor import Executor

WINDOW = 2000
CHUNK = 500
ID_BYTES = 16
ANSWER_S = 10.0
CLOSE_S = 5.0
STORE_AWAY_S = 0.25
BEAT_S = 1.0


class Builder(Protocol):
    """What `exesys.Workflow` is to a client."""

    def commands(self) -> list[dict[str, Any]]: ...


Steps = Builder | list[dict[str, Any]]


class Client:
    """A connection to the router. Thread-safe; make one and keep it.

    `config` holds the settings; left out, they are read as the daemons read
    them. `window` bounds the commands sent and not yet acknowledged, of each
    shard: `submit` waits while it is full. With `patient=False` a command is refused at once with
    Unavailable when the router or the store is away, instead of waiting.
    `role` and `info` are what a daemon says of itself. Raises ConfigError.
    """

    def __init__(
        self,
        config: Config | None = None,
        *,
        window: int = WINDOW,
        patient: bool = True,
        role: str = "client",
        info: dict[str, Any] | None = None,
    ) -> None:
        self.config = config if config is not None else environment.load()
        self.patient = patient
        self._fleet = Fleet(self.config, window, role, info or {})
        self._connection = self._fleet.home
        self.apps = Apps(self.config, self._ask_for_apps, self._connection.identity)
        self._listening: weakref.WeakSet[Events] = weakref.WeakSet()
        self._apps_tag = 0
        self._limits = command.Limits(self.config.limits.data_bytes, self.config.limits.depth)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self._end()  # what went wrong is told already

    # --- commands ---------------------------------------------------------

    def submit(
        self,
        cmd: str,
        data: Any = None,
        *,
        job_id: str | None = None,
        from_: str = command.DEFAULT_FROM,
        to: str | Sequence[str] = command.END,
        standby: bool = False,
        **options: Unpack[command.Options],
    ) -> Handle:
        """Send one command and return its handle at once.

        With `standby` it waits for the result of the step that goes to its
        `from_`. `options` are those of REST: queue, priority, delay_s or at,
        timeout_s, retries, backoff_s, key, key_limit, result_ttl_s, notify.
        Raises BadCommand or TooLarge.
        """
        return self.send(self._build(cmd, data, job_id, from_, to, options), standby=standby)[0]

    def workflow(self, steps: Steps, job_id: str | None = None) -> JobHandle:
        """Send a workflow: an `exesys.Workflow`, or a list of commands as REST takes them.

        All of it is stored, or nothing. Raises BadCommand or TooLarge.
        """
        given = steps if isinstance(steps, list) else steps.commands()
        if job_id is not None:
            given = [{**step, "job_id": job_id} if isinstance(step, dict) else step for step in given]
        commands = command.workflow_from_json(given, self._limits, self.new_id)
        graph = Graph((each.from_, each.to) for each in commands)
        graph.check(self.config.limits.workflow_steps)
        return JobHandle(commands[0].job_id, graph, self.send_workflow(commands, set(graph.ends)), self.follow)

    def cancel(self, job_id: str, timeout: float = ANSWER_S) -> int:
        """Cancel what has not ended of a job; return how many steps that was. Raises NotFound, Unavailable."""
        return self._change_job("cancel", job_id, timeout)

    def retry(self, job_id: str, timeout: float = ANSWER_S) -> int:
        """Run again what failed of a job, and what depended on it; return how many steps that is.

        Raises NotFound, Unavailable.
        """
        return self._change_job("retry", job_id, timeout)

    def purge(self, job_id: str, timeout: float = ANSWER_S) -> int:
        """Remove all there is of a job that has failed; return how many steps it had.

        Raises NotFound, StateError (it has not ended, or ended well), Unavailable.
        """
        return self._change_job("purge", job_id, timeout)

    def submit_many(
        self,
        cmd: str,
        data: Iterable[Any],
        *,
        from_: str = command.DEFAULT_FROM,
        to: str | Sequence[str] = command.END,
        **options: Unpack[command.Options],
    ) -> Handles:
        """Send the same command for each item of `data`; return the handles in order.

        Raises BadCommand or TooLarge for an item that is refused here; earlier ones, in pieces of 500, were sent.
        """
        handles = Handles()
        remaining = iter(data)
        while items := list(islice(remaining, CHUNK)):
            draw = _ids(len(items)).__next__
            handles += self.send(*[self._build(cmd, item, self.new_id(draw), from_, to, options) for item in items])
        return handles

    def run(self, cmd: str, data: Any = None, timeout: float | None = None, **options: Unpack[command.Sending]) -> Any:
        """Send one command and wait for its value. Raises as `submit` and `Handle.result` do."""
        return self.submit(cmd, data, **options).result(timeout)

    def result(
        self, job_id: str, timeout: float | None = None, *, from_: str = command.DEFAULT_FROM, to: str = command.END
    ) -> Any:
        """Wait for the value of a step sent earlier, by anyone. Raises NotFound, or as `Handle.result`."""
        return self.follow(job_id, from_, to).result(timeout)

    def status(self, job_id: str, *, from_: str = command.DEFAULT_FROM, to: str = command.END) -> dict[str, Any]:
        """Return `status`, `state` and, once ended, `result` or `error` of a step. Raises NotFound."""
        handle = self.follow(job_id, from_, to, notify=False)
        handle.accepted(ANSWER_S)
        return describe(handle)

    def follow(self, job_id: str, from_: str, to: str, notify: bool = True) -> Handle:
        """Return a handle on a step sent earlier."""
        handle = Handle(job_id, from_, to, "", self._connection.desk.lock, self._connection.drive, self)
        self._fleet.put([handle], [None], lambda _: notify, self.patient)
        return handle

    def send(self, *commands: command.Command, notify: bool = True, standby: bool = False) -> list[Handle]:
        """Send checked commands together, in one message of the bus."""
        handles, items = self._items(commands, lambda _: notify, -1 if standby else 0)
        self._fleet.put(handles, items, lambda _: notify, self.patient)
        return handles

    def post(self, one: command.Command, told: Callable[[Handle], None]) -> Handle:
        """Lay a checked command down to be sent, without waiting, even while the window is `full`.

        It goes with the next call of `flush`, and its end is not heard of. `told` is called, in the client's
        thread, when the router has taken or refused it. Raises Unavailable.
        """
        handles, items = self._items([one], lambda _: False, 0)
        handles[0].on_answer(told)
        self._fleet.post(handles[0], items[0], self.patient)
        return handles[0]

    def new_id(self, make: Callable[[], str] = lambda: os.urandom(ID_BYTES).hex()) -> str:
        """Make a job_id, where there are several shards one of a shard that is there. `make` gives some."""
        return self._fleet.new_id(make)

    def flush(self) -> None:
        """Send what was posted, all in one message for each shard."""
        self._fleet.flush()

    def send_workflow(self, commands: Sequence[command.Command], told: Collection[int]) -> list[Handle]:
        """Send the checked commands of a workflow; of the steps at the places `told` the end is told."""
        handles, items = self._items(commands, told.__contains__, 0)
        self._fleet.put_workflow(handles, items, self.patient)
        return handles

    def _items(
        self, commands: Sequence[command.Command], notify: Callable[[int], bool], flow: int
    ) -> tuple[list[Handle], list[m.Item]]:
        lock, drive = self._connection.desk.lock, self._connection.drive
        handles, items = [], []
        for place, (from_, to, cmd, data, job_id, options) in enumerate(commands):
            handles.append(Handle(job_id, from_, to, cmd, lock, drive, self))
            target: Any = to.split(",") if "," in to else to
            items.append(m.Item(0, from_, target, cmd, data, job_id, dict(options), notify(place), flow))
        return handles, items

    def executor(self, **options: Unpack[command.Options]) -> Executor:
        """Return a `concurrent.futures.Executor` that runs functions of modules/ as jobs with these options."""
        from exesys.bus.executor import Executor  # a client without one need not wait for its imports

        command.check_options(options)
        return Executor(self, options)

    def withdraw(self, handle: Handle, then: Callable[[], None] = lambda: None) -> None:
        """Cancel a job without waiting: its handle ends at once, with JobCancelled, unless it has ended.

        `then` is called, in any thread, when the router has answered. While
        Redis is away the router cancels nothing, and what was taken runs.
        """
        job_id = handle.job_id
        self._fleet.withdraw(handle, lambda tag: m.Change(tag, "cancel", job_id), lambda _: then())

    def snapshot(self, *parts: str, timeout: float = ANSWER_S) -> dict[str, Any]:
        """Ask the router for stops, workers, functions or figures. Raises Unavailable."""
        answer = self._connection.ask(lambda tag: m.Sync(tag, parts), timeout)
        assert isinstance(answer, m.Snapshot)
        return answer.parts

    def events(
        self,
        *,
        kinds: Iterable[str] = ("step", "progress"),
        job_id: str | None = None,
        cmd: str | None = None,
        state: str | None = None,
        timeout: float = ANSWER_S,
    ) -> Events:
        """Listen to what happens to steps from now on, of one job, cmd or state alone where one is given.

            with client.events(cmd="add") as events:
                for event in events:
                    print(event["job_id"], event["state"])

        Each is a map, see `Events`. Raises BadCommand, and Unavailable when the router
        does not publish within `timeout` seconds.
        """
        wanted = news.checked(kinds if isinstance(kinds, str) else ",".join(kinds), cmd, state)
        if "stats" in wanted.kinds:
            raise BadCommand("figures are not published on the bus.", field="kinds", fix="Ask GET /events for them.")
        if job_id is not None:
            wanted = wanted._replace(job_id=command.check_name(job_id, "job_id"))
        router = self._fleet.of(job_id) if job_id is not None else self._connection
        events = Events(wanted, lambda: _events_at(router), lambda: _beat(router), router.identity, timeout)
        self._listening.add(events)
        return events

    # --- runners ----------------------------------------------------------

    def start_runner(
        self,
        target: str,
        data: Any = None,
        *,
        type: str | None = None,
        uuid: str | None = None,
        grace_s: float | None = None,
        job: str = "",
        timeout: float = ANSWER_S,
    ) -> str:
        """Start a function as a runner; return its name, `type:uuid`, once it is stored.

        Raises as `ctx.start_runner` does; Unavailable after `timeout` seconds.
        """
        command.check_name(target, "target")
        type_ = runner.default_type(target) if type is None else type
        name = runner.check_name(type_, str(uuid_module.uuid4()) if uuid is None else uuid)
        grace = runner.check_options(-1 if grace_s is None else grace_s)
        packed = codec.pack(data)
        codec.check_packed(packed, self._limits.data_bytes, self._limits.depth)
        self._changed(lambda tag: m.Start(tag, *name, target, packed, grace, job), timeout)
        return str(name)

    def stop_runner(self, type: str, uuid: str | None = None, timeout: float = ANSWER_S) -> int:
        """Load the stop of a runner, or of all of a type; return how many that is news for.

        `type` may be the whole name, `type:uuid`. Raises NotFound, Unavailable.
        """
        return self._change("stop", runner.written(type, uuid), timeout)

    def restart_runner(self, type: str, uuid: str | None = None, timeout: float = ANSWER_S) -> None:
        """Start a runner anew: one that runs is stopped first. Raises NotFound, StateError, Unavailable."""
        self._change("restart", str(runner.parse_name(runner.written(type, uuid))), timeout)

    # --- what is kept beside jobs ---------------------------------------------

    def tune(self, kind: str, what: str, name: str, fields: dict[str, Any], timeout: float = ANSWER_S) -> int:
        """Add, put, merge or remove a timer, or settings of a queue; return 1 if that changed anything.

        Raises BadCommand, NotFound, Conflict, QueueFull, Unavailable.
        """
        if what != "remove":
            TUNINGS[kind](what, command.check_name(name, "name"), fields)
        return self._changed(lambda tag: m.Tune(tag, kind, what, name, fields), timeout)

    def _change(self, what: str, name: str, timeout: float) -> int:
        return self._changed(lambda tag: m.Change(tag, what, name), timeout)

    def _change_job(self, what: str, job_id: str, timeout: float) -> int:
        shard = self._fleet.of(command.check_name(job_id, "job_id"))
        return self._changed(lambda tag: m.Change(tag, what, job_id), timeout, shard)

    def _changed(self, question: Callable[[int], m.Message], timeout: float, router: Connection | None = None) -> int:
        router = router or self._connection
        until = time.monotonic() + timeout
        while True:
            answer = router.ask(question, max(until - time.monotonic(), 0.0))
            assert isinstance(answer, m.Changed)
            if not answer.problem:
                return answer.steps
            error = from_problem(answer.problem)
            again = self.patient and isinstance(error, Unavailable) and time.monotonic() + STORE_AWAY_S < until
            if not again or self._connection.closed.wait(STORE_AWAY_S):
                raise error

    def ask_later(self, before: int, question: Callable[[int], m.Message], then: Callable[[m.Reply], None]) -> int:
        """Ask the router without waiting, and give up the question `before`; return its tag, 0 when it is away.

        `then` is called with the answer, in another thread.
        """
        return self._connection.ask_instead(before, question, then) or 0

    def tell(self, message: m.Message) -> None:
        """Send the router a message that has no answer; it waits while the router is away."""
        self._connection.tell(message)

    def app(self, name: str, timeout_s: float | None = None, wait: bool = True) -> App:
        """Return an application server: `client.app("words").suggest("serch", limit=3)`.

        A call may take `timeout_s` seconds (default: the server's own limit),
        the wait for an instance included; with `wait=False` it fails at once
        when none is there. It raises UnknownApp, UnknownMethod, BadArguments,
        TooLarge, AppError (the method raised), AppTimeout, AppUnavailable (it
        did not run) or AppLost (it is not known whether it ran).
        """
        return self.apps.app(name, timeout_s, wait)

    def _ask_for_apps(self, parts: tuple[str, ...], then: Callable[[dict[str, Any]], None]) -> bool:
        """Ask for a SNAPSHOT, and give up the question before. False when the router is away."""
        tag = self._connection.ask_instead(
            self._apps_tag, lambda tag: m.Sync(tag, parts), lambda told: then(getattr(told, "parts", {}))
        )
        self._apps_tag = tag or 0
        return tag is not None

    @property
    def session(self) -> str:
        """By which the router knows this peer."""
        return self._connection.desk.session

    def introduce(self, info: dict[str, Any]) -> None:
        """Say HELLO again, with what there is to tell of this peer now."""
        self._connection.introduce(info)

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._connection.closed.is_set()

    @property
    def connected(self) -> bool:
        """Whether the router has greeted this client and is heard."""
        return self._connection.greeted

    @property
    def full(self) -> bool:
        """Whether a window is full, so that a command may have to wait."""
        return self._fleet.full

    def wait_connected(self, timeout: float) -> bool:
        """Wait until the router has greeted this client; tell whether it came within `timeout` seconds."""
        return self._connection.wait_greeted(timeout)

    def close(self, timeout: float = CLOSE_S) -> None:
        """Wait until the router has taken what was sent, say goodbye and end the thread.

        What was taken goes on in the system. Raises Unavailable when commands
        were not taken within `timeout` seconds: those may be lost.
        """
        left = self._fleet.wait_taken(timeout)
        self._end()
        if left:
            raise Unavailable(
                f"{left} commands were not taken by the router.", fix="Is the system up? Send them again."
            )

    def _end(self) -> None:
        for events in tuple(self._listening):
            events.close()
        self.apps.close()
        self._fleet.end()

    def _build(
        self, cmd: str, data: Any, job_id: str | None, from_: str, to: str | Sequence[str], options: command.Options
    ) -> command.Command:
        packed = codec.pack(data)
        if len(packed) > self._limits.depth:
            codec.check_packed(packed, self._limits.data_bytes, self._limits.depth)
        return command.build(from_, to, cmd, packed, self.new_id() if job_id is None else job_id, options)


def _ids(at_once: int) -> Iterator[str]:
    """Give random job_ids without end, so many drawn `at_once`.

    With each draw a thread lets go of the interpreter's lock, and another that takes it keeps it for a while.
    """
    while True:
        drawn = os.urandom(ID_BYTES * at_once).hex()
        yield from (drawn[at : at + 2 * ID_BYTES] for at in range(0, len(drawn), 2 * ID_BYTES))


def _events_at(router: Connection) -> str:
    welcome = router.desk.welcome
    return sockets.towards(router.endpoint, welcome.endpoints["events"]) if welcome is not None else ""


def _beat(router: Connection) -> None:
    router.ask(lambda tag: m.Sync(tag, ("events",)), BEAT_S)


def describe(handle: Handle) -> dict[str, Any]:
    """Return what REST says of a step: status, state, and its result or error."""
    state = handle.state
    assert state is not None, "the step's state is known once it was accepted"
    told: dict[str, Any] = {"status": int(state), "state": state.name}
    if state is State.data_available:
        told["result"] = codec.unpack(handle._body)
    elif state is State.error:
        error = job_error(handle._body)
        told["error"] = {"type": error.type, "message": error.text, "attempts": error.attempts}
        if error.traceback:
            told["error"]["traceback"] = error.traceback
    return told
