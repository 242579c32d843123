"""Functions: finds them in the user's modules, calls them, tells how they failed.

Every public function defined in a file of the module directories is a
command; where a file has `__all__`, that list is what is public. Nothing else
can be called. A function takes the data, or the data and `ctx`, or nothing.

Modules are imported under their plain names, so that those beside each other
share one module object; only where the standard library or a package has the
name already, the file becomes `exesys_modules.<name>`. A module that fails is
reported in the catalogue and stops nothing.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FunctionType, MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, overload

from exesys import codec
from exesys.catalogue import Catalogue, FunctionInfo
from exesys.command import check_name, check_options
from exesys.errors import BadCommand

if TYPE_CHECKING:
    import asyncio

EOJ = "EOJ"
MAX_TEXT_BYTES = 8 << 10
_MARK = "__exesys_options__"
_BESIDE = "exesys_modules."  # before the names of modules whose own are taken
_AWAITABLE = "__exesys_awaitable__"  # on what runs a coroutine to its end: what makes the coroutine
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)

Function = TypeVar("Function", bound=Callable[..., Any])
MakeContext = Callable[[], Any]
Run = Callable[[Any, MakeContext], Any]
OnStop = Callable[[Callable[[], None]], None]


# --- the decorator --------------------------------------------------------


@overload
def function(target: Function, /) -> Function: ...
@overload
def function(
    *,
    queue: str | None = None,
    priority: int | None = None,
    timeout_s: float | None = None,
    retries: int | None = None,
    backoff_s: float | None = None,
    key_limit: int | None = None,
    result_ttl_s: float | None = None,
    notify: str | None = None,
    name: str | None = None,
) -> Callable[[Function], Function]: ...
def function(target: Any = None, /, *, name: str | None = None, **given: Any) -> Any:
    """Give a function options of its own; a command's own options come before them.

    It changes nothing in the function, and none needs it to be a command.

    queue: the queue its jobs wait in. priority: 0 (lowest) to 9. timeout_s:
    seconds one attempt may take. retries: how often to try again, at first
    after backoff_s seconds. key_limit: how many of one key run at once.
    result_ttl_s: seconds its result is kept. notify: the URL that is told of
    the end. name: the name of the command, when it is not the function's.

    Raises BadCommand for an option out of its range, TypeError for what is no
    function.
    """
    for key in given.keys() & {"at", "delay_s", "key"}:
        raise BadCommand(f"`{key}` is an option of a command, not of a function.", field=key, fix="Send it instead.")
    options = check_options({key: value for key, value in given.items() if value is not None})
    if name is not None:
        if check_name(name, "name").startswith("_") or "." in name:
            fix = "A command's name has no dot and no underscore at its beginning."
            raise BadCommand(f"`name` is {name!r}.", field="name", fix=fix)
        options["name"] = name

    def mark(marked: Any) -> Any:
        if not isinstance(marked, FunctionType):
            raise TypeError(f"@exesys.function stands before a function, not before {_a(marked)}.")
        setattr(marked, _MARK, options)
        return marked

    return mark if target is None else mark(target)


def name_of(target: Any) -> str:
    """Return the name by which a function of a module is called. Text is one. Raises BadCommand for other things."""
    if isinstance(target, str):
        return target
    if not isinstance(target, FunctionType):
        fix = "Give a function of modules/, or its name."
        raise BadCommand(f"{_a(target)} cannot be called here.", field="target", fix=fix)
    if target.__module__ == "__main__":
        fix = "Put it into a file of modules/, and import it from there."
        text = f"the function {target.__name__} stands in the program itself, which no worker has."
        raise BadCommand(text, field="target", fix=fix)
    return f"{target.__module__.removeprefix(_BESIDE)}.{bare_name(target)}"


def bare_name(target: Any) -> str:
    """Return the name of the command that a function is, without its module; of another thing, that of its type."""
    if not isinstance(target, FunctionType):
        return type(target).__name__
    name: str = getattr(target, _MARK, {}).get("name", target.__name__)
    return name


# --- the library ----------------------------------------------------------


def _nothing(module: str) -> None:
    """Stand in for `on_import`."""


class Library:
    """The functions of the module directories, loaded into this process."""

    def __init__(self, catalogue: Catalogue, runs: Mapping[str, Run]) -> None:
        """`runs` says by qualified name how to run each function of the catalogue."""
        self.catalogue = catalogue
        self._runs = {name: runs[info.qualified] for name, info in catalogue.names.items()}

    @classmethod
    def load(
        cls,
        dirs: Sequence[Path],
        skip: Mapping[str, str] = MappingProxyType({}),
        on_import: Callable[[str], None] = _nothing,
        only: str | None = None,
    ) -> Library:
        """Import every module in `dirs`, or `only` the one named, and list its functions.

        `skip` names modules not to import, with the reason to report;
        `on_import` is told each module's name before its import, so that a
        parent knows which one ended or held up this process.
        """
        loader = _Loader(skip, on_import, only)
        for directory in dirs:
            loader.load_directory(directory.absolute())
        return cls(Catalogue(loader.functions, loader.broken), loader.runs)

    @classmethod
    def of(cls, targets: Mapping[str, Callable[..., Any]]) -> Library:
        """Offer functions that are at hand, each under a name. Raises BadCommand for one that cannot be a command."""
        functions: dict[str, FunctionInfo] = {}
        runs: dict[str, Run] = {}
        for name, target in targets.items():
            try:
                run, signature = _how_to_run(target)
            except _Withheld as reason:
                raise BadCommand(f"{name} cannot be called as a command.", field="cmd", fix=str(reason)) from None
            options = {key: value for key, value in getattr(target, _MARK, {}).items() if key != "name"}
            module = target.__module__.removeprefix(_BESIDE).replace(".", "_")
            info = FunctionInfo(check_name(name, "cmd"), module, "", signature, options, "")
            functions[info.qualified] = info
            runs[info.qualified] = run
        return cls(Catalogue(functions, {}), runs)

    def call(self, cmd: str, data: Any, make_context: MakeContext) -> bytes:
        """Run a function and return its packed result, `{"EOJ": value}`.

        `make_context` is called only for a function that takes `ctx`. Raises
        UnknownFunction, TypeError when the value cannot be sent, and whatever
        the function raises.
        """
        run = self._runs.get(cmd)
        if run is None:
            run = self._runs[self.catalogue.resolve(cmd).qualified]
        value = run(data, make_context)
        if not (isinstance(value, dict) and len(value) == 1 and EOJ in value):
            value = {EOJ: value}
        try:
            return codec.pack(value)
        except BadCommand as error:
            name = self.catalogue.resolve(cmd).qualified
            raise TypeError(f"what {name} returned cannot be sent: {error.__cause__}. {error.fix}") from None

    def live(
        self, cmd: str, data: Any, make_context: MakeContext, on_stop: Callable[[Callable[[], None]], None]
    ) -> None:
        """Run a function as a runner, until it returns. Raises UnknownFunction, and whatever it raises.

        `on_stop` takes what is to be called, in any thread, when the runner is
        told to stop: a coroutine is cancelled then. A plain function looks at
        its context.
        """
        run = self._runs[self.catalogue.resolve(cmd).qualified]
        awaitable = getattr(run, _AWAITABLE, None)
        if awaitable is None:
            run(data, make_context)
            return
        import asyncio

        async def main() -> None:
            task, loop = asyncio.current_task(), asyncio.get_running_loop()
            assert task is not None
            on_stop(lambda: _cancel(loop, task))
            value = awaitable(data, make_context)
            if inspect.iscoroutine(value):
                await value

        asyncio.run(main())


def _cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[None]) -> None:
    """Cancel a task from another thread, if its loop still runs."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(task.cancel)


class _Withheld(Exception):
    """Why a function is not offered."""


class _Loader:
    """Imports modules and collects what `Library.load` returns."""

    def __init__(self, skip: Mapping[str, str], on_import: Callable[[str], None], only: str | None) -> None:
        self.functions: dict[str, FunctionInfo] = {}
        self.runs: dict[str, Run] = {}
        self.broken: dict[str, str] = {}
        self._skip = skip
        self._on_import = on_import
        self._only = only
        self._files: dict[str, Path] = {}  # by module

    def load_directory(self, directory: Path) -> None:
        try:
            files = sorted(path for path in directory.iterdir() if path.match("[!._]*.py") and not path.is_dir())
        except OSError as error:
            fix = "Create it or correct [functions] path."
            self._report(str(directory), f"The directory of modules cannot be read: {error.strerror}. {fix}")
            return
        if str(directory) not in sys.path:
            sys.path.append(str(directory))
        importlib.invalidate_caches()
        for path in files:
            if self._only in (None, path.stem):
                self._load_file(path)

    def _load_file(self, path: Path) -> None:
        name = path.stem
        first = self._files.setdefault(name, path)
        if first != path:
            self._report(str(path), f"The module `{name}` is already loaded from {first}. Rename one of the files.")
        elif not (name.isidentifier() and name.isascii()):
            self._report(str(path), f"The file's name {name!r} is no name for a module. Use letters, digits and _.")
        elif name in self._skip:
            self._report(name, self._skip[name])
        else:
            self._on_import(name)
            try:
                self._offer(name, path, import_file(name, path))
            except KeyboardInterrupt:
                raise
            except BaseException as error:  # noqa: BLE001  # a module may raise anything, SystemExit too
                self._report(name, describe_failure(error)[2])

    def _report(self, key: str, text: str) -> None:
        self.broken[_sendable(key)] = _sendable(text)

    def _offer(self, module_name: str, path: Path, module: ModuleType) -> None:
        """List the module's functions, all of them or, when this raises, none."""
        offered: dict[str, tuple[FunctionInfo, Any, Run]] = {}
        for attribute, target in _public(module):
            options = dict(getattr(target, _MARK, {}))
            name = options.pop("name", attribute)
            qualified = f"{module_name}.{name}"
            try:
                if attribute.startswith("_"):
                    raise _Withheld("It is private: no name that begins with _ can be called.")
                if qualified in offered and offered[qualified][1] is not target:
                    del offered[qualified]
                    raise _Withheld(f"Two functions of the module are named {name!r}.")
                if qualified not in self.broken:
                    run, signature = _how_to_run(target)
                    check_name(qualified, "name")
                    doc = " ".join((inspect.getdoc(target) or "").partition("\n\n")[0].split())
                    where = _sendable(str(path))
                    info = FunctionInfo(name, module_name, _sendable(doc), _sendable(signature), options, where)
                    offered[qualified] = (info, target, run)
            except (_Withheld, BadCommand) as reason:
                self._report(qualified, str(reason))
        for qualified, (info, _, run) in offered.items():
            self.functions[qualified] = info
            self.runs[qualified] = run


# --- modules --------------------------------------------------------------


def import_file(name: str, path: Path) -> ModuleType:
    """Import a file under its plain name, or beside what has the name already.

    What Python compiles of it is not kept: of a file that is saved twice in a second it would know only the first.
    """
    kept, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        return _imported(name, path)
    finally:
        sys.dont_write_bytecode = kept


def _imported(name: str, path: Path) -> ModuleType:
    if _finds(name, path):
        return importlib.import_module(name)
    full_name = f"{_BESIDE}{name}"
    spec = importlib.util.spec_from_file_location(full_name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"Python has no loader for {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[full_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[full_name]
        raise
    return module


def _finds(name: str, path: Path) -> bool:
    """Tell whether `import name` would give this file."""
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module without a spec, such as __main__
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == path.resolve()


def _public(module: ModuleType) -> Iterator[tuple[str, Any]]:
    """Give what may be commands, with their names in the module."""
    listed = getattr(module, "__all__", None)
    if listed is not None:
        for name in listed:
            value = getattr(module, name)
            if callable(value) and not inspect.isclass(value):
                yield name, value
        return
    for name, value in list(vars(module).items()):
        own = isinstance(value, FunctionType) and value.__module__ == module.__name__
        if own and (not name.startswith("_") or hasattr(value, _MARK)):
            yield name, value


def _how_to_run(target: Any) -> tuple[Run, str]:
    """Return how to call a function with data and context, and its signature as text.

    Raises _Withheld when that is not possible.
    """
    if not isinstance(target, FunctionType):
        raise _Withheld(f"It is {_a(target)}, no plain function. Write a `def` that calls it.")
    if inspect.isgeneratorfunction(target) or inspect.isasyncgenfunction(target):
        raise _Withheld("It is a generator. Return a list instead of yielding.")
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError) as error:
        raise _Withheld(f"Its signature cannot be read: {error}.") from error
    run = _by_signature(target, signature)
    # Unwrapped: a decorator may have made a plain function of a coroutine function.
    if inspect.iscoroutinefunction(inspect.unwrap(target)):
        run = _awaited(run)
    return run, text_of(signature)


class _Annotation(str):
    """An annotation kept as text, shown without quotes."""

    __slots__ = ()
    __repr__ = str.__str__


def text_of(signature: inspect.Signature) -> str:
    """Write a signature as its author did."""

    def readable(annotation: Any) -> Any:
        return _Annotation(annotation) if isinstance(annotation, str) else annotation

    parameters = [
        parameter.replace(annotation=readable(parameter.annotation)) for parameter in signature.parameters.values()
    ]
    return str(signature.replace(parameters=parameters, return_annotation=readable(signature.return_annotation)))


def _by_signature(target: Callable[..., Any], signature: inspect.Signature) -> Run:
    """Choose the one way to call the function that its parameters allow."""
    kinds = signature.parameters.values()
    positional = [parameter.name for parameter in kinds if parameter.kind in _POSITIONAL]
    takes_data = positional or any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in kinds)
    if positional[:1] == ["ctx"]:
        raise _Withheld("Its first parameter is named `ctx`, but the first is the data. Write (data, ctx).")
    try:
        if positional[1:2] == ["ctx"]:
            signature.bind(None, None)
            return lambda data, make_context: target(data, make_context())
        if takes_data and "ctx" in signature.parameters:
            signature.bind(None, ctx=None)
            return lambda data, make_context: target(data, ctx=make_context())
        if takes_data:
            signature.bind(None)
            return lambda data, make_context: target(data)
        signature.bind()
        return lambda data, make_context: target()
    except TypeError as error:
        raise _Withheld(f"It cannot be called with (data, ctx), (data) or (): {error}.") from error


def _awaited(run: Run) -> Run:
    import asyncio  # costs 50 ms, and most modules have no coroutines

    def run_to_end(data: Any, make_context: MakeContext) -> Any:
        value = run(data, make_context)
        return asyncio.run(value) if inspect.iscoroutine(value) else value

    setattr(run_to_end, _AWAITABLE, run)
    return run_to_end


# --- failures -------------------------------------------------------------


_STDLIB = os.path.dirname(os.__file__)
_MACHINERY = (
    os.path.dirname(__file__) + os.sep,
    os.path.join(_STDLIB, "asyncio") + os.sep,
    os.path.join(_STDLIB, "importlib") + os.sep,
    "<frozen importlib",
)


class Terminated(SystemExit):
    """TERM came: the clean-up of the user's code runs, then the process ends."""


def describe_failure(error: BaseException) -> tuple[str, str, str]:
    """Return an exception's type, message and traceback, each as text that can be sent.

    The traceback begins at the user's code. Each text has at most
    MAX_TEXT_BYTES; a longer one has its middle cut out. Raises Terminated
    alone: the user's code may be called for the texts.
    """
    kind = type(error).__name__
    try:
        message = "".join([str(error), ""])  # what is no plain str becomes one
    except Terminated:
        raise
    except BaseException:  # noqa: BLE001  # the user's __str__ may raise anything, SystemExit too
        message = f"({kind} raised an error when it was asked for its text)"
    try:
        described = traceback.TracebackException.from_exception(error)
        _trim(described)
        text = "".join(described.format())
    except Terminated:
        raise
    except BaseException:  # noqa: BLE001  # so may what the exception holds
        text = f"{kind}: {message}\n"
    return _sendable(kind), _sendable(message), _sendable(text)


def _trim(described: traceback.TracebackException | None) -> None:
    """Drop the frames above the user's code, here and in what led to this exception."""
    while described is not None:
        stack = described.stack
        del stack[: next((number for number, frame in enumerate(stack) if frame.filename == __file__), 0)]
        while stack and stack[0].filename.startswith(_MACHINERY):
            stack.pop(0)
        described = described.__cause__ or described.__context__


def _sendable(text: str) -> str:
    """Make text fit for UTF-8 and at most MAX_TEXT_BYTES long."""
    packed = text.encode(errors="backslashreplace")
    if len(packed) > MAX_TEXT_BYTES:
        gap = "\n… cut here …\n".encode()
        head = MAX_TEXT_BYTES // 4
        packed = packed[:head] + gap + packed[head + len(gap) - MAX_TEXT_BYTES :]
    return packed.decode(errors="ignore")


def _a(value: Any) -> str:
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
