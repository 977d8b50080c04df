"""Muon, as torch.optim.Muon is, in the type that this device multiplies fastest: that one's bfloat16 takes a minute a
step where it is not native. Matrices of one shape go together, or a GPU would wait for their launches."""

from collections.abc import Iterable
from itertools import groupby

import torch
from torch import Tensor, nn

from training.precision import FAST_DTYPE

MOMENTUM, WEIGHT_DECAY = 0.95, 0.01
ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # of github.com/KellerJordan/Muon
ADAMW_RMS = 0.2  # what an update of AdamW measures, so that rates mean the same


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring all singular values of (B, M, N) near 1 (0.7 to 1.2) by Newton-Schulz iterations; in its own dtype."""
    is_tall = matrices.shape[1] > matrices.shape[2]
    wide = matrices.mT if is_tall else matrices
    wide = wide / wide.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.mT
        wide = torch.baddbmm(wide, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.mT if is_tall else wide


def is_hidden(name: str, parameter: nn.Parameter) -> bool:
    """Tell whether a parameter of the transformer is a matrix inside its blocks, as Muon is for."""
    return "_blocks." in name and parameter.ndim == 2


class Muon(torch.optim.Optimizer):
    """Step along the orthogonalized momentum of each matrix, as far as AdamW would."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(sorted(matrices, key=lambda matrix: matrix.shape), {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for shape, alike in groupby(group["params"], key=lambda matrix: matrix.shape):
                matrices: list[Tensor] = list(alike)
                gradients = [matrix.grad for matrix in matrices if matrix.grad is not None]
                momenta = [self.state[m].setdefault("momentum", torch.zeros_like(m)) for m in matrices]
                torch._foreach_lerp_(momenta, gradients, 1 - MOMENTUM)
                ahead = torch.stack(torch._foreach_lerp(gradients, momenta, MOMENTUM)).to(FAST_DTYPE)
                rate = group["lr"] * ADAMW_RMS * max(shape) ** 0.5
                torch._foreach_mul_(matrices, 1 - group["lr"] * WEIGHT_DECAY)
                torch._foreach_add_(matrices, orthogonalize(ahead).to(matrices[0].dtype).unbind(), alpha=-rate)
