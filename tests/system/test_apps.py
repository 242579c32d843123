"""Application servers, called from everywhere, with real deaths."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import msgpack
import pytest
import zmq
from harness import MODULES, children, until

from exesys import AsyncClient, bootstrap, errors

INI = """
[appserver:desk]
class = services:Desk

[appserver:pair]
class = services:Desk
processes = 2

[appserver:crew]
class = services:Desk
threads = 4

[appserver:brief]
class = services:Desk
timeout_s = 0.3

[appserver:versions]
class = versions:Versions

[appserver:words]
class = word_dict:Dictionary
"""
VERSIONS = '''
import os


class Versions:
    def number(self):
        """Tell the version."""
        return [{number}, os.getpid()]
'''
REST_THREADS = 16
AT_ONCE_S = 1.5


@pytest.fixture(scope="module")
def modules(tmp_path_factory):
    directory = tmp_path_factory.mktemp("versions")
    (directory / "versions.py").write_text(VERSIONS.format(number=1))
    return directory


@pytest.fixture(scope="module")
def system(make_module, modules):
    return make_module(modules=(*MODULES, modules), ini=INI, rest_threads=REST_THREADS)


@pytest.fixture(scope="module")
def client(system):
    with system.client() as client:
        yield client


@pytest.fixture
def name():
    return f"apps-{uuid.uuid4()}"


def pid_of(system, program="appserver-desk"):
    return system.pids()[program]


def supervisorctl(system, *words):
    conf = str(system.home / "supervisord.conf")
    done = subprocess.run(
        [sys.executable, "-m", "supervisor.supervisorctl", "-c", conf, *words], capture_output=True, text=True
    )
    return done.stdout


def post(system, path, body=None, kind="application/json"):
    sent = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
    return system.request("POST", path, sent, {"Content-Type": kind} if sent is not None else {})


@contextlib.contextmanager
def calling(client, app="desk", threads=3):
    """Call all the time from several threads, and gather what fails; every answer is checked."""
    stop = threading.Event()
    failed, done = [], [0] * threads

    def call(number):
        while not stop.is_set():
            try:
                assert client.app(app, timeout_s=20).echo([number, done[number]]) == [number, done[number]]
                done[number] += 1
            except Exception as error:  # noqa: BLE001  # it is gathered
                failed.append(error)

    with ThreadPoolExecutor(threads) as pool:
        for number in range(threads):
            pool.submit(call, number)
        try:
            until(lambda: all(done), "every thread has called")
            yield failed, done
            seen = list(done)
            until(lambda: all(now > then for now, then in zip(done, seen, strict=True)), "every thread goes on")
        finally:
            stop.set()


# --- calls from everywhere --------------------------------------------------------


def test_a_client_calls(client):
    desk = client.app("desk")
    assert desk.echo({"a": [1, b"\0", {2, 3}]}) == {"a": [1, b"\0", {2, 3}]}
    assert desk.keep("x", 5, times=2) == 1
    assert desk.kept(name="x") == [5, 5]
    assert desk.later(0.01) == "awaited"
    assert desk.plain() == "plain"
    assert desk.where()["same_thread"]


def test_an_async_client_calls_side_by_side(system):
    async def main():
        async with AsyncClient(system.config) as client:
            crew = client.app("crew")
            since = time.monotonic()
            assert await asyncio.gather(*(crew.sleep(1.0) for _ in range(4))) == [1.0] * 4
            assert time.monotonic() - since < 2.9
            with pytest.raises(errors.AppError, match="ValueError: no"):
                await crew.fail("no")

    asyncio.run(main())


def test_a_function_calls(client):
    assert client.run("asks", ["desk", "echo", "from a function"], 10) == "from a function"
    told = client.run("asks_in_vain", ["desk", "fail", "the reason"], 10)
    assert told == "AppError: desk.fail raised ValueError: the reason"
    with pytest.raises(errors.JobError) as caught:
        client.run("asks", ["desk", "fail", "the reason"], 10)
    assert caught.value.type == "AppError"
    assert "raise ValueError(text)" in caught.value.traceback


def test_the_example_knows_near_words(client, system):
    with system.redis(1) as redis:
        redis.zadd("text:books:terms", {"license": 3, "licence": 1, "fox": 2})
        redis.set("text:books:changed", name := uuid.uuid4().hex)
    assert client.run("asks", ["words", "suggest", "licens", "books"], 10) == ["license", "licence"]
    assert post(system, "/apps/words/known", {"words": ["fox", "dog"], "index": "books"}).body["result"] == {
        "fox": 2,
        "dog": 0,
    }
    with system.redis(1) as redis:
        assert redis.get("text:books:changed") == name.encode(), "it only reads"
        redis.delete("text:books:terms", "text:books:changed")
    assert client.app("words").size("books") == 0


def test_rest_calls(system):
    assert post(system, "/apps/desk/echo", [1]).body == {"app": "desk", "method": "echo", "result": 1}
    assert post(system, "/apps/desk/echo", {"value": [1]}).body["result"] == [1]
    assert post(system, "/apps/desk/echo", "text").body["result"] == "text"
    assert post(system, "/apps/desk/echo").body["result"] is None


def test_the_command_line_calls(system):
    assert system.exesys("app", "call", "desk", "echo", '["x"]').json == "x"
    said = system.exesys("app", "call", "desk", "keep", '{"name": "cli", "value": 1}', "--json").json
    assert (said["app"], said["method"], type(said["result"])) == ("desk", "keep", int)
    failed = system.exesys("app", "call", "desk", "fail", "no")
    assert (failed.code, failed.out) == (1, "")
    assert "desk.fail raised ValueError: no" in failed.err
    assert "services.py" in failed.err
    assert system.exesys("app", "call", "desk", "sleep", "1", "--timeout", "0.1").code == 4
    assert system.exesys("app", "call", "desk", "ecko").code == 2
    assert "desk\tready\t1 of 1\tservices:Desk" in system.exesys("app", "list").out
    assert "echo(value: Any = None) -> Any: Give back what it got." in system.exesys("app", "show", "desk").out


def test_another_language_calls(system):
    """With nothing but ZeroMQ and MessagePack, as docs/protocol.md tells."""
    context = zmq.Context()
    with context.socket(zmq.DEALER) as front, context.socket(zmq.DEALER) as line:
        for socket in (front, line):
            socket.linger = 0
            socket.rcvtimeo = 10_000

        def ask(socket, *message):
            socket.send(msgpack.packb(list(message)))
            return msgpack.unpackb(socket.recv())

        front.connect(system.config.bus_endpoint)
        assert ask(front, "HELLO", 1, "client", uuid.uuid4().hex[:16], "", {})[0] == "WELCOME"
        apps = ask(front, "SYNC", 5, ["apps"])[4]["apps"]
        [instance] = next(app for app in apps if app["name"] == "desk")["instances"]
        line.connect(instance["endpoint"])
        kind, tag, ok, body = ask(line, "CALL", 7, "echo", msgpack.packb([[1], {}]), 5)
        assert (kind, tag, ok, msgpack.unpackb(body)) == ("RETURN", 7, True, 1)
        kind, tag, ok, body = ask(line, "CALL", 8, "fail", msgpack.packb([["no"], {}]), 5.0)
        told = msgpack.unpackb(body)
        assert (kind, tag, ok, told["code"], told["type"]) == ("RETURN", 8, False, "app_failed", "ValueError")
        for wrong in (b"", b"\xc1", msgpack.packb(["CALL", 1]), msgpack.packb(["HELLO", 1]), msgpack.packb([])):
            line.send(wrong)
            assert msgpack.unpackb(line.recv())[:2] == ["ERROR", "bad_message"]
        for wrong in (b"", b"\xc1", msgpack.packb([1, 2]), msgpack.packb({})):
            _, tag, ok, body = ask(line, "CALL", 9, "echo", wrong, 5)
            assert (tag, ok) == (9, False)
            assert msgpack.unpackb(body)["code"] in ("bad_field", "bad_arguments")
        assert ask(line, "CALL", 10, "echo", msgpack.packb([[3], {}]), 5)[2:] == [True, b"\x03"]
    context.term()


# --- what can go wrong with a call ------------------------------------------------

WRONG = [
    ("/apps/desk/ecko", None, 404, "unknown_method", "Did you mean `echo`?"),
    ("/apps/desk/_secret", None, 404, "unknown_method", ""),
    ("/apps/desk/__init__", None, 404, "unknown_method", ""),
    ("/apps/desk/start", None, 404, "unknown_method", "It has:"),
    ("/apps/desk/stop", [], 404, "unknown_method", "It has:"),
    ("/apps/desk/shown", None, 404, "unknown_method", ""),
    ("/apps/desk/fail", None, 400, "bad_arguments", "It is fail(text: str) -> None."),
    ("/apps/desk/fail", [1, 2], 400, "bad_arguments", "It is fail"),
    ("/apps/desk/fail", {"txet": 1}, 400, "bad_arguments", "It is fail"),
    ("/apps/desk/fail", ["no"], 500, "app_failed", ""),
    ("/apps/desk/fail_within", None, 500, "app_failed", ""),
    ("/apps/desk/leave", None, 500, "app_failed", ""),
    ("/apps/desk/unsendable", None, 500, "app_failed", ""),
    ("/apps/desk/large", 2 << 20, 413, "too_large", "Return less"),
    ("/apps/desk/echo", ["x" * (2 << 20)], 413, "too_large", "Send less"),
    ("/apps/desk/echo", b"[" * 150 + b"]" * 150, 400, "bad_field", "Flatten"),
    ("/apps/desk/echo", b"[", 400, "bad_json", ""),
    ("/apps/deks/echo", None, 404, "unknown_app", "Did you mean `desk`?"),
    ("/apps/desk/echo?timeout=0", None, 400, "bad_field", ""),
    ("/apps/desk/echo?timeout=nan", None, 400, "bad_field", ""),
    ("/apps/desk/echo?time=1", None, 400, "bad_field", "timeout"),
    ("/apps/desk/sleep?timeout=0.2", 0.4, 504, "app_timeout", ""),
    ("/apps/brief/sleep", 0.5, 504, "app_timeout", ""),
]


def test_what_is_wrong_is_told_and_leaves_nothing(system):
    before = system.everything()
    for path, body, status, code, fix in WRONG:
        answer = post(system, path, body)
        assert (answer.status, answer.error["code"]) == (status, code), (path, answer)
        assert fix in answer.error["fix"], (path, answer)
    assert post(system, "/apps/desk/echo", "x", kind="text/plain").status == 415
    assert system.get("/apps/desk/echo").status == 405
    assert system.get("/apps/deks").error["code"] == "unknown_app"
    assert post(system, "/apps/desk/echo", [1]).body["result"] == 1
    assert system.everything() == before


def test_errors_have_type_text_and_traceback(client):
    with pytest.raises(errors.AppError) as caught:
        client.app("desk").fail("the text")
    assert (caught.value.type, caught.value.text) == ("ValueError", "the text")
    assert "raise ValueError(text)" in caught.value.traceback
    assert "exesys/" not in caught.value.traceback
    with pytest.raises(errors.UnknownMethod):
        client.app("desk")._secret()
    with pytest.raises(errors.BadCommand):
        client.app("desk").echo(object())
    for wrong in (0, -1, float("nan"), "1", True):
        with pytest.raises(errors.BadArguments, match="timeout_s"):
            client.app("desk", timeout_s=wrong).echo()


def test_an_unknown_server_is_refused_at_once(client):
    since = time.monotonic()
    with pytest.raises(errors.UnknownApp, match="'nobody'"):
        client.app("nobody").echo()
    assert time.monotonic() - since < AT_ONCE_S


def test_a_call_that_waited_too_long_is_not_run(client, system, name):
    gate = system.root / name
    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(client.app("desk", timeout_s=20).wait_for_file, str(gate))
        until((system.root / f"{name}.waits").exists, "the one thread is held")
        with pytest.raises(errors.AppTimeout):
            client.app("desk", timeout_s=0.2).count(name)
        with pytest.raises(errors.AppTimeout):  # its time counts from when the instance took it, which may be late
            client.app("desk", timeout_s=1).echo(name)
        gate.touch()
        assert held.result(10) == str(gate)
    assert client.app("desk").count(name) == 1


# --- side by side -----------------------------------------------------------------


def test_one_call_at_a_time_unless_there_are_threads(client):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: client.app("desk").sleep(0.02), range(8)))
        list(pool.map(lambda _: client.app("crew").sleep(0.1), range(8)))
    assert client.app("desk").most() == 1
    assert client.app("crew").most() == 4


def test_processes_share_the_calls(client, name):
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: client.app("pair").meet(name, 2), range(2)))
    assert len(set(found)) == 2
    since = [client.app("pair").where()["pid"] for _ in range(10)]
    assert {since.count(pid) for pid in found} == {5}, "equals in turn"


def test_a_slow_server_leaves_threads_to_rest(system):
    with ThreadPoolExecutor(REST_THREADS) as pool:
        calls = [pool.submit(post, system, "/apps/crew/sleep", 1.0) for _ in range(REST_THREADS)]
        until(lambda: any(call.done() for call in calls), "one was refused")
        since = time.monotonic()
        assert system.get("/healthz").status == 200
        assert system.post({"cmd": "echo", "data": 1}, wait=5).status == 200
        assert post(system, "/apps/desk/echo", 1).status == 200
        assert time.monotonic() - since < AT_ONCE_S
        answers = [call.result() for call in calls]
    assert sorted({answer.status for answer in answers}) == [200, 429]
    assert [answer.status for answer in answers].count(200) == REST_THREADS // 4
    assert {answer.headers.get("retry-after") for answer in answers if answer.status == 429} == {"1"}


# --- what there is to know ---------------------------------------------------------


def test_rest_tells_what_is_there(system):
    listed = {each["name"]: each for each in system.get("/apps").body["apps"]}
    assert set(listed) == {"desk", "pair", "crew", "brief", "versions", "words"}
    assert {each["state"] for each in listed.values()} == {"ready"}
    assert [one["number"] for one in listed["pair"]["instances"]] == [1, 2]
    assert listed["crew"]["threads"] == 4
    assert listed["brief"]["timeout_s"] == 0.3
    desk = system.get("/apps/desk").body
    assert desk["instances"][0]["pid"] == pid_of(system)
    methods = {method["name"]: method for method in desk["methods"]}
    assert not {"start", "stop", "_secret", "shown"} & methods.keys()
    assert methods["echo"] == {
        "name": "echo",
        "signature": "(value: Any = None) -> Any",
        "doc": "Give back what it got.",
    }


# --- deaths -----------------------------------------------------------------------


def test_a_call_under_way_fails_at_once_when_its_instance_is_killed(client, system, name, tell):
    gate = system.root / name
    before = pid_of(system)
    died = []

    def kill():
        died.append(time.monotonic())
        os.kill(before, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(client.app("desk", timeout_s=30).wait_for_file, str(gate))
        until((system.root / f"{name}.waits").exists, "the call is under way")
        kill()
        with pytest.raises(errors.AppLost, match="whether it ran is not known"):
            held.result(10)
        took_s = time.monotonic() - died[0]
    tell(f"kill -9 of an application server: its call failed after {took_s * 1000:.0f} ms")
    assert took_s < AT_ONCE_S
    assert client.app("desk").where()["pid"] != before, "a call waits for the new one"


def test_a_restart_is_only_a_delay(client, system):
    before = pid_of(system)
    with calling(client) as (failed, _):
        assert "started" in supervisorctl(system, "restart", "exesys:appserver-desk")
        until(lambda: pid_of(system) != before, "a new one runs")
    assert failed == []
    with system.redis(1) as redis:
        told = [line.decode() for line in redis.lrange("desk:told", 0, -1)]
    assert told.index(f"start {before}") < told.index(f"stop {before}")


def test_a_reload_brings_new_code_into_the_same_process(client, system, modules):
    number, pid = client.app("versions").number()
    with calling(client) as (failed, _):
        (modules / "versions.py").write_text(VERSIONS.format(number=number + 1))
        said = system.exesys("reload")
        assert said.code == 0
        assert "versions ready" in said.out
        assert client.app("versions").number() == [number + 1, pid]
    assert failed == []


def test_calls_go_on_without_the_router(client, system):
    router = system.pids()["router"]
    with calling(client) as (failed, done):
        os.kill(router, signal.SIGSTOP)
        try:
            seen = sum(done)
            until(lambda: sum(done) > seen + 100, "calls go on")
        finally:
            os.kill(router, signal.SIGKILL)
        until(lambda: system.pids().get("router", router) != router and system.ready(), "a new router serves")
        until(lambda: system.get("/apps/desk").body["state"] == "ready", "it knows who is there")
    assert failed == []


def test_a_class_that_cannot_be_started_is_told_everywhere(client, system):
    with system.redis(1) as redis:
        redis.set("desk:broken", "the dictionary is gone")
        try:
            supervisorctl(system, "restart", "exesys:appserver-brief")
            until(lambda: system.get("/apps/brief").body["reason"], "the router knows")
            assert "the dictionary is gone" in system.get("/apps/brief").body["traceback"]
            since = time.monotonic()
            with pytest.raises(errors.AppUnavailable, match="RuntimeError: the dictionary is gone"):
                client.app("brief", timeout_s=5).echo()
            assert time.monotonic() - since < 5
            assert post(system, "/apps/brief/echo").error["code"] == "app_unavailable"

            def state():
                found = {each["name"]: each["state"] for each in bootstrap.status(system.config)["programs"]}
                return found["appserver-brief"]

            until(lambda: state() == "BACKOFF", "supervisord shows it")
            assert "the dictionary is gone" in system.exesys("status").err
            assert "brief does not start: RuntimeError: the dictionary is gone" in system.exesys("doctor").out
            assert "RuntimeError: the dictionary is gone" in system.log_of("appserver-brief")
            up = system.exesys("up")
            assert up.code == 0
            assert "brief does not start: RuntimeError: the dictionary is gone" in up.out
        finally:
            redis.delete("desk:broken")
    assert "brief ready" in system.exesys("reload").out
    assert client.app("brief").echo(1) == 1


def test_a_call_to_a_server_that_is_away_waits_for_it(client, system):
    supervisorctl(system, "stop", "exesys:appserver-desk")
    since = time.monotonic()
    with pytest.raises(errors.AppUnavailable, match="no instance of the application server desk is there"):
        client.app("desk", wait=False).echo()
    assert time.monotonic() - since < AT_ONCE_S
    since = time.monotonic()
    with pytest.raises(errors.AppUnavailable, match=r"within 0.5 s"):
        client.app("desk", timeout_s=0.5).echo()
    assert 0.4 < time.monotonic() - since < 5
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(client.app("desk", timeout_s=20).echo, "late")
        supervisorctl(system, "start", "exesys:appserver-desk")
        assert waits.result(20) == "late"


def test_nothing_is_left_of_many_callers(system):
    pid = pid_of(system)

    def held():
        return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task"))

    def use():
        with system.client() as client, ThreadPoolExecutor(4) as pool:
            assert list(pool.map(client.app("desk").echo, range(20))) == list(range(20))

    use()
    before = held()
    for _ in range(10):
        use()
    until(lambda: held() <= before, "descriptors and threads are as before")
    assert children(pid) == []
