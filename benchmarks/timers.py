"""Time: how late ticks and delayed jobs begin, and what timers cost that have nothing to do."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterable

from benchmarks import load
from benchmarks.system import Store, program_s
from exesys import Client, codec
from exesys.config import Config
from exesys.process import wait_until

IDLE_TIMERS = 10_000
IDLE_S = 20.0
FAR_S = 30 * 86_400
TICKING = 1000  # timers, each once a second
TICKING_S = 15
DELAYED = 10_000  # jobs, one each millisecond
LEAD_S = 5.0
LATE_S = 60.0


def lateness(config: Config) -> dict[str, float]:
    """Measure ticks at 1,000 a second, delayed jobs at 1,000 a second, and 10,000 idle timers, in this order."""
    with Client(config) as client, Store(config) as store:
        ticks = _ticks(client, store)
        delayed = _delayed(client, store)
        idle = _idle(config, client, store)
    figures = {"idle_percent": idle}
    for name, late_ms in (("ticks", ticks), ("delayed", delayed)):
        figures |= {f"{name}_p{percent}_ms": load.quantile(late_ms, percent / 100) for percent in (50, 99)}
        figures[f"{name}_most_ms"] = max(late_ms)
    return figures


def _ticks(client: Client, store: Store) -> list[float]:
    names = [f"tick{number}" for number in range(TICKING)]
    for name in names:
        client.tune("timer", "add", name, {"cmd": "noop", "data": codec.pack(name), "every_s": 1})
    since_ms = time.time() * 1000 + 2000  # those that were added first wait for the last
    time.sleep(TICKING_S)  # the time that is measured
    for name in names:
        client.tune("timer", "remove", name, {})
    jobs = [job for job in store.jobs() if job.startswith("tick")]
    due = {f"timer:{job}": _moment_ms(job) for job in jobs}
    return _late({ref: ms for ref, ms in due.items() if since_ms <= ms < since_ms + (TICKING_S - 3) * 1000}, store)


def _delayed(client: Client, store: Store) -> list[float]:
    begin_ms = int((time.time() + LEAD_S) * 1000)
    due = {}
    for number in range(DELAYED):
        moment = dt.datetime.fromtimestamp((begin_ms + number) / 1000, dt.UTC)
        handle = client.submit("noop", number, at=moment.isoformat())
        due[f"client:{handle.job_id}"] = begin_ms + number
    return _late(due, store)


def _late(due: dict[str, int], store: Store) -> list[float]:
    """Return by how many milliseconds each job began after it was due; a job that never ran is an error."""
    refs = list(due)
    if not refs or not wait_until(lambda: store.began(refs[-100:])[-1] is not None, LATE_S, 0.1):
        raise load.WrongResult("the last of the jobs that were due has not run")
    began: Iterable[float | None] = store.began(refs)
    late = [ms - due[ref] for ref, ms in zip(refs, began, strict=True) if ms is not None]
    if len(late) < len(refs):
        raise load.WrongResult(f"{len(refs) - len(late)} of {len(refs)} jobs that were due have not run")
    return late


def _idle(config: Config, client: Client, store: Store) -> float:
    for number in range(IDLE_TIMERS):
        fields = {"cmd": "noop", "data": codec.pack(None), "every_s": FAR_S}
        client.tune("timer", "add", f"idle{number}", fields)
    if not wait_until(lambda: store.took_in(f"idle{IDLE_TIMERS - 1}"), LATE_S, 0.1):
        raise load.WrongResult("the controller has not taken in the last of the idle timers")
    used_s = program_s(config, "controller")
    time.sleep(IDLE_S)  # the time that is measured
    return 100 * (program_s(config, "controller") - used_s) / IDLE_S


def _moment_ms(job_id: str) -> int:
    _, date, ms = job_id.split(".")[:3]
    return int(dt.datetime.strptime(f"{date}+0000", "%Y%m%dT%H%M%S%z").timestamp() * 1000) + int(ms.rstrip("Z"))
