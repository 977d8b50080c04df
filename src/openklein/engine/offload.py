"""Leave the text encoder in system memory where a card is small; its layers visit the device one at a time."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from openklein.engine.text_encoder import TextEncoder


class Visitor(nn.Module):
    """Run a layer on a device that holds its weights only for that time."""

    def __init__(self, layer: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.layer = layer
        self.device = device

    def forward(self, *inputs: Any) -> Tensor:
        weights = {name: tensor.to(self.device) for name, tensor in self.layer.state_dict().items()}
        out: Tensor = functional_call(self.layer, weights, inputs)
        return out


def offload(text_encoder: TextEncoder, device: torch.device) -> None:
    """Have a text encoder work on `device`, where its weights, which stay in place, come for one layer at a time."""
    text_encoder.embedding.register_forward_hook(lambda _, __, rows: rows.to(device))
    for i, layer in enumerate(text_encoder.layers):
        text_encoder.layers[i] = Visitor(layer, device)
