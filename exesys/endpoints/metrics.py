"""REST: what Prometheus asks for. What is counted is the router's (`meters.py`), the rest is read at the moment.

`METRICS` is all there is; docs/metrics.md lists it. Whatever is away is told as
`exesys_up` 0, and what is known without it is told all the same.
"""

from __future__ import annotations

import platform
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from bottle import HTTPResponse
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import exesys
from exesys import meters
from exesys.bus.client import Client
from exesys.command import DEFAULT_QUEUE
from exesys.config import Config
from exesys.errors import Unavailable
from exesys.http import HEADERS, Endpoint
from exesys.runner import RunnerState
from exesys.states import State
from exesys.store.reader import Reader
from exesys.tokens import Role

ASK_S = 1.0
MOST_QUEUES = 1000  # that are told one by one: the deepest
TYPE = "text/plain; version=0.0.4; charset=utf-8"
PARTS = ("metrics", "runners", "store")  # of a SNAPSHOT


class Told(NamedTuple):
    """One metric: its type for Prometheus, its labels, and in a sentence what it is."""

    kind: Any  # the class of its family in prometheus_client
    labels: tuple[str, ...]
    help: str


_GAUGE, _COUNTER, _HISTOGRAM = GaugeMetricFamily, CounterMetricFamily, HistogramMetricFamily
METRICS: Mapping[str, Told] = {
    "exesys_up": Told(_GAUGE, (), "1 while the router and Redis both answer."),
    "exesys_part_up": Told(_GAUGE, ("part",), "1 while this part, router or redis, answers."),
    "exesys_build_info": Told(_GAUGE, ("version", "python"), "Always 1; the labels tell the versions."),
    "exesys_router_epoch": Told(_GAUGE, (), "Which life of the router this is."),
    "exesys_router_uptime_seconds": Told(_GAUGE, (), "How long ago the router began; all it counts began then."),
    "exesys_steps_accepted_total": Told(_COUNTER, ("cmd",), "Steps that were stored."),
    "exesys_steps_ended_total": Told(_COUNTER, ("cmd", "state"), "Steps that ended, as data_available or error."),
    "exesys_attempts_started_total": Told(_COUNTER, ("cmd",), "Attempts that were handed out to a worker."),
    "exesys_attempts_retried_total": Told(_COUNTER, ("cmd",), "Attempts that failed and are made again."),
    "exesys_step_wait_seconds": Told(
        _HISTOGRAM, ("cmd",), "From when a step could start until it was handed out to a worker."
    ),
    "exesys_attempt_run_seconds": Told(_HISTOGRAM, ("cmd",), "From the beginning to the end of an attempt."),
    "exesys_turn_steps": Told(_HISTOGRAM, (), "Steps that one turn of the router commits together."),
    "exesys_redis_round_trip_seconds": Told(
        _HISTOGRAM, (), "From when a turn was sent to Redis until it was answered."
    ),
    "exesys_slots": Told(_GAUGE, (), "Functions that all workers can run at once."),
    "exesys_slots_busy": Told(_GAUGE, (), "Slots that have a step to run."),
    "exesys_leases_held": Told(_GAUGE, (), "Steps that workers hold: they run, or were fetched ahead."),
    "exesys_sessions": Told(_GAUGE, ("role",), "Peers that are connected to the router."),
    "exesys_workers_lost_total": Told(_COUNTER, (), "Workers that were silent for a lease and were given up."),
    "exesys_bus_refused_total": Told(
        _COUNTER, ("reason",), "Messages that were garbage, not allowed, or of another version of the protocol."
    ),
    "exesys_bus_busy_total": Told(_COUNTER, (), "Commands that were answered with BUSY, to be sent again."),
    "exesys_bus_dropped_total": Told(_COUNTER, (), "Messages for peers that are gone or read nothing."),
    "exesys_queues": Told(_GAUGE, (), "Queues that were used or set."),
    "exesys_queue_depth": Told(_GAUGE, ("queue",), "Steps that wait in a queue to be handed out."),
    "exesys_queue_oldest_seconds": Told(
        _GAUGE, ("queue",), "How long ago the oldest of these was accepted; of an empty queue nothing is told."
    ),
    "exesys_queue_paused": Told(_GAUGE, ("queue",), "1 of each queue that is paused; of others nothing is told."),
    "exesys_steps_delayed": Told(_GAUGE, (), "Steps that wait for a time."),
    "exesys_steps_unfed": Told(_GAUGE, (), "Steps that wait for others which were not sent yet."),
    "exesys_steps_dead": Told(_GAUGE, (), "Steps that failed by themselves and are kept."),
    "exesys_callbacks_waiting": Told(_GAUGE, (), "Ends that are still to be told to a URL."),
    "exesys_callbacks_total": Told(
        _COUNTER, ("outcome",), "Callbacks that were sent or given up since the store began."
    ),
    "exesys_timers": Told(_GAUGE, (), "Timers there are."),
    "exesys_runners": Told(_GAUGE, ("state",), "Runners that have not ended."),
    "exesys_runners_ended": Told(_GAUGE, (), "Runners that have stopped or failed and are kept."),
}

Samples = Iterator[tuple[str, Sequence[str], Any]]  # name of the metric, its labels' values, the value


class MetricsApi:
    """GET /metrics."""

    def __init__(self, config: Config, client: Client, reader: Reader) -> None:
        self._config = config
        self._client = client
        self._reader = reader

    def endpoints(self) -> Sequence[Endpoint]:
        """Return what can be asked, and what is said of it."""
        return (Endpoint("GET", "/metrics", self.metrics, {}, Role.read, {200: "Text"}, kinds=(TYPE,)),)

    def metrics(self) -> HTTPResponse:
        """Tell all metrics in Prometheus' text format."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Once(families(self._samples())))
        return HTTPResponse(generate_latest(registry), 200, headers={**HEADERS, "Content-Type": TYPE})

    def _samples(self) -> Samples:
        told = self._snapshot()
        trouble = told.get("store", {}).get("reason", "")
        read = list(self._read())
        up = {"router": "metrics" in told, "redis": bool(read) and not trouble}
        yield "exesys_up", (), all(up.values())
        yield from (("exesys_part_up", (part,), there) for part, there in up.items())
        yield "exesys_build_info", (exesys.__version__, platform.python_version()), 1
        if "metrics" in told:
            yield from counted(told["metrics"])
            states = Counter(each["state"] for each in told.get("runners", ()))
            yield from (
                ("exesys_runners", (state.name,), states[state.name]) for state in RunnerState if not state.final
            )
        yield from read

    def _snapshot(self) -> dict[str, Any]:
        if not self._client.connected:
            return {}
        try:
            return self._client.snapshot(*PARTS, timeout=ASK_S)
        except Unavailable:
            return {}

    def _read(self) -> Samples:
        """Tell what stands in Redis; nothing when it is away."""
        try:
            names = self._reader.queue_names() | {DEFAULT_QUEUE, *self._config.worker.queues}
            waiting = self._reader.waiting(sorted(names))
            totals, callbacks = self._reader.totals(), self._reader.callback_counts()
        except Unavailable:
            return
        now_ms = time.time_ns() // 1_000_000
        yield "exesys_queues", (), len(names)
        waiting.sort(key=lambda each: (-each.depth, each.name))
        for name, depth, oldest_ms, paused in waiting[:MOST_QUEUES]:
            yield "exesys_queue_depth", (name,), depth
            if oldest_ms is not None:
                yield "exesys_queue_oldest_seconds", (name,), max(now_ms - oldest_ms, 0) / 1000
            if paused:
                yield "exesys_queue_paused", (name,), 1
        for name in ("delayed", "unfed", "dead"):
            yield f"exesys_steps_{name}", (), totals[name]
        yield "exesys_callbacks_waiting", (), totals["callbacks"]
        yield from (("exesys_callbacks_total", (outcome,), callbacks[outcome]) for outcome in ("sent", "failed"))
        yield "exesys_timers", (), totals["timers"]
        yield "exesys_runners_ended", (), totals["ended"]


def counted(snapshot: Mapping[str, Any]) -> Samples:
    """Tell what the router has counted, the part `metrics` of its SNAPSHOT."""
    yield "exesys_router_epoch", (), snapshot["epoch"]
    yield "exesys_router_uptime_seconds", (), snapshot["up_s"]
    bounds = snapshot["bounds_s"]
    for cmd, tally in snapshot["cmds"].items():
        yield "exesys_steps_accepted_total", (cmd,), tally["accepted"]
        yield "exesys_steps_ended_total", (cmd, State.data_available.name), tally["done"]
        yield "exesys_steps_ended_total", (cmd, State.error.name), tally["failed"]
        yield "exesys_attempts_started_total", (cmd,), tally["started"]
        yield "exesys_attempts_retried_total", (cmd,), tally["retried"]
        yield "exesys_step_wait_seconds", (cmd,), _buckets(bounds, tally["wait"], meters.COARSE_S)
        yield "exesys_attempt_run_seconds", (cmd,), _buckets(bounds, tally["run"], meters.COARSE_S)
    yield "exesys_turn_steps", (), _buckets(snapshot["sizes"], snapshot["turn_steps"], snapshot["sizes"])
    yield "exesys_redis_round_trip_seconds", (), _buckets(bounds, snapshot["redis"], meters.COARSE_S)
    yield "exesys_slots", (), snapshot["slots"]["all"]
    yield "exesys_slots_busy", (), snapshot["slots"]["busy"]
    yield "exesys_leases_held", (), snapshot["held"]
    yield from (("exesys_sessions", (role,), count) for role, count in snapshot["sessions"].items())
    yield "exesys_workers_lost_total", (), snapshot["workers_lost"]
    bus = snapshot["bus"]
    refused = ("garbage", "not_allowed", "other_versions")
    yield from (("exesys_bus_refused_total", (reason,), bus[reason]) for reason in refused)
    yield "exesys_bus_busy_total", (), bus["busy"]
    yield "exesys_bus_dropped_total", (), bus["dropped"]


def _buckets(
    bounds: Sequence[float], histogram: Mapping[str, Any], wanted: Sequence[float]
) -> tuple[list[tuple[str, float]], float]:
    """Return a histogram as prometheus_client takes it: what is at most each bound, and the sum."""
    told = meters.coarse(bounds, histogram["counts"], wanted)
    names = [*(repr(float(bound)) for bound in wanted), "+Inf"]
    return list(zip(names, told, strict=True)), histogram["sum"]


def families(samples: Iterable[tuple[str, Sequence[str], Any]]) -> list[Metric]:
    """Put samples together by their metric, in the order of `METRICS`."""
    made: dict[str, Any] = {
        name: told.kind(name.removesuffix("_total"), told.help, labels=told.labels) for name, told in METRICS.items()
    }
    for name, labels, value in samples:
        if METRICS[name].kind is HistogramMetricFamily:
            made[name].add_metric(labels, *value)
        else:
            made[name].add_metric(labels, float(value))
    return [family for family in made.values() if family.samples]


class _Once(Collector):
    """A collector of what was collected already."""

    def __init__(self, collected: Sequence[Metric]) -> None:
        self._collected = collected

    def collect(self) -> Iterable[Metric]:
        return self._collected
