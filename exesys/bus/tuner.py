"""What is asked about timers and queues' settings, and how that is answered. Pure.

TUNE is checked and goes into the next turn, before what is sent with it. The
store keeps each as one hash; what they mean is known to those who read them:
the controller for timers, the scripts that hand out jobs for queues.
"""

from __future__ import annotations

from collections.abc import Iterable

from exesys import queues
from exesys.bus import messages as m
from exesys.bus.pending import Pending
from exesys.bus.roster import Peer
from exesys.bus.slate import Slate
from exesys.errors import Conflict, ExesysError, NotFound, QueueFull
from exesys.turn import Answers, Tuning


class Tuner:
    """Takes in TUNE; any peer may send it."""

    def __init__(self, slate: Slate) -> None:
        self._slate = slate

    def tune(self, peer: Peer, message: m.Tune, now: float) -> None:
        """Take a change into the next turn."""
        slate = self._slate
        try:
            tuning = slate.door.tuning(message)
            slate.check_store(now)
        except ExesysError as error:
            slate.say(peer.address, m.Changed(message.tag, -1, list(error.problem)))
            return
        slate.pending.tune(tuning, (peer.session, message.tag))

    def declare(self, before: Iterable[str]) -> None:
        """Set of queues what the ini says, and take away what it said `before` of others. A pause stays."""
        there = {queue.name: queue for queue in self._slate.config.queues}
        nothing = queues.check("merge", "", dict.fromkeys(queues.LIMITS)) | {"origin": ""}
        tunings = [Tuning("queue", "merge", name, nothing) for name in before if name not in there]
        tunings += [Tuning("queue", "put", name, queues.of_section(queue)) for name, queue in there.items()]
        for tuning in tunings:
            self._slate.pending.tune(tuning, ("", 0))

    def apply(self, underway: Pending, answers: Answers) -> None:
        """Answer what the turn under way changed; a queue that was changed may have work to give now."""
        slate = self._slate
        for (session, tag), tuning, verdict in zip(
            underway.tuned_by, underway.turn.tunings, answers.tuned, strict=True
        ):
            if tuning.kind == "queue":
                slate.sated.clear()
            peer = slate.roster.sessions.get(session)
            if peer is None:
                continue
            if verdict in ("changed", "same"):
                slate.say(peer.address, m.Changed(tag, int(verdict == "changed"), None))
            else:
                slate.say(peer.address, m.Changed(tag, -1, list(_why_not(verdict, tuning).problem)))


def _why_not(verdict: str, tuning: Tuning) -> ExesysError:
    kind, name = tuning.kind, tuning.name
    if verdict == "exists":
        text = f"there is a {kind} {name} already, and it is another."
        return Conflict(text, field="name", fix="Remove it first, or choose another name.")
    if verdict == "none":
        return NotFound(f"there is no {kind} {name}.", fix=f"`bin/exesys {kind} list` shows those there are.")
    if verdict == "full":
        return QueueFull(f"there are as many {kind}s as may be.", fix=f"Remove some, or raise [limits] {kind}s.")
    if verdict == "foreign":
        text = (
            f"a key of another kind stands in Redis in the place of the {kind} {name}, or of the list of all {kind}s."
        )
        return Conflict(text, field="name", fix="Rename or delete that key.")
    return ExesysError(f"the store could not write this {kind}.", fix="See router.log for what Redis says.")
