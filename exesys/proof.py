"""Whether a started system really serves: `/readyz`, and one job from end to end."""

from __future__ import annotations

import time
import uuid
from typing import Any, NamedTuple

from exesys import asking
from exesys.config import Config
from exesys.errors import BootError
from exesys.process import wait_until
from exesys.shards import pinned

READY_TIMEOUT_S = 2.0
PROOF_S = 20.0
WAIT_S = 5
_UNDER_WAY = (0, 1, 2)
_DATA_AVAILABLE = 3
_ERROR = 4


class Proof(NamedTuple):
    """What came of the first job: `state` is the one it ended in, or "" when none could be tried."""

    job_id: str
    state: str
    took_ms: float | None
    message: str


def is_ready(config: Config) -> bool:
    """Tell whether REST answers, and says that all behind it is there."""
    try:
        return asking.ask(config, "GET", "/readyz", timeout_s=READY_TIMEOUT_S)[0] == 200
    except (OSError, asking.HTTPException):
        return False


def why_not_ready(config: Config) -> str:
    """Return what REST says of what is not there yet; "" when it does not answer."""
    try:
        _, told = asking.ask(config, "GET", "/readyz", timeout_s=READY_TIMEOUT_S)
    except (OSError, asking.HTTPException):
        return ""
    return str(told["error"].get("message", "")) if isinstance(told, dict) and "error" in told else ""


def _all_busy(config: Config, queue: str) -> bool:
    """Tell whether the workers of a queue are there, and have as much to run as they can."""
    try:
        _, told = asking.ask(config, "GET", "/workers", timeout_s=READY_TIMEOUT_S)
        serving = [each for each in told["workers"] if queue in each["queues"]]
        return bool(serving) and all(each["held"] >= each["slots"] for each in serving)
    except (OSError, asking.HTTPException, KeyError, TypeError):
        return False


def prove(config: Config, queue: str) -> Proof:
    """Run one job on `queue` and tell of it. Raises BootError when it has no result."""
    job_id = pinned(f"proof-{uuid.uuid4()}", config.bus.shard)
    command = {
        "from": "bootstrap",
        "to": "end_job",
        "cmd": "test_cmd",
        "data": "ready?",
        "job_id": job_id,
        "queue": queue,
        "priority": 9,  # before what waits from earlier
        "result_ttl_s": 60,
    }
    last: tuple[int, Any, float] = (0, None, 0.0)

    def ended() -> bool:
        nonlocal last
        since = time.monotonic()
        try:
            code, answer = asking.ask(config, "POST", f"/sys_cmd?wait={WAIT_S}", command, WAIT_S + READY_TIMEOUT_S)
        except (OSError, asking.HTTPException) as error:
            code, answer = 0, str(error)
        last = (code, answer, time.monotonic() - since)
        away = code in (0, 429, 503)
        waits = isinstance(answer, dict) and answer.get("status") in _UNDER_WAY
        return not away and not (waits and not _all_busy(config, queue))

    wait_until(ended, PROOF_S, every_s=0.1)
    code, answer, took_s = last
    state = answer.get("status") if isinstance(answer, dict) else None
    if state == _DATA_AVAILABLE:
        took_ms = round(took_s * 1000, 1)
        return Proof(job_id, answer["state"], took_ms, f"one job was run: test_cmd answered in {took_ms:.0f} ms")
    if code in (401, 403, 422):
        return Proof(job_id, "", None, f"no job could be tried: {answer['error']['message']}")
    if state in _UNDER_WAY and _all_busy(config, queue):
        return Proof(job_id, "", None, "no job could be tried: jobs from before keep all slots busy")
    if state == _ERROR:
        raise BootError(f"The first job, test_cmd, ended in error: {answer['error']}.")
    raise BootError(
        f"The first job, test_cmd, has no result after {PROOF_S:g} s; the last answer was {code}: {answer}."
    )
