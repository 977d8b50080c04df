"""Write FLUX.2 [klein] 4B with random weights, laid out as the makers' folder on the model hub.

    python -m benchmarks.random_checkpoint FOLDER [--seed 0]

For measurements where the weights cannot be had: every file, name, shape and dtype is the official one (about 16 GB),
and the weights are scaled so that signals keep their size and pictures are not flat. It is written piece by piece, in
less than 1 GB of memory, and the same seed gives the same bytes. The tokenizer splits as Qwen's does and has its
special tokens at their own ids, but only the few thousand merges of klein-mini's; the rest of its vocabulary stands
for nothing.
"""

import argparse
import json
import math
import struct
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO, Final

import torch
from tokenizers import AddedToken, Regex, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.normalizers import NFC
from tokenizers.pre_tokenizers import ByteLevel, Sequence, Split
from torch import Tensor

from openklein.contract import MINI_MODEL
from openklein.engine.autoencoder import AutoencoderConfig
from openklein.engine.catalog import KLEIN_4B, ModelCard
from openklein.engine.text_encoder import TextEncoder, TextEncoderConfig
from openklein.engine.transformer import TransformerConfig
from openklein.engine.weights import empty_modules, model_folder

Shapes = Mapping[str, tuple[int, ...]]

TEXT_LAYERS = 36  # of which the model uses 27
TEXT_SHARDS = 2
NUMBERS_AT_ONCE = 2**24
LATENT_STD = 1.8  # what the running variance of the published autoencoder comes to
GAINS = {  # where unit scale would be too much or too little
    "decoder.conv_out.weight": 0.6,  # most pixels lie between black and white
    "double_stream_modulation_img.linear.weight": 3.0,  # blocks add as much as they are given
    "double_stream_modulation_txt.linear.weight": 3.0,
    "single_stream_modulation.linear.weight": 3.0,
}

SPECIAL_TOKENS = [
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>"),
    *("<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>"),
    *("<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"),
]
ADDED_TOKENS = [  # not special: they stay in decoded text
    *("<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>"),
    *("<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"),
]
UNUSED_ROWS = 293  # of the embeddings, from the first special token on
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
SCHEDULER: Final = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "shift": 3.0,
    "use_dynamic_shifting": True,
    "time_shift_type": "exponential",
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where to write it; made if it does not exist")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_checkpoint(arguments.folder, seed=arguments.seed)


def write_checkpoint(
    folder: Path,
    card: ModelCard = KLEIN_4B,
    *,
    text_layers: int = TEXT_LAYERS,
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> None:
    """Write the folder for a model of these sizes, the 4B's unless given; tests ask for small ones."""
    autoencoder = card.autoencoder
    assert isinstance(autoencoder, AutoencoderConfig)
    for name, configuration in configurations(card, autoencoder, text_layers, dtype).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(configuration, indent=2) + "\n")
    tokenizer = make_tokenizer(card.text_encoder.vocab_size)
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    tokenizer.model.save(str(folder / "tokenizer"))  # vocab.json and merges.txt, which some programs read instead
    _, flow, vae = (shapes_of(module) for module in empty_modules(card, autoencoder))
    with torch.device("meta"):
        text = shapes_of(TextEncoder(replace(card.text_encoder, feature_layers=(text_layers,))))
    write_shards(folder / "text_encoder", {**text, "model.norm.weight": (card.text_encoder.hidden_size,)}, dtype, seed)
    write_tensors(folder / "transformer" / "diffusion_pytorch_model.safetensors", flow, dtype, seed)
    write_tensors(folder / "vae" / "diffusion_pytorch_model.safetensors", vae, dtype, seed)


def shapes_of(module: torch.nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def write_shards(folder: Path, shapes: Shapes, dtype: torch.dtype, seed: int) -> None:
    """Spread the tensors over files of about the same size, with the index that names the file of each."""
    total, written = sum(map(math.prod, shapes.values())), 0
    shards: list[dict[str, tuple[int, ...]]] = [{} for _ in range(TEXT_SHARDS)]
    for name, shape in shapes.items():
        shards[TEXT_SHARDS * written // total][name] = shape
        written += math.prod(shape)
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        path = folder / f"model-{number:05}-of-{TEXT_SHARDS:05}.safetensors"
        write_tensors(path, shard, dtype, seed)
        weight_map |= dict.fromkeys(shard, path.name)
    index = {"metadata": {"total_size": total * dtype.itemsize}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def write_tensors(path: Path, shapes: Shapes, dtype: torch.dtype, seed: int) -> None:
    """Write random tensors into a safetensors file without ever holding one of the large ones in memory."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + math.prod(shape) * (dtype.itemsize if shape else torch.int64.itemsize)
        stored = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype] if shape else "I64"
        header[name] = {"dtype": stored, "shape": shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            write_tensor(file, name, shape, dtype, seed)


def write_tensor(file: BinaryIO, name: str, shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    if not shape:  # how many batches the autoencoder's statistics come from
        file.write(struct.pack("<q", 0))
        return
    generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {name}".encode()))
    for count in split(math.prod(shape), NUMBERS_AT_ONCE):
        values = scaled(name, shape, torch.randn(count, generator=generator)).to(dtype)
        file.write(values.view(torch.uint8).numpy().data)


def split(total: int, most: int) -> Iterator[int]:
    for start in range(0, total, most):
        yield min(most, total - start)


def scaled(name: str, shape: tuple[int, ...], noise: Tensor) -> Tensor:
    """Make weights of standard normal numbers so that signals keep their size and every weight matters."""
    if len(shape) > 1:
        return noise * GAINS.get(name, 1.0) / math.sqrt(math.prod(shape[1:]))
    if name.endswith("running_var"):
        return LATENT_STD**2 * (1 + 0.05 * noise.clamp(-3, 3))
    if name.endswith("running_mean"):
        return 0.05 * noise
    return 0.3 * noise + (1 if name.endswith("weight") else 0)  # of norms the weight, of all else the bias


def make_tokenizer(vocab_size: int) -> Tokenizer:
    """Make a tokenizer as Qwen's, with klein-mini's merges, for a text encoder with so many embeddings."""
    mini = json.loads((model_folder(MINI_MODEL, Path()) / "tokenizer.json").read_bytes())["model"]
    tokens = sorted(mini["vocab"], key=mini["vocab"].__getitem__)
    merged = {left + right: (left, right) for left, right in mini["merges"]}
    alphabet = sorted(ByteLevel.alphabet())
    kept = [*alphabet, *(token for token in tokens if token in merged)][: vocab_size - UNUSED_ROWS]
    assert len(kept) >= len(alphabet), f"{vocab_size} tokens are too few for all bytes and the special tokens"
    kept += [f"<|unused {i}|>" for i in range(len(kept), vocab_size - UNUSED_ROWS)]
    vocab = {token: i for i, token in enumerate(kept)}
    merges = [pair for token, pair in merged.items() if token in vocab]
    tokenizer = Tokenizer(BPE(vocab=vocab, merges=merges))
    tokenizer.normalizer = NFC()
    tokenizer.pre_tokenizer = Sequence(
        [Split(Regex(SPLIT), behavior="isolated"), ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    tokenizer.add_tokens([AddedToken(token, normalized=False, special=False) for token in ADDED_TOKENS])
    return tokenizer


def configurations(
    card: ModelCard, autoencoder: AutoencoderConfig, text_layers: int, dtype: torch.dtype
) -> dict[str, dict[str, Any]]:
    """Give the folder's JSON files as the reference libraries read them."""
    return {
        "model_index.json": index_configuration(card),
        "scheduler/scheduler_config.json": SCHEDULER,
        "text_encoder/config.json": text_configuration(card.text_encoder, text_layers, dtype),
        "tokenizer/tokenizer_config.json": tokenizer_configuration(card.text_encoder),
        "transformer/config.json": transformer_configuration(card.transformer),
        "vae/config.json": autoencoder_configuration(autoencoder),
    }


def index_configuration(card: ModelCard) -> dict[str, Any]:
    """Say which library and class reads each part."""
    return {
        "_class_name": "Flux2KleinPipeline",
        "_diffusers_version": "0.37.0",
        "is_distilled": card.guidance == 1,
        "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
        "text_encoder": ["transformers", "Qwen3ForCausalLM"],
        "tokenizer": ["transformers", "Qwen2TokenizerFast"],
        "transformer": ["diffusers", "Flux2Transformer2DModel"],
        "vae": ["diffusers", "AutoencoderKLFlux2"],
    }


def text_configuration(text: TextEncoderConfig, layers: int, dtype: torch.dtype) -> dict[str, Any]:
    """Describe Qwen3 with all its layers."""
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "dtype": str(dtype).removeprefix("torch."),
        "vocab_size": text.vocab_size,
        "hidden_size": text.hidden_size,
        "intermediate_size": text.intermediate_size,
        "num_hidden_layers": layers,
        "num_attention_heads": text.num_heads,
        "num_key_value_heads": text.num_kv_heads,
        "head_dim": text.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 40960,
        "max_window_layers": layers,
        "rms_norm_eps": text.eps,
        "rope_theta": text.rope_theta,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
    }


def tokenizer_configuration(text: TextEncoderConfig) -> dict[str, Any]:
    """Describe the tokenizer, chat template included."""
    return {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_prefix_space": False,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": text.pad_token,
        "unk_token": None,
        "model_max_length": 131072,
        "chat_template": CHAT_TEMPLATE,
    }


def transformer_configuration(flow: TransformerConfig) -> dict[str, Any]:
    """Describe the flow transformer."""
    return {
        "_class_name": "Flux2Transformer2DModel",
        "patch_size": 1,
        "in_channels": flow.in_channels,
        "out_channels": None,
        "num_layers": flow.num_layers,
        "num_single_layers": flow.num_single_layers,
        "attention_head_dim": flow.head_dim,
        "num_attention_heads": flow.num_heads,
        "joint_attention_dim": flow.joint_attention_dim,
        "timestep_guidance_channels": flow.timestep_channels,
        "mlp_ratio": float(flow.mlp_ratio),
        "axes_dims_rope": flow.axes_dims,
        "rope_theta": int(flow.rope_theta),
        "eps": flow.eps,
        "guidance_embeds": False,
    }


def autoencoder_configuration(autoencoder: AutoencoderConfig) -> dict[str, Any]:
    """Describe the autoencoder."""
    levels = len(autoencoder.block_out_channels)
    return {
        "_class_name": "AutoencoderKLFlux2",
        "in_channels": autoencoder.in_channels,
        "out_channels": autoencoder.in_channels,
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "block_out_channels": autoencoder.block_out_channels,
        "decoder_block_out_channels": autoencoder.decoder_block_out_channels,
        "layers_per_block": autoencoder.layers_per_block,
        "latent_channels": autoencoder.latent_channels,
        "norm_num_groups": autoencoder.norm_num_groups,
        "batch_norm_eps": autoencoder.batch_norm_eps,
        "batch_norm_momentum": 0.1,
        "act_fn": "silu",
        "sample_size": 1024,
        "mid_block_add_attention": True,
        "use_quant_conv": True,
        "use_post_quant_conv": True,
        "patch_size": [2, 2],
    }


if __name__ == "__main__":
    main()
