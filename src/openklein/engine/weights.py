"""Find a model's files and load them: strictly, from safetensors alone, into the final dtype."""

import re
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer

from openklein.contract import MINI_MODEL
from openklein.engine.autoencoder import Autoencoder, AutoencoderConfig
from openklein.engine.catalog import CATALOG, ModelCard
from openklein.engine.checkpoint import Stored, fill, find_files, match, read_headers
from openklein.engine.device import DeviceChoice, choose_device
from openklein.engine.manifest import has_its_size, read_manifest
from openklein.engine.memory import LOADING_OVERHEAD, available_bytes, weight_bytes
from openklein.engine.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from openklein.engine.pipeline import Pipeline
from openklein.engine.text_encoder import PromptTokenizer, TextEncoder, TextEncoderConfig
from openklein.engine.transformer import FlowTransformer
from openklein.errors import NotEnoughMemory, WeightsInvalid, WeightsMissing

PARTS: Final = ("text_encoder", "transformer", "autoencoder")
Modules = tuple[TextEncoder, FlowTransformer, Autoencoder | MiniAutoencoder]


def model_folder(model_id: str, models_dir: Path) -> Path:
    """Say where a model's files are: klein-mini's in the package, every other's in its folder of `models_dir`."""
    if model_id == MINI_MODEL:
        return Path(str(files("openklein"))) / "weights" / "klein_mini"
    return models_dir / model_id


def installed(model_id: str, models_dir: Path) -> bool:
    """Tell whether a model was downloaded to its end, or else put here by hand with files for every part."""
    folder = model_folder(model_id, models_dir)
    if manifest := read_manifest(folder):
        return manifest.is_complete and all(has_its_size(file, folder) for file in manifest.files)
    return all(any(any(folder.glob(pattern)) for pattern in patterns) for patterns in CATALOG[model_id].files.values())


def load_pipeline(model_id: str, models_dir: Path, choice: DeviceChoice | None = None) -> Pipeline:
    """Load a model of the catalog; raises WeightsMissing, WeightsInvalid or NotEnoughMemory, naming the fix."""
    folder = model_folder(model_id, models_dir)
    if read_manifest(folder) and not installed(model_id, models_dir):
        raise WeightsMissing(f"{folder} holds part of a download; `openklein models pull {model_id}` fetches the rest.")
    return load_card(CATALOG[model_id], folder, choice or choose_device())


def has_files_put_by_hand(model_id: str, models_dir: Path) -> bool:
    """Tell whether there is anything in a model's folder that no download has recorded."""
    folder = model_folder(model_id, models_dir)
    return folder.is_dir() and any(folder.iterdir()) and read_manifest(folder) is None


def load_card(card: ModelCard, folder: Path, choice: DeviceChoice) -> Pipeline:
    """Load a model whose files lie in `folder` as its card says; everything is judged before anything is loaded."""
    tokenizer = load_tokenizer(card, folder)
    headers = {part: read_headers(find_files(folder, card.files[part])) for part in PARTS}
    headers["text_encoder"] = used_layers(headers["text_encoder"], card.text_encoder)
    modules = empty_modules(card, choose_decoder(card, headers["autoencoder"]))
    sources = [
        match(module, headers[part], f"the {part.replace('_', ' ')} of {card.id}")
        for part, module in zip(PARTS, modules, strict=True)
    ]
    check_memory(card, modules, choice)
    for part, module, source in zip(PARTS, modules, sources, strict=True):
        fill(module, source, headers[part], choice)
    text_encoder, transformer, autoencoder = modules
    return Pipeline(
        card, choice, tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, autoencoder=autoencoder
    )


def empty_modules(card: ModelCard, autoencoder: AutoencoderConfig | MiniAutoencoderConfig) -> Modules:
    """Build the modules of a model, in the order of PARTS, without weights."""
    with torch.device("meta"):
        return TextEncoder(card.text_encoder), FlowTransformer(card.transformer), make_autoencoder(autoencoder)


def check_memory(card: ModelCard, modules: Modules, choice: DeviceChoice) -> None:
    """Raise NotEnoughMemory, naming what would fit, where the weights do not."""

    def needed(modules: Modules) -> float:
        return LOADING_OVERHEAD * sum(weight_bytes(module, choice.dtype) for module in modules)

    available = available_bytes(choice.device)
    if needed(modules) <= available:
        return
    others = {other.id: needed(empty_modules(other, other.autoencoder)) for other in CATALOG.values()}
    fitting = [f"{name} ({size / 1e9:.1f} GB)" for name, size in others.items() if size <= available]
    raise NotEnoughMemory(
        f"{card.id} needs {needed(modules) / 1e9:.1f} GB of memory on {choice.device} in {choice.dtype}, and "
        f"{available / 1e9:.1f} GB are available; free some"
        + (f", or choose a model that fits with --model: {', '.join(fitting)}." if fitting else ".")
    )


def load_tokenizer(card: ModelCard, folder: Path) -> PromptTokenizer:
    (path,) = find_files(folder, card.files["tokenizer"])
    try:
        return PromptTokenizer(Tokenizer.from_file(str(path)), card.text_encoder)
    except Exception as error:
        raise WeightsInvalid(f"{path} is not a tokenizer ({error}); download it again.") from error


def choose_decoder(card: ModelCard, tensors: Mapping[str, Stored]) -> AutoencoderConfig | MiniAutoencoderConfig:
    """Tell the makers' smaller decoder by the channels of its first layer."""
    small, first = card.small_autoencoder, tensors.get("decoder.conv_in.weight")
    if (
        small
        and small.decoder_block_out_channels
        and first
        and first.shape[:1] == small.decoder_block_out_channels[-1:]
    ):
        return small
    return card.autoencoder


def make_autoencoder(config: AutoencoderConfig | MiniAutoencoderConfig) -> Autoencoder | MiniAutoencoder:
    return Autoencoder(config) if isinstance(config, AutoencoderConfig) else MiniAutoencoder(config)


def used_layers(tensors: Mapping[str, Stored], config: TextEncoderConfig) -> dict[str, Stored]:
    """Leave out what comes after the last layer used: later layers, the final norm and the language head."""

    def is_used(key: str) -> bool:
        if layer := re.match(r"model\.layers\.(\d+)\.", key):
            return int(layer[1]) < config.feature_layers[-1]
        return key not in ("model.norm.weight", "lm_head.weight")

    return {key: tensor for key, tensor in tensors.items() if is_used(key)}
