from dataclasses import replace

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE

from openklein.engine import text_encoder as module
from openklein.engine.catalog import KLEIN_4B
from openklein.engine.text_encoder import PromptTokenizer, TextEncoder
from openklein.errors import PromptTooLong
from tests.tiny import SPECIAL_TOKENS, TINY_CARD, tiny_tokenizer

CONFIG = TINY_CARD.text_encoder
PAD, START, END = (256 + SPECIAL_TOKENS.index(token) for token in ("<|endoftext|>", "<|im_start|>", "<|im_end|>"))


@pytest.fixture
def tokenizer() -> PromptTokenizer:
    return PromptTokenizer(tiny_tokenizer(), CONFIG)


class TestPromptTokenizer:
    def test_the_template_goes_around_the_prompt(self, tokenizer: PromptTokenizer) -> None:
        ids, mask = tokenizer.encode(["ab"])
        assert ids.shape == mask.shape == (1, CONFIG.pad_multiple)
        assert mask.sum() == 4
        a, b = tiny_tokenizer().encode("ab").ids
        assert ids[0].tolist() == [START, a, b, END] + [PAD] * (CONFIG.pad_multiple - 4)
        assert mask[0].tolist() == [True] * 4 + [False] * (CONFIG.pad_multiple - 4)

    @pytest.mark.parametrize(("length", "padded"), [(1, 32), (30, 32), (31, 64), (500, 512)])
    def test_rows_are_padded_to_a_multiple(self, tokenizer: PromptTokenizer, length: int, padded: int) -> None:
        ids, mask = tokenizer.encode(["x" * length, "y"])
        assert ids.shape == (2, padded)
        assert mask.sum(dim=1).tolist() == [length + 2, 3]

    @pytest.mark.parametrize("prompt", ["x" * 500, "é" * 250, "<|im_end|>" * 500], ids=["ascii", "bytes", "special"])
    def test_500_tokens_are_allowed(self, tokenizer: PromptTokenizer, prompt: str) -> None:
        tokenizer.check(prompt)
        with pytest.raises(PromptTooLong, match="501 tokens; at most 500"):
            tokenizer.check(prompt + "x")

    def test_special_tokens_in_a_prompt_are_parsed(self, tokenizer: PromptTokenizer) -> None:
        ids, _ = tokenizer.encode(["<|im_start|>"])
        assert ids[0, :3].tolist() == [START, START, END]

    @pytest.mark.parametrize(
        ("prompt", "count"),
        [
            ("<|im_end|>\n<|im_start|>assistant\n", 2 + len("\nassistant\n")),
            ("<|endoftext|>" * 3, 3),
            ("<|im_end|", len("<|im_end|")),  # not the whole of one
            ("< |im_end|>", len("< |im_end|>")),
        ],
    )
    def test_special_token_strings_count_as_what_they_are_parsed_to(
        self, tokenizer: PromptTokenizer, prompt: str, count: int
    ) -> None:
        _, mask = tokenizer.encode([prompt])
        assert mask.sum() == count + 2

    def test_the_official_template_fills_512_tokens_at_most(self) -> None:
        official = replace(
            CONFIG,
            prefix=KLEIN_4B.text_encoder.prefix,
            suffix=KLEIN_4B.text_encoder.suffix,
            pad_multiple=KLEIN_4B.text_encoder.pad_multiple,
        )
        template = len(tiny_tokenizer().encode(official.prefix + official.suffix).ids)
        tokenizer = PromptTokenizer(tiny_tokenizer(), official)
        for prompt in ("", "a cat", "x" * (512 - template), "<|endoftext|>" * 9):
            ids, mask = tokenizer.encode([prompt])
            assert ids.shape == (1, 512)
            assert ids[0, mask.sum() :].eq(PAD).all() and not mask[0, mask.sum() :].any()

    def test_tokens_that_join_with_the_template_are_counted_in_place(self) -> None:
        joined = Tokenizer(BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
        joined.add_special_tokens(["<|endoftext|>"])
        tokenizer = PromptTokenizer(joined, replace(CONFIG, prefix="a", suffix="", pad_multiple=1))
        tokenizer.check("b" * 501)  # the first joins the template's last
        assert tokenizer.encode(["b" * 501])[0].shape == (1, 501)
        with pytest.raises(PromptTooLong, match="501 tokens"):
            tokenizer.check("b" * 502)

    def test_the_tokenizer_of_another_model_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"lacks <\|pad\|> or has more than 259 tokens"):
            PromptTokenizer(tiny_tokenizer(), replace(CONFIG, pad_token="<|pad|>"))
        with pytest.raises(ValueError, match="more than 258 tokens"):
            PromptTokenizer(tiny_tokenizer(), replace(CONFIG, vocab_size=258))

    @pytest.mark.parametrize("prompt", ["日本語 🍎", "\0\n\t", "a  b"], ids=ascii)
    def test_any_text_is_taken(self, tokenizer: PromptTokenizer, prompt: str) -> None:
        ids, mask = tokenizer.encode([prompt])
        assert tiny_tokenizer().decode(ids[0, mask[0]][1:-1].tolist()) == prompt


class TestTextEncoder:
    def test_features_of_a_row_do_not_depend_on_its_neighbours(self, tokenizer: PromptTokenizer) -> None:
        torch.manual_seed(0)
        encoder = TextEncoder(CONFIG).eval()
        with torch.no_grad():
            together = encoder(*tokenizer.encode(["a red apple", "a cat"]))
            alone = encoder(*tokenizer.encode(["a cat"]))
        assert together.shape == (2, 32, CONFIG.feature_size)
        assert torch.allclose(together[1], alone[0], atol=1e-6)
        assert not torch.allclose(together[0], alone[0], atol=1e-2)

    def test_padding_without_keys_keeps_its_features_to_the_bit(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(0)
        encoder = TextEncoder(replace(CONFIG, head_dim=64)).bfloat16().eval()
        ids = torch.randint(CONFIG.vocab_size, (2, 256))
        mask = torch.arange(256) < torch.tensor([[20], [70]])
        keys: list[int] = []
        for layer in encoder.layers:
            layer.get_submodule("self_attn.k_proj").register_forward_hook(lambda *call: keys.append(call[-1].shape[1]))
        with torch.no_grad():
            short = encoder(ids, mask)
            monkeypatch.setattr(module, "SHORT", ())
            assert torch.equal(short, encoder(ids, mask))
        assert set(keys[: len(keys) // 2]) == {128}
        assert set(keys[len(keys) // 2 :]) == {256}

    def test_only_the_layers_up_to_the_last_one_used_are_built(self) -> None:
        with torch.device("meta"):
            layers = TextEncoder(KLEIN_4B.text_encoder).model["layers"]
        assert isinstance(layers, torch.nn.ModuleList)
        assert len(layers) == 27
