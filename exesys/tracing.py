"""REST's part in a trace: the header `traceparent` is read, and a span made around each request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bottle import HTTPResponse, Route, request

from exesys import trace
from exesys.http import header
from exesys.spans import Spans

_KEY = "exesys.traceparent"  # in the request's environ


def traceparent() -> str:
    """Return what commands of this request carry on, "" for none."""
    return str(request.environ.get(_KEY, ""))


class Traced:
    """A plugin of Bottle: around each request to an endpoint."""

    name, api = "traced", 2

    def __init__(self) -> None:
        self._spans = Spans()

    @property
    def live(self) -> bool:
        """Whether spans are made."""
        return self._spans.live

    def apply(self, callback: Callable[..., Any], route: Route) -> Callable[..., Any]:
        """Wrap an endpoint's handler."""
        called = f"{route.method} {route.rule}"

        def traced(**parts: str) -> Any:
            given = trace.parent(header("traceparent"))
            known = {"http.request.method": route.method, "http.route": route.rule}
            with self._spans.around(called, given, "server", known) as span:
                request.environ[_KEY] = span.traceparent
                answer = callback(**parts)
                if isinstance(answer, HTTPResponse):
                    span.note("http.response.status_code", answer.status_code)
                    if answer.status_code >= 500:
                        span.failed(answer.status_line)
                return answer

        return traced
