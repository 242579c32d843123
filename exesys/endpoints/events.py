"""What happens, as server-sent events: of all steps, or of one job until it has ended."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from bottle import HTTPResponse, request

from exesys import command, news, views
from exesys.access import Gate
from exesys.elsewhere import Elsewhere
from exesys.errors import no_job
from exesys.http import HEADERS, Endpoint, asked, header, to_json
from exesys.listening import STREAM
from exesys.news import Mark, Wanted
from exesys.store.reader import Reader
from exesys.store.tail import Tail
from exesys.streams import Hub, Seat
from exesys.tokens import Role

ALL_HAD = 999_999  # of an entry
MOST_SHOWN_BYTES = 256 << 10  # of data and results: each listener may have to keep what it does not read
KINDS = ("text/event-stream",)
WANTED = {"kinds": "Kinds", "cmd": "Name", "state": "State"}
RESUMED = {"Last-Event-ID": "EventId"}
STREAM_OF = {200: "Text"}
RETRY = b"retry: 1000\n\n"
_HEADERS = {**HEADERS, "Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


class EventsApi:
    """The streams. Whoever listens takes no thread: see `streams`."""

    def __init__(
        self,
        gate: Gate,
        readers: Elsewhere[Reader],
        tails: Elsewhere[Tail],
        figures: Callable[[], dict[str, Any] | None],
        most: int,
    ) -> None:
        """Serve up to `most` streams, and as many of each other shard's jobs.

        `figures` gives what the kind `stats` tells.
        """
        self._gate = gate
        self._readers = readers
        self._tails = tails
        self._figures = figures
        self._most = most
        self.hub = Hub(tails.own, self, figures, most)
        self._lock = threading.Lock()
        self._hubs: dict[Tail, Hub] = {tails.own: self.hub}

    def close(self) -> None:
        """End all streams."""
        for hub in self._hubs.values():
            hub.close()

    def _hub(self, tail: Tail) -> Hub:
        """Return the hub of a shard, whose news come from its own stream."""
        with self._lock:
            if tail not in self._hubs:
                self._hubs[tail] = Hub(tail, self, self._figures, self._most)
            return self._hubs[tail]

    def endpoints(self) -> tuple[Endpoint, ...]:
        """Give method, path, handler, known parameters and role of each."""
        return (
            Endpoint("GET", "/events", self.events, WANTED, Role.read, STREAM_OF, headers=RESUMED, kinds=KINDS),
            Endpoint(
                "GET", "/jobs/<job_id>/events", self.job_events, {}, Role.read, STREAM_OF, (404,), "", RESUMED, KINDS
            ),
        )

    def events(self) -> HTTPResponse:
        """Follow what happens from now on, or from Last-Event-ID on: ?kinds=step,progress,stats, ?cmd=, ?state=."""
        wanted = news.checked(asked("kinds"), asked("cmd"), asked("state"))
        self.hub.check_room()
        return self._stream(wanted, self._tails.own, RETRY)

    def job_events(self, job_id: str) -> HTTPResponse:
        """Follow one job: how it is now (`job`), each step's states and progress, and how it ended (`end`)."""
        command.check_name(job_id, "job_id")
        tail = self._tails.of(job_id)
        self._hub(tail).check_room()
        since = _since(tail)
        shown = self.shown(job_id)
        if not shown:
            raise no_job(job_id)
        return self._stream(Wanted(job_id=job_id), tail, RETRY + news.event("job", shown), since)

    def _stream(self, wanted: Wanted, tail: Tail, first: bytes, since: Mark | None = None) -> HTTPResponse:
        environ = request.environ
        since = since or _since(tail)
        if request.method != "HEAD":
            seat = Seat(wanted, since, lambda: self._gate.may_stay(environ, Role.read))
            environ[STREAM] = self._hub(tail).seat(seat)
        return HTTPResponse(iter([first]) if request.method != "HEAD" else b"", 200, headers=_HEADERS)

    def under_way(self, job_id: str) -> bool:
        """Tell whether a job has steps that have not ended."""
        return self._readers.of(job_id).under_way(job_id)

    def shown(self, job_id: str) -> bytes:
        """Return a job as `GET /jobs/<job_id>` does, a large one without data and results; b"" when it is gone."""
        reader = self._readers.of(job_id)
        [steps] = reader.steps([job_id], light=True)
        if not steps:
            return b""
        if sum(int(step.fields["bytes"]) for step in steps) > MOST_SHOWN_BYTES:
            return to_json({**views.job(job_id, steps), "left_out": f"data and results: ask GET /jobs/{job_id}"})
        [steps] = reader.steps([job_id])
        return to_json(views.job(job_id, steps, whole=True, callbacks=reader.callbacks(steps)))


def _since(tail: Tail) -> Mark:
    given = header("Last-Event-ID").strip()
    return news.mark(given) if given else Mark(tail.newest(), ALL_HAD)
