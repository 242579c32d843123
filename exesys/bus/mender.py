"""What the controller found in the store, and is to be looked at and mended. Pure.

The router is the only writer of job state, so what the controller walks past
is looked at here, a little in each turn. Where the store was mended, what is
kept in memory follows: a session that nobody knows gets a lease to come back
and is then released, as after a restart; a worker that was given back what it
holds is asked for nothing until the store has said what that is.
"""

from __future__ import annotations

from exesys.bus import messages as m
from exesys.bus.pending import Pending
from exesys.bus.roster import Peer
from exesys.bus.slate import Slate
from exesys.turn import Answers, Looked, Turn

MOST_FINDS = 200  # of one MEND; what is more is for the next


class Mender:
    """Takes in MEND, one at a time."""

    def __init__(self, slate: Slate) -> None:
        self._slate = slate
        slate.figures |= {"looked": 0, "mended": 0}

    def mend(self, peer: Peer, message: m.Mend, now: float) -> None:
        """Take finds into the next turn; none while it has some, or while the store is late."""
        pending = self._slate.pending
        if self._slate.late(now) or pending.turn.finds or not message.finds:
            self._slate.say(peer.address, m.Mended(message.tag, 0, (), ()))
            return
        pending.turn.finds = list(message.finds[:MOST_FINDS])
        pending.found_by = peer.session, message.tag

    def plan(self, turn: Turn) -> None:
        """Tell the store which sessions are here, or may come back, or are released in this turn."""
        if turn.finds:
            turn.known = [*self._slate.roster.awaited(), *turn.lost]

    def apply(self, underway: Pending, answers: Answers, now: float) -> None:
        """Follow what was mended, and answer."""
        looked, slate = answers.looked, self._slate
        if looked is None:
            return
        slate.figures["looked"] += looked.done
        slate.figures["mended"] += len(looked.repairs)
        self._follow(looked, now)
        session, tag = underway.found_by
        peer = slate.roster.sessions.get(session)
        if peer is not None:
            slate.say(peer.address, m.Mended(tag, looked.done, looked.again, looked.repairs))

    def _follow(self, looked: Looked, now: float) -> None:
        roster, turn = self._slate.roster, self._slate.pending.turn
        known = {*roster.awaited(), *turn.lost}
        strays = [session for session in dict.fromkeys(looked.strays) if session not in known]
        roster.expect([session for session in strays if session not in roster.sessions], now)
        # That of a peer of another role is no worker's: nobody is to be given up for it.
        turn.lost += [session for session in strays if session in roster.sessions]
        for session in dict.fromkeys(looked.rejoined):
            worker = roster.workers.get(session)
            if worker is not None:
                worker.recalled = False
                turn.recalls.append(session)
        for ended in looked.ended:
            self._slate.ended(ended)
        if looked.repairs:
            self._slate.sated.clear()
