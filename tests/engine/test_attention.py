import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from openklein.engine import attention as module
from openklein.engine.attention import LONG, ROWS, attention, attention_by_products
from tests.parity.compare import relative_error

SCORE_SPREAD = 3.0  # standard deviation, at which rounding the scores to bfloat16 would show


def heads(length: int, *, batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Give query, key and value of two heads in bfloat16, laid out as a projection leaves them."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, batch, length, 2, 64, generator=generator)
    return (query * SCORE_SPREAD**0.5).bfloat16(), (key * SCORE_SPREAD**0.5).bfloat16(), value.bfloat16()


def by_the_kernel(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)


def in_float64(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return by_the_kernel(query.double(), key.double(), value.double())


@pytest.mark.parametrize("length", [ROWS - 1, ROWS, ROWS + 37, 3 * ROWS], ids=str)
def test_products_are_as_good_as_the_kernel(length: int) -> None:
    inputs = heads(length)
    expected = in_float64(*inputs)
    kernel = by_the_kernel(*inputs)
    error = relative_error(attention_by_products(*inputs).double(), expected)
    assert error < 2 * relative_error(kernel.double(), expected) < 0.01


def test_what_rounding_the_scores_takes_away_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = heads(ROWS)
    monkeypatch.setattr(Tensor, "addcmul_", lambda self, *_: self)
    assert relative_error(attention_by_products(*inputs).double(), in_float64(*inputs)) > 0.01


class TestChoice:
    @pytest.fixture
    def calls(self, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """Note the length of each sequence that is left to products."""
        lengths: list[int] = []

        def note(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            lengths.append(query.shape[1])
            out: Tensor = attention_by_products(query, key, value)
            return out

        monkeypatch.setattr(module, "attention_by_products", note)
        return lengths

    def test_long_sequences_in_bfloat16(self, calls: list[int]) -> None:
        with torch.no_grad():
            for length in (LONG - 1, LONG):
                inputs = heads(length, batch=1)
                assert relative_error(attention(*inputs).double(), in_float64(*inputs)) < 0.01
        assert calls == [LONG]

    def test_float32_and_training_keep_the_kernel(self, calls: list[int]) -> None:
        query, key, value = heads(LONG, batch=1)
        with torch.no_grad():
            attention(query.float(), key.float(), value.float())
        total: Tensor = attention(query.requires_grad_(), key, value).sum()
        total.backward()  # type: ignore[no-untyped-call]
        assert query.grad is not None
        assert calls == []
