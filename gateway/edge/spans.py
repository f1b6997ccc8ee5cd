"""`Spans`: requests as OpenTelemetry spans, sent to a collector by OTLP over HTTP (`otlp_endpoint`; the extra `otel`).

The only module that imports OpenTelemetry, and only where it is asked for. A request is one span; below it stand the
wait for an instance, a cold start and the function's own time. What the collector does not take in time is dropped.
"""

from __future__ import annotations

import importlib
import time
from typing import TYPE_CHECKING, Any

from aiohttp import web

from faas.errors import InvalidInput
from faas.web import REQUEST_ID
from gateway.edge.entry import ENTRY
from gateway.flight import Flight
from gateway.trace import TRACE, Parent, Trace

if TYPE_CHECKING:
    from opentelemetry.trace import Span as OtelSpan

EXPORT_SECONDS = 5.0
NEEDED = ("opentelemetry.sdk.trace.export", "opentelemetry.exporter.otlp.proto.http.trace_exporter")


def check() -> None:
    """Raises InvalidInput where the extra is not installed."""
    try:
        for module in NEEDED:
            importlib.import_module(module)
    except ImportError:
        raise InvalidInput(
            "otlp_endpoint needs OpenTelemetry, which is not installed", hint="pip install 'ownfaas[otel]'"
        ) from None


class Spans:
    """`endpoint`: the collector's base URL, `http://127.0.0.1:4318`. `close` it: what is queued is sent."""

    def __init__(self, endpoint: str, version: str) -> None:
        from opentelemetry import trace
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._api = trace
        exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", timeout=EXPORT_SECONDS)
        resource = Resource.create({"service.name": "faas", "service.version": version})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter, schedule_delay_millis=1000))
        self._tracer = self._provider.get_tracer("faas")

    def begin(self, request: web.Request, began: float) -> RequestSpan:
        """The span of a request whose head came at `began` (`time.perf_counter`). The request's trace names it as the
        parent of what its function does."""
        offset = time.time_ns() - time.perf_counter_ns()
        found = request.get(TRACE)
        context = self._remote(found) if found is not None and found.parent is not None else None
        span = self._tracer.start_span(
            request.method, context, self._api.SpanKind.SERVER, start_time=int(began * 1e9) + offset
        )
        own = span.get_span_context()
        found = request[TRACE] = found or Trace()
        found.parent = Parent(f"{own.trace_id:032x}", f"{own.span_id:016x}", f"{int(own.trace_flags):02x}")
        return RequestSpan(self, span, offset)

    def below(self, span: OtelSpan, name: str, start: int, end: int, **attributes: Any) -> None:
        """A span that is over, below another. Unix nanoseconds."""
        context = self._api.set_span_in_context(span)
        self._tracer.start_span(name, context, start_time=start, attributes=attributes).end(end)

    def close(self) -> None:
        """Blocking."""
        self._provider.shutdown()

    def _remote(self, found: Trace) -> Any:
        api, parent = self._api, found.parent
        assert parent is not None
        remote = api.SpanContext(
            int(parent.trace, 16),
            int(parent.span, 16),
            is_remote=True,
            trace_flags=api.TraceFlags(int(parent.flags, 16)),
            trace_state=api.TraceState.from_header([found.state]) if found.state else None,
        )
        return api.set_span_in_context(api.NonRecordingSpan(remote))


class RequestSpan:
    """One request's."""

    __slots__ = ("_offset", "_span", "_spans")

    def __init__(self, spans: Spans, span: OtelSpan, offset: int) -> None:
        self._spans, self._span, self._offset = spans, span, offset

    def end(self, request: web.Request, status: int, flight: Flight | None) -> None:
        """Once the answer is over; `flight` None: it got to no function."""
        span = self._span
        if not span.is_recording():
            return
        entry = request.get(ENTRY)
        attributes: dict[str, Any] = {
            "http.request.method": request.method,
            "url.path": request.path,
            "http.response.status_code": status,
            "faas.request_id": request.get(REQUEST_ID, ""),
        }
        if entry is not None and entry.api:
            attributes |= {"http.route": entry.pattern, "faas.api": entry.api}
        if flight is not None:
            attributes |= self._flown(flight)
        span.set_attributes(attributes)
        if status >= 500:
            span.set_status(self._spans._api.StatusCode.ERROR)
        span.end()

    def _flown(self, flight: Flight) -> dict[str, Any]:
        """The spans below, and what is said of the function."""
        if flight.began:
            admitted = flight.admitted or time.perf_counter()
            cold = flight.cold
            started = 0.0 if cold is None else cold.prepare + cold.create + cold.start + cold.init
            ready = max(flight.began, admitted - started)
            self._below("queue", flight.began, ready)
            if cold is not None:
                self._below("cold start", ready, admitted, **{"faas.cold_start.path": cold.path})
            if flight.admitted:
                self._below("function", flight.admitted, flight.ended or time.perf_counter())
        return {
            "faas.invoked_name": flight.route.label,
            "faas.version": str(flight.route.revision.key.number),
            "faas.coldstart": flight.cold is not None,
        }

    def _below(self, name: str, start: float, end: float, **attributes: Any) -> None:
        begin, over = (int(moment * 1e9) + self._offset for moment in (start, end))
        self._spans.below(self._span, name, begin, over, **attributes)
