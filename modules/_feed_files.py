"""The files of a feed: which grew, and their next lines. Knows nothing of what becomes of these.

A file is known by its device and inode. It is read in batches, whose size is
bounded whatever stands in it. It is held open, so that it can be read to its
end also after it was renamed or deleted; where there are very many, each is
opened when it grows, and found by its inode if it was renamed meanwhile.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import NamedTuple

POLL_S = 0.5
LIST_S = 2.0  # a directory is listed less often than its files are looked at
IDLE = 50  # times as long as looking takes is waited at least, with very many files
BATCH_LINES = 1000
BATCH_BYTES = 256 << 10
MAX_LINE_BYTES = 64 << 10  # less than a batch; of a longer line, the beginning is kept
MARK_BYTES = 64
MOST_OPEN = 200


class State(NamedTuple):
    """How far a file was read."""

    run: int
    offset: int
    mark: bytes  # what stands before the offset
    rest: bool  # whether a line that was cut goes on there


class Line(NamedTuple):
    offset: int
    text: str
    cut: bool


class Batch(NamedTuple):
    lines: Sequence[Line]
    after: State


class AnotherContent(Exception):
    """The file is not the one that was read before: truncated, or another at the same inode."""


def read(fd: int, state: State, complete: bool) -> Batch | None:
    """Read the next lines; None: there is none. The last one of a `complete` file may lack its newline."""
    chunk = os.pread(fd, len(state.mark) + BATCH_BYTES, state.offset - len(state.mark))
    if not chunk.startswith(state.mark):
        raise AnotherContent
    body = chunk[len(state.mark) :]
    lines: list[Line] = []
    at, rest = 0, state.rest
    while at < len(body) and len(lines) < BATCH_LINES:
        end = body.find(b"\n", at)
        whole = end >= 0
        end, begin = end if whole else len(body), at
        if rest:
            at, rest = (end + 1, False) if whole else (end, True)
            continue
        if not whole and end - at <= MAX_LINE_BYTES and not (complete and len(body) < BATCH_BYTES):
            break
        cut = end - at > MAX_LINE_BYTES
        line = body[at : at + MAX_LINE_BYTES] if cut else body[at:end].removesuffix(b"\r")
        at, rest = end + whole, cut and not whole
        lines.append(Line(state.offset + begin, line.decode("utf-8", "backslashreplace"), cut))
    if not at:
        return None
    mark = chunk[: len(state.mark) + at][-MARK_BYTES:]
    return Batch(lines, State(state.run, state.offset + at, mark, rest))


class File:
    """A file that is followed. `state` is unknown until it was read from Redis."""

    def __init__(self, inode: str, path: str, gone: bool) -> None:
        self.inode = inode
        self.path = path
        self.gone = gone  # it is not, or no longer, where we look
        self.complete = False  # and nothing more comes
        self.due = True
        self.fd = -1  # where it is open
        self.state: State | None = None
        self.seen = (0, 0)  # size and time, when it was last looked at
        self.quiet_at = time.monotonic()  # since when it does not grow

    def looked_at(self, status: os.stat_result, now: float) -> None:
        seen = (status.st_size, status.st_mtime_ns)
        if seen != self.seen:
            self.seen, self.quiet_at, self.due = seen, now, True

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
        self.fd = -1


class Watch:
    """The files that are followed, and which of them grew."""

    def __init__(self, path: Path, pattern: str, quiet_s: float, log: logging.Logger) -> None:
        self._path, self._pattern, self._quiet_s, self._log = path, pattern, quiet_s, log
        self._files: dict[str, File] = {}
        self._paths: Sequence[str] = [str(path)]
        self._list_at = float("-inf")
        self._warned: set[str] = set()
        self._told = (0.0, "")
        self.pause_s = POLL_S

    @property
    def inodes(self) -> Set[str]:
        return self._files.keys()

    def find(self, known: Mapping[str, str]) -> None:
        """Find again, by their inodes, files that were renamed within their directory while nobody held them."""
        left = known.keys() - self._files.keys()
        for directory in {os.path.dirname(known[inode]) for inode in left}:
            for path in _entries(directory):
                status = _status(path)
                if status is not None and (inode := _inode(status)) in left and inode not in self._files:
                    self._add(path, status, gone=True)

    def due(self) -> Iterator[File]:
        """Look at all files once; give those to be read, which are open for so long."""
        self.look()
        for file in list(self._files.values()):
            if file.due and (file.fd >= 0 or self._open(file)):
                yield file
                if len(self._files) > MOST_OPEN and not file.gone:
                    file.close()

    def look(self) -> None:
        """See which files there are, and which grew."""
        now = time.monotonic()
        if now >= self._list_at:
            self._paths = self._list()
            self._list_at = now + max(LIST_S, IDLE * (time.monotonic() - now))
        self._look_at_paths(now)
        self.pause_s = max(POLL_S, IDLE * (time.monotonic() - now))

    def read(self, file: File) -> None:
        """A file was read to its end, or to the beginning of a line."""
        file.due = False
        if file.complete:
            self.drop(file)

    def drop(self, file: File) -> None:
        del self._files[file.inode]
        file.close()

    def forget(self) -> None:
        """Have the state of all files read from Redis again."""
        for file in self._files.values():
            file.state, file.due = None, True

    def close(self) -> None:
        for file in list(self._files.values()):
            self.drop(file)

    def tell(self, progress: Callable[[float, str], None]) -> None:
        """Tell how much of the files was read, if that is news."""
        size = sum(file.seen[0] for file in self._files.values())
        read = sum(min(file.state.offset, file.seen[0]) for file in self._files.values() if file.state is not None)
        news = (read / size if size else 1.0, f"{len(self._files)} files, {max(size - read, 0):,} bytes to read")
        if news != self._told:
            progress(*news)
            self._told = news

    def _look_at_paths(self, now: float) -> None:
        there = set()
        for path in self._paths:
            status = _status(path)
            if status is not None:
                inode = _inode(status)
                file = self._files.get(inode) or self._add(path, status)
                there.add(inode)
                file.path, file.gone, file.complete = path, False, False
                file.looked_at(status, now)
        lost = {}
        for file in [file for inode, file in self._files.items() if inode not in there]:
            if file.fd < 0:
                lost[file.inode] = file.path
                self.drop(file)
            else:
                self._look_after(file, now)
        if lost:
            self.find(lost)

    def _look_after(self, file: File, now: float) -> None:
        """A file that is no longer where it was may still grow, for as long as its writer has it open."""
        if not file.gone:
            file.gone, file.quiet_at = True, now
        file.looked_at(os.fstat(file.fd), now)
        if now - file.quiet_at > self._quiet_s and not file.due:
            file.complete = file.due = True

    def _list(self) -> Sequence[str]:
        if not self._path.is_dir():
            return [str(self._path)]
        try:
            return [str(path) for path in self._path.glob(self._pattern)]
        except OSError:  # a directory vanished while it was listed
            return self._paths

    def _add(self, path: str, status: os.stat_result, gone: bool = False) -> File:
        file = self._files[_inode(status)] = File(_inode(status), path, gone)
        if gone:
            self._open(file)  # it has no place to which one could come back
        return file

    def _open(self, file: File) -> bool:
        try:
            fd = os.open(file.path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError as error:
            if file.path not in self._warned and not isinstance(error, FileNotFoundError):
                self._warned.add(file.path)
                self._log.warning("%s cannot be read: %s", shown(file.path), error.strerror)
            return False
        if _inode(os.fstat(fd)) != file.inode:  # another took its place; the next look finds both
            os.close(fd)
            return False
        file.fd = fd
        return True


def _status(path: str) -> os.stat_result | None:
    """Return the status of a regular file, or None."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status if stat.S_ISREG(status.st_mode) else None


def _inode(status: os.stat_result) -> str:
    return f"{status.st_dev:x}.{status.st_ino:x}"


def _entries(directory: str) -> list[str]:
    try:
        return [os.path.join(directory, name) for name in os.listdir(directory)]
    except OSError:
        return []


def shown(path: str) -> str:
    return path.encode(errors="backslashreplace").decode()
