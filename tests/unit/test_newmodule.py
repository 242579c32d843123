"""New modules: names that will do, files that load, and what is typed next."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from exesys import codec, config, functions, newmodule, samples
from exesys.errors import BadCommand, Conflict


@pytest.fixture
def modules(tmp_path: Path) -> Iterator[Path]:
    """A directory for modules; what is imported from it goes again."""
    directory = tmp_path / "modules"
    before = list(sys.path)
    yield directory
    sys.path[:] = before
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(directory)):
            del sys.modules[name]


@pytest.fixture
def make(tmp_path: Path, modules: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Give `make(name, runner=False, app=False)`: writes a module, and returns what is said."""
    settings = config.parse("", None, {"EXESYS_HOME": str(tmp_path / "var")}, tmp_path, tmp_path)

    def make(name: str, runner: bool = False, app: bool = False) -> str:
        given = argparse.Namespace(name=name, runner=runner, app=app, json=False)
        assert newmodule.new_module(settings, given) == 0
        return capsys.readouterr().out

    return make


class Context(SimpleNamespace):
    """As much of a context as the examples use."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.told: list[tuple[float, str]] = []
        self.log = SimpleNamespace(info=lambda *_: None)
        self.redis = SimpleNamespace(incr=self.incr, get=self.counts.get)
        self.started: list[tuple[Any, ...]] = []

    def incr(self, key: str) -> int:
        self.counts[key] = self.counts.get(key, 0) + 1
        return self.counts[key]

    def progress(self, fraction: float, text: str) -> None:
        self.told.append((fraction, text))

    def wait_stop(self, within_s: float) -> bool:
        return sum(self.counts.values()) >= 3

    def start_runner(self, target: Any, data: Any, **names: str) -> str:
        self.started.append((target.__name__, data))
        return f"{names['type']}:{names['uuid']}"


def test_a_function_works_at_once(make: Callable[..., str], modules: Path) -> None:
    said = make("hello")
    assert "bin/exesys reload\n" in said
    assert '-d \'{"cmd": "hello", "data": ["Ada", "Alan"]}\'' in said
    library = functions.Library.load([modules])
    assert library.catalogue.broken == {}
    assert library.catalogue.resolve("hello").options == {"timeout_s": 60.0, "retries": 2}
    assert set(library.catalogue.functions) == {"hello.hello"}
    context = Context()
    told = codec.unpack(library.call("hello", ["Ada", "Alan"], lambda: context))
    assert told == {"EOJ": ["Hello, Ada!", "Hello, Alan!"]}
    assert context.told == [(0.5, "1 of 2"), (1.0, "2 of 2")]
    assert codec.unpack(library.call("hello", "Ada", lambda: context)) == {"EOJ": ["Hello again, Ada!"]}


def test_a_runner_works_at_once(make: Callable[..., str], modules: Path) -> None:
    said = make("tick", runner=True)
    assert "bin/exesys runner start tick '\"a\"' --uuid a\n" in said
    library = functions.Library.load([modules])
    assert set(library.catalogue.functions) == {"tick.tick", "tick.start_tick"}
    context = Context()
    library.live("tick", "a", lambda: context, lambda stop: None)
    assert context.counts == {"tick:a": 3}
    assert codec.unpack(library.call("start_tick", "a", lambda: context)) == {"EOJ": "tick:a"}
    assert context.started == [("tick", "a")]


def test_an_application_server_works_at_once(make: Callable[..., str], modules: Path) -> None:
    said = make("word_count", app=True)
    assert "[appserver:word_count]\\nclass = word_count:WordCount\\n" in said
    assert "bin/exesys restart\n" in said
    library = functions.Library.load([modules])
    assert set(library.catalogue.functions) == {"word_count.word_count"}
    server = sys.modules["word_count"].WordCount(Context())
    server.start()
    assert [server.count("a"), server.count("a", by=2)] == [1, 3]


@pytest.mark.parametrize("name", ["", "9lives", "two words", "class", "_own", "ü", "a-b", "a.b", "a/b", "x" * 129])
def test_a_bad_name_is_refused(make: Callable[..., str], modules: Path, name: str) -> None:
    with pytest.raises(BadCommand) as error:
        make(name)
    assert error.value.field == "name"
    assert not modules.exists()


def test_nothing_is_overwritten(make: Callable[..., str], modules: Path) -> None:
    modules.mkdir()
    (modules / "mine.py").write_text("precious = 1\n")
    with pytest.raises(Conflict, match="is there already"):
        make("mine")
    with pytest.raises(Conflict, match="is there already"):
        newmodule.write(modules / "mine.py", "")
    assert (modules / "mine.py").read_text() == "precious = 1\n"


def test_a_name_that_another_module_gives_to_a_function_is_refused(make: Callable[..., str], modules: Path) -> None:
    modules.mkdir()
    (modules / "other.py").write_text("async def hello(data): ...\ndef start_tick(data): ...\n")
    (modules / "broken.py").write_text("def hello(\n")
    for name, runner in (("hello", False), ("tick", True)):
        with pytest.raises(Conflict, match=r"other\.py has a function"):
            make(name, runner=runner)
    make("tick")
    assert sorted(path.name for path in modules.iterdir()) == ["broken.py", "other.py", "tick.py"]


def test_a_directory_that_cannot_be_written_is_told(make: Callable[..., str], modules: Path) -> None:
    modules.write_text("a file where the directory should be")
    with pytest.raises(BadCommand, match=r"hello\.py cannot be written") as error:
        make("hello")
    assert "[functions] path" in error.value.fix


def test_the_classes_of_modules_have_their_names() -> None:
    assert [samples.class_of(name) for name in ("words", "word_count", "aB_c")] == ["Words", "WordCount", "ABC"]
