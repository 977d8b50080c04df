"""Muon, as torch.optim.Muon is, in the type that this CPU multiplies fastest: that one's bfloat16 takes a minute a step
where it is not native."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.precision import FAST_DTYPE

MOMENTUM, WEIGHT_DECAY = 0.95, 0.01
ITERATIONS, COEFFICIENTS = 5, (3.4445, -4.7750, 2.0315)  # of github.com/KellerJordan/Muon
ADAMW_RMS = 0.2  # what an update of AdamW measures, so that rates mean the same


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix near 1 (0.7 to 1.2) by Newton-Schulz iterations; in its own dtype."""
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    wide = wide / wide.norm().clamp(min=1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        gram = wide @ wide.T
        wide = torch.addmm(wide, torch.addmm(gram, gram, gram, beta=b, alpha=c), wide, beta=a)
    return wide.T if matrix.shape[0] > matrix.shape[1] else wide


class Muon(torch.optim.Optimizer):
    """Step along the orthogonalized momentum of each matrix, as far as AdamW would."""

    def __init__(self, matrices: Iterable[nn.Parameter], lr: float) -> None:
        super().__init__(matrices, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for matrix in group["params"]:
                momentum = self.state[matrix].setdefault("momentum", torch.zeros_like(matrix))
                momentum.lerp_(matrix.grad, 1 - MOMENTUM)
                ahead = matrix.grad.lerp(momentum, MOMENTUM).to(FAST_DTYPE)
                rate = group["lr"] * ADAMW_RMS * max(matrix.shape) ** 0.5
                matrix.mul_(1 - group["lr"] * WEIGHT_DECAY).add_(orthogonalize(ahead), alpha=-rate)
