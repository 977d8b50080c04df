"""Count and time what the server does, for Prometheus; labels take few values, and none that a client chose."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from openklein.api.records import RequestRecord
from openklein.engine.device import device_memory_bytes
from openklein.engine.worker import Worker

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
BATCH_SIZES = (1, 2, 4, 8, 16, 32)


class Metrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self, worker: Worker) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "openklein_requests", "Requests answered; code 0: the client left", ["route", "code"], registry=registry
        )
        self._request_seconds = Histogram(
            "openklein_request_seconds", "Time from headers to answer", ["route"], buckets=SECONDS, registry=registry
        )
        self._queue_wait = Histogram(
            "openklein_queue_wait_seconds",
            "Time that requests waited for the model",
            buckets=SECONDS,
            registry=registry,
        )
        self._stage_seconds = Histogram(
            "openklein_stage_seconds", "Time of a request by stage", ["stage"], buckets=SECONDS, registry=registry
        )
        made = ["model", "workflow"]
        self._images = Counter("openklein_images", "Pictures made", made, registry=registry)
        self._megapixels = Counter("openklein_megapixels", "Megapixels made", made, registry=registry)
        self._batch_size = Histogram(
            "openklein_batch_size", "Pictures made together, seen by each", buckets=BATCH_SIZES, registry=registry
        )
        self._cache_hits = Counter(
            "openklein_prompt_cache_hits", "Pictures whose prompt had been read before", registry=registry
        )
        depth = Gauge("openklein_queue_depth", "Requests that wait for the model", registry=registry)
        depth.set_function(lambda: worker.scheduler.depth)
        ready = Gauge("openklein_ready", "1 once a model is loaded and warm, else 0", registry=registry)
        ready.set_function(lambda: worker.ready)
        memory = Gauge("openklein_device_memory_bytes", "Memory in use on the model's device", registry=registry)
        memory.set_function(device_memory_bytes)
        ProcessCollector(registry=registry)

    def observe(self, record: RequestRecord) -> None:
        """Count one request, the stages it went through, and the picture it made, if any."""
        self._requests.labels(record.route, str(record.status)).inc()
        self._request_seconds.labels(record.route).observe(record.seconds)
        for stage, seconds in record.timings.items():
            histogram = self._queue_wait if stage == "queue" else self._stage_seconds.labels(stage)
            histogram.observe(seconds)
        if (made := record.admission) and (result := record.result):
            self._batch_size.observe(result.batch_size)
            self._cache_hits.inc(result.prompt_cached)
            self._images.labels(made.model, made.workflow).inc()
            self._megapixels.labels(made.model, made.workflow).inc(made.width * made.height / 1e6)

    def render(self) -> bytes:
        """Write all metrics in Prometheus' text format."""
        return generate_latest(self._registry)
