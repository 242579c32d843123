"""Addresses: how wide they reach, and that no password is shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys import addresses


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.10", "::1", "localhost"])
def test_loopback_is_known(host: str) -> None:
    assert addresses.is_loopback(host)


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.2", "::ffff:0.0.0.0", "example.org", "127.0.0.1.example.org"]
)
def test_all_else_is_wider(host: str) -> None:
    assert addresses.read_host(host) == host
    assert not addresses.is_loopback(host)


@pytest.mark.parametrize("host", ["", "127.1", "0", "1.2.3", "2130706433", "a b", "-a", "a..b", "http://a", "a:1", "*"])
def test_what_is_neither_an_address_nor_a_name_is_refused(host: str) -> None:
    with pytest.raises(ValueError, match=r".*"):
        addresses.read_host(host)


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:5"),
        ("0.0.0.0", "http://127.0.0.1:5"),
        ("::", "http://[::1]:5"),
        ("::1", "http://[::1]:5"),
        ("jobs.example.org", "http://jobs.example.org:5"),
    ],
)
def test_an_address_is_written_as_this_machine_reaches_it(host: str, url: str) -> None:
    assert addresses.url(host, 5) == url


@pytest.mark.parametrize(
    ("header", "host"),
    [
        ("localhost:5000", "localhost"),
        ("LocalHost", "localhost"),
        ("127.0.0.1:5000", "127.0.0.1"),
        ("[::1]:5000", "::1"),
        ("[::1", "::1"),
        ("", ""),
        (" evil.example:80 ", "evil.example"),
    ],
)
def test_the_host_of_a_header(header: str, host: str) -> None:
    assert addresses.host_of(header) == host


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://user:secret@host:1/0", "redis://user:***@host:1/0"),
        ("redis://:secret@host", "redis://:***@host"),
        ("redis://secret@host", "redis://***@host"),
        ("redis://user:se@cr/et@host/0", "redis://user:***@host/0"),
        ("mongodb://u:secret@a:1,b:2/x?w=1", "mongodb://u:***@a:1,b:2/x?w=1"),
        ("unix:///run/redis?db=0&password=secret&x=1", "unix:///run/redis?db=0&password=***&x=1"),
        ("mongodb://h/?authMechanismProperties=AWS_SESSION_TOKEN:secret", "mongodb://h/?authMechanismProperties=***"),
        ("redis://u:se'cr\"e t?@h/0", "redis://u:***@h/0"),
        ("redis://host:1/0?db=1", "redis://host:1/0?db=1"),
        ("unix:///run/redis?db=0", "unix:///run/redis?db=0"),
        ("no address", "no address"),
    ],
)
def test_passwords_are_masked(text: str, shown: str) -> None:
    assert addresses.masked(text) == shown
    assert addresses.masked(shown) == shown


@given(st.sampled_from(["redis", "rediss", "mongodb", "mongodb+srv"]), st.text())
def test_no_password_gets_through(scheme: str, password: str) -> None:
    shown = addresses.masked(f"{scheme}://user:p4ss{password}w0rd@example.org:1/0?db=1")
    assert shown == f"{scheme}://user:***@example.org:1/0?db=1"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("localhost:6379", "localhost:6379"),
        ("user:secret@host", "***@host"),
        ("redis:/user:se@cret@host", "***@host"),
        ("redis://user:secret@host", "redis://user:***@host"),
    ],
)
def test_what_was_to_be_an_address_is_masked_too(text: str, shown: str) -> None:
    assert addresses.masked_wrong(text) == shown
