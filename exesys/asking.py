"""How the command line asks REST: with this user's token, if there are any."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

from exesys import keystore
from exesys.addresses import near
from exesys.config import Config

HTTPException = http.client.HTTPException


def ask(
    config: Config,
    method: str,
    path: str,
    body: Any = None,
    timeout_s: float = 2.0,
    more: Mapping[str, str] | None = None,
) -> tuple[int, Any]:
    """Send one request; return the status and the JSON (or text) of the answer. Raises OSError or HTTPException.

    `more` are further headers. A BootError says that this user's token cannot be read.
    """
    headers = keystore.credentials(config) | dict(more or {})
    sent = None
    if body is not None:
        headers["Content-Type"] = "application/json"
        sent = json.dumps(body).encode()
    connection = http.client.HTTPConnection(near(config.rest.host), config.rest.port, timeout=timeout_s)
    try:
        connection.request(method, path, sent, headers)
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, text.decode("utf-8", "replace")
