"""Modules of many kinds: what becomes a command, how it is called, how it fails."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exesys
from exesys import codec, functions
from exesys.catalogue import Catalogue
from exesys.errors import BadCommand, UnknownFunction
from exesys.functions import MAX_TEXT_BYTES, Library, Terminated, describe_failure

Load = Callable[..., Library]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    """Write files and load their directory; afterwards this process knows nothing of them."""
    path, modules = list(sys.path), set(sys.modules)

    def load(options: dict[str, Any] | None = None, **files: str) -> Library:
        for name, text in files.items():
            (tmp_path / f"{name}.py").write_text(textwrap.dedent(text), encoding="utf-8")
        return Library.load([tmp_path], **(options or {}))

    yield load
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def no_context() -> Any:
    raise AssertionError("a context was made for a function that takes none")


def value(library: Library, cmd: str, data: Any = None, make_context: Callable[[], Any] = no_context) -> Any:
    result = codec.unpack(library.call(cmd, data, make_context))
    assert list(result) == ["EOJ"]
    return result["EOJ"]


# --- what is a command ----------------------------------------------------


def test_public_functions_defined_in_the_file(load: Load) -> None:
    library = load(
        helper="def helping(data): return data",
        alpha="""
            import json
            from os.path import join
            from helper import helping

            CONSTANT = 5

            class Thing:
                def __call__(self, data): return data
                def method(self): ...

            thing = Thing()
            double = lambda data: data * 2

            def plain(data): return data
            def _private(data): return data
            def __very_private(data): return data
            async def waits(data): return data
        """,
    )
    assert set(library.catalogue.functions) == {"helper.helping", "alpha.double", "alpha.plain", "alpha.waits"}
    assert library.catalogue.broken == {}
    for cmd in ("join", "json", "json.dumps", "alpha.join", "alpha.helping", "_private", "alpha._private", "os.getpid"):
        with pytest.raises(UnknownFunction):
            library.call(cmd, None, no_context)


def test_where_there_is_all_it_is_the_list(load: Load) -> None:
    library = load(
        helper="def helping(data): return data",
        alpha="""
            from functools import partial
            from helper import helping
            __all__ = ["helping", "own", "_private", "half", "Thing", "LIMIT"]
            LIMIT = 5
            class Thing: ...
            def own(data): ...
            def not_listed(data): ...
            def _private(data): ...
            half = partial(own)
        """,
    )
    assert set(library.catalogue.functions) == {"helper.helping", "alpha.helping", "alpha.own"}
    assert "It is private" in library.catalogue.broken["alpha._private"]
    assert "It is a partial, no plain function" in library.catalogue.broken["alpha.half"]
    assert library.catalogue.broken.keys() == {"alpha._private", "alpha.half"}


def test_an_all_that_lists_what_is_not_there_breaks_the_module(load: Load) -> None:
    library = load(alpha="__all__ = ['gone']\ndef own(data): ...")
    assert "AttributeError" in library.catalogue.broken["alpha"]
    assert not library.catalogue.functions


def test_files_with_an_underscore_are_for_their_siblings(load: Load) -> None:
    library = load(
        _shared="def f(data): return ['shared', data]", alpha="import _shared\ndef g(data): return _shared.f(data)"
    )
    assert set(library.catalogue.functions) == {"alpha.g"}
    assert value(library, "g", 5) == ["shared", 5]


def test_siblings_share_one_module(load: Load) -> None:
    library = load(
        alpha="import beta\ndef put(data): beta.LIST.append(data)",
        beta="LIST = []\ndef held(): return LIST",
    )
    library.call("put", 5, no_context)
    assert value(library, "held") == [5]


def test_a_name_of_the_standard_library_or_a_package_is_no_trouble(load: Load) -> None:
    import json
    import random

    library = load(
        random="import json\ndef roll(): return [__name__, json.dumps([4])]",
        json="import random\ndef names(): return [__name__, random.random() < 1]",
        msgpack="def f(): return __name__",
        sys="def g(): return __name__",
        zipapp="def h(): return __name__",
    )
    assert library.catalogue.broken == {}
    assert value(library, "random.roll") == ["exesys_modules.random", "[4]"]
    assert value(library, "names") == ["exesys_modules.json", True]
    assert value(library, "f") == "exesys_modules.msgpack"
    assert value(library, "g") == "exesys_modules.sys"
    assert value(library, "h") == "exesys_modules.zipapp"
    assert sys.modules["random"] is random
    assert sys.modules["json"] is json


def test_what_is_told_of_a_function(load: Load, tmp_path: Path) -> None:
    library = load(
        alpha='''
            from __future__ import annotations
            import exesys

            @exesys.function(timeout_s=5, queue="slow", name="described")
            def function(data: dict[str, int], *, limit: int = 3) -> None:
                """Do one thing,
                and do it well.

                Then some more.
                """

            def bare(data="\\ud800"): ...
            bare.__doc__ = "\\ud800"
        '''
    )
    info = library.catalogue.resolve("described")
    assert info is library.catalogue.resolve("alpha.described")
    assert info.doc == "Do one thing, and do it well."
    assert info.signature == "(data: dict[str, int], *, limit: int = 3) -> None"
    assert info.options == {"timeout_s": 5, "queue": "slow"}
    assert info.file == str(tmp_path / "alpha.py")
    assert library.catalogue.resolve("bare").doc == "\\ud800"
    assert Catalogue.from_wire(codec.unpack(codec.pack(library.catalogue.to_wire()))) == library.catalogue


# --- how it is called -----------------------------------------------------

CALLS = [
    ("def f(): return 'nothing'", "nothing"),
    ("def f(data): return data", "D"),
    ("def f(anything): return anything", "D"),
    ("def f(data, /): return data", "D"),
    ("def f(data=None): return data", "D"),
    ("def f(*data): return list(data)", ["D"]),
    ("def f(**options): return options", {}),
    ("def f(data, *rest, **options): return [data, *rest, options]", ["D", {}]),
    ("def f(data, limit=3, *, more=4): return [data, limit, more]", ["D", 3, 4]),
    ("def f(data, ctx): return [data, ctx]", ["D", "C"]),
    ("def f(data, ctx, /): return [data, ctx]", ["D", "C"]),
    ("def f(data, ctx=None): return [data, ctx]", ["D", "C"]),
    ("def f(data, ctx, more=5): return [data, ctx, more]", ["D", "C", 5]),
    ("def f(data, *, ctx): return [data, ctx]", ["D", "C"]),
    ("def f(data, limit=3, ctx=None): return [data, limit, ctx]", ["D", 3, "C"]),
    ("async def f(): return 'nothing'", "nothing"),
    ("async def f(data): return data", "D"),
    ("import asyncio\nasync def f(data, ctx):\n    await asyncio.sleep(0)\n    return [data, ctx]", ["D", "C"]),
]


@pytest.mark.parametrize(("text", "answer"), CALLS)
def test_the_ways_to_call(load: Load, text: str, answer: Any) -> None:
    library = load(alpha=text)
    assert value(library, "f", "D", (lambda: "C") if "ctx" in text else no_context) == answer


WITHHELD = [
    ("def f(data, other): ...", "missing a required argument: 'other'"),
    ("def f(data, *, other): ...", "'other'"),
    ("def f(*, data): ...", "'data'"),
    ("def f(*, ctx): ...", "'ctx'"),
    ("def f(data, ctx, other): ...", "'other'"),
    ("def f(data, other, ctx): ...", "'other'"),
    ("def f(ctx): ...", "Write (data, ctx)."),
    ("def f(ctx, data): ...", "Write (data, ctx)."),
    ("def f(data): yield data", "It is a generator."),
    ("async def f(data): yield data", "It is a generator."),
    ("def f(data): ...\nf.__signature__ = 5", "signature"),
    (f"def f{'x' * 130}(data): ...", "characters"),
    ("def città(data): ...", "holds the character 'à'"),
]


@pytest.mark.parametrize(("text", "reason"), WITHHELD)
def test_what_cannot_be_called_is_listed_with_the_reason(load: Load, text: str, reason: str) -> None:
    library = load(alpha=f"{text}\ndef good(data): return data")
    assert set(library.catalogue.functions) == {"alpha.good"}
    [(name, said)] = library.catalogue.broken.items()
    assert name.startswith("alpha.")
    assert reason in said
    with pytest.raises(UnknownFunction):
        library.call(name, None, no_context)


def test_decorators_keep_functions_functions(load: Load) -> None:
    library = load(
        alpha="""
            import functools, exesys

            def wrapped(function):
                @functools.wraps(function)
                def inner(*args, **kwargs):
                    return function(*args, **kwargs)
                return inner

            def bare(function):
                def inner(data): return ["bare", function(data)]
                return inner

            @exesys.function
            @wrapped
            def one(data, ctx): return [data, ctx]

            @wrapped
            @exesys.function(retries=2)
            def two(data): return data

            @wrapped
            async def three(data): return data

            @bare
            def four(data): return data
        """
    )
    assert set(library.catalogue.broken) == {"alpha.bare", "alpha.wrapped"} - set(library.catalogue.functions)
    assert value(library, "one", 1, lambda: "C") == [1, "C"]
    assert value(library, "two", 2) == 2
    assert library.catalogue.resolve("two").options == {"retries": 2}
    assert value(library, "three", 3) == 3
    assert value(library, "four", 4) == ["bare", 4]


def test_every_name_reaches_the_same_function(load: Load) -> None:
    library = load(
        alpha="def f(): return 'a'\ndef same(): return 'a'", beta="def g(): return 'b'\ndef same(): return 'b'"
    )
    assert value(library, "f") == value(library, "alpha.f") == value(library, "alpha.same") == "a"
    assert value(library, "beta.same") == "b"
    with pytest.raises(UnknownFunction, match=r"alpha\.same, beta\.same"):
        library.call("same", None, no_context)


# --- the decorator --------------------------------------------------------


def test_the_decorator_changes_nothing() -> None:
    def f(data: Any) -> Any:
        return data

    assert exesys.function(f) is f
    assert exesys.function(timeout_s=1.5)(f) is f
    assert f(5) == 5


@pytest.mark.parametrize(
    "options",
    [
        {"timeout_s": -1},
        {"retries": 1.5},
        {"priority": 10},
        {"queue": "a b"},
        {"backoff_s": "1"},
        {"result_ttl_s": 0},
        {"name": "a.b"},
        {"name": "_f"},
        {"name": ""},
        {"timeout": 5},
        {"delay_s": 5},
        {"at": "2026-01-31T12:00:00Z"},
    ],
)
def test_a_bad_option_breaks_the_module_and_says_so(load: Load, options: dict[str, Any]) -> None:
    with pytest.raises(BadCommand) as caught:
        exesys.function(**options)
    library = load(alpha=f"import exesys\n@exesys.function(**{options!r})\ndef f(data): ...")
    assert library.catalogue.broken["alpha"].rstrip().endswith(str(caught.value))


@pytest.mark.parametrize("target", [5, "queue", print, type("Thing", (), {})])
def test_the_decorator_is_for_functions(target: Any) -> None:
    with pytest.raises(TypeError, match="stands before a function"):
        exesys.function(target)


def test_names_given_by_the_decorator(load: Load) -> None:
    library = load(
        alpha="""
            import exesys

            @exesys.function(name="other")
            def own(data): return data

            again = own

            @exesys.function(name="open")
            def _private(data): ...
        """,
        beta="""
            import exesys

            @exesys.function(name="twice")
            def one(data): ...

            @exesys.function(name="twice")
            def two(data): ...

            @exesys.function(name="twice")
            def three(data): ...
        """,
    )
    assert set(library.catalogue.functions) == {"alpha.other"}
    assert "It is private" in library.catalogue.broken["alpha.open"]
    assert "Two functions of the module are named 'twice'" in library.catalogue.broken["beta.twice"]


# --- modules that do not load ---------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nothing_of_this_name", "ModuleNotFoundError: No module named 'nothing_of_this_name'"),
        ("def f(:", "SyntaxError"),
        ("\tx = 1\n  y = 2", "IndentationError"),
        ("import sys\nsys.exit(3)", "SystemExit: 3"),
        ("raise BaseException('no')", "BaseException: no"),
        ("import asyncio\nraise asyncio.CancelledError", "CancelledError"),
        ("class Odd(Exception):\n    def __str__(self): raise KeyError\nraise Odd", "Odd"),
        ("1 / 0", "ZeroDivisionError"),
        ("x = '\\ud800'\nraise ValueError(x)", "ValueError: \\ud800"),
        ("def f(n): f(n + 1)\nf(0)", "RecursionError"),
    ],
)
def test_a_module_that_fails_stops_no_other(load: Load, text: str, said: str) -> None:
    library = load(alpha=text, beta="def g(): return 'fine'")
    assert set(library.catalogue.functions) == {"beta.g"}
    traceback = library.catalogue.broken["alpha"]
    assert said in traceback
    assert "alpha.py" in traceback
    assert "exesys/functions.py" not in traceback
    assert "importlib" not in traceback
    assert value(library, "g") == "fine"
    codec.pack(library.catalogue.to_wire())
    with pytest.raises(UnknownFunction, match="the module `alpha` did not load"):
        library.call("alpha.f", None, no_context)


@pytest.mark.parametrize("content", [b"\0", b"x = '\xff'", b"# coding: nonsense\n"])
def test_a_file_that_is_no_python(load: Load, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "alpha.py").write_bytes(content)
    library = load(beta="def g(): ...")
    assert library.catalogue.broken.keys() == {"alpha"}
    assert set(library.catalogue.functions) == {"beta.g"}


def test_a_broken_sibling_breaks_those_who_need_it(load: Load) -> None:
    library = load(alpha="import beta", beta="1 / 0", gamma="def g(): ...")
    assert library.catalogue.broken.keys() == {"alpha", "beta"}
    assert 'beta.py", line 1' in library.catalogue.broken["alpha"]


def test_a_failed_import_by_spec_leaves_no_module(load: Load) -> None:
    library = load(json="1 / 0")
    assert "ZeroDivisionError" in library.catalogue.broken["json"]
    assert "exesys_modules.json" not in sys.modules


def test_the_keyboard_still_interrupts(load: Load) -> None:
    with pytest.raises(KeyboardInterrupt):
        load(alpha="raise KeyboardInterrupt")


def test_modules_to_skip_are_not_imported(load: Load) -> None:
    seen: list[str] = []
    options = {"skip": {"beta": "The process was killed by SIGKILL while it imported it."}, "on_import": seen.append}
    library = load(options, alpha="def f(): ...", beta="raise AssertionError", gamma="1 / 0", _delta="")
    assert seen == ["alpha", "gamma"]
    assert "killed by SIGKILL" in library.catalogue.broken["beta"]
    with pytest.raises(UnknownFunction, match="the module `beta` did not load: The process was killed by SIGKILL"):
        library.call("beta.f", None, no_context)


def test_the_module_that_kills_its_process_was_named(tmp_path: Path) -> None:
    (tmp_path / "alpha.py").write_text("def f(): ...")
    (tmp_path / "beta.py").write_text("import os; os.abort()")
    code = (
        "import pathlib, sys; from exesys.functions import Library;"
        "Library.load([pathlib.Path(sys.argv[1])], on_import=lambda module: print(module, flush=True))"
    )
    house = Path(functions.__file__).parent.parent
    ended = subprocess.run([sys.executable, "-c", code, tmp_path], cwd=house, capture_output=True, text=True)
    assert ended.returncode < 0
    assert ended.stdout.split() == ["alpha", "beta"]


def test_directories(load: Load, tmp_path: Path) -> None:
    (tmp_path / "first").mkdir()
    (tmp_path / "second").mkdir()
    (tmp_path / "first" / "alpha.py").write_text("def f(): return 1")
    (tmp_path / "second" / "alpha.py").write_text("def f(): return 2")
    (tmp_path / "second" / "beta.py").write_text("def g(): return 3")
    (tmp_path / "file").write_text("")
    dirs = [tmp_path / name for name in ("first", "none", "file", "second", "second")]
    library = Library.load(dirs)
    assert value(library, "f") == 1
    assert value(library, "g") == 3
    broken = library.catalogue.broken
    assert broken.keys() == {str(tmp_path / name) for name in ("none", "file", "second/alpha.py")}
    assert "No such file or directory. Create it or correct [functions] path." in broken[str(tmp_path / "none")]
    assert "`alpha` is already loaded from" in broken[str(tmp_path / "second/alpha.py")]


def test_odd_file_names(load: Load, tmp_path: Path) -> None:
    (tmp_path / "beta.py").mkdir()
    (tmp_path / ".hidden.py").write_text("1 / 0")
    (tmp_path / "notes.txt").write_text("")
    (tmp_path / "gone.py").symlink_to("nowhere")
    library = load(**{"alpha": "def f(): ...", "two-words": "", "a.b": "", "città": ""})
    broken = library.catalogue.broken
    assert {Path(key).name for key in broken} == {"two-words.py", "a.b.py", "città.py", "gone"}
    assert "is no name for a module" in broken[str(tmp_path / "two-words.py")]
    assert set(library.catalogue.functions) == {"alpha.f"}


# --- results --------------------------------------------------------------


@pytest.mark.parametrize(
    ("returned", "packed"),
    [
        ("None", {"EOJ": None}),
        ("5", {"EOJ": 5}),
        ("{'EOJ': 5}", {"EOJ": 5}),
        ("{'EOJ': None}", {"EOJ": None}),
        ("{'EOJ': 5, 'more': 6}", {"EOJ": {"EOJ": 5, "more": 6}}),
        ("{'eoj': 5}", {"EOJ": {"eoj": 5}}),
        ("{}", {"EOJ": {}}),
        ("['EOJ']", {"EOJ": ["EOJ"]}),
        ("__import__('collections').OrderedDict(EOJ=5)", {"EOJ": 5}),
        ("{1, 2}", {"EOJ": {1, 2}}),
    ],
)
def test_results_are_wrapped_once(load: Load, returned: str, packed: Any) -> None:
    assert codec.unpack(load(alpha=f"def f(): return {returned}").call("f", None, no_context)) == packed


@pytest.mark.parametrize(
    ("returned", "reason"),
    [
        ("object()", "a object cannot be sent"),
        ("{'EOJ': [{'x': print}]}", "a builtin_function_or_method cannot be sent"),
        ("2**64", "an integer is beyond 64 bits"),
        ("'\\ud800'", "surrogates not allowed"),
    ],
)
def test_what_cannot_be_sent_names_type_and_function(load: Load, returned: str, reason: str) -> None:
    library = load(alpha=f"def f(): return {returned}")
    with pytest.raises(TypeError) as caught:
        library.call("f", None, no_context)
    assert "what alpha.f returned cannot be sent" in str(caught.value)
    assert reason in str(caught.value)
    assert "Send None, bool" in str(caught.value)


# --- failures -------------------------------------------------------------


def failure(library: Library, cmd: str) -> tuple[str, str, str]:
    try:
        library.call(cmd, "D", lambda: "C")
    except BaseException as error:  # noqa: BLE001  # whatever the function raised
        return describe_failure(error)
    raise AssertionError("it did not fail")


def test_a_failure_shows_the_users_frames(load: Load) -> None:
    library = load(
        alpha="""
            import json, asyncio
            def _deeper(data): return json.loads(data)
            def f(data): return _deeper(data)
            def g(data):
                try: _deeper(data)
                except ValueError as error: raise RuntimeError("second") from error
            async def h(data):
                await asyncio.sleep(0)
                raise LookupError
        """
    )
    kind, message, text = failure(library, "f")
    assert (kind, message) == ("JSONDecodeError", "Expecting value: line 1 column 1 (char 0)")
    frames = [line.split(", in ")[1] for line in text.splitlines() if line.startswith("  File")]
    assert frames[:3] == ["f", "_deeper", "loads"]
    kind, message, text = failure(library, "g")
    assert (kind, message) == ("RuntimeError", "second")
    assert "JSONDecodeError" in text
    assert "The above exception was the direct cause" in text
    kind, message, text = failure(library, "h")
    assert (kind, message) == ("LookupError", "")
    assert [line.split(", in ")[1] for line in text.splitlines() if line.startswith("  File")] == ["h"]


def test_a_failure_of_the_house_has_no_frames(load: Load) -> None:
    library = load(alpha="def f(data): return object()")
    kind, _, text = failure(library, "f")
    assert kind == "TypeError"
    assert "File" not in text
    assert "what alpha.f returned cannot be sent" in text
    assert failure(library, "g")[0] == "UnknownFunction"


@pytest.mark.parametrize(
    "text",
    [
        "class Odd(Exception):\n    def __str__(self): raise self\ndef f(data): raise Odd",
        "class Odd(Exception):\n    def __str__(self): return 5\ndef f(data): raise Odd",
        "class Odd(Exception):\n    @property\n    def __notes__(self): raise KeyError\ndef f(data): raise Odd",
        "class Odd(AttributeError):\n    def __getattribute__(self, name): raise KeyError\ndef f(data): raise Odd",
        "class Odd(SystemExit):\n    def __repr__(self): raise self\ndef f(data): raise Odd('\\ud800')",
        "class Odd(Exception):\n    def __str__(self): raise SystemExit\ndef f(data): raise Odd",
        "class Odd(Exception):\n    def __str__(self): raise KeyboardInterrupt\ndef f(data): raise Odd",
        "class Odd(Exception):\n    @property\n    def __notes__(self): raise SystemExit\ndef f(data): raise Odd",
        "class Text(str):\n    def encode(self, *given, **more): raise SystemExit\n"
        "class Odd(Exception):\n    def __str__(self): return Text('text')\ndef f(data): raise Odd",
        "class Odd(Exception): ...\ndef f(data): raise ExceptionGroup('many', [Odd()] * 1000) from Odd()",
        "class Odd(Exception): ...\ndef f(data): raise Odd('x' * 1_000_000)",
        "class Odd(Exception): ...\ndef f(data): raise Odd('è' * 100_000)",
        "class Odd(Exception): ...\ndef f(data):\n    e = Odd()\n    e.__cause__ = e\n    raise e",
    ],
)
def test_odd_exceptions_can_be_described(load: Load, text: str) -> None:
    described = failure(load(alpha=text), "f")
    assert described[0] in ("Odd", "ExceptionGroup")
    for part in described:
        assert len(part.encode()) <= MAX_TEXT_BYTES
    assert "Odd" in described[2]


def test_the_end_of_the_process_is_not_taken_for_the_users_fault() -> None:
    class Slow(Exception):
        def __str__(self) -> str:
            raise Terminated(143)  # as the handler of TERM does, if it comes just now

    with pytest.raises(Terminated):
        describe_failure(Slow())


def test_a_long_text_keeps_its_ends() -> None:
    _, message, text = describe_failure(ValueError("begin" + "x" * 100_000 + "end"))
    assert message.startswith("begin")
    assert message.endswith("end")
    assert "cut here" in message
    assert text.startswith("ValueError: begin")
    assert text.endswith("end\n")


@given(st.text(st.characters(exclude_categories=()), max_size=50), st.integers(1, 5000))
def test_any_text_can_be_sent(text: str, times: int) -> None:
    for part in describe_failure(ValueError(text * times)):
        assert len(part.encode()) <= MAX_TEXT_BYTES


# --- the functions that come with it --------------------------------------


@pytest.fixture
def shipped(load: Load) -> Library:
    return Library.load([Path(functions.__file__).parent.parent / "modules"])


def test_the_first_command(shipped: Library) -> None:
    assert shipped.catalogue.broken == {}
    assert shipped.call("test_cmd", "senatoremonti", no_context) == codec.pack(
        {"EOJ": {"hello": "senatoremonti", "length": 13}}
    )


def test_the_harmless_ones(shipped: Library) -> None:
    assert value(shipped, "noop", 5) is None
    assert value(shipped, "echo", {"a": [1]}) == {"a": [1]}
    assert value(shipped, "add", [1, 2, 3.5]) == 6.5
    assert value(shipped, "sleep", 0.001) == 0.001
    assert value(shipped, "slow_async", 0.001) == 0.001
    assert value(shipped, "spin", 0.001) > 0
    assert value(shipped, "ignores_term", 0.001) == 0.001
    assert value(shipped, "hog", 2) == 2
    assert failure(shipped, "fail")[:2] == ("ValueError", "D")
    assert all(info.doc for info in shipped.catalogue.functions.values())


def test_crash_sends_the_signal() -> None:
    code = "import sys; sys.path.append('modules'); import exesys_test; exesys_test.crash({!r})"
    house = Path(functions.__file__).parent.parent
    for data, expected in ((None, -9), ("SIGTERM", -15), ("SIGSEGV", -11)):
        ended = subprocess.run([sys.executable, "-c", code.format(data)], cwd=house, capture_output=True)
        assert ended.returncode == expected


def test_no_loop_is_left_behind(shipped: Library) -> None:
    value(shipped, "slow_async", 0)
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


# --- runners ------------------------------------------------------------------


class Stopper:
    """What a runner is told by: the calls it asked for, and a context."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []
        self.stopped = threading.Event()

    def on_stop(self, call: Callable[[], None]) -> None:
        if self.stopped.is_set():
            call()
        else:
            self.calls.append(call)

    def stop(self) -> None:
        self.stopped.set()
        for call in self.calls:
            call()


LIVES = """
    import asyncio, functools
    seen = []
    def plain(data, ctx): seen.append((data, ctx)); return 7
    def alone(data): seen.append(data)
    def nothing(): seen.append("called")
    def fails(data): raise ValueError("no")
    async def ends(data): seen.append(data); await asyncio.sleep(0); return 7
    async def waits(data, ctx):
        seen.append("waits")
        ctx.set()
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("cleaned up")
    async def holds_on(data, ctx):
        ctx.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            seen.append("held on")
    async def never_waits(data): seen.append("done")
    async def breaks(data): await asyncio.sleep(0); raise ValueError("no")
    @functools.wraps(ends)
    def wrapped(data): return ends(data)
"""


@pytest.mark.parametrize(
    ("cmd", "seen"),
    [
        ("plain", [(5, "ctx")]),
        ("alone", [5]),
        ("nothing", ["called"]),
        ("ends", [5]),
        ("lives.ends", [5]),
        ("wrapped", [5]),
        ("never_waits", ["done"]),
    ],
)
def test_a_runner_runs_until_it_returns(load: Load, cmd: str, seen: list[Any]) -> None:
    library, stopper = load(lives=LIVES), Stopper()
    library.live(cmd, 5, lambda: "ctx", stopper.on_stop)
    assert sys.modules["lives"].seen == seen
    stopper.stop()  # of one that has ended it is nothing


@pytest.mark.parametrize("cmd", ["fails", "breaks"])
def test_what_a_runner_raises_is_raised(load: Load, cmd: str) -> None:
    with pytest.raises(ValueError, match="no"):
        load(lives=LIVES).live(cmd, None, no_context, Stopper().on_stop)


def test_a_plain_runner_asks_for_no_call(load: Load) -> None:
    stopper = Stopper()
    load(lives=LIVES).live("alone", None, no_context, stopper.on_stop)
    assert stopper.calls == []


def test_an_unknown_runner_is_refused(load: Load) -> None:
    with pytest.raises(UnknownFunction):
        load(lives=LIVES).live("nobody", None, no_context, Stopper().on_stop)


def stop_when(ready: threading.Event, stopper: Stopper) -> threading.Thread:
    """Stop a runner from another thread as soon as it is ready."""

    def wait_and_stop() -> None:
        assert ready.wait(20)
        stopper.stop()

    thread = threading.Thread(target=wait_and_stop)
    thread.start()
    return thread


def test_a_stop_cancels_a_coroutine_which_may_clean_up(load: Load) -> None:
    library, stopper, ready = load(lives=LIVES), Stopper(), threading.Event()
    thread = stop_when(ready, stopper)
    with pytest.raises(asyncio.CancelledError):
        library.live("waits", None, lambda: ready, stopper.on_stop)
    thread.join()
    assert sys.modules["lives"].seen == ["waits", "cleaned up"]


def test_a_coroutine_may_take_its_stop_as_its_end(load: Load) -> None:
    library, stopper, ready = load(lives=LIVES), Stopper(), threading.Event()
    thread = stop_when(ready, stopper)
    library.live("holds_on", None, lambda: ready, stopper.on_stop)
    thread.join()
    assert sys.modules["lives"].seen == ["held on"]


def test_a_stop_before_it_begins_cancels_a_coroutine_where_it_waits_first(load: Load) -> None:
    library, stopper = load(lives=LIVES), Stopper()
    stopper.stop()
    with pytest.raises(asyncio.CancelledError):
        library.live("waits", None, threading.Event, stopper.on_stop)
    assert sys.modules["lives"].seen == ["waits", "cleaned up"]
    library.live("never_waits", None, no_context, stopper.on_stop)
    assert sys.modules["lives"].seen[-1] == "done"


def test_one_module_may_be_loaded_alone(load: Load, tmp_path: Path) -> None:
    imported: list[str] = []
    (tmp_path / "_shared.py").write_text("VALUE = 7\n")
    options = {"only": "beta", "on_import": imported.append}
    library = load(options, alpha="def f(): pass", beta="import _shared\ndef g(): return _shared.VALUE", gamma="1 / 0")
    assert set(library.catalogue.functions) == {"beta.g"}
    assert imported == ["beta"]
    assert library.catalogue.broken == {}
    assert value(library, "beta.g") == 7
    assert set(load({"only": "no_such"}).catalogue.functions) == set()


# --- names of functions ---------------------------------------------------------


def test_a_function_is_named_as_it_is_called(load: Load) -> None:
    library = load(
        alpha="""
            import exesys
            def f(data): return 1
            @exesys.function(name="other")
            def g(data): return 2
            async def h(data): return 3
        """,
        json="def mine(data): return 4",
    )
    module = sys.modules["alpha"]
    names = [functions.name_of(target) for target in (module.f, module.g, module.h)]
    assert names == ["alpha.f", "alpha.other", "alpha.h"]
    assert [value(library, name) for name in names] == [1, 2, 3]
    beside = functions.name_of(sys.modules["exesys_modules.json"].mine)
    assert beside == "json.mine"
    assert value(library, beside) == 4
    assert functions.name_of("any text") == "any text"


@pytest.mark.parametrize("target", [None, 7, print, Stopper, Stopper().stop, ["f"]], ids=str)
def test_what_is_no_function_of_a_module_has_no_name(target: Any) -> None:
    with pytest.raises(BadCommand) as caught:
        functions.name_of(target)
    assert caught.value.problem[2] == "target"
