"""The web server: the dashboard, and a directory of the user's own under /site/.

Files only: no listing, nothing outside the two directories (also not by a
link), no script of a page from elsewhere. The dashboard speaks with REST,
whose address `/where.json` tells.
"""

from __future__ import annotations

import html
import logging
from pathlib import Path
from typing import Any

import bottle

from exesys import __version__, addresses, keystore
from exesys.assets import FIRST, Answer, Assets
from exesys.config import Config
from exesys.daemons.loop import run, settings
from exesys.http import header, respond, serve
from exesys.process import die_with_parent

PAGES = Path(__file__).resolve().parent.parent / "web"
THREADS = 4
CONNECTIONS = 200
BODY_BYTES = 64 << 10
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
}
_COMMON_POLICY = "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
OWN_POLICY = f"{_COMMON_POLICY}; style-src 'self' 'unsafe-inline'"  # of the user's own pages, and of errors
_NOT_FOUND = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{status}</title>
<style>:root {{ color-scheme: light dark }}
body {{ font: 1rem/1.5 system-ui, sans-serif; margin: 4rem auto; max-width: 40rem }}</style>
<h1>{status}</h1><p>{text} <a href="/">Back to the first page.</a></p></html>
"""


def make_app(config: Config) -> bottle.Bottle:
    """Build the WSGI application."""
    app = bottle.Bottle(catchall=True)
    site = config.root / config.web.path if config.web.path else None
    assets = Assets(PAGES)

    @app.hook("after_request")  # type: ignore[untyped-decorator]  # bottle has no types
    def guard() -> None:
        for name, value in {**HEADERS, "Content-Security-Policy": OWN_POLICY}.items():
            bottle.response.headers.setdefault(name, value)

    @app.get("/")  # type: ignore[untyped-decorator]  # bottle has no types
    def first_page() -> Any:
        return _dashboard(config, _asked_for(assets, FIRST, ""))

    @app.get("/<name>.html")  # type: ignore[untyped-decorator]  # bottle has no types
    def page(name: str) -> Any:
        return _dashboard(config, _asked_for(assets, f"{name}.html", ""))

    @app.get("/-/<digest>/<path:path>")  # type: ignore[untyped-decorator]  # bottle has no types
    def part(digest: str, path: str) -> Any:
        return _dashboard(config, _asked_for(assets, path, digest))

    @app.get("/where.json")  # type: ignore[untyped-decorator]  # bottle has no types
    def where() -> Any:
        site_url = f"{config.web_url}/site/" if site else ""
        told = {"rest": _rest_url(config), "bus": config.bus_endpoint, "home": str(config.home), "site": site_url}
        return respond(200, {**told, "version": __version__})

    @app.get("/site")  # type: ignore[untyped-decorator]  # bottle has no types
    def site_root() -> None:
        bottle.redirect("/site/")

    @app.get("/site/<path:re:.*>")  # type: ignore[untyped-decorator]  # bottle has no types
    def own(path: str) -> Any:
        return _file(site, path)

    def refuse(error: bottle.HTTPError) -> str:
        guard()
        bottle.response.content_type = "text/html; charset=utf-8"
        text = "There is no such page." if error.status_code == 404 else "That is not to be had here."
        return _NOT_FOUND.format(status=html.escape(error.status_line), text=text)

    for code in (403, 404, 405, 500):
        app.error(code)(refuse)
    return app


def _asked_for(assets: Assets, name: str, digest: str) -> Answer | None:
    return assets.answer(name, digest, header("Accept-Encoding"), header("If-None-Match"))


def _dashboard(config: Config, answer: Answer | None) -> Any:
    """Send a part of the dashboard: it may load from here and ask REST, and nothing else."""
    if answer is None:
        return bottle.HTTPError(404)
    policy = f"{_COMMON_POLICY}; connect-src 'self' {_rest_url(config)}"
    return bottle.HTTPResponse(answer.body, answer.status, {**answer.headers, "Content-Security-Policy": policy})


def _rest_url(config: Config) -> str:
    """Return REST's address for whoever asks: under the name by which they came here, where it listens there too."""
    came_by = addresses.host_of(header("Host"))
    named = addresses.is_ip(came_by) or came_by in config.rest.names
    if addresses.is_any(config.rest.host) and named:
        return addresses.url(came_by, config.rest.port)
    return config.rest_url


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
    config = settings("web")
    keystore.check_reach(config, "web", config.web.host)
    logging.getLogger("web").info("listening on %s", config.web_url)
    serve(make_app(config), config.web.host, config.web.port, THREADS, CONNECTIONS, BODY_BYTES)
    return 0


if __name__ == "__main__":
    run("web", main)
