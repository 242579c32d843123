"""The site of the documents: the reference names all there is, pictures can be read, and the check finds faults.

`bin/docs.sh` builds the site, and CI runs it.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from xml.etree import ElementTree

import api
import check
import pytest
import reference
import rest
import stage

import exesys
from exesys import cli, config

ROOT = Path(__file__).resolve().parents[2]
PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return stage.generated()


def rows(page: str, section: str) -> dict[str, str]:
    """Return the rows of a section's table by the first word in them."""
    body = page.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return {row[0]: row[1] for row in re.findall(r"^\| `([^`]+)`(.*)$", body, re.MULTILINE)}


# --- the reference ----------------------------------------------------------------


def test_it_has_every_setting_with_its_variable_and_what_is_allowed(made: dict[str, str]) -> None:
    for name, section in config.SECTIONS.items():
        shown = rows(made["settings"], f"[{name}]")
        assert list(shown) == [key.name for key in dataclasses.fields(section)], name
        for key in dataclasses.fields(section):
            assert f"`EXESYS_{name}_{key.name}`".upper() in shown[key.name].upper()
            assert key.metadata["rule"].allowed.replace("|", "\\|") in shown[key.name]
    for kind in config.KINDS.values():
        assert list(rows(made["settings"], f"[{kind.word}:NAME]")) == kind.words


def test_a_setting_without_a_meaning_ends_the_build() -> None:
    operations = (ROOT / "docs" / "operations.md").read_text()
    with pytest.raises(KeyError, match="burst"):
        reference.settings(operations.replace("| `burst` |", "| `bust` |"))


def test_it_has_every_command_with_every_option(made: dict[str, str]) -> None:
    parts = re.split(r"^##+ (exesys .*)$", made["command-line"], flags=re.MULTILINE)
    shown = dict(zip(parts[1::2], parts[2::2], strict=True))
    known = {child.prog.partition("/")[2]: child for child in reference.commands(cli._parser())}
    assert list(shown) == list(known)
    assert len(known) > 40
    for name, child in known.items():
        for action in [] if reference.subcommands(child) else reference.arguments(child):
            names = action.option_strings or [str(action.metavar or action.dest)]
            assert all(each in shown[name] for each in names), name
    assert "--peers NAMES" in shown["exesys bench"]
    assert "%(default)s" not in made["command-line"]


def test_it_has_every_endpoint_and_every_schema(made: dict[str, str]) -> None:
    document = stage.document()
    heads, _, schemas = made["rest"].partition("\n## Schemas\n")
    asked = [f"{method.upper()} {path}" for path, methods in document["paths"].items() for method in methods]
    assert sorted(re.findall(r"^### (.*)$", heads, re.MULTILINE)) == sorted(asked)
    assert len(asked) > 40
    for head, told in zip(asked, (each for path in document["paths"].values() for each in path.values()), strict=True):
        body = heads.partition(f"\n### {head}\n")[2].partition("\n##")[0]
        assert rest.escaped(told["summary"]) in body
        assert all(f"| `{each['name']}` | {each['in']} | " in body for each in told["parameters"])
    assert re.findall(r"^### (.*)$", schemas, re.MULTILINE) == list(document["components"]["schemas"])


def test_a_schema_is_written_in_words() -> None:
    name = {"$ref": "#/components/schemas/Name"}
    assert rest._kind({"anyOf": [name, {"type": "array", "items": name}]}) == "[Name](#name) or array of [Name](#name)"
    number = {"type": "integer", "minimum": 0, "maximum": 1000, "default": 4, "description": "so many"}
    assert rest._kind(number) == "integer; from 0 to 1,000; default `4`; so many"
    assert rest._kind({"type": "object", "additionalProperties": {"type": "string"}}) == "map of string"
    assert rest._kind({"const": True}) == "`true`"
    assert rest._kind({}) == "any JSON"


def test_it_has_every_error_and_what_to_do(made: dict[str, str]) -> None:
    codes = re.findall(r"^### (\w+)$", made["errors"], re.MULTILINE)
    kinds = list(reference.kinds())
    assert sorted(codes) == sorted(kind.code for kind in kinds)
    assert len(set(codes)) == len(codes)
    for kind in kinds:
        assert "\n\n" in (kind.__doc__ or "") or kind is exesys.ExesysError, f"{kind.__name__} says not what to do"


def test_it_has_all_that_the_package_offers(made: dict[str, str]) -> None:
    shown = set(re.findall(r"^## exesys\.(\w+)$", made["python"], re.MULTILINE))
    assert shown == set(exesys.__all__) - {"__version__"}
    for name in ("Client.submit", "AsyncClient.run", "Handle.result", "Workflow.step", "ctx.add_step", "ctx.wait_stop"):
        assert f"\n### {name}\n" in made["python"]


def test_what_says_nothing_of_itself_ends_the_build() -> None:
    def silent() -> None: ...

    with pytest.raises(LookupError, match="has no docstring"):
        api.documented(silent)


def test_a_call_is_written_with_its_types_over_lines_if_it_is_long() -> None:
    assert api.signature("submit", exesys.Client.submit).startswith("submit(\n    cmd: str,\n    data: Any = None,\n")
    assert api.signature("cancel", exesys.AsyncClient.cancel) == "async cancel(job_id: str) -> int"
    assert "    *,\n    job_id: str | None = None,\n" in api.signature("submit", exesys.Client.submit)


# --- the pages ----------------------------------------------------------------------


def test_every_page_has_its_place() -> None:
    text = (ROOT / "docs" / "site" / "index.md").read_text()
    first = stage.index(text, ["README", "docs/functions", "docs/of-tomorrow", "docs/settings"])
    trees = re.findall(r"```\{toctree\}(.*?)```", first, re.DOTALL)
    assert [len(re.findall(r"^(?:[^:<\n]*<)?[\w/-]+>?$", tree, re.MULTILINE)) for tree in trees] == [1, 1, 1, 2, 1]
    assert "docs/of-tomorrow\n" in trees[2]


def test_a_link_to_what_is_no_page_becomes_text() -> None:
    page = Path("docs/some.md")
    known = {page, Path("README.md")}
    text = "[a](../README.md#start), [b](../modules/text.py), [c](nowhere.md)\n\n```\n[d](../setup.py)\n```\n"
    expected = "[a](../README.md#start), b, [c](nowhere.md)\n\n```\n[d](../setup.py)\n```\n"
    assert stage.inward(text, page, known) == expected


def test_a_link_to_a_picture_opens_it() -> None:
    page = Path("docs/some.md")
    text = "[a](pictures/states.svg), [b](pictures/none.svg), ![c](pictures/states.svg)"
    expected = '<a href="pictures/states.svg">a</a>, [b](pictures/none.svg), ![c](pictures/states.svg)'
    assert stage.inward(text, page, {page}) == expected


# --- the pictures ---------------------------------------------------------------------


def test_the_six_pictures_are_shown_and_told_in_words() -> None:
    text = (ROOT / "docs" / "explanation.md").read_text()
    told = dict(re.findall(r"^!\[(.+)\]\(pictures/([\w-]+\.svg)\)$", text, re.MULTILINE))
    assert sorted(told.values()) == [path.name for path in PICTURES]
    assert len(told) == 6
    assert all(len(words) > 80 for words in told)


@pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)
def test_a_picture_is_legible_in_light_and_dark_and_for_a_reader(path: Path) -> None:
    picture = ElementTree.fromstring(path.read_text())
    [title], [described] = picture.findall(f"{SVG}title"), picture.findall(f"{SVG}desc")
    assert picture.get("aria-labelledby") == f"{title.get('id')} {described.get('id')}"
    assert title.text
    assert len(described.text or "") > 100
    [style] = [each.text or "" for each in picture.findall(f"{SVG}style")]
    light, _, dark = style.partition("@media (prefers-color-scheme: dark)")
    names = {name for each in picture.iter() for name in (each.get("class") or "").split()}
    for name in names:
        assert f".{name} " in light, f"{name} has no style"
        assert f".{name} " in dark or not re.search(rf"\.{name} {{[^}}]*#", light), f"{name} has no dark colour"
    width, height = (float(picture.get(side, "0")) for side in ("width", "height"))
    assert picture.get("viewBox") == f"0 0 {width:g} {height:g}"
    for each in picture.iter(f"{SVG}text"):
        assert 0 <= float(each.get("x", "-1")) <= width, each.text
        assert 0 <= float(each.get("y", "-1")) <= height, each.text


# --- the check ------------------------------------------------------------------------


def faults(tmp_path: Path, body: str, **others: str) -> list[str]:
    """Return what is found in a site of one page with this body, and another page."""
    (tmp_path / "index.html").write_text(f"<html><body><h1 id='top'>A</h1>{body}</body></html>")
    (tmp_path / "other.html").write_text("<html><body><h2 id='there'>B</h2></body></html>")
    for name, text in others.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return list(check.faults(tmp_path))


def test_a_good_site_has_no_faults(tmp_path: Path) -> None:
    body = (
        "<a href='other.html#there'>x</a> <a href='#top'>y</a> <a href='https://example.org/'>z</a>"
        "<a href='mailto:a@example.org'>m</a><img src='a.svg'><img src='data:image/png;base64,AA==' alt=''>"
        "<script src='a.js'></script>"
    )
    svg = '<svg xmlns="http://www.w3.org/2000/svg"/>'
    assert faults(tmp_path, body, a_svg=svg, a_js='const where = "https://example.org/about"') == []
    assert check.main(tmp_path) == 0


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("<a href='gone.html'>x</a>", "links to gone.html: there is no such file"),
        ("<a href='other.html#gone'>x</a>", "links to other.html#gone: there is no such anchor"),
        ("<a href='#gone'>x</a>", "links to #gone: there is no such anchor"),
        ("<img src='gone.svg'>", "loads gone.svg, which is not there"),
        ("<img src='https://example.org/a.png'>", "loads https://example.org/a.png from elsewhere"),
        ("<script src='//example.org/a.js'></script>", "loads //example.org/a.js from elsewhere"),
        ("<link rel=stylesheet href='https://example.org/a.css'>", "loads https://example.org/a.css from elsewhere"),
        ("<p style='background: url(https://example.org/a.png)'>", "loads https://example.org/a.png from elsewhere"),
    ],
)
def test_the_check_finds_a_fault(tmp_path: Path, body: str, found: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert found in " ".join(faults(tmp_path, body))
    assert check.main(tmp_path) == 1
    assert found in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a_css", "@import url(https://example.org/a.css);"),
        ("a_css", "@font-face { src: url('//example.org/a.woff2') }"),
        ("a_js", 'import("https://example.org/a.mjs")'),
    ],
)
def test_the_check_looks_into_styles_and_scripts(tmp_path: Path, name: str, text: str) -> None:
    [found] = faults(tmp_path, "", **{name: text})
    assert "from elsewhere" in found


def test_a_site_without_pages_is_a_fault(tmp_path: Path) -> None:
    assert list(check.faults(tmp_path)) == [f"{tmp_path} has no pages."]
