"""The REST shim: commands from curl onto the bus, and the store's content to read.

It decides nothing. A command is checked, sent to the router, and answered
with what the router said after the commit.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable
from itertools import chain
from typing import Any

from bottle import Bottle, HTTPResponse, request

from exesys import command, keystore, troubles, views
from exesys.access import Cors, Gate, origins
from exesys.bus.client import Client
from exesys.bus.handle import Handle
from exesys.config import Config
from exesys.daemons.loop import run, settings
from exesys.elsewhere import Elsewhere
from exesys.endpoints.apps import AppsApi
from exesys.endpoints.dead import DeadApi
from exesys.endpoints.events import EventsApi
from exesys.endpoints.metrics import MetricsApi
from exesys.endpoints.openapi import OpenApi
from exesys.endpoints.queues import QueuesApi
from exesys.endpoints.runners import Runners
from exesys.endpoints.submit import ACK_S, PATH, ROLE, Shortcut, answer_of, new_id, refusal
from exesys.endpoints.timers import TimersApi
from exesys.endpoints.whoami import WhoAmI
from exesys.errors import BadCommand, ExesysError, TooLarge, Unavailable, no_job
from exesys.figures import Figures
from exesys.http import (
    HEADERS,
    JSON,
    PLAIN,
    RETRY_STATUSES,
    Endpoint,
    as_text,
    asked,
    check_query,
    describe_problem,
    either,
    header,
    json_body,
    mark,
    moment,
    number,
    on_error,
    parse_json,
    preference,
    refuse,
    respond,
    serve,
    wants_text,
    whole,
)
from exesys.process import die_with_parent
from exesys.schemas import LONGEST_WAIT_S, MOST_LISTED
from exesys.spans import set_up
from exesys.states import State
from exesys.store.reader import Reader, Sought, Step
from exesys.store.tail import Tail
from exesys.store.timetable import Timetable
from exesys.tokens import Role
from exesys.tracing import Traced, traceparent
from exesys.workflow import Graph

LAST_ACKS_S = 0.5
KINDS = (JSON, PLAIN)
LISTED = {"limit": "Limit", "state": "State", "cmd": "Name", "since": "Moment", "until": "Moment", "before": "Mark"}
# An array of refusals has the status of its first.
TOLD = {**either("Answers"), **dict.fromkeys((400, 401, 403, 409, 413, 415, 422, 429, 503), "Refusal")}
SENT_WITH = {"Operation": "Operation", "Prefer": "Prefer", "traceparent": "Text"}
KEPT_FREE = 8  # threads that never wait for a job's end
QUEUES_S = 1.0  # so long is asked which queues are served: without an answer a job is shown all the same


class Api:
    """The endpoints, over one bus client and one reader of the store."""

    def __init__(
        self,
        config: Config,
        client: Client,
        readers: Elsewhere[Reader],
        table: Timetable,
        gate: Gate,
        events: EventsApi,
    ) -> None:
        self.config = config
        self.gate = gate
        self.client = client
        self.reader = readers.own
        self.readers = readers
        self.table = table
        self.events = events
        self.limits = command.Limits(config.limits.data_bytes, config.limits.depth)
        self._waiting = threading.Semaphore(max(1, config.rest.threads - KEPT_FREE))

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Give all that can be asked, and who may: what is not here is not to be had."""
        runners = Runners(self.client, self.reader, self.limits, self._body)
        timers = TimersApi(self.client, self.table, self.limits, self.config.bus.shard, self._body, self._taken)
        listed = (
            Endpoint("POST", PATH, self.sys_cmd, {"wait": "Wait"}, ROLE, TOLD, (), "Commands", SENT_WITH),
            Endpoint("GET", "/jobs", self.jobs, LISTED, Role.read, {200: "Jobs"}),
            Endpoint("GET", "/jobs/<job_id>", self.job, {}, Role.read, {200: "Job"}, (404,)),
            Endpoint("DELETE", "/jobs/<job_id>", self.cancel, {}, Role.submit, {200: "Cancelled"}, (404,)),
            Endpoint("POST", "/jobs/<job_id>/retry", self.retry, {}, Role.submit, either("Retried"), (404,)),
            Endpoint("GET", "/jobs/<job_id>/log", self.log, {}, Role.read, {200: "JobLog"}, (404,), kinds=KINDS),
            *self.events.endpoints(),
            *DeadApi(self.client, self.reader).endpoints(),
            Endpoint("GET", "/callbacks", self.callbacks, {}, Role.read, {200: "Callbacks"}),
            Endpoint("GET", "/functions", self.functions, {}, Role.read, {200: "Functions"}),
            Endpoint("GET", "/workers", self.workers, {}, Role.read, {200: "Workers"}),
            *runners.endpoints(),
            *QueuesApi(self.config, self.client, self.reader, self._body).endpoints(),
            *timers.endpoints(),
            *AppsApi(self.config, self.client, self._waiting).endpoints(),
            *MetricsApi(self.config, self.client, self.reader).endpoints(),
            *WhoAmI().endpoints(),
            Endpoint("GET", "/healthz", self.healthz, {}, Role.anyone, {200: "Health"}),
            Endpoint("GET", "/readyz", self.readyz, {}, Role.anyone, {200: "Ready"}),
        )
        return (*listed, *OpenApi(self.config, listed, self.gate).endpoints())

    def app(self) -> Bottle:
        app = Bottle()
        endpoints = self.endpoints()
        for endpoint in endpoints:
            app.route(endpoint.path, endpoint.method, self._guarded(endpoint))
        app.default_error_handler = on_error(
            [(endpoint.method, endpoint.path) for endpoint in endpoints],
            admit=lambda: self.gate.admit(request.environ, Role.read),
        )
        return app

    def _guarded(self, endpoint: Endpoint) -> Callable[..., HTTPResponse]:
        admit, handler, role = self.gate.admit, endpoint.handler, endpoint.role
        parameters = tuple(endpoint.parameters)

        def guarded(**parts: str) -> HTTPResponse:
            try:
                admit(request.environ, role)
                check_query(request.query, parameters)
                return handler(**parts)
            except ExesysError as error:
                return refuse(error)

        return guarded

    # --- commands ---------------------------------------------------------

    def sys_cmd(self) -> HTTPResponse:
        """Take one command, or an array of them; with `Operation: workflow` a step that waits, or a whole workflow."""
        wait_s = self._wait_s()
        workflow = _is_workflow(header("Operation").strip())
        body = parse_json(self._body())
        if isinstance(body, list):
            self.gate.charge(request.environ, len(body))
            return self._workflow(body, wait_s) if workflow else self._many(body, wait_s)
        built = command.from_json(body, self.limits, self._new_id, traceparent())
        [handle] = self.client.send(built, notify=wait_s > 0, standby=workflow)
        in_vain = self._await([handle], wait_s)
        refused = refusal(handle)
        if refused is not None:
            raise refused
        return respond(*answer_of(handle, in_vain))

    def _new_id(self) -> str:
        return self.client.new_id(new_id)

    def _many(self, bodies: list[Any], wait_s: float) -> HTTPResponse:
        """Each command is accepted or refused on its own; the answers stand in their order."""
        most = self.config.limits.array
        if not bodies:
            raise BadCommand("the array is empty.", fix="Send one command or more.")
        if len(bodies) > most:
            raise TooLarge(
                f"the array has {len(bodies):,} commands; at most {most:,} are allowed.",
                fix="Send several arrays, or raise [limits] array.",
            )
        built: list[command.Command | ExesysError] = []
        for body in bodies:
            try:
                built.append(command.from_json(body, self.limits, self._new_id, traceparent()))
            except ExesysError as error:
                built.append(error)
        good = [item for item in built if isinstance(item, command.Command)]
        handles = self.client.send(*good, notify=wait_s > 0)
        in_vain = self._await(handles, wait_s)
        sent = iter(handles)
        answers = [
            (item.status, describe_problem(item.problem))
            if isinstance(item, ExesysError)
            else answer_of(next(sent), in_vain)
            for item in built
        ]
        statuses = [status for status, _ in answers]
        # 202 when anything was taken, 200 when all had ended, else the first refusal's.
        status = 202 if 202 in statuses else 200 if 200 in statuses else statuses[0]
        retry = {"Retry_After": "1"} if status in RETRY_STATUSES else {}
        return respond(status, [answer for _, answer in answers], **retry)

    def _workflow(self, bodies: list[Any], wait_s: float) -> HTTPResponse:
        """All is stored, or nothing: one refusal answers for the whole."""
        if not bodies:
            raise BadCommand("the array is empty.", fix="Send one command or more.")
        most = self.config.limits.workflow_steps
        if len(bodies) > most:
            raise TooLarge(
                f"the workflow has {len(bodies):,} steps; at most {most:,} are allowed.",
                fix="Send fewer, or raise [limits] workflow_steps.",
            )
        commands = command.workflow_from_json(bodies, self.limits, self._new_id, traceparent())
        graph = Graph((each.from_, each.to) for each in commands)
        graph.check(most)
        ends = graph.ends
        handles = self.client.send_workflow(commands, set(ends) if wait_s > 0 else set())
        in_vain = self._await(handles, 0.0)
        refused = next(filter(None, map(refusal, handles)), None)
        if refused is not None:
            raise refused
        if wait_s > 0:
            self._await([handles[number] for number in ends], wait_s)
            self._refresh([handle for handle in handles if not handle.done()])
            in_vain = self._in_vain([handle for handle in handles if handle.state is State.start])
        answers = [answer_of(handle, in_vain) for handle in handles]
        # Beside a step that failed others may still run when all ends are known.
        return respond(max(answers[number][0] for number in ends), [answer for _, answer in answers])

    def _await(self, handles: list[Handle], wait_s: float) -> dict[Handle, str]:
        """Wait for the acknowledgements, then up to `wait_s` for the ends. Says why some wait in vain."""
        until = time.monotonic() + ACK_S
        for handle in handles:
            with contextlib.suppress(ExesysError):  # it stands in the answer
                handle.accepted(max(0.0, until - time.monotonic()))
        taken = [handle for handle in handles if handle.state is not None]
        if wait_s > 0 and taken and self._waiting.acquire(blocking=False):
            try:
                until = time.monotonic() + wait_s
                for handle in taken:
                    handle.wait(max(0.0, until - time.monotonic()))
            finally:
                self._waiting.release()
            left = [handle for handle in taken if not handle.done()]
            self._refresh(left)
            return self._in_vain([handle for handle in left if handle.state is State.start])
        return {}

    def _taken(self, handles: list[Handle]) -> None:
        """Wait until the router has taken commands. Raises what it said otherwise."""
        self._await(handles, 0.0)
        refused = next(filter(None, map(refusal, handles)), None)
        if refused is not None:
            raise refused

    def _refresh(self, handles: list[Handle]) -> None:
        """Ask for the present state of what has not ended."""
        asked = [self.client.follow(each.job_id, each.from_, each.to, notify=False) for each in handles]
        for handle, present in zip(handles, asked, strict=True):
            # Without an answer the state last heard of stands.
            with contextlib.suppress(ExesysError):
                present.accepted(ACK_S)
                handle.adopt(present)

    def _in_vain(self, waiting: list[Handle]) -> dict[Handle, str]:
        """Say why commands that wait in state start do so in vain. What is not known is left out."""
        served = self._served() if waiting else None
        if served is None:
            return {}
        ours = (handle.job_id for handle in waiting if not self.readers.shard_of(handle.job_id))
        job_ids = list(dict.fromkeys(ours))
        steps: dict[tuple[str, str, str], Step] = {}
        with contextlib.suppress(Unavailable):
            for step in chain.from_iterable(self.reader.steps(job_ids)):
                steps[step.job_id, step.from_, step.text("to")] = step
        why = {}
        for handle in waiting:
            found = steps.get((handle.job_id, handle.from_, handle.to))
            if found is not None and (text := views.waits(found, served)):
                why[handle] = text
        return why

    def _served(self) -> dict[str, bool] | None:
        """Return the queues that workers serve now, and whether each is paused; None when that is not known."""
        if not self.client.connected:
            return None
        try:
            workers = self.client.snapshot("workers", timeout=QUEUES_S)["workers"]
            return views.served_by(workers, self.reader.paused())
        except Unavailable:
            return None

    def _body(self) -> bytes:
        return json_body(request.environ, self.config.limits.body_bytes)

    def _wait_s(self) -> float:
        given = asked("wait")
        if given is None:
            given = preference("wait", header("Prefer"))
        return 0.0 if given is None else number("wait", given, 0, LONGEST_WAIT_S)

    # --- reading ----------------------------------------------------------

    def jobs(self) -> HTTPResponse:
        """List jobs, the newest first: ?limit=, ?before= (from `next`), ?state=, ?cmd=, ?since=, ?until=."""
        limit = whole("limit", asked("limit", "50"), 1, MOST_LISTED)
        named = asked("state")
        if named is not None and named not in State.__members__:
            raise BadCommand(
                f"the state {named[:40]!r} is unknown.", field="state", fix=f"Known: {', '.join(State.__members__)}."
            )
        before = mark("before", asked("before"))
        cmd = asked("cmd")
        times = [None if (given := asked(name)) is None else moment(name, given) for name in ("since", "until")]
        sought = Sought(State[named] if named else None, "" if cmd is None else command.check_name(cmd, "cmd"), *times)
        found, following = self.reader.jobs(limit, before, sought)
        return respond(200, {"jobs": [views.job(job_id, steps) for job_id, steps in found], "next": following or None})

    def job(self, job_id: str) -> HTTPResponse:
        """Show a job: its steps with their results and errors, and its value once all is well."""
        steps = self._steps(job_id)
        ours = not self.readers.shard_of(job_id)  # which queues another shard's workers serve is not known here
        served = self._served() if ours and any(step.state is State.start for step in steps) else None
        told = self.readers.of(job_id).callbacks(steps)
        return respond(200, views.job(job_id, steps, whole=True, served=served, callbacks=told))

    def cancel(self, job_id: str) -> HTTPResponse:
        """Cancel what has not ended of a job; tell what it is now, and of how many steps that was the end."""
        changed = self.client.cancel(command.check_name(job_id, "job_id"), timeout=ACK_S)
        return respond(200, {"cancelled": changed, **views.job(job_id, self._steps(job_id), whole=True)})

    def retry(self, job_id: str) -> HTTPResponse:
        """Run again what failed of a job, and what depended on it; tell what it is now."""
        changed = self.client.retry(command.check_name(job_id, "job_id"), timeout=ACK_S)
        status = 202 if changed else 200
        return respond(status, {"retried": changed, **views.job(job_id, self._steps(job_id), whole=True)})

    def log(self, job_id: str) -> HTTPResponse:
        """What the job's steps printed and logged; as plain text when asked for with Accept."""
        steps = self._steps(job_id)
        logs = self.readers.of(job_id).logs(steps)
        if wants_text(header("Accept")):
            return as_text("".join(log for attempts in logs for log in attempts.values()))
        return respond(200, {"job_id": job_id, "steps": views.logs(steps, logs)})

    def _steps(self, job_id: str) -> list[Step]:
        [steps] = self.readers.of(command.check_name(job_id, "job_id")).steps([job_id])
        if not steps:
            raise no_job(job_id)
        return steps

    def callbacks(self) -> HTTPResponse:
        """How many callbacks wait, and were tried, sent and given up."""
        return respond(200, self.reader.callback_counts())

    def functions(self) -> HTTPResponse:
        """What can be called, and what failed to load, with its traceback."""
        return respond(200, self.client.snapshot("functions", timeout=ACK_S)["functions"])

    def workers(self) -> HTTPResponse:
        """The workers that are here, their queues and slots."""
        return respond(200, {"workers": self.client.snapshot("workers", timeout=ACK_S)["workers"]})

    def healthz(self) -> HTTPResponse:
        """This process is alive."""
        return respond(200, {"status": "ok"})

    def readyz(self) -> HTTPResponse:
        """A command sent now would be stored and run."""
        missing = []
        try:
            self.gate.check()
        except Unavailable as error:
            missing.append(error.message)
        try:
            self.reader.ping()
        except Unavailable as error:
            missing.append(error.message)
        try:
            if not self.client.connected:
                missing.append("the router is away.")
            else:
                told = self.client.snapshot("workers", "store", timeout=1.0)
                if not told["workers"]:
                    missing.append("no worker is there yet.")
                if trouble := troubles.named(told.get("store", {}).get("reason", "")):
                    missing.append(f"{trouble.why} {trouble.fix}")
        except Unavailable as error:
            missing.append(error.message)
        if missing:
            raise Unavailable(f"not ready: {' '.join(missing)}", fix="See `bin/exesys status`.")
        return respond(200, {"status": "ready"})


def _is_workflow(operation: str) -> bool:
    if operation and operation.lower() != "workflow":
        raise BadCommand(
            f"`Operation: {operation[:40]}` is unknown.",
            field="Operation",
            fix="Send `Operation: workflow`, or leave the header out.",
        )
    return bool(operation)


def main() -> int:
    die_with_parent()
    config = settings("rest")
    keystore.check_reach(config, "rest", config.rest.host)
    gate = Gate(config, keystore.Watch(config))
    client = Client(config, patient=False)
    readers = Elsewhere(config, Reader(config.redis_url, config.redis.prefix), Reader)
    table = Timetable(config.redis_url, config.redis.prefix)
    set_up("rest")
    rest = config.rest
    tails = Elsewhere(config, Tail(config.redis_url, config.redis.prefix), Tail)
    events = EventsApi(gate, readers, tails, Figures(client, readers.own), rest.streams)
    api, traced, body_bytes = Api(config, client, readers, table, gate, events), Traced(), config.limits.body_bytes
    app = api.app()
    app.install(traced)
    shortcut = Shortcut(app, gate, client, api.limits, body_bytes, traced)
    shown = Cors(shortcut, origins(config), HEADERS)
    at = (rest.host, rest.port, rest.threads, rest.connections)
    serve(shown, *at, body_bytes, gate.refusal, shortcut.is_quick, client.flush)
    events.close()
    with contextlib.suppress(Unavailable):
        client.close(LAST_ACKS_S)  # who waits for an answer sends again
    for line in (readers, table, tails):
        line.close()
    return 0


if __name__ == "__main__":
    run("rest", main)
