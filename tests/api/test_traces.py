import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from openklein.api.records import RequestRecord
from openklein.api.traces import trace_requests
from openklein.cli.tracing import tracing
from tests.api.test_records import ADMISSION, TIMINGS

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


def test_a_picture_is_a_span_with_a_child_for_each_stage(
    provider: TracerProvider, exporter: InMemorySpanExporter
) -> None:
    record = RequestRecord("abc", "POST", "/v1/generate", 200, 14.0, "key1", ADMISSION, TIMINGS, PARENT)
    trace_requests(provider)(record)
    *stages, whole = exporter.get_finished_spans()
    began = int(1e9 * ADMISSION.started_at.timestamp())
    assert whole.name == "POST /v1/generate"
    assert whole.attributes is not None
    assert dict(whole.attributes) == {f"openklein.{name}": value for name, value in record.facts.items()}
    assert whole.context.trace_id == 0x0AF7651916CD43DD8448EB211C80319C
    assert whole.parent is not None
    assert whole.parent.span_id == 0xB7AD6B7169203331
    assert whole.start_time is not None
    assert whole.end_time is not None
    assert whole.end_time - whole.start_time == 14_000_000_000
    assert [stage.name for stage in stages] == list(TIMINGS)
    at = began
    for stage in stages:
        assert stage.parent is not None
        assert stage.parent.span_id == whole.context.span_id
        assert (stage.start_time, stage.end_time) == (at, at := at + int(1e9 * TIMINGS[stage.name]))
    assert at == began + 13_750_000_000


def test_faults_are_marked_and_probes_left_out(provider: TracerProvider, exporter: InMemorySpanExporter) -> None:
    observe = trace_requests(provider)
    observe(RequestRecord("a", "GET", "/health/live", 200, 0.1))
    observe(RequestRecord("b", "POST", "/v1/generate", 401, 0.1, traceparent="nonsense"))
    observe(RequestRecord("c", "POST", "/v1/generate", 500, 0.1))
    refused, failed = exporter.get_finished_spans()
    assert (refused.status.is_ok, failed.status.is_ok) == (True, False)
    assert refused.parent is None


@contextmanager
def collector() -> Iterator[tuple[str, list[tuple[str, bytes]]]]:
    """Be what spans are sent to; note path and body of each request."""
    received: list[tuple[str, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append((self.path, self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", received
        finally:
            server.shutdown()
            thread.join()


def test_spans_reach_a_collector_before_the_end() -> None:
    with collector() as (endpoint, received):
        with tracing(endpoint) as (observe,):
            observe(RequestRecord("the-request-id", "GET", "/v1/models", 200, 0.1))
        ((path, body),) = received
    assert path == "/v1/traces"
    assert b"the-request-id" in body
    assert b"openklein" in body
