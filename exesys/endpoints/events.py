"""What happens, as server-sent events: of all steps, or of one job until it has ended."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bottle import HTTPResponse, request

from exesys import command, news, views
from exesys.access import Gate
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
        self, gate: Gate, reader: Reader, tail: Tail, figures: Callable[[], dict[str, Any] | None], most: int
    ) -> None:
        self._gate = gate
        self._reader = reader
        self._tail = tail
        self.hub = Hub(tail, self, figures, most)

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
        return self._stream(wanted, self._since(), RETRY)

    def job_events(self, job_id: str) -> HTTPResponse:
        """Follow one job: how it is now (`job`), each step's states and progress, and how it ended (`end`)."""
        command.check_name(job_id, "job_id")
        self.hub.check_room()
        since = self._since()
        shown = self.shown(job_id)
        if not shown:
            raise no_job(job_id)
        return self._stream(Wanted(job_id=job_id), since, RETRY + news.event("job", shown))

    def _since(self) -> Mark:
        given = header("Last-Event-ID").strip()
        return news.mark(given) if given else Mark(self._tail.newest(), ALL_HAD)

    def _stream(self, wanted: Wanted, since: Mark, first: bytes) -> HTTPResponse:
        environ = request.environ
        if request.method != "HEAD":
            seat = Seat(wanted, since, lambda: self._gate.may_stay(environ, Role.read))
            environ[STREAM] = self.hub.seat(seat)
        return HTTPResponse(iter([first]) if request.method != "HEAD" else b"", 200, headers=_HEADERS)

    def under_way(self, job_id: str) -> bool:
        """Tell whether a job has steps that have not ended."""
        return self._reader.under_way(job_id)

    def shown(self, job_id: str) -> bytes:
        """Return a job as `GET /jobs/<job_id>` does, a large one without data and results; b"" when it is gone."""
        [steps] = self._reader.steps([job_id], light=True)
        if not steps:
            return b""
        if sum(int(step.fields["bytes"]) for step in steps) > MOST_SHOWN_BYTES:
            return to_json({**views.job(job_id, steps), "left_out": f"data and results: ask GET /jobs/{job_id}"})
        [steps] = self._reader.steps([job_id])
        return to_json(views.job(job_id, steps, whole=True, callbacks=self._reader.callbacks(steps)))
