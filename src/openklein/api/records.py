"""Note what became of each request, once, for logs, metrics and traces alike; nothing of its content is kept."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from openklein.api.settlement import Admission
from openklein.engine.types import ImageResult

logger = logging.getLogger(__name__)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ENGINE_STAGES = ("text", "references", "denoise", "decode")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request; `route` is a template and `method` a known one, so both take few values; status 0: no answer.

    A job is one too once it has ended, with the route "job" and the status that such a request would have got.
    """

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    key_id: str | None = None
    admission: Admission | None = None
    timings: Mapping[str, float] = field(default_factory=dict)  # seconds by stage, in order, the one that failed too
    traceparent: str = ""
    result: ImageResult | None = None  # the picture that was made, if any

    @property
    def is_probe(self) -> bool:
        """Tell what probes and scrapers ask every few seconds from what users ask."""
        return self.route.startswith(("/health/", "/metrics"))

    @property
    def facts(self) -> dict[str, str | int | float]:
        """Name what may be told of the request, without its timings by stage."""
        facts: dict[str, str | int | float] = {
            "request_id": self.request_id,
            "method": self.method,
            "route": self.route,
            "status": self.status,
            "ms": round(1000 * self.seconds, 1),
        }
        if self.key_id is not None:
            facts["key_id"] = self.key_id
        if self.admission is not None:
            facts |= {"model": self.admission.model, "workflow": self.admission.workflow}
        if "queue" in self.timings:
            engine_s = sum(self.timings.get(stage, 0) for stage in ENGINE_STAGES)
            facts |= {"queue_s": round(self.timings["queue"], 4), "engine_s": round(engine_s, 4)}
        return facts


Observe = Callable[[RequestRecord], None]


def record_request(
    scope: Scope, routes: Sequence[BaseRoute], request_id: str, status: int, seconds: float
) -> RequestRecord:
    """Read off a request's scope what the app noted there."""
    state = scope.get("state", {})
    return RequestRecord(
        request_id=request_id,
        method=scope["method"] if scope["method"] in METHODS else "other",
        route=route_template(scope, routes),
        status=status,
        seconds=seconds,
        key_id=state["key"].id if "key" in state else None,
        admission=state.get("admission"),
        timings=state.get("timings", {}),
        result=state.get("result"),
        traceparent=Headers(scope=scope).get("traceparent", ""),
    )


def route_template(scope: Scope, routes: Sequence[BaseRoute]) -> str:
    """Name the route of a request, also of one that was refused before it was routed; "none" where there is none."""
    route = scope.get("route") or next((route for route in routes if route.matches(scope)[0] != Match.NONE), None)
    return getattr(route, "path", "none")


def log_request(record: RequestRecord) -> None:
    """Write one line; at DEBUG for what probes and scrapers ask every few seconds."""
    level = logging.DEBUG if record.is_probe else logging.INFO
    line = " ".join(f"{name}={value}" for name, value in record.facts.items())
    logger.log(level, "request %s", line, extra={"facts": record.facts})
