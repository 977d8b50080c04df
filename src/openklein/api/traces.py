"""Tell OpenTelemetry of each request: one span, with a child for each stage of its picture. Needs the extra `otel`."""

import time

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from openklein.api.records import Observe, RequestRecord


def provider_for(endpoint: str) -> TracerProvider:
    """Send spans to a collector that takes OTLP over HTTP, from a thread; shut it down to send the last."""
    provider = TracerProvider(resource=Resource.create({"service.name": "openklein"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{endpoint}/v1/traces", timeout=3)))
    return provider


def trace_requests(provider: TracerProvider) -> Observe:
    """Make an observer that writes a request's spans once it is over, from the times that were noted."""
    tracer = provider.get_tracer("openklein")

    def observe(record: RequestRecord) -> None:
        if record.is_probe:
            return
        ended_ns = time.time_ns()
        span = tracer.start_span(
            f"{record.method} {record.route}",
            TraceContextTextMapPropagator().extract({"traceparent": record.traceparent}),
            SpanKind.SERVER,
            attributes={f"openklein.{name}": value for name, value in record.facts.items()},
            start_time=ended_ns - int(1e9 * record.seconds),
        )
        if record.status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if record.admission is not None:  # with which the stages began, to run one after the other
            at_ns = int(1e9 * record.admission.started_at.timestamp())
            for stage, seconds in record.timings.items():
                child = tracer.start_span(stage, set_span_in_context(span), start_time=at_ns)
                at_ns += int(1e9 * seconds)
                child.end(at_ns)
        span.end(ended_ns)

    return observe
