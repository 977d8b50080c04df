"""Files in the makers' layouts against what diffusers' own converters make of them, bit by bit."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers.loaders.single_file_utils import (
    convert_flux2_transformer_checkpoint_to_diffusers,
    convert_ldm_vae_checkpoint,
)
from safetensors.torch import save_file
from torch import Tensor

from openklein.engine.autoencoder import Autoencoder, AutoencoderConfig
from openklein.engine.checkpoint import fill, match, read_headers
from openklein.engine.layouts import BUNDLE_PREFIX
from openklein.engine.transformer import FlowTransformer
from tests.parity import makers
from tests.parity.test_autoencoder_parity import CONFIGS
from tests.parity.test_autoencoder_parity import reference_for as reference_autoencoder
from tests.parity.test_transformer_parity import CONFIG
from tests.tiny import CHOICE


def load(
    module: FlowTransformer | Autoencoder, tensors: dict[str, Tensor], folder: Path, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Write the tensors, read them into the module, and give what it holds then."""
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "part.safetensors")
    headers = read_headers([folder / "part.safetensors"])
    fill(module, match(module, headers, "the part"), headers, replace(CHOICE, dtype=dtype))
    return module.state_dict()


def assert_equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), name


def convert_transformer(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    converted: dict[str, Tensor] = convert_flux2_transformer_checkpoint_to_diffusers(dict(tensors))
    return converted


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("prefix", ["", BUNDLE_PREFIX])
def test_the_single_file(tmp_path: Path, prefix: str, dtype: torch.dtype) -> None:
    tensors = {name: tensor.to(dtype) for name, tensor in makers.transformer(CONFIG).items()}
    loaded = load(FlowTransformer(CONFIG), {prefix + name: tensor for name, tensor in tensors.items()}, tmp_path, dtype)
    assert_equal(loaded, convert_transformer(tensors))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_fp8_file(tmp_path: Path, dtype: torch.dtype) -> None:
    original = makers.transformer(CONFIG)
    stored = makers.in_fp8(original)
    loaded = load(FlowTransformer(CONFIG), stored, tmp_path, dtype)
    by_hand = {
        name: stored[name].float() * stored[f"{name}_scale"] if f"{name}_scale" in stored else stored[name]
        for name in original
    }
    assert_equal(loaded, {name: tensor.to(dtype) for name, tensor in convert_transformer(by_hand).items()})
    for name, tensor in convert_transformer(original).items():
        half_a_step = tensor.abs() * 2**-4 + tensor.abs().max() * 2**-10 / 448  # 3 bits of mantissa, and subnormals
        assert ((loaded[name].float() - tensor).abs() <= 1.01 * half_a_step).all(), name


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_the_autoencoders_file(tmp_path: Path, config: AutoencoderConfig) -> None:
    tensors = makers.autoencoder(config)
    expected = convert_ldm_vae_checkpoint(tensors, reference_autoencoder(config).config)
    for kind in ("weight", "bias"):  # which the converter, made for an older model, leaves out
        expected[f"quant_conv.{kind}"] = tensors[f"encoder.quant_conv.{kind}"]
        expected[f"post_quant_conv.{kind}"] = tensors[f"decoder.post_quant_conv.{kind}"]
    expected |= {name: tensor for name, tensor in tensors.items() if name.startswith("bn.")}
    assert_equal(load(Autoencoder(config), tensors, tmp_path), expected)
