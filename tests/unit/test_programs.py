"""What supervisord is told, read back with supervisord's own parser, and etc/exesys.ini."""

import ast
import dataclasses
import re
from pathlib import Path

import pytest
from supervisor.options import ServerOptions

from exesys import config as configuration
from exesys import home, machine, programs
from exesys.appconfig import APPSERVER
from exesys.config import SECTIONS
from exesys.errors import BootError
from exesys.queues import QUEUE, WORKER
from exesys.shards import SHARD
from exesys.timerconfig import TIMER

CHECKOUT = Path(__file__).resolve().parent.parent.parent


def make_config(root, environ=None, text=""):
    return configuration.parse(text, None, {"EXESYS_HOME": "h", **(environ or {})}, root, root)


def render(config, environment=None, parts=None):
    parts = parts if parts is not None else programs.programs(redis=True, mongo=True)
    environment = {"EXESYS_HOME": str(config.home), **programs.settings(config), **(environment or {})}
    return programs.render(home.template(), config, parts, environment, minfds=1024, silent=True)


def parse_as_supervisord(text, tmp_path):
    tmp_path.joinpath("h", "log").mkdir(parents=True, exist_ok=True)
    tmp_path.joinpath("h", "run").mkdir(exist_ok=True)
    conf = tmp_path / "supervisord.conf"
    conf.write_text(text)
    options = ServerOptions()
    options.realize(["-c", str(conf)])
    return options


@pytest.mark.parametrize("name", ["plain", "with space", "ünïcode", "per%cent", "comma,semi;colon", "a#b"])
def test_supervisord_reads_what_was_meant(tmp_path, name):
    root = tmp_path / name
    root.mkdir()
    config = configuration.parse("", None, {"EXESYS_HOME": str(tmp_path / "h")}, root, root)
    options = parse_as_supervisord(render(config), tmp_path)
    [group] = options.process_group_configs
    assert group.name == "exesys"
    found = {each.name: each for each in group.process_configs}
    assert list(found) == ["redis", "mongo", "router", "controller", "worker", "runner", "rest", "web"]
    worker = found["worker"]
    assert worker.directory == str(root)
    assert worker.environment["EXESYS_HOME"] == str(config.home)
    assert (worker.stopasgroup, worker.killasgroup, worker.redirect_stderr) == (False, True, True)
    assert worker.stopwaitsecs > config.worker.grace_s + config.worker.kill_grace_s
    assert worker.stdout_logfile == str(config.log / "worker.log")
    assert found["redis"].priority < found["router"].priority < found["worker"].priority < found["rest"].priority


def test_what_differs_from_the_system_that_runs_is_told_by_section(tmp_path):
    there = programs.settings(make_config(tmp_path, text="[queue:old]\ndepth = 1\n[queue:kept]\ndepth = 1\n"))
    ini = "[queue:mail]\nrate = 1/s\ndepth = 1\n[queue:kept]\ndepth = 2\n[rest]\nport = 5010\n"
    here = programs.settings(make_config(tmp_path, text=ini))
    told = [
        "[rest] port is '5000' there and '5010' here",
        "[queue:kept] depth is '1' there and '2' here",
        "[queue:mail] is new here",
        "[queue:old] is there, and not here",
    ]
    assert programs.differences(here, there) == told
    assert programs.differences(here, here) == []
    older = {name: value for name, value in here.items() if name != "EXESYS_REST_PORT"}
    assert programs.differences(here, older) == ["[rest] port is known only here"]


def test_one_controller_keeps_its_name_and_several_are_numbered():
    def named(count):
        return [each.name for each in programs.programs(False, False, controllers=count) if "controller" in each.name]

    assert named(1) == ["controller"]
    assert named(3) == ["controller-1", "controller-2", "controller-3"]


def test_the_programs_read_the_same_settings(tmp_path):
    """Every value goes through the template and supervisord's parser unchanged."""
    environ = {
        "EXESYS_REST_PORT": "5010",
        "EXESYS_WORKER_QUEUES": "default, big",
        "EXESYS_WORKER_MEMORY_BYTES": "256m",
        "EXESYS_WORKER_GRACE_S": "2.5",
        "EXESYS_REDIS_PREFIX": "{s07}",
        "EXESYS_MONGO_URI": "mongodb://u:p%40ss@127.0.0.1/?a=b,c",
        "EXESYS_WEB_PATH": "my pages (all=of, them)",
    }
    config = make_config(tmp_path, environ)
    environ |= {"EXESYS_APPSERVER_my-words_CLASS": "a:B", "EXESYS_APPSERVER_other_CLASS": "c:D"}
    environ["EXESYS_APPSERVER_other_PROCESSES"] = "2"
    config = make_config(tmp_path, environ)
    parts = programs.programs(redis=True, mongo=True, appservers=config.appservers)
    options = parse_as_supervisord(render(config, parts=parts), tmp_path)
    found = {each.name: each for each in options.process_group_configs[0].process_configs}
    given = found["router"].environment
    # Also when another was declared meanwhile: a running system keeps its own.
    ini = "[appserver:new]\nclass = a:B\n"
    assert configuration.parse(ini, None, given, tmp_path, tmp_path) == config
    assert found["appserver-my-words"].command.endswith("-m exesys.daemons.appserver my-words 1")
    assert found["appserver-other-2"].command.endswith("-m exesys.daemons.appserver other 2")
    assert found["router"].priority < found["appserver-other-1"].priority < found["worker"].priority


@pytest.mark.parametrize("value", ["it's", 'a"b', "a\nb", "a #b", "a ;b"])
def test_a_value_that_cannot_be_carried_is_refused(tmp_path, value):
    config = make_config(tmp_path, {"EXESYS_WEB_PATH": value})
    with pytest.raises(BootError, match="EXESYS_WEB_PATH"):
        render(config)


def test_a_home_that_does_not_fit_is_refused(tmp_path):
    for name in ("what?", "a#b", "100%", "it's"):
        config = configuration.parse("", None, {"EXESYS_HOME": f"/x/{name}"}, tmp_path, tmp_path)
        with pytest.raises(BootError, match="EXESYS_HOME is"):
            programs.check_home(config)


def test_a_home_one_byte_too_long_is_refused(tmp_path):
    longest = configuration.UNIX_PATH_MAX_BYTES - len("/run/supervisor.sock.4194304")
    for length, fits in ((longest, True), (longest + 1, False)):
        config = configuration.parse("", None, {"EXESYS_HOME": "/" + "x" * (length - 1)}, tmp_path, tmp_path)
        if fits:
            programs.check_home(config)
        else:
            with pytest.raises(BootError, match="supervisord's socket would have a name of 108 bytes"):
                programs.check_home(config)


def test_a_template_that_lost_its_mark_is_refused(tmp_path):
    with pytest.raises(BootError, match="lacks the line"):
        programs.render("[supervisord]\n", make_config(tmp_path), [], {}, minfds=1, silent=True)


def test_a_template_with_an_unknown_name_is_refused(tmp_path):
    text = home.template() + "\nstderr_logfile=${nonsense}\n"
    parts = programs.programs(redis=True, mongo=False)
    with pytest.raises(BootError, match="nonsense"):
        programs.render(text, make_config(tmp_path), parts, {}, minfds=1, silent=True)


def test_servers_that_are_not_private_are_no_programs():
    assert [part.name for part in programs.programs(redis=False, mongo=False)][:1] == ["router"]


def test_a_variable_is_named_as_in_the_ini():
    assert programs.key_of("EXESYS_WORKER_KILL_GRACE_S") == "[worker] kill_grace_s"
    assert programs.key_of("EXESYS_APPSERVER_my_app_TIMEOUT_S") == "[appserver:my_app] timeout_s"
    assert programs.key_of("EXESYS_APPSERVERS") == "the list of application servers"


# -- etc/exesys.ini -----------------------------------------------------------------


def keys_in_the_file():
    """Every key that etc/exesys.ini names, also those behind a `#`."""
    found, section = {}, ""
    for line in (CHECKOUT / "etc" / "exesys.ini").read_text(encoding="utf-8").splitlines():
        head = re.fullmatch(r"(?:# )?\[([\w:]+)\]", line)
        key = re.fullmatch(r"#? ?(\w+) =(?: (.*))?", line)
        if head:
            section = head[1]
        elif key and section:
            found[section, key[1]] = key[2] or ""
    return found


def test_the_file_and_the_code_name_the_same_keys():
    in_code = {(name, key.name) for name, kind in SECTIONS.items() for key in dataclasses.fields(kind)}
    for kind, name in ((APPSERVER, "words"), (WORKER, "mail"), (QUEUE, "mail"), (TIMER, "night"), (SHARD, "s00")):
        in_code |= {(f"{kind.word}:{name}", word) for word in kind.words}
    assert set(keys_in_the_file()) == in_code


def test_the_file_and_the_code_have_the_same_defaults(tmp_path):
    sections: dict[str, str] = {}
    for (section, key), value in keys_in_the_file().items():
        sections[section] = sections.get(section, f"[{section}]\n") + f"{key} = {value}\n"
    assert make_config(tmp_path, SHARDED, "".join(sections.values())) == with_the_example(tmp_path)


SHARDED = {"EXESYS_BUS_SHARD": "s00", "EXESYS_BUS_ENDPOINT": "tcp://0.0.0.0:5555"}
NIGHT = {"CMD": "noop", "CRON": "30 2 * * *", "ZONE": "Europe/Rome"}


def with_the_example(tmp_path):
    """The defaults, and the sections of a name that the file declares."""
    named = {"EXESYS_APPSERVER_words_CLASS": "word_dict:Dictionary"}
    named |= {f"EXESYS_TIMER_night_{key}": text for key, text in NIGHT.items()}
    named |= {"EXESYS_WORKER_mail_QUEUES": "mail", "EXESYS_QUEUE_mail_RATE": "100/m"}
    named |= {**SHARDED, "EXESYS_SHARD_s00_ENDPOINT": "tcp://10.0.0.1:5555"}
    return make_config(tmp_path, named)


def test_the_file_as_it_is_changes_nothing(tmp_path):
    text = (CHECKOUT / "etc" / "exesys.ini").read_text(encoding="utf-8")
    assert make_config(tmp_path, text=text) == make_config(tmp_path)


# -- setup.py -----------------------------------------------------------------------


def test_doctor_wants_what_setup_declares():
    tree = ast.parse((CHECKOUT / "setup.py").read_text(encoding="utf-8"))
    declared = next(
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "REQUIRES"
    )
    assert dict((*line.split(">="), "")[:2] for line in declared) == machine.PACKAGES
