"""Write files of the true 4B sizes that take no room: their headers are whole, their tensors are holes."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path

import torch

from openklein.engine.catalog import KLEIN_4B
from openklein.engine.weights import PARTS, empty_modules
from tests.tiny import tiny_tokenizer

Shapes = Mapping[str, tuple[int, ...]]
FILES = {
    "text_encoder": "text_encoder/model.safetensors",
    "transformer": "transformer/diffusion_pytorch_model.safetensors",
    "autoencoder": "vae/diffusion_pytorch_model.safetensors",
}


def official_shapes(part: str) -> Shapes:
    """Give the shape of every tensor of a part, in the diffusers layout."""
    module = empty_modules(KLEIN_4B, KLEIN_4B.autoencoder)[PARTS.index(part)]
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def write_sparse(path: Path, shapes: Shapes) -> None:
    """Write a bfloat16 file with these tensors; counters, which are numbers without a shape, are int64."""
    header, end = {}, 0
    for name, shape in sorted(shapes.items(), key=lambda item: len(item[1]) > 0):  # the widest first
        dtype, size = ("BF16", 2) if shape else ("I64", 8)
        start, end = end, end + size * torch.Size(shape).numel()
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)


def write_official_folder(folder: Path) -> None:
    """Write a folder that is whole by its headers."""
    for part, name in FILES.items():
        write_sparse(folder / name, official_shapes(part))
    (folder / "tokenizer").mkdir()
    tiny_tokenizer().save(str(folder / "tokenizer" / "tokenizer.json"))
