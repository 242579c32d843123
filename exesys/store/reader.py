"""Reading the store for people: jobs, their steps and their logs. Writes no data.

REST and the command line use it beside the router, from any thread.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import redis

from exesys import codec
from exesys.command import DEFAULT_QUEUE, parts_of
from exesys.errors import BadCommand
from exesys.runner import Name, RunnerState, misread
from exesys.states import State
from exesys.store.connection import Connection, StoreRefused
from exesys.store.oddities import Oddities, texts
from exesys.store.scripts import Library

PAGE = 500
MOST_SCANNED = 10_000
MOST_AT_ONCE = 500
MOST_KEYED = 1000  # of one queue, to find the oldest
QUEUES_AT_ONCE = 100  # so that nothing else waits long
RUNNER_SHOWN = (
    *("state", "target", "epoch", "restarts", "host", "job", "how", "error", "size", "grace_s"),
    *("born", "began", "ended", "log_total"),
)


class Step(NamedTuple):
    """One step as the store has it; `fields` are the record's, still packed where data is."""

    ref: str
    state: State
    fields: dict[str, bytes]

    @property
    def from_(self) -> str:
        return parts_of(self.ref)[0]

    @property
    def job_id(self) -> str:
        return parts_of(self.ref)[1]

    def text(self, name: str) -> str:
        return self.fields.get(name, b"").decode()

    def number(self, name: str) -> float | None:
        return float(self.fields[name]) if name in self.fields else None


class Sought(NamedTuple):
    """Which jobs are looked for: with a step in this state, of this cmd, accepted in this time (ms since 1970)."""

    state: State | None = None
    cmd: str = ""
    since_ms: int | None = None
    until_ms: int | None = None

    @property
    def picky(self) -> bool:
        """Whether it is about more than the state."""
        return bool(self.cmd) or self.since_ms is not None or self.until_ms is not None

    def fits(self, steps: Sequence[Step], accepted: bool = False) -> bool:
        """Tell whether a job is one of these; `accepted`: its time is known to fit."""
        if not steps or (self.state is not None and all(step.state is not self.state for step in steps)):
            return False
        if self.cmd and all(step.text("cmd") != self.cmd for step in steps):
            return False
        if accepted or not (self.since_ms is not None or self.until_ms is not None):
            return True
        born = min((step.number("born") or 0 for step in steps), default=0)
        return (self.since_ms or 0) <= born <= (born if self.until_ms is None else self.until_ms)


ANY = Sought()


class Callback(NamedTuple):
    """How the telling of a step's end goes. `outcome` is waiting, sent or failed."""

    outcome: str
    tries: int
    error: str
    next_ms: int | None  # of the next try


class Dead(NamedTuple):
    """A step that failed by itself; None when its record is gone, or it is under way again."""

    failed_ms: int
    step: Step | None


class QueueRecord(NamedTuple):
    """One queue as the store has it."""

    name: str
    settings: dict[str, str]
    waiting: int
    keys: int  # that wait for their turn
    running: int  # counted only while a limit is set


class Waiting(NamedTuple):
    """What waits in a queue: how many steps, and when the oldest of them was accepted, if that is known."""

    name: str
    depth: int
    oldest_ms: int | None
    paused: bool


class RunnerRecord(NamedTuple):
    """One runner as the store has it; of its `fields` not its data."""

    name: Name
    state: RunnerState
    fields: dict[str, bytes]

    def text(self, key: str) -> str:
        return self.fields.get(key, b"").decode()

    def whole(self, key: str) -> int | None:
        return int(self.fields[key]) if key in self.fields else None


class Reader(Connection):
    """Look-ups by job_id, and lists by age or state. Raises StoreAway when Redis does not answer."""

    def __init__(self, url: str, prefix: str = "", shard: str = "") -> None:
        super().__init__(url, prefix, shard)
        self._library = Library(self.keys)
        self._oddities = Oddities(self.keys)

    def ping(self) -> None:
        """Return when Redis answers."""
        self._do(self._redis.ping)

    def epoch(self) -> int:
        """Return that of the router that holds the store, 0 when none ever did."""
        found = self._do(self._redis.get, self.keys("epoch")) or b""
        return int(found) if found.isdigit() else 0

    def steps(self, job_ids: Sequence[str], light: bool = False) -> list[list[Step]]:
        """Return the steps of each job; an unknown job has none.

        `light`: without their data and results, whose length in bytes is the field `bytes`.
        """
        if not job_ids:
            return []
        pipeline = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipeline.hkeys(self.keys("job", job_id))
        indexes: list[list[bytes]] = self._do(pipeline.execute)
        refs = [
            f"{first.decode()}:{job_id}"
            for job_id, firsts in zip(job_ids, indexes, strict=True)
            for first in firsts
            if not first.startswith(b":")
        ]
        found: dict[str, list[Step]] = {job_id: [] for job_id in job_ids}
        # In pieces, so that a job of many steps does not hold up the router.
        for start in range(0, len(refs), MOST_AT_ONCE):
            for raw in self._read(refs[start : start + MOST_AT_ONCE], light):
                step = _step(raw)
                found[step.job_id].append(step)
        return [found[job_id] for job_id in job_ids]

    def _read(self, refs: list[str], light: bool = False) -> Any:
        return self._call("job", int(light), *refs)

    def _call(self, name: str, *arguments: str | int) -> Any:
        call = (self._library.function(name), 0, *arguments)
        try:
            return self._do(self._redis.fcall_ro, *call)
        except StoreRefused as error:
            if "unction not found" not in error.message:
                raise
            # The router that runs here is of another version: its library is not ours.
            self._do(self._redis.function_load, self._library.source, True)
            return self._do(self._redis.fcall_ro, *call)

    def under_way(self, job_id: str) -> bool:
        """Tell whether a job has steps that have not ended."""
        count = self._do(self._redis.hget, self.keys("job", job_id), ":open")
        if count is not None:
            return int(count) > 0
        [steps] = self.steps([job_id], light=True)
        return any(not step.state.final for step in steps)

    def jobs(self, limit: int, before: str = "", sought: Sought = ANY) -> tuple[list[tuple[str, list[Step]]], str]:
        """Return up to `limit` jobs, the newest first, and where the next page begins ("": nowhere).

        Only those that are `sought`. Of very many that are not, only some are looked at: then a page
        may be short, and yet have a next one.
        """
        if sought.state is State.error:
            return self._failed(limit, before, sought)
        if sought.state is State.processing and not before:
            held: list[bytes] = []
            most = MOST_SCANNED if sought.picky else limit
            for session in self._do(self._redis.smembers, self.keys("sessions")):
                held += self._do(self._redis.zrange, self.keys("held", session.decode()), 0, most - 1)
            jobs = self._of(held[:most])
            return [(job_id, steps) for job_id, steps in jobs if sought.fits(steps)][:limit], ""
        found: list[tuple[str, list[Step]]] = []
        newest = "+" if sought.until_ms is None else str(sought.until_ms)
        earlier = before and (sought.until_ms is None or int(before.partition("-")[0]) <= sought.until_ms)
        top, scanned = f"({before}" if earlier else newest, 0
        oldest = "-" if sought.since_ms is None else str(sought.since_ms)
        while len(found) < limit and scanned < MOST_SCANNED:
            most = PAGE if sought.state is not None or sought.cmd else limit - len(found)
            page = self._do(self._redis.xrevrange, self.keys("jobs"), top, oldest, most)
            if not page:
                return found, ""
            scanned += len(page)
            ids = [fields[b"j"].decode() for _, fields in page]
            for (entry, _), job_id, steps in zip(page, ids, self.steps(ids, light=True), strict=True):
                before = entry.decode()
                if sought.fits(steps, accepted=True):
                    found.append((job_id, steps))
                    if len(found) == limit:
                        break
            top = f"({before}"
        return found, before

    def _failed(self, limit: int, before: str, sought: Sought) -> tuple[list[tuple[str, list[Step]]], str]:
        """Return a page of failed jobs."""
        found: list[tuple[str, list[Step]]] = []
        seen: set[str] = set()
        scanned = 0
        while len(found) < limit and scanned < MOST_SCANNED:
            rows, following = self._dead_page(PAGE if sought.picky else limit - len(found), before)
            scanned += len(rows)
            jobs = dict(self._of([ref for ref, _ in rows]))
            for number, (ref, _) in enumerate(rows, 1):
                job_id = parts_of(ref.decode())[1]
                if job_id not in seen and sought.fits(jobs.get(job_id, ())):
                    seen.add(job_id)
                    found.append((job_id, jobs[job_id]))
                    if len(found) == limit and number < len(rows):
                        return found, _dead_mark(rows[:number], before)
            before = following
            if not following:
                break
        return found, before

    def _dead_page(self, limit: int, before: str) -> tuple[list[tuple[bytes, float]], str]:
        """Return a page of refs that failed, the newest first. Its mark: the millisecond, how many of it were given."""
        top, _, given = before.partition("-")
        place = (top or "+inf", "-inf", int(given or 0), limit, True)
        rows: list[tuple[bytes, float]] = self._do(self._redis.zrevrangebyscore, self.keys("dead"), *place)
        return rows, "" if len(rows) < limit else _dead_mark(rows, before)

    def dead(self, limit: int, before: str = "") -> tuple[list[Dead], str]:
        """Return up to `limit` steps that failed by themselves, the newest first; of a cancelled job one.

        `before` is a mark: a millisecond, behind it perhaps `-` and how many to
        pass over that failed then or before. The second value is where the
        next page begins ("": nowhere).
        """
        rows, following = self._dead_page(limit, before)
        refs = [ref.decode("utf-8", "replace") for ref, _ in rows]
        steps = {step.ref: step for step in map(_step, self._read(refs) if refs else ()) if step.state is State.error}
        return [Dead(int(ms), steps.get(ref)) for ref, (_, ms) in zip(refs, rows, strict=True)], following

    def callbacks(self, steps: Iterable[Step]) -> dict[str, Callback]:
        """Return how the telling of the steps' ends goes, by ref, of those that have ended and asked for it."""
        refs = [step.ref for step in steps if "notify" in step.fields]
        if not refs:
            return {}
        pipeline = self._redis.pipeline(transaction=False)
        for ref in refs:
            pipeline.hmget(self.keys("callback", ref), ("outcome", "tries", "error"))
            pipeline.zscore(self.keys("callbacks"), ref)
        replies = self._do(pipeline.execute, False)
        found = {}
        for ref, told, next_ms in zip(refs, replies[::2], replies[1::2], strict=True):
            if not isinstance(told, redis.ResponseError) and told[0] is not None:
                outcome, tries, error = ((part or b"").decode("utf-8", "replace") for part in told)
                due_ms = int(next_ms) if isinstance(next_ms, float) else None
                found[ref] = Callback(outcome, int(tries) if tries.isdecimal() else 0, error, due_ms)
        return found

    def callback_counts(self) -> dict[str, int]:
        """Return how many callbacks wait, and how many were tried, sent and given up in all."""
        counts = self._do(self._redis.hgetall, self.keys("callback_counts"))
        told = {name: int(counts.get(name.encode(), 0)) for name in ("tried", "sent", "failed")}
        return {"waiting": int(self._do(self._redis.zcard, self.keys("callbacks"))), **told}

    def _of(self, refs: Sequence[bytes]) -> list[tuple[str, list[Step]]]:
        """Return the jobs that some refs are of, each once, with their steps."""
        ids = list(dict.fromkeys(parts_of(ref.decode())[1] for ref in refs))
        return list(zip(ids, self.steps(ids, light=True), strict=True))

    def logs(self, steps: Sequence[Step]) -> list[dict[int, str]]:
        """Return per step what each attempt printed and logged."""
        pipeline = self._redis.pipeline(transaction=False)
        for step in steps:
            pipeline.hgetall(self.keys("log", step.ref))
        replies: list[dict[bytes, bytes]] = self._do(pipeline.execute)
        return [
            {attempt: reply[b"%d" % attempt].decode("utf-8", "replace") for attempt in sorted(map(int, reply))}
            for reply in replies
        ]

    def runners(self, type_: str | None = None, ended: int = 100) -> list[RunnerRecord]:
        """Return the runners that have not ended, and up to `ended` of those that have, the newest first."""

        def fitting(members: Iterable[bytes], key: str) -> list[Name]:
            names = [self._oddities.name(each, key) for each in members]
            return [name for name in names if name is not None and type_ in (None, name.type)]

        going = fitting(sorted(self._do(self._redis.smembers, self.keys("runners"))), "runners")
        gone: list[Name] = []
        for start in range(0, MOST_SCANNED, PAGE):
            page = self._do(self._redis.zrevrange, self.keys("ended"), start, start + PAGE - 1) if ended else []
            gone += fitting(page, "ended")
            if len(page) < PAGE or len(gone) >= ended:
                break
        wanted = list(dict.fromkeys([*going, *gone[:ended]]))
        found: list[RunnerRecord] = []
        for start in range(0, len(wanted), MOST_AT_ONCE):
            found += self._runners(wanted[start : start + MOST_AT_ONCE])
        return found

    def runner(self, name: Name) -> RunnerRecord | None:
        """Return a runner, None when there is none of that name whose record can be read."""
        return next(iter(self._runners([name])), None)

    def _runners(self, names: Sequence[Name]) -> list[RunnerRecord]:
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hmget(self.keys("runner", str(name)), RUNNER_SHOWN)
        records = []
        for name, values in zip(names, self._do(pipeline.execute, False), strict=True):
            if isinstance(values, redis.ResponseError):
                self._oddities.tell_spoilt(name, str(values).rstrip("."))
                continue
            fields = {key: value for key, value in zip(RUNNER_SHOWN, values, strict=True) if value is not None}
            if fields and (why := _misread(fields)):
                self._oddities.tell_spoilt(name, why)
            elif fields:
                records.append(RunnerRecord(name, RunnerState(fields["state"].decode()), fields))
        return records

    def runner_log(self, name: Name) -> tuple[int, bytes]:
        """Return how much a runner has printed and logged in all, in bytes, and the end of it."""
        pipeline = self._redis.pipeline(transaction=True)
        pipeline.hget(self.keys("runner", str(name)), "log_total")
        pipeline.get(self.keys("runner_log", str(name)))
        total, text = self._do(pipeline.execute)
        text = text or b""
        return int(total) if total is not None and total.isdigit() else len(text), text

    def mended(self) -> dict[bytes, bytes]:
        """Return what was mended in the store; `mending.totals` reads it."""
        found: dict[bytes, bytes] = self._do(self._redis.hgetall, self.keys("mended"))
        return found

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Return how many steps are ready in each queue."""
        return {record.name: record.waiting for record in self.queues(queues)} if queues else {}

    def queue_names(self) -> set[str]:
        """Return the queues that were used or set; the default one is always there."""
        return set(texts(self._do(self._redis.smembers, self.keys("queues"))))

    def foreign_queues(self) -> list[str]:
        """Return the keys of queues' settings in whose place a key of another kind stands."""
        keys = [self.keys("queue", name) for name in sorted(self.queue_names() | {DEFAULT_QUEUE})]
        pipeline = self._redis.pipeline(transaction=False)
        for key in keys:
            pipeline.type(key)
        kinds = self._do(pipeline.execute)
        return [key for key, kind in zip(keys, kinds, strict=True) if kind not in (b"hash", b"none")]

    def due(self, refs: Sequence[str]) -> list[int | None]:
        """Return when each step is due that waits for a time, in ms."""
        pipeline = self._redis.pipeline(transaction=False)
        for ref in refs:
            pipeline.zscore(self.keys("delayed"), ref)
        return [None if score is None else int(score) for score in self._do(pipeline.execute)]

    def paused(self) -> set[str]:
        """Return the queues that are paused."""
        names = sorted(self.queue_names() | {DEFAULT_QUEUE})
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hexists(self.keys("queue", name), "paused")
        replies = self._each(pipeline)
        return {name for name, paused in zip(names, replies, strict=True) if paused}

    def queues(self, names: Sequence[str]) -> list[QueueRecord]:
        """Return what there is of each queue: settings, and how many wait and run. Foreign keys count as nothing."""
        pipeline = self._redis.pipeline(transaction=False)
        for name in names:
            pipeline.hgetall(self.keys("queue", name))
            pipeline.zcard(self.keys("ready", name))
            pipeline.scard(self.keys("keyed", name))
            pipeline.zcard(self.keys("turns", name))
            pipeline.scard(self.keys("running", name))
        replies = self._each(pipeline)
        found = []
        for name, at in zip(names, range(0, len(replies), 5), strict=True):
            kept, *counts = replies[at : at + 5]
            ready, keyed, turns, running = (count or 0 for count in counts)
            settings = {
                field.decode("utf-8", "replace"): value.decode("utf-8", "replace")
                for field, value in (kept or {}).items()
            }
            found.append(QueueRecord(name, settings, ready + keyed, turns, running))
        return found

    def waiting(self, names: Sequence[str]) -> list[Waiting]:
        """Tell what waits in each queue, and for how long; a look at a thousand queues costs some milliseconds.

        The oldest is that of the first of each priority, and of those with a
        key a bounded number, at random when there are more: they take turns,
        so the first in line need not be the oldest.
        """
        most = max(min(MOST_SCANNED // max(len(names), 1), MOST_KEYED), 1)
        found: list[Waiting] = []
        for start in range(0, len(names), QUEUES_AT_ONCE):
            some = names[start : start + QUEUES_AT_ONCE]
            for name, (depth, oldest_ms, paused) in zip(some, self._call("waiting", most, *some), strict=True):
                found.append(Waiting(name, depth, int(oldest_ms) if oldest_ms else None, bool(paused)))
        return found

    def totals(self) -> dict[str, int]:
        """Return how many steps wait for a time (`delayed`) or to be fed (`unfed`), and have failed (`dead`).

        And how many `callbacks` wait, `timers` there are, and runners have
        `ended`. A foreign key in the place of one of ours counts as nothing.
        """
        pipeline = self._redis.pipeline(transaction=False)
        for name in ("delayed", "standby", "dead", "callbacks", "ended"):
            pipeline.zcard(self.keys(name))
        pipeline.scard(self.keys("timers"))
        counts = [int(count or 0) for count in self._each(pipeline)]
        return dict(zip(("delayed", "unfed", "dead", "callbacks", "ended", "timers"), counts, strict=True))


def _dead_mark(rows: Sequence[tuple[bytes, float]], before: str) -> str:
    """Return where the page behind these rows begins: the millisecond of the last, how many of it were given."""
    top, _, given = before.partition("-")
    last = int(rows[-1][1])
    ties = sum(score == last for _, score in rows) + (int(given or 0) if top == str(last) else 0)
    return f"{last}-{ties}"


def _misread(fields: dict[str, bytes]) -> str:
    """Say what makes no sense in what is shown of a runner, its last error among it; "" when it can be read."""
    try:
        if fields.get("error") and not isinstance(codec.unpack(fields["error"]), dict):
            return "its `error` is no map"
    except BadCommand:
        return "its `error` is not valid msgpack"
    return misread({key.encode(): value for key, value in fields.items()})


def _step(raw: Any) -> Step:
    ref, number, flat = raw
    fields = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
    return Step(ref.decode(), State(number), fields)
