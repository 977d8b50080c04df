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
from training.flow import MiniModel, Pool


def sixteen_bit(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Round the floating-point tensors to bfloat16, but keep statistics, which are few, in float32."""
    return {
        key: tensor.bfloat16() if tensor.is_floating_point() and not key.startswith("bn.") else tensor
        for key, tensor in state.items()
    }


def export(work: Path, target: Path, flow_run: str) -> None:
    target.mkdir(parents=True, exist_ok=True)
    model = MiniModel()
    model.load_state_dict(load_average(work / flow_run))
    assert isinstance(KLEIN_MINI.autoencoder, MiniAutoencoderConfig)
    autoencoder = MiniAutoencoder(KLEIN_MINI.autoencoder)
    decoder_run = work / "decoder"
    autoencoder.load_state_dict(load_average(decoder_run if decoder_run.exists() else work / "autoencoder"))
    pool = Pool(work)
    autoencoder.bn.load_state_dict(
        {"running_mean": pool.mean, "running_var": pool.var, "num_batches_tracked": torch.tensor(0)}
    )
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
    export(arguments.work, arguments.to, arguments.flow_run)
