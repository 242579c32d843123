"""What changes in files: lines added to logs, and sources that were saved. Looked at again and again, by polling.

Polling finds a change on any file system, those of containers and networks
too, on which inotify tells nothing.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

Look = Mapping[Path, tuple[int, int, int]]


class Tails:
    """The lines added to the logs of a directory since this was made. Logs that come later are read from the start."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._open: dict[Path, BinaryIO] = {}
        self._begun: dict[Path, bytes] = {}  # the beginning of a line whose end is not there yet
        for path in self._logs():
            self._take(path, os.SEEK_END)

    def read(self) -> Iterator[tuple[str, str]]:
        """Give (program, line) of what was added; a log that was rotated is read to its end first."""
        for path in self._logs():
            log = self._open.get(path)
            if log is not None:
                yield from self._lines(path, log)
                if self._is_same(path, log):
                    continue
                log.close()
            self._take(path, os.SEEK_SET)
            if path in self._open:
                yield from self._lines(path, self._open[path])

    def close(self) -> None:
        for log in self._open.values():
            log.close()
        self._open.clear()

    def _logs(self) -> list[Path]:
        return sorted(self._directory.glob("*.log"))

    def _take(self, path: Path, where: int) -> None:
        with contextlib.suppress(FileNotFoundError):  # it was rotated in this moment
            self._open[path] = path.open("rb")
            self._open[path].seek(0, where)

    def _is_same(self, path: Path, log: BinaryIO) -> bool:
        try:
            there, ours = path.stat(), os.fstat(log.fileno())
        except FileNotFoundError:
            return True
        return there.st_ino == ours.st_ino and there.st_size >= log.tell()

    def _lines(self, path: Path, log: BinaryIO) -> Iterator[tuple[str, str]]:
        *lines, begun = (self._begun.get(path, b"") + log.read()).split(b"\n")
        self._begun[path] = begun
        for line in lines:
            yield path.stem, line.decode("utf-8", "replace")


class Saved:
    """Tells which files have changed, once they stay so for two looks: whoever saves a file may do it in parts."""

    def __init__(self, look: Callable[[], Look]) -> None:
        """`look` gives what stands for the content of each file that there is; see `sources`."""
        self._look = look
        self._known = self._before = look()

    def changed(self) -> list[Path]:
        """Return the files that were changed, made or removed since they were told of the last time."""
        now = self._look()
        settled, self._before = now == self._before, now
        if not settled:
            return []
        paths = sorted(path for path in now.keys() | self._known.keys() if now.get(path) != self._known.get(path))
        self._known = now
        return paths


def sources(directories: Sequence[Path]) -> Look:
    """Look at all files of Python in these directories and below them."""
    return _look(
        Path(top, name)
        for directory in directories
        for top, below, names in _walk(directory)
        for name in names
        if name.endswith(".py")
    )


def files(paths: Iterable[Path]) -> Look:
    """Look at these files, of which some may not be there."""
    return _look(paths)


def _walk(directory: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    for top, below, names in os.walk(directory):
        below[:] = [name for name in below if not name.startswith(".") and name != "__pycache__"]
        yield top, below, names


def _look(paths: Iterable[Path]) -> Look:
    found = {}
    for path in paths:
        with contextlib.suppress(OSError):  # it was removed in this moment
            stat = path.stat()
            found[path] = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
    return found
