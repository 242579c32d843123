"""Application servers over HTTP: `POST /apps/NAME/METHOD`, and what there is to know of them.

A call holds a thread for as long as it takes. So that a server that is slow
does not hold all of them, each has a share, and some threads are for none.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from bottle import HTTPResponse, request

from exesys.bus.appcall import unknown_app
from exesys.bus.client import Client
from exesys.config import Config
from exesys.errors import AppLost, BadCommand, NotJson, QueueFull
from exesys.http import JSON, Endpoint, asked, describe_problem, parse_json, respond, too_large
from exesys.schemas import LONGEST_WAIT_S
from exesys.tokens import Role

ASK_S = 5.0
SHARE = 4  # a server may hold one in so many of the threads


class AppsApi:
    """The endpoints of application servers. `free` counts the threads that may wait."""

    def __init__(self, config: Config, client: Client, free: threading.Semaphore) -> None:
        self._client = client
        self._most_bytes = config.limits.body_bytes
        self._free = free
        self._share = max(1, config.rest.threads // SHARE)
        self._lock = threading.Lock()
        self._held: defaultdict[str, int] = defaultdict(int)

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return what can be asked, and what is said of it."""
        return (
            Endpoint("GET", "/apps", self.apps, {}, Role.read, {200: "Apps"}),
            Endpoint("GET", "/apps/<name>", self.app, {}, Role.read, {200: "App"}, (404,)),
            Endpoint(
                *("POST", "/apps/<name>/<method>", self.call, {"timeout": "Timeout"}, Role.submit, {200: "Called"}),
                errors=(404, 500, 504),
                body="Arguments",
            ),
        )

    def apps(self) -> HTTPResponse:
        """List the application servers: state, instances, methods, and the reason if one does not start."""
        shown = [{key: each[key] for key in each if key != "traceback"} for each in self._listed()]
        return respond(200, {"apps": shown})

    def app(self, name: str) -> HTTPResponse:
        """Show one, with the traceback of the reason."""
        listed = {each["name"]: each for each in self._listed()}
        if name not in listed:
            raise unknown_app(name, sorted(listed))
        return respond(200, listed[name])

    def call(self, name: str, method: str) -> HTTPResponse:
        """Call a method: an array gives its positional arguments, an object named ones, else it is the one argument."""
        timeout_s = _timeout_s(asked("timeout"))
        args, kwargs = self._arguments()
        try:
            with self._thread(name):
                result = self._client.apps.call(name, method, args, kwargs, timeout_s)
        except AppLost as error:
            # Without Retry-After: whether it may be sent again only its sender knows.
            return respond(error.status, describe_problem(error.problem))
        return respond(200, {"app": name, "method": method, "result": result})

    def _listed(self) -> list[dict[str, Any]]:
        listed: list[dict[str, Any]] = self._client.snapshot("apps", timeout=ASK_S)["apps"]
        return listed

    def _arguments(self) -> tuple[list[Any], dict[str, Any]]:
        if request.content_length > self._most_bytes:
            raise too_large(self._most_bytes)
        body = bytes(request.body.read())
        if not body.strip():
            return [], {}
        kind = request.content_type.partition(";")[0].strip().lower()
        if kind != JSON:
            raise NotJson(
                f"the Content-Type is {kind or 'missing'}.", fix='Send it with -H "Content-Type: application/json".'
            )
        value = parse_json(body)
        if isinstance(value, list):
            return value, {}
        return ([], value) if isinstance(value, dict) else ([value], {})

    @contextlib.contextmanager
    def _thread(self, name: str) -> Iterator[None]:
        """Hold one of the threads that may wait. Raises QueueFull when the server has its share."""
        with self._lock:
            if self._held[name] >= self._share or not self._free.acquire(blocking=False):
                held = self._held[name]
                raise QueueFull(
                    f"{held} calls of {name[:80]!r} are under way over REST, and no thread is free for more.",
                    fix="Send it again in a moment; [rest] threads says how many there are.",
                )
            self._held[name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._held[name] -= 1
                if not self._held[name]:
                    del self._held[name]
                self._free.release()


def _timeout_s(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        value = float(text)
        if 0 < value <= LONGEST_WAIT_S:
            return value
    except ValueError:
        pass
    fix = f"Give a number of seconds above 0, up to {LONGEST_WAIT_S:g}."
    raise BadCommand(f"`timeout` is {text[:40]!r}.", field="timeout", fix=fix)
