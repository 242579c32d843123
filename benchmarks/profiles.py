"""Where the microseconds of a job go: processor time of each process at full load, and of which module it is.

    python benchmarks/profiles.py [--jobs N]

Prints the tables of docs/performance.md. The kernel says what a job costs a
process, apart for the threads of libzmq, and for system calls. The rest is
Python, and is shared out by the samples of py-spy among the modules of ExeSys;
what a module calls that is not of ExeSys (msgpack, pyzmq, the standard
library) counts as its own. Jobs come by submit, 100 under way, and by REST,
over 32 connections; two slots.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(_CHECKOUT))

from benchmarks import limit, ours, system  # noqa: E402  # found by the line above, when this is the program
from benchmarks.costs import of_system  # noqa: E402

RATE = 200  # samples a second
ATTACHES_S = 60.0
LEAST_US = 0.5
LIBZMQ, KERNEL, PYTHON = "threads of libzmq", "system calls", "Python"
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
IN_FLIGHT = 100
Frames = Mapping[str, int]  # stacks as py-spy writes them, and how often each was seen


def shares(stacks: Frames, root: str = "exesys/") -> dict[str, float]:
    """Return what share of the samples each module of ours has: it is that of the innermost frame of ours."""
    seen: Counter[str] = Counter()
    for stack, count in stacks.items():
        seen[_module(stack, root)] += count
    total = sum(seen.values())
    return {module: count / total for module, count in seen.most_common()}


def _module(stack: str, root: str) -> str:
    for frame in reversed(stack.split(";")):
        path = frame.rpartition("(")[2].partition(":")[0].rstrip(")")
        if root in path:
            return path.rpartition(root)[2].removesuffix(".py")
    return "other"


def read(raw: Iterable[str]) -> dict[str, int]:
    """Read what py-spy wrote in the form `raw`."""
    parts = (line.rpartition(" ") for line in raw if line.strip())
    return {stack: int(count) for stack, _, count in parts}


def spent_s(pid: int) -> dict[str, float]:
    """Return the processor time a process has used until now, by what it was used for."""
    found = {LIBZMQ: 0.0, KERNEL: 0.0, PYTHON: 0.0}
    for task in Path(f"/proc/{pid}/task").iterdir():
        name, _, rest = (task / "stat").read_text().partition("(")[2].rpartition(")")
        user_s, system_s = (int(word) * _TICK_S for word in rest.split()[11:13])
        found[LIBZMQ if name.startswith("ZMQ") else KERNEL] += system_s
        found[LIBZMQ if name.startswith("ZMQ") else PYTHON] += user_s
    return found


def lines(name: str, spent_us: Mapping[str, float], parts: Mapping[str, float], floor_us: float) -> Iterator[str]:
    """Give a process's rows of the table; `floor_us` is 0 where there is no floor."""
    floor = f" **{floor_us:.0f}**" if floor_us else ""
    yield f"| **{name}** | **{sum(spent_us.values()):.0f}** |{floor} |"
    for what in (LIBZMQ, KERNEL):
        if spent_us[what] >= LEAST_US:
            yield f"| {what} | {spent_us[what]:.1f} | |"
    python_us = spent_us[PYTHON]
    if not parts:
        yield f"| itself | {python_us:.1f} | |"
        return
    few = [module for module, share in parts.items() if share * python_us < LEAST_US]
    for module, share in parts.items():
        if module not in few:
            yield f"| `{module}` | {share * python_us:.1f} | |"
    if few:
        yield f"| in {len(few)} others | {sum(parts[module] for module in few) * python_us:.1f} | |"


@contextmanager
def sampled(pids: Mapping[str, int], work: Path) -> Iterator[None]:
    """Have py-spy sample processes; `work` has then a file for each."""
    spies = []
    for name, pid in pids.items():
        words = ["py-spy", "record", "--pid", str(pid), "--rate", str(RATE), "--format", "raw", "--gil"]
        out = (work / f"{name}.log").open("wb")
        with out:
            spies.append(subprocess.Popen([*words, "--output", str(work / name)], stdout=out, stderr=out))
    try:
        yield
    finally:
        for spy in spies:
            spy.send_signal(2)
            spy.wait(ATTACHES_S)


def _sum(parts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(total)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--jobs", type=int, default=40_000, metavar="N", help="jobs of each kind (default: %(default)s)"
    )
    options = parser.parse_args()
    if not shutil.which("py-spy"):
        print("py-spy is not here: pip install py-spy", file=sys.stderr)
        return 2
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exp-")))
        with limit.running(home / "f") as floor:
            floor.throughput(options.jobs // 4, IN_FLIGHT, 0)
            floor_us = floor.throughput(options.jobs, IN_FLIGHT, 1)
        config = stack.enter_context(system.running(home / "s"))
        groups = of_system(config)
        loads: dict[str, tuple[dict[str, int], Callable[[int, int], object]]] = {
            "submit": (
                {"client": os.getpid(), **{name: groups[name][0] for name in ("router", "worker", "slots")}},
                lambda jobs, seed: ours.throughput(config, jobs, IN_FLIGHT, seed),
            ),
            "REST": ({"rest": groups["rest"][0]}, lambda jobs, seed: ours.rest(config, jobs, seed, array=1)),
        }
        for number, (kind, (pids, load)) in enumerate(loads.items()):
            load(options.jobs // 4, 1000 + number)  # to get warm
            own = {"client": [os.getpid()], **groups}
            before = {name: _sum(map(spent_s, own[name])) for name in (*pids, "redis")}
            load(options.jobs, 2000 + number)
            spent = {name: _sum(map(spent_s, own[name])) for name in before}  # without py-spy, which takes its own
            with sampled(pids, home):
                load(options.jobs, 3000 + number)
            print(f"\n| by {kind} | µs a job | the floor |\n|---|--:|--:|")
            for name, had in before.items():
                us = {what: (spent[name][what] - had[what]) / options.jobs * 1e6 for what in had}
                parts = shares(read((home / name).read_text().splitlines())) if name in pids else {}
                print("\n".join(lines(name, us, parts, floor_us[f"{name}_us"] if kind == "submit" else 0)), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
