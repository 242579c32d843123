"""How the command line asks REST: with this user's token, if there are any."""

from __future__ import annotations

import http.client
import json
from typing import Any

from exesys import keystore
from exesys.addresses import near
from exesys.config import Config

HTTPException = http.client.HTTPException


def ask(config: Config, method: str, path: str, body: Any = None, timeout_s: float = 2.0) -> tuple[int, Any]:
    """Send one request; return the status and the JSON (or text) of the answer. Raises OSError or HTTPException.

    A BootError says that this user's token cannot be read.
    """
    headers = keystore.credentials(config)
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
