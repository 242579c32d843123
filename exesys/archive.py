"""The form of a backup file: what stands before and behind the snapshot of a server. Pure.

    exesys-backup 1\\n
    {"time": "2026-01-31T12:00:00Z", …}\\n      the header, one line of JSON
    <the snapshot: an RDB file of that server>
    \\nsha256 <64 hex digits>\\n                 of all that stands before

The beginning of the first line and the last 73 bytes stay as they are in each
version of the form, so that damage is told apart from a newer form. By hand,
`tail -n +3 FILE | head -c -73` is the snapshot.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from exesys.errors import BackupError

FORM = 1
_MAGIC = b"exesys-backup "
_SUM = b"\nsha256 %s\n"
_SUM_BYTES = len(_SUM % (b"0" * 64))
_HEAD_BYTES = 1 << 16  # the two first lines have at most so many
_PIECE_BYTES = 1 << 20
_TIME = re.compile(r"[0-9T:.Z+-]{10,40}")


class Header(NamedTuple):
    """What a backup says of itself.

    `time` is in RFC 3339, `exesys` the version that made it, `format` the
    store's `exesys:format`, `prefix` that of its keys. `server` is product and
    version, such as "Valkey 9.1.2". `database` holds the jobs, and
    `data_database` what functions keep; None: that is on another server, and
    not in the backup. `keys` counts the keys of each database by its number,
    and `counts` some of what is there. Both were asked for just before the
    snapshot, so under load they are near, not exact.
    """

    time: str
    exesys: str
    format: int
    prefix: str
    server: str
    database: int
    data_database: int | None
    keys: dict[str, int]
    counts: dict[str, int]


class Writer:
    """Writes a backup to a file that is open for writing: the header at once, the snapshot as it comes."""

    def __init__(self, file: BinaryIO, header: Header) -> None:
        self._file = file
        self._sum = hashlib.sha256()
        self.write(b"%s%d\n%s\n" % (_MAGIC, FORM, json.dumps(header._asdict()).encode()))

    def write(self, piece: bytes) -> None:
        """Add a piece of the snapshot."""
        self._file.write(piece)
        self._sum.update(piece)

    def end(self) -> None:
        """Write what stands behind the snapshot."""
        self._file.write(_SUM % self._sum.hexdigest().encode())


def read(file: BinaryIO, name: str, keep: Callable[[bytes], Any]) -> Header:
    """Read a backup from the beginning of a file that can seek; give each piece of the snapshot to `keep`.

    Whether the pieces were right is known only when this returns. `name` is
    for the errors. Raises BackupError for a file that is no backup, is
    damaged, or was made by a newer ExeSys.
    """
    size = file.seek(0, 2)
    file.seek(0)
    head = file.read(min(_HEAD_BYTES, max(0, size - _SUM_BYTES)))
    if not head.startswith(_MAGIC):
        raise BackupError(f"{name} is no backup of ExeSys, or its beginning is damaged.", fix="Give another file.")
    first, _, rest = head.partition(b"\n")
    second, newline, snapshot = rest.partition(b"\n")
    if not newline:
        raise _damaged(name)
    total = hashlib.sha256(head)
    keep(snapshot)
    left = size - _SUM_BYTES - len(head)
    while left > 0:
        piece = file.read(min(left, _PIECE_BYTES))
        if not piece:
            raise _damaged(name)  # it became shorter while it was read
        total.update(piece)
        keep(piece)
        left -= len(piece)
    if file.read(_SUM_BYTES + 1) != _SUM % total.hexdigest().encode():
        raise _damaged(name)
    if first != b"%s%d" % (_MAGIC, FORM):
        shown = first.removeprefix(_MAGIC)[:20].decode("latin-1").encode("unicode_escape").decode()
        text = f"{name} is a backup of form {shown}, and this ExeSys reads form {FORM}."
        raise BackupError(text, fix="Restore it with the ExeSys that made it, or a newer one.")
    return _header(second, name)


def _header(line: bytes, name: str) -> Header:
    try:
        told = json.loads(line)
        header = Header(**{field: told[field] for field in Header._fields})
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        text = f"{name} has a header that cannot be read: {error!r:.100}."
        raise BackupError(text, fix="Give another file.") from error
    whole = type(header.format) is int and header.format >= 0
    if not whole or not isinstance(header.prefix, str) or not _TIME.fullmatch(str(header.time)):
        raise BackupError(f"{name} has a header that makes no sense.", fix="Give another file.")
    return header


def _damaged(name: str) -> BackupError:
    fix = "Copy it again from where it was kept, or give another file."
    return BackupError(f"{name} is damaged or cut off: its sum (sha256) is another than it says.", fix=fix)
