"""What can be called: the functions the workers have, and what failed to load.

Pure. A worker builds a catalogue when it loads its modules and announces it;
the router merges those of all workers, and asks it once for each command.

What is broken stands under a key that says what it is: a module's name, a
function as `module.function`, or a path with a `/` for a file or directory.
Its text is a traceback or a sentence, the reason in the last line.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from exesys.command import check_name, check_options
from exesys.errors import BadCommand, ProtocolError, UnknownFunction, nearest

# The options of a command that a function can have defaults for.
OPTIONS = frozenset({"queue", "priority", "timeout_s", "retries", "backoff_s", "key_limit", "result_ttl_s", "notify"})
_SHOWN_CHARS = 200
_SHOWN_BROKEN = 5
SEE = "GET /functions shows what there is."


@dataclass(frozen=True)
class FunctionInfo:
    """One function that can be called.

    `doc` is the first paragraph of its docstring, `signature` its parameters
    as text, `options` the defaults for its commands, `file` where it stands.
    """

    name: str
    module: str
    doc: str
    signature: str
    options: Mapping[str, Any]
    file: str

    @property
    def qualified(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True)
class Catalogue:
    """Functions by qualified name, and what is broken, with its text.

    `names` holds every name that can be called, bare or qualified, so that
    `resolve` is one look-up: it runs once for each command.
    """

    functions: Mapping[str, FunctionInfo]
    broken: Mapping[str, str]
    names: Mapping[str, FunctionInfo] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        bare = {name: infos[0] for name, infos in self._by_name().items() if len(infos) == 1}
        object.__setattr__(self, "names", {**bare, **self.functions})

    def resolve(self, cmd: str, suggest: bool = True) -> FunctionInfo:
        """Return the function a command names. Raises UnknownFunction.

        To find the nearest name takes a thousand times as long as the
        look-up; who is asked by strangers may do without (`suggest`).
        """
        info = self.names.get(cmd)
        if info is None:
            raise self._unknown(cmd) if suggest else _unknown(f"no function is named `{cmd}`.", SEE)
        return info

    def _by_name(self) -> dict[str, list[FunctionInfo]]:
        found: dict[str, list[FunctionInfo]] = defaultdict(list)
        for info in self.functions.values():
            found[info.name].append(info)
        return found

    def _unknown(self, cmd: str) -> UnknownFunction:
        sharing = sorted(info.qualified for info in self._by_name().get(cmd, ()))
        if sharing:
            text = f"{len(sharing)} modules have a function `{cmd}`: {', '.join(sharing)}."
            return _unknown(text, f"Name one of them in full, such as {sharing[0]}.")
        if cmd.rpartition(".")[2].startswith("_"):
            return _unknown(f"`{cmd}` is private: no name that begins with _ can be called.", SEE)
        failed = [key for key in self.broken if not _is_function(key)]
        module = cmd.partition(".")[0]
        if module in failed:
            text = f"`{cmd}` cannot be called: the module `{module}` did not load: {self._reason(module)}."
            return _unknown(text, "Correct it, then `bin/exesys reload`; GET /functions shows the whole traceback.")
        withheld = [key for key in self.broken if _is_function(key) and cmd in (key, key.partition(".")[2])]
        if withheld:
            text = f"`{withheld[0]}` cannot be called: {self._reason(withheld[0])}."
            return _unknown(text, "Correct the function, then `bin/exesys reload`.")
        return _unknown(f"no function is named `{cmd}`.{self._not_loaded(failed)}", self._advice(cmd))

    def _reason(self, key: str) -> str:
        """The last line of a broken part's text: what Python says the error was."""
        lines = self.broken[key].strip().splitlines() or ["for an unknown reason"]
        return lines[-1].strip()[:_SHOWN_CHARS].rstrip(".")

    def _not_loaded(self, failed: list[str]) -> str:
        if not failed:
            return ""
        reasons = [f"`{key}` ({self._reason(key)})" for key in sorted(failed)[:_SHOWN_BROKEN]]
        more = f" and {len(failed) - _SHOWN_BROKEN} more" if len(failed) > _SHOWN_BROKEN else ""
        return f" These did not load: {', '.join(reasons)}{more}."

    def _advice(self, cmd: str) -> str:
        close = nearest(cmd, list(self.names))
        if close:
            return f"Did you mean `{close}`?"
        if not self.names:
            return "Put a module with functions in [functions] path, then `bin/exesys reload`."
        return "GET /functions lists those there are; `bin/exesys reload` loads what is new."

    # --- on the wire ------------------------------------------------------

    def to_wire(self) -> dict[str, Any]:
        """Return plain maps, lists, text and numbers."""
        functions = [{**vars(info), "options": dict(info.options)} for _, info in sorted(self.functions.items())]
        return {"functions": functions, "broken": dict(self.broken)}

    @classmethod
    def from_wire(cls, value: Any) -> Catalogue:
        """Read what `to_wire` made. Raises ProtocolError when it is something else."""
        parts = _map_of(value, "a catalogue", {"functions": list, "broken": dict})
        functions: dict[str, FunctionInfo] = {}
        for item in parts["functions"]:
            info = _function_from(item)
            functions[info.qualified] = info
        for key, text in parts["broken"].items():
            if not (isinstance(key, str) and isinstance(text, str)):
                raise ProtocolError("a catalogue's `broken` must hold text by name")
        return cls(functions, parts["broken"])

    @classmethod
    def merge(cls, catalogues: Iterable[Catalogue]) -> Catalogue:
        """Return what at least one of them has.

        The first that has a function decides its options. A module that is
        broken in one and has functions in another counts as whole.
        """
        functions: dict[str, FunctionInfo] = {}
        broken: dict[str, str] = {}
        for catalogue in catalogues:
            functions.update((key, catalogue.functions[key]) for key in catalogue.functions.keys() - functions.keys())
            broken = {**catalogue.broken, **broken}
        whole = {info.module for info in functions.values()} | functions.keys()
        return cls(functions, {key: text for key, text in broken.items() if key not in whole})


def _is_function(key: str) -> bool:
    return "." in key and "/" not in key


def _unknown(message: str, fix: str) -> UnknownFunction:
    return UnknownFunction(message, field="cmd", fix=fix)


def _function_from(item: Any) -> FunctionInfo:
    texts = ("name", "module", "doc", "signature", "file")
    parts = _map_of(item, "a catalogue's function", {**dict.fromkeys(texts, str), "options": dict})
    try:
        if "." in check_name(parts["name"], "name") or "." in check_name(parts["module"], "module"):
            raise ProtocolError(f"the function {parts['name']!r} of {parts['module']!r} has a dot in a name")
        check_name(f"{parts['module']}.{parts['name']}", "name")
        options = check_options(parts["options"])
    except BadCommand as error:
        raise ProtocolError(f"a catalogue's function is not valid: {error}") from error
    if not options.keys() <= OPTIONS:
        raise ProtocolError(
            f"the function {parts['name']!r} has an option that is none of {', '.join(sorted(OPTIONS))}"
        )
    return FunctionInfo(options=options, **{key: parts[key] for key in texts})


def _map_of(value: Any, what: str, kinds: Mapping[str, type]) -> dict[str, Any]:
    """Check that a value is a map with at least these keys, each of its kind."""
    if not isinstance(value, dict):
        raise ProtocolError(f"{what} must be a map, not {type(value).__name__}")
    for key, kind in kinds.items():
        if not isinstance(value.get(key), kind):
            raise ProtocolError(f"{what} needs `{key}`, a {kind.__name__}, not {type(value.get(key)).__name__}")
    return value
