"""Who is let in by REST, and who is not: each sentence of docs/security.md on a real system.

One system with tokens serves most tests; those that change whether there are tokens have one of their own.
"""

import contextlib
import http.client
import itertools
import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest
from harness import alive, children, until

ROLES = ("read", "submit", "admin")
OPEN = ("/healthz", "/readyz")
# Every endpoint there is, with the role it needs. A test compares with what REST itself names.
ENDPOINTS = {
    "POST /sys_cmd": "submit",
    "GET /jobs": "read",
    "GET /jobs/<job_id>": "read",
    "DELETE /jobs/<job_id>": "submit",
    "POST /jobs/<job_id>/retry": "submit",
    "GET /jobs/<job_id>/log": "read",
    "GET /jobs/<job_id>/events": "read",
    "GET /events": "read",
    "GET /metrics": "read",
    "GET /dead": "read",
    "DELETE /dead": "admin",
    "POST /dead/retry": "admin",
    "GET /dead/<job_id>": "read",
    "DELETE /dead/<job_id>": "admin",
    "POST /dead/<job_id>/retry": "admin",
    "GET /callbacks": "read",
    "GET /functions": "read",
    "GET /workers": "read",
    "GET /runners": "read",
    "POST /runners": "submit",
    "GET /runners/<type>": "read",
    "DELETE /runners/<type>": "submit",
    "GET /runners/<type>/<uuid>": "read",
    "DELETE /runners/<type>/<uuid>": "submit",
    "POST /runners/<type>/<uuid>/restart": "admin",
    "GET /runners/<type>/<uuid>/log": "read",
    "GET /queues": "read",
    "GET /queues/<name>": "read",
    "PATCH /queues/<name>": "admin",
    "POST /queues/<name>/pause": "admin",
    "POST /queues/<name>/resume": "admin",
    "GET /timers": "read",
    "POST /timers": "admin",
    "GET /timers/<name>": "read",
    "DELETE /timers/<name>": "admin",
    "POST /timers/<name>/pause": "admin",
    "POST /timers/<name>/resume": "admin",
    "POST /timers/<name>/run": "submit",
    "GET /apps": "read",
    "GET /apps/<name>": "read",
    "POST /apps/<name>/<method>": "submit",
    "GET /whoami": "read",
    "GET /openapi.json": "read",
    "GET /healthz": "",
    "GET /readyz": "",
}
HEADERS = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
SECOND_S = 1.0


def new(system, role, name, *words):
    """Make a token; return its text."""
    said = system.exesys("keys", "new", role, name, *words, "--json")
    assert said.code == 0, said
    return said.json["token"]


def bearer(token):
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(make_module):
    """A system with tokens, and a token of each role."""
    system = make_module(rest_origins="https://app.example")
    return system, {role: new(system, role, f"of-{role}") for role in ROLES}


@pytest.fixture
def open_system(make):
    return make()


# --- roles ------------------------------------------------------------------


def test_the_table_has_every_endpoint(guarded):
    system, tokens = guarded
    told = system.get("/nothing", bearer(tokens["read"])).error["fix"].partition("Known: ")[2].rstrip(".")
    assert sorted(told.split(", ")) == sorted(ENDPOINTS)


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_every_endpoint_needs_its_role(guarded, endpoint):
    system, tokens = guarded
    needed = ENDPOINTS[endpoint]
    method, _, pattern = endpoint.partition(" ")
    path = re.sub(r"<\w+>", "none-such", pattern)
    for role in (None, *ROLES):
        headers = bearer(tokens[role]) if role else {}
        # No JSON: whoever is let in is refused for that, and nothing happens.
        answer = system.request(method, path, b"no JSON" if method in ("POST", "PATCH") else None, headers)
        if needed and role is None:
            assert (answer.status, answer.error["code"]) == (401, "unauthorized"), endpoint
            assert answer.headers["www-authenticate"] == "Bearer"
        elif needed and ROLES.index(role) < ROLES.index(needed):
            assert (answer.status, answer.error["code"]) == (403, "forbidden"), (endpoint, role)
            assert f"needs {needed}" in answer.error["message"]
        else:
            assert answer.status not in (401, 403), (endpoint, role, answer)
    if needed:
        wrong = system.request(method, path, None, bearer("exs_" + "x" * 43))
        assert (wrong.status, wrong.headers["www-authenticate"]) == (401, "Bearer")


@pytest.mark.parametrize("asked", ["GET /nothing", "PUT /sys_cmd", "OPTIONS /jobs", "GET /"])
def test_also_what_is_not_there_is_told_only_to_who_has_a_token(guarded, asked):
    system, tokens = guarded
    method, path = asked.split()
    assert system.request(method, path).status == 401
    assert system.request(method, path, None, bearer(tokens["read"])).status in (404, 405)


def test_each_role_does_its_work(guarded):
    system, tokens = guarded
    command = {"cmd": "echo", "data": 7, "job_id": "roles-1"}
    assert system.post(command, wait=10, headers=bearer(tokens["submit"])).body["result"] == {"EOJ": 7}
    assert system.get("/jobs/roles-1", bearer(tokens["read"])).body["EOJ"] == 7
    paused = system.request("POST", "/queues/elsewhere/pause", None, bearer(tokens["admin"]))
    assert (paused.status, paused.body["paused"]) == (200, True)
    assert raw(system, b"HEAD /jobs HTTP/1.0\r\n\r\n")[0] == 401


@pytest.mark.parametrize("header", ["", "Bearer", "Basic dXNlcjpw", "bearer  ", "Bearer a b", "Token exs_x", "\xe9"])
def test_any_other_authorization_is_none(guarded, header):
    system, _ = guarded
    assert system.get("/jobs", {"Authorization": header.encode("latin-1")}).status == 401


def test_a_token_in_the_address_is_none(guarded):
    system, tokens = guarded
    assert system.get("/jobs", token=tokens["read"]).status == 401


# --- the command line -----------------------------------------------------------


def test_the_tools_of_this_user_come_in_without_being_told_a_token(guarded):
    system, tokens = guarded
    assert system.exesys("doctor").code == 0
    assert system.exesys("status").code == 0
    assert system.up().code == 0, "with its proof, had there been something to start"
    named = system.exesys("doctor", environ={"EXESYS_TOKEN": tokens["read"]})
    assert named.code == 0
    wrong = system.exesys("doctor", environ={"EXESYS_TOKEN": "exs_wrong"})
    assert wrong.code == 1
    assert "the token that was sent is not known here" in wrong.out
    assert "exs_wrong" not in wrong.out + wrong.err


def test_keys_are_made_listed_rotated_and_revoked(make):
    system = make(start=False)
    said = system.exesys("keys", "list")
    assert (said.code, said.out) == (0, "")
    assert "there is no key" in said.err
    made = system.exesys("keys", "new", "submit", "shop", "--days", "30")
    assert re.fullmatch(r"exs_[\w-]{43}\n", made.out)
    assert "shown once" in made.err
    system.exesys("keys", "new", "read", "shop")
    again = system.exesys("keys", "new", "submit", "shop")
    assert (again.code, again.out) == (2, "")
    assert "--rotate" in again.err
    assert system.exesys("keys", "new", "submit", "shop", "--rotate").code == 0
    listed = system.exesys("keys", "list", "--json").json["keys"]
    assert [(each["name"], each["role"]) for each in listed] == [
        *(("local", "admin"), ("shop", "submit"), ("shop", "read"), ("shop", "submit")),
    ]
    assert [each["expires"] is None for each in listed] == [True, False, True, True]
    assert "shop\tsubmit" in system.exesys("keys", "list").out
    unclear = system.exesys("keys", "revoke", "shop")
    assert unclear.code == 2
    assert "--role submit" in unclear.err
    old = system.exesys("keys", "revoke", "shop", "--role", "submit", "--old", "--json").json
    assert old == {"name": "shop", "role": "submit", "revoked": 1}
    assert system.exesys("keys", "revoke", "shop", "--role", "submit").code == 0
    assert system.exesys("keys", "revoke", "shop").code == 0
    gone = system.exesys("keys", "revoke", "shop")
    assert (gone.code, "there is no key shop" in gone.err) == (1, True)
    assert "no token is left" in system.exesys("keys", "revoke", "local").err
    wrong = system.exesys("keys", "new", "submitt", "x", "--json")
    assert (wrong.code, wrong.json["error"]["fix"]) == (2, "Did you mean submit?")


# --- coming and going ------------------------------------------------------------


def test_a_token_comes_and_goes_without_a_restart(open_system):
    system = open_system
    assert system.get("/jobs").status == 200
    pid = system.pids()["rest"]
    first = new(system, "read", "one")
    until(lambda: system.get("/jobs").status == 401, "a token is needed", within_s=SECOND_S)
    assert system.get("/jobs", bearer(first)).status == 200
    second = new(system, "read", "one", "--rotate")
    until(lambda: system.get("/jobs", bearer(second)).status == 200, "the new one holds", within_s=SECOND_S)
    assert system.get("/jobs", bearer(first)).status == 200, "and the old one, too"
    assert system.exesys("keys", "revoke", "one", "--old").code == 0
    until(lambda: system.get("/jobs", bearer(first)).status == 401, "the old one ended", within_s=SECOND_S)
    assert system.get("/jobs", bearer(second)).status == 200
    for name in ("one", "local"):
        assert system.exesys("keys", "revoke", name).code == 0
    until(lambda: system.get("/jobs").status == 200, "without tokens it is open", within_s=SECOND_S)
    assert system.pids()["rest"] == pid


def test_a_start_without_a_token_for_its_job_is_a_start(make):
    system = make(start=False)
    token = new(system, "submit", "one")
    assert system.exesys("keys", "revoke", "local").code == 0
    said = system.exesys("up", "--json")
    assert said.code == 0, said
    assert (said.json["proof"]["state"], "needs a token" in said.json["proof"]["message"]) == ("", True)
    assert system.down()
    proved = system.exesys("up", "--json", environ={"EXESYS_TOKEN": token})
    assert proved.json["proof"]["state"] == "data_available"
    assert system.down()
    (system.home / "keys" / "tokens.json").write_text("{")
    refused = system.exesys("up")
    assert (refused.code, "is damaged" in refused.err) == (1, True)
    assert not system.belonging()


def test_a_damaged_file_lets_nobody_in(open_system):
    system = open_system
    token = new(system, "admin", "one")
    path = system.home / "keys" / "tokens.json"
    whole = path.read_bytes()
    until(lambda: system.get("/jobs").status == 401, "a token is needed", within_s=SECOND_S)
    spoils = (
        lambda: path.write_bytes(whole[:-20]),
        lambda: path.write_bytes(b""),
        lambda: (path.write_bytes(whole), path.chmod(0o644)),
    )

    def told():
        return system.log_of("rest").count("nobody is let in")

    for count, spoil in enumerate(spoils, 1):
        spoil()
        until(lambda: system.get("/jobs", bearer(token)).status == 503, "nobody is let in", within_s=SECOND_S)
        until(lambda n=count: system.get("/jobs") and told() == n, "it is told")
        refused = system.get("/jobs", bearer(token))
        assert str(path) in refused.error["message"]
        assert refused.error["fix"]
        assert system.get("/jobs").status == 503
        assert system.get("/healthz").status == 200
        assert system.get("/readyz").status == 503
        assert "FAIL keys" in system.exesys("doctor").out
    assert told() == len(spoils), "each is told once"
    path.chmod(0o600)
    until(lambda: system.get("/jobs", bearer(token)).status == 200, "it is well again", within_s=SECOND_S)


# --- how wide ---------------------------------------------------------------------


@pytest.mark.parametrize("section", ["rest", "web"])
def test_listening_wider_is_refused_without_a_token(make, section):
    system = make(start=False, **{f"{section}_host": "0.0.0.0"})
    refused = system.exesys("up")
    assert refused.code == 1
    assert f"[{section}] host is 0.0.0.0" in refused.err
    assert "keys new admin" in refused.err
    assert not system.belonging()
    # The daemon itself refuses, too, whoever starts it.
    (system.home / "log").mkdir(parents=True, mode=0o700)
    with system._another(section, {}) as daemon:
        assert daemon.wait(20) == 1
    [log] = (system.home / "log").glob(f"{section}-*.log")
    assert "keys new admin" in log.read_text()


def test_listening_wider_with_a_token_lets_in_who_has_one_and_nobody_without_any(make):
    system = make(start=False, rest_host="0.0.0.0", web_host="0.0.0.0")
    token = new(system, "read", "one")
    system.up()
    assert system.exesys("status", "--json").json["rest"]["url"] == f"http://127.0.0.1:{system.rest_port}"
    assert system.get("/jobs").status == 401
    assert system.get("/jobs", {**bearer(token), "Host": "jobs.example"}).status == 200
    doctor = system.exesys("doctor")
    assert (doctor.code, "clear text" in doctor.out) == (0, True)
    # Whoever takes the last token away has closed it, not opened.
    for name in ("one", "local"):
        said = system.exesys("keys", "revoke", name)
        assert said.code == 0
    assert "lets nobody in" in said.err
    until(lambda: system.get("/jobs").status == 503, "nobody is let in", within_s=SECOND_S)
    assert system.get("/jobs", bearer(token)).status == 503


# --- web pages ----------------------------------------------------------------------


def test_a_page_that_took_our_address_is_refused(shared):
    for host in ("evil.example", "evil.example:5000", "localhost.evil.example"):
        refused = shared.get("/jobs", {"Host": host})
        assert (refused.status, refused.error["field"]) == (403, "Host")
        assert shared.post({"cmd": "echo"}, headers={"Host": host}).status == 403
    for host in ("localhost:5000", "127.0.0.1", "[::1]:5000", "LOCALHOST"):
        assert shared.get("/jobs", {"Host": host}).status == 200


def test_pages_of_other_origins_can_change_and_read_nothing(shared, guarded):
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", f"http://evil.example:{shared.web_port}"):
        for method, path in (("POST", "/queues/elsewhere/pause"), ("POST", "/dead/retry"), ("DELETE", "/dead")):
            refused = shared.request(method, path, None, {"Origin": origin})
            assert (refused.status, refused.error["field"]) == (403, "Origin")
        asks = {"Origin": origin, "Access-Control-Request-Method": "POST"}
        for system in (shared, guarded[0]):
            for method in ("OPTIONS", "GET"):
                answer = system.request(method, "/sys_cmd", None, asks)
                assert not any(name.startswith("access-control") for name in answer.headers)
                assert answer.status >= 400
    assert shared.get("/queues/elsewhere").body["paused"] is False


def test_the_dashboard_may_ask_under_both_its_names(shared, guarded):
    for host in ("127.0.0.1", "localhost"):
        for system, status in ((shared, 200), (guarded[0], 401)):
            origin = {"Origin": f"http://{host}:{system.web_port}"}
            answer = system.get("/whoami", origin)
            assert (answer.status, answer.headers["access-control-allow-origin"]) == (status, origin["Origin"])
        changed = shared.request(
            "POST", "/queues/none-such/resume", None, {"Origin": f"http://{host}:{shared.web_port}"}
        )
        assert changed.status == 200


def test_a_token_can_ask_whose_it_is(shared, guarded):
    system, tokens = guarded
    for role in ROLES:
        assert system.get("/whoami", bearer(tokens[role])).body == {"role": role, "name": f"of-{role}"}
    assert shared.get("/whoami").body == {"role": "admin", "name": ""}


def test_pages_of_an_origin_that_is_listed_may_ask_with_a_token(guarded):
    system, tokens = guarded
    origin = {"Origin": "https://app.example"}
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type"}
    before = system.request("OPTIONS", "/sys_cmd", None, {**origin, **asks})
    assert (before.status, before.body) == (204, "")
    assert before.headers["access-control-allow-origin"] == "https://app.example"
    assert "POST" in before.headers["access-control-allow-methods"]
    assert "Authorization" in before.headers["access-control-allow-headers"]
    sent = system.post({"cmd": "echo", "data": 1}, wait=10, headers={**origin, **bearer(tokens["submit"])})
    assert (sent.status, sent.headers["access-control-allow-origin"]) == (200, "https://app.example")
    refused = system.get("/jobs", origin)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (401, "https://app.example")
    for answer in (before, sent, refused, system.get("/jobs")):
        assert answer.headers["vary"] == "Origin"


def raw(system, request):
    """Send bytes as they are; return the status and the headers of the answer."""
    with socket.create_connection(("127.0.0.1", system.rest_port), 20) as connection:
        with contextlib.suppress(OSError):
            connection.sendall(request)
        answer = http.client.HTTPResponse(connection, method=request.split()[0].decode())
        answer.begin()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


def test_every_answer_has_the_headers(guarded):
    system, tokens = guarded
    auth = bearer(tokens["admin"])
    asks = {"Origin": "https://app.example", "Access-Control-Request-Method": "GET"}
    answers = [
        system.get("/jobs", auth),
        system.get("/jobs"),
        system.get("/healthz"),
        system.get("/nothing", auth),
        system.request("PUT", "/jobs", None, auth),
        system.post({"cmd": "echo"}, headers=auth),
        system.post("{", headers=auth),
        system.post({"cmd": "no_such"}, headers=auth),
        system.request("OPTIONS", "/jobs", None, asks),
        system.get("/jobs/none-such/log", {**auth, "Accept": "text/plain"}),
    ]
    statuses = [answer.status for answer in answers]
    assert statuses == [200, 401, 200, 404, 405, 202, 400, 422, 204, 404]
    found = [answer.headers for answer in answers]
    # And those that the server makes by itself.
    most = 2 * system.config.limits.body_bytes
    for request, status in (
        (b"GET / HTTP/x\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 300_000 + b"\r\n\r\n", 431),
        (f"POST /sys_cmd HTTP/1.1\r\nContent-Length: {most + 1}\r\n\r\n".encode(), 413),
        (b"POST /sys_cmd HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
    ):
        told = raw(system, request)
        assert told[0] == status, request[:40]
        assert json.loads(told[2])["error"]["code"]
        found.append(told[1])
    for headers in found:
        assert HEADERS.items() <= headers.items()
        assert not re.search(r"\d", headers.get("server", ""))
        assert headers.get("access-control-allow-origin") in (None, "https://app.example")


# --- limits -------------------------------------------------------------------------


def test_a_large_body_is_not_read_for_just_anybody(guarded):
    system, tokens = guarded
    head = "POST /sys_cmd HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    for more in ("Content-Length: 1000000\r\n", "Transfer-Encoding: chunked\r\n"):
        for token in ("", "Authorization: Bearer exs_wrong\r\n"):
            # Nothing of the body is sent, and the answer comes all the same.
            status, headers, body = raw(system, f"{head}{token}{more}\r\n".encode())
            assert (status, headers["www-authenticate"], headers["connection"]) == (401, "Bearer", "close")
            assert json.loads(body)["error"]["code"] == "unauthorized"
    sent = {"cmd": "echo", "data": "x" * 500_000}
    assert system.post(sent, wait=10, headers=bearer(tokens["submit"])).status == 200
    assert system.post(sent, headers=bearer(tokens["read"])).status == 403
    assert system.post({"cmd": "echo", "data": "x" * 10_000}).status == 401


def test_a_token_that_asks_too_often_is_told_when_to_come_again(make):
    system = make(limits_rate=5, limits_burst=20)
    one, other = new(system, "submit", "one"), new(system, "submit", "other")
    until(lambda: system.get("/jobs").status == 401, "a token is needed", within_s=SECOND_S)
    answers = [system.get("/functions", bearer(one)) for _ in range(60)]
    refused = [answer for answer in answers if answer.status == 429]
    assert [answer.status for answer in answers[:20]] == [200] * 20
    assert len(refused) > 20
    assert {answer.error["code"] for answer in refused} == {"rate_limited"}
    assert {answer.headers["retry-after"] for answer in refused} == {"1"}
    assert system.get("/functions", bearer(other)).status == 200, "another token has its own"
    assert system.get("/healthz").status == 200
    # An array counts as its commands: 15 pass, of the other 15 not enough is left.
    array = [{"cmd": "noop"}] * 15
    assert system.post(array, headers=bearer(other)).status == 202
    late = system.post(array, headers=bearer(other))
    assert late.status == 429
    assert 1 <= int(late.headers["retry-after"]) <= 3
    until(
        lambda: system.post(array, headers=bearer(other)).status == 202, "it is taken later", within_s=10, every_s=0.3
    )


# --- secrets --------------------------------------------------------------------------


def everything_said(system):
    """Give what anybody could look at, by name: logs, and what the kernel tells of each process."""
    for path in (system.home / "log").iterdir():
        yield path.name, path.read_bytes()
    for pid in (*system.belonging(), *map(int, filter(str.isdigit, os.listdir("/proc")))):
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                yield f"{name} of {pid}", Path(f"/proc/{pid}/{name}").read_bytes()
    yield "ps", subprocess.run(["ps", "axeww"], capture_output=True, check=False).stdout


def test_tokens_are_nowhere_to_be_found(guarded):
    system, tokens = guarded
    wrong = "exs_wrong" + "y" * 38
    said = [system.exesys(*words) for words in (("keys", "list"), ("keys", "list", "--json"), ("status",), ("doctor",))]
    local = (system.home / "keys" / "private" / "local.token").read_text().strip()
    for token in (*tokens.values(), local, wrong):
        for method, path in itertools.product(
            ("GET", "POST", "PUT"), ("/jobs", "/sys_cmd", "/nothing", f"/{token[:9]}")
        ):
            system.request(method, path, b"{" if method == "POST" else None, bearer(token))
        raw(system, f"GET / HTTP/9\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
        raw(system, f"POST /sys_cmd HTTP/1.1\r\nAuthorization: Bearer {token}\r\nContent-Length: x\r\n\r\n".encode())
        for answer in (
            system.get("/jobs", {"Authorization": f"Basic {token}"}),
            system.get("/jobs", {"Authorization": token}),
            system.post("{", headers=bearer(token)),
        ):
            assert token not in json.dumps(answer.body)
    looked_at = list(everything_said(system))
    assert len([name for name, _ in looked_at if name.startswith("environ")]) > 8
    for token in (*tokens.values(), local, wrong):
        for name, text in looked_at:
            assert token.encode() not in text, name
        assert not [each for each in said if token in each.out + each.err]
    kept = (system.home / "keys" / "tokens.json").read_text()
    assert not [token for token in (*tokens.values(), local) if token in kept]


@pytest.fixture
def locked_redis(make):
    """A Redis that asks for a user and a password, and its address."""
    redis = make()
    secret = "s3cr3t-0f-r3d1s"
    with redis.redis() as connection:
        connection.execute_command("ACL", "SETUSER", "jobs", "on", f">{secret}", "~*", "&*", "+@all")
    return f"unix://jobs:{secret}@{redis.home}/run/redis?db=5", secret


def test_passwords_are_not_in_the_environment_of_slots(make, locked_redis):
    url, secret = locked_redis
    mongo = f"mongodb://user:{secret}@127.0.0.1:1/?connect=false"
    system = make(start=False, redis_url=url, redis_data_url=url.replace("db=5", "db=6"), mongo_uri=mongo)
    said = [system.up(), system.exesys("status", "--json"), system.exesys("doctor")]
    other = {"EXESYS_REDIS_URL": url.replace("db=5", "db=7")}
    said.append(system.exesys("up", environ=other))  # it tells which settings differ
    assert "[redis] url" in said[-1].err
    assert "unix://jobs:***@" in said[1].out
    # Its functions work with what they were given another way, and so do runners.
    counted = system.post({"cmd": "fails_then_works", "data": {"name": "x", "fails": 0}}, wait=10)
    assert counted.body["result"] == {"EOJ": 1}, counted
    runner = json.dumps({"target": "ticks", "uuid": "t"})
    started = system.request("POST", "/runners", runner, {"Content-Type": "application/json"})
    assert started.status == 202, started
    until(lambda: system.get("/runners/ticks/t").body["state"] == "running", "it runs")
    pids = system.pids()
    lives = [*system.slots(), *children(pids["runner"])]
    lives += [child for pid in children(pids["runner"]) for child in children(pid)]
    assert len(lives) >= system.config.worker.slots + 2, "slots, the fork server, a runner"
    for pid in lives:
        assert alive(pid)
        environ = Path(f"/proc/{pid}/environ").read_bytes()
        assert b"EXESYS_HOME=" in environ
        assert secret.encode() not in environ
        assert b"EXESYS_REDIS_URL" not in environ
    for path in (system.home / "log").iterdir():
        assert secret not in path.read_text(errors="replace"), path
    assert not [each for each in said if secret in each.out + each.err]
    assert secret not in subprocess.run(["ps", "axww"], capture_output=True, check=True, text=True).stdout


@pytest.mark.parametrize(
    "url",
    [
        "redis://jobs:s3cr3t@127.0.0.1:1/0",
        "redis://jobs:s3/cr3t@127.0.0.1:1/0",
        "redis:/jobs:s3cr3t@127.0.0.1",
        "redis://127.0.0.1:1/0?password=s3cr3t",
        "redis://jobs:s3cr3t'@127.0.0.1:1/0",
    ],
)
def test_errors_mask_passwords(make, url):
    system = make(start=False)
    for words in (("up",), ("doctor",), ("up", "--json"), ("status",)):
        said = system.exesys(*words, environ={"EXESYS_REDIS_URL": url})
        assert "cr3t" not in said.out + said.err, words
    assert not system.belonging()
