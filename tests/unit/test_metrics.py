"""What Prometheus is told, and that the page, the dashboard and the alerts speak of what there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from unit.bench import Bench, finish, item

from exesys import meters
from exesys.bus import messages as m
from exesys.endpoints import metrics
from exesys.endpoints.metrics import METRICS, counted, families

ROOT = Path(__file__).resolve().parent.parent.parent
NAME = re.compile(r"\bexesys_\w+")
SUFFIXES = ("_bucket", "_sum", "_count", "")


@pytest.fixture
def text() -> str:
    """What a router tells that ran two steps, one of them in vain."""
    bench = Bench()
    client, worker = bench.client(), bench.worker(slots=2)
    bench.submit(client, item(1, "j"), item(2, "k"))
    bench.turn()
    first, second = bench.dealt(worker)
    finish(bench, worker, first)
    finish(bench, worker, second, outcome=m.Outcome.failed, body=b"\x80")
    registry = CollectorRegistry(auto_describe=False)
    registry.register(metrics._Once(families(counted(bench.snapshot("metrics")))))
    return generate_latest(registry).decode()


@pytest.fixture
def told(text: str) -> dict[str, Any]:
    """The same, read with Prometheus' own parser."""
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(told: dict[str, Any], name: str, **labels: str) -> float:
    [found] = [
        sample.value
        for family in told.values()
        for sample in family.samples
        if sample.name == name and sample.labels == labels
    ]
    return float(found)


def test_each_family_has_the_type_the_labels_and_the_help_that_it_is_declared_with(told: dict[str, Any]) -> None:
    assert len(told) > 15
    for name, family in told.items():
        declared = METRICS.get(name) or METRICS[f"{name}_total"]
        assert family.documentation == declared.help
        assert family.type == declared.kind("x", "x").type
        for sample in family.samples:
            assert {*declared.labels} == {*sample.labels} - {"le"}


def test_what_was_counted_is_told(told: dict[str, Any]) -> None:
    assert value(told, "exesys_steps_accepted_total", cmd="double") == 2
    assert value(told, "exesys_steps_ended_total", cmd="double", state="data_available") == 1
    assert value(told, "exesys_steps_ended_total", cmd="double", state="error") == 1
    assert value(told, "exesys_attempts_started_total", cmd="double") == 2
    assert value(told, "exesys_slots") == 2
    assert value(told, "exesys_sessions", role="worker") == 1
    assert value(told, "exesys_bus_busy_total") == 0


def test_histograms_are_cumulative_and_complete(told: dict[str, Any]) -> None:
    seen = 0
    for family in told.values():
        if family.type != "histogram":
            continue
        seen += 1
        of: dict[str, list[tuple[float, float]]] = {}
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                of.setdefault(sample.labels.get("cmd", ""), []).append((float(sample.labels["le"]), sample.value))
        for cmd, buckets in of.items():
            assert buckets == sorted(buckets)
            assert buckets[-1] == (float("inf"), value(told, f"{family.name}_count", **({"cmd": cmd} if cmd else {})))
    assert seen == 4
    assert value(told, "exesys_attempt_run_seconds_count", cmd="double") == 2
    assert value(told, "exesys_attempt_run_seconds_sum", cmd="double") == pytest.approx(0.002)
    assert value(told, "exesys_attempt_run_seconds_bucket", cmd="double", le="0.001") == 2


def test_names_are_as_prometheus_wants_them() -> None:
    for name, declared in METRICS.items():
        assert re.fullmatch(r"exesys(_[a-z]+)+", name)
        assert name.endswith("_total") == (declared.kind("x", "x").type == "counter")
        assert declared.help[0].isupper() or declared.help[0].isdigit()
        assert declared.help.endswith(".")
    assert set(meters.COARSE_S) <= set(meters.TIMES_S)


# --- what is written of them ----------------------------------------------------------


def text_of(name: str) -> str:
    return (ROOT / name).read_text("utf-8")


def known(expression: str) -> set[str]:
    """Return the metrics an expression names; each must be there."""
    found = set()
    for name in NAME.findall(expression):
        bases = {name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)} & METRICS.keys()
        assert bases, f"there is no metric {name}"
        found |= bases
    return found


def test_the_page_lists_every_metric() -> None:
    rows = re.findall(r"^\| `(exesys_\w+)` \| (\w+) \| (.*?) \| (.*) \|$", text_of("docs/metrics.md"), re.MULTILINE)
    listed = {name: (kind, re.findall(r"\w+", labels), what) for name, kind, labels, what in rows}
    assert listed == {name: (told.kind("x", "x").type, list(told.labels), told.help) for name, told in METRICS.items()}
    page = text_of("docs/metrics.md")
    assert f"{meters.MOST_CMDS} functions" in page
    assert f"the {metrics.MOST_QUEUES:,} deepest" in page


def test_the_dashboard_shows_what_there_is() -> None:
    dashboard = json.loads(text_of("etc/grafana-dashboard.json"))
    shown = set()
    for panel in dashboard["panels"]:
        assert panel["description"], panel["title"]
        for target in panel["targets"]:
            shown |= known(target["expr"])
    unshown = METRICS.keys() - shown
    assert unshown == {"exesys_part_up", "exesys_build_info", "exesys_router_epoch"}
    numbers = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(numbers)) == len(numbers) > 15


def test_the_examples_are_the_files_and_name_what_there_is() -> None:
    page = text_of("docs/metrics.md")
    for name in ("etc/prometheus.yml", "etc/prometheus-alerts.yml"):
        assert f"```yaml\n{text_of(name)}```" in page
    alerts = text_of("etc/prometheus-alerts.yml")
    assert alerts.count("- alert: ") == 3
    assert known(alerts) == {
        "exesys_up",
        "exesys_queue_oldest_seconds",
        "exesys_queue_paused",
        "exesys_steps_ended_total",
    }


@pytest.mark.skipif(not shutil.which("promtool"), reason="promtool (of the package prometheus) is not here")
def test_promtool_takes_the_text_and_the_examples(text: str) -> None:
    for words in ("metrics", "rules etc/prometheus-alerts.yml", "config etc/prometheus.yml"):
        command = ["promtool", "check", *words.split()]
        done = subprocess.run(command, cwd=ROOT, input=text, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
