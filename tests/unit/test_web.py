"""The web daemon's application: files of two directories, and nothing else."""

import io

import pytest

from exesys import config as configuration
from exesys.daemons.web import make_app


def ask(app, path, method="GET", query=""):
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
    }
    body = b"".join(app(environ, start_response))
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


def app_for(root, path="pages"):
    environ = {"EXESYS_WEB_PATH": path, "EXESYS_REST_PORT": "5010", "EXESYS_HOME": str(root / "<b>")}
    return make_app(configuration.parse("", None, environ, root, root))


def test_the_first_page_shows_the_addresses(site):
    status, headers, body = ask(app_for(site), "/")
    assert status == 200
    assert headers["content-type"] == "text/html; charset=utf-8"
    assert "http://127.0.0.1:5010/sys_cmd" in body
    assert "&lt;b&gt;" in body
    assert "<b>" not in body
    assert "@rest_url@" not in body
    assert "http" not in body.replace("http://127.0.0.1:50", "")  # nothing comes from elsewhere


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


@pytest.mark.parametrize("path", ["/", "/site/a.txt", "/nothing"])
def test_every_answer_is_guarded(site, path):
    headers = ask(app_for(site), path)[1]
    assert headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in headers["content-security-policy"]
    assert headers["referrer-policy"] == "no-referrer"


def test_pages_are_only_read(site):
    assert ask(app_for(site), "/", "POST")[0] == 405
