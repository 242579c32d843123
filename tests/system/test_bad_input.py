"""What is wrong is refused with a sentence, and nothing of it is left in Redis."""

import json
import os
import random
import shutil
import socket
import stat
import subprocess
import threading
import time
import uuid

import pytest
import zmq
from harness import MODULES, STREAMS, until

BODY_BYTES = 64 << 10
DATA_BYTES = 16 << 10
BROKEN = "import no_such_package\n\n\ndef lost_function(data):\n    return data\n"
# The curl of the document this project comes from, with its slips.
SEED_CURL = r"""curl -s -H "Content-type: application/json" \
	-X POST http://127.0.0.1:5000/sys_cmd -d \
	'{"from":"testclient",\
	"to:","testjob",
	"cmd":"test_cmd",\ 
	"data": "senatoremonti",\
	"job_id":"16fd2706-8baf-433b-82eb-8c7fada847da"\
	}'
"""  # noqa: W291


@pytest.fixture(scope="module")
def system(make_module, tmp_path_factory):
    """A system that does nothing else, so that what is in Redis is known. One of its modules is broken."""
    broken = tmp_path_factory.mktemp("modules")
    (broken / "unlucky.py").write_text(BROKEN)
    system = make_module(
        modules=(*MODULES, broken), limits_body_bytes=BODY_BYTES, limits_data_bytes=DATA_BYTES, limits_array=1000
    )
    system.post({"cmd": "echo", "data": "there", "job_id": "in-use"}, wait=10)
    return system


@pytest.fixture
def nothing_left(system):
    """Fail when a test leaves anything in any database of Redis, or takes anything away."""
    before = system.everything()
    yield
    assert system.everything() == before


pytestmark = pytest.mark.usefixtures("nothing_left")


def refused(answer, status, code, field=""):
    """Check a refusal, and return what it says: its message and what to do."""
    assert (answer.status, answer.error["code"], answer.error["field"]) == (status, code, field), answer
    return f"{answer.error['message']} {answer.error['fix']}"


# --- JSON ---------------------------------------------------------------------


def test_the_seeds_own_curl_is_told_where_it_breaks(system, need):
    need(shutil.which("curl"), "curl")
    command = SEED_CURL.replace("127.0.0.1:5000", f"127.0.0.1:{system.rest_port}")
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=30, check=True)
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "bad_json"
    assert "line 1, column 22" in error["message"], "the first of its slips: a backslash after the comma"
    assert '{"from":"testclient", ⟨here⟩ \\' in error["message"]
    assert error["fix"]


def test_the_seeds_slip_alone_is_told_where_it_breaks(system):
    body = '{"from":"testclient","to:","testjob","cmd":"test_cmd","data":"senatoremonti"}'
    said = refused(system.post(body), 400, "bad_json")
    assert "line 1, column 27" in said
    assert '"to:" ⟨here⟩ ,"testjob"' in said
    assert "colon" in said


@pytest.mark.parametrize(
    "body",
    [
        *("", " ", "{", "}", "nonsense", '{"cmd":"echo"', '{"cmd":"echo",}', "{'cmd':'echo'}", '{"cmd":"echo"}{}'),
        *('{"cmd":NaN}', '{"cmd":"echo","data":Infinity}', '{"cmd":"echo","data":-Infinity}', "[", "[[[[", '["'),
        *(
            '{"cmd":"echo","data":01}',
            '{"cmd":"echo","data":"\x01"}',
            b'{"cmd":"echo","data":"\xff"}',
            b"\x00",
            b"\xfe",
        ),
        *("[" * 100_00, '{"a":' * 10_000),
    ],
    ids=lambda body: repr(body[:30]),
)
def test_what_is_not_json(system, body):
    assert refused(system.post(body), 400, "bad_json", "data" if len(body) > 5000 else "")


@pytest.mark.parametrize("body", ["null", "true", "17", '"text"', "1.5"])
def test_what_is_no_command(system, body):
    assert "object" in refused(system.post(body), 400, "bad_field")


def test_an_empty_array(system):
    assert "empty" in refused(system.post([]), 400, "bad_field")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded", "application/xml"])
def test_what_does_not_say_it_is_json(system, kind):
    answer = system.request("POST", "/sys_cmd", b'{"cmd":"echo"}', {"Content-Type": kind} if kind else {})
    assert "application/json" in refused(answer, 415, "not_json")


# --- fields ---------------------------------------------------------------------

NAMES = ["from", "to", "cmd", "job_id"]
BAD_NAMES = {
    **{"a number": 17, "null": None, "true": True, "an object": {}, "a fraction": 1.5, "an array": [["a"]]},
    **{"empty": "", "a colon": "a:b", "a star": "a*", "a brace": "{a}", "129 characters": "x" * 129, "a blank": "a b"},
    **{"a newline": "a\n", "a letter with an accent": "à", "a null character": "a\0", "a slash": "a/b", "a >": "a>b"},
    **{"half a pair": "\ud800", "a comma": "a,b", "a digit of elsewhere": "٣"},
}


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize("value", BAD_NAMES.values(), ids=BAD_NAMES)
def test_a_bad_name(system, field, value):
    command = {"from": "a", "to": "b", "cmd": "echo", "job_id": "c", field: value}
    assert refused(system.post(command), 400, "bad_field", field)


@pytest.mark.parametrize("field", NAMES)
def test_a_name_of_128_characters_is_good(system, field):
    name = "x" * 128
    command = {"from": "a", "to": "b", "cmd": "echo", "job_id": "c", "delay_s": 3600, field: name}
    answer = system.post(command)
    if field == "cmd":
        assert refused(answer, 422, "unknown_cmd", "cmd")
        return
    assert answer.status == 202
    with system.redis() as store:
        ref = f"{command['from']}:{command['job_id']}"
        store.delete(f"{ref}:start", f"exesys:job:{command['job_id']}")
        store.zrem("exesys:delayed", ref)
        for stream in STREAMS:
            store.xdel(stream, *(entry for entry, _ in store.xrevrange(stream, count=1)))


@pytest.mark.parametrize("value", [[], ["a", "a"], ["a", ""], ["a", 1], ["x"] * 10_001, {"a": 1}], ids=repr)
def test_a_bad_list_of_targets(system, value):
    if len(value) > 10:
        value = [f"n{i}" for i in range(len(value))]
    command = {"cmd": "echo", "to": value}
    if len(json.dumps(command)) > BODY_BYTES:
        assert refused(system.post(command), 413, "too_large")
    else:
        assert refused(system.post(command), 400, "bad_field", "to")


@pytest.mark.parametrize("name", ["exesys", "run"])
def test_a_name_of_the_systems_own(system, name):
    assert refused(system.post({"from": name, "cmd": "echo"}), 400, "bad_field", "from")


@pytest.mark.parametrize(
    ("key", "meant"),
    [("dat", "data"), ("Cmd", "cmd"), ("jobid", "job_id"), ("timeout", "timeout_s"), ("priorty", "priority")],
)
def test_an_unknown_key_names_the_nearest(system, key, meant):
    said = refused(system.post({"cmd": "echo", key: 1}), 400, "bad_field", key)
    assert f"Did you mean `{meant}`?" in said


@pytest.mark.parametrize("key", ["", "x" * 5000, "\ud800", "zzzz", "\0", "__proto__"], ids=lambda key: ascii(key[:20]))
def test_an_unknown_key_near_to_none(system, key):
    answer = system.post({"cmd": "echo", key: 1})
    assert (answer.status, answer.error["code"]) == (400, "bad_field")
    assert "Known keys: from, to, cmd, data, job_id, queue" in answer.error["fix"]
    assert len(answer.error["message"]) < 200


def test_a_command_without_cmd(system):
    assert refused(system.post({"data": 1}), 400, "bad_field", "cmd")


@pytest.mark.parametrize(
    ("cmd", "says"),
    [
        ("ecko", "echo"),
        ("test_cdm", "test_cmd"),
        ("exesys_test.ecko", "exesys_test.echo"),
        ("os.system", ""),
        ("_private", ""),
        ("probes._private", ""),
        ("probes.signal", ""),
        ("builtins.eval", ""),
        ("Context", ""),
        ("exesys.cli.main", ""),
        ("lost_function", "No module named 'no_such_package'"),
        ("unlucky.lost_function", "No module named 'no_such_package'"),
    ],
)
def test_an_unknown_cmd(system, cmd, says):
    said = refused(system.post({"cmd": cmd}), 422, "unknown_cmd", "cmd")
    assert cmd in said
    assert says in said


NUMBERS = {
    "timeout_s": [-1, 0, "5", None, True, 1e300, [], 10**400],
    "delay_s": [-0.001, "now", None, 10**12],
    "backoff_s": [-1, "x"],
    "result_ttl_s": [0, -5, "day"],
    "retries": [-1, 1.5, 1e9, "3", True],
    "priority": [-1, 10, 4.5, "9", None],
    "queue": ["", "a:b", 7, None, "x" * 129],
    "at": ["tomorrow", "2026-01-01T00:00:00", 5, None, "", "2026-13-01T00:00:00Z", "9" * 5000],
}


@pytest.mark.parametrize(
    ("key", "value"),
    [(key, value) for key, values in NUMBERS.items() for value in values],
    ids=lambda part: repr(part)[:20],
)
def test_a_bad_option(system, key, value):
    assert refused(system.post({"cmd": "echo", key: value}), 400, "bad_field", key)


def test_both_at_and_delay_s(system):
    command = {"cmd": "echo", "at": "2030-01-01T00:00:00Z", "delay_s": 1}
    assert refused(system.post(command), 400, "bad_field", "at")


@pytest.mark.parametrize("wait", ["x", "-1", "nan", "inf", "1e9", ""])
def test_a_bad_wait(system, wait):
    answer = system.request("POST", f"/sys_cmd?wait={wait}", b'{"cmd":"echo"}', {"Content-Type": "application/json"})
    assert refused(answer, 400, "bad_field", "wait")


def test_a_job_id_in_use_with_other_data(system):
    assert "in-use" in refused(
        system.post({"cmd": "echo", "data": "other", "job_id": "in-use"}), 409, "conflict", "job_id"
    )
    assert "in-use" in refused(
        system.post({"cmd": "noop", "data": "there", "job_id": "in-use"}), 409, "conflict", "job_id"
    )


def test_an_unknown_operation(system):
    answer = system.post({"cmd": "echo"}, headers={"Operation": "dance"})
    assert answer.status == 400
    assert "dance" in answer.error["message"]


# --- sizes ----------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda inner: [inner], lambda inner: {"a": inner}], ids=["arrays", "objects"])
def test_data_nested_200_deep(system, make):
    data = 0
    for _ in range(200):
        data = make(data)
    said = refused(system.post({"cmd": "echo", "data": data}), 400, "bad_field", "data")
    assert "100" in said


@pytest.mark.parametrize("deep", [2000, 20_000])
def test_data_nested_so_deep_that_it_cannot_be_read(system, deep):
    body = '{"cmd":"echo","data":' + "[" * deep + "]" * deep + "}"
    assert refused(system.post(body), 400, "bad_json" if deep > 1000 else "bad_field", "data")


def test_integers_beyond_64_bits(system):
    assert refused(system.post({"cmd": "echo", "data": 1 << 64}), 400, "bad_field", "data")
    assert refused(system.post('{"cmd":"echo","data":' + "9" * 5000 + "}"), 400, "bad_json")


def test_data_over_the_limit(system):
    said = refused(system.post({"cmd": "echo", "data": "x" * DATA_BYTES}), 413, "too_large", "data")
    assert f"{DATA_BYTES:,}" in said
    assert "data_bytes" in said


@pytest.mark.parametrize(
    "size", [BODY_BYTES + 1, 2 * BODY_BYTES, 2 * BODY_BYTES + 1, 64 * BODY_BYTES, 640 * BODY_BYTES]
)
def test_a_body_over_the_limit(system, size):
    answer = system.post(b'{"cmd":"echo","data":"' + b"x" * (size - 24) + b'"}')
    said = refused(answer, 413, "too_large")
    assert "body_bytes" in said
    assert f"{BODY_BYTES:,}" in said


def test_a_body_that_says_it_is_huge(system):
    """The answer comes at once, and the body is not waited for."""
    with socket.create_connection(("127.0.0.1", system.rest_port), 10) as connection:
        connection.sendall(head(system, 1 << 40))
        answer = read_all(connection)
    assert b"413" in answer.splitlines()[0]
    assert b"too_large" in answer


def test_a_body_of_unknown_length_without_end(system):
    """A chunked body is cut off at the limit, and costs no memory."""
    with socket.create_connection(("127.0.0.1", system.rest_port), 30) as connection:
        connection.sendall(head(system, None))
        chunk = b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        sent = 0
        try:
            for _ in range(1000):
                connection.sendall(chunk)
                sent += len(chunk)
            answer = read_all(connection)
        except (BrokenPipeError, ConnectionResetError):
            answer = b""
    assert sent < 60 << 20 or b"413" in answer.splitlines()[0], "it was all read"


def test_ten_thousand_commands_in_one_array(system):
    body = json.dumps([{"cmd": "noop"}] * 10_000, separators=(",", ":"))
    assert len(body) > BODY_BYTES
    assert refused(system.post(body), 413, "too_large")


def test_more_commands_in_one_array_than_allowed(system):
    said = refused(system.post(json.dumps([{"cmd": "noop"}] * 1001)), 413, "too_large")
    assert "1,001" in said
    assert "1,000" in said
    assert "[limits] array" in said


def test_ten_thousand_commands_in_an_array_with_the_usual_limits(shared):
    before = len(shared.everything())
    said = refused(shared.post([{"cmd": "noop", "data": i} for i in range(10_000)]), 413, "too_large")
    assert "10,000" in said
    assert "1,000" in said
    assert "[limits] array" in said
    assert len(shared.everything()) <= before


# --- HTTP -------------------------------------------------------------------------


def head(system, length, more=b""):
    size = b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length
    return (
        b"POST /sys_cmd HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n" % system.rest_port
        + size
        + b"\r\n"
        + more
        + b"\r\n"
    )


def read_all(connection):
    """Read until the other side closes, or says nothing for the time the connection allows."""
    parts = []
    while part := connection.recv(65536):
        parts.append(part)
        if b"\r\n\r\n" in b"".join(parts) and b"}\n" in part:
            break
    return b"".join(parts)


@pytest.mark.parametrize(
    "request_",
    [
        b"\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /sys_cmd HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"POST /sys_cmd HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /sys_cmd HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef",
        b"POST /sys_cmd HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"GET /" + b"x" * 300_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 60_000 + b"\r\n",
        b"GET /%ff%00 HTTP/1.1\r\n\r\n",
        b"GET /jobs/%ff%00%0a HTTP/1.1\r\n\r\n",
        bytes(range(256)) * 16 + b"\r\n\r\n",
    ],
    ids=lambda request_: repr(request_[:24]),
)
def test_what_is_no_http(system, request_):
    """Whatever comes, the server is there for the next one, and never answers 500."""
    with socket.create_connection(("127.0.0.1", system.rest_port), 2) as connection:
        answer = b""
        try:
            connection.sendall(request_)
            answer = read_all(connection)
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            pass
    status = answer.split(b" ", 2)[1:2]
    assert status in ([], [b"400"], [b"404"], [b"411"], [b"413"], [b"414"], [b"431"], [b"501"]), answer[:300]
    assert system.get("/healthz").status == 200


@pytest.mark.parametrize("sent", ["nothing", "half the head", "half the body", "a byte now and then"])
def test_a_body_that_never_arrives(system, sent):
    """Two hundred clients that send too little do not hold up one that sends all."""
    silent = [socket.create_connection(("127.0.0.1", system.rest_port), 10) for _ in range(200)]
    first = {
        "nothing": b"",
        "half the head": head(system, 100)[:60],
        "half the body": head(system, 100) + b'{"cmd":',
        "a byte now and then": head(system, 10_000) + b"{",
    }[sent]
    halt = threading.Event()

    def drip():
        while not halt.wait(0.1):
            for connection in silent:
                connection.sendall(b" ")

    dripping = threading.Thread(target=drip, daemon=True)
    try:
        for connection in silent:
            connection.sendall(first)
        if sent == "a byte now and then":
            dripping.start()
        job_id = f"served-{uuid.uuid4()}"
        longest_s = 0.0
        for i in range(20):
            since = time.monotonic()
            answer = system.post({"cmd": "echo", "data": i, "job_id": f"{job_id}-{i}", "result_ttl_s": 1}, wait=10)
            longest_s = max(longest_s, time.monotonic() - since)
            assert answer.body["result"] == {"EOJ": i}
        assert longest_s < 1
    finally:
        halt.set()
        if dripping.is_alive():
            dripping.join()
        for connection in silent:
            connection.close()
    forget(system, job_id)


def forget(system, job_id):
    """Wait until jobs with a short life are gone, and take them out of the list of jobs."""
    until(lambda: not [name for _, name in system.everything() if job_id in name], "they expired", within_s=10)
    with system.redis() as store:
        for stream in STREAMS:
            for entry, fields in store.xrange(stream):
                if any(job_id.encode() in value for value in fields.values()):
                    store.xdel(stream, entry)


# --- the bus --------------------------------------------------------------------------


def sockets_of(system):
    """Return every unix socket of the bus, by what it is."""
    found = {}
    for path in (system.home / "run").iterdir():
        if stat.S_ISSOCK(path.stat().st_mode) and path.name.startswith("bus"):
            kind = {"bus": "front", "bus.results": "results", "bus.events": "events"}.get(path.name, "jobs")
            found[kind] = path
    assert set(found) == {"front", "results", "events", "jobs"}, found
    return found


def still_well(system, before):
    """The same processes serve, and a job runs from end to end."""
    job_id = f"well-{uuid.uuid4()}"
    answer = system.post({"cmd": "echo", "data": 1, "job_id": job_id, "result_ttl_s": 1}, wait=10)
    assert answer.body["result"] == {"EOJ": 1}
    assert system.pids() == before
    forget(system, job_id)


@pytest.mark.parametrize("kind", ["front", "results", "events", "jobs"])
def test_random_bytes_on_a_socket_of_the_bus(system, seed, kind):
    """Bytes that are no ZMTP, and bytes that begin like it."""
    dice = random.Random(f"{seed} bytes {kind}")
    before = system.pids()
    path = str(sockets_of(system)[kind])
    greeting = b"\xff" + b"\0" * 8 + b"\x7f\x03\x00NULL" + b"\0" * 48
    for number in range(60):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(5)
            connection.connect(path)
            junk = dice.randbytes(dice.choice([1, 10, 64, 1000, 100_000]))
            try:
                connection.sendall(junk if number % 2 else greeting[: dice.randrange(65)] + junk)
                if number % 3 == 0:
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
            except (BrokenPipeError, ConnectionResetError, TimeoutError):
                pass
    still_well(system, before)


@pytest.mark.parametrize("kind", ["front", "results", "events", "jobs"])
def test_random_frames_on_a_socket_of_the_bus(system, seed, kind):
    """Well-formed ZMTP from every type of socket, with random frames in it."""
    dice = random.Random(f"{seed} frames {kind}")
    before = system.pids()
    endpoint = f"ipc://{sockets_of(system)[kind]}"
    with zmq.Context() as context:
        for socket_type in (zmq.DEALER, zmq.REQ, zmq.ROUTER, zmq.PUSH, zmq.XSUB, zmq.XPUB, zmq.PAIR, zmq.REP):
            peer = context.socket(socket_type)
            peer.linger = 200
            peer.sndtimeo = 50
            peer.connect(endpoint)
            for _ in range(50):
                frames = [dice.randbytes(dice.choice([0, 1, 9, 200, 5000])) for _ in range(dice.randrange(1, 4))]
                try:
                    peer.send_multipart(frames)
                except zmq.ZMQError:
                    break
            peer.close()
    still_well(system, before)


def test_a_frame_over_the_limit_ends_only_its_connection(system):
    before = system.pids()
    with zmq.Context() as context, context.socket(zmq.DEALER) as peer:
        peer.linger = 0
        peer.connect(f"ipc://{sockets_of(system)['front']}")
        peer.send(b"\0" * (65 << 20), copy=False)
        still_well(system, before)


def test_many_connections_that_say_nothing(system):
    before = system.pids()
    path = str(sockets_of(system)["front"])
    silent = []
    try:
        for _ in range(300):
            connection = socket.socket(socket.AF_UNIX)
            silent.append(connection)
            connection.connect(path)
        still_well(system, before)
    finally:
        for connection in silent:
            connection.close()


def test_the_run_directory_is_closed_to_others(system):
    assert stat.S_IMODE(os.stat(system.home / "run").st_mode) == 0o700
