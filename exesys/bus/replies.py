"""What is answered to those who start, stop and restart runners. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from exesys.bus import messages as m
from exesys.bus.slate import Slate
from exesys.errors import Conflict, ExesysError, NotFound, QueueFull, StateError
from exesys.runner import Name


class Origin(NamedTuple):
    """Who is to be told what came of an operation."""

    session: str
    tag: int


@dataclass
class Group:
    """An answer that several operations make together."""

    origin: Origin
    left: int
    changed: int = 0


Asked = Group | Origin | None  # None: nobody waits for it


class Replies:
    """Answers with CHANGED whoever asked, while he is there."""

    def __init__(self, slate: Slate) -> None:
        self._slate = slate

    def answer(self, to: Asked, changed: int) -> None:
        """Tell how many have changed; of a group, once all are known."""
        if isinstance(to, Group):
            to.left -= 1
            to.changed += changed
            if to.left == 0:
                self.answer(to.origin, to.changed)
        elif to is not None:
            self._send(to, m.Changed(to.tag, changed, None))

    def refuse(self, to: Asked, error: ExesysError) -> None:
        """Tell why it was not done; one of a group is not told apart."""
        if isinstance(to, Origin):
            self._send(to, m.Changed(to.tag, -1, list(error.problem)))

    def _send(self, to: Origin, message: m.Changed) -> None:
        peer = self._slate.roster.sessions.get(to.session)
        if peer is not None:
            self._slate.say(peer.address, message)


def not_there(name: Name) -> ExesysError:
    """Make the error for a runner that there is not."""
    fix = "It was never started, or its record has expired. `bin/exesys runner list` shows those there are."
    return NotFound(f"there is no runner {name}.", fix=fix)


def stops(name: Name) -> ExesysError:
    """Make the error for a restart that comes too early."""
    return StateError(f"the runner {name} is stopping.", fix="Restart it when it has stopped.")


def why_not(verdict: str, name: Name) -> ExesysError:
    """Make the error for what the store did not do."""
    if verdict == "conflict":
        fix = "Start it with the same target and data, or give it another uuid."
        return Conflict(f"the runner {name} is there with another target or data.", fix=fix)
    if verdict == "stopped":
        text = f"the stop of {name} is loaded already: run:{name} is 0 in Redis."
        return StateError(text, field="uuid", fix="Use another uuid, or delete that key.")
    if verdict == "none":
        return not_there(name)
    if verdict == "full":
        return QueueFull("there are as many runners as may be.", fix="Stop some, or raise [limits] runners.")
    if verdict == "spoilt":
        text = f"the record of the runner {name} in Redis cannot be read."
        return StateError(text, fix="router.log says what is wrong in it: mend it, or delete it.")
    return ExesysError("the store could not write this runner.", fix="See router.log for what Redis says.")
