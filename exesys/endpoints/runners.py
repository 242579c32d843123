"""REST: runners to see, start, stop and restart."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bottle import HTTPResponse

from exesys import command, runnerviews
from exesys.bus.client import Client
from exesys.errors import BadCommand, NotFound, Unavailable, nearest
from exesys.http import (
    JSON,
    PLAIN,
    Endpoint,
    as_text,
    asked,
    either,
    header,
    number,
    parse_json,
    respond,
    wants_text,
    whole,
)
from exesys.process import wait_until
from exesys.runner import Name, RunnerState, check_name, check_type
from exesys.schemas import LONGEST_WAIT_S, MOST_ENDED
from exesys.store.reader import Reader, RunnerRecord
from exesys.tokens import Role

ACK_S = 5.0
TOLD_S = 1.0  # so long the router is asked for what only it knows; without an answer the rest is shown
MOST_WAITING = 16  # threads that wait for an end
SOME = {"state": "RunnerState", "ended": "Ended"}
WAIT = {"wait": "Wait"}
KEYS = ("target", "data", "type", "uuid", "grace_s")


class Runners:
    """The endpoints below /runners. `body` reads the request's body, within its limits."""

    def __init__(self, client: Client, reader: Reader, limits: command.Limits, body: Callable[[], bytes]) -> None:
        self._client = client
        self._reader = reader
        self._limits = limits
        self._body = body
        self._waiting = threading.Semaphore(MOST_WAITING)

    def endpoints(self) -> Sequence[Endpoint]:
        """Return what can be asked, and what is said of it."""
        one = "/runners/<type>/<uuid>"
        return (
            Endpoint("GET", "/runners", self.list, SOME, Role.read, {200: "Runners"}),
            Endpoint(
                *("POST", "/runners", self.start, {}, Role.submit, either("Runner")),
                errors=(409, 422),
                body="NewRunner",
            ),
            Endpoint("GET", "/runners/<type>", self.list, SOME, Role.read, {200: "Runners"}),
            Endpoint("DELETE", "/runners/<type>", self.stop_all, WAIT, Role.submit, either("TypeStopped"), (404,)),
            Endpoint("GET", one, self.show, {}, Role.read, {200: "Runner"}, (404,)),
            Endpoint("DELETE", one, self.stop, WAIT, Role.submit, either("RunnerStopped"), (404,)),
            Endpoint("POST", f"{one}/restart", self.restart, {}, Role.admin, {202: "Runner"}, (404, 409)),
            Endpoint(
                *("GET", f"{one}/log", self.log, {"after": "Bytes"}, Role.read, {200: "RunnerLog"}, (404,)),
                kinds=(JSON, PLAIN),
            ),
        )

    def list(self, type: str | None = None) -> HTTPResponse:
        """All runners, or those of a type: ?state=, ?ended= (how many of those that ended, 100)."""
        named = asked("state")
        if named is not None and named not in RunnerState.__members__:
            known = list(RunnerState.__members__)
            close = nearest(named, known)
            fix = f"Did you mean {close}?" if close else f"Known: {', '.join(known)}."
            raise BadCommand(f"the state {named[:40]!r} is unknown.", field="state", fix=fix)
        ended = whole("ended", asked("ended", "100"), 0, MOST_ENDED)
        found = self._reader.runners(None if type is None else check_type(type), ended)
        shown = [record for record in found if named in (None, record.state)]
        return respond(200, {"runners": runnerviews.runners(shown, self._told(), _now_ms())})

    def start(self) -> HTTPResponse:
        """Start a runner: target, and perhaps data, type, uuid, grace_s."""
        given = parse_json(self._body())
        if not isinstance(given, dict):
            raise BadCommand("a runner is started by an object.", fix='Send {"target": …, "data": …, "type": …}.')
        for key in given:
            if key not in KEYS:
                close = nearest(key, KEYS)
                fix = f"Did you mean `{close}`?" if close else f"Known keys: {', '.join(KEYS)}."
                raise BadCommand(f"the key {key[:60]!r} is unknown.", field=key[:60], fix=fix)
        if "target" not in given:
            raise BadCommand("`target` is missing.", field="target", fix="Name the function that is to run.")
        name = self._client.start_runner(**{"data": None, **given, "timeout": ACK_S})
        shown = self._shown(Name(*name.split(":")))
        return respond(200 if RunnerState(shown["state"]).final else 202, shown)

    def show(self, type: str, uuid: str) -> HTTPResponse:
        """Show a runner, with the traceback of its last error."""
        return respond(200, self._shown(check_name(type, uuid)))

    def stop(self, type: str, uuid: str) -> HTTPResponse:
        """Load the stop of a runner: 202 while it stops, 200 when it has. ?wait= waits for its end."""
        name, wait_s = check_name(type, uuid), _wait_s()
        news = self._client.stop_runner(*name, timeout=ACK_S) > 0
        self._await(lambda: self._record(name).state.final, wait_s)
        shown = self._shown(name)
        return respond(200 if RunnerState(shown["state"]).final else 202, {"news": news, **shown})

    def stop_all(self, type: str) -> HTTPResponse:
        """Load the stops of all runners of a type; tell of how many that is news."""
        wait_s = _wait_s()
        news = self._client.stop_runner(check_type(type), timeout=ACK_S)
        ended = self._await(lambda: all(each.state.final for each in self._reader.runners(type, 0)), wait_s)
        return respond(200 if ended else 202, {"type": type, "news": news})

    def restart(self, type: str, uuid: str) -> HTTPResponse:
        """Let a runner begin anew; one that runs is told to stop first."""
        name = check_name(type, uuid)
        self._client.restart_runner(*name, timeout=ACK_S)
        return respond(202, self._shown(name))

    def log(self, type: str, uuid: str) -> HTTPResponse:
        """The end of what it printed and logged; ?after= bytes, as `next` of the answer before said."""
        name = check_name(type, uuid)
        self._record(name)
        given = asked("after")
        after = None if given is None else whole("after", given, 0, 1 << 62)
        total, kept = self._reader.runner_log(name)
        text = runnerviews.log_text(kept, total, after)
        if wants_text(header("Accept")):
            return as_text(text)
        return respond(200, {"name": str(name), "log": text, "next": total})

    def _await(self, condition: Callable[[], bool], wait_s: float) -> bool:
        """Wait until the condition holds; tell whether it does."""
        if not wait_s or not self._waiting.acquire(blocking=False):
            return condition()
        try:
            return wait_until(condition, wait_s, every_s=0.02)
        finally:
            self._waiting.release()

    def _record(self, name: Name) -> RunnerRecord:
        record = self._reader.runner(name)
        if record is None:
            fix = "It was never started, or its record has expired. GET /runners lists those there are."
            raise NotFound(f"there is no runner {name}.", fix=fix)
        return record

    def _shown(self, name: Name) -> dict[str, Any]:
        record = self._record(name)
        told = None if record.state.final else self._told().get(str(name))
        return runnerviews.runner(record, told, _now_ms(), whole=True)

    def _told(self) -> Mapping[str, Mapping[str, Any]]:
        """Return what the router knows of runners; nothing when it does not say."""
        if not self._client.connected:
            return {}
        try:
            return runnerviews.by_name(self._client.snapshot("runners", timeout=TOLD_S)["runners"])
        except Unavailable:
            return {}


def _wait_s() -> float:
    given = asked("wait")
    return 0.0 if given is None else number("wait", given, 0, LONGEST_WAIT_S)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
