"""Timers over HTTP: add, list, show, remove, pause, resume, run now."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any

from bottle import HTTPResponse

from exesys import codec, command, ticker, timerviews
from exesys.bus.client import Client
from exesys.bus.handle import Handle
from exesys.command import Limits
from exesys.errors import BadCommand
from exesys.http import Endpoint, asked, parse_json, respond, whole
from exesys.schedule import PAUSED
from exesys.schemas import MOST_LISTED
from exesys.shards import pinned
from exesys.store.timetable import TimerRecord, Timetable
from exesys.tokens import Role

ASK_S = 5.0


class TimersApi:
    """The endpoints of timers. `body` reads a request's JSON text, `taken` waits until a command is."""

    def __init__(
        self,
        client: Client,
        table: Timetable,
        limits: Limits,
        shard: str,
        body: Callable[[], bytes],
        taken: Callable[[list[Handle]], None],
    ) -> None:
        self._client = client
        self._table = table
        self._limits = limits
        self._shard = shard
        self._body = body
        self._taken = taken

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Return what can be asked, and what is said of it."""
        one = "/timers/<name>"
        return (
            Endpoint("GET", "/timers", self.timers, {"limit": "Limit", "after": "Text"}, Role.read, {200: "Timers"}),
            Endpoint(
                *("POST", "/timers", self.add, {}, Role.admin, {200: "Timer", 201: "Timer"}),
                errors=(409, 422),
                body="NewTimer",
            ),
            Endpoint("GET", one, self.timer, {}, Role.read, {200: "Timer"}, (404,)),
            Endpoint("DELETE", one, self.remove, {}, Role.admin, {200: "TimerRemoved"}, (404, 409)),
            Endpoint("POST", f"{one}/pause", self.pause, {}, Role.admin, {200: "Timer"}, (404, 409)),
            Endpoint("POST", f"{one}/resume", self.resume, {}, Role.admin, {200: "Timer"}, (404, 409)),
            Endpoint("POST", f"{one}/run", self.run, {}, Role.submit, {202: "TimerRun"}, (404, 409, 422)),
        )

    def timers(self) -> HTTPResponse:
        """List the timers by name, ?limit= after the name ?after=: what they run, when, their last and next ticks."""
        now_ms = time.time_ns() // 1_000_000
        limit = whole("limit", asked("limit", str(MOST_LISTED)), 1, MOST_LISTED)
        after = asked("after", "")
        names = [name for name in self._table.names() if name > after]
        shown = [timerviews.shown(each, now_ms) for each in self._table.read(names[:limit]) if each.there]
        return respond(200, {"timers": shown, "next": names[limit - 1] if len(names) > limit else None})

    def add(self) -> HTTPResponse:
        """Add a timer: 201, or 200 when the same is there already."""
        given = parse_json(self._body())
        if not isinstance(given, dict) or "name" not in given:
            fix = 'Send {"name": …, "cmd": …, "every_s": … or "cron": …}.'
            raise BadCommand("a timer must be a JSON object with a `name`.", field="name", fix=fix)
        name = command.check_name(given["name"], "name")
        codec.check_depth(given.get("data"), self._limits.depth)
        fields = {key: value for key, value in given.items() if key not in ("name", "data", "origin")}
        fields["data"] = codec.pack(given.get("data"))
        [there] = self._table.read([name])
        timerviews.check_ticks(there, fields, time.time_ns() // 1_000_000)
        new = self._client.tune("timer", "add", name, fields, timeout=ASK_S)
        return self._shown(name, 201 if new else 200)

    def timer(self, name: str) -> HTTPResponse:
        """Show a timer: what it runs, when, its last and next ticks."""
        return self._shown(name)

    def remove(self, name: str) -> HTTPResponse:
        """Remove a timer. What its ticks have started goes on."""
        timerviews.check_removable(self._record(name))
        self._client.tune("timer", "remove", name, {}, timeout=ASK_S)
        return respond(200, {"name": name, "removed": True})

    def pause(self, name: str) -> HTTPResponse:
        """Let a timer tick no more, until it is resumed."""
        return self._merge(name, True)

    def resume(self, name: str) -> HTTPResponse:
        """Let a timer tick again; what passed meanwhile is not made up for."""
        return self._merge(name, False)

    def run(self, name: str) -> HTTPResponse:
        """Run a timer's command now, beside its ticks."""
        timer, _ = ticker.read(self._record(name))
        built = timer.command(pinned(f"{name}.now-{uuid.uuid4().hex[:12]}", self._shard))
        [handle] = self._client.send(built, notify=False)
        self._taken([handle])
        return respond(202, {"name": name, "job_id": built.job_id, "from": built.from_, "to": built.to})

    def _merge(self, name: str, paused: bool) -> HTTPResponse:
        self._client.tune("timer", "merge", command.check_name(name, "name"), {PAUSED: paused}, timeout=ASK_S)
        return self._shown(name)

    def _record(self, name: str) -> TimerRecord:
        [record] = self._table.read([command.check_name(name, "name")])
        return timerviews.check_there(record)

    def _shown(self, name: str, status: int = 200) -> HTTPResponse:
        told: dict[str, Any] = timerviews.shown(self._record(name), time.time_ns() // 1_000_000)
        return respond(status, told)
