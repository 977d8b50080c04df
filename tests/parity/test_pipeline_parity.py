"""Whole pictures against diffusers' `Flux2KleinPipeline`: prompt, references, all steps, decoding."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from openklein.contract import RESOLUTIONS
from openklein.engine import pipeline as pipeline_module
from openklein.engine import transformer
from openklein.engine.catalog import KLEIN_BASE_4B
from openklein.engine.pipeline import Pipeline
from openklein.engine.tokens import image_ids
from tests.parity.both_pipelines import CARD, HEIGHT, REFERENCES, WIDTH, expect, levels, make, our_pipeline
from tests.parity.compare import BFLOAT16_PSNR, BUG_FACTOR, PIPELINE_TOLERANCE, assert_far, assert_same, psnr

BASE_CARD = replace(CARD, steps=KLEIN_BASE_4B.steps, guidance=KLEIN_BASE_4B.guidance)


WORKFLOWS = {"text-to-image": 0, "image-to-image": 1, "multi-reference": 4}  # and their references


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_pictures(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    pipeline = our_pipeline()
    references = REFERENCES[:count]
    made, expected = make(monkeypatch, pipeline, references), expect(pipeline, references)
    assert_same(made.tokens, expected.tokens)
    assert_same(made.pixels, expected.pixels, PIPELINE_TOLERANCE)
    assert levels(expected.picture).std() > 25
    assert np.abs(levels(made.picture) - levels(expected.picture)).max() <= 1


@pytest.mark.parametrize("count", WORKFLOWS.values(), ids=WORKFLOWS)
@pytest.mark.parametrize("size", RESOLUTIONS.values(), ids=RESOLUTIONS)
def test_every_aspect_ratio(monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], count: int) -> None:
    width, height = size
    pipeline = our_pipeline()
    expected = expect(pipeline, REFERENCES[:count], width=width, height=height).pixels
    made = make(monkeypatch, pipeline, REFERENCES[:count], width=width, height=height).pixels
    assert made.shape == (3, height, width)
    assert_same(made, expected, PIPELINE_TOLERANCE)


@pytest.mark.parametrize("count", WORKFLOWS.values(), ids=WORKFLOWS)
def test_rows_for_columns_are_seen(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    pipeline = our_pipeline()
    expected = expect(pipeline, REFERENCES[:count]).pixels
    monkeypatch.setattr(pipeline_module, "image_ids", lambda height, width: image_ids(height, width)[:, [0, 2, 1, 3]])
    assert_far(make(monkeypatch, pipeline, REFERENCES[:count]).pixels, expected, PIPELINE_TOLERANCE)


def test_the_order_of_references_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = our_pipeline()
    swapped = make(monkeypatch, pipeline, REFERENCES[1::-1])
    assert_far(swapped.tokens, expect(pipeline, REFERENCES[:2]).tokens)


def pytorch_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


class TestBfloat16:
    """Every part rounds where the reference rounds, so that final pictures are at least 50 dB alike.

    Two things are as in the reference here that are faster in ours, since they round in another order: attention is
    PyTorch's, and the autoencoder has channels first.
    """

    @pytest.fixture
    def pipeline(self, monkeypatch: pytest.MonkeyPatch) -> Pipeline:
        monkeypatch.setattr(transformer, "attention", pytorch_attention)
        pipeline = our_pipeline(dtype=torch.bfloat16)
        pipeline._autoencoder.to(memory_format=torch.contiguous_format)
        return pipeline

    @pytest.mark.parametrize(
        ("count", "size"), [(0, (WIDTH, HEIGHT)), (1, (WIDTH, HEIGHT)), (4, (WIDTH, HEIGHT)), (2, RESOLUTIONS["wide"])]
    )
    def test_pictures(
        self, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline, count: int, size: tuple[int, int]
    ) -> None:
        width, height = size
        expected = expect(pipeline, REFERENCES[:count], width=width, height=height).picture
        made = make(monkeypatch, pipeline, REFERENCES[:count], width=width, height=height).picture
        assert psnr(levels(made), levels(expected)) >= BFLOAT16_PSNR

    def test_latents_that_are_decoded_as_they_are_are_seen(
        self, monkeypatch: pytest.MonkeyPatch, pipeline: Pipeline
    ) -> None:
        expected = expect(pipeline).picture

        def plain(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
            return torch.zeros(1, dtype=dtype), torch.ones(1, dtype=dtype)

        monkeypatch.setattr(pipeline._autoencoder, "_statistics", plain)
        wrong = make(monkeypatch, pipeline).picture
        assert psnr(levels(wrong), levels(expected)) <= BFLOAT16_PSNR - 10 * math.log10(BUG_FACTOR)


class TestTheBaseModel:
    def expect(self, pipeline: Pipeline, count: int) -> torch.Tensor:
        card = BASE_CARD
        return expect(pipeline, REFERENCES[:count], steps=card.steps, guidance=card.guidance).pixels

    @pytest.mark.parametrize("count", [0, 2])
    def test_pictures(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        pipeline = our_pipeline(BASE_CARD)
        pixels = make(monkeypatch, pipeline, REFERENCES[:count]).pixels
        assert_same(pixels, self.expect(pipeline, count), PIPELINE_TOLERANCE)

    @pytest.mark.parametrize("bug", ["no guidance", "another guidance", "negative prompt", "sides swapped"])
    def test_bugs_are_seen(self, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
        pipeline = our_pipeline(BASE_CARD)
        encode = pipeline._tokenizer.encode
        if bug == "no guidance":
            pipeline.card = replace(BASE_CARD, guidance=1.0)
        elif bug == "another guidance":
            pipeline.card = replace(BASE_CARD, guidance=5.0)
        elif bug == "negative prompt":
            monkeypatch.setattr(pipeline._tokenizer, "encode", lambda prompts: encode([prompts[0], "ugly"]))
        else:
            monkeypatch.setattr(pipeline._tokenizer, "encode", lambda prompts: encode(prompts[::-1]))
        pixels = make(monkeypatch, pipeline).pixels
        assert_far(pixels, self.expect(our_pipeline(BASE_CARD), 0), PIPELINE_TOLERANCE)
