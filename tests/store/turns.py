"""Short ways to write the parts of a turn, and random turns."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

from store.fake import Turns

from exesys import codec
from exesys.bus.messages import Held, Job, Note, Outcome, Report
from exesys.command import END, Command
from exesys.turn import (
    Answers,
    Change,
    Changed,
    Claim,
    Closed,
    Ended,
    Flow,
    Lookup,
    Placed,
    Stored,
    Taken,
    Tuning,
    Turn,
)
from exesys.workflow import Graph

NOW_MS = 1_700_000_000_000
ONE, TWO, THREE = "1" * 16, "2" * 16, "3" * 16  # worker sessions
BODY = codec.pack({"EOJ": 42})
FAILURE = codec.pack({"type": "ValueError", "message": "no", "traceback": ""})


def place(
    job: str = "j",
    from_: str = "a",
    to: str = "end_job",
    cmd: str = "f",
    data: bytes = b"\xc0",
    peer: str = "",
    due_ms: int = 0,
    waits: bool = False,
    **options: Any,
) -> Placed:
    return Placed(Command(from_, to, cmd, data, job, options), options, peer, due_ms, waits)


def wait(from_: str, to: str = END, job: str = "j", **parts: Any) -> Placed:
    """A command that waits to be fed."""
    return place(job, from_, to, waits=True, **parts)


def flow(edges: Iterable[str | Placed], job: str = "j", **parts: Any) -> Flow:
    """A workflow of steps written `from>to`, or of placed ones."""
    steps = [edge if isinstance(edge, Placed) else place(job, *edge.split(">"), **parts) for edge in edges]
    graph = Graph((step.command.from_, step.command.to) for step in steps)
    graph.check(10_000)
    roots = set(graph.roots)
    return Flow(job, tuple(step._replace(waits=n not in roots) for n, step in enumerate(steps)), graph)


def close(
    job: Job | Held,
    outcome: Outcome = Outcome.done,
    session: str = ONE,
    body: bytes = b"",
    jitter: float = 0.0,
    log: str = "",
    added: Sequence[Placed] = (),
) -> Closed:
    body = body or (BODY if outcome == Outcome.done else FAILURE)
    report = Report(job.ref, job.attempt, outcome, body, log, NOW_MS, NOW_MS + 5)
    return Closed(session, report, jitter, tuple(added))


def give(job: Job | Held, value: Any, **parts: Any) -> Closed:
    """Report that an attempt ended with this value."""
    return close(job, body=codec.pack({"EOJ": value}), **parts)


def run(store: Turns, now_ms: int = NOW_MS, **parts: Any) -> Answers:
    return store.run(Turn(now_ms, **parts))


def submit(store: Turns, *placed: Placed, now_ms: int = NOW_MS) -> list[Taken]:
    return run(store, now_ms, placed=list(placed)).taken


def claim(
    store: Turns, most: int = 1, session: str = ONE, queues: tuple[str, ...] = ("default",), now_ms: int = NOW_MS
) -> list[Job]:
    """Claim jobs as the router does for a worker that said HELLO."""
    answers = run(store, now_ms, opened=[session], claims=[Claim(session, most, queues)])
    return list(answers.claimed[0].jobs)


def report(store: Turns, *closed: Closed, now_ms: int = NOW_MS) -> list[Ended]:
    return run(store, now_ms, reports=list(closed)).ended


def send(store: Turns, *flows: Flow, now_ms: int = NOW_MS) -> list[Stored]:
    return run(store, now_ms, flows=list(flows)).stored


def change(store: Turns, what: str, job: str = "j", now_ms: int = NOW_MS) -> Changed:
    return run(store, now_ms, changes=[Change(what, job)]).changed[0]


def refs(jobs: list[Job]) -> list[str]:
    return [job.ref for job in jobs]


def random_edges(rng: random.Random, names: Sequence[str]) -> list[str]:
    """Make a workflow of these names: fan-out of both kinds, fan-in, several roots and ends."""
    edges: list[str] = []
    for place, name in enumerate(names):
        later = [*names[place + 1 :], END]
        for _ in range(rng.choice((1, 1, 1, 2, 3))):
            edge = f"{name}>{','.join(rng.sample(later, min(len(later), rng.choice((1, 1, 2, 3)))))}"
            edges += [edge] if edge not in edges else []
    rng.shuffle(edges)
    return edges


class RandomTurns:
    """Turns over few names, so that most of them meet: repeats, races, late and wrong reports."""

    def __init__(self, seed: int, made_up: bool = True, limits: bool = True) -> None:
        self.rng = random.Random(seed)
        self.made_up = made_up  # also reports of attempts that no claim gave out
        self.limits = limits  # also settings of queues
        self.now_ms = NOW_MS
        self.given: list[tuple[str, Held]] = []
        self.sent: list[Flow] = []

    def next(self) -> Turn:
        rng = self.rng
        self.now_ms += rng.choice((0, 1, 400, 3000))
        turn = Turn(self.now_ms)
        turn.placed = [self._placed() for _ in range(rng.choice((0, 0, 1, 3)))]
        turn.flows = [self._flow() for _ in range(rng.choice((0, 0, 0, 1, 2)))]
        turn.reports = [self._closed() for _ in range(rng.choice((0, 1, 2, 4)))]
        turn.sweep = rng.random() < 0.1
        if rng.random() < 0.15:
            turn.lost = [rng.choice((ONE, TWO))]
        if rng.random() < 0.6:
            ready = [session for session in (ONE, TWO) if session not in turn.lost]
            queues = rng.choice((("default",), ("fast", "default")))
            turn.opened = [*ready]
            turn.claims = [Claim(session, rng.randint(1, 4), queues) for session in ready if rng.random() < 0.7]
        if rng.random() < 0.2 and (self.made_up or not turn.placed):
            # Sent again after a change, a step may be taken that was refused before it: so not both where that counts.
            turn.changes = [Change(rng.choice(("cancel", "retry", "retry", "purge")), rng.choice("jkpqrs"))]
            turn.changes += [Change(rng.choice(("cancel", "retry")), "nobody")] if rng.random() < 0.1 else []
        if self.limits and rng.random() < 0.15:
            turn.tunings = [self._tuning()]
        if rng.random() < 0.3:
            turn.lookups = [Lookup(rng.choice("jkp"), rng.choice("ab"), rng.choice(("end_job", "x", "x,y")))]
            turn.recalls = [rng.choice((ONE, TWO, THREE))]
        if rng.random() < 0.3:
            turn.reloads = [self._held()[1]]
            turn.notes = [Note(*self._held()[1], rng.choice((-1.0, 0.25)), "half", rng.choice(("", "so far")))]
        return turn

    def heed(self, answers: Answers) -> None:
        """Remember who was given what, so that reports can be right as well as wrong."""
        for claimed in answers.claimed:
            self.given += [(claimed.session, Held(job.ref, job.attempt)) for job in claimed.jobs]

    def _tuning(self) -> Tuning:
        values = {
            "paused": ("", "", 1),
            "depth": ("", 3) if self.made_up else ("",),  # sent again, a command may find room that it did not
            "concurrency": ("", 1, 3),
            "key_limit": ("", 2),
        }
        fields = {name: self.rng.choice(choice) for name, choice in values.items() if self.rng.random() < 0.4}
        if self.rng.random() < 0.4:
            fields |= self.rng.choice(({"rate_n": "", "rate_ms": ""}, {"rate_n": 2, "rate_ms": 600_000}))
        return Tuning("queue", "merge", self.rng.choice(("default", "fast")), fields)

    def _options(self) -> dict[str, Any]:
        return {name: self.rng.choice(values) for name, values in _OPTIONS.items() if self.rng.random() < 0.3}

    def _placed(self) -> Placed:
        rng = self.rng
        to, data = rng.choice(("end_job", "x", "x,y", "b", "a,c")), rng.choice((b"\xc0", b"\xc0", b"\x01"))
        due_ms = self.now_ms + 1500 if rng.random() < 0.2 else 0
        waits = rng.random() < 0.5
        due_ms = rng.choice((0, 0, -700)) if waits and not due_ms else due_ms
        peer = rng.choice(("", f"{ONE}.7"))
        return place(rng.choice("jk"), rng.choice("abxy"), to, "f", data, peer, due_ms, waits, **self._options())

    def _flow(self) -> Flow:
        rng = self.rng
        if self.sent and rng.random() < 0.4:
            again = rng.choice(self.sent)
            if rng.random() < 0.3:
                first = again.steps[0]
                other = first._replace(command=first.command._replace(data=b"\x07"))
                again = again._replace(steps=(other, *again.steps[1:]))
            return again
        job = rng.choice("pqrsj")
        edges = random_edges(rng, "abcdxy"[: rng.randint(1, 6)])
        made = flow([place(job, *edge.split(">"), **self._options()) for edge in edges], job)
        late = tuple(
            step._replace(due_ms=rng.choice((-700, self.now_ms + 900))) if rng.random() < 0.2 else step
            for step in made.steps
        )
        self.sent.append(made._replace(steps=late))
        return self.sent[-1]

    def _held(self) -> tuple[str, Held]:
        if self.given and (self.rng.random() < 0.8 or not self.made_up):
            return self.rng.choice(self.given[-6:])
        # An attempt the store knows nothing of: made up, or its claim was lost.
        ref = self.rng.choice(("a:j", "b:k", "a>x:j", "c:j", "b:p")) if self.made_up else "nobody:knows"
        return THREE, Held(ref, 9)

    def _closed(self) -> Closed:
        rng = self.rng
        session, held = self._held()
        log = rng.choice(("", "printed"))
        outcome = rng.choice((Outcome.done, Outcome.done, Outcome.failed, Outcome.crashed, Outcome.returned))
        value = rng.choice((42, "é", None, "long" * 10, {"a": [1.5, b"x"]}))
        body = codec.pack({"EOJ": value}) if outcome == Outcome.done else FAILURE
        added = self._added(held) if outcome == Outcome.done and rng.random() < 0.25 else ()
        return close(held, outcome, session, body, rng.choice((0.0, 0.999)), log, added)

    def _added(self, held: Held) -> list[Placed]:
        rng, job = self.rng, held.ref.partition(":")[2]
        edges = {f"{rng.choice('mnabx')}>{rng.choice(('n', 'x', 'end_job', 'c', 'd,x'))}" for _ in range(3)}
        due_ms = rng.choice((0, 0, -700, self.now_ms + 500))
        return [place(job, *edge.split(">"), due_ms=due_ms, **self._options()) for edge in sorted(edges)]


_OPTIONS: dict[str, tuple[Any, ...]] = {
    "queue": ("default", "fast"),
    "priority": (0, 4, 9),
    "retries": (0, 1, 5),
    "backoff_s": (0, 0.5, 7),
    "timeout_s": (1.5, 60),
    "result_ttl_s": (60, 90),
    "notify": ("http://a.example/x",),
    "key": ("k", "l"),
    "key_limit": (1, 2),
}
