"""What can be wrong with a Redis that is there, in words: why it does not work, and the way out. Pure.

Redis begins its errors with a word in capitals. BUSY carries our own short
`reason` for it, and who gets BUSY says the words that stand here.
"""

from __future__ import annotations

from typing import NamedTuple


class Trouble(NamedTuple):
    """One kind: as BUSY names it, in a sentence, and what to do."""

    reason: str
    why: str
    fix: str


AWAY = Trouble("store", "the store is away.", "Send the same again in a moment.")
BUSY = Trouble("pending", "the router has too much under way.", "Send the same again in a moment.")
TAKEN = Trouble(
    "store_taken",
    "another router has taken over the store, so this one writes nothing any more.",
    "Two systems must not share [redis] url and prefix: stop one of them, then `bin/exesys restart` the other.",
)
LAGGING = Trouble(
    "store_lagging",
    "fewer replicas of Redis than [redis] wait_replicas have confirmed what was written.",
    "See `INFO replication` there: start its replicas, or lower wait_replicas. It goes on by itself.",
)
_CLUSTER = Trouble(
    "store_cluster",
    "[redis] url leads to a node of a Redis Cluster that does not hold all of our keys.",
    "Set [redis] prefix to a hash tag such as {s07}, and [redis] url to the node that owns its slot.",
)
_REPLICA = "Give [redis] url the address of the master, or those of the sentinels (sentinel://…)."
_WORDS = {
    "OOM": Trouble(
        "store_full",
        "Redis has reached its maxmemory and refuses to write.",
        "Raise maxmemory there (CONFIG SET maxmemory, and its configuration), or make room. It goes on by itself.",
    ),
    "READONLY": Trouble("store_readonly", "this Redis is a replica and refuses to write.", _REPLICA),
    "MASTERDOWN": Trouble("store_orphaned", "this Redis is a replica that has lost its master.", _REPLICA),
    "LOADING": Trouble(
        "store_loading", "Redis is reading its file.", "Wait until it is through. It goes on by itself."
    ),
    "NOREPLICAS": Trouble(
        "store_noreplicas",
        "Redis has fewer good replicas than its min-replicas-to-write and refuses to write.",
        "Start its replicas, or lower min-replicas-to-write there. It goes on by itself.",
    ),
    "MISCONF": Trouble(
        "store_disk",
        "Redis cannot write its file and refuses to write.",
        "See the log of Redis and make room on its disk. It goes on by itself.",
    ),
    "BUSY": Trouble(
        "store_busy",
        "a script or function of somebody's keeps Redis busy.",
        "End it there: SCRIPT KILL, or FUNCTION KILL. It goes on by itself.",
    ),
    "NOAUTH": Trouble("store_password", "Redis wants a password.", "Put it into [redis] url: redis://:PASSWORD@host."),
    "WRONGPASS": Trouble(
        "store_login",
        "Redis refuses the user or the password of [redis] url.",
        "Correct it. In an address `/`, `?`, `#`, `@` and `:` are written as %2F, %3F, %23, %40 and %3A.",
    ),
    "NOPERM": Trouble(
        "store_forbidden",
        "the ACL user of [redis] url may not do what ExeSys needs.",
        "Give it the rights that docs/redis.md lists.",
    ),
    **dict.fromkeys(("MOVED", "ASK", "CROSSSLOT", "CLUSTERDOWN", "TRYAGAIN"), _CLUSTER),
    "FENCED": TAKEN,
}
BY_REASON = {trouble.reason: trouble for trouble in (*_WORDS.values(), AWAY, LAGGING, BUSY)}


def of(text: str) -> Trouble | None:
    """Tell what an error of Redis means for all that is asked of it; None: it concerns one request."""
    return _WORDS.get(text.partition(" ")[0])


def named(reason: str) -> Trouble | None:
    """Return the trouble that BUSY names; None when it is none that is known."""
    known = BY_REASON.get(reason)
    return known or (AWAY if reason.startswith("store") else None)
