"""A turn as requests to Redis, and Redis' replies as answers. No connection here.

Each builder below serves one function of the library: it says which keys and arguments the
script gets and how to read its reply. Many jobs go into one script, up to
`CHUNK`, so that a turn of hundreds of jobs costs a handful of commands.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from enum import Enum, auto
from importlib import resources
from typing import Any, NamedTuple, TypeVar

from exesys import codec, news
from exesys.bus.messages import Held, Job
from exesys.config import Limits
from exesys.states import State
from exesys.store import spelling
from exesys.store.keys import Keys
from exesys.store.oddities import Oddities
from exesys.store.spelling import NEW, Argument
from exesys.turn import (
    MOST_FOLLOWED,
    NEWEST,
    Answers,
    Change,
    Changed,
    Claim,
    Claimed,
    Closed,
    Ended,
    Flow,
    Found,
    Looked,
    Placed,
    RunnerDone,
    RunnerOp,
    Stored,
    Taken,
    Tuning,
    Turn,
)

CHUNK = 250
MOST_RELEASED = 250
MOST_UNFED = 100
MOST_CALLS = 300  # to Redis in one look; the rest of the finds is for the next
MOST_WHOLE = 150  # fields of index and flow of a job that is mended at once; half as many steps, twice as many edges
NAMES = (
    *("submit", "workflow", "claim", "report", "release", "change", "unfed", "lookup", "recall", "note", "job"),
    *("runner", "tune", "mend", "begin", "plain", "waiting"),
)
SHARED = ("common", "news", "queue", "step", "tally", "graph", "deal")
PARTS = {"mend": ("stand", "whole", "recount", "mend")}  # of functions that have several files
REFUSED = Taken("refused", "", State.start, None)

T = TypeVar("T")


class Kind(Enum):
    """What a request may do to the store, and so how often it may be sent."""

    write = auto()  # idempotent: again after a lost reply, and again after Redis forgot it
    claim = auto()  # once
    read = auto()


class Request(NamedTuple):
    """One command for Redis and what to do with its reply.

    `blank` fills the answers' place when Redis refuses the command.
    """

    command: tuple[Argument, ...]
    read: Callable[[Any], None]
    blank: Callable[[], None]
    kind: Kind = Kind.write


class Library:
    """The Lua of this directory as one library of functions, under one prefix.

    Functions (Redis ≥ 7.0) are defined once, where a script would define all
    its helpers anew at each call: measured, that was two thirds of a script
    of one job. The library's name holds a digest of its source, so that two
    versions live side by side.
    """

    def __init__(self, keys: Keys) -> None:
        here = resources.files("exesys.store")

        def read(names: Iterable[str]) -> str:
            return "".join((here / f"{name}.lua").read_text("utf-8") for name in names)

        files = [read(PARTS.get(name, (name,))) for name in NAMES]
        common = keys.prelude() + read(SHARED)
        body = common + "".join(f"\ndo\n{file}end\n" for file in files)
        self.name = f"exesys_{hashlib.sha1(body.encode()).hexdigest()[:12]}"
        named = f"local function name(short) return '{self.name}_' .. short end\n"
        self.source = f"#!lua name={self.name}\n{named}{body}"

    def function(self, name: str) -> str:
        """Return the name of a function for FCALL."""
        return f"{self.name}_{name}"


class Builder:
    """Turns a `Turn` into requests whose replies fill an `Answers`."""

    def __init__(self, keys: Keys, library: Library, limits: Limits, max_errors: bytes, oddities: Oddities) -> None:
        self.keys = keys
        self._oddities = oddities
        self.functions = {name: library.function(name) for name in NAMES}
        self.limits = limits
        self.lost_body = max_errors
        self.epoch = 0  # of the router: what is written names it, and is refused when a later one has begun
        ttls = int(limits.result_ttl_s), int(limits.error_ttl_s)
        # What graph.lua reads first, behind the time.
        self._settings = (*ttls, limits.data_bytes, int(limits.standby_s * 1000), limits.workflow_steps)

    def build(self, turn: Turn, answers: Answers, chunk: int = CHUNK) -> Iterator[Request]:
        """Yield the turn's requests in their fixed order, at most `chunk` jobs in each."""
        keys = self.keys
        settings: list[Argument] = [turn.now_ms, *self._settings]
        for reports in _packs(turn.reports, chunk, lambda closed: 1 + len(closed.added)):
            yield self._report(settings, reports, answers.ended)
        for session in turn.lost:
            yield self._release(settings, session, answers.lost)
        if turn.sweep:
            yield self._sweep(settings, answers)
        if turn.finds:
            yield self._mend(settings, turn, answers)
        if turn.opened:
            yield self.plain("SADD", keys("sessions"), *turn.opened)
        if turn.catalogue:
            yield self.plain("SET", keys("functions"), turn.catalogue)
        for tunings in _chunks(turn.tunings, chunk):
            yield self._tune(tunings, answers.tuned)
        for flows in _packs(turn.flows, chunk, lambda flow: len(flow.steps)):
            yield self._workflow(settings, flows, answers.stored)
        chunks = _chunks(turn.placed, chunk)
        with_last = bool(chunks) and not turn.changes
        for number, placed in enumerate(chunks, 1):
            claims = turn.claims if with_last and number == len(chunks) else []
            yield self._submit(settings, placed, claims, answers)
        for change in turn.changes:
            yield self._change(settings, change, answers.changed)
        for ops in _chunks(turn.runners, chunk):
            yield self._runners(turn.now_ms, ops, answers.runners)
        if turn.claims and not with_last:
            yield self._claim(turn, answers)
        if turn.lookups or turn.notes or turn.recalls or turn.reloads or turn.follow:
            yield from self._reads(turn, answers, chunk)

    def _reads(self, turn: Turn, answers: Answers, chunk: int) -> Iterator[Request]:
        """Yield what tells of running steps, and what only reads."""
        keys = self.keys
        for lookups in _chunks(turn.lookups, chunk):
            index = [keys("job", lookup.job_id) for lookup in lookups]
            flat = [part for lookup in lookups for part in (lookup.from_, lookup.to, lookup.job_id)]
            none: list[Found] = [Found("", None, None)] * len(lookups)
            yield self._script(
                "lookup", index, flat, _each(answers.found, spelling.found), _filling(answers.found, none), Kind.read
            )
        for notes in _chunks(turn.notes, chunk):
            records = [keys("record", note.ref, State.processing.name) for note in notes]
            told = [part for n in notes for part in (n.ref, n.attempt, n.fraction, n.text, n.log)]
            yield self._script("note", records, told, _ignore, _nothing)
        for session in turn.recalls:

            def recalled(reply: Any) -> None:
                answers.recalled.append(tuple(Held(ref.decode(), int(attempt)) for ref, attempt in reply))

            yield self._script("recall", [keys("held", session)], [], recalled, _no_recall(answers), Kind.read)
        for reloads in _chunks(turn.reloads, chunk):
            wanted = [part for held in reloads for part in held]
            yield self._script("recall", [], wanted, _each(answers.reloaded, self._job), _nothing, Kind.read)
        if turn.follow:
            yield self._follow(turn.follow, answers)

    def _script(
        self,
        name: str,
        keys: Sequence[str],
        arguments: Sequence[Argument],
        read: Callable[[Any], None],
        blank: Callable[[], None],
        kind: Kind = Kind.write,
    ) -> Request:
        fence = () if name == "lookup" else (self.epoch,)
        return Request(("FCALL", self.functions[name], len(keys), *keys, *arguments, *fence), read, blank, kind)

    def plain(self, command: str, key: str, *arguments: Argument) -> Request:
        """Make a request of one plain command that writes."""
        return self._script("plain", [key], [command, *arguments], _ignore, _nothing)

    def _submit(
        self, settings: list[Argument], chunk: Sequence[Placed], claims: list[Claim], answers: Answers
    ) -> Request:
        arguments: list[Argument] = [*settings, self.limits.queue_depth, *spelling.spelt_claims(claims)]
        keys = [self.keys("delayed")]
        for placed in chunk:
            job_id = placed.command.job_id
            keys.append(self.keys("job", job_id))
            arguments += (job_id, *spelling.step(placed))

        def read(reply: Any) -> None:
            answers.taken += [NEW if raw == 1 else spelling.taken(raw) for raw in reply[0]]
            if claims:
                self._claimed(claims, reply[1:], answers, chunk, settings[0])

        def blank() -> None:
            answers.taken += [REFUSED] * len(chunk)
            answers.claimed += _none_claimed(claims)

        return self._script("submit", keys, arguments, read, blank)

    def _workflow(self, settings: list[Argument], flows: Sequence[Flow], into: list[Stored]) -> Request:
        arguments: list[Argument] = [*settings, self.limits.queue_depth]
        keys: list[str] = []
        for job_id, steps, graph in flows:
            keys += (self.keys("job", job_id), self.keys("flow", job_id))
            fields = spelling.flow_fields(graph)
            arguments += (job_id, len(steps), len(fields) // 2)
            for placed, first in zip(steps, graph.firsts, strict=True):
                arguments += (first, *spelling.step(placed))
            arguments += fields
        none = [Stored("refused", "", ())] * len(flows)
        return self._script("workflow", keys, arguments, _each(into, spelling.stored), _filling(into, none))

    def _change(self, settings: list[Argument], change: Change, into: list[Changed]) -> Request:
        what, job_id = change

        def read(reply: Any) -> None:
            number, ended = reply
            failed = tuple(spelling.failed(each[:5]) for each in ended)
            into.append(Changed(int(number), failed, tuple(spelling.text(each[5]) for each in ended)))

        arguments = [*settings, what, job_id, CANCELLED]
        return self._script(
            "change", [self.keys("job", job_id)], arguments, read, lambda: into.append(Changed(0, (), ()))
        )

    def _runners(self, now_ms: int, ops: Sequence[RunnerOp], into: list[RunnerDone]) -> Request:
        limits = self.limits
        arguments: list[Argument] = [now_ms, *self._settings[:2], limits.runners, limits.log_bytes]
        keys: list[str] = []
        for op in ops:
            keys += (self.keys("runner", str(op.name)), self.keys("run", *op.name))
            what, *parts = spelling.runner_op(op)
            arguments += (what, str(op.name), len(parts), *parts)

        def read(reply: Any) -> None:
            for op, raw in zip(ops, reply, strict=True):
                done = spelling.done(raw)
                spoilt = bool(done.fields) and self._oddities.spoilt(op.name, done.fields)
                into.append(RunnerDone("spoilt", {}) if spoilt else done)

        refused = [RunnerDone("refused", {})] * len(ops)
        return self._script("runner", keys, arguments, read, _filling(into, refused))

    def _tune(self, tunings: Sequence[Tuning], into: list[str]) -> Request:
        keys, arguments = [self.keys("tuned"), self.keys("timer_changes")], list[Argument]()
        for kind, what, name, fields in tunings:
            keys += (self.keys(kind, name), self.keys(f"{kind}s"))
            most = self.limits.timers if kind == "timer" else 0
            arguments += (what, name, most, len(fields), *(part for pair in fields.items() for part in pair))
        refused = ["refused"] * len(tunings)
        return self._script("tune", keys, arguments, _each(into, spelling.text), _filling(into, refused))

    def _sweep(self, settings: list[Argument], answers: Answers) -> Request:
        def read(reply: Any) -> None:
            answers.next_unfed_ms = int(reply[0])
            answers.swept += [spelling.failed(each) for each in reply[1]]

        return self._script("unfed", [self.keys("standby")], [*settings, MOST_UNFED], read, _nothing)

    def _mend(self, settings: list[Argument], turn: Turn, answers: Answers) -> Request:
        finds = [part for find in turn.finds for part in find]

        def read(reply: Any) -> None:
            answers.looked = spelling.looked(reply)

        def blank() -> None:
            answers.looked = Looked(len(turn.finds))

        arguments = [*settings, MOST_CALLS, MOST_WHOLE, len(turn.known), *turn.known, *finds]
        return self._script("mend", [self.keys("mended")], arguments, read, blank)

    def _follow(self, place: str, answers: Answers) -> Request:
        """Read what was told behind a place: what this turn's own scripts told is among it."""

        def read(reply: Any) -> None:
            answers.followed = news.entries(reply)

        key = self.keys("events")
        if place == NEWEST:
            return Request(("XREVRANGE", key, "+", "-", "COUNT", 1), read, _nothing, Kind.read)
        return Request(("XRANGE", key, news.after(place), "+", "COUNT", MOST_FOLLOWED), read, _nothing, Kind.read)

    def _claim(self, turn: Turn, answers: Answers) -> Request:
        arguments: list[Argument] = [turn.now_ms, *spelling.spelt_claims(turn.claims)]

        def read(reply: Any) -> None:
            self._claimed(turn.claims, reply, answers)

        blank = _filling(answers.claimed, _none_claimed(turn.claims))
        return self._script("claim", [self.keys("delayed")], arguments, read, blank, Kind.claim)

    def _claimed(
        self, claims: list[Claim], reply: Any, answers: Answers, placed: Sequence[Placed] = (), now_ms: Any = 0
    ) -> None:
        """Read what was claimed: jobs, or the places of those among `placed` that were handed out as they came."""
        answers.next_due_ms = int(reply[0])
        for claim, raws in zip(claims, reply[1:], strict=True):
            jobs, ready_ms = [], []
            for raw in raws:
                if type(raw) is int:
                    jobs.append(self._handed_out(placed[raw - 1]))
                    ready_ms.append(now_ms)
                else:
                    jobs.append(self._job(raw))
                    ready_ms.append(int(raw[6]))
            answers.claimed.append(Claimed(claim.session, tuple(jobs), tuple(ready_ms)))

    def _handed_out(self, placed: Placed) -> Job:
        command, options = placed.command, placed.options
        ref = f"{command.from_}:{command.job_id}"
        if not options:
            return Job(ref, 1, command.to, command.cmd, command.data, self.limits.timeout_s)
        timeout_s, traceparent = options.get("timeout_s", self.limits.timeout_s), options.get("traceparent", "")
        return Job(ref, 1, command.to, command.cmd, command.data, float(timeout_s), traceparent)

    def _report(self, settings: list[Argument], chunk: Sequence[Closed], into: list[Ended]) -> Request:
        arguments: list[Argument] = [*settings, self.limits.max_crashes]
        records = []
        attempts = []
        for session, report, jitter, added in chunk:
            ref, attempt, outcome, body, log, began_ms, ended_ms, _ = report
            attempts.append((ref, attempt))
            records.append(self.keys("record", ref, State.processing.name))
            told = session, int(outcome), jitter, str(began_ms), str(ended_ms), log, len(added)
            arguments += (spelling.values(ref, str(attempt), *told), body)
            for placed in added:
                arguments += spelling.step(placed)

        def read(reply: Any) -> None:
            for (ref, attempt), answer in zip(attempts, reply, strict=True):
                if type(answer) is bytes:
                    into.append(Ended(ref, attempt, False, State.data_available, answer.decode(), None))
                elif answer == 0:
                    into.append(Ended(ref, attempt, True, State.start, "", None))
                else:
                    state, peer, body, started, failed = answer
                    into.append(
                        Ended(
                            ref,
                            attempt,
                            False,
                            spelling.STATES[state],
                            spelling.text(peer),
                            spelling.body_of(state, body),
                            started,
                            tuple([spelling.failed(each) for each in failed]),
                        )
                    )

        stale = [Ended(ref, attempt, True, State.start, "", None) for ref, attempt in attempts]
        return self._script("report", records, arguments, read, _filling(into, stale))

    def _release(self, settings: list[Argument], session: str, into: list[tuple[int, list[Ended]]]) -> Request:
        keys = [self.keys("held", session), self.keys("sessions")]
        arguments: list[Argument] = [*settings, session, self.limits.max_losses, self.lost_body, MOST_RELEASED]

        def read(reply: Any) -> None:
            into.append((int(reply[0]), [spelling.failed(each) for each in reply[1]]))

        return self._script("release", keys, arguments, read, lambda: into.append((0, [])))

    def _job(self, raw: Any) -> Job:
        ref, attempt, to, cmd, data, timeout_s, _, traceparent = raw
        return Job(
            ref.decode(),
            int(attempt),
            to.decode(),
            cmd.decode(),
            data,
            float(timeout_s) if timeout_s else self.limits.timeout_s,
            spelling.text(traceparent),
        )


def lost_body(max_losses: int) -> bytes:
    """Return the error a step gets whose workers were lost too often."""
    return codec.pack({"type": "WorkerLost", "message": f"its worker was lost {max_losses} times", "traceback": ""})


CANCELLED = codec.pack({"type": "Cancelled", "message": "it was cancelled", "traceback": ""})


def _packs(items: list[T], size: int, weight: Callable[[T], int]) -> Iterator[list[T]]:
    """Put items together that weigh up to `size`; a heavier one goes alone."""
    pack: list[T] = []
    weighs = 0
    for item in items:
        more = weight(item)
        if pack and weighs + more > size:
            yield pack
            pack, weighs = [], 0
        pack.append(item)
        weighs += more
    if pack:
        yield pack


def _none_claimed(claims: list[Claim]) -> list[Claimed]:
    return [Claimed(claim.session, (), ()) for claim in claims]


def _chunks(items: list[T], size: int) -> list[list[T]]:
    if 0 < len(items) <= size:
        return [items]
    return [items[start : start + size] for start in range(0, len(items), size)]


def _each(into: list[T], read: Callable[[Any], T]) -> Callable[[Any], None]:
    return lambda reply: into.extend(read(item) for item in reply)


def _filling(into: list[T], blanks: list[T]) -> Callable[[], None]:
    return lambda: into.extend(blanks)


def _no_recall(answers: Answers) -> Callable[[], None]:
    return lambda: answers.recalled.append(())


def _ignore(reply: Any) -> None:
    pass


def _nothing() -> None:
    pass
