"""A job is as cheap as it was: instructions for each part of its path, beside what is kept in benchmarks/kept.json."""

import math
import shutil
import tempfile
from pathlib import Path

import pytest

from benchmarks import kept, paths

# Runs the client's part, and once more with a fifth more to do for each job.
PLANTED = """
import sys
from pathlib import Path

from benchmarks import paths

tape = Path(sys.argv[1])
paths.main(tape, "yard", "client")
number = paths.job_id


def dearer(job):
    for place in range({pieces}):
        paths.piece(job, place)
    return number(job)


paths.job_id = dearer
paths.main(tape, "client")
"""


@pytest.fixture
def valgrind(need):
    need(shutil.which("valgrind"), "valgrind")


@pytest.fixture
def known(need):
    found = kept.read().get(kept.machine())
    need(found, f"figures for {kept.machine()} in benchmarks/kept.json: see benchmarks/kept.py --renew")
    return found


@pytest.fixture
def work():
    """A directory with a short path: the socket of a Redis lies in it."""
    with tempfile.TemporaryDirectory(prefix="exk-") as path:
        yield Path(path)


def test_nothing_has_become_dearer(valgrind, services, known, work, tell):
    now = kept.count(work)
    for part, count in now.items():
        tell(f"{part}: {count.instructions:,} instructions a job, {count.ratio:.2f} × its floor")
    assert now.keys() == known.keys()
    lost = kept.losses(known, now)
    assert not lost, "\n".join(map(str, lost))


def test_a_fifth_more_work_is_found(valgrind, known, work):
    (work / "tape").write_bytes(b"\x90")  # for the router, which is not run
    pieces = math.ceil(0.2 * known["client"].ratio * paths.PIECES)
    (work / "planted.py").write_text(PLANTED.format(pieces=pieces))
    found = kept.count_python(work, ["client", "planted"], [str(work / "planted.py")])
    before, after = found["client"], found["planted"]
    assert [loss.part for loss in kept.losses({"client": before}, {"client": after})] == ["client"]
    assert after.ratio - before.ratio == pytest.approx(pieces / paths.PIECES, rel=0.1), (
        "the yard does not measure what it does"
    )
