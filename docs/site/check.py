"""Looks through a built site: every link and anchor leads somewhere, and nothing is loaded from elsewhere.

    python docs/site/check.py DIRECTORY

Prints what is wrong, a line each, and ends with 1; with 0 when nothing is.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_LOADED = {"src", "srcset", "poster", "data"}
_ADDRESS = re.compile(r"^\s*(?:https?:)?//", re.IGNORECASE)
# In a stylesheet, whatever it fetches; in a script, an address that names a file to be loaded.
_IN_STYLES = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)", re.IGNORECASE)
_IN_SCRIPTS = re.compile(r"['\"`](https?://[^'\"`\s]+\.(?:m?js|css|json|woff2?|ttf|svg|png))['\"`]", re.IGNORECASE)


class Page(HTMLParser):
    """What a page has: `ids` to lead to, `links` that lead away, `loads`, what a browser fetches for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag in ("link", "image", "use"):
            self.loads += [given[name] for name in ("href", "xlink:href") if name in given]
        self.loads += [value for name, value in given.items() if name in _LOADED]
        self.loads += _IN_STYLES.findall(given.get("style", ""))


def faults(site: Path) -> Iterator[str]:
    """Yield what is wrong with a site, a sentence each."""
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} has no pages."
    for path, page in pages.items():
        name = path.relative_to(site)
        for address in page.loads:
            if _ADDRESS.match(address):
                yield f"{name} loads {address} from elsewhere."
            elif not address.startswith("data:") and (target := _target(path, address)) and not target.exists():
                yield f"{name} loads {address}, which is not there."
        for link in page.links:
            if not urlsplit(link).scheme and not _ADDRESS.match(link) and (fault := _broken(path, link, pages)):
                yield f"{name} links to {link}: {fault}"
    for pattern, kinds in ((_IN_STYLES, ("*.css", "*.svg")), (_IN_SCRIPTS, ("*.js",))):
        for path in sorted(path for kind in kinds for path in site.rglob(kind)):
            for address in pattern.findall(path.read_text(encoding="utf-8", errors="replace")):
                yield f"{path.relative_to(site)} loads {address} from elsewhere."


def _target(page: Path, address: str) -> Path | None:
    """Return the file that an address on a page means; None when it is the page itself."""
    path = unquote(urlsplit(address).path)
    if not path:
        return None
    target = (page.parent / path).resolve()
    return target / "index.html" if target.is_dir() else target


def _broken(path: Path, link: str, pages: dict[Path, Page]) -> str:
    target = _target(path, link) or path
    anchor = unquote(urlsplit(link).fragment)
    if not target.exists():
        return "there is no such file."
    if anchor and target in pages and anchor not in pages[target].ids:
        return "there is no such anchor."
    return ""


def main(site: Path) -> int:
    """Look through a site; return the exit code."""
    found = list(faults(site.resolve()))
    print("\n".join(found), end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
