"""Note what became of each request, once, for logs, metrics and traces alike; nothing a client wrote is kept."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from starlette.routing import BaseRoute, Match
from starlette.types import Scope

from openklein.api.settlement import Admission

logger = logging.getLogger(__name__)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
ENGINE_STAGES = ("text", "references", "denoise", "decode")


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request; `route` is a template and `method` a known one, so both take few values; status 0: no answer."""

    request_id: str
    method: str
    route: str
    status: int
    seconds: float
    key_id: str | None = None
    admission: Admission | None = None
    timings: Mapping[str, float] | None = None  # of a picture that was made: seconds by stage, in the order they ran


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
        timings=state.get("timings"),
    )


def route_template(scope: Scope, routes: Sequence[BaseRoute]) -> str:
    """Name the route of a request, also of one that was refused before it was routed; "none" where there is none."""
    route = scope.get("route") or next((route for route in routes if route.matches(scope)[0] != Match.NONE), None)
    return getattr(route, "path", "none")


def log_request(record: RequestRecord) -> None:
    """Write one line; at DEBUG for what probes and scrapers ask every few seconds."""
    facts: dict[str, object] = {
        "request_id": record.request_id,
        "method": record.method,
        "route": record.route,
        "status": record.status,
        "ms": round(1000 * record.seconds, 1),
    }
    if record.key_id is not None:
        facts["key_id"] = record.key_id
    if admission := record.admission:
        facts |= {"model": admission.model, "workflow": admission.workflow}
    if timings := record.timings:
        engine_s = sum(timings.get(stage, 0) for stage in ENGINE_STAGES)
        facts |= {"queue_s": round(timings["queue"], 4), "engine_s": round(engine_s, 4)}
    level = logging.DEBUG if record.route.startswith(("/health/", "/metrics")) else logging.INFO
    line = " ".join(f"{name}={value}" for name, value in facts.items())
    logger.log(level, "request %s", line, extra={"facts": facts})
