"""Files in the makers' layouts against what diffusers' own converters make of them, bit by bit."""

from copy import copy, deepcopy
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

from benchmarks.random_checkpoint import write_checkpoint
from openklein.engine.autoencoder import Autoencoder, AutoencoderConfig
from openklein.engine.checkpoint import fill, match, read_headers
from openklein.engine.layouts import BUNDLE_PREFIX
from openklein.engine.quantize import quantize_rows
from openklein.engine.transformer import FlowTransformer
from openklein.engine.weights import load_card
from tests.parity import makers
from tests.parity.both_pipelines import CARD, REFERENCES, TEXT_LAYERS, expect, make, reference_pipeline
from tests.parity.compare import PIPELINE_TOLERANCE, assert_far, assert_same, randomize
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


def test_the_single_file_in_int8(tmp_path: Path) -> None:
    tensors = makers.transformer(CONFIG)
    matrices = {name: quantize_rows(tensor, torch.int8) for name, tensor in tensors.items() if tensor.ndim == 2}
    rounded = {name: values * scales[:, None] for name, (values, scales) in matrices.items()}
    stored = {name: values for name, (values, _) in matrices.items()}
    stored |= {f"{name}_scale": scales for name, (_, scales) in matrices.items()}
    loaded = load(FlowTransformer(CONFIG), tensors | stored, tmp_path)
    assert_equal(loaded, convert_transformer(tensors | rounded))


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


LAYOUTS = ["single file", "bundle", "fp8 file", "small decoder"]


def write_layout(folder: Path, layout: str) -> dict[str, dict[str, Tensor]]:
    """Put the makers' files into a folder of theirs; give the same tensors with diffusers' names."""
    write_checkpoint(folder, CARD, text_layers=TEXT_LAYERS, dtype=torch.float32)
    if layout == "small decoder":
        config = CARD.small_autoencoder
        assert config is not None
        path = folder / "vae" / "diffusion_pytorch_model.safetensors"
        module = Autoencoder(config)
        randomize(module)
        save_file(module.state_dict(), path)
        return {"vae": module.state_dict()}
    tensors = makers.transformer(CARD.transformer)
    stored = makers.in_fp8(tensors) if layout == "fp8 file" else tensors
    prefix = BUNDLE_PREFIX if layout == "bundle" else ""
    save_file({prefix + name: tensor for name, tensor in stored.items()}, folder / "flux-2-klein-4b.safetensors")
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()
    in_float = {
        name: stored[name].float() * stored[f"{name}_scale"] if f"{name}_scale" in stored else stored[name]
        for name in tensors
    }
    return {"transformer": convert_transformer(in_float)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_whole_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, layout: str) -> None:
    parts = write_layout(tmp_path, layout)
    ours = load_card(CARD, tmp_path, CHOICE)
    reference = copy(reference_pipeline())
    original = expect(ours, REFERENCES[:2], reference=reference).pixels
    for part, tensors in parts.items():
        module = deepcopy(getattr(reference, part))
        if part == "vae":
            module = type(module)(**{**module.config, "decoder_block_out_channels": (4, 4, 4, 4)}).eval()
        module.load_state_dict(tensors, strict=True)
        setattr(reference, part, module)
    made = make(monkeypatch, ours, REFERENCES[:2]).pixels
    assert_same(made, expect(ours, REFERENCES[:2], reference=reference).pixels, PIPELINE_TOLERANCE)
    assert_far(made, original, PIPELINE_TOLERANCE)
