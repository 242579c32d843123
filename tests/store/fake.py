"""A store in memory, and the real one behind the same three calls.

`FakeStore` is a port of the Lua in `exesys/store` to Python, key by key and
field by field, so that the contract suite can compare the two: same turns,
same answers, same content. The router's core is tested over it.
"""

from __future__ import annotations

import copy
import math
import select
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from store.fake_graph import UNDER_WAY, error_body, failed
from store.fake_mend import Mends
from store.fake_queues import Held as Limited
from store.fake_queues import score, sooner
from store.space import raw

from exesys import news
from exesys.bus.messages import Held, Job, Outcome
from exesys.command import DEFAULT_PRIORITY, DEFAULT_QUEUE, END, parts_of
from exesys.config import Limits
from exesys.runner import Name
from exesys.states import State
from exesys.store.keys import Keys
from exesys.store.redis import Store
from exesys.store.scripts import CANCELLED, CHUNK, MOST_RELEASED, MOST_UNFED, lost_body
from exesys.store.spelling import NEW
from exesys.turn import (
    Answers,
    Change,
    Changed,
    Claimed,
    Closed,
    Ended,
    Flow,
    Found,
    Lookup,
    Placed,
    Stored,
    Taken,
    Tuning,
    Turn,
)
from exesys.workflow import LONGEST_TO

Dump = dict[str, Any]
LONGEST_BACKOFF_S = 3600
MOST_DUE = 1000


class Turns(Protocol):
    """What the tests use of either store."""

    keys: Keys

    def boot(self) -> tuple[int, list[str], bytes]: ...

    def runners(self) -> dict[Name, dict[bytes, bytes]]: ...

    def run(self, turn: Turn) -> Answers: ...

    def dump(self) -> Dump:
        """Return everything under the prefix: key -> (value, seconds to live or None)."""
        ...

    def check_news(self) -> None:
        """Check that what was told of steps is so."""
        ...

    def drop(self, key: str) -> None:
        """Let a key expire now."""
        ...


MOST_DEALT_BYTES = 8 << 20  # as in deal.lua


class FakeStore(Mends):
    """Runs turns as the scripts do."""

    def boot(self) -> tuple[int, list[str], bytes]:
        epoch = self.db.incrby(self.keys("epoch"))
        known: bytes = self.db.values.get(self.keys("functions"), b"")
        return epoch, sorted(self.db.values.get(self.keys("sessions"), ())), known

    def run(self, turn: Turn, scripts: int | None = None) -> Answers:
        """Run a turn in its fixed order; only its first `scripts` when Redis is to fail halfway."""
        self.now_ms = turn.now_ms
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

        def claim() -> None:
            if not together:
                self._move_due()
            self._claim(turn, answers)

        together = bool(turn.claims and turn.placed and not turn.changes)
        if turn.reports:
            yield lambda: self._report(turn, answers)
        yield from (lambda session=session: self._release(session, answers) for session in turn.lost)
        if turn.sweep:
            yield lambda: self._sweep(answers)
        if turn.finds:
            yield lambda: setattr(answers, "looked", self._look(turn))
        yield opened
        if turn.tunings:
            yield lambda: answers.tuned.extend(map(self._tune, turn.tunings))
        if turn.flows:
            yield lambda: answers.stored.extend(map(self._store, turn.flows))
        for at in range(0, len(turn.placed), CHUNK):
            due = together and at + CHUNK >= len(turn.placed)
            yield lambda at=at, due=due: self._submit(turn.placed[at : at + CHUNK], due, answers)  # type: ignore[misc]  # no types for a lambda
        yield from (lambda change=change: answers.changed.append(self._change(change)) for change in turn.changes)
        for at in range(0, len(turn.runners), CHUNK):
            yield lambda at=at: answers.runners.extend(self._live(turn.runners[at : at + CHUNK]))  # type: ignore[misc]  # no types for a lambda
        if turn.claims:
            yield claim
        yield lambda: answers.found.extend(map(self._lookup, turn.lookups))
        yield lambda: self._note(turn)
        yield lambda: answers.recalled.extend(map(self._recall, turn.recalls))
        yield lambda: self._reload(turn, answers)

    def check_news(self) -> None:
        """The fake tells nothing."""

    def dump(self) -> Dump:
        return {key: (copy.deepcopy(value), self.db.ttl_s.get(key)) for key, value in self.db.values.items()}

    def drop(self, key: str) -> None:
        self.db.delete(key)

    def held(self, session: str) -> list[str]:
        return [ref for ref, _ in self.db.zrange(self.keys("held", session))]

    # --- tune.lua -----------------------------------------------------------

    def _tune(self, tuning: Tuning) -> str:
        kind, what, name, given = tuning
        hash_, all_ = self.keys(kind, name), self.keys(f"{kind}s")
        most = self.limits.timers if kind == "timer" else 0
        there = dict(self.db.values.get(hash_, {}))
        fields = {field: raw(value) for field, value in given.items()}
        wanted = {field: value for field, value in fields.items() if value}
        before = {field: value for field, value in there.items() if field != "paused" or field in fields}
        if what == "merge":
            wanted = {field: value for field, value in {**there, **fields}.items() if value}
            before = there
        if what == "remove":
            self.db.delete(hash_)
            if most:
                self.db.srem(all_, name)
                self.db.delete(self.keys("timer_state", name))
            return self._tuned(tuning) if there else "none"
        if what == "merge" and not there and most:
            return "none"
        if (there or what == "merge") and before == wanted:
            return self._tuned(tuning) if most and self.db.sadd(all_, name) else "same"
        if there and (what == "add" or (what == "put" and most and there.get("origin") != fields.get("origin"))):
            return "exists"
        if not there and most and len(self.db.values.get(all_, ())) >= most:
            return "full"
        self.db.delete(hash_)
        if what != "merge" and "paused" in there and "paused" not in fields:
            wanted = {"paused": there["paused"], **wanted}
        if wanted:
            self.db.hset(hash_, **wanted)
            self.db.sadd(all_, name)
        elif most:
            self.db.srem(all_, name)
        return self._tuned(tuning)

    def _tuned(self, tuning: Tuning) -> str:
        number = self.db.incrby(self.keys("tuned"))
        if tuning.kind == "timer":
            self.db.zadd(self.keys("timer_changes"), tuning.name, number)
        elif "key_limit" in tuning.fields:
            self._wake_keys(tuning.name)
        return "changed"

    # --- submit.lua -------------------------------------------------------

    def _submit(self, chunk: list[Placed], due: bool, answers: Answers) -> None:
        if due:
            self._move_due()
        order = self.db.incrby(self.keys("order"), len(chunk)) - len(chunk)
        # How deep a queue is, is asked once; what these commands let start does not count.
        depths = {queue: self._depth(queue) for queue in map(_queue, chunk)}
        for place, placed in enumerate(chunk, 1):
            answers.taken.append(self._place(placed, order + place, depths))

    def _place(self, placed: Placed, order: int, depths: dict[str, int]) -> Taken:
        command, options, _, due_ms, waits = placed
        db, index, queue = self.db, self.keys("job", command.job_id), _queue(placed)
        first = command.from_
        fresh = db.hsetnx(index, first, command.to)
        if not fresh and db.hget(index, first) != raw(command.to):
            if len(command.to) > LONGEST_TO:
                return Taken("long", f"{first}:{command.job_id}", State.start, None)
            first = f"{command.from_}>{command.to}"
            fresh = db.hsetnx(index, first, command.to)
        ref = f"{first}:{command.job_id}"
        if not fresh:
            state = self.state_of(ref)
            if state is not None:
                if db.hget(self.record(ref, state), "sum") != command.digest:
                    return Taken("conflict", ref, state, None)
                return Taken("same", ref, state, self._body_of(ref, state))
        elif depths[queue] >= self._most(queue):
            db.hdel(index, first)
            return Taken("full", ref, State.start, None)
        elif waits and (names := self._circle(command.job_id, command.from_, command.to)):
            db.hdel(index, first)
            return Taken("circle", ref, State.start, ",".join(names).encode())
        self._create(placed, ref, index)
        if waits:
            return self._wait(command.job_id, command.from_, ref)
        if due_ms > self.now_ms:
            db.zadd(self.keys("delayed"), ref, due_ms)
        else:
            place = score(options.get("priority", DEFAULT_PRIORITY), order)
            self._line_up(ref, queue, options.get("key", ""), place)
            depths[queue] += 1
        return NEW  # needs no more: who waits stands in the record

    def _most(self, queue: str) -> int:
        depth = self._held(queue).depth
        return self.limits.queue_depth if depth is None else depth

    def _create(self, placed: Placed, ref: str, index: str) -> None:
        job_id = placed.command.job_id
        alone = len(self.db.values[index]) == 1
        many = not alone or placed.waits
        state = State.standby if placed.waits else State.start
        self.db.hset(self.record(ref, state), **self._fields(placed, many))
        if alone:
            self.db.xadd(self.keys("jobs"), job_id)
        if many:
            if self.db.hget(index, ":open") is not None:
                self._open(job_id, 1)
                self._enlist(job_id, ref.partition(":")[0], placed.command.to, False)
            else:
                self._make_many(job_id)
            self._lengthen(index, self._ttl_s(placed))

    def _wait(self, job_id: str, from_: str, ref: str) -> Taken:
        settled = self._settle(job_id, from_)
        if settled is None:
            self._watch(ref)
        state = self.state_of(ref)
        assert state is not None
        return Taken("new", ref, state, self._body_of(ref, state), tuple(settled[1] if settled else ()))

    # --- workflow.lua -----------------------------------------------------

    def _store(self, flow: Flow) -> Stored:
        job_id, steps, graph = flow
        index = self.keys("job", job_id)
        if index in self.db.values:
            return self._standing(flow)
        depths: dict[str, int] = {}
        for placed in steps:
            queue = _queue(placed)
            if not placed.waits:
                depths[queue] = depths.get(queue, self._depth(queue)) + 1
                if depths[queue] > self._most(queue):
                    return Stored("full", f"{placed.command.from_}:{job_id}", ())
        refs = [f"{first}:{job_id}" for first in graph.firsts]
        answers = []
        for placed, ref in zip(steps, refs, strict=True):
            state = State.standby if placed.waits else State.start
            self.db.hset(self.record(ref, state), **self._fields(placed, True))
            self.db.hset(index, **{ref.partition(":")[0]: placed.command.to})
            answers.append((ref, state, None))
        self.db.hset(index, **{":open": len(steps)})
        for placed in steps:
            self._lengthen(index, self._ttl_s(placed))
        for name, numbers in graph.named.items():
            if feeders := graph.feeders.get(name):
                listed = "\n".join(graph.firsts[number] for number in feeders)
                self.db.hset(self._flow(job_id), **{f"<{name}": listed, f"#{name}": len(feeders)})
            if len(numbers) > 1:
                self.db.hset(self._flow(job_id), **{f">{name}": "\n".join(graph.firsts[n] for n in numbers[1:])})
        for placed, ref in zip(steps, refs, strict=True):
            if not placed.waits:
                self._enter(ref, *_place(placed), placed.due_ms)
        self.db.xadd(self.keys("jobs"), job_id)
        return Stored("new", "", tuple(answers))

    def _standing(self, flow: Flow) -> Stored:
        index, answers = self.keys("job", flow.job_id), []
        for placed in flow.steps:
            command = placed.command
            first = command.from_
            if self.db.hget(index, first) != raw(command.to):
                first = f"{command.from_}>{command.to}"
            ref = f"{first}:{command.job_id}"
            state = self.state_of(ref)
            known = state is not None and self.db.hget(index, first) == raw(command.to)
            if state is None or not known or self.db.hget(self.record(ref, state), "sum") != command.digest:
                return Stored("conflict", f"{command.from_}:{command.job_id}", ())
            answers.append((ref, state, self._body_of(ref, state)))
        return Stored("same", "", tuple(answers))

    # --- deal.lua, claim.lua ----------------------------------------------

    def _move_due(self) -> None:
        delayed = self.keys("delayed")
        for ref, due_ms in self.db.zrange(delayed, MOST_DUE):
            if due_ms <= self.now_ms:
                self.db.zrem(delayed, ref)
                if self._has(ref, State.start):
                    self._make_ready(ref, int(due_ms))

    def _claim(self, turn: Turn, answers: Answers) -> None:
        delayed = self.keys("delayed")
        due_ms = next((due_ms for _, due_ms in self.db.zrange(delayed, 1)), 0.0)
        known: dict[str, Limited] = {}
        room: dict[str, float] = {}
        wake = 0.0
        size = 0
        for claim in turn.claims:
            jobs: list[Job] = []
            for queue in claim.queues:
                if queue not in known:
                    known[queue] = self._held(queue)
                    room[queue], at = self._room_of(queue, known[queue])
                    wake = sooner(wake, at)
                while len(jobs) < claim.most and room[queue] > 0 and size < MOST_DEALT_BYTES:
                    job = self._next(claim.session, queue, known[queue])
                    if job is None:
                        break
                    jobs += job
                    size += sum(len(each.data) for each in job)
                    room[queue] -= len(job)
                    if room[queue] <= 0:
                        wake = sooner(wake, self._room_of(queue, known[queue])[1])
            since = [self._since(job.ref) for job in jobs]
            answers.claimed.append(Claimed(claim.session, tuple(jobs), tuple(since)))
        if size >= MOST_DEALT_BYTES:
            wake = sooner(wake, turn.now_ms)
        answers.next_due_ms = int(sooner(due_ms, wake))

    def _next(self, session: str, queue: str, limits: Limited) -> list[Job] | None:
        """Hand out the next of a queue: a job or none, if it was an orphan or a key of which enough run."""
        ready, turns = self.keys("ready", queue), self.keys("turns", queue)
        head, turn = self.db.zrange(ready, 1), self.db.zrange(turns, 1)
        if turn and not (head and head[0][1] < turn[0][1]):
            return self._take_turn(session, queue, turn[0][0], limits)
        if not head:
            return None
        self.db.zrem(ready, head[0][0])
        return self._take(session, *head[0], queue, limits)

    def _take_turn(self, session: str, queue: str, called: str, limits: Limited) -> list[Job]:
        lane, running = self._lane(queue, called), self.keys("running", f"{queue}={called}")
        self.db.zrem(self.keys("turns", queue), called)
        while first := self.db.zrange(lane, 1):
            ref, place = first[0]
            most = int(self._number(self.record(ref, State.start), "key_limit", limits.key_limit))
            if self.db.zcard(running) >= most:
                return []
            self.db.zrem(lane, ref)
            self.db.srem(self.keys("keyed", queue), ref)
            job = self._take(session, ref, place, queue, limits)
            if job:
                if self.db.zcard(running) < most:
                    self._give_turn(queue, called)
                return job
        return []

    def _take(self, session: str, ref: str, place: float, queue: str, limits: Limited) -> list[Job]:
        record = self.record(ref, State.processing)
        if not self.db.rename(self.record(ref, State.start), record):
            return []  # an orphan: popped, it is gone
        attempt = self.db.hincrby(record, "attempt")
        self.db.hset(record, worker=session, sent=self.now_ms)
        self._occupy(ref, record, attempt, queue, limits)
        self.db.zadd(self.keys("held", session), ref, place)
        return [self._job(ref, record, attempt)]

    def _since(self, ref: str) -> int:
        record = self.record(ref, State.processing)
        return int(self._text(record, "ready") or self._text(record, "born"))

    def _job(self, ref: str, record: str, attempt: int) -> Job:
        timeout_s = self._number(record, "timeout_s", self.limits.timeout_s)
        data = self.db.hget(record, "data")
        assert data is not None
        named = [self._text(record, name) for name in ("to", "cmd")]
        return Job(ref, attempt, *named, data, timeout_s, self._text(record, "traceparent"))

    # --- report.lua -------------------------------------------------------

    def _report(self, turn: Turn, answers: Answers) -> None:
        for closed in turn.reports:
            answers.ended.append(ended := self._close_attempt(closed))
            if not ended.stale:
                self.db.zrem(self.keys("held", closed.session), closed.report.ref)

    def _close_attempt(self, closed: Closed) -> Ended:
        session, (ref, attempt, outcome, body, log, began_ms, ended_ms, _), jitter, added = closed
        db, record = self.db, self.record(ref, State.processing)
        if record not in db.values:
            self._reclaim(ref, attempt)
        if db.hget(record, "attempt") != raw(attempt):
            return Ended(ref, attempt, True, State.start, "", None)
        self._keep_log(ref, record, attempt, log)
        peer = self._text(record, "peer")
        again = Ended(ref, attempt, False, State.start, "", None)
        more, also = 0, list[Ended]()
        if added and outcome == Outcome.done:
            why = self._misfit(parts_of(ref)[1], added)
            if why:
                outcome, body = Outcome.failed, error_body("BadStep", why)
            else:
                more, also = self._add(parts_of(ref)[1], added)
        if outcome == Outcome.done:
            started, ended = self._finish(ref, body, began_ms, ended_ms)
            return Ended(ref, attempt, False, State.data_available, peer, None, started + more, (*ended, *also))
        if outcome == Outcome.returned:
            place = db.zscore(self.keys("held", session), ref)
            self._leave(ref)
            self._restart(ref)
            if place is None:
                self._make_ready(ref, self.now_ms)
            else:
                self._put_back(ref, place)
            return again
        if outcome == Outcome.crashed:
            if db.hincrby(record, "crashes") >= self.limits.max_crashes:
                return self._failed(ref, attempt, peer, body)
            self._leave(ref)
            self._restart(ref)
            self._make_ready(ref, self.now_ms)
            return again
        fails = db.hincrby(record, "fails")
        if fails > self._number(record, "retries", 0):
            return self._failed(ref, attempt, peer, body)
        base_s = self._number(record, "backoff_s", 1)
        longest_ms = min(base_s * 2 ** min(fails - 1, 1000), LONGEST_BACKOFF_S) * 1000
        delay_ms = math.floor(longest_ms / 2 * (1 + jitter))
        self._leave(ref)
        self._restart(ref)
        if delay_ms > 0:
            db.zadd(self.keys("delayed"), ref, self.now_ms + delay_ms)
        else:
            self._make_ready(ref, self.now_ms)
        return again

    def _failed(self, ref: str, attempt: int, peer: str, body: bytes) -> Ended:
        record = self.record(ref, State.processing)
        limited = any(self.db.hget(record, field) is not None for field in ("key", "counted"))
        return failed(ref, attempt, peer, body)._replace(also=tuple(self._fail(ref, body)), started=int(limited))

    def _reclaim(self, ref: str, attempt: int) -> None:
        waiting = self.record(ref, State.start)
        if waiting in self.db.values and self._number(waiting, "attempt", 0) < attempt:
            self._step_out(ref, *self._place_of(waiting))
            self.db.zrem(self.keys("delayed"), ref)
            self.db.hset(waiting, attempt=attempt)
            self.db.rename(waiting, self.record(ref, State.processing))

    def _restart(self, ref: str) -> None:
        record = self.record(ref, State.processing)
        self.db.hdel(record, *UNDER_WAY)
        self.db.rename(record, self.record(ref, State.start))

    def _finish(self, ref: str, body: bytes, began_ms: int, ended_ms: int) -> tuple[int, list[Ended]]:
        record = self.record(ref, State.processing)
        old = self.db.values[record]
        limited = self._leave(ref)
        kept = {
            name: old[name] for name in ("to", "cmd", "sum", "attempt", "born", "notify", "traceparent") if name in old
        }
        ttl_s = int(self._number(record, "result_ttl_s", int(self.limits.result_ttl_s)))
        self.db.delete(record)
        done = self.record(ref, State.data_available)
        self.db.hset(done, **kept, result=body, began=began_ms, ended=ended_ms)
        self._announce(ref, State.data_available, done, body)
        self.finished[ref] += 1
        if "many" not in old:
            if "result_ttl_s" in old:
                self.db.hset(done, result_ttl_s=ttl_s)
            self._retire(ref, State.data_available, ttl_s, "logged" in old)
            return int(limited), []
        started, ended = self._advance(ref, old["to"].decode(), body)
        self._close(parts_of(ref)[1], 1)
        return started + limited, ended

    def _misfit(self, job_id: str, added: tuple[Placed, ...]) -> str:
        """Why steps cannot be added to a job, "" if they can."""
        index = self.db.values[self.keys("job", job_id)]
        if len(self._firsts(job_id)) + len(added) > self.limits.workflow_steps:
            return f"the job would have more than {self.limits.workflow_steps} steps"
        coming: dict[str, list[str]] = {}
        for placed in added:
            coming.setdefault(placed.command.from_, []).extend(placed.command.to.split(","))
        for placed in added:
            from_, to = placed.command.from_, placed.command.to
            if len(to) > LONGEST_TO and from_ in index:
                return f"there is a step from {from_} already; a further one may not list so many names"
            if index.get(from_) == raw(to) or f"{from_}>{to}" in index:
                return f"there is a step from {from_} to {to} already"
            for name in to.split(","):
                waiting = (self._has(f"{first}:{job_id}", State.standby) for first in self._named(job_id, name))
                if name != END and name not in coming and not any(waiting):
                    return f"no step waits at {name} to be fed by {from_}"
            if self.db.hget(self._flow(job_id), f"<{from_}") and (names := self._circle(job_id, from_, to, coming)):
                return f"the steps go in a circle: {' → '.join([*names, names[0]])}"
        return ""

    def _add(self, job_id: str, added: tuple[Placed, ...]) -> tuple[int, list[Ended]]:
        index = self.keys("job", job_id)
        self._make_many(job_id)
        refs = []
        for placed in added:
            first, to = placed.command.from_, placed.command.to
            if not self.db.hsetnx(index, first, to):
                first = f"{first}>{to}"
                self.db.hset(index, **{first: to})
            self._enlist(job_id, first, to, False)
            refs.append(f"{first}:{job_id}")
        self._open(job_id, len(added))
        started, also = 0, list[Ended]()
        fed_names: dict[str, None] = {}
        for placed, ref in zip(added, refs, strict=True):
            name = placed.command.from_
            fed = self.db.hget(self._flow(job_id), f"<{name}") is not None
            fields = self._fields(placed._replace(waits=fed, peer=""), True)
            self.db.hset(self.record(ref, State.standby if fed else State.start), **fields)
            self._lengthen(index, self._ttl_s(placed))
            if fed:
                fed_names[name] = None
            else:
                self._enter(ref, *_place(placed), placed.due_ms)
                started += 1
        for name in fed_names:
            more, ended = self._settle(job_id, name) or (0, [])
            started += more
            also += ended
        return started, also

    # --- change.lua, unfed.lua ----------------------------------------------

    def _change(self, change: Change) -> Changed:
        firsts = self._firsts(change.job_id)
        if not firsts:
            return Changed(-1, (), ())
        if change.what == "retry":
            return self._retry(change.job_id, firsts)
        if change.what == "purge":
            return Changed(self._purge(change.job_id, firsts), (), ())
        ended, sessions = [], []
        for first in firsts:
            ref = f"{first}:{change.job_id}"
            state = self.state_of(ref)
            if state is None or state.final:
                continue
            record, session = self.record(ref, state), ""
            if state is State.start:
                self._step_out(ref, *self._place_of(record))
                self.db.zrem(self.keys("delayed"), ref)
            if state is State.processing:
                session = self._text(record, "worker")
                self.db.zrem(self.keys("held", session), ref)
                self._leave(ref)
                self.db.hdel(record, *UNDER_WAY)
            gone = self._give_up(ref, state, CANCELLED)
            assert gone
            ended.append(gone[1])
            sessions.append(session)
        if ended:
            index, one = self.keys("job", change.job_id), ended[0].ref
            self.db.zadd(self.keys("dead"), one, self.now_ms)
            if self.db.hget(index, ":open") is not None:
                self.db.hset(index, **{":failed": 1})
                self._close(change.job_id, len(ended))
            else:
                self._retire(one, State.error, int(self.limits.error_ttl_s), True)
        return Changed(len(ended), tuple(ended), tuple(sessions))

    def _purge(self, job_id: str, firsts: list[str]) -> int:
        refs = [f"{first}:{job_id}" for first in firsts]
        states = [state for state in map(self.state_of, refs) if state is not None]
        if not all(state.final for state in states):
            return -2
        if State.error not in states:
            return -3
        for ref in refs:
            if self._has(ref, State.error) or self._has(ref, State.data_available):
                self.finished[ref] -= 1
            for key in (self.record(ref, State.error), self.record(ref, State.data_available)):
                self.db.delete(key)
            for name in ("log", "callback"):
                self.db.delete(self.keys(name, ref))
            for name in ("dead", "callbacks"):
                self.db.zrem(self.keys(name), ref)
        self.db.delete(self.keys("job", job_id))
        self.db.delete(self._flow(job_id))
        return len(refs)

    def _retry(self, job_id: str, firsts: list[str]) -> Changed:
        started, waiting = [], []
        for first in firsts:
            ref = f"{first}:{job_id}"
            record = self.record(ref, State.error)
            if record in self.db.values:
                state = State.standby if self._text(record, "was") == "standby" else State.start
                self.db.hdel(record, "error", "ended", "was", "fails", "crashes", "losses")
                self.db.rename(record, self.record(ref, state))
                self.db.zrem(self.keys("dead"), ref)
                self.db.persist(self.record(ref, state))
                self.db.persist(self.keys("log", ref))
                self.finished[ref] -= 1
                (waiting if state is State.standby else started).append(ref)
        count = len(started) + len(waiting)
        if not count:
            return Changed(0, (), ())
        index = self.keys("job", job_id)
        if self.db.hget(index, ":open") is not None:
            self.db.hdel(index, ":failed")
            self._open(job_id, count)
        else:
            self.db.persist(index)
        for ref in started:
            self._make_ready(ref, self.now_ms)
        ended: list[Ended] = []
        settled: dict[str, bool] = {}
        for ref in waiting:
            name = parts_of(ref)[0]
            if name not in settled:
                told = self._settle(job_id, name)
                settled[name] = told is not None
                ended += told[1] if told else []
            if not settled[name]:
                self._watch(ref)
        return Changed(count, tuple(ended), ("",) * len(ended))

    def _sweep(self, answers: Answers) -> None:
        standby = self.keys("standby")
        due = [ref for ref, until_ms in self.db.zrange(standby) if until_ms <= self.now_ms]
        for ref in due[:MOST_UNFED]:
            self._noticed(ref, self.record(ref, State.standby))
            self.db.zrem(standby, ref)
            name, job_id = parts_of(ref)
            if self.db.hget(self._flow(job_id), f"<{name}") is None:
                why = f"no step was sent that goes to {name}, for {int(self.limits.standby_s)} s"
                answers.swept += self._give_up_all(ref, State.standby, error_body("NeverFed", why))
        answers.next_unfed_ms = int(next((until_ms for _, until_ms in self.db.zrange(standby, 1)), 0))

    # --- release.lua, lookup.lua, recall.lua, note.lua ---------------------

    def _release(self, session: str, answers: Answers) -> None:
        body = lost_body(self.limits.max_losses)
        gone: list[Ended] = []
        held = self.keys("held", session)
        for ref, place in self.db.zrange(held, MOST_RELEASED):
            record = self.record(ref, State.processing)
            if self._text(record, "worker") == session:
                attempt, peer = int(self._text(record, "attempt")), self._text(record, "peer")
                if self.db.hincrby(record, "losses") >= self.limits.max_losses:
                    gone += [failed(ref, attempt, peer, body, self._text(record, "cmd")), *self._fail(ref, body)]
                else:
                    self._leave(ref)
                    self._restart(ref)
                    self._put_back(ref, place)
            self.db.zrem(held, ref)
        if not self.db.zcard(held):
            self.db.srem(self.keys("sessions"), session)
        answers.lost.append((self.db.zcard(held), gone))

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
            attempt = self.db.hget(self.record(ref, State.processing), "attempt")
            if attempt is None:
                self.db.zrem(self.keys("held", session), ref)
            else:
                found.append(Held(ref, int(attempt)))
        return tuple(found)

    def _reload(self, turn: Turn, answers: Answers) -> None:
        for ref, attempt in turn.reloads:
            record = self.record(ref, State.processing)
            if self.db.hget(record, "attempt") == raw(attempt):
                answers.reloaded.append(self._job(ref, record, attempt))

    def _note(self, turn: Turn) -> None:
        for ref, attempt, fraction, text, log in turn.notes:
            record = self.record(ref, State.processing)
            if self.db.hget(record, "attempt") == raw(attempt):
                if fraction >= 0:
                    self.db.hset(record, progress=fraction, note=text)
                self._keep_log(ref, record, attempt, log)


def _place(placed: Placed) -> tuple[str, str, int]:
    options = placed.options
    return _queue(placed), options.get("key", ""), options.get("priority", DEFAULT_PRIORITY)


def _queue(placed: Placed) -> str:
    queue: str = placed.options.get("queue", DEFAULT_QUEUE)
    return queue


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
        self.heard = "0-0"  # the last entry of the news
        self.told: dict[str, State] = {}  # what it said of each step

    def boot(self) -> tuple[int, list[str], bytes]:
        epoch, sessions, catalogue = self.store.boot()
        return epoch, sorted(sessions), catalogue

    def runners(self) -> dict[Name, dict[bytes, bytes]]:
        return self.store.runners()

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
        """Everything there is; the lives and the number of the last turn are the connection's own affair."""
        names = sorted(name.decode() for name in self.client.scan_iter(count=1000))
        own = self.keys("turn"), self.keys("lineage"), self.keys("events")
        return {name: self._dumped(name) for name in names if name not in own}

    def check_news(self) -> None:
        """What was told last of each step is where it stands."""
        for entry in news.entries(self.client.xrange(self.keys("events"), news.after(self.heard))):
            self.heard = entry.id
            for line in entry.fields.get(b"e", b"").decode().splitlines():
                ref, number, *_ = line.split(" ")
                self.told[ref] = State(int(number))
        for ref, state in self.told.items():
            there = [each for each in State if self.client.exists(self.keys("record", ref, each.name))]
            assert there in ([], [state]), f"{ref} was told to be {state.name}, and is {there[0].name}"

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
        elif kind == "list":
            value = self.client.lrange(name, 0, -1)
        elif kind == "stream":
            value = [fields[b"j"].decode() for _, fields in self.client.xrange(name)]
        else:
            value = self.client.get(name)
        return value, ttl_s if ttl_s >= 0 else None

    def drop(self, key: str) -> None:
        self.client.delete(key)

    def close(self) -> None:
        self.store.close()
