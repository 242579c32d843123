"""The files of the pages as they go over the wire: packed, named by what is in them, asked for once.

`exesys/web/` has `index.html`, other pages, and what they load. A digest of all files stands
in each address but those of pages (`/-/DIGEST/app.js`), so a browser
keeps them for good, and a reload costs one request. A page that was opened
before an upgrade still gets what it asks for, and is told not to keep it.
"""

from __future__ import annotations

import gzip
import hashlib
import mimetypes
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

FIRST = "index.html"
BASE = "@base@"  # in a page: where the others are
PRELOAD = "@preload@"  # in the first page: all its scripts, so that none is found only by reading another
APART = "reference/"  # what only another page loads
FOREVER = "public, max-age=31536000, immutable"
ANEW = "no-cache"  # kept, and asked for each time: the answer is 304 when nothing changed
_TEXT = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
_LEVEL = 9


class Asset(NamedTuple):
    """One file. `packed` is its gzip form."""

    kind: str
    plain: bytes
    packed: bytes
    etag: str


class Answer(NamedTuple):
    """What is sent: `body` is empty with 304."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Assets:
    """All files below a directory, read once."""

    def __init__(self, root: Path) -> None:
        """Read them. Raises OSError."""
        texts = {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        self.digest = hashlib.sha256(b"".join(f"{name}\0".encode() + texts[name] for name in texts)).hexdigest()[:12]
        self.base = f"/-/{self.digest}"
        ahead = [f'<link rel="modulepreload" href="{self.base}/{name}">' for name in _own_scripts(texts)]
        self.pages = [name for name in texts if name.endswith(".html")]
        for name in self.pages:
            page = texts[name].decode().replace(BASE, self.base).replace(PRELOAD, "\n".join(ahead))
            texts[name] = page.encode()
        self._files = {name: _asset(name, text) for name, text in texts.items()}

    def answer(self, name: str, digest: str, accept_encoding: str, if_none_match: str) -> Answer | None:
        """Answer a request for a file, None when there is none; the headers are those of the request.

        `digest` is that of the address, "" for a page.
        """
        asset = self._files.get(name)
        if asset is None or (name in self.pages) != (digest == ""):
            return None
        headers = {"ETag": asset.etag, "Vary": "Accept-Encoding"}
        headers["Cache-Control"] = FOREVER if digest == self.digest else ANEW
        if asset.etag in (part.strip().removeprefix("W/") for part in if_none_match.split(",")):
            return Answer(304, headers, b"")
        headers["Content-Type"] = asset.kind
        if _takes_gzip(accept_encoding) and len(asset.packed) < len(asset.plain):
            return Answer(200, {**headers, "Content-Encoding": "gzip"}, asset.packed)
        return Answer(200, headers, asset.plain)


def _own_scripts(names: Iterable[str]) -> list[str]:
    """The scripts of the first page."""
    return [name for name in names if name.endswith(".js") and not name.startswith(APART)]


def _asset(name: str, text: bytes) -> Asset:
    suffix = Path(name).suffix
    kind = f"{_TEXT[suffix]}; charset=utf-8" if suffix in _TEXT else mimetypes.guess_type(name)[0]
    etag = f'"{hashlib.sha256(text).hexdigest()[:16]}"'
    return Asset(kind or "application/octet-stream", text, gzip.compress(text, _LEVEL, mtime=0), etag)


def _takes_gzip(accept_encoding: str) -> bool:
    for part in accept_encoding.lower().split(","):
        name, _, weight = part.strip().partition(";")
        if name.strip() == "gzip":
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False
