"""OpenTelemetry spans around what is done, where its API package is installed; nothing at all where it is not.

Spans go wherever the process has set OpenTelemetry up to send them: by itself,
or by `set_up`, which heeds OTEL_TRACES_EXPORTER as OpenTelemetry's own tools do.
Without the SDK the API makes spans that nobody sees, and hands the trace on.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from typing import Any

from exesys import __version__
from exesys.errors import ConfigError

_EXPORTERS = "opentelemetry_traces_exporter"  # the group of entry points in which exporters are announced


class Span:
    """One span, or none. `traceparent` is what belongs to it hands on, "" without a trace."""

    def __init__(self, traceparent: str, span: Any = None) -> None:
        self.traceparent = traceparent
        self._span = span

    def note(self, name: str, value: str | int) -> None:
        """Add an attribute."""
        if self._span is not None:
            self._span.set_attribute(name, value)

    def failed(self, why: str, error: BaseException | None = None) -> None:
        """Note that what it is around has failed."""
        if self._span is not None:
            from opentelemetry.trace import Status, StatusCode

            if error is not None:
                self._span.record_exception(error)
            self._span.set_status(Status(StatusCode.ERROR, why))


class Spans:
    """Makes spans, or hands on the trace alone."""

    def __init__(self) -> None:
        self._there = importlib.util.find_spec("opentelemetry") is not None
        self._tracer: Any = None

    @contextlib.contextmanager
    def around(self, name: str, traceparent: str, kind: str, attributes: Mapping[str, Any]) -> Iterator[Span]:
        """Make a span below `traceparent`, a new trace's if that is "". `kind` is server or consumer."""
        if not self._there:
            yield Span(traceparent)
            return
        from opentelemetry import context, trace
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        if self._tracer is None:
            self._tracer = trace.get_tracer("exesys", __version__)
        propagator = TraceContextTextMapPropagator()
        above = propagator.extract({"traceparent": traceparent}, context.Context())
        with self._tracer.start_as_current_span(
            name,
            above,
            trace.SpanKind[kind.upper()],
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        ) as span:
            carrier: dict[str, str] = {}
            propagator.inject(carrier)
            yield Span(carrier.get("traceparent", ""), span)


def set_up(program: str) -> None:
    """Have the spans of this process sent by the exporter that OTEL_TRACES_EXPORTER names, if it is set.

    The SDK reads its own variables (OTEL_SERVICE_NAME, OTEL_EXPORTER_OTLP_ENDPOINT
    and so on). Raises ConfigError when the SDK or the exporter is not installed.
    """
    wanted = os.environ.get("OTEL_TRACES_EXPORTER", "none")
    if wanted in ("", "none"):
        return
    found = list(entry_points(group=_EXPORTERS, name=wanted))
    if importlib.util.find_spec("opentelemetry") is None or not found:
        raise ConfigError(
            f"OTEL_TRACES_EXPORTER is {wanted}, and no such exporter is installed.",
            fix="Install opentelemetry-sdk and an exporter into the venv (docs/metrics.md), or unset it.",
        )
    from opentelemetry import trace
    from opentelemetry.sdk.resources import SERVICE_NAME, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    named = {} if "OTEL_SERVICE_NAME" in os.environ else {SERVICE_NAME: f"exesys-{program}"}
    provider = TracerProvider(resource=Resource.create(named))
    provider.add_span_processor(BatchSpanProcessor(found[0].load()()))
    trace.set_tracer_provider(provider)
