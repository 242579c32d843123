"""`mend.lua` in Python, find by find."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from store.fake_graph import error_body, from_of
from store.fake_runners import FINAL, Lives
from store.space import raw

from exesys.bus.messages import Repair
from exesys.command import DEFAULT_PRIORITY, END, parts_of
from exesys.runner import Name
from exesys.states import State
from exesys.turn import Ended, Looked, Turn

FEW = 200
NOBODY = "0" * 16
FIRST_COUNTS = (State.data_available, State.error, State.processing, State.start, State.standby)
STILL = (b"starting", b"running", b"stopping")


class Known(NamedTuple):
    first: str
    ref: str
    state: State
    to: str

    @property
    def ended(self) -> bool:
        return self.state is State.data_available


class Mends(Lives):
    """What a turn has looked at and mended."""

    def _look(self, turn: Turn) -> Looked:
        self._known = set(turn.known)
        self._repairs: list[Repair] = []
        self._strays: list[str] = []
        self._rejoined: list[str] = []
        self._gone: list[Ended] = []
        again = []
        for find in turn.finds:
            look: Callable[..., int | None] = getattr(self, f"_look_at_{find.kind}", lambda *_: None)
            if (at := look(find.place, find.name, find.at)) is not None:
                again.append(find._replace(at=str(at)))
        told = (self._repairs, self._strays, self._rejoined, self._gone)
        return Looked(len(turn.finds), tuple(again), *map(tuple, told))  # type: ignore[arg-type]  # each its own kind

    def _note_repair(self, kind: str, name: str) -> None:
        self._repairs.append(Repair(kind, name))
        self.db.hincrby(self.keys("mended"), kind)
        self.db.hset(self.keys("mended"), **{f"{kind}:at": self.now_ms})

    def _lasts(self, key: str) -> bool:
        return key in self.db.values and key not in self.db.ttl_s

    def _persist(self, *keys: str) -> int:
        passing = [key for key in keys if key in self.db.values and key in self.db.ttl_s]
        for key in passing:
            self.db.persist(key)
        return len(passing)

    # --- where a step stands ------------------------------------------------------

    def _queued(self, ref: str) -> None:
        record = self.record(ref, State.start)
        queue, called = self._place_of(record)
        lane = self._lane(queue, called) if called else self.keys("ready", queue)
        there = self.db.zscore(lane, ref) is not None
        delayed = self.db.zscore(self.keys("delayed"), ref) is not None
        if not there and not delayed:
            due_ms = max(int(self._number(record, "due_ms", 0)), 0)
            self._enter(ref, queue, called, int(self._number(record, "priority", DEFAULT_PRIORITY)), due_ms)
            self._note_repair("unqueued", ref)
        elif there and delayed:
            self.db.zrem(self.keys("delayed"), ref)
            self._note_repair("doubled", ref)
        elif there and called:
            entered = ref not in self.db.values.get(self.keys("keyed", queue), ())
            self.db.sadd(self.keys("keyed", queue), ref)
            running = self.keys("running", f"{queue}={called}")
            silent = self.db.zscore(self.keys("turns", queue), called) is None and running not in self.db.values
            if silent:
                self._give_turn(queue, called)
            if silent or entered:
                self._note_repair("unqueued", ref)

    def _counted(self, ref: str) -> None:
        record = self.record(ref, State.processing)
        queue, called = self._place_of(record)
        places = [f"{queue}={called}"] if called else []
        places += [queue] if self.db.hget(record, "counted") is not None else []
        wrong = [place for place in places if ref not in self.db.values.get(self.keys("running", place), ())]
        for place in wrong:
            self.db.sadd(self.keys("running", place), ref)
        if wrong:
            self._note_repair("uncounted", ref)

    def _held_again(self, ref: str) -> None:
        record = self.record(ref, State.processing)
        session = self._text(record, "worker", NOBODY)
        self.db.hset(record, worker=session)
        self.db.hsetnx(record, "attempt", "1")
        known = session in self.db.values.get(self.keys("sessions"), ())
        if self.db.zscore(self.keys("held", session), ref) is None:
            priority = int(self._number(record, "priority", DEFAULT_PRIORITY))
            score = (9 - priority) * (1 << 45) + self.db.incrby(self.keys("order"))
            self.db.zadd(self.keys("held", session), ref, score)
            self._rejoined.append(session)
            self._note_repair("unheld", ref)
        elif not known:
            self._note_repair("unlisted", session)
        if not known:
            self.db.sadd(self.keys("sessions"), session)
            if session not in self._known:
                self._strays.append(session)

    def _watched(self, ref: str, fed: bool) -> None:
        record = self.record(ref, State.standby)
        if record not in self.db.values:
            return
        unfed = self.db.hget(record, "unfed") is not None
        there = self.db.zscore(self.keys("standby"), ref) is not None
        if fed and unfed != there:
            self.db.hdel(record, "unfed")
            self.db.zrem(self.keys("standby"), ref)
            self._note_repair("unwatched", ref)
        elif not fed and not (unfed and there):
            if there:
                self.db.hset(record, unfed=1)
            else:
                self._watch(ref)
            self._note_repair("unwatched", ref)

    def _waits_well(self, ref: str, at: str) -> tuple[bool, int | None]:
        name, job_id = parts_of(ref)
        feeders = self._listed(job_id, f"<{name}")
        fed = self.db.hget(self._flow(job_id), f"<{name}") is not None
        self._watched(ref, fed)
        if not fed:
            return True, None
        count = int(self._text(self._flow(job_id), f"#{name}", "0"))
        if count <= 0:
            return False, None
        unended, begin = 0, int(at or 0)
        for first in feeders[begin : begin + FEW]:
            if not self._has(f"{first}:{job_id}", State.data_available):
                if self._has(f"{first}:{job_id}", State.error):
                    return False, None
                if len(feeders) > FEW:
                    return True, None
                unended += 1
        if len(feeders) <= FEW:
            return unended == count, None
        return False, (begin + FEW if begin + FEW < len(feeders) else None)

    def _listed_in_flow(self, ref: str, to: str) -> bool:
        first, _, job_id = ref.partition(":")
        fields = [f">{from_of(first)}"] if first != from_of(first) else []
        fields += [f"<{name}" for name in to.split(",") if name != END]
        return all(first in self._listed(job_id, field) for field in fields)

    def _alone(self, ref: str, state: State) -> None:
        record, index = self.record(ref, state), self._index(ref)
        if state.final:
            if self._lasts(record) or self._lasts(index):
                usual = int(self.limits.error_ttl_s if state is State.error else self.limits.result_ttl_s)
                own = int(self._number(record, "result_ttl_s", usual)) if state is State.data_available else usual
                self._retire(ref, state, own, True)
                self._note_repair("lasting", ref)
        elif self._persist(record, index):
            self._note_repair("passing", ref)

    # --- a job of several steps -----------------------------------------------------

    def _agrees(self, job_id: str, steps: Iterable[Known]) -> bool:
        lists: dict[str, list[str]] = {}
        counts: dict[str, int] = {}
        for step in steps:
            from_ = from_of(step.first)
            if step.first != from_:
                lists.setdefault(f">{from_}", []).append(step.first)
            for name in step.to.split(","):
                if name != END:
                    lists.setdefault(f"<{name}", []).append(step.first)
                    counts[f"#{name}"] = counts.get(f"#{name}", 0) + (not step.ended)
        graph = self.db.values.get(self._flow(job_id), {})
        listed = {field: sorted(value.decode().split("\n")) for field, value in graph.items() if field[0] != "#"}
        counted = {field: int(value) for field, value in graph.items() if field[0] == "#"}
        return listed == {field: sorted(firsts) for field, firsts in lists.items()} and counted == counts

    def _steps_of(self, job_id: str) -> tuple[list[Known], list[str]]:
        index = self.db.values.get(self.keys("job", job_id), {})
        firsts = {first for first in index if first[0] != ":"}
        for field, value in self.db.values.get(self._flow(job_id), {}).items():
            firsts |= {field[1:], *(value.decode().split("\n") if field[0] != "#" else ())}
        steps, gone = [], []
        for first in sorted(firsts):
            ref = f"{first}:{job_id}"
            state = self.state_of(ref)
            if state is not None:
                steps.append(Known(first, ref, state, self._text(self.record(ref, state), "to")))
            elif first in index:
                gone.append(first)
        return steps, gone

    def _recount(self, job_id: str, steps: list[Known]) -> int:
        index, wrong = self.keys("job", job_id), False
        under_way = sum(not step.state.final for step in steps)
        if any(step.state is State.error for step in steps) and self.db.hget(index, ":failed") is None:
            self.db.hset(index, **{":failed": 1})
        for step in steps:
            record = self.record(step.ref, step.state)
            if not step.ended and self.db.hget(record, "many") is None:
                self.db.hset(record, many=1)
                wrong = True
        if not self._agrees(job_id, steps):
            self.db.delete(self._flow(job_id))
            for step in steps:
                self._enlist(job_id, step.first, step.to, step.ended)
            wrong = True
        if self.db.hget(index, ":open") != raw(under_way):
            self.db.hset(index, **{":open": under_way})
            wrong = True
        if wrong:
            self._note_repair("miscounted", job_id)
        return under_way

    def _give_up_waiting(self, job_id: str, firsts: Iterable[str], message: str) -> None:
        for first in firsts:
            ref = f"{first}:{job_id}"
            if ended := self._give_up_all(ref, State.standby, error_body("ResultGone", message)):
                self._note_repair("stuck", ref)
                self._gone += ended

    def _set_lives(self, job_id: str, steps: list[Known], under_way: int) -> None:
        index, flow = self.keys("job", job_id), self._flow(job_id)
        records = [self.record(step.ref, step.state) for step in steps]
        every = [index, flow, *records, *(self.keys("log", step.ref) for step in steps)]
        if under_way:
            if self._persist(*every):
                self._note_repair("passing", job_id)
        elif any(map(self._lasts, every)):
            self._expire_job(job_id)
            self._note_repair("lasting", job_id)

    def _mend_job(self, job_id: str) -> None:
        db, index, flow = self.db, self.keys("job", job_id), self._flow(job_id)
        known, graph = dict(db.values.get(index, {})), flow in db.values
        steps, gone = self._steps_of(job_id)
        several = ":open" in known or graph or len(steps) > 1
        for step in steps:
            if known.get(step.first) != raw(step.to):
                db.hset(index, **{step.first: step.to})
                self._note_repair("unindexed", step.ref)
            record = self.record(step.ref, step.state)
            several = several or step.state is State.standby or db.hget(record, "many") is not None
        for first in gone:
            db.hdel(index, first)
            self._note_repair("hollow", f"{first}:{job_id}")
        if not steps:
            if index in db.values or flow in db.values:
                db.delete(index)
                db.delete(flow)
                self._note_repair("leftover", job_id)
            return
        if not several:
            self._alone(steps[0].ref, steps[0].state)
            return
        lost = ":lost" in known or not (":open" in known or graph)
        if lost:
            db.hset(index, **{":lost": 1})
        self._set_lives(job_id, steps, self._recount(job_id, steps))
        for first in gone:
            for fed in known[first].decode().split(","):
                self._give_up_waiting(job_id, self._named(job_id, fed), f"the result of {first} is gone")
        if lost:
            self._give_up_waiting(job_id, [step.first for step in steps], "what fed it is not known any more")
        settled: dict[str, bool] = {}
        for step in steps:
            if step.state is State.standby:
                name = from_of(step.first)
                if name not in settled:
                    told = self._settle(job_id, name)
                    settled[name] = told is not None
                    if told and (told[0] or told[1]):
                        self._note_repair("stuck", step.ref)
                        self._gone += told[1]
                self._watched(step.ref, settled[name])

    # --- what can be found --------------------------------------------------------

    def _look_at_step(self, _: str, ref: str, at: str) -> int | None:
        there = [state for state in FIRST_COUNTS if self._has(ref, state)]
        if not there:
            return None
        for state in there[1:]:
            self.db.delete(self.record(ref, state))
        state = there[0]
        record, index = self.record(ref, state), self._index(ref)
        to = self.db.hget(record, "to")
        if to is None:
            return None
        if len(there) > 1:
            self._note_repair("doubled", ref)
        first, job_id = ref.split(":")
        listed, counted = self.db.hget(index, first), self.db.hget(index, ":open")
        fits, go_on = listed == to and len(there) == 1, None
        if counted is not None and self._lasts(index):
            fits = fits and self._listed_in_flow(ref, to.decode())
        if state is State.start:
            self._queued(ref)
        elif state is State.standby:
            well, go_on = self._waits_well(ref, at)
            fits = fits and (well or go_on is not None)
        elif state is State.processing:
            self._held_again(ref)
            self._counted(ref)
        if listed != to:
            self.db.hset(index, **{first: to})
            self._note_repair("unindexed", ref)
        many = self.db.hget(record, "many") is not None
        open_ = int(counted or 0) > 0
        if fits and counted is None and not many and state is not State.standby:
            self._alone(ref, state)
            return go_on
        moving_well = state.final or (open_ and self._lasts(index))
        if not fits or counted is None or self._lasts(record) != open_ or not moving_well:
            self._mend_job(job_id)
            return None
        return go_on

    def _look_at_job(self, _: str, job_id: str, at: str) -> None:
        """At once: no test of the fake has an index so large that it is looked at in pieces."""
        index = self.keys("job", job_id)
        if not self._lasts(index):
            return
        states = [self.state_of(f"{first}:{job_id}") for first in self._firsts(job_id)]
        under_way = sum(state is not None and not state.final for state in states)
        counted = self.db.hget(index, ":open")
        wrong = len(states) > 1 if counted is None else int(counted) != under_way
        if None in states or wrong or not under_way:
            self._mend_job(job_id)

    def _look_at_flow(self, _: str, job_id: str, at: str) -> None:
        index, flow = self.keys("job", job_id), self._flow(job_id)
        small = len(self.db.values.get(index, ())) + len(self.db.values.get(flow, ())) <= FEW
        if index not in self.db.values or (self._lasts(index) and small):
            self._mend_job(job_id)
        elif not self._lasts(index) and self._lasts(flow):
            self.db.expire(flow, self.db.ttl_s[index])
            self._note_repair("lasting", job_id)
        elif self._lasts(index) and self._persist(flow):
            self._note_repair("passing", job_id)

    def _look_at_log(self, _: str, ref: str, at: str) -> None:
        log, state = self.keys("log", ref), self.state_of(ref)
        if state is None:
            if self._lasts(log):
                self.db.expire(log, int(self.limits.result_ttl_s))
                self._note_repair("leftover", ref)
            return
        record = self.record(ref, state)
        if not self._lasts(record) and self._lasts(log):
            self.db.expire(log, self.db.ttl_s[record])
            self._note_repair("lasting", ref)
        elif self._lasts(record) and self._persist(log):
            self._note_repair("passing", ref)

    def _look_at_ready(self, queue: str, ref: str, at: str) -> int | None:
        record, ready = self.record(ref, State.start), self.keys("ready", queue)
        there = record in self.db.values
        if there and self._place_of(record) == (queue, ""):
            return None
        self._drop(ready, ref, "misplaced" if there else "orphan")
        return self._look_at_step("", ref, "") if there else None

    def _look_at_lane(self, place: str, ref: str, at: str) -> int | None:
        record, lane = self.record(ref, State.start), self.keys("lane", place)
        there = record in self.db.values
        if there and self._text(record, "key") and "=".join(self._place_of(record)) == place:
            return None
        if self.db.zscore(lane, ref) is not None:
            self.db.srem(self.keys("keyed", place.partition("=")[0]), ref)
            self._drop(lane, ref, "misplaced" if there else "orphan")
        return self._look_at_step("", ref, "") if there else None

    def _look_at_keyed(self, queue: str, ref: str, at: str) -> None:
        called = self._text(self.record(ref, State.start), "key")
        keyed = self.keys("keyed", queue)
        there = called and self.db.zscore(self._lane(queue, called), ref) is not None
        if not there and ref in self.db.values.get(keyed, ()):
            self.db.srem(keyed, ref)
            self._note_repair("orphan", ref)

    def _look_at_running(self, place: str, ref: str, at: str) -> None:
        record, running = self.record(ref, State.processing), self.keys("running", place)
        queue, called = self._place_of(record)
        places = [queue] if self.db.hget(record, "counted") is not None else []
        places += [f"{queue}={called}"] if called else []
        if place not in places and ref in self.db.values.get(running, ()):
            self.db.srem(running, ref)
            held_up, key, waiting = place.partition("=")
            if key:
                self._give_turn(held_up, waiting)
            self._note_repair("orphan", ref)

    def _drop(self, key: str, member: str, kind: str) -> None:
        if self.db.zscore(key, member) is not None:
            self.db.zrem(key, member)
            if kind:
                self._note_repair(kind, member)

    def _look_at_delayed(self, _: str, ref: str, at: str) -> None:
        if not self._has(ref, State.start):
            self._drop(self.keys("delayed"), ref, "orphan")

    def _look_at_standby(self, _: str, ref: str, at: str) -> None:
        if not self._has(ref, State.standby):
            self._drop(self.keys("standby"), ref, "orphan")

    def _look_at_dead(self, _: str, ref: str, at: str) -> None:
        if not self._has(ref, State.error):
            self._drop(self.keys("dead"), ref, "misplaced" if self.state_of(ref) is not None else "")

    def _look_at_held(self, session: str, ref: str, at: str) -> None:
        worker = self.db.hget(self.record(ref, State.processing), "worker")
        if worker != raw(session):
            self._drop(self.keys("held", session), ref, "orphan" if worker is None else "misplaced")

    def _look_at_session(self, _: str, session: str, at: str) -> None:
        if session not in self.db.values.get(self.keys("sessions"), ()):
            if self.keys("held", session) not in self.db.values:
                return
            self.db.sadd(self.keys("sessions"), session)
            self._note_repair("unlisted", session)
        if session not in self._known:
            self._strays.append(session)
            self._note_repair("stray", session)

    # --- runners ------------------------------------------------------------------

    def _look_at_runner(self, _: str, name: str, at: str) -> None:
        record, runners = self.keys("runner", name), self.db.values.get(self.keys("runners"), set())
        state = self.db.hget(record, "state")
        if state in STILL:
            if name not in runners:
                self.db.sadd(self.keys("runners"), name)
                self._note_repair("unlisted", name)
            if self._persist(record):
                self._note_repair("passing", name)
        elif state in FINAL:
            if name in runners:
                self.db.srem(self.keys("runners"), name)
                self._note_repair("misplaced", name)
            if self._lasts(record):
                ttl_s = int(self.limits.error_ttl_s if state == b"failed" else self.limits.result_ttl_s)
                self.db.expire(record, ttl_s)
                self.db.expire(self.keys("runner_log", name), ttl_s)
                if self.db.zscore(self.keys("ended"), name) is None:
                    self.db.zadd(self.keys("ended"), name, int(self._number(record, "ended", self.now_ms)))
                self._note_repair("lasting", name)

    def _look_at_runners(self, _: str, name: str, at: str) -> None:
        runners = self.db.values.get(self.keys("runners"), set())
        if self.keys("runner", name) not in self.db.values and name in runners:
            self.db.srem(self.keys("runners"), name)
            self._note_repair("orphan", name)

    def _look_at_ended(self, _: str, name: str, at: str) -> None:
        state = self.db.hget(self.keys("runner", name), "state")
        if state not in FINAL:
            self._drop(self.keys("ended"), name, "misplaced" if state else "")

    def _leave_over(self, key: str, name: str) -> None:
        state: Any = self.db.hget(self.keys("runner", name), "state")
        if self._lasts(key) and (state is None or state in FINAL):
            self.db.expire(key, int(self.limits.result_ttl_s))
            self._note_repair("leftover", name)

    def _look_at_run(self, type_: str, uuid: str, at: str) -> None:
        run = self.keys("run", type_, uuid)
        if self.db.values.get(run) in (b"0", b"1"):
            self._leave_over(run, str(Name(type_, uuid)))

    def _look_at_runner_log(self, _: str, name: str, at: str) -> None:
        self._leave_over(self.keys("runner_log", name), name)
