"""What the doctor says of a Redis, from what it tells of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from exesys import config, redischecks

GOOD = {
    "appendonly": "yes",
    "appendfsync": "everysec",
    "save": "",
    "maxmemory-policy": "noeviction",
    "min-replicas-to-write": "0",
    "protected-mode": "yes",
    "bind": "127.0.0.1 -::1",
    "requirepass": "",
    "notify-keyspace-events": "K$gx",
}
SENTINEL = {"redis_url": "sentinel://a,b,c/main"}
WIDE = {"protected-mode": "no", "bind": "* -::*"}


def looked(settings: dict[str, str], info: dict[str, Any], keys: dict[str, str]) -> list[tuple[str, str, str]]:
    environ = {f"EXESYS_{name.upper()}": value for name, value in {"redis_url": "redis://h", **keys}.items()}
    parsed = config.parse("", None, environ, Path("/srv"), Path("/srv"))
    found = [look(parsed, info, settings) for look in redischecks._LOOKS]
    return [(check.name, check.state, f"{check.message} {check.fix}") for check in found if check is not None]


def test_a_good_one_is_passed_over() -> None:
    assert looked(GOOD, {"used_memory": 5, "maxmemory": 0, "connected_slaves": 0}, {}) == []


def test_settings_that_are_not_told_are_not_judged() -> None:
    assert looked({}, {}, SENTINEL) == []


@pytest.mark.parametrize(
    ("settings", "info", "keys", "name", "state", "says"),
    [
        ({"appendonly": "no"}, {}, {}, "redis settings", "fail", "and save is empty, so a restart forgets every job"),
        ({"appendonly": "no", "save": "60 1"}, {}, {}, "redis settings", "fail", "all since its last snapshot"),
        ({"appendfsync": "no"}, {}, {}, "redis settings", "fail", "appendfsync is no"),
        ({"maxmemory-policy": "allkeys-lru"}, {}, {}, "redis settings", "fail", "maxmemory-policy is allkeys-lru"),
        ({"notify-keyspace-events": "Ex"}, {}, {}, "redis settings", "warn", "within a second"),
        ({}, {"used_memory": 95 << 20, "maxmemory": 100 << 20}, {}, "redis memory", "warn", "95 % of its maxmemory"),
        ({}, {"aof_last_write_status": "err"}, {}, "redis disk", "fail", "aof_last_write_status"),
        ({}, {"connected_slaves": 1}, SENTINEL, "redis replicas", "warn", "can lose the last moments"),
        ({}, {"connected_slaves": 1}, {"redis_wait_replicas": "2"}, "redis replicas", "fail", "wait_replicas is 2"),
        (WIDE, {}, {}, "redis reach", "fail", "anybody may come in"),
    ],
)
def test_what_is_dangerous_is_named(
    settings: dict[str, str], info: dict[str, Any], keys: dict[str, str], name: str, state: str, says: str
) -> None:
    [(found, how, text)] = looked({**GOOD, **settings}, info, keys)
    assert (found, how) == (name, state)
    assert says in text


@pytest.mark.parametrize(
    ("settings", "keys"),
    [
        ({"min-replicas-to-write": "1"}, SENTINEL),
        ({}, {**SENTINEL, "redis_wait_replicas": "1"}),
        ({**WIDE, "requirepass": "x"}, {}),
        (WIDE, {"redis_url": "redis://user:pw@h"}),
        ({**WIDE, "bind": "127.0.0.1"}, {}),
        ({"notify-keyspace-events": "AKE"}, {}),
    ],
)
def test_what_is_guarded_is_passed_over(settings: dict[str, str], keys: dict[str, str]) -> None:
    assert looked({**GOOD, **settings}, {"connected_slaves": 1}, keys) == []
