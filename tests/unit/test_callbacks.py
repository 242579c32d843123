"""Where the end of a step may be told: URLs, hosts, addresses; the waits between tries; the signature."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress

import pytest

from exesys import callbacks
from exesys.callbacks import Hosts, Target, delay_s, is_public, read_hosts, signature, target
from exesys.errors import BadCommand

# --- URLs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://a.example/x?y=1", ("https", "a.example", 443, "/x?y=1")),
        ("http://a.example", ("http", "a.example", 80, "/")),
        ("HTTP://A.Example.:8080/X", ("http", "a.example", 8080, "/X")),
        ("https://a.example?y", ("https", "a.example", 443, "/?y")),
        ("https://a.example/x#part", ("https", "a.example", 443, "/x")),
        ("http://127.0.0.1:5001/", ("http", "127.0.0.1", 5001, "/")),
        ("http://[::1]:81/x", ("http", "::1", 81, "/x")),
        ("http://my_host/", ("http", "my_host", 80, "/")),
    ],
)
def test_a_url_is_taken_apart(url: str, expected: tuple[str, str, int, str]) -> None:
    assert target(url) == Target(*expected)
    assert callbacks.check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "a.example/x",
            "ftp://a.example/",
            "file:///etc/passwd",
            "javascript:alert(1)",
            "//a.example/",
            "http:/x",
        ),
        *("http://", "http:///x", "http://:80/", "http://a.example:0/", "http://a.example:99999/", "http://a:b/"),
        *("ftp://user:secret@a.example/", "http://user:secret@a b/", "http://a.example:0/?x=@secret"),
        *("http://user@a.example/", "http://user:secret@a.example/", "http://a.example@b.example/"),
        *("http://a example/", "http://a.example/\r\nX: y", "http://a.example/\n", "http://ä.example/", "http://a..b/"),
        *("http://2130706433/", "http://0x7f.1/", "http://127.1/", "http://0177.0.0.1/", "http://1.2.3.4.5/"),
        *("http://[::1/", "http://[::1%25eth0]/", "http://::1/", "http://[1.2.3]/", "http://-a.example/"),
        *("http://good.example\\@evil.example/", f"http://{'a' * 64}.example/", f"http://a.example/{'x' * 2048}"),
        *(None, 5, ["http://a.example/"], {"url": "http://a.example/"}),
    ],
)
def test_what_is_no_url_is_refused_in_words(url: object) -> None:
    with pytest.raises(BadCommand) as refused:
        target(url)
    assert (refused.value.code, refused.value.field) == ("bad_field", "notify")
    assert refused.value.fix
    assert "secret" not in str(refused.value)


def test_the_origin_of_a_url_leaves_out_what_may_be_secret() -> None:
    assert target("https://a.example/hook?token=1").origin == "https://a.example"
    assert target("http://[::1]:81/x").netloc == "[::1]:81"
    assert target("https://a.example:443/").netloc == "a.example"


# --- hosts --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "url", "allowed"),
    [
        ("", "https://a.example/", False),
        ("a.example", "https://a.example/", True),
        ("A.example", "https://a.EXAMPLE./", True),
        ("a.example", "https://b.a.example/", False),
        ("*.a.example", "https://b.a.example/", True),
        ("*.a.example", "https://c.b.a.example/", True),
        ("*.a.example", "https://a.example/", False),
        ("*.a.example", "https://evil-a.example/", False),
        ("127.0.0.1", "http://127.0.0.1:99/", True),
        ("127.0.0.1", "http://127.0.0.2/", False),
        ("127.0.0.1", "http://[::ffff:127.0.0.1]/", True),
        ("127.0.0.1", "http://localhost/", False),
        ("10.0.0.0/8", "http://10.1.2.3/", True),
        ("10.0.0.0/8", "http://11.1.2.3/", False),
        ("a.example", "http://93.184.216.34/", False),
        ("93.184.216.34", "http://93.184.216.34/", True),
        ("::1, fd00::/8", "http://[fd00::5]/", True),
        ("::1", "http://127.0.0.1/", False),
    ],
)
def test_only_hosts_that_are_listed_may_be_told(listed: str, url: str, allowed: bool) -> None:
    hosts = Hosts(read_hosts(listed))
    if allowed:
        assert hosts.check(url) == target(url)
        return
    with pytest.raises(BadCommand) as refused:
        hosts.check(url)
    assert (refused.value.code, refused.value.field) == ("bad_field", "notify")
    assert (listed.split(",")[0].lower() or "none") in refused.value.fix


@pytest.mark.parametrize(
    "text", ["*", "a.example/x", "http://a.example", "10.0.0.1/8", "127.1", "a b", "*.*.a", "ä.example"]
)
def test_a_list_of_hosts_that_makes_no_sense_is_refused(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  the rule of the setting says what is allowed
        read_hosts(text)


@pytest.mark.parametrize(
    "text",
    [
        *("127.0.0.1", "127.9.9.9", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0"),
        *("224.0.0.1", "255.255.255.255", "240.0.0.1", "100.64.0.1", "192.0.2.1", "198.18.0.1"),
        *("::1", "::", "fe80::1", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1"),
        *("64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::", "2001:0:1::1", "2001:db8::1"),
    ],
)
def test_addresses_that_are_not_the_internets_must_be_listed_themselves(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert not Hosts(("a.example",)).may_reach(address)
    inner = callbacks.plain(address)
    assert Hosts((str(inner),)).may_reach(address)


@pytest.mark.parametrize("text", ["93.184.216.34", "8.8.8.8", "2606:2800:220:1::1", "::ffff:8.8.8.8"])
def test_public_addresses_need_no_listing_once_the_name_is_allowed(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert is_public(callbacks.plain(address))
    assert Hosts(()).may_reach(address)


# --- waits and signature --------------------------------------------------------


def test_the_wait_doubles_with_each_try_and_half_of_it_is_chance() -> None:
    assert [delay_s(5, tries, 0.0) for tries in (1, 2, 3)] == [2.5, 5.0, 10.0]
    assert delay_s(5, 1, 0.5) == 3.75
    assert delay_s(5, 1000, 0.999) < callbacks.LONGEST_BACKOFF_S
    assert delay_s(0, 5, 0.9) == 0.0


def test_the_signature_is_an_hmac_over_time_and_body() -> None:
    expected = hmac.new(b"key", b'1700000000.{"a":1}', hashlib.sha256).hexdigest()
    assert signature(b"key", "1700000000", b'{"a":1}') == f"sha256={expected}"
    assert signature(b"other", "1700000000", b'{"a":1}') != f"sha256={expected}"
