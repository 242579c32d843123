"""Is a job as cheap as it was? Instructions for a job, counted by callgrind, beside the figures that are kept.

    python benchmarks/kept.py            compare; exit code 1 when a part has become dearer by more than 15 %
    python benchmarks/kept.py --renew    keep what is measured now, in kept.json
    python benchmarks/kept.py --functions 20    also name the functions of C that cost most

Counted are the paths of a job through router, client, worker and slot
(`paths.py`), and Redis at the same traffic. Counts are the same on a machine
that is busy with others, but not with another build of Python or Redis. So
each is told as a ratio to a floor in the same run: the Python parts to a fixed
piece of Python (`paths.yard`), Redis to the scripts of `bare.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import msgpack

_CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_CHECKOUT))

from benchmarks import bare, paths, system  # noqa: E402  # found by the line above, when this is the program
from exesys import config as configuration  # noqa: E402  # as above
from exesys import process, servers  # noqa: E402  # as above
from exesys.errors import BootError  # noqa: E402  # as above

KEPT = Path(__file__).with_name("kept.json")
MOST = 1.15
PARTS = ("router", "client", "worker", "slot")
REDIS = "redis"
PROGRAM = ("-m", "benchmarks.paths")
STARTS_S = 60.0  # under valgrind
_TOTALS = re.compile(r"^totals: (\d+)", re.MULTILINE)


class Count(NamedTuple):
    """Instructions for a job, and how many times those of its floor."""

    instructions: int
    ratio: float


Counts = Mapping[str, Count]


class Loss(NamedTuple):
    """A part that has become dearer."""

    part: str
    kept: Count
    now: Count

    def __str__(self) -> str:
        times = self.now.ratio / self.kept.ratio
        return (
            f"{self.part}: {self.now.instructions:,} instructions for a job, {self.kept.instructions:,} were kept; "
            f"beside the floor it is {times:.3f} times as dear as it was"
        )


def losses(kept: Counts, now: Counts, most: float = MOST) -> list[Loss]:
    """Return the parts whose ratio to their floor has grown to more than `most` times the one that is kept."""
    return [
        Loss(part, kept[part], count)
        for part, count in now.items()
        if part in kept and count.ratio > most * kept[part].ratio
    ]


def machine() -> str:
    """Name what figures are kept for: the version of Python and the architecture."""
    return f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}, {platform.machine()}"


def read(path: Path = KEPT) -> dict[str, dict[str, Count]]:
    """Return the figures that are kept, by machine and part."""
    told = json.loads(path.read_text())
    return {name: {part: Count(*count.values()) for part, count in parts.items()} for name, parts in told.items()}


def write(kept: Mapping[str, Counts], path: Path = KEPT) -> None:
    shown = {name: {part: count._asdict() for part, count in parts.items()} for name, parts in sorted(kept.items())}
    path.write_text(json.dumps(shown, indent=1) + "\n")


# -- counting ----------------------------------------------------------------------


def count(work: Path) -> Counts:
    """Count all parts in `work`, an empty directory with a short path. Raises BootError."""
    (work / "modules").mkdir()
    (work / "modules" / "bench.py").write_text(system.MODULE)
    with _redis(work / "t") as socket:
        answers, asked = paths.record(f"unix://{socket}")
    (work / "tape").write_bytes(msgpack.packb(answers))
    return {**count_python(work, PARTS), REDIS: _count_redis(work, asked)}


def count_python(work: Path, parts: Sequence[str], program: Sequence[str] = PROGRAM) -> dict[str, Count]:
    """Count parts that are in Python, on the tape and the modules in `work`. Raises BootError.

    `program` is what runs them.
    """
    # Sets of texts have the same order each time, and so the same costs. What is imported is compiled before.
    environ = {
        **os.environ,
        "PYTHONHASHSEED": "0",
        "PYTHONPATH": str(_CHECKOUT),
        "PYTHONPYCACHEPREFIX": str(work / "c"),
    }
    environ.pop("PYTHONDONTWRITEBYTECODE", None)
    command = [*_callgrind(work / "python", "getsid"), sys.executable, *program, str(work / "tape"), "yard", *parts]
    for words in ([sys.executable, "-c", "import benchmarks.paths"], command):
        ended = subprocess.run(words, env=environ, capture_output=True, text=True, check=False)
        if ended.returncode:
            raise BootError(f"The parts cannot be counted: {ended.stderr[-2000:]}")
    yard, *counted = totals(work / "python")[1::2]
    return {
        part: Count(round(total / paths.JOBS), round(total / yard, 4))
        for part, total in zip(parts, counted, strict=True)
    }


def _count_redis(work: Path, asked: Sequence[bytes]) -> Count:
    """Send what the router sent to a Redis that is counted, and then as many jobs to the scripts of the floor."""
    warm, *turns = asked
    with _redis(work / "s", _callgrind(work / "redis", "timeCommand")) as socket:
        redis = bare.Redis(socket.parent)

        def ask(words: bytes) -> None:
            mark = b"said"
            redis.send(words + bare.spelt("ECHO", mark))
            while mark not in redis.replies():
                pass

        ask(warm)
        redis.ask("TIME")
        for turn in turns:
            ask(turn)
        redis.ask("TIME")
        for counted in (False, True):
            if counted:
                redis.ask("TIME")
            for round_ in range(paths.WARM, paths.WARM + paths.COUNTED) if counted else range(paths.WARM):
                numbers = range(round_ * paths.ROUND, (round_ + 1) * paths.ROUND)
                data = [paths.text(number).encode() for number in numbers]
                placed = [
                    (b"", 0, b"floor" + paths.job_id(number).encode(), b"noop", each)
                    for number, each in zip(numbers, data, strict=True)
                ]
                ended = [(job[2], 1, job[4]) for job in placed]
                redis.ask_all(redis.submit(placed), redis.claim(paths.ROUND), redis.report(ended))
        redis.ask("TIME")
    ours, _, floor = totals(work / "redis")[1:4]
    return Count(round(ours / paths.JOBS), round(ours / floor, 4))


def costliest(profile: Path, most: int) -> list[tuple[str, int]]:
    """Return the functions of C that cost most by themselves in a profile of callgrind, and their instructions."""
    spent: Counter[str] = Counter()
    name, called = "", False
    for line in profile.read_text(errors="replace").splitlines():
        if line.startswith("fn="):
            name = line[3:]
        elif line.startswith("calls="):
            called = True  # the next line is the cost of what is called, which has its own
        elif line.startswith(tuple("+-*0123456789")):
            if not called:
                spent[name] += int(line.split()[1])
            called = False
    return spent.most_common(most)


def _profiles(work: Path) -> dict[str, Path]:
    """Name the profiles of all parts, where they were counted."""
    return {REDIS: work / "redis.2", **{part: work / f"python.{4 + 2 * place}" for place, part in enumerate(PARTS)}}


def _callgrind(out: Path, at: str) -> list[str]:
    """Return the words in front of a program that have its instructions counted from one call of `at` to the next."""
    return [
        "valgrind",
        "--tool=callgrind",
        "--compress-strings=no",
        f"--callgrind-out-file={out}",
        f"--dump-before={at}",
        "-q",
    ]


def totals(out: Path) -> list[int]:
    """Return what was counted before the first call, from there to the second, and so on."""
    found: list[int] = []
    while (part := out.with_name(f"{out.name}.{len(found) + 1}")).exists():
        told = _TOTALS.search(part.read_text(errors="replace"))
        found.append(int(told[1]) if told else 0)
    return found


@contextlib.contextmanager
def _redis(home: Path, before: Sequence[str] = ()) -> Iterator[Path]:
    """Run a Redis as ExeSys does, with the words `before` in front; give its socket."""
    home.mkdir()
    config = configuration.parse("", None, {"EXESYS_HOME": str(home)}, _CHECKOUT, home)
    socket = home / "redis"
    # Its housekeeping goes by the clock: as seldom as it may be, and no fsync.
    options = {"unixsocket": str(socket), "dir": str(home), "port": "0", "hz": "1", "appendfsync": "no"}
    command = [*before, *servers.redis_command(config, servers.redis_server(config), **options)]
    with (home / "log").open("wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **dict([servers.REDIS_MALLOC])}, stdout=log, stderr=log)
    try:
        if not process.wait_until(socket.exists, STARTS_S, 0.02):
            raise BootError(f"Redis has not started within {STARTS_S:g} s: {(home / 'log').read_text()[-500:]}")
        yield socket
    finally:
        server.kill()
        server.wait()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--renew", action="store_true", help="keep what is measured now")
    parser.add_argument(
        "--functions", type=int, default=0, metavar="N", help="name the N functions of C that cost most"
    )
    options = parser.parse_args()
    if not shutil.which("valgrind"):
        print("valgrind is not here: apt-get install valgrind", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="exk-") as name:
        now = count(Path(name))
        for part, profile in _profiles(Path(name)).items() if options.functions else ():
            print(f"\n{part}, instructions a job:")
            for function, instructions in costliest(profile, options.functions):
                print(f"{instructions / paths.JOBS:>9,.0f}  {function}")
    kept = read() if KEPT.exists() else {}
    known = kept.get(machine(), {})
    for part, each in now.items():
        before = f", kept {known[part].instructions:,} and {known[part].ratio:.3f}" if part in known else ""
        print(f"{part:8} {each.instructions:>9,} instructions a job, {each.ratio:.3f} × its floor{before}")
    if options.renew:
        write({**kept, machine(): now})
        print(f"kept for {machine()}")
        return 0
    if not known:
        print(f"nothing is kept for {machine()}: see --renew", file=sys.stderr)
        return 2
    lost = losses(known, now)
    for loss in lost:
        print(loss, file=sys.stderr)
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
