"""Send traces to a collector while the server runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from openklein.api.records import Observe
from openklein.errors import InvalidSetting


@contextmanager
def tracing(endpoint: str | None) -> Iterator[Sequence[Observe]]:
    """Give what observes requests, none without an endpoint; raises InvalidSetting where OpenTelemetry is missing."""
    if endpoint is None:
        yield ()
        return
    try:
        from openklein.api.traces import provider_for, trace_requests
    except ImportError as error:
        raise InvalidSetting("--otlp-endpoint needs OpenTelemetry: pip install 'openklein[otel]'.") from error
    provider = provider_for(endpoint)
    try:
        yield (trace_requests(provider),)
    finally:
        provider.shutdown()
