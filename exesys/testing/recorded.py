"""What stands in for the bus when a function runs alone: it checks as the client does, records, and answers.

What a function submits is not run. `answers` says what comes back, `apps` who the
application servers are; a function that asks for more is told what its test lacks.
"""

from __future__ import annotations

import uuid as uuid_module
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from exesys import codec, command, runner
from exesys.config import Limits
from exesys.context import Submitter
from exesys.errors import AppError, ExesysError, JobError, NotFound, Unavailable, UnknownApp, UnknownMethod, nearest
from exesys.states import State


class Submitted(NamedTuple):
    """A command that a function sent by `ctx.submit`. `options` are those it gave, `job_id` among them if it did."""

    cmd: str
    data: Any
    options: dict[str, Any]


class Started(NamedTuple):
    """A runner that a function started: its name is `type:uuid`; `grace_s` is None for the usual one."""

    name: str
    target: str
    data: Any
    grace_s: float | None


class Answered:
    """What `ctx.submit` returns: like a `Handle`, of a job that has ended already."""

    def __init__(self, built: command.Command, value: Any, error: ExesysError | None) -> None:
        self.job_id = built.job_id
        self.from_ = built.from_
        self.to = built.to
        self.cmd = built.cmd
        self._value = value
        self._error = error

    @property
    def state(self) -> State:
        return State.data_available if self._error is None else State.error

    def done(self) -> bool:
        return True

    def accepted(self, timeout: float | None = None) -> State:
        return State.start

    def wait(self, timeout: float | None = None) -> bool:
        return True

    def exception(self) -> ExesysError | None:
        return self._error

    def result(self, timeout: float | None = None) -> Any:
        """Return the answer. Raises JobError when that is to fail, Unavailable when the test has none."""
        if self._error is not None:
            raise self._error
        return self._value

    def cancel(self) -> bool:
        return False


class Recorder(Submitter):
    """The client of the bus that a context gets."""

    def __init__(self, limits: Limits, answers: Mapping[str, Any], apps: Mapping[str, Any]) -> None:
        """`answers`: by cmd a value, an exception to fail with, or a function of the data; `apps`: objects by name."""
        self.submitted: list[Submitted] = []
        self.started: list[Started] = []
        self.stopped: list[str] = []
        self._limits = limits
        self._answers = answers
        self._apps = apps

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
    ) -> Answered:
        """Check a command as `exesys.Client.submit` does, and note it. Raises BadCommand or TooLarge."""
        packed = self._checked(data)
        built = command.build(from_, to, cmd, packed, str(uuid_module.uuid4()) if job_id is None else job_id, options)
        given: dict[str, Any] = {"job_id": job_id, "from_": from_, "to": to, "standby": standby}
        usual: dict[str, Any] = {"job_id": None, "from_": command.DEFAULT_FROM, "to": command.END, "standby": False}
        named = {name: value for name, value in given.items() if value != usual[name]}
        self.submitted.append(Submitted(cmd, codec.unpack(packed), {**named, **built.options}))
        return Answered(built, *self._answer(cmd, codec.unpack(packed)))

    def _answer(self, cmd: str, data: Any) -> tuple[Any, ExesysError | None]:
        if cmd not in self._answers:
            return None, Unavailable(f"nobody runs `{cmd}` here.", fix=f"Give answers={{{cmd!r}: …}}.")
        answer = self._answers[cmd]
        try:
            value = answer(data) if callable(answer) else answer
        except Exception as error:  # noqa: BLE001  # what it raises is how the job fails
            value = error
        if isinstance(value, Exception):
            return None, JobError(type(value).__name__, str(value), 1)
        return codec.unpack(codec.pack(value)), None

    def start_runner(
        self, target: str, data: Any = None, *, type: str | None, uuid: str | None, grace_s: float | None, job: str
    ) -> str:
        """Check a runner as `exesys.Client.start_runner` does, and note it."""
        command.check_name(target, "target")
        name = runner.check_name(
            runner.default_type(target) if type is None else type, str(uuid_module.uuid4()) if uuid is None else uuid
        )
        runner.check_options(-1 if grace_s is None else grace_s)
        self.started.append(Started(str(name), target, codec.unpack(self._checked(data)), grace_s))
        return str(name)

    def stop_runner(self, type: str, uuid: str | None = None) -> int:
        """Note a stop; it is news for those that were started here. Raises NotFound when there are none."""
        wanted = runner.written(type, uuid)
        known = [each.name for each in self.started if wanted in (each.name, each.name.partition(":")[0])]
        if not known:
            raise NotFound(f"there is no runner {wanted}.", fix="Only those are here that this function started.")
        fresh = [name for name in known if name not in self.stopped]
        self.stopped += fresh
        return len(fresh)

    def app(self, name: str, timeout_s: float | None = None, wait: bool = True) -> Any:
        """Return what stands for an application server. Raises UnknownApp."""
        if name not in self._apps:
            close = nearest(name, list(self._apps))
            fix = f"Did you mean `{close}`?" if close else f"Give apps={{{name!r}: …}}."
            raise UnknownApp(f"there is no application server `{name}` here.", field="name", fix=fix)
        return _App(name, self._apps[name])

    def close(self) -> None:
        """There is nothing to close."""

    def _checked(self, data: Any) -> bytes:
        packed = codec.pack(data)
        codec.check_packed(packed, self._limits.data_bytes, self._limits.depth)
        return packed


class _App:
    """Calls an object as if it were an application server: arguments and values travel as data."""

    def __init__(self, name: str, target: Any) -> None:
        self._name = name
        self._target = target

    def __getattr__(self, method: str) -> Callable[..., Any]:
        target = None if method.startswith("_") else getattr(self._target, method, None)
        if not callable(target):
            raise UnknownMethod(f"{self._name} has no method `{method}`.", field="method")

        def call(*args: Any, **named: Any) -> Any:
            positional, keywords = codec.unpack(codec.pack([args, named]))
            try:
                value = target(*positional, **keywords)
            except Exception as error:
                raise AppError(type(error).__name__, str(error), where=f"{self._name}.{method}") from error
            return codec.unpack(codec.pack(value))

        return call
