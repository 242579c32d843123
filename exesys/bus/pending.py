"""What came in for the router's next turn, and for whom. Pure.

A turn is bounded in jobs and in bytes, so that the store is through with it
in milliseconds; what is too much waits for the turn after it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from exesys.bus import messages as m
from exesys.turn import Closed, Flow, Placed, Turn

MOST_IN_TURN = 2000
MOST_BYTES_IN_TURN = 4 << 20

Origin = tuple[str, int, bool]  # session, tag, notify


@dataclass
class Pending:
    """What came in since the last turn, and for whom."""

    turn: Turn = field(default_factory=Turn)
    placed_by: list[Origin] = field(default_factory=list)
    asked_by: list[Origin] = field(default_factory=list)
    flowed_by: list[list[Origin]] = field(default_factory=list)
    changed_by: list[tuple[str, int]] = field(default_factory=list)
    flow_steps: int = 0
    reload_for: dict[m.Held, str] = field(default_factory=dict)
    reported: set[tuple[str, int]] = field(default_factory=set)  # a worker resends until it is answered
    bytes: int = 0  # of data placed, and of reports

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
        self.bytes += sum(len(placed.command.data) for placed in flow.steps)

    def leave(self) -> Pending:
        """Take out what is too much for one turn, and return it."""
        rest, turn = Pending(), self.turn
        most = max(len(turn.placed), len(turn.lookups), len(turn.reports), self.flow_steps)
        if most <= MOST_IN_TURN and self.bytes <= MOST_BYTES_IN_TURN:
            return rest
        cut = _cut([len(placed.command.data) for placed in turn.placed])
        rest.turn.placed, rest.placed_by = turn.placed[cut:], self.placed_by[cut:]
        del turn.placed[cut:], self.placed_by[cut:]
        cut = _cut_flows([len(flow.steps) for flow in turn.flows])
        rest.turn.flows, rest.flowed_by = turn.flows[cut:], self.flowed_by[cut:]
        del turn.flows[cut:], self.flowed_by[cut:]
        rest.turn.lookups, rest.asked_by = turn.lookups[MOST_IN_TURN:], self.asked_by[MOST_IN_TURN:]
        del turn.lookups[MOST_IN_TURN:], self.asked_by[MOST_IN_TURN:]
        cut = _cut([_size(closed) for closed in turn.reports])
        rest.turn.reports = turn.reports[cut:]
        rest.reported = {(closed.report.ref, closed.report.attempt) for closed in rest.turn.reports}
        del turn.reports[cut:]
        rest.flow_steps = sum(len(flow.steps) for flow in rest.turn.flows)
        rest.bytes = sum(len(placed.command.data) for placed in rest.turn.placed)
        rest.bytes += sum(len(placed.command.data) for flow in rest.turn.flows for placed in flow.steps)
        rest.bytes += sum(_size(closed) for closed in rest.turn.reports)
        return rest


def _size(closed: Closed) -> int:
    return len(closed.report.body) + len(closed.report.log)


def _cut_flows(sizes: list[int]) -> int:
    """Return how many workflows of these numbers of steps fit into a turn, at least one."""
    total = 0
    for number, size in enumerate(sizes):
        total += size
        if total > MOST_IN_TURN and number:
            return number
    return len(sizes)


def _cut(sizes: list[int]) -> int:
    """Return how many of these fit into a turn, at least one."""
    total = 0
    for count, size in enumerate(sizes[:MOST_IN_TURN]):
        total += size
        if total > MOST_BYTES_IN_TURN and count:
            return count
    return MOST_IN_TURN
