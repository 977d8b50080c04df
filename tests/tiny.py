"""Make a klein-mini that is as small as its shape allows, for every test that needs a model."""

from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from openklein.engine.autoencoder import Autoencoder
from openklein.engine.catalog import KLEIN_MINI, ModelCard
from openklein.engine.device import DeviceChoice
from openklein.engine.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from openklein.engine.pipeline import Pipeline
from openklein.engine.text_encoder import PromptTokenizer, TextEncoder
from openklein.engine.transformer import FlowTransformer
from openklein.engine.weights import make_autoencoder
from tests.parity.compare import randomize

CHOICE = DeviceChoice(torch.device("cpu"), torch.float32, "tests compare exactly")
SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]

TINY_CARD = replace(
    KLEIN_MINI,
    transformer=replace(
        KLEIN_MINI.transformer,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        num_heads=2,
        head_dim=16,
        joint_attention_dim=32,
        axes_dims=(4, 4, 4, 4),
        timestep_channels=32,
    ),
    text_encoder=replace(
        KLEIN_MINI.text_encoder,
        vocab_size=256 + len(SPECIAL_TOKENS),
        hidden_size=16,
        num_heads=2,
        num_kv_heads=1,
        head_dim=8,
        intermediate_size=32,
        feature_layers=(1, 2),
        pad_multiple=32,
    ),
    autoencoder=MiniAutoencoderConfig(
        latent_channels=4,
        encoder_channels=(8, 8, 8),
        encoder_blocks=(1, 1, 1),
        decoder_channels=(8, 8, 8),
        decoder_blocks=(1, 1, 1),
        tail_channels=8,
    ),
)


def tiny_tokenizer() -> Tokenizer:
    """Make a tokenizer that gives every byte a token of its own."""
    alphabet = sorted(ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(SPECIAL_TOKENS)
    return tokenizer


def tiny_modules(card: ModelCard = TINY_CARD) -> tuple[TextEncoder, FlowTransformer, Autoencoder | MiniAutoencoder]:
    """Make text encoder, transformer and autoencoder with random weights, the same at every call."""
    modules = TextEncoder(card.text_encoder), FlowTransformer(card.transformer), make_autoencoder(card.autoencoder)
    for seed, module in enumerate(modules):
        randomize(module, seed)
        module.requires_grad_(False).eval()
    if isinstance(modules[2], MiniAutoencoder):
        for parameter in modules[2].decoder[-1].parameters():
            parameter.mul_(0.2)  # so that most pixels lie between black and white
    return modules


def tiny_pipeline(card: ModelCard = TINY_CARD) -> Pipeline:
    """Make a pipeline in float32 with random weights."""
    text_encoder, transformer, autoencoder = tiny_modules(card)
    return Pipeline(
        card,
        CHOICE,
        tokenizer=PromptTokenizer(tiny_tokenizer(), card.text_encoder),
        text_encoder=text_encoder,
        transformer=transformer,
        autoencoder=autoencoder,
    )


def save_tiny_model(folder: Path) -> None:
    """Write the files of the same model, as those of klein-mini are laid out."""
    for name, module in zip(("text_encoder", "transformer", "autoencoder"), tiny_modules(), strict=True):
        save_file(module.state_dict(), folder / f"{name}.safetensors")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
