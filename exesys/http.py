"""What both HTTP daemons share: JSON in and out, errors as JSON, a server that cannot be stalled.

waitress reads requests in one thread that never waits for a client and hands
complete ones to its workers, so a body that never arrives costs nobody else.
Its connections are looked after by `listening`.
"""

from __future__ import annotations

import base64
import datetime as dt
import decimal
import json
import logging
import math
import re
import signal
import uuid
from collections.abc import Callable, Mapping, Sequence
from types import FrameType, MappingProxyType
from typing import Any, NamedTuple

from bottle import HTTP_CODES, HTTPError, HTTPResponse, MultiDict, request
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.task import ErrorTask

from exesys import command
from exesys.errors import (
    BadCommand,
    BadJson,
    ExesysError,
    NotAllowed,
    NotFound,
    NotJson,
    Problem,
    RateLimited,
    TooLarge,
    Unauthorized,
    nearest,
)
from exesys.listening import Answer, Channel, Floor
from exesys.schemas import MARK
from exesys.tokens import Role

HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
RETRY_STATUSES = (429, 503)
JSON = "application/json"
PLAIN = "text/plain"
STOP_CHECK_S = 0.5
_SHOWN = 24
_SHOWN_PATH = 60
_QUOTES = (
    'Every name and text stands between double quotes, with a colon after the name: {"to": "testjob"}.'
    """ In a shell put single quotes around the whole: -d '{"cmd": "echo"}'."""
)
_SEVERAL = "Send one JSON value; several commands go into an array: [{…}, {…}]."
_MARK = re.compile(MARK)
_NONE: Mapping[Any, str] = MappingProxyType({})
_QUICK_BYTES = 8191  # bodies that waitress keeps as bytes, not as a file
_TRUSTED_BYTES = 64 << 10  # a body up to this is read for anybody, so that who sent it reads the refusal


class Endpoint(NamedTuple):
    """One thing that can be asked, and what /openapi.json says of it beside the handler's docstring.

    Schemas stand here by their names in `schemas`: `parameters` are those its
    query may have, `headers` those it reads, `body` is what it is sent, and
    `answers` what it gives with each status. `errors` are the statuses of its
    refusals that not every endpoint has (see `openapi`), `kinds` the media
    types of its answers. `role` is who may ask.
    """

    method: str
    path: str
    handler: Callable[..., HTTPResponse]
    parameters: Mapping[str, str]
    role: Role
    answers: Mapping[int, str] = _NONE
    errors: tuple[int, ...] = ()
    body: str = ""
    headers: Mapping[str, str] = _NONE
    kinds: tuple[str, ...] = (JSON,)


def either(schema: str) -> dict[int, str]:
    """Answers of what goes on (202), or has ended (200)."""
    return {200: schema, 202: schema}


def parse_json(body: bytes) -> Any:
    """Read a JSON body. Raises BadJson saying where it breaks."""
    if not body.strip():
        raise BadJson("the body is empty.", fix='Send a command, such as -d \'{"cmd": "echo", "data": 1}\'.')
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise BadJson(f"the body is not UTF-8: byte {error.start} is {body[error.start]:#04x}.") from None
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        before = text[max(0, error.pos - _SHOWN) : error.pos]
        after = text[error.pos : error.pos + _SHOWN]
        raise BadJson(
            f"the body is no JSON: {error.msg} at line {error.lineno}, column {error.colno}: …{before} ⟨here⟩ {after}…",
            fix=_SEVERAL if error.msg == "Extra data" else _QUOTES,
        ) from None
    except RecursionError:
        raise BadJson("the body is nested too deep to be read.", field="data", fix="Flatten the data.") from None
    except ValueError as error:
        raise BadJson(f"the body is no JSON: {error}.") from None


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_no_constant)


def check_query(query: MultiDict, known: Sequence[str]) -> None:
    """Raise BadCommand for a parameter that is not among the `known`, is given more than once, or is no UTF-8."""
    for name, value in query.allitems():
        if name not in known:
            shown = decoded(name)[:60]
            close = nearest(shown, known)
            listed = f"Known parameters: {', '.join(known)}." if known else "Send none: this endpoint has none."
            fix = f"Did you mean `{close}`?" if close else listed
            raise BadCommand(f"the parameter {shown!r} is unknown.", field=shown, fix=fix)
        if len(query.getall(name)) > 1:
            raise BadCommand(f"`{name}` is given more than once.", field=name, fix="Give it once.")
        try:
            value.encode("latin-1").decode()
        except UnicodeDecodeError:
            fix = "Encode it as UTF-8, then with % as URLs are."
            raise BadCommand(f"`{name}` is no UTF-8.", field=name, fix=fix) from None


def asked(name: str, default: Any = None) -> Any:
    """Return a parameter of the request as text, `default` when it is not there."""
    given = request.query.get(name)
    return default if given is None else decoded(given)


def header(name: str) -> str:
    """Return a header of the request, "" when it is not there. What is no UTF-8 in it is replaced."""
    return decoded(request.environ.get(f"HTTP_{name.upper().replace('-', '_')}", ""))


def decoded(text: str) -> str:
    """Decode what WSGI hands over as Latin-1."""
    return text.encode("latin-1").decode("utf-8", "replace")


def json_body(environ: Mapping[str, Any], most_bytes: int) -> bytes:
    """Return the body of a request whose Content-Type is JSON. Raises NotJson, TooLarge."""
    kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
    if kind != JSON:
        raise NotJson(
            f"the Content-Type is {kind or 'missing'}.", fix='Send it with -H "Content-Type: application/json".'
        )
    if int(environ.get("CONTENT_LENGTH") or 0) > most_bytes:
        raise too_large(most_bytes)
    return bytes(environ["wsgi.input"].read())


def preference(name: str, header: str) -> str | None:
    """Return the value of a preference in a Prefer header (RFC 7240), None when it is not there."""
    for part in header.split(","):
        key, _, value = part.partition(";")[0].partition("=")
        if key.strip().lower() == name:
            return value.strip().strip('"')
    return None


def to_json(value: Any) -> bytes:
    """Write JSON. What JSON lacks becomes text: dates ISO 8601, bytes base64, sets lists."""
    try:
        text = _ENCODER.encode(value)
    except (ValueError, TypeError):
        text = json.dumps(_tamed(value), default=_plain, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _plain(value: Any) -> Any:
    if isinstance(value, dt.datetime):
        return value.isoformat()
    if isinstance(value, (uuid.UUID, decimal.Decimal)):
        return str(value)
    if isinstance(value, (bytes, bytearray)):
        return base64.b64encode(value).decode()
    if isinstance(value, (set, frozenset)):
        return sorted(value, key=repr)
    return repr(value)


_ENCODER = json.JSONEncoder(default=_plain, allow_nan=False, separators=(",", ":"), ensure_ascii=False)


def _tamed(value: Any) -> Any:
    """Replace what JSON forbids: keys that are no text, and floats that are no number."""
    if isinstance(value, dict):
        return {key if isinstance(key, str) else str(_plain(key)): _tamed(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return [_tamed(item) for item in sorted(value, key=repr)]
    if isinstance(value, (list, tuple)):
        return [_tamed(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def number(name: str, text: str, low: float, high: float) -> float:
    """Read a parameter that is a number. Raises BadCommand."""
    try:
        value = float(text)
        if low <= value <= high:
            return value
    except ValueError:
        pass
    raise BadCommand(f"`{name}` is {text[:40]!r}.", field=name, fix=f"Give a number, {low:,.10g} to {high:,.10g}.")


def whole(name: str, text: str, low: int, high: int) -> int:
    """Read a parameter that is a whole number. Raises BadCommand."""
    if text.isascii() and text.isdigit() and len(text) < 20 and low <= int(text) <= high:
        return int(text)
    raise BadCommand(f"`{name}` is {text[:40]!r}.", field=name, fix=f"Give a whole number, {low} to {high:,}.")


def moment(name: str, text: str) -> int:
    """Read a parameter that is a time, RFC 3339 or milliseconds since 1970; return it in ms. Raises BadCommand."""
    if text.isascii() and text.isdigit() and len(text) < 16:
        return int(text)
    try:
        return max(command.due_ms(text.replace(" ", "+")), 0)  # a + that was not encoded
    except BadCommand as error:
        fix = "Give ms since 1970, or a time like 2026-01-31T12:00:00Z."
        raise BadCommand(error.message.replace("`at`", f"`{name}`"), field=name, fix=fix) from None


def mark(name: str, text: str | None) -> str:
    """Read the mark of a page, "" when there is none. Raises BadCommand."""
    if text is not None and not _MARK.fullmatch(text):
        raise BadCommand(f"`{name}` is no mark of this list.", field=name, fix="Take it from `next`.")
    return text or ""


def wants_text(accept: str) -> bool:
    """Tell whether a header Accept prefers plain text to JSON."""
    wanted = [kind.partition(";")[0].strip().lower() for kind in accept.split(",")]
    return next((kind for kind in wanted if kind in (PLAIN, JSON)), "") == PLAIN


def as_text(text: str) -> HTTPResponse:
    """Make an answer of plain text."""
    return HTTPResponse(text, 200, headers={**HEADERS, "Content-Type": f"{PLAIN}; charset=utf-8"})


def respond(status: int, body: Any, **headers: str) -> HTTPResponse:
    """Make a JSON answer. Keyword `Retry_After="1"` becomes the header Retry-After."""
    extra = {name.replace("_", "-"): value for name, value in headers.items()}
    return HTTPResponse(to_json(body), status, headers={**HEADERS, "Content-Type": JSON, **extra})


def later(status: int, body: Any, retry_s: str = "") -> Answer:
    """Make a JSON answer that comes after the empty one of a quick request."""
    retry = (("Retry-After", retry_s),) if retry_s else ()
    return Answer(f"{status} {HTTP_CODES[status]}", to_json(body), retry)


def refuse_later(error: ExesysError) -> Answer:
    """Make such an answer for an error."""
    return later(error.status, describe_problem(error.problem), _told_in_headers(error).get("Retry_After", ""))


def refuse(error: ExesysError) -> HTTPResponse:
    """Make the answer for an error."""
    return respond(error.status, describe_problem(error.problem), **_told_in_headers(error))


def _told_in_headers(error: ExesysError) -> dict[str, str]:
    if isinstance(error, Unauthorized):
        return {"WWW_Authenticate": "Bearer"}
    if isinstance(error, RateLimited):
        return {"Retry_After": str(max(1, math.ceil(error.wait_s)))}
    return {"Retry_After": "1"} if error.status in RETRY_STATUSES else {}


def describe_problem(problem: Problem) -> dict[str, Any]:
    return {"error": problem._asdict()}


def on_error(
    endpoints: Sequence[tuple[str, str]], admit: Callable[[], None] = lambda: None
) -> Callable[[HTTPError], HTTPResponse]:
    """Return what tells Bottle's own errors in our form, naming the endpoints (method, path) that there are.

    `admit` raises why whoever asks is not to know.
    """

    def tell(error: HTTPError) -> HTTPResponse:
        status = error.status_code
        path = request.path[:_SHOWN_PATH]
        try:
            admit()
        except ExesysError as refusal:
            return refuse(refusal)
        if status == 404:
            return refuse(NotFound(f"there is nothing at {path}.", fix=_endpoints_like(path, endpoints)))
        if status == 405:
            allowed = error.headers.get("Allow", "")
            answer = refuse(NotAllowed(f"{path} does not take {request.method[:_SHOWN]}.", fix=f"Use {allowed}."))
            answer.set_header("Allow", allowed)
            return answer
        return respond(status, describe_problem(Problem("internal", f"this should not happen: {error.body}.")))

    return tell


def _endpoints_like(path: str, endpoints: Sequence[tuple[str, str]]) -> str:
    known = [path for _, path in endpoints]
    stem = path.rstrip("/").lower()
    close = nearest(stem, known) if stem.count("/") == 1 else ""  # what is below a page is most likely a job's
    listed = ", ".join(f"{method} {path}" for method, path in endpoints)
    return f"Did you mean {close}? Known: {listed}." if close else f"Known: {listed}."


class _JsonErrorTask(ErrorTask):  # type: ignore[misc]  # untyped library
    """What waitress refuses by itself (bad HTTP, a body over the limit), as JSON."""

    def execute(self) -> None:
        error = self.request.error
        extra = dict(HEADERS)
        code = {400: "bad_request", 413: "too_large", 431: "too_large"}.get(error.code, "internal")
        problem = Problem(code, f"{error.reason}: {error.body}")
        if error.code == 413:
            # waitress reads a little over the limit, so that most get their answer from the application.
            most = self.channel.adj.max_request_body_size // 2
            problem = too_large(most).problem
        if isinstance(error, _Refusal):
            problem = error.problem
            extra |= error.headers
        body = to_json(describe_problem(problem))
        self.status = f"{error.code} {error.reason}"
        self.response_headers += [("Content-Type", JSON), ("Connection", "close"), *extra.items()]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Refusal:
    """An error of ours, in the form of waitress's."""

    body = ""

    def __init__(self, error: ExesysError) -> None:
        self.code = error.status
        self.reason = HTTP_CODES[error.status]
        self.problem = error.problem
        self.headers = {name.replace("_", "-"): value for name, value in _told_in_headers(error).items()}


def too_large(most_bytes: int) -> TooLarge:
    """Make the error for a body over the limit."""
    return TooLarge(
        f"the body is over the limit of {most_bytes:,} bytes.", fix="Send less, or raise [limits] body_bytes."
    )


Refuses = Callable[[Mapping[str, str]], ExesysError | None]


def _channel(refuses: Refuses) -> type[Channel]:
    """Make the class of connections: its errors are JSON, and large bodies are read only for who is not refused."""

    class Parser(HTTPRequestParser):  # type: ignore[misc]  # untyped library
        asked = False
        error: Any = None
        path = ""  # also before a first line was understood: waitress names it when the client has gone

        def parse_header(self, header_plus: bytes) -> None:
            try:
                super().parse_header(header_plus)
            except ValueError as error:  # of an address in the first line
                raise ParsingError(f"{error}") from error
            one_of_two = "CONTENT_LENGTH" in self.headers if self.chunked else "TRANSFER_ENCODING" in self.headers
            if one_of_two:
                # Where one reads a length and another chunks, the rest is taken for somebody else's request.
                raise ParsingError("Transfer-Encoding goes with HTTP/1.1 and without Content-Length")

        def received(self, data: bytes) -> int:
            taken: int = super().received(data)
            large = self.chunked or self.content_length > _TRUSTED_BYTES
            if self.headers_finished and not self.asked and large and not self.error:
                self.asked = True
                error = refuses(self.headers)
                if error is not None:
                    self.error, self.completed, self.expect_continue = _Refusal(error), True, False
            return taken

    class Answering(Channel):
        error_task_class = _JsonErrorTask
        parser_class = Parser

    return Answering


Quick = Callable[[str, str, str, Mapping[str, str], bytes], bool]


def _is_quick(quick: Quick) -> Callable[[Any], bool]:
    """Let `quick` judge waitress's whole, small, sound requests: method, path, query, headers and body."""

    def judge(request: Any) -> bool:
        if request.error or request.chunked or not 0 < request.content_length <= _QUICK_BYTES:
            return False
        body = request.body_rcv.getbuf().get()
        return quick(request.command, request.path, request.query, request.headers, body)

    return judge


def serve(
    app: Callable[..., Any],
    host: str,
    port: int,
    threads: int,
    connections: int,
    body_bytes: int,
    refuses: Refuses = lambda headers: None,
    quick: Quick = lambda method, path, query, headers, body: False,
    served: Callable[[], None] = lambda: None,
) -> None:
    """Serve until SIGTERM or SIGINT. Requests under way get a moment to end.

    Bodies of up to twice `body_bytes` are read; the application refuses what is over it. Of a request that
    `refuses` has an error for, by its headers, a large body is not read. What is `quick` is served in
    this thread, and must not wait; its answer may come later (`listening.LATER`). `served`
    is called when some of these were served.
    """
    # Lines for each request of whoever sends too many, or leaves before the answer, would fill the log.
    for name, level in (("waitress", logging.WARNING), ("waitress.queue", logging.ERROR)):
        logging.getLogger(name).setLevel(level)
    floor = Floor(app, host, port, threads, connections, 2 * body_bytes, _channel(refuses), _is_quick(quick), served)
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        stopping = True

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not stopping:
        floor.turn(STOP_CHECK_S)
    floor.close()
