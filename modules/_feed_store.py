"""What a feed keeps: lines in MongoDB, offsets and counts in Redis. `feed.py` tells which keys, and why so."""

from __future__ import annotations

import time
from collections.abc import Sequence, Set
from datetime import UTC, datetime
from typing import Any

from _feed_files import Batch, Line, State, shown

from exesys.context import Common

MOST_FILES = 1000  # whose offsets are kept after they are gone
MOST_SHOWN = 1000
DUPLICATE = 11000  # MongoDB's code for an _id that is there


class Superseded(Exception):
    """Another runner has the feed."""


class Feed:
    """One feed. Nothing else here names a key or the collection."""

    def __init__(self, name: str, ctx: Common) -> None:
        self.name = name
        self._redis: Any = ctx.redis
        self._lines = ctx.mongo["feed_lines"]
        self._me: list[bytes] = []
        self._turn = 0  # grows with each owner, so that an earlier one writes over nothing

    def _key(self, *parts: str) -> str:
        return ":".join(("feed", self.name, *parts))

    def claim(self, runner: Any) -> None:
        """Become the owner. Raises Superseded when a later epoch is."""
        self._lines.create_index([("feed", 1), ("number", -1)])
        name = f"{runner.type}:{runner.uuid}"

        def write(pipe: Any) -> int:
            other, epoch, last = pipe.hmget(self._key("owner"), "runner", "epoch", "turn")
            if int(epoch or 0) > runner.epoch:
                raise Superseded(f"{other.decode()} follows the feed {self.name}, in a later epoch.")
            turn = max(int(last or 0) + 1, int(time.time() * 1000))  # also after the feed was forgotten
            pipe.multi()
            pipe.hset(self._key("owner"), mapping={"runner": name, "epoch": runner.epoch, "turn": turn})
            return turn

        self._turn = self._redis.transaction(write, self._key("owner"), value_from_callable=True)
        self._me = [name.encode(), str(self._turn).encode()]

    def _check(self, pipe: Any) -> None:
        owner = pipe.hmget(self._key("owner"), "runner", "turn")
        if owner != self._me:
            other = owner[0].decode() if owner[0] else "nobody: it was forgotten"
            raise Superseded(f"the feed {self.name} is followed by {other}.")

    def known(self) -> dict[str, str]:
        """Return the files with an offset: inode and where it was last."""
        inodes = [inode.decode() for inode in self._redis.zrange(self._key("files"), 0, -1)]
        pipe = self._redis.pipeline(transaction=False)
        for inode in inodes:
            pipe.hget(self._key("file", inode), "path")
        return {inode: path.decode() for inode, path in zip(inodes, pipe.execute(), strict=True) if path}

    def begin(self, inode: str, path: str, after: State | None = None) -> State:
        """Return how far a file was read; a new one, and one with another content than `after`, begins."""
        key, runs = self._key("file", inode), self._key("runs")

        def write(pipe: Any) -> State:
            self._check(pipe)
            state = self._state(pipe, key)
            run = int(pipe.hget(runs, inode) or 0) + 1
            pipe.multi()
            if state is not None and (after is None or state.run != after.run):
                return state
            pipe.hset(runs, inode, run)
            values = {"path": shown(path), "run": run, "offset": 0, "mark": b"", "rest": 0, "lines": 0, "bytes": 0}
            pipe.hset(key, mapping=values)
            pipe.zadd(self._key("files"), {inode: time.time()})
            return State(run, 0, b"", False)

        state: State = self._redis.transaction(write, self._key("owner"), key, value_from_callable=True)
        return state

    def keep(self, inode: str, path: str, before: State, batch: Batch) -> State | None:
        """Store lines, then count them; return how far the file is read now, as Redis has it."""
        key, counts, after = self._key("file", inode), self._key("counts"), batch.after
        self._store(inode, path, before.run, batch.lines)
        cut = sum(line.cut for line in batch.lines)

        def write(pipe: Any) -> State | None:
            self._check(pipe)
            state = self._state(pipe, key)
            pipe.multi()
            if state != before:  # the answer to this very transaction was lost
                return state
            moved = {"offset": after.offset, "mark": after.mark, "rest": int(after.rest), "path": shown(path)}
            pipe.hset(key, mapping=moved)
            for where in (key, counts):
                pipe.hincrby(where, "lines", len(batch.lines))
                pipe.hincrby(where, "bytes", after.offset - before.offset)
            pipe.hincrby(counts, "cut", cut)
            pipe.zadd(self._key("files"), {inode: time.time()})
            return after

        state: State | None = self._redis.transaction(write, self._key("owner"), key, value_from_callable=True)
        return state

    def _store(self, inode: str, path: str, run: int, lines: Sequence[Line]) -> None:
        from pymongo import ReplaceOne  # as in `away`
        from pymongo.errors import BulkWriteError

        # Those of a batch that was stored and not counted get the same numbers, or are replaced by and by.
        first = int(self._redis.hget(self._key("counts"), "lines") or 0) + 1
        at, writes = datetime.now(UTC), []
        for number, line in enumerate(lines, first):
            name = f"{self.name}/{inode}/{run}/{line.offset}"
            stored = {"feed": self.name, "number": number, "path": shown(path), "at": at, "text": line.text}
            stored |= {"turn": self._turn, **({"cut": True} if line.cut else {})}
            writes.append(ReplaceOne({"_id": name, "turn": {"$lte": self._turn}}, stored, upsert=True))
        try:
            if writes:
                self._lines.bulk_write(writes, ordered=False)
        except BulkWriteError as error:
            if any(each["code"] != DUPLICATE for each in error.details["writeErrors"]):
                raise
            # A later owner has stored them: the transaction that follows will say so.

    def _state(self, pipe: Any, key: str) -> State | None:
        run, offset, mark, rest = pipe.hmget(key, "run", "offset", "mark", "rest")
        return State(int(run), int(offset), mark, rest == b"1") if run is not None else None

    def prune(self, there: Set[str]) -> None:
        """Forget the offsets of files that are gone, when there are too many: of those that grew longest ago."""
        most = int(self._redis.zcard(self._key("files"))) - MOST_FILES
        oldest = self._redis.zrange(self._key("files"), 0, most - 1) if most > 0 else []
        gone = [inode.decode() for inode in oldest if inode.decode() not in there]
        if gone:
            pipe = self._redis.pipeline(transaction=True)
            pipe.zrem(self._key("files"), *gone)
            pipe.delete(*(self._key("file", inode) for inode in gone))
            pipe.execute()

    def counts(self) -> dict[str, Any]:
        """Return the counts, and those of the files that grew last."""
        pipe = self._redis.pipeline(transaction=False)
        inodes = self._redis.zrange(self._key("files"), 0, MOST_SHOWN - 1, desc=True)
        for key in ("counts", "owner"):
            pipe.hgetall(self._key(key))
        for inode in inodes:
            pipe.hmget(self._key("file", inode.decode()), "path", "lines", "bytes")
        counts, owner, *files = pipe.execute()
        shown = [(path.decode(), int(lines), int(size)) for path, lines, size in files if path is not None]
        return {
            "feed": self.name,
            "runner": owner.get(b"runner", b"").decode(),
            **{name: int(counts.get(name.encode(), 0)) for name in ("lines", "bytes", "cut")},
            "files": [{"path": path, "lines": lines, "bytes": size} for path, lines, size in shown],
        }

    def newest(self, limit: int) -> list[dict[str, Any]]:
        """Return the last lines that were counted."""
        counted = int(self._redis.hget(self._key("counts"), "lines") or 0)
        wanted = {"feed": self.name, "number": {"$lte": counted}}
        return list(self._lines.find(wanted, {"_id": 0, "feed": 0, "turn": 0}).sort("number", -1).limit(limit))

    def clear(self) -> int:
        """Remove all of it; returns how many lines it had. The owner goes first, so that nobody counts meanwhile."""
        self._redis.delete(self._key("owner"))
        lines = int(self._redis.hget(self._key("counts"), "lines") or 0)
        self._lines.delete_many({"feed": self.name})
        inodes = [inode.decode() for inode in self._redis.zrange(self._key("files"), 0, -1)]
        keys = [self._key(name) for name in ("counts", "runs", "files")]
        self._redis.delete(*keys, *(self._key("file", inode) for inode in inodes))
        return lines


def away() -> tuple[type[Exception], ...]:
    """Return what is raised while a server is away, or full."""
    # Late: what only asks for counts needs none of it, and pymongo takes a while to load.
    from pymongo.errors import ConnectionFailure
    from redis import exceptions

    return ConnectionFailure, exceptions.ConnectionError, exceptions.TimeoutError, exceptions.OutOfMemoryError
