"""Make a small picture first, and estimate from it how long a full one takes."""

import time
from itertools import pairwise

from openklein.engine.catalog import ModelCard
from openklein.engine.pipeline import Pipeline
from openklein.engine.types import ImageRequest

WARM_UP = ImageRequest("a red apple", width=256, height=256, seed=0)
FULL_PX = 1024


def warm_up(pipeline: Pipeline) -> float:
    """Make the small picture; return the seconds that one of 1024x1024, without references, is expected to take.

    Denoising is scaled by the operations of a step, decoding by the pixels; reading the prompt takes as long for any
    size. The quickest step counts, since the first pays for what is set up once.
    """
    moments: list[float] = []
    timings = pipeline.generate(WARM_UP, on_step=lambda _: moments.append(time.perf_counter())).timings
    step_s = min(end - start for start, end in pairwise(moments))
    growth = step_operations(pipeline.card, FULL_PX) / step_operations(pipeline.card, WARM_UP.width)
    denoise_s = (len(moments) - 1) * step_s * growth
    return timings["text"] + denoise_s + timings["decode"] * (FULL_PX / WARM_UP.width) ** 2


def step_operations(card: ModelCard, side_px: int) -> int:
    """Count the operations of one block of the transformer for a square picture and a short prompt."""
    tokens = (side_px // card.token_px) ** 2 + card.text_encoder.pad_multiple
    hidden = card.transformer.hidden_size
    weights = (4 + 3 * card.transformer.mlp_ratio) * hidden**2  # q, k, v, out; gate, up, down
    return tokens * (2 * weights + 4 * tokens * hidden)
