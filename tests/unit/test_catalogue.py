"""The catalogue: one look-up for what is there, a good sentence for what is not."""

from __future__ import annotations

import copy
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exesys.catalogue import Catalogue, FunctionInfo
from exesys.errors import ProtocolError, UnknownFunction

TRACEBACK = """Traceback (most recent call last):
  File "/m/shapes.py", line 1, in <module>
    import nothing
ModuleNotFoundError: No module named 'nothing'
"""


def info(qualified: str, **options: Any) -> FunctionInfo:
    module, _, name = qualified.partition(".")
    return FunctionInfo(name, module, f"Does {name}.", "(data)", options, f"/m/{module}.py")


def catalogue(*names: str, **broken: str) -> Catalogue:
    return Catalogue({name: info(name) for name in names}, {key.replace("__", "."): broken[key] for key in broken})


def unknown(known: Catalogue, cmd: str) -> str:
    with pytest.raises(UnknownFunction) as caught:
        known.resolve(cmd)
    error = caught.value
    assert (error.code, error.status, error.field) == ("unknown_cmd", 422, "cmd")
    assert error.fix
    return str(error)


def test_bare_and_qualified_names() -> None:
    known = catalogue("text.search", "text.forget", "maths.add")
    assert known.resolve("search") is known.resolve("text.search")
    assert known.resolve("add").qualified == "maths.add"
    assert set(known.names) == {"search", "forget", "add", "text.search", "text.forget", "maths.add"}


def test_an_unknown_name_names_the_nearest() -> None:
    known = catalogue("text.search", "maths.add")
    assert unknown(known, "serch") == "no function is named `serch`. Did you mean `search`?"
    assert "Did you mean `text.search`?" in unknown(known, "text.serch")
    assert unknown(known, "zzz") == (
        "no function is named `zzz`. GET /functions lists those there are; `bin/exesys reload` loads what is new."
    )
    assert "[functions] path" in unknown(catalogue(), "zzz")


def test_a_name_that_two_modules_have_lists_both() -> None:
    known = catalogue("b.run", "a.run", "a.walk")
    assert "2 modules have a function `run`: a.run, b.run." in unknown(known, "run")
    assert known.resolve("a.run").module == "a"
    assert known.resolve("b.run").module == "b"


def test_a_broken_module_says_why() -> None:
    known = catalogue("text.search", shapes=TRACEBACK)
    for cmd in ("shapes", "shapes.area"):
        said = unknown(known, cmd)
        assert f"`{cmd}` cannot be called: the module `shapes` did not load" in said
        assert "ModuleNotFoundError: No module named 'nothing'." in said
        assert "Traceback" not in said
    said = unknown(known, "area")
    assert "no function is named `area`. These did not load: `shapes` (ModuleNotFoundError: No module" in said
    assert unknown(known, "serch").endswith("Did you mean `search`?")


def test_a_function_that_is_not_offered_says_why() -> None:
    known = catalogue("text.search", text__walk="It is a generator.", **{"/m/x-y.py": "Not a module's name."})
    for cmd in ("walk", "text.walk"):
        assert "`text.walk` cannot be called: It is a generator." in unknown(known, cmd)
    assert "These did not load: `/m/x-y.py` (Not a module's name)." in unknown(known, "other")


def test_many_broken_modules_make_no_long_answer() -> None:
    known = Catalogue({}, {f"m{number:02}": "E: " + "x" * 10_000 for number in range(100)})
    said = unknown(known, "other")
    assert "and 95 more." in said
    assert len(said) < 1500


def test_a_broken_module_without_text_is_no_second_error() -> None:
    assert "for an unknown reason" in unknown(catalogue(shapes="\n"), "shapes.area")


# --- on the wire ----------------------------------------------------------

word = st.from_regex(r"[a-z][a-z0-9_]{0,8}", fullmatch=True)
infos = st.builds(
    FunctionInfo,
    word,
    word,
    st.text(max_size=20),
    st.text(max_size=20),
    st.fixed_dictionaries({}, optional={"timeout_s": st.floats(1, 10), "retries": st.integers(0, 9), "queue": word}),
    st.text(max_size=20),
)
catalogues = st.builds(
    lambda items, broken: Catalogue({item.qualified: item for item in items}, broken),
    st.lists(infos, max_size=5),
    st.dictionaries(word, st.text(max_size=20), max_size=3),
)


@given(catalogues)
def test_it_comes_back_from_the_wire(known: Catalogue) -> None:
    received = Catalogue.from_wire(msgpack.unpackb(msgpack.packb(known.to_wire())))
    assert received == known
    assert received.names == known.names


GOOD = catalogue("text.search", shapes=TRACEBACK).to_wire()


@pytest.mark.parametrize("value", [None, [], {}, "x", {"functions": []}, {"functions": {}, "broken": {}}])
def test_what_is_no_catalogue(value: Any) -> None:
    with pytest.raises(ProtocolError):
        Catalogue.from_wire(value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", 5),
        ("name", ""),
        ("name", "a.b"),
        ("name", "a b"),
        ("module", "a.b"),
        ("module", "x" * 128),
        ("doc", None),
        ("signature", b"()"),
        ("options", []),
        ("options", {"timeout_s": -1}),
        ("options", {"timeout": 1}),
        ("options", {5: 1}),
        ("options", {"delay_s": 1}),
        ("options", {"at": "2026-01-31T12:00:00Z"}),
        ("file", 0),
    ],
)
def test_a_bad_function_is_the_peers_fault(key: str, value: Any) -> None:
    wire = copy.deepcopy(GOOD)
    Catalogue.from_wire(wire)
    wire["functions"][0][key] = value
    with pytest.raises(ProtocolError):
        Catalogue.from_wire(wire)
    del wire["functions"][0][key]
    with pytest.raises(ProtocolError):
        Catalogue.from_wire(wire)


@pytest.mark.parametrize("broken", [{"x": 5}, {5: "x"}, {"x": None}])
def test_bad_reasons_are_the_peers_fault(broken: Any) -> None:
    with pytest.raises(ProtocolError):
        Catalogue.from_wire({"functions": [], "broken": broken})


# --- merging --------------------------------------------------------------


def test_merging_is_a_union_and_the_first_wins() -> None:
    first = Catalogue({"a.f": info("a.f", retries=1)}, {"x": "one"})
    second = Catalogue({"a.f": info("a.f", retries=2), "b.g": info("b.g")}, {"x": "two", "y": "three"})
    merged = Catalogue.merge([first, second])
    assert merged.functions == {"a.f": info("a.f", retries=1), "b.g": info("b.g")}
    assert merged.broken == {"x": "one", "y": "three"}
    assert merged.resolve("g").module == "b"


@pytest.mark.parametrize("order", [1, -1])
def test_what_is_whole_somewhere_is_whole(order: int) -> None:
    whole = catalogue("shapes.area", "shapes.edge")
    broken = catalogue("text.search", shapes=TRACEBACK, text__walk="It is a generator.")
    half = catalogue("shapes.edge", shapes__area="It is a generator.")
    merged = Catalogue.merge([whole, broken, half][::order])
    assert set(merged.functions) == {"shapes.area", "shapes.edge", "text.search"}
    assert merged.broken == {"text.walk": "It is a generator."}


def test_merging_nothing() -> None:
    empty = Catalogue.merge([])
    assert (empty.functions, empty.broken) == ({}, {})


@given(st.lists(catalogues, max_size=4))
def test_merging_again_changes_nothing(parts: list[Catalogue]) -> None:
    merged = Catalogue.merge(parts)
    assert Catalogue.merge([merged, *parts]) == merged
    assert set(merged.functions) == {name for part in parts for name in part.functions}
