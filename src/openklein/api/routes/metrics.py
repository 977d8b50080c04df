"""GET /metrics: what Prometheus reads."""

import hmac

from fastapi import APIRouter, Request
from fastapi.responses import Response
from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4
from starlette.datastructures import Headers

from openklein.api.auth import read_secret
from openklein.api.dependencies import ServiceDep
from openklein.errors import Unauthorized
from openklein.settings import Settings

router = APIRouter(include_in_schema=False)


@router.get("/metrics")
async def show_metrics(request: Request, service: ServiceDep) -> Response:
    """Answer with all metrics."""
    check_scraper(service.settings, request.headers)
    return Response(service.metrics.render(), media_type=CONTENT_TYPE_PLAIN_0_0_4)


def check_scraper(settings: Settings, headers: Headers) -> None:
    """Take the metrics key alone where there is one; without it anyone on this machine; raises Unauthorized."""
    if settings.metrics_key is not None:
        if not hmac.compare_digest(read_secret(headers).encode(), settings.metrics_key.encode()):
            raise Unauthorized("The metrics key is not valid.")
    elif not settings.is_private:
        raise Unauthorized("Metrics are closed on a public server until its operator sets OPENKLEIN_METRICS_KEY.")
