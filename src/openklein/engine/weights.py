"""Find a model's files and load them: strictly, from safetensors alone, into the final dtype."""

from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer
from torch import Tensor, nn

from openklein.contract import MINI_MODEL
from openklein.engine.autoencoder import Autoencoder, AutoencoderConfig
from openklein.engine.catalog import CATALOG, ModelCard
from openklein.engine.device import DeviceChoice, choose_device
from openklein.engine.mini_autoencoder import MiniAutoencoder
from openklein.engine.pipeline import Pipeline
from openklein.engine.text_encoder import PromptTokenizer, TextEncoder, TextEncoderConfig
from openklein.engine.transformer import FlowTransformer
from openklein.errors import WeightsInvalid, WeightsMissing


def model_folder(model_id: str, models_dir: Path) -> Path:
    """Say where a model's files are: klein-mini's in the package, every other's in its folder of `models_dir`."""
    if model_id == MINI_MODEL:
        return Path(str(files("openklein"))) / "weights" / "klein_mini"
    return models_dir / model_id


def installed(model_id: str, models_dir: Path) -> bool:
    """Tell whether every part of a model has files here."""
    folder = model_folder(model_id, models_dir)
    return all(any(folder.glob(pattern)) for pattern in CATALOG[model_id].files.values())


def load_pipeline(model_id: str, models_dir: Path, choice: DeviceChoice | None = None) -> Pipeline:
    """Load a model of the catalog; raises WeightsMissing or WeightsInvalid, naming the file or the key."""
    return load_card(CATALOG[model_id], model_folder(model_id, models_dir), choice or choose_device())


def load_card(card: ModelCard, folder: Path, choice: DeviceChoice) -> Pipeline:
    """Load a model whose files lie in `folder` as its card says."""

    def part(name: str) -> dict[str, Tensor]:
        return read_tensors(folder, card.files[name], choice)

    with torch.device("meta"):
        text_encoder = TextEncoder(card.text_encoder)
        transformer = FlowTransformer(card.transformer)
        autoencoder = make_autoencoder(card)
    load_strictly(text_encoder, needed_layers(part("text_encoder"), card.text_encoder), folder)
    load_strictly(transformer, part("transformer"), folder)
    load_strictly(autoencoder, part("autoencoder"), folder)
    (tokenizer_file,) = find_files(folder, card.files["tokenizer"])
    return Pipeline(
        card,
        choice,
        tokenizer=PromptTokenizer(Tokenizer.from_file(str(tokenizer_file)), card.text_encoder),
        text_encoder=text_encoder,
        transformer=transformer,
        autoencoder=autoencoder,
    )


def make_autoencoder(card: ModelCard) -> Autoencoder | MiniAutoencoder:
    if isinstance(card.autoencoder, AutoencoderConfig):
        return Autoencoder(card.autoencoder)
    return MiniAutoencoder(card.autoencoder)


def find_files(folder: Path, pattern: str) -> list[Path]:
    found = sorted(folder.glob(pattern))
    if not found:
        raise WeightsMissing(f"{folder / pattern} does not exist; install the model there.")
    return found


def read_tensors(folder: Path, pattern: str, choice: DeviceChoice) -> dict[str, Tensor]:
    """Read every tensor of the matching files, floating-point ones in the chosen dtype."""
    tensors: dict[str, Tensor] = {}
    for path in find_files(folder, pattern):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 - the reader is no mapping
                    tensor = file.get_tensor(key)
                    dtype = choice.dtype if tensor.is_floating_point() else tensor.dtype
                    tensors[key] = tensor.to(choice.device, dtype)
        except SafetensorError as error:
            raise WeightsInvalid(f"{path} is not a complete safetensors file: {error}") from error
    return tensors


def needed_layers(tensors: Mapping[str, Tensor], config: TextEncoderConfig) -> dict[str, Tensor]:
    """Leave out what comes after the last layer used: later layers, the final norm and the language head."""
    last = config.feature_layers[-1]

    def is_needed(key: str) -> bool:
        if key.startswith("model.layers."):
            return int(key.split(".")[2]) < last
        return key not in ("model.norm.weight", "lm_head.weight")

    return {key: tensor for key, tensor in tensors.items() if is_needed(key)}


def load_strictly(module: nn.Module, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Give `module` exactly the tensors it has; raise WeightsInvalid that names the first key that differs."""
    expected = module.state_dict()
    for key in sorted(expected.keys() ^ tensors.keys()):
        problem = "lacks" if key in expected else "has the unexpected"
        raise WeightsInvalid(f"{type(module).__name__} in {folder} {problem} key {key}.")
    for key, tensor in tensors.items():
        if tensor.shape != expected[key].shape:
            wanted, found = tuple(expected[key].shape), tuple(tensor.shape)
            raise WeightsInvalid(f"{key} in {folder} has shape {found}; {wanted} is expected.")
    module.load_state_dict(dict(tensors), strict=True, assign=True)
    module.requires_grad_(False).eval()
