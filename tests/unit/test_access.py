"""The gate before REST: who comes in, with what, and how often."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from exesys import config as configuration
from exesys import keystore
from exesys.access import Cors, Gate, origins
from exesys.errors import Forbidden, RateLimited, Unauthorized, Unavailable
from exesys.tokens import GRANTED, Role

NEEDED = (Role.anyone, *GRANTED)


class Desk:
    """A gate, its clocks, and the tokens of a home."""

    def __init__(self, root: Path, **environ: str) -> None:
        environ["EXESYS_HOME"] = str(root / "home")
        self.config = configuration.parse("", None, environ, root, root)
        self.now, self.wall = 100.0, 1_000_000_000.0
        watch = keystore.Watch(self.config, lambda: self.now)
        self.gate = Gate(self.config, watch, lambda: self.now, lambda: self.wall)

    def make(self, role: Role, name: str = "", **options: Any) -> str:
        return keystore.add(self.config, role, name or role.name, **options).text

    def ask(self, role: Role, token: str | None = None, method: str = "GET", **headers: str) -> dict[str, Any]:
        environ: dict[str, Any] = {"REQUEST_METHOD": method, "REMOTE_ADDR": "127.0.0.1", "HTTP_HOST": "127.0.0.1:5000"}
        if token is not None:
            environ["HTTP_AUTHORIZATION"] = f"Bearer {token}"
        environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        self.gate.admit(environ, role)
        return environ


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


# --- tokens -----------------------------------------------------------------


@pytest.mark.parametrize("needed", NEEDED)
def test_without_tokens_all_is_open_on_loopback(desk: Desk, needed: Role) -> None:
    desk.ask(needed)
    desk.ask(needed, "anything")


@pytest.mark.parametrize("needed", NEEDED)
@pytest.mark.parametrize("has", GRANTED)
def test_each_role_may_do_what_it_may(desk: Desk, has: Role, needed: Role) -> None:
    token = desk.make(has)
    if has >= needed:
        desk.ask(needed, token)
        return
    with pytest.raises(Forbidden) as caught:
        desk.ask(needed, token)
    assert f"this needs {needed.name}" in caught.value.message
    assert caught.value.status == 403


@pytest.mark.parametrize("sent", [None, "", "exs_wrong", "\xe9", "x" * 100_000])
def test_no_token_and_an_unknown_one_are_told_apart_from_a_weak_one(desk: Desk, sent: str | None) -> None:
    desk.make(Role.admin)
    desk.ask(Role.anyone, sent)
    with pytest.raises(Unauthorized) as caught:
        desk.ask(Role.read, sent)
    assert "keys new" in caught.value.fix
    assert not sent or sent not in str(caught.value)


def test_an_expired_token_is_none_and_keeps_the_door_closed(desk: Desk) -> None:
    token = desk.make(Role.read, days=1)
    desk.wall = float(keystore.read(desk.config)[1].expires_s) - 1
    desk.ask(Role.read, token)
    desk.wall += 1
    with pytest.raises(Unauthorized, match=r"has expired.*--rotate"):
        desk.ask(Role.read, token)
    keystore.revoke(desk.config, Role.admin, "local")
    desk.now += 1
    with pytest.raises(Unauthorized):
        desk.ask(Role.read)


def test_a_token_holds_and_ends_without_a_restart(desk: Desk) -> None:
    desk.ask(Role.read)
    token = desk.make(Role.read)
    desk.now += keystore.LOOK_S
    with pytest.raises(Unauthorized):
        desk.ask(Role.read)
    desk.ask(Role.read, token)
    keystore.revoke(desk.config, Role.read, "read")
    desk.now += keystore.LOOK_S
    with pytest.raises(Unauthorized):
        desk.ask(Role.read, token)


def test_wider_than_loopback_nobody_comes_in_without_tokens(tmp_path: Path) -> None:
    desk = Desk(tmp_path, EXESYS_REST_HOST="0.0.0.0")
    with pytest.raises(Unavailable, match="keys new"):
        desk.ask(Role.read)
    with pytest.raises(Unavailable):
        desk.gate.check()
    token = desk.make(Role.read)
    desk.now += 1
    desk.ask(Role.read, token)
    desk.gate.check()


def test_a_damaged_file_lets_nobody_in(desk: Desk) -> None:
    token = desk.make(Role.admin)
    keystore.tokens_file(desk.config).write_text("{")
    with pytest.raises(Unavailable):
        desk.ask(Role.read, token)
    desk.ask(Role.anyone)


def test_large_bodies_are_refused_by_their_headers(desk: Desk) -> None:
    assert desk.gate.refusal({}) is None
    token = desk.make(Role.read)
    desk.now += 1
    assert isinstance(desk.gate.refusal({}), Unauthorized)
    assert isinstance(desk.gate.refusal({"AUTHORIZATION": "Bearer x"}), Unauthorized)
    assert desk.gate.refusal({"AUTHORIZATION": f"Bearer {token}"}) is None
    keystore.tokens_file(desk.config).write_text("{")
    desk.now += 1
    assert isinstance(desk.gate.refusal({"AUTHORIZATION": f"Bearer {token}"}), Unavailable)


# --- hosts and origins --------------------------------------------------------


@pytest.mark.parametrize("host", ["", "localhost:5000", "127.0.0.1", "[::1]:5000", "10.1.2.3:80", "jobs.example"])
def test_addresses_localhost_and_names_listed_are_taken(tmp_path: Path, host: str) -> None:
    Desk(tmp_path, EXESYS_REST_NAMES="Jobs.example").ask(Role.admin, host=host)


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example:5000", "127.0.0.1.evil.example", "[x]"])
def test_another_name_is_refused_without_tokens(desk: Desk, host: str) -> None:
    with pytest.raises(Forbidden, match=r"\[rest\] names"):
        desk.ask(Role.read, host=host)
    token = desk.make(Role.read)
    desk.now += 1
    desk.ask(Role.read, token, host=host)  # a page does not have it


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:5002", "http://localhost:5000"])
def test_pages_of_other_origins_change_nothing(desk: Desk, origin: str) -> None:
    for method in ("POST", "DELETE", "PATCH"):
        with pytest.raises(Forbidden, match=r"\[rest\] origins"):
            desk.ask(Role.submit, method=method, origin=origin)
    desk.ask(Role.read, origin=origin)  # what it reads the browser does not show it


def test_pages_of_origins_listed_and_of_its_own_may(tmp_path: Path) -> None:
    desk = Desk(tmp_path, EXESYS_REST_ORIGINS="https://App.example")
    for origin in ("https://app.example", "https://APP.example", "http://127.0.0.1:5000", "https://127.0.0.1:5000"):
        desk.ask(Role.submit, method="POST", origin=origin)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"http://127.0.0.1:5001", "http://localhost:5001"}),
        ({"WEB_PORT": "81", "REST_NAMES": "jobs.example"}, {"http://127.0.0.1:81", "http://localhost:81"}),
        ({"WEB_HOST": "::1"}, {"http://127.0.0.1:5001", "http://localhost:5001", "http://[::1]:5001"}),
        (
            {"WEB_HOST": "0.0.0.0", "REST_NAMES": "Jobs.example"},
            {"http://127.0.0.1:5001", "http://localhost:5001", "http://jobs.example:5001"},
        ),
        ({"WEB_HOST": "10.1.2.3", "REST_ORIGINS": "https://a.example"}, {"http://10.1.2.3:5001", "https://a.example"}),
    ],
)
def test_the_dashboards_origins_are_let_in(tmp_path: Path, settings: dict[str, str], expected: set[str]) -> None:
    environ = {f"EXESYS_{name}": value for name, value in settings.items()}
    assert origins(configuration.parse("", None, environ, tmp_path, tmp_path)) == expected


# --- rates ----------------------------------------------------------------------


def test_each_token_has_its_own_rate(tmp_path: Path) -> None:
    desk = Desk(tmp_path, EXESYS_LIMITS_RATE="2", EXESYS_LIMITS_BURST="3")
    one, other = desk.make(Role.read, "one"), desk.make(Role.read, "other")
    for _ in range(3):
        desk.ask(Role.read, one)
    with pytest.raises(RateLimited) as caught:
        desk.ask(Role.read, one)
    assert caught.value.wait_s == pytest.approx(0.5)
    desk.ask(Role.read, other)
    desk.ask(Role.anyone, one)
    desk.now += 0.5
    desk.ask(Role.read, one)


def test_without_tokens_each_address_has(tmp_path: Path) -> None:
    desk = Desk(tmp_path, EXESYS_LIMITS_RATE="1", EXESYS_LIMITS_BURST="1")
    desk.ask(Role.read)
    with pytest.raises(RateLimited):
        desk.ask(Role.read)
    desk.gate.admit({"REQUEST_METHOD": "GET", "REMOTE_ADDR": "127.0.0.2"}, Role.read)


def test_an_array_counts_as_its_commands(tmp_path: Path) -> None:
    desk = Desk(tmp_path, EXESYS_LIMITS_RATE="1", EXESYS_LIMITS_BURST="10")
    desk.gate.charge(desk.ask(Role.submit), 7)
    with pytest.raises(RateLimited):
        desk.gate.charge(desk.ask(Role.submit), 4)
    desk.gate.charge(desk.ask(Role.submit), 3)
    with pytest.raises(RateLimited):
        desk.ask(Role.submit)


def test_without_a_rate_nothing_is_counted(desk: Desk) -> None:
    for _ in range(1000):
        desk.gate.charge(desk.ask(Role.submit), 1000)


# --- CORS -----------------------------------------------------------------------

ORIGIN = "https://app.example"
Called = tuple[str, dict[str, str], bytes]


def call(method: str, origin: str | None, **headers: str) -> Called:
    """Ask through CORS for one origin; return status, headers and body."""
    got: list[Any] = []

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        start_response("401 Unauthorized", [("X-Own", "1")])
        return [b"app"]

    environ: dict[str, Any] = {"REQUEST_METHOD": method, **headers}
    if origin is not None:
        environ["HTTP_ORIGIN"] = origin
    cors = Cors(app, [ORIGIN], {"X-Frame-Options": "DENY"})
    body = b"".join(cors(environ, lambda status, headers, exc_info=None: got.extend((status, dict(headers)))))
    return got[0], got[1], body


ASKS = {"HTTP_ACCESS_CONTROL_REQUEST_METHOD": "POST"}


def test_a_page_of_a_listed_origin_is_let_read_and_ask() -> None:
    status, headers, body = call("OPTIONS", ORIGIN, **ASKS)
    assert (status, body) == ("204 No Content", b"")
    assert headers["Access-Control-Allow-Origin"] == ORIGIN
    assert "Authorization" in headers["Access-Control-Allow-Headers"]
    assert "DELETE" in headers["Access-Control-Allow-Methods"]
    assert (headers["Vary"], headers["X-Frame-Options"]) == ("Origin", "DENY")
    assert "Access-Control-Allow-Credentials" not in headers
    status, headers, body = call("GET", ORIGIN)
    assert (status, headers["Access-Control-Allow-Origin"], body) == ("401 Unauthorized", ORIGIN, b"app")


@pytest.mark.parametrize("origin", [None, "https://app.example.evil", "http://app.example", "null", "*"])
@pytest.mark.parametrize("method", ["OPTIONS", "GET", "POST"])
def test_a_page_of_another_is_not(method: str, origin: str | None) -> None:
    status, headers, body = call(method, origin, **ASKS)
    assert (status, body) == ("401 Unauthorized", b"app")
    assert not any(name.startswith("Access-Control") for name in headers)
    assert headers["Vary"] == "Origin"
