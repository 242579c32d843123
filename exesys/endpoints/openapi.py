"""REST: the document that describes it."""

from __future__ import annotations

from collections.abc import Sequence

from bottle import HTTPResponse

from exesys import __version__, openapi
from exesys.access import Gate
from exesys.config import Config
from exesys.http import Endpoint, respond
from exesys.tokens import Role


class OpenApi:
    """The endpoint of the OpenAPI document. `others` are all the other endpoints."""

    def __init__(self, config: Config, others: Sequence[Endpoint], gate: Gate) -> None:
        self._config = config
        self._others = others
        self._gate = gate

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return what can be asked, and what is said of it."""
        # What there is to be asked is told to those who may ask, as a 404 does.
        return (Endpoint("GET", "/openapi.json", self.document, {}, Role.read, {200: "Document"}),)

    def document(self) -> HTTPResponse:
        """This document: what can be asked, and what is answered, in OpenAPI 3.1."""
        limits, url = self._config.limits, self._config.rest_url
        return respond(
            200, openapi.document((*self._others, *self.endpoints()), limits, __version__, url, self._gate.guarded)
        )
