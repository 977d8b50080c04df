"""Walk from noise to a picture: the one denoise loop, plain Euler steps along the predicted velocity."""

from collections.abc import Callable, Sequence

from torch import Tensor

from openklein.engine.types import Progress


def denoise(
    latents: Tensor,
    sigmas: Sequence[float],
    predict: Callable[[Tensor, float], Tensor],
    on_step: Callable[[Progress], None],
) -> Tensor:
    """Follow `predict(latents, sigma)` from sigmas[0] to sigmas[-1]; return latents of the same shape and dtype.

    `on_step` is called before the first step and after each; what it raises ends the loop. Change and sum
    are made in float32, whatever the dtype.
    """
    steps = len(sigmas) - 1
    on_step(Progress(0, steps))
    for step in range(steps):
        velocity = predict(latents, sigmas[step])
        change = (sigmas[step + 1] - sigmas[step]) * velocity.float()
        latents = (latents.float() + change).to(latents.dtype)
        on_step(Progress(step + 1, steps))
    return latents
