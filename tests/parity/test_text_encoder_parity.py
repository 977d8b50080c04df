"""The text encoder against transformers' Qwen3."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Qwen3Config, Qwen3ForCausalLM

from openklein.engine import text_encoder
from openklein.engine.pipeline import Pipeline
from openklein.engine.text_encoder import TextEncoder, TextEncoderConfig
from openklein.errors import PromptTooLong
from tests.parity.both_pipelines import CARD, our_pipeline, reference_pipeline
from tests.parity.compare import assert_far, assert_same, randomize

CONFIG = TextEncoderConfig(
    vocab_size=50,
    hidden_size=24,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=40,
    feature_layers=(1, 3, 4),
    prefix="",
    suffix="",
    pad_token="<pad>",
    pad_multiple=8,
)
LAYERS = 6  # two more than are used
LENGTH = 512  # of every prompt of the 4B
PROMPTS = {
    "short": "a red apple on a blue background",
    "long": "a lighthouse above the sea, " * 15,
    "truncated": "a lighthouse above the sea, " * 60,
    "non-ASCII": "ein schöner Apfel, cafe\u0301, 赤いりんご, русский, 🍎",
    "special tokens": "<|im_end|> <think>red</think> <|endoftext|>",
}
LENGTHS = [12, 5, 1]  # real tokens of each row, the rest is padding


def reference_model() -> Qwen3ForCausalLM:
    config = Qwen3Config(
        vocab_size=CONFIG.vocab_size,
        hidden_size=CONFIG.hidden_size,
        intermediate_size=CONFIG.intermediate_size,
        num_hidden_layers=LAYERS,
        num_attention_heads=CONFIG.num_heads,
        num_key_value_heads=CONFIG.num_kv_heads,
        head_dim=CONFIG.head_dim,
        rms_norm_eps=CONFIG.eps,
        rope_parameters={"rope_type": "default", "rope_theta": CONFIG.rope_theta},
        tie_word_embeddings=True,
        use_sliding_window=False,
    )
    model = Qwen3ForCausalLM(config).eval()
    randomize(model)
    return model


def pair(config: TextEncoderConfig = CONFIG) -> tuple[TextEncoder, Qwen3ForCausalLM]:
    reference = reference_model()
    ours = TextEncoder(config).eval()
    unused = ("lm_head.", "model.norm.", *(f"model.layers.{i}." for i in range(config.feature_layers[-1], LAYERS)))
    used = {name: tensor for name, tensor in reference.state_dict().items() if not name.startswith(unused)}
    ours.load_state_dict(used, strict=True)
    return ours, reference


def prompts() -> tuple[Tensor, Tensor]:
    ids = torch.randint(CONFIG.vocab_size, (len(LENGTHS), max(LENGTHS)), generator=torch.Generator().manual_seed(1))
    mask = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    return ids.masked_fill(~mask, 0), mask


@torch.no_grad()
def encode(model: TextEncoder) -> Tensor:
    features: Tensor = model(*prompts())
    return features


@torch.no_grad()
def expect(model: Qwen3ForCausalLM) -> Tensor:
    ids, mask = prompts()
    states = model(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True, use_cache=False).hidden_states
    return torch.cat([states[layer] for layer in CONFIG.feature_layers], dim=-1)


def test_features_padding_included() -> None:
    ours, reference = pair()
    expected = expect(reference)
    assert expected.shape == (3, 12, 72) and expected.std() > 0.2
    assert_same(encode(ours), expected)
    for row, length in enumerate(LENGTHS):  # not hidden by the longer rows
        assert_same(encode(ours)[row, :length], expected[row, :length])
        if length < max(LENGTHS):
            assert_same(encode(ours)[row, length:], expected[row, length:])


def test_the_state_dict_is_the_checkpoints() -> None:
    ours, reference = pair()
    randomize(ours, seed=2)
    missing, unexpected = reference.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    assert {name.split(".layers.")[-1].split(".")[0] for name in missing} <= {"4", "5", "lm_head", "model"}
    assert_same(encode(ours), expect(reference))


def unrotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return x


def neighbours_rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x[..., 0::2], x[..., 1::2]
    cos, sin = cos.chunk(2, dim=-1)[0], sin.chunk(2, dim=-1)[0]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], dim=-1).flatten(-2)


class TestPrompts:
    """From the prompt as it was typed to its embeddings, with the files of a whole checkpoint."""

    def read(self, pipeline: Pipeline, prompt: str) -> Tensor:
        ids, mask = pipeline._tokenizer.encode([prompt])
        features: Tensor = pipeline._text_encoder(ids[:, :LENGTH], mask[:, :LENGTH])
        return features

    def expect(self, prompt: str, dtype: torch.dtype = torch.float32) -> Tensor:
        reference = reference_pipeline(is_distilled=True, dtype=dtype)
        features: Tensor = reference._get_qwen3_prompt_embeds(
            reference.text_encoder,
            reference.tokenizer,
            prompt,
            hidden_states_layers=CARD.text_encoder.feature_layers,
        )
        return features

    @pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
    @torch.no_grad()
    def test_embeddings(self, prompt: str) -> None:
        pipeline = our_pipeline()
        expected = self.expect(prompt)
        assert_same(self.read(pipeline, prompt), expected)
        pipeline._tokenizer._config = replace(CARD.text_encoder, prefix="<|im_start|>system\n")
        assert_far(self.read(pipeline, prompt), expected)

    @torch.no_grad()
    def test_a_truncated_prompt_is_refused_and_lacks_its_end(self) -> None:
        pipeline = our_pipeline()
        with pytest.raises(PromptTooLong):
            pipeline.check(PROMPTS["truncated"])
        ids, mask = pipeline._tokenizer.encode([PROMPTS["truncated"]])
        without_start = pipeline._text_encoder(ids[:, -LENGTH:], mask[:, -LENGTH:])
        assert_far(without_start, self.expect(PROMPTS["truncated"]))

    @torch.no_grad()
    def test_bfloat16_rounds_where_qwen_does(self, monkeypatch: pytest.MonkeyPatch) -> None:
        pipeline = our_pipeline(dtype=torch.bfloat16)
        expected = self.expect(PROMPTS["short"], torch.bfloat16).float()
        assert_same(self.read(pipeline, PROMPTS["short"]).float(), expected, 1e-4)
        monkeypatch.setattr(text_encoder.RMSNorm, "forward", torch.nn.RMSNorm.forward)
        assert_far(self.read(pipeline, PROMPTS["short"]).float(), expected, 1e-4)


class TestBugsAreSeen:
    """Each of these has been made somewhere; the comparison must notice."""

    @pytest.mark.parametrize("wrong", [unrotated, neighbours_rotated])
    def test_in_the_rotation(self, monkeypatch: pytest.MonkeyPatch, wrong: object) -> None:
        monkeypatch.setattr(text_encoder, "rotate_halves", wrong)
        ours, reference = pair()
        assert_far(encode(ours), expect(reference))

    @pytest.mark.parametrize(
        "change",
        [{"feature_layers": (2, 3, 4)}, {"rope_theta": 1e4}, {"eps": 1e-2}, {"feature_layers": (1, 4, 5)}],
        ids=str,
    )
    def test_in_the_sizes(self, change: dict[str, Any]) -> None:
        ours, reference = pair(replace(CONFIG, **change))
        assert_far(encode(ours), expect(reference))

    def test_in_the_padding_mask(self) -> None:
        ours, reference = pair()
        ids, mask = prompts()
        with torch.no_grad():
            assert_far(ours(ids, torch.ones_like(mask)), expect(reference))
