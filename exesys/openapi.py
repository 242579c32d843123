"""The OpenAPI document: what REST can be asked, and what it answers, from the table of its endpoints.

Nothing is written twice: methods, paths, parameters and roles are those by
which requests are let in, the text is that of the handlers' docstrings, and
the schemas are those of `schemas`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from typing import Any

from exesys import schemas
from exesys.config import Limits
from exesys.http import JSON, RETRY_STATUSES, Endpoint
from exesys.schemas import Schema, ref
from exesys.tokens import Role

VERSION = "3.1.0"
# The schema of each part of a path.
PARTS = {"job_id": "Name", "name": "Name", "type": "RunnerType", "uuid": "RunnerUuid", "method": "Text"}
NEEDS_TOKEN = (401, 403)
SAYS = {
    200: "It is so.",
    201: "It was added.",
    202: "It is accepted, and goes on.",
    400: "Something of the request is wrong; the error says what, where, and what to do.",
    401: "A token is needed, and none that is known was sent.",
    403: "The token's role does not suffice, or the page that asks is none that may.",
    404: "There is no such thing.",
    409: "It contradicts what is there.",
    413: "It is too large.",
    415: "The Content-Type is not application/json.",
    422: "No function has this name.",
    429: "There are too many: of requests in a second, or of what waits already.",
    500: "The method of the application server raised an error.",
    503: "The router, the store or what is asked for is away.",
    504: "The application server did not answer in time.",
}
RETRY_AFTER = {
    "description": "after so many seconds it may be sent again",
    "required": True,
    "schema": {"type": "integer", "minimum": 1},
}
MAY_RETRY_AFTER = {**RETRY_AFTER, "required": False}
ABOUT = """The REST interface of ExeSys, a self-hosted job server: commands in, results out.

Every refusal is an `Error`, and leaves nothing behind. A method that a path does not take is answered with 405, a path
that there is not with 404, a head of more than 64 KiB with 431."""


def document(
    endpoints: Iterable[Endpoint], limits: Limits, version: str, server: str, needs_token: bool
) -> dict[str, Any]:
    """Return the document of these endpoints.

    `server` is their address. With `needs_token` all but what is for anyone
    needs one, as it is once any token was made.
    """
    known = schemas.build(limits)
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        path = re.sub(r"<(\w+)>", r"{\1}", endpoint.path)
        paths.setdefault(path, {})[endpoint.method.lower()] = _operation(endpoint, path, needs_token)
    return {
        "openapi": VERSION,
        "info": {"title": "ExeSys", "version": version, "description": ABOUT, "license": {"name": "MIT"}},
        "servers": [{"url": server}],
        "paths": paths,
        "components": {
            "schemas": known,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer", "description": "a token of `bin/exesys keys new`"}
            },
        },
    }


def _operation(endpoint: Endpoint, path: str, needs_token: bool) -> dict[str, Any]:
    summary, _, rest = (inspect.getdoc(endpoint.handler) or "").partition("\n")
    role = "Anyone may ask." if endpoint.role is Role.anyone else f"It needs the role {endpoint.role.name}."
    told: dict[str, Any] = {
        "operationId": f"{endpoint.method.lower()}{re.sub(r'[^A-Za-z0-9]+', '_', path)}".rstrip("_"),
        "tags": [path.split("/")[1]],
        "summary": summary,
        "description": f"{rest.strip()}\n\n{role}".strip(),
        "x-role": endpoint.role.name,
        "parameters": _parameters(endpoint, path),
        "responses": _responses(endpoint),
    }
    if endpoint.body:
        needed = endpoint.body != "Arguments"
        told["requestBody"] = {"required": needed, "content": {JSON: {"schema": ref(endpoint.body)}}}
    if needs_token and endpoint.role is not Role.anyone:
        told["security"] = [{"bearer": []}]
    return told


def _parameters(endpoint: Endpoint, path: str) -> list[dict[str, Any]]:
    parts = {name: PARTS[name] for name in re.findall(r"{(\w+)}", path)}
    places: tuple[tuple[str, Mapping[str, str]], ...] = (
        ("path", parts),
        ("query", endpoint.parameters),
        ("header", endpoint.headers),
    )
    return [
        {"name": name, "in": place, "required": place == "path", "schema": ref(schema)}
        for place, named in places
        for name, schema in named.items()
    ]


def _responses(endpoint: Endpoint) -> dict[str, Any]:
    refusals = {400, 503, *endpoint.errors}
    if endpoint.role is not Role.anyone:
        refusals |= {*NEEDS_TOKEN, 429}
    if endpoint.body:
        refusals |= {413, 415}
    answers = {**dict.fromkeys(refusals, "Error"), **endpoint.answers}
    return {str(status): _response(endpoint, status, answers[status]) for status in sorted(answers)}


def _response(endpoint: Endpoint, status: int, schema: str) -> dict[str, Any]:
    content: dict[str, Schema] = {JSON: {"schema": ref(schema)}}
    if status < 400:
        content = {kind: {"schema": ref(schema) if kind == JSON else schemas.TEXT} for kind in endpoint.kinds}
    told: dict[str, Any] = {"description": SAYS[status], "content": content}
    if status == 401:
        told["headers"] = {"WWW-Authenticate": {"schema": {"const": "Bearer"}, "required": True}}
    if status in RETRY_STATUSES:
        # Whether a call that was lost may be sent again only its sender knows.
        told["headers"] = {"Retry-After": MAY_RETRY_AFTER if endpoint.body == "Arguments" else RETRY_AFTER}
    return told
