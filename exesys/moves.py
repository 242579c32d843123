"""Several things renamed as one: all of it or nothing, whenever the process is killed.

The list of renames is written into the directory first. From the moment
it is there, whole, they count as done: whoever looks next carries out what is
left of them. A rename that was done is known by its target.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from exesys.errors import BootError

PENDING = "moving.json"
Move = tuple[str, str]


def carry_out(place: Path, moves: Sequence[Move]) -> None:
    """Rename what lies below the directory `place`, in this order, from the first path of each pair to the second.

    No second path may be there before its turn. Raises BootError when the
    list cannot be written; then nothing was renamed.
    """
    scratch = place / f"{PENDING}.new"
    try:
        with scratch.open("w", encoding="utf-8") as file:
            json.dump(moves, file)
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(place / PENDING)
        sync(place)
    except OSError as error:
        raise BootError(f"{scratch} cannot be written: {error.strerror}.", fix="Make room.") from error
    settle(place)


def settle(place: Path) -> None:
    """Carry out what is left of renames that were broken off. Raises BootError when that cannot be done."""
    pending = place / PENDING
    try:
        moves = [(str(source), str(target)) for source, target in json.loads(pending.read_text(encoding="utf-8"))]
        for source, target in moves:
            if not (place / target).exists() and (place / source).exists():
                (place / source).rename(place / target)
        for parent in {(place / path).parent for move in moves for path in move}:
            sync(parent)
        pending.unlink()
        sync(place)
    except FileNotFoundError:
        return
    except (OSError, ValueError, TypeError) as error:
        text = f"A restore was broken off, and what {pending} says cannot be carried out: {error}."
        raise BootError(text, fix="Rename by hand what stands there, then delete that file.") from error


def sync(path: Path) -> None:
    """Have a file or a directory, as it is named now, on the disk."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
