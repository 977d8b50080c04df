"""Find a model's files and load them: strictly, from safetensors alone, into the final dtype."""

import logging
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
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
from openklein.engine.memory import LOADING_OVERHEAD, available_bytes, weight_bytes, working_bytes
from openklein.engine.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from openklein.engine.offload import offload
from openklein.engine.pipeline import Pipeline
from openklein.engine.prompt_cache import CAPACITY_BYTES
from openklein.engine.quantize import DTYPES, check_quantization, quantize_blocks
from openklein.engine.text_encoder import PromptTokenizer, TextEncoder, TextEncoderConfig
from openklein.engine.transformer import FlowTransformer
from openklein.errors import InvalidSetting, NotEnoughMemory, WeightsInvalid, WeightsMissing
from openklein.settings import Quantization

logger = logging.getLogger(__name__)

SYSTEM: Final = torch.device("cpu")
PARTS: Final = ("text_encoder", "transformer", "autoencoder")
Modules = tuple[TextEncoder, FlowTransformer, Autoencoder | MiniAutoencoder]


def model_folder(model_id: str, models_dir: Path) -> Path:
    """Say where a model's files are: in its folder of `models_dir`; klein-mini's, unless it has one, in the package."""
    folder = models_dir / model_id
    if model_id == MINI_MODEL and not folder.is_dir():
        return Path(str(files("openklein"))) / "weights" / "klein_mini"
    return folder


def installed(model_id: str, models_dir: Path) -> bool:
    """Tell whether a model was downloaded to its end, or else put here by hand with files for every part."""
    folder = model_folder(model_id, models_dir)
    if manifest := read_manifest(folder):
        return manifest.is_complete and all(has_its_size(file, folder) for file in manifest.files)
    return all(any(any(folder.glob(pattern)) for pattern in patterns) for patterns in CATALOG[model_id].files.values())


def load_pipeline(
    model_id: str,
    models_dir: Path,
    choice: DeviceChoice | None = None,
    *,
    quantization: Quantization = "none",
    compiled: bool = False,
) -> Pipeline:
    """Load a model of the catalog; one to be compiled is so once it first runs.

    Raises InvalidSetting, WeightsMissing, WeightsInvalid or NotEnoughMemory, naming the fix.
    """
    choice = choice or choose_device()
    check_quantization(quantization, choice.device)
    folder = model_folder(model_id, models_dir)
    if read_manifest(folder) and not installed(model_id, models_dir):
        raise WeightsMissing(f"{folder} holds part of a download; `openklein models pull {model_id}` fetches the rest.")
    pipeline = load_card(CATALOG[model_id], folder, choice, quantization)
    if compiled or quantization == "int8":  # rounding rows and scaling products back pays only where they are fused
        pipeline.compile_blocks()
    return pipeline


def has_files_put_by_hand(model_id: str, models_dir: Path) -> bool:
    """Tell whether there is anything in a model's folder, or in its place, that no download has recorded."""
    folder = model_folder(model_id, models_dir)
    return folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and read_manifest(folder) is None)


def load_card(card: ModelCard, folder: Path, choice: DeviceChoice, quantization: Quantization = "none") -> Pipeline:
    """Load a model whose files lie in `folder` as its card says; everything is judged before anything is loaded."""
    tokenizer = load_tokenizer(card, folder)
    headers = {part: read_headers(find_files(folder, card.files[part])) for part in PARTS}
    headers["text_encoder"] = used_layers(headers["text_encoder"], card.text_encoder)
    text_encoder, transformer, autoencoder = modules = empty_modules(card, choose_decoder(card, headers["autoencoder"]))
    sources = [
        match(module, headers[part], f"the {part.replace('_', ' ')} of {card.id}")
        for part, module in zip(PARTS, modules, strict=True)
    ]
    if quantization != "none":
        quantize_blocks(transformer, choice, DTYPES[quantization])
    is_offloaded = choose_offload(card, modules, choice)
    for part, module, source in zip(PARTS, modules, sources, strict=True):
        stays = is_offloaded and part == "text_encoder"
        fill(module, source, headers[part], replace(choice, device=SYSTEM) if stays else choice)
    if is_offloaded:
        offload(text_encoder, choice.device)
    return Pipeline(
        card, choice, tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer, autoencoder=autoencoder
    )


def empty_modules(card: ModelCard, autoencoder: AutoencoderConfig | MiniAutoencoderConfig) -> Modules:
    """Build the modules of a model, in the order of PARTS, without weights."""
    with torch.device("meta"):
        return TextEncoder(card.text_encoder), FlowTransformer(card.transformer), make_autoencoder(autoencoder)


def choose_offload(card: ModelCard, modules: Modules, choice: DeviceChoice) -> bool:
    """Tell whether the text encoder has to stay in system memory, since the GPU is small for the whole model.

    Raises NotEnoughMemory, naming what would fit, where that is not enough either.
    """
    available = available_bytes(choice.device)
    whole = needed_bytes(card, modules, choice.dtype)
    if whole <= available:
        return False
    wanted = f"{card.id} needs {whole / 1e9:.1f} GB of memory on {choice.device} in {choice.dtype}"
    can_offload = choice.device.type == "cuda" and weight_bytes(modules[0], choice.dtype) <= available_bytes(SYSTEM)
    if can_offload:
        rest = needed_bytes(card, modules, choice.dtype, is_offloaded=True)
        wanted += f", {rest / 1e9:.1f} GB with its text encoder in system memory"
        if rest <= available:
            logger.info("%s, and %.1f GB are available: so it stays there", wanted, available / 1e9)
            return True
    sizes = alternatives(card, choice, is_offloaded=can_offload)
    fitting = [f"{flag} ({size / 1e9:.1f} GB)" for flag, size in sizes.items() if size <= available]
    raise NotEnoughMemory(
        f"{wanted}, and {available / 1e9:.1f} GB are available; free some"
        + (f", or choose what fits: {', '.join(fitting)}." if fitting else ".")
    )


def alternatives(card: ModelCard, choice: DeviceChoice, *, is_offloaded: bool) -> dict[str, float]:
    """Give the flags for less of a model, or for another one, and the bytes that it then needs."""
    models = {f"--model {other.id}": other for other in CATALOG.values() if other.id != card.id}
    sizes = {}
    for quantization, dtype in DTYPES.items():
        with suppress(InvalidSetting):
            check_quantization(quantization, choice.device)
            modules = empty_modules(card, card.autoencoder)
            quantize_blocks(modules[1], choice, dtype)
            size = needed_bytes(card, modules, choice.dtype, is_offloaded=is_offloaded)
            sizes[f"--quantize {quantization}"] = size
    for flag, other in models.items():
        modules = empty_modules(other, other.autoencoder)
        sizes[flag] = needed_bytes(other, modules, choice.dtype, is_offloaded=is_offloaded)
    return sizes


def needed_bytes(card: ModelCard, modules: Modules, dtype: torch.dtype, *, is_offloaded: bool = False) -> float:
    """Bound what a model takes on its device: while it is loaded, or with the largest request and all kept prompts."""
    text_encoder, *others = modules
    weights = sum(weight_bytes(module, dtype) for module in others)
    weights += weight_bytes(text_encoder.layers[0] if is_offloaded else text_encoder, dtype)
    return max(LOADING_OVERHEAD * weights, weights + working_bytes(card, dtype) + CAPACITY_BYTES)


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
