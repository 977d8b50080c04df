"""Whole pictures against diffusers' `Flux2KleinPipeline`: prompt, references, all steps, decoding."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from openklein.engine.catalog import KLEIN_BASE_4B
from openklein.engine.pipeline import Pipeline
from tests.parity.both_pipelines import CARD, REFERENCES, expect, levels, make
from tests.parity.compare import PIPELINE_TOLERANCE, assert_far, assert_same
from tests.tiny import tiny_pipeline

BASE_CARD = replace(CARD, steps=KLEIN_BASE_4B.steps, guidance=KLEIN_BASE_4B.guidance)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4])
def test_pictures(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    pipeline = tiny_pipeline(CARD)
    references = REFERENCES[:count]
    made, expected = make(monkeypatch, pipeline, references), expect(pipeline, references)
    assert_same(made.tokens, expected.tokens)
    assert_same(made.pixels, expected.pixels, PIPELINE_TOLERANCE)
    assert levels(expected.picture).std() > 25
    assert np.abs(levels(made.picture) - levels(expected.picture)).max() <= 1


def test_the_order_of_references_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline = tiny_pipeline(CARD)
    swapped = make(monkeypatch, pipeline, REFERENCES[1::-1])
    assert_far(swapped.tokens, expect(pipeline, REFERENCES[:2]).tokens)


class TestTheBaseModel:
    def expect(self, pipeline: Pipeline, count: int) -> torch.Tensor:
        card = BASE_CARD
        return expect(pipeline, REFERENCES[:count], steps=card.steps, guidance=card.guidance).pixels

    @pytest.mark.parametrize("count", [0, 2])
    def test_pictures(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        pipeline = tiny_pipeline(BASE_CARD)
        pixels = make(monkeypatch, pipeline, REFERENCES[:count]).pixels
        assert_same(pixels, self.expect(pipeline, count), PIPELINE_TOLERANCE)

    @pytest.mark.parametrize("bug", ["no guidance", "another guidance", "negative prompt", "sides swapped"])
    def test_bugs_are_seen(self, monkeypatch: pytest.MonkeyPatch, bug: str) -> None:
        pipeline = tiny_pipeline(BASE_CARD)
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
        assert_far(pixels, self.expect(tiny_pipeline(BASE_CARD), 0), PIPELINE_TOLERANCE)
