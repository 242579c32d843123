"""REST: jobs that failed, to see, to run again and to remove."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from bottle import HTTPResponse

from exesys import command, dead, views
from exesys.bus.client import Client
from exesys.errors import NotFound, no_job
from exesys.http import Endpoint, asked, either, mark, number, respond, whole
from exesys.schemas import MOST_LISTED
from exesys.states import State
from exesys.store.reader import Reader, Step
from exesys.tokens import Role

ACK_S = 5.0
SOME = {"cmd": "Name", "older_s": "OlderS", "before": "Mark"}


class DeadApi:
    """The endpoints below /dead."""

    def __init__(self, client: Client, reader: Reader) -> None:
        self._client = client
        self._reader = reader

    def endpoints(self) -> Sequence[Endpoint]:
        """Return what can be asked, and what is said of it."""
        return (
            Endpoint("GET", "/dead", self.list, {"limit": "Limit", **SOME}, Role.read, {200: "Dead"}),
            Endpoint("DELETE", "/dead", self.purge_all, SOME, Role.admin, {200: "AllPurged"}),
            Endpoint("POST", "/dead/retry", self.retry_all, SOME, Role.admin, {200: "AllRetried"}),
            Endpoint("GET", "/dead/<job_id>", self.show, {}, Role.read, {200: "Job"}, (404,)),
            Endpoint("DELETE", "/dead/<job_id>", self.purge, {}, Role.admin, {200: "Purged"}, (404, 409)),
            Endpoint("POST", "/dead/<job_id>/retry", self.retry, {}, Role.admin, either("Retried"), (404,)),
        )

    def list(self) -> HTTPResponse:
        """What failed, the newest first: ?limit=, ?before= (from `next`), ?cmd=, ?older_s=."""
        limit = whole("limit", asked("limit", "50"), 1, MOST_LISTED)
        until_ms = _until_ms()  # checked also where the mark says it already
        before = mark("before", asked("before")) or str(until_ms)
        found, following = dead.listed(self._reader, limit, before, _cmd())
        return respond(200, {"dead": [views.dead(ms, step) for ms, step in found], "next": following or None})

    def show(self, job_id: str) -> HTTPResponse:
        """Show a job that has failed."""
        return respond(200, self._shown(self._steps(job_id)))

    def retry(self, job_id: str) -> HTTPResponse:
        """Run again what failed of a job, as POST /jobs/<job_id>/retry does."""
        self._steps(job_id)
        changed = self._client.retry(job_id, timeout=ACK_S)
        [steps] = self._reader.steps([job_id])
        return respond(202 if changed else 200, {"retried": changed, **self._shown(steps)})

    def purge(self, job_id: str) -> HTTPResponse:
        """Remove all there is of a job that has failed."""
        purged = self._client.purge(command.check_name(job_id, "job_id"), timeout=ACK_S)
        return respond(200, {"job_id": job_id, "purged": purged})

    def retry_all(self) -> HTTPResponse:
        """Run again what failed, or that of ?cmd= and ?older_s=; a bounded number."""
        return self._all("retried", lambda job_id: self._client.retry(job_id, timeout=ACK_S))

    def purge_all(self) -> HTTPResponse:
        """Remove the jobs that failed, or those of ?cmd= and ?older_s=; a bounded number."""
        return self._all("purged", lambda job_id: self._client.purge(job_id, timeout=ACK_S))

    def _all(self, done: str, change: Callable[[str], int]) -> HTTPResponse:
        cmd, until_ms = _cmd(), _until_ms()
        given = mark("before", asked("before"))
        top, _, passed = given.partition("-")
        swept = dead.sweep(self._reader, change, int(top or until_ms), cmd, int(passed or 0))
        told = {done: swept.jobs, "steps": swept.steps, "skipped": swept.skipped, "next": swept.following or None}
        return respond(200, told)

    def _steps(self, job_id: str) -> Sequence[Step]:
        [steps] = self._reader.steps([command.check_name(job_id, "job_id")])
        if not steps:
            raise no_job(job_id)
        if not any(step.state is State.error for step in steps):
            raise NotFound(f"job {job_id} has not failed.", fix=f"GET /jobs/{job_id} shows it.")
        return steps

    def _shown(self, steps: Sequence[Step]) -> dict[str, Any]:
        return views.job(steps[0].job_id, steps, whole=True, callbacks=self._reader.callbacks(steps))


def _cmd() -> str | None:
    given = asked("cmd")
    return None if given is None else command.check_name(given, "cmd")


def _until_ms() -> int:
    """Return the last millisecond at which what is meant has failed."""
    older_s = number("older_s", asked("older_s", "0"), 0, command.MAX_SECONDS)
    return time.time_ns() // 1_000_000 - int(older_s * 1000)
