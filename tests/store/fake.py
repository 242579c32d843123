"""A store in memory, and the real one behind the same three calls.

`FakeStore` is a port of the Lua in `exesys/store` to Python, key by key and
field by field, so that the contract suite can compare the two: same turns,
same answers, same content. The router's core is tested over it.
"""

from __future__ import annotations

import copy
import heapq
import math
import select
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from exesys.bus.messages import Held, Job, Outcome
from exesys.command import DEFAULT_PRIORITY, DEFAULT_QUEUE
from exesys.config import Limits
from exesys.states import State
from exesys.store.keys import Keys
from exesys.store.redis import Store
from exesys.store.scripts import CHUNK, MOST_RELEASED, NEW, lost_body
from exesys.turn import Answers, Claim, Claimed, Closed, Ended, Found, Lookup, Placed, Taken, Turn

Dump = dict[str, Any]
LONGEST_BACKOFF_S = 3600
MOST_DUE = 1000
PRIORITY_STEP = 1 << 45
UNDER_WAY = ("worker", "sent", "progress", "note")


class Turns(Protocol):
    """What the tests use of either store."""

    keys: Keys

    def boot(self) -> tuple[int, list[str], bytes]: ...

    def run(self, turn: Turn) -> Answers: ...

    def dump(self) -> Dump:
        """Return everything under the prefix: key -> (value, seconds to live or None)."""
        ...

    def drop(self, key: str) -> None:
        """Let a key expire now."""
        ...


def raw(value: Any) -> bytes:
    """Spell a value as Redis keeps it."""
    return value if isinstance(value, bytes) else str(value).encode()


class Space:
    """The few commands of Redis that the scripts use."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.ttl_s: dict[str, int] = {}

    def delete(self, key: str) -> None:
        self.values.pop(key, None)
        self.ttl_s.pop(key, None)

    def _at(self, key: str, kind: Callable[[], Any]) -> Any:
        return self.values.setdefault(key, kind())

    def _unless_empty(self, key: str) -> None:
        if key in self.values and not self.values[key]:
            self.delete(key)

    def rename(self, key: str, new: str) -> bool:
        if key not in self.values:
            return False
        self.delete(new)
        self.values[new] = self.values.pop(key)
        if key in self.ttl_s:
            self.ttl_s[new] = self.ttl_s.pop(key)
        return True

    def expire(self, key: str, ttl_s: int) -> None:
        if key in self.values:
            self.ttl_s[key] = ttl_s

    def persist(self, key: str) -> None:
        self.ttl_s.pop(key, None)

    def incrby(self, key: str, by: int = 1) -> int:
        self.values[key] = raw(int(self.values.get(key, 0)) + by)
        return int(self.values[key])

    # hashes

    def hget(self, key: str, field: str) -> bytes | None:
        found: bytes | None = self.values.get(key, {}).get(field)
        return found

    def hset(self, key: str, **fields: Any) -> None:
        self._at(key, dict).update({name: raw(value) for name, value in fields.items()})

    def hsetnx(self, key: str, field: str, value: str) -> bool:
        if self.hget(key, field) is not None:
            return False
        self.hset(key, **{field: value})
        return True

    def hdel(self, key: str, *fields: str) -> None:
        for field in fields:
            self.values.get(key, {}).pop(field, None)
        self._unless_empty(key)

    def hincrby(self, key: str, field: str, by: int = 1) -> int:
        number = int(self.hget(key, field) or 0) + by
        self.hset(key, **{field: number})
        return number

    # sorted sets and sets

    def zadd(self, key: str, member: str, score: float) -> None:
        self._at(key, dict)[member] = float(score)

    def zrem(self, key: str, *members: str) -> None:
        self.hdel(key, *members)

    def zscore(self, key: str, member: str) -> float | None:
        found: float | None = self.values.get(key, {}).get(member)
        return found

    def zcard(self, key: str) -> int:
        return len(self.values.get(key, ()))

    def zrange(self, key: str, most: int | None = None) -> list[tuple[str, float]]:
        pairs = self.values.get(key, {}).items()
        order = [(score, member.encode(), member) for member, score in pairs]
        first = sorted(order) if most is None else heapq.nsmallest(most, order)
        return [(member, score) for score, _, member in first]

    def zpopmin(self, key: str, most: int) -> list[tuple[str, float]]:
        popped = self.zrange(key, most)
        self.zrem(key, *(member for member, _ in popped))
        return popped

    def sadd(self, key: str, *members: str) -> None:
        self._at(key, set).update(members)

    def srem(self, key: str, member: str) -> None:
        self._at(key, set).discard(member)
        self._unless_empty(key)

    def xadd(self, key: str, value: str) -> None:
        self._at(key, list).append(value)


class FakeStore:
    """Runs turns as the scripts do. `finished` counts the ends committed per ref."""

    def __init__(self, limits: Limits, prefix: str = "") -> None:
        self.keys = Keys(prefix)
        self.limits = limits
        self.db = Space()
        self.finished: Counter[str] = Counter()

    def boot(self) -> tuple[int, list[str], bytes]:
        epoch = self.db.incrby(self.keys("epoch"))
        known: bytes = self.db.values.get(self.keys("functions"), b"")
        return epoch, sorted(self.db.values.get(self.keys("sessions"), ())), known

    def run(self, turn: Turn, scripts: int | None = None) -> Answers:
        """Run a turn in its fixed order; only its first `scripts` when Redis is to fail halfway."""
        answers = Answers()
        for step in list(self._steps(turn, answers))[:scripts]:
            step()
        return answers

    def _steps(self, turn: Turn, answers: Answers) -> Iterable[Callable[[], None]]:
        def opened() -> None:
            if turn.opened:
                self.db.sadd(self.keys("sessions"), *turn.opened)
            if turn.catalogue:
                self.db.values[self.keys("functions")] = turn.catalogue

        yield from (lambda at=at: self._report(turn, at, answers) for at in range(0, len(turn.reports), CHUNK))
        yield from (lambda session=session: self._release(turn, session, answers) for session in turn.lost)
        yield opened
        yield from (lambda at=at: self._submit(turn, at, answers) for at in range(0, len(turn.placed), CHUNK))
        if turn.claims:
            yield lambda: self._claim(turn, answers)
        yield lambda: answers.found.extend(map(self._lookup, turn.lookups))
        yield lambda: self._note(turn)
        yield lambda: answers.recalled.extend(map(self._recall, turn.recalls))
        yield lambda: self._reload(turn, answers)

    def dump(self) -> Dump:
        return {key: (copy.deepcopy(value), self.db.ttl_s.get(key)) for key, value in self.db.values.items()}

    def drop(self, key: str) -> None:
        self.db.delete(key)

    def held(self, session: str) -> list[str]:
        return [ref for ref, _ in self.db.zrange(self.keys("held", session))]

    # --- common.lua -------------------------------------------------------

    def _record(self, ref: str, state: State) -> str:
        return self.keys("record", ref, state.name)

    def _index(self, ref: str) -> str:
        return self.keys("job", ref.partition(":")[2])

    def state_of(self, ref: str) -> State | None:
        return next((state for state in State if self._record(ref, state) in self.db.values), None)

    def _body_of(self, ref: str, state: State) -> Any:
        record = self._record(ref, state)
        if state is State.data_available:
            return self.db.hget(record, "result")
        if state is State.error:
            return [self.db.hget(record, "error") or b"", int(self.db.hget(record, "attempt") or 0)]
        return None

    def _text(self, record: str, field: str, default: str = "") -> str:
        found = self.db.hget(record, field)
        return default if found is None else found.decode()

    def _number(self, record: str, field: str, default: float) -> float:
        return float(self._text(record, field, str(default)))

    def _make_ready(self, ref: str) -> None:
        record = self._record(ref, State.start)
        priority = int(self._text(record, "priority", str(DEFAULT_PRIORITY)))
        order = self.db.incrby(self.keys("order"))
        queue = self._text(record, "queue", DEFAULT_QUEUE)
        self.db.zadd(self.keys("ready", queue), ref, (9 - priority) * PRIORITY_STEP + order)

    def _put_back(self, ref: str, score: float) -> None:
        queue = self._text(self._record(ref, State.start), "queue", DEFAULT_QUEUE)
        self.db.zadd(self.keys("ready", queue), ref, score)

    def _retire(self, ref: str, state: State, ttl_s: int, many: bool, logged: bool) -> None:
        self.finished[ref] += 1
        self.db.expire(self._record(ref, state), ttl_s)
        index = self._index(ref)
        if not many or self.db.hincrby(index, ":open", -1) <= 0:
            self.db.expire(index, ttl_s)
        if logged:
            self.db.expire(self.keys("log", ref), ttl_s)

    def _keep_log(self, ref: str, record: str, attempt: int, log: str) -> None:
        if log:
            self.db.hset(self.keys("log", ref), **{str(attempt): log})
            self.db.hset(record, logged=1)

    def _fail(self, ref: str, body: bytes, now_ms: int) -> None:
        record = self._record(ref, State.processing)
        many, logged = (self.db.hget(record, mark) is not None for mark in ("many", "logged"))
        self.db.hdel(record, "peer", *UNDER_WAY)
        self.db.hset(record, error=body, ended=now_ms)
        self.db.rename(record, self._record(ref, State.error))
        self.db.zadd(self.keys("dead"), ref, now_ms)
        self._retire(ref, State.error, int(self.limits.error_ttl_s), many, logged)

    # --- submit.lua -------------------------------------------------------

    def _submit(self, turn: Turn, at: int, answers: Answers) -> None:
        chunk = turn.placed[at : at + CHUNK]
        if turn.claims and at + CHUNK >= len(turn.placed):
            self._move_due(turn.now_ms)
        order = self.db.incrby(self.keys("order"), len(chunk)) - len(chunk)
        for place, placed in enumerate(chunk, 1):
            answers.taken.append(self._place(placed, turn.now_ms, order + place))

    def _place(self, placed: Placed, now_ms: int, order: int) -> Taken:
        command, options, peer, due_ms = placed
        db, index = self.db, self.keys("job", command.job_id)
        ready = self.keys("ready", options.get("queue", DEFAULT_QUEUE))
        first = command.from_
        fresh = db.hsetnx(index, first, command.to)
        if not fresh and db.hget(index, first) != raw(command.to):
            first = f"{command.from_}>{command.to}"
            fresh = db.hsetnx(index, first, command.to)
        ref = f"{first}:{command.job_id}"
        if not fresh:
            state = self.state_of(ref)
            if state is not None:
                if db.hget(self._record(ref, state), "sum") != command.digest:
                    return Taken("conflict", ref, state, None)
                return Taken("same", ref, state, self._body_of(ref, state))
        elif db.zcard(ready) >= self.limits.queue_depth:
            db.hdel(index, first)
            return Taken("full", ref, State.start, None)
        fields = {"to": command.to, "cmd": command.cmd, "data": command.data, "sum": command.digest, "born": now_ms}
        fields |= {"peer": peer} if peer else {}
        fields |= {name: options[name] for name in ("timeout_s", "retries", "backoff_s") if name in options}
        fields |= {"result_ttl_s": math.ceil(options["result_ttl_s"])} if "result_ttl_s" in options else {}
        fields |= {name: options[name] for name in ("queue", "priority") if name in options}
        for name, usual in (("queue", DEFAULT_QUEUE), ("priority", DEFAULT_PRIORITY)):
            if fields.get(name) == usual:
                del fields[name]
        if len(db.values[index]) == 1:
            db.xadd(self.keys("jobs"), command.job_id)
        else:
            self._join(index, command.job_id)
            fields["many"] = 1
        db.hset(self._record(ref, State.start), **fields)
        if due_ms > now_ms:
            db.zadd(self.keys("delayed"), ref, due_ms)
        else:
            db.zadd(ready, ref, (9 - options.get("priority", DEFAULT_PRIORITY)) * PRIORITY_STEP + order)
        return NEW  # needs no more: who waits stands in the record

    def _join(self, index: str, job_id: str) -> None:
        if self.db.hget(index, ":open") is not None:
            self.db.hincrby(index, ":open")
        else:
            still = 1
            for first in list(self.db.values[index]):
                state = self.state_of(f"{first}:{job_id}")
                if state is not None and not state.final:
                    self.db.hset(self._record(f"{first}:{job_id}", state), many=1)
                    still += 1
            self.db.hset(index, **{":open": still})
        self.db.persist(index)

    # --- deal.lua, claim.lua ----------------------------------------------

    def _move_due(self, now_ms: int) -> None:
        delayed = self.keys("delayed")
        for ref, due_ms in self.db.zrange(delayed, MOST_DUE):
            if due_ms <= now_ms:
                self.db.zrem(delayed, ref)
                if self.state_of(ref) is State.start:
                    self._make_ready(ref)

    def _claim(self, turn: Turn, answers: Answers) -> None:
        if not turn.placed:
            self._move_due(turn.now_ms)
        delayed = self.keys("delayed")
        answers.next_due_ms = int(next((due_ms for _, due_ms in self.db.zrange(delayed, 1)), 0))
        answers.claimed += [self._deal(claim, turn.now_ms) for claim in turn.claims]

    def _deal(self, claim: Claim, now_ms: int) -> Claimed:
        jobs: list[Job] = []
        for queue in claim.queues:
            ready = self.keys("ready", queue)
            while len(jobs) < claim.most and self.db.zcard(ready):
                [(ref, score)] = self.db.zpopmin(ready, 1)
                record = self._record(ref, State.processing)
                if not self.db.rename(self._record(ref, State.start), record):
                    continue  # an orphan: popped, it is gone
                attempt = self.db.hincrby(record, "attempt")
                self.db.hset(record, worker=claim.session, sent=now_ms)
                self.db.zadd(self.keys("held", claim.session), ref, score)
                jobs.append(self._job(ref, record, attempt))
        return Claimed(claim.session, tuple(jobs))

    def _job(self, ref: str, record: str, attempt: int) -> Job:
        timeout_s = self._number(record, "timeout_s", self.limits.timeout_s)
        data = self.db.hget(record, "data")
        assert data is not None
        return Job(ref, attempt, self._text(record, "to"), self._text(record, "cmd"), data, timeout_s)

    # --- report.lua -------------------------------------------------------

    def _report(self, turn: Turn, at: int, answers: Answers) -> None:
        chunk = turn.reports[at : at + CHUNK]
        let_go: list[tuple[str, str]] = []
        for closed in chunk:
            answers.ended.append(self._close(closed, turn.now_ms, let_go))
        for session, ref in let_go:
            self.db.zrem(self.keys("held", session), ref)

    def _close(self, closed: Closed, now_ms: int, let_go: list[tuple[str, str]]) -> Ended:
        session, (ref, attempt, outcome, body, log, began_ms, ended_ms), jitter = closed
        db, record = self.db, self._record(ref, State.processing)
        if record not in db.values:
            self._reclaim(ref, attempt)
        if db.hget(record, "attempt") != raw(attempt):
            return Ended(ref, attempt, True, State.start, "", None)
        let_go.append((session, ref))
        self._keep_log(ref, record, attempt, log)
        peer = self._text(record, "peer")
        again = Ended(ref, attempt, False, State.start, "", None)
        failed = Ended(ref, attempt, False, State.error, peer, [body, attempt])
        if outcome == Outcome.done:
            self._finish(ref, body, began_ms, ended_ms)
            return Ended(ref, attempt, False, State.data_available, peer, None)
        if outcome == Outcome.returned:
            place = db.zscore(self.keys("held", session), ref)
            self._restart(ref)
            if place is None:
                self._make_ready(ref)
            else:
                self._put_back(ref, place)
            return again
        if outcome == Outcome.crashed:
            if db.hincrby(record, "crashes") >= self.limits.max_crashes:
                self._fail(ref, body, now_ms)
                return failed
            self._restart(ref)
            self._make_ready(ref)
            return again
        fails = db.hincrby(record, "fails")
        if fails > self._number(record, "retries", 0):
            self._fail(ref, body, now_ms)
            return failed
        base_s = self._number(record, "backoff_s", 1)
        longest_ms = min(base_s * 2 ** min(fails - 1, 1000), LONGEST_BACKOFF_S) * 1000
        delay_ms = math.floor(longest_ms / 2 * (1 + jitter))
        self._restart(ref)
        if delay_ms > 0:
            db.zadd(self.keys("delayed"), ref, now_ms + delay_ms)
        else:
            self._make_ready(ref)
        return again

    def _reclaim(self, ref: str, attempt: int) -> None:
        waiting = self._record(ref, State.start)
        if waiting in self.db.values and self._number(waiting, "attempt", 0) < attempt:
            self.db.zrem(self.keys("ready", self._text(waiting, "queue", DEFAULT_QUEUE)), ref)
            self.db.zrem(self.keys("delayed"), ref)
            self.db.hset(waiting, attempt=attempt)
            self.db.rename(waiting, self._record(ref, State.processing))

    def _restart(self, ref: str) -> None:
        record = self._record(ref, State.processing)
        self.db.hdel(record, *UNDER_WAY)
        self.db.rename(record, self._record(ref, State.start))

    def _finish(self, ref: str, body: bytes, began_ms: int, ended_ms: int) -> None:
        record = self._record(ref, State.processing)
        old = self.db.values[record]
        kept = {name: old[name] for name in ("to", "cmd", "sum", "attempt", "born")}
        ttl_s = int(self._number(record, "result_ttl_s", int(self.limits.result_ttl_s)))
        self.db.delete(record)
        done = self._record(ref, State.data_available)
        self.db.hset(done, **kept, result=body, began=began_ms, ended=ended_ms)
        self._retire(ref, State.data_available, ttl_s, "many" in old, "logged" in old)

    # --- release.lua, lookup.lua, recall.lua, note.lua ---------------------

    def _release(self, turn: Turn, session: str, answers: Answers) -> None:
        body, failed = lost_body(self.limits.max_losses), []
        held = self.keys("held", session)
        for ref, score in self.db.zrange(held, MOST_RELEASED):
            record = self._record(ref, State.processing)
            if self._text(record, "worker") == session:
                attempt, peer = int(self._text(record, "attempt")), self._text(record, "peer")
                if self.db.hincrby(record, "losses") >= self.limits.max_losses:
                    self._fail(ref, body, turn.now_ms)
                    failed.append(Ended(ref, attempt, False, State.error, peer, [body, attempt]))
                else:
                    self._restart(ref)
                    self._put_back(ref, score)
            self.db.zrem(held, ref)
        if not self.db.zcard(held):
            self.db.srem(self.keys("sessions"), session)
        answers.lost.append((self.db.zcard(held), failed))

    def _lookup(self, lookup: Lookup) -> Found:
        index, first = self.keys("job", lookup.job_id), lookup.from_
        if self.db.hget(index, first) != raw(lookup.to):
            first = f"{lookup.from_}>{lookup.to}"
        ref = f"{first}:{lookup.job_id}"
        state = self.state_of(ref)
        if state is None or self.db.hget(index, first) != raw(lookup.to):
            return Found(ref, None, None)
        return Found(ref, state, self._body_of(ref, state))

    def _recall(self, session: str) -> tuple[Held, ...]:
        found = []
        for ref, _ in self.db.zrange(self.keys("held", session)):
            attempt = self.db.hget(self._record(ref, State.processing), "attempt")
            if attempt is None:
                self.db.zrem(self.keys("held", session), ref)
            else:
                found.append(Held(ref, int(attempt)))
        return tuple(found)

    def _reload(self, turn: Turn, answers: Answers) -> None:
        for ref, attempt in turn.reloads:
            record = self._record(ref, State.processing)
            if self.db.hget(record, "attempt") == raw(attempt):
                answers.reloaded.append(self._job(ref, record, attempt))

    def _note(self, turn: Turn) -> None:
        for ref, attempt, fraction, text, log in turn.notes:
            record = self._record(ref, State.processing)
            if self.db.hget(record, "attempt") == raw(attempt):
                if fraction >= 0:
                    self.db.hset(record, progress=fraction, note=text)
                self._keep_log(ref, record, attempt, log)


def steady(dump: Dump) -> Dump:
    """Round the times to live, so that two looks a moment apart compare equal."""
    return {key: (value, ttl_s and round(ttl_s, -2)) for key, (value, ttl_s) in dump.items()}


class RealStore:
    """The store of the router over a real connection, one turn at a time."""

    def __init__(self, url: str, client: Any, limits: Limits, prefix: str = "") -> None:
        self.keys = Keys(prefix)
        self.client = client
        self.store = Store(url, prefix, limits)
        self.store.reconnect()

    def boot(self) -> tuple[int, list[str], bytes]:
        epoch, sessions, catalogue = self.store.boot()
        return epoch, sorted(sessions), catalogue

    def run(self, turn: Turn) -> Answers:
        self.store.begin(turn)
        return self.collect()[1]

    def collect(self, within_s: float = 20.0) -> tuple[Turn, Answers]:
        """Wait for the answers of the turn under way, as the router's poll does."""
        while True:
            assert select.select([self.store.fileno()], [], [], within_s)[0], "the server is silent"
            if (done := self.store.collect()) is not None:
                return done

    def dump(self) -> Dump:
        """Everything there is; the number of the last turn is the connection's own affair."""
        names = sorted(name.decode() for name in self.client.scan_iter(count=1000))
        return {name: self._dumped(name) for name in names if name != self.keys("turn")}

    def _dumped(self, name: str) -> tuple[Any, int | None]:
        kind = self.client.type(name).decode()
        ttl_s = self.client.ttl(name)
        value: Any
        if kind == "hash":
            value = {field.decode(): item for field, item in self.client.hgetall(name).items()}
        elif kind == "zset":
            value = {ref.decode(): score for ref, score in self.client.zrange(name, 0, -1, withscores=True)}
        elif kind == "set":
            value = {member.decode() for member in self.client.smembers(name)}
        elif kind == "stream":
            value = [fields[b"j"].decode() for _, fields in self.client.xrange(name)]
        else:
            value = self.client.get(name)
        return value, ttl_s if ttl_s >= 0 else None

    def drop(self, key: str) -> None:
        self.client.delete(key)

    def close(self) -> None:
        self.store.close()
