"""List the models that requests may name."""

from fastapi import APIRouter

from openklein.api.dependencies import ServiceDep
from openklein.api.models import answers_for, check_ready
from openklein.api.schemas import ErrorBody, ModelBody, ModelsBody

router = APIRouter(tags=["models"])


@router.get("/v1/models", responses={status: {"model": ErrorBody} for status in (401, 503)})
async def list_models(service: ServiceDep) -> ModelsBody:
    """List the model ids this server takes, each with the model that answers for it."""
    card = check_ready(service.worker).card
    ids = answers_for(card.id, strict=service.settings.strict_model)
    return ModelsBody(
        data=[ModelBody(id=name, served_by=card.id, licence=card.licence, steps=card.steps) for name in ids]
    )
