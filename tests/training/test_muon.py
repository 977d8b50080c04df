"""Check Muon against the one in torch, which rounds to bfloat16."""

import pytest
import torch
from torch import nn

from training import muon
from training.muon import Muon, orthogonalize


def test_steps_are_those_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(muon, "FAST_DTYPE", torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((8, 24), (24, 8), (8, 24))]
    ours, theirs = ([nn.Parameter(matrix.clone()) for matrix in start] for _ in range(2))
    reference = torch.optim.Muon(theirs, 0.1, weight_decay=muon.WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw")
    tested = Muon(ours, 0.1)
    for _ in range(3):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        tested.step()
        reference.step()  # type: ignore[no-untyped-call]
    for one, other, before in zip(ours, theirs, start, strict=True):
        assert (other - before).abs().mean() > 0.02
        torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
def test_orthogonal_means_singular_values_near_one(shape: tuple[int, int]) -> None:
    matrix = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0))
    values = torch.linalg.svdvals(orthogonalize(matrix))
    assert (values.min() > 0.6, values.max() < 1.3) == (True, True)
