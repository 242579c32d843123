"""What may be set of a queue."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exesys import config, queues
from exesys.errors import BadCommand, ConfigError

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    ("text", "number", "ms"),
    [("100/m", 100, 60_000), ("1/s", 1, 1000), (" 7 / h ", 7, 3_600_000), ("10000/d", 10_000, 86_400_000)],
)
def test_a_rate_is_a_number_per_time(text: str, number: int, ms: int) -> None:
    assert queues.parse_rate(text) == (number, ms)
    assert queues.check("merge", "q", {"rate": text})["rate_n"] == number


@pytest.mark.parametrize("text", ["ten/m", "100", "100/w", "0/m", "-1/m", "1.5/s", "10001/m", "/m", "1/", "1/ms"])
def test_a_rate_that_is_none_says_what_is_allowed(text: str) -> None:
    with pytest.raises(BadCommand) as caught:
        queues.check("merge", "q", {"rate": text})
    assert caught.value.field == "rate"
    assert "such as 100/m" in caught.value.fix
    with pytest.raises(ConfigError, match=r"line 2: \[queue:q\] rate is"):
        config.parse(f"[queue:q]\nrate = {text}\n", None, {}, ROOT, ROOT)


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"depth": 0}, "depth"),
        ({"depth": "many"}, "depth"),
        ({"depth": "10"}, "depth"),
        ({"concurrency": -1}, "concurrency"),
        ({"concurrency": 1.5}, "concurrency"),
        ({"concurrency": True}, "concurrency"),
        ({"key_limit": 10_001}, "key_limit"),
        ({"paused": 1}, "paused"),
        ({"paused": "yes"}, "paused"),
        ({"rate": ["1/s"]}, "rate"),
    ],
)
def test_a_setting_that_is_wrong_says_what_is_allowed(fields: dict[str, Any], field: str) -> None:
    with pytest.raises(BadCommand) as caught:
        queues.check("merge", "q", fields)
    assert caught.value.field == field
    assert caught.value.fix.startswith("Allowed: ")


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(BadCommand, match="'concurency'") as caught:
        queues.check("merge", "q", {"concurency": 2})
    assert caught.value.fix == "Did you mean `concurrency`?"


def test_null_takes_a_setting_away() -> None:
    taken = queues.check("merge", "q", {"rate": None, "depth": None, "paused": False})
    assert taken == {"rate": "", "rate_n": "", "rate_ms": "", "depth": "", "paused": ""}
    assert queues.shown({}) == {"paused": False, "depth": None, "rate": None, "concurrency": None, "key_limit": None}


def test_a_section_sets_what_it_says_and_no_more() -> None:
    parsed = config.parse("[queue:q]\nrate = 2/s\ndepth =\n", None, {}, ROOT, ROOT)
    [queue] = parsed.queues
    assert queues.of_section(queue) == {"rate": "2/s", "rate_n": 2, "rate_ms": 1000, "origin": "ini"}


def test_a_further_worker_has_queues_and_slots_of_its_own() -> None:
    parsed = config.parse("[worker]\ngrace_s = 3\n[worker:mail]\nqueues = a, b\nslots = 7\n", None, {}, ROOT, ROOT)
    own = parsed.for_worker("mail").worker
    assert (own.queues, own.slots, own.grace_s) == (("a", "b"), 7, 3.0)
    assert parsed.workers[0].program == "worker-mail"
    with pytest.raises(ConfigError, match="no worker mial"):
        parsed.for_worker("mial")
    with pytest.raises(ConfigError, match="has no `queues`"):
        config.parse("[worker:mail]\n", None, {}, ROOT, ROOT)
