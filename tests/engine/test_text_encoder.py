import pytest
import torch

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
