"""How the servers are started: with which environment."""

import os

import pytest

from exesys import launch, servers
from exesys.errors import ConfigError


@pytest.fixture
def executed(monkeypatch, tmp_path):
    """Return the commands and environments that the launcher became; it lives on as if exec had failed."""
    calls = []

    def execve(path, command, environ):
        calls.append((command, environ))
        raise OSError("not in a test")

    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(launch, "die_with_parent", lambda *_: None)
    monkeypatch.setattr(launch, "_redis", lambda config: ["/r/redis-server"])
    monkeypatch.setattr(launch, "_mongo", lambda config: ["/m/mongod"])
    monkeypatch.setenv("EXESYS_HOME", str(tmp_path))
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    return calls


@pytest.mark.parametrize(("program", "tuned"), [("redis", True), ("mongo", False)])
def test_only_redis_gets_its_settings_of_malloc(executed, capsys, program, tuned):
    assert launch.main([program]) == 1
    [(_, environ)] = executed
    assert (environ.get("GLIBC_TUNABLES") == servers.REDIS_MALLOC[1]) is tuned
    assert environ["EXESYS_HOME"] == os.environ["EXESYS_HOME"]
    assert "not in a test" in capsys.readouterr().err


def test_who_has_tuned_malloc_keeps_that(executed, monkeypatch):
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=1")
    launch.main(["redis"])
    assert executed[0][1]["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=1"


def test_a_server_that_is_not_there_is_told(executed, monkeypatch, capsys):
    def none(config):
        raise ConfigError("there is none")

    monkeypatch.setattr(launch, "_redis", none)
    assert launch.main(["redis"]) == 1
    assert (executed, capsys.readouterr().err) == ([], "there is none\n")
