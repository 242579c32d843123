"""The web server: the first page, and a directory of the user's own under /site/.

Files only: no listing, nothing outside the two directories (also not by a
link), no script of a page from elsewhere.
"""

from __future__ import annotations

import html
import logging
from pathlib import Path
from typing import Any

import bottle

from exesys import environment, keystore
from exesys.config import Config
from exesys.daemons.loop import run
from exesys.http import serve
from exesys.process import die_with_parent

PAGES = Path(__file__).resolve().parent.parent / "web"
THREADS = 4
CONNECTIONS = 200
BODY_BYTES = 64 << 10
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:;"
    " frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_NOT_FOUND = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{status}</title>
<style>:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 4rem auto; max-width: 40rem }}</style>
<h1>{status}</h1><p>{text} <a href="/">Back to the first page.</a></p></html>
"""


def make_app(config: Config) -> bottle.Bottle:
    """Build the WSGI application."""
    app = bottle.Bottle(catchall=True)
    site = config.root / config.web.path if config.web.path else None

    @app.hook("after_request")  # type: ignore[untyped-decorator]  # bottle has no types
    def guard() -> None:
        for name, value in HEADERS.items():
            bottle.response.set_header(name, value)

    @app.get("/")  # type: ignore[untyped-decorator]  # bottle has no types
    def first_page() -> str:
        bottle.response.content_type = "text/html; charset=utf-8"
        text = (PAGES / "index.html").read_text(encoding="utf-8")
        known = {
            "rest_url": config.rest_url,
            "web_url": config.web_url,
            "bus_endpoint": config.bus_endpoint,
            "home": str(config.home),
            "site": f"{config.web_url}/site/" if site else "none; set [web] path to a directory",
        }
        for name, value in known.items():
            text = text.replace(f"@{name}@", html.escape(value))
        return text

    @app.get("/site")  # type: ignore[untyped-decorator]  # bottle has no types
    def site_root() -> None:
        bottle.redirect("/site/")

    @app.get("/site/<path:re:.*>")  # type: ignore[untyped-decorator]  # bottle has no types
    def own(path: str) -> Any:
        return _file(site, path)

    @app.get("/<path:path>")  # type: ignore[untyped-decorator]  # bottle has no types
    def page(path: str) -> Any:
        return _file(PAGES, path)

    def refuse(error: bottle.HTTPError) -> str:
        guard()
        bottle.response.content_type = "text/html; charset=utf-8"
        text = "There is no such page." if error.status_code == 404 else "That is not to be had here."
        return _NOT_FOUND.format(status=html.escape(error.status_line), text=text)

    for code in (403, 404, 405, 500):
        app.error(code)(refuse)
    return app


def _file(root: Path | None, path: str) -> Any:
    """Answer with a file below `root`; a link may not lead out of it."""
    missing = bottle.HTTPError(404)
    if root is None or "\0" in path:
        return missing
    root = root.resolve()
    try:
        wanted = (root / path.lstrip("/")).resolve()
        if wanted.is_dir():
            wanted = (wanted / "index.html").resolve()
        if not wanted.is_file() or not wanted.is_relative_to(root):
            return missing
    except OSError:  # a name too long, a directory that may not be read
        return missing
    return bottle.static_file(str(wanted.relative_to(root)), root=str(root))


def main() -> int:
    die_with_parent()
    config = environment.load()
    keystore.check_reach(config, "web", config.web.host)
    logging.getLogger("web").info("listening on %s", config.web_url)
    serve(make_app(config), config.web.host, config.web.port, THREADS, CONNECTIONS, BODY_BYTES)
    return 0


if __name__ == "__main__":
    run("web", main)
