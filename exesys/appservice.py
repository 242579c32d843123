"""What an application server runs: a class of the user's, made, started, called and stopped. No bus here.

The class stands in a file of the module directories. Its public methods are
what can be called; `start` and `stop` are called at the beginning and at the
end, and by nobody else.
"""

from __future__ import annotations

import inspect
import logging
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple

from exesys import codec
from exesys.appconfig import AppServer
from exesys.config import Limits
from exesys.errors import AppError, BadArguments, BadCommand, ConfigError, ExesysError, TooLarge, UnknownMethod, nearest
from exesys.functions import describe_failure, import_file, text_of

log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from pymongo.database import Database
    from redis import Redis

    from exesys.context import Resources

HOOKS = ("start", "stop")
SHOWN_CHARS = 1000
FAILED = AppError.code
UNTOLD = "its error cannot be told: asking for it raised another."


class AppContext:
    """What the constructor gets as `ctx`: databases, a log and the bus, but no job."""

    def __init__(self, resources: Resources, log: logging.Logger) -> None:
        self._resources = resources
        self.log = log

    @property
    def redis(self) -> Redis:
        """The data database, a `redis.Redis`; it answers with bytes."""
        return self._resources.redis

    @property
    def mongo(self) -> Database[dict[str, Any]]:
        """The data database, a `pymongo` one. Raises NoMongo when there is none."""
        return self._resources.mongo

    def submit(self, cmd: str, data: Any = None, **options: Any) -> Any:
        """Send a command, as `exesys.Client.submit` does; return its handle."""
        return self._resources.client.submit(cmd, data, **options)

    def app(self, name: str, timeout_s: float | None = None, wait: bool = True) -> Any:
        """Return an application server, as `exesys.Client.app` does."""
        return self._resources.client.app(name, timeout_s, wait)


class Method(NamedTuple):
    """One method that can be called."""

    call: Callable[..., Any]
    signature: inspect.Signature
    shown: str  # the signature, as its author wrote it
    doc: str


class Service:
    """One instance of the class. Its methods may be called from several threads, if it is given several."""

    def __init__(self, server: AppServer, limits: Limits, dirs: Sequence[Path]) -> None:
        self.server = server
        self.methods: Mapping[str, Method] = {}
        self._limits = limits
        self._dirs = [directory.absolute() for directory in dirs]
        self._instance: Any = None

    def start(self, make_context: Callable[[], AppContext]) -> None:
        """Import the class, make its instance, and call `start`. Raises ConfigError, and whatever the class does."""
        kind = self._load()
        takes_context = "ctx" in inspect.signature(kind).parameters
        self._instance = kind(ctx=make_context()) if takes_context else kind()
        self._hook("start")
        self.methods = {name: _method(getattr(self._instance, name)) for name in self._public(kind)}

    def stop(self) -> None:
        """Call `stop`. Raises whatever it does."""
        self._hook("stop")

    def describe(self) -> list[dict[str, str]]:
        """Return name, signature and first paragraph of each method."""
        return [
            {"name": name, "signature": method.shown, "doc": _shown(method.doc)}
            for name, method in sorted(self.methods.items())
        ]

    def call(self, name: str, packed: bytes) -> tuple[bool, bytes]:
        """Call a method with packed arguments. Returns whether it went well, and the packed value or error."""
        try:
            return self._call(name, packed)
        except BaseException:  # noqa: BLE001  # whatever the user's code does, its caller has an answer
            return False, _failed(BaseException.__name__, UNTOLD, "")

    def _call(self, name: str, packed: bytes) -> tuple[bool, bytes]:
        try:
            method = self._method(name)
            args, kwargs = self._arguments(packed)
        except ExesysError as error:
            return False, refusal(error)
        try:
            value = method.call(*args, **kwargs)
            if inspect.iscoroutine(value):
                value = _run(value)
        except BaseException as error:  # noqa: BLE001  # whatever a method raises is told to its caller
            wrong = self._wrong_arguments(name, method, args, kwargs) if isinstance(error, TypeError) else None
            if wrong is not None:
                return False, refusal(wrong)
            log.warning("%s.%s raised:\n%s", self.server.name, name, describe_failure(error)[2].rstrip())
            return False, failure(error)
        try:
            return True, self._packed(name, value)
        except TooLarge as error:
            return False, refusal(error)
        except BaseException as error:  # noqa: BLE001  # the value's own code may be called, and raise anything
            return False, failure(error)

    # --- the class ----------------------------------------------------------

    def _load(self) -> type[Any]:
        module_name, _, class_name = self.server.class_.partition(":")
        where = f"[appserver:{self.server.name}] class is {self.server.class_!r}"
        listed = ":".join(map(str, self._dirs))
        path = next((each for directory in self._dirs if (each := directory / f"{module_name}.py").is_file()), None)
        if path is None:
            raise ConfigError(f"{where}: there is no file {module_name}.py in {listed}.", field="class")
        for directory in self._dirs:
            if str(directory) not in sys.path:
                sys.path.append(str(directory))
        module = import_file(module_name, path)
        kind = getattr(module, class_name, None)
        if not inspect.isclass(kind) or kind.__module__ != module.__name__:
            own = [
                name
                for name, value in vars(module).items()
                if inspect.isclass(value) and value.__module__ == module.__name__ and not name.startswith("_")
            ]
            fix = f"Its classes are: {', '.join(own)}." if own else "It defines no public class."
            raise ConfigError(f"{where}: {path} defines no class {class_name}.", field="class", fix=fix)
        return kind

    def _public(self, kind: type[Any]) -> list[str]:
        """Name the methods that callers may call: public ones, defined in the module directories."""
        found: dict[str, Any] = {}
        for base in reversed(kind.__mro__):
            file = getattr(sys.modules.get(base.__module__), "__file__", None)
            if file and Path(file).resolve().parent in [directory.resolve() for directory in self._dirs]:
                found.update(vars(base))
        return [
            name
            for name, value in found.items()
            if not name.startswith("_")
            and name not in HOOKS
            and isinstance(value, (FunctionType, staticmethod, classmethod))
            and callable(getattr(self._instance, name))
        ]

    def _hook(self, name: str) -> None:
        hook = getattr(self._instance, name, None)
        value = hook() if callable(hook) else None
        if inspect.iscoroutine(value):
            _run(value)

    # --- a call -------------------------------------------------------------

    def _method(self, name: str) -> Method:
        method = self.methods.get(name)
        if method is not None:
            return method
        known = sorted(self.methods)
        if name in HOOKS:
            why = f"{self.server.name}.{name} is called by the server itself alone."
        elif name.startswith("_"):
            why = f"{self.server.name}.{name:.80} is private: no name that begins with _ can be called."
        else:
            why = f"the application server {self.server.name} has no method {name[:80]!r}."
        close = nearest(name[:80], known)
        fix = f"Did you mean `{close}`?" if close else f"It has: {', '.join(known) or 'none'}."
        raise UnknownMethod(why, field="method", fix=fix)

    def _arguments(self, packed: bytes) -> tuple[list[Any], dict[Any, Any]]:
        if len(packed) > self._limits.depth:  # shorter ones are neither too large nor too deep
            codec.check_packed(packed, self._limits.data_bytes, self._limits.depth)
        match codec.unpack(packed):
            case [list() as args, dict() as kwargs]:
                return args, kwargs
        raise BadArguments("the arguments are not [positional ones, named ones].", field="args")

    def _wrong_arguments(
        self, name: str, method: Method, args: list[Any], kwargs: dict[Any, Any]
    ) -> BadArguments | None:
        """Return what is wrong with arguments that the signature does not take; None when it does."""
        try:
            method.signature.bind(*args, **kwargs)
        except TypeError as error:
            text = f"{self.server.name}.{name} does not take these arguments: {error}."
            return BadArguments(text, field="args", fix=f"It is {name}{method.shown}.")
        return None

    def _packed(self, name: str, value: Any) -> bytes:
        where = f"{self.server.name}.{name}"
        try:
            packed = codec.pack(value)
        except ExesysError as error:
            raise TypeError(f"what {where} returned cannot be sent: {error.__cause__}. {error.fix}") from None
        most = self._limits.data_bytes
        if len(packed) > most:
            raise TooLarge(
                f"what {where} returned has {len(packed):,} bytes; at most {most:,} are allowed.",
                fix="Return less, or store it elsewhere and return a reference; see [limits] data_bytes.",
            )
        if len(packed) > self._limits.depth:  # a shorter one is not too deep
            try:
                codec.check_packed(packed, most, self._limits.depth)
            except BadCommand as error:
                raise TypeError(f"what {where} returned cannot be sent: {error.message} {error.fix}") from None
        return packed


def refusal(error: ExesysError) -> bytes:
    """Pack why a call was not run, or its value not sent."""
    return codec.pack({**error.problem._asdict(), "type": "", "traceback": ""})


def failure(error: BaseException) -> bytes:
    """Pack what a method raised."""
    return _failed(*describe_failure(error))


def _failed(kind: str, text: str, traceback: str) -> bytes:
    told = {"code": FAILED, "message": text, "field": "", "fix": "", "type": kind, "traceback": traceback}
    return codec.pack(told)


def _method(bound: Callable[..., Any]) -> Method:
    doc = " ".join((inspect.getdoc(bound) or "").partition("\n\n")[0].split())
    signature = inspect.signature(bound)
    try:
        shown = _shown(text_of(signature))
    except BaseException:  # noqa: BLE001  # a default value's __repr__ may raise anything
        shown = "(…)"
    return Method(bound, signature, shown, doc)


def _shown(text: str) -> str:
    """Make text fit to be sent: a default value may be shown in any length, and in letters that are none."""
    return text[:SHOWN_CHARS].encode(errors="backslashreplace").decode()


def _run(coroutine: Any) -> Any:
    import asyncio  # costs 50 ms, and most classes have no coroutines

    return asyncio.run(coroutine)
