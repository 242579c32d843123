"""A secret of this system's own in a file: made on first use, readable by its owner alone."""

from __future__ import annotations

import logging
import os
import secrets
from pathlib import Path

BYTES = 32
log = logging.getLogger(__name__)


def read_or_make(path: Path) -> bytes:
    """Return the secret, as its file has it without the end of line. Raises OSError.

    A new one appears under its name only when it is whole, and the first one
    stays: two processes that make it at once use the same.
    """
    if not path.exists():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_hex(BYTES) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(fresh, path)
        except FileExistsError:
            pass  # another one was first
        finally:
            fresh.unlink()
    if path.stat().st_mode & 0o077:
        log.warning("others can read %s: delete it, so that a new one is made, and give that to receivers", path)
    return path.read_bytes().strip()
