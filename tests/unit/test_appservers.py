"""The router's registry of application servers, and what an instance does with a class and a call."""

from __future__ import annotations

import socket
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from exesys import appcrew, codec, teardown
from exesys import config as configuration
from exesys.appconfig import AppServer
from exesys.appcrew import Crew
from exesys.appservice import AppContext, Service
from exesys.bus import messages as m
from exesys.bus import wire
from exesys.bus.apps import MOST_OTHER_REASONS, MOST_REASON_CHARS, Apps
from exesys.config import Limits
from exesys.errors import BadCommand, ConfigError

WORDS = AppServer("words", "word_dict:Dictionary", processes=2)


# --- the registry ---------------------------------------------------------


def info(app: str = "words", number: int = 1, state: str = "ready", **more: Any) -> dict[str, Any]:
    given = {"app": app, "number": number, "state": state, "endpoint": f"ipc:///{app}-{number}", "threads": 1}
    given |= {"methods": [], "host": "here", "pid": 1, "since_ms": 5, "reason": "", "traceback": ""}
    return {**given, **more}


def shown(apps: Apps, name: str = "words") -> dict[str, Any]:
    return {each["name"]: each for each in apps.to_wire()}[name]


def test_a_declared_server_is_away_until_it_comes() -> None:
    apps = Apps([WORDS])
    assert (shown(apps)["state"], shown(apps)["instances"]) == ("away", [])
    apps.admit("s1", info(state="starting"))
    assert shown(apps)["state"] == "starting"
    apps.admit("s1", info(methods=[{"name": "size"}]))
    assert (shown(apps)["state"], shown(apps)["methods"]) == ("ready", [{"name": "size"}])
    assert shown(apps)["instances"] == [
        {"number": 1, "state": "ready", "endpoint": "ipc:///words-1", "host": "here", "pid": 1, "since_ms": 5}
    ]
    apps.drain("s1")
    assert [one["state"] for one in shown(apps)["instances"]] == ["leaving"]
    apps.gone("s1")
    assert shown(apps)["state"] == "away"


def test_a_reason_is_kept_until_an_instance_of_that_number_is_well() -> None:
    apps = Apps([WORDS])
    apps.admit("s1", info(state="failed", reason="ValueError: no", traceback="Traceback …"))
    apps.gone("s1")
    assert (shown(apps)["state"], shown(apps)["reason"]) == ("failed", "ValueError: no")
    apps.admit("s2", info(number=2))
    assert (shown(apps)["state"], shown(apps)["reason"]) == ("ready", "ValueError: no")
    apps.admit("s3", info(state="starting"))
    assert shown(apps)["reason"] == "ValueError: no"
    apps.admit("s3", info())
    assert (shown(apps)["reason"], shown(apps)["traceback"]) == ("", "")


def test_a_new_instance_takes_the_place_of_one_that_was_killed() -> None:
    apps = Apps([WORDS])
    apps.admit("old", info(pid=1))
    apps.admit("new", info(pid=2))
    assert [one["pid"] for one in shown(apps)["instances"]] == [2]
    apps.gone("old")  # when its lease is over
    apps.drain("old")
    assert [(one["pid"], one["state"]) for one in shown(apps)["instances"]] == [(2, "ready")]


def test_a_server_that_is_not_declared_is_shown_while_it_is_there() -> None:
    apps = Apps([])
    apps.admit("s", info("guest", threads=3))
    assert (shown(apps, "guest")["threads"], shown(apps, "guest")["processes"]) == (3, 1)
    apps.gone("s")
    assert apps.to_wire() == []


def test_reasons_of_servers_that_are_not_declared_are_few_and_go_with_their_sessions() -> None:
    names = [f"guest-{number:04}" for number in range(2 * MOST_OTHER_REASONS)]
    apps = Apps([WORDS])
    apps.admit("declared", info(number=2, state="failed", reason="ValueError: no"))
    for number in range(2 * MOST_OTHER_REASONS):  # numbers that a declared server does not have
        apps.admit(f"n{number}", info(number=3 + number, state="failed", reason="x"))
    for name in names:
        apps.admit(name, info(name, state="failed", reason="y" * (1 << 20), traceback="z" * (1 << 20)))
    listed = {each["name"]: each for each in apps.to_wire()}
    assert [name for name in names if listed[name]["reason"]] == names[-MOST_OTHER_REASONS:]
    assert max(len(each["reason"]) + len(each["traceback"]) for each in listed.values()) == 2 * MOST_REASON_CHARS
    for name in [*names, "declared", *(f"n{number}" for number in range(2 * MOST_OTHER_REASONS))]:
        apps.gone(name)
    assert [each["name"] for each in apps.to_wire()] == ["words"]
    assert shown(apps)["reason"] == "ValueError: no"
    # One session that fails again and again, each time under another name.
    for number in range(10_000):
        apps.admit("s", info(f"guest-{number}", state="failed", reason="x"))
    assert len(apps.to_wire()) == 2


def test_telling_of_many_servers_looks_at_each_once() -> None:
    def steps(count: int) -> int:
        """Count what the interpreter does, which no other program on the machine changes."""
        apps = Apps([AppServer(f"declared-{number}", "a:B") for number in range(count)])
        for number in range(count):
            apps.admit(f"s{number}", info(f"guest-{number}"))
        done = 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal done
            frame.f_trace_opcodes = True
            done += 1
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            told = apps.to_wire()
        finally:
            sys.settrace(before)
        assert len(told) == 2 * count
        return done

    assert steps(1000) < 15 * steps(100)  # were it quadratic: 100 times


@pytest.mark.parametrize(
    "wrong",
    [
        {"app": 5},
        {"app": ""},
        {"app": "x" * 201},
        {"number": "1"},
        {"state": "well"},
        {"methods": None},
        {"methods": [5]},
        {"methods": [{"name": ["x"]}]},
        {"methods": [{"name": "x" * (5 << 20)}]},
        {"pid": True},
        {"host": "x" * 201},
        {"endpoint": ""},
        {"endpoint": "nonsense"},
        {"endpoint": "ipc://"},
        {"endpoint": "inproc://x"},
        {"endpoint": "ipc://a\0b"},
        {"endpoint": "ipc://" + "x" * 1000},
    ],
)
def test_a_hello_without_what_is_needed_is_refused(wrong: dict[str, Any]) -> None:
    apps = Apps([])
    with pytest.raises(BadCommand):
        apps.admit("s", info(**wrong))
    assert apps.to_wire() == []


# --- the class ------------------------------------------------------------


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    paths, modules = list(sys.path), set(sys.modules)
    count = 0

    def make(source: str, limits: Limits | None = None, kind: str = "Thing") -> Service:
        nonlocal count
        count += 1
        directory = tmp_path / str(count)
        directory.mkdir()
        (directory / f"things_{count}.py").write_text(textwrap.dedent(source))
        (directory / f"bases_{count}.py").write_text("class Base:\n    def inherited(self): return 'base'\n")
        service = Service(AppServer("thing", f"things_{count}:{kind}"), limits or Limits(), [directory])
        service.start(lambda: AppContext(None, None))  # type: ignore[arg-type]  # it is only handed on
        return service

    yield make
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if name.startswith(("things_", "bases_")):
            del sys.modules[name]


def call(service: Service, method: str, *args: Any, **kwargs: Any) -> Any:
    ok, body = service.call(method, codec.pack([list(args), kwargs]))
    value = codec.unpack(body)
    return value if ok else (value["code"], value["type"] or value["message"], value["fix"])


THING = """
    import functools
    from bases_1 import Base

    def helper(): ...

    class Thing(Base, dict):
        limit = 5

        def __init__(self, ctx=None):
            self.ctx, self.told = ctx, []
            self.made = lambda: "not a method of the class"

        def start(self): self.told.append("start")
        def stop(self): self.told.append("stop")
        def events(self): return [type(self.ctx).__name__, *self.told]
        def takes(self, a, /, b=2, *rest, c, **more): return [a, b, list(rest), c, more]
        async def later(self): return "later"
        def within(self): return self.takes()
        @staticmethod
        def still(): return "still"
        @classmethod
        def ours(cls): return cls.limit
        @property
        def shown(self): raise AssertionError("looked at")
        def _hidden(self): ...
        class Inner: ...
"""


def test_the_public_methods_of_the_class_and_of_ones_own_bases_can_be_called(make: Callable[..., Service]) -> None:
    service = make(THING)
    assert [each["name"] for each in service.describe()] == [
        *("events", "inherited", "later", "ours", "still", "takes", "within")
    ]
    assert call(service, "events") == ["AppContext", "start"]
    assert call(service, "takes", 1, 2, 3, c=4, d=5) == [1, 2, [3], 4, {"d": 5}]
    assert [call(service, name) for name in ("later", "still", "ours", "inherited")] == ["later", "still", 5, "base"]
    service.stop()
    assert call(service, "events") == ["AppContext", "start", "stop"]


@pytest.mark.parametrize(
    "name",
    [
        "_hidden",
        "__init__",
        "__class__",
        "start",
        "stop",
        "shown",
        "limit",
        "made",
        "Inner",
        "clear",
        "keys",
        "",
        "x.y",
    ],
)
def test_nothing_else_can_be_called(make: Callable[..., Service], name: str) -> None:
    assert call(make(THING), name)[0] == "unknown_method"


def test_wrong_arguments_name_the_signature(make: Callable[..., Service]) -> None:
    service = make(THING)
    code, text, fix = call(service, "takes", 1)
    assert code == "bad_arguments"
    assert "missing a required" in text
    assert fix == "It is takes(a, /, b=2, *rest, c, **more)."
    assert call(service, "still", 1)[0] == "bad_arguments"
    # Called wrongly by itself is its own fault.
    assert call(service, "within")[:2] == ("app_failed", "TypeError")
    ok, body = service.call("still", codec.pack([[], {5: 1}]))
    assert (ok, codec.unpack(body)["code"]) == (False, "bad_arguments")


@pytest.mark.parametrize(
    ("packed", "code"),
    [
        (b"", "bad_field"),
        (b"\xc1", "bad_field"),
        (codec.pack([1, 2]), "bad_arguments"),
        (codec.pack([[]]), "bad_arguments"),
        (codec.pack({}), "bad_arguments"),
        (codec.pack([["x" * 5000], {}]), "too_large"),
        (codec.pack([eval("[" * 60 + "]" * 60), {}]), "bad_field"),
    ],
)
def test_arguments_of_the_wrong_form_are_refused(make: Callable[..., Service], packed: bytes, code: str) -> None:
    ok, body = make(THING, Limits(data_bytes=4096, depth=50)).call("still", packed)
    assert (ok, codec.unpack(body)["code"]) == (False, code)


def test_what_a_method_raises_is_told_with_its_traceback(make: Callable[..., Service]) -> None:
    service = make(
        """
        from exesys.errors import TooLarge

        class Thing:
            def fail(self, text): raise KeyError(text)
            def leave(self): raise SystemExit(2)
            def ours(self): raise TooLarge("it raised one of ours")
            def odd(self): return object()
            def large(self): return "x" * 5000
            def deep(self, levels):
                value = []
                for _ in range(levels - 1): value = [value]
                return value
    """,
        Limits(data_bytes=4096, depth=50),
    )
    ok, body = service.call("fail", codec.pack([["no"], {}]))
    told = codec.unpack(body)
    assert (ok, told["code"], told["type"], told["message"]) == (False, "app_failed", "KeyError", "'no'")
    assert told["traceback"].splitlines()[1].endswith("in fail")
    assert call(service, "leave")[:2] == ("app_failed", "SystemExit")
    assert call(service, "ours")[:2] == ("app_failed", "TooLarge")
    assert call(service, "odd")[:2] == ("app_failed", "TypeError")
    assert call(service, "large")[0] == "too_large"
    assert type(call(service, "deep", 50)) is list
    assert call(service, "deep", 52)[:2] == ("app_failed", "TypeError")
    told = codec.unpack(service.call("deep", codec.pack([[52], {}]))[1])
    assert "nested deeper than 50 levels" in told["message"]


HARMFUL = """
    from datetime import datetime
    from exesys import errors

    class Mute(Exception):
        def __str__(self): raise SystemExit(3)

    class Noted(Exception):
        @property
        def __notes__(self): raise KeyboardInterrupt

    class Named(type):
        @property
        def __name__(cls): raise KeyboardInterrupt

    class Nameless(Exception, metaclass=Named): ...

    class Value:
        @property
        def __class__(self): raise SystemExit(4)

    class Broken(datetime):
        def isoformat(self): raise KeyboardInterrupt

    class Shown:
        def __repr__(self): raise SystemExit(5)

    class Thing:
        def mute(self): raise Mute
        def noted(self): raise Noted
        def nameless(self): raise Nameless
        def value(self): return Value()
        def broken(self): return Broken(2024, 1, 1)
        async def within(self): raise Mute
        def shown(self, value=Shown()): return 5
        def well(self): return "well"
"""


@pytest.mark.parametrize("method", ["mute", "noted", "nameless", "value", "broken", "within"])
def test_whatever_a_method_does_its_caller_is_answered_and_its_thread_goes_on(
    make: Callable[..., Service], eventually: Callable[..., Any], method: str
) -> None:
    crew = Crew(make(HARMFUL), lambda: AppContext(None, None), lambda: None)  # type: ignore[arg-type]  # as below
    crew.begin()
    eventually(lambda: crew.ready)
    for tag, name in enumerate((method, "well")):
        crew.take(b"a", m.Call(tag, name, codec.pack([[], {}]), 5.0), time.monotonic())
    eventually(lambda: len(crew.answers) == 2)
    assert answers(crew) == {0: (False, "app_failed"), 1: (True, "well")}
    eventually(lambda: crew.running == 0)
    crew.leave()
    eventually(lambda: crew.ended)


def test_wrong_arguments_are_told_though_the_signature_cannot_be_shown(make: Callable[..., Service]) -> None:
    service = make(HARMFUL)
    code, _, fix = call(service, "shown", 1, 2)
    assert (code, fix) == ("bad_arguments", "It is shown(…).")
    assert {"name": "shown", "signature": "(…)", "doc": ""} in service.describe()


@pytest.mark.parametrize(
    ("source", "kind", "error", "said"),
    [
        ("class Thing: ...", "Other", ConfigError, "Its classes are: Thing."),
        ("from pathlib import Path", "Path", ConfigError, "It defines no public class."),
        ("Thing = 5", "Thing", ConfigError, "defines no class Thing"),
        ("import nothing_of_this_name", "Thing", ModuleNotFoundError, "nothing_of_this_name"),
        ("class Thing:\n    def __init__(self): raise OSError('no file')", "Thing", OSError, "no file"),
        ("class Thing:\n    def __init__(self, size): ...", "Thing", TypeError, "size"),
        ("class Thing:\n    def start(self): raise OSError('no port')", "Thing", OSError, "no port"),
        ("class Thing:\n    async def start(self): raise OSError('late')", "Thing", OSError, "late"),
    ],
)
def test_a_class_that_cannot_be_started_says_why(
    make: Callable[..., Service], source: str, kind: str, error: type[Exception], said: str
) -> None:
    with pytest.raises(error) as caught:
        make(source, kind=kind)
    assert said in str(caught.value)


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[appserver:a\] class is 'no:Such': there is no file no.py in"):
        Service(AppServer("a", "no:Such"), Limits(), [tmp_path]).start(lambda: AppContext(None, None))  # type: ignore[arg-type]  # never made


# --- the crew -------------------------------------------------------------


def answers(crew: Crew) -> dict[int, tuple[bool, Any]]:
    """Take the answers there are, by tag: whether it went well, and the value or the code."""
    found = {}
    while crew.answers:
        answer = wire.decode_at_caller(crew.answers.popleft()[1])
        assert isinstance(answer, m.Return)
        body = codec.unpack(answer.body)
        found[answer.tag] = (answer.ok, body if answer.ok else body["code"])
    return found


HELD = """
    import threading

    class Thing:
        gate = threading.Event()
        def held(self): return self.gate.wait(10)
        def stop(self): raise OSError("it ends all the same")
"""


def test_a_crew_refuses_what_is_too_much_and_gives_back_what_did_not_begin(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    monkeypatch.setattr(appcrew, "MOST_WAITING", 3)
    service = make(HELD)
    woken = threading.Event()
    crew = Crew(service, lambda: AppContext(None, None), woken.set)  # type: ignore[arg-type]  # it is only handed on
    packed = codec.pack([[], {}])
    crew.take(b"a", m.Call(0, "held", packed, 5.0), time.monotonic())
    assert answers(crew) == {0: (False, "app_unavailable")}, "not before it is ready"
    crew.begin()
    eventually(lambda: crew.ready)
    crew.take(b"a", m.Call(1, "held", packed, 5.0), time.monotonic())
    eventually(lambda: crew.running == 1)
    for tag in range(2, 6):
        crew.take(b"a", m.Call(tag, "held", packed, 5.0), time.monotonic())
    assert answers(crew) == {5: (False, "queue_full")}
    crew.leave()
    assert answers(crew) == {tag: (False, "app_unavailable") for tag in (2, 3, 4)}
    crew.take(b"a", m.Call(6, "held", packed, 5.0), time.monotonic())
    assert answers(crew) == {6: (False, "app_unavailable")}
    assert not crew.ended
    service._instance.gate.set()
    eventually(lambda: crew.ended)
    assert answers(crew) == {1: (True, True)}
    assert woken.is_set()


def test_a_thread_that_ends_unasked_ends_the_process(
    make: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, eventually: Callable[..., Any]
) -> None:
    service = make(HELD)
    woken = threading.Event()
    crew = Crew(service, lambda: AppContext(None, None), woken.set)  # type: ignore[arg-type]  # as above
    crew.begin()
    eventually(lambda: crew.ready)
    woken.clear()
    monkeypatch.setattr(service, "call", lambda name, packed: sys.exit("as if the interpreter had no memory"))
    assert not crew.done
    crew.take(b"a", m.Call(1, "held", codec.pack([[], {}]), 5.0), time.monotonic())
    eventually(lambda: crew.broken)
    eventually(woken.is_set)
    assert (crew.running, crew.ended, crew.done) == (0, False, True)


def test_a_call_whose_time_is_over_when_its_turn_comes_is_not_run(
    make: Callable[..., Service], eventually: Callable[..., Any]
) -> None:
    crew = Crew(make(HELD), lambda: AppContext(None, None), lambda: None)  # type: ignore[arg-type]  # as above
    crew.begin()
    eventually(lambda: crew.ready)
    for tag, limit_s in enumerate((0.5, 0, -1, float("nan"))):
        crew.take(b"a", m.Call(tag, "held", codec.pack([[], {}]), limit_s), time.monotonic() - 1)
    eventually(lambda: len(crew.answers) == 4)
    assert set(answers(crew).values()) == {(False, "app_timeout")}
    crew.leave()
    eventually(lambda: crew.ended)


def test_a_stale_socket_is_removed_with_the_others(tmp_path_factory: pytest.TempPathFactory) -> None:
    home = tmp_path_factory.mktemp("h")
    config = configuration.parse("", None, {"EXESYS_HOME": str(home)}, home, home)
    config.run.mkdir()
    with socket.socket(socket.AF_UNIX) as stale, socket.socket(socket.AF_UNIX) as listening:
        stale.bind(str(config.run / "bus.a-words-1"))
        listening.bind(str(config.run / "bus.a-words-2"))
        stale.close()
        listening.listen()
        teardown.forget(config)
    assert [path.name for path in config.run.iterdir()] == ["bus.a-words-2"]
