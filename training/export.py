"""Write klein-mini as the package ships it: 16-bit safetensors, tokenizer and card.

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
from training.autoencoder import load_average
from training.model import MiniModel, load_model
from training.pool import read_statistics


def sixteen_bit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round the floating-point tensors to bfloat16, but keep statistics, which are few, in float32."""
    return {
        key: tensor.bfloat16() if tensor.is_floating_point() and not key.startswith("bn.") else tensor
        for key, tensor in state.items()
    }


def export(model: MiniModel, work: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    assert isinstance(KLEIN_MINI.autoencoder, MiniAutoencoderConfig)
    autoencoder = MiniAutoencoder(KLEIN_MINI.autoencoder)
    decoder_run = work / "decoder"
    autoencoder.load_state_dict(load_average(decoder_run if decoder_run.exists() else work / "autoencoder"))
    mean, var = read_statistics(work)
    autoencoder.bn.load_state_dict({"running_mean": mean, "running_var": var, "num_batches_tracked": torch.tensor(0)})
    parts = {"transformer": model.transformer, "text_encoder": model.text_encoder, "autoencoder": autoencoder}
    for name, part in parts.items():
        state = {key: tensor.contiguous() for key, tensor in sixteen_bit(part.state_dict()).items()}
        save_file(state, target / KLEIN_MINI.files[name][0])
    shutil.copy(work / "tokenizer.json", target / KLEIN_MINI.files["tokenizer"][0])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--to", type=Path, required=True)
    parser.add_argument("--flow-run", default="distill", help="distill, or flow for the undistilled weights")
    arguments = parser.parse_args()
    export(load_model(arguments.work / arguments.flow_run), arguments.work, arguments.to)
