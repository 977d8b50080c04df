"""What a pipeline does on a GPU, as far as a machine without one can tell: compiled blocks, devices, no waiting."""

import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from openklein.contract import RESOLUTIONS
from openklein.engine.catalog import KLEIN_4B, KLEIN_BASE_4B, KLEIN_MINI, ModelCard
from openklein.engine.pipeline import Pipeline
from openklein.engine.types import ImageRequest, Progress
from tests import tiny
from tests.stand_in_gpu import GPU, DevicesKeptApart, pipeline_on_gpu
from tests.tiny import TINY_CARD

PHOTO = Image.new("RGB", (640, 480), "red")
SHALLOW_4B = replace(
    KLEIN_4B,
    transformer=replace(KLEIN_4B.transformer, num_layers=1, num_single_layers=1),
    text_encoder=replace(KLEIN_4B.text_encoder, vocab_size=300, feature_layers=(1, 2, 3)),
)


@pytest.fixture(autouse=True)
def nothing_compiled_before() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Graphs:
    """Compile by tracing alone, which takes no compiler, and note the graphs."""

    def __init__(self, *, runs_eagerly: bool = False) -> None:
        self.graphs: list[torch.fx.GraphModule] = []
        self.runs_eagerly = runs_eagerly

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        from torch._dynamo.backends.debugging import aot_eager

        self.graphs.append(graph)
        return graph if self.runs_eagerly else aot_eager(graph, inputs)


def difference(one: Image.Image, other: Image.Image) -> int:
    return int(np.abs(np.asarray(one, dtype=int) - np.asarray(other, dtype=int)).max())


class TestCompiledBlocks:
    @pytest.mark.parametrize("card", [KLEIN_4B, KLEIN_BASE_4B, KLEIN_MINI], ids=lambda card: card.id)
    @torch.inference_mode()
    def test_each_kind_once_for_all_sizes_and_references(self, card: ModelCard) -> None:
        """Of the true widths, since a number of tokens that is one of channels as well would count as the same."""
        card = replace(card, transformer=replace(card.transformer, num_layers=2, num_single_layers=3))
        pipeline, graphs = pipeline_on_gpu(replace(card, steps=1)), Graphs(runs_eagerly=True)
        pipeline.compile_blocks(graphs)
        samples, joint = 1 if card.guidance == 1 else 2, card.transformer.joint_attention_dim
        for size in RESOLUTIONS.values():
            for grids in ([], [(7, 5)], [(8, 8)] * 4):
                text = torch.empty(samples, card.text_encoder.pad_multiple, joint, device=GPU, dtype=torch.bfloat16)
                references = text.new_empty(1, sum(rows * columns for rows, columns in grids), 128)
                pipeline._denoise(ImageRequest("", *size, seed=1), text, references, grids, lambda _: None)
        assert len(graphs.graphs) == 2

    def test_pictures_are_the_same(self, tiny_pipeline: Pipeline) -> None:
        compiled, graphs = tiny.tiny_pipeline(), Graphs()
        compiled.compile_blocks(graphs)
        for references in ((), (PHOTO,), (PHOTO, PHOTO)):
            request = ImageRequest("a red apple", 256, 384, seed=1, references=references)
            assert difference(compiled.generate(request).image, tiny_pipeline.generate(request).image) <= 1
        assert graphs.graphs

    @pytest.mark.skipif(
        not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
        reason="compiling for a CPU takes g++ and the headers of Python",
    )
    @pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own, as it loads the compiler
    def test_with_the_real_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
        card = replace(TINY_CARD, transformer=replace(TINY_CARD.transformer, num_layers=0))
        compiled = tiny.tiny_pipeline(card)
        compiled.compile_blocks()
        for size in ((256, 384), (384, 512)):
            request = ImageRequest("a red apple", *size, seed=1)
            assert difference(compiled.generate(request).image, tiny.tiny_pipeline(card).generate(request).image) <= 1


class TestDevices:
    @torch.inference_mode()
    def test_a_step_stays_on_the_device_and_waits_for_nothing(self) -> None:
        pipeline = pipeline_on_gpu(SHALLOW_4B)
        copies: list[int] = []
        with DevicesKeptApart() as devices:
            text = pipeline._encode_prompt("a red apple")
            references, grids = pipeline._encode_references([PHOTO, PHOTO], 1024, 1024)
            request = ImageRequest("a red apple", 1024, 1024, seed=1)
            latents = pipeline._denoise(
                request, text, references, grids, on_step=lambda _: copies.append(len(devices.copies))
            )
            assert copies[0] > 0 and copies == copies[:1] * 5  # noise and positions before the first step, then nothing
            picture = pipeline._autoencoder.decode(latents)
        assert (picture.device.type, picture.shape, picture.dtype) == ("meta", (1, 3, 1024, 1024), torch.bfloat16)

    @torch.inference_mode()
    def test_waiting_would_be_noticed(self) -> None:
        pipeline = pipeline_on_gpu(SHALLOW_4B)
        text = pipeline._encode_prompt("a red apple")

        def wait(progress: Progress) -> None:
            if progress.step == 1:
                text.sum().item()

        with pytest.raises(RuntimeError, match="meta"):
            pipeline._denoise(ImageRequest("a", 1024, 1024, seed=1), text, text.new_zeros(1, 0, 128), [], wait)
