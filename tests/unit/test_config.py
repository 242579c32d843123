"""The settings: what is wrong is named with its place, and what is right is read once."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys import appconfig, config, programs, queues, shards, timerconfig
from exesys.errors import ConfigError

ROOT = Path("/srv/project")
INI = ROOT / "etc/exesys.ini"
KEYS = [(name, key.name) for name, section in config.SECTIONS.items() for key in dataclasses.fields(section)]


def parse(text: str = "", **environ: str) -> config.Config:
    return config.parse(text, INI, environ, ROOT, Path("/home/me"))


def problem(text: str = "", **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text, **environ)
    assert caught.value.fix
    return str(caught.value)


def test_nothing_set_is_a_valid_system() -> None:
    settings = parse()
    assert settings.home == ROOT / "var"
    assert (settings.run, settings.data, settings.log) == (ROOT / "var/run", ROOT / "var/data", ROOT / "var/log")
    assert settings.rest_url == "http://127.0.0.1:5000"
    assert settings.web_url == "http://127.0.0.1:5001"
    assert settings.bus_endpoint == "ipc:///srv/project/var/run/bus"
    assert settings.redis_url == "unix:///srv/project/var/run/redis?db=0"
    assert settings.module_dirs == (ROOT / "modules",)
    assert settings.lease_s == 5.0


def test_a_redis_that_is_not_ours_gets_no_replica() -> None:
    with pytest.raises(ConfigError, match=r"etc/exesys\.ini, line 3: \[redis\] backup is yes") as caught:
        parse("[redis]\nurl = redis://127.0.0.1\nbackup = yes\n")
    assert caught.value.field == "backup"
    assert parse("[redis]\nbackup = yes\n").redis.backup


@pytest.mark.parametrize(("section", "key"), KEYS)
def test_every_default_keeps_its_own_rule(section: str, key: str) -> None:
    default = getattr(getattr(parse(), section), key)
    shown = programs._text(default)
    written = parse(f"[{section}]\n{key} = {shown}\n")
    assert getattr(getattr(written, section), key) == default
    assert getattr(getattr(parse(**{f"EXESYS_{section}_{key}".upper(): shown}), section), key) == default


GOOD: list[tuple[str, str, str, Any]] = [
    ("rest", "port", "8080", 8080),
    ("rest", "host", "localhost", "localhost"),
    ("rest", "host", "::1", "::1"),
    ("rest", "host", "0.0.0.0", "0.0.0.0"),
    ("rest", "host", "jobs.example.com", "jobs.example.com"),
    ("rest", "names", "Jobs, jobs.example.com", ("jobs", "jobs.example.com")),
    ("rest", "origins", "https://A.example:8443,http://[::1]", ("https://a.example:8443", "http://[::1]")),
    ("worker", "memory_bytes", "512m", 512 << 20),
    ("worker", "memory_bytes", "2 GB", 2 << 30),
    ("worker", "queues", "default, slow,", ("default", "slow")),
    ("worker", "grace_s", "0.5", 0.5),
    ("limits", "data_bytes", "64k", 64 << 10),
    ("bus", "endpoint", "tcp://127.0.0.1:7000", "tcp://127.0.0.1:7000"),
    ("redis", "prefix", "{s07}", "{s07}"),
    ("redis", "backup", "Yes", True),
    ("mongo", "uri", "mongodb://u:p%40@localhost:1/x?y=z", "mongodb://u:p%40@localhost:1/x?y=z"),
]


@pytest.mark.parametrize(("section", "key", "text", "value"), GOOD)
def test_values(section: str, key: str, text: str, value: Any) -> None:
    assert getattr(getattr(parse(f"[{section}]\n{key} = {text}\n"), section), key) == value


BAD = [
    ("rest", "port", "0"),
    ("rest", "port", "65536"),
    ("rest", "port", "http"),
    ("rest", "port", "5000.0"),
    ("rest", "port", ""),
    ("rest", "host", "127.1"),
    ("rest", "host", "exa mple"),
    ("rest", "host", "-x"),
    ("rest", "names", "a b"),
    ("rest", "origins", "example.org"),
    ("rest", "origins", "https://example.org/"),
    ("rest", "origins", "*"),
    ("limits", "rate", "-1"),
    ("limits", "burst", "0"),
    ("worker", "slots", "-1"),
    ("worker", "grace_s", "nan"),
    ("worker", "grace_s", "inf"),
    ("worker", "memory_bytes", "lots"),
    ("worker", "memory_bytes", "1t"),
    ("worker", "queues", ","),
    ("worker", "queues", "a b"),
    ("redis", "url", "localhost:6379"),
    ("redis", "prefix", "s07"),
    ("redis", "backup", "maybe"),
    ("mongo", "uri", "localhost"),
    ("mongo", "database", "a b"),
    ("bus", "endpoint", "tcp://a b:7000"),
    ("limits", "timeout_s", "0"),
]


@pytest.mark.parametrize(("section", "key", "text"), BAD)
def test_a_bad_value_names_file_line_key_and_what_is_allowed(section: str, key: str, text: str) -> None:
    ini = f"; a comment\n[{section}]\n# {key} = 1\n\n{key} = {text}\n"
    said = problem(ini)
    assert f"{INI}, line 5: [{section}] {key} is {text!r}. Allowed: " in said
    variable = f"EXESYS_{section}_{key}".upper()
    assert f"the environment variable {variable} is {text!r}. Allowed: " in problem(**{variable: text})


def test_the_line_is_that_of_the_section() -> None:
    assert "line 4: [web] port" in problem("[rest]\nport = 5000\n[web]\nPort : x\n")


def test_the_environment_comes_first() -> None:
    assert parse("[rest]\nport = 1000\n", EXESYS_REST_PORT="2000").rest.port == 2000
    # What it overrides need not be right.
    assert parse("[rest]\nport = x\n", EXESYS_REST_PORT="2000").rest.port == 2000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[rst]\nport = 1\n", "line 1: the section [rst] is unknown. Did you mean `rest`?"),
        ("[zzz]\n", "is unknown. Known: functions, rest"),
        ("\n[rest]\nprot = 1\n", "line 3: the key `prot` of [rest] is unknown. Did you mean `port`?"),
        ("[DEFAULT]\nport = 1\n", "the section [DEFAULT] is unknown"),
        ("port = 1\n", f"{INI}, line 1: 'port = 1' stands before any [section]. Put it below"),
        ("\n[rest]\nport = 1\nPort = 2\n", f"{INI}, line 4: `port` of [rest] stands in line 3 already. Merge them"),
        ("[rest]\n\n[web]\n[rest]\n", f"{INI}, line 4: the section [rest] stands in line 1 already. Merge them"),
        ("[queue:a]\n[queue:ab]\n[queue:ab]\n", "line 3: the section [queue:ab] stands in line 2 already."),
        ("[rest]\nport\n", f"{INI}, line 2: 'port' is no `key = value`. Write a key"),
        ("[rest\nport = 1\n", f"{INI}, line 1: '[rest' stands before any [section]."),
    ],
)
def test_a_bad_ini_is_told_what_is_wrong(text: str, said: str) -> None:
    assert said in problem(text)


def test_the_home() -> None:
    assert parse(EXESYS_HOME="/tmp/other").home == Path("/tmp/other")
    assert parse(EXESYS_HOME="other").home == Path("/home/me/other")
    assert parse(EXESYS_HOME="").home == ROOT / "var"
    said = problem(EXESYS_HOME="/tmp/" + "x" * 90)
    assert "would have" in said
    assert "a unix socket's name holds 107" in said


def test_module_directories_count_from_the_root() -> None:
    assert parse("[functions]\npath = modules:/opt/more:\n").module_dirs == (ROOT / "modules", Path("/opt/more"))


@pytest.mark.parametrize(
    ("url", "data_url"),
    [
        ("", "unix:///srv/project/var/run/redis?db=1"),
        ("unix:///tmp/s", "unix:///tmp/s?db=1"),
        ("unix:///tmp/s?db=3&password=x", "unix:///tmp/s?password=x&db=1"),
        ("redis://h:6379", "redis://h:6379?db=1"),
        ("redis://h:6379/", "redis://h:6379?db=1"),
        ("redis://u:p@h:6379/0", "redis://u:p@h:6379?db=1"),
        ("rediss://h/5?ssl_cert_reqs=none", "rediss://h?ssl_cert_reqs=none&db=1"),
        ("redis://h/1", "redis://h?db=2"),
        ("redis://h/0?db=1", "redis://h?db=2"),
        ("redis://h/1?db=0", "redis://h?db=1"),
        ("unix:///tmp/s?db=1", "unix:///tmp/s?db=2"),
    ],
)
def test_functions_never_get_the_database_with_the_job_state(url: str, data_url: str) -> None:
    settings = parse(f"[redis]\nurl = {url}\n")
    assert settings.redis_data_url == data_url


def test_the_data_database_can_be_chosen() -> None:
    assert parse("[redis]\ndata_url = redis://other/7\n").redis_data_url == "redis://other/7"


@given(st.text(st.sampled_from("[]=:;#\n\t %restportwkx0159.-{}é\\"), max_size=80))
def test_any_text_is_read_or_refused_in_one_way(text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(text)


@given(st.sampled_from(KEYS), st.text(max_size=30))
def test_any_value_is_read_or_refused_in_one_way(key: tuple[str, str], text: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(**{"_".join(("EXESYS", *key)).upper(): text})


def test_the_ini_shows_every_key_with_its_default() -> None:
    shown = Path(config.__file__).parent.parent / "etc" / "exesys.ini"
    lines = [re.sub(r"^# (\w+ =|\[)", r"\1", line) for line in shown.read_text(encoding="utf-8").splitlines()]
    text = "\n".join(lines)
    section, found = "", []
    for line in lines:
        if match := re.match(r"\[([\w:]+)\]", line):
            section = match[1]
        elif match := re.match(r"(\w+) =", line):
            found.append((section, match[1]))
    app_keys = [("appserver:words", key) for key in ("class", "processes", "threads", "timeout_s")]
    app_keys += [("worker:mail", key) for key in ("queues", "slots")]
    app_keys += [("queue:mail", key) for key in ("depth", "rate", "concurrency", "key_limit")]
    app_keys += [("timer:night", word) for word in timerconfig.TIMER.words]
    app_keys += [("shard:s00", word) for word in shards.SHARD.words]
    assert sorted(found) == sorted([*KEYS, *app_keys])
    its_own = {"EXESYS_BUS_SHARD": "s00", "EXESYS_BUS_ENDPOINT": "tcp://0.0.0.0:5555"}
    shown_whole = config.parse(text, INI, its_own, ROOT, ROOT)
    assert shown_whole.appservers == (appconfig.AppServer("words", "word_dict:Dictionary"),)
    assert shown_whole.workers == (queues.WorkerOf("mail", ("mail",)),)
    assert shown_whole.queues == (queues.Queue("mail", rate="100/m"),)
    assert shown_whole.timers == (timerconfig.TimerOf("night", "noop", cron="30 2 * * *", zone="Europe/Rome"),)
    assert shown_whole.shards == (shards.ShardOf("s00", "tcp://10.0.0.1:5555"),)
    bare = dataclasses.replace(shown_whole, appservers=(), workers=(), queues=(), timers=(), shards=())
    assert dataclasses.replace(bare, bus=config.Bus()) == parse()


# --- application servers --------------------------------------------------

WORDS = "[appserver:words]\nclass = word_dict:Dictionary\n"


def test_a_section_without_its_end_is_told_with_its_line() -> None:
    with pytest.raises(ConfigError) as caught:
        parse("[limits]\ntimers = 5\n\n[timer:night\ncmd = noop\n")
    assert ", line 4: '[timer:night' opens a section and has no `]`" in caught.value.message


def test_an_application_server_is_declared_in_the_ini() -> None:
    [words] = parse(f"{WORDS}processes = 3\nthreads = 2\ntimeout_s = 0.5\n").appservers
    assert words == appconfig.AppServer("words", "word_dict:Dictionary", 3, 2, 0.5)
    assert words.programs == ("appserver-words-1", "appserver-words-2", "appserver-words-3")
    assert appconfig.AppServer("x", "a:B").programs == ("appserver-x",)
    assert parse(WORDS).appserver("words") == appconfig.AppServer("words", "word_dict:Dictionary")
    assert parse(WORDS).appserver("other") is None


@pytest.mark.parametrize("name", ["words", "WORDS"])
def test_the_environment_sets_a_declared_one_as_written_or_in_capitals(name: str) -> None:
    [words] = parse(WORDS, **{f"EXESYS_APPSERVER_{name}_THREADS": "4"}).appservers
    assert (words.name, words.threads) == ("words", 4)
    both = {"EXESYS_APPSERVER_words_THREADS": "2", "EXESYS_APPSERVER_WORDS_THREADS": "4"}
    assert parse(WORDS, **both).appservers[0].threads == 2


def test_the_environment_alone_declares_one() -> None:
    environ = {"EXESYS_APPSERVER_my-app_CLASS": "a:B", "EXESYS_APPSERVER_other_app_CLASS": "c:D"}
    environ["EXESYS_APPSERVER_other_app_TIMEOUT_S"] = "2"
    assert parse(**environ).appservers == (
        appconfig.AppServer("my-app", "a:B"),
        appconfig.AppServer("other_app", "c:D", timeout_s=2.0),
    )


def test_the_list_says_which_of_those_declared_there_are() -> None:
    assert parse(WORDS, EXESYS_APPSERVERS="").appservers == ()
    assert len(parse(WORDS, EXESYS_APPSERVERS="words").appservers) == 1
    assert "'wrods' is unknown. Did you mean `words`?" in problem(WORDS, EXESYS_APPSERVERS="wrods")


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("[appserver:9a]\nclass = a:B\n", {}, "line 1: the section [appserver:9a] names no application server"),
        ("[appserver]\nclass = a:B\n", {}, "the section [appserver] names no application server"),
        (f"[appserver:{'x' * 33}]\nclass = a:B\n", {}, "at most 32"),
        ("[appserver:a]\n", {}, "line 1: the application server a has no `class`"),
        ("", {"EXESYS_APPSERVER_a_THREADS": "2"}, "the environment: the application server a has no `class`"),
        (
            "[appserver:a]\nclas = a:B\n",
            {},
            "line 2: the key `clas` of [appserver:a] is unknown. Did you mean `class`?",
        ),
        ("[appserver:a]\nclass = os.path:B\n", {}, "line 2: [appserver:a] class is 'os.path:B'. Allowed: module:Class"),
        ("[appserver:a]\nclass = a:_B\n", {}, "Allowed: module:Class"),
        ("[appserver:a]\nclass = a.py\n", {}, "Allowed: module:Class"),
        (f"{WORDS}threads = 0\n", {}, "line 3: [appserver:words] threads is '0'. Allowed: a whole number, 1 to 256."),
        (f"{WORDS}processes = 65\n", {}, "Allowed: a whole number, 1 to 64."),
        (f"{WORDS}timeout_s = nan\n", {}, "Allowed: seconds"),
        (WORDS, {"EXESYS_APPSERVER_WORDS_THREADS": "x"}, "variable EXESYS_APPSERVER_WORDS_THREADS is 'x'. Allowed"),
        (WORDS, {"EXESYS_APPSERVER_words_TREADS": "2"}, "the key `treads` is unknown. Did you mean `threads`?"),
        (f"{WORDS}[appserver:Words]\nclass = a:B\n", {}, "cannot be told apart"),
        ("[appserver:a]\nclass = a:B\nprocesses = 2\n[appserver:a-1]\nclass = a:B\n", {}, "cannot be told apart"),
        ("[apserver:a]\nclass = a:B\n", {}, "Did you mean `appserver:NAME`?"),
    ],
)
def test_a_bad_application_server_is_told_what_is_wrong(text: str, environ: dict[str, str], said: str) -> None:
    assert said in problem(text, **environ)


def test_the_sockets_of_application_servers_must_fit() -> None:
    name = "x" * 32
    environ = {f"EXESYS_APPSERVER_{name}_CLASS": "a:B"}
    longest = config.UNIX_PATH_MAX_BYTES - len(f"/run/bus.a-{name}-1")
    assert parse(EXESYS_HOME="/" + "h" * (longest - 1), **environ).appservers
    assert f"the application server {name}: its socket" in problem(EXESYS_HOME="/" + "h" * longest, **environ)


@given(st.text(st.sampled_from("aA_-1CLS:"), max_size=12), st.text(max_size=12))
def test_any_variable_of_an_application_server_is_read_or_refused_in_one_way(name: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        parse(**{f"EXESYS_APPSERVER_{name}": value, f"EXESYS_APPSERVER_{name}_CLASS": value})


@pytest.mark.parametrize("address", ["redis://user:s3cr3t@h:1/0", "redis:/user:s3cr3t@h", "redis://h?password=s3cr3t"])
def test_no_error_quotes_a_password(address: str) -> None:
    for section, key in (("redis", "url"), ("redis", "data_url"), ("mongo", "uri")):
        assert "s3cr3t" not in problem(f"[{section}]\n{key} = x{address}\n")
    assert "s3cr3t" not in problem(f"{address}\n")
    assert "s3cr3t" not in repr(parse(EXESYS_REDIS_URL="redis://user:s3cr3t@h:1/0"))
