"""POST /v1/generate: make or edit one picture."""

from functools import partial

from fastapi import APIRouter, Request
from fastapi.responses import Response

from openklein.api.dependencies import ServiceDep
from openklein.api.orders import Finish, Order, answer
from openklein.api.pictures import Picture, draw, facts, unless
from openklein.engine.pipeline import stage
from openklein.engine.types import ImageRequest
from openklein.storage.usage import SUCCEEDED

router = APIRouter(tags=["images"])


@router.post("/v1/generate", response_class=Response)
async def generate(request: Request, service: ServiceDep) -> Response:
    """Make one picture from a prompt and 0 to 4 reference images, and answer with the bytes of a PNG."""
    return await answer(request, service, carry_out)


async def carry_out(order: Order) -> tuple[Response, Finish]:
    """Make the picture unless the client leaves."""
    state, admission = order.request.state, order.admission
    state.timings = order.timings
    work = make_picture(order)
    picture = await unless(disconnected(order.request), work, "The client left before its picture was made.")
    made = state.result = picture.result
    price = order.service.settings.price_per_image
    headers = facts(made.model, made.seed, admission.workflow, price, order.timings)
    response = Response(picture.png, media_type="image/png", headers=headers)
    return response, partial(order.service.ledger.settle, admission, SUCCEEDED)


async def disconnected(request: Request) -> None:
    """Return once the client has left; its body has been read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def make_picture(order: Order) -> Picture:
    """Read the references and draw."""
    body, admission = order.call.body, order.admission
    with stage(order.timings, "fetch"):
        references = await order.service.references.read(order.call.uploads, body.image_uris)
    wanted = ImageRequest(body.prompt, admission.width, admission.height, body.seed, references)
    return await draw(order.service, wanted, admission.key_id, order.deadline, order.timings)
