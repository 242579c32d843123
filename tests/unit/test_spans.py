"""Spans with OpenTelemetry's SDK, with its API alone, and without; each in a process of its own: they are global."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
GIVEN = f"00-{TRACE}-{PARENT}-01"

MODULES = '''
def hands(data, ctx):
    """Tell what it would hand on, and what a step of its own gets."""
    ctx.add_step("hands", from_="x", to="end_job")
    ctx.add_step("hands", from_="y", to="end_job", traceparent=data)
    return [ctx.traceparent, ctx.job.traceparent]


def raises(data):
    raise ValueError("on purpose")
'''

# Runs jobs in a slot, and requests in REST's application, with whatever stands before it; prints what came of them.
SCRIPT = """
import io, json, sys
from pathlib import Path
from bottle import Bottle, HTTPResponse
from exesys import codec, environment
from exesys.daemons.slot import Slot
from exesys.functions import Library
from exesys.tracing import Traced, traceparent

class Line:
    def send(self, message, wait=True):
        sent.append(message)
        return True

sent, given = [], sys.argv[1]
slot = Slot(environment.load(), Line())
slot.library = Library.load([Path.cwd() / "modules"])
slot.run("a:j", 1, "end_job", "hands", codec.pack(given), given)
slot.run("a:k", 2, "end_job", "hands", codec.pack(given), "")
slot.run("a:j", 3, "end_job", "raises", codec.pack(None), given)
jobs = [
    {"outcome": m[3], "value": codec.unpack(m[4]).get("EOJ"), "added": [step.options for step in m[8]]} for m in sent
]

app = Bottle()
app.route("/x/<name>", "GET", lambda name: HTTPResponse(traceparent(), 503 if name == "away" else 200))
app.install(Traced())
def ask(path, header):
    app({"REQUEST_METHOD": "GET", "PATH_INFO": path, "HTTP_TRACEPARENT": header, "wsgi.input": io.BytesIO()},
        lambda *_: None)
    return traceparent()
requests = [ask("/x/here", given), ask("/x/away", given), ask("/x/here", "nonsense")]
made = spans() if "spans" in globals() else []
print(json.dumps({"jobs": jobs, "requests": requests, "spans": made}))
"""
WITHOUT = "import importlib.abc, sys\nsys.modules['opentelemetry'] = None\n"
WATCH = """
class Watch(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        assert not name.startswith("opentelemetry"), name
sys.meta_path.insert(0, Watch())
"""
SDK = """
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
trace.set_tracer_provider(TracerProvider())
trace.get_tracer_provider().add_span_processor(SimpleSpanProcessor(exporter))
def spans():
    return [{
        "name": span.name, "kind": span.kind.name, "status": span.status.status_code.name,
        "said": span.status.description, "attributes": dict(span.attributes),
        "id": format(span.context.span_id, "016x"), "trace": format(span.context.trace_id, "032x"),
        "parent": format(span.parent.span_id, "016x") if span.parent else "",
        "events": [event.attributes.get("exception.message") for event in span.events],
    } for span in exporter.get_finished_spans()]
"""


def ran(before: str, tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "traced.py").write_text(MODULES)
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "EXESYS_HOME": str(tmp_path / "h")}
    done = subprocess.run(
        [sys.executable, "-c", before + SCRIPT, GIVEN],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environ,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.parametrize("before", [WITHOUT + WATCH, ""], ids=["without the API", "with the API alone"])
def test_without_the_sdk_the_trace_is_handed_on_as_it_came(before: str, tmp_path: Path) -> None:
    told = ran(before, tmp_path)
    first, second, third = told["jobs"]
    assert first == {
        **{"outcome": 0, "value": [GIVEN, GIVEN]},
        "added": [{"traceparent": GIVEN}, {"traceparent": GIVEN}],
    }
    assert second == {"outcome": 0, "value": ["", ""], "added": [{}, {"traceparent": GIVEN}]}
    assert third["outcome"] == 1
    assert told["requests"] == [GIVEN, GIVEN, ""]


def test_spans_are_made_around_functions_and_requests(tmp_path: Path) -> None:
    told = ran(SDK, tmp_path)
    first, second, failed, here, away, fresh = told["spans"]
    assert [span["kind"] for span in told["spans"]] == ["CONSUMER"] * 3 + ["SERVER"] * 3
    # What the function hands on is its own span, below the given one.
    assert (first["name"], first["trace"], first["parent"]) == ("hands", TRACE, PARENT)
    mine = f"00-{TRACE}-{first['id']}-01"
    assert told["jobs"][0] == {
        **{"outcome": 0, "value": [mine, mine]},
        "added": [{"traceparent": mine}, {"traceparent": GIVEN}],
    }
    assert first["attributes"] == {
        **{"exesys.job_id": "j", "exesys.cmd": "hands", "exesys.attempt": 1, "exesys.outcome": "done"}
    }
    assert first["status"] == "UNSET"
    assert (second["parent"], second["trace"] == TRACE) == ("", False)
    assert (failed["status"], failed["said"], failed["events"]) == ("ERROR", "ValueError", ["on purpose"])
    assert failed["attributes"]["exesys.outcome"] == "failed"
    assert (here["name"], here["parent"], here["status"]) == ("GET /x/<name>", PARENT, "UNSET")
    assert here["attributes"]["http.response.status_code"] == 200
    assert (away["status"], away["attributes"]["http.response.status_code"]) == ("ERROR", 503)
    assert fresh["parent"] == ""
    handed = [f"00-{span['trace']}-{span['id']}" for span in (here, away, fresh)]
    assert [each[:-3] for each in told["requests"]] == handed  # but for the flags


SET_UP = """
import atexit, sys
from exesys.spans import Spans, set_up
set_up("worker")
with Spans().around("add", "", "consumer", {}):
    pass
"""


def set_up(exporter: str) -> subprocess.CompletedProcess[str]:
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "OTEL_TRACES_EXPORTER": exporter}
    return subprocess.run([sys.executable, "-c", SET_UP], capture_output=True, text=True, env=environ, check=False)


def test_the_exporter_is_named_by_the_environment() -> None:
    done = set_up("console")
    assert done.returncode == 0, done.stderr
    span = json.loads(done.stdout)
    assert (span["name"], span["resource"]["attributes"]["service.name"]) == ("add", "exesys-worker")
    assert (set_up("none").returncode, set_up("none").stdout) == (0, "")


def test_an_exporter_that_is_not_there_is_told() -> None:
    done = set_up("nowhere")
    assert done.returncode == 1
    assert "OTEL_TRACES_EXPORTER is nowhere, and no such exporter is installed." in done.stderr
