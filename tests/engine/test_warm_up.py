import time
from collections.abc import Callable

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from openklein.engine.catalog import KLEIN_4B, KLEIN_MINI, ModelCard
from openklein.engine.pipeline import Pipeline
from openklein.engine.tokens import image_ids, text_ids
from openklein.engine.transformer import FlowTransformer
from openklein.engine.types import ImageRequest, ImageResult, Progress
from openklein.engine.warm_up import step_operations, warm_up


def counted_operations(card: ModelCard, side_px: int) -> int:
    """Count what the transformer itself does in one step."""
    side, text = side_px // card.token_px, card.text_encoder.pad_multiple
    with torch.device("meta"):
        transformer = FlowTransformer(card.transformer)
        image = torch.empty(1, side * side, card.transformer.in_channels)
        features = torch.empty(1, text, card.transformer.joint_attention_dim)
        rotary = transformer.rotary(torch.cat([text_ids(text), image_ids(side, side)]).to("meta"))
        with FlopCounterMode(display=False) as counter:
            transformer(image, features, torch.empty(1), rotary)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("card", [KLEIN_4B, KLEIN_MINI], ids=lambda card: card.id)
def test_steps_grow_with_the_size_as_the_transformer_does(card: ModelCard) -> None:
    estimated = step_operations(card, 1024) / step_operations(card, 256)
    assert estimated == pytest.approx(counted_operations(card, 1024) / counted_operations(card, 256), rel=0.05)


class SlowPipeline(Pipeline):
    """The parts of another pipeline, whose steps take longer by so many seconds each."""

    def __init__(self, other: Pipeline, waits_s: tuple[float, ...]) -> None:
        self.__dict__.update(other.__dict__)
        self.waits_s = waits_s

    def generate(
        self,
        request: ImageRequest,
        on_step: Callable[[Progress], None] = lambda _: None,
        timings: dict[str, float] | None = None,
    ) -> ImageResult:
        def wait_then_step(progress: Progress) -> None:
            time.sleep((0.0, *self.waits_s)[progress.step])
            on_step(progress)

        return super().generate(request, wait_then_step, timings)


def test_the_estimate_scales_the_steps_but_for_what_the_first_sets_up(tiny_pipeline: Pipeline) -> None:
    growth = step_operations(tiny_pipeline.card, 1024) / step_operations(tiny_pipeline.card, 256)
    assert warm_up(SlowPipeline(tiny_pipeline, (0.1, 0.1, 0.1, 0.1))) > 4 * 0.1 * growth
    assert 0 < warm_up(SlowPipeline(tiny_pipeline, (2.0, 0.0, 0.0, 0.0))) < 4 * 2.0 * growth
