"""What the router asks of the store about runners, turn by turn. Pure."""

from __future__ import annotations

from collections import deque

from exesys.bus.replies import Asked
from exesys.bus.tenants import size_of
from exesys.turn import Loglines, RunnerDone, RunnerOp

MOST_IN_TURN = 200
MOST_BYTES_IN_TURN = 4 << 20
MOST_WAITING = 20_000  # operations for the turns to come
MOST_LOG_BYTES = 8 << 20


class Agenda:
    """The operations of the turns to come, in order, and what runners printed, after all else."""

    def __init__(self) -> None:
        self._ops: list[tuple[RunnerOp, Asked]] = []
        self._underway: list[tuple[RunnerOp, Asked]] = []
        self._logs: deque[Loglines] = deque()
        self._log_bytes = 0

    def __len__(self) -> int:
        return len(self._ops)

    @property
    def full(self) -> bool:
        """Whether clients have to come again."""
        return len(self._ops) > MOST_WAITING

    def add(self, op: RunnerOp, asked: Asked = None) -> None:
        """Take an operation in; `asked` is who waits for its answer."""
        self._ops.append((op, asked))

    def log(self, lines: Loglines) -> None:
        """Have what was printed stored; while the store is away, of too much the newest."""
        self._logs.append(lines)
        self._log_bytes += len(lines.text)
        while self._log_bytes > MOST_LOG_BYTES:
            self._log_bytes -= len(self._logs.popleft().text)

    def take(self) -> list[RunnerOp]:
        """Return the operations of the next turn, by number and by size as many as it should have."""
        if not (self._ops or self._logs):
            return []
        size = number = 0
        for op, _ in self._ops[:MOST_IN_TURN]:
            size += size_of(op)
            if number and size > MOST_BYTES_IN_TURN:
                break
            number += 1
        self._underway, self._ops = self._ops[:number], self._ops[number:]
        while self._logs and len(self._underway) < MOST_IN_TURN and size < MOST_BYTES_IN_TURN:
            lines = self._logs.popleft()
            self._log_bytes -= len(lines.text)
            size += len(lines.text)
            self._underway.append((lines, None))
        return [op for op, _ in self._underway]

    def done(self, answers: list[RunnerDone]) -> list[tuple[RunnerOp, Asked, RunnerDone]]:
        """Return the turn under way with its answers. Raises ValueError if these are not as many."""
        underway, self._underway = self._underway, []
        return [(op, asked, answer) for (op, asked), answer in zip(underway, answers, strict=True)]
