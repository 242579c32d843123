"""The web daemon's application: the dashboard and a directory of the user's own, and nothing else."""

import gzip
import io
import json
import re

import pytest

from exesys import config as configuration
from exesys.assets import Assets
from exesys.daemons.web import PAGES, make_app


def ask(app, path, method="GET", query="", **headers):
    got = {}

    def start_response(status, headers, exc_info=None):
        got.update(status=status, headers={name.lower(): value for name, value in headers})

    environ = {
        "REQUEST_METHOD": method,
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "127.0.0.1",
        "SERVER_PORT": "5001",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "wsgi.url_scheme": "http",
        "wsgi.input": io.BytesIO(),
        "wsgi.errors": io.StringIO(),
        **{f"HTTP_{name.upper()}": value for name, value in headers.items()},
    }
    body = b"".join(app(environ, start_response))
    if got["headers"].get("content-encoding") == "gzip":
        body = gzip.decompress(body)
    return int(got["status"].split()[0]), got["headers"], body.decode("utf-8", "replace")


@pytest.fixture
def site(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    pages = tmp_path / "pages"
    (pages / "sub").mkdir(parents=True)
    (pages / "empty").mkdir()
    (pages / "a.txt").write_text("a page")
    (pages / "sub" / "index.html").write_text("<p>sub")
    (pages / "out").symlink_to(tmp_path)
    (pages / "away.txt").symlink_to(tmp_path / "secret.txt")
    return tmp_path


def app_for(root, path="pages", **settings):
    environ = {"EXESYS_WEB_PATH": path, "EXESYS_REST_PORT": "5010", "EXESYS_HOME": str(root / "<b>")}
    environ |= {f"EXESYS_{name}": value for name, value in settings.items()}
    return make_app(configuration.parse("", None, environ, root, root))


def test_the_first_page_names_all_it_needs_and_nothing_from_elsewhere(site):
    app = app_for(site)
    status, headers, body = ask(app, "/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert "@" not in body
    assert "http" not in body
    named = set(re.findall(r'(?:href|src)="(/[^"]*)"', body))
    own = [path.relative_to(PAGES) for path in PAGES.rglob("*.js") if path.parent.name != "reference"]
    scripts = {f"{Assets(PAGES).base}/{path}" for path in own}
    assert scripts < named
    for path in named:
        assert ask(app, path)[0] == 200, path


def test_scripts_import_only_what_is_there():
    for path in PAGES.rglob("*.js"):
        text = path.read_text()
        for names, found in re.findall(r'^import (.*?)\s*from "([^"]+)";$', text, re.MULTILINE | re.DOTALL):
            wanted = path.parent / found
            assert wanted.is_file(), f"{path.name} imports {found}"
            kinds = r"^export (?:async )?(?:function\*?|class|const) (\w+)"
            exported = re.findall(kinds, wanted.read_text(), re.MULTILINE)
            for part in names.strip("{ }").split(",") if names.startswith("{") else ():
                assert part.split(" as ")[0].strip() in exported, f"{path.name} imports {part} of {found}"
        assert "innerHTML" not in text
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "")


def test_parts_are_kept_for_good_and_the_first_page_is_asked_for_anew(site):
    app = app_for(site)
    base = Assets(PAGES).base
    for path, kept in (("/", "no-cache"), (f"{base}/app.js", "immutable"), ("/-/0123456789ab/app.js", "no-cache")):
        status, headers, body = ask(app, path, accept_encoding="br, gzip")
        assert (status, headers["content-encoding"], headers["vary"]) == (200, "gzip", "Accept-Encoding")
        assert kept in headers["cache-control"]
        assert body == ask(app, path)[2]
        assert "content-encoding" not in ask(app, path, accept_encoding="gzip;q=0, br")[1]
        status, headers, body = ask(app, path, if_none_match=f'"other", W/{headers["etag"]}')
        assert (status, body) == (304, "")
        assert kept in headers["cache-control"]


def test_the_page_of_the_rest_interface_is_a_page_of_its_own(site):
    app = app_for(site)
    status, headers, body = ask(app, "/api.html")
    assert (status, headers["cache-control"]) == (200, "no-cache")
    policy = headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "connect-src 'self' http://127.0.0.1:5010" in policy
    parts = re.findall(r'(?:src|href)="(/-/[^"]+)"', body)
    assert [part.partition("/reference/")[2] for part in parts] == ["", "page.css", "page.js"]
    assert [ask(app, part)[0] for part in parts] == [200, 200, 200]
    assert "<style" not in body
    assert "<script>" not in body
    assert "http" not in body
    assert "/reference/" not in ask(app, "/")[2], "the first page loads none of it"
    assert ask(app, parts[0].rpartition("/")[0] + "/api.html")[0] == 404
    assert ask(app, "/none.html")[0] == 404


def test_what_is_in_a_part_is_in_its_address(tmp_path):
    (tmp_path / "index.html").write_text("<p>@base@ @preload@")
    (tmp_path / "a.js").write_text("1")
    before = Assets(tmp_path)
    (tmp_path / "a.js").write_text("2")
    after = Assets(tmp_path)
    assert before.base != after.base
    assert after.answer("a.js", before.digest, "", "").headers["Cache-Control"] == "no-cache"
    first = after.answer("index.html", "", "", "").body.decode()
    assert first == f'<p>{after.base} <link rel="modulepreload" href="{after.base}/a.js">'
    assert after.answer("index.html", after.digest, "", "") is None
    assert after.answer("../a.js", after.digest, "", "") is None


def test_where_rest_is(site):
    status, headers, body = ask(app_for(site), "/where.json")
    assert (status, headers["content-type"], headers["cache-control"]) == (200, "application/json", "no-store")
    told = json.loads(body)
    assert told["rest"] == "http://127.0.0.1:5010"
    assert told["home"] == str(site / "<b>")
    assert told["site"] == "http://127.0.0.1:5001/site/"
    assert json.loads(ask(app_for(site, ""), "/where.json")[2])["site"] == ""


@pytest.mark.parametrize(
    ("host", "rest"),
    [
        ("10.1.2.3:5001", "http://10.1.2.3:5010"),
        ("jobs.example:5001", "http://jobs.example:5010"),
        ("evil.example", "http://127.0.0.1:5010"),
        ("a;b", "http://127.0.0.1:5010"),
        ("", "http://127.0.0.1:5010"),
    ],
)
def test_where_rest_listens_everywhere_it_is_where_the_page_came_from(site, host, rest):
    app = app_for(site, REST_HOST="0.0.0.0", REST_NAMES="jobs.example")
    assert json.loads(ask(app, "/where.json", host=host)[2])["rest"] == rest
    assert f"connect-src 'self' {rest}" in ask(app, "/", host=host)[1]["content-security-policy"]
    assert json.loads(ask(app_for(site), "/where.json", host=host)[2])["rest"] == "http://127.0.0.1:5010"


@pytest.mark.parametrize("path", ["/", f"{Assets(PAGES).base}/app.js"])
def test_the_dashboard_runs_no_script_of_elsewhere_and_asks_only_rest(site, path):
    policy = dict(part.split(" ", 1) for part in ask(app_for(site), path)[1]["content-security-policy"].split("; "))
    assert policy == {
        "default-src": "'self'",
        "connect-src": "'self' http://127.0.0.1:5010",
        "img-src": "'self' data:",
        "frame-ancestors": "'none'",
        "base-uri": "'none'",
        "form-action": "'none'",
    }


def test_own_pages(site):
    app = app_for(site)
    assert ask(app, "/site/a.txt")[::2] == (200, "a page")
    assert ask(app, "/site/sub/")[::2] == (200, "<p>sub")
    assert ask(app, "/site/a.txt", "HEAD")[::2] == (200, "")
    assert ask(app, "/site")[0] in (302, 303)


@pytest.mark.parametrize(
    "path",
    [
        "/site/",
        "/site/empty/",
        "/site/nothing",
        "/site/../secret.txt",
        "/site/sub/../../secret.txt",
        "/site//etc/passwd",
        "/site/out/secret.txt",
        "/site/out/",
        "/site/away.txt",
        "/site/a.txt\0.html",
        "/../daemons/web.py",
        "/app.js",
        "/-/",
        "/-/0123456789ab/",
        "/-/0123456789ab/index.html",
        "/-/0123456789ab/../../daemons/web.py",
        "/-/0123456789ab/nothing.js",
        "/nothing",
        "/site/" + "x" * 5000,
        "/site/\xff",
    ],
)
def test_nothing_else_is_to_be_had(site, path):
    status, _, body = ask(app_for(site), path)
    assert status == 404
    assert "secret" not in body
    assert "There is no such page." in body


def test_without_a_directory_there_are_no_own_pages(site):
    assert ask(app_for(site, ""), "/site/a.txt")[0] == 404


@pytest.mark.parametrize("path", ["/", "/site/a.txt", "/nothing", f"{Assets(PAGES).base}/app.js"])
def test_every_answer_is_guarded(site, path):
    headers = ask(app_for(site), path)[1]
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


def test_pages_are_only_read(site):
    assert ask(app_for(site), "/", "POST")[0] == 405
