"""How the replica of the private Redis does: whether it follows, how far it is behind, and why it does not."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

from exesys import servers
from exesys.config import Config
from exesys.errors import Unavailable

if TYPE_CHECKING:
    from exesys.store.snapshot import Source

IN_SYNC, SYNCING, PARTED, AWAY = "in sync", "syncing", "not following", "away"
SLOW_S = 10


class Following(NamedTuple):
    """`state` is one of those above; `reason` says why it is not in sync.

    `behind_bytes` is what the replica has not yet of what the master has
    written, in bytes of the replication stream, and `silent_s` how long it
    heard nothing; None where that is not known.
    """

    state: str
    behind_bytes: int | None = None
    silent_s: int | None = None
    reason: str = ""

    def __str__(self) -> str:
        if self.state == IN_SYNC:
            return f"{self.state}, {self.behind_bytes} bytes behind"
        return f"{self.state}: {self.reason}"


def look(config: Config) -> Following:
    """Ask both servers."""
    from exesys.store import lineage  # who only asks whether there is a replica need not wait for these
    from exesys.store.snapshot import Source

    prefix = config.redis.prefix
    with (
        contextlib.closing(Source(config.redis_url, prefix)) as master,
        contextlib.closing(Source(servers.replica_url(config), prefix)) as replica,
    ):
        try:
            # In this order what comes in between is not taken for a lag.
            reached = master.replication()["master_repl_offset"]
        except Unavailable as error:
            return _unled(replica, error)
        try:
            told = replica.replication()
            if told.get("master_link_status") == "up":
                behind = max(0, reached - told["slave_repl_offset"])
                return Following(IN_SYNC, behind, told["master_last_io_seconds_ago"])
            refusal = lineage.lacking(master.lineage(), replica.lineage())
        except Unavailable as error:
            return Following(AWAY, reason=f"the replica does not answer ({error.message.rstrip('.')})")
    if refusal:
        return Following(PARTED, reason=f"of the private Redis it must not, as {refusal}")
    return Following(SYNCING, reason="it is about to take what the private Redis has")


def _unled(replica: Source, error: Unavailable) -> Following:
    with contextlib.suppress(Unavailable):
        replica.replication()
        return Following(PARTED, reason=f"the private Redis does not answer ({error.message.rstrip('.')})")
    return Following(AWAY, reason="neither it nor the private Redis answers")


def check(config: Config) -> tuple[str, str, str]:
    """Look for the doctor: ok, warn or fail; a sentence; what to do."""
    found = look(config)
    text = f"The replica of Redis is {found}."
    if found.state == IN_SYNC:
        if (found.silent_s or 0) > SLOW_S:
            text = f"The replica of Redis has heard nothing for {found.silent_s} s."
            return "warn", text, "See `bin/exesys logs redis-backup`."
        return "ok", text, ""
    if found.state == SYNCING:
        return "warn", text, "Look again in a moment; see `bin/exesys logs redis-backup`."
    fix = "See `bin/exesys logs redis-backup` and docs/backup.md: its data, or those of Redis, are to be kept."
    return "fail", text, fix
