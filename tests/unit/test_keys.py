"""Key names: the table is the only place that spells them. (`tests/store` compares the Lua made of it.)"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import exesys
from exesys.command import NAME, RESERVED
from exesys.states import State
from exesys.store.keys import PATTERNS, Keys, Spelled

HOUSE = Path(exesys.__file__).parent
ALL = [(name, ["x"] * pattern.count("%s")) for name, (pattern, _) in PATTERNS.items()]


@pytest.mark.parametrize(
    ("name", "parts", "key"),
    [
        ("record", ["a:j", "start"], "a:j:start"),
        ("record", ["a>x:j", "error"], "a>x:j:error"),
        ("job", ["j"], "exesys:job:j"),
        ("ready", ["default"], "exesys:ready:default"),
        ("run", ["cam", "7"], "run:cam:7"),
    ],
)
def test_a_key_is_spelled_as_the_document_says(name: str, parts: list[str], key: str) -> None:
    assert Keys()(name, *parts) == key
    assert Keys("{s07}")(name, *parts) == "{s07}" + key


def test_every_key_begins_with_the_prefix_and_is_like_no_other() -> None:
    keys = [Keys("{s07}")(name, *parts) for name, parts in ALL]
    assert all(key.startswith("{s07}") for key in keys)
    assert len(set(keys)) == len(keys)


def test_every_key_says_what_is_there() -> None:
    for name, (_, text) in PATTERNS.items():
        assert re.match(r"(hash|sorted set|set|list|stream|integer|text|msgpack): \w", text), name


def test_no_step_can_have_the_name_of_the_systems_own_keys() -> None:
    """A record begins with its step's `from`, which is a name."""
    firsts = {pattern.partition(":")[0] for name, (pattern, _) in PATTERNS.items() if name != "record"}
    assert firsts <= RESERVED
    assert all(NAME.fullmatch(first) for first in firsts)


def test_the_lua_has_a_function_for_each_key_and_the_states_in_their_order() -> None:
    lua = Keys("{s07}").prelude()
    for name, (pattern, _) in PATTERNS.items():
        assert re.search(rf"^function key\.{name}\((a(, b)?)?\) return '\{{s07\}}", lua, re.MULTILINE), name
        assert pattern.count("%s") <= 2
    assert f"local STATES = {{{', '.join(repr(state.name) for state in State)}}}" in lua


def test_no_other_file_spells_a_key() -> None:
    spelled = re.compile(r"""['"]\{?(exesys|run):[a-z%]""")
    for path in [*HOUSE.rglob("*.py"), *HOUSE.rglob("*.lua")]:
        if path.name != "keys.py":
            assert not spelled.search(path.read_text("utf-8")), f"{path} spells a key of its own"
    for path in HOUSE.rglob("*.lua"):
        calls = re.findall(r"call\('\w+', '([^']*)'", path.read_text("utf-8"))
        assert not calls, f"{path} names the key {calls}"


# --- reading a key -----------------------------------------------------------------

parts = st.from_regex(r"[A-Za-z0-9_.:>,{}-]{1,20}", fullmatch=True)
no_colon = st.from_regex(r"[A-Za-z0-9_.-]{1,20}", fullmatch=True)
names = no_colon.filter(lambda name: name not in RESERVED)


@st.composite
def spelled(draw: st.DrawFn) -> Spelled:
    """Make a key of any kind with parts that it may have."""
    name = draw(st.sampled_from(sorted(PATTERNS)))
    if name == "record":
        first = draw(names) + draw(st.sampled_from(["", ">x,y"]))
        return Spelled(name, (f"{first}:{draw(no_colon)}", draw(st.sampled_from(State)).name))
    if name == "run":
        return Spelled(name, (draw(no_colon), draw(no_colon | st.just(""))))
    return Spelled(name, tuple(draw(parts) for _ in range(PATTERNS[name][0].count("%s"))))


@given(spelled(), st.sampled_from(["", "{s07}"]))
def test_a_key_is_read_as_it_was_spelled(what: Spelled, prefix: str) -> None:
    keys = Keys(prefix)
    assert keys.read(keys(what.name, *what.parts)) == what


@given(st.text(max_size=30) | parts | parts.map("exesys:{}".format) | parts.map("run:{}".format))
def test_what_is_read_is_spelled_in_the_same_way(key: str) -> None:
    for keys in (Keys(), Keys("{s07}")):
        what = keys.read(key)
        assert what is None or keys(what.name, *what.parts) == key


@pytest.mark.parametrize(
    "key",
    ["", "a:j", "a:j:nowhere", "a:b:c:start", "a b:j:start", "exesys:nothing", "exesys:jobs:x", "exesys", "run:x"],
)
def test_what_is_none_of_ours_is_read_as_nothing(key: str) -> None:
    assert Keys().read(key) is None
    assert Keys("{s07}").read(f"{{s08}}{key}") is None
