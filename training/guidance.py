"""Sample from the undistilled model: many steps, each pushed away from what no caption would give."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from openklein.engine.transformer import Rotary
from training.model import MiniModel


class GuidedTeacher:
    """Predict guided velocities for one batch of captions and references; text is encoded once."""

    def __init__(
        self, model: MiniModel, captions: tuple[Tensor, Tensor], blanks: tuple[Tensor, Tensor], guidance: float
    ) -> None:
        self._model = model
        self._guidance = guidance
        with torch.inference_mode():
            self._features = torch.cat([model.text_encoder(*captions), model.text_encoder(*blanks)])

    @torch.inference_mode()
    def velocity(self, tokens: Tensor, references: Tensor, sigma: Tensor, rotary: Rotary) -> Tensor:
        """Give the guided velocity (B, N, C) at `tokens` of noise levels `sigma` (B,), float32."""
        image = torch.cat([tokens, references], dim=1).to(self._features.dtype)
        both = self._model.transformer(torch.cat([image, image]), self._features, torch.cat([sigma, sigma]), rotary)
        with_caption, without = both[:, : tokens.shape[1]].float().chunk(2)
        return torch.lerp(without, with_caption, self._guidance)

    def walk(self, tokens: Tensor, references: Tensor, levels: Sequence[float], rotary: Rotary) -> Tensor:
        """Take Euler steps from levels[0] to levels[-1]."""
        for here, there in pairwise(levels):
            sigma = torch.full((len(tokens),), here, device=tokens.device)
            tokens = tokens + (there - here) * self.velocity(tokens, references, sigma, rotary)
        return tokens
