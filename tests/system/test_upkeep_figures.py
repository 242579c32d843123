"""What a walk costs, with 1,000,000 keys: processor time of each program, and what jobs notice of it."""

import os
import statistics
import time
from pathlib import Path

import pytest
from harness import until

pytestmark = pytest.mark.alone

KEYS = int(os.environ.get("EXESYS_KEYS", "200000"))  # 1,000,000 for the figures in docs/redis.md
SECONDS = 5.0
FILL = """
for n = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local ref, index = 'a:m' .. n .. ':data_available', 'exesys:job:m' .. n
  redis.call('HSET', ref, 'to', 'end_job', 'cmd', 'echo', 'result', '\\129\\163EOJ\\1', 'sum', '123456789',
    'attempt', 1, 'born', 1700000000000, 'began', 1700000000000, 'ended', 1700000000000)
  redis.call('EXPIRE', ref, 86400)
  redis.call('HSET', index, 'a', 'end_job')
  redis.call('EXPIRE', index, 86400)
end
"""


def cpu_s(pid):
    """Return the processor time that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def looked(client):
    return client.snapshot("figures")["figures"]["looked"]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("no walk", {"controller_walk_s": 0}),
        ("500 a second, as is usual", {"controller_walk_s": 1}),
        ("as fast as it can", {"controller_walk_s": 1, "controller_walk_rate": 1_000_000}),
    ],
)
def test_a_walk_is_hardly_noticed(make, tell, name, settings):
    system = make(**settings)
    with system.client() as client, system.redis() as redis:
        since = time.monotonic()
        for start in range(0, KEYS // 2, 5000):
            redis.eval(FILL, 0, start, start + 4999)
        filled_s = time.monotonic() - since
        until(lambda: client.run("echo", 1, timeout=20) == 1, "it works")
        pids = {program: system.pids()[program] for program in ("router", "controller", "redis")}
        before, seen = {program: cpu_s(pid) for program, pid in pids.items()}, looked(client)
        took, end = [], time.monotonic() + SECONDS
        while time.monotonic() < end:
            began = time.perf_counter()
            client.run("echo", 1, timeout=20)
            took.append((time.perf_counter() - began) * 1000)
            time.sleep(0.005)  # the idle part of a system that is not busy
        used = {program: 100 * (cpu_s(pid) - before[program]) / SECONDS for program, pid in pids.items()}
        rate = (looked(client) - seen) / SECONDS
        counted = {kind.decode() for kind in redis.hgetall("exesys:mended")}
    took.sort()
    tell(
        f"walk, {name}: {KEYS:,} keys (filled in {filled_s:.0f} s), {rate:,.0f} finds a second; "
        f"router {used['router']:.1f} %, controller {used['controller']:.1f} %, redis {used['redis']:.1f} % of a core "
        f"(with {len(took) / SECONDS:.0f} jobs a second); a job takes {statistics.median(took):.2f} ms, "
        f"p99 {took[int(len(took) * 0.99)]:.2f} ms, at most {took[-1]:.2f} ms"
    )
    assert counted == set()
    if name == "no walk":
        assert rate == 0
    elif "controller_walk_rate" in settings:
        assert rate > 1000
    else:
        assert 100 < rate < 700
        assert used["controller"] < 10
