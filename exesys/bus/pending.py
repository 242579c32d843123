"""What came in for the router's next turn, and for whom. Pure.

A turn is bounded in jobs and in bytes, so that the store is through with it
in milliseconds; what is too much waits for the turn after it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from exesys.bus import messages as m
from exesys.turn import Change, Claim, Closed, Flow, Placed, Tuning, Turn

MOST_IN_TURN = 2000
MOST_BYTES_IN_TURN = 4 << 20
MOST_CHANGES_IN_TURN = 50  # each is of a whole job

Origin = tuple[str, int, bool]  # session, tag, notify


@dataclass
class Pending:
    """What came in since the last turn, and for whom."""

    turn: Turn = field(default_factory=Turn)
    placed_by: list[Origin] = field(default_factory=list)
    asked_by: list[Origin] = field(default_factory=list)
    flowed_by: list[list[Origin]] = field(default_factory=list)
    changed_by: list[tuple[str, int]] = field(default_factory=list)
    tuned_by: list[tuple[str, int]] = field(default_factory=list)
    found_by: tuple[str, int] = ("", 0)
    flow_steps: int = 0
    report_steps: int = 0  # the reports, and the steps they add
    reload_for: dict[m.Held, str] = field(default_factory=dict)
    reported: set[tuple[str, int]] = field(default_factory=set)  # a worker resends until it is answered
    bytes: int = 0  # of data placed, and of reports
    planned_at: float = 0.0  # when its turn was sent
    asked: list[Claim] = field(default_factory=list)  # what its turn claims

    def place(self, placed: Placed, origin: Origin) -> None:
        """Take a command into the next turn."""
        self.turn.placed.append(placed)
        self.placed_by.append(origin)
        self.bytes += len(placed.command.data)

    def place_flow(self, flow: Flow, origins: list[Origin]) -> None:
        """Take a workflow into the next turn."""
        self.turn.flows.append(flow)
        self.flowed_by.append(origins)
        self.flow_steps += len(flow.steps)
        self.bytes += _data_of(flow.steps)

    def report(self, closed: Closed) -> None:
        """Take a report into the next turn."""
        self.turn.reports.append(closed)
        _, (_, _, _, body, log, _, _, _), _, added = closed
        self.report_steps += 1
        self.bytes += len(body) + len(log)
        if added:
            self.report_steps += len(added)
            self.bytes += _data_of(added)

    def change(self, change: Change, origin: tuple[str, int]) -> None:
        """Take a cancel, retry or purge into the next turn."""
        self.turn.changes.append(change)
        self.changed_by.append(origin)

    def tune(self, tuning: Tuning, origin: tuple[str, int]) -> None:
        """Take a change of a timer or of a queue's settings into the next turn."""
        self.turn.tunings.append(tuning)
        self.tuned_by.append(origin)

    @property
    def waiting(self) -> int:
        """How much clients have asked for, in steps and questions."""
        turn = self.turn
        return len(turn.placed) + len(turn.lookups) + len(turn.changes) + len(turn.tunings) + self.flow_steps

    def leave(self) -> Pending:
        """Take out what is too much for one turn, and return it."""
        rest, turn = Pending(), self.turn
        most = max(len(turn.placed), len(turn.lookups), self.report_steps, self.flow_steps)
        much = most > MOST_IN_TURN or self.bytes > MOST_BYTES_IN_TURN or len(turn.changes) > MOST_CHANGES_IN_TURN
        if not much:
            return rest
        cut, _, placed_bytes = _cut((1, len(placed.command.data)) for placed in turn.placed)
        rest.turn.placed, rest.placed_by = turn.placed[cut:], self.placed_by[cut:]
        del turn.placed[cut:], self.placed_by[cut:]
        cut, flow_steps, flow_bytes = _cut((len(flow.steps), _data_of(flow.steps)) for flow in turn.flows)
        rest.turn.flows, rest.flowed_by = turn.flows[cut:], self.flowed_by[cut:]
        del turn.flows[cut:], self.flowed_by[cut:]
        cut, report_steps, report_bytes = _cut((1 + len(closed.added), _size(closed)) for closed in turn.reports)
        rest.turn.reports = turn.reports[cut:]
        rest.reported = {(closed.report.ref, closed.report.attempt) for closed in rest.turn.reports}
        del turn.reports[cut:]
        rest.flow_steps = self.flow_steps - flow_steps
        rest.report_steps = self.report_steps - report_steps
        rest.bytes = self.bytes - placed_bytes - flow_bytes - report_bytes
        rest.turn.lookups, rest.asked_by = turn.lookups[MOST_IN_TURN:], self.asked_by[MOST_IN_TURN:]
        del turn.lookups[MOST_IN_TURN:], self.asked_by[MOST_IN_TURN:]
        if turn.changes:
            self._leave_changes(rest)
        return rest

    def _leave_changes(self, rest: Pending) -> None:
        """Leave those that are too many, and those of jobs that are left: they came after these."""
        jobs = {placed.command.job_id for placed in rest.turn.placed} | {flow.job_id for flow in rest.turn.flows}
        pairs = list(zip(self.turn.changes, self.changed_by, strict=True))
        self.turn.changes, self.changed_by = [], []
        for change, origin in pairs:
            late = change.job_id in jobs or len(self.turn.changes) >= MOST_CHANGES_IN_TURN
            (rest if late else self).change(change, origin)


def _data_of(steps: Iterable[Placed]) -> int:
    return sum(len(placed.command.data) for placed in steps)


def _size(closed: Closed) -> int:
    return len(closed.report.body) + len(closed.report.log) + _data_of(closed.added)


def _cut(sizes: Iterable[tuple[int, int]]) -> tuple[int, int, int]:
    """Return how many of these (steps, bytes) fit into a turn, at least one, and their sums."""
    number = steps = size = 0
    for more, larger in sizes:
        if number and (steps + more > MOST_IN_TURN or size + larger > MOST_BYTES_IN_TURN):
            break
        number, steps, size = number + 1, steps + more, size + larger
    return number, steps, size
