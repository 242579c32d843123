"""Lays out what Sphinx reads: the pages of the project as they lie, and the reference made from the code.

    python docs/site/stage.py DIRECTORY

The pages keep their places, so that a link that leads somewhere in the
repository leads there on the site too. A link to what is no page (a module, a
test, the licence) becomes its text.
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from typing import Any

import api
import reference
import rest

from benchmarks.run import arguments_parser
from exesys import __version__, cli, openapi
from exesys.config import Config
from exesys.daemons.rest import Api
from exesys.elsewhere import Elsewhere
from exesys.endpoints.events import EventsApi

ROOT = Path(__file__).resolve().parents[2]
PICTURES = ROOT / "docs" / "pictures"
ABOVE = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "clients/node/README.md")
_FENCES = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s#:]+)(#[^)\s]*)?\)")
_PLACES = "<!-- the pages that stand nowhere else -->\n"


def pages() -> list[Path]:
    """List the written pages, relative to the project's directory."""
    found = [Path(name) for name in ABOVE if (ROOT / name).is_file()]
    return found + sorted(path.relative_to(ROOT) for path in (ROOT / "docs").glob("*.md"))


def generated() -> dict[str, str]:
    """Make the pages of the reference: name -> Markdown."""
    operations = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    return {
        "settings": reference.settings(operations),
        "command-line": reference.command_line(cli._parser(), {"bin/exesys bench": arguments_parser()}),
        "rest": rest.rest(document()),
        "python": api.python(),
        "errors": reference.errors(),
    }


def document() -> dict[str, Any]:
    """Make REST's OpenAPI document. No endpoint is called, so nothing of a system is needed for it."""
    nothing: Any = None
    config = Config(ROOT, ROOT / "var")
    readers: Elsewhere[Any] = Elsewhere(config, nothing, nothing)
    events = EventsApi(nothing, readers, readers, nothing, 0)
    endpoints = Api(config, nothing, readers, nothing, nothing, events).endpoints()
    return openapi.document(endpoints, config.limits, __version__, config.rest_url, needs_token=True)


def inward(text: str, page: Path, known: set[Path]) -> str:
    """Return a page whose links to files of the repository that are no pages are text.

    A link to a picture is one of HTML: Sphinx would offer it for download.
    """

    def linked(match: re.Match[str]) -> str:
        text, target = match[1], (ROOT / page).parent / match[2]
        beside = target.resolve()
        if beside.is_file() and beside.is_relative_to(PICTURES):
            return f'<a href="{match[2]}">{text}</a>'
        inside = beside.is_relative_to(ROOT) and beside.relative_to(ROOT) in known
        return text if beside.exists() and not inside else match[0]

    parts = _FENCES.split(text)
    parts[::2] = [_LINK.sub(linked, part) for part in parts[::2]]
    return "".join(parts)


def index(text: str, names: list[str]) -> str:
    """Return the first page. What it does not name stands at the end of those on running a system."""
    placed = set(re.findall(r"^(?:.*<)?(docs/[\w-]+|[\w/-]*README|CHANGELOG|CONTRIBUTING)>?$", text, re.MULTILINE))
    there = [line for line in text.splitlines() if not _absent(line, names)]
    others = "".join(f"{name}\n" for name in names if name not in placed)
    return "\n".join(there).replace(_PLACES, others) + "\n"


def _absent(line: str, names: list[str]) -> bool:
    """Tell whether a line of a toctree names a page that is not there yet."""
    match = re.fullmatch(r"(?:[^<]*<)?((?:docs|clients|benchmarks)/[\w/-]+)>?", line)
    return match is not None and match[1] not in names


def stage(target: Path) -> None:
    """Write everything that Sphinx reads to `target`."""
    known = pages()
    made = generated()
    for page in known:
        to = target / page
        to.parent.mkdir(parents=True, exist_ok=True)
        text = (ROOT / page).read_text(encoding="utf-8")
        to.write_text(inward(text, page, set(known)), encoding="utf-8")
    for name, text in made.items():
        (target / "docs" / f"{name}.md").write_text(text, encoding="utf-8")
    for picture in [*(ROOT / "docs").glob("*.svg"), *PICTURES.glob("*")]:
        to = target / picture.relative_to(ROOT)
        to.parent.mkdir(exist_ok=True)
        shutil.copyfile(picture, to)
    names = [*(str(page.with_suffix("")) for page in known), *(f"docs/{name}" for name in made)]
    first = (ROOT / "docs" / "site" / "index.md").read_text(encoding="utf-8")
    (target / "index.md").write_text(index(first, names), encoding="utf-8")


if __name__ == "__main__":
    stage(Path(sys.argv[1]))
