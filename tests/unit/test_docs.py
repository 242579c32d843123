"""The documents say what is so: commands, settings, links, messages and keys in them exist.

What they tell a person to type is run by tests/system/test_readme.py.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
import shlex
import sys
import time
import typing
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from exesys import callbacks, cli, codec, command, config, functions, mending, redisurl, rounds, samples, troubles
from exesys.bus import mender, messages, wire
from exesys.errors import ExesysError
from exesys.process import HOSTED_BY
from exesys.programs import settings
from exesys.runner import RunnerState
from exesys.states import State
from exesys.store import keys, reader, redis, scripts, spelling

ROOT = Path(__file__).resolve().parent.parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Variables that are no keys of the ini: etc/exesys.ini and bin/_venv.sh name them.
OTHER_VARIABLES = {
    "EXESYS_HOME",
    "EXESYS_INI",
    "EXESYS_PYTHON",
    "EXESYS_VENV",
    "EXESYS_APPSERVERS",
    "EXESYS_TOKEN",
    "EXESYS_ARTEFACTS",
    "EXESYS_PICTURES",
    HOSTED_BY,
}


def text_of(page: Path | str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def blocks(page: Path | str, language: str) -> list[str]:
    """Return the fenced blocks of a page in this language."""
    return [body for kind, body in FENCE.findall(text_of(page)) if kind == language]


def commands(block: str) -> Iterator[str]:
    """Split a block of shell into commands; one may go over lines by `\\` or a here-document."""
    lines = iter(block.splitlines())
    for line in lines:
        whole = [line]
        here = re.search(r"<<'?(\w+)'?$", line)
        while (here and whole[-1] != here[1]) or whole[-1].endswith("\\"):
            whole.append(next(lines))
        if line.strip() and not line.startswith("#"):
            yield "\n".join(whole)


def readme_commands() -> list[str]:
    """Return every command of the README's shell blocks. They run from top to bottom, in the project's directory."""
    return [each for block in blocks("README.md", "sh") for each in commands(block)]


def all_commands() -> list[tuple[str, list[str]]]:
    """Return (page, words) of each simple command in a shell block of any page."""
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            for line in commands(block):
                for part in line.split(" && ") if "<<" not in line else []:
                    found.append((page.name, shlex.split(part.split(" | ")[0], comments=True)))
    return found


def ids(value: Any) -> str:
    return value if isinstance(value, str) else shlex.join(value)[:60]


# --- the command line -----------------------------------------------------


def subcommands(of: argparse.ArgumentParser | None = None) -> dict[str, argparse.ArgumentParser]:
    below = (of or cli._parser())._subparsers
    return dict(below._group_actions[0].choices) if below else {}  # type: ignore[arg-type]  # no public way


@pytest.mark.parametrize(("page", "words"), [each for each in all_commands() if "bin/exesys" in each[1]], ids=ids)
def test_commands_in_blocks_are_understood(page: str, words: list[str]) -> None:
    arguments = words[words.index("bin/exesys") + 1 :]
    assert cli._parser().parse_args(arguments).run


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_in_sentences_exist(page: Path) -> None:
    known = subcommands()
    for inline in re.findall(r"`(?:bin/)?exesys (\w[^`]*)`", text_of(page)):
        name, *words = inline.split()
        assert name in known, inline
        parser = known[name]
        while words and words[0] in subcommands(parser):
            parser = subcommands(parser)[words.pop(0)]
        flags = {option for action in parser._actions for option in action.option_strings}
        for word in words:
            assert not word.startswith("-") or word in flags, inline


def test_no_two_pages_add_another_timer_of_one_name() -> None:
    """Whoever follows both would be refused."""
    added: dict[str, set[str]] = {}
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for line in text_of(page).splitlines():
            if match := re.match(r"\s*bin/exesys timer add (\S+) (.*)", line):
                added.setdefault(match[1], set()).add(match[2].partition("#")[0].strip())
    assert len(added) >= 2
    assert {name for name, timers in added.items() if len(timers) > 1} == set()


def test_every_subcommand_is_listed() -> None:
    table = text_of("docs/cli.md").partition("```sh")[0]
    assert {name for name in subcommands() if re.search(rf"`bin/exesys {name}\b(?!-)", table)} == set(subcommands())


def test_the_readme_begins_with_the_two_commands() -> None:
    assert readme_commands()[:2] == ["bin/start_exe_sys.sh", "bin/test.sh"]
    assert readme_commands()[-1] == "bin/exesys down"


@pytest.mark.parametrize(("page", "words"), all_commands(), ids=ids)
def test_programs_of_the_project_are_there(page: str, words: list[str]) -> None:
    for word in words:
        if re.match(r"(bin|etc|benchmarks|modules|tests)/", word):
            assert (ROOT / word).exists(), f"{page} names {word}"


# --- curl -----------------------------------------------------------------


def curls() -> list[tuple[str, list[str]]]:
    return [each for each in all_commands() if each[1][:1] == ["curl"]]


def test_there_are_examples_of_curl() -> None:
    assert len(curls()) > 10


@pytest.mark.parametrize(("page", "words"), curls(), ids=ids)
def test_curl_sends_what_is_accepted(page: str, words: list[str], library: functions.Library) -> None:
    [url] = [word for word in words if word.startswith("http")]
    assert url.startswith(f"http://127.0.0.1:{config.Rest().port}/")
    if "-d" not in words:
        return
    if "/apps/" in url:
        name, method = url.partition("/apps/")[2].split("/")
        assert callable(getattr(example(name), method)), url
        json.loads(words[words.index("-d") + 1])
        return
    body = json.loads(words[words.index("-d") + 1])
    for item in body if isinstance(body, list) else [body]:
        built = command.from_json(item, command.Limits(), lambda: str(uuid.uuid4()))
        assert library.catalogue.resolve(built.cmd)


def example(name: str) -> Any:
    """Return the class of an application server that a page declares."""
    [declared] = {
        line for block in blocks("docs/example.md", "sh") for line in commands(block) if "[appserver:" in line
    }
    ini = shlex.split(declared)[1].replace("\\n", "\n")
    server = config.parse(ini, None, {}, ROOT, ROOT).appserver(name)
    assert server is not None, name
    module, _, kind = server.class_.partition(":")
    return getattr(sys.modules[module], kind)


def test_the_readme_has_the_curl_that_everybody_knows() -> None:
    body = json.loads(the_curl()[-1])
    assert body == {
        "from": "testclient",
        "to": "testjob",
        "cmd": "test_cmd",
        "data": "senatoremonti",
        "job_id": "16fd2706-8baf-433b-82eb-8c7fada847da",
    }


def test_the_answers_shown_have_the_form_of_answers(library: functions.Library) -> None:
    first, second = (json.loads(block) for block in blocks("README.md", "json")[-2:])
    assert (first["status"], first["state"]) == (State.start, State.start.name)
    assert (second["status"], second["state"]) == (State.data_available, State.data_available.name)
    sent = json.loads(the_curl()[-1])
    for answer in (first, second):
        assert {key: answer[key] for key in ("job_id", "from", "to", "cmd")}.items() <= sent.items()
    packed = library.call("test_cmd", sent["data"], lambda: None)
    assert codec.unpack(packed) == second["result"]


def the_curl() -> list[str]:
    [words] = [words for page, words in curls() if page == "README.md" and "testclient" in words[-1]]
    return words


# --- Python ---------------------------------------------------------------


def python_modules() -> dict[str, str]:
    """Return the modules that the pages show, in blocks and here-documents, and have `new-module` write."""
    shown = {}
    for page in ("docs/functions.md", "docs/runners.md"):
        for block in blocks(page, "python"):
            name = re.match(r"# modules/(\w+)\.py\n", block)
            assert name, f"a block of {page} does not begin with its file: {block[:40]!r}"
            shown[name[1]] = block
    for page in PAGES:
        for line in (each for block in blocks(page, "sh") for each in commands(block)):
            here = re.match(r"cat > modules/(\w+)\.py <<'PYTHON'\n(.*\n)PYTHON$", line, re.DOTALL)
            if here:
                shown[here[1]] = here[2]
    for _, words in all_commands():
        if words[:2] == ["bin/exesys", "new-module"]:
            sample = samples.RUNNER if "--runner" in words else samples.APP if "--app" in words else samples.FUNCTION
            shown[words[2]] = samples.written(sample, words[2])
    return shown


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[functions.Library]:
    """Our modules and those shown, loaded as a slot does. Whoever did as the README says has some of these already."""
    shown = tmp_path_factory.mktemp("shown")
    for name, source in python_modules().items():
        if not (ROOT / "modules" / f"{name}.py").exists():
            (shown / f"{name}.py").write_text(source)
    before, paths = set(sys.modules), list(sys.path)
    yield functions.Library.load([ROOT / "modules", shown])
    sys.path[:] = paths
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith((str(shown), str(ROOT / "modules"))):
            del sys.modules[name]


def test_modules_shown_can_be_loaded_and_called(library: functions.Library) -> None:
    assert set(python_modules()) == {
        *("shop", "mail", "report", "words", "watch"),
        *("hello", "greetings", "heartbeat", "tally"),
        *("bakery", "bakery_oven", "bakery_stock"),
    }
    assert library.catalogue.broken == {}
    for page, words in all_commands():
        if words[:2] == ["bin/exesys", "submit"]:
            assert library.catalogue.resolve(words[2]), page
    assert library.catalogue.resolve("count_letters").module == "mail"
    assert library.catalogue.resolve("send").options["retries"] == 5
    assert codec.unpack(library.call("total", {"prices": [1.5, 2.25]}, lambda: None)) == {"EOJ": 3.75}


def test_python_shown_compiles() -> None:
    for page in PAGES:
        for block in blocks(page, "python"):
            compile(block, str(page), "exec")


# --- settings -------------------------------------------------------------


def test_operations_lists_every_key_with_its_default() -> None:
    parts = re.split(r"^### \[([\w:]+)\]$", text_of("docs/operations.md").partition("\n## supervisord")[0], flags=re.M)
    shown = {
        section: dict(re.findall(r"^\| `(\w+)` \|(.*?)\| ", body, re.MULTILINE))
        for section, body in zip(parts[1::2], parts[2::2], strict=True)
    }
    named = {kind: shown.pop(f"{kind.word}:NAME") for kind in config.KINDS.values()}
    assert list(shown) == list(config.SECTIONS)
    for name, section in config.SECTIONS.items():
        known = dataclasses.fields(section)
        assert list(shown[name]) == [key.name for key in known], name
        for key in known:
            text = shown[name][key.name].strip("` ")
            assert key.metadata["rule"].parse(text) == key.default, f"[{name}] {key.name}"
    for kind, rows in named.items():
        assert list(rows) == kind.words
        for key in kind.keys:
            if key.name not in kind.needed:
                assert key.metadata["rule"].parse(rows[key.name].strip("` ")) == key.default, key.name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_named_exist(page: Path) -> None:
    text = text_of(page)
    for section, key in re.findall(r"\[(\w+)\] (\w+)", text):
        if section in config.SECTIONS:
            assert key in {field.name for field in dataclasses.fields(config.SECTIONS[section])}, f"[{section}] {key}"
    known = {*settings(config.Config(ROOT, ROOT / "var")), *OTHER_VARIABLES}
    for variable in re.findall(
        r"EXESYS_[A-Z_]+[A-Z]", re.sub(r"EXESYS_<SECTION>_<KEY>|EXESYS_(APPSERVER|SHARD)_<NAME>_<KEY>", "", text)
    ):
        assert variable in known, variable


# --- links ----------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """Return the anchors that headings get where Markdown is shown."""
    titles = re.findall(r"^#+ (.*)$", FENCE.sub("", text_of(page)), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text_of(page))):
        if target.startswith(("http://", "https://")):
            continue
        name, _, anchor = target.partition("#")
        to = (page.parent / name).resolve() if name else page
        assert to.exists(), target
        assert to.is_relative_to(ROOT), target
        assert not anchor or anchor in anchors(to), target


def test_files_named_are_there() -> None:
    for page in PAGES:
        for name in re.findall(r"`((?:docs|exesys|modules|tests|benchmarks|etc|bin)/[\w./]+\w)`", text_of(page)):
            assert (ROOT / name).exists(), f"{page.name} names {name}"


# --- the house ------------------------------------------------------------


def house() -> dict[str, int]:
    """Return the layer of each module that architecture.md names; `store/*` stands for a package."""
    table = text_of("docs/architecture.md").partition("\n## The house")[2].partition("\n## ")[0]
    found = {}
    for layer, cell in re.findall(r"^\| (\d) \| (.*?) \|", table, re.MULTILINE):
        for name in re.findall(r"`([\w/*]+)`", cell):
            found[name if "/" in name or layer != "6" else f"daemons/{name}"] = int(layer)
    return found


def imports(path: Path) -> set[str]:
    """Return the modules of ours that a file imports, but for those only its types need."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("exesys.").replace(".", "/") for name in names if name.startswith("exesys.")}


def test_the_house_is_as_drawn() -> None:
    layers = house()
    files = {
        str(path.relative_to(ROOT / "exesys").with_suffix("")): path
        for path in (ROOT / "exesys").rglob("*.py")
        if path.name != "__init__.py"
    }
    of = {name: layers.get(name, layers.get(f"{name.partition('/')[0]}/*", -1)) for name in files}
    assert [name for name, layer in of.items() if layer < 0] == []
    assert [name for name in layers if name not in files and not name.endswith("/*")] == []
    for name, path in files.items():
        for imported in imports(path) & files.keys():
            assert of[imported] <= of[name], f"{name} imports {imported}"
            assert not (of[name] == of[imported] == 6), f"the daemon {name} imports {imported}"


# --- the protocol ---------------------------------------------------------

_TYPES = {int: "int", str: "str", bytes: "bin", bool: "bool", float: "num", Any: "any", dict: "map"}


def grammar_of(kind: Any) -> str:
    """Write a message's fields as protocol.md does."""
    hints = typing.get_type_hints(kind)
    return ", ".join(f"{name.rstrip('_')}: {_type(hint)}" for name, hint in hints.items())


def _type(hint: Any) -> str:
    origin = typing.get_origin(hint) or hint
    if origin is tuple:
        return f"[{_type(typing.get_args(hint)[0])}…]"
    return _TYPES[origin] if origin in _TYPES else str(origin.__name__)


def parts_of(kind: Any) -> Iterator[Any]:
    """Return the kinds that a message's fields hold."""
    for hint in typing.get_type_hints(kind).values():
        if typing.get_origin(hint) is tuple and hasattr(typing.get_args(hint)[0], "_fields"):
            yield typing.get_args(hint)[0]


MESSAGES = [
    *wire._TO_ROUTER.items(),
    *wire._FROM_ROUTER.items(),
    *wire._TO_APP.items(),
    *wire._FROM_APP.items(),
]


@pytest.mark.parametrize(("name", "kind"), MESSAGES, ids=lambda value: value if isinstance(value, str) else "")
def test_the_protocol_has_every_message_field_by_field(name: str, kind: Any) -> None:
    lines = "\n".join(blocks("docs/protocol.md", "")).splitlines()
    grammar = {" ".join(line.split()) for line in lines}
    assert f'{name} = ["{name}", {grammar_of(kind)}]' in grammar
    for part in parts_of(kind):
        assert f"{part.__name__} = [{grammar_of(part)}]" in grammar


def test_the_protocol_has_no_other_messages() -> None:
    defined = re.findall(r"^(\w+) += \[\"", text_of("docs/protocol.md"), re.MULTILINE)
    assert set(defined) == {name for name, _ in MESSAGES}
    assert f"Version {messages.VERSION}." in text_of("docs/protocol.md")


def test_the_protocol_has_the_codes_of_errors() -> None:
    sources = "".join(text_of(f"exesys/bus/{name}.py") for name in ("broker", "intake", "crew", "wire"))
    told = set(re.findall(r'refuse\(\w+\.?\w*, "(\w+)"', sources)) | {"bad_message"}
    assert len(told) > 5
    listed = set(re.findall(r"^\| `(\w+)` \|", text_of("docs/protocol.md"), re.MULTILINE))
    assert told <= listed
    kinds = [*ExesysError.__subclasses__()]
    kinds += [lower for kind in kinds for lower in kind.__subclasses__()]
    known = {kind.code for kind in kinds} | {"internal"}
    assert listed - told <= known


# --- Redis ----------------------------------------------------------------


def test_redis_names_every_key() -> None:
    rows = re.findall(r"^\| `([^`]+)` \| ", text_of("docs/redis.md").partition("\n## The record")[0], re.MULTILINE)
    shown = {re.sub(r"<\w+>", "%s", row) for row in rows}
    assert shown == {pattern for pattern, _ in keys.PATTERNS.values()}


def test_redis_names_every_script_and_field() -> None:
    text = text_of("docs/redis.md")
    assert set(re.findall(r"^\| `(\w+)\.lua` \|", text, re.MULTILINE)) == set(scripts.NAMES)
    record = text.partition("\n## The record")[2].partition("\n## ")[0]
    named = set(re.findall(r"`(\w+)`", record))
    written = set(spelling.RECORDED)
    for path in set((ROOT / "exesys" / "store").glob("*.lua")) - {ROOT / "exesys" / "store" / "runner.lua"}:
        source = path.read_text()
        written |= set(re.findall(r"'HINCRBY', record, '(\w+)'", source))
        for call in re.findall(r"call\('(?:HSET|HDEL)', (?:record|waiting|key\.record\([^)]*\)),([^)]*)\)", source):
            written |= set(re.findall(r"'(\w+)'", call))
        for created in re.findall(r"local fields = \{(.*)\}|fields\[.*\] = (.*)", source):
            written |= set(re.findall(r"'([a-z]\w*)'", "".join(created)))
    assert {"to", "cmd", "attempt", "result", "error", "losses", "logged"} <= written
    assert written - named == set()


def test_redis_lists_every_kind_of_what_is_mended() -> None:
    part = text_of("docs/redis.md").partition("\n## Upkeep")[2].partition("\n## ")[0]
    assert re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) == list(mending.REPAIRS)
    assert f"about {rounds.PAGE} keys" in part
    assert f"at most about {scripts.MOST_CALLS} calls" in part
    assert f"{rounds.MOST_LINES} lines a minute" in part
    assert f"The router takes {mender.MOST_FINDS} finds" in text_of("docs/protocol.md")


def test_redis_names_every_field_of_a_runner() -> None:
    table = text_of("docs/redis.md").partition("\n## The runner")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    written = set()
    for call in re.findall(r"call\('(?:HSET|HINCRBY|HDEL)', record,([^)]*)", text_of("exesys/store/runner.lua")):
        written |= {part for part in re.findall(r"'(\w+)'", call) if not hasattr(RunnerState, part)}
    for note in re.findall(r"noted\((.*?)\)", text_of("exesys/bus/tenants.py") + text_of("exesys/bus/board.py")):
        written |= set(re.findall(r"(\w+)=", note)) - {"final"}
    enlisted = re.findall(r'"(\w+)", (?:target|data|len\(data\)|grace_s|job)[,\]]', text_of("exesys/store/spelling.py"))
    written |= {*enlisted, "failures", "losses", "error"}
    assert {"target", "data", "size", "job", "epoch", "session", "began", "how", "restarts"} <= written
    assert {*written, *reader.RUNNER_SHOWN, *redis.RUNNER_FIELDS} == named


def test_redis_names_every_field_of_a_callback() -> None:
    table = text_of("docs/redis.md").partition("\n## The callback")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`(\w+)`", row)}
    [written] = re.findall(r"call\('HSET', told,(.*?)\)\n", text_of("exesys/store/graph.lua"), re.DOTALL)
    fields = set(re.findall(r"'(\w+)'", written)) - {"waiting"}
    noted = re.findall(r"'(?:HSET|HINCRBY)', KEYS\[[23]\], '(\w+)', ?(?:ARGV|1)", text_of("exesys/store/callbacks.py"))
    assert {"url", "body", "delivery"} <= fields
    assert {"tries", "outcome"} <= set(noted)
    assert fields | set(noted) | {"error"} == named


def test_the_receiver_shown_knows_what_is_genuine_and_what_it_has_had() -> None:
    [shown] = blocks("docs/ends.md", "python")
    names: dict[str, Any] = {}
    exec(shown, names)  # our own page
    timestamp, body, seen = str(int(time.time())), b'{"a":1}', set[str]()
    headers = {"X-ExeSys-Timestamp": timestamp, "X-ExeSys-Delivery": "d1"}
    headers["X-ExeSys-Signature"] = callbacks.signature(b"key", timestamp, body)
    assert [names["receive"](b"key", headers, body, seen) for _ in range(2)] == [204, 200]
    assert names["receive"](b"other", headers, body, set()) == 403
    assert names["receive"](b"key", headers, body + b" ", set()) == 403
    old = str(int(timestamp) - 3600)
    headers |= {"X-ExeSys-Timestamp": old, "X-ExeSys-Signature": callbacks.signature(b"key", old, body)}
    assert names["receive"](b"key", headers, body, set()) == 403


def test_redis_lists_the_settings_of_the_private_server() -> None:
    given = text_of("exesys/servers.py")
    table = text_of("docs/redis.md").partition("\n## Settings that matter")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)` \| (.*?) \|", table, re.MULTILINE)
    assert len(rows) > 4
    for name, values in rows:
        [value] = re.findall(rf'"{name}": "([^"]+)"', given)
        assert value in values


# --- security ---------------------------------------------------------------


def test_the_threats_name_tests_that_are_there() -> None:
    table = text_of("docs/security.md").partition("\n## Who can try what")[2].partition("\n## ")[0]
    rows = [row.split(" | ") for row in re.findall(r"^\| (.*) \|$", table, re.MULTILINE)[2:]]
    assert len(rows) > 15
    shown = [name for *_, cell in rows for name in re.findall(r"`(test_[\w.:]+)`", cell)]
    assert len(shown) > 15
    for name in shown:
        file, _, test = name.partition("::")
        texts = [path.read_text("utf-8") for path in (ROOT / "tests").rglob(file)]
        assert any(not test or f"def {test}(" in text for text in texts), name


# --- the picture -----------------------------------------------------------


def test_the_picture_is_well_formed_and_says_what_it_shows() -> None:
    from xml.etree import ElementTree

    picture = ElementTree.fromstring(text_of("docs/architecture.svg"))
    spoken = " ".join(picture.itertext())
    for name in ("rest", "router", "worker", "runner", "appserver", "controller", "web", "redis", "mongo"):
        assert name in spoken
    assert "prefers-color-scheme: dark" in spoken


def test_redis_names_every_trouble_by_its_reason() -> None:
    table = text_of("docs/redis.md").partition("### When Redis does not work")[2].partition("\n### ")[0]
    named = set(re.findall(r"`(store\w*)`", table))
    assert named == set(troubles.BY_REASON) - {troubles.BUSY.reason}


def test_redis_names_every_option_of_an_address() -> None:
    page = text_of("docs/redis.md").partition("## Where it is")[2].partition("\n### ")[0]
    named = set(re.findall(r"`((?:ssl|sentinel)_\w+)`", page))
    assert named == redisurl.TLS_OPTIONS | redisurl.SENTINEL_OPTIONS
