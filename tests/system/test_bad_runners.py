"""Runners that cannot be: each is refused with a clear error, by whatever way it comes, and leaves nothing behind."""

import json

import pytest
from harness import until

from exesys.errors import BadCommand, NotFound, QueueFull, StateError, TooLarge, UnknownFunction

MOST = 3
BYTES = 2000


@pytest.fixture(scope="module")
def system(make_module):
    return make_module(limits_runners=MOST, limits_data_bytes=BYTES)


@pytest.fixture(scope="module")
def client(system):
    with system.client() as client:
        yield client


@pytest.fixture(autouse=True)
def nothing_is_left(system):
    before = system.everything()
    yield
    until(lambda: names(system.everything()) == names(before), "nothing is left", 10)


def names(found):
    """The keys of runners; jobs leave their own traces."""
    return {key for _, key in found if key.startswith(("exesys:run", "exesys:ended", "run:"))}


START = {"target": "lives.idle"}
REFUSED = [
    ({"target": "no_such_function"}, 422, "unknown_cmd", "no_such_function"),
    ({"target": "lives.no_such"}, 422, "unknown_cmd", "lives.no_such"),
    ({"target": "lives._say"}, 422, "unknown_cmd", "private"),
    ({"target": "_say"}, 422, "unknown_cmd", "private"),
    ({"target": "lives.BEAT_S"}, 422, "unknown_cmd", "BEAT_S"),
    ({"target": "os.system"}, 422, "unknown_cmd", "os.system"),
    ({"target": "a b"}, 400, "bad_field", "`target`"),
    ({"target": 42}, 400, "bad_field", "`target`"),
    ({"target": None}, 400, "bad_field", "`target`"),
    ({**START, "type": "a:b"}, 400, "bad_field", "a:b"),
    ({**START, "type": "a*"}, 400, "bad_field", "a*"),
    ({**START, "type": "a.b"}, 400, "bad_field", "a.b"),
    ({**START, "type": "x" * 65}, 400, "bad_field", "64"),
    ({**START, "uuid": "a:b"}, 400, "bad_field", "a:b"),
    ({**START, "uuid": "*"}, 400, "bad_field", "*"),
    ({**START, "uuid": 7}, 400, "bad_field", "7"),
    ({**START, "uuid": ""}, 400, "bad_field", "uuid"),
    ({**START, "uuid": ".."}, 400, "bad_field", ".."),
    ({**START, "type": 0}, 400, "bad_field", "0"),
    ({**START, "type": []}, 400, "bad_field", "[]"),
    ({**START, "grace_s": -2}, 400, "bad_field", "grace_s"),
    ({**START, "grace_s": "long"}, 400, "bad_field", "grace_s"),
    ({**START, "grace_s": True}, 400, "bad_field", "grace_s"),
    ({**START, "data": "x" * (BYTES + 1)}, 413, "too_large", f"{BYTES:,}"),
    ({**START, "grace": 1}, 400, "bad_field", "grace"),
    ({"type": "x"}, 400, "bad_field", "target"),
    ([], 400, "bad_field", "object"),
]


@pytest.mark.parametrize(("body", "status", "code", "part"), REFUSED, ids=lambda value: str(value)[:40])
def test_rest_refuses_what_cannot_be_started(system, body, status, code, part):
    answer = system.request("POST", "/runners", json.dumps(body), {"Content-Type": "application/json"})
    assert answer.status == status, answer
    assert answer.error["code"] == code
    assert part in answer.error["message"] + answer.error["fix"]
    assert answer.error["fix"]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"target": "no_such_function"}, UnknownFunction),
        ({"target": "lives._say"}, UnknownFunction),
        ({**START, "type": "a:b"}, BadCommand),
        ({**START, "uuid": "a*b"}, BadCommand),
        ({**START, "grace_s": -2}, BadCommand),
        ({**START, "data": "x" * (BYTES + 1)}, TooLarge),
    ],
)
def test_functions_and_clients_are_told_the_same(system, client, options, error):
    with pytest.raises(error):
        client.start_runner(**options)
    data = {"target": options["target"], "data": options.get("data")}
    if options.get("data") is None:  # as data of a command it is too large already
        data["options"] = {key: value for key, value in options.items() if key not in ("target", "data")}
        ended = system.post({"cmd": "lives.start", "data": data}, wait=10).body
        assert ended["state"] == "error"
        assert ended["error"]["type"] == error.__name__


def test_what_is_no_function_is_refused_in_a_function(system):
    ended = system.post({"cmd": "lives.start_number"}, wait=10).body
    assert ended["error"]["type"] == "BadCommand"
    assert "an int cannot be called here" in ended["error"]["message"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("DELETE", "/runners/a*b/c", 400),
        ("DELETE", "/runners/a/b:c", 400),
        ("DELETE", "/runners/a*", 400),
        ("GET", "/runners/a:b/c", 400),
        ("GET", "/runners/no/such", 404),
        ("GET", "/runners/no/such/log", 404),
        ("POST", "/runners/no/such/restart", 404),
        ("GET", "/runners?state=ran", 400),
        ("GET", "/runners?ended=-1", 400),
        ("GET", "/runners?nonsense=1", 400),
        ("DELETE", "/runners/no/such?wait=forever", 400),
        ("DELETE", "/runners/no?wait=-1", 400),
    ],
)
def test_rest_refuses_what_cannot_be_asked(system, method, path, status):
    answer = system.request(method, path)
    assert answer.status == status, answer
    assert answer.error["fix"]


@pytest.mark.parametrize(
    ("words", "code", "part"),
    [
        (("start", "no_such_function"), 2, "no_such_function"),
        (("start", "lives.idle", "--type", "a:b"), 2, "a:b"),
        (("start", "lives.idle", "--grace-s", "-1"), 2, "-1"),
        (("stop", "a:b:c"), 2, "a:b:c"),
        (("stop", "a*"), 2, "a*"),
        (("show", "no:such"), 1, "no:such"),
        (("show", "no"), 2, "type:uuid"),
        (("restart", "no:such"), 1, "no:such"),
        (("restart", "no"), 2, "type:uuid"),
        (("logs", "no:such"), 1, "no:such"),
        ((), 2, "runner list"),
    ],
)
def test_the_command_line_refuses_it_too(system, words, code, part):
    said = system.exesys("runner", *words)
    assert said.code == code, said
    assert part in said.err


@pytest.mark.parametrize(
    ("ask", "error"),
    [
        (lambda client: client.stop_runner("a*"), BadCommand),
        (lambda client: client.stop_runner("no", "such"), NotFound),
        (lambda client: client.restart_runner("no:such"), NotFound),
        (lambda client: client.restart_runner("no"), BadCommand),
    ],
)
def test_clients_are_refused(client, ask, error):
    with pytest.raises(error):
        ask(client)


def test_the_one_too_many_is_refused_and_there_is_room_again_when_one_has_ended(system, client):
    names = [client.start_runner("lives.idle", number, type="many", uuid=str(number)) for number in range(MOST)]
    with pytest.raises(QueueFull, match="as many runners as may be"):
        client.start_runner("lives.idle", None, type="many", uuid="more")
    body = json.dumps({**START, "type": "many", "uuid": "more"})
    answer = system.request("POST", "/runners", body, {"Content-Type": "application/json"})
    assert (answer.status, answer.error["code"]) == (429, "queue_full")
    assert answer.headers["retry-after"]
    client.stop_runner(names[0])
    until(lambda: system.get("/runners/many/0").body["state"] == "stopped", "it ended")
    names.append(client.start_runner("lives.idle", None, type="many", uuid="more"))
    with pytest.raises(QueueFull):
        client.restart_runner(names[0])
    until(lambda: len(system.get("/runners/many", state="running").body["runners"]) == MOST, "all run")
    client.stop_runner("many")
    until(lambda: not system.get("/runners/many", ended=0).body["runners"], "all have ended")
    with system.redis() as redis:
        for name in names:
            redis.delete(f"exesys:runner:{name}", f"exesys:runner-log:{name}", f"run:{name}")
        redis.delete("exesys:ended")


def test_a_runner_that_is_stopping_is_not_restarted(system, client):
    name = client.start_runner("lives.stubborn", {}, type="slow", uuid="s", grace_s=1)
    until(lambda: system.get("/runners/slow/s").body["state"] == "running", "it runs")
    client.stop_runner(name)
    with pytest.raises(StateError, match="is stopping"):
        client.restart_runner(name)
    until(lambda: system.get("/runners/slow/s").body["state"] == "stopped", "it ended")
    with system.redis() as redis:
        redis.delete(f"exesys:runner:{name}", f"exesys:runner-log:{name}", f"run:{name}", "exesys:ended")
