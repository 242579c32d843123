"""What the scripts share, in Python: `common.lua` and `graph.lua`, function by function."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from store.fake_queues import Queues, score
from store.space import raw

from exesys import codec
from exesys.command import DEFAULT_PRIORITY, DEFAULT_QUEUE, END, parts_of
from exesys.states import State
from exesys.turn import Ended, Placed

UNDER_WAY = ("worker", "sent", "progress", "note")
_EOJ = 5  # bytes of msgpack's spelling of {"EOJ":


def error_body(kind: str, message: str) -> bytes:
    return codec.pack({"type": kind, "message": message, "traceback": ""})


def failed(ref: str, attempt: int, peer: str, body: bytes, cmd: str = "") -> Ended:
    return Ended(ref, attempt, False, State.error, peer, [body, attempt], cmd=cmd)


def from_of(first: str) -> str:
    return first.partition(">")[0]


class Moves(Queues):
    """A step's moves and what they mean for its job."""

    # --- common.lua -------------------------------------------------------

    def _has(self, ref: str, state: State) -> bool:
        return self.record(ref, state) in self.db.values

    def state_of(self, ref: str) -> State | None:
        return next((state for state in State if self._has(ref, state)), None)

    def _body_of(self, ref: str, state: State) -> Any:
        record = self.record(ref, state)
        if state is State.data_available:
            return self.db.hget(record, "result")
        if state is State.error:
            return [self.db.hget(record, "error") or b"", int(self.db.hget(record, "attempt") or 0)]
        return None

    def _keep_log(self, ref: str, record: str, attempt: int, log: str) -> None:
        if log:
            self.db.hset(self.keys("log", ref), **{str(attempt): log})
            self.db.hset(record, logged=1)

    # --- what a new record holds ------------------------------------------

    def _fields(self, placed: Placed, many: bool) -> dict[str, Any]:
        command, options, peer, due_ms, waits = placed
        fields = {"to": command.to, "cmd": command.cmd, "data": command.data, "sum": command.digest}
        fields |= {"born": self.now_ms}
        fields |= {"peer": peer} if peer else {}
        recorded = ("timeout_s", "retries", "backoff_s", "key", "key_limit", "notify", "traceparent")
        fields |= {name: options[name] for name in recorded if name in options}
        if (queue := options.get("queue", DEFAULT_QUEUE)) != DEFAULT_QUEUE:
            self.db.sadd(self.keys("queues"), queue)
        fields |= {"result_ttl_s": ttl_s} if (ttl_s := self._ttl_s(placed)) else {}
        for name, usual in (("queue", DEFAULT_QUEUE), ("priority", DEFAULT_PRIORITY)):
            fields |= {name: options[name]} if options.get(name, usual) != usual else {}
        fields |= {"due_ms": due_ms} if waits and due_ms else {}
        return fields | ({"many": 1} if many else {})

    def _ttl_s(self, placed: Placed) -> int:
        """The whole seconds that a step's result is to be kept, 0 where it does not say."""
        return -int(-placed.options.get("result_ttl_s", 0) // 1)

    # --- graph.lua: the end of a job ----------------------------------------

    def _index(self, ref: str) -> str:
        return self.keys("job", parts_of(ref)[1])

    def _flow(self, job_id: str) -> str:
        return self.keys("flow", job_id)

    def _firsts(self, job_id: str) -> list[str]:
        return [field for field in self.db.values.get(self.keys("job", job_id), ()) if not field.startswith(":")]

    def _named(self, job_id: str, name: str) -> list[str]:
        return [name, *self._listed(job_id, f">{name}")]

    def _listed(self, job_id: str, field: str) -> list[str]:
        text = self._text(self._flow(job_id), field)
        return text.split("\n") if text else []

    def _expire_job(self, job_id: str) -> None:
        db, index = self.db, self.keys("job", job_id)
        ttl_s = int(self._number(index, ":ttl", int(self.limits.result_ttl_s)))
        if db.hget(index, ":failed"):
            ttl_s = int(self.limits.error_ttl_s)
        for first in self._firsts(job_id):
            ref = f"{first}:{job_id}"
            for key in (self.record(ref, State.data_available), self.record(ref, State.error), self.keys("log", ref)):
                db.expire(key, ttl_s)
        db.expire(index, ttl_s)
        db.expire(self._flow(job_id), ttl_s)

    def _open(self, job_id: str, count: int) -> None:
        index = self.keys("job", job_id)
        if self.db.hincrby(index, ":open", count) == count:
            for first in self._firsts(job_id):
                ref = f"{first}:{job_id}"
                for state in (State.data_available, State.error):
                    self.db.persist(self.record(ref, state))
                self.db.persist(self.keys("log", ref))
            self.db.persist(index)
            self.db.persist(self._flow(job_id))

    def _close(self, job_id: str, count: int) -> None:
        if self.db.hincrby(self.keys("job", job_id), ":open", -count) <= 0:
            self._expire_job(job_id)

    def _retire(self, ref: str, state: State, ttl_s: int, logged: bool) -> None:
        self.db.expire(self.record(ref, state), ttl_s)
        self.db.expire(self._index(ref), ttl_s)
        if logged:
            self.db.expire(self.keys("log", ref), ttl_s)

    def _announce(self, ref: str, state: State, record: str, body: bytes) -> None:
        """Note that the end of a step is to be told, if it asks for that."""
        fields = self.db.values[record]
        if "notify" in fields:
            attempt = self._text(record, "attempt", "0")
            told = {"url": fields["notify"], "outcome": "waiting", "tries": 0, "state": state.name, "attempt": attempt}
            told |= {"to": fields["to"], "cmd": fields["cmd"], "body": body}
            told["traceparent"] = fields.get("traceparent", b"")
            told["delivery"] = hashlib.sha1(f"{ref} {attempt} {self.now_ms}".encode()).hexdigest()
            self.db.delete(self.keys("callback", ref))
            self.db.hset(self.keys("callback", ref), **told)
            self.db.zadd(self.keys("callbacks"), ref, self.now_ms)

    # --- graph.lua: failing -------------------------------------------------

    def _noticed(self, ref: str, record: str) -> None:
        if self.db.hget(record, "unfed") is not None:
            self.db.hdel(record, "unfed")
            self.db.zrem(self.keys("standby"), ref)

    def _give_up(self, ref: str, state: State, body: bytes) -> tuple[str, Ended] | None:
        """End a step that did not run. Returns its targets too."""
        record = self.record(ref, state)
        if record not in self.db.values:
            return None
        to, peer = self._text(record, "to"), self._text(record, "peer")
        attempt = int(self._number(record, "attempt", 0))
        self.db.hdel(record, "peer")
        self._noticed(ref, record)
        self.db.hset(record, error=body, ended=self.now_ms, was=state.name)
        self.db.rename(record, error := self.record(ref, State.error))
        self._announce(ref, State.error, error, body)
        self.finished[ref] += 1
        return to, failed(ref, attempt, peer, body, self._text(error, "cmd"))

    def _spread(self, ref: str, to: str) -> list[Ended]:
        job_id = parts_of(ref)[1]
        also = []
        spreading = [(parts_of(ref)[0], to)]
        for from_, targets in spreading:
            body = error_body("PredecessorFailed", f"predecessor {from_} failed")
            for name in targets.split(","):
                for first in self._named(job_id, name) if name != END else ():
                    ended = self._give_up(f"{first}:{job_id}", State.standby, body)
                    if ended:
                        also.append(ended[1]._replace(attempt=0, body=[body, 0]))
                        spreading.append((name, ended[0]))
        return also

    def _give_up_all(self, ref: str, state: State, body: bytes) -> list[Ended]:
        ended = self._give_up(ref, state, body)
        if not ended:
            return []
        self.db.hset(self._index(ref), **{":failed": 1})
        self.db.zadd(self.keys("dead"), ref, self.now_ms)
        also = [*self._spread(ref, ended[0]), ended[1]]
        self._close(parts_of(ref)[1], len(also))
        return also

    def _fail(self, ref: str, body: bytes) -> list[Ended]:
        record = self.record(ref, State.processing)
        many, logged = (self.db.hget(record, mark) is not None for mark in ("many", "logged"))
        to = self._text(record, "to")
        self._leave(ref)
        self.db.hdel(record, "peer", "ready", *UNDER_WAY)
        self.db.hset(record, error=body, ended=self.now_ms)
        self.db.rename(record, error := self.record(ref, State.error))
        self.db.zadd(self.keys("dead"), ref, self.now_ms)
        self._announce(ref, State.error, error, body)
        self.finished[ref] += 1
        if not many:
            self._retire(ref, State.error, int(self.limits.error_ttl_s), logged)
            return []
        self.db.hset(self._index(ref), **{":failed": 1})
        also = self._spread(ref, to)
        self._close(parts_of(ref)[1], 1 + len(also))
        return also

    # --- graph.lua: going on --------------------------------------------------

    def _gather(self, job_id: str, feeders: Sequence[str], fresh: Mapping[str, bytes]) -> tuple[bytes, bytes]:
        """What feeders gave; or b"" and the error."""
        values, size = [], 0
        limit = self.limits.data_bytes
        large = error_body("TooLarge", f"what its predecessors gave has more than the {limit} bytes that are allowed")
        for first in feeders:
            record = self.record(f"{first}:{job_id}", State.data_available)
            result = fresh.get(first) or self.db.hget(record, "result")
            if not result:
                return b"", error_body("ResultGone", f"the result of {first} is gone")
            values.append(result[_EOJ:])
            size += len(values[-1])
            if size > limit:
                return b"", large
        data = values[0]
        if len(feeders) > 1:
            often = Counter(map(from_of, feeders))
            count = len(feeders)
            data = bytes([0x80 + count]) if count < 16 else b"\xdf" + count.to_bytes(4, "big")
            for first, value in zip(feeders, values, strict=True):
                name = from_of(first)
                if often[name] > 1:
                    name = f"{name}>{self._text(self.keys('job', job_id), first)}"
                data += codec.pack(name) + value
        return (data, b"") if len(data) <= limit else (b"", large)

    def _enter(self, ref: str, queue: str, called: str, priority: int, due_ms: int) -> None:
        at = self.now_ms - due_ms if due_ms < 0 else due_ms
        if at > self.now_ms:
            self.db.zadd(self.keys("delayed"), ref, at)
        else:
            self._line_up(ref, queue, called, score(priority, self.db.incrby(self.keys("order"))))

    def _start_fed(self, job_id: str, name: str, fresh: Mapping[str, bytes]) -> tuple[int, list[Ended]]:
        feeders = self._listed(job_id, f"<{name}")
        data, body = self._gather(job_id, feeders, fresh)
        started, ended = 0, []
        for first in self._named(job_id, name):
            ref = f"{first}:{job_id}"
            waiting = self.record(ref, State.standby)
            if body:
                ended += self._give_up_all(ref, State.standby, body)
            elif waiting in self.db.values:
                self._noticed(ref, waiting)
                self.db.hset(waiting, data=data, ready=self.now_ms)
                self.db.rename(waiting, here := self.record(ref, State.start))
                priority = int(self._number(here, "priority", DEFAULT_PRIORITY))
                self._enter(ref, *self._place_of(here), priority, int(self._number(here, "due_ms", 0)))
                started += 1
        return started, ended

    def _advance(self, ref: str, to: str, body: bytes) -> tuple[int, list[Ended]]:
        first, _, job_id = ref.partition(":")
        started, ended = 0, []
        for name in to.split(","):
            if name != END and self.db.hincrby(self._flow(job_id), f"#{name}", -1) == 0:
                more, also = self._start_fed(job_id, name, {first: body})
                started += more
                ended += also
        return started, ended

    # --- graph.lua: growing -----------------------------------------------------

    def _append(self, job_id: str, field: str, first: str) -> None:
        flow = self._flow(job_id)
        listed = self.db.hget(flow, field)
        self.db.hset(flow, **{field: first if listed is None else listed + b"\n" + raw(first)})

    def _enlist(self, job_id: str, first: str, to: str, ended: bool) -> None:
        if first != from_of(first):
            self._append(job_id, f">{from_of(first)}", first)
        for name in to.split(","):
            if name != END:
                self._append(job_id, f"<{name}", first)
                self.db.hincrby(self._flow(job_id), f"#{name}", 0 if ended else 1)

    def _lengthen(self, index: str, ttl_s: float) -> None:
        if ttl_s > self._number(index, ":ttl", 0):
            self.db.hset(index, **{":ttl": int(ttl_s)})

    def _make_many(self, job_id: str) -> None:
        index = self.keys("job", job_id)
        if self.db.hget(index, ":open") is not None:
            return
        under_way = 0
        for first, to in list(self.db.values[index].items()):
            ref = f"{first}:{job_id}"
            state = self.state_of(ref)
            if state is None:
                continue
            if state is not State.data_available:
                self.db.hset(self.record(ref, state), many=1)
            if not state.final:
                under_way += 1
            elif state is State.error:
                self.db.hset(index, **{":failed": 1})
            self._lengthen(index, self._number(self.record(ref, state), "result_ttl_s", 0))
            self._enlist(job_id, first, to.decode(), state is State.data_available)
        self._open(job_id, under_way)

    def _settle(self, job_id: str, name: str) -> tuple[int, list[Ended]] | None:
        flow = self._flow(job_id)
        if self.db.hget(flow, f"<{name}") is None:
            return None
        if int(self._text(flow, f"#{name}")) == 0:
            return self._start_fed(job_id, name, {})
        for feeder in self._listed(job_id, f"<{name}"):
            if self._has(f"{feeder}:{job_id}", State.error):
                body = error_body("PredecessorFailed", f"predecessor {from_of(feeder)} failed")
                ended = []
                for first in self._named(job_id, name):
                    ended += self._give_up_all(f"{first}:{job_id}", State.standby, body)
                return 0, ended
        return 0, []

    def _watch(self, ref: str) -> None:
        self.db.hset(self.record(ref, State.standby), unfed=1)
        self.db.zadd(self.keys("standby"), ref, self.now_ms + int(self.limits.standby_s * 1000))

    # --- graph.lua: circles -------------------------------------------------------

    def _circle(self, job_id: str, from_: str, to: str, coming: Mapping[str, list[str]] | None = None) -> list[str]:
        """The names of the circle that one more step would close, none if there is none."""
        targets = to.split(",")
        if from_ in targets:
            return [from_]

        def waits_for(first: str) -> list[str]:
            ref = f"{first}:{job_id}"
            if self._has(ref, State.standby):
                return self._text(self.record(ref, State.standby), "to").split(",")
            failed = self.record(ref, State.error)
            if self.db.hget(failed, "was") == b"standby":
                return self._text(failed, "to").split(",")
            return []

        def followers(name: str) -> Iterable[str]:
            for first in self._named(job_id, name) if name != END else ():
                yield from waits_for(first)
            yield from (coming or {}).get(name, ())

        def feeders(name: str) -> Iterable[str]:
            for first in self._listed(job_id, f"<{name}"):
                if waits_for(first):
                    yield from_of(first)

        ahead, behind = _Walk(targets, followers), _Walk([from_], feeders)
        while ahead.more:
            if ahead.reaches({from_}):
                way = ahead.way()
                return [way[0], *reversed(way[1:])]
            if coming is None:
                if not behind.more:
                    return []
                if behind.reaches(set(targets)):
                    way = behind.way()
                    return [way[-1], *way[:-1]]
        return []


class _Walk:
    """Goes from names to their neighbours, each once."""

    def __init__(self, names: Iterable[str], neighbours: Callable[[str], Iterable[str]]) -> None:
        self.names = list(names)
        self.seen = dict.fromkeys(self.names, "")
        self.neighbours = neighbours
        self.at = 0

    @property
    def more(self) -> bool:
        return self.at < len(self.names)

    def reaches(self, goals: set[str]) -> bool:
        """Go one name further; tell whether a goal is seen there: then it is the last of `names`."""
        name = self.names[self.at]
        self.at += 1
        for other in list(self.neighbours(name)):
            if other not in self.seen:
                self.seen[other] = name
                self.names.append(other)
                if other in goals:
                    return True
        return False

    def way(self) -> list[str]:
        """The names on the way to the last one, the last first."""
        names = [self.names[-1]]
        while self.seen[names[-1]]:
            names.append(self.seen[names[-1]])
        return names
