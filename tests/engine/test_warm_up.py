import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from openklein.contract import RESOLUTIONS
from openklein.engine.catalog import KLEIN_4B, KLEIN_MINI, ModelCard
from openklein.engine.pipeline import Pipeline
from openklein.engine.tokens import image_ids, text_ids
from openklein.engine.transformer import FlowTransformer
from openklein.engine.types import ImageRequest, ImageResult, Progress
from openklein.engine.warm_up import step_operations, warm_up
from openklein.errors import InvalidSetting, NotEnoughMemory
from tests import tiny


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


def test_the_estimate_scales_the_steps_but_for_what_the_first_sets_up(in_the_size_asked_for: Pipeline) -> None:
    pipeline = in_the_size_asked_for
    growth = step_operations(pipeline.card, 1024) / step_operations(pipeline.card, 256)
    assert warm_up(SlowPipeline(pipeline, (0.1, 0.1, 0.1, 0.1))) > 4 * 0.1 * growth
    assert 0 < warm_up(SlowPipeline(pipeline, (2.0, 0.0, 0.0, 0.0))) < 4 * 2.0 * growth


def test_what_is_made_in_full_size_is_not_scaled(tiny_pipeline: Pipeline) -> None:
    assert 4 * 0.1 < warm_up(SlowPipeline(tiny_pipeline, (0.1, 0.1, 0.1, 0.1))) < 4 * 0.1 + 0.5


class TestOnAGpu:
    """Which pictures are made; a pipeline that notes them stands in for one on a GPU."""

    class NotingPipeline(Pipeline):
        def __init__(self, other: Pipeline, error: Exception | None = None) -> None:
            self.__dict__.update(other.__dict__)
            self.choice = replace(other.choice, device=torch.device("meta"))
            self.asked: list[tuple[int, ImageRequest]] = []
            self.error = error

        def generate(self, request: ImageRequest, *_: Any, **__: Any) -> ImageResult:
            self.asked.append((self.card.steps, request))
            if self.error:
                raise self.error
            return ImageResult(Image.new("RGB", (1, 1)), self.card.id, request.seed, {"text": 1.0, "decode": 2.0})

    def test_every_size_comes_first_then_the_largest_request_and_one_that_is_timed(
        self, tiny_pipeline: Pipeline
    ) -> None:
        pipeline = self.NotingPipeline(tiny_pipeline)
        assert warm_up(pipeline) == 3.0
        *sizes, (_, largest), (timed_steps, timed) = pipeline.asked
        assert [(request.width, request.height) for _, request in sizes] == list(RESOLUTIONS.values())
        assert [reference.size for reference in largest.references] == [(1024, 1024)] * 4
        assert {steps for steps, _ in pipeline.asked[:-1]} == {1}
        assert timed.prompt not in {request.prompt for _, request in pipeline.asked[:-1]}  # its features would be kept
        assert (timed_steps, timed.width, timed.height, timed.references) == (4, 1024, 1024, ())

    def test_too_little_memory_is_one_sentence(self, tiny_pipeline: Pipeline) -> None:
        pipeline = self.NotingPipeline(tiny_pipeline, torch.OutOfMemoryError("CUDA out of memory"))
        with pytest.raises(NotEnoughMemory, match=r"^klein-mini ran out of memory on meta .* --quantize fp8"):
            warm_up(pipeline)

    def test_other_faults_are_not_renamed(self, tiny_pipeline: Pipeline) -> None:
        with pytest.raises(RuntimeError, match=r"^the device is lost$"):
            warm_up(self.NotingPipeline(tiny_pipeline, RuntimeError("the device is lost")))


def test_where_nothing_can_be_compiled_the_fix_is_said() -> None:
    def fail(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        raise OSError("no compiler here.\nand a long story")

    pipeline = tiny.tiny_pipeline()
    pipeline.compile_blocks(fail)
    with pytest.raises(
        InvalidSetting,
        match=r"^Compiling, for --compile or --quantize int8, does not work here: .*no compiler here; install ",
    ):
        warm_up(pipeline)
