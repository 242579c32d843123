"""A runner: follow a growing log file, or a directory of them, and keep each line once.

    bin/exesys submit start_feed '{"path": "/var/log/app.log"}'
    bin/exesys submit start_feed '{"path": "/var/log/app", "glob": "*.log*", "feed": "app"}'
    bin/exesys submit feed_counts app
    bin/exesys submit feed_lines '{"feed": "app", "limit": 5}'

The lines are kept in MongoDB, how far they were read and how many there are in Redis:

    feed:<feed>:owner          hash        runner, epoch, turn: which runner may write
    feed:<feed>:counts         hash        lines, bytes, cut: of all files ever
    feed:<feed>:runs           hash        inode -> how many contents it has had
    feed:<feed>:files          sorted set  inode -> when it last grew
    feed:<feed>:file:<inode>   hash        path, run, offset, mark, rest, lines, bytes
    feed_lines                 collection  _id, feed, number, path, at, turn, text, and cut: true

A file is known by its device and inode, so that it stays itself when it is
renamed, and by its *run*: what was truncated, or lies at an inode used before,
is another content. It shows by its *mark*, the bytes before the offset, which
are read again with every batch. A line's _id is made of feed, inode, run and
offset. First a batch of lines is stored, then the offset and all counts move
in one transaction, which looks whether the owner and the offset still are what
they were. So the process may be killed at any point: what was stored and not
counted is stored again, in its place. Redis or MongoDB may be away: it waits.
Of two runners of one feed the later epoch has it, and no line that it stored is
written over by the other, whose turn was before.

What it cannot see: bytes that are gone before they were read (a file truncated
or deleted within half a second of a write), a content that is replaced by one
with the same last bytes at the same place, and, with a single file, one that
came and was renamed while nothing followed it; so give a pattern that matches
the renamed ones too.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from _feed_files import AnotherContent, Watch, read
from _feed_store import MOST_SHOWN, Feed, Superseded, away

from exesys.context import Context, RunnerContext

AWAY_S = (0.25, 5.0)  # the first and the longest pause while a server is away
TELL_S = 5.0
FEED_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
DEFAULTS = {"glob": "*", "feed": "default", "quiet_s": 60.0}


# --- the commands -----------------------------------------------------------


def start_feed(data: Any, ctx: Context) -> str:
    """Start to follow a file or a directory; return the name of the runner.

    The data is a path, or a map: `path`, `glob` ("*", for a directory), `feed`
    ("default") and `quiet_s` (60): how long a file that was renamed, or is
    gone, must not grow until it is taken to be complete.
    """
    asked = _asked(data)
    if not os.path.isdir(os.path.dirname(asked["path"])):
        raise ValueError(f"`path` is {asked['path']!r:.200}, and there is no such directory here.")
    return ctx.start_runner("feed.follow", asked, type="feed")


def follow(data: Any, ctx: RunnerContext) -> dict[str, Any]:
    """Follow until told to stop, or until a later runner follows the same feed. The data is that of `start_feed`."""
    asked = _asked(data)
    feed = Feed(asked["feed"], ctx)
    watch = Watch(Path(asked["path"]), asked["glob"], asked["quiet_s"], ctx.log)
    try:
        _persist(feed, watch, ctx)
    except Superseded as other:
        ctx.log.error("%s", other)
    finally:
        watch.close()
    return {"feed": feed.name, "path": asked["path"]}


def feed_counts(data: Any, ctx: Context) -> dict[str, Any]:
    """Return how much a feed has, in all and of each file. The data is its name, or a map with `feed`."""
    return Feed(_named(data, {})["feed"], ctx).counts()


def feed_lines(data: Any, ctx: Context) -> list[dict[str, Any]]:
    """Return the newest lines, newest first. The data is a feed's name, or a map: `feed`, `limit` (10)."""
    asked = _named(data, {"limit": 10})
    if not 1 <= asked["limit"] <= MOST_SHOWN:
        raise ValueError(f"`limit` is {asked['limit']}; give 1 to {MOST_SHOWN}.")
    return Feed(asked["feed"], ctx).newest(asked["limit"])


def forget_feed(data: Any, ctx: Context) -> dict[str, Any]:
    """Remove a feed with all its lines. Stop its runner first: one that still runs ends by it.

    The data is its name, or a map with `feed`.
    """
    feed = Feed(_named(data, {})["feed"], ctx)
    return {"feed": feed.name, "removed": feed.clear()}


# --- following --------------------------------------------------------------


def _persist(feed: Feed, watch: Watch, ctx: RunnerContext) -> None:
    """Go on, also when a server is away for a while."""
    absent = away()
    pause_s, told, owned = AWAY_S[0], 0.0, False
    while not ctx.stopping.is_set():
        try:
            if not owned:
                feed.claim(ctx.runner)
                watch.look()  # those that are where they were need not be searched for
                watch.find(feed.known())
                owned = True
            busy = _turn(feed, watch, ctx)
        except absent as error:
            if pause_s == AWAY_S[0]:
                ctx.log.warning("waiting for a server: %s", str(error)[:200])
            watch.forget()  # whether the last transaction was made is seen by reading again
            ctx.wait_stop(pause_s)
            pause_s = min(2 * pause_s, AWAY_S[1])
            continue
        pause_s = AWAY_S[0]
        if not busy or time.monotonic() - told > TELL_S:
            told = time.monotonic()
            watch.tell(ctx.progress)
        if not busy:
            ctx.wait_stop(watch.pause_s)


def _turn(feed: Feed, watch: Watch, ctx: RunnerContext) -> bool:
    """Take one batch of each file that grew. Returns whether there may be more."""
    busy = False
    for file in watch.due():
        if ctx.stopping.is_set():
            break
        if file.state is None:
            file.state = feed.begin(file.inode, file.path)
            feed.prune(watch.inodes)
        try:
            batch = read(file.fd, file.state, file.complete)
        except AnotherContent:
            if file.gone:  # another file's, which only has an inode we know
                watch.drop(file)
                continue
            file.state = feed.begin(file.inode, file.path, after=file.state)
            busy = True
            continue
        if batch is None:
            watch.read(file)
            continue
        file.state = feed.keep(file.inode, file.path, file.state, batch)
        busy = True
    return busy


# --- what was asked ---------------------------------------------------------


def _asked(data: Any) -> dict[str, Any]:
    """Read what is to be followed: a path alone, or a map. Raises ValueError."""
    asked = _checked(data, "path", DEFAULTS)
    if not asked["path"]:
        raise ValueError("`path` is empty; give a file or a directory.")
    glob = asked["glob"]
    if not glob or glob.startswith("/") or ".." in glob.split("/"):
        raise ValueError(f"`glob` is {glob!r:.100}; give a pattern within the directory, such as **/*.log")
    try:
        next(Path(os.devnull).glob(glob), None)
    except ValueError as error:
        raise ValueError(f"`glob` is {glob!r:.100}, which is no pattern: {error}.") from None
    if not 0 < asked["quiet_s"] <= 86_400:
        raise ValueError(f"`quiet_s` is {asked['quiet_s']:g}; give seconds, at most a day.")
    return {**asked, "path": os.path.abspath(asked["path"])}


def _named(data: Any, defaults: Mapping[str, Any]) -> dict[str, Any]:
    return _checked(DEFAULTS["feed"] if data is None else data, "feed", defaults)


def _checked(data: Any, main: str, defaults: Mapping[str, Any]) -> dict[str, Any]:
    given = data if isinstance(data, dict) else {main: data}
    for key in given:
        if key != main and key not in defaults:
            raise ValueError(f"the key {key!r:.60} is unknown; known are {', '.join([main, *defaults])}.")
    asked = {main: DEFAULTS.get(main), **defaults, **given}
    for key, value in asked.items():
        kind = type(defaults.get(key, ""))
        if type(value) is int and kind is float:
            asked[key] = float(value)
        elif type(value) is not kind:
            wanted = {int: "a whole number", float: "a number"}.get(kind, "text")
            raise ValueError(f"`{key}` must be {wanted}, not {value!r:.60}.")
    if not FEED_NAME.fullmatch(asked["feed"]):
        raise ValueError(f"`feed` is {asked['feed']!r:.80}; use 1 to 64 of the characters A-Z a-z 0-9 _ -")
    return asked
