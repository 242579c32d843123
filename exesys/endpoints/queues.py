"""Queues over HTTP: what waits in each, and what is set of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from bottle import HTTPResponse

from exesys import command, queueviews
from exesys.bus.client import Client
from exesys.config import Config
from exesys.errors import BadCommand
from exesys.http import Endpoint, parse_json, respond
from exesys.store.reader import Reader
from exesys.tokens import Role

ASK_S = 5.0


class QueuesApi:
    """The endpoints of queues. `body` reads a request's JSON text."""

    def __init__(self, config: Config, client: Client, reader: Reader, body: Callable[[], bytes]) -> None:
        self._config = config
        self._client = client
        self._reader = reader
        self._body = body

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return what can be asked, and what is said of it."""
        return (
            Endpoint("GET", "/queues", self.queues, {}, Role.read, {200: "Queues"}),
            Endpoint("GET", "/queues/<name>", self.queue, {}, Role.read, {200: "Queue"}),
            Endpoint("PATCH", "/queues/<name>", self.change, {}, Role.admin, {200: "Queue"}, body="QueueSettings"),
            Endpoint("POST", "/queues/<name>/pause", self.pause, {}, Role.admin, {200: "Queue"}),
            Endpoint("POST", "/queues/<name>/resume", self.resume, {}, Role.admin, {200: "Queue"}),
        )

    def queues(self) -> HTTPResponse:
        """List the queues: how many wait, for how long, who serves them, and what is set."""
        return respond(200, {"queues": self._listed()})

    def queue(self, name: str) -> HTTPResponse:
        """Show a queue; of a name that was never used, that nothing waits there."""
        return self._shown(command.check_name(name, "queue"))

    def change(self, name: str) -> HTTPResponse:
        """Set what the body says: depth, rate, concurrency, key_limit, paused; null takes one away."""
        given = parse_json(self._body())
        if not isinstance(given, dict):
            raise BadCommand("settings must be a JSON object.", fix='Send {"rate": "100/m"}, for example.')
        return self._merge(name, given)

    def pause(self, name: str) -> HTTPResponse:
        """Hand out no more of this queue; what runs goes on, and it takes jobs as before."""
        return self._merge(name, {"paused": True})

    def resume(self, name: str) -> HTTPResponse:
        """Hand out jobs of this queue again."""
        return self._merge(name, {"paused": False})

    def _merge(self, name: str, fields: dict[str, Any]) -> HTTPResponse:
        self._client.tune("queue", "merge", command.check_name(name, "queue"), fields, timeout=ASK_S)
        return self._shown(name)

    def _shown(self, name: str) -> HTTPResponse:
        [queue] = self._listed(name)
        return respond(200, queue)

    def _listed(self, only: str = "") -> list[dict[str, Any]]:
        workers = self._client.snapshot("workers", timeout=ASK_S)["workers"]
        return queueviews.listed(self._config, self._reader, workers, time.time_ns() // 1_000_000, only)
