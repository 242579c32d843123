"""The Python client, for threads. (`aclient.py` has its face for asyncio.)

    client = exesys.Client()
    client.run("add", [1, 2, 3])                   # the value, or JobError
    handles = client.submit_many("index", paths)   # each like a Future
    [handle.result(timeout=10) for handle in handles]

It finds the system by the same ini and environment as the daemons. Calls lay
commands on a desk (`inflight.Desk`); one thread at a time serves it. While the
router or the store is away a patient client waits and sends again; nothing
runs twice for that.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import threading
import time
import uuid as uuid_module
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import islice
from types import TracebackType
from typing import Any, Protocol

import zmq

from exesys import codec, command, environment, runner
from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.bus.appcall import App, Apps
from exesys.bus.handle import Handle, job_error
from exesys.bus.inflight import Desk
from exesys.bus.jobhandle import JobHandle
from exesys.config import Config
from exesys.errors import ProtocolError, Unavailable, from_problem
from exesys.states import State
from exesys.workflow import Graph

WINDOW = 2000
CHUNK = 500
ANSWER_S = 10.0
CLOSE_S = 5.0
SYNC_S = 0.05
STORE_AWAY_S = 0.25
PARKED_S = 0.002
LONGEST_PASS_S = 1.0


class Builder(Protocol):
    """What `exesys.Workflow` is to a client."""

    def commands(self) -> list[dict[str, Any]]: ...


Steps = Builder | list[dict[str, Any]]


class Client:
    """A connection to the router. Thread-safe; make one and keep it.

    `window` bounds the commands sent and not yet acknowledged: `submit` waits
    while it is full. With `patient=False` a command is refused at once with
    Unavailable when the router or the store is away, instead of waiting.
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
        self._desk = Desk(secrets.token_hex(8), window, role)
        self._desk.info = info or {}
        self._room = threading.Condition(self._desk.lock)
        self._asleep = False
        self._closing = False
        self._closed = threading.Event()
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_write, False)
        self._driver = threading.RLock()  # a callback may wait or submit, and then drives on
        self._drove_at = float("-inf")
        self._unpark = threading.Event()
        self.apps = Apps(self.config, self._ask_for)
        self._apps_tag = 0
        self._context = zmq.Context[sockets.Socket]()
        self._poller = zmq.Poller()
        self._poller.register(self._wake_read, zmq.POLLIN)
        self._front = self._connect()
        self._limits = command.Limits(self.config.limits.data_bytes, self.config.limits.depth)
        self._thread = threading.Thread(target=self._serve, daemon=True, name="exesys-client")
        self._thread.start()

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
        **options: Any,
    ) -> Handle:
        """Send one command and return its handle at once.

        With `standby` it waits for the result of the step that goes to its
        `from_`. `options` are those of REST: queue, priority, delay_s or at,
        timeout_s, retries, backoff_s, result_ttl_s. Raises BadCommand or TooLarge.
        """
        return self.send(self._build(cmd, data, job_id, from_, to, options), standby=standby)[0]

    def workflow(self, steps: Steps, job_id: str | None = None) -> JobHandle:
        """Send a workflow: an `exesys.Workflow`, or a list of commands as REST takes them.

        All of it is stored, or nothing. Raises BadCommand or TooLarge.
        """
        given = steps if isinstance(steps, list) else steps.commands()
        if job_id is not None:
            given = [{**step, "job_id": job_id} if isinstance(step, dict) else step for step in given]
        commands = command.workflow_from_json(given, self._limits, lambda: os.urandom(16).hex())
        graph = Graph((each.from_, each.to) for each in commands)
        graph.check(self.config.limits.workflow_steps)
        return JobHandle(commands[0].job_id, graph, self.send_workflow(commands, set(graph.ends)), self.follow)

    def cancel(self, job_id: str, timeout: float = ANSWER_S) -> int:
        """Cancel what has not ended of a job; return how many steps that was. Raises NotFound, Unavailable."""
        return self._change("cancel", command.check_name(job_id, "job_id"), timeout)

    def retry(self, job_id: str, timeout: float = ANSWER_S) -> int:
        """Run again what failed of a job, and what depended on it; return how many steps that is.

        Raises NotFound, Unavailable.
        """
        return self._change("retry", command.check_name(job_id, "job_id"), timeout)

    def submit_many(
        self,
        cmd: str,
        data: Iterable[Any],
        *,
        from_: str = command.DEFAULT_FROM,
        to: str | Sequence[str] = command.END,
        **options: Any,
    ) -> list[Handle]:
        """Send the same command for each item of `data`; return the handles in order."""
        handles: list[Handle] = []
        remaining = iter(data)
        while chunk := [self._build(cmd, item, None, from_, to, options) for item in islice(remaining, CHUNK)]:
            handles += self.send(*chunk)
        return handles

    def run(self, cmd: str, data: Any = None, timeout: float | None = None, **options: Any) -> Any:
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
        handle = Handle(job_id, from_, to, "", self._desk.lock, self._drive, self.cancel)
        self._put([handle], [None], notify)
        return handle

    def send(self, *commands: command.Command, notify: bool = True, standby: bool = False) -> list[Handle]:
        """Send checked commands together, in one message of the bus."""
        handles, items = self._items(commands, lambda _: notify, -1 if standby else 0)
        self._put(handles, items, notify)
        return handles

    def send_workflow(self, commands: Sequence[command.Command], told: Collection[int]) -> list[Handle]:
        """Send the checked commands of a workflow; of the steps at the places `told` the end is told."""
        handles, items = self._items(commands, told.__contains__, 0)
        self._admit(lambda: self._desk.put_workflow(handles, items, self.patient))
        return handles

    def _items(
        self, commands: Sequence[command.Command], notify: Callable[[int], bool], flow: int
    ) -> tuple[list[Handle], list[m.Item]]:
        handles, items = [], []
        for place, (from_, to, cmd, data, job_id, options) in enumerate(commands):
            handles.append(Handle(job_id, from_, to, cmd, self._desk.lock, self._drive, self.cancel))
            target: Any = to.split(",") if "," in to else to
            items.append(m.Item(0, from_, target, cmd, data, job_id, dict(options), notify(place), flow))
        return handles, items

    def snapshot(self, *parts: str, timeout: float = ANSWER_S) -> dict[str, Any]:
        """Ask the router for stops, workers, functions or figures. Raises Unavailable."""
        answer = self._ask(lambda tag: m.Sync(tag, parts), timeout)
        assert isinstance(answer, m.Snapshot)
        return answer.parts

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
        name = runner.check_name(type or runner.default_type(target), uuid or str(uuid_module.uuid4()))
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

    def _change(self, what: str, name: str, timeout: float) -> int:
        return self._changed(lambda tag: m.Change(tag, what, name), timeout)

    def _changed(self, question: Callable[[int], m.Message], timeout: float) -> int:
        until = time.monotonic() + timeout
        while True:
            answer = self._ask(question, max(until - time.monotonic(), 0.0))
            assert isinstance(answer, m.Changed)
            if not answer.problem:
                return answer.steps
            error = from_problem(answer.problem)
            again = self.patient and isinstance(error, Unavailable) and time.monotonic() + STORE_AWAY_S < until
            if not again or self._closed.wait(STORE_AWAY_S):
                raise error

    def _ask(self, question: Callable[[int], m.Message], timeout: float) -> m.Snapshot | m.Changed:
        answer: list[m.Snapshot | m.Changed] = []
        arrived = threading.Event()

        def then(told: m.Snapshot | m.Changed) -> None:
            answer.append(told)
            arrived.set()

        with self._desk.lock:
            tag = self._desk.ask(question, then)
        self._wake()
        if not arrived.wait(timeout):
            with self._desk.lock:
                self._desk.forget(tag)
            raise Unavailable("the router does not answer.", fix="See `bin/exesys status`.")
        return answer[0]

    def tell(self, message: m.Message) -> None:
        """Send the router a message that has no answer; it waits while the router is away."""
        with self._desk.lock:
            self._desk.tell(message)
        self._wake()

    def app(self, name: str, timeout_s: float | None = None, wait: bool = True) -> App:
        """Return an application server: `client.app("words").suggest("serch", limit=3)`.

        A call may take `timeout_s` seconds (default: the server's own limit),
        the wait for an instance included; with `wait=False` it fails at once
        when none is there. It raises UnknownApp, UnknownMethod, BadArguments,
        TooLarge, AppError (the method raised), AppTimeout, AppUnavailable (it
        did not run) or AppLost (it is not known whether it ran).
        """
        return self.apps.app(name, timeout_s, wait)

    def _ask_for(self, parts: tuple[str, ...], then: Callable[[dict[str, Any]], None]) -> bool:
        """Ask for a SNAPSHOT, and give up the question before. False when the router is away."""
        with self._desk.lock:
            if self._desk.welcome is None:
                return False
            self._desk.forget(self._apps_tag)
            self._apps_tag = self._desk.ask(
                lambda tag: m.Sync(tag, parts), lambda told: then(getattr(told, "parts", {}))
            )
        self._wake()
        return True

    @property
    def session(self) -> str:
        """By which the router knows this peer."""
        return self._desk.session

    def introduce(self, info: dict[str, Any]) -> None:
        """Say HELLO again, with what there is to tell of this peer now."""
        desk = self._desk
        with desk.lock:
            desk.info = info
            # Also where the WELCOME of the one before is still on its way.
            desk.tell(m.Hello(m.VERSION, desk.role, desk.session, "", info))
        self._wake()

    @property
    def connected(self) -> bool:
        """Whether the router has greeted this client and is heard."""
        return self._desk.welcome is not None

    def wait_connected(self, timeout: float) -> bool:
        """Wait until the router has greeted this client."""
        with self._room:
            return self._room.wait_for(lambda: self._desk.welcome is not None, timeout)

    def close(self, timeout: float = CLOSE_S) -> None:
        """Wait until the router has taken what was sent, say goodbye and end the thread.

        What was taken goes on in the system. Raises Unavailable when commands
        were not taken within `timeout` seconds: those may be lost.
        """
        with self._room:
            self._room.wait_for(lambda: self._closing or not self._desk.unanswered, timeout)
            left = 0 if self._closing else self._desk.unanswered
        self._end()
        if left:
            raise Unavailable(
                f"{left} commands were not taken by the router.", fix="Is the system up? Send them again."
            )

    def _end(self) -> None:
        with self._desk.lock:
            if self._closing:
                return
            self._closing = True
        self._closed.set()
        self.apps.close()
        self._asleep = False  # from here on nobody else writes to the pipe
        os.write(self._wake_write, b"\0")
        self._unpark.set()
        self._thread.join(timeout=2 * sockets.LINGER_MS / 1000)
        if not self._thread.is_alive():
            os.close(self._wake_read)
            os.close(self._wake_write)

    def _build(
        self, cmd: str, data: Any, job_id: str | None, from_: str, to: str | Sequence[str], options: dict[str, Any]
    ) -> command.Command:
        packed = codec.pack(data)
        if len(packed) > self._limits.depth:
            codec.check_packed(packed, self._limits.data_bytes, self._limits.depth)
        return command.build(from_, to, cmd, packed, os.urandom(16).hex() if job_id is None else job_id, options)

    def _put(self, handles: Sequence[Handle], items: Sequence[m.Item | None], notify: bool) -> None:
        def put() -> None:
            for handle, item in zip(handles, items, strict=True):
                self._desk.put(handle, item, notify, self.patient)

        self._admit(put)

    def _admit(self, put: Callable[[], None]) -> None:
        """Lay something on the desk once there is room. Raises Unavailable."""
        desk = self._desk
        while True:
            with self._room:
                if self._closing:
                    raise Unavailable("this client is closed.")
                if not self.patient and desk.welcome is None:
                    raise Unavailable("the router is away.", fix="Send the same again in a moment.")
                if not desk.full:
                    put()
                    break
            self._make_room()
        self._wake()

    def _make_room(self) -> None:
        """Wait until the window is not full: serve the connection, or let who serves it go on."""
        self._drive(lambda: not self._desk.full, float("inf"))
        with self._room:
            self._room.wait_for(lambda: not self._desk.full or self._closing, SYNC_S)

    # --- serving the connection -------------------------------------------
    #
    # Whoever holds `_driver` serves the socket. Mostly that is the client's own
    # thread; a thread that waits for a result takes over, which saves two
    # switches of threads in each call, and the client's thread then only looks
    # in every `PARKED_S` until nobody drove for `SYNC_S`.

    def _wake(self) -> None:
        if self._asleep and not self._closing:
            self._asleep = False
            with contextlib.suppress(BlockingIOError):
                os.write(self._wake_write, b"\0")

    def _serve(self) -> None:
        while not self._closing:
            if time.monotonic() - self._drove_at < SYNC_S:
                self._unpark.wait(PARKED_S)
                self._unpark.clear()
                if self._driver.acquire(blocking=False):
                    try:
                        self._pass(0.0)
                    finally:
                        self._driver.release()
            else:
                with self._driver:
                    self._pass(LONGEST_PASS_S)
        with self._driver:
            sockets.send(self._front, wire.encode(m.Bye(self._desk.session, "closed")))
            self._front.close()
            self._context.term()

    def _drive(self, condition: Callable[[], bool], until: float) -> None:
        """Serve the connection in the calling thread until `condition` holds; give up if another does."""
        self._drove_at = time.monotonic()
        if not self._driver.acquire(blocking=False):
            self._wake()
            if not self._driver.acquire(timeout=PARKED_S):
                return
        try:
            while not condition() and not self._closing and self._drove_at < until:
                self._pass(min(until - self._drove_at, LONGEST_PASS_S))
                self._drove_at = time.monotonic()
        finally:
            self._driver.release()
            if self._desk.pressing or self._closing:
                self._unpark.set()

    def _pass(self, most_s: float) -> None:
        """Send what is due, wait up to `most_s` for something to come, and take it."""
        desk = self._desk
        now = time.monotonic()
        with desk.lock:
            silent = desk.silent(now)
            if silent:
                desk.rebuilt()
            outgoing = desk.outgoing(now)
            wait_s = min(desk.wake_in_s(now), most_s)
            self._asleep = wait_s > 0
        if silent:
            self._poller.unregister(self._front)
            self._front.close(linger=0)
            self._front = self._connect()
        for message in outgoing:
            sockets.send(self._front, wire.encode(message))
        ready = dict(self._poller.poll(int(wait_s * 1000 + 0.999)))
        self._asleep = False
        if self._wake_read in ready:
            os.read(self._wake_read, 4096)
        if self._front in ready:
            self._read(self._front)

    def _connect(self) -> sockets.Socket:
        front = sockets.connect(self._context, zmq.DEALER, self.config.bus_endpoint)
        self._poller.register(front, zmq.POLLIN)
        return front

    def _read(self, front: sockets.Socket) -> None:
        now = time.monotonic()
        calls: list[tuple[Handle, Callable[[Handle], None]]] = []
        frames = sockets.drain(front)
        with self._room:
            for parts in frames:
                # A frame that is no message tells nothing: what it answered will be asked again.
                with contextlib.suppress(ProtocolError):
                    calls += self._desk.receive(wire.decode_at_peer(parts[-1]), now)
            if not self._desk.full:
                self._room.notify_all()
        for handle, call in calls:
            call(handle)


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
