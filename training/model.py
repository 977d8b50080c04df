"""The two parts of klein-mini that turn a prompt and noise into latents, as they are trained."""

from pathlib import Path

import torch
from torch import Tensor, nn

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.text_encoder import TextEncoder
from openklein.engine.transformer import FlowTransformer, Rotary
from training.autoencoder import load_average


class MiniModel(nn.Module):
    """The two parts that turn a prompt and noise into a picture's latents."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = FlowTransformer(KLEIN_MINI.transformer)
        self.text_encoder = TextEncoder(KLEIN_MINI.text_encoder)

    def forward(self, image: Tensor, ids: Tensor, mask: Tensor, sigma: Tensor, rotary: Rotary) -> Tensor:
        with torch.no_grad():
            features = self.text_encoder(ids, mask)
        velocity: Tensor = self.transformer(image, features, sigma, rotary)
        return velocity


def load_model(run: Path) -> MiniModel:
    """Take the averaged weights of the flow's run, or of its distillation."""
    model = MiniModel()
    model.load_state_dict(load_average(run))
    return model
