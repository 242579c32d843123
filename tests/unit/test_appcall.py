"""The caller's side of application servers, against instances that are made up here and die at will."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zmq

from exesys import codec
from exesys import config as configuration
from exesys.bus import messages as m
from exesys.bus import sockets, wire
from exesys.bus.appcall import Apps
from exesys.bus.applines import Line, Unreached
from exesys.errors import AppLost, AppTimeout, AppUnavailable, BadArguments, Unavailable, UnknownApp, UnknownMethod

AT_ONCE_S = 0.5


class Instance:
    """Answers each call by `answer`; one that gives None is not answered."""

    def __init__(self, endpoint: str, answer: Callable[[m.Call], m.Return | None]) -> None:
        self.endpoint = endpoint
        self.calls: list[m.Call] = []
        self._answer = answer
        self._context = zmq.Context[sockets.Socket]()
        self._front, _ = sockets.bind(self._context, zmq.ROUTER, endpoint)
        self._front.linger = 0
        self._dying = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while not self._dying:
            if self._front.poll(5):
                address, frame = self._front.recv_multipart()
                if frame == b"":
                    continue
                call = wire.decode_at_app(frame)
                assert isinstance(call, m.Call)
                self.calls.append(call)
                answer = self._answer(call)
                if answer is not None:
                    self._front.send_multipart([address, wire.encode(answer)])
        self._front.close()
        self._context.term()

    def die(self) -> None:
        self._dying = True
        self._thread.join()


def echo(call: m.Call) -> m.Return:
    return m.Return(call.tag, True, codec.pack(codec.unpack(call.args)[0][0]))


def leaving(call: m.Call) -> m.Return:
    told = {"code": "app_unavailable", "message": "leaving", "field": "", "fix": ""}
    return m.Return(call.tag, False, codec.pack(told))


class Router:
    """Tells of the instances that it was given."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.present: dict[int, Instance] = {}
        self.asked = 0
        self.away = False
        self.reason = ""
        self.strays: list[str] = []  # endpoints at which nobody is
        self.apps = Apps(configuration.parse("", None, {}, directory, directory), self.ask)

    def ask(self, parts: tuple[str, ...], then: Callable[[dict[str, Any]], None]) -> bool:
        assert parts == ("apps",)
        self.asked += 1
        if self.away:
            return False
        found = [{"number": number, "state": "ready", "endpoint": one.endpoint} for number, one in self.present.items()]
        found += [{"number": 9, "state": "ready", "endpoint": endpoint} for endpoint in self.strays]
        state = "ready" if found else "failed" if self.reason else "away"
        app = {"name": "app", "state": state, "reason": self.reason, "timeout_s": 2.0, "instances": found}
        threading.Thread(target=then, args=({"apps": [app]},)).start()
        return True

    def put(self, number: int, answer: Callable[[m.Call], m.Return | None] = echo) -> Instance:
        self.present[number] = Instance(f"ipc://{self.directory}/a-{number}", answer)
        return self.present[number]


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    router = Router(tmp_path)
    yield router
    router.apps.close()
    for instance in router.present.values():
        instance.die()


def held() -> int:
    return len(os.listdir("/proc/self/fd")) + threading.active_count()


def test_a_line_is_kept_and_used_again(router: Router) -> None:
    router.put(1)
    app = router.apps.app("app")
    assert app.echo({"a": 1}) == {"a": 1}
    before = held()
    assert [app.echo(number) for number in range(1000)] == list(range(1000))
    assert held() <= before
    assert router.asked == 1


def test_each_thread_has_a_line_of_its_own(router: Router) -> None:
    router.put(1)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(router.apps.app("app").echo, range(400))) == list(range(400))


def test_equals_take_turns_and_the_idle_one_comes_first(router: Router) -> None:
    gate = threading.Event()

    def held_up(call: m.Call) -> m.Return:
        if codec.unpack(call.args)[0] == ["slow"]:
            gate.wait(10)
        return echo(call)

    instances = [router.put(1, held_up), router.put(2, held_up)]
    with ThreadPoolExecutor(1) as pool:
        app = router.apps.app("app", timeout_s=10)
        waits = pool.submit(app.echo, "slow")
        while not any(instance.calls for instance in instances):
            time.sleep(0.001)
        slow, idle = sorted(instances, key=lambda instance: -len(instance.calls))
        for number in range(10):
            assert app.echo(number) == number
        assert (len(slow.calls), len(idle.calls)) == (1, 10)
        gate.set()
        assert waits.result(10) == "slow"
    for number in range(10):
        app.echo(number)
    assert (len(slow.calls), len(idle.calls)) == (6, 15)


def test_fifty_deaths_fail_at_once_and_leave_nothing(router: Router, eventually: Callable[..., Any]) -> None:
    app = router.apps.app("app", timeout_s=10)
    before = None
    for number in range(50):
        came = threading.Event()
        instance = router.put(1, lambda call, came=came: came.set())  # type: ignore[misc]  # it answers nothing
        with ThreadPoolExecutor(1) as pool:
            lost = pool.submit(app.echo, number)
            assert came.wait(10)
            since = time.monotonic()
            instance.die()
            with pytest.raises(AppLost, match="whether it ran is not known"):
                lost.result(10)
            assert time.monotonic() - since < AT_ONCE_S
        if number == 5:
            before = held()
    eventually(lambda: before is not None and held() <= before)  # the made-up router answers in threads of its own
    router.put(1)
    assert app.echo("well") == "well"


def test_what_did_not_begin_goes_to_another(router: Router) -> None:
    away = router.put(1, leaving)
    router.put(2)
    app = router.apps.app("app")
    assert [app.echo(number) for number in range(6)] == list(range(6))
    assert len(away.calls) >= 1
    away.die()
    assert [app.echo(number) for number in range(6)] == list(range(6))


def test_a_call_waits_for_an_instance_and_says_why_there_is_none(router: Router) -> None:
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(router.apps.app("app", timeout_s=10).echo, 1)
        while not router.asked:
            time.sleep(0.001)
        router.put(1)
        assert waits.result(10) == 1
    gone = router.present.pop(1)
    gone.die()
    while any(line.up for line in router.apps._lines._idle[gone.endpoint]):
        time.sleep(0.001)  # until the kernel has told: a call in that very moment is lost, not late
    since = time.monotonic()
    with pytest.raises(AppUnavailable, match=r"no instance of the application server app is there within 0.3 s"):
        router.apps.app("app", timeout_s=0.3).echo(1)
    assert 0.25 < time.monotonic() - since < 0.3 + AT_ONCE_S
    since = time.monotonic()
    with pytest.raises(AppUnavailable):
        router.apps.app("app", wait=False).echo(1)
    router.reason = "ValueError: no"
    with pytest.raises(AppUnavailable, match="is there: ValueError: no"):
        router.apps.app("app", timeout_s=10).echo(1)
    assert time.monotonic() - since < AT_ONCE_S


def test_an_unknown_name_fails_at_once_and_silence_of_the_router_in_time(router: Router) -> None:
    since = time.monotonic()
    with pytest.raises(UnknownApp, match="Did you mean `app`"):
        router.apps.app("apps").echo(1)
    assert time.monotonic() - since < AT_ONCE_S
    router.put(1)
    router.apps.app("app").echo(1)
    router.away = True
    assert router.apps.app("app").echo(2) == 2
    since = time.monotonic()
    with pytest.raises(Unavailable, match="the router does not answer"):
        router.apps.app("other", timeout_s=0.1).echo(1)
    assert time.monotonic() - since < 0.1 + AT_ONCE_S


def test_the_time_is_over_and_a_late_answer_is_nobodys(router: Router) -> None:
    late: list[m.Return] = []

    def answer(call: m.Call) -> m.Return | None:
        late.append(echo(call))
        return late[0] if len(late) > 1 else None  # the answer to the first call, to the second

    router.put(1, answer)
    app = router.apps.app("app", timeout_s=0.2)
    for _ in range(2):
        since = time.monotonic()
        with pytest.raises(AppTimeout, match=r"app.echo has not answered within 0.2 s"):
            app.echo("x")
        assert time.monotonic() - since < 0.2 + AT_ONCE_S
    with pytest.raises(BadArguments):
        router.apps.app("app", timeout_s=0).echo(1)


def test_lines_that_are_opened_and_closed_fast_do_not_disturb_each_other(tmp_path: Path) -> None:
    context = zmq.Context[sockets.Socket]()
    for _ in range(200):  # libzmq counts what was closed until it has found time for it, and has no more than 1,023
        sockets.end_line(*sockets.line(context, f"ipc://{tmp_path}/nobody"))
        with pytest.raises(ValueError, match="is no endpoint"):
            sockets.line(context, "nonsense")
    ended = threading.Thread(target=context.term, daemon=True)
    ended.start()
    ended.join(10)
    assert not ended.is_alive(), "a socket was left"


@pytest.fixture
def one_line(tmp_path: Path) -> Iterator[tuple[sockets.Socket, bytes, Line, Callable[[], None]]]:
    """Give an instance's socket, the address of the one line to it, the line, and what ends the instance."""
    context, served = zmq.Context[sockets.Socket](), zmq.Context[sockets.Socket]()
    front, endpoint = sockets.bind(served, zmq.ROUTER, f"ipc://{tmp_path}/front")
    line = Line(context, endpoint, None)
    assert line.open(time.monotonic() + 10)
    address, probe = front.recv_multipart()
    assert probe == b""

    def end() -> None:
        front.close()
        served.term()

    yield front, address, line, end
    line.close()
    context.term()
    end()


FAREWELL = wire.encode(m.Return(m.FAREWELL, False, b""))


def test_a_call_that_met_the_farewell_did_not_run(one_line: Any) -> None:
    front, address, line, end = one_line
    assert line.up
    front.send_multipart([address, FAREWELL])
    end()
    with pytest.raises(Unreached):
        line.exchange(m.Call(1, "echo", b"", 1.0), time.monotonic() + 10, lambda: False)
    assert not line.up


@pytest.mark.parametrize("farewell", [True, False])
def test_an_answer_is_read_although_the_instance_is_gone(
    one_line: Any, farewell: bool, eventually: Callable[..., Any]
) -> None:
    front, address, line, end = one_line
    front.send_multipart([address, wire.encode(m.Return(1, True, b"x"))])
    if farewell:
        front.send_multipart([address, FAREWELL])
    end()
    eventually(lambda: not line.up)
    answer = line.exchange(m.Call(1, "echo", b"", 1.0), time.monotonic() + 10, lambda: False)
    assert answer == m.Return(1, True, b"x")
    assert not line.up, "the next call looks for another line"


def test_a_call_whose_instance_ends_without_a_word_may_have_run(one_line: Any) -> None:
    _, _, line, end = one_line
    end()
    with pytest.raises(AppLost):
        line.exchange(m.Call(1, "echo", b"", 1.0), time.monotonic() + 10, lambda: False)


@pytest.mark.parametrize("nonsense", ["nonsense", "tcp://no port", "ipc://", "ipc://" + "x" * 1000])
def test_an_endpoint_that_is_none_is_as_one_that_is_away(
    router: Router, nonsense: str, eventually: Callable[..., Any]
) -> None:
    router.put(1)
    router.strays = [nonsense]
    before = held()
    for number in range(40):
        assert router.apps.app("app").echo(number) == number
        router.apps._shunned.clear()
    # One line is kept; libzmq closes what was ended in its own time.
    eventually(lambda: held() < before + 20)
    router.present.pop(1).die()

    def call() -> None:
        while True:
            with contextlib.suppress(AppLost):  # by the line that was kept, until libzmq has told that it is down
                router.apps.app("app", timeout_s=0.3).echo(1)

    with pytest.raises(AppUnavailable):
        call()


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ((["x"], "echo"), BadArguments, "the name of an application server is text"),
        ((5, "echo"), BadArguments, "the name of an application server is text"),
        ((None, "echo"), BadArguments, "the name of an application server is text"),
        (("app", 5), UnknownMethod, "5 is no name of a method"),
        (("app", None), UnknownMethod, "None is no name of a method"),
        (("app", "\ud800"), UnknownMethod, "is no name of a method"),
        (("app", "_echo"), UnknownMethod, "app._echo is private"),
        (("app", "echo", 5), BadArguments, "of the types int and dict"),
        (("app", "echo", "text"), BadArguments, "of the types str and dict"),
        (("app", "echo", None), BadArguments, "of the types NoneType and dict"),
        (("app", "echo", [1], [2]), BadArguments, "of the types list and list"),
        (("app", "echo", [1], []), BadArguments, "of the types list and list"),
        (("app", "echo", [1], "text"), BadArguments, "of the types list and str"),
    ],
)
def test_what_is_of_a_wrong_kind_is_refused_and_not_sent(
    router: Router, given: tuple[Any, ...], error: type[Exception], said: str
) -> None:
    instance = router.put(1)
    with pytest.raises(error, match=said):
        router.apps.call(*given)
    assert instance.calls == []
    if not isinstance(given[0], str):
        with pytest.raises(error, match=said):
            router.apps.app(given[0])


def test_closing_fails_what_is_under_way(router: Router) -> None:
    came = threading.Event()
    router.put(1, lambda call: came.set())  # type: ignore[func-returns-value]  # it answers nothing
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(router.apps.app("app", timeout_s=30).echo, 1)
        assert came.wait(10)
        router.apps.close()
        with pytest.raises(Unavailable, match="closed"):
            waits.result(10)
    with pytest.raises(Unavailable, match="closed"):
        router.apps.app("app").echo(1)
