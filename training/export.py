"""Write klein-mini as the package ships it: safetensors, the transformer's matrices in 8 bits, and the tokenizer.

`python -m training.export --work FOLDER --to src/openklein/weights/klein_mini`
"""

import argparse
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from openklein.engine.catalog import KLEIN_MINI
from openklein.engine.mini_autoencoder import MiniAutoencoder, MiniAutoencoderConfig
from openklein.engine.quantize import quantize_rows
from training.autoencoder import load_average
from training.model import MiniModel, load_model
from training.pool import read_statistics


def sixteen_bit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round the floating-point tensors to bfloat16, but keep statistics, which are few, in float32."""
    return {
        key: tensor.bfloat16() if tensor.is_floating_point() and not key.startswith("bn.") else tensor
        for key, tensor in state.items()
    }


def eight_bit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round matrices to int8, each row by a scale, float32, that is put beside them; other tensors to bfloat16."""
    rounded: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if tensor.ndim == 2:
            rounded[key], rounded[f"{key}_scale"] = quantize_rows(tensor, torch.int8)
        else:
            rounded[key] = tensor.bfloat16()
    return rounded


def export(model: MiniModel, work: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    assert isinstance(KLEIN_MINI.autoencoder, MiniAutoencoderConfig)
    autoencoder = MiniAutoencoder(KLEIN_MINI.autoencoder)
    decoder_run = work / "decoder"
    autoencoder.load_state_dict(load_average(decoder_run if decoder_run.exists() else work / "autoencoder"))
    mean, var = read_statistics(work)
    autoencoder.bn.load_state_dict({"running_mean": mean, "running_var": var, "num_batches_tracked": torch.tensor(0)})
    states = {
        "transformer": eight_bit(model.transformer.state_dict()),
        "text_encoder": sixteen_bit(model.text_encoder.state_dict()),
        "autoencoder": sixteen_bit(autoencoder.state_dict()),
    }
    for name, state in states.items():
        save_file({key: tensor.contiguous() for key, tensor in state.items()}, target / KLEIN_MINI.files[name][0])
    shutil.copy(work / "tokenizer.json", target / KLEIN_MINI.files["tokenizer"][0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--flow-run", default="distill", help="distill, or flow for the undistilled weights")
    arguments = parser.parse_args()
    export(load_model(arguments.work / arguments.flow_run), arguments.work, arguments.to)
