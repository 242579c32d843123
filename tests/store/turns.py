"""Short ways to write the parts of a turn, and random turns."""

from __future__ import annotations

import random
from typing import Any

from store.fake import Turns

from exesys import codec
from exesys.bus.messages import Held, Job, Note, Outcome, Report
from exesys.command import Command
from exesys.turn import Answers, Claim, Closed, Ended, Lookup, Placed, Taken, Turn

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
    **options: Any,
) -> Placed:
    return Placed(Command(from_, to, cmd, data, job, options), options, peer, due_ms)


def close(
    job: Job | Held,
    outcome: Outcome = Outcome.done,
    session: str = ONE,
    body: bytes = b"",
    jitter: float = 0.0,
    log: str = "",
) -> Closed:
    body = body or (BODY if outcome == Outcome.done else FAILURE)
    return Closed(session, Report(job.ref, job.attempt, outcome, body, log, NOW_MS, NOW_MS + 5), jitter)


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


def refs(jobs: list[Job]) -> list[str]:
    return [job.ref for job in jobs]


class RandomTurns:
    """Turns over few names, so that most of them meet: repeats, races, late and wrong reports."""

    def __init__(self, seed: int, made_up: bool = True) -> None:
        self.rng = random.Random(seed)
        self.made_up = made_up  # also reports of attempts that no claim gave out
        self.now_ms = NOW_MS
        self.given: list[tuple[str, Held]] = []

    def next(self) -> Turn:
        rng = self.rng
        self.now_ms += rng.choice((0, 1, 400, 3000))
        turn = Turn(self.now_ms)
        turn.placed = [self._placed() for _ in range(rng.choice((0, 0, 1, 3)))]
        turn.reports = [self._closed() for _ in range(rng.choice((0, 1, 2)))]
        if rng.random() < 0.15:
            turn.lost = [rng.choice((ONE, TWO))]
        if rng.random() < 0.6:
            ready = [session for session in (ONE, TWO) if session not in turn.lost]
            queues = rng.choice((("default",), ("fast", "default")))
            turn.opened = [*ready]
            turn.claims = [Claim(session, rng.randint(1, 3), queues) for session in ready if rng.random() < 0.7]
        if rng.random() < 0.3:
            turn.lookups = [Lookup(rng.choice("jk"), rng.choice("ab"), rng.choice(("end_job", "x", "x,y")))]
            turn.recalls = [rng.choice((ONE, TWO, THREE))]
        if rng.random() < 0.3:
            turn.reloads = [self._held()[1]]
            turn.notes = [Note(*self._held()[1], rng.choice((-1.0, 0.25)), "half", rng.choice(("", "so far")))]
        return turn

    def heed(self, answers: Answers) -> None:
        """Remember who was given what, so that reports can be right as well as wrong."""
        for claimed in answers.claimed:
            self.given += [(claimed.session, Held(job.ref, job.attempt)) for job in claimed.jobs]

    def _placed(self) -> Placed:
        rng = self.rng
        options: dict[str, Any] = {}
        for name, values in _OPTIONS.items():
            if rng.random() < 0.3:
                options[name] = rng.choice(values)
        to, data = rng.choice(("end_job", "x", "x,y")), rng.choice((b"\xc0", b"\xc0", b"\x01"))
        due_ms = self.now_ms + 1500 if rng.random() < 0.2 else 0
        return place(rng.choice("jk"), rng.choice("ab"), to, "f", data, rng.choice(("", f"{ONE}.7")), due_ms, **options)

    def _held(self) -> tuple[str, Held]:
        if self.given and (self.rng.random() < 0.8 or not self.made_up):
            return self.rng.choice(self.given[-6:])
        # An attempt the store knows nothing of: made up, or its claim was lost.
        ref = self.rng.choice(("a:j", "b:k", "a>x:j", "c:j")) if self.made_up else "nobody:knows"
        return THREE, Held(ref, 9)

    def _closed(self) -> Closed:
        session, held = self._held()
        log = self.rng.choice(("", "printed"))
        outcome = self.rng.choice((Outcome.done, Outcome.failed, Outcome.crashed, Outcome.returned))
        return close(held, outcome, session, jitter=self.rng.choice((0.0, 0.999)), log=log)


_OPTIONS: dict[str, tuple[Any, ...]] = {
    "queue": ("default", "fast"),
    "priority": (0, 4, 9),
    "retries": (0, 1, 5),
    "backoff_s": (0, 0.5, 7),
    "timeout_s": (1.5, 60),
    "result_ttl_s": (60, 90),
}
