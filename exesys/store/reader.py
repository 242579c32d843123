"""Reading the store for people: jobs, their steps and their logs. Writes no data.

REST and the command line use it beside the router, from any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from exesys.command import parts_of
from exesys.states import State
from exesys.store.keys import Keys
from exesys.store.redis import StoreAway
from exesys.store.scripts import Library

TIMEOUT_S = 2.0
PAGE = 500
MOST_SCANNED = 10_000
MOST_AT_ONCE = 500


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


class Reader:
    """Look-ups by job_id, and lists by age or state. Raises StoreAway when Redis does not answer."""

    def __init__(self, url: str, prefix: str = "") -> None:
        self.keys = Keys(prefix)
        self._library = Library(self.keys)
        self._redis = redis.Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=Retry(NoBackoff(), 0)
        )

    def ping(self) -> None:
        """Return when Redis answers."""
        self._do(self._redis.ping)

    def steps(self, job_ids: Sequence[str]) -> list[list[Step]]:
        """Return the steps of each job; an unknown job has none."""
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
            for raw in self._read(refs[start : start + MOST_AT_ONCE]):
                step = _step(raw)
                found[step.job_id].append(step)
        return [found[job_id] for job_id in job_ids]

    def _read(self, refs: list[str]) -> Any:
        call = (self._library.function("job"), 0, *refs)
        try:
            return self._do(self._redis.fcall_ro, *call)
        except redis.ResponseError:
            # The router that runs here is of another version: its library is not ours.
            self._do(self._redis.function_load, self._library.source, True)
            return self._do(self._redis.fcall_ro, *call)

    def jobs(
        self, limit: int, before: str = "", state: State | None = None
    ) -> tuple[list[tuple[str, list[Step]]], str]:
        """Return up to `limit` jobs, the newest first, and where the next page begins ("": nowhere).

        With `state` only jobs that have a step in it.
        """
        if state is State.error:
            return self._failed(limit, before)
        if state is State.processing and not before:
            held: list[bytes] = []
            for session in self._do(self._redis.smembers, self.keys("sessions")):
                held += self._do(self._redis.zrange, self.keys("held", session.decode()), 0, limit - 1)
            return self._some(held[:limit], state), ""
        found: list[tuple[str, list[Step]]] = []
        top, scanned = f"({before}" if before else "+", 0
        while len(found) < limit and scanned < MOST_SCANNED:
            page = self._do(self._redis.xrevrange, self.keys("jobs"), top, "-", PAGE if state else limit - len(found))
            if not page:
                return found, ""
            scanned += len(page)
            ids = [fields[b"j"].decode() for _, fields in page]
            for (entry, _), job_id, steps in zip(page, ids, self.steps(ids), strict=True):
                before = entry.decode()
                if steps and (state is None or any(step.state is state for step in steps)):
                    found.append((job_id, steps))
                    if len(found) == limit:
                        break
            top = f"({before}"
        return found, before

    def _failed(self, limit: int, before: str) -> tuple[list[tuple[str, list[Step]]], str]:
        """Return a page of failed jobs. Its mark: the millisecond, and how many of it were given."""
        top, _, given = before.partition("-")
        place = (top or "+inf", "-inf", int(given or 0), limit, True)
        rows: list[tuple[bytes, float]] = self._do(self._redis.zrevrangebyscore, self.keys("dead"), *place)
        found = self._some([ref for ref, _ in rows], State.error)
        if len(rows) < limit:
            return found, ""
        last = int(rows[-1][1])
        ties = sum(score == last for _, score in rows) + (int(given or 0) if top == str(last) else 0)
        return found, f"{last}-{ties}"

    def _some(self, refs: Sequence[bytes], state: State) -> list[tuple[str, list[Step]]]:
        ids = list(dict.fromkeys(parts_of(ref.decode())[1] for ref in refs))
        pairs = zip(ids, self.steps(ids), strict=True)
        return [(job_id, steps) for job_id, steps in pairs if any(step.state is state for step in steps)]

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

    def depths(self, queues: Sequence[str]) -> dict[str, int]:
        """Return how many steps are ready in each queue."""
        return {queue: int(self._do(self._redis.zcard, self.keys("ready", queue))) for queue in queues}

    def close(self) -> None:
        self._redis.close()

    def _do(self, call: Any, *arguments: Any) -> Any:
        try:
            return call(*arguments)
        except redis.ResponseError as error:
            if "unction not found" in str(error):
                raise
            raise StoreAway(f"Redis refuses: {str(error).rstrip('.')}.", fix="See `bin/exesys doctor`.") from error
        except (redis.RedisError, OSError) as error:
            raise StoreAway(
                f"Redis does not answer: {str(error).rstrip('.')}.", fix="See `bin/exesys status`."
            ) from error


def _step(raw: Any) -> Step:
    ref, number, flat = raw
    fields = {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}
    return Step(ref.decode(), State(number), fields)
