"""Whether a started system really serves: `/readyz`, and one job from end to end."""

from __future__ import annotations

import http.client
import json
import time
import uuid
from typing import Any, NamedTuple

from exesys.errors import BootError
from exesys.process import wait_until

READY_TIMEOUT_S = 2.0
PROOF_S = 20.0
WAIT_S = 5
_DATA_AVAILABLE = 3
_ERROR = 4


class Proof(NamedTuple):
    """What came of the first job: `state` is the one it ended in, or "" when none could be tried."""

    job_id: str
    state: str
    took_ms: float | None
    message: str


def is_ready(host: str, port: int) -> bool:
    """Tell whether REST answers, and says that all behind it is there."""
    try:
        return _ask(host, port, "GET", "/readyz", None, READY_TIMEOUT_S)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


def prove(host: str, port: int, queue: str) -> Proof:
    """Run one job on `queue` and tell of it. Raises BootError when it has no result."""
    job_id = f"proof-{uuid.uuid4()}"
    command = {
        "from": "bootstrap",
        "to": "end_job",
        "cmd": "test_cmd",
        "data": "ready?",
        "job_id": job_id,
        "queue": queue,
        "result_ttl_s": 60,
    }
    body = json.dumps(command).encode()
    last: tuple[int, Any, float] = (0, None, 0.0)

    def ended() -> bool:
        nonlocal last
        since = time.monotonic()
        try:
            code, answer = _ask(host, port, "POST", f"/sys_cmd?wait={WAIT_S}", body, WAIT_S + READY_TIMEOUT_S)
        except (OSError, http.client.HTTPException) as error:
            code, answer = 0, str(error)
        last = (code, answer, time.monotonic() - since)
        away = code in (0, 429, 503)
        return not away and not (isinstance(answer, dict) and answer.get("status") in (0, 1, 2))

    wait_until(ended, PROOF_S, every_s=0.1)
    code, answer, took_s = last
    state = answer.get("status") if isinstance(answer, dict) else None
    if state == _DATA_AVAILABLE:
        took_ms = round(took_s * 1000, 1)
        return Proof(job_id, answer["state"], took_ms, f"one job was run: test_cmd answered in {took_ms:.0f} ms")
    if code == 422:
        return Proof(job_id, "", None, f"no job could be tried: {answer['error']['message']}")
    if state == _ERROR:
        raise BootError(f"The first job, test_cmd, ended in error: {answer['error']}.")
    raise BootError(
        f"The first job, test_cmd, has no result after {PROOF_S:g} s; the last answer was {code}: {answer}."
    )


def _ask(host: str, port: int, method: str, path: str, body: bytes | None, timeout_s: float) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        answer = connection.getresponse()
        text = answer.read()
    finally:
        connection.close()
    try:
        return answer.status, json.loads(text)
    except ValueError:
        return answer.status, text.decode("utf-8", "replace")
