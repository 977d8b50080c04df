"""Mistakes that other implementations of this model have made: ours does not, and the comparison sees each of them.

Pictures are compared with those of diffusers after the last step and once decoded; a mistake must miss the tolerance
of one of the two a hundredfold.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.loaders.single_file_utils import convert_flux2_transformer_checkpoint_to_diffusers
from PIL import Image
from torch import Tensor

from openklein.engine import layouts
from openklein.engine import pipeline as pipeline_module
from openklein.engine.autoencoder import Autoencoder
from openklein.engine.images import to_image
from openklein.engine.pipeline import Pipeline
from openklein.engine.prompt_cache import PromptCache
from openklein.engine.schedule import sigmas
from openklein.engine.text_encoder import PromptTokenizer
from openklein.engine.tokens import image_ids
from openklein.engine.transformer import FlowTransformer
from openklein.engine.types import ImageRequest
from tests.parity import makers
from tests.parity import test_text_encoder_parity as text
from tests.parity import test_transformer_parity as flow
from tests.parity.both_pipelines import CARD, HEIGHT, PROMPT, REFERENCES, WIDTH, expect, make, our_pipeline
from tests.parity.compare import PIPELINE_TOLERANCE, assert_far, assert_same
from tests.parity.test_layouts_parity import load

TOKENS = WIDTH // 16 * (HEIGHT // 16)
Bug = Callable[[Pipeline, pytest.MonkeyPatch], None]


def assert_seen(monkeypatch: pytest.MonkeyPatch, bug: Bug, references: Sequence[Image.Image] = ()) -> None:
    """Compare pictures, first as we make them, then with the bug in."""
    pipeline = our_pipeline()
    expected, made = expect(pipeline, references), make(monkeypatch, pipeline, references)
    assert_same(made.tokens, expected.tokens)
    assert_same(made.pixels, expected.pixels, PIPELINE_TOLERANCE)
    bug(pipeline, monkeypatch)
    monkeypatch.setattr(pipeline, "_prompts", PromptCache())  # so that the prompt is read anew
    wrong = make(monkeypatch, pipeline, references)
    if torch.equal(wrong.tokens, made.tokens):
        assert_far(wrong.pixels, expected.pixels, PIPELINE_TOLERANCE)
    else:
        assert_far(wrong.tokens, expected.tokens)


def noise_is_normalised(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, autoencoder = pipeline._noise, pipeline._autoencoder
    assert isinstance(autoencoder, Autoencoder)
    mean, std = autoencoder._statistics(torch.float32)
    monkeypatch.setattr(pipeline, "_noise", lambda *shape: (draw(*shape) - mean) / std)


def latents_are_decoded_as_they_are(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline._autoencoder, "_statistics", lambda dtype: (torch.zeros(1), torch.ones(1)))


@pytest.mark.parametrize("bug", [noise_is_normalised, latents_are_decoded_as_they_are])
def test_01_noise_is_born_normalised_and_latents_are_denormalised(monkeypatch: pytest.MonkeyPatch, bug: Bug) -> None:
    assert_seen(monkeypatch, bug)


def test_02_the_makers_final_modulation_is_shift_then_scale(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tensors = makers.transformer(flow.CONFIG)
    reference = flow.reference_for(flow.CONFIG)
    reference.load_state_dict(convert_flux2_transformer_checkpoint_to_diffusers(dict(tensors)))
    expected = flow.expect(reference, flow.inputs())
    ours = FlowTransformer(flow.CONFIG)
    load(ours, tensors, tmp_path)
    assert_same(flow.predict(ours, flow.inputs()), expected)
    name = "norm_out.linear.weight"
    monkeypatch.setitem(layouts.TRANSFORMER, name, replace(layouts.TRANSFORMER[name], has_swapped_halves=False))
    load(ours, tensors, tmp_path)
    assert_far(flow.predict(ours, flow.inputs()), expected)


def references_are_stepped(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    predict = pipeline._transformer.forward
    levels = sigmas(TOKENS, CARD.steps)
    drift: list[Tensor | float] = [0.0]

    def predict_and_step(image: Tensor, *others: Any) -> Tensor:
        image = torch.cat([image[:, :TOKENS], image[:, TOKENS:] + sum(drift)], dim=1)
        velocity = predict(image, *others)
        change = levels[len(drift)] - levels[len(drift) - 1]
        drift.append(change * velocity[:, TOKENS:])
        return velocity

    monkeypatch.setattr(pipeline._transformer, "forward", predict_and_step)


def test_03_references_are_not_stepped_with_the_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_seen(monkeypatch, references_are_stepped, REFERENCES[:2])


def times_go_on_from_another_sample(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pipeline_module,
        "reference_ids",
        lambda grids: torch.cat([image_ids(h, w, time=30 + 10 * k) for k, (h, w) in enumerate(grids)]),
    )


def one_time_for_a_sample(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        pipeline_module, "reference_ids", lambda grids: torch.cat([image_ids(h, w, time=10) for h, w in grids])
    )


@pytest.mark.parametrize("bug", [times_go_on_from_another_sample, one_time_for_a_sample])
def test_04_every_sample_counts_its_own_references_from_10(monkeypatch: pytest.MonkeyPatch, bug: Bug) -> None:
    assert_seen(monkeypatch, bug, REFERENCES[:2])


def references_count_in_mu(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = sum(reference.width // 16 * (reference.height // 16) for reference in REFERENCES[:2])
    monkeypatch.setattr(pipeline_module, "sigmas", lambda count, steps: sigmas(count + tokens, steps))


def test_05_references_do_not_count_in_mu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_seen(monkeypatch, references_count_in_mu, REFERENCES[:2])


def retokenized(**changes: Any) -> Bug:
    def bug(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
        tokenizer = PromptTokenizer(pipeline._tokenizer._tokenizer, replace(CARD.text_encoder, **changes))
        monkeypatch.setattr(pipeline, "_tokenizer", tokenizer)

    return bug


@pytest.mark.parametrize(
    "bug",
    [
        retokenized(prefix="<|im_start|>system\nYou describe images.<|im_end|>\n" + CARD.text_encoder.prefix),
        retokenized(suffix="<|im_end|>\n<|im_start|>assistant\n"),
    ],
    ids=["a system prompt", "no empty think block"],
)
def test_06_the_prompt_has_no_system_message_and_an_empty_think_block(
    monkeypatch: pytest.MonkeyPatch, bug: Bug
) -> None:
    assert_seen(monkeypatch, bug)


@pytest.mark.parametrize("bug", ["one layer later", "after the norm", "the last layer"])
def test_07_hidden_states_are_those_of_the_right_layers_before_the_norm(bug: str) -> None:
    ours, reference = text.pair()
    expected = text.expect(reference)
    features = text.encode(ours)
    assert_same(features, expected)
    if bug == "one layer later":
        later = tuple(layer + 1 for layer in text.CONFIG.feature_layers)
        features = text.encode(text.pair(replace(text.CONFIG, feature_layers=later))[0])
    elif bug == "the last layer":
        last = (*text.CONFIG.feature_layers[:-1], text.LAYERS)
        features = text.encode(text.pair(replace(text.CONFIG, feature_layers=last))[0])
    else:
        states = torch.unflatten(features, -1, (len(text.CONFIG.feature_layers), -1))
        features = reference.model.norm(states).detach().flatten(-2)
    assert_far(features, expected)


def padding_is_masked(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = pipeline._encode_prompt
    _, mask = pipeline._tokenizer.encode([PROMPT])
    monkeypatch.setattr(pipeline, "_encode_prompt", lambda prompt: encode(prompt) * mask[..., None])


@pytest.mark.parametrize("bug", [padding_is_masked, retokenized(pad_multiple=1)], ids=["masked", "trimmed"])
def test_08_the_transformer_reads_the_padding(monkeypatch: pytest.MonkeyPatch, bug: Bug) -> None:
    assert_seen(monkeypatch, bug)


def guided(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "card", replace(CARD, guidance=4.0))


def test_09_distilled_weights_are_not_guided(monkeypatch: pytest.MonkeyPatch) -> None:
    assert_seen(monkeypatch, guided)


def truncated(pixels: Tensor) -> Tensor:
    return ((pixels.clamp(-1, 1) + 1) * 127.5).to(torch.uint8)


def wrapped_around(pixels: Tensor) -> Tensor:
    return ((pixels + 1) * 127.5).round().to(torch.int32).remainder(256)


@pytest.mark.parametrize("bug", [truncated, wrapped_around])
def test_10_pixels_are_clamped_and_rounded(bug: Callable[[Tensor], Tensor]) -> None:
    pixels = torch.randn(3, 48, 64, generator=torch.Generator().manual_seed(0))
    (picture,) = VaeImageProcessor().postprocess(pixels[None], output_type="pil")
    expected = torch.tensor(np.asarray(picture)).permute(2, 0, 1).float()
    assert_same(torch.tensor(np.asarray(to_image(pixels))).permute(2, 0, 1).float(), expected)
    assert_far(bug(pixels).float(), expected)


def one_generator_for_all(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(5)
    monkeypatch.setattr(
        pipeline,
        "_noise",
        lambda seed, height, width: torch.from_numpy(
            generator.standard_normal((1, CARD.transformer.in_channels, height, width), dtype=np.float32)
        ),
    )


def place_in_the_batch_counts(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    draw, places = pipeline._noise, iter(range(9))
    monkeypatch.setattr(
        pipeline, "_noise", lambda seed, height, width: draw(seed=seed + next(places), height=height, width=width)
    )


@pytest.mark.parametrize("bug", [one_generator_for_all, place_in_the_batch_counts])
def test_11_noise_follows_from_the_seed_whatever_came_before(monkeypatch: pytest.MonkeyPatch, bug: Bug) -> None:
    def second_picture(pipeline: Pipeline) -> Tensor:
        pipeline.generate(ImageRequest("another", WIDTH, HEIGHT, seed=5))
        return make(monkeypatch, pipeline).pixels

    pipeline = our_pipeline()
    expected = make(monkeypatch, our_pipeline()).pixels
    assert_same(second_picture(pipeline), expected)
    bug(pipeline, monkeypatch)
    assert_far(second_picture(pipeline), expected)
