"""A stand-in for the context of a runner; and, run as a program, lives of `feed.follow` that can be killed.

    python feed_lives.py REDIS_URL MONGO_URI DATA

Each line on stdin, an epoch, begins a life: a forked process, which does not
have to load anything. Its pid is printed, and at its end how it ended.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import threading
from pathlib import Path
from typing import Any, NamedTuple

import pymongo
import pymongo.database
import redis

sys.path.append(str(Path(__file__).resolve().parents[2] / "modules"))

import _feed_files  # of modules/, which the line above makes known
import feed


class RunnerInfo(NamedTuple):
    type: str
    uuid: str
    target: str
    epoch: int


class RunnerDesk:
    """What `follow` needs of its context, and what it told."""

    def __init__(self, redis_url: str, mongo_uri: str, uuid: str = "one", epoch: int = 1) -> None:
        self.redis = redis.Redis.from_url(redis_url)
        self.mongo: pymongo.database.Database[dict[str, Any]] = pymongo.MongoClient(
            mongo_uri, serverSelectionTimeoutMS=500
        )["feeds"]
        self.runner = RunnerInfo("feed", uuid, "feed.follow", epoch)
        self.log = logging.getLogger("feed")
        self.stopping = threading.Event()
        self.told: list[tuple[float, str]] = []
        self.started: list[tuple[str, Any, str | None]] = []

    def wait_stop(self, seconds: float) -> bool:
        return self.stopping.wait(seconds)

    def progress(self, fraction: float, text: str = "") -> None:
        self.told.append((fraction, text))

    def start_runner(self, target: str, data: Any = None, *, type: str | None = None) -> str:
        self.started.append((target, data, type))
        return f"{type}:some-uuid"

    def close(self) -> None:
        self.redis.close()
        self.mongo.client.close()


def main(redis_url: str, mongo_uri: str, data: str) -> None:
    _feed_files.BATCH_LINES = 50  # so that a short life may have several, and end in any part of one
    for line in sys.stdin:
        pid = os.fork()  # nothing is connected yet, and there is one thread
        if not pid:
            try:
                feed.follow(json.loads(data), RunnerDesk(redis_url, mongo_uri, "lives", int(line)))
            finally:
                os._exit(1)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
