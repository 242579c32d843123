"""HOME/keys: the tokens of REST, and the one of this user's own tools.

Only their owner may enter the directory and read its files; anything else is
refused, with what to do. `tokens.json` holds hashes; it is written whole or
not at all, under a lock. What reads it all the time is a `Watch`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from exesys import process, tokens
from exesys.addresses import is_loopback
from exesys.config import Config
from exesys.errors import BadCommand, BootError, Conflict, NotFound, Unavailable
from exesys.tokens import LOCAL, Role, Token

VARIABLE = "EXESYS_TOKEN"
LOOK_S = 0.2
LOCK_S = 10.0
DAY_S = 86_400
NEW_TEXT = "bin/exesys keys new admin NAME"
log = logging.getLogger(__name__)


class Made(NamedTuple):
    """A new token: its text, which is kept nowhere, and its entry."""

    text: str
    entry: Token


def directory(config: Config) -> Path:
    return config.home / "keys"


def tokens_file(config: Config) -> Path:
    return directory(config) / "tokens.json"


def local_file(config: Config) -> Path:
    return directory(config) / "private" / "local.token"


# --- what is there ----------------------------------------------------------


def read(config: Config) -> tuple[Token, ...]:
    """Return the tokens, none when there is no file. Raises BootError when it, or its directory, will not do."""
    return _read(directory(config), tokens_file(config))


def _read(keys: Path, path: Path) -> tuple[Token, ...]:
    if not os.path.lexists(keys):
        return ()
    check_directory(keys)
    text = read_private(path)
    if text is None:
        return ()
    try:
        return tokens.parse(text)
    except ValueError as error:
        raise BootError(
            f"{path} is damaged: {str(error).rstrip('.')}.",
            fix="Put back a copy of it, or move it away and make new tokens: `bin/exesys keys new`.",
        ) from error


def check_directory(path: Path) -> None:
    """Raise BootError unless this is a directory of ours that nobody else may enter."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise BootError(f"{path} is no directory (links are not followed).", fix="Move it away.")
    _check(path, found, "700")


def read_private(path: Path) -> bytes | None:
    """Return what is in a file of ours that nobody else may open, None without it. Raises BootError otherwise."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BootError(
            f"{path} cannot be opened: {error.strerror} (links are not followed).", fix="Put a file of yours there."
        ) from error
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise BootError(f"{path} is no file.", fix="Move it away.")
        _check(path, found, "600")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _check(path: Path, found: os.stat_result, mode: str) -> None:
    if found.st_uid != os.geteuid():
        raise BootError(f"{path} belongs to another user (uid {found.st_uid}).", fix=f"chown it to uid {os.geteuid()}.")
    if found.st_mode & 0o077:
        raise BootError(
            f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):o}).",
            fix=f"`chmod {mode} {path}`. If somebody may have read or changed it, revoke what is in it.",
        )


def check_reach(config: Config, section: str, host: str) -> None:
    """Raise BootError when something would listen wider than loopback, and there is no token to come in with."""
    if not is_loopback(host) and not read(config):
        raise BootError(
            f"[{section}] host is {host}, which is wider than loopback, and there is no token.",
            field=f"[{section}] host",
            fix=f"Make one: `{NEW_TEXT}`. Or listen on 127.0.0.1.",
        )


# --- changes ----------------------------------------------------------------


def add(config: Config, role: Role, name: str, days: int | None = None, rotate: bool = False) -> Made:
    """Make a token. With `rotate`, one more of a name that there is: both hold until the old one is revoked.

    The first one has company: a token of the role admin for this user's own
    tools, in a file of its own. Raises Conflict, NotFound, BadCommand or
    BootError.
    """
    if name == LOCAL and role is not Role.admin:
        raise BadCommand(f"{LOCAL} is the name of this user's own tools, whose role is admin.", field="name")
    with _changing(config) as kept:
        there = any((each.name, each.role) == (name, role) for each in kept)
        if there and not rotate:
            fix = "Use --rotate for a second one, or another name."
            raise Conflict(f"there is a token {name} with the role {role.name}.", field="name", fix=fix)
        if rotate and not there:
            raise NotFound(f"there is no token {name} with the role {role.name}.", fix="Leave --rotate out.")
        if not kept and name != LOCAL:
            _make(config, kept, Role.admin, LOCAL, None)
        return _make(config, kept, role, name, days)


def _make(config: Config, kept: list[Token], role: Role, name: str, days: int | None) -> Made:
    if len(kept) >= tokens.MOST:
        raise BadCommand(f"there are {len(kept)} tokens, and that is the most.", fix="Revoke those not used any more.")
    text = tokens.spell(secrets.token_bytes(tokens.RANDOM_BYTES))
    created_s = int(time.time())
    entry = Token(name, role, tokens.digest_of(text), created_s, created_s + days * DAY_S if days else 0)
    if name == LOCAL:
        # Before its entry: an unknown token harms nobody while there is none, a missing one does when there is.
        write_private(local_file(config), text + "\n")
    kept.append(entry)
    return Made(text, entry)


def revoke(config: Config, role: Role, name: str, old: bool = False) -> int:
    """Take the tokens of a name away; with `old`, all but the newest. Returns how many that were."""
    with _changing(config) as kept:
        named = [each for each in kept if (each.name, each.role) == (name, role)]
        gone = named[:-1] if old else named
        kept[:] = [each for each in kept if each not in gone]
        if name == LOCAL and not old:
            local_file(config).unlink(missing_ok=True)
        return len(gone)


@contextlib.contextmanager
def changing(config: Config) -> Iterator[None]:
    """Make the directory if there is none, and let one at a time change what is in it. Raises BootError."""
    make_directory(config.home)
    make_directory(directory(config))
    check_directory(directory(config))
    lock = process.hold_lock(directory(config) / "lock", LOCK_S)
    try:
        yield
    finally:
        os.close(lock)


@contextlib.contextmanager
def _changing(config: Config) -> Iterator[list[Token]]:
    """Lend the tokens to be changed; what they are at the end of the block is kept."""
    with changing(config):
        before = read(config)
        kept = list(before)
        yield kept
        if tuple(kept) != before:
            write_private(tokens_file(config), tokens.dump(kept))


def make_directory(path: Path) -> None:
    """Make a directory that only its owner may enter, if there is none. Raises BootError."""
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise BootError(
            f"{path} cannot be made: {error.strerror}.", fix="Set EXESYS_HOME to a directory of yours."
        ) from (error)


def write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, whole or not at all. Raises BootError."""
    make_directory(path.parent)
    check_directory(path.parent)
    fresh = path.with_name(f".{path.name}-{secrets.token_hex(8)}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            os.replace(fresh, path)
        except BaseException:
            fresh.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise BootError(f"{path} cannot be written: {error.strerror}.", fix="See `bin/exesys doctor`.") from error


# --- for this user's own tools ------------------------------------------------


def credentials(config: Config) -> dict[str, str]:
    """Return the header with which this user's tools ask REST: EXESYS_TOKEN, else the local token, else none."""
    given = os.environ.get(VARIABLE, "").strip()
    if not given:
        if not os.path.lexists(local_file(config).parent):
            return {}
        check_directory(local_file(config).parent)
        given = (read_private(local_file(config)) or b"").decode("ascii", "replace").strip()
    return {"Authorization": f"Bearer {given}"} if given else {}


# --- for who asks all the time --------------------------------------------------


class Watch:
    """The tokens as they are now: the file is looked at five times a second at most, and read when it is another."""

    def __init__(self, config: Config, clock: Callable[[], float] = time.monotonic) -> None:
        self._keys = directory(config)
        self._path = tokens_file(config)
        self._clock = clock
        self._lock = threading.Lock()
        self._look_at = float("-inf")
        self._seen: object = self  # unlike anything that is seen
        self._tokens: Sequence[Token] = ()
        self._trouble: tuple[str, str] | None = None

    def tokens(self) -> Sequence[Token]:
        """Return them. Raises Unavailable while the file will not do: then nobody comes in."""
        if self._clock() >= self._look_at:
            with self._lock:
                self._look()
        if self._trouble is not None:
            message, fix = self._trouble
            raise Unavailable(f"no token can be checked: {message}", fix=fix)
        return self._tokens

    def _look(self) -> None:
        self._look_at = self._clock() + LOOK_S
        seen = (_identity(self._keys), _identity(self._path))
        if seen == self._seen:
            return
        trouble = None
        found: Sequence[Token] = ()
        try:
            found = _read(self._keys, self._path)
        except BootError as error:
            trouble = (error.message, error.fix)
        except OSError as error:
            trouble = (f"{self._path} cannot be read: {error.strerror}.", "See `bin/exesys doctor`.")
        if trouble is not None and trouble != self._trouble:
            log.error("nobody is let in: %s %s", *trouble)
        elif trouble is None and self._trouble is not None:
            log.info("the tokens can be read again")
        self._seen, self._tokens, self._trouble = seen, found, trouble


def _identity(path: Path) -> tuple[int, ...] | str:
    """Return what changes when the file is written, replaced, or opened to others."""
    try:
        found = path.lstat()
    except OSError as error:
        return str(error.strerror)
    if stat.S_ISDIR(found.st_mode):
        return found.st_mode, found.st_uid, found.st_ino
    return found.st_mtime_ns, found.st_size, found.st_ino, found.st_mode, found.st_uid
