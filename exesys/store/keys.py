"""Every key name, for Python and for the Lua scripts alike.

The table below is the only place that knows how a key is spelled; `prelude`
turns it into Lua functions that stand before every script. All names begin
with one prefix, empty by default, so that a shard can own `{s07}`.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from exesys.command import REF
from exesys.states import State

# name -> (pattern, what is there)
PATTERNS: dict[str, tuple[str, str]] = {
    "record": ("%s:%s", "hash: a step; its ref and its state's name"),
    "job": ("exesys:job:%s", "hash: the steps of a job, first part of their ref -> to; `:open` …; see recount.lua"),
    "flow": ("exesys:flow:%s", "hash: the graph of a job of several steps; see graph.lua"),
    "recount": ("exesys:recount:%s", "hash: the new graph of a job that is counted anew; see recount.lua"),
    "tallied": ("exesys:tallied:%s", "hash: what that has of each step; see tally.lua"),
    "recount_left": ("exesys:recount-left:%s", "list: what is to be done next for that"),
    "log": ("exesys:log:%s", "hash: attempt -> what that attempt printed and logged"),
    "ready": ("exesys:ready:%s", "sorted set: refs of a queue by (9 - priority) * 2^45 + order"),
    "lane": ("exesys:lane:%s", "sorted set: refs of a queue that have one key, as in ready; queue=key"),
    "turns": ("exesys:turns:%s", "sorted set: keys of a queue by the score of their next turn"),
    "keyed": ("exesys:keyed:%s", "set: refs of a queue that wait in lanes"),
    "running": ("exesys:running:%s", "set: refs that run, of a queue with a limit, or of a key: queue=key"),
    "starts": ("exesys:starts:%s", "sorted set: what began lately in a queue with a rate, by the millisecond"),
    "held": ("exesys:held:%s", "sorted set: refs a worker session holds, with their ready score"),
    "delayed": ("exesys:delayed", "sorted set: refs by the millisecond they are due"),
    "standby": ("exesys:standby", "sorted set: refs that nothing feeds yet, by the millisecond they are given up"),
    "dead": ("exesys:dead", "sorted set: refs in error by the millisecond they failed"),
    "callbacks": ("exesys:callbacks", "sorted set: refs whose end is to be told, by the millisecond of the next try"),
    "callback": ("exesys:callback:%s", "hash: what is to be told of a step's end, or how that went; see graph.lua"),
    "callback_counts": ("exesys:callback-counts", "hash: how many callbacks were tried, sent, failed"),
    "events": ("exesys:events", "stream: what changed last, for those who follow; see news.lua"),
    "jobs": ("exesys:jobs", "stream: job_ids in order of arrival"),
    "order": ("exesys:order", "integer: the last order number given out"),
    "sessions": ("exesys:sessions", "set: worker sessions that may hold jobs"),
    "functions": ("exesys:functions", "msgpack: the catalogue the workers announced last"),
    "epoch": ("exesys:epoch", "integer: of the router that holds the store; rises at each start of one"),
    "server": ("exesys:server", "text: the replication id of the server a router last connected to"),
    "format": ("exesys:format", "integer: the form of all this"),
    "lineage": ("exesys:lineage", "list: lives of the router, and the turn that each found; see lineage.py"),
    "turn": ("exesys:turn", "text: epoch and number of the last turn committed"),
    "controller": ("exesys:controller", "text: session of the active controller; expires"),
    "runners": ("exesys:runners", "set: type:uuid of every runner not ended"),
    "runner": ("exesys:runner:%s", "hash: a runner, by its type:uuid"),
    "runner_log": (
        "exesys:runner-log:%s",
        "text: the end of what a runner printed and logged",
    ),
    "ended": ("exesys:ended", "sorted set: runners that have ended, by the millisecond"),
    "queue": ("exesys:queue:%s", "hash: what is set of a queue"),
    "queues": ("exesys:queues", "set: the queues that were used or set, but for the default"),
    "timer": ("exesys:timer:%s", "hash: a timer, as it was declared"),
    "timer_state": ("exesys:timer-state:%s", "hash: how far a timer is; the active controller writes it"),
    "timers": ("exesys:timers", "set: all timers"),
    "mended": ("exesys:mended", "hash: what was mended, by its kind: how often, and `:at` when last"),
    "timer_changes": ("exesys:timer-changes", "sorted set: timers by the number of their last change; see tuned"),
    "tuned": ("exesys:tuned", "integer: how often a queue's settings or a timer were changed"),
    "run": ("run:%s:%s", "text: 1 while the runner of this type and uuid shall run, 0 to stop it"),
}


class Spelled(NamedTuple):
    """What a key is: its name in `PATTERNS` and the parts it was filled with."""

    name: str
    parts: tuple[str, ...]


def _reading(pattern: str) -> re.Pattern[str]:
    # Of two parts the first has no colon: that of `run`. A record is read by itself.
    pieces = [re.escape(piece) for piece in pattern.split("%s")]
    groups = ["([^:]*)"] * (len(pieces) - 2) + ["(.*)"] * (len(pieces) > 1)
    return re.compile("".join(part for pair in zip(pieces, [*groups, ""], strict=True) for part in pair), re.DOTALL)


_READINGS = [(name, _reading(pattern)) for name, (pattern, _) in PATTERNS.items() if name != "record"]
_OWN = {pattern.partition(":")[0] for name, (pattern, _) in PATTERNS.items() if name != "record"}


class Keys:
    """Spells key names under one prefix (a Redis Cluster hash tag, or "")."""

    def __init__(self, prefix: str = "") -> None:
        self.prefix = prefix

    def __call__(self, name: str, *parts: str) -> str:
        """Spell the key `name` of `PATTERNS`, filled with `parts`."""
        return self.prefix + PATTERNS[name][0] % parts

    def read(self, key: str) -> Spelled | None:
        """Tell what a key is, as `keys(*read)` spells it. None: it is not one of ours."""
        if not key.startswith(self.prefix):
            return None
        bare = key.removeprefix(self.prefix)
        if bare.partition(":")[0] in _OWN:
            found = ((name, reading.fullmatch(bare)) for name, reading in _READINGS)
            return next((Spelled(name, match.groups()) for name, match in found if match), None)
        ref, _, state = bare.rpartition(":")
        known = state in State.__members__ and REF.fullmatch(ref)
        return Spelled("record", (ref, state)) if known else None

    def prelude(self) -> str:
        """Return Lua that defines `key.NAME(…)` and the table `STATES`."""
        lines = [f"local STATES = {{{', '.join(repr(state.name) for state in State)}}}", "local key = {}"]
        for name, (pattern, _) in PATTERNS.items():
            arguments = ["a", "b"][: pattern.count("%s")]
            pieces = (self.prefix + pattern).split("%s")
            spelled = " .. ".join(
                part
                for pair in zip([f"'{piece}'" for piece in pieces], [*arguments, "''"], strict=True)
                for part in pair
                if part != "''"
            )
            lines.append(f"function key.{name}({', '.join(arguments)}) return {spelled} end")
        return "\n".join(lines) + "\n"
