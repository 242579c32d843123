"""Publishing what happens to steps, as long as somebody listens. Pure.

The store notes each change in a stream, in the commit that makes it. While
somebody subscribes to `ev.step`, each turn also reads what it has added there
and publishes it, with the place where it begins: so a subscriber sees when
something is missing between two.
"""

from __future__ import annotations

from exesys.bus import messages as m
from exesys.bus.effects import Publish
from exesys.bus.slate import Slate
from exesys.turn import MOST_FOLLOWED, NEWEST, Answers, Turn

TOPIC = "ev.step"


class Herald:
    """Follows the store's stream for those who subscribe."""

    def __init__(self, slate: Slate) -> None:
        self._slate = slate
        self._place = ""  # of the newest entry that was published; "": not known
        self._behind = False
        self.wanted = False

    def listened_to(self, wanted: bool) -> None:
        """Somebody subscribes, or nobody does any more."""
        if wanted != self.wanted:
            self.wanted, self._place, self._behind = wanted, "", wanted

    def beat(self) -> str:
        """Publish an empty piece, by which a subscriber knows that it hears. Returns the topic."""
        if self._place:
            self._publish(self._place, self._place, [])
        return TOPIC

    def plan(self, turn: Turn) -> None:
        """Have the turn read what is new, if there is a turn or more is known to be there."""
        if self.wanted and (turn or self._behind):
            turn.follow = self._place or NEWEST

    def applied(self, turn: Turn, answers: Answers) -> None:
        """Publish what a turn has read."""
        if not turn.follow or answers.followed is None or not self.wanted:
            return
        found = answers.followed
        self._behind = False
        if turn.follow == NEWEST:
            self._place = found[0].id if found else "0-0"
            self._publish(self._place, self._place, [])
        elif found:
            self._behind = len(found) == MOST_FOLLOWED
            self._publish(self._place, found[-1].id, [[entry.id, dict(entry.fields)] for entry in found])
            self._place = found[-1].id

    def _publish(self, before: str, place: str, entries: list[list[object]]) -> None:
        # It has places of its own: `seq`, which counts what must not be missed, stays as it is.
        event = m.Event(self._slate.epoch, self._slate.seq, [before, place, entries])
        self._slate.effects.append(Publish(TOPIC, event))
