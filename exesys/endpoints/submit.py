"""One command that need not wait for its end: the way to the bus that costs least.

Bottle, a thread, and two switches between threads cost more than all that
is done for such a command. It is checked as all are, and answered when the
router has taken it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from exesys import command, trace, views
from exesys.access import Application, Environ, Gate
from exesys.bus.client import Client, describe
from exesys.bus.handle import Handle
from exesys.errors import ExesysError, Unavailable
from exesys.http import HEADERS, JSON, decoded, describe_problem, json_body, later, parse_json, refuse, refuse_later
from exesys.listening import LATER, Answer, Later
from exesys.tokens import Role
from exesys.tracing import Traced

PATH = "/sys_cmd"
ROLE = Role.submit
ACK_S = 5.0
_HEADERS = [*HEADERS.items(), ("Content-Type", JSON)]


class Shortcut:
    """The application before the application: quick requests end here."""

    def __init__(
        self, app: Application, gate: Gate, client: Client, limits: command.Limits, body_bytes: int, traced: Traced
    ) -> None:
        self._app = app
        self._gate = gate
        self._client = client
        self._limits = limits
        self._body_bytes = body_bytes
        self._traced = traced

    def is_quick(self, method: str, path: str, query: str, headers: Mapping[str, str], body: bytes) -> bool:
        """Tell whether a request is one command, to be answered as soon as the router has taken it."""
        if method != "POST" or path != PATH or query or "PREFER" in headers or "OPERATION" in headers:
            return False
        return body.lstrip()[:1] == b"{" and not self._client.full and not self._traced.live

    def __call__(self, environ: Environ, start_response: Callable[..., Any]) -> Iterable[bytes]:
        promise = environ.get(LATER)
        if promise is None:
            return self._app(environ, start_response)
        try:
            self._gate.admit(environ, ROLE)
            self._send(environ, promise)
        except ExesysError as error:
            refused = refuse(error)
            start_response(refused.status_line, refused.headerlist)
            return [refused.body]
        start_response("202 Accepted", _HEADERS)
        return []

    def _send(self, environ: Environ, promise: Later) -> None:
        body = parse_json(json_body(environ, self._body_bytes))
        given = environ.get("HTTP_TRACEPARENT")
        traceparent = trace.parent(decoded(given)) if given else ""
        built = command.from_json(body, self._limits, lambda: self._client.new_id(new_id), traceparent)
        handle = self._client.post(built, lambda handle: promise.ready())

        def answer() -> Answer:
            if handle.state is not None:
                return later(*answer_of(handle, {}))
            return refuse_later(handle.exception() or unanswered())

        promise.promise(answer, time.monotonic() + ACK_S)


def new_id() -> str:
    """Make a job_id."""
    return str(uuid.uuid4())


def unanswered() -> Unavailable:
    """Make the error for a command of which the router says nothing."""
    return Unavailable(
        "the router did not answer in time; whether it took the command is not known.",
        fix="Send the same again: it runs once.",
    )


def refusal(handle: Handle) -> ExesysError | None:
    """Return why a command was not taken, or that nothing is known of it; None when it was."""
    return handle.exception() or unanswered() if handle.state is None else None


def answer_of(handle: Handle, in_vain: Mapping[Handle, str]) -> tuple[int, dict[str, Any]]:
    """Return the HTTP status and the body for one command; `in_vain` says why some wait."""
    refused = refusal(handle)
    if refused is not None:
        return refused.status, describe_problem(refused.problem)
    told = describe(handle)
    step = {"job_id": handle.job_id, "from": handle.from_, "to": views.to_of(handle.to), "cmd": handle.cmd}
    if handle in in_vain:
        told["waits"] = in_vain[handle]
    return 200 if handle.done() else 202, {**step, **told}
