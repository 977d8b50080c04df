"""The two parts of klein-mini that turn a prompt and noise into latents, as they are trained."""

from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from openklein.contract import MINI_MODEL
from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.checkpoint import fill, match, read_headers
from openklein.engine.device import choose_device
from openklein.engine.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from openklein.engine.text_encoder import PromptTokenizer, TextEncoder
from openklein.engine.transformer import FlowTransformer, Rotary
from openklein.engine.weights import model_folder
from training.autoencoder import load_average

SHIPPED = model_folder(MINI_MODEL, Path("/nonexistent"))


class MiniModel(nn.Module):
    """The two parts that turn a prompt and noise into a picture's latents."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = FlowTransformer(KLEIN_MINI.transformer)
        self.text_encoder = TextEncoder(KLEIN_MINI.text_encoder)

    def forward(self, image: Tensor, ids: Tensor, mask: Tensor, sigma: Tensor, rotary: Rotary) -> Tensor:
        velocity: Tensor = self.transformer(image, self.text_encoder(ids, mask), sigma, rotary)
        return velocity


def load_model(run: Path) -> MiniModel:
    """Take the averaged weights of the flow's run, or of its distillation."""
    model = MiniModel()
    model.load_state_dict(load_average(run))
    return model


def load_shipped() -> tuple[MiniModel, MiniAutoencoder, PromptTokenizer]:
    """Open the package's klein-mini for training, in float32."""
    assert isinstance(KLEIN_MINI.autoencoder, MiniAutoencoderConfig)
    files = {part: SHIPPED / names[0] for part, names in KLEIN_MINI.files.items()}
    model, autoencoder = MiniModel(), MiniAutoencoder(KLEIN_MINI.autoencoder)
    parts = {"transformer": model.transformer, "text_encoder": model.text_encoder, "autoencoder": autoencoder}
    choice = choose_device("cpu", torch.float32)
    for name, part in parts.items():
        headers = read_headers([files[name]])
        fill(part, match(part, headers, name), headers, choice)
        part.requires_grad_(name != "text_encoder").train()
    return model, autoencoder, PromptTokenizer(Tokenizer.from_file(str(files["tokenizer"])), KLEIN_MINI.text_encoder)
