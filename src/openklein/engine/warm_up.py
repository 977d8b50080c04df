"""Make pictures that nobody asked for first, and tell from them how long a full one takes."""

import time
from copy import copy
from dataclasses import replace
from itertools import pairwise

import torch
from PIL import Image

from openklein.contract import MAX_REFERENCES, RESOLUTIONS
from openklein.engine.catalog import ModelCard
from openklein.engine.pipeline import Pipeline, on_canvas
from openklein.engine.types import ImageRequest
from openklein.errors import InvalidSetting, NotEnoughMemory

WARM_UP = ImageRequest("a red apple", width=256, height=256, seed=0)
FULL_PX = 1024


def warm_up(pipeline: Pipeline) -> float:
    """Return the seconds that an image of 1024x1024, without references, is expected to take from now on.

    Raises NotEnoughMemory where the largest request does not fit, and InvalidSetting where nothing can be compiled.
    """
    try:
        return estimate(pipeline) if pipeline.choice.device.type == "cpu" else warm_up_gpu(pipeline)
    except torch.OutOfMemoryError as error:
        raise NotEnoughMemory(
            f"{pipeline.card.id} ran out of memory on {pipeline.choice.device} in the warm-up; end other programs "
            "there, or serve with --quantize fp8 or a smaller model (--model)."
        ) from error
    except RuntimeError as error:
        from torch._dynamo.exc import BackendCompilerFailed  # takes a second to import, and is seldom needed

        if not isinstance(error, BackendCompilerFailed):
            raise
        reason = str(error.inner_exception).partition("\n")[0]
        raise InvalidSetting(
            f"Compiling, for --compile or --quantize int8, does not work here: {reason.rstrip('.')}; install a C++ "
            "compiler and, for a GPU, PyTorch's Triton, or leave the flag out."
        ) from error


def warm_up_gpu(pipeline: Pipeline) -> float:
    """Make a step of every size and of the largest request, for kernels and memory to be there; then time a picture."""
    one_step = copy(pipeline)
    one_step.card = replace(pipeline.card, steps=1)
    for width, height in RESOLUTIONS.values():
        one_step.generate(replace(WARM_UP, width=width, height=height))
    full = replace(WARM_UP, width=FULL_PX, height=FULL_PX)
    references = (Image.new("RGB", (FULL_PX, FULL_PX)),) * MAX_REFERENCES
    one_step.generate(replace(full, references=references))
    return sum(pipeline.generate(replace(full, prompt="a green pear")).timings.values())  # one that is not kept


def estimate(pipeline: Pipeline) -> float:
    """Make the small picture, and scale up what it took.

    Denoising is scaled by the operations of a step, decoding by the pixels; reading the prompt takes as long for any
    size. The quickest step counts, since the first pays for what is set up once.
    """
    moments: list[float] = []
    timings = pipeline.generate(WARM_UP, on_step=lambda _: moments.append(time.perf_counter())).timings
    step_s = min(end - start for start, end in pairwise(moments))
    made_px = on_canvas(pipeline.card, WARM_UP).width
    growth = step_operations(pipeline.card, FULL_PX) / step_operations(pipeline.card, made_px)
    denoise_s = (len(moments) - 1) * step_s * growth
    return timings["text"] + denoise_s + timings["decode"] * (FULL_PX / made_px) ** 2


def step_operations(card: ModelCard, side_px: int) -> int:
    """Count the operations of one block of the transformer for a square picture and a short prompt."""
    tokens = (side_px // card.token_px) ** 2 + card.text_encoder.pad_multiple
    hidden = card.transformer.hidden_size
    weights = (4 + 3 * card.transformer.mlp_ratio) * hidden**2  # q, k, v, out; gate, up, down
    return tokens * (2 * weights + 4 * tokens * hidden)
