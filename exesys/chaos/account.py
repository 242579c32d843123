"""The exact account: what was accepted, what ran, what Redis holds, and where these differ. Pure."""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from exesys.chaos.plan import Step

WELL, FAILED = "data_available", "error"


class Run(NamedTuple):
    """One run: the attempt, its token, and when it came to its end, None if it did not.

    Seconds of the monotonic clock.
    """

    attempt: int
    token: str
    ended_s: float | None = None

    @property
    def began_s(self) -> float:
        """When it began: the token says that, behind the pid."""
        return int(self.token.partition(".")[2] or 0) / 1e9


class Record(NamedTuple):
    """A step as Redis has it. `body` is the value, or the error's type, message and traceback.

    `expires`: whether Redis is to forget it at some time.
    """

    state: str
    attempt: int
    body: Any
    expires: bool = True


class Life(NamedTuple):
    """One life of a runner, as it wrote itself: seconds of the monotonic clock."""

    epoch: int
    pid: int
    first_s: float
    last_s: float


class Account:
    """Takes what was found, and tells what is wrong with it."""

    def __init__(self) -> None:
        self.costly: list[tuple[float, float]] = []  # when results could be lost that no router had: from, to
        self.faults: list[str] = []
        self.rows: dict[str, Counter[str]] = {}  # kind of step -> what became of how many

    @property
    def exact(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.faults

    def steps(
        self,
        steps: Iterable[Step],
        records: Mapping[str, Sequence[Record]],
        runs: Mapping[str, Sequence[Run]],
        heard: Mapping[str, Any],
    ) -> None:
        """Account for accepted steps.

        `records` has for each ref all states it stands in, `runs` for each
        mark what ran, `heard` for some refs the result that a client was told.
        """
        for step in steps:
            row = self.rows.setdefault(step.kind, Counter())
            row["accepted"] += 1
            found = records.get(step.ref, ())
            ran = runs.get(step.mark, ())
            wrong = self._end(step, found) or self._runs(step, found[0], ran) or self._value(step, found[0], ran)
            wrong = wrong or self._lost(found[0], ran)
            if not wrong and step.ref in heard and heard[step.ref] != found[0].body:
                wrong = f"a client was told {heard[step.ref]!r:.150}, and Redis holds {found[0].body!r:.150}"
            if not wrong and step.feeders:
                wrong = self._fed(step, found[0], records)
            if wrong:
                row["wrong"] += 1
                self.faults.append(f"{step.kind} {step.ref}: {wrong}.")
            else:
                row["ended in error, as planned" if step.number is None else "ended well"] += 1
            row["ran again"] += len(ran) > 1

    @staticmethod
    def _end(step: Step, found: Sequence[Record]) -> str:
        if not found:
            return "it was accepted and is nowhere"
        if len(found) > 1:
            return f"it stands in {' and '.join(record.state for record in found)}"
        if found[0].state not in (WELL, FAILED):
            return f"it has not ended: it stands in {found[0].state}"
        return "" if found[0].expires else "its record never expires"

    @staticmethod
    def _runs(step: Step, record: Record, runs: Sequence[Run]) -> str:
        attempts = [run.attempt for run in runs]
        if len(set(attempts)) < len(attempts):
            return f"an attempt ran twice: {attempts}"
        if len(runs) > record.attempt:
            return f"it ran {len(runs)} times in {record.attempt} attempts"
        return ""

    @staticmethod
    def _value(step: Step, record: Record, runs: Sequence[Run]) -> str:
        if step.number is None:
            if record.state == FAILED and record.body.get("message") == "as planned":
                return ""
            return f"it should have failed as planned, and ended in {record.state} with {record.body!r:.150}"
        if record.state == FAILED:
            return f"it ended in error: {record.body!r:.200}"
        if record.body.get("number") != step.number:
            return f"its result is {record.body.get('number')!r}, and {step.number} is right"
        token = record.body.get("token")
        by = next((run.attempt for run in runs if run.token == token), None)
        if by is None:
            return f"its result is of no run that was marked ({token})"
        if by != record.attempt:
            return f"its result is that of attempt {by}, and {record.attempt} was the last handed out"
        return ""

    def _lost(self, record: Record, runs: Sequence[Run]) -> str:
        """Find a result that a worker had and that was not kept, although nothing befell the worker."""
        kept = record.body.get("token")
        for run in runs:
            if run.ended_s is None or run.token == kept:
                continue
            if not self._costly(run.ended_s):
                return f"attempt {run.attempt} came to its end, its worker lived on, and it ran again"
        return ""

    @staticmethod
    def _fed(step: Step, record: Record, records: Mapping[str, Sequence[Record]]) -> str:
        gave = sorted(str(found.body.get("token")) for ref in step.feeders for found in records.get(ref, ()))
        if sorted(record.body["given"]) != gave:
            return f"it was fed by the runs {record.body['given']}, and its feeders' results are of {gave}"
        return ""

    def keys(self, steps: Iterable[Step], runs: Mapping[str, Sequence[Run]]) -> None:
        """Account for keys: two steps of one key did not run at once, but where a worker was not heard."""
        by_key: dict[str, list[tuple[float, float, str]]] = defaultdict(list)
        for step in steps:
            for run in runs.get(step.mark, ()) if step.key else ():
                if run.ended_s is not None:
                    by_key[step.key].append((run.began_s, run.ended_s, step.ref))
        for key, found in by_key.items():
            for before, after in itertools.pairwise(sorted(found)):
                if after[0] < before[1] and not self._costly(after[0]):
                    self.faults.append(f"two steps of the key {key} ran at once: {before[2]} and {after[2]}.")

    def _costly(self, at_s: float) -> bool:
        return any(since <= at_s <= until for since, until in self.costly)

    def ticked(self, name: str, count: int, due: float, slack: float) -> None:
        """Account for how often a timer ticked, with `slack` for clocks that were set."""
        if abs(count - due) > 0.02 * due + 5 + slack:
            self.faults.append(f"the timer {name} ticked {count} times, and {due:.0f} ticks were due.")

    def ticks(self, records: Mapping[str, Sequence[Record]], runs: Mapping[str, Sequence[Run]], number: int) -> None:
        """Account for the jobs of timers; each gives `number`."""
        found = [Step("timer", ref, "timer", "end_job", number) for ref, states in records.items() if states]
        self.steps(found, records, runs, {})

    def lives(self, name: str, lives: Sequence[Life], stopped_s: float | None) -> None:
        """Account for one runner: its lives in order, and when its stop was confirmed."""
        row = self.rows.setdefault("runner", Counter())
        row["accepted"] += 1
        row["ran again"] += len(lives) > 1
        wrong = "" if lives else "it never lived"
        if len({life.epoch for life in lives}) < len(lives):
            wrong = f"an epoch lived twice: {[life.epoch for life in lives]}"
        for before, after in itertools.pairwise(lives):
            if before.last_s >= after.first_s:
                wrong = f"two lives at once: {before} and {after}"
        if lives and stopped_s is not None and lives[-1].last_s > stopped_s:
            wrong = f"it wrote {lives[-1].last_s - stopped_s:.2f} s after its stop was confirmed"
        row["wrong" if wrong else "ended well"] += 1
        if wrong:
            self.faults.append(f"runner {name}: {wrong}.")

    def left(self, what: str, names: Sequence[str]) -> None:
        """Account for what should not be there any more."""
        if names:
            shown = ", ".join(names[:5]) + (" …" if len(names) > 5 else "")
            self.faults.append(f"{len(names)} {what} left: {shown}.")

    def wrong(self, text: str) -> None:
        """Take what somebody else found wrong."""
        self.faults.append(text)


def read_runs(lines: Iterable[str]) -> dict[str, list[Run]]:
    """Read the file of marks: for each mark its runs, in order of their begin."""
    runs: dict[str, dict[str, Run]] = defaultdict(dict)
    for line in lines:
        mark, attempt, token, *ended = line.split()
        runs[mark][token] = Run(int(attempt), token, float(ended[0]) if ended else None)
    return {mark: list(found.values()) for mark, found in runs.items()}


def read_lives(lines: Iterable[str]) -> list[Life]:
    """Read the file of one runner; the last line of a life may have been cut by a kill."""
    found: dict[tuple[int, int], list[float]] = defaultdict(list)
    for line in lines:
        parts = line.split()
        if len(parts) == 3:
            found[int(parts[0]), int(parts[1])].append(float(parts[2]))
    return sorted(Life(epoch, pid, min(times), max(times)) for (epoch, pid), times in found.items())
