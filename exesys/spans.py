"""OpenTelemetry spans around what is done, where its API package is installed; nothing of it where it is not.

Spans go wherever the process has set OpenTelemetry up to send them: by itself,
or by `set_up`, which heeds OTEL_TRACES_EXPORTER as OpenTelemetry's own tools do.
Where it has not, no span is made, and the trace is handed on as it came.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from importlib.metadata import entry_points
from typing import Any, Self

from exesys import __version__
from exesys.errors import ConfigError

_EXPORTERS = "opentelemetry_traces_exporter"  # the group of entry points in which exporters are announced


class Span:
    """No span, but what stands in its place. `traceparent` is what belongs to it hands on, "" without a trace."""

    def __init__(self, traceparent: str) -> None:
        self.traceparent = traceparent

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def note(self, name: str, value: str | int) -> None:
        """Add an attribute."""

    def failed(self, why: str, error: BaseException | None = None) -> None:
        """Note that what it is around has failed."""


class _Made(Span):
    """A span of OpenTelemetry's; `entering` makes it."""

    def __init__(self, entering: AbstractContextManager[Any]) -> None:
        self._entering = entering

    def __enter__(self) -> Self:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._span = self._entering.__enter__()
        carrier: dict[str, str] = {}
        TraceContextTextMapPropagator().inject(carrier)
        self.traceparent = carrier.get("traceparent", "")
        return self

    def __exit__(self, *raised: Any) -> None:
        self._entering.__exit__(*raised)

    def note(self, name: str, value: str | int) -> None:
        self._span.set_attribute(name, value)

    def failed(self, why: str, error: BaseException | None = None) -> None:
        from opentelemetry.trace import Status, StatusCode

        if error is not None:
            self._span.record_exception(error)
        self._span.set_status(Status(StatusCode.ERROR, why))


class Spans:
    """Makes spans; where nobody would see them, only hands on the trace."""

    def __init__(self) -> None:
        self._api: Any = None
        if importlib.util.find_spec("opentelemetry") is not None:
            self._api = importlib.import_module("opentelemetry.trace")

    @property
    def live(self) -> bool:
        """Whether anybody would see a span."""
        return self._provider() is not None

    def _provider(self) -> Any:
        provider = self._api and self._api.get_tracer_provider()
        if provider is None or type(provider) is self._api.ProxyTracerProvider:  # which is there until one is set
            return None
        return provider

    def around(self, name: str, traceparent: str, kind: str, attributes: Mapping[str, Any]) -> Span:
        """Make a span below `traceparent`, or of a new trace if that is "". `kind` is server or consumer."""
        provider = self._provider()
        if provider is None:
            return Span(traceparent)
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        above = TraceContextTextMapPropagator().extract({"traceparent": traceparent}, context.Context())
        entering = provider.get_tracer("exesys", __version__).start_as_current_span(
            name,
            above,
            self._api.SpanKind[kind.upper()],
            attributes,
            record_exception=False,
            set_status_on_exception=False,
        )
        return _Made(entering)


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
