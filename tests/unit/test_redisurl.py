"""Addresses of a Redis: which are read, what they say, and why others are refused."""

from __future__ import annotations

import re
from typing import Any

import pytest

from exesys import redisurl, troubles
from exesys.addresses import masked
from exesys.redisurl import Sentinels

HOSTS = (("a", 26379), ("10.0.0.2", 1), ("::1", 5))


@pytest.mark.parametrize(
    ("text", "url", "sentinels"),
    [
        ("redis://u:p@h:6379/3?db=4", "redis://u:p@h:6379/3?db=4", None),
        ("unix://:p@/run/redis?db=1", "unix://:p@/run/redis?db=1", None),
        ("sentinel://a,10.0.0.2:1,[::1]:5/main", "redis://main/0?", Sentinels(HOSTS, "main", None, None)),
        (
            "sentinels://u:p%40@a/main/7?ssl_check_hostname=no&sentinel_username=s&sentinel_password=x%26y",
            "rediss://u:p%40@main/7?ssl_check_hostname=no",
            Sentinels((("a", 26379),), "main", "s", "x&y"),
        ),
    ],
)
def test_what_an_address_says(text: str, url: str, sentinels: Any) -> None:
    found = redisurl.read(text)
    assert (found.url, found.sentinels) == (url, sentinels)
    assert found.tls == (found.scheme in ("rediss", "sentinels"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("http://h", "none of the forms"),
        ("redis://", "none of the forms"),
        ("redis://h?ssl_ca_certs=/ca", "option `ssl_ca_certs` is none of"),
        ("rediss://h?ssl_ca_cert=/ca", "option `ssl_ca_cert` is none of"),
        ("rediss://h?ssl_ca_certs=ca.pem", "whole path"),
        ("redis://h?sentinel_password=s3cr3t", "option `sentinel_password` is none of"),
        ("sentinel://a:1", "does not have the form"),
        ("sentinel://a:1/", "does not have the form"),
        ("sentinel://a:x/main", "does not have the form"),
        ("sentinel://a,,b/main", "does not have the form"),
        ("sentinel://a/main/x", "does not have the form"),
    ],
)
def test_what_is_no_address_is_refused_and_not_quoted(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=re.escape(says)) as caught:
        redisurl.read(text)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "beside"),
    [
        ("sentinel://a:1,b:2/main", "sentinel://a:1,b:2/main?db=1"),
        ("sentinel://u:p@a:1,b:2/main/0?db=5&client_name=y", "sentinel://u:p@a:1,b:2/main?client_name=y&db=1"),
        ("sentinels://a/main/1", "sentinels://a/main?db=2"),
        ("sentinel://a/main?db=1", "sentinel://a/main?db=2"),
    ],
)
def test_the_database_beside_that_of_the_jobs(url: str, beside: str) -> None:
    assert redisurl.beside(url) == beside
    read = redisurl.read(beside)
    assert read.sentinels == redisurl.read(url).sentinels


def test_no_password_of_sentinels_is_shown() -> None:
    url = "sentinel://u:s3cr3t@a:1,b:2/main?sentinel_username=s&sentinel_password=s3cr3t"
    assert masked(url) == "sentinel://u:***@a:1,b:2/main?sentinel_username=s&sentinel_password=***"


# --- what can be wrong -----------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("OOM command not allowed when used memory > 'maxmemory'.", "store_full"),
        ("READONLY You can't write against a read only replica.", "store_readonly"),
        ("LOADING Redis is loading the dataset in memory", "store_loading"),
        ("MOVED 633 127.0.0.1:7000", "store_cluster"),
        ("MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.", "store_orphaned"),
        ("NOAUTH Authentication required.", "store_password"),
        ("WRONGPASS invalid username-password pair or user is disabled.", "store_login"),
        ("NOPERM User exesys has no permissions to run the 'fcall' command", "store_forbidden"),
        ("NOREPLICAS Not enough good replicas to write.", "store_noreplicas"),
        ("MISCONF Errors writing to the AOF file: No space left", "store_disk"),
        ("FENCED the epoch of this router is 3", "store_taken"),
    ],
)
def test_what_redis_says_has_a_reason_and_a_way_out(text: str, reason: str) -> None:
    trouble = troubles.of(text)
    assert trouble is not None
    assert trouble.reason == reason
    assert troubles.named(reason) is trouble
    assert trouble.why.endswith(".")
    assert trouble.fix.endswith(".")


@pytest.mark.parametrize("text", ["WRONGTYPE Operation", "ERR unknown command", "BUSYKEY Target key", "", "OOMPH"])
def test_what_concerns_one_request_is_no_trouble(text: str) -> None:
    assert troubles.of(text) is None


def test_a_reason_of_a_newer_router_is_still_one_of_the_store() -> None:
    assert troubles.named("store_moonlight") is troubles.AWAY
    assert troubles.named("moonlight") is None
    assert troubles.named("") is None
