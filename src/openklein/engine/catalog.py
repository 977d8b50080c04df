"""List the models: one frozen row each, holding everything in which they differ."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from openklein.contract import BASE_MODEL, DEFAULT_MODEL, MINI_MODEL
from openklein.engine.autoencoder import AutoencoderConfig
from openklein.engine.mini_autoencoder import MiniAutoencoderConfig
from openklein.engine.text_encoder import TextEncoderConfig
from openklein.engine.transformer import TransformerConfig


@dataclass(frozen=True, slots=True)
class HubSource:
    """Where the model hub keeps a model, and which of its files we read: never one that can hold code."""

    repository: str
    revision: str  # a commit here; whoever pulls may name a branch or tag, and the commit it stood for is recorded
    patterns: tuple[str, ...]


DIFFUSERS_FILES: Final = (
    "model_index.json",
    "tokenizer/*.json",
    *(f"{part}/*.{suffix}" for part in ("text_encoder", "transformer", "vae") for suffix in ("json", "safetensors")),
)


@dataclass(frozen=True, slots=True)
class ModelCard:
    """A model: its sizes, its steps, and how it looks at pictures."""

    id: str
    description: str
    licence: str
    source: HubSource | None  # None: shipped in the package
    steps: int
    guidance: float  # how far to go beyond what an empty prompt gives, at twice the work; 1 is without
    token_px: int  # output pixels that one token covers, each way
    reference_max_area: int | None  # larger references are scaled down to it; None: to `on_canvas`
    files: Mapping[str, tuple[str, ...]]  # part: patterns of its files in the model's folder; the first found counts
    transformer: TransformerConfig
    text_encoder: TextEncoderConfig
    autoencoder: AutoencoderConfig | MiniAutoencoderConfig
    small_autoencoder: AutoencoderConfig | None = None  # the same with a smaller decoder, which its file may hold


KLEIN_4B: Final = ModelCard(
    id=DEFAULT_MODEL,
    description="FLUX.2 [klein] 4B by Black Forest Labs",
    licence="Apache-2.0",
    source=HubSource("black-forest-labs/FLUX.2-klein-4B", "e7b7dc27f91deacad38e78976d1f2b499d76a294", DIFFUSERS_FILES),
    steps=4,
    guidance=1.0,
    token_px=16,
    reference_max_area=1024 * 1024,
    files={
        "tokenizer": ("tokenizer/tokenizer.json",),
        "text_encoder": ("text_encoder/*.safetensors",),
        "transformer": ("transformer/*.safetensors", "*.safetensors"),
        "autoencoder": ("vae/*.safetensors",),
    },
    transformer=TransformerConfig(
        in_channels=128,
        num_layers=5,
        num_single_layers=20,
        num_heads=24,
        head_dim=128,
        joint_attention_dim=7680,
        axes_dims=(32, 32, 32, 32),
    ),
    text_encoder=TextEncoderConfig(
        vocab_size=151_936,
        hidden_size=2560,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=9728,
        feature_layers=(9, 18, 27),
        prefix="<|im_start|>user\n",
        suffix="<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        pad_token="<|endoftext|>",
        pad_multiple=512,
    ),
    autoencoder=AutoencoderConfig(),
    small_autoencoder=AutoencoderConfig(decoder_block_out_channels=(96, 192, 384, 384)),
)

KLEIN_BASE_4B: Final = replace(
    KLEIN_4B,
    id=BASE_MODEL,
    description="FLUX.2 [klein] base 4B by Black Forest Labs, before it was distilled to few steps",
    source=HubSource(
        "black-forest-labs/FLUX.2-klein-base-4B", "a3b4f4849157f664bdbc776fd7453c2783562f4d", DIFFUSERS_FILES
    ),
    steps=50,
    guidance=4.0,
)

KLEIN_MINI: Final = ModelCard(
    id=MINI_MODEL,
    description="a small model for illustrations and icons, trained by this project",
    licence="Apache-2.0",
    source=None,
    steps=4,
    guidance=1.0,
    token_px=128,
    reference_max_area=None,
    files={
        "tokenizer": ("tokenizer.json",),
        "text_encoder": ("text_encoder.safetensors",),
        "transformer": ("transformer.safetensors",),
        "autoencoder": ("autoencoder.safetensors",),
    },
    transformer=TransformerConfig(
        in_channels=128,
        num_layers=2,
        num_single_layers=6,
        num_heads=6,
        head_dim=64,
        joint_attention_dim=768,
        axes_dims=(16, 16, 16, 16),
    ),
    text_encoder=TextEncoderConfig(
        vocab_size=4096,
        hidden_size=256,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        intermediate_size=768,
        feature_layers=(2, 4, 6),
        prefix="<|im_start|>",
        suffix="<|im_end|>",
        pad_token="<|endoftext|>",
        pad_multiple=16,
    ),
    autoencoder=MiniAutoencoderConfig(),
)

CATALOG: Final[dict[str, ModelCard]] = {card.id: card for card in (KLEIN_4B, KLEIN_MINI, KLEIN_BASE_4B)}
