"""Say whether the process lives, and whether it can make pictures; no key needed."""

from fastapi import APIRouter

from openklein.api.dependencies import ServiceDep
from openklein.api.models import check_ready
from openklein.api.schemas import ErrorBody, HealthBody

router = APIRouter(tags=["health"])


@router.get("/health/live", response_model_exclude_none=True)
async def live() -> HealthBody:
    """Answer as long as the process does."""
    return HealthBody(status="live")


@router.get("/health/ready", responses={503: {"model": ErrorBody, "description": "No model is loaded and warm"}})
async def ready(service: ServiceDep) -> HealthBody:
    """Answer 200 once a model is loaded and warm."""
    return HealthBody(status="ready", model=check_ready(service.worker).card.id)
